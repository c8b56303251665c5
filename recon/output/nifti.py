"""NIfTI export: one 4-D file ``(x, y, z, volume)`` per stack of parallel, equidistant slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import Opener
from numpy.typing import NDArray

from kspace.container import Image
from recon.output.geometry import SliceStack, axes_of, patient_m, slice_stacks, voxel_m
from recon.output.series import NOTICE, RunRecord, Volume, pixels, volume_of

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCANNER, UNKNOWN = 1, 0  # NIfTI codes for the reference of the affine


def write_nifti(
    path: Path, images: Sequence[Image], record: RunRecord, complex_images: bool = False
) -> tuple[list[Path], list[str]]:
    """Write the images of one role.

    Parameters
    ----------
    path
        Output ``name.nii.gz`` for a single stack; several stacks are written to ``name_stack1.nii.gz`` and so on.
    images
        Images of one role and one matrix; contrasts, sets, phases and repetitions become volumes, see `volume_list`.
    record
        Run record; its method goes into the header's description.
    complex_images
        Write complex64 instead of magnitudes of complex images.

    Returns
    -------
    list of Path, list of str
        Written files, and warnings for the user.
    """
    stacks = slice_stacks(images)
    written, warnings = [], []
    if len(stacks) > 1:
        warnings.append(
            f"the slices lie on {len(stacks)} different grids: NIfTI has one file per grid, {path.name} is numbered"
        )
    for number, stack in enumerate(stacks, start=1):
        target = path if len(stacks) == 1 else stack_path(path, number)
        _write(target, stack, images, record, complex_images, warnings)
        written.append(target)
    return written, list(dict.fromkeys(warnings))


def stack_path(path: Path, number: int) -> Path:
    """File name of a numbered stack: ``scan_stack2.nii.gz`` for ``scan.nii.gz``."""
    return path.with_name(path.name.removesuffix(".nii.gz") + f"_stack{number}.nii.gz")


def volume_list(images: Sequence[Image]) -> list[Volume]:
    """(contrast, set, phase, repetition) of each volume, repetition fastest."""
    return sorted({volume_of(image) for image in images})


def affine_mm(stack: SliceStack, spacing_m: float) -> NDArray[np.float64]:
    """Affine ``(4 4)`` from 0-based voxel ``(x y z)`` to millimetres in RAS, z increasing along the slice direction."""
    dx, dy, _ = voxel_m(stack.image)
    affine = np.eye(4)
    affine[:3, :3] = axes_of(stack.image.header.geometry) * (dx, dy, spacing_m)
    affine[:3, 3] = patient_m(stack.image, (0, 0, 0))
    affine[:3] *= 1e3
    return LPS_TO_RAS @ affine


def _write(
    path: Path, stack: SliceStack, images: Sequence[Image], record: RunRecord, complex_images: bool, warnings: list[str]
) -> None:
    """Write one stack volume by volume: only one is in memory."""
    volumes = volume_list(images)
    place = {slice_index: z for z, slice_index in enumerate(stack.slices)}
    nz, ny, nx = stack.image.data.shape
    depth = nz if len(place) == 1 else len(place)
    dtype = np.dtype(np.complex64 if complex_images and stack.image.data.is_complex() else np.float32)
    header = _header(stack, (nx, ny, depth, len(volumes)), dtype, record, warnings)
    members: dict[Volume, list[Image]] = {volume: [] for volume in volumes}
    for image in images:
        if image.header.index.slice in place:
            members[volume_of(image)].append(image)
    absent = []
    with Opener(str(path), "wb") as file:
        header.write_to(file)
        for volume, slices in members.items():
            voxels = np.zeros((depth, ny, nx), dtype.newbyteorder("<"))
            for image in slices:
                z = place[image.header.index.slice]
                voxels[z : z + nz] = pixels(image, complex_images)
                _check_moved(image, stack, z, warnings)
            absent += [(volume, z) for z in sorted({*place.values()} - {place[i.header.index.slice] for i in slices})]
            file.write(voxels.tobytes())
    for volume, z in absent:
        names = ", ".join(f"{n} {v}" for n, v in zip(("contrast", "set", "phase", "repetition"), volume, strict=True))
        warnings.append(f"slice {stack.slices[z]} of {names} is missing: NIfTI holds zeros there")


def _header(
    stack: SliceStack, shape: tuple[int, int, int, int], dtype: np.dtype[Any], record: RunRecord, warnings: list[str]
) -> nibabel.Nifti1Header:
    source = stack.image.header
    spacing = stack.spacing_m
    if spacing <= 0:
        spacing = 1e-3
        warnings.append("the slice thickness is unknown: NIfTI states 1 mm")
    affine = affine_mm(stack, spacing)
    file = nibabel.Nifti1Image(np.broadcast_to(dtype.type(0), shape), affine)
    code = UNKNOWN if source.geometry.nominal else SCANNER
    file.set_qform(affine, code)
    file.set_sform(affine, code)
    header = file.header
    header.set_xyzt_units("mm", "sec")
    repetition_times = source.study.get("TR") or (0.0,)
    # The TR of the sequence, as DICOM converters write it; 0 if unknown.
    tr_ms = repetition_times[0] if isinstance(repetition_times, (tuple, list)) else repetition_times
    header["pixdim"][4] = float(tr_ms) / 1e3
    header.set_dim_info(freq=0, phase=1, slice=2)
    header["descrip"] = f"{record.method[:40]}; {NOTICE}".encode()[:79]
    header.set_slope_inter(1, 0)
    return header


def _check_moved(image: Image, stack: SliceStack, z: int, warnings: list[str]) -> None:
    """Warn if slices moved between volumes, because NIfTI has one affine for all volumes."""
    along = np.array(stack.image.header.geometry.slice_dir)
    expected = patient_m(stack.image, (0, 0, 0)) + z * stack.spacing_m * along
    if np.linalg.norm(patient_m(image, (0, 0, 0)) - expected) > 0.1 * voxel_m(image)[:2].min():
        warnings.append("the slices moved between volumes: NIfTI gives all of them the position of the first volume")
