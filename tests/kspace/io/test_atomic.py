"""A file has its name when it is complete, and not before."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from recon.output.export import export
from tests.support.exports import make_image, make_record


def test_the_file_appears_at_the_end_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path, make_folder=True) as beside:
        beside.write_text("all of it")
        assert not path.exists()
        assert beside.parent == path.parent
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


def recorded(monkeypatch: pytest.MonkeyPatch, *moves: str) -> list[str]:
    """The names of what is flushed and moved, in the order of the calls."""
    calls: list[str] = []
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def move(source: str | Path, target: str | Path, real: Callable[..., None] = os.rename) -> None:
        calls.append(f"move {Path(source).name} {Path(target).name}")
        real(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    for name in moves:
        monkeypatch.setattr(os, name, move)
    return calls


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "replace")
    with atomic_write(tmp_path / "a.txt") as beside:
        beside.write_text("all of it")
    assert calls == [f"fsync {beside.name}", f"move {beside.name} a.txt", f"fsync {tmp_path.name}"]


def test_results_are_on_the_disk_before_their_names_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "rename")
    export([make_image()], make_record(), tmp_path, "scan", ("mrd", "dicom"))
    first_move = next(i for i, call in enumerate(calls) if call.startswith("move"))
    files = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {f"fsync {name}" for name in (*files, "scan_dicom")} <= set(calls[:first_move])
    assert calls[-1] == f"fsync {tmp_path.name}"


def test_a_file_system_that_cannot_flush_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_write(tmp_path / "a.txt") as beside:
        beside.write_text("all of it")
    assert (tmp_path / "a.txt").read_text() == "all of it"


@pytest.mark.parametrize("what", [ValueError("no"), KeyboardInterrupt()])
def test_what_ends_the_writing_leaves_what_was_there(tmp_path: Path, what: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def stop() -> None:
        with atomic_write(path) as beside:
            beside.write_text("half")
            raise what

    with pytest.raises(type(what)):
        stop()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def fill() -> None:
        with atomic_write(path, "it cannot be kept", "make room"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"it cannot be kept \(No space left on device\)") as error:
        fill()
    assert str(path) in str(error.value)
    assert "make room" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make_folder", [False, True])
def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path, make_folder: bool) -> None:
    (tmp_path / "a").write_text("")

    def write() -> None:
        with atomic_write(tmp_path / "a" / "b.txt", make_folder=make_folder) as beside:
            beside.write_text("never")

    with pytest.raises(InputError, match="cannot write"):
        write()
    assert (tmp_path / "a").read_text() == ""


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as one, atomic_write(path) as other:
        one.write_text("1")
        other.write_text("2")
    assert path.read_text() == "1", "the outer one came last"
