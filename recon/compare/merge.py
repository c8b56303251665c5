"""Rows of earlier comparisons beside new ones, where they were made under the very same masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kspace.errors import InputError
from recon.compare import store
from recon.compare.methods import BART, BARTS, CLASSICAL, GENERATOR
from recon.compare.store import MaskedVolume, VolumeRow
from recon.methods import classical


def read_merged(files: Sequence[Path], groups: Sequence[MaskedVolume]) -> list[VolumeRow]:
    """The rows of earlier ``results.csv`` files, if they may stand beside those of `groups`.

    Raises
    ------
    InputError
        If a volume was measured under another drawing of the same mask.
    """
    known = {group.key: (group.digest, "this comparison") for group in groups}
    found = []
    for path in files:
        for row in store.read_results(path):
            digest, where = known.setdefault(row.group.key, (row.digest, str(path)))
            if digest != row.digest:
                raise InputError(
                    f"{row.volume} under {row.mask} has mask digest {row.digest[:12]}, in {where} {digest[:12]}: "
                    "other samples, so the rows cannot be compared",
                    path,
                    "leave the file out, or run it again with the same masks",
                )
            found.append(row)
    return found


def join(ours: Sequence[VolumeRow], merged: Sequence[VolumeRow]) -> list[VolumeRow]:
    """All rows, each volume, mask and method once: ours first, then those of the files in their order.

    Raises
    ------
    InputError
        If two rows of a volume and mask are means over different numbers of slices.
    """
    found: dict[tuple[MaskedVolume, str], VolumeRow] = {}
    slices: dict[MaskedVolume, int] = {}
    for row in (*ours, *merged):
        if slices.setdefault(row.group, row.n_slices) != row.n_slices:
            counts = f"{slices[row.group]} slices and, by {row.label}, on {row.n_slices}"
            raise InputError(
                f"{row.volume} under {row.mask} was measured on {counts}",
                "--merge",
                "leave the file out, or measure the same slices",
            )
        found.setdefault((row.group, row.method), row)
    order = {group: i for i, group in enumerate(dict.fromkeys(row.group for row in found.values()))}
    return sorted(found.values(), key=lambda row: order[row.group])


def methods_of(rows: Sequence[VolumeRow], files: Sequence[Path], known: Sequence[str]) -> list[dict[str, Any]]:
    """What `compare.json` says of the methods of merged rows that are not `known`: what theirs said, as far as it is there."""
    said: dict[str, dict[str, Any]] = {}
    for path in files:
        summary = store.read_summary(path if path.is_dir() else path.parent) or {"methods": []}
        for method in summary["methods"]:
            said.setdefault(method["name"], method | {"merged_from": str(path)})
    found = {}
    for row in rows:
        if row.method not in known:
            plain: dict[str, Any] = {"name": row.method, "label": row.label, "family": _family(row.method), "details": {}}
            plain |= {"weights_sha256": None, "options": {}, "tuned": {}, "outside": {}, "fits": {}}
            found[row.method] = said.get(row.method, plain)
    return list(found.values())


def _family(name: str) -> str:
    return CLASSICAL if name in classical.METHODS else BART if name in BARTS else GENERATOR
