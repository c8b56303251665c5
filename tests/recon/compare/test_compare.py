"""`recon compare` from the command line: the right figures, nothing lost by an interruption, nothing joined that differs."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastmri import evaluate as fastmri_evaluate
from torch import Tensor

from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.compare import store
from recon.datasets.kspace_dataset import KSpaceDataset
from recon.methods import bart, classical
from recon.metrics.image import psnr
from recon.report import report
from tests.support import raw_files
from tests.support.comparisons import MASK, SHAPE, run, volume, volumes
from tests.support.weights import written

MASKS = f"{MASK},poisson2d:3,centre=10"
METHODS = "zero-filled,sense,tv,mine"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of drawing saved: the first command below writes its report, and the report has tests of its own."""
    monkeypatch.setattr(report, "write", lambda folder: folder / "index.html")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of everything, tuned; data beside it in `heads` and `tune`."""
    folder = tmp_path_factory.mktemp("compare")
    volumes(folder / "heads", boxes=[(1, 0, 8, 9, 16, 18)])
    volumes(folder / "tune" / "deep", 1, n_slices=3)
    (folder / "tune" / "deep" / "v0.h5").rename(folder / "tune" / "deep" / "t.h5")
    weights = written(folder)
    assert run(
        *(folder / "heads", "-o", folder / "out", "--methods", METHODS, "--masks", MASKS, "--weights", f"mine={weights}"),
        *("--tune-on", folder / "tune", "--tune-slices", 2, "--conventions", "dagan,refinegan"),
    ) == 0  # fmt: skip
    return folder


def test_every_row_is_there(finished: Path) -> None:
    rows = read(finished / "out" / "slices.csv")
    assert len(rows) == 3 * 2 * 2 * 4  # volumes, slices, masks, methods
    assert {row["status"] for row in rows} == {"ok"}
    assert all(float(row["seconds"]) > 0 and float(row["maps_seconds"]) > 0 for row in rows)
    results = read(finished / "out" / "results.csv")
    assert len(results) == 3 * 2 * 4
    assert {row["dataset"] for row in results} == {"heads"}
    for column in ("psnr", "ssim_support", "hfen", "roi_psnr", "lesion_contrast_error", "dagan_nmse", "refinegan_psnr"):
        assert all(row[column] for row in results), column
    absent = json.loads((finished / "out" / "compare.json").read_text())["not_measured"]
    for column in ("mr_distance", "lpips", "dists"):
        assert (column in absent) != bool(results[0].get(column)), column
    for name in ("table.md", "table.tex", "index.html"):
        assert (finished / "out" / name).stat().st_size > 500
    summary = store.read_summary(finished / "out")
    assert summary is not None
    assert summary["finished"]
    assert [m["name"] for m in summary["methods"]] == METHODS.split(",")
    assert len(summary["verdict"]) == 2
    assert summary["methods"][3]["outside"][str(MaskSpec.parse(MASK))] == []


def test_figures_are_those_of_the_data_set_and_of_fastmri(finished: Path) -> None:
    """A second way to every number: the training examples of the same files, fastMRI's metrics."""
    spec = MaskSpec.parse("poisson2d:3,centre=10")
    dataset = KSpaceDataset([finished / "heads" / "v1.h5"], [spec])
    found = next(
        group
        for path in store.image_files(finished / "out")
        if (group := store.read_images(path)).group.key == ("heads", "v1.h5", str(spec))
    )
    rows = {r.method: r for r in store.read_results(finished / "out") if r.group == found.group}
    for i in (0, 1):
        example = dataset[i]
        assert found.group.digest == example.keys[0].mask
        assert example.truth is not None
        np.testing.assert_allclose(found.truth[i], example.truth, rtol=1e-5, atol=1e-10)
        np.testing.assert_allclose(found.images["zero-filled"][i], example.op.adjoint(example.y).abs(), atol=1e-9)
    assert (found.mask == np.asarray(dataset[0].op.mask[0])).all()
    assert found.boxes.tolist() == [[1, 0, 8, 9, 16, 18]]
    side = (SHAPE[0] - SHAPE[1]) // 2
    for name, image in found.images.items():
        truth, cut = (np.asarray(x[:, side : side + SHAPE[1]], np.float64) for x in (found.truth, image))
        assert rows[name].metrics["psnr"] == pytest.approx(float(fastmri_evaluate.psnr(truth, cut)), rel=1e-5)
        assert rows[name].metrics["nmse"] == pytest.approx(float(fastmri_evaluate.nmse(truth, cut)), rel=1e-4)
        assert rows[name].metrics["ssim"] == pytest.approx(float(np.squeeze(fastmri_evaluate.ssim(truth, cut))), rel=1e-4)
        peak = found.truth.max()
        refinegan = [psnr(255 * t / peak, 255 * x / peak, data_range=255.0, offset=1e-6) for t, x in zip(found.truth, image)]  # noqa: B905
        assert rows[name].metrics["refinegan_psnr"] == pytest.approx(float(np.mean(refinegan)), rel=1e-4)


def test_tuned_weights_are_used_and_better(finished: Path) -> None:
    summary = store.read_summary(finished / "out")
    assert summary is not None
    curves = {(c["method"], c["mask"]): c for c in summary["tuning"]}
    assert set(curves) == {(m, str(MaskSpec.parse(t))) for m in ("sense", "tv") for t in (MASK, "poisson2d:3,centre=10")}
    for (name, mask), curve in curves.items():
        best = curve["weights"][int(np.argmax(curve["values"]))]
        assert curve["chosen"] == best
        assert {"t.h5 slice 0", "t.h5 slice 2"} == set(curve["on"])
        method = next(m for m in summary["methods"] if m["name"] == name)
        assert method["tuned"][mask] == best
        found = next(
            g for p in store.image_files(finished / "out") if (g := store.read_images(p)).group.key == ("heads", "v0.h5", mask)
        )
        example = KSpaceDataset([finished / "heads" / "v0.h5"], [MaskSpec.parse(mask)])[1]
        image = classical.make(name, lamda=best)(example.y, example.op).abs()
        assert np.linalg.norm(found.images[name][1] - image.numpy()) < 1e-3 * np.linalg.norm(image)


def test_convergence_goes_beyond_where_the_method_stops(finished: Path) -> None:
    summary = store.read_summary(finished / "out")
    assert summary is not None
    assert {c["method"] for c in summary["convergence"]} == {"sense", "tv"}
    for curve in summary["convergence"]:
        n, stop = curve["iterations"], curve["stop"]
        assert n == sorted(n)
        assert stop in n
        # SENSE may be solved to rounding before.
        assert n[-1] == pytest.approx(3 * stop, abs=1) or (curve["method"] == "sense" and stop < n[-1] < 3 * stop)
        assert curve["relative_change"][-1] < curve["relative_change"][1]
        # What comes after the stop must not matter to the figure that is reported.
        assert curve["values"][-1] == pytest.approx(curve["values"][n.index(stop)], abs=0.2)
        if curve["method"] == "tv":
            assert curve["relative_change"][n.index(stop)] <= curve["tolerance"] * 1.01


def test_the_same_command_again_computes_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "out" / "slices.csv").read_bytes(), (finished / "out" / "results.csv").read_bytes()

    def fail(*_: Any) -> Tensor:
        raise AssertionError("called")

    monkeypatch.setattr(classical.ZeroFilled, "__call__", fail)
    weights = finished / "small.safetensors"
    assert run(
        *(finished / "heads", "-o", finished / "out", "--methods", METHODS, "--masks", MASKS, "--weights", f"mine={weights}"),
        *("--tune-on", finished / "tune", "--tune-slices", 2, "--conventions", "dagan,refinegan"),
    ) == 0  # fmt: skip
    assert before == ((finished / "out" / "slices.csv").read_bytes(), (finished / "out" / "results.csv").read_bytes())


# -------------------------------------------------------------------------------------------------- interruptions and folders


def test_an_interrupted_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, words = volumes(tmp_path / "heads", 2), ("--methods", "zero-filled,sense", "--masks", MASK)
    assert run(data, "-o", tmp_path / "whole", *words) == 0
    call, calls = classical.ZeroFilled.__call__, []

    def stop(self: classical.ZeroFilled, y: Tensor, op: Sense) -> Tensor:
        calls.append(1)
        if len(calls) == 4:  # the first is untimed: in the second volume
            raise KeyboardInterrupt
        return call(self, y, op)

    with monkeypatch.context() as patch:
        patch.setattr(classical.ZeroFilled, "__call__", stop)
        assert run(data, "-o", tmp_path / "out", *words) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    begun = (tmp_path / "out" / "slices.csv").read_text()
    assert begun.count("\n") == 1 + 2 * 2
    with (tmp_path / "out" / "slices.csv").open("a") as file:
        file.write("heads,v1.h5,0,rand")  # torn
    assert run(data, "-o", tmp_path / "out", *words) == 0
    assert (tmp_path / "out" / "slices.csv").read_text().startswith(begun)
    rows, whole = (read(tmp_path / name / "slices.csv") for name in ("out", "whole"))
    assert [(r["volume"], r["slice"], r["method"]) for r in rows] == [(r["volume"], r["slice"], r["method"]) for r in whole]
    metrics = [[r.metrics for r in store.read_results(tmp_path / name)] for name in ("out", "whole")]
    assert metrics[0] == metrics[1]


def test_a_folder_holds_one_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = volumes(tmp_path / "heads", 1)
    assert run(data, "-o", tmp_path / "out", "--methods", "zero-filled", "--masks", MASK) == 0
    assert run(data, "-o", tmp_path / "out", "--methods", "sense", "--masks", MASK) == 2
    error = capsys.readouterr().err
    assert "holds another comparison (methods: ['zero-filled', '']; now ['sense', ''])" in error
    assert run(data, "-o", tmp_path / "out", "--methods", "sense", "--masks", MASK, "--force") == 0
    assert {row["method"] for row in read(tmp_path / "out" / "results.csv")} == {"sense"}


def test_earlier_rows_stand_beside_new_ones_only_under_the_same_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = volumes(tmp_path / "heads", 2)
    assert run(data, "-o", tmp_path / "old", "--methods", "zero-filled,sense", "--masks", MASK) == 0
    old = tmp_path / "old" / "results.csv"
    assert run(data, "-o", tmp_path / "new", "--methods", "tv,zero-filled", "--masks", MASK, "--merge", old) == 0
    rows = store.read_results(tmp_path / "new")
    assert [row.method for row in rows] == ["tv", "zero-filled", "sense"] * 2
    summary = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert [m["name"] for m in summary["methods"]] == ["tv", "zero-filled", "sense"]
    assert summary["methods"][2]["merged_from"] == str(old)
    assert "SENSE" in (tmp_path / "new" / "table.md").read_text()
    capsys.readouterr()

    changed = [replace(row, digest="0" * 64) if row.volume == "v1.h5" else row for row in store.read_results(old)]
    store.write_results(tmp_path / "old", changed)
    assert run(data, "-o", tmp_path / "other", "--methods", "tv", "--masks", MASK, "--merge", old) == 2
    error = capsys.readouterr().err
    assert "v1.h5 under random1d:2,centre=12 has mask digest 000000000000, in this comparison " in error
    assert not (tmp_path / "other").exists()

    store.write_results(tmp_path / "old", [replace(row, n_slices=1) for row in rows])
    assert run(data, "-o", tmp_path / "third", "--methods", "tv", "--masks", MASK, "--merge", old) == 2
    assert "was measured on 2 slices and, by TV, on 1" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- other kinds of data


def test_scans_of_any_kind_stand_side_by_side(tmp_path: Path) -> None:
    """A fully sampled ISMRMRD scan is compared with its truth, an undersampled one by what is held out of it."""
    full = raw_files.noisy(tmp_path / "full.h5")
    raw_files.accelerated(tmp_path / "under.h5", factor=2, noise=0.02)
    volume(tmp_path / "v.h5")
    files = [tmp_path / name for name in ("v.h5", "full.h5")]
    words = ("--methods", "zero-filled,sense", "--masks", MASK, "--draws", 2)
    assert run(*files, f"bottles={tmp_path / 'under.h5'}", "-o", tmp_path / "out", *words) == 0
    rows = store.read_results(tmp_path / "out")
    assert {(row.volume, row.n_slices) for row in rows} == {("v.h5", 2), ("full.h5", 1)}
    summary = store.read_summary(tmp_path / "out")
    assert summary is not None
    assert [d["kind"] for d in summary["data"]] == ["fastmri", "mrd"]
    (held,) = summary["held_out"]
    assert (held["dataset"], held["scan"]) == ("bottles", "under.h5")
    assert set(held["ranking"]) == {"zero-filled", "sense"}
    images = next(g for p in store.image_files(tmp_path / "out") if (g := store.read_images(p)).group.volume == "full.h5")
    # Whitened: the truth is the object's in units of its noise, so the coils' noise is 1 and the object far above it.
    truth = np.linalg.norm(full.coil_images()[:, 0], axis=0)
    here = images.truth[0]
    assert here.shape == truth.shape
    assert np.corrcoef(here.ravel(), truth.ravel())[0, 1] > 0.98


def test_scans_without_truth_alone(tmp_path: Path) -> None:
    raw_files.accelerated(tmp_path / "under.h5", factor=2, noise=0.02)
    words = ("--methods", "zero-filled,sense", "--draws", 2)
    for _ in range(2):
        assert run(tmp_path / "under.h5", "-o", tmp_path / "out", *words) == 0
    summary = store.read_summary(tmp_path / "out")
    assert summary is not None
    assert len(summary["held_out"]) == 1
    assert summary["verdict"][0] == summary["held_out"][0]["says"]
    assert store.read_results(tmp_path / "out") == []


def test_many_volumes_and_slices_are_thinned_out_evenly(tmp_path: Path) -> None:
    volumes(tmp_path / "deep" / "heads", 4, n_slices=5)
    words = ("--methods", "zero-filled", "--masks", MASK, "--max-volumes", 2, "--max-slices", 2)
    assert run(tmp_path / "deep", "-o", tmp_path / "deep" / "out", *words) == 0
    rows = read(tmp_path / "deep" / "out" / "slices.csv")
    assert [(row["volume"], row["slice"]) for row in rows] == [("v1.h5", "1"), ("v1.h5", "3"), ("v3.h5", "1"), ("v3.h5", "3")]
    # The folder of results lies among the data, and is no data: the second run finds the same.
    assert run(tmp_path / "deep", "-o", tmp_path / "deep" / "out", *words) == 0


@pytest.mark.skipif(not bart.available(), reason="needs the program bart (Debian package bart)")
def test_bart_gets_the_same_samples_and_maps(tmp_path: Path) -> None:
    data = volumes(tmp_path / "heads", 1, n_slices=1)
    assert run(data, "-o", tmp_path / "out", "--methods", "sense", "--masks", MASK, "--bart") == 0
    (path,) = store.image_files(tmp_path / "out")
    found = store.read_images(path)
    example = KSpaceDataset([data / "v0.h5"], [MaskSpec.parse(MASK)])[0]
    for name, options in (("bart-l1-wavelet", "W:3:0:0.003"), ("bart-tv", "T:3:0:0.008")):
        image, _ = bart.pics(example.y, example.op.maps, "-R", options, "-i100")
        assert np.linalg.norm(found.images[name][0] - image.abs().numpy()) < 1e-3 * float(torch.linalg.vector_norm(image))
    summary = store.read_summary(tmp_path / "out")
    assert summary is not None
    assert summary["machine"]["versions"]["bart"] == bart.version()
    memory = [float(row["peak_cpu_mb"]) for row in read(tmp_path / "out" / "slices.csv") if row["method"] == "bart-tv"]
    assert 1 < memory[0] < 200


# ---------------------------------------------------------------------------------------------------------- what is refused

REFUSED = [
    (["--methods", "sense,magic"], "--methods: there is no method 'magic'; choose from zero-filled, sense"),
    (["--methods", "sense,sense"], "sense is given twice"),
    (["--methods", "rss"], "there is no method 'rss'"),
    (["--masks", "rondom1d:4"], "unknown mask family 'rondom1d'"),
    (["--masks", "random1d:4,random1d:4"], "a mask is given twice"),
    (["--masks", "random1d:2,centre=99"], "centre=99"),
    (["--weights", "mine"], "'mine' is not name=file"),
    (["--weights", "truth=a.safetensors"], "'truth' is no name for a method"),
    (["--weights", "tv=a.safetensors"], "tv has no weights"),
    (["--weights", "mine=a.safetensors"], "there is no such file of weights"),
    (["--tune-metric", "beauty"], "unknown metric 'beauty'"),
    (["--conventions", "dogan"], "unknown convention 'dogan'"),
    (["--max-slices", "0"], "0 is too few"),
    (["--merge", "absent.csv"], "cannot be read"),
    (["--tune-on", "absent"], "no such file or folder"),
]


@pytest.mark.parametrize(("words", "line"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_used_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    volume(tmp_path / "v.h5", n_slices=1)
    given = words if "--masks" in words else [*words, "--masks", MASK]
    assert run(tmp_path / "v.h5", "-o", tmp_path / "out", *given) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_files_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = volumes(tmp_path / "heads", 1)
    (data / "a.h5").write_text("no file")
    (data / "b.h5").write_bytes(b"")
    assert run(data, "-o", tmp_path / "out", "--masks", MASK) == 2
    error = capsys.readouterr().err
    assert "2 files cannot be used" in error
    assert "a.h5" in error
    assert "b.h5" in error


def test_what_is_reported_is_not_tuned_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = volumes(tmp_path / "heads", 2)
    words = ("-o", tmp_path / "out", "--methods", "sense", "--masks", MASK, "--tune-on")
    assert run(data, *words, data / "v0.h5") == 2
    assert "--tune-on: v0.h5 is reported too" in capsys.readouterr().err
    raw_files.accelerated(tmp_path / "under.h5", factor=2)
    assert run(data, *words, tmp_path / "under.h5") == 2
    assert "--tune-on: under.h5 is undersampled: it has no truth" in capsys.readouterr().err
    (tmp_path / "copy.h5").write_bytes((data / "v1.h5").read_bytes())
    assert run(data, *words, tmp_path / "copy.h5") == 2
    assert "copy.h5 holds the same as v1.h5, which is reported" in capsys.readouterr().err


def test_bart_is_asked_for_and_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bart.version.cache_clear()
    volume(tmp_path / "v.h5")
    assert run(tmp_path / "v.h5", "-o", tmp_path / "out", "--bart", "--masks", MASK) == 2
    assert "--bart: the program bart is not installed; apt install bart" in capsys.readouterr().err
