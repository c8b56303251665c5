"""The parts of a comparison: the same objects for every method, failures that cost nobody else, figures worked out by hand."""

from __future__ import annotations

import itertools
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from tqdm import tqdm

from kspace.errors import InputError
from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.compare import metrics, runs, store, tuning
from recon.compare.cases import case_of, find_data, groups_of, is_full, make_case, parse_masks, spread
from recon.compare.methods import ComparedMethod
from recon.compare.statistics import holm, interval, signed_rank, smallest_p, statistics
from recon.compare.store import MaskedVolume, SliceLog, SliceRow, VolumeRow
from recon.compare.tables import escape, latex, markdown
from recon.compare.timing import measure
from recon.compare.verdict import verdict
from recon.methods import classical
from tests.support import raw_files
from tests.support.comparisons import MASK, volume

SPEC = MaskSpec.parse(MASK)

# ------------------------------------------------------------------------------------------------------------ what is given


@dataclass(frozen=True)
class Spy:
    """A method that keeps what it is given, and does what `how` says from its second slice on."""

    how: str
    seen: list[tuple[Tensor, Sense]]

    def __call__(self, y: Tensor, op: Sense) -> Tensor:
        self.seen.append((y, op))
        image = op.adjoint(y)
        if len(self.seen) < 3 or self.how == "well":  # the first call is untimed
            return image
        if self.how == "raises":
            raise RuntimeError("no way\nout")
        return image[1:] if self.how == "shape" else image * torch.nan


@pytest.fixture
def ran(tmp_path: Path) -> tuple[dict[str, Spy], SliceLog, Any]:
    path = volume(tmp_path / "v.h5", n_slices=2)
    (found,), _ = find_data([str(path)])
    ((_, _, group),) = groups_of(found, [SPEC])
    spies = {how: Spy(how, []) for how in ("well", "raises", "shape", "nan")}
    methods = [ComparedMethod(name, name, "classical", spy) for name, spy in spies.items()]
    log = SliceLog(tmp_path)
    with tqdm(disable=True) as progress:
        runner = runs.Runner(tmp_path, methods, log, "espirit", progress)
        images = runner.run(found, (0, 1), SPEC, group)
    return spies, log, (methods, images, group)


def test_every_method_is_given_the_very_same_objects(ran: tuple[dict[str, Spy], SliceLog, Any]) -> None:
    spies, _, _ = ran
    first = spies["well"].seen
    assert len(first) == 3  # one untimed, then two slices
    assert first[0][0] is first[1][0]
    for spy in spies.values():
        for (y, op), (y_first, op_first) in zip(spy.seen, first, strict=True):
            assert y is y_first
            assert op is op_first


def test_a_failure_is_a_row_with_its_reason(ran: tuple[dict[str, Spy], SliceLog, Any]) -> None:
    _, log, (methods, images, group) = ran
    reasons = {(row.method, row.slice): row.reason for row in log.rows}
    assert len(log.rows) == 8
    assert reasons["well", 1] == reasons["raises", 0] == ""
    assert reasons["raises", 1] == "RuntimeError: no way out"
    assert "an image of shape (35, 32), expected (36, 32)" in reasons["shape", 1]
    assert "not finite" in reasons["nan", 1]
    rows = {row.method: row for row in runs.volume_rows(group, 2, images, log, methods, [])}
    assert rows["well"].n_failed == 0
    assert rows["well"].metrics["psnr"] > 10
    assert rows["raises"].n_failed == 1
    assert rows["raises"].metrics == {}, "a mean over fewer slices would be another comparison"
    assert np.isnan(images.images["raises"][1]).all()
    assert np.isfinite(images.images["raises"][0]).all()


def test_maps_that_cannot_be_made_fail_every_method_of_the_slice(tmp_path: Path) -> None:
    path = volume(tmp_path / "v.h5", n_slices=1)
    (found,), _ = find_data([str(path)])
    spec = MaskSpec.parse("random1d:4,centre=1")
    ((_, _, group),) = groups_of(found, [spec])
    log, spy = SliceLog(tmp_path), Spy("well", [])
    with tqdm(disable=True) as progress:
        runner = runs.Runner(tmp_path, [ComparedMethod("spy", "spy", "classical", spy)], log, "espirit", progress)
        assert runner.run(found, (0,), spec, group) is None
    assert "calibration" in log.rows[0].reason
    assert not spy.seen


def test_what_was_not_acquired_reaches_the_truth_only(tmp_path: Path) -> None:
    (found,), _ = find_data([str(volume(tmp_path / "v.h5", n_slices=1))])
    k = found.plane(0)
    drawn = SPEC.draw((k.data.shape[-2], k.data.shape[-1]))
    changed = replace(k, data=torch.where(drawn, k.data, k.data + 1e-3))
    a, b = case_of(k, drawn), case_of(changed, drawn)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.op.maps, b.op.maps)
    assert not np.allclose(a.truth, b.truth)


def test_a_3d_scan_is_its_planes_along_the_readout(tmp_path: Path) -> None:
    case = raw_files.volume(tmp_path / "v.h5")
    (found,), scans = find_data([str(case.path)])
    assert not scans
    truth = np.linalg.norm(case.coil_images(), axis=0)  # (z y x)
    assert found.n_slices == truth.shape[2]
    middle = found.n_slices // 2
    made = make_case(found, middle, MaskSpec.parse("poisson2d:2,centre=10"))
    assert made.truth.shape == truth.shape[:2]
    assert np.corrcoef(made.truth.ravel(), truth[:, :, middle].ravel())[0, 1] > 0.999


# --------------------------------------------------------------------------------------------------------------------- words


def test_masks_and_their_options_are_told_apart() -> None:
    text = "random1d:4,poisson2d:8,centre=24,seed=3,uniform1d:spacing=3,centre=24"
    assert [str(spec) for spec in parse_masks(text)] == [
        "random1d:4",
        "poisson2d:8,centre=24,seed=3",
        "uniform1d:centre=24,spacing=3",
    ]
    assert [str(spec) for spec in parse_masks("random1d:4,random1d:8,seed=2", seed=7)] == [
        "random1d:4,seed=7",
        "random1d:8,seed=2",
    ]
    with pytest.raises(InputError, match="no masks"):
        parse_masks(" , ")


def test_spread() -> None:
    assert spread(range(10), 3) == [1, 5, 8]
    assert spread(range(3), None) == spread(range(3), 5) == [0, 1, 2]


def test_a_centred_box_of_samples_is_all_that_was_asked_for() -> None:
    mask = torch.zeros(1, 32, 30, dtype=torch.bool)
    mask[0, 4:29, 3:28] = True
    assert is_full(mask)
    assert is_full(torch.ones(1, 32, 1, dtype=torch.bool))
    assert not is_full(mask & (torch.arange(32)[:, None] % 2 == 0))
    partial = torch.ones(1, 32, 1, dtype=torch.bool)
    partial[0, :8] = False
    assert not is_full(partial)


# -------------------------------------------------------------------------------------------------------------------- tuning


def test_tuning_finds_the_weight_that_brute_force_finds(tmp_path: Path) -> None:
    (found,), _ = find_data([str(volume(tmp_path / "v.h5", n_slices=1, noise=0.3))])
    case = make_case(found, 0, SPEC)
    # The default is far off: the grid has to grow towards the best weight.
    method = ComparedMethod("sense", "SENSE", "classical", classical.CgSense(lamda=1e-3))
    curve = tuning.search(method, [case], "psnr_support")
    grid = 10.0 ** np.arange(-5, 1.01, 1 / 3)
    scores = [
        metrics.slice_figure("psnr_support", case.truth, case.deliver(classical.CgSense(lamda=w)(case.y, case.op)))
        for w in grid
    ]
    assert curve["chosen"] == pytest.approx(grid[int(np.argmax(scores))], rel=1e-3)
    assert max(curve["values"]) == pytest.approx(max(scores), abs=1e-3)
    assert len(curve["weights"]) > 7
    assert not curve["at_edge"]


def test_tuning_for_an_error_takes_the_smallest() -> None:
    assert tuning._best({-1: 0.3, 0: 0.2, 1: 0.1}, "nmse") == 1
    assert tuning._best({-1: 0.3, 0: 0.2, 1: 0.1}, "ssim") == -1
    assert tuning._best({-1: None, 0: None, 1: None}, "ssim") == 0
    assert tuning._best({-1: None, 0: None, 1: 0.1}, "ssim") == 1


# ---------------------------------------------------------------------------------------------------------------- statistics


def test_holm_by_hand() -> None:
    # 0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), max(0.06, 0.05)
    assert holm([0.03, 0.01, 0.05, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_signed_rank_test_by_counting_all_signs() -> None:
    d = np.array([0.3, -0.1, 0.7, 0.2, 0.5, -0.4, 0.9])
    ranks = scipy.stats.rankdata(np.abs(d))
    signs = np.array(list(itertools.product((0, 1), repeat=len(d))))
    sums, seen = signs @ ranks, ranks[d > 0].sum()
    middle = ranks.sum() / 2
    by_hand = float(np.mean(np.abs(sums - middle) >= abs(seen - middle)))
    assert signed_rank(d) == pytest.approx(by_hand)
    assert signed_rank(np.append(d, 0.0)) == pytest.approx(by_hand)
    assert signed_rank(np.zeros(4)) == 1.0
    assert signed_rank(np.array([1.0])) is None
    for n in (2, 5, 8):
        assert signed_rank(np.arange(1.0, n + 1)) == pytest.approx(smallest_p(n))


def test_intervals_of_few_volumes_are_students() -> None:
    values = np.array([1.0, 4.0, 2.5, 3.0, -1.0, 2.0])
    half = 2.5705818 * values.std(ddof=1) / 6**0.5  # the tabulated quantile of five degrees of freedom
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half))
    assert interval(np.full(6, 0.1)) == (0.1, 0.1)
    assert interval(np.array([1.0])) is None


def test_intervals_cover_what_they_state() -> None:
    """Of 95 % intervals of samples of a known mean, 95 % hold it, whatever the number of volumes."""
    rng = np.random.default_rng(1)
    for n in (2, 6, 19, 25):
        found = [interval(rng.normal(0, 1, n), draws=400) or (1.0, 1.0) for _ in range(1000)]
        covered = np.mean([low <= 0 <= high for low, high in found])
        assert 0.92 < covered < 0.98, n


def test_the_interval_of_many_volumes_is_that_of_resamples() -> None:
    many = np.random.default_rng(0).normal(3, 2, 60)
    low, high = interval(many) or (0, 0)
    mean, error = many.mean(), many.std() / 60**0.5
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.06)
    # The same volumes are drawn for every method: a constant difference has an interval of no width.
    shifted = interval(many + 1) or (0, 0)
    assert shifted == pytest.approx((low + 1, high + 1))


def test_the_report_says_how_intervals_were_made() -> None:
    for n, said in (
        (6, "Intervals: 95 %, Student's t over volumes, since they are fewer than 20."),
        (20, "percentile bootstrap"),
    ):
        rows = rows_of({"tv": [30.0 + i % 3 for i in range(n)], "gan": [31.0 + i % 5 for i in range(n)]})
        summary = summary_of(rows, {"tv": "classical", "gan": "generator"})
        assert said in markdown(summary, rows)
        assert {e["interval_method"] for e in summary["statistics"]} == {"Student's t" if n < 20 else "paired bootstrap"}


def rows_of(values: dict[str, list[float]], mask: str = MASK) -> list[VolumeRow]:
    return [
        VolumeRow("heads", f"v{i}", mask, "d" * 64, 2.0, method, method.upper(), 2, 0, metrics={"psnr_support": value})
        for method, column in values.items()
        for i, value in enumerate(column)
    ]


def summary_of(rows: list[VolumeRow], families: dict[str, str]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "metric": "psnr_support",
        "methods": [{"name": name, "label": name.upper(), "family": family} for name, family in families.items()],
        "statistics": statistics(rows, [n for n, f in families.items() if f == "classical"], "psnr_support"),
        "held_out": [], "tuning": [], "not_measured": {}, "machine": {"cpu": "A_B", "threads": 1, "gpu": None},
        "data": [{"dataset": "heads", "simulated": True, "attribution": "Smith & Jones, 100 %"}],
    }  # fmt: skip
    return summary | {"verdict": verdict(summary)}


FAMILIES = {"sense": "classical", "tv": "classical", "gan": "generator"}


def test_statistics_and_verdict_of_known_values() -> None:
    tv = [30.0, 31.0, 29.0, 32.0, 30.5, 33.0, 28.0, 31.5]
    gan = [v + d for v, d in zip(tv, [1.0, 0.8, 1.2, 0.5, 0.9, 1.1, 0.7, 1.3], strict=True)]
    rows = rows_of({"sense": [v - 2 for v in tv], "tv": tv, "gan": gan})
    summary = summary_of(rows, FAMILIES)
    entries = {e["method"]: e for e in summary["statistics"]}
    assert entries["tv"]["reference"] == "tv"
    assert entries["tv"]["difference"] is entries["tv"]["p"] is None
    assert entries["gan"]["difference"] == pytest.approx(np.mean([1.0, 0.8, 1.2, 0.5, 0.9, 1.1, 0.7, 1.3]))
    assert 0.5 < entries["gan"]["diff_low"] < entries["gan"]["difference"] < entries["gan"]["diff_high"] < 1.3
    assert entries["gan"]["p"] == pytest.approx(2 / 2**8)
    assert entries["gan"]["p_corrected"] == pytest.approx(2 * 2 / 2**8)  # two comparisons
    assert entries["gan"]["comparisons"] == 2
    assert entries["sense"]["diff_low"] == pytest.approx(-2)
    first, second = summary["verdict"]
    assert first.startswith("Best by the mean of PSNR [dB] on support: GAN (heads with random1d:2,centre=12: 31.56 dB [95 % ")
    assert second.startswith("The best generator (GAN) beats the best classical method, +0.94 dB [95 % 0.7")
    assert second.endswith("against TV; the difference is significant (p 0.016, 2 comparisons).")


def test_a_verdict_does_not_claim_what_few_volumes_cannot_show() -> None:
    rows = rows_of({"tv": [30.0, 31.0], "gan": [35.0, 36.0]})
    summary = summary_of(rows, {"tv": "classical", "gan": "generator"})
    assert "with so few volumes no difference can be significant" in summary["verdict"][1]
    assert "With 2 volumes no difference can be significant" in markdown(summary, rows)
    one = rows_of({"tv": [30.0], "gan": [29.0]})
    said = summary_of(one, {"tv": "classical", "gan": "generator"})
    assert said["statistics"][0]["low"] is None
    assert "does not beat the best classical method, -1.00 dB against TV" in said["verdict"][1]
    assert summary_of(one[:1], {"tv": "classical"})["verdict"][1] == "No generator was compared with a classical method."


def test_a_verdict_over_many_masks_counts_them() -> None:
    gan = {2: 31.0, 3: 29.0, 4: 32.5, 5: 28.5}
    rows = [row for r, psnr in gan.items() for row in rows_of({"tv": [30.0], "gan": [psnr]}, f"random1d:{r}")]
    first, second = summary_of(rows, {"tv": "classical", "gan": "generator"})["verdict"]
    assert first.endswith("of 4 combinations of data and mask: GAN in 2, TV in 2.")
    assert "in 2 of 4 combinations (+1.00 dB to +2.50 dB) and falls short in 2 (-1.50 dB to -1.00 dB)" in second


def test_a_method_that_failed_somewhere_is_no_reference_and_is_compared_where_it_did_not() -> None:
    rows = rows_of({"sense": [30.0, 31.0, 32.0], "tv": [40.0, 41.0, 42.0]})
    lost = {"metrics": {}, "n_failed": 1, "reason": "out of memory"}
    rows = [replace(r, **lost) if (r.method, r.volume) == ("tv", "v1") else r for r in rows]  # type: ignore[arg-type]
    summary = summary_of(rows, FAMILIES)
    entries = {e["method"]: e for e in summary["statistics"]}
    assert entries["tv"]["reference"] == "sense"
    assert (entries["tv"]["n"], entries["tv"]["n_paired"]) == (2, 2)
    assert entries["tv"]["difference"] == pytest.approx(10)
    text = markdown(summary, rows)
    assert "1 of 6 slices" in text
    assert "TV failed: out of memory" in text


def test_tables_are_read_by_markdown_and_latex() -> None:
    rows = rows_of({"tv": [30.0, 31.0], "gan": [35.0, 36.0]})
    summary = summary_of(rows, {"tv": "classical", "gan": "generator"})
    text = markdown(summary, rows)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| GAN | 35.50 [29.15, 41.85] | +5.00 [+5.00, +5.00] |" in text
    assert "R = 2, 2 volumes, simulated" in text
    assert escape(r"a_b & 50 % {x} \ ~ ^ < #") == (
        r"a\_b \& 50 \% \{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \textless{} \#"
    )
    assert r"PSNR [dB] on support [95 \%]" in latex(summary, rows)


# -------------------------------------------------------------------------------------------------------------- cost, storage


def test_the_highest_mark_of_memory_is_seen_though_it_is_given_back() -> None:
    def work() -> float:
        x = torch.ones(10_000_000)  # 40 MB
        return float(x.sum())

    value, cost = measure(work)
    assert value == 1e7
    assert cost.seconds > 0
    if cost.peak_cpu_mb is None:
        pytest.skip("the system keeps no high mark of memory")
    assert 38 < cost.peak_cpu_mb < 60
    assert measure(lambda: time.sleep(0.01))[1].peak_cpu_mb < 5  # type: ignore[operator]


def test_the_memory_of_programs_counts() -> None:
    program = ["python3", "-c", "x = bytearray(30_000_000); import time; time.sleep(0.15)"]
    _, cost = measure(lambda: subprocess.run(program, check=True))
    if cost.peak_cpu_mb is None:
        pytest.skip("the system keeps no high mark of memory")
    assert 30 < cost.peak_cpu_mb < 80


def test_the_folder_keeps_what_it_is_given(tmp_path: Path) -> None:
    group = MaskedVolume("heads", 'a "b", c.h5', MASK, "d" * 64, 3.9285714285)
    row = SliceRow(*("heads", group.volume, 3, MASK, "d" * 64, group.acceleration, "tv"), "failed", "no\tway, out", None, 0.5)
    log = SliceLog(tmp_path)
    log.append(row)
    (found,) = store.read_slices(tmp_path)
    assert found == replace(row, acceleration=found.acceleration)
    assert found.group == group
    volume_row = VolumeRow(*("heads", group.volume, MASK, "d" * 64, 2.0, "tv", "TV", 2, 0), metrics={"psnr": 30.125})
    other = replace(volume_row, method="sense", metrics={"psnr": 29.0, "roi_psnr": 20.0})
    store.write_results(tmp_path, [volume_row, other])
    assert store.read_results(tmp_path) == [volume_row, other]
    image = np.random.default_rng(0).random((2, 6, 5), np.float32)
    images = store.GroupImages(
        group, (1, 4), image, image > 0.5, np.zeros((0, 6), np.float32), np.ones((6, 1), bool), {"tv": image}
    )
    path = store.write_images(tmp_path, images)
    again = store.read_images(path)
    assert (again.group, again.slices) == (group, (1, 4))
    assert (again.images["tv"] == image).all()
    assert again.mask.dtype == bool
    assert store.image_files(tmp_path) == [path]


@pytest.mark.parametrize("text", ["nonsense\n1\n", "dataset,volume\na,b\n", ""])
def test_tables_of_others_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    if not text:
        assert store.read_results(tmp_path) == []
        return
    with pytest.raises(InputError, match="not a table of recon compare"):
        store.read_results(tmp_path)
