"""`recon info`: summary of raw files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from kspace.errors import InputError
from recon.run.input import Source, open_source


def info(inputs: list[Path]) -> int:
    """Summarise raw files: matrix, coils, acceleration, slices, noise, warnings. Reads headers only.

    Parameters
    ----------
    inputs
        ISMRMRD HDF5, fastMRI HDF5 or Siemens twix (.dat) files.

    Returns
    -------
    int
        0, or 2 if a file could not be read; the others are still described.
    """
    failed = 0
    for path in inputs:
        try:
            print("\n".join(describe(path)))
        except InputError as error:
            if len(inputs) == 1:
                raise
            print(f"recon: error: {error}", file=sys.stderr, flush=True)
            failed += 1
    return 2 if failed else 0


def describe(path: Path) -> Iterator[str]:
    """Describe one file, line by line.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with open_source(path) as source:
        yield from describe_source(source)


def describe_source(source: Source) -> Iterator[str]:
    """Describe an open file, line by line."""
    yield f"{source.path}: {source.kind}"
    yield from source.describe()
    for message in source.warnings:
        yield f"  warning: {message}"
