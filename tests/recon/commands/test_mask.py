"""`recon mask`: printed report and written files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from kspace.errors import InputError
from kspace.masks import MaskSpec, digest
from recon.cli import execute
from recon.commands.mask import mask


@pytest.mark.parametrize("text", ["random1d:4", "poisson2d:6"])
@pytest.mark.parametrize("suffix", [".png", ".npy", ".h5"])
def test_written_masks_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, suffix: str) -> None:
    shape, path = (64, 50), tmp_path / f"m{suffix}"
    mask(text, shape, path, key="a.h5")
    drawn = MaskSpec.parse(text).draw(shape, "a.h5")
    printed = capsys.readouterr().out
    assert f"digest {digest(drawn, shape)}" in printed
    n = "16 of 64 lines sampled (25.000 %)" if text == "random1d:4" else "533 of 3200 points sampled (16.656 %)"
    assert n in printed
    assert f"R {'4,' if text == 'random1d:4' else '6.004,'}" in printed
    assert (MaskSpec.parse(f"file:{path}").draw(shape) == drawn).all()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".png":
        with Image.open(path) as image:
            assert image.text["mask"] == text
            pixels = np.asarray(image)
        assert (pixels == drawn.expand(shape).numpy() * 255).all()
    if suffix == ".h5":
        with h5py.File(path, "r") as file:
            assert file["mask"].shape == ((64,) if text == "random1d:4" else shape)
            assert file["mask"].attrs["mask"] == text


def test_the_place_of_the_zero_frequency_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "m.npy", np.fft.ifftshift(MaskSpec.parse("poisson2d:6").draw((64, 50)).numpy()))
    mask(f"file:{tmp_path / 'm.npy'}", (64, 50))
    assert "m.npy: 64 x 50, zero frequency detected in the corner" in capsys.readouterr().out


def test_the_size_of_the_centre_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    mask("dagan-g2d:30%", (256, 256))
    assert "fully sampled centre 25 x 25" in capsys.readouterr().out
    mask("dagan-g1d:5%", (256, 256))
    assert "fully sampled centre 5 lines" in capsys.readouterr().out  # 126 to 133, so 126 to 130 around 128


@pytest.mark.parametrize("shape", [(0, 4), (-3, 5), (100_000_000, 1000), (64,)])
def test_an_impossible_shape_is_refused_naming_its_option(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"--shape: .* is not a matrix size; .*--shape 320 256"):
        mask("random1d:4", shape)


def test_the_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mask", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "dagan-g1d:30%," in printed


def test_files_are_not_overwritten_and_writes_are_atomic(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"the file exists.*--force"):
        mask("random1d:4", (32, 32), path)
    assert path.read_bytes() == b"precious"
    mask("random1d:4", (32, 32), path, force=True)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match=r"'\.jpg' is not a mask format.*\.png, \.npy, \.h5"):
        mask("random1d:4", (32, 32), tmp_path / "m.jpg")
    with pytest.raises(InputError, match="cannot write"):
        mask("random1d:4", (32, 32), tmp_path / "no" / "m.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
