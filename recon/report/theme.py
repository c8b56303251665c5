"""Style of the figures: matplotlib settings, and the appearance of every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recon.compare.store import VolumeRow
from recon.report.comparison import ComparisonResults

COLOURS = ("#3b7dd8", "#e0652b", "#2a9d5c", "#b06fd6", "#bd9414", "#d6487e", "#159fb3", "#8a9099", "#9a6b3f", "#6c5ce7")
MARKERS = "osD^PX*vhp"
DASHES = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
MATPLOTLIB: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e8ed",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # text stays text
}
LONGEST = 24  # characters of a label
# Metrics that are plotted where they were measured; otherwise the first that was.
PREFERRED = ("psnr_support", "ssim_support", "mr_distance")


@dataclass(frozen=True)
class Theme:
    """Names, colours and markers of the methods, the same in every figure."""

    comparison: ComparisonResults

    @property
    def names(self) -> list[str]:
        """Methods in their order."""
        return [str(m["name"]) for m in self.comparison.methods]

    @property
    def masks(self) -> list[str]:
        """Masks in their order."""
        return list(dict.fromkeys([*(self.comparison.about.get("masks") or []), *(r.mask for r in self.comparison.results)]))

    def label(self, method: str) -> str:
        """What people call it, safe from matplotlib's formulas, cut where it would leave no room for the plot."""
        found = next((str(m["label"]) for m in self.comparison.methods if m["name"] == method), method)
        return plain(found if len(found) <= LONGEST else f"{found[: LONGEST - 1]}…")

    def line(self, method: str) -> dict[str, Any]:
        """Colour, dashes and marker."""
        i = self.names.index(method) if method in self.names else len(self.names)
        return {"color": COLOURS[i % 10], "linestyle": DASHES[i % 5], "marker": MARKERS[i % 10]}

    def metrics(self, dataset: str) -> list[str]:
        """What is plotted of a data set."""
        there = dict.fromkeys(name for r in self.comparison.results if r.dataset == dataset for name in r.metrics)
        return [m for m in PREFERRED if m in there] or list(there)[:1]

    def rows(self, dataset: str, mask: str, method: str, metric: str) -> list[VolumeRow]:
        """Rows with a finite value of the metric."""
        return [
            r
            for r in self.comparison.results
            if (r.dataset, r.mask, r.method) == (dataset, mask, method) and np.isfinite(r.metrics.get(metric, np.nan))
        ]

    def statistic(self, dataset: str, mask: str, method: str, metric: str) -> dict[str, Any] | None:
        """Mean and interval; None where there are too few volumes."""
        wanted = {"dataset": dataset, "mask": mask, "method": method, "metric": metric}
        rows = self.comparison.about.get("statistics") or []
        found = next((s for s in rows if all(s.get(k, v) == v for k, v in wanted.items())), None)
        return found if found and found.get("low") is not None and found.get("high") is not None else None


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
