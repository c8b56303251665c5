"""Two processes take the steps of one with the doubled batch."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.support.training import pictures

# Run in a process of its own: it forks, which no process with threads should.
SCRIPT = """
import sys
from pathlib import Path

import torch

from recon.commands.train import _gather
from tests.support.training import setup, small

torch.set_num_threads(1)


def train(name, devices, batch_size, **trainer):
    made, module, loaders = setup(
        Path(sys.argv[1]) / name, small("dagan", losses={"r1": 0.1}), n=6, batch_size=batch_size, shuffle=False,
        devices=devices, validate=True, max_steps=7, **trainer,
    )
    module.recorder.gather = _gather if devices > 1 else module.recorder.gather
    print(made.world_size)
    made.fit(module, loaders)


train("one", 1, 2)
train("two", 2, 1, strategy="ddp_fork_find_unused_parameters_true")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("ddp")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(where)]
    done = subprocess.run(command, env=environment, cwd=where, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["1", "2"], "numbers of processes"
    return where


def curves(run: Path) -> dict[str, list[float]]:
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_the_loss_curves_are_equal(folder: Path) -> None:
    one, two = curves(folder / "one"), curves(folder / "two")
    assert one.keys() == two.keys()
    losses = "g/image", "g/frequency", "g/adversarial", "d/adversarial", "d/r1"
    for name in (*losses, "gradient_norm/generator", "gradient_norm/discriminator"):
        assert len(one[name]) == 7
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_the_weights_are_equal(folder: Path) -> None:
    paths = [folder / run / "checkpoints" / "last.ckpt" for run in ("one", "two")]
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert int(two["steps"]) == 7
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_validation_sees_every_slice_of_every_volume_once(folder: Path) -> None:
    one, two = curves(folder / "one"), curves(folder / "two")
    for name in (name for name in one if name.startswith("val/")):
        assert two[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), name


def test_two_processes_end_together_when_one_is_told_to(tmp_path: Path) -> None:
    heads, run = pictures(tmp_path / "heads"), tmp_path / "run"
    options = ["--generator.width", "4", "--data.matrix", "[32,32]", "--data.coils", "[2]", "--data.val_coils", "2"]
    options += ["--data.batch_size", "1", "--data.masks", "[random1d:2]", "--data.calibration_width", "12"]
    options += ["--trainer.max_steps", "100000", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"]
    options += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "recon", "train", "--config", str(ROOT / "configs" / "dagan.yaml"), *options]
    command += ["--data.images", str(heads), "--data.group_size", "2", "--data.val_fraction", "0.25", "-o", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 120
            log = run / "csv" / "version_0" / "metrics.csv"
            while not (log.exists() and len(log.read_text().splitlines()) > 2):
                assert process.poll() is None, process.communicate()[1][-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)  # to this one alone; a terminal would tell both, each in a step of its own
            out, err = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err[-3000:]
    assert "interrupted after generator step" in out
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert f"interrupted after generator step {int(kept['steps'])};" in out
