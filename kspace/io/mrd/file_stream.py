"""An ISMRMRD file as the messages that a scanner would have streamed, a block of readouts in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ismrmrd.hdf5 import waveform_header_dtype
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.hdf5 import guard
from kspace.io.mrd.file import BLOCK_BYTES, find_group, open_file, read_acquisition_headers, read_xml
from kspace.io.mrd.stream import StreamReadout, StreamWaveform
from kspace.io.mrd.write import HEAD_DTYPE


@dataclass(frozen=True, eq=False)
class FileStream:
    """An open ISMRMRD file; made by `open_file_stream`.

    Attributes
    ----------
    xml
        ISMRMRD header.
    headers
        Acquisition headers ``(readout,)``.
    waveforms
        Waveforms of the file, in its order.
    """

    path: Path
    group: h5py.Group
    xml: str
    headers: NDArray[np.void]
    waveforms: tuple[StreamWaveform, ...]

    def readouts(self) -> Iterator[StreamReadout]:
        """Yield the readouts in their order.

        Raises
        ------
        InputError
            If a readout does not hold the numbers that its header states.
        """
        n_bytes = 8 * self.headers["active_channels"].astype(np.int64) * self.headers["number_of_samples"]
        step = max(1, BLOCK_BYTES // max(int(n_bytes.max()), 1))
        for start in range(0, len(self.headers), step):
            with guard(self.path):
                rows = self.group["data"][start : start + step]
            for number, row in enumerate(rows, start):
                yield self._readout(number, row)

    def messages(self) -> Iterator[StreamReadout | StreamWaveform]:
        """Yield readouts and waveforms, each waveform before the first readout that is later."""
        waiting = sorted(self.waveforms, key=lambda one: int(one.head["time_stamp"]))
        for readout in self.readouts():
            while waiting and int(waiting[0].head["time_stamp"]) <= int(readout.head["acquisition_time_stamp"]):
                yield waiting.pop(0)
            yield readout
        yield from waiting

    def _readout(self, number: int, row: np.void) -> StreamReadout:
        head = self.headers[number]
        n_coils, n, n_dims = (int(head[name]) for name in ("active_channels", "number_of_samples", "trajectory_dimensions"))
        trajectory = row["traj"] if "traj" in (row.dtype.names or ()) else np.zeros(0, np.float32)
        if row["data"].size != 2 * n_coils * n or trajectory.size != n * n_dims:
            raise InputError(
                f"readout {number} holds {row['data'].size} numbers and {trajectory.size} of its trajectory, its header says "
                f"{n_coils} channels x {n} samples, {n_dims} dimensions",
                self.path,
                "the file is damaged or badly converted",
            )
        samples = np.ascontiguousarray(row["data"], np.float32).view(np.complex64).reshape(n_coils, n)
        return StreamReadout(head, samples, np.ascontiguousarray(trajectory, np.float32).reshape(n, n_dims))


@contextmanager
def open_file_stream(path: Path) -> Iterator[FileStream]:
    """Open an ISMRMRD file, read only.

    Raises
    ------
    InputError
        If it is no ISMRMRD file with readouts, or damaged.
    """
    with open_file(path) as file:
        group = find_group(file, path, None)
        try:
            xml = read_xml(group, path).decode().rstrip("\0")
        except UnicodeDecodeError as error:
            raise InputError("the XML header is not UTF-8 text", path, "convert the scan again") from error
        headers = read_acquisition_headers(group, path)
        if headers.dtype.itemsize != HEAD_DTYPE.itemsize or headers.dtype.names != HEAD_DTYPE.names:
            raise InputError("the acquisition headers are not those of ISMRMRD version 1", path, "convert the scan again")
        yield FileStream(path, group, xml, headers, tuple(_waveforms(group, path)))


def _waveforms(group: h5py.Group, path: Path) -> Iterator[StreamWaveform]:
    if "waveforms" not in group:
        return
    with guard(path):
        rows: Any = group["waveforms"][:]
    for row in rows:
        head = np.zeros(1, waveform_header_dtype)[0]
        for name in waveform_header_dtype.names or ():
            head[name] = row["head"][name]
        shape = int(head["channels"]), int(head["number_of_samples"])
        if row["data"].size != shape[0] * shape[1]:
            raise InputError("a waveform does not hold the samples that its header states", path, "convert the scan again")
        yield StreamWaveform(head, np.ascontiguousarray(row["data"], np.uint32).reshape(shape))
