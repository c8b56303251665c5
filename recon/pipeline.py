"""Raw file to images, read top to bottom."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from kspace import coils, preprocess
from kspace.container import Image, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.masks import acceleration, digest
from kspace.mrd import Noise, read_noise
from kspace.operators import Sense
from recon import reconstructors
from recon.export import RunRecord, check_outputs, export
from recon.method import Method, choose
from recon.selection import index_name, parse_selection
from recon.source import Source, open_source
from recon.versions import versions

log = logging.getLogger(__name__)

FORMATS = ("mrd", "dicom", "nifti", "png")
BESIDE = reconstructors.Sense()  # the classical image that goes with a generated one
SUPPORT_HOLDS = 0.5  # of the energy of the zero-filled coil images, noise and aliases included


@dataclass(frozen=True)
class Options:
    """How to reconstruct.

    Attributes
    ----------
    method
        rss, zero-filled, sense, l1-wavelet, tv, or a generator (recon models lists those that ship).
    weights
        File of weights (.safetensors) for a generator, instead of those that ship.
    lamda
        Regularisation weight; for l1-wavelet and tv relative to max|A^H y|. Default: the method's own.
    maps
        Coil maps: espirit or jsense, from the acquired calibration samples, or a file (.npy, or .h5 with a dataset 'maps')
        holding complex ([slice,] coil, y, x), or (coil, z, y, x) in 3-D,
        of all channels of the raw file, not whitened.
    calibration_width
        At most this many central lines and points are used for the maps.
    virtual_coils
        Compress to this many virtual coils, from acquired samples.
    noise
        ISMRMRD file whose noise scan is used instead of the one in the input.
    no_whiten
        Do not whiten, even where there is a noise scan.
    partial_fourier
        What to do where a side of k-space was not acquired: leave it zero, or fill it by POCS.
    conjugate
        Conjugate the samples first, for scanners with the other sign of the Fourier exponent.
    encoding
        Reconstruct only this encoding of the file (default: each).
    slices
        Only these slices, e.g. 0,3-5.
    repetitions
        Only these repetitions, e.g. 0,3-5.
    incomplete
        Reconstruct images too whose acquisition was begun and not finished.
    format
        What to write, separated by commas: mrd, dicom, nifti, png. A JSON record is always written.
    complex
        Write complex MRD and NIfTI images instead of magnitudes.
    device
        Where networks and operators run. SigPy's classical methods run on the CPU.
    force
        Overwrite existing outputs.
    """

    method: str = "sense"
    weights: Path | None = None
    lamda: float | None = None
    maps: str = "espirit"
    calibration_width: int = 24
    virtual_coils: int | None = None
    noise: Path | None = None
    no_whiten: bool = False
    partial_fourier: Literal["zero-filled", "pocs"] = "zero-filled"
    conjugate: bool = False
    encoding: int | None = None
    slices: str | None = None
    repetitions: str | None = None
    incomplete: bool = False
    format: str = ",".join(FORMATS)
    complex: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    force: bool = False

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats to write, one by one."""
        chosen = tuple(part.strip() for part in self.format.split(",") if part.strip())
        if unknown := [c for c in chosen if c not in FORMATS]:
            raise InputError(f"unknown format '{unknown[0]}'", "--format", f"choose from {', '.join(FORMATS)}")
        return chosen


@dataclass
class Journal:
    """What happened during one reconstruction, for the record that is written beside the images."""

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    masks: list[dict[str, object]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time that the body takes to the step `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, message: str) -> None:
        """Say something once: now on the terminal, later in the record."""
        if message not in self.warnings:
            self.warnings.append(message)
            tqdm.write(f"recon: warning: {message}", file=sys.stderr)


def run(inputs: list[Path], output: Path = Path("out"), options: Options = Options()) -> int:
    """Reconstruct raw scans into images.

    Parameters
    ----------
    inputs
        Raw files: ISMRMRD HDF5, fastMRI HDF5, or Siemens twix (.dat). They are opened read-only.
    output
        Folder for the results; each input gives files under its own stem.
    options
        How to reconstruct.

    Returns
    -------
    int
        0, or 2 where an input could not be reconstructed; the others are.
    """
    _refuse_equal_stems(inputs)
    failed = 0
    for path in inputs:
        try:
            written = reconstruct_file(path, output, options)
        except InputError as error:
            if len(inputs) == 1:
                raise
            # One bad file of many must not cost the others: it is named, and the exit status remembers it.
            print(f"recon: error: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print("\n".join(str(p) for p in written))
    return 2 if failed else 0


def reconstruct_file(path: Path, output: Path, options: Options) -> list[Path]:
    """Reconstruct one file with `options` into the folder `output`; return what was written.

    Raises
    ------
    InputError
        If the file, or its combination with the options, cannot be used. Nothing was written then.
    """
    method = choose(options.method, options.lamda, options.weights, options.device)
    if method.reconstruct is None and options.complex:
        raise InputError(f"{method.name} is a magnitude", "--complex", "leave it out, or choose another method")
    roles = ("main",) if method.generator is None else ("main", BESIDE.name)
    with open_source(path) as source:
        encodings = _chosen_encodings(source, options)
        stems = {e: source.stem + (f"_enc{e}" if len(source.encodings) > 1 else "") for e in encodings}
        for stem in stems.values():
            check_outputs(output, stem, options.formats, options.force, roles)
            source.check_extra(output, stem, options.force)
        written: list[Path] = []
        for e in encodings:
            journal = Journal()
            images = reconstruct_encoding(source, e, method, options, journal)
            record = _record(source, options, method, journal)
            written += export(images, record, output, stems[e], options.formats, options.complex, options.force, source.xml)
            main = [image for image in images if image.role == "main"]
            written += source.export_extra(main, output, stems[e], options.method, options.force)
    return written


def reconstruct_encoding(source: Source, encoding: int, method: Method, options: Options, journal: Journal) -> list[Image]:
    """Every chosen image of one encoding, one at a time: only one image's samples are in memory."""
    with journal.step("noise"):
        noise = _noise(source, options, journal)
    indices = _chosen_images(source, encoding, options, journal)
    images = []
    for index in tqdm(indices, desc=f"{source.stem}: {options.method}", unit="image", disable=None, leave=False):
        with journal.step("read"):
            k = source.load(encoding, index)
        images += reconstruct_image(k, noise, source, method, options, journal)
    for message in source.warnings:
        journal.warn(message)
    return images


def reconstruct_image(
    k: KSpace, noise: Noise | None, source: Source, method: Method, options: Options, journal: Journal
) -> list[Image]:
    """One image: whiten, remove oversampling, estimate maps, reconstruct, bring to the recon matrix.

    A generator's image is followed by the classical one of the same data, so that a person can look at both.
    """
    with journal.step("preprocess"):
        k = prepare(k, noise, options, journal)
    shape = (k.data.shape[-2], k.data.shape[-1])
    sampled = {"digest": digest(k.mask, shape), "acceleration": acceleration(k.mask, shape)}
    journal.masks.append({"image": index_name(k.header.index), **sampled})
    if method.reconstruct is None:
        with journal.step("reconstruct"):
            # The sum is taken on the final matrix: interpolating it would blur what interpolating its parts does not.
            coil_images = preprocess.to_recon_matrix(_volume(ifft(k.data)), k.header)
            return [Image(coil_images.abs().square().sum(0).sqrt(), k.header)]
    with journal.step("maps"):
        maps = _maps(k, noise, source, options, journal)
    op = Sense(maps, k.mask, noise_std=k.header.noise_std or 1.0, n_averages=k.n_averages)
    _check_support(k, op, journal)
    with journal.step("reconstruct"):
        images = [_image(method.reconstruct(k.data, op), k, "main", source)]
    if method.generator is not None:
        for difference in method.generator.outside(op, acceleration(k.mask, shape)):
            journal.warn(f"outside of what {method.name} was trained on: {difference}")
        with journal.step(BESIDE.name):
            images.append(_image(BESIDE(k.data, op), k, BESIDE.name, source))
    return images


def _image(planes: Tensor, k: KSpace, role: str, source: Source) -> Image:
    """The finished image of reconstructed planes ``(y x)`` or ``(x z y)``."""
    volume = preprocess.to_recon_matrix(_volume(planes.unsqueeze(-3)), k.header)[0]
    if not torch.isfinite(torch.view_as_real(volume)).all():
        raise InputError("the reconstruction gave values that are not finite", source.path, "try --method zero-filled")
    return Image(volume, k.header, role)


def _volume(planes: Tensor) -> Tensor:
    """``(coil z y x)`` from the plane ``(coil y x)`` of a 2-D scan, or the planes ``(x coil z y)`` of a decoupled 3-D one."""
    return planes.unsqueeze(-3) if planes.ndim == 3 else planes.permute(1, 2, 3, 0)


def _check_support(k: KSpace, op: Sense, journal: Journal) -> None:
    """Say so where the coil maps are empty although there is signal: a blank image must not look like a result."""
    energy = ifft(k.data).abs().square().sum(-3)
    inside = float((energy * op.support).sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny))
    if energy.max() > 0 and inside < SUPPORT_HOLDS:
        journal.warn(
            f"{index_name(k.header.index)}: the coil maps cover {100 * inside:.0f} % of the signal's energy; "
            "with few calibration lines try --maps jsense, or give --maps FILE"
        )


def prepare(k: KSpace, noise: Noise | None, options: Options, journal: Journal) -> KSpace:
    """Everything between the samples as read and the samples that a reconstruction sees."""
    if options.conjugate:
        k = preprocess.conjugate(k)
    if noise is not None:
        k, dropped = preprocess.drop_dead_coils(k, noise)
        if dropped:
            journal.warn(f"coils {', '.join(map(str, dropped))} are dead (noise variance below 1e-6 of the median): dropped")
        k = preprocess.whiten(k, noise)
    k = preprocess.remove_oversampling(k)
    if options.virtual_coils is not None:
        k = coils.compress(k, options.virtual_coils)
    if options.partial_fourier == "pocs":
        k = preprocess.pocs(k)
    if k.header.encoded_matrix[2] > 1:
        k = preprocess.decouple(k)
    return k


def _noise(source: Source, options: Options, journal: Journal) -> Noise | None:
    if options.no_whiten:
        return None
    noise = read_noise(options.noise) if options.noise is not None else source.noise
    if noise is None and source.expects_noise:
        journal.warn(f"no noise scan in {source.path.name}: going on unwhitened; --noise FILE gives a separate one")
    return noise


def _maps(k: KSpace, noise: Noise | None, source: Source, options: Options, journal: Journal) -> Tensor:
    if options.maps not in coils.METHODS:
        return coils.load_maps(Path(options.maps), k, noise)
    try:
        return coils.estimate_maps(k, options.maps, calibration_width=options.calibration_width)
    except coils.NoCalibration:
        averaged = source.load_average(k.header.encoding, k.header.index)
        if averaged is None:
            raise
        journal.warn("no calibration lines: coil maps come from the average over the interleaved repetitions")
        # With all coils, then combined as those of `k` were: compression of its own would choose other virtual coils.
        whole = prepare(averaged, noise, replace(options, virtual_coils=None), Journal())
        return coils.to_virtual(coils.estimate_maps(whole, options.maps, calibration_width=options.calibration_width), k)


def _chosen_encodings(source: Source, options: Options) -> Sequence[int]:
    if options.encoding is None:
        return source.encodings
    if options.encoding not in source.encodings:
        known = ", ".join(map(str, source.encodings))
        raise InputError(f"there is no encoding {options.encoding}", source.path, f"the file has {known}")
    return [options.encoding]


def _chosen_images(source: Source, encoding: int, options: Options, journal: Journal) -> list[ImageIndex]:
    found = source.images(encoding)
    for index, reason in source.incomplete(encoding):
        journal.warn(f"{'incomplete' if options.incomplete else 'left out'}: {index_name(index)}: {reason}")
    if options.incomplete:
        found = sorted({*found, *source.begun(encoding)})
    slices = parse_selection(options.slices, {i.slice for i in found}, "--slices")
    repetitions = parse_selection(options.repetitions, {i.repetition for i in found}, "--repetitions")
    chosen = [i for i in found if i.slice in slices and i.repetition in repetitions]
    if not chosen:
        raise InputError(
            f"no complete image in encoding {encoding}", source.path, "--incomplete takes those that were begun; see recon info"
        )
    return chosen


def _refuse_equal_stems(inputs: Sequence[Path]) -> None:
    stems: dict[str, Path] = {}
    for path in inputs:
        if path.stem in stems:
            raise InputError(
                f"{stems[path.stem]} and {path} would write the same files", "the inputs", "run them with different -o"
            )
        stems[path.stem] = path


def _record(source: Source, options: Options, method: Method, journal: Journal) -> RunRecord:
    with journal.step("checksum"):
        sha256 = source.sha256()
    parameters = {name: value for name, value in vars(options).items() if name not in ("force", "device")}
    parameters = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
    return RunRecord(
        method=method.name,
        generated=method.generator is not None,
        description=f"{method.description} of {source.kind} raw data",
        parameters=parameters | method.details,
        versions=versions() | {k: v for k, v in method.details.items() if k == "weights sha256"},
        source=str(source.path),
        source_sha256=sha256,
        mask={"images": journal.masks},
        seconds=journal.seconds,
        warnings=journal.warnings,
        extra={},
    )
