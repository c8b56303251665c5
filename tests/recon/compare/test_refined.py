"""Refined generators in `recon compare`, several draws of a mask, errors without the noise, and tuning on unlike data."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kspace.container import Header, KSpace
from kspace.errors import InputError
from kspace.fourier import fft
from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.compare import tuning
from recon.compare.cases import find_data
from recon.compare.methods import choose
from recon.compare.plan import draws_of
from recon.compare.statistics import over_draws
from recon.compare.store import VolumeRow
from recon.methods.stack import SLICES
from recon.metrics.missing import missing_energies, missing_error
from recon.report import report
from tests.support.comparisons import SHAPE, run, volume, volumes
from tests.support.scans import coil_maps, ellipses, scan
from tests.support.weights import written

MASK = "random1d:2,centre=12"


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda folder: folder / "index.html")


def test_generators_are_compared_as_they_come_refined_and_stacked(tmp_path: Path) -> None:
    volumes(tmp_path / "heads", 2, n_slices=SLICES + 1)
    weights = written(tmp_path)
    names = "l1-wavelet,mine,mine+residual,mine+stack"
    words = (tmp_path / "heads", "-o", tmp_path / "out", "--methods", names, "--weights", f"mine={weights}", "--masks", MASK)
    assert run(*words, "--draws", 2) == 0
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4  # volumes, draws, methods
    assert all(not row["reason"] for row in rows)
    summary: dict[str, Any] = json.loads((tmp_path / "out" / "compare.json").read_text())
    (stack,) = [m for m in summary["methods"] if m["name"] == "mine+stack"]
    assert len(stack["fits"]) == 2 * 2
    for entry in stack["fits"].values():
        assert sum(entry["weights"].values()) == pytest.approx(1)
        assert entry["slices"] == SLICES
    assert {m["weights_sha256"] for m in summary["methods"]} == {None, stack["weights_sha256"]}
    value = {(r["volume"], r["mask"], r["method"]): float(r["psnr_support"]) for r in rows}
    for entry in summary["draws"]:
        means = [sum(value[f"v{i}.h5", mask, entry["method"]] for i in (0, 1)) / 2 for mask in (MASK, f"{MASK},seed=1")]
        assert entry["mean"] == pytest.approx(sum(means) / 2)
        assert entry["n_draws"] == 2
        assert entry["low"] < min(means)  # two draws say little
    text = (tmp_path / "out" / "table.md").read_text()
    assert "2 draws of the mask, repeated measures of the same 2 volumes" in text
    assert "NMSE of samples left out, noise subtracted" in text
    assert run(*words, "--draws", 2) == 0  # goes on from what is there
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["methods"] == summary["methods"]
    assert run(*words[:2], tmp_path / "no", "--methods", "tv+stack", "--masks", MASK) != 0


def test_the_corrected_error_of_the_noise_free_truth_is_zero() -> None:
    shape, sigma = (64, 48), 0.05
    truth, maps = ellipses(shape), coil_maps(4, shape)
    clean = fft(truth * maps)
    g = torch.Generator().manual_seed(0)
    op = Sense(maps, MaskSpec.parse("random1d:4").draw(shape, "scan"))
    full = torch.ones(1, *shape, dtype=torch.bool)
    values = []
    for _ in range(20):
        k = KSpace(clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=g), full, Header())
        variance = torch.full((4,), sigma**2, dtype=torch.float64)
        right = missing_energies(truth, op, k, variance)
        black = missing_energies(torch.zeros_like(truth), op, k, variance)
        corrected = missing_error([right]), missing_error([black])
        assert corrected[1] == 1
        assert right.noise is not None
        assert right.error / right.signal > 0.1  # what a metric without correction would say
        values.append(corrected[0] or 0.0)
    assert abs(sum(values) / len(values)) < 0.01
    assert missing_error([missing_energies(truth, op, k, None)]) is None
    # Twice measured, half the noise.
    twice = replace(k, n_averages=2 * full.int())
    again = missing_energies(truth, op, twice, variance).noise
    assert again == pytest.approx((right.noise or 0.0) / 2)


def row(method: str, mask: str, digest: str, volume: str, value: float) -> VolumeRow:
    return VolumeRow("d", volume, mask, digest, 2.0, method, method, 1, 0, metrics={"psnr": value})


def test_an_interval_over_draws_is_of_differences_draw_by_draw() -> None:
    # Draws differ by decibels, methods within a draw by exactly one.
    rows = []
    for i, level in enumerate((20.0, 25.0, 33.0)):
        for volume_name in "ab":
            rows.append(row("tv", f"m{i}", f"x{i}", volume_name, level))
            rows.append(row("net", f"m{i}", f"x{i}", volume_name, level + 1))
    entries = {e["method"]: e for e in over_draws(rows, {"m1": "m0", "m2": "m0"}, ["tv"], "psnr")}
    net = entries["net"]
    assert (net["mask"], net["reference"], net["n_draws"], net["n_volumes"]) == ("m0", "tv", 3, 2)
    assert net["mean"] == pytest.approx(27)
    assert (net["difference"], net["diff_low"], net["diff_high"]) == (1, 1, 1)
    assert net["high"] - net["low"] > 20
    assert entries["tv"]["difference"] is None
    assert over_draws(rows, {}, ["tv"], "psnr") == []


def test_draws_are_seeds_that_follow_one_another() -> None:
    specs, drawn = draws_of([MaskSpec.parse("random1d:4,seed=3")], 3)
    assert [spec.seed for spec in specs] == [3, 4, 5]
    assert set(drawn.values()) == {"random1d:4,seed=3"}
    assert len(drawn) == 2


def test_tuning_on_unlike_data_is_said(tmp_path: Path) -> None:
    quiet, loud = volume(tmp_path / "a.h5", noise=0.02), volume(tmp_path / "b.h5", seed=1, noise=0.2)
    (same,), (other,) = (find_data([str(path)])[0] for path in (quiet, loud))
    alike = volume(tmp_path / "c.h5", seed=2, noise=0.02)
    tuned = tuning.tuning_slices(find_data([str(alike)])[0], 1)
    assert tuning.unlike(tuned, [same]) == []
    (said,) = tuning.unlike(tuned, [other])
    assert "noise" in said
    small = find_data([str(volume(tmp_path / "d.h5", seed=3))])[0][0]

    def cropped(i: int) -> KSpace:
        k = same.plane(i)
        return replace(k, data=k.data[..., :20], mask=k.mask)

    (said,) = [s for s in tuning.unlike(tuned, [replace(small, plane=cropped)]) if "matrix" in s]
    assert f"a matrix of {SHAPE[0]} x 20; tuned on {SHAPE[0]} x {SHAPE[1]}" in said
    entry = {"method": "tv", "mask": MASK, "chosen": 0.01, "at_edge": True}
    assert tuning.at_edge([entry, {**entry, "at_edge": False}]) == [
        f"tv under {MASK}: the best weight, 0.01, lies at the edge of the grid"
    ]


def test_the_mean_of_members_is_the_mean_of_their_images(tmp_path: Path) -> None:
    files = [written(tmp_path, f"{name}.safetensors", generator={"width": width}) for name, width in (("a", 4), ("b", 6))]
    given = [f"{path.stem}={path}" for path in files]
    mean, *members = choose("mean:a:b,a,b", given)
    y, op, _ = scan(noise=0.02)
    a, b = (member.reconstruct(y, op) for member in members)
    torch.testing.assert_close(mean.reconstruct(y, op), (a + b) / 2)
    assert (mean.label, mean.family) == ("mean of a, b", "generator")
    assert mean.sha256 not in (None, *(member.sha256 for member in members))
    for names, message in (("mean:a:tv", "tv is no generator"), ("mean:a", "names one member"), ("mean:a:c", "no method 'c'")):
        with pytest.raises(InputError, match=message):
            choose(names, given[:1])
