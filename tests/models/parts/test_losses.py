"""Each loss term against a calculation by hand, in NumPy or on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts import losses
from models.parts.adversarial import adversarial, discriminator_loss, feature_matching, gradient_penalty, r1
from models.parts.interface import Discriminator, Generator, LossTerm, Step, frozen, terms, total
from models.parts.layers import PatchDiscriminator, PatchOptions, Spectral, magnitude, to_channels
from tests.support.scans import scan


class Adjoint(Generator):
    """A generator without a network: A^H y times one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        return {"image": self.gain * op.adjoint(y)}

    def learned(self) -> list[nn.Module]:
        return []


class Linear(Discriminator):
    """Score = <w, re> + <v, im>: one feature (the image's channels) and one score per slice."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 2 * n))

    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        x = to_channels(image).flatten(1)
        return [x, x @ self.w[:, None]]


def step_of(shape: tuple[int, int] = (12, 10), batch: Sequence[int] = (2,), **changes: Any) -> Step:
    y, op, target = scan(shape, n_coils=3, batch=batch, lines=False, noise=0.1)
    image = (target + 0.3 * torch.randn_like(target)).requires_grad_(True)
    start = op.adjoint(y)
    intermediates = {"image": image, "start": start, "other": (2 * image.detach()).requires_grad_(True)}
    settings = {"intermediates": intermediates, "target": target, "y": y, "op": op, "generator": Adjoint()}
    settings["discriminators"] = (Linear(math.prod(shape)),)
    return Step(**{**settings, **changes})


def parts(step: Step) -> tuple[np.ndarray, np.ndarray]:
    return step.image.detach().numpy(), step.target.numpy()


def close(value: Tensor, expected: float, rtol: float = 2e-5) -> None:
    assert value.shape == ()
    np.testing.assert_allclose(value.item(), expected, rtol=rtol)


# ------------------------------------------------------------------------------------------------------------------- images


def test_l1_and_l2() -> None:
    step = step_of()
    x, t = parts(step)
    close(losses.l1(step), np.abs(x - t).mean())
    close(losses.l2(step), (np.abs(x - t) ** 2).mean())
    close(losses.l1(step, view=magnitude), np.abs(np.abs(x) - np.abs(t)).mean())
    two = (np.abs((x - t).real).mean() + np.abs((x - t).imag).mean()) / 2
    close(losses.l1(step, view=to_channels), two)
    close(losses.l1(step, images=("image", "other")), np.abs(x - t).mean() + np.abs(2 * x - t).mean())


def test_nmse_in_both_conventions_is_a_mean_over_slices() -> None:
    step = step_of()
    x, t = parts(step)
    squared = [np.linalg.norm(a - b) ** 2 / np.linalg.norm(b) ** 2 for a, b in zip(x, t, strict=True)]
    close(losses.nmse(step), np.mean(squared))
    close(losses.nmse(step, squared=False), np.mean(np.sqrt(squared)))


def test_root_nmse_of_a_perfect_image_has_no_gradient_instead_of_nan() -> None:
    step = step_of()
    image = step.target.clone().requires_grad_(True)
    step = Step({"image": image}, step.target, step.y, step.op, step.generator)
    losses.nmse(step, squared=False).backward()
    assert image.grad is not None
    assert image.grad.abs().max() == 0


def test_relative_is_one_at_the_start_and_weighs_slices_alike() -> None:
    step = step_of()
    x, t = parts(step)
    s = step.intermediates["start"].numpy()
    expected = [np.abs(a - b).sum() / (np.abs(c - b).sum() + 0.01 * np.abs(b).sum()) for a, b, c in zip(x, t, s, strict=True)]
    close(losses.relative(step), np.mean(expected))
    start = step.intermediates["start"]
    at_start = Step({"image": start, "start": start}, step.target, step.y, step.op, step.generator)
    close(losses.relative(at_start, floor=0), 1.0)
    without = Step({"image": step.image}, step.target, step.y, step.op, step.generator)
    with pytest.raises(ValueError, match="starting image"):
        losses.relative(without)


def test_a_decibel_is_the_same_for_every_slice_in_the_logarithm() -> None:
    step = step_of()
    x, t = parts(step)
    s = step.intermediates["start"].numpy()
    ratios = []
    for a, b, c in zip(np.abs(x), np.abs(t), np.abs(s), strict=True):
        ratios.append(((a - b) ** 2).sum() / (((c - b) ** 2).sum() + 1e-4 * (b**2).sum()))
    close(losses.log_relative(step, view=magnitude), np.mean(np.log(np.array(ratios) + 1e-3)) / 2)
    target, start = step.target, step.intermediates["start"]
    values = []
    for error in (0.5, 0.5 / 10 ** (1 / 20)):  # one decibel apart
        image = (target.abs() + error * (start.abs() - target.abs())).to(target.dtype)
        nearer = Step({"image": image, "start": start}, target, step.y, step.op, step.generator)
        values.append(losses.log_relative(nearer, view=magnitude, floor=0).item())
    assert values[0] - values[1] == pytest.approx(math.log(10) / 20, rel=1e-3)
    perfect = target.clone().requires_grad_(True)
    losses.log_relative(Step({"image": perfect, "start": start}, target, step.y, step.op, step.generator)).backward()
    assert perfect.grad is not None
    assert bool(perfect.grad.isfinite().all())


def test_ssim_agrees_with_scikit_image_and_fastmri() -> None:
    from fastmri.losses import SSIMLoss
    from skimage.metrics import structural_similarity

    step = step_of((20, 24))
    x, t = (np.abs(a) for a in parts(step))
    full = []
    for a, b in zip(x, t, strict=True):
        _, similarity = structural_similarity(b, a, data_range=b.max(), full=True)
        full.append(similarity[3:-3, 3:-3].mean())
    close(losses.structural_dissimilarity(step), 1 - np.mean(full), 1e-4)
    peak = step.target.abs().amax((1, 2))
    with torch.no_grad():
        theirs = SSIMLoss()(magnitude(step.image), magnitude(step.target), peak)
    close(losses.structural_dissimilarity(step), theirs.item(), 1e-4)


def test_ssim_of_windows_with_a_stride() -> None:
    a, b = torch.rand(1, 1, 9, 9), torch.rand(1, 1, 9, 9)
    found = losses.ssim_map(a, b, 5, 2, 1e-4, 9e-4)
    p, q = a[0, 0, 2:7, 4:9].double().numpy(), b[0, 0, 2:7, 4:9].double().numpy()
    cov = ((p - p.mean()) * (q - q.mean())).mean()
    hand = (2 * p.mean() * q.mean() + 1e-4) * (2 * cov + 9e-4)
    hand /= (p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var() + q.var() + 9e-4)
    assert found.shape == (1, 1, 3, 3)
    np.testing.assert_allclose(found[0, 0, 1, 2].item(), hand, rtol=1e-4)


def test_total_variation() -> None:
    image = torch.tensor([[[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]]).to(torch.complex64)
    step = step_of()
    step = Step({"image": image}, image, step.y, step.op, step.generator)
    # Rows: 1 + 2 + 0 + 0; columns: 0 + 1 + 3.
    close(losses.total_variation(step, reduce="sum"), 7.0)
    close(losses.total_variation(step), 7.0 / 6)
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        losses.total_variation(step, reduce="max")


# ------------------------------------------------------------------------------------------------------------------ k-space


def residual(step: Step) -> tuple[np.ndarray, np.ndarray]:
    return (step.op.forward(step.image) - step.y).detach().numpy(), step.op.mask.expand_as(step.y).numpy()


def test_masked_kspace() -> None:
    step = step_of()
    r, m = residual(step)
    close(losses.kspace_masked(step), np.abs(r[m]).mean())
    close(losses.kspace_masked(step, power=2), (np.abs(r[m]) ** 2).mean())
    close(losses.kspace_masked(step, power=2, over_all=True), (np.abs(r) ** 2).mean())
    two = np.stack([r.real, r.imag])
    close(losses.kspace_masked(step, view=to_channels, over_all=True), np.abs(two).mean())
    close(losses.kspace_masked(step, view=to_channels), np.abs(two[:, m]).mean())


def test_published_weights_under_the_orthonormal_transform() -> None:
    step = step_of((12, 10))
    x, t = parts(step)
    plain = np.fft.fft2(x) - np.fft.fft2(t)
    squares = 0.1 * (np.abs(plain) ** 2).mean()
    close(losses.orthonormal_weight(0.1, (12, 10), 2) * losses.kspace_full(step), squares)
    close(losses.orthonormal_weight(0.25, (12, 10), 1) * losses.kspace_full(step, power=1), 0.25 * np.abs(plain).mean())
    assert losses.orthonormal_weight(0.1, (256, 256), 2) == pytest.approx(6553.6)
    assert losses.orthonormal_weight(0.25, (256, 256), 1) == pytest.approx(64.0)


def test_difference_of_moduli_of_kspace() -> None:
    step = step_of()
    x, t = (np.fft.fft2(np.abs(a), norm="ortho") for a in parts(step))
    close(losses.kspace_full(step, magnitudes=True, view=magnitude), ((np.abs(x) - np.abs(t)) ** 2).mean(), 1e-4)


def test_frequency_and_data_consistency_are_relative() -> None:
    step = step_of()
    x, t = parts(step)
    a, b = np.fft.fft2(x, norm="ortho"), np.fft.fft2(t, norm="ortho")
    close(losses.frequency(step), np.mean([np.abs(p - q).sum() / np.abs(q).sum() for p, q in zip(a, b, strict=True)]))
    r, _ = residual(step)
    ratios = [(np.abs(p) ** 2).sum() / (np.abs(q) ** 2).sum() for p, q in zip(r, step.y.numpy(), strict=True)]
    close(losses.data_consistency_error(step), np.mean(ratios))


def test_the_two_loops_of_refinegan() -> None:
    step = step_of()
    r, _ = residual(step)
    y = step.y.numpy()
    close(losses.cyclic_measurement(step), np.mean([np.abs(p).sum() / np.abs(q).sum() for p, q in zip(r, y, strict=True)]))
    again = step.op.normal(step.target).numpy()
    t = step.target.numpy()
    close(losses.cyclic_image(step), np.mean([np.abs(p - q).sum() / np.abs(q).sum() for p, q in zip(again, t, strict=True)]))


def test_the_loop_over_a_noise_free_measurement_is_the_image_loss() -> None:
    y, op, target = scan((12, 10))
    generator = Adjoint()
    step = Step(generator.intermediates(y, op), target, y, op, generator)
    x, t = parts(step)
    close(losses.cyclic_image(step), np.mean([np.abs(p - q).sum() / np.abs(q).sum() for p, q in zip(x, t, strict=True)]))


def test_kernel_l1_counts_kernels_only() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 1, 3), nn.Linear(3, 3))
    expected = network[0].weight.abs().sum() + network[2].weight.abs().sum()
    close(losses.kernel_l1(network), expected.item())


def test_terms_of_the_wrong_power_are_refused() -> None:
    with pytest.raises(ValueError, match="power is 1 or 2"):
        losses.kspace_full(step_of(), power=3)


# -------------------------------------------------------------------------------------------------------------- adversarial


def scores(step: Step) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return step.discriminator(step.target).double().numpy(), step.discriminator(step.image).double().numpy()


def sigmoid(s: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-s))


def test_adversarial_losses() -> None:
    step = step_of()
    real, fake = scores(step)
    cross_entropy = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    for kind in ("minimax", "non_saturating"):
        close(discriminator_loss(step, kind), cross_entropy)
    close(
        discriminator_loss(step, "non_saturating", real_label=0.9),
        (-(0.9 * np.log(sigmoid(real)) + 0.1 * np.log(1 - sigmoid(real))).mean() - np.log(1 - sigmoid(fake)).mean()),
    )
    close(adversarial(step, "minimax"), np.log(1 - sigmoid(fake)).mean())
    close(adversarial(step, "non_saturating"), -np.log(sigmoid(fake)).mean())
    close(discriminator_loss(step, "lsgan"), ((real - 1) ** 2).mean() + (fake**2).mean())
    close(adversarial(step, "lsgan"), ((fake - 1) ** 2).mean())
    close(discriminator_loss(step, "wgan"), fake.mean() - real.mean(), 1e-4)
    close(adversarial(step, "wgan"), -fake.mean(), 1e-4)
    with pytest.raises(ValueError, match="unknown adversarial loss 'hinge'"):
        discriminator_loss(step, cast(Any, "hinge"))
    with pytest.raises(ValueError, match="unknown adversarial loss 'hinge'"):
        adversarial(step, cast(Any, "hinge"))


def test_pairs_of_refinegan_add_up() -> None:
    """{S_A, S_B, T_A, T_B} against real A and real B: eight pairs, written out as the paper's code has them."""
    step = step_of()
    d = step.discriminator
    with torch.no_grad():
        reals = [d(step.target[k]).item() for k in range(2)]
        fakes = [d(step.intermediates[name][k]).item() for name in ("image", "other") for k in range(2)]
    pairs = [(f, r) for f in fakes for r in reals]
    assert len(pairs) == 8
    close(4 * discriminator_loss(step, "wgan", images=("image", "other")), sum(f - r for f, r in pairs), 1e-4)
    close(4 * adversarial(step, "wgan", images=("image", "other")), sum(-f for f, _ in pairs), 1e-4)


def test_gradient_penalty_and_r1_of_a_linear_discriminator() -> None:
    step = step_of()
    norm = step.discriminator.w.norm().item()
    close(gradient_penalty(step), (norm - 1) ** 2)
    close(r1(step), norm**2 / 2)
    gradient_penalty(step).backward()
    w = step.discriminator.w
    assert isinstance(w, nn.Parameter)
    assert w.grad is not None
    torch.testing.assert_close(w.grad, 2 * (w - w / w.norm()).detach(), rtol=1e-4, atol=1e-5)
    assert step.image.grad is None


def test_feature_matching() -> None:
    step = step_of()
    real, fake = scores(step)
    x, t = (to_channels(a.detach()).numpy() for a in (step.image, step.target))
    close(feature_matching(step), (np.abs(x - t).mean() + np.abs(real - fake).mean()) / 2)
    feature_matching(step).backward()
    assert step.image.grad is not None
    assert all(p.grad is None for p in step.discriminator.parameters())


def test_spectral_normalisation_bounds_each_layer() -> None:
    spectral = PatchDiscriminator(magnitude, 1, PatchOptions(width=4, depth=2, spectral=True))
    for _ in range(60):
        spectral(torch.randn(1, 16, 16, dtype=torch.complex64))
    layers = [m for m in spectral.modules() if isinstance(m, Spectral)]
    assert len(layers) == 3
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight().flatten(1), 2).item() == pytest.approx(1, abs=0.02)
        conv = layer.layer
        assert isinstance(conv, nn.Conv2d)
        x = torch.randn(2, conv.in_channels, 8, 8)
        plain = torch.nn.functional.conv2d(x, layer.weight(), conv.bias, conv.stride, conv.padding)  # type: ignore[arg-type]
        torch.testing.assert_close(layer(x), plain, rtol=1e-3, atol=1e-3)
    before = [layer.u.clone() for layer in layers]
    spectral.eval()(torch.randn(1, 16, 16, dtype=torch.complex64))
    assert all(torch.equal(layer.u, u) for layer, u in zip(layers, before, strict=True)), "scoring changes nothing"


# ------------------------------------------------------------------------------------------------------------ terms and sums


def test_total_weighs_names_and_skips() -> None:
    step = step_of(number=3)

    def refuse(_: Step) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")

    chosen = (
        LossTerm("a", 2.0, lambda s: s.image.abs().mean()),
        LossTerm("b", lambda n: 10.0 * n, lambda s: s.target.abs().mean()),
        LossTerm("c", lambda n: 0.0, refuse),
    )
    loss, values = total(chosen, step)
    a, b = step.image.abs().mean(), step.target.abs().mean()
    close(loss, (2 * a + 30 * b).item())
    assert set(values) == {"a", "b"}
    assert not values["a"].requires_grad
    assert [t.name for t in terms(*chosen, LossTerm("d", 0.0, refuse))] == ["a", "b", "c"]


def test_frozen_thaws_only_what_it_froze_even_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)

    def stumble() -> None:
        with frozen(network):
            assert not any(p.requires_grad for p in network.parameters())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        stumble()
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]


def test_a_step_without_a_discriminator_says_so() -> None:
    with pytest.raises(ValueError, match="0 discriminators"):
        _ = step_of(discriminators=()).discriminator
    assert isinstance(step_of().discriminator, Linear)
