"""Families that sample off the Cartesian grid: their trajectories, and what they make of fully sampled k-space."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kspace.container import Header, KSpace
from kspace.errors import InputError
from kspace.fourier import fft
from kspace.masks import MaskSpec
from kspace.masks.acquisition import acceleration_of, acquire, digest_of, estimate_maps, forward_model
from kspace.noncartesian.operator import NonCartesianSense
from recon.commands.mask import mask
from tests.support.scans import coil_maps, ellipses

SHAPE = (48, 40)


def fully_sampled() -> KSpace:
    maps, image = coil_maps(4, SHAPE), ellipses(SHAPE, 1)
    header = Header(encoded_matrix=(40, 48, 1), recon_matrix=(40, 48, 1), encoded_fov_m=(0.2, 0.24, 0.005))
    return KSpace(fft(maps * image), torch.ones(1, 48, 1, dtype=torch.bool), header)


def test_spokes_and_spirals_have_the_spacing_that_they_state() -> None:
    k = MaskSpec.parse("radial-nufft:4,angles=uniform").trajectory((64, 64), "a")
    assert k is not None
    assert k.shape == (16, 128, 2)
    assert float(k.norm(dim=-1).max()) == pytest.approx(0.5)
    turns = torch.atan2(k[:, -1, 1], k[:, -1, 0]).diff().remainder(2 * math.pi)
    assert torch.allclose(turns, torch.full_like(turns, math.pi / 16))
    arms = MaskSpec.parse("spiral-nufft:2,interleaves=4").trajectory((64, 64), "a")
    assert arms is not None
    assert len(arms) == 4
    assert float(64 * (arms[:, 1:] - arms[:, :-1]).norm(dim=-1).max()) < 0.81
    # From turn to turn of one arm there are those of all others between.
    angle = np.unwrap(torch.atan2(arms[0, 1:, 1], arms[0, 1:, 0]).numpy())
    per_turn = float(arms[0, -1].norm() - arms[0, 1].norm()) * 64 / (abs(angle[-1] - angle[0]) / (2 * math.pi))
    assert per_turn / 4 == pytest.approx(2.0, rel=0.02)


def test_trajectories_depend_on_specification_and_key_alone() -> None:
    spec = MaskSpec.parse("radial-nufft:4")
    a, b, c = (spec.trajectory(SHAPE, key) for key in ("x", "x", "y"))
    assert torch.equal(a, b)  # type: ignore[arg-type]
    assert not torch.equal(a, c)  # type: ignore[arg-type]
    assert MaskSpec.parse("random1d:4").trajectory(SHAPE) is None


def test_a_mask_of_the_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"'radial-nufft' samples off the Cartesian grid .*use radial where"):
        MaskSpec.parse("radial-nufft:4").draw(SHAPE)
    with pytest.raises(InputError, match="leaves no readout"):
        MaskSpec.parse("radial-nufft:200").trajectory(SHAPE)


@pytest.mark.parametrize("text", ["radial-nufft:1", "spiral-nufft:1,interleaves=8"])
def test_what_is_acquired_is_the_image_at_the_trajectory(text: str) -> None:
    k = fully_sampled()
    acquired = acquire(k, MaskSpec.parse(text), "volume")
    assert acquired.trajectory is not None
    at = acquired.trajectory[3, 7].double()  # one sample, by the definition of the transform
    y, x = torch.meshgrid(torch.arange(48) - 24, torch.arange(40) - 20, indexing="ij")
    wave = torch.exp(-2j * math.pi * (at[0] * x + at[1] * y)) / math.sqrt(48 * 40)
    expected = (coil_maps(4, SHAPE) * ellipses(SHAPE, 1) * wave).sum((-2, -1))
    assert torch.allclose(acquired.data[:, 3, 7].to(expected.dtype), expected, atol=2e-4 * float(expected.abs().max()))
    op = forward_model(acquired, estimate_maps(acquired))
    assert isinstance(op, NonCartesianSense)
    assert digest_of(acquired) != digest_of(acquire(k, MaskSpec.parse(text + ",seed=1"), "volume"))
    assert 1 <= acceleration_of(acquired) < 1.5
    assert acceleration_of(acquire(k, MaskSpec.parse("random1d:4"), "volume")) == pytest.approx(4.0)


def test_the_command_writes_a_trajectory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    path = tmp_path / "k.npy"
    mask("radial-nufft:4", (48, 40), path)
    assert "12 readouts of 96 samples" in capsys.readouterr().out
    assert np.load(path).shape == (12, 96, 2)
    mask("radial-nufft:4", (48, 40), tmp_path / "k.png")
    with pytest.raises(InputError, match=r"'.h5' holds masks of a grid"):
        mask("radial-nufft:4", (48, 40), tmp_path / "k.h5")
