"""Pictures to training data: folders of images become fastMRI-style volumes of simulated k-space."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from kspace.coils import calibration_region
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft, interpolate, resize
from kspace.io import fastmri, mrd
from kspace.io.images import box_corners, find_images, read_boxes, read_image
from kspace.simulation.from_images import SynthesisOptions, simulate_volume
from kspace.simulation.receiver import MAPS_GRID, maps_from_images
from recon.datasets.patients import PatientFiles, group_files, split_groups

MAPS_BLOCK = 32  # central samples per axis that coil maps are measured from


def simulate(
    images: Path,
    output: Path,
    matrix: tuple[int, int] = (256, 256),
    coils: int = 8,
    snr: float = 20.0,
    snr_max: float | None = None,
    phase_std: float = 1.0,
    maps_from: Path | None = None,
    group_size: int | None = None,
    split: float = 0.0,
    gap: int = 0,
    seed: int = 0,
    attribution: str = "",
    skip_bad: bool = False,
    force: bool = False,
) -> None:
    """Turn folders of images (JPEG, PNG, TIFF, DICOM, NIfTI, .npy) into fastMRI-style volumes of simulated k-space.

    Each picture's k-space is cropped to the matrix, smooth phase, coils and correlated noise are added. Boxes in YOLO text
    files beside the pictures are carried along as regions of interest, and the pictures themselves as the truth that methods
    are compared with. The result depends on the pictures, the options and the
    seed alone. It is simulated, and what is learned or measured on it has to be called so.

    Parameters
    ----------
    images
        Folder of images, searched with the folders below it.
    output
        Folder for the volumes.
    matrix
        Points ky kx of k-space. Pictures with fewer are refused: there is nothing to undersample outside their own k-space.
    coils
        Number of coils, SigPy's birdcage with random deviations.
    snr
        Mean magnitude in the object over the standard deviation of the noise in the real part of the optimally combined image.
    snr_max
        Draw the ratio of each volume between snr and this.
    phase_std
        Standard deviation of the smooth phase over the image, in radians.
    maps_from
        Measure the coil maps, and the noise covariance where there is one, from this scan (ISMRMRD or fastMRI HDF5) instead.
    group_size
        Files of a folder whose numbers lie within this many consecutive ones are one patient and one volume. Without it the
        pictures of a folder are, or a NIfTI or NumPy file, or a DICOM series.
    split
        Write train/ and val/: this fraction of each folder's files, or of the patients, is for validation.
    gap
        Leave this many files before the validation files out of everything, since nothing says where the next patient begins.
    seed
        Seed of everything that is drawn.
    attribution
        Whom the licence of the images wants named, and the licence: kept in the volumes, and shown with what is made of them.
    skip_bad
        Leave images that cannot be used out, name them, and count them at the end, instead of stopping at the first.
    force
        Overwrite existing volumes.
    """
    receiver: tuple[Tensor, Tensor | None] | None = None if maps_from is None else measure_receiver(maps_from)
    options = SynthesisOptions(
        matrix=matrix,
        coils=coils if receiver is None else len(receiver[0]),
        snr=(snr, snr if snr_max is None else snr_max),
        phase_std=phase_std,
        maps=None if receiver is None else receiver[0],
        covariance=None if receiver is None else receiver[1],
    )
    groups = group_files(find_images(images), images, group_size)
    parts, left_out = {"": groups}, 0
    if split:
        train, val, lost = split_groups(groups, split, gap, by_number=group_size is not None)
        parts, left_out = {"train": train, "val": val}, len(lost)
    elif gap:
        raise InputError(f"a gap of {gap} files without a split", "--gap", "give --split as well")
    jobs = [(output / part / f"{group.name}.h5", group) for part, members in parts.items() for group in members]
    _check_outputs([path for path, _ in jobs], output, force)
    work = _Work(images if images.is_dir() else images.parent, options, seed, attribution, skip_bad, force)
    for path, group in tqdm(jobs, unit="volume", disable=None):
        work.do(path, group)
    work.finish(left_out)


@dataclass
class _Work:
    """Makes one volume after the other and keeps count."""

    root: Path
    options: SynthesisOptions
    seed: int
    attribution: str
    skip_bad: bool
    force: bool
    written: dict[str, int] = field(default_factory=dict)
    n_bytes: int = 0
    bad: list[str] = field(default_factory=list)

    def do(self, path: Path, group: PatientFiles) -> None:
        slices: dict[str, Tensor] = {}
        boxes: list[tuple[float, ...]] = []
        for file in group.files:
            try:
                self._read(file, slices, boxes)
            except InputError as error:
                self._is_bad(error)
        if not slices:
            return
        try:
            volume = simulate_volume(slices, self.options, self.seed, group.name)
        except InputError as error:
            self._is_bad(error)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fastmri.write_volume(
            path,
            volume.slices(self.seed),
            patient_id=group.patient,
            acquisition="SIMULATED",
            noise_covariance=volume.noise_covariance,
            boxes=boxes,
            truth=volume.truth,
            attributes={
                "simulated": True,
                "snr": volume.snr,
                "seed": self.seed,
                "images": "\n".join(slices)[:60000],
                **({"attribution": self.attribution} if self.attribution else {}),
            },
            force=self.force,
        )
        self.written[path.parent.name] = self.written.get(path.parent.name, 0) + len(slices)
        self.n_bytes += path.stat().st_size

    def _read(self, file: Path, slices: dict[str, Tensor], boxes: list[tuple[float, ...]]) -> None:
        """Add the slices of a file, all or none."""
        stack, name = read_image(file), file.relative_to(self.root).as_posix()
        n_y, n_x = self.options.matrix
        if stack.shape[1] < n_y or stack.shape[2] < n_x:
            raise InputError(
                f"the picture has {stack.shape[1]} x {stack.shape[2]} points (y x), fewer than the matrix {n_y} x {n_x}",
                file,
                "choose a smaller --matrix",
            )
        found = read_boxes(file) if len(stack) == 1 else []
        boxes += [(len(slices), box.label, *box_corners(box, stack.shape[1:], self.options.matrix)) for box in found]
        for i, image in enumerate(stack):
            slices[name if len(stack) == 1 else f"{name}#{i}"] = torch.from_numpy(image)

    def _is_bad(self, error: InputError) -> None:
        if not self.skip_bad:
            raise error
        self.bad.append(str(error))
        tqdm.write(f"skipped: {error}", file=sys.stderr)

    def finish(self, left_out: int) -> None:
        """Say what was done."""
        if not self.written:
            raise InputError(f"none of the images could be used; the first: {self.bad[0]}")
        n_slices = sum(self.written.values())
        by_part = ", ".join(f"{count} in {name}" for name, count in self.written.items())
        print(f"{n_slices} slices ({by_part}), {self.n_bytes / 1e9:.2f} GB, {self.options.coils} coils, seed {self.seed}")
        if left_out:
            print(f"{left_out} images between training and validation were left out")
        if self.bad:
            print(f"{len(self.bad)} bad images were skipped")


def measure_receiver(path: Path) -> tuple[Tensor, Tensor | None]:
    """Coil maps and noise covariance of the first image of a scan.

    Parameters
    ----------
    path
        ISMRMRD or fastMRI-style HDF5.

    Returns
    -------
    tuple
        Smooth maps, complex64 ``(coil 64 64)``, and E[n n^H] ``(coil coil)`` or None where the file does not know it.

    Raises
    ------
    InputError
        If the file cannot be read, or the centre of its k-space was not sampled.
    """
    k, covariance = _first_image(path)
    data, mask = k.data, torch.broadcast_to(k.mask, (*k.mask.shape[:-3], 1, *k.data.shape[-2:]))
    if data.ndim == 4:  # the middle of a 3-D scan
        data = ifft(data, (0,))[data.shape[0] // 2]
        mask = mask.all(0)
    if k.calibration is not None and k.calibration.ndim == 3:
        data, mask = k.calibration, (k.calibration != 0).any(0, keepdim=True)
    block = [min(MAPS_BLOCK, n) for n in calibration_region(mask[0])]
    if min(block) < 8:
        raise InputError(f"only {block[0]} x {block[1]} samples at the centre of k-space, too few for coil maps", path)
    shape = data.shape[-2:]
    window = [
        resize(torch.hann_window(n + 1)[1:] if n < full else torch.ones(n), (full,))
        for n, full in zip(block, shape, strict=True)
    ]
    coil_images = ifft(data * window[0][:, None] * window[1])
    x, y, _ = k.header.recon_matrix
    coil_images = resize(coil_images, (min(y, shape[0]) or shape[0], min(x, shape[1]) or shape[1]))
    return maps_from_images(interpolate(coil_images, (MAPS_GRID, MAPS_GRID))), covariance


def _first_image(path: Path) -> tuple[KSpace, Tensor | None]:
    try:
        scan = mrd.open_scan(path)
    except InputError as not_mrd:
        try:
            volume = fastmri.open_volume(path)
        except InputError:
            raise not_mrd from None
        return volume.load(volume.n_slices // 2), volume.noise_covariance
    for number, encoding in enumerate(scan.encodings):
        if encoding.refusal is None and encoding.n_readouts:
            found = scan.images(number)
            noise = None if scan.noise is None else torch.from_numpy(scan.noise.covariance)
            return scan.load(number, found[len(found) // 2]), noise
    raise InputError("no image can be loaded", path)


def _check_outputs(paths: Sequence[Path], output: Path, force: bool) -> None:
    """Before hours of work, not after."""
    if output.exists() and not output.is_dir():
        raise InputError("the output is a file, expected a folder", output)
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise InputError(f"{len(existing)} of the volumes exist", existing[0], "choose another folder, or give --force")
