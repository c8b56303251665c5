"""Volumes of simulated k-space on the disk: one call makes one, in any process, from images and options alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kspace.coils import calibration_region
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft, interpolate, resize
from kspace.io import fastmri, mrd
from kspace.io.images import Box, box_corners, read_boxes, read_image
from kspace.masks import MaskSpec
from kspace.simulation.from_images import SimulatedVolume, SynthesisOptions, generator, simulate_volume
from kspace.simulation.realism import SMALLEST_JUDGED, SNR, Realism, draw_matrix
from kspace.simulation.receiver import MAPS_GRID, maps_from_images
from kspace.simulation.trajectory_volume import write_off_grid
from recon.datasets.patients import PatientFiles

SMOOTH_MATRIX, SMOOTH_SNR = (256, 256), 20.0
MAPS_BLOCK = 32  # central samples per axis for the estimation of coil maps


@dataclass(frozen=True)
class VolumeRecipe:
    """Options of ``recon simulate`` that determine the volumes, as plain data.

    Attributes
    ----------
    root
        Folder that the names of slices are relative to.
    matrix, coils, snr, snr_max, smooth, phase_std, maps_from, seed, attribution, skip_bad, force, sampling
        As in `recon.commands.simulate.simulate`.
    """

    root: Path
    matrix: tuple[int, ...] = ()
    coils: int = 8
    snr: float | None = None
    snr_max: float | None = None
    smooth: bool = False
    phase_std: float = 1.0
    maps_from: Path | None = None
    seed: int = 0
    attribution: str = ""
    skip_bad: bool = False
    force: bool = False
    sampling: str | None = None

    @property
    def draws_matrices(self) -> bool:
        """Whether each volume has a random matrix."""
        return not self.matrix and not self.smooth

    def options(self) -> SynthesisOptions:
        """How images become k-space.

        Raises
        ------
        InputError
            If an option cannot be used.
        """
        if len(self.matrix) not in (0, 2):
            raise InputError(f"the matrix is {self.matrix}, expected two numbers of points", "--matrix", "give ky and kx")
        if self.sampling is not None and not MaskSpec.parse(self.sampling).off_grid:
            fix = "choose radial-nufft or spiral-nufft; masks of a grid are applied by training and comparison"
            raise InputError(f"'{self.sampling}' samples on the Cartesian grid", "--sampling", fix)
        receiver = None if self.maps_from is None else measure_receiver(self.maps_from)
        low, high = (SMOOTH_SNR, SMOOTH_SNR) if self.smooth else SNR
        if self.snr is not None:
            low = high = self.snr
        return SynthesisOptions(
            matrix=(self.matrix[0], self.matrix[1]) if self.matrix else SMOOTH_MATRIX,
            coils=self.coils if receiver is None else len(receiver[0]),
            snr=(low, high if self.snr_max is None else self.snr_max),
            phase_std=self.phase_std,
            realism=None if self.smooth else Realism(),
            maps=None if receiver is None else receiver[0],
            covariance=None if receiver is None else receiver[1],
        )


@dataclass(frozen=True)
class WrittenVolume:
    """What became of one volume.

    Attributes
    ----------
    path
        Its file.
    n_slices, n_bytes
        0 where no image could be used.
    bad
        Why images were left out.
    """

    path: Path
    n_slices: int
    n_bytes: int
    bad: tuple[str, ...] = ()


def write_simulated(recipe: VolumeRecipe, path: Path, group: PatientFiles) -> WrittenVolume:
    """Simulate one volume from the images of a patient, and write it.

    Raises
    ------
    InputError
        If an image cannot be used, unless bad ones are skipped; if the volume cannot be written.
    """
    options, bad = recipe.options(), []
    if recipe.draws_matrices and options.realism is not None:
        matrix = draw_matrix(generator(recipe.seed, group.name, "matrix"), options.realism, SMALLEST_JUDGED)
        options = replace(options, matrix=matrix)
    slices: dict[str, Tensor] = {}
    boxes: list[tuple[int, Box]] = []
    for file in group.files:
        try:
            _read(file, recipe.root, options.matrix, slices, boxes)
        except InputError as error:
            if not recipe.skip_bad:
                raise
            bad.append(str(error))
    if not slices:
        return WrittenVolume(path, 0, 0, tuple(bad))
    try:
        volume = simulate_volume(slices, options, recipe.seed, group.name)
    except InputError as error:
        if not recipe.skip_bad:
            raise
        return WrittenVolume(path, 0, 0, (*bad, str(error)))
    path.parent.mkdir(parents=True, exist_ok=True)
    fastmri.write_volume(
        path,
        volume.slices(recipe.seed),
        patient_id=group.patient,
        acquisition="SIMULATED",
        noise_covariance=volume.noise_covariance,
        boxes=[row for i, box in boxes for row in _corners(i, box, volume, list(slices.values())[i], options.matrix)],
        truth=volume.truth,
        attributes={
            "simulated": True,
            "snr": volume.snr,
            "seed": recipe.seed,
            "images": "\n".join(slices)[:60000],
            **({"attribution": recipe.attribution} if recipe.attribution else {}),
        },
        force=recipe.force,
    )
    n_bytes = path.stat().st_size
    if recipe.sampling is not None:
        scan = path.with_suffix(".mrd")
        write_off_grid(volume, MaskSpec.parse(recipe.sampling), recipe.seed, scan)
        n_bytes += scan.stat().st_size
    return WrittenVolume(path, len(slices), n_bytes, tuple(bad))


def _read(file: Path, root: Path, matrix: tuple[int, int], slices: dict[str, Tensor], boxes: list[tuple[int, Box]]) -> None:
    """Add the slices of a file to `slices` and its boxes to `boxes`; all or none."""
    stack, name = read_image(file), file.relative_to(root).as_posix()
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


@lru_cache(maxsize=1)
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
