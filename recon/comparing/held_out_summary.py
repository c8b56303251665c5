"""From the held-out energies of every draw and method to means, spreads, ranks and a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from recon.comparing.held_out import Energies

CERTAIN = 2.0  # standard errors


def rows(
    names: Sequence[str], draws: Sequence[Energies], reasons: Mapping[str, str], notes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One dictionary for each method; `recon.comparing.held_out` says what is in it."""
    if any(e.clean <= 0 for e in draws):
        why = "the held-out samples hold nothing but noise"
        reasons = {**dict.fromkeys(names, why), **reasons}
    values = {name: [e.error(name) for e in draws] for name in names if name not in reasons}
    order = sorted(values, key=lambda name: float(np.mean(values[name])))
    return [
        {
            "name": name,
            **_statistics(values.get(name), values[order[0]] if order else None),
            "rank": order.index(name) + 1 if name in values else None,
            "reason": reasons.get(name),
            "note": notes.get(name),
        }
        for name in names
    ]


def _statistics(values: list[float] | None, best: list[float] | None) -> dict[str, Any]:
    if values is None or best is None:
        return dict.fromkeys(("values", "mean", "spread", "behind", "behind_error", "tied"))
    behind = np.subtract(values, best)
    n = len(values)
    error = float(behind.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return {
        "values": [float(v) for v in values],
        "mean": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if n > 1 else None,
        "behind": float(behind.mean()),
        "behind_error": error,
        # One draw cannot tell anything apart.
        "tied": error is None or float(behind.mean()) <= CERTAIN * error,
    }


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
