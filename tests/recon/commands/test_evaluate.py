"""`recon evaluate` prints what fastMRI's evaluation prints, and says in one line what cannot be compared."""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from fastmri import evaluate as fastmri_evaluate

from kspace.errors import InputError
from recon.commands.evaluate import evaluate


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three volumes, taller than wide as fastMRI's are not cut, and predictions that were."""
    targets, predictions = tmp_path / "targets", tmp_path / "predictions"
    generator = np.random.default_rng(0)
    for folder in (targets, predictions):
        folder.mkdir()
    for i, height in enumerate((24, 20, 20)):
        y, x = np.mgrid[-1 : 1 : height * 1j, -1:1:20j]
        image = 1e-4 * ((x**2 + y**2) < 0.6) * (1 + 0.3 * np.sin(9 * x)) * np.array([1, 0.8])[:, None, None]
        with h5py.File(targets / f"v{i}.h5", "w") as file:
            file["reconstruction_rss"] = image.astype(np.float32)
            file.attrs.update({"acquisition": "AXT2" if i else "AXT1", "acceleration": 4 * (1 + (i == 2))})
        noisy = np.abs(image + 5e-6 * (i + 1) * generator.standard_normal(image.shape))
        top = (height - 20) // 2
        with h5py.File(predictions / f"v{i}.h5", "w") as file:
            file["reconstruction"] = noisy[:, top : top + 20].astype(np.float32)
    return targets, predictions


def published(folders: tuple[Path, Path], acquisition: str | None = None, acceleration: int | None = None) -> dict[str, str]:
    arguments = argparse.Namespace(
        target_path=folders[0], predictions_path=folders[1], acquisition=acquisition, acceleration=acceleration
    )
    metrics = fastmri_evaluate.evaluate(arguments, "reconstruction_rss")
    means, deviations = metrics.means(), metrics.stddevs()  # its own printing fails on the array that its SSIM is
    return {name: f"{np.squeeze(means[name]):.4g} +/- {2 * np.squeeze(deviations[name]):.4g}" for name in means}


@pytest.mark.parametrize("chosen", [{}, {"acquisition": "AXT2"}])
def test_prints_fastmri_metrics(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], chosen: dict[str, str]) -> None:
    evaluate(*folders, **chosen)
    lines = capsys.readouterr().out.splitlines()
    ours = dict(re.findall(r"(\w+) = (\S+ \+/- \S+)", lines[0]))
    assert lines[0].startswith("whole")
    assert lines[1].startswith("support")
    assert ours == published(folders, **chosen)
    assert f"{3 - len(chosen)} volumes, {6 - 2 * len(chosen)} slices, against reconstruction_rss; fastmri:" in lines[2]


def test_selection_by_acceleration_and_single_files(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(*folders, acceleration=8)
    by_choice = capsys.readouterr().out
    evaluate(folders[0] / "v2.h5", folders[1] / "v2.h5")
    assert capsys.readouterr().out == by_choice
    assert "1 volume, 2 slices" in by_choice
    assert "+/- -" in by_choice
    evaluate(folders[0] / "v2.h5", folders[1])
    assert capsys.readouterr().out == by_choice
    with pytest.raises(InputError, match="no volume of acquisition AXFLAIR"):
        evaluate(*folders, acquisition="AXFLAIR")


def test_csv(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(*folders, csv=tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["volume"] for row in rows] == ["v0.h5", "v1.h5", "v2.h5"]
    mean = published(folders)["PSNR"].split()[0]
    assert f"{np.mean([float(row['psnr']) for row in rows]):.4g}" == mean
    with pytest.raises(InputError, match="cannot write"):
        evaluate(*folders, csv=tmp_path / "no" / "t.csv")


def test_other_conventions(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(*folders, convention="seitzer")
    printed = capsys.readouterr().out
    assert "HFEN" in printed
    assert "seitzer: by slice" in printed
    with pytest.raises(InputError, match="--convention: unknown convention 'psnr'; choose from fastmri, "):
        evaluate(*folders, convention="psnr")


def test_single_coil_targets(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in folders[0].iterdir():
        with h5py.File(path, "a") as file:
            file["reconstruction_esc"] = 2 * file["reconstruction_rss"][()]
    evaluate(*folders)
    assert "against reconstruction_rss" in capsys.readouterr().out
    evaluate(*folders, challenge="singlecoil")
    assert "against reconstruction_esc" in capsys.readouterr().out


def rewrite(path: Path, name: str, values: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


def test_incompatible_files_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    targets, predictions = folders
    with pytest.raises(InputError, match="a single prediction file for 3 targets"):
        evaluate(targets, predictions / "v0.h5")
    with pytest.raises(InputError, match="no such file or folder"):
        evaluate(targets, tmp_path / "absent")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"no \.h5 files found"):
        evaluate(tmp_path / "nothing", predictions)
    stored = np.ones((2, 20, 20), np.float32)
    for values, match in [
        (stored[:1], "1 slices, the target has 2"),
        (stored[:, :10], "too small: 10 x 20, the target 24 x 20"),
        (stored * 1j, "reconstruction is complex64"),
        (stored * np.nan, "holds NaN"),
        (None, "no data set 'reconstruction'"),
    ]:
        rewrite(predictions / "v0.h5", "reconstruction", values)
        with pytest.raises(InputError, match=match) as failure:
            evaluate(targets, predictions)
        assert "v0.h5" in str(failure.value)
        if values is None:
            break
    (predictions / "v1.h5").write_bytes(b"no")
    with pytest.raises(InputError, match=r"v1\.h5: not an HDF5 file"):
        evaluate(targets / "v1.h5", predictions)
    for name in ("v0.h5", "v1.h5"):
        (predictions / name).unlink()
    with pytest.raises(InputError, match=r"2 of 3 targets have no prediction \(v0\.h5, v1\.h5\)"):
        evaluate(targets, predictions)
