"""`recon compare --scheduler`: worker processes of Dask give the figures of one process, and may die."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kspace.errors import InputError
from recon.batch.jobs import DeadJob
from recon.batch.options import ClusterOptions
from recon.compare import store
from recon.compare.folder import begin
from recon.compare.plan import CompareOptions, make_plan
from recon.compare.stages import run as running
from recon.compare.stages.crew import Bench, Crew
from recon.report import report
from tests.conftest import ROOT
from tests.support.clusters import appeared, running_cluster, scheduler, with_children, worker
from tests.support.comparisons import MASK, run, volume, volumes
from tests.support.weights import written

TIMES = {"seconds", "maps_seconds", "peak_cpu_mb", "peak_gpu_mb", "started", "seconds_per_slice", "maps_seconds_per_slice"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as file:
        yield file


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda folder: folder / "index.html")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def timeless(value: Any) -> Any:
    """Without times, machine and command line."""
    if isinstance(value, dict):
        left_out = ("created", "command", "machine", "seconds_per_slice", "fit_seconds")
        return {k: timeless(v) for k, v in value.items() if k not in left_out}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def test_workers_give_the_figures_of_one_process_bit_for_bit(cluster: Path, tmp_path: Path) -> None:
    volumes(tmp_path / "heads", 2)
    volume(tmp_path / "tune" / "t.h5", seed=7)
    sampled = torch.zeros(1, 36, 1, dtype=torch.bool)
    sampled[:, ::2] = sampled[:, 12:24] = True
    volume(tmp_path / "heads" / "undersampled.h5", seed=9, n_slices=1, mask=sampled)
    weights = written(tmp_path)
    words = (
        *(tmp_path / "heads", "--methods", "zero-filled,tv,mine,mine+stack", "--weights", f"mine={weights}"),
        *("--masks", f"{MASK},poisson2d:3,centre=10", "--tune-on", tmp_path / "tune", "--tune-slices", 1, "--draws", 2),
    )
    assert run(*words, "-o", tmp_path / "here") == 0
    assert run(*words, "-o", tmp_path / "there", "--scheduler", cluster) == 0
    for name in (store.SLICES, store.RESULTS):
        assert table(tmp_path / "here" / name) == table(tmp_path / "there" / name)
        assert len(table(tmp_path / "here" / name)) >= 2 * 4 * 4
    here, there = (json.loads((tmp_path / name / store.SUMMARY).read_text()) for name in ("here", "there"))
    assert timeless(here) == timeless(there)
    assert here["tuning"]
    assert here["convergence"]
    assert here["held_out"]
    assert "2 worker processes" in there["machine"]["workers"]
    pairs = list(zip(store.image_files(tmp_path / "here"), store.image_files(tmp_path / "there"), strict=True))
    assert len(pairs) == 2 * 2 * 2
    for a, b in pairs:
        one, other = store.read_images(a), store.read_images(b)
        assert one.images.keys() == other.images.keys()
        for name, image in one.images.items():
            np.testing.assert_array_equal(image, other.images[name])
    assert not list((tmp_path / "there").glob("images/*.csv"))
    assert not (tmp_path / "there" / ".batch").exists()


def test_a_volume_that_kills_its_workers_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes(tmp_path / "heads")
    plan = make_plan([str(tmp_path / "heads")], tmp_path / "out", CompareOptions(methods="zero-filled", masks=MASK))

    def each(function: Any, jobs: Any) -> Iterator[tuple[Any, Any]]:
        for job in reversed(list(jobs)):  # workers end in any order
            if job.arguments["place"].name == "v1.h5":
                function(bench, **{**job.arguments, "slices": job.arguments["slices"][:1]})
                yield job, DeadJob(2)
            else:
                yield job, function(bench, **job.arguments)

    bench = Bench(plan.output, plan.options, plan.methods, plan.conventions)
    with Crew(plan, ClusterOptions()) as crew:
        monkeypatch.setattr(crew, "each", each)
        monkeypatch.setattr(Crew, "is_apart", True)
        _, rows = running.run_all(plan, begin(plan), crew)
    assert [(row.volume, row.n_failed) for row in rows] == [("v0.h5", 0), ("v1.h5", 1), ("v2.h5", 0)]
    assert rows[1].reason == "its worker process died in 2 attempts (memory used up, or a crash in a library)"
    assert rows[0].metrics
    assert not rows[1].metrics
    found = [(row.volume, row.slice, row.failed) for row in store.read_slices(plan.output)]
    assert found == [(f"v{v}.h5", s, (v, s) == (1, 1)) for v in range(3) for s in range(2)]


def test_rows_of_workers_whose_command_was_killed_are_taken_over(tmp_path: Path) -> None:
    volumes(tmp_path / "heads", 1)
    plan = make_plan([str(tmp_path / "heads")], tmp_path / "out", CompareOptions(methods="zero-filled", masks=MASK))
    summary = begin(plan)
    ((found, spec, group),) = plan.groups
    bench = Bench(plan.output, plan.options, plan.methods, plan.conventions)
    running.run_group(bench, found.place, spec, group, (0, 1), [], [])
    assert store.read_slices(plan.output) == []
    with Crew(plan, ClusterOptions()) as crew:
        bench = crew.bench
        bench.methods[0] = None  # type: ignore[call-overload]  # nothing is reconstructed again
        log = store.SliceLog(plan.output)
    assert [(row.slice, row.status) for row in log.rows] == [(0, "ok"), (1, "ok")]
    assert store.read_slices(plan.output) == log.rows
    assert not list(plan.output.glob("images/*.csv"))
    assert summary.finished is False


def test_an_error_in_a_worker_ends_the_command_as_it_does_here(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes(tmp_path / "heads", 1)
    words = (tmp_path / "heads", "-o", tmp_path / "out", "--methods", "zero-filled", "--masks", MASK)
    assert run(*words) == 0
    (path,) = store.image_files(tmp_path / "out")
    path.write_bytes(b"no images")
    said = []
    for workers in ([], ["--scheduler", cluster]):
        capsys.readouterr()
        assert run(*words, *workers) == 2
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    assert str(path) in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["Ctrl-C", "scheduler killed"])
def test_what_was_compared_stays_and_the_same_command_goes_on(what: str, tmp_path: Path) -> None:
    data, words = volumes(tmp_path / "heads", 4), ("--methods", "zero-filled,tv", "--masks", MASK)
    assert run(data, "-o", tmp_path / "whole", *words) == 0
    file, out = tmp_path / "scheduler.json", tmp_path / "out"
    command = [sys.executable, "-m", "recon", "compare", data, "-o", out, *words, "--scheduler", file]
    with scheduler(file) as dask:
        appeared(file)
        with worker(file), subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.PIPE, text=True) as started:
            deadline = time.monotonic() + 240
            while not (out / store.SLICES).exists() or len(table(out / store.SLICES)) < 2:
                assert time.monotonic() < deadline
                assert started.poll() is None
                time.sleep(0.005)
            if what == "Ctrl-C":
                started.send_signal(signal.SIGINT)
            else:
                with_children(dask.pid, signal.SIGKILL)
            _, said = started.communicate(timeout=120)
    assert started.returncode == (130 if what == "Ctrl-C" else 2), said
    assert ("the same command goes on from there" if what == "Ctrl-C" else "--scheduler: the scheduler went away") in said
    begun = table(out / store.SLICES)
    assert 2 <= len(begun) < 4 * 2 * 2
    assert run(data, "-o", out, *words) == 0
    assert table(out / store.SLICES) == table(tmp_path / "whole" / store.SLICES)


def test_threads_need_worker_processes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--threads: threads of worker processes, and there are none; add --scheduler local:N"):
        ClusterOptions(threads=2).refuse_threads()
