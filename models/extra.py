"""Terms that any raw preset may add to its own: every loss is a key of a configuration (``extra: {ssim: 0.1}``)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from models import losses
from models.adversarial import feature_matching
from models.interface import LossTerm, terms


@dataclass(frozen=True)
class Extra:
    """Weights, all 0 unless given; each is logged as ``extra_`` and its name (see the function of that name)."""

    l1: float = 0.0
    l2: float = 0.0
    nmse: float = 0.0
    structural_dissimilarity: float = 0.0
    total_variation: float = 0.0
    frequency: float = 0.0
    kspace_masked: float = 0.0
    kspace_full: float = 0.0
    data_consistency_error: float = 0.0
    cyclic_measurement: float = 0.0
    cyclic_image: float = 0.0
    feature_matching: float = 0.0


def extra_terms(extra: Extra) -> tuple[LossTerm, ...]:
    """The generator terms that `extra` asks for."""
    functions = {**vars(losses), "feature_matching": feature_matching}
    return terms(*(LossTerm(f"extra_{f.name}", getattr(extra, f.name), functions[f.name]) for f in fields(extra)))
