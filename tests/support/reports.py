"""Folders of comparisons with made-up figures and images, for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.compare import store
from recon.metrics.image import FASTMRI

Truth = Callable[[int, int], NDArray[np.float32]]
METHODS = ("zero-filled", "sense", "l1-wavelet", "refinegan")
ERRORS = {"zero-filled": 0.08, "sense": 0.05, "l1-wavelet": 0.03, "tv": 0.035, "refinegan": 0.02}


@dataclass(frozen=True)
class Case:
    """What a folder holds; the defaults are small."""

    methods: Sequence[str] = METHODS
    masks: Sequence[str] = ("random1d:4", "random1d:8")
    n_volumes: int = 3
    n_slices: int = 2
    shape: tuple[int, int] = (20, 28)
    dataset: str = "brain"
    failing: tuple[str, int] | None = None  # method, volume
    scale: float = 1.0
    labels: dict[str, str] = field(default_factory=dict)
    statistics: bool = True
    lying: bool = False

    @property
    def volumes(self) -> list[str]:
        return [f"volume_{i}" for i in range(self.n_volumes)]


def disc(case: Case) -> Truth:
    """Discs of other sizes and brightness for every volume and slice, so that no two pictures are equal."""
    y, x = (np.arange(n) - n // 2 for n in case.shape)
    radius = np.hypot(y[:, None] / case.shape[0], (x / case.shape[1])[None])

    def make(volume: int, number: int) -> NDArray[np.float32]:
        wave = 1 + 0.2 * np.cos(0.7 * x + volume)[None] + 0.1 * np.sin(0.4 * y + number)[:, None]
        return (case.scale * wave * (radius < 0.3 + 0.02 * number)).astype(np.float32)

    return make


def image_of(truth: NDArray[np.float32], method: str, mask: str, seed: int) -> NDArray[np.float32]:
    """The truth with an error that belongs to the method and grows with the acceleration."""
    rng = np.random.default_rng([seed, *method.encode()[:8], len(mask)])
    size = ERRORS.get(method, 0.04) * float(mask.rsplit(":", 1)[-1]) / 4 * float(truth.max())
    return np.abs(truth + size * rng.standard_normal(truth.shape)).astype(np.float32)


def write(folder: Path, case: Case, truth: Truth | None = None, blur: Callable[..., Any] = image_of) -> dict[str, Any]:
    """Write a comparison and return what ``compare.json`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    make = truth or disc(case)
    log, rows = store.SliceLog(folder), []
    for v, volume in enumerate(case.volumes):
        for mask in case.masks:
            acceleration = float(mask.rsplit(":", 1)[-1]) - 0.1
            group = store.MaskedVolume(case.dataset, volume, mask, f"{abs(hash((volume, mask))):016x}", acceleration)
            images = _images(case, group, v, make, blur)
            store.write_images(folder, images)
            for method in case.methods:
                failed = case.failing == (method, v)
                rows.append(_row(case, images, method, failed))
                _log(log, images, method, failed)
    store.write_results(folder, rows)
    about = summary(case, rows)
    store.write_summary(folder, about)
    return about


def _images(case: Case, group: store.MaskedVolume, v: int, make: Truth, blur: Callable[..., Any]) -> store.GroupImages:
    numbers = tuple(3 * i + 1 for i in range(case.n_slices))
    truth = np.stack([make(v, n) for n in numbers])
    made = {
        m: np.stack([blur(t, m, group.mask, 100 * v + n) for t, n in zip(truth, numbers, strict=True)]) for m in case.methods
    }
    if case.failing and case.failing[1] == v:
        made[case.failing[0]][0] = np.nan
    lines = np.zeros((case.shape[0], 1), bool)
    lines[:: int(group.acceleration) + 1] = True
    ny, nx = case.shape
    boxes = np.array([[numbers[0], 1, 0.3 * ny, 0.25 * nx, 0.6 * ny, 0.5 * nx]], np.float32)
    return store.GroupImages(group, numbers, truth, truth > 0.1 * truth.max(), boxes, lines, made)


def _row(case: Case, images: store.GroupImages, method: str, failed: bool) -> store.VolumeRow:
    metrics = {} if failed else FASTMRI.measure(images.truth, images.images[method], images.support)
    values = {name: float(value[0]) for name, value in metrics.items() if not name.startswith("mse")}
    g, i = images.group, list(case.methods).index(method)
    fixed = (g.dataset, g.volume, g.mask, g.digest, g.acceleration, method, case.labels.get(method, method))
    return store.VolumeRow(
        *fixed, case.n_slices, int(failed), "out of memory" if failed else "", 0.02 * 3.0**i, 0.5, 120.0 + i, None, values
    )


def _log(log: store.SliceLog, images: store.GroupImages, method: str, failed: bool) -> None:
    g = images.group
    for position, number in enumerate(images.slices):
        bad = failed and position == 0
        status = ("failed", "out of memory") if bad else ("ok", "")
        log.append(store.SliceRow(g.dataset, g.volume, number, g.mask, g.digest, g.acceleration, method, *status))


def summary(case: Case, rows: Sequence[store.VolumeRow]) -> dict[str, Any]:
    """``compare.json``."""
    families = {"refinegan": "generator"}
    return {
        "version": store.VERSION,
        "recon": "0.1.0",
        "command": ["recon", "compare", case.dataset, "-o", "report"],
        "created": "2026-01-02T03:04:05+00:00",
        "finished": True,
        "machine": {"cpu": "A processor", "threads": 2, "gpu": None, "versions": {"torch": "2.15.0", "sigpy": "0.1.27"}},
        "data": [
            {
                "dataset": case.dataset,
                "path": case.dataset,
                "kind": "fastmri",
                "volumes": case.volumes,
                "n_slices": case.n_volumes * case.n_slices,
                "simulated": not case.lying,
                "attribution": "Somebody 2017, CC BY 4.0",
            }
        ],
        "masks": list(case.masks),
        "maps": "espirit",
        "metric": "psnr_support",
        "methods": [
            {
                "name": m,
                "label": case.labels.get(m, m),
                "family": families.get(m, "classical"),
                "outside": {case.masks[-1]: ["trained at acceleration 4"]} if m == "refinegan" else {},
            }
            for m in case.methods
        ],
        "tuning": _tuning(case),
        "convergence": _convergence(case),
        "statistics": _statistics(case, rows) if case.statistics else [],
        "held_out": [],
        "verdict": ["Refinegan has the highest PSNR.", "It differs from l1-wavelet by 3 dB (p = 0.01)."],
    }


def _tuning(case: Case) -> list[dict[str, Any]]:
    weights = [10.0**k for k in np.arange(-4, 0.1, 0.5)]
    return [
        {
            "method": method,
            "mask": mask,
            "metric": "psnr_support",
            "weights": weights,
            "values": [30 + i - 2 * (np.log10(w) + 2) ** 2 for w in weights],
            "chosen": 0.01,
            "on": ["volume_9 / 3"],
        }
        for mask in case.masks
        for i, method in enumerate(m for m in case.methods if m in ("l1-wavelet", "tv"))
    ]


def _convergence(case: Case) -> list[dict[str, Any]]:
    n = np.unique(np.geomspace(1, 300, 30).astype(int))
    return [
        {
            "method": method,
            "mask": mask,
            "volume": "volume_0",
            "slice": 1,
            "iterations": n.tolist(),
            "values": (32 - 12 * np.exp(-n / (20.0 + 10 * i))).tolist(),
            "relative_change": (np.exp(-n / 40.0) + 1e-7).tolist(),
            "stop": int(n[-8]),
        }
        for mask in case.masks
        for i, method in enumerate(m for m in case.methods if m in ("l1-wavelet", "tv", "sense"))
    ]


def _statistics(case: Case, rows: Sequence[store.VolumeRow]) -> list[dict[str, Any]]:
    """As a comparison states them; the intervals here are not a bootstrap's, only of a plausible width."""
    found = []
    for mask in case.masks:
        for metric in dict.fromkeys(name for r in rows for name in r.metrics):
            of = {m: [r.metrics[metric] for r in rows if (r.mask, r.method) == (mask, m) and r.metrics] for m in case.methods}
            reference = case.methods[min(2, len(case.methods) - 1)]
            for method, values in of.items():
                if len(values) < 2:
                    continue
                mean, half = float(np.mean(values)), float(np.std(values, ddof=1)) + 1e-4
                difference = mean - float(np.mean(of[reference]))
                found.append(
                    {
                        "dataset": case.dataset,
                        "mask": mask,
                        "metric": metric,
                        "method": method,
                        "n": len(values),
                        "mean": mean,
                        "low": mean - half,
                        "high": mean + half,
                        "reference": reference,
                        "difference": difference if method != reference else None,
                        "diff_low": difference - half if method != reference else None,
                        "diff_high": difference + half if method != reference else None,
                        "p": 0.004 if method != reference else None,
                        "p_corrected": 0.012 if method != reference else None,
                    }
                )
    return found


def held_out(methods: Sequence[str]) -> dict[str, Any]:
    """What `recon.compare.held_out.compare_scan` gives."""
    rng = np.random.default_rng(0)
    entries = []
    for i, name in enumerate(methods):
        values = (0.05 * (len(methods) - i) + 0.005 * rng.standard_normal(5)).tolist()
        rank = len(methods) - i
        entries.append(
            {
                "name": name,
                "values": values,
                "mean": float(np.mean(values)),
                "spread": float(np.std(values, ddof=1)),
                "rank": rank,
                "behind": 0.05 * (rank - 1),
                "behind_error": 0.002,
                "tied": rank == 1,
                "reason": None,
                "note": None,
            }
        )
    failed = dict.fromkeys(("values", "mean", "spread", "rank", "behind", "behind_error", "tied", "note"))
    entries.append({"name": "broken", **failed, "reason": "no maps"})
    return {
        "scan": "scan.h5",
        "kind": "ISMRMRD",
        "unit": "lines",
        "slices": ["slice 3"],
        "mask": None,
        "n_candidates": 60,
        "n_held_out": 6,
        "floor": 0.021,
        "resolution": 0.001,
        "draws": [{"draw": d, "digest": "ab", "floor": 0.021, "resolution": 0.001} for d in range(5)],
        "methods": entries,
        "ranking": list(reversed(methods)),
        "says": "The last method predicts best.",
    }
