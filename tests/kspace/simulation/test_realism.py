"""Frames keep the object and its boxes, matrices are drawn from their range, blur only takes away."""

from __future__ import annotations

import pytest
import torch

from kspace.errors import InputError
from kspace.fourier import fft
from kspace.simulation.from_images import SynthesisOptions, crop_to_matrix, generator, simulate_example, simulate_volume
from kspace.simulation.realism import FULL_SHARE, Frame, Realism, blur, draw_frame, draw_matrix, object_region


def _object(n_y: int = 320, n_x: int = 400) -> torch.Tensor:
    image = torch.zeros(n_y, n_x)
    image[60:200, 90:300] = 100
    image[80:100, 110:150] = 250
    return image


def test_matrices_cover_their_range_in_steps() -> None:
    drawn = [draw_matrix(generator(i), Realism(matrix=(96, 208))) for i in range(400)]
    for axis in (0, 1):
        assert {m[axis] for m in drawn} == set(range(96, 209, 16))
    assert sum(m[0] != m[1] for m in drawn) > 300, "mostly not square"


def test_a_frame_never_cuts_the_object_nor_opens_interpolated_kspace() -> None:
    image, cut = _object(), 0
    for i in range(200):
        frame = draw_frame(image, (96, 112), generator(i), Realism(frame=0.7))
        inside = frame.image(image)
        assert inside.shape == frame.size
        assert float(inside.sum()) == float(image.sum())
        for points, kept, full in zip((96, 112), frame.size, (400, 320) if frame.transpose else (320, 400), strict=True):
            assert kept == full or points <= FULL_SHARE * kept + 1
            cut += kept < full
    assert cut > 100


def test_boxes_follow_their_frame() -> None:
    image = _object()
    box = torch.tensor([[3.0, 80, 110, 100, 150]])  # in points of the stored image
    for i in range(60):
        frame = draw_frame(image, (96, 112), generator("box", i), Realism(frame=0.7))
        moved = frame.boxes(box, image.shape, (96, 112))
        small = crop_to_matrix(frame.image(image), (96, 112)).abs()
        y0, x0, y1, x1 = moved[0, 1:].tolist()
        bright = (small > 175).nonzero()
        assert moved[0, 0] == 3
        for low, high, axis in ((y0, y1, 0), (x0, x1, 1)):
            assert abs(float(bright[:, axis].min()) - low) < 1.2
            assert abs(float(bright[:, axis].max()) + 1 - high) < 1.2


def test_a_whole_frame_leaves_boxes_where_cropping_kspace_leaves_them() -> None:
    frame = Frame(False, (False, False), (0, 0), (320, 400))
    box = torch.tensor([[1.0, 80, 110, 100, 150]])
    moved = frame.boxes(box, (320, 400), (160, 200))
    assert moved[0, 1:].tolist() == pytest.approx([40.25, 55.25, 50.25, 75.25])


def test_blur_takes_power_from_the_edge_of_kspace_alone() -> None:
    image = torch.randn(64, 48, dtype=torch.complex64, generator=generator(0))
    before = fft(image).abs()
    edges = []
    for i in range(60):
        after = fft(blur(image, generator("blur", i), Realism(blur=1.0))).abs()
        assert bool((after <= before * (1 + 1e-4) + 1e-5).all())
        assert float(after[32, 24]) == pytest.approx(float(before[32, 24]), rel=1e-4)
        edges.append(float(after[0, 24] / before[0, 24]))
    assert min(edges) > 0.0039
    assert min(edges) < 0.06
    assert max(edges) > 0.8
    assert torch.equal(blur(image, generator(1), Realism(blur=0.0)), image)


def test_an_example_is_simulated_by_its_seed_alone() -> None:
    options = SynthesisOptions((96, 112), 3, (20.0, 20.0), realism=Realism())
    once, again, other = (simulate_example(_object(), generator(seed), options) for seed in (1, 1, 2))
    assert torch.equal(once.kspace.data, again.kspace.data)
    assert not torch.equal(once.kspace.data, other.kspace.data)
    assert once.target.shape == (96, 112)


def test_the_object_region_holds_the_object_and_leaves_air_out() -> None:
    magnitude = crop_to_matrix(_object(), (96, 112)).abs()
    region = object_region(magnitude)
    assert bool(region[magnitude > 50].all())
    assert float(region.float().mean()) < 0.6


def test_slices_of_a_volume_share_frame_and_contrast() -> None:
    options = SynthesisOptions((96, 112), 3, (1e5, 1e5), realism=Realism(intensities=1.0, blur=0.0))
    volume = simulate_volume({"a": _object(), "b": _object()}, options, seed=4, name="p")
    assert volume.frames[0] == volume.frames[1]
    torch.testing.assert_close(volume.objects[0].abs(), volume.objects[1].abs(), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(volume.objects[0].angle(), volume.objects[1].angle()), "phase of their own"


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(InputError, match="share of the simulation"):
        Realism(dead_leaves=0.7, other=0.6)
    with pytest.raises(InputError, match="range of the matrix"):
        Realism(matrix=(200, 100))
