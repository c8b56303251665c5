"""Images of a scan in words, and selections of them as people write them: ``0,3-5``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from kspace.container import ImageIndex
from kspace.errors import InputError

NAMED = 4  # images that a line names before it counts


def parse_selection(text: str | None, available: Iterable[int], option: str) -> set[int]:
    """The numbers that `text` names, e.g. ``"0,3-5"``; all of `available` where `text` is None.

    Raises
    ------
    InputError
        If the text cannot be read, or names a number that is not available.
    """
    known = set(available)
    if text is None:
        return known
    chosen: set[int] = set()
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise InputError(f"'{text}' is no selection", option, "write numbers and ranges, e.g. 0,3-5")
        first, last = int(match[1]), int(match[2] or match[1])
        missing = [n for n in (first, last) if n not in known]
        if missing or last < first:
            there = f"{min(known)}-{max(known)}" if known else "none"
            raise InputError(f"'{part.strip()}' selects what is not there", option, f"the file has {there}")
        chosen |= known & set(range(first, last + 1))
    return chosen


def by_reason(incomplete: Iterable[tuple[ImageIndex, str]]) -> Iterator[str]:
    """A line for each reason: the first few images that have it, how many more there are, and the reason."""
    grouped: dict[str, list[ImageIndex]] = {}
    for index, reason in incomplete:
        grouped.setdefault(reason, []).append(index)
    for reason, indices in grouped.items():
        more = f" and {len(indices) - NAMED} more" if len(indices) > NAMED else ""
        yield f"{'; '.join(index.name for index in indices[:NAMED])}{more}: {reason}"
