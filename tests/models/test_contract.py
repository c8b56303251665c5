"""Contract of every system, found automatically: a new file in models/ with its YAML in configs/ is tested as it is.

The rules stand in docs/EXTENDING.md under the names that the assertions give; declarations are checked at import
(tests/models/test_rules.py).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from kspace.operators import Sense
from models.parts.consistency import Observation, starting_image
from models.parts.interface import Gan, Generator, total
from models.parts.raw import RawGenerator
from models.systems import build, build_generator, find_systems, resolve
from tests.conftest import ROOT
from tests.support.scans import scan

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
RAW = [name for name, presets in find_systems().items() if issubclass(presets["raw"].generator, RawGenerator)]
PUBLISHED = [name for name, presets in find_systems().items() if "published" in presets]


def small(system: str, preset: str = "raw", **sections: Any) -> dict[str, Any]:
    """The narrow variant that the preset declares, with other `sections`."""
    narrow = find_systems()[system][preset].narrow
    config: dict[str, Any] = {"system": system, "preset": preset, **narrow}
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return config


def published_scan(system: str, batch: tuple[int, ...] = (1,)) -> tuple[Tensor, Sense, Tensor]:
    size = find_systems()[system]["published"].size or 32
    return scan((size, size), n_coils=1, batch=batch)


def shake(networks: Iterable[nn.Module], by: float = 0.05) -> None:
    """Perturb the weights: an untrained raw generator is SENSE, and would pass any test that SENSE passes."""
    with torch.no_grad():
        for p in (p for network in networks for p in network.parameters()):
            p.add_(by * torch.randn_like(p))


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def play(gan: Gan, y: Tensor, op: Sense, target: Tensor, steps: int) -> list[dict[str, Tensor]]:
    """Training loop without a system's name."""
    d_opt = gan.d_optimiser.build(p for d in gan.discriminators for p in d.parameters()) if gan.discriminators else None
    g_opt = gan.g_optimiser.build(gan.generator.parameters())
    log = []
    for n in range(steps):
        step = gan.step(y, op, target, number=n)
        loss, d_values = total(gan.d_terms, step)
        if d_opt is not None and gan.d_terms:
            d_opt.zero_grad()
            loss.backward()
            d_opt.step()
            for d in gan.discriminators:
                gan.schedule.clamp(d)
        loss, g_values = total(gan.g_terms, step)
        g_opt.zero_grad()
        loss.backward()
        g_opt.step()
        log.append({**d_values, **g_values})
    return log


def has_gradient(network: nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


# --------------------------------------------------------------------------------------------------------------- raw presets


@pytest.mark.parametrize("system", RAW)
@pytest.mark.parametrize(
    ("shape", "n_coils", "batch", "lines"),
    [((32, 24), 3, (2,), True), ((33, 27), 1, (), False), ((21, 40), 5, (1, 2), False), ((17, 15), 2, (1,), True)],
)
def test_any_matrix_coil_count_and_mask(system: str, shape: tuple[int, int], n_coils: int, batch: tuple, lines: bool) -> None:
    generator = build_generator(small(system))
    shake([generator])
    y, op, target = scan(shape, n_coils, batch, lines)
    image = generator(y, op)
    assert image.shape == target.shape
    assert image.dtype == torch.complex64
    assert torch.view_as_real(image).isfinite().all()


@pytest.mark.parametrize("system", RAW)
def test_homogeneous_in_the_data(system: str) -> None:
    generator = build_generator(small(system))
    shake([generator])
    y, op, _ = scan()
    image = generator(y, op)
    assert distance(image, starting_image(Observation.of(y, op), "sense", 0.01, 1e-3)) > 1e-2, (
        "perturbed, the network must change the image"
    )
    for c in (1e-6, 3.0, 1e6):
        assert distance(generator(c * y, op) / c, image) < 1e-4


@pytest.mark.parametrize("system", RAW)
def test_slices_do_not_see_each_other_and_a_slice_of_zeros_stays_finite(system: str) -> None:
    generator = build_generator(small(system))
    shake([generator])
    y, op, _ = scan(batch=(3,))
    y = torch.cat([y[:2] * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1), torch.zeros_like(y[:1])])
    together = generator(y, op)
    assert torch.view_as_real(together).isfinite().all()
    assert together[2].abs().max() == 0, "rule 'zeros': a slice of zeros gives an image of zeros"
    for k in range(2):
        alone = generator(y[k], Sense(op.maps[k], op.mask))
        assert distance(alone, together[k]) < 1e-4


@pytest.mark.parametrize("system", RAW)
def test_losses_of_a_slice_of_zeros_and_their_gradients_stay_finite(system: str) -> None:
    gan = build(small(system))
    y, op, target = scan()
    y, target = y.clone(), target.clone()
    y[0], target[0] = 0, 0
    log = play(gan, y, op, target, 2)
    assert all(value.isfinite() for values in log for value in values.values())
    assert all(p.isfinite().all() for p in gan.generator.parameters())
    assert all(p.isfinite().all() for d in gan.discriminators for p in d.parameters())


@pytest.mark.parametrize("system", RAW)
def test_a_slice_of_zeros_gives_zeros(system: str) -> None:
    generator = build_generator(small(system))
    shake([generator])
    y, op, _ = scan(batch=(2,))
    y[1] = 0
    image = generator(y, op)
    assert image[0].abs().max() > 0
    assert image[1].abs().max() == 0, "rule 'zeros': the biases of a network are no anatomy"


@pytest.mark.parametrize("system", RAW)
def test_untrained_it_is_sense(system: str) -> None:
    y, op, _ = scan(noise=0.01)
    sense = starting_image(Observation.of(y, op), "sense", 0.02, 1e-3)
    without = build_generator(small(system, generator={"consistency": False}))
    assert distance(without(y, op), sense) < 1e-5, "rule 'zero start': untrained, it returns its starting image"
    # With data consistency it is one more regularised solve around SENSE, which moves it little where lamda is larger.
    assert distance(build_generator(small(system))(y, op), sense) < 0.1
    zero_filled = build_generator(small(system, generator={"consistency": False, "start": "adjoint"}))
    assert distance(zero_filled(y, op), op.adjoint(y)) < 1e-5


@pytest.mark.parametrize("system", RAW)
def test_single_coil_consistency_keeps_the_measured_samples(system: str) -> None:
    generator = build_generator(small(system, generator={"lamda": 1e-3, "tolerance": 1e-6}))
    shake(generator.learned())
    y, op, _ = scan(n_coils=1, lines=False)
    assert distance(op.forward(generator(y, op)), y) < 5e-3


@pytest.mark.parametrize("system", RAW)
def test_nothing_of_the_scan_enters_the_state(system: str) -> None:
    generator = build_generator(small(system))
    before = {k: v.shape for k, v in generator.state_dict().items()}
    y, op, _ = scan()
    generator(y, op)
    assert {k: v.shape for k, v in generator.state_dict().items()} == before
    assert not any(word in key for key in before for word in ("map", "mask", "coil"))
    assert all(v.shape[-2:] != y.shape[-2:] for v in generator.state_dict().values() if v.ndim >= 2)


@pytest.mark.parametrize("system", RAW)
def test_an_unacquired_sample_changes_nothing(system: str) -> None:
    generator = build_generator(small(system))
    shake([generator])
    y, op, _ = scan()
    image = generator(y, op)
    assert distance(generator(y + 7 * ~op.mask, op), image) < 1e-6


@pytest.mark.parametrize("system", RAW)
def test_a_few_steps_gain_on_sense(system: str) -> None:
    config = small(system, g_optimiser={"lr": {"warm_up": 0}})
    # Full width; a lamda that the conditions of this scan, little noise and 1-D undersampling, bring to about 0.1.
    gan = build({**config, "generator": {"lamda": 0.3}})
    y, op, target = scan(batch=(2,), noise=0.03)
    before = distance(starting_image(Observation.of(y, op), "sense", 0.01, 1e-3), target)
    log = play(gan, y, op, target, 25)
    after = distance(gan.generator(y, op), target)
    assert after < 0.8 * before, f"overfitting two slices: {before:.3f} -> {after:.3f}"
    image = gan.g_terms[0].name
    assert log[-1][image] < log[0][image], "rule 'first term': it is that of image fidelity"


# ------------------------------------------------------------------------------------------------------------- every preset


def cases() -> list[tuple[str, str]]:
    return [(name, preset) for name, presets in find_systems().items() for preset in presets]


@pytest.mark.parametrize(("system", "preset"), cases())
def test_terms_reach_only_their_own_network(system: str, preset: str) -> None:
    gan = build(small(system, preset))
    shake([gan.generator], 0.01)
    y, op, target = scan() if preset == "raw" else published_scan(system)
    step = gan.step(y, op, target, number=5000)
    assert step.image.requires_grad, "the image is handed over undetached on purpose"
    discriminators = nn.ModuleList(gan.discriminators)
    trained = [p.requires_grad for p in discriminators.parameters()]
    for term in gan.d_terms:
        gan.generator.zero_grad()
        discriminators.zero_grad()
        value = term.fn(step)
        assert value.shape == ()
        value.backward(retain_graph=True)
        assert has_gradient(discriminators), f"{term.name} must train the discriminators"
        assert not has_gradient(gan.generator), f"rule 'gradients': {term.name} leaks into the generator"
    for term in gan.g_terms:
        gan.generator.zero_grad()
        discriminators.zero_grad()
        value = term.fn(step)
        assert value.shape == ()
        value.backward(retain_graph=True)
        assert has_gradient(gan.generator) or value == 0, f"{term.name} must train the generator"
        assert not has_gradient(discriminators), f"rule 'gradients': {term.name} leaks into the discriminators"
    assert [p.requires_grad for p in discriminators.parameters()] == trained, "frozen for a generator term only"


@pytest.mark.parametrize(("system", "preset"), cases())
def test_two_steps_move_both_networks_and_reloading_reconstructs_identically(system: str, preset: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = small(system, preset)
    gan = build(config)
    y, op, target = scan() if preset == "raw" else published_scan(system)
    before = [[p.detach().clone() for p in network.parameters()] for network in (gan.generator, *gan.discriminators)]
    log = play(gan, y, op, target, 2)
    for network, old in zip((gan.generator, *gan.discriminators), before, strict=True):
        assert any((p - q).abs().max() > 0 for p, q in zip(network.parameters(), old, strict=True))
    assert all(value.isfinite() for values in log for value in values.values())

    save_file(gan.generator.state_dict(), tmp_path / "weights.safetensors")
    card = json.loads(json.dumps(dict(gan.config)))
    again = build_generator(card)
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    a, b = gan.generator.eval()(y, op), again.eval()(y, op)
    assert torch.equal(a, b)


@pytest.mark.parametrize(("system", "preset"), cases())
def test_the_resolved_configuration_makes_the_same_system_again(system: str, preset: str) -> None:
    config = small(system, preset)
    once = resolve(config)
    assert resolve(json.loads(json.dumps(once))) == once


@pytest.mark.parametrize(("system", "preset"), cases())
def test_the_metric_convention_of_the_paper_is_known(system: str, preset: str) -> None:
    from recon.metrics.image import CONVENTIONS

    convention = find_systems()[system][preset].convention
    assert convention is None or convention in CONVENTIONS


@pytest.mark.parametrize("system", PUBLISHED)
def test_published_presets_answer_with_an_image_of_their_size(system: str) -> None:
    generator = build_generator(small(system, "published"))
    assert isinstance(generator, Generator)
    y, op, target = published_scan(system)
    image = generator(y, op)
    assert image.shape == target.shape
    assert image.dtype == torch.complex64
    assert torch.view_as_real(image).isfinite().all()
    zeros = generator(torch.zeros_like(y), op)
    assert torch.view_as_real(zeros).isfinite().all()
    assert torch.equal(generator.scale(y, op), torch.ones(1, 1, 1)), "a published preset keeps its range"


# ------------------------------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_trains_two_steps(path: Path) -> None:
    gan = build(yaml.safe_load(path.read_text()))
    y, op, target = scan()
    log = play(gan, y, op, target, 2)
    assert all(value.isfinite() for values in log for value in values.values())


def test_every_system_has_a_configuration() -> None:
    assert {p.stem for p in CONFIGS} >= set(find_systems()), "rule 'configuration': configs/<system>.yaml"


@pytest.mark.parametrize("system", RAW)
def test_raw_generators_can_be_made_small_enough_for_a_cpu(system: str) -> None:
    with torch.device("meta"):
        default = sum(p.numel() for p in build_generator({"system": system}).parameters())
        tiny = sum(p.numel() for p in build_generator(small(system)).parameters())
    assert default < 3.5e6
    assert tiny < default / 3


@pytest.mark.parametrize("system", RAW)
def test_half_precision_stays_inside_the_networks(system: str) -> None:
    generator = build_generator(small(system))
    y, op, _ = scan()
    full = generator(y, op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = generator(y, op)
    assert image.dtype == torch.complex64
    assert distance(image, full) < 1e-5, "untrained, only Fourier transforms and solves contribute"
    shake([generator])
    full = generator(y, op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance(generator(y, op), full) < 0.05


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_examples_in_the_comments_of_a_configuration_work(path: Path) -> None:
    system = yaml.safe_load(path.read_text())["system"]
    for example in re.findall(r"(?m)^#.*?(\w+: \{.*?\})", path.read_text()):
        section = yaml.safe_load(example)
        preset = "published" if any("variant" in v for v in section.values()) else "raw"
        resolve({"system": system, "preset": preset, **section})


@pytest.mark.parametrize(("system", "preset"), cases())
def test_spawned_training_processes_can_be_handed_the_system(system: str, preset: str) -> None:
    gan = build(small(system, preset))
    again = pickle.loads(pickle.dumps(gan))  # noqa: S301 - our own bytes, as torch.multiprocessing sends them
    assert [t.name for t in again.g_terms] == [t.name for t in gan.g_terms]
