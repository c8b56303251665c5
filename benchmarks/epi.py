"""Nyquist ghost of echo-planar images before and after its correction: of a real phantom, and planted in a simulated one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from kspace import preprocess
from kspace.container import ImageIndex
from kspace.epi import OddEvenPhase, Trapezoid
from kspace.fourier import ifft
from kspace.io.mrd import open_scan
from kspace.io.twix import to_ismrmrd
from kspace.simulation.acquisition import ScanProtocol, cartesian
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import true_image, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

DATA = Path(os.environ.get("RECON_DATA", "../shared/data")) / "raw"
PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.0), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
        ellipsoid((0.03, -0.02, 0.0), (0.01, 0.03, 0.02), -35.0, -0.4),
    )
)
OBJECT = 0.1  # of the 99.5th percentile: what is brighter is the object


def run() -> Iterator[tuple[str, float, str, str]]:
    """Yield rows (what, value, unit, remark)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from _planted(folder)
        if (DATA / "skyra_epi.dat").exists():
            yield from _measured(folder)


def _measured(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    path = folder / "epi.h5"
    to_ismrmrd(DATA / "skyra_epi.dat", path)
    images = {ghost: magnitude(path, ghost) for ghost in ("none", "linear", "polynomial", "entropy")}
    inside = images["linear"] > OBJECT * np.percentile(images["linear"], 99.5)
    as_cartesian(path)
    yield "skyra_epi: as Cartesian", 100 * ghost_energy(magnitude(path, "none"), inside), "%", "lines turned, nothing else"
    for ghost, image in images.items():
        yield f"skyra_epi: regridded, --ghost {ghost}", 100 * ghost_energy(image, inside), "%", "ghost energy over object"


def _planted(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    protocol, lobe = ScanProtocol((64, 64, 1), (0.24, 0.24, 0.005)), Trapezoid(160, 240, 160, 128, 3.9)
    for planted in (OddEvenPhase(), OddEvenPhase(0.7, -0.025)):
        for navigators in (3, 0):
            scan = echo_planar(cartesian(protocol, PHANTOM, head_coils(4)), lobe, 1, navigators, planted)
            write_scan(scan, folder / "scan.h5")
            truth = np.sqrt((np.abs(true_image(scan, scan.coils)[:, 0]) ** 2).sum(0))
            image = magnitude(folder / "scan.h5", "auto")
            error = float(np.linalg.norm(image - truth) / np.linalg.norm(truth))
            yield f"simulated, {planted}, {navigators} navigators", 100 * error, "%", "error against the truth"


def magnitude(path: Path, ghost: str) -> NDArray[np.float32]:
    """Root sum of squares of the coil images ``(y x)`` of a file's first image, on its recon matrix."""
    scan = open_scan(path)
    scan.ghost = ghost
    k = preprocess.remove_oversampling(scan.load(0, ImageIndex()))
    images = preprocess.to_recon_matrix(ifft(k.data), k.header)
    return np.asarray(images.abs().square().sum(0).sqrt().numpy())


def ghost_energy(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Energy where the object, shifted by half of the field of view, does not overlap itself, over that of the object."""
    ghost = np.roll(inside, len(inside) // 2, axis=0) & ~inside
    return float((image[ghost] ** 2).sum() / (image[inside] ** 2).sum())


def as_cartesian(path: Path) -> None:
    """Let the header of a file say that its readouts are plain."""
    with h5py.File(path, "r+") as file:
        xml = file["dataset/xml"][0].decode()
        xml = re.sub(r"(?s)<trajectoryDescription>.*?</trajectoryDescription>", "", xml).replace(">epi<", ">cartesian<")
        file["dataset/xml"][0] = xml.encode()
