"""Batches whose raw files are instructions: everything of a batch is real except for the reconstruction.

``python -m tests.support.batches IN OUT [SCHEDULER]`` runs such a batch, to be killed at any moment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from kspace.errors import InputError
from kspace.io.checksums import sha256
from recon.batch import run as running
from recon.batch.options import BatchOptions, ClusterOptions
from recon.batch.records import FileStamp
from recon.batch.worker import handle
from recon.run.options import RunOptions

PARTS = (".nii.gz", ".png")


def write_instructions(folder: Path, n: int, **instructions: Any) -> None:
    """`n` raw files in folders of their own, all of the same stem."""
    for i in range(n):
        path = folder / f"sub-{i:03}" / "scan.h5"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(instructions))


def simulated(task: dict[str, Any]) -> dict[str, Any]:
    """`recon.batch.worker.work`, which follows the instructions of the raw file in place of a reconstruction."""
    return handle(task, _follow)


def _follow(task: dict[str, Any], folder: Path, source: Path, output: PurePosixPath) -> list[dict[str, Any]]:
    try:
        said = json.loads(source.read_text())
    except FileNotFoundError as error:
        raise InputError("no such file", source, "correct the list") from error
    if number := said.get("signal"):
        os.kill(os.getpid(), number)
    if said.get("full") or (said.get("full_once") and _first_time(source, "full")):
        try:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"0")
        except OSError as error:
            raise InputError(f"cannot write the results ({error.strerror})", folder) from error
    if said.get("refuse"):
        raise InputError("12 channels came, 14 were expected", source, "copy it again")
    if said.get("defect"):
        raise ZeroDivisionError("division by zero")
    if said.get("die_once") and _first_time(source, "died"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(said.get("seconds", 0))
    return [_publish(task, folder, source, output, said.get("pause", 0))]


def _first_time(source: Path, what: str) -> bool:
    marker = source.with_suffix(f".{what}")
    if marker.exists():
        return False
    marker.touch()
    return True


def _publish(task: dict[str, Any], folder: Path, source: Path, output: PurePosixPath, pause: float) -> dict[str, Any]:
    """Write as `recon.output.export.export` does: a room of its own, moves, the record last."""
    parent = folder / output.parent
    parent.mkdir(parents=True, exist_ok=True)
    names = [f"{output.name}{part}" for part in PARTS]
    about = {"name": task["scan"], "key": task["key"], "n_records": 1, **vars(FileStamp.of(source))}
    record = {
        "source_sha256": sha256(source),
        "files": names,
        "seconds": {"all": 0.1},
        "warnings": [],
        "extra": {"batch": about},
    }
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".part", dir=parent) as room:
        for name in names:
            (Path(room) / name).write_bytes(b"image" * 100)
            time.sleep(pause)
        last = f"{output.name}.json"
        (Path(room) / last).write_text(json.dumps(record))
        if (parent / last).exists():
            with (folder / "twice.txt").open("a") as twice:
                twice.write(f"{task['scan']}\n")
        for name in [*names, last]:
            os.replace(Path(room) / name, parent / name)
            time.sleep(pause)
    return record


def prepared(source: Path | list[str], output: Path, scheduler: str | None = None, **options: Any) -> running.Batch:
    """A batch of instructions."""
    given = [str(source)] if isinstance(source, Path) else source
    force = options.pop("force", False)
    cluster = ClusterOptions(scheduler=scheduler, **{k: options.pop(k) for k in ("insecure", "gpus") if k in options})
    made = running.prepare(given, output, RunOptions(method="rss", force=force), BatchOptions(**options), cluster)
    return replace(made, work=simulated)


if __name__ == "__main__":
    from recon import process

    source, output, *scheduler = sys.argv[1:]

    def command() -> int:
        """What is killed."""
        try:
            return running.run(prepared(Path(source), Path(output), *scheduler), "rss")
        except KeyboardInterrupt:
            return 130

    sys.exit(process.run_in_child(command))
