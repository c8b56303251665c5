"""Delivery of generated images: evidence on record, and the classical image where the network fails or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch

from kspace.errors import InputError
from kspace.io.mrd.images import read_images
from recon import api
from recon.commands.run import run
from recon.methods.generator import GeneratorReconstructor
from recon.run.options import RunOptions
from tests.support import raw_files
from tests.support.weights import written

Call = Callable[..., torch.Tensor]


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, RunOptions]:
    path = raw_files.simple(tmp_path / "scan.h5").path
    weights = written(tmp_path)
    return path, RunOptions(method="dagan", weights=weights, refine="none", format="mrd,dicom", evidence="basic")


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "scan.json").read_text())
    return found


def broken(how: str) -> Call:
    once = GeneratorReconstructor.__call__

    def call(self: GeneratorReconstructor, y: torch.Tensor, op: Any) -> torch.Tensor:
        if how == "memory":
            raise torch.OutOfMemoryError("tried to allocate 3 TiB")
        if how == "error":
            raise RuntimeError("expected 4 channels\nand more")
        image = once(self, y, op)
        return image * (float("nan") if how == "nan" else 1.0) + 1e3 * image.abs().amax() * (how == "constant")

    return call


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("error", "RuntimeError: expected 4 channels"),
        ("memory", "out of memory"),
        ("nan", "not finite"),
        ("constant", "certificate: misfit"),
    ],
)
def test_a_network_that_fails_is_replaced(
    how: str, said: str, scan: tuple[Path, RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path, options = scan
    monkeypatch.setattr(GeneratorReconstructor, "__call__", broken(how))
    assert run([path], tmp_path / "out", options) == 0
    record = record_of(tmp_path / "out")
    assert said in record["extra"]["fallback"][0]["reason"]
    assert record["extra"]["evidence"][0]["fallback"]["delivered"] == "sense"
    assert record["extra"]["evidence"][0]["verdict"] == "red"
    assert (record["method"], record["generated"]) == ("sense", False)
    assert "sense delivered in place of dagan" in capsys.readouterr().err
    main, sense = (read_images(tmp_path / "out" / f"scan{tail}.mrd.h5")[0] for tail in ("", "_sense"))
    assert torch.equal(main.image.data, sense.image.data)
    assert main.meta["ImageProcessingHistory"][-1] == "sense in place of dagan"
    assert "trained generator" not in main.meta["ImageProcessingHistory"]
    ds = pydicom.dcmread(next((tmp_path / "out" / "scan_dicom").iterdir()))
    assert "sense in place of dagan" in ds.ImageComments
    assert ds.ImageType[0] == "ORIGINAL"
    assert run([path], tmp_path / "strict", replace(options, strict=True)) == 3
    assert (tmp_path / "strict" / "scan.mrd.h5").exists()


def test_one_slice_of_several_is_replaced_and_marked(
    scan: tuple[Path, RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = api.example_scan(tmp_path / "two.h5", matrix=64, n_slices=2, n_coils=4)
    once, calls = GeneratorReconstructor.__call__, []

    def call(self: GeneratorReconstructor, y: torch.Tensor, op: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        return once(self, y, op)

    monkeypatch.setattr(GeneratorReconstructor, "__call__", call)
    assert run([path], tmp_path / "out", scan[1]) == 0
    record = json.loads((tmp_path / "out" / "two.json").read_text())
    delivered = [one["delivered"] for one in record["extra"]["evidence"]]
    assert delivered == ["sense", "dagan"]
    assert record["generated"]
    assert "sense in place of dagan for slice 0" in record["description"]
    histories = [one.meta["ImageProcessingHistory"] for one in read_images(tmp_path / "out" / "two.mrd.h5")]
    assert [h[-1] for h in histories] == ["sense in place of dagan", "trained generator"]
    types = {pydicom.dcmread(p).ImageType[0] for p in (tmp_path / "out" / "two_dicom").iterdir()}
    assert types == {"ORIGINAL", "DERIVED"}


def test_without_a_classical_image_a_failure_is_an_error(
    scan: tuple[Path, RunOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, options = scan
    assert run([path], tmp_path / "good", replace(options, classical="none")) == 0
    evidence = record_of(tmp_path / "good")["extra"]["evidence"][0]
    assert evidence["companion"] is None
    assert evidence["certificate"]["threshold"] is None
    assert not (tmp_path / "good" / "scan_sense.mrd.h5").exists()
    monkeypatch.setattr(GeneratorReconstructor, "__call__", broken("nan"))
    with pytest.raises(InputError, match="gave no image: values that are not finite"):
        run([path], tmp_path / "bad", replace(options, classical="none"))
    assert not (tmp_path / "bad").exists()


def test_the_guard_warns_refuses_or_is_off(
    scan: tuple[Path, RunOptions], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, options = scan  # fully sampled: R = 1 is less than the card says
    assert run([path], tmp_path / "warn", options) == 0
    assert "outside of what dagan was trained on: acceleration 1.0" in capsys.readouterr().err
    assert record_of(tmp_path / "warn")["extra"]["evidence"][0]["guard"]["verdict"] == "amber"
    assert run([path], tmp_path / "strict", replace(options, guard="strict", classical="l1-wavelet")) == 0
    record = record_of(tmp_path / "strict")
    assert "domain guard: acceleration" in record["extra"]["fallback"][0]["reason"]
    assert record["method"] == "l1-wavelet"
    assert (tmp_path / "strict" / "scan_l1-wavelet.mrd.h5").exists()
    capsys.readouterr()
    assert run([path], tmp_path / "off", replace(options, guard="off")) == 0
    assert "outside" not in capsys.readouterr().err


def test_options_that_contradict_each_other_are_one_line() -> None:
    with pytest.raises(InputError, match="--guard strict needs a classical image"):
        RunOptions(guard="strict", classical="none")
    with pytest.raises(InputError, match="give 0 to 64"):
        RunOptions(repeats=-1)


def test_without_repeats_there_is_no_interval_and_it_says_so(scan: tuple[Path, RunOptions], tmp_path: Path) -> None:
    path, options = scan
    assert run([path], tmp_path / "none", replace(options, evidence="full", repeats=0)) == 0
    uncertainty = record_of(tmp_path / "none")["extra"]["evidence"][0]["uncertainty"]
    assert (uncertainty["calibrated"], uncertainty["k"]) == (False, 0)
    assert uncertainty["says"].startswith("K = 0")
    assert run([path], tmp_path / "uncalibrated", replace(options, evidence="full")) == 0
    evidence = record_of(tmp_path / "uncalibrated")["extra"]["evidence"][0]
    assert "no calibration" in evidence["uncertainty"]["says"]
    assert evidence["stability"]["gain"] > 0
    assert not (tmp_path / "uncalibrated" / "scan_std.mrd.h5").exists()
    assert (tmp_path / "uncalibrated" / "scan_prior.mrd.h5").exists()
