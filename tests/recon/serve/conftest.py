"""A scan that the tests of the server send."""

from __future__ import annotations

from pathlib import Path

import pytest

from kspace.simulation import acquisition as acquire
from kspace.simulation.measurement import write_scan
from tests.support.raw_files import plain


@pytest.fixture(scope="session")
def four_slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undersampled slices with calibration lines, flags of last lines, and a noise scan."""
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    made = acquire.accelerate(plain(noise=0.02, n_slices=4), 2, calibration=16)
    write_scan(acquire.add_noise_scan(acquire.mark_last(made), 32), path)
    return path
