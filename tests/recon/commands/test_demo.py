"""The demo's images must show its phantom: right in place and intensity, without the aliasing of R = 3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import recon.commands.demo
from kspace.errors import InputError
from kspace.simulation.acquisition import Acquisition
from recon import cli
from recon.commands.demo import HEAD_CENTRE_M, demo, head_phantom, head_scan, read_slices, truth_of


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Acquisition:
    scan = head_scan(matrix=96, n_slices=2)
    monkeypatch.setattr(recon.commands.demo, "head_scan", lambda: scan)
    return scan


def test_demo_shows_the_phantom(small: Acquisition, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path / "demo", ("sense",)) == 0
    named = [Path(line) for line in capsys.readouterr().out.splitlines() if line.startswith(str(tmp_path))]
    kinds = {"phantom.mrd.h5", "phantom.nii.gz", "phantom.png", "phantom_dicom", "phantom.json"}
    assert {p.relative_to(tmp_path / "demo").as_posix() for p in named} == {"phantom.png", *(f"sense/{kind}" for kind in kinds)}
    assert all(p.exists() for p in named)
    assert json.loads((tmp_path / "demo" / "sense" / "phantom.json").read_text())["warnings"] == []
    series = read_slices(tmp_path / "demo" / "sense" / "phantom.mrd.h5")
    for index in range(2):
        truth, image = truth_of(small, index), series[index]
        inside = truth > 0.1 * truth.max()
        assert np.linalg.norm((image - truth)[inside]) < 0.06 * np.linalg.norm(truth[inside])
        # What is aliased by a third of the field of view looks like the truth moved there: 0.07 of it, zero-filled.
        ghost = np.roll(truth, 32, axis=0) * ~inside
        assert np.abs((image * ghost).sum()) < 0.05 * (ghost**2).sum()


def test_demo_does_not_overwrite(small: Acquisition, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no method 'magic'"):
        demo(tmp_path, ("sense", "magic"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "phantom.h5").write_text("mine")
    with pytest.raises(InputError, match=r"phantom.h5: the file exists; give --force"):
        demo(tmp_path)
    assert (tmp_path / "phantom.h5").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*: cannot create the output folder \(.*\)"):
        demo(tmp_path / "file" / "demo", ("sense",))


def test_the_scan_matches_its_description() -> None:
    scan = head_scan()
    assert scan.spaces[0].encoded_matrix == (512, 256, 1)
    assert scan.spaces[0].acceleration == (3, 1)
    assert scan.spaces[0].calibration_mode == "embedded"
    assert scan.coils.n_coils == 8
    assert set(scan.headers["idx"]["slice"][scan.imaging].tolist()) == {0, 1, 2}


def test_head_looks_forward_and_has_its_large_ventricle_on_the_right() -> None:
    phantom = head_phantom(HEAD_CENTRE_M)
    x, y, z = HEAD_CENTRE_M
    assert phantom.image(x, y - 0.04, z) == pytest.approx(0.78)  # the bright ellipse lies to the front, -y
    assert phantom.image(x - 0.0215, y - 0.004, z) == pytest.approx(0.18)
    assert phantom.image(x - 0.0350, y - 0.004, z) == pytest.approx(0.18)  # the patient's right is -x
    assert phantom.image(x + 0.0350, y - 0.004, z) == pytest.approx(0.60)
    assert phantom.image(x, y - 0.0965, z) == pytest.approx(0.85)
    assert phantom.image(x, y - 0.0990, z) == 0
    grid = np.linspace(-0.1, 0.1, 201)
    values = phantom.image(x + grid, y + grid[:, None], np.full((1, 1), z))
    assert values.min() > -1e-12
    assert values.max() < 1.2


@pytest.mark.parametrize(
    ("words", "methods"), [([], ["sense", "l1-wavelet", "refinegan"]), (["--methods", "tv", "rss"], ["tv", "rss"])]
)
def test_methods_replace_the_default_ones(words: list[str], methods: list[str]) -> None:
    assert cli._parse(["demo", *words])[1]["methods"] == methods
