"""The page of a run, without a browser: what it says, what it holds, how large it becomes, and that names stay text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kspace.container import Image
from recon.commands.run import run
from recon.output.export import RunRecord, export
from recon.output.png import view_of
from recon.output.scan_images import upright_plane
from recon.output.scan_page import LIMITS, build
from recon.output.series import make_series
from recon.run.options import RunOptions
from tests.support import raw_files
from tests.support.exports import make_image, make_record, rotation
from tests.support.pages import block_of, decode, json_of
from tests.support.scan_pages import HOSTILE, images_and_record
from tests.support.weights import written


def page(images: list[Image], record: RunRecord, **options: Any) -> str:
    return build(make_series(images, record), record, **options)


def row(html: str, question: str) -> str:
    found = re.search(rf"<tr><th scope=row>{re.escape(question)}</th>(.*?)</tr>", html)
    assert found, question
    return re.sub("<[^>]+>", " ", found[1])


def test_the_worst_image_of_each_check_is_told() -> None:
    html = page(*images_and_record())
    told = row(html, "Does the image agree with the acquired samples?")
    assert " ".join(told.split()) == "red chi2 7.3 slice 2; of 3 images: 1 red, 2 green"
    assert "of 3 images: 3 amber" in row(html, "Is the scan like those that the network was trained on?")
    assert "Does it predict acquired samples" not in html, "a check that was not made has no row"
    banner = re.search(r'role="alert">(.*?)</p>', html)
    assert banner
    assert "sense in place of the generated image for slice 2: the samples contradict the image" in banner[1]
    assert '<p class="verdict red">' in html
    assert all(limit in html for limit in LIMITS)
    for fact in ("NOT FOR DIAGNOSTIC USE", "Doe, 7", "R = 4.00", "a warning", "cd" * 32):
        assert fact in html


def test_without_an_objection_the_page_claims_no_proof() -> None:
    images, record = images_and_record(1, None)
    for one in record.extra["evidence"]:
        one.update(guard=None, verdict="green")
    html = page(images, record)
    assert '<p class="verdict green">No objection was found. That is not a proof' in html
    assert 'role="alert"' not in html
    assert "of 1 images" not in html


def test_what_a_page_without_evidence_says() -> None:
    images, record = images_and_record(1)
    silent = page(images, replace(record, extra={}))
    assert "No evidence was made for this generated image" in silent
    classical = page([make_image()], make_record())
    assert "A classical reconstruction: no generator took part" in classical
    assert json_of(classical, "images")["files"][0]["methods"] == ["main"]


def test_names_stay_text() -> None:
    images, record = images_and_record(text=HOSTILE)
    html = page(images, replace(record, method=HOSTILE, description=HOSTILE, versions={HOSTILE: HOSTILE}))
    plain = page(*images_and_record())
    assert "window.stolen" in html
    for tag in ("<script", "</script", "<img"):
        assert html.count(tag) == plain.count(tag)
    assert HOSTILE in json_of(html, "data")["evidence"][0]["main"] or HOSTILE in json_of(html, "data")["methods"][0]["label"]


@pytest.mark.parametrize("axes", [np.eye(3), rotation(8, -6, 95)])
def test_planes_are_stored_upright_to_the_step(axes: Any) -> None:
    images, record = images_and_record(2, None, axes=axes)
    html = page(images, record)
    described = json_of(html, "images")
    (file,) = described["files"]
    assert file["methods"] == ["main", "sense", "difference", "prior", "std"]
    assert file["maps"] == {"difference": "signed", "prior": "magnitude", "std": "magnitude"}
    assert tuple(file["letters"]) == view_of(images[0].header.geometry).letters
    assert file["notes"] == {"0": 0, "1": 1}
    for image in images:
        place = file["slices"].index(image.header.index.slice)
        key = file["planes"][place][file["methods"].index(image.role)]
        scale = file["scales"].get(image.role, {"step": file["step"], "zero": 0})
        shown = (decode(block_of(html, key), tuple(file["shape"])) - scale["zero"]) * scale["step"]
        truth = view_of(image.header.geometry).apply(
            image.data[0].abs().numpy() if image.role != "difference" else image.data[0].numpy()
        )
        assert np.abs(shown - truth).max() <= 0.501 * scale["step"]
    # Bright where the brightest value is, so that the maps share one scale that holds them.
    assert file["map_scale"] == pytest.approx(0.05, abs=0.04)


def test_pixels_are_square_and_slabs_are_planes() -> None:
    image = make_image((5, 8, 12), (120.0, 160.0, 50.0))
    assert upright_plane(image, 0).shape == (16, 12)
    html = page([image], make_record())
    (file,) = json_of(html, "images")["files"]
    assert file["slices"] == [0, 1, 2, 3, 4]
    assert tuple(file["shape"]) == (16, 12)
    assert "interpolated to square pixels on this page" in html


def test_volumes_are_apart() -> None:
    images = [make_image(index=replace(make_image().header.index, repetition=r, contrast=c)) for r in (0, 1) for c in (0, 1)]
    files = json_of(page(images, make_record()), "images")["files"]
    assert sorted(file["volume"] for file in files) == [f"contrast {c}, repetition {r}" for c in (0, 1) for r in (0, 1)]


def test_the_size_is_bounded_and_what_is_left_out_is_said() -> None:
    images, record = images_and_record(40)
    everything = page(images, record)
    limit = 0.25
    assert len(everything.encode()) > 1e6 * limit
    html = page(images, record, megabytes=limit)
    assert len(html.encode()) <= 1e6 * limit
    described = json_of(html, "images")
    assert described["total"] == 40
    assert 0 < described["held"] < 40
    held = described["files"][0]["slices"]
    assert len(held) == described["held"]
    assert max(np.diff(held)) <= 2 * 40 / len(held) + 1, "spread over the volume"


def test_a_generator_writes_the_page_and_a_classical_method_on_request(tmp_path: Path) -> None:
    case = raw_files.accelerated(tmp_path / "scan.h5", noise=0.01)
    weights = written(tmp_path)
    assert run([case.path], tmp_path / "generated", RunOptions(method="dagan", weights=weights, refine="none")) == 0
    record = json.loads((tmp_path / "generated" / "scan.json").read_text())
    assert "scan.html" in record["files"]
    assert record["parameters"]["format"] == "mrd,dicom,nifti,png,html"
    html = (tmp_path / "generated" / "scan.html").read_text()
    assert record["provenance"]["inputs"][0]["sha256"] in html
    assert json_of(html, "images")["files"][0]["methods"][:2] == ["main", "sense"]
    assert run([case.path], tmp_path / "chosen", RunOptions(method="dagan", weights=weights, refine="none", format="png")) == 0
    assert not list((tmp_path / "chosen").glob("*.html"))
    assert run([case.path], tmp_path / "classical", RunOptions(method="sense")) == 0
    assert not list((tmp_path / "classical").glob("*.html"))
    assert run([case.path], tmp_path / "asked", RunOptions(method="sense", format="html")) == 0
    assert sorted(p.name for p in (tmp_path / "asked").iterdir()) == ["scan.html", "scan.json"]


def test_one_page_for_all_roles(tmp_path: Path) -> None:
    images, record = images_and_record()
    written_files = export(images, record, tmp_path, "scan", ("html",))
    assert [p.name for p in written_files] == ["scan.html", "scan.json"]
