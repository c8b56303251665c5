"""Measurement of the calibration values that a card holds, on volumes whose truth is known and that nothing was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from kspace.masks import acceleration
from kspace.operators import Sense
from recon.evidence import masks, statistics
from recon.evidence.assess import Assessor, EvidenceOptions, ScanEvidence
from recon.evidence.calibration import VERSION
from recon.evidence.record import HeldOutScore
from recon.evidence.replicates import repeat, spread_of
from recon.methods.choose import refined
from recon.methods.classical import CgSense
from recon.methods.generator import GeneratorReconstructor
from recon.methods.refine import Refinement

MARGIN = 1.25  # of a limit over the largest value on the volumes
RED = 2.0  # of the limit at which a classical image is delivered, over that of the warning
SCORES = 4096  # pixels kept of a volume, evenly spread over its quantiles
DRAWS = 4  # of each mask that was trained on
PROFILE_SHAPE = (160, 160)
REFINEMENTS: tuple[Refinement, ...] = ("stack", "none")
# Stands for a held-out score that exists, so that none is measured, and says neither yes nor no.
UNSCORED = HeldOutScore("green", "", math.nan, math.nan, 1.0, None, "lines", 0, ())


@dataclass(frozen=True, eq=False)
class Labelled:
    """One undersampled slice with its truth.

    Attributes
    ----------
    y, op
        Complex ``(coil ky kx)``, and forward model with maps from the acquired samples.
    truth
        Noise-free magnitude, real ``(y x)``, in the units of `y`.
    noise_std
        Of a sample; None: unknown.
    """

    y: Tensor
    op: Sense
    truth: Tensor
    noise_std: float | None


@dataclass
class Measurements:
    """Of one setting, one entry a volume.

    Attributes
    ----------
    kind, accelerations
        Of the masks.
    statistics
        See `recon.evidence.statistics`.
    scores
        By refinement: quantiles of the error over the spread, ``(pixel)``.
    ratios, locals_, shares, gains
        By refinement: of the certificate, of the share of the prior, of the gain over that of the companion.
    """

    kind: str = ""
    accelerations: list[float] = field(default_factory=list)
    statistics: list[dict[str, float]] = field(default_factory=list)
    scores: dict[str, list[Tensor]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    locals_: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)
    gains: dict[str, list[float]] = field(default_factory=dict)

    def entry(self, nominal: float) -> dict[str, Any]:
        """For the card."""
        return {
            "kind": self.kind,
            "acceleration": round(sum(self.accelerations) / len(self.accelerations), 3),
            "n_volumes": len(self.accelerations),
            "factors": {name: _rounded(conformal_factor(found, nominal)) for name, found in self.scores.items()},
            "thresholds": {name: self._limits(name) for name in self.scores},
            "statistics": {name: [_rounded(v) for v in values] for name, values in statistics.centres(self.statistics).items()},
        }

    def _limits(self, name: str) -> dict[str, float]:
        ratio, local = (MARGIN * max(found[name]) for found in (self.ratios, self.locals_))
        limits = {
            "ratio_amber": max(ratio, MARGIN),
            "ratio": RED * max(ratio, MARGIN),
            "local_amber": max(local, MARGIN),
            "local": RED * max(local, MARGIN),
            "share": MARGIN * max(max(self.shares[name]), 1e-6),
            "gain": MARGIN * max(self.gains[name]),
        }
        if (far := largest_distance(self.statistics)) is not None:
            limits["distance"] = MARGIN * far
        return {key: _rounded(value) for key, value in limits.items()}


def conformal_factor(scores: Sequence[Tensor], nominal: float) -> float:
    """Factor of the spread with which a share `nominal` of the pixels is covered, on the mean over volumes.

    Volumes are exchangeable, pixels are not: with n volumes the mean coverage of a new one is at least ``nominal n / (n + 1)``
    whatever its distribution, and `nominal` up to 1 / (n + 1) on average (hierarchical conformal prediction: Lee, Barber and
    Willett 2023, arXiv:2306.06342; split conformal: Vovk, Gammerman and Shafer 2005, doi:10.1007/b106715).

    Parameters
    ----------
    scores
        Error over spread of each volume, ``(pixel)``, as many for each.
    nominal
        Between 0 and 1.
    """
    pooled = torch.cat([s.double() for s in scores]).sort().values
    return float(pooled[min(len(pooled) - 1, int(nominal * len(pooled)))])


def largest_distance(rows: Sequence[Mapping[str, float]]) -> float | None:
    """Largest distance of one volume from the others."""
    if len(rows) < 4:
        return None
    found = [statistics.distance(row, statistics.centres([*rows[:i], *rows[i + 1 :]])) for i, row in enumerate(rows)]
    return max((d[0] for d in found if d is not None), default=None)


def calibrate(
    network: GeneratorReconstructor,
    cases: Mapping[str, Sequence[Callable[[], Labelled]]],
    further: Mapping[str, Sequence[Callable[[], Labelled]]] = MappingProxyType({}),
    nominal: float = 0.9,
    k: int = EvidenceOptions.k,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The entry ``calibration`` of a card.

    Parameters
    ----------
    network
        The generator.
    cases
        By setting, one case a volume; made when they are needed.
    further
        Cases of further volumes, for the image statistics alone: these need no network.
    nominal
        Coverage of the interval.
    k
        Reconstructions for the spread.
    progress
        Called after each case with the name of its setting.
    """
    settings = {}
    for key, members in cases.items():
        found = Measurements()
        for make in members:
            _measure(network, make(), k, found)
            if progress is not None:
                progress(key)
        for make in further.get(key, ()):
            case = make()
            _, scan = _scan(network, case, k)
            found.statistics.append(dict(scan.facts.statistics))
        settings[key] = found.entry(nominal)
    drawn = masks.trained_profiles(list(network.card.envelope.get("masks", ())), PROFILE_SHAPE, DRAWS)
    centres = [centre for *_, centre in drawn]
    return {
        "version": VERSION,
        "nominal": nominal,
        "k": k,
        "settings": settings,
        "profiles": [[kind, _rounded(r), [_rounded(v) for v in profile]] for kind, r, profile, _ in drawn],
        "calibration_lines": [_rounded(min(centres)), _rounded(max(centres))] if centres else None,
        "margin": MARGIN,
    }


def _measure(network: GeneratorReconstructor, case: Labelled, k: int, found: Measurements) -> None:
    assessor, scan = _scan(network, case, k)
    plane = masks.plane_of(case.op.mask)
    found.kind = scan.facts.kind
    found.accelerations.append(acceleration(plane, (case.y.shape[-2], case.y.shape[-1])))
    found.statistics.append(dict(scan.facts.statistics))
    assert scan.noise is not None, "an empty slice cannot calibrate"
    gain = None
    # Both refinements repeat the network (`quick`).
    repeated = repeat(assessor.network, assessor.network, scan.y, case.op, scan.noise[0], k, 0)
    for name in REFINEMENTS:
        method = fit(refined(assessor.network, name), case.y, case.op)
        image = method(case.y, case.op)
        # Stability is the network's own and is measured once; the spread, here, as its scores are needed.
        only = replace(assessor, options=replace(assessor.options, level="basic" if gain is not None else "full", k=0))
        judged = only.judge(image, scan, method, UNSCORED, "")
        if judged.stability is not None and judged.stability.companion_gain:
            gain = judged.stability.gain / judged.stability.companion_gain
        assert judged.certificate is not None
        assert judged.determined is not None
        certificate = judged.certificate
        sigma = spread_of(image, repeated, case.op.support)
        inside = case.op.support & (sigma > 0)
        scores = ((image.abs() - case.truth).abs() / sigma.clamp(min=1e-30))[inside].sort().values
        index = torch.linspace(0, max(len(scores) - 1, 0), SCORES).long()
        for store, value in (
            (found.ratios, certificate.ratio),
            (found.locals_, certificate.local / max(certificate.companion_local or 0.0, 1.0)),
            (found.shares, judged.determined.share_of_prior),
            (found.gains, gain or 1.0),
        ):
            store.setdefault(name, []).append(value)
        found.scores.setdefault(name, []).append(scores[index])


def _scan(network: GeneratorReconstructor, case: Labelled, k: int) -> tuple[Assessor, ScanEvidence]:
    # A card that has no calibration yet: nothing of an older one may enter.
    bare = replace(network, card=replace(network.card, calibration={}))
    companion = CgSense()
    assessor = Assessor(bare, companion, EvidenceOptions(k=k))
    return assessor, assessor.scan(case.y, case.op, companion(case.y, case.op), case.noise_std, {})


def fit(method: Any, y: Tensor, op: Sense) -> Any:
    """A stack with the weights of one slice, k-space ``(coil ky kx)``; any other method as it is."""
    from recon.methods.stack import Stack

    return method.fitted([(y, op)]) if isinstance(method, Stack) else method


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
