"""Reproducible random numbers, independent of process, platform and global seeds."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def seed_of(text: str) -> int:
    """Integer seed from a text: 63 bits of its SHA-256 (Python's `hash` is salted per process)."""
    return int.from_bytes(_digest(text)[:8], "little") >> 1


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class RandomGenerator:
    """Random generator seeded by a text.

    Built on the raw words of NumPy's PCG64, which NumPy guarantees never to change (it gives no such guarantee for
    distributions), seeded with the SHA-256 of the text (Python's `hash` is salted per process).
    """

    def __init__(self, text: str) -> None:
        self._words = np.random.PCG64(int.from_bytes(_digest(text), "little"))

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Draw float64 ``(size,)``, uniform in [0, 1), with 53 random bits each."""
        words = np.atleast_1d(self._words.random_raw(size)) if size else np.zeros(0, np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integer(self, stop: int) -> int:
        """Draw one integer, uniform in [0, stop)."""
        return int(self.uniform(1)[0] * stop)

    def choose(self, weights: NDArray[np.float64], n: int) -> NDArray[np.intp]:
        """Draw the indices ``(n,)`` of `n` distinct elements, successively with probability proportional to `weights`.

        The same distribution as ``numpy.random.Generator.choice(replace=False, p=weights)``, by exponential waiting times
        (Efraimidis and Spirakis, Inf. Process. Lett. 97(5):181-185, 2006, doi:10.1016/j.ipl.2005.11.003).

        Raises
        ------
        ValueError
            If fewer than `n` weights are positive.
        """
        if n > np.count_nonzero(weights > 0):
            raise ValueError(f"cannot choose {n} of {np.count_nonzero(weights > 0)} elements")
        with np.errstate(divide="ignore"):
            waiting = -np.log1p(-self.uniform(weights.size)) / weights.ravel()
        waiting[weights.ravel() <= 0] = np.inf
        return np.argsort(waiting, kind="stable")[:n]
