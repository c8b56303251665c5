"""Masks of others: every format, both conventions, and what is refused."""

from __future__ import annotations

import contextlib
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image

from kspace.errors import InputError
from kspace.masks import MaskSpec
from kspace.masks.files import read_mask

UNIFORM = np.random.default_rng(0).random((64, 48)) < 0.5  # no centre
UNIFORM[0, 0] = UNIFORM[32, 24] = UNIFORM[32, 0] = True
SHAPES = [(64, 48), (51, 70), (33, 33)]


def truth(shape: tuple[int, int]) -> NDArray[np.bool_]:
    return MaskSpec.parse("poisson2d:5").draw(shape).numpy()


def write(path: Path, mask: NDArray[Any]) -> Path:
    if path.suffix == ".npy":
        np.save(path, mask)
    elif path.suffix == ".png":
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"maskRS2": mask.astype(np.uint8), "note": "text"}, do_compression=True)
    elif path.name == "matlab73.h5":  # MATLAB's columns come first
        with h5py.File(path, "w", userblock_size=512) as file:
            file["m"] = mask.T.astype(np.uint8)
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
        path = path.rename(path.with_suffix(".mat"))
    else:
        with h5py.File(path, "w") as file:
            file["mask"] = mask.astype(np.float32)
            file["other"] = np.zeros(3)
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["m.npy", "m.png", "m.mat", "m.h5", "matlab73.h5"])
def test_every_format_with_the_zero_frequency_in_centre_or_corner(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    mask = truth(shape)
    path = write(tmp_path / name, mask)
    assert torch.equal(MaskSpec.parse(f"file:{path}").draw(shape), torch.from_numpy(mask))
    assert read_mask(path).zero_frequency == "centre"
    assert "zero frequency detected in the centre" in read_mask(path).summary
    (tmp_path / "corner").mkdir()
    corner = write(tmp_path / "corner" / name, np.fft.ifftshift(mask))
    assert torch.equal(MaskSpec.parse(f"file:{corner}").draw(shape), torch.from_numpy(mask))
    assert torch.equal(MaskSpec.parse(f"file:{corner},dc=corner").draw(shape), torch.from_numpy(mask))
    assert read_mask(corner).zero_frequency == "corner"
    with pytest.raises(InputError, match=r"does not sample the zero frequency, taken to be in the centre.*try dc=corner"):
        MaskSpec.parse(f"file:{corner},dc=centre").draw(shape)


@pytest.mark.parametrize("layout", ["(W,)", "(1, W, 1)", "(W, 1)", "(W, kx)"])
def test_line_masks_are_lines_of_ky(tmp_path: Path, layout: str) -> None:
    lines = MaskSpec.parse("random1d:4").draw((64, 48)).numpy()
    array = {"(W,)": lines[:, 0], "(1, W, 1)": lines[None], "(W, 1)": lines, "(W, kx)": np.repeat(lines, 48, 1)}[layout]
    path = write(tmp_path / "m.npy", array.astype(float))
    drawn = MaskSpec.parse(f"file:{path}").draw((64, 48))
    assert drawn.shape == (64, 1)
    assert (drawn.numpy() == lines).all()
    columns = write(tmp_path / "t.npy", np.repeat(lines, 48, 1).T)
    assert (MaskSpec.parse(f"file:{columns},transpose=yes").draw((64, 48)).numpy() == lines).all()


WITH_CENTRE = "random1d:2 random1d:4 random1d:8 equispaced1d:6 uniform1d:4 gancs:4 seitzer:8 fastmri-random:4 partial:6/8"
WITH_CENTRE += " dagan-g1d:10% dagan-g1d:50% dagan-g2d:10% dagan-p2d:50% radial:10% radial:60% spiral:20% centre:4"


@pytest.mark.parametrize("text", WITH_CENTRE.split())
def test_the_zero_frequency_of_every_family_is_detected(tmp_path: Path, text: str) -> None:
    for n in (96, 255):
        mask = MaskSpec.parse(text).draw((n, n), "file").numpy()
        for moved, place in ((mask, "centre"), (np.roll(mask, [-(n // 2)] * 2, (0, 1)), "corner")):
            np.save(tmp_path / f"{n}{place}.npy", moved)
            assert read_mask(tmp_path / f"{n}{place}.npy").zero_frequency == place


def test_masks_without_a_dense_centre_are_refused(tmp_path: Path) -> None:
    rng, guessed = np.random.default_rng(0), 0
    for i in range(200):
        lines = rng.random(64) < 0.5
        lines[[0, 32]] = True
        np.save(tmp_path / f"{i}.npy", lines)
        with contextlib.suppress(InputError):
            guessed += read_mask(tmp_path / f"{i}.npy").summary != ""
    assert guessed < 12


def test_a_detected_corner_is_logged_once_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "m.npy", np.fft.ifftshift(truth((64, 48))))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            MaskSpec.parse(f"file:{path}").draw((64, 48))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "m.npy: 64 x 48, zero frequency detected in the corner"


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "m.npy", truth((64, 48)))
    MaskSpec.parse(f"file:{path}").draw((64, 48))
    other = MaskSpec.parse("radial:4").draw((64, 48))
    write(path, other.numpy().astype(np.int64))
    assert torch.equal(MaskSpec.parse(f"file:{path}").draw((64, 48)), other)


def test_the_returned_mask_is_a_copy(tmp_path: Path) -> None:
    spec = MaskSpec.parse(f"file:{write(tmp_path / 'm.npy', truth((64, 48)))}")
    kept = spec.draw((64, 48)).clone()
    spec.draw((64, 48)).fill_(True)
    assert torch.equal(spec.draw((64, 48)), kept)


def test_a_full_mask_needs_no_place_of_the_zero_frequency(tmp_path: Path) -> None:
    path = write(tmp_path / "m.npy", np.ones((6, 5)))
    assert MaskSpec.parse(f"file:{path}").draw((6, 5)).all()


@pytest.mark.parametrize("name", ["m.h5", "m.mat"])
def test_one_of_several_arrays_is_chosen_by_name(tmp_path: Path, name: str) -> None:
    path, mask = tmp_path / name, truth((64, 48)).astype(np.uint8)
    if name == "m.mat":
        scipy.io.savemat(path, {"a": mask, "b": mask * 0 + 1})
    else:
        with h5py.File(path, "w") as file:
            file["a"], file["b"] = mask, mask * 0 + 1
    assert (MaskSpec.parse(f"file:{path},name=a").draw((64, 48)).numpy() == mask).all()
    with pytest.raises(InputError, match=r"holds several arrays.*a, b"):
        read_mask(path)
    with pytest.raises(InputError, match=r"array 'c' not found.*a, b"):
        read_mask(path, name="c")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (truth((64, 47)), "the mask is 64 x 47, the k-space 64 .ky. x 48 .kx..*not resized"),
        (truth((48, 64)), "it would fit the transposed k-space: ky comes first, the readout last, or add transpose=yes"),
        (np.ones(48), "the mask has 48 lines, the k-space 64.*transposed"),
        (np.ones(63), "the mask has 63 lines, the k-space 64"),
        (np.zeros((64, 48)), "all zero"),
        (np.arange(64 * 48).reshape(64, 48), "two values, 0 and another, found 3072 .0, 1, 2, ..."),
        (np.where(truth((64, 48)), 1, -1), "two values, 0 and another"),
        (np.where(truth((64, 48)), 1, 2), "two values, 0 and another"),
        (np.where(truth((64, 48)), -1, 0), "two values, 0 and another"),
        (np.where(truth((64, 48)), np.nan, 0), "not finite"),
        (truth((64, 48)).astype(complex), "numeric or bool mask, found complex128"),
        (np.full((64, 48), "a"), "numeric or bool mask, found <U1"),
        (np.ones((2, 64, 48)), r"one axis .lines. or two .ky, kx., found shape \(2, 64, 48\)"),
        (np.ones((0, 48)), "one axis .lines. or two"),
        (UNIFORM, r"zero frequency cannot be located.*give dc=centre or dc=corner"),
        (UNIFORM[:, 0], "zero frequency cannot be located"),
    ],
)
def test_masks_that_do_not_fit_the_scan_are_refused(tmp_path: Path, array: NDArray[Any], message: str) -> None:
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(InputError, match=message):
        MaskSpec.parse(f"file:{tmp_path / 'm.npy'}").draw((64, 48))


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


def hostile(path: Path, kind: str) -> Path:
    """File that would make a careless reader execute code, follow a link or exhaust memory."""
    if kind == "pickle.npy":
        np.save(path, np.array([Bomb()]), allow_pickle=True)
    elif kind == "bare pickle.npy":
        import pickle

        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "archive.npy":
        with path.open("wb") as file:
            np.savez(file, mask=np.ones((4, 4)))
    elif kind == "huge.npy":
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000)}".ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x01" * 64)
    elif kind == "huge.png":
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(999))),
            (b"IEND", b""),
        ]
        body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    elif kind == "huge.h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("mask", (100000, 100000), np.uint8, chunks=(1000, 1000), compression="gzip")
    elif kind == "link.h5":
        with h5py.File(path.with_name("secret.h5"), "w") as file:
            file["mask"] = truth((64, 48))
        with h5py.File(path, "w") as file:
            file["mask"] = h5py.ExternalLink(str(path.with_name("secret.h5")), "mask")
    elif kind == "external.h5":
        path.with_name("raw").write_bytes(truth((64, 48)).tobytes())
        with h5py.File(path, "w") as file:
            file.create_dataset("mask", (64, 48), np.uint8, external=[(str(path.with_name("raw")), 0, 64 * 48)])
    elif kind == "virtual.h5":
        hostile(path.with_name("link.h5"), "link.h5")
        layout = h5py.VirtualLayout((64, 48), np.uint8)
        layout[:] = h5py.VirtualSource(str(path.with_name("secret.h5")), "mask", shape=(64, 48))
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("mask", layout)
    elif kind == "objects.mat":
        scipy.io.savemat(path, {"cell": np.array([1, "a"], object), "struct": {"a": 1}})
    elif kind == "jpeg.png":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path, format="JPEG")
    else:
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle.npy", "cannot be read as a mask"),
        ("bare pickle.npy", "cannot be read as a mask"),
        ("archive.npy", "an archive of arrays"),
        ("huge.npy", "cannot be read as a mask|too many"),
        ("huge.png", "too many for a mask|cannot be read as a mask"),
        ("huge.h5", "too many for a mask"),
        ("link.h5", "holds no mask"),
        ("external.h5", "holds no mask"),
        ("virtual.h5", "holds no mask"),
        ("objects.mat", "holds no mask"),
        ("jpeg.png", "cannot be read as a mask"),
        ("empty.npy", "cannot be read as a mask"),
        ("empty.png", "cannot be read as a mask"),
        ("empty.mat", "cannot be read as a mask"),
        ("empty.h5", "cannot be read as a mask"),
        ("text.txt", "'.txt' is not a mask format.*.npy, .png, .mat, .h5"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = hostile(tmp_path / kind.replace(" ", "_"), kind)
    with pytest.raises(InputError, match=message):
        read_mask(path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mask file not found.*No such file"):
        MaskSpec.parse(f"file:{tmp_path / 'no.npy'}").draw((4, 4))
    with pytest.raises(InputError, match="not a regular file"):
        read_mask(tmp_path)
    with pytest.raises(InputError, match="mask file not found"):
        read_mask("a\0b.npy")
    with pytest.raises(InputError, match="name=x does not apply"):
        read_mask(write(tmp_path / "m.npy", truth((8, 8))), name="x")


@pytest.mark.parametrize("name", ["m.npy", "m.png", "m.mat", "m.h5", "matlab73.h5"])
def test_damaged_files_are_an_input_error_or_a_mask(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, truth((33, 33)))
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"damaged{whole.suffix}"
    for i in range(150):
        bad = bytearray(content[: int(rng.integers(1, len(content)))] if i % 3 == 0 else content)
        for _ in range(int(rng.integers(1, 6))):
            bad[int(rng.integers(0, min(len(bad), 600)))] = int(rng.integers(0, 256))
        path.write_bytes(bytes(bad))
        with contextlib.suppress(InputError):  # and nothing else
            assert read_mask(path).mask.dtype == bool
