"""Log of a reconstruction: timings, warnings and masks for the JSON record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm


@dataclass
class Log:
    """Log of one reconstruction."""

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    masks: list[dict[str, object]] = field(default_factory=list)
    noise: str = "none"
    progress: tqdm[object] | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time that the body takes to the step `name`, and show it beside the progress bar."""
        if self.progress is not None:
            self.progress.set_postfix_str(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def warn(self, message: str) -> None:
        """Say something once: now on the terminal, later in the record."""
        if message not in self.warnings:
            self.warnings.append(message)
            tqdm.write(f"recon: warning: {message}", file=sys.stderr)
