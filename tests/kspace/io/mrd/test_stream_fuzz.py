"""Properties of the stream parser for any bytes, however they are cut (hypothesis): a few examples here, many in a soak."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ismrmrd.hdf5 import acquisition_header_dtype, image_header_dtype, waveform_header_dtype

from kspace.errors import InputError
from kspace.io.mrd import sending
from kspace.io.mrd.flags import COMPRESSED
from kspace.io.mrd.stream import (
    OTHERS,
    PIXELS,
    ConfigFile,
    ConfigText,
    Message,
    StreamClose,
    StreamHeader,
    StreamImage,
    StreamLimits,
    StreamParser,
    StreamReadout,
    StreamText,
    StreamWaveform,
)

LIMITS = StreamLimits(text=4096, acquisition=4096, image=4096, waveform=4096)
LARGEST = 2 + 340 + 8 + 2 * 4096  # bytes of a message within these limits


# -- what may come -----------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=40).map(lambda text: text.rstrip("\0"))


def content(n_bytes: int) -> st.SearchStrategy[bytes]:
    """So many bytes, drawn as one number: what is in samples does not matter, and hypothesis takes long over long ones."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random.Random(seed).randbytes(n_bytes))


def head(draw: st.DrawFn, dtype: np.dtype[Any], **fields: Any) -> np.void:
    """A header of any content, but for these fields."""
    made = np.frombuffer(bytearray(draw(content(dtype.itemsize))), dtype)[0]
    for name, value in fields.items():
        made[name] = value
    return made


@st.composite
def readouts(draw: st.DrawFn) -> bytes:
    n_coils, n, n_dims = draw(st.integers(0, 4)), draw(st.integers(0, 9)), draw(st.integers(0, 3))
    sizes = {"active_channels": n_coils, "number_of_samples": n, "trajectory_dimensions": n_dims}
    made = head(draw, acquisition_header_dtype, **sizes)
    made["flags"] &= ~np.uint64(COMPRESSED)
    return struct.pack("<H", 1008) + made.tobytes() + draw(content(4 * n * n_dims + 8 * n * n_coils))


@st.composite
def images(draw: st.DrawFn) -> bytes:
    shape, kind = draw(st.tuples(*4 * [st.integers(0, 3)])), draw(st.sampled_from(sorted(PIXELS)))
    made = head(draw, image_header_dtype, channels=shape[0], matrix_size=shape[:0:-1], data_type=kind)
    attributes = draw(TEXTS).encode()
    pixels = draw(content(int(np.prod(shape)) * np.dtype(PIXELS[kind]).itemsize))
    return struct.pack("<H", 1022) + made.tobytes() + struct.pack("<Q", len(attributes)) + attributes + pixels


@st.composite
def waveforms(draw: st.DrawFn) -> bytes:
    n_channels, n = draw(st.integers(0, 3)), draw(st.integers(0, 9))
    made = head(draw, waveform_header_dtype, channels=n_channels, number_of_samples=n)
    return struct.pack("<H", 1026) + made.tobytes() + draw(content(4 * n_channels * n))


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
MESSAGES = st.one_of(
    NAMES.map(sending.config_file),
    TEXTS.map(sending.config_text),
    TEXTS.map(sending.header),
    TEXTS.map(sending.text),
    readouts(),
    images(),
    waveforms(),
)
CUTS = st.lists(st.integers(1, 700), max_size=30)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A session in which bytes were replaced, removed or added."""
    data = bytearray(b"".join(draw(st.lists(MESSAGES, max_size=6))) + sending.close())
    for _ in range(draw(st.integers(1, 4))):
        at, n = draw(st.integers(0, len(data))), draw(st.integers(0, 9))
        data[at : at + n] = draw(st.binary(max_size=9))
    return bytes(data)


KINDS = st.sampled_from([1, 2, 3, 4, 5, 1008, 1022, 1026, *OTHERS]).map(lambda kind: struct.pack("<H", kind))
ANYTHING = st.one_of(damaged(), st.binary(max_size=3000), st.builds(bytes.__add__, KINDS, st.binary(max_size=3000)))


# -- what must hold ----------------------------------------------------------------------------------------------------


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The bytes in pieces of these lengths, and the rest."""
    found, at = [], 0
    for length in cuts:
        found.append(data[at : at + length])
        at += length
    return [*found, data[at:]]


def parse(data: bytes, cuts: Sequence[int]) -> tuple[list[tuple[int, int, Message]], str | None]:
    """Messages with their place in the stream, and the text of the error that ended it."""
    parser, found, fed = StreamParser("scanner", LIMITS), [], 0
    for piece in pieces(data, cuts):
        fed += len(piece)
        try:
            for place in parser.follow(piece):
                found.append(place)
        except InputError as error:
            return found, str(error)
        assert parser.position + parser.n_pending == fed
        assert parser.closed or parser.n_pending < LARGEST
    return found, None


def encode(message: Message) -> bytes:
    """The message as it is sent. An image is put together here: our writer sets headers of its own."""
    match message:
        case ConfigFile(name=name):
            return sending.config_file(name)
        case ConfigText(text=text):
            return sending.config_text(text)
        case StreamHeader(xml=xml):
            return sending.header(xml)
        case StreamText(text=text):
            return sending.text(text)
        case StreamReadout():
            return sending.readout(message)
        case StreamWaveform():
            return sending.waveform(message)
        case StreamImage(head=head, attributes=attributes, pixels=pixels):
            text = attributes.encode()
            return struct.pack("<H", 1022) + head.tobytes() + struct.pack("<Q", len(text)) + text + pixels.tobytes()
        case StreamClose():
            return sending.close()


@given(st.lists(MESSAGES, max_size=6), CUTS)
def what_was_sent_arrives(sent: list[bytes], cuts: list[int]) -> None:
    """Message by message, in its place."""
    data = b"".join([*sent, sending.close()])
    found, error = parse(data, cuts)
    assert error is None
    assert len(found) == len(sent) + 1
    assert isinstance(found[-1][2], StreamClose)
    for (start, stop, message), one in zip(found[:-1], sent, strict=True):
        assert data[start:stop] == one
        assert encode(message) == one


@given(ANYTHING, CUTS)
def cuts_change_nothing(data: bytes, cuts: list[int]) -> None:
    """The same messages and the same error, or no error at all, and each message is one of the stream's own bytes."""
    whole, why = parse(data, [])
    found, error = parse(data, cuts)
    assert error == why
    assert [(start, stop, type(m)) for start, stop, m in found] == [(start, stop, type(m)) for start, stop, m in whole]
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found)][: len(found)]
    for start, stop, message in found:
        if isinstance(message, StreamReadout | StreamWaveform):
            assert encode(message) == data[start:stop]
    if error is not None:
        assert error.startswith(f"scanner: byte {found[-1][1] if found else 0} of the MRD stream begins ")
        assert "\n" not in error


PROPERTIES = [what_was_sent_arrives, cuts_change_nothing]


def check(holds: Callable[[], None], n: int, derandomize: bool) -> None:
    """Look for a counterexample among `n` examples; nothing is kept for the next time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=n, derandomize=derandomize, database=None, deadline=None, suppress_health_check=slow)(holds)()


@pytest.mark.parametrize("holds", PROPERTIES)
def test_any_bytes_are_messages_or_an_error(holds: Callable[[], None]) -> None:
    check(holds, 60, derandomize=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("holds", PROPERTIES)
def test_any_of_many_bytes_are_messages_or_an_error(holds: Callable[[], None]) -> None:
    check(holds, int(os.environ.get("RECON_SOAK_EXAMPLES", "20000")), derandomize=False)
