"""What a client has sent: counts, header, where the readouts of each image lie in the recorded stream, and which images have
had their last line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kspace.io.mrd.flags import CALIBRATION, EXCLUDED, NOISE, flag
from kspace.io.mrd.stream import StreamReadout

MOST_IMAGES = 65536  # of one scan that are reconstructed before its end; beyond it the counters are nonsense
BATCH = 16  # images that are reconstructed together when several are waiting
LAST_IN_SLICE = int(flag("LAST_IN_SLICE"))
LAST_OF_ALL = int(flag("LAST_IN_REPETITION") | flag("LAST_IN_MEASUREMENT"))
NOT_OF_AN_IMAGE, CALIBRATES, IS_NOISE = int(EXCLUDED), int(CALIBRATION), int(NOISE)

Key = tuple[int, int, int, int, int, int]
"""Encoding and the counters of an image: contrast, set, phase, repetition, slice."""
Range = tuple[int, int]
"""Bytes ``[start, stop)`` of a stream."""


def name_of(key: Key) -> str:
    """The key of an image as a name in JSON."""
    return ",".join(map(str, key))


@dataclass
class Ranges:
    """Byte ranges in order, touching ones joined."""

    found: list[list[int]] = field(default_factory=list)

    def add(self, start: int, stop: int) -> None:
        """Append bytes that follow all others."""
        if self.found and self.found[-1][1] == start:
            self.found[-1][1] = stop
        else:
            self.found.append([start, stop])


@dataclass
class ScanIndex:
    """The readouts of a scan so far.

    Attributes
    ----------
    n_readouts
        All of them.
    noise
        Noise readouts.
    calibration
        Readouts flagged as calibration, by encoding and slice.
    images
        Other readouts, by image.
    """

    n_readouts: int = 0
    noise: Ranges = field(default_factory=Ranges)
    calibration: dict[tuple[int, int], Ranges] = field(default_factory=dict)
    images: dict[Key, Ranges] = field(default_factory=dict)
    _ready: dict[Key, int] = field(default_factory=dict)
    _open: dict[Key, int] = field(default_factory=dict)

    def add(self, start: int, stop: int, readout: StreamReadout) -> None:
        """Note a readout that lies at bytes ``[start, stop)``."""
        self.n_readouts += 1
        flags, idx = int(readout.head["flags"]), readout.head["idx"]
        if flags & NOT_OF_AN_IMAGE:
            if flags & IS_NOISE:
                self.noise.add(start, stop)
            return
        encoding, place = int(readout.head["encoding_space_ref"]), int(idx["slice"])
        if flags & CALIBRATES:
            self.calibration.setdefault((encoding, place), Ranges()).add(start, stop)
        if len(self.images) >= MOST_IMAGES:
            return
        key = (encoding, int(idx["contrast"]), int(idx["set"]), int(idx["phase"]), int(idx["repetition"]), place)
        if not flags & CALIBRATES:
            self.images.setdefault(key, Ranges()).add(start, stop)
            self._open[key] = int(idx["average"])
        if flags & LAST_OF_ALL:
            self._ready |= self._open
            self._open.clear()
        elif flags & LAST_IN_SLICE and key in self._open:
            self._ready[key] = self._open.pop(key)

    def take_ready(self, n_averages: int) -> list[Key]:
        """Images whose last line has arrived, at most `BATCH` of one encoding, each but once.

        An image of several averages is ready after the last of them, number ``n_averages - 1``.
        """
        ready = [key for key, average in self._ready.items() if average >= n_averages - 1][:BATCH]
        ready = [key for key in ready if key[0] == ready[0][0]]
        for key in ready:
            del self._ready[key]
        return ready

    def ranges(self, keys: Iterable[Key]) -> list[Range]:
        """Byte ranges of everything that these images need, in order: their readouts, their calibration, and the noise."""
        found = {(start, stop) for start, stop in self.noise.found}
        for key in keys:
            for part in (self.images.get(key), self.calibration.get((key[0], key[5]))):
                found |= {(start, stop) for start, stop in part.found} if part is not None else set()
        return sorted(found)


@dataclass
class Intake:
    """What a client has sent.

    Attributes
    ----------
    config
        Name or text of the configuration.
    xml
        Header.
    parameters
        JSON text after the header.
    index
        Where its readouts lie.
    n_messages, n_images, n_waveforms
        Counts of messages.
    error
        What was wrong with the stream.
    """

    config: str | None = None
    xml: str | None = None
    parameters: str | None = None
    index: ScanIndex = field(default_factory=ScanIndex)
    n_messages: int = 0
    n_images: int = 0
    n_waveforms: int = 0
    error: str | None = None
