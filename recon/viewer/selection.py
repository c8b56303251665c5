"""Which slices the page holds, and how finely: as many as fit, spread over all volumes."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recon.viewer.planes import Quantisation, encode, encode_mask, text

BITS = (12, 11, 10)
"""Bits of a code, tried in this order: fewer bits before fewer slices, but not fewer than these."""
PROBES = 6
"""Slices from which the size of all is estimated."""
REFERENCE = 24
"""Characters, at most, with which the page names the block of a plane."""

Encoded = tuple[tuple[str, int, str], str, str]
"""(file, slice, series) of a plane, name and content of its block."""


class ViewedImages(Protocol):
    """Images of one volume under one mask, as the viewer needs them; `recon.report.comparison.ImageFile` tells more of each.

    `maps` names the series that are not images but maps in the units of the image, ``signed`` or ``magnitude``: they have a
    colour scale of their own, and the largest value of all of them, `map_reference`, as the range of their codes. `more` is
    for the scripts: ``letters`` (left, right, top, bottom), and what a page needs.
    """

    @property
    def key(self) -> str:
        """A name that no other file of the page has."""

    @property
    def dataset(self) -> str:
        """Data set."""

    @property
    def volume(self) -> str:
        """Volume."""

    @property
    def mask(self) -> str:
        """Mask."""

    @property
    def planes(self) -> dict[int, int]:
        """Number of each slice to its place."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the series, without the truth."""

    @property
    def series(self) -> tuple[str, ...]:
        """Names of all series."""

    @property
    def shape(self) -> tuple[int, int]:
        """Points ``(y, x)``."""

    @property
    def has_truth(self) -> bool:
        """Whether there is a reference."""

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Boxes ``(n 6)``."""

    @property
    def transposed(self) -> bool:
        """Whether x runs down the screen."""

    @property
    def maps(self) -> dict[str, str]:
        """Kind of each series that is a map."""

    @property
    def map_reference(self) -> float:
        """Largest value of the maps."""

    @property
    def more(self) -> dict[str, Any]:
        """Further entries for the scripts."""

    def read(self, series: str, number: int | None = None) -> NDArray[np.float32]:
        """The slices ``(slice y x)``, or one slice ``(y x)``, of a series."""

    def sampling(self) -> NDArray[np.bool_] | None:
        """The sampling mask ``(ky kx)``, if it is known."""


@dataclass(frozen=True)
class VolumeImages:
    """The images of one volume under every mask."""

    files: tuple[ViewedImages, ...]
    reference: float
    bright: float

    @property
    def slices(self) -> tuple[int, ...]:
        """Numbers of all planes."""
        return tuple(sorted({s for file in self.files for s in file.planes}))


@dataclass
class PageImages:
    """What the page holds of the images.

    Attributes
    ----------
    bits
        Bits of a code.
    blocks
        Contents in base64 by name; equal contents (the truth under several masks) are held once.
    planes
        Name of the block by (file, slice, series).
    sampling
        Name of the block and shape of the mask, by file.
    n_slices, n_total
        Slices held, and slices there are, over all volumes.
    """

    bits: int
    blocks: dict[str, str] = field(default_factory=dict)
    planes: dict[tuple[str, int, str], str] = field(default_factory=dict)
    sampling: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    n_slices: int = 0
    n_total: int = 0


def volumes(images: Sequence[ViewedImages]) -> list[VolumeImages]:
    """Gather the files of each volume; their range is that of the truth, or of the methods where there is none."""
    groups: dict[tuple[str, str], list[ViewedImages]] = {}
    for file in images:
        groups.setdefault((file.dataset, file.volume), []).append(file)
    return [VolumeImages(tuple(files), *_range(files)) for files in groups.values()]


def _range(files: Sequence[ViewedImages]) -> tuple[float, float]:
    """The largest value, and the one that is shown white (99.5th percentile)."""
    with_truth = [f for f in files if f.has_truth][:1]
    images = [name for name in files[0].methods if name not in files[0].maps]
    found = [with_truth[0].read("truth")] if with_truth else [files[0].read(name) for name in images]
    finite = [x[np.isfinite(x)] for x in found]
    tops = [(float(x.max()), float(np.percentile(x, 99.5))) for x in finite if x.size and x.max() > 0]
    if not tops:
        return 1.0, 1.0
    # The median over the methods: one that diverged must not darken the others.
    top, bright = (float(np.median(column)) for column in zip(*tops, strict=True))
    return top, bright if bright > 0 else top


def spread(n: int) -> list[int]:
    """The numbers below `n`, the middle one first, each further one far from those before it."""
    order: list[int] = []
    level = 1
    while len(order) < n:
        order += [k for k in dict.fromkeys(int((2 * i + 1) / 2**level * n) for i in range(2 ** (level - 1))) if k not in order]
        level += 1
    return order


def in_turn(found: Sequence[VolumeImages]) -> list[tuple[VolumeImages, int]]:
    """Slices in the order of their importance: one of each volume, then a second of each, ..."""
    queues = [[(volume, volume.slices[k]) for k in spread(len(volume.slices))] for volume in found]
    longest = max((len(q) for q in queues), default=0)
    return [q[i] for i in range(longest) for q in queues if i < len(q)]


def hold(found: Sequence[VolumeImages], budget: int) -> PageImages:
    """Choose bits and slices so that all blocks together have at most `budget` characters."""
    order = in_turn(found)
    held = PageImages(_choose_bits(order, budget), n_total=len(order))
    used = 0
    for volume, number in order:
        new = _encoded(volume, number, held.bits)
        size = _size(new, held.blocks)
        if used + size > budget:
            break
        used += size
        held.n_slices += 1
        held.blocks |= {key: block for _, key, block in new}
        held.planes |= {place: key for place, key, _ in new}
    _hold_sampling(held, found, budget - used)
    return held


def _choose_bits(order: Sequence[tuple[VolumeImages, int]], budget: int) -> int:
    """The most bits with which all slices are likely to fit, judged by a few of them."""
    probes = [order[i] for i in np.linspace(0, len(order) - 1, min(PROBES, len(order))).astype(int)]
    for bits in BITS:
        sizes = [_size(_encoded(volume, number, bits)) for volume, number in probes]
        if not sizes or 1.05 * float(np.mean(sizes)) * len(order) <= budget:
            return bits
    return BITS[-1]


def _size(planes: Sequence[Encoded], there: Container[str] = ()) -> int:
    """Characters that planes take in the page, less the blocks that it holds already."""
    blocks = {key: block for _, key, block in planes if key not in there}
    return sum(len(wrap(key, block)) for key, block in blocks.items()) + REFERENCE * len(planes)


def _encoded(volume: VolumeImages, number: int, bits: int) -> list[Encoded]:
    """Place, name and content of every plane of a slice."""
    return [
        ((file.key, number, series), *_named(encode(_scale(volume, file, series, bits).codes(file.read(series, number)))))
        for file in volume.files
        if number in file.planes
        for series in file.series
    ]


def _scale(volume: VolumeImages, file: ViewedImages, series: str, bits: int) -> Quantisation:
    if series in file.maps:
        return Quantisation(file.map_reference, bits, signed=file.maps[series] == "signed")
    return Quantisation(volume.reference, bits)


def _named(block: bytes) -> tuple[str, str]:
    return hashlib.sha256(block).hexdigest()[:16], text(block)


def wrap(key: str, content: str) -> str:
    """A block as an element of the page that the browser neither runs nor shows."""
    return f'<script type="text/plain" id="b{key}">{content}</script>\n'


def _hold_sampling(held: PageImages, found: Sequence[VolumeImages], budget: int) -> None:
    """Masks are small; those that do not fit any more are left out."""
    for file in (file for volume in found for file in volume.files):
        mask = file.sampling()
        if mask is None:
            continue
        key, block = _named(encode_mask(mask))
        size = 0 if key in held.blocks else len(wrap(key, block))
        if size <= budget:
            budget -= size
            held.blocks[key] = block
            held.sampling[file.key] = (key, (int(mask.shape[0]), int(mask.shape[1])))


def describe(found: Sequence[VolumeImages], held: PageImages) -> dict[str, Any]:
    """What the viewer must know, as JSON."""
    files = [_describe_file(volume, file, held) for volume in found for file in volume.files]
    return {"bits": held.bits, "held": held.n_slices, "total": held.n_total, "files": files}


def _describe_file(volume: VolumeImages, file: ViewedImages, held: PageImages) -> dict[str, Any]:
    scale = Quantisation(volume.reference, held.bits)
    name = file.key
    numbers = [s for s in sorted(file.planes) if (name, s, file.series[0]) in held.planes]
    return {
        "dataset": file.dataset,
        "volume": file.volume,
        "mask": file.mask,
        "shape": file.shape,
        "step": scale.step,
        "reference": scale.reference,
        "bright": volume.bright / scale.reference,
        "truth": file.has_truth,
        "transposed": file.transposed,
        "methods": file.methods,
        "n_slices": len(file.planes),
        "slices": numbers,
        "planes": [[held.planes[name, s, m] for m in file.series] for s in numbers],
        "boxes": [[float(v) for v in box] for box in file.boxes],
        "sampling": held.sampling.get(name),
        "maps": file.maps,
        "scales": {series: _scale(volume, file, series, held.bits).for_page for series in file.maps},
        **file.more,
    }
