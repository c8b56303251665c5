"""Super-resolution: measured block, upsampling by any factor, densely connected networks in 2-D and 3-D."""

from __future__ import annotations

import pytest
import torch

from kspace.fourier import central, fft
from kspace.masks import MaskSpec
from kspace.operators import Sense
from models import mdcsrn, srgan
from models.systems import build_generator
from tests.support.scans import coil_maps, ellipses


def low_resolution(shape: tuple[int, int], mask: str, n_coils: int = 1, planes: int = 1) -> tuple[torch.Tensor, Sense]:
    """k-space ``(plane coil ky kx)`` whose central block is measured."""
    target = torch.stack([ellipses(shape, k) for k in range(planes)])
    drawn = MaskSpec.parse(mask).draw(shape).to(torch.bool)
    op = Sense(coil_maps(n_coils, shape).expand(planes, n_coils, *shape), drawn)
    return op.forward(target), op


def perturbed(system: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(3)
    network = build_generator({"system": system, "generator": options})
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(32, 24), (33, 25), (32, 25)])
@pytest.mark.parametrize("mask", ["centre:4", "centre:16", "centre:2,axes=ky", "centre:3"])
def test_the_measured_block_is_the_smallest_that_holds_all_samples(shape: tuple[int, int], mask: str) -> None:
    plane = MaskSpec.parse(mask).draw(shape).to(torch.bool).expand(shape)
    block = srgan.measured_block(plane)
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[central(shape[0], block[0]), central(shape[1], block[1])] = True
    assert bool((inside | ~plane).all())
    assert abs(block[0] * block[1] - int(plane.sum())) <= max(shape)
    assert srgan.measured_block(torch.ones(shape, dtype=torch.bool)) == shape


def test_upsampling_knows_the_position_between_pixels_and_the_factor() -> None:
    nearest, away = srgan._nearest(8, 16, torch.zeros(1))
    assert nearest[8] == 4
    assert away[8] == 0, "the origin stays the origin"
    assert float(away.abs().max()) <= 0.5
    torch.testing.assert_close(nearest + away, (torch.arange(16) - 8) / 2 + 4, rtol=0, atol=0.51)
    torch.manual_seed(0)
    up = srgan.ScaleUpsampler(4).requires_grad_(False)
    x = torch.randn(1, 4, 8, 8)
    assert up(x, (13, 19)).shape == (1, 2, 13, 19)
    flat = torch.ones(1, 4, 8, 8)
    assert float(up(flat, (16, 16)).std()) > 0, "weights differ between positions"
    assert float((up(flat, (16, 16))[..., ::2, ::2] - up(flat, (24, 24))[..., ::3, ::3]).abs().max()) > 0


@pytest.mark.parametrize("system", ["srgan", "mdcsrn"])
def test_measured_samples_stay_and_outer_ones_are_predicted(system: str) -> None:
    network = perturbed(system, width=8, lamda=1e-3, tolerance=1e-6)
    for mask in ("centre:4", "centre:16"):
        y, op = low_resolution((32, 24), mask)
        image = network(y, op)
        assert float((op.forward(image) - y).norm() / y.norm()) < 5e-3
        outside = fft(image) * ~op.mask
        assert float(outside.norm()) > 1e-3 * float(y.norm())


def test_one_network_serves_every_factor_in_a_batch() -> None:
    network = perturbed("srgan", width=8)
    ys, masks = [], []
    for mask in ("centre:4", "centre:16"):
        y, op = low_resolution((32, 24), mask, 2)
        ys.append(y[0])
        masks.append(op.mask.expand(32, 24)[None])
    maps = coil_maps(2, (32, 24)).expand(2, 2, 32, 24)
    together = network(torch.stack(ys), Sense(maps, torch.stack(masks)))
    for k in range(2):
        alone = network(ys[k], Sense(maps[k], masks[k]))
        torch.testing.assert_close(together[k], alone, rtol=1e-3, atol=1e-4)


def test_planes_of_a_volume_see_each_other_in_3d_only() -> None:
    y, op = low_resolution((16, 16), "centre:4", 1, planes=5)
    changed = y.clone()
    changed[4] = y[4].flip(-1)
    for dims, sees in ((2, False), (3, True)):
        network = perturbed("mdcsrn", width=4, growth=4, blocks=2, units=2, dims=dims)
        a, b = network(y, op), network(changed, op)
        assert bool((a - b)[3].abs().max() > 1e-5 * a.abs().max()) is sees
        single = network(y[0], Sense(op.maps[0], op.mask))
        assert single.shape == (16, 16)


def test_published_networks() -> None:
    with torch.device("meta"):
        dense = mdcsrn.PublishedMdcsrnGenerator().network
    n_units = sum(isinstance(m, mdcsrn.DenseUnit) for m in dense.modules())
    assert n_units == 16
    assert dense.last.in_channels == 32 + 4 * 96
    assert [c.in_channels for c in dense.compress] == [128, 224, 320]
    kernels = sum(m.weight.numel() for m in dense.modules() if isinstance(m, torch.nn.Conv3d))
    assert kernels == 27 * 32 + 4 * 27 * 16 * (32 + 48 + 64 + 80) + 32 * (128 + 224 + 320) + 416
    y, op = low_resolution((16, 16), "centre:4", planes=3)
    for scale in (2, 4):
        network = build_generator(
            {"system": "srgan", "preset": "published", "generator": {"width": 4, "blocks": 1, "scale": scale}}
        )
        image = network.eval()(y, op)
        assert image.shape == (3, 16, 16)
    with pytest.raises(ValueError, match="scale is 2 or 4; got 3"):
        srgan.PublishedSrGanGeneratorOptions(scale=3)
