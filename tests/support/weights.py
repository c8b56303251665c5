"""Small networks with cards, as files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from models.parts.interface import Generator
from models.systems import build_generator, resolve
from recon.methods import weights
from recon.methods.weights import Card
from tests.support.training import small


def trained(system: str = "dagan", **sections: Any) -> tuple[Generator, Card]:
    """A network that does something, and its card."""
    config = small(system, **sections)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)  # what a test finds must not depend on the tests before it
        network = build_generator(config).eval()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return network, Card("", resolve(config), {"coils": [2, 4], "acceleration": [2.0, 4.0]}, metrics={"gain_db": 1.25})


def written(folder: Path, name: str = "small.safetensors", **more: Any) -> Path:
    network, card = trained(**more)
    weights.write(folder / name, network.state_dict(), card)
    return folder / name
