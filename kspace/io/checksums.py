"""Checksums of files."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path


def sha256(path: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
