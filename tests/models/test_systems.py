"""Finding systems and building them from plain options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kspace.errors import InputError
from kspace.operators import Sense
from models import dagan
from models.parts.interface import total
from models.parts.raw import Cascade
from models.systems import build, build_generator, find_systems, resolve
from tests.support.operators import normalised_maps
from tests.support.scans import scan


def test_the_four_are_found() -> None:
    assert {"dagan", "refinegan", "gancs", "reconglgan"} <= set(find_systems())
    assert "layers" not in find_systems()


def test_only_what_differs_is_given() -> None:
    config = {"system": "dagan", "generator": {"width": 4}, "g_optimiser": {"lr": {"start": 0.5}}, "losses": {"r1": 1}}
    found = resolve(config)
    assert found["preset"] == "raw"
    assert found["generator"]["width"] == 4
    assert found["generator"]["depth"] == 3
    assert found["g_optimiser"]["lr"]["start"] == 0.5
    assert found["g_optimiser"]["lr"]["kind"] == "cosine", "the rest of a nested section keeps its defaults"
    assert found["losses"]["r1"] == 1.0
    assert [t.name for t in build(config).d_terms] == ["adversarial", "r1"]


def test_a_term_of_weight_zero_is_gone_and_with_the_game_its_discriminator_loss() -> None:
    gan = build({"system": "dagan", "generator": {"width": 4}, "losses": {"adversarial": 0, "frequency": 0}})
    assert [t.name for t in gan.g_terms] == ["image"]
    assert gan.d_terms == ()


def test_inference_needs_no_perceptual_weights() -> None:
    assert isinstance(build_generator({"system": "dagan", "losses": {"perceptual": 1.0}}), dagan.DaganGenerator)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "system: unknown system 'None'; choose from dagan"),
        ({"system": "dagen"}, "unknown system 'dagen'"),
        ({"system": "dagan", "preset": "row"}, "preset: dagan has no preset 'row'; choose from raw, published"),
        ({"system": "dagan", "generatr": {}}, "configuration: unknown key 'generatr'; the keys are generator"),
        ({"system": "dagan", "generator": {"widht": 3}}, "generator: unknown key 'widht'; the keys are norm"),
        ({"system": "dagan", "losses": {"imagee": 3}}, "losses: unknown key 'imagee'; the keys are adversarial"),
        ({"system": "dagan", "losses": {"image": "1e-5"}}, "losses.image: expected float, got '1e-5'; write 1.0e-5"),
        ({"system": "dagan", "generator": {"width": 3.5}}, "generator.width: expected int, got 3.5"),
        ({"system": "dagan", "generator": {"width": True}}, "expected int, got True"),
        ({"system": "dagan", "generator": {"width": 0}}, "a U-Net needs width >= 1"),
        ({"system": "dagan", "generator": {"start": "zero"}}, "generator.start: got 'zero'; choose from sense, adjoint"),
        ({"system": "dagan", "generator": 7}, "generator: expected a section of keys and values, got 7"),
        ({"system": "dagan", "g_optimiser": {"betas": [0.5]}}, "g_optimiser.betas: expected"),
        ({"system": "dagan", "schedule": {"n_critic": 2}}, "unknown key .n_critic.; the key is now schedule.n_discriminator"),
        ({"system": "dagan", "schedule": {"order": "critic_first"}}, "choose from discriminator_first, simultaneous"),
        ({"system": "dagan", "g_optimiser": {"lr": {"kind": "step"}}}, "g_optimiser.lr: .*needs every >= 1"),
    ],
)
def test_what_is_not_known_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(config)


def test_lists_of_a_file_become_tuples_and_none_stays() -> None:
    gan = build({"system": "dagan", "generator": {"width": 4}, "g_optimiser": {"betas": [0.5, 1]}, "schedule": {"clip": None}})
    assert gan.g_optimiser.betas == (0.5, 1.0)
    assert gan.schedule.clip is None


def test_every_option_is_plain_data_in_the_config_of_the_gan() -> None:
    gan = build({"system": "refinegan", "generator": {"width": 4}})
    assert gan.config == resolve({"system": "refinegan", "generator": {"width": 4}})
    torch.manual_seed(3)
    a = build_generator(gan.config)
    torch.manual_seed(3)
    b = build_generator({"system": "refinegan", "generator": {"width": 4}})
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("system", list(find_systems()))
def test_every_loss_is_a_key_of_a_configuration(system: str) -> None:
    extra = dict.fromkeys(resolve({"system": system})["extra"], 0.1)
    off = {"adversarial": 0.0, "gradient_penalty": 1.0, "r1": 1.0}
    gan = build({"system": system, "generator": {"width": 4}, "extra": extra, "losses": off})
    y, op, target = scan()
    step = gan.step(y, op, target, number=10_000)
    _, values = total(gan.g_terms, step)
    assert {f"extra_{name}" for name in extra} <= set(values)
    assert all(value.isfinite() for value in values.values())
    assert [t.name for t in gan.d_terms] == ["adversarial", "gradient_penalty", "r1"], (
        "feature matching needs a discriminator that learns"
    )


def test_a_longer_chain_begins_as_the_shorter_one_with_more_data_consistency() -> None:
    """A chain of one network, continued to three: without data consistency the image stays the same, bit for bit."""
    settings: dict[str, Any] = {"width": 4, "depth": 2, "consistency": False}
    short, long = (build_generator({"system": "refinegan", "generator": {**settings, "chain": n}}).eval() for n in (1, 3))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in short.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    assert isinstance(long, Cascade)
    long.load_state_dict(long.lengthened(short.state_dict()))
    y = torch.randn(2, 16, 16, dtype=torch.complex64, generator=g)
    op = Sense(normalised_maps(2, 16, 16, dtype=torch.complex64), torch.ones(16, 1, dtype=torch.bool))
    with torch.no_grad():
        assert torch.equal(long(y, op), short(y, op))
        assert float(short(y, op).abs().max()) > 0
    assert long.networks[2].get_submodule("last").weight.abs().max() == 0
