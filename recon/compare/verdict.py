"""The outcome of a comparison in two sentences, made from its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recon.compare.metrics import is_better, smaller_is_better
from recon.compare.statistics import SIGNIFICANT, can_be_significant
from recon.compare.tables import UNITS, named, value_format

Entry = Mapping[str, Any]
Place = tuple[str, str]
NAMED = 3  # combinations of data and mask that are named; where there are more, they are counted


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Who is best where and by how much, and whether generators beat the best classical method: one sentence each."""
    metric = summary["metric"]
    tables: dict[Place, list[Entry]] = {}
    for entry in summary["statistics"]:
        if entry["metric"] == metric:
            tables.setdefault((entry["dataset"], entry["mask"]), []).append(entry)
    if not tables:
        said = [scan["says"] for scan in summary["held_out"] if scan.get("says")]
        return said[:2] or ["No method gave images of a whole volume.", "Nothing can be compared."]
    labels = {m["name"]: m["label"] for m in summary["methods"]}
    generators = {m["name"] for m in summary["methods"] if m["family"] == "generator"}
    return [_winners(tables, metric, labels), _generators(tables, metric, labels, generators)]


def _winners(tables: Mapping[Place, Sequence[Entry]], metric: str, labels: Mapping[str, str]) -> str:
    wins: dict[str, list[Entry]] = {}
    for table in tables.values():
        best = _best(table, metric)
        wins.setdefault(best["method"], []).append(best)
    order = sorted(wins.items(), key=lambda item: -len(item[1]))
    if len(tables) > NAMED:
        counts = ", ".join(f"{labels.get(name, name)} in {len(won)}" for name, won in order)
        return f"Best by the mean of {named(metric)}, of {len(tables)} combinations of data and mask: {counts}."
    parts = [f"{labels.get(name, name)} ({_places(won, metric, labels)})" for name, won in order]
    return f"Best by the mean of {named(metric)}: {', '.join(parts)}."


def _places(won: Sequence[Entry], metric: str, labels: Mapping[str, str]) -> str:
    return "; ".join(f"{e['dataset']} with {e['mask']}: {_lead(e, metric, labels)}" for e in won)


def _generators(tables: Mapping[Place, Sequence[Entry]], metric: str, labels: Mapping[str, str], generators: set[str]) -> str:
    judged = {p: [e for e in t if e["method"] in generators and e["difference"] is not None] for p, t in tables.items()}
    found = [_best(entries, metric) for entries in judged.values() if entries]
    if not found:
        return "No generator was compared with a classical method."
    better = [e for e in found if is_better(metric, e["difference"], 0.0)]
    sure = [e for e in found if e["p_corrected"] is not None and e["p_corrected"] < SIGNIFICANT]
    n_better, n_worse = sum(e in better for e in sure), sum(e not in better for e in sure)
    names = ", ".join(dict.fromkeys(labels.get(e["method"], e["method"]) for e in found))
    if len(found) == 1:
        beats = "beats" if better else "does not beat"
        start = f"The best generator ({names}) {beats} the best classical method, {_vs(found[0], metric, labels)}"
    else:
        worse = [e for e in found if e not in better]
        start = f"The best generator ({names}) beats the best classical method in {len(better)} of {len(found)} combinations"
        start += f" ({_range(better, metric)})" if better else ""
        start += f" and falls short in {len(worse)} ({_range(worse, metric)})" if worse else ""
    if not any(map(can_be_significant, found)):
        return f"{start}; with so few volumes no difference can be significant."
    if not sure:
        return f"{start}; no difference is significant."
    if len(found) == 1:
        return f"{start}; the difference is significant (p {sure[0]['p_corrected']:.2g}, {sure[0]['comparisons']} comparisons)."
    counts = [f"better in {n_better}"] * (n_better > 0) + [f"worse in {n_worse}"] * (n_worse > 0)
    return f"{start}; significantly {' and '.join(counts)} (corrected for {sure[0]['comparisons']} comparisons)."


def _best(table: Sequence[Entry], metric: str) -> Entry:
    """The best mean among those over the most volumes."""
    most = max(e["n"] for e in table)
    whole = [e for e in table if e["n"] == most]
    return (min if smaller_is_better(metric) else max)(whole, key=lambda e: e["mean"])


def _lead(entry: Entry, metric: str, labels: Mapping[str, str]) -> str:
    mean = _with_interval(metric, f"{entry['mean']:{value_format(metric)}}", entry["low"], entry["high"])
    return mean if entry["difference"] is None else f"{mean}, {_vs(entry, metric, labels)}"


def _vs(entry: Entry, metric: str, labels: Mapping[str, str]) -> str:
    difference = f"{entry['difference']:+{value_format(metric)}}"
    against = labels.get(entry["reference"], entry["reference"])
    return f"{_with_interval(metric, difference, entry['diff_low'], entry['diff_high'])} against {against}"


def _with_interval(metric: str, value: str, low: float | None, high: float | None) -> str:
    text = value + UNITS.get(metric.removesuffix("_support"), "")
    return text if low is None else f"{text} [95 % {low:{value_format(metric)}} to {high:{value_format(metric)}}]"


def _range(entries: Sequence[Entry], metric: str) -> str:
    low, high = (pick(e["difference"] for e in entries) for pick in (min, max))
    return _signed(metric, low) if low == high else f"{_signed(metric, low)} to {_signed(metric, high)}"


def _signed(metric: str, value: float) -> str:
    return f"{value:+{value_format(metric)}}{UNITS.get(metric.removesuffix('_support'), '')}"
