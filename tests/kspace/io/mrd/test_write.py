"""Raw files must be what ISMRMRD's own library reads, and appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from kspace.errors import InputError
from kspace.io.mrd.flags import NUMBERS, flag
from kspace.io.mrd.write import HEAD_DTYPE, new_acquisition_headers, write_raw

XML = '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>'


def _scan(n: int = 5, n_coils: int = 3, n_samples: int = 7) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    headers = new_acquisition_headers(n, n_coils, n_samples, dwell_s=2.4e-6, position_m=(0.01, -0.02, 0.03), read_dir=(0, 1, 0))
    headers["idx"]["kspace_encode_step_1"] = np.arange(n)
    headers["flags"][0] |= flag("IS_NOISE_MEASUREMENT")
    samples = [(rng.standard_normal((n_coils, n_samples)) * (1 + 1j)).astype(np.complex64) for _ in range(n)]
    return headers, samples


def test_ismrmrd_reads_back_what_was_written(tmp_path: Path) -> None:
    headers, samples = _scan()
    headers["number_of_samples"][2], samples[2] = 4, samples[2][:, :4]  # readouts may differ in length
    write_raw(tmp_path / "scan.h5", XML, headers, samples)

    with ismrmrd.Dataset(str(tmp_path / "scan.h5"), mode="r") as dataset:
        assert dataset.read_xml_header() == XML.encode()
        assert dataset.number_of_acquisitions() == len(headers)
        for i, samples_i in enumerate(samples):
            acquisition = dataset.read_acquisition(i)
            np.testing.assert_array_equal(acquisition.data, samples_i)
            assert np.frombuffer(acquisition.getHead(), HEAD_DTYPE)[0] == headers[i]
        first = dataset.read_acquisition(0)
    assert first.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    assert first.sample_time_us == pytest.approx(2.4)
    assert list(first.position) == pytest.approx([10, -20, 30])
    assert list(first.read_dir) == [0, 1, 0]


def test_the_bulk_reader_of_ismrmrd_reads_it_too(tmp_path: Path) -> None:
    headers, samples = _scan()
    write_raw(tmp_path / "scan.h5", XML, headers, samples)
    with ismrmrd.File(str(tmp_path / "scan.h5"), "r") as file:
        acquisitions = file["dataset"].acquisitions[:]
    np.testing.assert_array_equal(np.stack([a.data for a in acquisitions]), np.stack(samples))


def test_layout_is_that_of_ismrmrd(tmp_path: Path) -> None:
    headers, samples = _scan()
    write_raw(tmp_path / "ours.h5", XML, headers, samples)
    with ismrmrd.Dataset(str(tmp_path / "theirs.h5")) as dataset:
        dataset.write_xml_header(XML)
        for head, readout in zip(headers, samples, strict=True):
            acquisition = ismrmrd.Acquisition.from_array(readout)
            acquisition.setHead(ismrmrd.AcquisitionHeader.from_buffer_copy(head.tobytes()))
            dataset.append_acquisition(acquisition)
    with h5py.File(tmp_path / "ours.h5", "r") as ours, h5py.File(tmp_path / "theirs.h5", "r") as theirs:
        for name in ("xml", "data"):
            a, b = ours["dataset"][name], theirs["dataset"][name]
            assert a.id.get_type().equal(b.id.get_type())
            assert (a.shape, a.maxshape) == (b.shape, b.maxshape)
        for a, b in zip(ours["dataset/data"][:], theirs["dataset/data"][:], strict=True):
            assert a["head"] == b["head"]
            np.testing.assert_array_equal(a["data"], b["data"])


def test_trajectories_are_kept(tmp_path: Path) -> None:
    headers, samples = _scan(n=2)
    headers["trajectory_dimensions"] = 2
    points = [np.arange(14, dtype=np.float32).reshape(7, 2) * (i + 1) for i in range(2)]
    write_raw(tmp_path / "scan.h5", XML, headers, samples, points)
    with ismrmrd.Dataset(str(tmp_path / "scan.h5"), mode="r") as dataset:
        np.testing.assert_array_equal(dataset.read_acquisition(1).traj, points[1])


def test_samples_that_contradict_their_headers_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    headers, samples = _scan()
    with pytest.raises(InputError, match=r"readout 3 has \(coil, sample\) \(2, 7\), its header says \(3, 7\)"):
        write_raw(tmp_path / "scan.h5", XML, headers, [*samples[:3], samples[3][:2], samples[4]])
    with pytest.raises(InputError, match="5 acquisition headers but 4 readouts"):
        write_raw(tmp_path / "scan.h5", XML, headers, samples[:4])
    headers["trajectory_dimensions"][1] = 2
    with pytest.raises(InputError, match="readout 1 has 0 trajectory values"):
        write_raw(tmp_path / "scan.h5", XML, headers, samples)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers, samples = _scan()
    write_raw(tmp_path / "scan.h5", XML, headers, samples)
    before = (tmp_path / "scan.h5").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(InputError, match=r"cannot write the raw file .*No space left"):
        write_raw(tmp_path / "scan.h5", XML, headers[:2], samples[:2])
    assert (tmp_path / "scan.h5").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scan.h5"]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    headers, samples = _scan()
    with pytest.raises(InputError, match=r"nowhere/scan.h5: cannot write the raw file .*; choose a writable folder"):
        write_raw(tmp_path / "nowhere" / "scan.h5", XML, headers, samples)


def test_flags_are_ismrmrds() -> None:
    assert len(NUMBERS) > 15
    assert {name: getattr(ismrmrd, f"ACQ_{name}") for name in NUMBERS} == NUMBERS
    assert flag("IS_REVERSE") == 1 << 21
