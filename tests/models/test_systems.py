"""Finding systems and building them from plain options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kspace.errors import InputError
from kspace.operators import Sense
from models import dagan, kspacegan
from models.parts.interface import total
from models.parts.raw import Cascade
from models.systems import build, build_generator, find_systems, resolve
from tests.support.operators import normalised_maps
from tests.support.scans import scan


def test_the_systems_are_found() -> None:
    known = {"dagan", "refinegan", "gancs", "reconglgan", "dealiasing", "varnet", "kspacegan", "visual"}
    assert known <= set(find_systems())
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
        ({}, "system: unknown system 'None'; choose from csgm, dagan"),
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


@pytest.mark.parametrize("system", [name for name, found in find_systems().items() if "extra" in found["raw"].sections()])
def test_every_loss_is_a_key_of_a_configuration(system: str) -> None:
    extra = dict.fromkeys(resolve({"system": system})["extra"], 0.1)
    alone = not build({"system": system, "generator": {"width": 4}}).discriminators
    if alone:
        del extra["feature_matching"]
    off = {"adversarial": 0.0, "gradient_penalty": 1.0, "r1": 1.0}
    gan = build({"system": system, "generator": {"width": 4}, "extra": extra, "losses": off})
    y, op, target = scan()
    step = gan.step(y, op, target, number=10_000)
    _, values = total(gan.g_terms, step)
    assert {f"extra_{name}" for name in extra} <= set(values)
    assert all(value.isfinite() for value in values.values())
    assert [t.name for t in gan.d_terms][:3] == ([] if alone else ["adversarial", "gradient_penalty", "r1"]), (
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
    long.load_state_dict(long.adopted(short.state_dict()))
    y = torch.randn(2, 16, 16, dtype=torch.complex64, generator=g)
    op = Sense(normalised_maps(2, 16, 16, dtype=torch.complex64), torch.ones(16, 1, dtype=torch.bool))
    with torch.no_grad():
        assert torch.equal(long(y, op), short(y, op))
        assert float(short(y, op).abs().max()) > 0
    assert long.networks[2].get_submodule("last").weight.abs().max() == 0


def test_dealiasing_is_dagan_without_its_frequency_term() -> None:
    """So its generator takes DAGAN's weights."""
    terms = [t.name for t in build({"system": "dealiasing", "generator": {"width": 4}}).g_terms]
    assert terms == [t.name for t in build({"system": "dagan", "generator": {"width": 4}}).g_terms if t.name != "frequency"]
    theirs = build_generator({"system": "dagan"}).state_dict()
    assert {k: v.shape for k, v in build_generator({"system": "dealiasing"}).state_dict().items()} == {
        k: v.shape for k, v in theirs.items()
    }


def test_the_last_network_of_varnet_serves_all_further_unrolls() -> None:
    y, op, _ = scan(batch=(1,))
    config = {"system": "varnet", "generator": {"width": 4, "networks": 1, "unrolls": 3, "consistency": False}}
    generator: Any = build_generator(config)
    with torch.no_grad():
        generator.networks[0].last.bias.fill_(0.1)
    found = generator.intermediates(y, op)
    support = op.support * generator.scale(y, op)
    for k in range(3):
        moved = found[f"after_{k}"] - (found[f"after_{k - 1}"] if k else found["start"])
        torch.testing.assert_close(moved, 0.1 * (1 + 1j) * support, atol=1e-5, rtol=1e-4)
    assert not any(name.startswith("networks.1") for name in generator.state_dict())


def test_varnet_has_no_discriminator_and_refuses_an_adversarial_weight() -> None:
    assert build({"system": "varnet", "generator": {"width": 4}}).discriminators == ()
    with pytest.raises(InputError, match=r"losses.adversarial: this system has no discriminator; give the adversarial terms"):
        build({"system": "varnet", "generator": {"width": 4}, "losses": {"adversarial": 0.1}})
    with pytest.raises(InputError, match=r"unrolls must be at least networks"):
        build({"system": "varnet", "generator": {"networks": 5}})


def test_the_ramp_weights_the_centre_of_kspace_least() -> None:
    weight = kspacegan.ramp((6, 4), torch.zeros(1))
    assert weight.argmin() == 3 * 4 + 2, "at the origin, index n // 2"
    assert weight[3, 2].item() == pytest.approx(0.05)
    assert weight[0, 2].item() == pytest.approx((0.25 + 0.05**2) ** 0.5)
