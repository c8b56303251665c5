"""Posterior samplers: draws, their mean, the reward of their spread, and weights of a network without noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kspace.operators import Sense
from models.parts.interface import Step, frozen
from models.parts.layers import to_channels
from models.parts.losses import l1
from models.parts.sampler import PosteriorSampler, spread_reward
from models.systems import build, build_generator, find_systems
from tests.support.scans import scan

SAMPLERS = [name for name, found in find_systems().items() if issubclass(found["raw"].generator, PosteriorSampler)]


def perturbed(system: str, **changes: Any) -> PosteriorSampler:
    torch.manual_seed(1)
    made = build_generator({"system": system, "generator": {"width": 8, "blocks": 2, **changes}})
    assert isinstance(made, PosteriorSampler)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("system", SAMPLERS)
def test_the_image_is_the_mean_of_the_draws(system: str) -> None:
    network = perturbed(system, samples=3)
    y, op, _ = scan()
    draws = network.sample(y, op, 3)
    assert draws.shape == (3, 2, 32, 24)
    assert float((draws[0] - draws[1]).abs().mean()) > 1e-3 * float(draws.abs().mean())
    torch.testing.assert_close(network(y, op), draws.mean(0))
    assert torch.equal(network.sample(y, op, 5)[:3], draws), "more draws continue the same sequence"
    assert not torch.equal(network.sample(y, op, 3, seed=1), draws)


@pytest.mark.parametrize("system", SAMPLERS)
def test_every_draw_is_homogeneous_and_independent_of_its_batch(system: str) -> None:
    network = perturbed(system)
    y, op, _ = scan(batch=(2,))
    draws = network.sample(y, op, 2)
    torch.testing.assert_close(network.sample(1e3 * y, op, 2) / 1e3, draws, rtol=1e-3, atol=1e-4)
    alone = network.sample(y[1], Sense(op.maps[1], op.mask), 2)
    torch.testing.assert_close(alone, draws[:, 1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("system", SAMPLERS)
def test_training_draws_new_noise_for_each_slice(system: str) -> None:
    network = perturbed(system)
    y, op, _ = scan(batch=(1,))
    twice = torch.cat([y, y])
    found = network.training_images(twice, Sense(op.maps.expand(2, *op.maps.shape[1:]), op.mask))
    assert set(found) == {"start", "sample_0", "sample_1", "image"}
    torch.testing.assert_close(found["image"], (found["sample_0"] + found["sample_1"]) / 2)
    assert not torch.allclose(found["sample_0"][0], found["sample_0"][1])
    assert not torch.allclose(found["sample_0"], found["sample_1"])


def test_weights_without_noise_are_a_beginning_that_noise_hardly_moves() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 8, "blocks": 2, "cascades": 2}
    gancs = build_generator({"system": "gancs", "generator": options})
    with torch.no_grad():
        for p in gancs.parameters():
            p.add_(0.05 * torch.randn_like(p))
    sampler = build_generator({"system": "rcgan", "generator": {**options, "samples": 2}})
    sampler.load_state_dict(sampler.adopted(gancs.state_dict()))
    y, op, _ = scan()
    with torch.no_grad():
        first = [network.get_submodule("body.0") for network in sampler.get_submodule("networks").children()]
        a, b = sampler(y, op), gancs(y, op)
        assert 0 < float((a - b).norm()) < 0.2 * float(b.norm())
        for conv in first:
            conv.weight[:, 8:] = 0  # type: ignore[index]
        torch.testing.assert_close(sampler(y, op), b, rtol=1e-4, atol=1e-5)


def step_of(draws: Tensor, target: Tensor) -> Step:
    """A step whose draws ``(p n y x)`` are given."""
    gan = build({"system": "rcgan", **find_systems()["rcgan"]["raw"].narrow})
    y, op, _ = scan((int(target.shape[-2]), int(target.shape[-1])))
    images = {f"sample_{k}": draw for k, draw in enumerate(draws)}
    return Step({**images, "image": draws.mean(0), "start": torch.zeros_like(target)}, target, y, op, gan.generator)


def test_loss_of_mean_and_spread_is_least_for_the_gaussian_posterior() -> None:
    """Truth and draws from N(m, s^2) in each component: with weight 1 the loss is least where mean and spread are those."""
    g = torch.Generator().manual_seed(0)
    shape = (64, 32, 32)

    def normal() -> Tensor:
        return torch.view_as_complex(torch.randn(*shape, 2, generator=g))

    target = 2 + 0.5 * normal()

    def loss(mean: float, std: float) -> float:
        step = step_of(torch.stack([mean + std * normal() for _ in range(2)]), target)
        return float(l1(step, view=to_channels) + spread_reward(step, relative=False))

    best = loss(2.0, 0.5)
    assert best < loss(2.0, 0.35)
    assert best < loss(2.0, 0.7)
    assert best < loss(2.2, 0.5)


def test_the_reward_has_a_gradient_where_draws_agree() -> None:
    draws = torch.zeros(2, 1, 8, 8, dtype=torch.complex64, requires_grad=True)
    value = spread_reward(step_of(draws, torch.ones(1, 8, 8, dtype=torch.complex64)))
    assert float(value.detach()) == 0
    value.backward()
    assert draws.grad is not None
    assert bool(torch.isfinite(torch.view_as_real(draws.grad)).all())
    apart = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]).to(torch.complex64)
    expected = -math.sqrt(2 / (math.pi * 6)) * math.sqrt(math.pi / 4) * 64 / (64 * 1.01)
    assert float(spread_reward(step_of(apart, torch.ones(1, 8, 8, dtype=torch.complex64)))) == pytest.approx(expected, rel=1e-4)


def test_the_critic_judges_an_image_beside_the_starting_image() -> None:
    gan = build({"system": "rcgan", **find_systems()["rcgan"]["raw"].narrow})
    y, op, target = scan()
    step = gan.step(y, op, target)
    with frozen(*gan.discriminators):
        one = step.score(step.target)
    elsewhere = {**step.intermediates, "start": 2 * step.intermediates["start"]}
    other = Step(elsewhere, step.target, y, op, gan.generator, gan.discriminators)
    assert not torch.allclose(one, other.score(step.target))
    assert len(one) == 2
