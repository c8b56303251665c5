"""A file has its name when it is complete, and not before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kspace.errors import InputError
from kspace.io.atomic import atomic_write


def test_the_file_appears_at_the_end_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path, make_folder=True) as beside:
        beside.write_text("all of it")
        assert not path.exists()
        assert beside.parent == path.parent
    assert path.read_text() == "all of it"
    assert list(path.parent.iterdir()) == [path]


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
