"""Fair baselines: regularisation weights chosen on slices that are not reported, and how far the iterations have come."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.io.checksums import sha256
from recon.compare.cases import Case, FullVolume, spread
from recon.compare.holding import NoiseLevel
from recon.compare.methods import CLASSICAL, ComparedMethod, call
from recon.compare.metrics import is_better, slice_figure
from recon.methods.classical import CgSense, L1Wavelet, Reconstructor, TotalVariation, weight_of

STEPS_PER_DECADE = 3
REACH = 3  # steps of the grid on either side of the default
FURTHER = 4  # steps on top of that, one by one, while the best weight is the outermost
BEYOND = 3  # times the iteration at which a method stops, for the curve of its convergence
POINTS = 16  # of that curve
MATRIX_FACTOR = 1.25  # by which data to tune on may differ from those reported
NOISE_FACTOR = 2.0


@dataclass(frozen=True, eq=False)
class TuningSlice:
    """A slice that weights are chosen on."""

    volume: FullVolume
    number: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.volume.name} slice {self.number}"


def tuning_slices(volumes: Sequence[FullVolume], n: int) -> list[TuningSlice]:
    """About `n` slices, spread over the volumes and within them."""
    if n < 1:
        raise InputError(f"{n} slices to tune on", "--tune-slices", "give 1 or more")
    chosen = spread(volumes, n)
    counts = [n // len(chosen) + (i < n % len(chosen)) for i in range(len(chosen))]
    return [TuningSlice(volume, i) for volume, count in zip(chosen, counts, strict=True) for i in volume.slices(count)]


def check_apart(tuning: Sequence[FullVolume], reported: Sequence[FullVolume]) -> None:
    """Refuse to tune on what is reported: no file of one name, and none of one content.

    Raises
    ------
    InputError
        If they overlap.
    """
    fix = "tune on other volumes, or the baselines know the answers"
    names = {volume.path.name for volume in reported}
    if same := [volume.path for volume in tuning if volume.path.name in names]:
        raise InputError(f"{same[0].name} is reported too", "--tune-on", fix)
    sizes: dict[int, set[Path]] = {}
    for volume in reported:
        sizes.setdefault(volume.path.stat().st_size, set()).add(volume.path)
    for volume in tuning:
        for other in sizes.get(volume.path.stat().st_size, set()):  # files of other lengths have other contents
            if sha256(volume.path) == sha256(other):
                raise InputError(f"{volume.path.name} holds the same as {other.name}, which is reported", "--tune-on", fix)


def at_edge(tuning: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every tuned weight that is the outermost of its grid: the best may lie beyond."""
    return [
        f"{entry['method']} under {entry['mask']}: the best weight, {entry['chosen']:g}, lies at the edge of the grid"
        for entry in tuning
        if entry["at_edge"]
    ]


def unlike(tuned: Sequence[TuningSlice], volumes: Sequence[FullVolume]) -> list[str]:
    """Sentences that say in what the data to tune on differ from those that are reported, matrix and noise.

    The noise is that of a sample over the largest pixel of the coil-combined image, where it is known; factors of
    `MATRIX_FACTOR` and `NOISE_FACTOR` count as different.
    """
    own = [_measured(s.volume.plane(s.number)) for s in tuned]
    found = []
    for volume in volumes:
        points, noise = _measured(volume.plane(volume.slices(1)[0]))
        matrices = [p for p, _ in own]
        if not any(_alike(matrix, points, MATRIX_FACTOR) for matrix in matrices):
            said = ", ".join(sorted({f"{ky} x {kx}" for ky, kx in matrices}))
            found.append(f"{volume.name} has a matrix of {points[0]} x {points[1]}; tuned on {said}")
        levels = [level for _, level in own if level is not None]
        if noise is not None and levels and not any(_alike((level,), (noise,), NOISE_FACTOR) for level in levels):
            said = f"{min(levels):.2g} to {max(levels):.2g}"
            found.append(f"{volume.name} has noise of {noise:.2g} of its brightest pixel; tuned on {said}")
    return found


def _measured(k: KSpace) -> tuple[tuple[int, int], float | None]:
    level = NoiseLevel.of(k)
    peak = float(ifft(k.data).abs().square().sum(-3).amax()) ** 0.5
    noise = None if level.variance is None or peak == 0 else float(level.variance.mean()) ** 0.5 / peak
    return (k.data.shape[-2], k.data.shape[-1]), noise


def _alike(a: Sequence[float], b: Sequence[float], factor: float) -> bool:
    return all(max(x, y) <= factor * min(x, y) for x, y in zip(a, b, strict=True))


def search(method: ComparedMethod, cases: Sequence[Case], metric: str) -> dict[str, Any]:
    """The best weight of a logarithmic grid around the default, which grows while the best is at its edge."""
    default = method.weight
    assert default is not None
    centre = default if default > 0 else 1e-3
    scores: dict[int, float | None] = {}

    def look(step: int) -> None:
        scores[step] = _score(method.at(centre * 10 ** (step / STEPS_PER_DECADE)), cases, metric)

    for step in range(-REACH, REACH + 1):
        look(step)
    while (best := _best(scores, metric)) in (low := min(scores), high := max(scores)) and high - low < 2 * REACH + FURTHER:
        look(best - 1 if best == low else best + 1)
    steps = sorted(scores)
    return {
        "method": method.name,
        "metric": metric,
        "weights": [_rounded(centre * 10 ** (step / STEPS_PER_DECADE)) for step in steps],
        "values": [scores[step] for step in steps],
        "default": default,
        "chosen": _rounded(centre * 10 ** (best / STEPS_PER_DECADE)),
        "at_edge": best in (steps[0], steps[-1]),
    }


def _score(reconstruct: Reconstructor, cases: Sequence[Case], metric: str) -> float | None:
    """Mean of the metric over the slices; None where the method fails or the value is not finite."""
    try:
        values = [slice_figure(metric, case.truth, case.deliver(call(reconstruct, case.y, case.op))) for case in cases]
    except (ValueError, ArithmeticError, RuntimeError):  # with this weight; others may do
        return None
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None


def _best(scores: dict[int, float | None], metric: str) -> int:
    """The step with the best score; the default's where all failed."""
    best, value = 0, scores[0]
    for step, score in scores.items():
        if score is not None and (value is None or is_better(metric, score, value)):
            best, value = step, score
    return best


def converge(method: ComparedMethod, mask: str, case: Case, metric: str) -> dict[str, Any] | None:
    """Metric and relative change of the image against iterations, up to `BEYOND` times where the method's own rule stops,
    or until nothing is left to solve.

    None for methods that are not ours, or do not iterate.
    """
    reconstruct = method.under(mask)
    if method.family != CLASSICAL or not isinstance(reconstruct, CgSense | L1Wavelet | TotalVariation):
        return None
    from recon.methods.solvers import Planes

    quadratic = isinstance(reconstruct, CgSense)
    plane = Planes.of(case.y.unsqueeze(0), case.op.flattened((1,)), relative=not quadratic)
    if plane.scale == 0:
        return None
    stop = [0]
    tolerance = float(reconstruct.stop(plane.op, plane.noise) if isinstance(reconstruct, CgSense) else reconstruct.tolerance)
    _solve(reconstruct, plane, reconstruct.iterations, tolerance, lambda n, _: stop.__setitem__(0, n))
    last = max(BEYOND * stop[0], 2)
    wanted = {round(last ** (i / (POINTS - 1))) for i in range(POINTS)} | {stop[0]}
    curve: list[tuple[int, float, float]] = []
    support = plane.op.support  # outside, iterates wander, and are cut off at the end
    before = [torch.zeros_like(plane.rhs) if isinstance(reconstruct, CgSense) else plane.rhs * support]

    def watch(n: int, x: Tensor) -> None:
        x = x * support
        if n in wanted:
            change = torch.linalg.vector_norm(x - before[0]) / torch.linalg.vector_norm(x).clamp(min=1e-30)
            curve.append((n, slice_figure(metric, case.truth, case.deliver(plane.finish(x)[0])), float(change)))
        if n + 1 in wanted:
            before[0] = x

    _solve(reconstruct, plane, last, 0.0, watch)
    return {
        "method": method.name,
        "mask": mask,
        "metric": metric,
        "iterations": [n for n, _, _ in curve],
        "values": [value if math.isfinite(value) else None for _, value, _ in curve],
        "relative_change": [change for _, _, change in curve],
        "stop": stop[0],
        "tolerance": tolerance,
    }


def _solve(
    method: CgSense | L1Wavelet | TotalVariation,
    plane: Any,
    iterations: int,
    tolerance: float,
    watch: Callable[[int, Tensor], None],
) -> None:
    from recon.methods import solvers

    if isinstance(method, CgSense):
        solvers.least_squares(plane, method.lamda, iterations, tolerance, watch)
    else:
        weight = weight_of(method.lamda, plane.op)
        solvers.sparse(plane, method.regulariser(plane.shape), weight, iterations, tolerance, watch)


def _rounded(weight: float) -> float:
    return float(f"{weight:.4g}")
