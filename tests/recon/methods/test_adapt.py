"""Scan-specific adaptation: acquired samples only, resumable, deterministic, and no change to the weights that were given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import fft
from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.methods import generator
from recon.methods.adaptation.adapt import SHARE, Recipe, State, adapt, adapted_parameters
from recon.methods.adaptation.state import digest_of, read_state, write_state
from recon.methods.generator import GeneratorReconstructor
from tests.support.scans import coil_maps, ellipses

SHAPE = (48, 40)
RECIPE = Recipe(seconds=1e6, steps=6, rate=3e-3, check=2)


def scan(mask: str = "poisson2d:3,centre=12", seed: int = 0) -> tuple[Tensor, Sense]:
    truth, maps = ellipses(SHAPE, seed), coil_maps(4, SHAPE)
    op = Sense(maps, MaskSpec.parse(mask).draw(SHAPE, "scan"), 0.02)
    noise = 0.02 * torch.randn(4, *SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return op.mask * (fft(maps * truth) + noise), op


@pytest.fixture(scope="module")
def network() -> GeneratorReconstructor:
    """Bundled weights whose last layers are wrong for every scan."""
    made = generator.load("gancs")
    with torch.no_grad():
        for layer in made.generator.last_layers():
            for p in layer.parameters():
                p.mul_(0.5)
    return made


def state_of(made: GeneratorReconstructor) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in made.generator.state_dict().items()}


def test_adaptation_predicts_unused_samples_better_and_leaves_the_given_weights(network: GeneratorReconstructor) -> None:
    before, cases = state_of(network), [scan()]
    found = adapt(network, cases, RECIPE)
    assert found.state is not None
    assert found.state.errors[found.state.best_step] < 0.98 * found.state.errors[0]
    assert all(torch.equal(x, before[name]) for name, x in network.generator.state_dict().items())
    after = found.network.generator.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert changed <= set(adapted_parameters(network))
    total = sum(x.numel() for x in before.values())
    assert sum(before[name].numel() for name in changed) <= SHARE * total
    assert "adapted to the scan" in found.says


def test_what_was_not_acquired_changes_nothing(network: GeneratorReconstructor) -> None:
    y, op = scan()
    other = torch.where(op.mask, y, 7 + 3j)
    short = replace(RECIPE, steps=2)
    ours, theirs = adapt(network, [(y, op)], short), adapt(network, [(other, op)], short)
    for name, x in ours.network.generator.state_dict().items():
        assert torch.equal(x, theirs.network.generator.state_dict()[name])


def test_adaptation_goes_on_from_its_file_as_if_it_had_not_stopped(network: GeneratorReconstructor, tmp_path: Path) -> None:
    cases = [scan()]
    once = adapt(network, cases, replace(RECIPE, steps=4))
    first = adapt(network, cases, replace(RECIPE, steps=2))
    digest = digest_of(cases, network.sha256, RECIPE)
    path = tmp_path / "a.adaptation"
    assert first.state is not None
    write_state(path, first.state, digest)
    second = adapt(network, cases, replace(RECIPE, steps=4), read_state(path, digest))
    assert second.state is not None
    assert once.state is not None
    assert second.state.errors == once.state.errors
    for name, x in once.network.generator.state_dict().items():
        assert torch.equal(x, second.network.generator.state_dict()[name])


def test_a_scaled_scan_is_adapted_alike(network: GeneratorReconstructor) -> None:
    y, op = scan()
    ours = adapt(network, [(y, op)], replace(RECIPE, steps=2))
    theirs = adapt(network, [(8 * y, replace(op, noise_std=8 * op.noise_std))], replace(RECIPE, steps=2))
    image, scaled = ours.network(y, op), theirs.network(8 * y, replace(op, noise_std=8 * op.noise_std))
    assert float((scaled / 8 - image).abs().max()) < 1e-4 * float(image.abs().max())


def test_the_time_limit_ends_it_between_steps(network: GeneratorReconstructor) -> None:
    now = iter(float(i) for i in range(100))
    found = adapt(network, [scan()], replace(RECIPE, seconds=2.5), clock=lambda: next(now))
    assert found.state is not None
    assert found.state.step == 2
    assert found.why == "time limit"


def test_a_scan_with_few_lines_is_not_adapted(network: GeneratorReconstructor) -> None:
    found = adapt(network, [scan("random1d:8")], RECIPE)
    assert found.network is network
    assert found.state is None
    assert "fewer than 20 lines or points" in found.says


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"x" * 100])
def test_a_file_that_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.adaptation"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.adaptation: damaged, or no state of an adaptation; delete it"):
        read_state(path, "")


def test_the_state_of_another_scan_is_refused(network: GeneratorReconstructor, tmp_path: Path) -> None:
    path = tmp_path / "a.adaptation"
    write_state(path, State(errors={0: 1.0}), digest_of([scan()], network.sha256, RECIPE))
    with pytest.raises(InputError, match="another scan, other weights or another recipe"):
        read_state(path, digest_of([scan(seed=1)], network.sha256, RECIPE))
