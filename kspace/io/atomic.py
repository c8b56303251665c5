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
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{failed} ({error.strerror or error})", path, fix) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
