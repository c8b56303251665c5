"""Echo-planar scans of the analytic phantom as ISMRMRD files: what was planted is found, and the image is the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from kspace import preprocess
from kspace.container import ImageIndex
from kspace.epi import OddEvenPhase, Trapezoid
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.io.mrd import MrdScan, open_scan
from kspace.io.mrd.flags import CALIBRATION, PHASE_CORRECTION, flag
from kspace.io.mrd.write import header_xml, write_raw
from kspace.noise_check import fit_noise
from kspace.simulation.acquisition import (
    Acquisition,
    ScanProtocol,
    accelerate,
    add_noise_scan,
    cartesian,
    coil_covariance,
    partial_fourier,
    repeat,
    with_limits,
)
from kspace.simulation.echo_planar import echo_planar
from kspace.simulation.measurement import measure, true_image, write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils

PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.002), (0.07, 0.08, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
        ellipsoid((0.03, -0.02, 0.01), (0.01, 0.03, 0.02), -35.0, -0.4),
    )
)
COILS = head_coils(3)
LOBE = Trapezoid(160, 240, 160, 80, 6.2)
PLANTED = OddEvenPhase(0.7, -0.03)


def plain(oversampling: float = 2.0, n_slices: int = 1) -> Acquisition:
    protocol = ScanProtocol((32, 32, 1), (0.24, 0.24, 0.005), oversampling, n_slices=n_slices)
    return cartesian(protocol, PHANTOM, COILS)


def opened(scan: Acquisition, folder: Path) -> MrdScan:
    write_scan(scan, folder / "scan.h5")
    return open_scan(folder / "scan.h5")


def error(read: MrdScan, scan: Acquisition, index: ImageIndex | None = None) -> float:
    """Of the coil images, relative to the truth."""
    k = preprocess.remove_oversampling(read.load(0, index or ImageIndex()))
    image = preprocess.to_recon_matrix(ifft(k.data), k.header).numpy()
    counters = {} if index is None else {name: value for name, value in vars(index).items() if value}
    truth = true_image(scan, scan.coils, **counters)[:, 0]
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


def reversed_rows(scan: Acquisition) -> list[bool]:
    assert scan.is_reversed is not None
    return scan.is_reversed.tolist()


def phases(read: MrdScan, index: ImageIndex | None = None) -> list[OddEvenPhase]:
    return [OddEvenPhase(**phase) for phase in read.load(0, index or ImageIndex()).header.study["odd_even_phase"]]


@pytest.mark.parametrize("oversampling", [1.0, 2.0, 1.5])
def test_ramp_samples_give_the_true_image(oversampling: float, tmp_path: Path) -> None:
    scan = echo_planar(plain(oversampling), LOBE, n_navigators=0)
    read = opened(scan, tmp_path)
    read.ghost = "none"
    assert error(read, scan) < 1e-3


@pytest.mark.parametrize("n_shots", [1, 2, 4])
@pytest.mark.parametrize("n_navigators", [3, 2, 8])
def test_navigators_remove_the_planted_ghost(n_shots: int, n_navigators: int, tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, n_shots, n_navigators, PLANTED)
    read = opened(scan, tmp_path)
    found = phases(read)
    assert len(found) == n_shots
    for phase in found:
        assert (phase.constant_rad, phase.linear_rad) == pytest.approx((0.7, -0.03), abs=2e-3)
    assert error(read, scan) < 0.01
    read.ghost = "none"
    assert error(read, scan) > 0.3


def test_without_navigators_the_image_itself_tells(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, n_navigators=0, phase=PLANTED)
    read = opened(scan, tmp_path)
    assert error(read, scan) < 0.02
    (phase,) = phases(read)
    assert (phase.constant_rad, phase.linear_rad) == pytest.approx((0.7, -0.03), abs=0.02)
    assert any("no phase correction navigators" in w and "ghost may remain" in w for w in read.warnings)
    read.ghost = "linear"
    with pytest.raises(InputError, match="no phase correction navigators; leave --ghost linear out"):
        read.load(0, ImageIndex())


def test_missing_marks_of_reversed_readouts_are_noticed(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, n_navigators=3, phase=PLANTED, is_marked=False)
    read = opened(scan, tmp_path)
    assert error(read, scan) < 0.01
    assert any("no readout is marked as reversed" in w for w in read.warnings)


def test_fly_back_readouts_stay_as_they_are(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE, n_navigators=0, is_marked=False)
    scan = replace(scan, is_reversed=np.zeros(len(scan.headers), bool))
    read = opened(scan, tmp_path)
    assert error(read, scan) < 1e-3
    assert not any("reversed" in w for w in read.warnings)


def test_every_repetition_and_slice_has_its_own_navigators(tmp_path: Path) -> None:
    """As a scanner that warms up: another phase in every repetition."""
    drifting = [OddEvenPhase(0.2 * r, -0.01 * r) for r in range(3)]
    single = plain(n_slices=2)
    parts = [echo_planar(repeat(single, "repetition", [1.0] * 3), LOBE, phase=phase) for phase in drifting]
    made = [measure(part) for part in parts]
    repetition = parts[0].headers["idx"]["repetition"]
    samples = [made[int(r)][i] for i, r in enumerate(repetition)]
    write_raw(tmp_path / "scan.h5", header_xml(with_limits(parts[0])), parts[0].headers, samples)
    read = open_scan(tmp_path / "scan.h5")
    for r, planted in enumerate(drifting):
        for s in range(2):
            (phase,) = phases(read, ImageIndex(repetition=r, slice=s))
            assert (phase.constant_rad, phase.linear_rad) == pytest.approx((planted.constant_rad, planted.linear_rad), abs=2e-3)


@pytest.mark.parametrize("n_shots", [1, 2])
def test_separate_reference_lines_are_corrected_by_their_own_navigators(n_shots: int, tmp_path: Path) -> None:
    scan = echo_planar(accelerate(plain(), 2, calibration=12, mode="separate"), LOBE, n_shots, phase=PLANTED)
    read = opened(scan, tmp_path)
    assert read.encodings[0].calibration == "separate"
    k = read.load(0, ImageIndex())
    whole = opened(echo_planar(plain(), LOBE), tmp_path).load(0, ImageIndex())
    assert k.calibration is not None
    assert k.mask[0, :, 0].tolist() == [y % 2 == 0 for y in range(32)]
    lines = slice(10, 22)
    scale = whole.data[:, lines].abs().max()
    assert ((k.calibration[:, lines] - whole.data[:, lines]).abs() / scale).max() < 0.02
    assert ((k.data - whole.data * k.mask).abs() / scale).max() < 0.02


def test_partial_fourier_lines_lie_about_their_centre(tmp_path: Path) -> None:
    scan = echo_planar(partial_fourier(plain(), lines=(8, 32), rebase=True), LOBE, phase=PLANTED)
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert k.mask[0, :, 0].tolist() == [y >= 8 for y in range(32)]
    whole = opened(echo_planar(plain(), LOBE), tmp_path).load(0, ImageIndex())
    assert ((k.data - whole.data * k.mask).abs() / whole.data.abs().max()).max() < 0.02


def test_whitening_knows_the_noise_of_regridded_samples(tmp_path: Path) -> None:
    covariance = coil_covariance(3, 1e-3)
    protocol = ScanProtocol((32, 32, 1), (0.24, 0.24, 0.005), 2.0)
    silent = cartesian(protocol, Phantom((ellipsoid((0.0, 0.0, 0.0), (0.05, 0.05, 0.05), 0.0, 1e-9),)), COILS, covariance)
    read = opened(echo_planar(add_noise_scan(silent, 64), LOBE), tmp_path)
    read.ghost = "none"
    k = read.load(0, ImageIndex())
    assert read.noise is not None
    fit = fit_noise(k, read.noise)
    white = preprocess.whiten(k, read.noise)
    assert white.data.abs().square().mean().item() == pytest.approx(1, rel=0.1)
    assert fit is None or fit.is_plausible


@pytest.mark.parametrize("n_navigators", [3, 0])
@pytest.mark.parametrize("is_true", [True, False])
def test_the_samples_tell_whether_the_delay_in_the_header_is_true(is_true: bool, n_navigators: int, tmp_path: Path) -> None:
    """Readouts of 496 us under a lobe of 560 us, 12 us after its start in the header, there or in its middle in truth."""
    lobe = replace(LOBE, delay_us=12.0)
    scan = echo_planar(plain(), lobe, n_navigators=n_navigators, phase=OddEvenPhase(0.5))
    scan = scan if is_true else replace(scan, lobe=LOBE)
    read = opened(scan, tmp_path)
    assert error(read, scan) < 0.02
    assert any(f"the samples are {'where it says' if is_true else 'in the middle'}" in w for w in read.warnings)


def test_navigators_under_another_flag_and_of_another_slice_are_found(tmp_path: Path) -> None:
    scan = echo_planar(plain(n_slices=2), LOBE, phase=PLANTED)
    navigates = (scan.headers["flags"] & PHASE_CORRECTION) != 0
    scan.headers["flags"][navigates] ^= PHASE_CORRECTION | flag("IS_NAVIGATION_DATA") | flag("IS_RTFEEDBACK_DATA")
    scan.headers["idx"]["slice"][navigates] = 0
    read = opened(scan, tmp_path)
    for index in (ImageIndex(), ImageIndex(slice=1)):
        (phase,) = phases(read, index)
        assert (phase.constant_rad, phase.linear_rad) == pytest.approx((0.7, -0.03), abs=2e-3)
    assert any("slices without navigators of their own" in w for w in read.warnings)


def _damaged(scan: Acquisition, folder: Path, change: Callable[[Acquisition], None]) -> MrdScan:
    change(scan)
    return opened(scan, folder)


def test_navigators_of_another_length_are_not_used(tmp_path: Path) -> None:
    def shorten(scan: Acquisition) -> None:
        scan.headers["number_of_samples"][(scan.headers["flags"] & PHASE_CORRECTION) != 0] = 64

    scan = echo_planar(plain(), LOBE)
    write_scan(scan, tmp_path / "whole.h5")
    with h5py.File(tmp_path / "whole.h5", "r") as file:
        rows, xml = file["dataset/data"][:], file["dataset/xml"][0]
    samples = [row["data"].view(np.complex64).reshape(3, -1) for row in rows]
    shorten(scan)
    cut = [s[:, : int(n)] for s, n in zip(samples, scan.headers["number_of_samples"], strict=True)]
    write_raw(tmp_path / "scan.h5", xml, scan.headers, cut)
    read = open_scan(tmp_path / "scan.h5")
    assert error(read, scan) < 0.02
    assert any("3 navigators have another number of samples than the lines" in w for w in read.warnings)
    read.ghost = "linear"
    with pytest.raises(InputError, match="no phase correction navigators"):
        read.load(0, ImageIndex())


def test_echo_trains_that_the_header_calls_cartesian_are_found(tmp_path: Path) -> None:
    scan = echo_planar(plain(), Trapezoid(0, 500, 0, 80, 6.2), phase=PLANTED)
    write_scan(replace(scan, spaces=(replace(scan.spaces[0], trajectory="cartesian", parameters={}),)), tmp_path / "scan.h5")
    read = open_scan(tmp_path / "scan.h5")
    assert error(read, scan) < 0.01
    assert any("Cartesian by its header, but lines and navigators run both ways" in w for w in read.warnings)


@pytest.mark.parametrize("trajectory", ["cartesian", "other"])
def test_the_description_names_echo_trains_whatever_the_trajectory(trajectory: str, tmp_path: Path) -> None:
    """Converters of Pulseq data write cartesian, and no dwell time in the readouts."""
    scan = echo_planar(plain(), LOBE, phase=PLANTED)
    samples = measure(scan)
    scan.headers["sample_time_us"] = 0
    scan = replace(scan, spaces=(replace(scan.spaces[0], trajectory=trajectory),))
    write_raw(tmp_path / "scan.h5", header_xml(with_limits(scan)), scan.headers, samples)
    assert error(open_scan(tmp_path / "scan.h5"), scan) < 0.01


def test_readouts_that_were_turned_already_are_not_turned_again(tmp_path: Path) -> None:
    """A converter that turns reversed readouts and leaves their marks."""
    scan = echo_planar(plain(), LOBE, phase=PLANTED)
    samples = [y[:, ::-1] if back else y for y, back in zip(measure(scan), reversed_rows(scan), strict=True)]
    write_raw(tmp_path / "scan.h5", header_xml(with_limits(scan)), scan.headers, [np.ascontiguousarray(y) for y in samples])
    read = open_scan(tmp_path / "scan.h5")
    assert error(read, scan) < 0.01
    assert any("run like the others: not turned" in w for w in read.warnings)
    usual = opened(scan, tmp_path)
    assert error(usual, scan) < 0.01
    assert not any("run like the others" in w for w in usual.warnings)


def test_navigators_that_are_not_a_number_are_refused(tmp_path: Path) -> None:
    scan = echo_planar(plain(), LOBE)
    scan.gain[1] = np.nan
    read = opened(scan, tmp_path)
    with pytest.raises(InputError, match=r"readout 1 has .* NaN or infinite values"):
        read.load(0, ImageIndex())


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"numSamples": 128, "flatTopTime": 900}, "numSamples of the EPI trajectory is 128, the readouts have 80 samples"),
        ({"flatTopTime": 40}, "the EPI readout gradient lasts 360 us, too short"),
        ({"rampUpTime": 0, "rampDownTime": 0, "flatTopTime": 0, "numSamples": 0}, None),
    ],
)
def test_a_contradictory_description_is_refused_when_the_file_is_opened(
    parameters: dict[str, int], text: str | None, tmp_path: Path
) -> None:
    scan = echo_planar(plain(), LOBE)
    space = scan.spaces[0]
    scan = replace(scan, spaces=(replace(space, parameters={**space.parameters, **parameters}),))
    write_scan(scan, tmp_path / "scan.h5")
    if text is None:  # no ramps: evenly spaced, so distorted, but nothing contradicts it
        assert open_scan(tmp_path / "scan.h5").images()
        return
    with pytest.raises(InputError, match=text):
        open_scan(tmp_path / "scan.h5")


def test_calibration_lines_keep_their_flag() -> None:
    scan = echo_planar(accelerate(plain(), 2, calibration=8, mode="separate"), LOBE)
    marked = (scan.headers["flags"] & CALIBRATION) != 0
    assert int(marked.sum()) == 8 + 3


def test_reference_lines_of_another_encoding_serve_the_coil_maps(tmp_path: Path) -> None:
    """A gradient-echo reference scan beside an accelerated EPI, as siemens_to_ismrmrd writes it."""
    fast, slow = echo_planar(accelerate(plain(1.0), 2), LOBE, phase=PLANTED), plain(2.0)
    rows = np.flatnonzero(np.abs(slow.headers["idx"]["kspace_encode_step_1"].astype(int) - 16) <= 6)
    reference = replace(slow, headers=slow.headers[rows].copy(), gain=slow.gain[rows])
    reference.headers["flags"] |= CALIBRATION
    reference.headers["encoding_space_ref"] = 1
    headers = np.concatenate([reference.headers, fast.headers])
    xml = header_xml([*with_limits(fast), slow.spaces[0]])
    lines = measure(replace(reference, headers=slow.headers[rows]))
    write_raw(tmp_path / "scan.h5", xml, headers, [*lines, *measure(fast)])
    read = open_scan(tmp_path / "scan.h5")
    assert [e.n_readouts for e in read.encodings] == [16, 0]
    assert read.encodings[0].calibration == "separate"
    k = read.load(0, ImageIndex())
    whole = opened(echo_planar(plain(1.0), LOBE), tmp_path).load(0, ImageIndex())
    assert k.calibration is not None
    assert ((k.calibration - whole.data)[:, 10:23].abs() / whole.data.abs().max()).max() < 0.03
    assert k.calibration[:, :10].abs().max() == 0
