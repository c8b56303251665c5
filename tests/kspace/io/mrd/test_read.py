"""Raw scans come back as the k-space that was measured: every case against the analytic Fourier transform of a phantom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kspace.container import Geometry, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.io.mrd import MrdScan, open_scan
from kspace.io.mrd import file as mrd_file
from kspace.io.mrd.file import BLOCK_BYTES, blocks
from kspace.io.mrd.flags import flag
from kspace.io.mrd.write import header_xml, write_raw
from kspace.simulation import acquisition as acquire
from kspace.simulation.acquisition import ScanProtocol, with_limits
from kspace.simulation.measurement import measure, write_scan
from kspace.simulation.phantom import AnalyticCoils, Phantom, ellipsoid, head_coils

PHANTOM = Phantom(
    (
        ellipsoid((0.01, -0.005, 0.002), (0.07, 0.09, 0.08), 20.0),
        ellipsoid((-0.02, 0.03, 0.0), (0.02, 0.015, 0.03), 0.0, 0.7),
        ellipsoid((0.03, -0.02, 0.01), (0.01, 0.03, 0.02), -35.0, -0.4),
    )
)
COILS = head_coils(3)
FLAT = ScanProtocol(matrix=(24, 20, 1), fov_m=(0.24, 0.2, 0.005))
DEEP = ScanProtocol(matrix=(16, 12, 10), fov_m=(0.24, 0.2, 0.2))


def plain(protocol: ScanProtocol = FLAT) -> acquire.Acquisition:
    return acquire.cartesian(protocol, PHANTOM, COILS)


def opened(scan: acquire.Acquisition, folder: Path) -> MrdScan:
    path = folder / "scan.h5"
    write_scan(scan, path)
    return open_scan(path)


def truth(scan: acquire.Acquisition, encoding: int = 0, gain: float = 1.0, slice: int = 0) -> NDArray[np.complex128]:
    """Samples on the full encoded grid, straight from the definition: ``(coil ky kx)`` or ``(kz coil ky kx)``."""
    space = scan.spaces[encoding]
    rows = scan.imaging & (scan.headers["encoding_space_ref"] == encoding) & (scan.headers["idx"]["slice"] == slice)
    head = scan.headers[rows][0]
    (nx, ny, nz), fov = space.encoded_matrix, space.encoded_fov_m
    kx, ky, kz = ((np.arange(n) - n // 2) / length for n, length in zip((nx, ny, nz), fov, strict=True))
    directions = [head["read_dir"], head["phase_dir"], head["slice_dir"]][: 3 if nz > 1 else 2]
    origin = head["position"] * 1e-3
    cut, coils = PHANTOM.section(origin, *directions), scan.coils.section(origin, *directions)
    scale = gain * np.sqrt(nx * ny) / (fov[0] * fov[1])
    if nz == 1:
        return scale * coils.kspace(cut, kx, ky[:, None])
    volume = scale * np.sqrt(nz) / fov[2] * coils.kspace(cut, kx, ky[:, None], kz[:, None, None])
    return volume.swapaxes(0, 1)


def assert_samples(k: KSpace, expected: NDArray[np.complex128], tolerance: float = 1e-5) -> None:
    """`k` holds `expected` where its mask says so, and zero elsewhere."""
    sampled = k.mask.numpy()
    error = np.abs(k.data.numpy() - np.where(sampled, expected, 0)).max() / np.abs(expected).max()
    assert error < tolerance, f"largest error {error:.2g} of the peak"
    assert k.n_averages is not None
    assert torch.equal(k.n_averages > 0, k.mask)


def rows_of(k: KSpace) -> list[int]:
    return k.mask[0].any(-1).nonzero().flatten().tolist()


def test_a_plain_scan_is_its_fourier_transform(tmp_path: Path) -> None:
    scan = plain()
    read = opened(scan, tmp_path)
    assert read.images(0) == [ImageIndex()]
    assert read.incomplete(0) == []
    k = read.load(0, ImageIndex())
    assert k.data.shape == (3, 20, 48)
    assert k.data.dtype == torch.complex64
    assert k.mask.shape == (1, 20, 1)
    assert k.mask.all()
    assert_samples(k, truth(scan))
    assert k.header.steps == ("read",)
    assert k.header.noise_std is None
    encoding = read.encodings[0]
    assert (encoding.n_coils, encoding.calibration, encoding.centre) == (3, "none", (10, 0))
    assert encoding.dwell_s == pytest.approx(5e-6)


@pytest.mark.parametrize("matrix", [(23, 19, 1), (24, 19, 1), (23, 20, 1)])
def test_odd_matrix_sizes(tmp_path: Path, matrix: tuple[int, int, int]) -> None:
    scan = plain(replace(FLAT, matrix=matrix, readout_oversampling=1.0))
    assert_samples(opened(scan, tmp_path).load(0, ImageIndex()), truth(scan))


def test_the_file_is_neither_changed_nor_touched(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_scan(plain(), path)
    path.chmod(0o444)
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    read = open_scan(path)
    read.load(0, ImageIndex())
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == stamp
    assert read.sha256() == hashlib.sha256(before).hexdigest()


@pytest.mark.parametrize("missing", [5, 12])
def test_asymmetric_echo_lies_at_center_sample(tmp_path: Path, missing: int) -> None:
    scan = acquire.asymmetric_echo(plain(), missing)
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert k.mask.shape == (1, 20, 48)
    assert not k.mask[..., :missing].any()
    assert k.mask[..., missing:].all()
    assert_samples(k, truth(scan))


def test_discarded_samples_are_left_out(tmp_path: Path) -> None:
    scan = acquire.discard(acquire.asymmetric_echo(plain(), 4), 3, 2)
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert k.mask[0, 0].nonzero().flatten().tolist() == list(range(7, 46))
    assert_samples(k, truth(scan))


@pytest.mark.parametrize("prepare", [lambda s: s, lambda s: acquire.discard(acquire.asymmetric_echo(s, 6), 3, 1)])
def test_reversed_readouts_have_no_phase_ramp(
    tmp_path: Path, prepare: Callable[[acquire.Acquisition], acquire.Acquisition]
) -> None:
    scan = acquire.reverse_readouts(prepare(plain()))
    assert_samples(opened(scan, tmp_path).load(0, ImageIndex()), truth(scan))


@pytest.mark.parametrize("width", [24, 23])
def test_a_reversed_readout_counts_its_centre_in_order_of_acquisition(tmp_path: Path, width: int) -> None:
    """k = 0 is the sample number center_sample that was acquired: of a reversed line too, whose last one then lies outside."""
    scan = plain(replace(FLAT, matrix=(width, 20, 1), readout_oversampling=1.0))
    lines = scan.headers["idx"]["kspace_encode_step_1"] % 2 == 1
    scan.headers["flags"][lines] |= flag("IS_REVERSE")
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert_samples(k, truth(scan))
    if width % 2:
        assert k.mask.shape == (1, 20, 1)
    else:
        assert k.mask[0, 0::2].all()
        assert k.mask[0, 1::2, 1:].all()
        assert not k.mask[0, 1::2, 0].any()


def test_center_sample_that_was_never_set_is_said(tmp_path: Path) -> None:
    scan = plain()
    expected = truth(scan)
    path = tmp_path / "scan.h5"
    write_scan(scan, path)
    scan.headers["center_sample"] = 0
    signals = measure(plain())
    write_raw(path, header_xml(with_limits(scan), {}), scan.headers, signals)
    read = open_scan(path)
    assert any("center_sample is 0 in every readout" in w for w in read.warnings)
    assert_samples(read.load(0, ImageIndex()), expected)


@pytest.mark.parametrize("rebase", [False, True])
def test_partial_fourier_lines_lie_about_their_centre(tmp_path: Path, rebase: bool) -> None:
    scan = acquire.partial_fourier(plain(), lines=(6, 20), rebase=rebase)
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert rows_of(k) == list(range(6, 20))
    assert_samples(k, truth(scan))


def test_averages_are_averaged_and_counted(tmp_path: Path) -> None:
    scan = acquire.repeat(plain(), "average", [1.0, 3.0])
    scan = replace(scan, headers=scan.headers[:30], gain=scan.gain[:30])  # only half of the second one
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert k.n_averages is not None
    assert k.n_averages[0, :, 0].tolist() == [2] * 10 + [1] * 10
    expected = truth(scan)
    expected[:, :10] *= 2
    assert_samples(k, expected)


@pytest.mark.parametrize("counter", ["contrast", "phase", "repetition", "set"])
def test_counters_keep_images_apart(tmp_path: Path, counter: str) -> None:
    scan = acquire.repeat(plain(), counter, [1.0, 0.5, 2.0])
    read = opened(scan, tmp_path)
    assert read.images(0) == [ImageIndex(**{counter: i}) for i in range(3)]
    for index, gain in zip(read.images(0), [1.0, 0.5, 2.0], strict=True):
        assert_samples(read.load(0, index), truth(scan, gain=gain))


def test_volumes_are_ordered_repetition_fastest(tmp_path: Path) -> None:
    scan = acquire.repeat(acquire.repeat(plain(), "repetition", [1, 1]), "contrast", [1, 1])
    images = opened(scan, tmp_path).images(0)
    assert [(i.contrast, i.repetition) for i in images] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_interleaved_slices_are_kept_apart_with_their_positions(tmp_path: Path) -> None:
    geometry = Geometry(position_m=(0.01, 0.0, 0.005))
    scan = plain(replace(FLAT, n_slices=3, slice_spacing_m=0.02, geometry=geometry))
    scan = acquire.interleave_slices(scan)
    read = opened(scan, tmp_path)
    assert [i.slice for i in read.images(0)] == [0, 1, 2]
    for index in read.images(0):
        k = read.load(0, index)
        assert_samples(k, truth(scan, slice=index.slice))
        assert k.header.geometry.position_m == pytest.approx((0.01, 0.0, 0.005 + 0.02 * (index.slice - 1)))
        assert not k.header.geometry.nominal


def test_the_header_is_that_of_the_central_readout(tmp_path: Path) -> None:
    scan = plain()
    scan.headers["user_int"][:, 0] = np.arange(20)
    scan.headers["physiology_time_stamp"][:, 1] = np.arange(20) + 5
    header = opened(scan, tmp_path).load(0, ImageIndex()).header
    assert header.central["user_int"][0] == 10
    assert header.central["physiology_time_stamp"] == (0, 15, 0)
    assert header.central["idx"]["kspace_encode_step_1"] == 10
    assert header.encoded_matrix == (48, 20, 1)
    assert header.recon_matrix == (24, 20, 1)
    assert header.encoded_fov_m == pytest.approx((0.48, 0.2, 0.005))
    assert header.geometry.fov_m == pytest.approx((0.24, 0.2, 0.005))
    assert header.study["systemVendor"] == "simulated"
    assert header.study["patientPosition"] == "HFS"


def test_embedded_calibration_belongs_to_the_image(tmp_path: Path) -> None:
    scan = acquire.accelerate(plain(), 3, calibration=6)
    read = opened(scan, tmp_path)
    k = read.load(0, ImageIndex())
    assert rows_of(k) == [1, 4, *range(7, 13), 13, 16, 19]
    assert_samples(k, truth(scan))
    assert k.calibration is None
    assert read.encodings[0].calibration == "embedded"
    assert k.header.study["calibrationMode"] == "embedded"
    assert k.header.acceleration == (3, 1)


@pytest.mark.parametrize("stated", ["separate", "external", "other", None])
def test_separate_calibration_serves_the_maps_only(tmp_path: Path, stated: str | None) -> None:
    """Where the header does not decide, lines that repeat image lines are separate."""
    scan = acquire.accelerate(plain(), 2, calibration=6, mode="separate", calibration_gain=5.0)
    scan = replace(scan, spaces=tuple(replace(s, calibration_mode=stated) for s in scan.spaces))
    read = opened(scan, tmp_path)
    k = read.load(0, ImageIndex())
    assert rows_of(k) == list(range(0, 20, 2))
    assert_samples(k, truth(scan))
    assert k.calibration is not None
    expected = 5 * truth(scan)
    expected[:, :7] = 0
    expected[:, 13:] = 0
    np.testing.assert_allclose(k.calibration.numpy(), expected, atol=1e-5 * np.abs(expected).max())
    assert k.header.study["calibration"] == "separate"
    assert (stated in ("separate", "external")) != any("taken as separate" in w for w in read.warnings)


def test_calibration_lines_that_fill_gaps_are_embedded_where_the_header_is_silent(tmp_path: Path) -> None:
    scan = acquire.accelerate(plain(), 3, calibration=6)
    scan = replace(scan, spaces=tuple(replace(s, calibration_mode=None) for s in scan.spaces))
    read = opened(scan, tmp_path)
    assert_samples(read.load(0, ImageIndex()), truth(scan))
    assert read.encodings[0].calibration == "embedded"
    assert any("taken as embedded" in w for w in read.warnings)


def test_separate_calibration_of_the_first_repetition_serves_all(tmp_path: Path) -> None:
    first = acquire.accelerate(plain(), 2, calibration=6, mode="separate")
    later = acquire.accelerate(plain(), 2, mode="separate")
    later.headers["idx"]["repetition"] = 1
    scan = replace(
        first, headers=np.concatenate([first.headers, later.headers]), gain=np.ones(len(first.headers) + len(later.headers))
    )
    read = opened(scan, tmp_path)
    both = [read.load(0, ImageIndex(repetition=r)).calibration for r in (0, 1)]
    assert both[0] is not None
    assert both[1] is not None
    assert torch.equal(both[0], both[1])


def test_interleaved_repetitions_average_to_full_kspace(tmp_path: Path) -> None:
    scan = acquire.accelerate(acquire.repeat(plain(), "repetition", [1.0] * 4), 2, mode="interleaved")
    read = opened(scan, tmp_path)
    assert [rows_of(read.load(0, i))[0] for i in read.images(0)] == [0, 1, 0, 1]
    k = read.load_average(0, ImageIndex(repetition=2))
    assert k.n_averages is not None
    assert (k.n_averages == 2).all()
    assert_samples(k, truth(scan))
    assert k.header.steps == ("read", "average_repetitions")
    assert read.encodings[0].calibration == "none"


@pytest.mark.parametrize(
    "name",
    ["NAVIGATION_DATA", "PHASECORR_DATA", "HPFEEDBACK_DATA", "DUMMYSCAN_DATA", "RTFEEDBACK_DATA",
     "SURFACECOILCORRECTIONSCAN_DATA", "PHASE_STABILIZATION_REFERENCE", "PHASE_STABILIZATION"],
)  # fmt: skip
def test_lines_that_are_not_of_the_image_are_left_out(tmp_path: Path, name: str) -> None:
    scan = acquire.add_lines(plain(), name)
    k = opened(scan, tmp_path).load(0, ImageIndex())
    assert (k.n_averages == 1).all()  # type: ignore[union-attr]
    assert_samples(k, truth(scan))


def test_three_dimensional_kspace(tmp_path: Path) -> None:
    scan = acquire.partial_fourier(plain(DEEP), partitions=(2, 10), rebase=True)
    read = opened(scan, tmp_path)
    k = read.load(0, ImageIndex())
    assert k.data.shape == (10, 3, 12, 32)
    assert k.mask.shape == (10, 1, 12, 1)
    assert k.mask[:, 0, 0, 0].tolist() == [False] * 2 + [True] * 8
    assert_samples(k, truth(scan))
    assert read.encodings[0].is_3d


def test_missing_limits_mean_the_centre_of_the_matrix(tmp_path: Path) -> None:
    scan = acquire.fix_limits(plain(), None)
    read = opened(scan, tmp_path)
    assert_samples(read.load(0, ImageIndex()), truth(scan))
    assert any("no centre of kspace_encode_step_1" in w for w in read.warnings)


@pytest.mark.parametrize(
    "limits",
    [None, {"kspace_encoding_step_1": (0, 13, 40)}, {"kspace_encoding_step_1": (0, 13, 12)}],
    ids=["missing", "out of range", "lines outside"],
)
def test_siemens_counters_say_the_centre_where_the_limits_cannot(
    tmp_path: Path, limits: dict[str, tuple[int, int, int]] | None
) -> None:
    scan = acquire.partial_fourier(plain(), lines=(6, 20), rebase=True)
    scan = acquire.fix_limits(acquire.state_centre_in_user_counters(scan), limits)
    read = opened(scan, tmp_path)
    assert any("taken from idx.user[5] (4)" in w for w in read.warnings)
    assert_samples(read.load(0, ImageIndex()), truth(scan))


def test_siemens_counters_for_partitions(tmp_path: Path) -> None:
    scan = acquire.partial_fourier(plain(DEEP), partitions=(2, 10), rebase=True)
    scan = acquire.fix_limits(acquire.state_centre_in_user_counters(scan), {"kspace_encoding_step_1": (0, 11, 6)})
    read = opened(scan, tmp_path)
    assert any("taken from idx.user[6] (3)" in w for w in read.warnings)
    assert_samples(read.load(0, ImageIndex()), truth(scan))


def test_siemens_counters_that_disagree_with_good_limits_are_only_a_warning(tmp_path: Path) -> None:
    scan = plain()
    scan.headers["idx"]["user"][:, 5] = 7
    read = opened(scan, tmp_path)
    assert any("centred at 10, though idx.user[5] says 7" in w for w in read.warnings)
    assert_samples(read.load(0, ImageIndex()), truth(scan))


def test_siemens_counters_that_vary_are_not_believed(tmp_path: Path) -> None:
    scan = acquire.fix_limits(plain(), None)
    scan.headers["idx"]["user"][:, 5] = np.arange(20)
    read = opened(scan, tmp_path)
    assert read.encodings[0].centre == (10, 0)


def test_an_empty_slice_is_loaded_and_a_missing_one_named(tmp_path: Path) -> None:
    scan = acquire.empty_slice(plain(replace(FLAT, n_slices=3)), 1)
    assert not opened(scan, tmp_path).load(0, ImageIndex(slice=1)).data.any()
    promised = acquire.abort(scan, len(scan.headers))
    keep = promised.headers["idx"]["slice"] != 1
    read = opened(replace(promised, headers=promised.headers[keep], gain=promised.gain[keep]), tmp_path)
    assert [i.slice for i in read.images(0)] == [0, 2]
    assert [(i.slice, r[:11]) for i, r in read.incomplete(0)] == [(1, "no readouts")]


def test_an_aborted_scan_keeps_what_is_complete_and_names_the_rest(tmp_path: Path) -> None:
    scan = acquire.abort(acquire.repeat(plain(), "repetition", [1.0] * 4), 47)
    read = opened(scan, tmp_path)
    assert read.images(0) == [ImageIndex(repetition=0), ImageIndex(repetition=1)]
    rest = dict(read.incomplete(0))
    assert rest[ImageIndex(repetition=2)] == "the scan stopped after 7 of its 20 readouts"
    assert rest[ImageIndex(repetition=3)].startswith("no readouts")
    assert rows_of(read.load(0, ImageIndex(repetition=2))) == list(range(7))  # who wants it can have it


def test_an_aborted_scan_of_interleaved_slices_has_no_complete_image(tmp_path: Path) -> None:
    scan = acquire.abort(acquire.interleave_slices(plain(replace(FLAT, n_slices=3))), 31)
    read = opened(scan, tmp_path)
    assert read.images(0) == []
    assert [i.slice for i, _ in read.incomplete(0)] == [0, 1, 2]


def test_an_aborted_accelerated_scan_is_named_by_its_limits(tmp_path: Path) -> None:
    scan = acquire.abort(acquire.mark_last(acquire.accelerate(plain(), 3, calibration=6)), 7)
    read = opened(scan, tmp_path)
    assert read.images(0) == []
    assert "kspace_encode_step_1 runs from" in read.incomplete(0)[0][1]


@pytest.mark.parametrize("n", [97, 96])
def test_an_aborted_3d_scan(tmp_path: Path, n: int) -> None:
    read = opened(acquire.abort(plain(DEEP), n), tmp_path)
    assert read.images(0) == []
    assert len(read.incomplete(0)) == 1


WHOLE = {"kspace_encoding_step_1": (0, 19, 10)}


@pytest.mark.parametrize("order", ["ascending", "interleaved", "both sides"])
def test_partial_fourier_within_the_limits_of_the_whole_matrix_is_complete(tmp_path: Path, order: str) -> None:
    scan = acquire.partial_fourier(acquire.fix_limits(plain(), WHOLE), lines=(5, 18 if order == "both sides" else 20))
    lines = scan.headers["idx"]["kspace_encode_step_1"].astype(int)
    if order != "ascending":
        chosen = np.lexsort((lines, lines % 4))
        scan = replace(scan, headers=scan.headers[chosen], gain=scan.gain[chosen])
    found = opened(scan, tmp_path)
    assert found.incomplete(0) == []
    high, sides = (17, "before the first and after the last") if order == "both sides" else (19, "before the first")
    said = (
        f"kspace_encode_step_1 runs from 5 to {high}, the limits are 0 to 19; the lines {sides} are taken for partial Fourier"
    )
    assert [w for w in found.warnings if "partial Fourier" in w] == [f"encoding 0: {said}"]
    assert found.load(0, ImageIndex()).mask[0, :, 0].nonzero().flatten().tolist() == list(range(5, high + 1))


@pytest.mark.parametrize("lines", [(0, 9), (3, 12)])
def test_partial_fourier_in_every_partition_is_complete(tmp_path: Path, lines: tuple[int, int]) -> None:
    """Each partition ends where the others do: no acquisition that was cut off leaves that."""
    scan = acquire.fix_limits(plain(DEEP), {"kspace_encoding_step_1": (0, 11, 6), "kspace_encoding_step_2": (0, 9, 5)})
    found = opened(acquire.partial_fourier(scan, lines=lines), tmp_path)
    assert found.incomplete(0) == []
    assert any("partial Fourier" in w for w in found.warnings)


@pytest.mark.parametrize("order", ["descending", "from the centre outwards", "partial Fourier"])
def test_an_acquisition_that_lacks_its_last_lines_in_time_is_incomplete(tmp_path: Path, order: str) -> None:
    scan = plain()
    lines = scan.headers["idx"]["kspace_encode_step_1"].astype(int)
    chosen = {
        "descending": lines[::-1],
        "from the centre outwards": np.argsort(np.abs(lines - 10), kind="stable"),
        "partial Fourier": lines[4:],
    }[order][:12]
    scan = acquire.fix_limits(replace(scan, headers=scan.headers[chosen], gain=scan.gain[chosen]), WHOLE)
    found = opened(scan, tmp_path)
    assert [index for index, _ in found.incomplete(0)] == [ImageIndex()]
    assert found.images(0) == []


def test_a_random_pattern_is_not_mistaken_for_an_aborted_scan(tmp_path: Path) -> None:
    scan = acquire.abort(plain(), 20)
    keep = np.array([0, 1, 4, 7, 8, 9, 10, 11, 12, 15])
    read = opened(replace(scan, headers=scan.headers[keep], gain=scan.gain[keep]), tmp_path)
    assert read.images(0) == [ImageIndex()]


@pytest.mark.parametrize("marked", [True, False])
def test_calibration_in_the_first_repetition_only_does_not_make_the_others_incomplete(tmp_path: Path, marked: bool) -> None:
    scan = acquire.accelerate(acquire.repeat(plain(), "repetition", [1.0] * 3), 3, calibration=6)
    repetition = scan.headers["idx"]["repetition"]
    extra = (scan.headers["flags"] & acquire.CALIBRATION) != 0
    # Lattice of the first repetition, its calibration lines, lattices of the others: each is the beginning of the first.
    rows = np.flatnonzero(~extra | (repetition == 0))
    scan = acquire._take(scan, rows[np.lexsort((extra[rows], repetition[rows]))])
    read = opened(acquire.mark_last(scan) if marked else scan, tmp_path)
    assert len(read.images(0)) == 3
    assert read.incomplete(0) == []


def test_other_numbers_of_averages_do_not_make_an_image_incomplete(tmp_path: Path) -> None:
    scan = acquire.repeat(acquire.repeat(plain(), "repetition", [1.0, 0.5]), "average", [1.0, 1.0])
    idx = scan.headers["idx"]
    rows = np.flatnonzero((idx["average"] == 0) | (idx["repetition"] == 1))
    scan = acquire._take(scan, rows[np.lexsort((idx["average"][rows], idx["repetition"][rows]))])
    read = opened(scan, tmp_path)
    assert [i.repetition for i in read.images(0)] == [0, 1]
    assert read.incomplete(0) == []


def test_a_full_first_repetition_does_not_make_the_others_incomplete(tmp_path: Path) -> None:
    full, fast = plain(), acquire.accelerate(acquire.repeat(plain(), "repetition", [1.0] * 3), 2)
    fast.headers["idx"]["repetition"] += 1
    scan = replace(full, headers=np.concatenate([full.headers, fast.headers]), gain=np.ones(50))
    read = opened(scan, tmp_path)
    assert len(read.images(0)) == 4
    assert read.incomplete(0) == []


def test_several_encodings(tmp_path: Path) -> None:
    low = acquire.cartesian(replace(FLAT, matrix=(12, 14, 1)), PHANTOM, COILS)
    scan = acquire.join(plain(), low)
    read = opened(scan, tmp_path)
    assert [e.encoded_matrix for e in read.encodings] == [(48, 20, 1), (24, 14, 1)]
    for encoding in (0, 1):
        k = read.load(encoding, ImageIndex())
        assert k.header.encoding == encoding
        assert_samples(k, truth(scan, encoding))
    with pytest.raises(InputError, match=r"no encoding 2, the header has 2"):
        read.images(2)


def test_encodings_that_cannot_be_reconstructed_do_not_hide_the_others(tmp_path: Path) -> None:
    scan = acquire.join(plain(), plain())
    scan = replace(scan, spaces=(scan.spaces[0], replace(scan.spaces[1], trajectory="rosette")))
    read = opened(scan, tmp_path)
    assert_samples(read.load(0, ImageIndex()), truth(scan))
    with pytest.raises(InputError, match="encoding 1 has trajectory 'rosette', expected cartesian"):
        read.images(1)


def test_only_the_readouts_of_one_image_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[slice] = []

    def spy(readouts: NDArray[np.int64], size: int) -> Iterator[slice]:
        for block in blocks(readouts, size):
            taken.append(block)
            yield block

    read = opened(acquire.interleave_slices(plain(replace(FLAT, n_slices=4))), tmp_path)
    monkeypatch.setattr(mrd_file, "blocks", spy)
    read.load(0, ImageIndex(slice=1))
    assert taken == [slice(2, 79, 4)]  # even slices first: slice 1 is the third of each round


def test_blocks_cover_exactly_the_readouts() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        readouts = np.flatnonzero(rng.random(300) < rng.random())
        covered = [i for block in blocks(readouts, BLOCK_BYTES // 16) for i in range(block.start, block.stop, block.step)]
        assert covered == readouts.tolist()
        assert all(len(range(b.start, b.stop, b.step)) <= 16 for b in blocks(readouts, BLOCK_BYTES // 16))


def test_unset_directions_are_nominal_and_crooked_ones_refused(tmp_path: Path) -> None:
    scan = plain()
    write_scan(scan, tmp_path / "scan.h5")
    signals = measure(scan)
    for name in ("read_dir", "phase_dir", "slice_dir"):
        scan.headers[name] = 0
    write_raw(tmp_path / "scan.h5", header_xml(with_limits(scan), {}), scan.headers, signals)
    assert open_scan(tmp_path / "scan.h5").load(0, ImageIndex()).header.geometry.nominal
    scan.headers["read_dir"] = scan.headers["phase_dir"] = (0, 1, 0)
    scan.headers["slice_dir"] = (0, 0, 1)
    write_raw(tmp_path / "scan.h5", header_xml(with_limits(scan), {}), scan.headers, signals)
    with pytest.raises(InputError, match="expected unit vectors at right angles"):
        open_scan(tmp_path / "scan.h5").load(0, ImageIndex())


def test_one_coil(tmp_path: Path) -> None:
    scan = acquire.cartesian(FLAT, PHANTOM, AnalyticCoils(np.zeros((1, 3)), np.ones((1, 1), np.complex128)))
    assert_samples(opened(scan, tmp_path).load(0, ImageIndex()), truth(scan))
