"""Echo-planar images of real phantoms and of a simulated one: ghost, acceleration, partial Fourier, shots, coil arrays.

python -m benchmarks epi          # the rows
python -m benchmarks.epi FOLDER   # epi.h5 and epi_phantom.h5 from $RECON_DATA, for recon compare
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from kspace import preprocess
from kspace.coils import estimate_maps
from kspace.container import ImageIndex
from kspace.epi import OddEvenPhase, Trapezoid
from kspace.fourier import ifft
from kspace.io.mrd import open_scan
from kspace.io.mrd.flags import CALIBRATION, PHASE_CORRECTION
from kspace.io.mrd.write import Space, header_xml, new_acquisition_headers, write_raw
from kspace.io.twix import to_ismrmrd
from kspace.operators import Sense
from kspace.simulation.acquisition import ScanProtocol, accelerate, cartesian, partial_fourier, with_limits
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import measure, true_image, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from recon.methods.classical import CgSense
from recon.run.input import open_source
from recon.run.options import RunOptions
from recon.run.pipeline import choose_method, reconstruct_source

DATA = Path(os.environ.get("RECON_DATA", "../shared/data")) / "raw"
PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.0), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
        ellipsoid((0.03, -0.02, 0.0), (0.01, 0.03, 0.02), -35.0, -0.4),
    )
)
PHANTOM_FILE = "epi_phantom_16ch_r2.npz"
NARROWER = 0.96  # kx of its reference lines over that of its image, as found by trying
OBJECT = 0.1  # of the 99.5th percentile: what is brighter is the object


def run() -> Iterator[tuple[str, float, str, str]]:
    """Yield rows (what, value, unit, remark)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from _planted(folder)
        yield from _accelerated(folder)
        yield from _shots(folder)
        if (DATA / "skyra_epi.dat").exists():
            yield from _measured(folder)
        if (DATA / PHANTOM_FILE).exists():
            yield from _reference_lines(folder)


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


def _accelerated(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    lobe, coils = Trapezoid(160, 240, 160, 128, 3.9), head_coils(8)
    scan = cartesian(ScanProtocol((64, 64, 1), (0.24, 0.24, 0.005)), PHANTOM, coils)
    truth = np.sqrt((np.abs(true_image(scan, coils)[:, 0]) ** 2).sum(0))
    cases = []
    for r, n in ((2, 1), (2, 2), (3, 1), (3, 2)):
        cases.append((f"SENSE R = {r}, {n} shots", accelerate(scan, r, calibration=24, mode="separate"), n, "zero-filled"))
    cases += [(f"partial Fourier 6/8, {how}", partial_fourier(scan, (16, 64)), 1, how) for how in ("zero-filled", "pocs")]
    for name, one, n_shots, how in cases:
        write_scan(echo_planar(one, lobe, n_shots, 3, OddEvenPhase(0.7, -0.025)), folder / "scan.h5")
        image = reconstructed(folder / "scan.h5", RunOptions(method="sense", partial_fourier=how))  # type: ignore[arg-type]
        yield f"simulated, {name}", _percent(image, truth), "%", "error against the truth"


def _shots(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    """Two shots that differ by 2 rad, and two coil arrays that differ by half a radian and a third of a sample."""
    lobe, coils = Trapezoid(160, 240, 160, 128, 3.9), head_coils(4)
    scan = cartesian(ScanProtocol((64, 64, 1), (0.24, 0.24, 0.005)), PHANTOM, coils)
    truth = np.sqrt((np.abs(true_image(scan, coils)[:, 0]) ** 2).sum(0))
    shots = echo_planar(scan, lobe, 2)
    navigates = (shots.headers["flags"] & PHASE_CORRECTION) != 0
    second = np.cumsum(navigates & ~np.concatenate([[False], navigates[:-1]])) == 2
    samples = [y * np.complex64(np.exp(2j * late)) for y, late in zip(measure(shots), second, strict=True)]
    write_raw(folder / "scan.h5", header_xml(with_limits(shots)), shots.headers, samples)
    for ghost in ("none", "auto"):
        yield f"simulated, shots 2 rad apart, --ghost {ghost}", _percent(magnitude(folder / "scan.h5", ghost), truth), "%", ""
    first, other = (echo_planar(scan, lobe, phase=phase) for phase in (OddEvenPhase(0.4, -0.02), OddEvenPhase(0.9, 0.012)))
    samples = [np.concatenate([a[:2], b[2:]]) for a, b in zip(measure(first), measure(other), strict=True)]
    xml = header_xml(with_limits(first), {"acquisitionSystemInformation": {"receiverChannels": 4}})
    labels = "".join(
        f"<coilLabel><coilNumber>{i}</coilNumber><coilName>{a}:1:{i}</coilName></coilLabel>" for i, a in enumerate("AABB")
    )
    for name, text in (
        ("one phase for all", xml),
        ("a phase for each", xml.replace("</receiverChannels>", f"</receiverChannels>{labels}")),
    ):
        write_raw(folder / "arrays.h5", text, first.headers, samples)
        yield f"simulated, two coil arrays, {name}", _percent(magnitude(folder / "arrays.h5", "auto"), truth), "%", ""


def _reference_lines(folder: Path) -> Iterator[tuple[str, float, str, str]]:
    """Whether the reference lines of the 16-channel phantom are those of its image, and what that costs SENSE."""
    stored = np.load(DATA / PHANTOM_FILE)
    image, lines = (np.swapaxes(stored[name], 1, 2).astype(np.complex64) for name in ("kspace", "acs"))
    rows = [y for y in range(17, 41) if image[:, y].any()]
    columns = np.flatnonzero(np.abs(image).sum((0, 1)))
    air = ifft(torch.from_numpy(image[:, 1:62:2]), (-1,))[..., [*range(8), *range(58, 64)]]
    yield (
        "epi_phantom: noise of a sample",
        100 * float(air.abs().square().mean().sqrt()) / _rms(image[:, 1:62:2]),
        "%",
        "of the samples",
    )
    for name, scale in (("as they are", 1.0), (f"kx times {NARROWER}", NARROWER)):
        k = (np.arange(64) - 32) * scale
        taken = (lines @ np.sinc(k[:, None] - (np.arange(64) - 32)).T).astype(np.complex64)
        alike = [_alike(taken[:, y - 17][:, columns], image[:, y][:, columns]) for y in rows]
        yield (
            f"epi_phantom: reference lines, {name}",
            100 * float(np.mean(alike)),
            "%",
            "of their energy as the image's line, one phase apart",
        )
        write_phantom(folder / "phantom.h5", image, taken)
        scan = open_scan(folder / "phantom.h5").load(0, ImageIndex())
        op = Sense(estimate_maps(scan), scan.mask)
        left = op.forward(CgSense()(scan.data, op)) - scan.data
        yield (
            f"epi_phantom: SENSE, reference lines {name}",
            100 * float(left.norm() / scan.data.norm()),
            "%",
            "of the samples unexplained",
        )


def _alike(a: NDArray[np.complex64], b: NDArray[np.complex64]) -> float:
    return float(abs(np.vdot(a, b)) ** 2 / (np.linalg.norm(a) * np.linalg.norm(b)) ** 2)


def _rms(a: NDArray[np.complex64]) -> float:
    return float(np.sqrt(np.mean(np.abs(a[..., 1:60]) ** 2)))


def _percent(image: NDArray[np.float32], truth: NDArray[np.float64]) -> float:
    return 100 * float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


def write_phantom(path: Path, image: NDArray[np.complex64], reference: NDArray[np.complex64]) -> None:
    """The 16-channel phantom as ISMRMRD: k-space ``(coil ky kx)`` with every second line, 24 reference lines from row 17 on.

    The centre of k-space lies at row and column 31; the outermost columns hold zeros and are left out.
    """
    lines = [(17 + i, reference[:, i], True) for i in range(24)]
    lines += [(y, image[:, y], False) for y in range(64) if image[:, y].any()]
    headers = new_acquisition_headers(len(lines), len(image), 59, center_sample=30)
    headers["idx"]["kspace_encode_step_1"] = [y for y, _, _ in lines]
    headers["flags"] = [CALIBRATION if calibrates else 0 for _, _, calibrates in lines]
    limits = {"kspace_encoding_step_1": (0, 62, 31)}
    fov = (0.22, 0.22, 0.005)
    space = Space((64, 64, 1), (64, 64, 1), fov, fov, limits, (2, 1), "separate")
    samples = [np.ascontiguousarray(samples[:, 1:60]) * np.float32(1e6) for _, samples, _ in lines]
    write_raw(path, header_xml([space], {"acquisitionSystemInformation": {"receiverChannels": len(image)}}), headers, samples)


def reconstructed(path: Path, options: RunOptions) -> NDArray[np.float32]:
    """Magnitude ``(y x)`` of a file's first image as `recon run` makes it."""
    with open_source(path) as source:
        (result,) = reconstruct_source(source, choose_method(options), options, None, False)
    return np.asarray(result.images[0].data[0].abs().numpy())


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


def main(folder: Path) -> None:
    """Write the real echo-planar scans as ISMRMRD into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    to_ismrmrd(DATA / "skyra_epi.dat", folder / "epi.h5")
    stored = np.load(DATA / PHANTOM_FILE)
    image, lines = (np.swapaxes(stored[name], 1, 2).astype(np.complex64) for name in ("kspace", "acs"))
    write_phantom(folder / "epi_phantom.h5", image, lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
