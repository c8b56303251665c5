"""Raw data of a running scan as sources of `recon.run`: a few images cut out of the recorded stream, or the rest of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kspace.container import ImageIndex, KSpace
from kspace.io.mrd.stream import StreamParser, StreamReadout
from kspace.io.mrd.write import HEAD_DTYPE, raw_writer
from kspace.noise import Noise
from recon.run.input import MrdSource
from recon.serve.intake import Key, Range


class ServedSource(MrdSource):
    """An ISMRMRD file of which some images are reconstructed. Keeps a fingerprint of what each was reconstructed from.

    Parameters
    ----------
    path
        The file.
    original
        The recorded stream.
    wanted
        Whether an image is to be reconstructed.
    whole
        Whether the file is the whole scan, so that what is missing in it is worth a warning.
    """

    def __init__(self, path: Path, original: Path, wanted: Collection[Key] | None, whole: bool) -> None:
        super().__init__(path, original=original, kind="MRD stream")
        self._wanted, self._whole = wanted, whole
        self.fingerprints: dict[Key, str] = {}

    def all_images(self) -> list[Key]:
        """Every complete image, whether wanted or not."""
        return [key_of(e, index) for e in self.encodings for index in super(ServedSource, self).images(e)]

    def images(self, encoding: int) -> list[ImageIndex]:
        found = super().images(encoding)
        return found if self._wanted is None else [i for i in found if key_of(encoding, i) in self._wanted]

    def begun(self, encoding: int) -> list[ImageIndex]:
        return super().begun(encoding) if self._whole else []

    def incomplete(self, encoding: int) -> list[tuple[ImageIndex, str]]:
        return super().incomplete(encoding) if self._whole else []

    def load(self, encoding: int, index: ImageIndex) -> KSpace:
        k = super().load(encoding, index)
        self.fingerprints[key_of(encoding, index)] = fingerprint(k, self.noise)
        return k

    def load_average(self, encoding: int, index: ImageIndex) -> KSpace | None:
        # Over all repetitions, also those that were reconstructed before.
        wanted, self._wanted = self._wanted, None
        try:
            return super().load_average(encoding, index)
        finally:
            self._wanted = wanted

    def sha256(self) -> str:
        # Of the finished file, for its record; images that leave before do not wait for it.
        return ""


def key_of(encoding: int, index: ImageIndex) -> Key:
    """The key of an image in `recon.serve.intake`."""
    return (encoding, index.contrast, index.set, index.phase, index.repetition, index.slice)


def fingerprint(k: KSpace, noise: Noise | None) -> str:
    """SHA-256 of everything measured that an image is made from."""
    digest = hashlib.sha256(repr((k.header.geometry, k.header.recon_matrix, k.header.recon_fov_m)).encode())
    parts: list[Any] = [k.data, k.mask, k.n_averages, k.calibration, None if noise is None else noise.covariance]
    for part in parts:
        array = np.zeros(0) if part is None else np.ascontiguousarray(part)
        digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()


@contextmanager
def cut_out(stream: Path, xml: str, ranges: Sequence[Range], keys: Collection[Key]) -> Iterator[ServedSource]:
    """The images `keys` of a recorded stream as a source, from the readouts at `ranges`, in a file that is removed afterwards.

    Raises
    ------
    InputError
        If they are no readouts, or cannot be used.
    """
    with TemporaryDirectory(prefix="recon-") as folder:
        path = Path(folder) / f"{stream.stem}.h5"
        readouts = list(_readouts(stream, ranges))
        with raw_writer(path, xml, "cannot keep a part of the scan", "set TMPDIR to a folder with free space") as writer:
            headers = np.array([readout.head for readout in readouts], HEAD_DTYPE)
            writer.append(headers, [r.samples for r in readouts], [r.trajectory for r in readouts])
        del readouts
        yield ServedSource(path, stream, keys, whole=False)


def _readouts(stream: Path, ranges: Sequence[Range]) -> Iterator[StreamReadout]:
    parser = StreamParser(str(stream))
    with stream.open("rb") as file:
        for start, stop in ranges:
            file.seek(start)
            yield from (m for m in parser.feed(file.read(stop - start)) if isinstance(m, StreamReadout))


def replaced_noise(source: MrdSource, noise: Path | None, chosen: Path | None) -> Path | None:
    """The noise file to whiten with: `chosen` by option, else `noise` of the scan's dependency where it has none of its own."""
    return chosen if chosen is not None or source.noise is not None else noise
