"""MRD messages out: the parser and the ISMRMRD library read them back."""

from __future__ import annotations

import io
import struct

import ismrmrd
import numpy as np
import pytest
from ismrmrd.hdf5 import waveform_header_dtype
from ismrmrd.serialization import ProtocolDeserializer

from kspace.io.mrd import sending
from kspace.io.mrd.stream import (
    ConfigFile,
    ConfigText,
    StreamClose,
    StreamHeader,
    StreamImage,
    StreamParser,
    StreamReadout,
    StreamText,
    StreamWaveform,
)
from kspace.io.mrd.write import new_acquisition_headers


def samples(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def readout() -> StreamReadout:
    head = new_acquisition_headers(1, 3, 8)
    head["trajectory_dimensions"] = 2
    return StreamReadout(head[0], samples(3, 8), np.arange(16, dtype=np.float32).reshape(8, 2))


def image() -> ismrmrd.Image:
    made = ismrmrd.Image.from_array(np.arange(24, dtype=np.uint16).reshape(1, 2, 3, 4), transpose=False)
    made.meta = ismrmrd.Meta({"ImageComment": "grün"})
    return made


def waveform() -> StreamWaveform:
    head = np.zeros((), waveform_header_dtype)
    head["channels"], head["number_of_samples"] = 2, 5
    return StreamWaveform(head[()], np.arange(10, dtype=np.uint32).reshape(2, 5))


def test_every_message_is_read_back() -> None:
    sent = [
        sending.config_file("refinegan"),
        sending.config_text("{}"),
        sending.header("<ismrmrdHeader/>"),
        sending.text("grün"),
        sending.readout(readout()),
        sending.waveform(waveform()),
        sending.image(image()),
        sending.close(),
    ]
    name, config, header, text, line, wave, picture, end = StreamParser().feed(b"".join(sent))
    assert (name, config, header, text, end) == (
        ConfigFile("refinegan"), ConfigText("{}"), StreamHeader("<ismrmrdHeader/>"), StreamText("grün"), StreamClose(),
    )  # fmt: skip
    assert isinstance(line, StreamReadout)
    assert line.head.tobytes() == readout().head.tobytes()
    np.testing.assert_array_equal(line.samples, readout().samples)
    np.testing.assert_array_equal(line.trajectory, readout().trajectory)
    assert isinstance(wave, StreamWaveform)
    np.testing.assert_array_equal(wave.samples, waveform().samples)
    assert isinstance(picture, StreamImage)
    np.testing.assert_array_equal(picture.pixels, image().data)
    assert "grün" in picture.attributes
    assert int(picture.head["attribute_string_len"]) == len(picture.attributes.encode())


def test_the_ismrmrd_library_reads_them() -> None:
    stream = io.BytesIO(b"".join((sending.readout(readout()), sending.image(image()), sending.text("ready"), sending.close())))
    line, picture, text = ProtocolDeserializer(stream).deserialize()
    np.testing.assert_array_equal(line.data, readout().samples)
    np.testing.assert_array_equal(line.traj, readout().trajectory)
    np.testing.assert_array_equal(picture.data, image().data)
    assert picture.meta["ImageComment"] == "grün"
    assert text.rstrip("\0") == "ready"


def test_texts_count_a_nul_in() -> None:
    assert sending.text("ab") == struct.pack("<HI", 5, 3) + b"ab\0"


def test_names_of_configurations_have_a_limit() -> None:
    assert len(sending.config_file("a" * 1023)) == 2 + 1024
    with pytest.raises(ValueError, match="1024 bytes"):
        sending.config_file("a" * 1024)
