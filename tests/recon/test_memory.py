"""A scan is reconstructed repetition by repetition: its length costs time, not memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.pipeline import peak_bytes, write_repetitions

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/status")


@pytest.mark.parametrize(
    ("method", "matrix"),
    [("rss", 128), pytest.param("rss", 256, marks=pytest.mark.slow), pytest.param("sense", 256, marks=pytest.mark.slow)],
)
def test_twenty_repetitions_take_little_more_memory_than_two(method: str, matrix: int, tmp_path: Path) -> None:
    peaks = {}
    for n in (2, 20):
        write_repetitions(tmp_path / f"{n}.h5", n, matrix)
        peaks[n] = peak_bytes(tmp_path / f"{n}.h5", method)
    assert peaks[20] < 1.5 * peaks[2]
    assert peaks[20] < (tmp_path / "20.h5").stat().st_size
