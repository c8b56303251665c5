"""`recon simulate`: fastMRI volumes of simulated k-space from folders of images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from kspace.coils import calibration_region
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft, interpolate, resize
from kspace.io import fastmri, mrd
from kspace.io.images import Box, box_corners, find_images, read_boxes, read_image
from kspace.simulation.from_images import SimulatedVolume, SynthesisOptions, generator, simulate_volume
from kspace.simulation.realism import SMALLEST_JUDGED, SNR, Realism, draw_matrix
from kspace.simulation.receiver import MAPS_GRID, maps_from_images
from recon.datasets.patients import PatientFiles, group_files, split_groups
from recon.datasets.simulation_check import compare_with_scans

SMOOTH_MATRIX, SMOOTH_SNR = (256, 256), 20.0
MAPS_BLOCK = 32  # central samples per axis for the estimation of coil maps


def simulate(
    images: Path,
    output: Path,
    matrix: tuple[int, ...] = (),
    coils: int = 8,
    snr: float | None = None,
    snr_max: float | None = None,
    smooth: bool = False,
    phase_std: float = 1.0,
    maps_from: Path | None = None,
    group_size: int | None = None,
    split: float = 0.0,
    gap: int = 0,
    seed: int = 0,
    attribution: str = "",
    skip_bad: bool = False,
    check: tuple[Path, ...] = (),
    examples: int = 100,
    force: bool = False,
) -> None:
    """Simulate fastMRI volumes of k-space from folders of images (JPEG, PNG, TIFF, DICOM, NIfTI, .npy).

    Images get a random orientation and frame, and their k-space is cropped to the matrix; half of the volumes get another
    contrast. Realistic phase, coil sensitivities and correlated noise are added. Boxes in YOLO text files become regions of
    interest, and the images themselves the noise-free ground truth. The result depends only on images, options and seed. The
    data are simulated; results obtained with them must be labelled so.

    Parameters
    ----------
    images
        Folder of images, including subfolders.
    output
        Folder for the volumes.
    matrix
        Matrix size ky kx of all volumes. Default: random for each volume, 96 to 208 (with --smooth 256 256). Smaller images
        are refused, because their k-space does not fill the matrix.
    coils
        Number of coils (SigPy's birdcage with random deviations).
    snr
        Mean magnitude in the object over the standard deviation of the noise in the real part of the optimally combined image.
        Default: random from 5 to 1200, more often low (with --smooth 20).
    snr_max
        Draw the SNR of each volume between snr and this value.
    smooth
        Simulate uncropped images of their own contrast with smooth phase instead of realistic scans.
    phase_std
        Standard deviation of the smooth phase over the image, in radians.
    maps_from
        ISMRMRD or fastMRI HDF5 scan from which coil maps and, if available, noise covariance are taken.
    group_size
        Number of consecutive files of a folder that form one patient and volume. Default: the images of a folder, a NIfTI or
        NumPy file, or a DICOM series.
    split
        Write train/ and val/, with this fraction of each folder's files, or of the patients, for validation.
    gap
        Number of files before the validation files that are left out, because patient boundaries are unknown.
    seed
        Seed of all random generators.
    attribution
        Licence of the images and the attribution that it requires; stored in the volumes and in results derived from them.
    skip_bad
        Skip unusable images, listing them and their number, instead of stopping at the first.
    check
        Compare the simulation with these fully sampled scans (fastMRI HDF5) instead of writing volumes: the output folder gets
        a table (check.md), values (check.json) and a plot (check.png).
    examples
        Number of simulated slices for the check.
    force
        Overwrite existing volumes.
    """
    if check:
        options = _options(matrix, coils, snr, snr_max, smooth, phase_std, None)
        draws = not matrix and not smooth
        compare_with_scans(images, output, check, options, examples, seed, group_size, draw_matrices=draws, force=force)
        return
    receiver: tuple[Tensor, Tensor | None] | None = None if maps_from is None else measure_receiver(maps_from)
    options = _options(matrix, coils, snr, snr_max, smooth, phase_std, receiver)
    groups = group_files(find_images(images), images, group_size)
    parts, left_out = {"": groups}, 0
    if split:
        train, val, lost = split_groups(groups, split, gap, by_number=group_size is not None)
        parts, left_out = {"train": train, "val": val}, len(lost)
    elif gap:
        raise InputError(f"a gap of {gap} files without a split", "--gap", "give --split as well")
    jobs = [(output / part / f"{group.name}.h5", group) for part, members in parts.items() for group in members]
    _check_outputs([path for path, _ in jobs], output, force)
    root = images if images.is_dir() else images.parent
    work = _Work(root, options, not matrix and not smooth, seed, attribution, skip_bad, force)
    for path, group in tqdm(jobs, unit="volume", disable=None):
        work.do(path, group)
    work.finish(left_out)


def _options(
    matrix: tuple[int, ...],
    coils: int,
    snr: float | None,
    snr_max: float | None,
    smooth: bool,
    phase_std: float,
    receiver: tuple[Tensor, Tensor | None] | None,
) -> SynthesisOptions:
    if len(matrix) not in (0, 2):
        raise InputError(f"the matrix is {matrix}, expected two numbers of points", "--matrix", "give ky and kx")
    low, high = (SMOOTH_SNR, SMOOTH_SNR) if smooth else SNR
    if snr is not None:
        low = high = snr
    return SynthesisOptions(
        matrix=(matrix[0], matrix[1]) if matrix else SMOOTH_MATRIX,
        coils=coils if receiver is None else len(receiver[0]),
        snr=(low, high if snr_max is None else snr_max),
        phase_std=phase_std,
        realism=None if smooth else Realism(),
        maps=None if receiver is None else receiver[0],
        covariance=None if receiver is None else receiver[1],
    )


@dataclass
class _Work:
    """Simulation of all volumes, with counts of written and skipped images."""

    root: Path
    options: SynthesisOptions
    draw_matrices: bool
    seed: int
    attribution: str
    skip_bad: bool
    force: bool
    written: dict[str, int] = field(default_factory=dict)
    n_bytes: int = 0
    bad: list[str] = field(default_factory=list)

    def do(self, path: Path, group: PatientFiles) -> None:
        slices: dict[str, Tensor] = {}
        boxes: list[tuple[int, Box]] = []
        options = self.options
        if self.draw_matrices and options.realism is not None:
            options = replace(
                options, matrix=draw_matrix(generator(self.seed, group.name, "matrix"), options.realism, SMALLEST_JUDGED)
            )
        for file in group.files:
            try:
                self._read(file, options.matrix, slices, boxes)
            except InputError as error:
                self._is_bad(error)
        if not slices:
            return
        try:
            volume = simulate_volume(slices, options, self.seed, group.name)
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
            boxes=[row for i, box in boxes for row in _corners(i, box, volume, list(slices.values())[i], options.matrix)],
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

    def _read(self, file: Path, matrix: tuple[int, int], slices: dict[str, Tensor], boxes: list[tuple[int, Box]]) -> None:
        """Add the slices of a file to `slices` and its boxes to `boxes`; all or none."""
        stack, name = read_image(file), file.relative_to(self.root).as_posix()
        n_y, n_x = matrix
        if stack.shape[1] < n_y or stack.shape[2] < n_x:
            raise InputError(
                f"the image has {stack.shape[1]} x {stack.shape[2]} pixels (y x), fewer than the matrix {n_y} x {n_x}",
                file,
                "choose a smaller --matrix",
            )
        found = read_boxes(file) if len(stack) == 1 else []
        boxes += [(len(slices), box) for box in found]
        for i, image in enumerate(stack):
            slices[name if len(stack) == 1 else f"{name}#{i}"] = torch.from_numpy(image)

    def _is_bad(self, error: InputError) -> None:
        if not self.skip_bad:
            raise error
        self.bad.append(str(error))
        tqdm.write(f"skipped: {error}", file=sys.stderr)

    def finish(self, left_out: int) -> None:
        """Print a summary; InputError if no image could be used."""
        if not self.written:
            raise InputError(f"none of the images could be used; the first: {self.bad[0]}")
        n_slices = sum(self.written.values())
        by_part = ", ".join(f"{count} in {name}" for name, count in self.written.items())
        print(f"{n_slices} slices ({by_part}), {self.n_bytes / 1e9:.2f} GB, {self.options.coils} coils, seed {self.seed}")
        if left_out:
            print(f"{left_out} images between training and validation were left out")
        if self.bad:
            print(f"{len(self.bad)} bad images were skipped")


def _corners(
    index: int, box: Box, volume: SimulatedVolume, image: Tensor, matrix: tuple[int, int]
) -> Iterator[tuple[float, ...]]:
    """Row of a box in the data set ``boxes``; none if it lies outside of the frame."""
    if not volume.frames:
        yield (index, box.label, *box_corners(box, image.shape, matrix))
        return
    stored = torch.tensor([[box.label, *box_corners(box, image.shape, image.shape)]], dtype=torch.float32)
    for row in volume.frames[index].boxes(stored, image.shape, matrix).tolist():
        yield (index, *row)


def measure_receiver(path: Path) -> tuple[Tensor, Tensor | None]:
    """Estimate coil maps and noise covariance from the first image of a scan.

    Parameters
    ----------
    path
        ISMRMRD or fastMRI HDF5 file.

    Returns
    -------
    tuple
        Smooth maps, complex64 ``(coil 64 64)``, and E[n n^H] ``(coil coil)``, or None if unknown.

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
