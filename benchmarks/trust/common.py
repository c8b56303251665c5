"""Volumes, methods and numbers that the parts share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kspace.container import Header, ImageIndex, KSpace
from kspace.masks import MaskSpec
from recon.commands.calibrate import labelled
from recon.compare.cases import FullVolume, find_data, parse_masks, spread
from recon.compare.metrics import slice_figure
from recon.evidence.calibrate import Labelled, fit
from recon.evidence.record import ImageEvidence
from recon.evidence.replicates import held_out_of_fit
from recon.methods.choose import Method, choose
from recon.methods.stack import Stack
from recon.run.delivery import Delivery
from recon.run.log import Log
from recon.run.options import RunOptions

SYSTEMS = ("refinegan", "gancs", "dagan", "reconglgan")


@dataclass(frozen=True)
class Setting:
    """What the command line says."""

    volumes: tuple[str, ...]
    data: Path
    weights: Path | None
    masks: str
    at_most: int
    system: str = "refinegan"

    def test_volumes(self) -> list[FullVolume]:
        """Volumes with truth."""
        return spread([v for v in find_data(self.volumes)[0] if v.truth is not None], self.at_most)

    def specs(self) -> list[MaskSpec]:
        """Masks."""
        return parse_masks(self.masks)

    def cases(self) -> Iterator[tuple[FullVolume, MaskSpec, Labelled]]:
        """The middle slice of each volume under each mask."""
        for volume in self.test_volumes():
            for spec in self.specs():
                yield volume, spec, labelled(volume, spec)

    def method(self, name: str | None = None, refine: Any = "stack") -> Method:
        """A bundled generator, by default that of the command line, which may have other weights."""
        name = name or self.system
        return _chosen(name, self.weights if name == self.system else None, refine)


@lru_cache
def _chosen(name: str, weights: Path | None, refine: Any) -> Method:
    return choose(name, weights=weights, refine=refine)


def deliver(method: Method, case: Labelled, **options: Any) -> tuple[ImageEvidence, dict[str, Tensor], Log]:
    """What `recon run` delivers for one slice: evidence, planes ``(y x)`` by role, log with its warnings."""
    log = Log(tell=None)
    k = KSpace(case.y, _with_coils(case.op.mask), Header(noise_std=case.noise_std))
    op = replace(case.op, mask=k.mask)
    made = options.pop("study", None)
    if made:
        k = replace(k, header=replace(k.header, study=made))
    delivery = Delivery(method, RunOptions(method=method.name, **options), log)
    fits: list[Any] = []

    def fitted(index: ImageIndex) -> Method:
        reconstruct = method.reconstruct
        if isinstance(reconstruct, Stack):
            reconstruct = fit(replace(reconstruct, companion=delivery.companion), k.data, op)
            fits.append(reconstruct.fit)
        return replace(method, reconstruct=reconstruct)

    planes = delivery.planes(k, op, fitted, lambda index: held_out_of_fit(fits[-1], ("slice 0",)) if fits else None)
    delivery.summarise()
    return log.evidence[-1], planes, log


def _with_coils(mask: Tensor) -> Tensor:
    return mask if mask.ndim > 2 else mask.unsqueeze(0)


def psnr(truth: Tensor, image: Tensor) -> float:
    """PSNR on the support in dB, of magnitudes ``(y x)``."""
    return slice_figure("psnr_support", truth.numpy().astype(np.float32), image.abs().numpy().astype(np.float32))


def auc(negative: Sequence[float], positive: Sequence[float]) -> float:
    """Area under the ROC curve (Mann and Whitney 1947, doi:10.1214/aoms/1177730491)."""
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    return wins / max(len(positive) * len(negative), 1)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over volumes and its 95 % interval by Student's t."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return mean, mean - half, mean + half


def blob(shape: Sequence[int], centre: tuple[int, int], diameter: float, kind: str) -> Tensor:
    """A disc with a soft edge, or a Gaussian of that full width at half maximum: real ``(y x)``, peak 1."""
    y, x = (torch.arange(n, dtype=torch.float32) - c for n, c in zip(shape, centre, strict=True))
    r = torch.hypot(y[:, None], x)
    if kind == "disc":
        return (diameter / 2 + 0.5 - r).clamp(0, 1)
    return torch.exp(-4 * math.log(2) * (r / diameter) ** 2)


def place_in(truth: Tensor, rng: torch.Generator, margin: int) -> tuple[int, int]:
    """A random pixel of the object ``(y x)``, away from its edge."""
    inside = truth > 0.2 * truth.flatten().quantile(0.99)
    full = torch.nn.functional.avg_pool2d(inside[None].float(), 2 * margin + 1, 1, margin)[0] > 0.9
    where = (full if bool(full.any()) else inside).nonzero()
    y, x = where[int(torch.randint(len(where), (), generator=rng))].tolist()
    return y, x
