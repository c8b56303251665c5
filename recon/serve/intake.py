"""What a client has sent: counts, header, where the readouts of each image lie in the recorded stream, and which images have
had their last line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kspace.errors import InputError
from kspace.io.mrd.flags import CALIBRATION, EXCLUDED, NAVIGATION, NOISE, PHASE_CORRECTION, flag
from kspace.io.mrd.stream import StreamReadout

MOST_IMAGES = 65536  # of one scan that are reconstructed before its end; beyond it the counters are nonsense
MIB = 2**20
BATCH = 16  # images that are reconstructed together when several are waiting
LAST_IN_SLICE = int(flag("LAST_IN_SLICE"))
LAST_OF_ALL = int(flag("LAST_IN_REPETITION") | flag("LAST_IN_MEASUREMENT"))
NOT_OF_AN_IMAGE, CALIBRATES, IS_NOISE = int(EXCLUDED), int(CALIBRATION), int(NOISE)
NAVIGATES = int(PHASE_CORRECTION | NAVIGATION)

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
    navigators
        Of the echo trains of an image or of calibration, by its key: groups that follow each other directly.
    """

    n_readouts: int = 0
    noise: Ranges = field(default_factory=Ranges)
    calibration: dict[tuple[int, int], Ranges] = field(default_factory=dict)
    images: dict[Key, Ranges] = field(default_factory=dict)
    navigators: dict[tuple[int, ...], list[Ranges]] = field(default_factory=dict)
    _group: dict[tuple[int, int], Ranges] = field(default_factory=dict)  # the last navigators of a slice, -1: of any
    _navigated: tuple[int, int] | None = None  # slice of the readout before, where it was a navigator
    _ready: dict[Key, int] = field(default_factory=dict)
    _open: dict[Key, int] = field(default_factory=dict)

    def add(self, start: int, stop: int, readout: StreamReadout) -> None:
        """Note a readout that lies at bytes ``[start, stop)``."""
        self.n_readouts += 1
        flags, idx = int(readout.head["flags"]), readout.head["idx"]
        encoding, place = int(readout.head["encoding_space_ref"]), int(idx["slice"])
        before, self._navigated = self._navigated, None
        if flags & NOT_OF_AN_IMAGE:
            if flags & IS_NOISE:
                self.noise.add(start, stop)
            elif flags & NAVIGATES:
                self._navigated = encoding, place
                if before != self._navigated:
                    self._group[encoding, place] = self._group[encoding, -1] = Ranges()
                self._group[encoding, place].add(start, stop)
            return
        if flags & CALIBRATES:
            self.calibration.setdefault((encoding, place), Ranges()).add(start, stop)
            self._keep_navigators((encoding, place), encoding, place)
        if len(self.images) >= MOST_IMAGES:
            return
        key = (encoding, int(idx["contrast"]), int(idx["set"]), int(idx["phase"]), int(idx["repetition"]), place)
        if not flags & CALIBRATES:
            self.images.setdefault(key, Ranges()).add(start, stop)
            self._keep_navigators(key, encoding, place)
            self._open[key] = int(idx["average"])
        if flags & LAST_OF_ALL:
            self._ready |= self._open
            self._open.clear()
        elif flags & LAST_IN_SLICE and key in self._open:
            self._ready[key] = self._open.pop(key)

    def _keep_navigators(self, key: tuple[int, ...], encoding: int, place: int) -> None:
        group = self._group.get((encoding, place), self._group.get((encoding, -1)))
        kept = self.navigators.setdefault(key, []) if group is not None else []
        if group is not None and not (kept and kept[-1] is group):
            kept.append(group)

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
        """Byte ranges of everything that these images need, in order: their readouts, the calibration of their slice, the
        navigators of both, and the noise."""
        parts = [self.noise]
        for key in keys:
            # Of every encoding: an echo-planar one may have its reference lines in another.
            calibration = [place for place in self.calibration if place[1] == key[5]]
            parts += [self.images[key]] if key in self.images else []
            parts += [self.calibration[place] for place in calibration]
            parts += [group for place in (key, *calibration) for group in self.navigators.get(place, [])]
        return sorted({(start, stop) for part in parts for start, stop in part.found})


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


class Unfinished:
    """Memory that the unfinished messages of all clients take together.

    While they take more than `most`, no client may hold more than its share, ``most / clients``: the sum stays below
    ``2 most``, and a client that sends messages of usual size beside greedy ones goes on.

    Parameters
    ----------
    most
        Bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[int, int] = {}

    def hold(self, number: int, n_bytes: int, where: str) -> None:
        """Note that session `number`, of the client `where`, holds `n_bytes`.

        Raises
        ------
        InputError
            If that is more than its share, and all of them hold more than `most`.
        """
        self._held[number] = n_bytes
        if sum(self._held.values()) > self._most and n_bytes > self._most // len(self._held):
            raise InputError(
                f"{n_bytes / MIB:.0f} MiB of an unfinished message, and all clients hold {self._most / MIB:.0f} MiB of them",
                where,
                "send one scan after another, or raise --max-unfinished-gib",
            )

    def release(self, number: int) -> None:
        """Forget a session."""
        self._held.pop(number, None)
