"""One kind of raw file into another: ISMRMRD and NumPy arrays to fastMRI-style HDF5, Siemens twix to ISMRMRD."""

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
    """Turn ISMRMRD or NumPy k-space into fastMRI-style HDF5, and Siemens twix into ISMRMRD.

    Samples stay as they were measured: not whitened, readout oversampling included, as in fastMRI's own files; the covariance
    of the noise is stored beside them where the scan measured it. Undersampled scans get a mask. A scan of several contrasts or
    repetitions becomes several files.

    Parameters
    ----------
    source
        ISMRMRD (.h5), Siemens raw data (.dat) or an array (.npy).
    output
        File to write.
    axes
        What the axes of an array are, in order, of slice, coil, ky and kx: coil,ky,kx.
    noise
        ISMRMRD file whose noise scan is stored instead of the scan's own.
    force
        Overwrite existing files.
    """
    _check_files(source, output, force)
    kind = source.suffix.lower()
    if axes is not None and kind != ".npy":
        raise InputError("axes are for .npy arrays; other files say what their axes are", "--axes", "leave it out")
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
        said = "" if covariance is not None else ", no noise scan: the noise covariance is not known"
        _say([f"{path}: {len(members)} slices{said}"])
    incomplete = [f"left out: {i}, {why}" for e in {e for e, _ in volumes} for i, why in scan.incomplete(e)]
    _say([*scan.warnings, *incomplete])


def _volumes(scan: MrdScan) -> dict[tuple[int, ImageIndex], list[ImageIndex]]:
    """Images by encoding, contrast, phase, set and repetition; each list is the slices of one volume."""
    found: dict[tuple[int, ImageIndex], list[ImageIndex]] = {}
    for number, encoding in enumerate(scan.encodings):
        if encoding.n_readouts and encoding.refusal is None:
            for index in scan.images(number):
                found.setdefault((number, replace(index, slice=0)), []).append(index)
        elif encoding.n_readouts:
            _say([f"left out: {encoding.refusal}"])
    return {key: sorted(members, key=lambda index: index.slice) for key, members in found.items()}


def _names(output: Path, volumes: list[tuple[int, ImageIndex]]) -> dict[tuple[int, ImageIndex], Path]:
    """One file for each volume; where there are several, their names say in what they differ."""
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
    """The slices of a 3-D scan, transformed along kz: possible where the same samples were acquired in every partition."""
    if not torch.equal(k.mask.all(0), k.mask.any(0)):
        raise InputError(
            "a 3-D scan that is undersampled along kz has no slices to write",
            k.header.source,
            "fastMRI's format holds 2-D slices; `recon run` reads this scan as it is",
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
        raise InputError("an array does not say what its axes are", source, "give --axes, for example --axes coil,ky,kx")
    data = _in_order(_load(source), [name.strip() for name in axes.split(",")], source)
    sampled = (data != 0).any(1, keepdim=True)
    if not sampled.any():
        raise InputError("all samples are zero", source)
    if not bool((sampled == sampled[:1]).all()):
        raise InputError("the slices are sampled differently", source, "convert one slice at a time")
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
        "the mask is where samples are not zero"
        + (": everything was acquired" if mask.all() else f": {percent:.1f} percent were acquired"),
        "the geometry is nominal (1 mm pixels, unknown orientation), the noise is not known",
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
        raise InputError(f"the array {data.shape} is empty, or holds NaN or infinite samples", source)
    return data


def _in_order(data: NDArray[Any], axes: list[str], source: Path) -> Tensor:
    """Complex64 ``(slice coil ky kx)``."""
    unknown = [name for name in axes if name not in AXES]
    if unknown or len(set(axes)) < len(axes) or not {"ky", "kx"} <= set(axes):
        raise InputError(
            f"the axes are '{','.join(axes)}'", "--axes", f"name each once, ky and kx among them, of {', '.join(AXES)}"
        )
    if len(axes) != data.ndim:
        raise InputError(f"{len(axes)} axes are named, the array has {data.ndim}: {data.shape}", source, "name every axis")
    ordered = data.transpose([axes.index(name) for name in AXES if name in axes])
    shape = [data.shape[axes.index(name)] if name in axes else 1 for name in AXES]
    return torch.from_numpy(np.ascontiguousarray(ordered.reshape(shape), dtype=np.complex64))


def _check_files(source: Path, output: Path, force: bool) -> None:
    if not source.exists():
        raise InputError("no such file", source, "check the path")
    if source.is_dir():
        raise InputError("this is a folder, expected a file", source)
    if output.is_dir() or output.suffix.lower() not in (".h5", ".hdf5", ".mrd"):
        raise InputError("the output has to be a file ending in .h5", output)
    if not output.resolve().parent.is_dir():
        raise InputError("there is no such folder", output.parent, "make it first")
    if output.exists():
        if output.samefile(source):
            raise InputError("the output is the input itself", output, "choose another name")
        if not force:
            raise InputError("the file exists", output, "choose another name, or give --force")


def _say(lines: list[str] | tuple[str, ...]) -> None:
    for line in lines:
        print(line, file=sys.stderr)
