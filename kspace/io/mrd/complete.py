"""Which images of a scan are complete. A scan that was stopped half way leaves some that are not."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from kspace.container import ImageIndex
from kspace.io.mrd.flags import CALIBRATION, LAST
from kspace.io.mrd.header import Encoding
from kspace.io.mrd.sort import IMAGE_COUNTERS, ReadoutPlan

MOST_NAMED = 10_000  # absent images; beyond it the limits are nonsense


def find_incomplete(plan: ReadoutPlan, headers: np.ndarray, warnings: list[str]) -> list[tuple[ImageIndex, str]]:
    """Images that are announced or begun and not there, each with the reason, in order.

    Only an image that was under way when the scan ended can have been cut off. It is incomplete if its last readout is not
    marked as the last of anything, no other image was finished with just its lines, and the order of its lines is the
    beginning, and no more, of that of another image of the same contrast and set, or stops short of the header's limits.
    An acquisition that was cut off lacks its last lines in time: lines that are missing elsewhere are partial Fourier, which
    is added to `warnings`. Images of one scan may well differ in their lines: calibration in the first repetition only, other
    numbers of averages. An image is absent if the header's limits announce it and no readout belongs to it. `headers` are the
    acquisition headers ``(readout,)``.
    """
    reasons = dict.fromkeys(_absent(plan), f"no readouts; {plan.encoding.n_readouts} others are there")
    begun: dict[tuple[int, int], set[bytes]] = {}
    orders = {index: _order(headers, numbers) for index, numbers in plan.images.items()}
    for index, order in orders.items():
        begun.setdefault((index.contrast, index.set), set()).add(order)
    finished = {(index.contrast, index.set, orders[index]) for index in plan.images if not _under_way(plan, index)}
    for index, numbers in plan.images.items():
        order = orders[index]
        if (index.contrast, index.set, order) in finished or headers["flags"][numbers[-1]] & LAST:
            continue
        longer = [len(o) for o in begun[index.contrast, index.set] if len(o) > len(order) and o.startswith(order)]
        if longer:
            reasons[index] = f"the scan stopped after {len(numbers)} of its {max(longer) // 24} readouts"
        elif plan.encoding.has_trajectory:
            continue  # counters of spokes run as they like
        elif short := _short_of_limits(plan.encoding, headers, numbers, warnings):
            reasons[index] = f"the scan stopped after {len(numbers)} readouts of it: {short}"
    return sorted(reasons.items())


def _order(headers: np.ndarray, numbers: np.ndarray) -> bytes:
    """The lines of an image in order of acquisition, 24 bytes each."""
    idx = headers["idx"][numbers]
    names = ("kspace_encode_step_1", "kspace_encode_step_2", "average")
    return np.stack([idx[name].astype(np.int64) for name in names], axis=1).tobytes()


def _absent(plan: ReadoutPlan) -> list[ImageIndex]:
    limits = plan.encoding.limits
    ranges = []
    for name in IMAGE_COUNTERS:
        seen = {getattr(index, name) for index in plan.images}
        limit = limits.get(name)
        ranges.append(sorted(seen | set(range(limit.minimum, min(limit.maximum, 65535) + 1)) if limit is not None else seen))
    if prod(len(r) for r in ranges) > MOST_NAMED:
        return []
    return [index for index in (ImageIndex(*counters) for counters in product(*ranges)) if index not in plan.images]


def _under_way(plan: ReadoutPlan, index: ImageIndex) -> bool:
    """Whether the image was being acquired when the scan ended: with interleaved slices, all of the last round are."""
    numbers = plan.images[index]
    pace = (numbers[-1] - numbers[0]) / max(len(numbers) - 1, 1)
    return bool(plan.imaging[-1] - numbers[-1] <= 1.5 * pace)


def _short_of_limits(encoding: Encoding, headers: np.ndarray, numbers: np.ndarray, warnings: list[str]) -> str | None:
    """How far an acquisition stopped short of the header's limits; None where it did not, or nothing can be said.

    Only gapless lattices can be judged: of randomly undersampled k-space nobody knows what is missing.
    """
    lattice = numbers[(headers["flags"][numbers] & CALIBRATION) == 0]
    if not len(lattice):
        return None
    idx = headers["idx"][lattice]
    steps = [np.unique(idx[f"kspace_encode_step_{s}"].astype(np.int64)) for s in (1, 2)]
    for s, lines in zip((1, 2), steps, strict=True):
        limit = encoding.limits.get(f"kspace_encoding_step_{s}")
        spacing = max(1, round(encoding.acceleration[s - 1]))
        if limit is None or np.any(np.diff(lines) != spacing):
            continue
        below, above = lines[0] - spacing >= limit.minimum, lines[-1] + spacing <= limit.maximum
        if below or above:
            text = (
                f"kspace_encode_step_{s} runs from {lines[0]} to {lines[-1]}, the limits are {limit.minimum} to {limit.maximum}"
            )
            in_time, edges = idx[f"kspace_encode_step_{s}"], lines[[0, -1]]
            if any(_ends_at(edge, edges, in_time) for edge in edges[[below, above]]):
                return text
            sides = " and ".join(["before the first"] * int(below) + ["after the last"] * int(above))
            warnings.append(f"encoding {encoding.index}: {text}; the lines {sides} are taken for partial Fourier")
    # A 3-D scan that stopped within its last partition (or last line of partitions) has all others alike and full.
    for mine, other in ((1, 2), (2, 1)):
        counts = np.unique(idx[f"kspace_encode_step_{other}"], return_counts=True)[1]
        odd = np.flatnonzero(counts < len(steps[mine - 1]))
        if len(counts) > 1 and len(odd) == 1:
            return f"one kspace_encode_step_{other} has {counts[odd[0]]} of {len(steps[mine - 1])} lines"
    return None


def _ends_at(edge: np.int64, edges: np.ndarray, in_time: np.ndarray) -> bool:
    """Whether an acquisition had only just come to the line `edge` when it ended: nothing but the outermost lines, `edges`
    (two where it proceeds from the centre outwards), was acquired from then on."""
    return bool(np.isin(in_time[np.argmax(in_time == edge) :], edges).all())
