"""Atomic file writes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kspace.errors import InputError


@contextmanager
def atomic_write(
    path: Path,
    failed: str = "cannot write",
    fix: str = "choose a writable folder with free space",
    make_folder: bool = False,
) -> Iterator[Path]:
    """Write to a temporary file and rename it to `path` on success.

    The content is on the disk before the name is, so that after a power cut the file is either whole or absent.

    Parameters
    ----------
    path
        The file; one of that name is replaced.
    failed, fix
        What the error says.
    make_folder
        Make the folder where it is missing.

    Yields
    ------
    Path
        The temporary file, in the folder of `path`.

    Raises
    ------
    InputError
        For every `OSError` in the block; no half-written file is left.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{failed} ({error.strerror or error})", path, fix) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or all files of a folder and its subfolders, to the disk.

    Raises
    ------
    OSError
        If the disk cannot take it (full, failing).
    """
    if not path.is_dir():
        _fsync(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            _fsync(Path(folder) / name)
        sync_folder(Path(folder))


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk. Some network file systems cannot; the names are theirs to keep then."""
    with suppress(OSError):
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
