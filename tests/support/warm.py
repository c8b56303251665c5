"""The command ``recon`` a thousand times without importing PyTorch a thousand times.

``python -m tests.support.warm`` imports what ``recon run`` needs, then reads one JSON list of arguments per line and answers
each with a line of JSON: exit status, seconds, what stderr said. Each command runs as the console script runs it:
`recon.cli.main` forks a child, the child does the work and may crash, the parent reports. Processor time is limited, so that a
hang ends too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.conftest import ROOT

CPU_SECONDS = 60


@dataclass(frozen=True)
class Ending:
    """How one command ended; `peak_bytes` is the largest resident memory of any command so far, imports included."""

    status: int
    seconds: float
    stderr: str
    peak_bytes: int
    idle_bytes: int


@contextmanager
def commands() -> Iterator[Any]:
    """A function that runs ``recon ARGUMENTS...`` and returns its `Ending`."""
    command = [sys.executable, "-m", "tests.support.warm"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def run(*arguments: str) -> Ending:
            stdin.write(json.dumps(arguments) + "\n")
            stdin.flush()
            return Ending(**json.loads(stdout.readline()))

        try:
            yield run
        finally:
            stdin.close()
            server.wait(timeout=60)


def serve() -> None:
    """Answer until stdin ends."""
    from recon.cli import main

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "w") as answers:
        for line in sys.stdin:
            used = resource.getrusage(resource.RUSAGE_SELF)
            spent = int(used.ru_utime + used.ru_stime) + 1  # a child starts at zero, its parent must not die of this either
            resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, resource.RLIM_INFINITY))
            answers.write(json.dumps(_run(main, json.loads(line))) + "\n")
            answers.flush()


def _run(main: Any, arguments: Sequence[str]) -> dict[str, Any]:
    kept = os.dup(1), os.dup(2)
    sys.argv = ["recon", *arguments]
    with tempfile.TemporaryFile() as heard, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(heard.fileno(), 2)
        start = time.monotonic()
        try:
            status = main()
        finally:
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
        seconds = time.monotonic() - start
        heard.seek(0)
        stderr = heard.read().decode(errors="replace")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"status": status, "seconds": seconds, "stderr": stderr, "peak_bytes": peak, "idle_bytes": idle}


if __name__ == "__main__":
    serve()
