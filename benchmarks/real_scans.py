"""What `recon run` makes of raw files of scanners and of ISMRMRD's own generator, in figures.

    python -m benchmarks.real_scans [--data FOLDER] [--out FOLDER]

``--data`` (default: $RECON_DATA) is a folder with ``raw/skyra_bssfp_14ch_grappa3.h5``, ``raw/skyra_gre_2ch_oversampled.h5`` and
``raw/ge_gre_8ch_7slices.h5``; the images are kept in ``--out`` where it is given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kspace import coils, preprocess
from kspace.container import Geometry, ImageIndex, KSpace
from kspace.fourier import fft, ifft
from kspace.io.mrd import open_scan
from kspace.io.mrd.images import read_images
from kspace.operators import Sense
from kspace.simulation.acquisition import ScanProtocol, add_noise_scan, cartesian, coil_covariance
from kspace.simulation.measurement import write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.methods import classical
from recon.run.pipeline import RunOptions, reconstruct_file

BSSFP, GRE, GE = "skyra_bssfp_14ch_grappa3.h5", "skyra_gre_2ch_oversampled.h5", "ge_gre_8ch_7slices.h5"
GENERATE, RECONSTRUCT = "ismrmrd_generate_cartesian_shepp_logan", "ismrmrd_recon_cartesian_2d"
# The bottles of the bSSFP scan lie in columns 104 to 279 of 384. Outside 72 to 311 the receiver's filter falls off.
FREE = np.r_[72:96, 288:312]
FEW_PIXELS = 2  # around the bottles: their edges are blurred by that
GENERATOR_OPTIONS = ("", "-n 0.5", "-O 1", "-O 3", "-C", "-k", "-m 96 -c 2")

Row = tuple[str, float, str, str]


def whitened(path: Path) -> KSpace:
    """The scan in units of its noise, readout oversampling still there."""
    scan = open_scan(path)
    assert scan.noise is not None
    return preprocess.whiten(scan.load(0, scan.images(0)[0]), scan.noise)


def noise_power(path: Path) -> NDArray[np.float64]:
    """Mean |n|^2 of every coil in the signal-free columns of the readout-transformed data: float64 ``(coil,)``."""
    white = whitened(path)
    lines = ifft(white.data[:, white.mask[0, :, 0]], (-1,))
    power: NDArray[np.float64] = lines[..., FREE].abs().square().double().mean((1, 2)).numpy()
    return power


def generated_covariance(folder: Path) -> float:
    """Largest deviation from the identity of the true noise covariance, whitened by what 1e5 noise samples told of it."""
    covariance = coil_covariance(8, std=0.05, seed=3)
    ball = Phantom((ellipsoid((0.0, 0.0, 0.0), (0.06, 0.08, 0.07), 0.0),))
    scan = cartesian(ScanProtocol(matrix=(32, 30, 1), fov_m=(0.2, 0.2, 0.005)), ball, head_coils(8), covariance)
    write_scan(add_noise_scan(scan, n_readouts=1000, n_samples=100), folder / "known.h5", seed=3)
    read = open_scan(folder / "known.h5")
    assert read.noise is not None
    assert read.noise.n_samples == 100_000
    k = read.load(0, ImageIndex())
    unit = torch.zeros_like(k.data)
    unit[:, 0, :8] = torch.eye(8, dtype=unit.dtype)
    matrix = preprocess.whiten(replace(k, data=unit), read.noise).data[:, 0, :8].numpy()
    return float(np.abs(matrix @ covariance @ matrix.conj().T - np.eye(8)).max())


def bottles(k: KSpace) -> NDArray[np.bool_]:
    """Where the bottles are, ``(y x)``, from the 49 central lines alone, which are complete and so have no aliases."""
    n_lines = coils.calibration_region(k.mask)[0]
    centre = k.data.shape[-2] // 2
    window = torch.zeros(k.data.shape[-2])
    window[centre - n_lines // 2 : centre + n_lines // 2 + 1] = torch.hann_window(n_lines, periodic=False)
    low = ifft(k.data * window[:, None]).abs().square().sum(0).sqrt()
    inside = ndimage.binary_fill_holes((low > 0.08 * low.max()).numpy())
    grown: NDArray[np.bool_] = ndimage.binary_dilation(inside, iterations=FEW_PIXELS)
    return grown


def energy_outside(path: Path) -> dict[str, tuple[float, float]]:
    """Mean |image|^2 outside the bottles, and what of it is noise, by method; in units of the noise variance of a sample.

    The noise is the mean over reconstructions of white noise alone: SENSE is linear, and pays for fewer aliases with noise.
    """
    k = preprocess.remove_oversampling(whitened(path))
    outside = torch.from_numpy(~bottles(k))
    op = Sense(coils.estimate_maps(k), k.mask, n_averages=k.n_averages)
    methods: dict[str, Callable[[Tensor], Tensor]] = {"rss": lambda y: ifft(y).abs().square().sum(0).sqrt()}
    for name in ("zero-filled", "sense"):
        methods[name] = partial(classical.make(name), op=op)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(k.data.shape, dtype=k.data.dtype, generator=generator) * k.mask for _ in range(4)]

    def energy(image: Tensor) -> float:
        return float(image[outside].abs().square().mean())

    return {name: (energy(f(k.data)), float(np.mean([energy(f(y)) for y in noise]))) for name, f in methods.items()}


def held_out_error(path: Path) -> float:
    """Lines that SENSE did not see, predicted by it: NRMSE over the coils' samples; zero-filling has 1.

    Every third line is given to SENSE; the calibration lines between them, which the scan has too, are the truth. The maps are
    made from all calibration lines.
    """
    k = preprocess.remove_oversampling(whitened(path))
    maps = coils.estimate_maps(k)
    rows = torch.arange(k.data.shape[-2])[:, None]
    seen = preprocess.undersample(k, rows % 3 == k.data.shape[-2] // 2 % 3)
    image = classical.make("sense")(seen.data, Sense(maps, seen.mask))
    held = k.mask & ~seen.mask
    error = (fft(maps * image) - k.data) * held
    return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(k.data * held))


def run_all(path: Path, out: Path, method: str = "sense", **options: object) -> list[Path]:
    """`recon run` on one file."""
    return reconstruct_file(path, out, RunOptions(method=method, force=True, **options))  # type: ignore[arg-type]


def slice_centres(out: Path, stem: str) -> dict[str, NDArray[np.float64]]:
    """Centres of the slices in patient coordinates (LPS, mm), ``(slice, 3)``, in the order of each format."""
    stored = [np.array(image.image.header.geometry.position_m) * 1e3 for image in read_images(out / f"{stem}.mrd.h5")]
    return {"mrd": np.array(stored), "nifti": _nifti_centres(out / f"{stem}.nii.gz"), "dicom": _dicom_centres(out, stem)}


def _nifti_centres(path: Path) -> NDArray[np.float64]:
    volume = nibabel.load(path)
    nx, ny, nz = volume.shape[:3]
    voxels = np.array([[nx // 2, ny // 2, z, 1] for z in range(nz)])
    return (voxels @ np.asarray(volume.affine).T)[:, :3] * (-1, -1, 1)


def _dicom_centres(out: Path, stem: str) -> NDArray[np.float64]:
    found = sorted((pydicom.dcmread(p) for p in (out / f"{stem}_dicom").glob("*.dcm")), key=lambda d: int(d.InstanceNumber))
    centres = []
    for d in found:
        along_row, along_column = np.array(d.ImageOrientationPatient, float).reshape(2, 3)
        row_mm, column_mm = (float(v) for v in d.PixelSpacing)
        corner = np.array(d.ImagePositionPatient, float)
        centres.append(corner + along_row * (d.Columns // 2) * column_mm + along_column * (d.Rows // 2) * row_mm)
    return np.array(centres)


def read_centres(path: Path) -> NDArray[np.float64]:
    """Centres of the slices as the readouts' headers have them, by slice number: LPS, mm, ``(slice, 3)``."""
    scan = open_scan(path)
    geometries: Sequence[Geometry] = [scan.header(0, index).geometry for index in scan.images(0)]
    return np.array([g.position_m for g in geometries]) * 1e3


def generated_by_ismrmrd(folder: Path, options: str) -> float:
    """Relative difference of our root sum of squares from what ISMRMRD's own reconstruction makes of its generator's file."""
    path = folder / "shepp.h5"
    path.unlink(missing_ok=True)
    given = options.split() if "-m" in options else ["-m", "64", "-c", "4", *options.split()]
    subprocess.run([GENERATE, *given, "-o", str(path)], check=True, capture_output=True)
    run_all(path, folder, "rss", format="mrd", no_whiten=True)
    ours = read_images(folder / "shepp.mrd.h5")[0].image.data[0].numpy()
    return difference(ours, ismrmrds_image(path))


def ismrmrds_image(path: Path) -> NDArray[np.float32]:
    """What ``ismrmrd_recon_cartesian_2d`` makes of a file (it adds its image to it), float32 ``(y, x)``."""
    subprocess.run([RECONSTRUCT, path.name], check=True, capture_output=True, cwd=path.parent)
    with h5py.File(path, "r") as file:
        image: NDArray[np.float32] = np.abs(np.squeeze(file["dataset/cpp/data"][()]))
    return image


def difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Relative norm of the difference, after the best scale: their transform is scaled otherwise."""
    scale = (theirs * ours).sum() / (ours**2).sum()
    return float(np.linalg.norm(theirs - scale * ours) / np.linalg.norm(theirs))


def has_ismrmrd_tools() -> bool:
    """Whether the Debian package ismrmrd-tools is installed."""
    return shutil.which(GENERATE) is not None and shutil.which(RECONSTRUCT) is not None


def run(data: Path | None = None, out: Path | None = None) -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    folder = data or Path(os.environ.get("RECON_DATA", "../shared/data"))
    with tempfile.TemporaryDirectory(prefix="recon-real-") as scratch:
        room = out or Path(scratch)
        deviation = generated_covariance(Path(scratch))
        yield "generated, 1e5 noise samples: whitened covariance - 1", 100 * deviation, "%", "largest entry, at most 2"
        if (folder / "raw").is_dir():
            yield from _skyra_rows(folder / "raw" / BSSFP, room)
            yield from _slice_rows(folder / "raw", room)
        else:
            yield f"no scans in {folder}", 0.0, "", "set RECON_DATA"
        if has_ismrmrd_tools():
            for options in GENERATOR_OPTIONS:
                error = generated_by_ismrmrd(Path(scratch), options)
                yield f"{GENERATE} {options}".strip(), error, "", f"relative difference from {RECONSTRUCT}"


def _skyra_rows(path: Path, out: Path) -> Iterator[Row]:
    power = noise_power(path)
    yield "bSSFP: mean |n|^2 in signal-free columns", power.mean(), "", f"coils {power.min():.2f} to {power.max():.2f}"
    for name, (energy, noise) in energy_outside(path).items():
        yield (
            f"bSSFP: mean energy outside the bottles, {name}",
            energy,
            "",
            f"noise {noise:.2f}, so aliases {energy - noise:.2f}",
        )
    yield "bSSFP: 32 lines held out, predicted by SENSE", held_out_error(path), "NRMSE", "zero-filled: 1"
    for method in ("rss", "zero-filled", "sense"):
        run_all(path, out / method, method)


def _slice_rows(raw: Path, out: Path) -> Iterator[Row]:
    for name in (GRE, GE):
        run_all(raw / name, out / "sense")
        truth = read_centres(raw / name)
        for kind, centres in slice_centres(out / "sense", Path(name).stem).items():
            error = float(np.abs(centres - truth).max()) if centres.shape == truth.shape else np.inf
            gaps = np.unique(np.round(np.linalg.norm(np.diff(centres, axis=0), axis=1), 3))
            note = f"{len(centres)} slices, {' and '.join(f'{g:g}' for g in gaps) or 'no'} mm apart"
            yield f"{name}: slice centres, {kind} against readouts", error, "mm", note


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for what, value, unit, note in run(arguments.data, arguments.out):
        print(f"{what:<72} {value:>9.3g} {unit:<6} {note}", flush=True)


if __name__ == "__main__":
    main()
