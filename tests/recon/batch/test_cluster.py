"""Batches on Dask: a scheduler with worker processes that all tests share, and processes that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kspace.errors import InputError
from recon.batch import run as running
from recon.batch.cluster import DaskExecutor, check_trust, local_workers, scheduler_address
from recon.batch.executor import TaskLoop
from recon.batch.jobs import Job, JobWorkers
from recon.batch.log import read_rows
from recon.batch.options import ClusterOptions
from tests.conftest import ROOT
from tests.support.batches import prepared, write_instructions
from tests.support.clusters import ENVIRONMENT, OLD, appeared, running_cluster, scheduler, with_children, worker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as file:
        yield file


def test_a_batch_runs_on_the_workers_of_a_scheduler(cluster: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_instructions(source, 12, seconds=0.02)
    assert running.run(prepared(source, out, str(cluster)), "rss") == 0
    rows = list(read_rows(out / "batch.jsonl"))
    assert Counter(row.scan for row in rows) == Counter(f"sub-{i:03}/scan" for i in range(12))
    assert len({row.worker for row in rows}) == 2
    assert str(os.getpid()) not in {row.worker.split(":")[1] for row in rows}


def test_workers_that_die_are_replaced_and_only_the_guilty_scan_fails(cluster: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_instructions(source, 5)
    for name, said in {"0-crash": {"signal": int(signal.SIGSEGV)}, "1-once": {"die_once": True}}.items():
        (source / name).mkdir()
        (source / name / "scan.h5").write_text(json.dumps(said))
    assert running.run(prepared(source, out, str(cluster)), "rss") == 4
    rows = {row.scan: row for row in read_rows(out / "batch.jsonl")}
    assert {name: row.cause for name, row in rows.items() if row.state == "failed"} == {"0-crash/scan": "died"}
    assert len(rows) == 7


def test_only_as_many_tasks_are_taken_as_workers_can_use(cluster: Path) -> None:
    executor = DaskExecutor(abs, ClusterOptions(scheduler=str(cluster)))
    taken = ended = most = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for i in range(300):
            taken += 1
            yield -i

    try:
        for done in TaskLoop(executor, tasks()):
            assert done.value == -done.task
            ended += 1
            most = max(most, taken - ended)
        assert ended == 300
        assert most <= 2 * executor.n_workers + 2
    finally:
        executor.close()


def perform(how: str, folder: Path) -> str:
    """A job for workers."""
    if how == "die":
        (folder / ".dead.h5.0123.part").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "refuse":
        raise InputError("12 channels came", folder, "copy it again")
    return how


class Unpacked:
    """Something that notes in which process it is unpacked."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __reduce__(self) -> tuple[Any, ...]:
        return note, (self.notes,)


def note(notes: Path) -> int:
    """Note this process."""
    with notes.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


def own(process: int) -> int:
    """Process that calls, where its argument was unpacked."""
    assert process == os.getpid()
    return process


def test_a_job_that_kills_its_workers_ends_and_leaves_nothing(cluster: Path, tmp_path: Path) -> None:
    jobs = [Job(how, {"how": how, "folder": tmp_path}) for how in ("one", "die", "two")]
    jobs[1] = Job("dead", jobs[1].arguments)
    with JobWorkers(ClusterOptions(scheduler=str(cluster)), tmp_path) as workers:
        found = {job.name: result for job, result in workers.each(perform, jobs)}
        assert {name: found[name] for name in ("one", "two")} == {"one": "one", "two": "two"}
        assert found["dead"].n_attempts == 2
        with pytest.raises(InputError, match="12 channels came; copy it again") as refused:
            list(workers.each(perform, [Job("bad", {"how": "refuse", "folder": tmp_path})]))
        assert refused.value.where == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_scheduler_does_not_unpack_what_travels_to_workers(cluster: Path, tmp_path: Path) -> None:
    """It would import PyTorch for it, and answer nobody meanwhile."""
    with JobWorkers(ClusterOptions(scheduler=str(cluster)), tmp_path) as workers:
        jobs = [Job(str(i), {"process": Unpacked(tmp_path / "notes")}) for i in range(2)]
        ran = [result for _, result in workers.each(own, jobs)]
    assert sorted((tmp_path / "notes").read_text().split()) == sorted(map(str, ran))


def watch(executor: DaskExecutor) -> None:
    """Wait as `TaskLoop` does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        _ = executor.n_free
        assert executor.wait(0.2) == []


def test_workers_with_devices_alone_get_tasks_for_devices(cluster: Path, tmp_path: Path) -> None:
    options = ClusterOptions(scheduler=str(cluster), gpus=True)
    with pytest.raises(InputError, match="--gpus: no worker announces a GPU; start the workers with --resources GPU=1"):
        DaskExecutor(abs, options)
    with worker(cluster, "--no-nanny", "--resources", "GPU=1") as started:
        deadline = time.monotonic() + 60
        while True:
            try:
                workers = JobWorkers(options, tmp_path)
                break
            except InputError:
                assert time.monotonic() < deadline
        with workers:
            ran = {result for _, result in workers.each(place, [Job(str(i)) for i in range(4)])}
    assert ran == {started.pid}


def place() -> int:
    """Process of a worker."""
    return os.getpid()


def test_one_worker_for_each_device_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[Any, Any]] = []
    monkeypatch.setattr("distributed.SpecCluster", lambda specs, *_, **__: made.append(specs))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    local_workers(0, ClusterOptions(scheduler="local", gpus=True, threads=2))
    (specs,) = made
    assert [s["options"]["env"]["CUDA_VISIBLE_DEVICES"] for s in specs.values()] == ["0", "2", "5"]
    assert all(s["options"]["resources"] == {"GPU": 1} for s in specs.values())
    assert all(s["options"]["env"]["OMP_NUM_THREADS"] == "2" for s in specs.values())
    with pytest.raises(InputError, match="--scheduler: 2 workers for 3 devices; write local, or as many as devices"):
        local_workers(2, ClusterOptions(scheduler="local:2", gpus=True))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError, match="--gpus: no CUDA device found; leave it out"):
        local_workers(0, ClusterOptions(scheduler="local", gpus=True))


def test_a_scheduler_that_dies_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with scheduler(file) as started:
        appeared(file)
        with worker(file, "--no-nanny"):
            executor = DaskExecutor(time.sleep, ClusterOptions(scheduler=str(file)))
            try:
                executor.submit(600)
                with_children(started.pid, signal.SIGKILL)
                with pytest.raises(InputError, match="--scheduler: the scheduler went away; start it and run the same command"):
                    watch(executor)
            finally:
                executor.close()


def test_a_scheduler_that_has_lost_its_workers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.batch.cluster.LOOK_S", 0.1)
    monkeypatch.setattr("recon.batch.cluster.LOST_S", 0.5)
    file = tmp_path / "scheduler.json"
    with scheduler(file):
        appeared(file)
        with worker(file, "--no-nanny") as started:
            executor = DaskExecutor(time.sleep, ClusterOptions(scheduler=str(file)))
            try:
                executor.submit(600)
                with_children(started.pid, signal.SIGKILL)
                with pytest.raises(
                    InputError, match="the scheduler has had no worker for 0 s; start workers, and run it again"
                ):
                    watch(executor)
            finally:
                executor.close()


def test_workers_of_another_version_are_refused_and_both_versions_named(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    write_instructions(tmp_path / "in", 1)
    with scheduler(file):
        appeared(file)
        with (
            worker(file, "--no-nanny", before=OLD),
            pytest.raises(
                InputError,
                match=r"the worker tcp://.* has recon 0\.0\.9, this command recon 0\.1\.\d+; install the same version",
            ),
        ):
            running.run(prepared(tmp_path / "in", tmp_path / "out", str(file)), "rss")


def test_addresses_elsewhere_need_tls(tmp_path: Path) -> None:
    for address in ("tcp://127.0.0.1:8786", "tcp://[::1]:8786", "tcp://localhost:1", "tls://192.0.2.7:8786"):
        check_trust(address, insecure=False)
    check_trust("tcp://192.0.2.7:8786", insecure=True)
    for address in ("tcp://192.0.2.7:8786", "tcp://node17:8786", "tcp://0.0.0.0:8786"):
        with pytest.raises(InputError, match="another machine without TLS"):
            check_trust(address, insecure=False)
    (tmp_path / "s.json").write_text('{"address": "tcp://192.0.2.7:8786"}')
    assert scheduler_address(str(tmp_path / "s.json")) == "tcp://192.0.2.7:8786"
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(InputError, match="not a scheduler file"):
        scheduler_address(str(tmp_path / "s.json"))


class Victim:
    """``python -m tests.support.batches``, run and killed again and again until it finishes."""

    def __init__(self, folder: Path, n: int, *scheduler: str) -> None:
        self.source, self.out, self.n = folder / "in", folder / "out", n
        write_instructions(self.source, n, seconds=0.02, pause=0.01)
        module = ["-W", "ignore", "-m", "tests.support.batches", str(self.source), str(self.out), *scheduler]
        self.command = [sys.executable, *module]

    def start(self) -> subprocess.Popen[bytes]:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(self.command, env=ENVIRONMENT, cwd=ROOT, start_new_session=True, **silent)

    def n_rows(self) -> int:
        return sum(1 for _ in read_rows(self.out / "batch.jsonl"))

    def killed(self, choose: random.Random, after_s: float) -> None:
        """Start it, and kill one of its processes `after_s` seconds after its first new row; end the rest with the client."""
        before = self.n_rows()
        started = self.start()
        deadline = time.monotonic() + 60
        while self.n_rows() == before and started.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(after_s)
        if started.poll() is not None:
            return
        family = psutil.Process(started.pid).children(recursive=True)
        victim = choose.choice(family)
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        if victim.pid == family[0].pid:  # the client, behind the process that reports its end
            started.wait(timeout=30)
        else:
            time.sleep(choose.random() * 0.3)
            with_children(started.pid, signal.SIGKILL)
            started.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, "workers outlive their client"

    def finish(self) -> None:
        """Run it to its end; everything is there, whole, and was made once."""
        done = subprocess.run(self.command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        rows = list(read_rows(self.out / "batch.jsonl"))
        assert Counter(row.scan for row in rows) == Counter(f"sub-{i:03}/scan" for i in range(self.n))
        assert all(row.state == "done" for row in rows)
        assert not (self.out / "twice.txt").exists(), "a scan was made twice"
        found = sorted(p.relative_to(self.out).as_posix() for p in self.out.glob("sub-*/*"))
        names = [f"sub-{i:03}/scan{suffix}" for i in range(self.n) for suffix in (".json", ".nii.gz", ".png")]
        assert sorted(found) == sorted(names)
        assert not list(self.out.glob("**/.scan*"))
        for path in self.out.glob("sub-*/scan.json"):
            assert json.loads(path.read_text())["source_sha256"]
        assert all(path.stat().st_size == 500 for path in self.out.glob("sub-*/scan.png"))


def test_killed_at_random_moments_nothing_is_lost_halved_or_made_twice(tmp_path: Path) -> None:
    victim, choose = Victim(tmp_path, 60), random.Random(7)
    for _ in range(3):
        victim.killed(choose, 0.2 * choose.random())
    victim.finish()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_fifty_moments_with_worker_processes_of_dask(tmp_path: Path) -> None:
    victim, choose = Victim(tmp_path, 400, "local:2"), random.Random(11)
    for _ in range(50):
        victim.killed(choose, 0.3 * choose.random())
    victim.finish()


@pytest.mark.parametrize("scheduler", [(), pytest.param(("local:2",), marks=pytest.mark.slow)])
def test_ctrl_c_ends_cleanly_and_a_second_run_continues(scheduler: tuple[str, ...], tmp_path: Path) -> None:
    victim = Victim(tmp_path, 40, *scheduler)
    started = victim.start()
    while victim.n_rows() < 3:
        time.sleep(0.01)
    family = psutil.Process(started.pid).children(recursive=True)
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all processes
    assert started.wait(timeout=60) == 130
    assert not psutil.wait_procs(family, timeout=30)[1]
    assert 3 <= victim.n_rows() < 40
    assert not list(victim.out.glob("**/*.part"))
    assert not list(victim.out.glob(".batch/*.claim"))
    victim.finish()
