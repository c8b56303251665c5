"""Memory and file descriptors of running processes, from ``/proc``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """Number of open file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    resident: int
    files: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of a process, now."""
        return cls(resident_bytes(pid), descriptors(pid))

    def __str__(self) -> str:
        return f"{self.resident / MIB:.1f} MiB, {self.files} files"


@dataclass
class Watch:
    """Notes what the processes of a soak hold as it goes on, and prints it: ``pytest -s`` shows the table.

    Attributes
    ----------
    what
        What is counted.
    first
        What each process held when it was first noted.
    last
        What it held when it was last noted.
    """

    what: str
    first: dict[str, Usage] = field(default_factory=dict)
    last: dict[str, Usage] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def note(self, n: int, **pids: int) -> None:
        """After `n` of what is counted."""
        self.last = {name: Usage.of(pid) for name, pid in pids.items()}
        self.first = self.first or self.last
        held = "; ".join(f"{name} {usage}" for name, usage in self.last.items())
        print(f"{n} {self.what}, {time.monotonic() - self._started:.0f} s: {held}", flush=True)

    def assert_flat(self, name: str, more_mib: float) -> None:
        """The process holds at most `more_mib` more memory than at first, and at most two descriptors more."""
        first, last = self.first[name], self.last[name]
        assert last.resident < first.resident + more_mib * MIB, f"{name}: {first} grew to {last}"
        assert last.files <= first.files + 2, f"{name}: {first} grew to {last}"
