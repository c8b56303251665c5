"""Provenance of a run, and its repetition bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from kspace.errors import InputError
from kspace.io.mrd.images import read_images
from recon import cli
from recon.commands.replay import EXIT_CHANGED, EXIT_DIFFERENT, replay
from recon.commands.run import run
from recon.methods import weights
from recon.run.options import RunOptions
from tests.conftest import ROOT
from tests.support import raw_files
from tests.support.weights import trained, written


@dataclass(frozen=True)
class Run:
    """A run whose files a test may change: a copy of the one that was made."""

    folder: Path

    @property
    def record(self) -> Path:
        return self.folder / "out" / "scan.json"

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record.read_text())
        return found

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        content = self.content
        change(content)
        self.record.write_text(json.dumps(content))


OPTIONS = {
    "generated": RunOptions(method="dagan", refine="stack", format="mrd,dicom"),
    "classical": RunOptions(method="l1-wavelet", format="mrd,nifti", complex=True),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A generated and a classical run, each in its folder."""
    folders = {}
    for name, options in OPTIONS.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        case = raw_files.accelerated(folder / "scan.h5", noise=0.01, n_slices=2)
        np.save(folder / "maps.npy", case.maps()[:, 0])
        if name == "generated":
            options = replace(options, weights=written(folder), maps=str(folder / "maps.npy"))
        assert run([folder / "scan.h5"], folder / "out", options) == 0
    return folders


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Run]:
    """A copy of a run; its record names the copied files."""

    def copy(name: str) -> Run:
        shutil.copytree(made[name], tmp_path / "copy")
        record = tmp_path / "copy" / "out" / "scan.json"
        content = json.loads(record.read_text().replace(str(made[name]), str(tmp_path / "copy")))
        known = content["provenance"]
        # The paths are part of the configuration.
        text = json.dumps(known["configuration"], sort_keys=True, separators=(",", ":"))
        known["configuration_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        record.write_text(json.dumps(content))
        return Run(tmp_path / "copy")

    return copy


@pytest.mark.parametrize("name", OPTIONS)
def test_a_new_process_reproduces_the_pixels(copied: Callable[[str], Run], name: str, tmp_path: Path) -> None:
    case = copied(name)
    command = [sys.executable, "-m", "recon", "replay", str(case.record), "-o", str(tmp_path / "again")]
    # Two threads by default, of which the repetition takes the one of the record.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    n = len(case.content["provenance"]["pixels"])
    assert n >= {"generated": 4, "classical": 2}[name]
    assert f"pixels: {n} of {n} images are equal, bit for bit" in done.stdout
    assert "software and instruction set: as recorded" in done.stdout
    files = sorted(p.name for p in (case.folder / "out").glob("*.mrd.h5"))
    assert files == sorted(p.name for p in (tmp_path / "again").glob("*.mrd.h5"))
    for file in files:
        first, second = (
            [s.image.data.numpy() for s in read_images(folder / file)] for folder in (case.folder / "out", tmp_path / "again")
        )
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def test_provenance_in_every_format(made: dict[str, Path]) -> None:
    folder = made["generated"] / "out"
    content = json.loads((folder / "scan.json").read_text())
    known = content["provenance"]
    expected = {
        "raw file": hashlib.sha256((made["generated"] / "scan.h5").read_bytes()).hexdigest(),
        "weights": weights.read_card(made["generated"] / "small.safetensors").sha256,
        "coil maps": hashlib.sha256((made["generated"] / "maps.npy").read_bytes()).hexdigest(),
    }
    assert {one["what"]: one["sha256"] for one in known["inputs"]} == expected
    assert known["mask_sha256"] == content["mask"]["images"][0]["digest"]
    assert known["seed"] == 0
    assert known["machine"]["device"] == "cpu"
    stated = [*expected.values(), known["configuration_sha256"], known["mask_sha256"], known["code"]["sha256"]]
    meta = read_images(folder / "scan.mrd.h5")[0].meta
    ds = pydicom.dcmread(next((folder / "scan_dicom").iterdir()))
    equipment = ds.ContributingEquipmentSequence[0].ContributionDescription
    for digest in stated:
        assert any(digest in line for line in meta["Provenance"])
        assert digest in equipment
    assert "NOT FOR DIAGNOSTIC USE" in equipment
    assert "NOT FOR DIAGNOSTIC USE" in ds.DerivationDescription
    assert "dagan" in ds.SeriesDescription
    assert "NOT FOR DIAGNOSTIC USE" in ds.SeriesDescription
    assert str(made["generated"]) not in equipment + " ".join(meta["Provenance"])


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _other_weights(case: Run) -> None:
    network, card = trained()
    state = {name: x + 1e-3 if x.is_floating_point() else x for name, x in network.state_dict().items()}
    weights.write(case.folder / "small.safetensors", state, card, force=True)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("raw file", lambda case: _flip_last_byte(case.folder / "scan.h5")),
        ("coil maps", lambda case: _flip_last_byte(case.folder / "maps.npy")),
        ("weights", _other_weights),
        ("configuration", lambda case: case.edit(lambda c: c["provenance"]["configuration"].update(calibration_width=20))),
    ],
)
def test_a_changed_input_is_named(
    copied: Callable[[str], Run], what: str, change: Callable[[Run], object], capsys: pytest.CaptureFixture[str]
) -> None:
    case = copied("generated")
    change(case)
    assert replay(case.record) == EXIT_CHANGED
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{what} has changed: sha256 ")
    assert len(said) == 2


def test_other_pixels_and_other_versions_are_named(copied: Callable[[str], Run], capsys: pytest.CaptureFixture[str]) -> None:
    case = copied("classical")

    def change(content: dict[str, Any]) -> None:
        content["provenance"]["pixels"][1]["sha256"] = "0" * 64
        content["versions"]["torch"] = "1.0\x1b[2J"

    case.edit(change)
    before = case.record.read_bytes()
    assert replay(case.record) == EXIT_DIFFERENT
    said = capsys.readouterr().out
    assert "torch: 1.0?[2J in the record, 2" in said
    assert "slice 1 (main): other pixels" in said
    assert "1 of 2 images are equal, 1 are not; the software differs" in said
    with pytest.raises(InputError, match=r"scan.json exists already; give another -o"):
        replay(case.record, case.record.parent)
    assert case.record.read_bytes() == before


def test_a_moved_raw_file_is_found_beside_the_record_or_given(copied: Callable[[str], Run], tmp_path: Path) -> None:
    case = copied("classical")
    moved = shutil.move(case.folder / "scan.h5", tmp_path / "elsewhere.h5")
    with pytest.raises(InputError, match=r"the raw file '.*scan.h5' of the record is gone; give it with --raw"):
        replay(case.record)
    assert replay(case.record, raw=Path(moved)) == 0
    shutil.move(moved, case.record.parent / "scan.h5")
    assert replay(case.record) == 0


def test_missing_weights_and_maps(copied: Callable[[str], Run]) -> None:
    case = copied("generated")
    (case.folder / "maps.npy").rename(case.folder / "renamed.npy")
    with pytest.raises(InputError, match=r"the coil maps '.*maps.npy' of the record is gone; put it back"):
        replay(case.record)
    (case.folder / "small.safetensors").unlink()
    with pytest.raises(InputError, match=r"the weights '.*small.safetensors' of the record is gone; put it back"):
        replay(case.record)


HOSTILE: dict[str, tuple[Callable[[Run], object], str]] = {
    "absent": (lambda case: case.record.unlink(), "No such file"),
    "no JSON": (lambda case: case.record.write_bytes(b"\x80\x04\x95pickle"), "not JSON"),
    "deep": (lambda case: case.record.write_text("[" * 200_000), "not JSON"),
    "a list": (lambda case: case.record.write_text("[]"), "no record of a run"),
    "huge": (lambda case: os.truncate(case.record, 65 << 20), "larger than 64 MB"),
    "empty": (lambda case: case.record.write_text("{}"), "no valid entry 'provenance'"),
    "another schema": (
        lambda case: case.edit(lambda c: c["provenance"].update(schema=99)),
        "schema 99; this version reads schema 1",
    ),
    "device file": (lambda case: case.edit(lambda c: c["provenance"]["inputs"][0].update(path="/dev/zero")), "is gone"),
    "zero byte": (lambda case: case.edit(lambda c: c["provenance"]["inputs"][0].update(path="a\0b")), "is gone"),
    "lone surrogate": (lambda case: case.edit(lambda c: c["provenance"]["inputs"][0].update(path="\ud800")), "is gone"),
    "long path": (lambda case: case.edit(lambda c: c["provenance"]["inputs"][0].update(path="a" * 10**5)), "is gone"),
    "text for inputs": (lambda case: case.edit(lambda c: c["provenance"].update(inputs=["x"])), "no valid entry 'inputs'"),
    "no pixels": (lambda case: case.edit(lambda c: c["provenance"].update(pixels=[])), "no images"),
    "unknown option": (lambda case: case.edit(lambda c: c["provenance"]["configuration"].update(rm=1)), "option 'rm'"),
    "wrong type": (lambda case: case.edit(lambda c: c["provenance"]["configuration"].update(maps={"a": 1})), "expected str"),
    "other input": (lambda case: case.edit(lambda c: c["provenance"]["inputs"][0].update(what="x\n")), "names no raw file"),
    "other device": (
        lambda case: case.edit(lambda c: c["provenance"]["machine"].update(device="tpu")),
        "expected 'auto', 'cpu'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_record_that_cannot_be_used(copied: Callable[[str], Run], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = copied("classical")
    change, says = HOSTILE[name]
    change(case)
    before = sorted(p for p in case.folder.rglob("*"))
    assert cli.execute(["replay", str(case.record)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert error.startswith("recon: error: ")
    assert sorted(p for p in case.folder.rglob("*")) == before


def test_a_record_of_cuda_needs_cuda(copied: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    case = copied("classical")
    case.edit(lambda c: c["provenance"]["machine"].update(device="cuda"))
    with pytest.raises(InputError, match="made on CUDA, and there is no CUDA device here; replay on such a machine"):
        replay(case.record)
