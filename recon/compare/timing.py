"""What one call costs: seconds, and the memory that it needs on top of what was in use before.

CPU memory is the growth of the process's resident size to its highest mark during the call, which the Linux kernel keeps
(``VmHWM``) and which is set back before the call; programs that the call starts are counted at their own highest marks,
looked at every 5 ms. Memory that a library had reserved before and uses again does not show, so free memory is handed back to
the system first. GPU memory is what PyTorch's allocator gave out at most. Weights of networks, loaded before, are in neither.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from recon import memory

T = TypeVar("T")
PERIOD_S = 0.005


@dataclass(frozen=True)
class Cost:
    """Wall seconds and peak memory in MB (1e6 bytes) of a call; None where it cannot be told."""

    seconds: float
    peak_cpu_mb: float | None = None
    peak_gpu_mb: float | None = None


def measure(function: Callable[[], T]) -> tuple[T, Cost]:
    """Call `function`; return its result and what it cost."""
    memory.release()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    gpu_before = torch.cuda.memory_allocated() if gpu else 0
    before = _reset_high_mark()
    with _Programs() as programs:
        start = time.perf_counter()
        result = function()
        if gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    after = _bytes("/proc/self/status", "VmHWM")
    cpu = None if before is None or after is None else (max(after - before, 0) + programs.peak) / 1e6
    gpu_bytes = torch.cuda.max_memory_allocated() - gpu_before if gpu else 0
    return result, Cost(seconds, cpu, gpu_bytes / 1e6 if gpu_bytes else None)


class _Programs:
    """The largest sum of the high marks of the programs that this process started, while in the context."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._children = Path(f"/proc/self/task/{threading.get_native_id()}/children")

    def __enter__(self) -> _Programs:
        self._before = set(self._running())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _running(self) -> list[str]:
        with suppress(OSError):
            return self._children.read_text().split()
        return []

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD_S):
            new = [pid for pid in self._running() if pid not in self._before and _is_other_program(pid)]
            self.peak = max(self.peak, sum(_bytes(f"/proc/{pid}/status", "VmHWM") or 0 for pid in new))


def _is_other_program(pid: str) -> bool:
    """Whether a child runs its own program yet: until then it shares this one's memory."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() not in (b"", Path("/proc/self/cmdline").read_bytes())
    return False


def _reset_high_mark() -> int | None:
    """Bytes resident now, from which the high mark starts anew; None where the system has no such mark."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _bytes("/proc/self/status", "VmRSS")


def _bytes(path: str, name: str) -> int | None:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None


def cpu_name() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return os.uname().machine
