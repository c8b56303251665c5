"""What a worker does with one scan. Paths come in, a row goes out; methods stay loaded between scans.

Called in a process of its own, which may be ended at any moment: the images of a scan appear together or not at all, and the
JSON record, which makes the scan count as done, comes last.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import recon
from kspace.errors import InputError
from recon.batch.claims import Claim, abandoned, claim, time_limit
from recon.batch.log import BatchRow, Cause
from recon.batch.records import FileStamp, done, owner, plain_options, read_records, summarise
from recon.process import MEMORY_WORDS

if TYPE_CHECKING:
    from recon.methods.choose import Method
    from recon.run.options import RunOptions

PASSING = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNRESET, errno.EDQUOT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.EIO,
    errno.EMFILE, errno.ENETDOWN, errno.ENETUNREACH, errno.ENFILE, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO,
}  # fmt: skip
"""Errors that another attempt, perhaps on another machine, may not meet."""
ATTEMPTS_THAT_DIE = 2
MESSAGE = 500  # characters
_methods: dict[str, Method] = {}


Reconstruct = Callable[[dict[str, Any], Path, Path, PurePosixPath], list[dict[str, Any]]]


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Reconstruct one scan: `handle` with the pipeline of ``recon run``."""
    return handle(task, _reconstruct)


def handle(task: dict[str, Any], reconstruct: Reconstruct) -> dict[str, Any]:
    """Claim one scan, reconstruct it unless it is done, and say how it ended.

    Parameters
    ----------
    task
        ``version``, ``run``, ``key``, ``folder``, ``scan``, ``source``, ``options``, ``time_limit``, ``checksum``, ``force``,
        as `recon.batch.run` makes it: plain data.
    reconstruct
        Called with task, folder of the batch, raw file and output; writes the images and returns their JSON records.

    Returns
    -------
    dict
        A `BatchRow`, and ``again``: whether another attempt may succeed.

    Raises
    ------
    InputError
        If this worker has another version than the batch.
    """
    check_version(task["version"])
    started = time.perf_counter()
    row = BatchRow(task["scan"], task["source"], "failed", key=task["key"], worker=f"{socket.gethostname()}:{os.getpid()}")
    cause: Cause = ""
    try:
        try:
            with claim(claim_path(Path(task["folder"]), task["scan"]), task["scan"], task["run"]) as held:
                row = _claimed(task, row, held, reconstruct)
        except MemoryError as error:
            cause, row = "memory", replace(row, message=str(error) or "allocation failed")
        except OSError as error:
            raise InputError(f"{error.strerror or error}", error.filename or task["folder"], "") from error
    except InputError as error:
        cause, row = "disk" if _passing(error) else "input", replace(row, message=str(error))
    except Exception as error:
        text = str(error)
        cause = "memory" if any(words in text.lower() for words in MEMORY_WORDS) else "defect"
        row = replace(row, message=f"{type(error).__name__}: {text}")
    stamp = _stamp(Path(task["source"]))
    row = replace(
        row,
        cause=cause or row.cause,
        message=" ".join(row.message.split())[:MESSAGE],
        seconds=round(time.perf_counter() - started, 4),
        n_bytes=stamp.n_bytes,
        mtime_ns=stamp.mtime_ns,
    )
    return {**asdict(row), "again": cause in ("disk", "memory")}


def check_version(wanted: str) -> None:
    """Refuse work for another version.

    Raises
    ------
    InputError
        If this worker is not of the version `wanted`.
    """
    if wanted != recon.__version__:
        raise InputError(
            f"the worker on {socket.gethostname()} has recon {recon.__version__}, this command {wanted}",
            "--scheduler",
            "install the same version",
        )


def claim_path(folder: Path, scan: str) -> Path:
    """File of the claim of a scan."""
    return folder / ".batch" / f"{hashlib.blake2b(scan.encode(), digest_size=16).hexdigest()}.claim"


def _claimed(task: dict[str, Any], row: BatchRow, held: Claim, reconstruct: Reconstruct) -> BatchRow:
    folder, source, output = Path(task["folder"]), Path(task["source"]), PurePosixPath(task["scan"])
    row = replace(row, attempts=held.n_begun + 1)
    if held.was_left:
        clean_up(folder, output)
    if not task["force"]:
        record, _ = done(folder, task["source"], task["scan"], task["key"], task["checksum"])
        if record is not None:  # by a worker whose answer was lost
            return replace(row, state="done", warnings=record.n_warnings, evidence=dict(record.evidence))
    if held.has_expired:
        return replace(row, cause="time limit", message=f"took longer than {task['time_limit']:g} s", attempts=held.n_begun)
    if held.n_begun >= ATTEMPTS_THAT_DIE:
        message = f"its worker process died in {held.n_begun} attempts (memory used up, or a crash in a library)"
        return replace(row, cause="died", message=message, attempts=held.n_begun)
    with time_limit(held, task["run"], task["time_limit"]):
        records = reconstruct(task, folder, source, output)
    said = summarise(records)
    return replace(row, state="done", warnings=said.n_warnings, evidence=dict(said.evidence))


def _reconstruct(task: dict[str, Any], folder: Path, source: Path, output: PurePosixPath) -> list[dict[str, Any]]:
    """Reconstruct and write one scan; its JSON records."""
    from recon.run.input import open_source
    from recon.run.pipeline import reconstruct_source, save_results

    options = plain_options(task["options"], force=True)
    earlier = owner(read_records(folder, task["scan"]))
    if earlier is not None and earlier != task["scan"] and not task["force"]:
        raise InputError(
            f"{output}.json is the record of {earlier or 'recon run'}", folder, "choose another -o, or give --force"
        )
    if not source.exists():
        raise InputError("no such file", source, "correct the list")
    stamp = FileStamp.of(source)
    method = _method(task["key"], options)
    with open_source(source) as opened:
        results = reconstruct_source(opened, method, options, tell=None, show_progress=False, folder=folder)
        results = [result for result in results if result.images]
        about = {"name": task["scan"], "key": task["key"], "n_records": len(results), **vars(stamp)}
        named = []
        for result in results:
            record = replace(result.record, extra={**result.record.extra, "batch": about})
            named.append(replace(result, stem=output.name + result.stem.removeprefix(opened.stem), record=record))
        save_results(named, opened, folder / output.parent, options, tell=None)
    return [asdict(result.record) for result in named]


def _method(key: str, options: RunOptions) -> Method:
    """The method of a batch, loaded once in a worker."""
    if key not in _methods:
        from recon.run.pipeline import choose_method

        _methods.clear()  # the batch before may have had networks of its own
        _methods[key] = choose_method(options)
    return _methods[key]


def clean_up(folder: Path, output: PurePosixPath) -> None:
    """Remove what a worker that died left beside the images of a scan."""
    for path in (folder / output.parent).glob(f".{glob.escape(output.name)}.*.part"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def tidy(folder: Path, concerns: Callable[[str], bool] = lambda scan: True) -> None:
    """Remove what workers left that died with a scan, even after its images were complete.

    Parameters
    ----------
    folder
        Of the batch.
    concerns
        Whether a scan, by its name, is one of the caller's.
    """
    for path, scan in abandoned(folder / ".batch"):
        if concerns(scan):
            clean_up(folder, PurePosixPath(scan))
            path.unlink(missing_ok=True)


def _passing(error: BaseException | None) -> bool:
    """Whether an error came from an operating system that may do better next time."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__
    return False


def _stamp(path: Path) -> FileStamp:
    try:
        return FileStamp.of(path)
    except OSError:
        return FileStamp(-1, -1)
