"""`recon models`: model cards of bundled weights and of weight files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recon.methods import weights
from recon.methods.weights import Card


def models(name: str = "", json_output: bool = False) -> None:
    """List bundled weights, or print a model card.

    Parameters
    ----------
    name
        Name of bundled weights or path of a weight file, to print its complete card. Default: list the bundled weights.
    json_output
        Print the cards as JSON.
    """
    if name:
        path = weights.find(name)
        card, state = weights.read(path)
        n = sum(x.numel() for x in state.values())
        print(json.dumps(asdict(card), indent=2) if json_output else describe(card, path, n))
        return
    cards = {path: weights.read_card(path) for path in weights.bundled().values()}
    if json_output:
        print(json.dumps([asdict(card) for card in cards.values()], indent=2))
    elif not cards:
        print("no bundled weights in this version; recon export writes the weights of a training run")
    else:
        print("\n".join(_line(card, path) for path, card in cards.items()))
        print("\nrecon models NAME prints the complete card.")


def _line(card: Card, path: Path) -> str:
    metrics, envelope = card.metrics, card.envelope
    gain = f"{metrics['gain_db']:+.1f} dB over SENSE" if "gain_db" in metrics else "not validated"
    accelerations = envelope.get("acceleration") or ["?"]
    size = path.stat().st_size / 1e6
    sampling = f"R {_span(accelerations)}, {_span(envelope.get('coils') or ['?'])} coils"
    if not envelope.keys() & {"masks", "acceleration", "coils"}:
        sampling = "a prior, for any sampling"
    return f"{card.name}: {card.system} ({card.preset}), {size:.1f} MB, {gain}, {sampling}, {card.data.get('source', '?')}"


def _span(values: list[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def describe(card: Card, path: Path, n_parameters: int) -> str:
    """Model card as text, one line per section."""
    lines = [str(path), f"  system      {card.system}, preset {card.preset}, {n_parameters:,} parameters"]
    for title in ("envelope", "data", "training", "metrics", "versions"):
        lines.append(f"  {title:<11} {_entries(getattr(card, title))}")
    if card.notes:
        lines.append(f"  notes       {card.notes}")
    return "\n".join([*lines, f"  sha256      {card.sha256}", "  Not for diagnostic use."])


def _entries(found: Mapping[str, Any]) -> str:
    return "; ".join(f"{k} {_value(v)}" for k, v in found.items()) or "unknown"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_value(v)}" for k, v in value.items())
    return str(value)
