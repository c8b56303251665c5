"""A batch with one warm worker process, its faults, and its ends."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kspace.errors import InputError
from recon import cli
from recon.batch import run as running
from recon.batch.log import BatchLog, BatchRow, read_rows
from tests.support.batches import prepared, write_instructions


def write(folder: Path, name: str, **instructions: Any) -> None:
    path = folder / name / "scan.h5"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(instructions))


def rows(folder: Path) -> dict[str, BatchRow]:
    return {row.scan: row for row in read_rows(folder / "batch.jsonl")}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BACKOFF_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_every_fault_is_a_row_and_the_others_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("1-good", "9-good"):
        write(source, name)
    write(source, "2-input", refuse=True)
    write(source, "3-crash", signal=int(signal.SIGSEGV))
    write(source, "4-defect", defect=True)
    write(source, "5-full", full=True)
    write(source, "6-slow", seconds=60)
    write(source, "7-once", die_once=True)
    write(source, "8-full-once", full_once=True)  # on the disk of one worker
    assert running.run(prepared(source, out, retries=2, time_limit=0.5), "rss") == 4
    found = rows(out)
    assert {name: (row.state, row.cause, row.attempts) for name, row in found.items()} == {
        "1-good/scan": ("done", "", 1),
        "2-input/scan": ("failed", "input", 1),
        "3-crash/scan": ("failed", "died", 2),
        "4-defect/scan": ("failed", "defect", 1),
        "5-full/scan": ("failed", "disk", 3),
        "6-slow/scan": ("failed", "time limit", 1),
        "7-once/scan": ("done", "", 2),
        "8-full-once/scan": ("done", "", 2),
        "9-good/scan": ("done", "", 1),
    }
    assert "No space left on device" in found["5-full/scan"].message
    assert found["6-slow/scan"].message == "took longer than 0.5 s"
    said = capsys.readouterr().out
    assert "4 of 9 scans done, 5 failed" in said
    assert re.search(r"1  cannot be reconstructed: 12 channels came, 14 were expected; copy it again \(e\.g\. ", said)
    assert not list(out.glob("**/*.part"))
    page = (out / "batch.html").read_text()
    assert page.count("<tr><td") == 9
    assert 'href="1-good/scan.json"' in page

    # Nothing is tried again, and no worker starts for it.
    assert running.run(prepared(source, out, time_limit=0.5), "rss") == 4
    assert len(list(read_rows(out / "batch.jsonl"))) == 9
    assert "9 of them before" in capsys.readouterr().out
    (source / "2-input" / "scan.h5").write_text("{}")  # another file now
    (source / "4-defect" / "scan.h5").write_text("{}")
    assert running.run(prepared(source, out, part="1/1", time_limit=0.5), "rss") == 4
    assert {name for name, row in rows(out).items() if row.state == "failed"} == {"3-crash/scan", "5-full/scan", "6-slow/scan"}


def test_status_and_dry_run_read_the_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_instructions(source, 3)
    write(source, "bad", refuse=True)
    assert running.dry_run(prepared(source, out)) == 0
    said = capsys.readouterr().out
    assert said.count("(new)") == 4
    assert "4 of 4 scans to reconstruct, 0 ended before" in said
    assert not out.exists()
    assert running.run(prepared([str(source / "sub-000"), str(source / "bad")], out, root=source), "rss") == 4
    with (out / "batch.jsonl").open("ab") as log:
        log.write(b'{"scan": "torn')
    capsys.readouterr()
    assert running.status(prepared(source, out)) == 4
    said = capsys.readouterr().out
    assert "1 of 4 scans done, 1 failed, 2 to go" in said
    assert "not running" in said
    assert running.run(prepared(source, out, retry_failed=True), "rss") == 4
    assert [row.scan for row in read_rows(out / "batch.jsonl")].count("bad/scan") == 2  # the torn line cost nothing


def test_images_without_a_row_get_one_and_are_not_made_again(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_instructions(source, 2)
    assert running.run(prepared(source, out), "rss") == 0
    log = (out / "batch.jsonl").read_text().splitlines(keepends=True)
    (out / "batch.jsonl").write_text(log[0])  # the client was killed in between
    assert running.run(prepared(source, out), "rss") == 0
    assert sorted(row.scan for row in read_rows(out / "batch.jsonl")) == ["sub-000/scan", "sub-001/scan"]
    assert not (out / "twice.txt").exists()


def test_parts_together_do_everything_once_with_logs_of_their_own(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_instructions(source, 8)
    for part in ("1/2", "2/2"):
        assert running.run(prepared(source, out, part=part), "rss") == 0
    logs = [list(read_rows(out / f"batch.{i}-of-2.jsonl")) for i in (1, 2)]
    assert sorted(row.scan for log in logs for row in log) == [f"sub-{i:03}/scan" for i in range(8)]
    assert all(logs)
    assert (out / "batch.html").read_text().count("<tr><td") == 8
    assert running.status(prepared(source, out)) == 0


def test_two_commands_on_one_batch_are_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_instructions(source, 1)
    made = prepared(source, out)
    with running.claims.sole(out / ".batch" / "batch.lock") as free:
        assert free
        with pytest.raises(InputError, match="another recon batch is running there; wait for it, or use --part"):
            running.run(made, "rss")


def test_a_log_on_a_full_disk_says_so() -> None:
    with BatchLog(Path("/dev/full")) as log, pytest.raises(InputError, match="/dev/full: the log cannot be written"):
        log.append(BatchRow("a", "b", "done"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scheduler", "local:0"], "--scheduler: 'local:0' names no number of workers; write local:N"),
        (["--scheduler", "tcp://localhost"], "--scheduler: 'tcp://localhost' is no address; write tcp://HOST:PORT"),
        (["--scheduler", "absent.json"], "--scheduler: 'absent.json' is no scheduler (No such file or directory)"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler: no scheduler answers at tcp://127.0.0.1:1"),
        (["--scheduler", "tcp://192.0.2.7:8786"], "is another machine without TLS: whoever reaches it can run programs as you"),
        (["--strict"], "--strict: a batch ends with status 0 or 4"),
        (["--gpus"], "--gpus: one worker per device needs a scheduler"),
        (["--tls-ca", "ca.pem"], "TLS needs three files"),
        (["--time-limit", "0"], "--time-limit: a limit of 0 s"),
        (["--part", "9/4"], "--part: '9/4' is no part"),
    ],
)
def test_bad_options_are_one_line(
    arguments: Sequence[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon.batch.cluster.CONNECT_S", 0.5)
    write_instructions(tmp_path / "in", 1)
    assert cli.execute(["batch", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *arguments]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("recon: error")]
    assert len(lines) == 1
    assert says in lines[0]
