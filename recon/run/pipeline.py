"""Raw file to images, read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from kspace.container import Image, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.io.mrd import read_noise
from kspace.noise import Noise
from kspace.noise_check import fit_noise
from kspace.operators import ForwardModel
from recon import memory
from recon.evidence.record import ImageEvidence
from recon.memory import FinishedImages
from recon.methods import classical
from recon.methods.choose import RSS, SERIES, Method, choose
from recon.output.export import RunRecord, check_outputs, export
from recon.run.adaptation import adapted, check_adaptation
from recon.run.delivery import Delivery, replaced, roles_of
from recon.run.frames import reconstruct_series
from recon.run.input import Source, open_source
from recon.run.log import Log, to_terminal
from recon.run.one_image import check_method, forward_model, reconstruct_image
from recon.run.options import FORMATS, RunOptions
from recon.run.prepare import MapMaker, prepare
from recon.run.record import run_record
from recon.run.refinement import Refinement
from recon.run.selection import by_reason, parse_selection

__all__ = ["FORMATS", "RunOptions", "reconstruct_file"]


@dataclass(frozen=True, eq=False)
class Result:
    """Images of one encoding, and how they came about.

    Attributes
    ----------
    stem
        Stem of the names of what is written.
    images
        Finished images, those of role ``main`` each followed by what goes with it; empty where none was chosen.
    record
        Method, parameters, versions, checksum, masks, seconds and warnings.
    fallbacks
        Evidence of the images for which a classical one was delivered in place of a generator's.
    """

    stem: str
    images: list[Image]
    record: RunRecord
    fallbacks: tuple[ImageEvidence, ...] = ()


def reconstruct_file(path: Path, output: Path, options: RunOptions, fallbacks: list[ImageEvidence] | None = None) -> list[Path]:
    """Reconstruct one file with `options` into the folder `output`; return what was written.

    `fallbacks` receives the images for which a classical one was delivered in place of a generator's.

    Raises
    ------
    InputError
        If the file, or its combination with the options, cannot be used. Nothing was written then.
    """
    method = choose_method(options)
    roles = ("main",) if method.generator is None else roles_of(None if options.classical == "none" else options.classical)
    with open_source(path) as source:
        check_room(source, output, options, roles)
        # Everything is reconstructed before anything is written: a file gives all of its images, or none.
        results = reconstruct_source(source, method, options, folder=output)
        if fallbacks is not None:
            fallbacks += [one for result in results for one in result.fallbacks]
        return save_results(results, source, output, options)


def choose_method(options: RunOptions) -> Method:
    """The method that `options` name.

    Raises
    ------
    InputError
        If there is none, or it cannot do what the options ask for.
    """
    method = choose(
        options.method, options.lamda, options.weights, options.device, options.precision, options.refine, options.tolerance
    )
    if method.reconstruct is None and options.complex:
        raise InputError(f"{method.name} is a magnitude", "--complex", "leave it out, or choose another method")
    check_adaptation(method, options)
    return method


def reconstruct_source(
    source: Source,
    method: Method,
    options: RunOptions,
    tell: Callable[[str], None] | None = to_terminal,
    show_progress: bool = True,
    folder: Path | None = None,
) -> list[Result]:
    """Reconstruct the chosen images of an open source, one result per encoding. Writes nothing.

    Parameters
    ----------
    source
        Raw data, open.
    method
        From `choose_method`.
    options
        How to reconstruct.
    tell
        Receives each warning when it arises; the record of the result has all of them.
    show_progress
        Show a progress bar where the standard error is a terminal.
    folder
        Place of a file without a name, for the images of long series; None: all images are in memory.

    Raises
    ------
    InputError
        If the data, or their combination with the options, cannot be used.
    """
    source.configure(options)
    encodings = _chosen_encodings(source, options)
    if options.save_weights is not None and len(encodings) > 1:
        raise InputError(f"{len(encodings)} encodings would write one file", "--save-weights", "choose one by --encoding")
    chosen = _chosen_images(source, encodings, options)
    results = []
    finished = FinishedImages(folder)
    for e in encodings:
        log = Log(tell=tell)
        for line in by_reason(source.incomplete(e)):
            log.warn(f"{'incomplete' if options.incomplete else 'left out'}: {line}")
        images = reconstruct_encoding(source, e, chosen[e], method, options, log, show_progress, finished)
        record = run_record(source, options, formats_of(source, options), method, images, log)
        results.append(Result(_stem(source, e), images, record, tuple(replaced(log.evidence))))
    return results


def check_room(source: Source, output: Path, options: RunOptions, roles: Sequence[str] = ("main",)) -> None:
    """Refuse early what `save_results` would refuse late.

    Raises
    ------
    InputError
        If an output exists and ``options.force`` is not given, or the folder cannot be written.
    """
    for e in _chosen_encodings(source, options):
        check_outputs(output, _stem(source, e), formats_of(source, options), options.force, roles, source.path)


def save_results(
    results: Sequence[Result],
    source: Source,
    output: Path,
    options: RunOptions,
    tell: Callable[[str], None] | None = to_terminal,
) -> list[Path]:
    """Write results into the folder `output`, in the formats of `options`; return what was written.

    Raises
    ------
    InputError
        As `recon.output.export.export`; the folder is as it was before then.
    """
    written: list[Path] = []
    for result in results:
        if result.images:
            written += export(
                result.images,
                result.record,
                output,
                result.stem,
                formats_of(source, options),
                options.complex,
                options.force,
                source.xml,
                options.mrd_pixels,
                tell,
            )
    return written


def formats_of(source: Source, options: RunOptions) -> tuple[str, ...]:
    """The formats to write: those asked for, by default the page for a generator, and those of this kind of file."""
    generator = options.method not in (RSS, *classical.METHODS, *SERIES)
    page = ("html",) if options.format is None and generator and options.evidence != "none" else ()
    return tuple(dict.fromkeys((*options.formats, *page, *source.own_formats)))


def _stem(source: Source, encoding: int) -> str:
    return source.stem + (f"_enc{encoding}" if len(source.encodings) > 1 else "")


def reconstruct_encoding(
    source: Source,
    encoding: int,
    indices: Sequence[ImageIndex],
    method: Method,
    options: RunOptions,
    log: Log,
    show_progress: bool,
    finished: FinishedImages,
) -> list[Image]:
    """The images `indices` of one encoding, one at a time: only one image's samples are in memory."""
    with log.step("noise"):
        noise = choose_noise(source, options, log)
    maps = MapMaker(source, noise, options, log)
    images: list[Image] = []
    # All repetitions of a slice come together, because they may share their maps.
    order = sorted(indices, key=lambda i: (i.contrast, i.set, i.phase, i.slice, i.repetition))

    def load(index: ImageIndex) -> tuple[Tensor, ForwardModel]:
        k = source.load(encoding, index)
        check_method(k, method)
        k = prepare(k, noise, options, log)
        return k.data, forward_model(k, maps)

    if method.name in SERIES:
        return reconstruct_series(order, lambda i: prepare(source.load(encoding, i), noise, options, log), maps, method, log)
    method = adapted(method, order, load, options, log)
    if method.generator is not None and source.has_trajectory(encoding):
        log.warn(
            "samples off the Cartesian grid: data consistency is weighted by their density; the limits of the evidence are "
            "those of masks of a grid, and no interval is calibrated for it"
        )
    delivery = None if method.generator is None else Delivery(method, options, log)
    refinement = Refinement(method, order, load, log, None if delivery is None else delivery.companion)
    # The bar counts images and names the stage; tqdm leaves it out where nobody is looking.
    disable = None if show_progress else True
    log.progress = tqdm(order, desc=f"{source.stem}: {options.method}", unit="image", disable=disable, leave=False)
    for index in log.progress:
        with log.step("read"):
            k = source.load(encoding, index)
        check_method(k, method)
        if noise is not None and not images and k.trajectory is None:
            with log.step("noise"):
                _check_noise(k, noise, log)
        with log.step("preprocess"):
            k = prepare(k, noise, options, log)
        images += map(finished.keep, reconstruct_image(k, maps, method, log, refinement, delivery))
        del k
        memory.release()
    if delivery is not None:
        delivery.summarise()
    for message in source.warnings:
        log.warn(message)
    return images


def choose_noise(source: Source, options: RunOptions, log: Log) -> Noise | None:
    """Noise to whiten with: that of ``options.noise``, else that of the source; None where there is none or none is wanted."""
    if options.no_whiten:
        log.noise = "not used"
        return None
    noise = read_noise(options.noise) if options.noise is not None else source.noise
    if noise is not None:
        log.noise = f"{noise.n_samples} samples of {options.noise or source.path}"
        if options.noise is not None and noise.relative_bandwidth == 1:
            log.warn(f"no relativeReceiverNoiseBandwidth in {options.noise}: taken as 1 (Siemens receivers have about 0.79)")
    if noise is None and source.expects_noise:
        log.warn(f"no noise scan in {source.path.name}: going on unwhitened; --noise FILE gives a separate one")
    return noise


def _check_noise(k: KSpace, noise: Noise, log: Log) -> None:
    """Say so where the noise scan cannot be that of the image `k`, which is as it was read."""
    fit = fit_noise(k, noise)
    if fit is not None and not fit.is_plausible:
        log.warn(
            f"the noise scan holds signal, or is another scan's: {fit}; the weighting of the coils follows it. --no-whiten "
            "weighs all coils alike, --noise FILE takes the noise scan of another file"
        )


def _chosen_encodings(source: Source, options: RunOptions) -> Sequence[int]:
    if options.encoding is None:
        return source.encodings
    if options.encoding not in source.encodings:
        known = ", ".join(map(str, source.encodings))
        raise InputError(f"there is no encoding {options.encoding}", source.path, f"the file has {known}")
    return [options.encoding]


def _chosen_images(source: Source, encodings: Sequence[int], options: RunOptions) -> dict[int, list[ImageIndex]]:
    """The images to reconstruct, by encoding."""
    found = {e: sorted({*source.images(e), *(source.begun(e) if options.incomplete else [])}) for e in encodings}
    everything = [index for indices in found.values() for index in indices]
    if not everything:
        raise InputError("no complete image", source.path, "--incomplete takes those that were begun; see recon info")
    slices = parse_selection(options.slices, {i.slice for i in everything}, "--slices")
    repetitions = parse_selection(options.repetitions, {i.repetition for i in everything}, "--repetitions")
    chosen = {e: [i for i in found[e] if i.slice in slices and i.repetition in repetitions] for e in encodings}
    if not any(chosen.values()):
        raise InputError("no image has both", "--slices and --repetitions", "see recon info")
    return chosen
