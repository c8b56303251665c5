"""Log of the server: one JSON object a line on the standard error, and the numbers behind its metrics."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any


@dataclass
class Events:
    """Writes events, and counts.

    Attributes
    ----------
    stream
        Where lines go; None: the standard error.
    counts
        How often something happened, by name and label: ``("scans", "reconstructed")``.
    sums
        Seconds and bytes, by name.
    """

    stream: IO[str] | None = None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, event: str, **fields: Any) -> None:
        """One line: ``time`` (UTC), ``event``, and `fields`."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}, default=str)
        with self._lock:
            stream = self.stream or sys.stderr
            stream.write(line + "\n")
            stream.flush()

    def count(self, name: str, label: str = "", n: int = 1) -> None:
        """Add to a count."""
        self.counts[name, label] += n

    def add(self, name: str, amount: float) -> None:
        """Add to a sum."""
        self.sums[name] += amount
