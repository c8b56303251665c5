"""The report of a comparison, without a browser: images as stored, size, escaping, figures, folders with little in them."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from kspace.errors import InputError
from recon.compare import store
from recon.report import comparison, page, report
from recon.report.wording import metric_name
from tests.support import reports
from tests.support.pages import block_of, decode, json_of
from tests.support.reports import Case


def built(folder: Path) -> str:
    """The page alone: drawing the figures takes seconds."""
    return page.build(comparison.read(folder), 45.0)


def test_the_page_holds_the_images_to_the_step_it_states(tmp_path: Path) -> None:
    case = Case(n_volumes=2, scale=3e-6)
    reports.write(tmp_path, case)
    html = built(tmp_path)
    images = json_of(html, "images")
    assert (images["bits"], images["held"], images["total"]) == (12, 4, 4)
    for file in images["files"]:
        group = next(
            g for g in map(store.read_images, store.image_files(tmp_path)) if g.group.key[1:] == (file["volume"], file["mask"])
        )
        for place, number in enumerate(file["slices"]):
            for series, key in zip(["truth", *file["methods"]], file["planes"][place], strict=True):
                data = group.truth if series == "truth" else group.images[series]
                shown = decode(block_of(html, key), case.shape) * file["step"]
                inside = data[place] <= 1.25 * file["reference"]
                assert np.abs(shown - data[place])[inside].max() <= 0.501 * file["step"]
                assert number == group.slices[place]
        key, shape = file["sampling"]
        bits = np.unpackbits(np.frombuffer(zlib.decompress(block_of(html, key)), np.uint8))[: shape[0] * shape[1]]
        np.testing.assert_array_equal(bits.reshape(shape).astype(bool), group.mask)


def test_a_truth_shared_by_masks_is_held_once(tmp_path: Path) -> None:
    reports.write(tmp_path, Case(n_volumes=1, n_slices=1))
    first, second = json_of(built(tmp_path), "images")["files"]
    assert first["planes"][0][0] == second["planes"][0][0]
    assert first["planes"][0][1] != second["planes"][0][1]


def test_as_many_slices_as_fit_spread_over_the_volumes(tmp_path: Path) -> None:
    """100 slices of 8 methods, and room for some of them only."""
    methods = ("zero-filled", "sense", "l1-wavelet", "tv", "dagan", "refinegan", "gancs", "reconglgan")
    case = Case(methods=methods, masks=["random1d:4"], n_volumes=10, n_slices=10, shape=(48, 48))
    reports.write(tmp_path, case)
    empty = len(page.build(replace(comparison.read(tmp_path), images=[]), 45.0)) / 1e6
    limit = empty + 0.8
    found = comparison.read(tmp_path)
    html = page.build(found, limit)
    images = json_of(html, "images")
    assert limit - 0.03 < len(html.encode()) / 1e6 <= limit
    assert images["bits"] == 10, "bits go before slices"
    assert 20 < images["held"] < images["total"] == 100
    counts = [len(file["slices"]) for file in images["files"]]
    assert sum(counts) == images["held"]
    assert max(counts) - min(counts) <= 1
    assert all(n == 10 for n in (file["n_slices"] for file in images["files"]))
    full = json_of(page.build(found, 45.0), "images")
    assert (full["bits"], full["held"]) == (12, 100)


def test_a_limit_below_the_page_itself_leaves_all_images_out(tmp_path: Path) -> None:
    reports.write(tmp_path, Case(n_volumes=1))
    images = json_of(page.build(comparison.read(tmp_path), 0.1), "images")
    assert (images["held"], images["total"]) == (0, 2)


@pytest.mark.slow
def test_a_hundred_slices_of_eight_methods_under_three_masks_stay_below_50_mb(tmp_path: Path) -> None:
    methods = ("zero-filled", "sense", "l1-wavelet", "tv", "dagan", "refinegan", "gancs", "reconglgan")
    masks = ["random1d:4", "random1d:8", "poisson2d:8"]
    reports.write(tmp_path, Case(methods=methods, masks=masks, n_volumes=10, n_slices=10, shape=(256, 256)))
    path = report.write(tmp_path)
    images = json_of(path.read_text(), "images")
    assert path.stat().st_size <= 45e6
    assert 10 <= images["held"] <= images["total"] == 100


NASTY = "a</script><script>window.hit=1</script> & 'b' \"c\" <img src=x onerror=hit> $x_1$ {{blocks}} Größe"


def test_names_cannot_leave_their_place(tmp_path: Path) -> None:
    methods = ("sense", "own weights/2")
    case = Case(methods, ("random1d:4",), n_volumes=2, labels={"own weights/2": NASTY}, dataset="d</script><b>")
    about = reports.write(tmp_path, case)
    store.write_summary(tmp_path, {**about, "verdict": [NASTY], "command": ["recon", NASTY]})
    html = report.write(tmp_path).read_text(encoding="utf-8")
    body = html.replace(page._plotly(), "")
    assert "<script>window.hit" not in body
    assert "<img" not in body
    assert len(re.findall("<script", body)) == len(re.findall("</script>", body))
    data = json_of(html, "data")
    assert data["methods"][1]["label"] == NASTY
    assert data["datasets"] == [case.dataset]
    assert json_of(html, "images")["files"][0]["methods"] == list(case.methods)


def test_figures_show_something(tmp_path: Path) -> None:
    case = Case(failing=("sense", 1))
    about = reports.write(tmp_path, case)
    store.write_summary(tmp_path, {**about, "held_out": [reports.held_out(case.methods)]})
    report.write(tmp_path)
    names = {"boxes_brain", "acceleration_brain", "speed_brain", "tuning", "convergence", "held_out_scan.h5", "images_brain"}
    there = {path.name for path in (tmp_path / "figures").iterdir()}
    assert there == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
        assert np.mean(np.any(pixels != 255, axis=-1)) > 0.01
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_comparison_gives_the_same_files(tmp_path: Path) -> None:
    reports.write(tmp_path, Case(methods=("sense", "tv"), masks=("random1d:4",), n_volumes=2))
    report.write(tmp_path)
    names = ["index.html", "figures/boxes_brain.pdf", "figures/boxes_brain.png"]
    first = [(tmp_path / name).read_bytes() for name in names]
    report.write(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == first
    assert not list(tmp_path.rglob("*.part*"))


LITTLE = Case(methods=("sense", "tv"), masks=("random1d:4",), n_volumes=1)


def one_method(folder: Path) -> None:
    reports.write(
        folder, Case(methods=("sense",), masks=("random1d:4",), n_volumes=1, n_slices=1, shape=(17, 9), statistics=False)
    )


def everything_failed(folder: Path) -> None:
    reports.write(folder, replace(LITTLE, methods=("sense",), failing=("sense", 0)))


def nothing_yet(folder: Path) -> None:
    about = reports.summary(Case(), [])
    store.write_summary(folder, {"version": store.VERSION, "methods": about["methods"]})


def held_out_only(folder: Path) -> None:
    about = reports.summary(Case(), [])
    empty = {"tuning": [], "convergence": [], "statistics": [], "masks": [], "data": []}
    store.write_summary(folder, {**about, **empty, "held_out": [reports.held_out(reports.METHODS)]})


def images_without_truth(folder: Path) -> None:
    reports.write(folder, LITTLE)
    for path in store.image_files(folder):
        with h5py.File(path, "r+") as file:
            del file["truth"], file["boxes"], file["mask"]


def infinite_and_black(folder: Path) -> None:
    """A perfect method has an infinite PSNR; the truth of another volume is black."""
    reports.write(
        folder, Case(n_volumes=2, statistics=False), lambda v, n: np.full((20, 28), 1.0 - v, np.float32), lambda t, *_: t
    )


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "make", [one_method, everything_failed, nothing_yet, held_out_only, images_without_truth, infinite_and_black]
)
def test_folders_with_little_in_them_have_a_report(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    html = report.write(tmp_path).read_text()
    json_of(html, "data")
    assert "NaN" not in json.dumps(json_of(html, "images"))


def test_scans_without_truth_are_named_and_no_mask_is_claimed(tmp_path: Path) -> None:
    held_out_only(tmp_path)
    html = built(tmp_path)
    assert "methods on 1 scan without truth</h1>" in html
    assert "<b>scan.h5</b>: without truth, judged by held-out samples" in html
    assert "drawn once per volume" not in html


def test_failures_are_counted_and_their_reasons_kept(tmp_path: Path) -> None:
    reports.write(tmp_path, Case(failing=("refinegan", 1)))
    html = built(tmp_path)
    data = json_of(html, "data")
    failures = [dict(zip(data["failures"]["columns"], row, strict=True)) for row in data["failures"]["rows"]]
    assert [(f["volume"], f["slice"], f["method"], f["reason"]) for f in failures] == [
        ("volume_1", 1, "refinegan", "out of memory")
    ] * 2
    assert "refinegan: 2 slices" in html


def test_the_head_says_what_was_compared(tmp_path: Path) -> None:
    about = reports.write(tmp_path, Case())
    store.write_summary(tmp_path, {**about, "finished": False, "tuning": []})
    html = built(tmp_path)
    for text in (
        *about["verdict"],
        "simulated k-space; Somebody 2017, CC BY 4.0",
        "default weights, not tuned",
        "sigpy 0.1.27",
        "Not finished",
        "Not for diagnostic use",
    ):
        assert text in html


@pytest.mark.parametrize(
    ("key", "label", "better", "group"),
    [
        ("psnr_support", "PSNR, support", "higher", "Support"),
        ("nmse", "NMSE", "lower", "Image"),
        ("reconglgan-roi_ssim", "SSIM", "higher", "reconglgan-roi convention"),
        ("dagan_nmse_support", "NMSE, support", "lower", "dagan convention"),
        ("mr_distance", "MR-feature distance", "lower", "Perceptual"),
        ("lesion_contrast_error", "Lesion contrast error", "lower", "Regions of interest"),
        ("something_new", "something new", "", "Other"),
    ],
)
def test_metrics_are_called_by_their_names(key: str, label: str, better: str, group: str) -> None:
    name = metric_name(key)
    assert (name.label, name.better, name.group) == (label, better, group)


def test_a_folder_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the output of recon compare"):
        report.write(tmp_path)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    reports.write(tmp_path, Case(n_volumes=1))
    path = store.image_files(tmp_path)[0]
    with h5py.File(path, "r+") as file:
        del file.attrs["volume"]
    with pytest.raises(InputError, match=rf"{path.name}: not the images of a comparison"):
        report.write(tmp_path)
