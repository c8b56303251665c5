"""Unconditional generators: images of any matrix, and their fit to a scan. Every system whose raw preset is one is tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kspace.fourier import interpolate
from kspace.operators import Sense
from models import csgm
from models.parts.interface import total
from models.parts.latent import LatentFit, Look, PriorGenerator, fit
from models.systems import build, build_generator, find_systems
from tests.support.scans import scan

PRIORS = [name for name, presets in find_systems().items() if issubclass(presets["raw"].generator, PriorGenerator)]
SHAPE = (24, 32)


def small(system: str = "csgm", **changes: Any) -> PriorGenerator:
    narrow = find_systems()[system]["raw"].narrow
    torch.manual_seed(1)
    made = build_generator({"system": system, "generator": {**narrow["generator"], **changes}})
    assert isinstance(made, PriorGenerator)
    return made.requires_grad_(False).eval()


def measured(prior: PriorGenerator, n_coils: int = 3) -> tuple[torch.Tensor, Sense, torch.Tensor]:
    """A scan ``(coil ky kx)`` of an image in the prior's range."""
    _, op, _ = scan(SHAPE, n_coils, batch=())
    z = torch.randn(1, prior.n_latent, generator=torch.Generator().manual_seed(7))
    image = 3 * torch.polar(torch.ones(1), torch.tensor(0.8)) * prior.images(z, SHAPE)[0]
    return op.forward(image), op, image


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("system", PRIORS)
def test_images_of_other_matrices_show_the_same_field_of_view(system: str) -> None:
    prior = small(system)
    z = torch.randn(2, prior.n_latent)
    square = prior.images(z, (48, 48))
    assert torch.equal(prior.images(z, (48, 30)), square[..., 9:39]), "the shorter side is cropped"
    torch.testing.assert_close(interpolate(square, (32, 32)), prior.square(z), rtol=1e-4, atol=1e-4)
    assert square.is_complex()
    assert float(square.angle().std()) > 0, "phase is generated too"


@pytest.mark.parametrize("system", PRIORS)
def test_a_fit_finds_an_image_in_the_range_with_its_scale_and_phase(system: str) -> None:
    options = {"restarts": 4, "steps": 150, "rate": 0.1, "check": 10, "patience": 0, "penalty": 0.0, "adaptation": 0}
    prior = small(system, fit={**options, "consistency": False})
    y, op, image = measured(prior)
    found = prior(y, op)
    assert distance(found, image) < 0.1
    random = prior.images(torch.randn(1, prior.n_latent), SHAPE)[0]
    factor = torch.vdot(random.flatten(), image.flatten()) / random.norm() ** 2
    assert distance(factor * random, image) > 2 * distance(found, image)


@pytest.mark.parametrize("system", PRIORS)
def test_a_fit_is_homogeneous_and_sees_acquired_samples_only(system: str) -> None:
    prior = small(system)
    y, op, _ = measured(prior)
    state = {name: x.clone() for name, x in prior.state_dict().items()}
    image = prior(y, op)
    assert all(torch.equal(x, state[name]) for name, x in prior.state_dict().items()), "what is adapted is a copy"
    for c in (1e-6, 1e6):
        assert distance(prior(c * y, op) / c, image) < 1e-3
    assert distance(prior(y + 7 * ~op.mask, op), image) < 1e-4
    with torch.inference_mode():
        assert distance(prior(y, op).clone(), image) < 1e-6
    assert prior(torch.zeros_like(y), op).abs().max() == 0
    batch = prior(torch.stack([y, 2 * y]), Sense(op.maps.expand(2, *op.maps.shape), op.mask))
    assert distance(batch[1], 2 * image) < 1e-3, "plane by plane"


def test_adaptation_of_the_weights_goes_where_the_latent_vector_alone_does_not() -> None:
    y, op, _ = scan(SHAPE, batch=())
    prior = small(fit={"restarts": 2, "steps": 20, "adaptation": 60, "weights_rate": 3e-3, "patience": 0})
    observed, _ = prior.observe(y, op)
    fitted = fit(prior, observed, prior.options.fit)
    before = min(error for stage, _, error in fitted.history if stage == "latent")
    assert fitted.kept[0] == "adaptation"
    assert fitted.error < 0.5 * before


def test_the_best_look_is_kept_and_a_watcher_ends_a_stage() -> None:
    prior = small()
    y, op, _ = measured(prior)
    observed, _ = prior.observe(y, op)
    errors = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    seen = []

    def watch(candidates: torch.Tensor) -> Look:
        seen.append(candidates)
        return Look(torch.tensor([9.0, next(errors)]))

    options = LatentFit(restarts=2, steps=40, check=2, patience=3)
    found = fit(prior, observed, options, watch)
    assert found.kept == ("latent", 2)
    assert found.error == 1.0
    assert torch.equal(found.image, seen[1][1]), "the better candidate of the best look"
    assert len(seen) == 5, "three looks without improvement end the stage"
    stopped = fit(prior, observed, options, lambda candidates: Look(torch.zeros(2), enough=True))
    assert [step for _, step, _ in stopped.history] == [0]


def test_a_larger_network_begins_as_the_smaller_one() -> None:
    small_one, large = small(size=16), small(size=32)
    assert isinstance(small_one, csgm.CsgmGenerator)
    assert isinstance(large, csgm.CsgmGenerator)
    large.load_state_dict(large.adopted(small_one.state_dict()))
    z = torch.randn(4, 8)
    halved = F.avg_pool2d(large.square(z).abs()[:, None], 2)[:, 0]
    pairs = torch.stack([halved.flatten(), small_one.square(z).abs().flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) > 0.9
    assert large.blocks[-1].get_submodule("last").weight.abs().max() == 0


def test_below_full_width_a_larger_network_takes_all_but_the_last_layer() -> None:
    small_one, large = small(size=16, most=64), small(size=32, most=64)
    assert isinstance(small_one, csgm.CsgmGenerator)
    assert isinstance(large, csgm.CsgmGenerator)
    assert small_one.head.weight.shape != large.head.weight.shape, "fewer channels at 32 than at 16"
    adopted = large.adopted(small_one.state_dict())
    assert torch.equal(adopted["head.weight"], large.head.weight)
    large.load_state_dict(adopted)
    assert torch.equal(large.blocks[1].get_submodule("last").weight, small_one.blocks[1].get_submodule("last").weight)


@pytest.mark.parametrize("system", PRIORS)
def test_training_looks_at_the_target_and_never_at_the_samples(system: str) -> None:
    gan = build({"system": system, **find_systems()[system]["raw"].narrow})
    y, op, target = scan((32, 32), 1)
    torch.manual_seed(2)
    step = gan.step(y, op, target)
    torch.manual_seed(2)
    again = gan.step(y.flip(-1), replace(op, mask=op.mask.flip(-2)), target)
    torch.testing.assert_close(step.image, again.image)
    assert not torch.equal(step.image[0], step.image[1]), "another latent vector for each slice"
    _, values = total(gan.d_terms, step)
    assert set(values) == {"adversarial", "gradient_penalty", "drift"}
    assert float(gan.generator.scale(y, op).max()) < 10
    assert float(gan.generator.scale(100 * y, op).max()) == pytest.approx(
        100 * float(gan.generator.scale(y, op).max()), rel=1e-4
    )


def test_parameters_of_the_progressive_gan() -> None:
    """23,079,115 and 23,087,249 parameters are what the authors' code prints for faces of 1024 pixels; it keeps an RGB layer of
    every size, of which the largest alone is in use."""
    with torch.device("meta"):
        generator = csgm.PublishedCsgmGenerator(csgm.PublishedCsgmGeneratorOptions(size=1024, channels=3))
        critic = csgm.PublishedCsgmDiscriminator(csgm.PublishedCsgmDiscriminatorOptions(size=1024, channels=3))
    unused = csgm.published_widths(1024, 512)[:-1]
    n_generator, n_critic = (sum(p.numel() for p in network.parameters()) for network in (generator, critic))
    assert n_generator + sum(3 * n + 3 for n in unused) == 23_079_115
    assert n_critic + sum(3 * n + n for n in unused) == 23_087_249


@pytest.mark.parametrize("size", [4, 12, 100])
def test_sizes_that_no_doubling_gives_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be 8, 16, 32, ...; got {size}"):
        csgm.levels_of(size)
