"""`recon serve` in a process of its own, talked to by an independent client and by `recon send`, compared with `recon run`."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from kspace.io.mrd.images import read_images
from recon import cli
from recon.serve.store import ArchiveQueue
from tests.support import raw_files
from tests.support.archive import archive
from tests.support.reference_client import Answer, acquisition, config_file, converse, text
from tests.support.served import serving


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    raw_files.save(raw_files.mark_last(raw_files.plain(n_coils=3, n_slices=3)), path)
    return path


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server whose own method is SENSE."""
    with serving(tmp_path_factory.mktemp("spool"), "--method", "sense") as served:
        yield served.port


def readouts(scan: Path) -> list[bytes]:
    with ismrmrd.File(str(scan), "r") as file:
        return [acquisition(one) for one in file["dataset"].acquisitions]


def header(scan: Path) -> str:
    with ismrmrd.Dataset(str(scan), "dataset", False) as dataset:
        return str(dataset.read_xml_header().decode())


def talk(port: int, *messages: bytes, close: bool = True) -> Answer:
    return converse(("127.0.0.1", port), messages, close)


def numbers(answer: Answer) -> list[int]:
    return sorted(ismrmrd.ImageHeader.from_buffer_copy(head).image_index for head, _, _ in answer.images)


def test_the_reference_conversation(port: int, scan: Path) -> None:
    answer = talk(port, config_file("sense"), text(3, header(scan)), *readouts(scan))
    assert answer.closed
    assert numbers(answer) == [1, 2, 3]
    for head, attributes, pixels in answer.images:
        parsed = ismrmrd.ImageHeader.from_buffer_copy(head)
        assert (parsed.data_type, parsed.image_type, parsed.image_series_index) == (1, 1, 1)
        assert parsed.attribute_string_len == len(attributes.encode())
        meta = ismrmrd.Meta.deserialize(attributes)
        assert (meta["Keep_image_geometry"], meta["RescaleIntercept"]) == ("1", "0")
        assert pixels.shape == (1, 1, 30, 32)
        assert pixels.max() > 0
    assert not [line for line in answer.texts if line.startswith("ERROR")]


@pytest.mark.parametrize("config", [config_file("invertcontrast"), text(2, "<configuration/>")])
def test_an_unknown_configuration_is_said_and_marked(config: bytes, port: int, scan: Path) -> None:
    answer = talk(port, config, text(3, header(scan)), *readouts(scan))
    assert (len(answer.images), answer.closed) == (3, True)
    assert any(line.startswith("ERROR") and "server's own method, sense" in line for line in answer.texts)
    assert all("server's own method" in ismrmrd.Meta.deserialize(a)["ImageComment"] for _, a, _ in answer.images)


def test_parameters_after_the_header(port: int, scan: Path) -> None:
    wanted = text(5, json.dumps({"parameters": {"config": "rss", "customconfig": ""}}))
    answer = talk(port, config_file("openrecon"), text(3, header(scan)), wanted, *readouts(scan))
    assert (len(answer.images), answer.closed) == (3, True)
    assert all("rss" in ismrmrd.Meta.deserialize(a)["ImageProcessingHistory"] for _, a, _ in answer.images)


def test_parameters_that_break_the_schema_are_refused_and_the_raw_data_kept(port: int, scan: Path) -> None:
    wanted = text(5, json.dumps({"parameters": {"config": "sense", "weights": "/etc/passwd"}}))
    answer = talk(port, config_file("sense"), text(3, header(scan)), wanted, *readouts(scan))
    assert (answer.images, answer.closed) == ([], True)
    assert any("no parameter 'weights'" in line for line in answer.texts)


@pytest.mark.parametrize("name", ["null", "savedataonly"])
def test_configurations_that_ask_for_no_image(name: str, port: int, scan: Path) -> None:
    answer = talk(port, config_file(name), text(3, header(scan)), *readouts(scan))
    assert (answer.images, answer.closed) == ([], True)


def test_sessions_that_break_off_or_lack_parts_end(port: int, scan: Path) -> None:
    nothing = talk(port)
    assert nothing.closed
    no_header = talk(port, config_file("sense"))
    assert no_header.closed
    dummy = talk(port, config_file("sense"), text(3, "Dummy XML header"), *readouts(scan)[:3])
    assert dummy.closed
    assert any(line.startswith("ERROR") for line in dummy.texts)
    half = talk(port, config_file("sense"), text(3, header(scan)), *readouts(scan)[:35], close=False)
    assert numbers(half) == [1]


def test_recon_send_gets_the_images_of_recon_run_bit_for_bit(
    port: int, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.execute(["send", str(scan), f"127.0.0.1:{port}", "-o", str(tmp_path / "images.h5"), "--config", "tv"]) == 0
    assert "info: " in capsys.readouterr().err
    arguments = ["run", str(scan), "-o", str(tmp_path / "run"), "--method", "tv", "--format", "mrd"]
    assert cli.execute(arguments) == 0
    sent = sorted(read_images(tmp_path / "images.h5"), key=lambda one: one.number)
    written = read_images(tmp_path / "run" / "scan.mrd.h5")
    assert [one.number for one in sent] == [one.number for one in written] == [1, 2, 3]
    for one, other in zip(sent, written, strict=True):
        assert one.image.header.geometry == other.image.header.geometry
        assert one.image.header.central == other.image.header.central
        # Integers are rounded values on the scale that the attributes give.
        slope = float(one.meta["IntensitySlope"])
        stored = np.rint(other.image.data.numpy().astype(np.float64) / slope)
        np.testing.assert_array_equal(one.image.data.numpy(), stored)
        for name in ("ImageComment", "ImageProcessingHistory", "ImageType", "SeriesDescription", "ImageRowDir"):
            assert one.meta[name] == other.meta[name]


def test_an_archive_gets_the_scan_when_it_comes_up_even_after_the_server_went(scan: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    more = ["--method", "sense", "--store", f"ARCHIVE@127.0.0.1:{free}"]
    with serving(tmp_path, *more) as served:
        answer = talk(served.port, config_file("sense"), text(3, header(scan)), *readouts(scan))
    assert numbers(answer) == [1, 2, 3]
    with archive(free) as there:
        queue = ArchiveQueue(there.node, tmp_path / "archive", print)
        assert len(queue.waiting()) == 3
        assert queue.deliver()
        assert [ds.InstanceNumber for ds in there.stored] == [1, 2, 3]
        assert len({ds.SeriesInstanceUID for ds in there.stored}) == 1
