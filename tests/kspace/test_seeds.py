"""Seeds are what they always were: masks, splits and simulations follow from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from kspace.io.checksums import sha256
from kspace.seeds import RandomGenerator, seed_of
from kspace.simulation.from_images import generator


def test_seeds_of_texts_do_not_change() -> None:
    """The numbers are those of the versions before these functions shared a home."""
    assert seed_of("0/volume.h5/3") == 2373409206071393421
    assert RandomGenerator("mask 1").uniform(2).tolist() == [0.08648183828625622, 0.1597154028219866]
    assert torch.rand(2, generator=generator("a", 1, 2.5)).tolist() == [0.37668532133102417, 0.6417273283004761]


def test_seeds_have_63_bits() -> None:
    seeds = [seed_of(str(i)) for i in range(200)]
    assert len(set(seeds)) == 200
    assert 2**62 < max(seeds) < 2**63


def test_the_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "nothing")
