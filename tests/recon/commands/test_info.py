"""`recon info`: how facts of a file are put into words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from kspace.container import ImageIndex
from recon.run import describe
from recon.run.describe import describe_volume
from recon.run.selection import by_reason


def volume(**facts: Any) -> Any:
    """Of a fastMRI volume what is described."""
    values = {"n_slices": 3, "n_coils": 2, "matrix": (8, 16), "recon_shape": (8, 8), "mask": torch.ones(8, dtype=torch.bool)}
    return SimpleNamespace(**(values | {"attributes": {}, "patient": "", "target_name": None} | facts))


def test_missing_names_are_printed_as_unnamed() -> None:
    assert "  acquisition unnamed, patient unnamed" in list(describe_volume(volume()))
    assert "  acquisition unnamed, patient unnamed" in list(describe_volume(volume(attributes={"acquisition": ""})))
    named = volume(attributes={"acquisition": "AXT2"}, patient="abc")
    assert "  acquisition AXT2, patient abc" in list(describe_volume(named))


def test_a_position_is_written_as_a_point() -> None:
    assert describe._lps((0.02, 0.0666, -1e-9)) == "(20.0, 66.6, 0.0) mm LPS"


def test_incomplete_images_are_grouped_by_reason() -> None:
    absent = [(ImageIndex(slice=s), "no readouts; 8 others are there") for s in range(1, 20)]
    assert list(by_reason([(ImageIndex(), "the scan stopped after 3 of its 8 readouts"), *absent])) == [
        "slice 0: the scan stopped after 3 of its 8 readouts",
        "slice 1; slice 2; slice 3; slice 4 and 15 more: no readouts; 8 others are there",
    ]
