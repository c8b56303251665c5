"""The simulation covers the shared scans, as it was set to."""

from __future__ import annotations

from pathlib import Path

import pytest

from kspace.simulation.check import outside, ranges
from kspace.simulation.from_images import SynthesisOptions
from kspace.simulation.realism import SNR, Realism
from recon.datasets.simulation_check import measure_scan, measure_simulation


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_simulation_covers_the_shared_scans(data_dir: Path) -> None:
    scans = {
        name: row for path in sorted((data_dir / "fastmri_style").glob("*.h5")) for name, row in measure_scan(path).items()
    }
    options = SynthesisOptions(snr=SNR, realism=Realism())
    limits = ranges(measure_simulation(data_dir / "brain_t1c", options, 100, group_size=12))
    missed = {name: outside(row, limits) for name, row in scans.items()}
    assert not {name: names for name, names in missed.items() if names}
