"""DICOM delivery to pynetdicom's own storage provider on the loopback address: down, refusing, full, rejecting, slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE

from kspace.errors import InputError
from recon import cli
from recon.output.export import export
from recon.run.pipeline import Result
from recon.serve.store import ArchiveQueue, Node, enqueue, enqueue_files, parse_node
from tests.support.archive import archive
from tests.support.exports import make_image, make_record

# pynetdicom leaves it to the garbage collector to close the socket of a failed connection.
pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket fd=:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def results(n: int = 3) -> list[Result]:
    from kspace.container import ImageIndex

    images = [make_image((1, 10, 12), position_mm=(0, 0, 5.0 * s), index=ImageIndex(slice=s)) for s in range(n)]
    return [Result("scan", images, make_record())]


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_images_arrive_as_they_were_written(tmp_path: Path) -> None:
    lines: list[str] = []
    with archive() as there:
        folder = enqueue(results(), tmp_path)
        assert folder is not None
        written = {ds.SOPInstanceUID: ds for ds in map(dcmread, sorted(folder.rglob("*.dcm")))}
        delivery = ArchiveQueue(there.node, tmp_path, lines.append)
        assert len(delivery.waiting()) == 3
        assert delivery.deliver()
        assert there.uids == list(written)
        for ds in there.stored:
            assert ds.to_json_dict() == written[ds.SOPInstanceUID].to_json_dict()
    assert list(tmp_path.iterdir()) == []
    assert len(lines) == 1
    assert "3 images taken" in lines[0]


def test_an_archive_that_takes_implicit_encoding_only(tmp_path: Path) -> None:
    with archive(syntaxes=ImplicitVRLittleEndian) as there:
        enqueue(results(2), tmp_path)
        assert ArchiveQueue(there.node, tmp_path, print).deliver()
        assert [ds.file_meta.TransferSyntaxUID for ds in there.stored] == [ImplicitVRLittleEndian] * 2


def test_archive_down_then_up_loses_nothing(tmp_path: Path, port: int) -> None:
    lines: list[str] = []
    delivery = ArchiveQueue(Node("ARCHIVE", "127.0.0.1", port), tmp_path, lines.append, pauses_s=(0.05, 0.1))
    delivery.start()
    try:
        enqueue(results(), tmp_path)
        until(lambda: len(lines) >= 3)
        assert "no connection; 3 images wait" in lines[0]
        assert "next try in 0.05 s" in lines[0]
        assert "next try in 0.1 s" in lines[2]
        assert len(delivery.waiting()) == 3
        with archive(port) as there:
            until(lambda: len(there.stored) == 3)
            until(lambda: not delivery.waiting())
            enqueue(results(1), tmp_path)
            delivery.wake()
            until(lambda: len(there.stored) == 4)
    finally:
        delivery.stop()
    assert len(set(there.uids)) == 4


def test_what_waits_at_the_start_is_sent(tmp_path: Path, port: int) -> None:
    enqueue(results(), tmp_path)
    (tmp_path / ".00001-half.part").mkdir()  # of a process that was killed while it wrote
    (tmp_path / ".00001-half.part" / "a.dcm").write_bytes(b"half")
    assert not ArchiveQueue(Node("ARCHIVE", "127.0.0.1", port), tmp_path, lambda line: None).deliver()
    with archive() as there:
        assert ArchiveQueue(there.node, tmp_path, lambda line: None).deliver()
        assert len(there.stored) == 3


def test_association_refused_is_one_line(tmp_path: Path) -> None:
    lines: list[str] = []
    with archive(title="OTHER") as there:
        enqueue(results(), tmp_path)
        delivery = ArchiveQueue(there.node, tmp_path, lines.append)
        assert not delivery.deliver()
        assert len(delivery.waiting()) == 3
    (line,) = lines
    assert "association refused (Called AE title not recognised)" in line
    assert "3 images wait" in line
    assert "\n" not in line


def test_an_archive_without_mr_storage(tmp_path: Path) -> None:
    lines: list[str] = []
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        enqueue(results(1), tmp_path)
        delivery = ArchiveQueue(Node("ARCHIVE", "127.0.0.1", server.server_address[1]), tmp_path, lines.append)
        assert not delivery.deliver()
    finally:
        server.shutdown()
    assert len(delivery.waiting()) == 1
    assert len(lines) == 1


def test_out_of_resources_is_tried_again_and_a_rejected_image_is_kept_apart(tmp_path: Path) -> None:
    lines: list[str] = []
    with archive(statuses=(0, 0xA700, 0xA900, 0, 0xB000)) as there:
        enqueue(results(4), tmp_path)
        delivery = ArchiveQueue(there.node, tmp_path, lines.append)
        assert not delivery.deliver()
        assert "status A700; 3 images wait" in lines[-1]
        assert delivery.deliver()
    assert len(there.stored) == 2  # B000 is stored by a real archive; this one returns before it keeps it
    assert delivery.waiting() == []
    assert len(delivery.rejected()) == 1
    assert any("rejected: status A900" in line for line in lines)
    assert dcmread(delivery.rejected()[0]).Modality == "MR"


def test_a_damaged_file_does_not_hold_the_others_up(tmp_path: Path) -> None:
    folder = enqueue(results(2), tmp_path)
    assert folder is not None
    (folder / "0" / "000.dcm").write_bytes(b"not DICOM")
    with archive() as there:
        delivery = ArchiveQueue(there.node, tmp_path, lambda line: None)
        assert delivery.deliver()
        assert len(there.stored) == 2
    assert [path.name for path in delivery.rejected()] == ["000.dcm"]


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        enqueue(results(1), tmp_path)
        node = Node("ARCHIVE", "127.0.0.1", listener.getsockname()[1])
        delivery = ArchiveQueue(node, tmp_path, lines.append, timeout_s=0.5)
        started = time.monotonic()
        assert not delivery.deliver()
        assert time.monotonic() - started < 10
    assert len(delivery.waiting()) == 1


def test_the_spool_is_filled_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recon.output.dicom

    def fail(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recon.output.dicom.pydicom, "dcmwrite", fail)
    with pytest.raises(OSError, match="No space"):
        enqueue(results(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert enqueue([Result("scan", [], make_record())], tmp_path) is None
    with pytest.raises(OSError, match="missing"):
        enqueue_files([tmp_path / "missing.dcm"], tmp_path / "spool")
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_command(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("recon.commands.scanner.store.PAUSES_S", (0.01, 0.02))
    export(results()[0].images, make_record(), tmp_path / "out", "scan", ("dicom",))
    folder = str(tmp_path / "out" / "scan_dicom")
    assert cli.execute(["store", f"ARCHIVE@127.0.0.1:{port}", folder]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 images were not sent, 0 rejected (no connection" in error
    assert cli.execute(["store", f"ARCHIVE@127.0.0.1:{port}", folder, "--spool", str(tmp_path / "spool")]) == 2
    assert f"they wait in {tmp_path / 'spool'}" in capsys.readouterr().err
    with archive() as there:
        assert cli.execute(["store", str(there.node), folder]) == 0
        assert capsys.readouterr().out == f"3 images taken by {there.node}\n"
        assert len(there.stored) == 3
        assert ArchiveQueue(there.node, tmp_path / "spool", lambda line: None).deliver()
        assert len(there.stored) == 6
    assert cli.execute(["store", "ARCHIVE@127.0.0.1:104", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "ARCHIVE", "ARCHIVE@host", "@host:104", "A" * 17 + "@host:104", "A@host:x", "A\\B@h:1"])
def test_nodes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="no DICOM node"):
        parse_node(text)


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    delivery = ArchiveQueue(Node("ARCHIVE", "127.0.0.1", 1), tmp_path, lambda line: None)
    delivery.start()
    delivery.stop()
    until(lambda: threading.active_count() == before)
