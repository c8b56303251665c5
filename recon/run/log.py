"""Log of a reconstruction: timings, warnings and masks for the JSON record."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm

from recon.evidence.record import ImageEvidence


def to_terminal(message: str) -> None:
    """Print a warning on the standard error, above the progress bar."""
    tqdm.write(f"recon: warning: {message}", file=sys.stderr)


@dataclass
class Log:
    """Log of one reconstruction.

    Attributes
    ----------
    seconds
        Time of each step.
    warnings
        What was said by `warn`, each message once.
    masks
        Digest and acceleration of the sampling, one entry per image.
    noise
        Source of the noise covariance.
    refinement
        Weights of a stack and how they were chosen, one entry for each contrast and set.
    thresholds
        Of the evidence, by item.
    evidence
        Of each image of a generator.
    tell
        Receives each warning when it arises; None: nobody does.
    progress
        Progress bar over the images.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    masks: list[dict[str, object]] = field(default_factory=list)
    noise: str = "none"
    refinement: list[dict[str, object]] = field(default_factory=list)
    thresholds: dict[str, object] = field(default_factory=dict)
    evidence: list[ImageEvidence] = field(default_factory=list)
    tell: Callable[[str], None] | None = to_terminal
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
        """Note a warning once: for the record, and for whoever listens."""
        if message not in self.warnings:
            self.warnings.append(message)
            if self.tell is not None:
                self.tell(message)
