"""Fixtures that every test may use."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# Loader workers compute with one thread; tests that compare with them bit for bit must as well.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real scans; the test skips, saying so, where it is absent."""
    path = Path(os.environ.get("RECON_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"needs real scans: {path} is absent (set RECON_DATA)")
    return path


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Every test starts from the same seeds and must leave the globals as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the global generator is the point
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == dtype, "a test changed torch's default dtype"
    assert torch.get_num_threads() == threads, "a test changed torch's thread count"
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
