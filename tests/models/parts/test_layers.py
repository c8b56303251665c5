"""Blocks against a second, naive implementation or a property that they must have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.consistency import Consistency, Observation, scan_conditions, slice_scale, starting_image
from models.parts.layers import (
    PatchDiscriminator,
    PatchOptions,
    UNet,
    from_channels,
    magnitude,
    normalisation,
    pad_to_multiple,
    to_channels,
)
from models.parts.tensorflow import BatchStatistics2d, BiasedBatchNorm2d, SameConv2d, SameConvTranspose2d
from tests.support.scans import scan


def test_channels_and_back() -> None:
    image = torch.randn(2, 3, 5, 4, dtype=torch.complex64)
    channels = to_channels(image)
    assert channels.shape == (6, 2, 5, 4)
    assert torch.equal(channels[4, 0], image[1, 1].real)
    assert torch.equal(channels[4, 1], image[1, 1].imag)
    assert torch.equal(from_channels(channels, image), image)
    assert torch.equal(to_channels(image.conj()), to_channels(image) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    half = from_channels(channels.to(torch.bfloat16), image)
    assert half.dtype == torch.complex64, "a network under autocast answers in half precision"


@pytest.mark.parametrize(("shape", "multiple"), [((5, 8), 4), ((7, 9), 8), ((8, 8), 8), ((1, 3), 4)])
def test_padding_repeats_the_edge_and_is_undone(shape: tuple[int, int], multiple: int) -> None:
    x = torch.randn(1, 2, *shape)
    padded, crop = pad_to_multiple(x, multiple)
    assert all(n % multiple == 0 for n in padded.shape[-2:])
    assert torch.equal(crop(padded), x)
    assert set(padded.flatten().tolist()) <= set(x.flatten().tolist())


def test_scale_by_hand_and_its_homogeneity() -> None:
    y, op, _ = scan()
    z = op.adjoint(y).abs().double().numpy()
    expected = np.sqrt((z**4).sum((1, 2)) / (z**2).sum((1, 2)))
    scale = slice_scale(y, op)
    assert scale.shape == (2, 1, 1)
    np.testing.assert_allclose(scale.flatten().numpy(), expected, rtol=1e-5)
    for c in (1e-12, 1e9):
        torch.testing.assert_close(slice_scale(c * y, op) / c, scale, rtol=1e-5, atol=0)
    assert torch.equal(slice_scale(0 * y, op), torch.ones(2, 1, 1))


def test_scale_does_not_see_air() -> None:
    target = scan((32, 24), n_coils=1, batch=())[2]
    full = Sense(torch.ones(1, 32, 24, dtype=torch.complex64), torch.ones(32, 1, dtype=torch.bool))
    wide = Sense(torch.ones(1, 64, 48, dtype=torch.complex64), torch.ones(64, 1, dtype=torch.bool))
    small = slice_scale(full.forward(target), full)
    padded = F.pad(target, (12, 12, 16, 16))
    torch.testing.assert_close(slice_scale(wide.forward(padded), wide), small, rtol=1e-5, atol=0)


def test_starting_image_is_the_regularised_solve() -> None:
    y, op, _ = scan((8, 6), n_coils=2, batch=())
    n = 48
    basis = torch.eye(n, dtype=torch.complex64).reshape(n, 8, 6)
    columns = torch.stack([op.forward(b).flatten() for b in basis], 1).numpy().astype(complex)
    x = np.linalg.solve(columns.conj().T @ columns + 0.01 * np.eye(n), columns.conj().T @ y.flatten().numpy())
    found = starting_image(Observation.of(y, op), "sense", 0.01, 1e-6).flatten().numpy()
    np.testing.assert_allclose(found, x, atol=1e-4 * np.abs(x).max())
    assert torch.equal(starting_image(Observation.of(y, op), "adjoint", 0.01, 1e-6), op.adjoint(y))


def test_consistency_is_exact_for_one_coil_where_asked_and_soft_otherwise() -> None:
    y, op, target = scan(n_coils=1, lines=False)
    image = target + torch.randn_like(target)
    exact = op.forward(Consistency(exact=True)(image, Observation.of(y, op)))
    torch.testing.assert_close(exact, y, rtol=1e-4, atol=1e-5)
    # One coil of unit modulus: each sample becomes the mean of measured and proposed, weighted 1 to lamda.
    soft = op.forward(Consistency(lamda=0.25, tolerance=1e-6)(image, Observation.of(y, op)))
    torch.testing.assert_close(soft, (y + 0.25 * op.forward(image)) / 1.25, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lines", [True, False])
def test_the_conditions_of_a_scan_are_its_noise_its_rate_and_its_kind_of_mask(lines: bool) -> None:
    y, op, _ = scan(batch=(), n_coils=4, shape=(64, 48), lines=lines)
    noise = 0.05 * torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
    y = op.mask * (y * 0 + noise)  # nothing but noise, E|n|^2 = 0.0025
    found = scan_conditions(y, op)
    assert found[0] == pytest.approx(math.log(0.0025) + 6, abs=0.1)
    assert found[1] == pytest.approx(-math.log(float(op.mask.expand(1, 64, 48).float().mean()) * 4), abs=1e-5)
    assert found[2] == float(lines)
    whole = replace(op, mask=op.mask.expand(1, 64, 48).clone())  # the same mask, written out
    assert torch.allclose(scan_conditions(y, whole), found)
    assert torch.allclose(scan_conditions(y.mT.clone(), Sense(op.maps.mT.clone(), whole.mask.mT.clone())), found)
    two = scan_conditions(torch.stack([y, 10 * y]), replace(op, maps=torch.stack([op.maps] * 2)))
    assert two.shape == (2, 3)
    assert two[1, 0] - two[0, 0] == pytest.approx(math.log(100), abs=1e-4)
    assert scan_conditions(0 * y, op)[0] == pytest.approx(math.log(1e-4) + 6), "no noise is the best scan there is"
    centre = replace(op, mask=op.mask & ((torch.arange(64) - 32).abs() < 20)[:, None] & ((torch.arange(48) - 24).abs() < 12))
    assert scan_conditions(centre.mask * y, centre)[0] == 0, "nothing is known of the noise"


def test_lamda_follows_the_conditions() -> None:
    y, op, image = scan(batch=(2,), n_coils=4, noise=0.05)
    y = y * torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1)
    measured = Observation.of(y, op)
    layer = Consistency(lamda=0.25, tolerance=1e-6, adapt=True)
    assert layer.slopes is not None
    layer.slopes.data = torch.tensor([1.0, 2.0, -0.5])
    found = layer(image, measured)
    for i, conditions in enumerate(scan_conditions(y, op)):
        lamda = 0.25 * math.exp(conditions[0] + 2 * conditions[1] - 0.5 * conditions[2])
        one = Sense(op.maps[i] if op.maps.ndim > 3 else op.maps, op.mask[i] if op.mask.ndim > 3 else op.mask)
        alone = Consistency(lamda=lamda, tolerance=1e-6)(image[i], Observation.of(y[i], one))
        assert torch.linalg.vector_norm(found[i] - alone) < 1e-4 * torch.linalg.vector_norm(alone)
    layer(0.5 * image, measured).abs().sum().backward()
    assert layer.slopes.grad is not None
    assert (layer.slopes.grad != 0).all()


def test_lamda_learns_and_stays_positive() -> None:
    y, op, target = scan()
    layer = Consistency(lamda=0.1, tolerance=1e-6)
    wrong = target + torch.randn_like(target)
    (layer(wrong, Observation.of(y, op)) - target).abs().square().mean().backward()
    assert layer.log_lamda.grad is not None
    assert layer.log_lamda.grad > 0, "the proposal is bad: trust the data more, lower lamda"
    assert not Consistency(learned=False).log_lamda.requires_grad
    with pytest.raises(ValueError, match="lamda must be positive"):
        Consistency(lamda=0.0)


def naive_same(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's definition of SAME for one channel, pixel by pixel."""
    k = w.shape[0]
    n_y, n_x = x.shape
    out = np.zeros((math.ceil(n_y / stride), math.ceil(n_x / stride)))
    before = [max((o - 1) * stride + k - n, 0) // 2 for o, n in zip(out.shape, x.shape, strict=True)]
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for a in range(k):
                for b in range(k):
                    p, q = i * stride + a - before[0], j * stride + b - before[1]
                    if 0 <= p < n_y and 0 <= q < n_x:
                        out[i, j] += w[a, b] * x[p, q]
    return out


@pytest.mark.parametrize(
    ("kernel", "stride", "shape"), [(3, 2, (8, 6)), (3, 2, (7, 9)), (4, 2, (8, 8)), (4, 1, (8, 7)), (3, 1, (5, 5))]
)
def test_same_convolution_is_tensorflows(kernel: int, stride: int, shape: tuple[int, int]) -> None:
    layer = SameConv2d(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, *shape)
    expected = naive_same(x[0, 0].numpy(), layer.weight[0, 0].detach().numpy(), stride)
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (3, 1)])
def test_same_transposed_convolution_is_its_adjoint(kernel: int, stride: int) -> None:
    down = SameConv2d(2, 3, kernel, stride, bias=False)
    up = SameConvTranspose2d(3, 2, kernel, stride, bias=False)
    up.weight.data = down.weight.data
    x, z = torch.randn(1, 2, 8, 12), torch.randn(1, 3, 8 // stride, 12 // stride)
    torch.testing.assert_close((down(x) * z).sum(), (x * up(z)).sum(), rtol=1e-4, atol=1e-4)


def test_biased_running_variance() -> None:
    layer = BiasedBatchNorm2d(1)
    x = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    out = layer(x)
    torch.testing.assert_close(out, nn.BatchNorm2d(1)(x))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.running_mean.item() == pytest.approx(0.3)
    assert layer.running_var.item() == pytest.approx(0.9 + 0.1 * 3.5), "the variance of 1, 2, 3, 6 is 3.5, not 14/3"
    layer.eval()
    torch.testing.assert_close(layer(x), (x - 0.3) / math.sqrt(1.25 + 1e-5))


def test_batch_statistics_at_test_time_too() -> None:
    layer = BatchStatistics2d(2).eval()
    layer.shift.data = torch.tensor([5.0, -1.0])
    out = layer(3 + 10 * torch.randn(4, 2, 6, 6))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.tensor([5.0, -1.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), torch.ones(2), rtol=0, atol=1e-3)
    assert [k for k, _ in layer.named_parameters()] == ["shift"]


def test_instance_normalisation_is_per_slice_and_takes_single_pixels() -> None:
    layer = normalisation("instance", 3)
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(layer(x), F.instance_norm(x), rtol=1e-4, atol=1e-5)
    assert layer(torch.randn(2, 3, 1, 1)).abs().max() < 1e-3


@pytest.mark.parametrize("down", ["pool", "stride"])
def test_unet_starts_at_zero_and_sees_far(down: str) -> None:
    net = UNet(2, 2, width=4, depth=2, norm="none", down=down, zero_init=True)  # type: ignore[arg-type]
    x = torch.randn(1, 2, 21, 30)
    assert net(x).abs().max() == 0
    net = UNet(2, 2, width=4, depth=2, norm="none", down=down)  # type: ignore[arg-type]
    touched = x.clone()
    touched[0, 0, 10, 15] += 1
    change = (net(touched) - net(x))[0].abs().amax(0) > 0
    assert change[10, 8], "two halvings reach further than the convolutions of the first level"
    with pytest.raises(ValueError, match="width >= 1"):
        UNet(2, 2, width=0)


def test_start_keeps_the_variance_of_activations() -> None:
    net = UNet(2, 8, width=16, depth=3, norm="none")
    out = net(torch.randn(2, 2, 32, 32))
    assert 0.2 < out.std().item() < 5, "without normalisation, neither vanishing nor exploding"


@pytest.mark.parametrize("shape", [(5, 7), (32, 24), (1, 1)])
def test_patch_discriminator_takes_any_size(shape: tuple[int, int]) -> None:
    discriminator = PatchDiscriminator(magnitude, 1, PatchOptions(width=4, depth=3))
    scores = discriminator(torch.randn(3, *shape, dtype=torch.complex64))
    assert scores.shape[:2] == (3, 1)
    assert isinstance(discriminator.features(torch.randn(*shape, dtype=torch.complex64)), list)


def test_magnitude_view() -> None:
    image: Tensor = torch.tensor([[3 + 4j]])
    assert magnitude(image).shape == (1, 1, 1, 1)
    assert magnitude(image).item() == pytest.approx(5)
