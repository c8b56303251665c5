"""Figures for papers, as PNG and as vector PDF: the plots of the page, and one slice of every data set with its errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kspace.io.atomic import atomic_write
from recon.report.comparison import ComparisonResults
from recon.report.slice_figure import draw_slice
from recon.report.theme import MATPLOTLIB, Theme, plain
from recon.report.wording import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


def write(comparison: ComparisonResults, folder: Path) -> list[Path]:
    """Write all figures for which there are data, each as PNG (200 dpi) and PDF.

    Raises
    ------
    InputError
        If they cannot be written.
    """
    # Imported here: reading a comparison must not load matplotlib. No pyplot: it would keep figures and choose a screen.
    import matplotlib
    from matplotlib.figure import Figure

    drawn: list[Path] = []
    with matplotlib.rc_context(MATPLOTLIB):
        theme = Theme(comparison)
        for dataset in comparison.datasets:
            for name, draw in (("boxes", boxes), ("acceleration", acceleration), ("speed", speed)):
                drawn += _save(
                    Figure(layout="constrained"), folder / f"{name}_{file_name(dataset)}", _bound(draw, theme, dataset)
                )
        for name, draw_all in (("tuning", tuning), ("convergence", convergence)):
            drawn += _save(Figure(layout="constrained"), folder / name, _bound(draw_all, theme))
        for scan in comparison.about.get("held_out") or []:
            name = f"held_out_{file_name(str(scan.get('scan', 'scan')))}"
            drawn += _save(Figure(layout="constrained"), folder / name, _bound(held_out, theme, scan))
        for file in {f.dataset: f for f in reversed(comparison.images)}.values():
            name = f"images_{file_name(file.dataset)}"
            drawn += _save(Figure(layout="constrained"), folder / name, _bound(draw_slice, theme, file))
    return drawn


def file_name(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._") or "data"


def _bound(draw: Callable[..., bool], *args: Any) -> Callable[[Figure], bool]:
    return lambda figure: draw(figure, *args)


def _save(figure: Figure, stem: Path, draw: Callable[[Figure], bool]) -> list[Path]:
    """Save what `draw` draws; it returns whether there was anything to draw."""
    if not draw(figure):
        return []
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with atomic_write(path, make_folder=True) as beside:
            # No date: the same comparison gives the same file.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(beside, format=path.suffix[1:], dpi=200, metadata=metadata)
        # The layout takes most of the time and stays as it is.
        figure.set_layout_engine("none")
    return paths


def axis_label(metric: str) -> str:
    """Name, unit and direction."""
    name = metric_name(metric)
    return name.label + (f" [{name.unit}]" if name.unit else "") + {"higher": " ↑", "lower": " ↓", "": ""}[name.better]


def _axes(
    figure: Figure, rows: int, columns: int, width: float = 3.4, height: float = 2.4, sharex: bool = True
) -> np.ndarray[Any, Any]:
    figure.set_size_inches(max(3.5, width * columns), height * rows + 0.3)
    return figure.subplots(rows, columns, squeeze=False, sharey="row", sharex=sharex)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes, below them."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if found:
        per_row = max(2, int(figure.get_figwidth() / 1.3))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), per_row))


def _panels(figure: Figure, masks: Sequence[str], draw: Callable[[Axes, str], None], x: str, y: str) -> bool:
    """A panel for each mask, its abscissa logarithmic, and one legend for all."""
    axes = _axes(figure, 1, len(masks))
    for ax, mask in zip(axes[0], masks, strict=True):
        draw(ax, mask)
        ax.set(xscale="log", title=plain(mask), xlabel=x, ylabel=y)
    _legend(figure, list(axes[0]))
    return True


def _curves(
    figure: Figure, theme: Theme, name: str, draw: Callable[[Axes, dict[str, Any], Floats], None], x: str, y: str | None = None
) -> bool:
    """Panels of the curves called `name` in ``compare.json``, each drawn with its values ``(point)``, NaN where there is none.

    Without `y`, the ordinate is the metric of the curves.
    """
    curves = theme.comparison.about.get(name) or []

    def panel(ax: Axes, mask: str) -> None:
        for curve in (c for c in curves if c["mask"] == mask):
            draw(ax, curve, np.array([np.nan if v is None else v for v in curve["values"]], dtype=float))

    masks = list(dict.fromkeys(c["mask"] for c in curves))
    return bool(masks) and _panels(figure, masks, panel, x, y or axis_label(str(curves[0]["metric"])))


def _nearest(points: Sequence[float], value: float) -> int:
    return int(np.argmin(np.abs(np.asarray(points, dtype=float) - value)))


def boxes(figure: Figure, theme: Theme, dataset: str) -> bool:
    """Box plots over volumes: a row per metric, a column per mask."""
    metrics, masks = theme.metrics(dataset), [m for m in theme.masks if any(r.mask == m for r in theme.comparison.results)]
    methods = [n for n in theme.names if any(r.method == n and r.dataset == dataset for r in theme.comparison.results)]
    if not metrics or not masks:
        return False
    axes = _axes(figure, len(metrics), len(masks), width=max(2.2, 0.42 * len(methods) + 0.8))
    for i, metric in enumerate(metrics):
        for j, mask in enumerate(masks):
            ax = axes[i, j]
            found = [[r.metrics[metric] for r in theme.rows(dataset, mask, n, metric)] for n in methods]
            drawn = ax.boxplot(found, showmeans=True, meanline=True, patch_artist=True, widths=0.6, showfliers=False)
            for method, box, values, at in zip(methods, drawn["boxes"], found, range(1, len(methods) + 1), strict=True):
                line = theme.line(method)
                box.set(facecolor=line["color"] + "55", edgecolor=line["color"])
                # Spread sideways evenly, not at random: the same data give the same figure.
                aside = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
                ax.plot(at + aside, values, line["marker"], color=line["color"], markersize=2.5)
            for part in (*drawn["medians"], *drawn["means"]):
                part.set_color("#16202b")
            ax.set_xticks(range(1, len(methods) + 1), [theme.label(n) for n in methods], rotation=40, ha="right")
            ax.set(title=plain(mask) if i == 0 else "", ylabel=axis_label(metric) if j == 0 else "")
    return True


def acceleration(figure: Figure, theme: Theme, dataset: str) -> bool:
    """Means with intervals against the acceleration of the masks drawn; masks of one family are joined."""
    metrics = theme.metrics(dataset)
    families = list(dict.fromkeys(m.split(":")[0] for m in theme.masks))
    if not metrics or len({r.mask for r in theme.comparison.results if r.dataset == dataset}) < 2:
        return False
    axes = _axes(figure, len(metrics), len(families), height=2.2)
    for i, metric in enumerate(metrics):
        for j, family in enumerate(families):
            ax = axes[i, j]
            for method in theme.names:
                _draw_line(ax, theme, dataset, [m for m in theme.masks if m.split(":")[0] == family], method, metric)
            ax.set(title=plain(family) if i == 0 else "", ylabel=axis_label(metric) if j == 0 else "")
            ax.set_xlabel("acceleration" if i == len(metrics) - 1 else "")
    _legend(figure, list(axes.flat))
    return True


def _draw_line(ax: Axes, theme: Theme, dataset: str, masks: Sequence[str], method: str, metric: str) -> None:
    points = []
    for mask in masks:
        rows = theme.rows(dataset, mask, method, metric)
        if rows:
            found = theme.statistic(dataset, mask, method, metric)
            mean = float(np.mean([r.metrics[metric] for r in rows]))
            low, high = (float(found["low"]), float(found["high"])) if found else (mean, mean)
            points.append((float(np.mean([r.acceleration for r in rows])), mean, max(0, mean - low), max(0, high - mean)))
    if points:
        x, y, below, above = zip(*sorted(points), strict=True)
        ax.errorbar(x, y, [below, above], label=theme.label(method), capsize=2, elinewidth=0.8, **theme.line(method))


def speed(figure: Figure, theme: Theme, dataset: str) -> bool:
    """Quality against seconds per slice, a panel per mask."""
    metrics, masks = theme.metrics(dataset), [m for m in theme.masks if any(r.mask == m for r in theme.comparison.results)]
    timed = [r for r in theme.comparison.results if r.dataset == dataset and (r.seconds_per_slice or 0) > 0]
    if not metrics or not timed:
        return False

    def panel(ax: Axes, mask: str) -> None:
        for method in theme.names:
            rows = [r for r in theme.rows(dataset, mask, method, metrics[0]) if r in timed]
            if rows:
                seconds = np.average([r.seconds_per_slice or 0 for r in rows], weights=[max(1, r.n_slices) for r in rows])
                style = {**theme.line(method), "linestyle": "none"}
                ax.plot(seconds, np.mean([r.metrics[metrics[0]] for r in rows]), label=theme.label(method), **style)

    return _panels(figure, masks, panel, "seconds per slice", axis_label(metrics[0]))


def tuning(figure: Figure, theme: Theme) -> bool:
    """Tuning curves, a panel per mask; a circle marks the weight chosen."""

    def draw(ax: Axes, curve: dict[str, Any], values: Floats) -> None:
        ax.plot(curve["weights"], values, label=theme.label(curve["method"]), **theme.line(curve["method"]))
        chosen = values[_nearest(curve["weights"], curve["chosen"])]
        ax.plot(curve["chosen"], chosen, "o", mfc="none", mec="#16202b", mew=1.4, markersize=10)

    return _curves(figure, theme, "tuning", draw, "regularisation weight")


def convergence(figure: Figure, theme: Theme) -> bool:
    """Convergence curves, a panel per mask; the marker stands where the method's own rule stops."""

    def draw(ax: Axes, curve: dict[str, Any], values: Floats) -> None:
        style = theme.line(curve["method"])
        marker = style.pop("marker")
        ax.plot(curve["iterations"], values, label=theme.label(curve["method"]), **style)
        if curve.get("stop") is not None:
            stop = values[_nearest(curve["iterations"], curve["stop"])]
            ax.plot(curve["stop"], stop, marker, color=style["color"], mec="#16202b", mew=1, markersize=8)

    return _curves(figure, theme, "convergence", draw, "iteration", "PSNR, support [dB]")


def held_out(figure: Figure, theme: Theme, scan: dict[str, Any]) -> bool:
    """Error on held-out samples of a scan without truth, with the noise floor."""
    found = [m for m in scan.get("methods") or [] if m.get("values")]
    if not found:
        return False
    ax = _axes(figure, 1, 1, width=max(3.4, 0.5 * len(found) + 1))[0, 0]
    for at, method in enumerate(found, start=1):
        style = {**theme.line(str(method["name"])), "linestyle": "none"}
        values = [v for v in method["values"] if v is not None]
        ax.plot(np.full(len(values), at), values, **style, alpha=0.6)
        if method.get("mean") is not None:  # weighted by signal energy: not the mean of the points
            ax.plot([at - 0.25, at + 0.25], [method["mean"]] * 2, color="#16202b")
    if scan.get("floor") is not None:
        ax.axhline(scan["floor"], color="#51606f", linestyle="--", linewidth=1, label="noise floor")
        ax.legend(loc="best")
    ax.set_xticks(range(1, len(found) + 1), [theme.label(str(m["name"])) for m in found], rotation=40, ha="right")
    ax.set(ylabel=f"error on held-out {scan.get('unit') or 'samples'} ↓", title=plain(str(scan.get("scan") or "")))
    return True
