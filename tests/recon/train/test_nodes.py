"""Two nodes, as two processes of one machine that find each other by environment variables."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.conftest import ROOT
from tests.support.training import pictures


@pytest.mark.slow
def test_two_nodes_train_one_network(tmp_path: Path) -> None:
    heads, run = pictures(tmp_path / "heads"), tmp_path / "run"
    options = ["--generator.width", "4", "--data.matrix", "[32,32]", "--data.coils", "[2]", "--data.val_coils", "2"]
    options += ["--data.batch_size", "1", "--data.masks", "[random1d:2]", "--data.calibration_width", "12"]
    options += ["--data.images", str(heads), "--data.group_size", "2", "--data.val_fraction", "0.25", "-o", str(run)]
    options += ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "0", "--trainer.log_every_n_steps", "1"]
    options += [
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "1",
        "--trainer.num_nodes",
        "2",
        "--trainer.strategy",
        "ddp",
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = []
    for rank in range(2):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NODE_RANK": str(rank)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        environment |= {"GROUP_RANK": str(rank), "RANK": str(rank)}
        command = [sys.executable, "-m", "recon", "train", "--config", "dagan", *options]
        nodes.append(
            subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        said = [node.communicate(timeout=200) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "4 generator steps" in said[0][0]
    assert "generator steps" not in said[1][0], "only the first node reports and writes"
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row.get("g/image")]) == 4
    with safe_open(run / "last.safetensors", "pt") as weights:
        assert len(list(weights.keys())) > 4
