"""`recon convert`: ISMRMRD and NumPy arrays to fastMRI HDF5, Siemens twix to ISMRMRD."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kspace.container import Geometry, Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.io import fastmri, mrd, twix
from kspace.io.mrd import MrdScan

AXES = ("slice", "coil", "ky", "kx")
NOMINAL_PIXEL_M = 1e-3
NOMINAL_THICKNESS_M = 5e-3


def convert(source: Path, output: Path, axes: str | None = None, noise: Path | None = None, force: bool = False) -> None:
    """Convert ISMRMRD or NumPy k-space to fastMRI HDF5, and Siemens twix to ISMRMRD.

    Samples are stored as measured: not whitened and with readout oversampling, as in fastMRI's own files; the noise covariance
    is stored with them if the scan has a noise scan. Undersampled scans get a mask. Scans with several contrasts or repetitions
    are split into several files.

    Parameters
    ----------
    source
        ISMRMRD (.h5), Siemens raw data (.dat) or an array (.npy).
    output
        Output file.
    axes
        Axes of a NumPy array in order, from slice, coil, ky and kx; e.g. coil,ky,kx.
    noise
        ISMRMRD file whose noise scan replaces that of the scan.
    force
        Overwrite existing files.
    """
    _check_files(source, output, force)
    kind = source.suffix.lower()
    if axes is not None and kind != ".npy":
        raise InputError("axes apply to .npy arrays only", "--axes", "leave it out")
    if noise is not None and kind in (".npy", ".dat"):
        raise InputError(f"a noise scan cannot be added to {kind} files", "--noise", "leave it out")
    if kind == ".npy":
        _convert_array(source, output, axes, force)
    elif kind == ".dat":
        notes = twix.to_ismrmrd(source, output)
        _say([f"{output}: ISMRMRD", *notes])
    else:
        _convert_scan(source, output, noise, force)


def _convert_scan(source: Path, output: Path, noise_file: Path | None, force: bool) -> None:
    scan = mrd.open_scan(source)
    noise = scan.noise if noise_file is None else mrd.read_noise(noise_file)
    volumes = _volumes(scan)
    if not volumes:
        raise InputError("no complete image in the scan", source, "see `recon info`")
    names = _names(output, list(volumes))
    for path in names.values():
        _check_files(source, path, force)
    for (encoding, index), members in volumes.items():
        dwell_s = scan.encodings[encoding].dwell_s
        covariance = None if noise is None else torch.from_numpy(noise.covariance_at(dwell_s))
        n_coils = scan.encodings[encoding].n_coils
        if covariance is not None and len(covariance) != n_coils:
            raise InputError(f"the noise has {len(covariance)} channels, the scan {n_coils}", noise_file or source)
        path = names[encoding, index]
        fastmri.write_volume(
            path,
            _slices(scan, encoding, members),
            patient_id=source.stem,
            acquisition=str(scan.header(encoding, members[0]).study.get("protocolName", "")),
            noise_covariance=covariance,
            force=force,
        )
        note = "" if covariance is not None else ", no noise scan: noise covariance unknown"
        _say([f"{path}: {len(members)} slices{note}"])
    incomplete = [f"left out: {i}, {why}" for e in {e for e, _ in volumes} for i, why in scan.incomplete(e)]
    _say([*scan.warnings, *incomplete])


def _volumes(scan: MrdScan) -> dict[tuple[int, ImageIndex], list[ImageIndex]]:
    """Slices of each volume, keyed by encoding and counters (contrast, phase, set, repetition)."""
    found: dict[tuple[int, ImageIndex], list[ImageIndex]] = {}
    for number, encoding in enumerate(scan.encodings):
        if encoding.n_readouts and encoding.refusal is None:
            for index in scan.images(number):
                found.setdefault((number, replace(index, slice=0)), []).append(index)
        elif encoding.n_readouts:
            _say([f"left out: {encoding.refusal}"])
    return {key: sorted(members, key=lambda index: index.slice) for key, members in found.items()}


def _names(output: Path, volumes: list[tuple[int, ImageIndex]]) -> dict[tuple[int, ImageIndex], Path]:
    """Output file of each volume; several volumes are named by the counters in which they differ."""
    if len(volumes) == 1:
        return {volumes[0]: output}
    values: dict[str, list[int]] = {"encoding": [encoding for encoding, _ in volumes]}
    for name in ("contrast", "set", "phase", "repetition"):
        values[name] = [getattr(index, name) for _, index in volumes]
    differing = {name: column for name, column in values.items() if len(set(column)) > 1}
    suffix = output.suffix
    return {
        key: output.with_name(f"{output.stem}_" + "_".join(f"{n}{column[i]}" for n, column in differing.items()) + suffix)
        for i, key in enumerate(volumes)
    }


def _slices(scan: MrdScan, encoding: int, members: list[ImageIndex]) -> Iterator[KSpace]:
    for index in members:
        k = scan.load(encoding, index)
        if k.data.ndim == 3:
            yield k
        else:
            yield from _partitions(k)


def _partitions(k: KSpace) -> Iterator[KSpace]:
    """Slices of a 3-D scan by Fourier transform along kz; all partitions must have the same mask."""
    if not torch.equal(k.mask.all(0), k.mask.any(0)):
        raise InputError(
            "a 3-D scan undersampled along kz cannot be split into slices",
            k.header.source,
            "use `recon run` on this scan directly: the fastMRI format holds 2-D slices",
        )
    n_z = k.header.recon_matrix[2]
    planes = ifft(k.data, (0,))
    calibration = None if k.calibration is None else ifft(k.calibration, (0,))
    start = planes.shape[0] // 2 - n_z // 2
    header = replace(k.header, encoded_matrix=(*k.header.encoded_matrix[:2], 1), recon_matrix=(*k.header.recon_matrix[:2], 1))
    step = k.header.recon_fov_m[2] / max(n_z, 1)
    direction = np.asarray(header.geometry.slice_dir)
    for i in range(max(start, 0), min(start + n_z, len(planes))):
        position = np.asarray(header.geometry.position_m) + (i - planes.shape[0] // 2) * step * direction
        fov = (*header.geometry.fov_m[:2], step)
        geometry = replace(header.geometry, position_m=tuple(position.tolist()), fov_m=fov)
        yield KSpace(
            planes[i],
            k.mask[i],
            replace(header, geometry=geometry, recon_fov_m=(*header.recon_fov_m[:2], step)),
            None if k.n_averages is None else k.n_averages[i],
            None if calibration is None else calibration[i],
        )


def _convert_array(source: Path, output: Path, axes: str | None, force: bool) -> None:
    if axes is None:
        raise InputError("the axes of the array are unknown", source, "give --axes, e.g. --axes coil,ky,kx")
    data = _in_order(_load(source), [name.strip() for name in axes.split(",")], source)
    sampled = (data != 0).any(1, keepdim=True)
    if not sampled.any():
        raise InputError("all samples are zero", source)
    if not bool((sampled == sampled[:1]).all()):
        raise InputError("the slices have different masks", source, "convert one slice at a time")
    mask = sampled[0]
    if torch.equal(mask.all(-1), mask.any(-1)):
        mask = mask.any(-1, keepdim=True)
    n_ky, n_kx = data.shape[-2:]
    fov = (n_kx * NOMINAL_PIXEL_M, n_ky * NOMINAL_PIXEL_M, NOMINAL_THICKNESS_M)
    header = Header(
        source=str(source),
        encoded_matrix=(n_kx, n_ky, 1),
        recon_matrix=(n_kx, n_ky, 1),
        encoded_fov_m=fov,
        recon_fov_m=fov,
        geometry=Geometry(fov_m=fov, nominal=True),
    )
    slices = (KSpace(y, mask, replace(header, index=ImageIndex(slice=i))) for i, y in enumerate(data))
    fastmri.write_volume(output, slices, patient_id=source.stem, force=force)
    percent = 100 * float(sampled[0].float().mean())
    notes = [
        f"{output}: {len(data)} slices, {data.shape[1]} coils, {n_ky} x {n_kx} (ky x kx)",
        "mask: the non-zero samples" + (", fully sampled" if mask.all() else f", {percent:.1f} % sampled"),
        "nominal geometry (1 mm pixels, unknown orientation), unknown noise",
    ]
    _say(notes)


def _load(source: Path) -> NDArray[Any]:
    try:
        data = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read the array ({error})", source) from error
    if not isinstance(data, np.ndarray) or data.dtype.kind != "c":
        raise InputError(f"the array holds {getattr(data, 'dtype', type(data))}, expected complex k-space", source)
    if data.size == 0 or not np.isfinite(data).all():
        raise InputError(f"the array of shape {data.shape} is empty or holds NaN or infinite samples", source)
    return data


def _in_order(data: NDArray[Any], axes: list[str], source: Path) -> Tensor:
    """Array with named `axes`, transposed to complex64 ``(slice coil ky kx)``."""
    unknown = [name for name in axes if name not in AXES]
    if unknown or len(set(axes)) < len(axes) or not {"ky", "kx"} <= set(axes):
        raise InputError(
            f"the axes are '{','.join(axes)}'", "--axes", f"name each axis once, ky and kx included, out of {', '.join(AXES)}"
        )
    if len(axes) != data.ndim:
        raise InputError(f"{len(axes)} axes named, the array has {data.ndim}: {data.shape}", source, "name every axis")
    ordered = data.transpose([axes.index(name) for name in AXES if name in axes])
    shape = [data.shape[axes.index(name)] if name in axes else 1 for name in AXES]
    return torch.from_numpy(np.ascontiguousarray(ordered.reshape(shape), dtype=np.complex64))


def _check_files(source: Path, output: Path, force: bool) -> None:
    if not source.exists():
        raise InputError("no such file", source, "check the path")
    if source.is_dir():
        raise InputError("expected a file, found a folder", source)
    if output.is_dir() or output.suffix.lower() not in (".h5", ".hdf5", ".mrd"):
        raise InputError("the output must be a file ending in .h5", output)
    if not output.resolve().parent.is_dir():
        raise InputError("no such folder", output.parent, "create it first")
    if output.exists():
        if output.samefile(source):
            raise InputError("input and output are the same file", output, "choose another name")
        if not force:
            raise InputError("the file exists", output, "choose another name, or give --force")


def _say(lines: list[str] | tuple[str, ...]) -> None:
    for line in lines:
        print(line, file=sys.stderr)
