"""What the metrics of volumes prove: confidence intervals, and a paired test against the best classical method.

Volumes are the unit: slices of one head are no independent observations. Below `ENOUGH` volumes intervals are Student's
(Student 1908, doi:10.1093/biomet/6.1.1), on the differences by volume where two methods are compared: percentile intervals of
the bootstrap are too narrow there (over 6 volumes they cover 87 %, not 95 %). From then on they are percentile intervals of the
paired bootstrap (Efron and Tibshirani 1993, doi:10.1007/978-1-4899-4541-9): volumes are drawn with replacement, the same ones
for every method. The test is Wilcoxon's signed-rank test (Wilcoxon 1945, doi:10.2307/3001968), two-sided, on the differences by
volume; its p-values are corrected for the number of comparisons with one metric, all data sets and masks together (Holm 1979,
https://www.jstor.org/stable/4615733).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.compare.metrics import is_better
from recon.compare.store import VolumeRow

ENOUGH = 20  # volumes, from which on percentile intervals cover what they should
STUDENT, BOOTSTRAP = "Student's t", "paired bootstrap"
DRAWS = 10_000
SEED = 20_260
LEVEL = 0.95
SIGNIFICANT = 0.05

Float = NDArray[np.float64]


def interval(values: Float, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float] | None:
    """95 % interval of the mean of `values` ``(volume)``, by `interval_method`; None of fewer than two.

    The volumes that the bootstrap draws depend on their number and the seed alone, so that methods with the same volumes are
    resampled alike.
    """
    n = len(values)
    if n < 2:
        return None
    if interval_method(n) == STUDENT:
        if np.ptp(values) <= 1e-12 * np.abs(values).max():  # SciPy warns of a variance that is rounding
            return float(values[0]), float(values[0])
        from scipy.stats import ttest_1samp

        low, high = ttest_1samp(values, 0.0).confidence_interval(LEVEL)
        return float(low), float(high)
    chosen = np.random.default_rng(seed).integers(0, n, (draws, n))
    low, high = np.quantile(values[chosen].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval_method(n: int) -> str:
    """How intervals of `n` volumes are made: Student's t below `ENOUGH`, else the percentile bootstrap."""
    return STUDENT if n < ENOUGH else BOOTSTRAP


def signed_rank(differences: Float) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test, exact for up to 50 volumes without ties; None of fewer than two.

    Volumes without any difference are left out, as Wilcoxon does; where all are, p is 1.
    """
    if len(differences) < 2:
        return None
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences[differences != 0]).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding among all stays below the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def smallest_p(n: int) -> float:
    """The smallest two-sided p that the signed-rank test of `n` volumes can give: all differences of one sign."""
    return min(1.0, 2.0 ** (1 - n))


def can_be_significant(entry: Mapping[str, Any]) -> bool:
    """Whether the number of volumes of an entry of `statistics` allows significance, corrected for all comparisons."""
    return bool((entry["smallest_p"] or 1.0) * (entry["comparisons"] or 1) < SIGNIFICANT)


def statistics(rows: Sequence[VolumeRow], classical: Sequence[str], metric: str) -> list[dict[str, Any]]:
    """A row for every dataset, mask, metric and method, as `compare.json` keeps them.

    Parameters
    ----------
    rows
        Of all volumes, masks and methods.
    classical
        Names of the methods without training: the best of them, by the mean of `metric`, is the reference of a data set and
        mask. Where volumes of one are missing, because it failed, it cannot be.
    metric
        Which one chooses the reference.

    Returns
    -------
    list
        ``dataset, mask, metric, method, n, mean, low, high, interval_method, reference, difference, diff_low, diff_high, p,
        p_corrected, comparisons, n_paired, smallest_p``; None where there is nothing to say: of the reference itself no
        difference, of a single volume no interval.
    """
    tables: dict[tuple[str, str], dict[str, dict[str, VolumeRow]]] = {}
    for row in rows:
        tables.setdefault((row.dataset, row.mask), {}).setdefault(row.method, {})[row.volume] = row
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    found = []
    for (dataset, mask), table in tables.items():
        reference = best_of(table, classical, metric)
        for name in names:
            values = {m: {v: r.metrics[name] for v, r in volumes.items() if name in r.metrics} for m, volumes in table.items()}
            for method in table:
                if values[method]:
                    entry = _compare(values[method], values.get(reference or "", {}), method == reference)
                    found.append(
                        {"dataset": dataset, "mask": mask, "metric": name, "method": method, "reference": reference, **entry}
                    )
    _correct(found)
    return found


def over_draws(
    rows: Sequence[VolumeRow], drawn: Mapping[str, str], classical: Sequence[str], metric: str
) -> list[dict[str, Any]]:
    """For every data set, mask and method the mean of `metric` over draws, and the difference to the best classical method.

    Draws are repeated measures of the same volumes: their interval says how a figure hangs on the mask, nothing of other scans.

    Returns
    -------
    list
        ``dataset, mask, metric, method, n_draws, n_volumes, mean, low, high, reference, difference, diff_low, diff_high``: a
        draw counts as the mean over the volumes that all methods have in it; intervals are Student's t over draws, None for
        one. Empty where each mask was drawn once.
    """
    if not drawn:
        return []
    tables: dict[tuple[str, str], dict[str, dict[str, dict[str, float]]]] = {}
    for row in rows:
        if metric in row.metrics:
            mask = drawn.get(row.mask, row.mask)
            of_draw = tables.setdefault((row.dataset, mask), {}).setdefault(row.mask, {})
            of_draw.setdefault(row.method, {})[row.volume] = row.metrics[metric]
    found = []
    for (dataset, mask), draws in tables.items():
        methods = list(dict.fromkeys(method for of_draw in draws.values() for method in of_draw))
        means = {m: np.array([_mean(of_draw, m) for of_draw in draws.values()]) for m in methods}
        whole = {m: values for m, values in means.items() if np.isfinite(values).all()}
        reference: str | None = None
        for name in classical:
            if name in whole and (reference is None or is_better(metric, whole[name].mean(), whole[reference].mean())):
                reference = name
        about = {"dataset": dataset, "mask": mask, "metric": metric, "n_draws": len(draws), "reference": reference}
        about["n_volumes"] = len({v for of_draw in draws.values() for m in of_draw.values() for v in m})
        found += [
            {**about, "method": m, **_entry(v, None if reference is None else whole[reference])} for m, v in whole.items()
        ]
    return found


def _mean(of_draw: Mapping[str, Mapping[str, float]], method: str) -> float:
    volumes = set.intersection(*(set(values) for values in of_draw.values()))
    values = [of_draw[method][v] for v in sorted(volumes)] if method in of_draw else []
    return float(np.mean(values)) if values else float("nan")


def _entry(values: Float, reference: Float | None) -> dict[str, Any]:
    low, high = interval(values) or (None, None)
    entry: dict[str, Any] = {"mean": float(values.mean()), "low": low, "high": high}
    difference = None if reference is None or reference is values else values - reference
    diff_low, diff_high = (None, None) if difference is None else interval(difference) or (None, None)
    mean = None if difference is None else float(difference.mean())
    return entry | {"difference": mean, "diff_low": diff_low, "diff_high": diff_high}


def best_of(table: Mapping[str, Mapping[str, VolumeRow]], names: Sequence[str], metric: str) -> str | None:
    """The method with the best mean of `metric`, among those of `names` that have it on most volumes; None if none has."""
    means = {
        name: [row.metrics[metric] for row in table[name].values() if metric in row.metrics] for name in names if name in table
    }
    most = max((len(values) for values in means.values()), default=0)
    best: tuple[str, float] | None = None
    for name, values in means.items():
        mean = float(np.mean(values)) if values and len(values) == most else None
        if mean is not None and (best is None or is_better(metric, mean, best[1])):
            best = name, mean
    return None if best is None else best[0]


def _compare(values: Mapping[str, float], reference: Mapping[str, float], itself: bool) -> dict[str, Any]:
    array = np.array(list(values.values()))
    low, high = interval(array) or (None, None)
    entry: dict[str, Any] = {"n": len(array), "mean": float(array.mean()), "low": low, "high": high}
    common = [] if itself else [volume for volume in values if volume in reference]
    differences = np.array([values[volume] - reference[volume] for volume in common])
    diff_low, diff_high = interval(differences) or (None, None)
    return entry | {
        "difference": float(differences.mean()) if common else None,
        "diff_low": diff_low,
        "diff_high": diff_high,
        "interval_method": interval_method(len(common) or len(array)) if len(array) > 1 else None,
        "p": signed_rank(differences),
        "p_corrected": None,
        "comparisons": None,
        "n_paired": len(common),
        "smallest_p": smallest_p(len(common)) if common else None,
    }


def _correct(entries: Sequence[dict[str, Any]]) -> None:
    """Fill in the corrected p of each metric's family of comparisons."""
    for metric in dict.fromkeys(entry["metric"] for entry in entries):
        family = [entry for entry in entries if entry["metric"] == metric and entry["p"] is not None]
        for entry, p in zip(family, holm([entry["p"] for entry in family]), strict=True):
            entry["p_corrected"], entry["comparisons"] = p, len(family)
