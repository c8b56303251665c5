"""Every example runs as it stands, on data of its own, and shows what it says."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from recon.methods import classical
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))


def check_nifti(said: dict[str, Any]) -> None:
    assert said["nifti"].shape == (160, 160, 3, 1)
    assert [p.name for p in said["written"]] == ["scan.nii.gz", "scan_dicom", "scan.json"]
    # The middle slice lies where the header of the readouts says, in RAS millimetres.
    centre = said["nifti"].affine @ (80, 80, 1, 1)
    position = 1e3 * np.array(said["images"][1].geometry.position_m) * (-1, -1, 1)
    np.testing.assert_allclose(centre[:3], position, atol=1e-3)


def check_operators(said: dict[str, Any]) -> None:
    assert max(said["forward_difference"], said["adjoint_difference"], said["adjointness"]) < 5e-6
    assert said["sense_difference"] < 1e-3


def check_training(said: dict[str, Any]) -> None:
    assert said["generated"].generated
    shown = {name: np.abs(image.numpy()) for name, image in said["panels"].items()}
    assert np.corrcoef(shown["dagan, 30 steps"].ravel(), shown["sense"].ravel())[0, 1] > 0.9


def check_comparison(said: dict[str, Any]) -> None:
    found = said["decibels"]
    assert found["zero-filled"] + 3 < found["sense"] < found["l1-wavelet"]
    assert found["gancs"] > found["sense"]


def check_own_weights(said: dict[str, Any]) -> None:
    assert said["images"].generated
    assert np.corrcoef(said["generated"].ravel(), said["classical"].ravel())[0, 1] > 0.98


def check_method(said: dict[str, Any]) -> None:
    assert said["distances"] == sorted(said["distances"], reverse=True)
    assert said["distances"][-1] < 0.2 * said["distances"][0]


CHECKS = (check_nifti, check_operators, check_training, check_comparison, check_own_weights, check_method)


@pytest.mark.parametrize(("path", "check"), list(zip(EXAMPLES, CHECKS, strict=True)), ids=[p.stem for p in EXAMPLES])
def test_example(path: Path, check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classical, "METHODS", dict(classical.METHODS))
    before = mpl.get_backend()
    plt.switch_backend("agg")
    try:
        with warnings.catch_warnings():
            # Matplotlib asks torch for arrays in an older way; libraries below Lightning are as old.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            said = runpy.run_path(str(path), run_name="__main__")
        figures = plt.get_fignums()
    finally:
        plt.close("all")
        plt.switch_backend(before)
    assert figures, "an example shows a figure"
    check(said)
