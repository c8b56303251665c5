"""Domain guard: in what a scan differs from everything that the weights were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kspace.masks import acceleration
from kspace.operators import ForwardModel
from recon.evidence import masks, statistics
from recon.evidence.calibration import Calibration, Setting, Thresholds
from recon.evidence.record import GuardReport
from recon.methods.weights import Card

MATRIX_MARGIN = 1.25  # networks without position are little affected by the size itself
SNR_MARGIN = 2.0
FIELD_MARGIN = 1.5
CENTRE_MARGIN = 1.5
PROFILE_LIMIT = {"points": 0.066, "random lines": 0.15, "regular lines": 0.08}  # random lines scatter by up to 0.14


@dataclass(frozen=True)
class ScanFacts:
    """What the guard looks at.

    Attributes
    ----------
    kind, acceleration, profile, centre
        Of the mask: see `recon.evidence.masks`.
    coils, matrix
        Number of coils; points ``(ky, kx)``.
    snr
        Of the classical image; None: unknown.
    field_t
        Field strength in tesla; None: unknown.
    statistics
        See `recon.evidence.statistics`.
    """

    kind: str
    acceleration: float
    profile: tuple[float, ...]
    centre: float
    coils: int
    matrix: tuple[int, int]
    snr: float | None
    field_t: float | None
    statistics: Mapping[str, float]

    @classmethod
    def of(
        cls, y: Tensor, op: ForwardModel, companion: Tensor | None, noise_std: float | None, study: Mapping[str, Any]
    ) -> ScanFacts:
        """Those of k-space ``(*batch coil ky kx)``, its operator and classical image ``(*batch y x)``."""
        plane, shape = masks.plane_of(op.grid_mask), (op.shape[-2], op.shape[-1])
        known = companion is not None and noise_std is not None
        field_t = study.get("systemFieldStrength_T")
        return cls(
            kind=masks.kind_of(plane, shape),
            acceleration=acceleration(plane, shape),
            profile=masks.profile(plane, shape),
            centre=masks.centre_share(plane, shape),
            coils=op.n_coils,
            matrix=shape,
            snr=statistics.snr(companion, noise_std) if companion is not None and noise_std is not None else None,
            field_t=float(field_t) if field_t else None,
            statistics=statistics.image_statistics(y, op, companion, noise_std or 0.0)
            if known and companion is not None
            else {},
        )


def inspect(facts: ScanFacts, card: Card, calibration: Calibration, setting: Setting | None, limits: Thresholds) -> GuardReport:
    """Report on a scan.

    Parameters
    ----------
    facts
        Of the scan.
    card
        Its envelope says what was trained on.
    calibration
        From the same card.
    setting
        The calibration that fits the scan; None: none does.
    limits
        Thresholds of it, or the defaults.
    """
    outside, unknown = _envelope(facts, card)
    _masks(facts, calibration, outside, unknown)
    found = None if setting is None else statistics.distance(facts.statistics, setting.statistics)
    far = found[0] if found is not None else None
    if far is None or limits.distance is None:
        unknown.append("image statistics")
    elif far > limits.distance:
        assert found is not None
        named = ", ".join(found[1])
        outside.append(f"image statistics ({named}): distance {far:.1f}; validation volumes to {limits.distance:.1f}")
    says = "inside of what the weights were trained on" if not outside else f"outside: {'; '.join(outside)}"
    if unknown:
        says += f" (not in the card: {', '.join(unknown)})"
    return GuardReport("amber" if outside else "green", says, tuple(outside), far, limits.distance, tuple(unknown))


def _envelope(facts: ScanFacts, card: Card) -> tuple[list[str], list[str]]:
    envelope, outside, unknown = card.envelope, [], []
    matrix = envelope.get("matrix") or card.data.get("matrix_range")
    checks: list[tuple[str, Any, list[float], float, str]] = [
        ("acceleration", envelope.get("acceleration"), [facts.acceleration], 1.1, "acceleration {:.1f}"),
        ("coils", envelope.get("coils"), [facts.coils], 1.0, "{:.0f} coils"),
        ("matrix", matrix, list(facts.matrix), MATRIX_MARGIN, "matrix {:.0f}"),
        ("SNR", envelope.get("snr"), [] if facts.snr is None else [facts.snr], SNR_MARGIN, "SNR {:.3g}"),
        ("field", envelope.get("field_t"), [] if facts.field_t is None else [facts.field_t], FIELD_MARGIN, "{:.3g} T"),
    ]
    for name, given, values, margin, words in checks:
        known = [float(v) for v in _numbers(given)]
        if not known:
            unknown.append(name)
            continue
        low, high = min(known), max(known)
        far = [v for v in values if not low / margin <= v <= high * margin]
        if far:
            farthest = max(far, key=lambda v: max(low / max(v, 1e-9), v / high))
            outside.append(f"{words.format(farthest)}; trained with {low:g} to {high:g}")
    return outside, unknown


def _numbers(given: Any) -> list[Any]:
    """The numbers of an entry, which may be one, a list of them, or a list of lists."""
    if given is None:
        return []
    if isinstance(given, (list, tuple)):
        return [number for entry in given for number in _numbers(entry)]
    return [given]


def _masks(facts: ScanFacts, calibration: Calibration, outside: list[str], unknown: list[str]) -> None:
    if not calibration.profiles:
        unknown.append("mask family")
        return
    if facts.kind == "complete":
        return
    kinds = sorted({kind for kind, _, _ in calibration.profiles})
    if facts.kind not in kinds:
        outside.append(f"undersampling of {facts.kind}; trained with {', '.join(kinds)}")
        return
    away = masks.nearest_profile(facts.profile, facts.kind, facts.acceleration, calibration.profiles)
    if away is not None and away > PROFILE_LIMIT.get(facts.kind, 0.1):
        outside.append(f"sampling density (differs by {away:.2f} from the nearest mask that was trained on)")
    lines = calibration.calibration_lines
    if lines is not None and not lines[0] / CENTRE_MARGIN <= facts.centre <= lines[1] * CENTRE_MARGIN:
        outside.append(f"{facts.centre:.0%} of the lines as calibration; trained with {lines[0]:.0%} to {lines[1]:.0%}")
