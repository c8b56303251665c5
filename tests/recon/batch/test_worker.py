"""What a worker does with real scans: records, and what makes them count as done."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kspace.errors import InputError
from kspace.simulation.measurement import write_scan
from recon.batch import claims, worker
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.run import Batch, KnownScans, prepare
from recon.commands.demo import head_scan
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_scan(head_scan(matrix=32, n_slices=1, n_coils=2, factor=2), path)
    return path


@pytest.fixture
def folder(scan: Path, tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(scan, tmp_path / "in" / name / "scan.h5")
    return tmp_path


def batch(folder: Path, options: RunOptions = RunOptions(method="rss", format="nifti,png"), **more: Any) -> Batch:
    return prepare([str(folder / "in")], folder / "out", options, BatchOptions(**more), ClusterOptions())


def reasons(made: Batch) -> dict[str, str]:
    known = KnownScans(made.folder)
    return {entry.name: reason for entry, reason, row in made.todo(known) if row is None}


def work_all(made: Batch) -> list[dict[str, Any]]:
    return [worker.work(made.task(entry)) for entry in made.inputs]


def test_a_scan_is_done_by_its_record_until_file_options_or_weights_change(folder: Path) -> None:
    made = batch(folder)
    assert reasons(made) == {"a/scan": "new", "b/scan": "new"}
    rows = work_all(made)
    assert [row["state"] for row in rows] == ["done", "done"], rows
    record = json.loads((folder / "out/a/scan.json").read_text())
    assert record["method"] == "rss"
    assert record["extra"]["batch"]["name"] == "a/scan"
    reconstruct_file(folder / "in/a/scan.h5", folder / "single", RunOptions(method="rss", format="nifti,png"))
    assert (folder / "out/a/scan.nii.gz").read_bytes() == (folder / "single/scan.nii.gz").read_bytes()
    assert reasons(made) == {}

    assert set(reasons(batch(folder, RunOptions(method="zero-filled", format="nifti,png"))).values()) == {
        "other options, version or weights"
    }
    os.utime(folder / "in/a/scan.h5")  # touched, not changed: its checksum says so
    assert reasons(made) == {}
    with (folder / "in/a/scan.h5").open("ab") as file:
        file.write(b"0")  # behind what HDF5 reads
    assert reasons(made) == {"a/scan": "the raw file has changed"}
    (folder / "out/b/scan.png").unlink()
    assert reasons(made)["b/scan"] == "b/scan.png is missing"
    assert [row["state"] for row in work_all(made)] == ["done", "done"]
    assert reasons(made) == {}


def test_only_the_checksum_tells_a_change_that_keeps_size_and_time(folder: Path) -> None:
    made = batch(folder)
    work_all(made)
    path = folder / "in/a/scan.h5"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reasons(made) == {}
    assert reasons(batch(folder, checksum=True)) == {"a/scan": "the raw file has changed"}


def test_the_key_covers_contents_of_files_and_the_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recon

    noise = folder / "noise.h5"
    noise.write_bytes(b"1")
    keys = {batch(folder, RunOptions(noise=noise)).identity.key, batch(folder).identity.key}
    noise.write_bytes(b"2")
    keys.add(batch(folder, RunOptions(noise=noise)).identity.key)
    keys.add(batch(folder, RunOptions(method="refinegan")).identity.key)
    monkeypatch.setattr(recon, "__version__", "0.0.9")
    keys.add(batch(folder).identity.key)
    assert len(keys) == 5
    with pytest.raises(InputError, match=r"--noise: .*absent\.h5 cannot be read"):
        batch(folder, RunOptions(noise=folder / "absent.h5"))


def test_a_worker_of_another_version_refuses_and_names_both(folder: Path) -> None:
    made = batch(folder)
    task = made.task(next(iter(made.inputs))) | {"version": "0.0.9"}
    with pytest.raises(InputError, match=r"has recon 0\.1\.\d+, this command 0\.0\.9; install the same version"):
        worker.work(task)


def test_input_errors_are_rows_and_passing_errors_may_be_tried_again(folder: Path) -> None:
    (folder / "in/a/scan.h5").write_bytes(b"no scan")
    (folder / "in/b/scan.h5").unlink()
    made = batch(folder)
    first = worker.work(made.task(next(iter(made.inputs))))
    assert (first["state"], first["cause"], first["again"]) == ("failed", "input", False)
    assert "not an HDF5 file" in first["message"]
    (folder / "list.txt").write_text("in/a/scan.h5\nin/b/scan.h5\n")
    listed = prepare([str(folder / "list.txt")], folder / "out", RunOptions(), BatchOptions(), ClusterOptions())
    missing = work_all(listed)[1]
    assert missing["message"] == f"{folder}/in/b/scan.h5: no such file; correct the list"
    assert not missing["again"]


def test_images_of_recon_run_are_not_overwritten_without_force(folder: Path) -> None:
    reconstruct_file(folder / "in/a/scan.h5", folder / "out/a", RunOptions(method="rss", format="nifti,png"))
    first, _ = work_all(batch(folder))
    assert (first["state"], first["cause"]) == ("failed", "input")
    assert "a/scan.json is the record of recon run; choose another -o, or give --force" in first["message"]
    forced = batch(folder, RunOptions(method="rss", format="nifti,png", force=True))
    assert [row["state"] for row in work_all(forced)] == ["done", "done"]


def test_what_a_killed_worker_left_is_removed_and_its_death_counted(folder: Path) -> None:
    made = batch(folder)
    task = made.task(next(iter(made.inputs)))
    path = worker.claim_path(made.folder, "a/scan")
    if (child := os.fork()) == 0:
        with claims.claim(path, "a/scan", made.run):
            (made.folder / "a").mkdir()
            (made.folder / "a/.scan.x1y2.part").mkdir()
            os._exit(9)
    os.waitpid(child, 0)
    assert path.exists()
    assert not claims.is_held(path)
    row = worker.work(task)
    assert (row["state"], row["attempts"]) == ("done", 2)
    assert not path.exists()
    assert not list(made.folder.glob("**/*.part"))


@pytest.mark.parametrize(("same_run", "state"), [(True, "failed"), (False, "done")])
def test_two_deaths_in_one_run_are_a_row_and_those_of_earlier_runs_are_not(folder: Path, same_run: bool, state: str) -> None:
    made = batch(folder)
    path = worker.claim_path(made.folder, "a/scan")
    for _ in range(2):
        if (child := os.fork()) == 0:
            with claims.claim(path, "a/scan", made.run if same_run else "earlier"):
                os._exit(9)
        os.waitpid(child, 0)
    row = worker.work(made.task(next(iter(made.inputs))))
    assert row["state"] == state
    assert (row["cause"] == "died") == same_run


def test_multi_encoding_scans_are_done_when_all_their_records_are(folder: Path) -> None:
    made = batch(folder)
    work_all(made)
    path = folder / "out/a/scan.json"
    record = json.loads(path.read_text())
    record["extra"]["batch"]["n_records"] = 2
    path.unlink()
    (folder / "out/a/scan_enc0.json").write_text(json.dumps(record))
    assert reasons(made) == {"a/scan": "not all encodings"}
    (folder / "out/a/scan_enc1.json").write_text(json.dumps(record))
    assert reasons(made) == {}


def test_the_claim_waits_for_another_process(folder: Path) -> None:
    made = batch(folder)
    path = worker.claim_path(made.folder, "a/scan")
    ready, go = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        with claims.claim(path, "a/scan", "other"):
            os.write(ready[1], b"1")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert claims.is_held(path)
    os.write(go[1], b"1")
    row = worker.work(made.task(next(iter(made.inputs))))
    os.waitpid(child, 0)
    assert row["state"] == "done"
    assert replace(made, force=True).task(next(iter(made.inputs)))["force"]


def test_what_was_left_of_a_complete_scan_is_removed_too(folder: Path) -> None:
    made = batch(folder)
    work_all(made)
    path, room = worker.claim_path(made.folder, "a/scan"), made.folder / "a/.scan.x1y2.part"
    if (child := os.fork()) == 0:
        with claims.claim(path, "a/scan", "earlier"):
            room.mkdir()
            os._exit(9)
    os.waitpid(child, 0)
    assert room.exists()
    worker.tidy(made.folder)
    assert not room.exists()
    assert not path.exists()
    assert reasons(made) == {}
