"""The comparison as tables for people, in Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kspace.io.atomic import atomic_write
from recon.compare.metrics import MEASURED
from recon.compare.statistics import BOOTSTRAP, ENOUGH, STUDENT, can_be_significant
from recon.compare.store import VolumeRow
from recon.metrics.missing import METRIC as MISSING_METRIC

UNITS = {"psnr": " dB"}
FORMATS = {
    "psnr": ".2f",
    "ssim": ".4f",
    "nmse": ".4f",
    "hfen": ".3f",
    "mr_distance": ".4f",
    "lpips": ".4f",
    "dists": ".4f",
    "semantic_score": ".3f",
}
SHORT = ("psnr", "ssim", "nmse", "hfen", "lpips", "dists")
# A page is narrower than a screen.
IN_PRINT = ("psnr", "ssim", "nmse", "psnr_support", "ssim_support", "nmse_support", "mr_distance")
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}

Summary = Mapping[str, Any]


def write_tables(folder: Path, summary: Summary, rows: Sequence[VolumeRow]) -> list[Path]:
    """Write ``table.md`` and ``table.tex`` into the folder of a comparison."""
    written = []
    for name, text in (("table.md", markdown(summary, rows)), ("table.tex", latex(summary, rows))):
        with atomic_write(folder / name) as beside:
            beside.write_text(text)
        written.append(folder / name)
    return written


def markdown(summary: Summary, rows: Sequence[VolumeRow]) -> str:
    """The tables in Markdown, one for each data set and mask, with what has to be known to read them."""
    parts = [*summary["verdict"], ""]
    for title, head, body in _tables(summary, rows):
        cells = [[text.replace("|", "\\|") for text in line] for line in (head, *body)]
        parts += [f"### {title}", "", f"| {' | '.join(cells[0])} |", "|" + "---|" * len(head)]
        parts += [f"| {' | '.join(line)} |" for line in cells[1:]] + [""]
    parts += _draws(summary)
    return "\n".join([*parts, *(f"* {note}" for note in notes(summary, rows)), ""])


def _draws(summary: Summary) -> list[str]:
    """Tables over the draws of a mask."""
    entries = summary.get("draws", [])
    labels = {m["name"]: m["label"] for m in summary["methods"]}
    parts: list[str] = []
    for dataset, mask in dict.fromkeys((e["dataset"], e["mask"]) for e in entries):
        here = [e for e in entries if (e["dataset"], e["mask"]) == (dataset, mask)]
        n, volumes = here[0]["n_draws"], here[0]["n_volumes"]
        title = (
            f"### {dataset}, {mask}: {n} draws of the mask, repeated measures of the same {volumes} volume{'s' * (volumes > 1)}"
        )
        metric = here[0]["metric"]
        parts += [
            title,
            "",
            f"| method | {named(metric)} [95 % over draws] | to best classical [95 % over draws] |",
            "|---|---|---|",
        ]
        for e in here:
            mean = _with_interval(metric, e["mean"], e["low"], e["high"])
            difference = _with_interval(metric, e["difference"], e["diff_low"], e["diff_high"], "+")
            parts.append(f"| {labels.get(e['method'], e['method'])} | {mean} | {difference or 'reference'} |")
        parts.append("")
    return parts


def latex(summary: Summary, rows: Sequence[VolumeRow]) -> str:
    """The tables in LaTeX, for the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for title, head, body in _tables(summary, rows, IN_PRINT):
        columns = "l" + "r" * (len(head) - 1)
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
        ]
        parts += [_tex_line(head), r"\midrule", *map(_tex_line, body), r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*parts, *(f"% {note}" for note in notes(summary, rows)), ""])


def escape(text: str) -> str:
    """`text` as LaTeX prints it."""
    return "".join(TEX.get(sign, sign) for sign in text)


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def _tables(
    summary: Summary, rows: Sequence[VolumeRow], only: Sequence[str] | None = None
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and body of each table, with all metrics or `only` these."""
    entries = {(e["dataset"], e["mask"], e["method"], e["metric"]): e for e in summary["statistics"]}
    primary = summary["metric"]
    metrics = [m for m in dict.fromkeys(name for row in rows for name in row.metrics) if m != primary]
    metrics = [m for m in metrics if only is None or m in only]
    found = []
    for dataset, mask in dict.fromkeys((row.dataset, row.mask) for row in rows):
        here = [row for row in rows if (row.dataset, row.mask) == (dataset, mask)]
        body = []
        for method in dict.fromkeys(row.method for row in here):
            mine = [row for row in here if row.method == method]
            statistic = entries.get((dataset, mask, method, primary))
            means = [entries.get((dataset, mask, method, m)) for m in metrics]
            body.append([*_first_cells(mine, statistic, primary), *map(_mean_cell, means), *_cost_cells(mine)])
        accelerations = sorted({round(row.acceleration, 2) for row in here})
        stated = f"{accelerations[0]:g}" if len(accelerations) == 1 else f"{accelerations[0]:g} to {accelerations[-1]:g}"
        said = [d for d in summary["data"] if d["dataset"] == dataset]
        origin = ", simulated" if any(d["simulated"] for d in said) else ""
        origin += ", truth without noise" if said and all(d.get("noise_free") for d in said) else ""
        n = len({row.volume for row in here})
        title = f"{dataset}, {mask}: R = {stated}, {n} volume{'s' * (n > 1)}{origin}"
        head = ["method", f"{named(primary)} [95 %]", "to best classical [95 %]", "p (corrected)"]
        found.append((title, [*head, *map(named, metrics), "s/slice", "MB CPU", "MB GPU", "failed"], body))
    return found


def _first_cells(rows: Sequence[VolumeRow], statistic: Mapping[str, Any] | None, metric: str) -> list[str]:
    if statistic is None:
        return [rows[0].label, "", "", ""]
    means = _with_interval(metric, statistic["mean"], statistic["low"], statistic["high"])
    if statistic["reference"] == rows[0].method:
        return [rows[0].label, means, "reference", ""]
    difference = _with_interval(metric, statistic["difference"], statistic["diff_low"], statistic["diff_high"], "+")
    p = statistic["p_corrected"]
    return [rows[0].label, means, difference, "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"]


def _with_interval(metric: str, value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    text = sign + value_format(metric)
    return f"{value:{text}}" if low is None else f"{value:{text}} [{low:{text}}, {high:{text}}]"


def _mean_cell(statistic: Mapping[str, Any] | None) -> str:
    return "" if statistic is None else f"{statistic['mean']:{value_format(statistic['metric'])}}"


def _cost_cells(rows: Sequence[VolumeRow]) -> list[str]:
    seconds = [row.seconds_per_slice for row in rows if row.seconds_per_slice is not None]
    peaks = [[v for row in rows if (v := getattr(row, name)) is not None] for name in ("peak_cpu_mb", "peak_gpu_mb")]
    n_failed, n_slices = sum(row.n_failed for row in rows), sum(row.n_slices for row in rows)
    cells = [f"{sum(seconds) / len(seconds):.3g}" if seconds else "", *(f"{max(p):.0f}" if p else "" for p in peaks)]
    return [*cells, f"{n_failed} of {n_slices} slices" if n_failed else ""]


def named(metric: str) -> str:
    """A metric as people call it."""
    if metric == MISSING_METRIC:
        return "NMSE of samples left out, noise subtracted"
    base, where = (metric.removesuffix("_support"), " on support") if metric.endswith("_support") else (metric, "")
    if base.startswith("roi_"):
        base, where = base.removeprefix("roi_"), " in boxes"
    unit = " [dB]" if base == "psnr" else ""
    return (base.upper() if base in SHORT else base.replace("_", " ")) + unit + where


def value_format(metric: str) -> str:
    """How its values are written."""
    return next((form for name, form in FORMATS.items() if name in metric), ".4g")


def _interval_methods(summary: Summary) -> str:
    """How the intervals of a comparison are made. Results of earlier versions do not say; theirs were the bootstrap's."""
    used = {e.get("interval_method", BOOTSTRAP) for e in summary["statistics"]} - {None} or {STUDENT}
    says = {
        STUDENT: f"Student's t over volumes, since they are fewer than {ENOUGH}",
        BOOTSTRAP: "percentile bootstrap over volumes",
    }
    return "; or ".join(says[name] for name in says if name in used)


def notes(summary: Summary, rows: Sequence[VolumeRow]) -> list[str]:
    """What has to be known to read the tables."""
    found = [
        f"Metrics: fastMRI's convention, {MEASURED.says}; HFEN relative to the target. "
        "Support: where the smoothed truth is above a tenth of its 99th percentile.",
        f"Intervals: 95 %, {_interval_methods(summary)}. p: Wilcoxon's signed-rank test over volumes against the best "
        "classical method of the data set and mask, two-sided, Holm-corrected for all comparisons with this metric.",
    ]
    if summary["tuning"]:
        found.append("Regularisation weights: tuned for each mask on slices that are not reported.")
    else:
        found.append("Regularisation weights: the defaults, not tuned.")
    found += [f"Warning: {warning}." for warning in summary.get("warnings", [])]
    if summary.get("draws"):
        found.append(
            "Intervals over draws: Student's t over masks of one family on the same volumes; they say nothing of others."
        )
    if noise := sorted(set(summary.get("noise", {}).values())):
        found.append(
            "NMSE of samples left out: squared error of all coils' samples that the mask left out, the expected noise "
            f"subtracted from it and from their energy (docs/REFINEMENT.md); {'; '.join(noise)}."
        )
    primary = [e for e in summary["statistics"] if e["metric"] == summary["metric"] and e["smallest_p"] is not None]
    if primary and all(not can_be_significant(e) for e in primary):
        n = max(e["n_paired"] for e in primary)
        found.append(f"With {n} volume{'s' * (n > 1)} no difference can be significant, however large it is.")
    maps = [row.maps_seconds_per_slice for row in rows if row.maps_seconds_per_slice is not None]
    if maps:
        mean = sum(maps) / len(maps)
        found.append(f"Seconds are without the coil maps, which took {mean:.3g} s a slice and are shared by all methods.")
    machine = summary["machine"]
    at_once = f"; {machine['workers']} at once, so that times include their competition" if machine.get("workers") else ""
    gpu = f"; {machine['gpu']}" if machine["gpu"] else ""
    found.append(f"Machine: {machine['cpu']}, {machine['threads']} threads{gpu}{at_once}.")
    found += [f"Not measured: {named(name)} ({why})." for name, why in summary["not_measured"].items()]
    sources = {d["attribution"] for d in summary["data"] if d.get("attribution")}
    found += [f"Data: {text}" for text in sorted(sources)]
    failed = {(row.label, row.reason) for row in rows if row.n_failed}
    return found + [f"{label} failed: {reason}" for label, reason in sorted(failed)]
