"""From the held-out energies of every draw and method to means, spreads, ranks and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CERTAIN = 2.0  # standard errors
STATISTICS = ("values", "mean", "spread", "behind", "behind_error", "tied")

Energy = NDArray[np.float64]


@dataclass
class Energies:
    """Sums over the held-out samples of one draw: of all its images, and of all coils."""

    signal: float = 0.0  # noise included
    noise: float | None = 0.0  # expected; None where unknown
    noise_variance: float = 0.0  # of that energy
    errors: dict[str, float] = field(default_factory=dict)
    digest: str = ""

    @property
    def clean(self) -> float:
        """Energy of the signal."""
        return self.signal - (self.noise or 0.0)

    def wrong(self, name: str) -> float:
        """Energy of a method's error, without the noise."""
        return self.errors[name] - (self.noise or 0.0)

    def share(self, every: Energies) -> float | None:
        """Part of the signal energy of all draws; None where that is nothing but noise."""
        return self.clean / every.clean if every.clean > 0 else None

    @property
    def floor(self) -> float | None:
        """Expected noise energy over signal energy; None where the noise is unknown, or all there is."""
        return None if self.noise is None or self.clean <= 0 else self.noise / self.clean

    @property
    def resolution(self) -> float | None:
        """Standard deviation that the noise gives the error of a perfect prediction; None as for `floor`."""
        return None if self.noise is None or self.clean <= 0 else math.sqrt(self.noise_variance) / self.clean


def rows(
    names: Sequence[str], draws: Sequence[Energies], reasons: Mapping[str, str], notes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One dictionary for each method; `recon.compare.held_out` says what is in it."""
    clean = np.array([e.clean for e in draws])
    if clean.sum() <= CERTAIN * math.sqrt(sum(e.noise_variance for e in draws)):
        reasons = {**dict.fromkeys(names, "the held-out samples hold nothing but noise"), **reasons}
    wrong = {name: np.array([e.wrong(name) for e in draws]) for name in names if name not in reasons}
    order = sorted(wrong, key=lambda name: float(wrong[name].sum()))
    return [
        {
            "name": name,
            **(_statistics(wrong[name], wrong[order[0]], clean) if name in wrong else dict.fromkeys(STATISTICS)),
            "rank": order.index(name) + 1 if name in wrong else None,
            "reason": reasons.get(name),
            "note": notes.get(name),
        }
        for name in names
    ]


def _statistics(wrong: Energy, best: Energy, clean: Energy) -> dict[str, Any]:
    """Of the error energy of a method and of the best one, and the signal energy, all ``(draw)``."""
    mean, spread = _ratio(wrong, clean)
    behind, difference_spread = _ratio(wrong - best, clean)
    error = None if difference_spread is None else difference_spread / math.sqrt(len(clean))
    values = [float(w / c) if c > 0 else None for w, c in zip(wrong, clean, strict=True)]
    # One draw cannot tell anything apart.
    tied = error is None or behind <= CERTAIN * error
    return dict(zip(STATISTICS, (values, mean, spread, behind, error, tied), strict=True))


def _ratio(wrong: Energy, clean: Energy) -> tuple[float, float | None]:
    """Ratio of the sums, and the standard deviation of one draw about it (Cochran 1977, Sampling Techniques, section 6.3)."""
    n = len(clean)
    ratio = float(wrong.sum() / clean.sum())
    if n == 1:
        return ratio, None
    return ratio, math.sqrt(float(((wrong - ratio * clean) ** 2).sum()) / (n - 1)) / abs(float(clean.mean()))


def sentence(result: Mapping[str, Any]) -> str:
    """Which method predicts best, which cannot be told from it, and what limits the statement."""
    table = {row["name"]: row for row in result["methods"]}
    if not result["ranking"]:
        return f"No method could be judged: {next(iter(table.values()))['reason']}."
    best, *others = result["ranking"]
    spread = "" if table[best]["spread"] is None else f" ± {table[best]['spread']:.1g}"
    text = f"{best} predicts the held-out {result['unit']} best (error {table[best]['mean']:.3g}{spread})"
    tied = [name for name in others if table[name]["tied"]]
    text += f", not told apart from {', '.join(tied)}" if tied else ""
    floor = result["floor"]
    text += "; the noise is not known and part of every error" if floor is None else f"; noise floor {floor:.3g}"
    failed = [name for name in table if table[name]["reason"] is not None]
    return text + (f"; failed: {', '.join(failed)}." if failed else ".")
