"""File name patterns with ``*``, ``?``, ``[...]`` and ``**``, for shells that left them as they are."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path


def is_pattern(text: str) -> bool:
    """Whether a path has wildcards."""
    return glob.has_magic(text)


def fixed_part(pattern: str) -> Path:
    """The folder in front of the first wildcard of an absolute pattern."""
    fixed = Path(pattern).anchor
    for part in Path(pattern).parts[1:-1]:
        if glob.has_magic(part):
            break
        fixed = os.path.join(fixed, part)
    return Path(fixed)


def expand(pattern: str) -> Iterator[str]:
    """The files that match, by name."""
    for found in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isfile(found):
            yield found
