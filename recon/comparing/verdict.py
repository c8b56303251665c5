"""The outcome of a comparison in two sentences, made from its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recon.comparing.figures import is_better, smaller_is_better
from recon.comparing.statistics import SIGNIFICANT, can_be_significant
from recon.comparing.tables import UNITS, named, value_format

Entry = Mapping[str, Any]
Place = tuple[str, str]
NAMED = 3  # combinations of data and mask that are named before they are counted


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
    parts = []
    for name, won in sorted(wins.items(), key=lambda item: -len(item[1])):
        shown = won if len(won) <= NAMED else won[:1]
        where = "; ".join(f"{e['dataset']} with {e['mask']}: {_lead(e, metric, labels)}" for e in shown)
        count = f"{len(won)} of {len(tables)} combinations of data and mask, " if len(tables) > 1 else ""
        parts.append(f"{labels.get(name, name)} ({count}{'e.g. ' if len(won) > NAMED else ''}{where})")
    return f"Best by the mean of {named(metric)}: {', '.join(parts)}."


def _generators(tables: Mapping[Place, Sequence[Entry]], metric: str, labels: Mapping[str, str], generators: set[str]) -> str:
    judged = {p: [e for e in t if e["method"] in generators and e["difference"] is not None] for p, t in tables.items()}
    found = [_best(entries, metric) for entries in judged.values() if entries]
    if not found:
        return "No generator was compared with a classical method."
    better = [e for e in found if is_better(metric, e["difference"], 0.0)]
    sure = [e for e in found if e["p_corrected"] is not None and e["p_corrected"] < SIGNIFICANT]
    n_better, n_worse = sum(e in better for e in sure), sum(e not in better for e in sure)
    names = ", ".join(dict.fromkeys(labels.get(e["method"], e["method"]) for e in found))
    low, high = min(e["difference"] for e in found), max(e["difference"] for e in found)
    differences = _signed(metric, low) if low == high else f"{_signed(metric, low)} to {_signed(metric, high)}"
    if len(found) == 1:
        beats = "beats" if better else "does not beat"
        start = f"The best generator ({names}) {beats} the best classical method, {_vs(found[0], metric, labels)}"
    else:
        start = (
            f"The best generator ({names}) beats the best classical method in {len(better)} of {len(found)} combinations, by "
        )
        start += f"{differences} on average"
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


def _signed(metric: str, value: float) -> str:
    return f"{value:+{value_format(metric)}}{UNITS.get(metric.removesuffix('_support'), '')}"
