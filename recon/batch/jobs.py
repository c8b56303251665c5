"""Work of other commands on the executors of `recon batch`: functions of this project, called with plain data."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import recon
from recon.batch.claims import claim
from recon.batch.cluster import make_executor
from recon.batch.executor import MOST_DEATHS, TaskLoop, lone_progress_bars, refuse_foreign
from recon.batch.options import ClusterOptions
from recon.batch.worker import ATTEMPTS_THAT_DIE, check_version, claim_path, clean_up, tidy


@dataclass(frozen=True, eq=False)
class Job:
    """One call of a function.

    Attributes
    ----------
    name
        Unique in its command: folder and stem of what it writes, relative to the folder of the command.
    arguments
        Of the function. They are pickled: paths travel, arrays do not.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DeadJob:
    """The result of a job whose worker processes died."""

    n_attempts: int

    @property
    def says(self) -> str:
        """What happened, in words."""
        return f"its worker process died in {self.n_attempts} attempts (memory used up, or a crash in a library)"


class JobWorkers:
    """Worker processes for the jobs of one command; they, and what they had begun, end with the block.

    Parameters
    ----------
    cluster
        Where they are.
    folder
        Absolute folder that the jobs write to.

    Raises
    ------
    InputError
        If the workers cannot be used.
    """

    def __init__(self, cluster: ClusterOptions, folder: Path) -> None:
        self._folder, self._run = folder, secrets.token_hex(8)
        lone_progress_bars()
        self._executor = make_executor(cluster, work)
        dashboard = f"; dashboard {self._executor.dashboard}" if self._executor.dashboard else ""
        print(f"recon: {self._executor.says}{dashboard}", file=sys.stderr, flush=True)

    @property
    def says(self) -> str:
        """Number and place of the workers."""
        return self._executor.says

    def each(self, function: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Call `function` for each job; jobs and results, or a `DeadJob`, in the order in which they end.

        Raises
        ------
        Exception
            What the function raised first.
        """
        common = {"version": recon.__version__, "run": self._run, "folder": str(self._folder), "function": function}
        for ended in TaskLoop(self._executor, (common | {"job": job} for job in jobs)):
            if ended.error is not None:
                refuse_foreign(ended.error)
                raise ended.error
            yield ended.task["job"], DeadJob(MOST_DEATHS) if ended.died else ended.value

    def __enter__(self) -> JobWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._executor.close()
        tidy(self._folder)
        with suppress(OSError):  # another command may have claims there
            (self._folder / ".batch").rmdir()


def work(task: Mapping[str, Any]) -> Any:
    """Claim one job and do it, in a worker; a job that two workers of this run died with is given up.

    Raises
    ------
    InputError
        If this worker has another version than the command.
    """
    check_version(task["version"])
    folder, job = Path(task["folder"]), task["job"]
    with claim(claim_path(folder, job.name), job.name, task["run"]) as held:
        if held.was_left:
            clean_up(folder, PurePosixPath(job.name))
        if held.n_begun >= ATTEMPTS_THAT_DIE:
            return DeadJob(held.n_begun)
        return task["function"](**job.arguments)
