"""Adaptation by `recon run`: record, saved weights, continuation and repetition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kspace.errors import InputError
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.run import prepare
from recon.commands.replay import replay
from recon.commands.run import run
from recon.methods import weights
from recon.run.options import RunOptions
from recon.serve.options import ScannerOptions
from tests.support import raw_files
from tests.support.weights import written


def test_a_run_with_adaptation_is_recorded_saved_continued_and_repeated(tmp_path: Path) -> None:
    raw_files.accelerated(tmp_path / "scan.h5", factor=2, noise=0.01, matrix=(48, 72, 1))
    kept = tmp_path / "adapted.safetensors"
    options = RunOptions(
        method="dagan", weights=written(tmp_path), refine="none", evidence="none", classical="none", format="mrd",
        adapt=1000.0, adapt_steps=5, save_weights=kept,
    )  # fmt: skip
    assert run([tmp_path / "scan.h5"], tmp_path / "out", options) == 0
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    (told,) = record["extra"]["refinement"]
    assert told["steps"] == 5
    assert told["recipe"]["seed"] == 0
    assert set(told["unused_errors"]) == {"0", "5"}
    card = weights.read_card(kept)
    assert card.training["adapted"]["parent_sha256"] == told["parent_sha256"]
    assert replay(tmp_path / "out" / "scan.json") == 0

    assert run([tmp_path / "scan.h5"], tmp_path / "more", replace(options, adapt_steps=10)) == 0
    (told,) = json.loads((tmp_path / "more" / "scan.json").read_text())["extra"]["refinement"]
    assert set(told["unused_errors"]) == {"0", "5", "10"}, "it went on where it had ended"

    raw_files.accelerated(tmp_path / "other.h5", factor=2, noise=0.02, matrix=(48, 72, 1))
    with pytest.raises(InputError, match="the adaptation of another scan"):
        run([tmp_path / "other.h5"], tmp_path / "other", options)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sense", "adapt": 3.0}, r"--adapt: sense is no generator"),
        ({"method": "dagan", "adapt": 0.0}, r"--adapt: 0 is no time; give seconds"),
        ({"method": "dagan", "adapt": 3.0, "adapt_steps": 0}, r"--adapt-steps: 0 steps"),
        ({"method": "dagan", "save_weights": Path("a.safetensors")}, r"nothing is adapted; add --adapt SECONDS"),
        ({"method": "dagan", "adapt": 3.0, "save_weights": Path("a.pt")}, r"weights are files that end in \.safetensors"),
    ],
)
def test_an_adaptation_that_cannot_be_is_refused_in_one_line(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = raw_files.simple(tmp_path / "scan.h5").path
    with pytest.raises(InputError, match=message):
        run([path], tmp_path / "out", RunOptions(**options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_server_and_a_batch_refuse_to_save_adapted_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--save-weights: the scans of a server would write one file"):
        ScannerOptions(method="dagan", adapt=3.0, save_weights=tmp_path / "a.safetensors")
    options = RunOptions(method="dagan", adapt=3.0, save_weights=tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="--save-weights: the scans of a batch would write one file"):
        prepare([str(tmp_path)], tmp_path / "out", options, BatchOptions(), ClusterOptions())
