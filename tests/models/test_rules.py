"""Rules that a system's declarations follow, each refused with a message that names the rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from kspace.operators import Sense
from models import dagan, systems
from models.parts.consistency import Observation
from models.parts.contract import ContractError, Preset
from models.parts.interface import Generator, LossTerm
from models.parts.raw import RawGenerator, RawGeneratorOptions, RawOptions

RAW = dagan.PRESETS["raw"]


class Scaled(Generator):
    """A complete generator of one weight."""

    homogeneous = False

    def __init__(self, options: RawGeneratorOptions = RawGeneratorOptions()) -> None:  # noqa: B008 - frozen
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        return {"image": op.adjoint(y)}

    def learned(self) -> list[nn.Module]:
        return [self.conv]


class Idle(Scaled):
    learned = Generator.learned  # type: ignore[assignment]


class Undeclared(Scaled):
    homogeneous = None  # type: ignore[assignment]


class TwoArguments(Scaled):
    def __init__(self, options: RawGeneratorOptions, width: int = 3) -> None:
        super().__init__(options)


class Hidden(Scaled):
    def learned(self) -> list[nn.Module]:
        return []


class Awake(RawGenerator):
    """A raw generator whose last layer does not start at zero."""

    def __init__(self, options: RawGeneratorOptions) -> None:
        super().__init__(options)
        self.conv = nn.Conv2d(2, 2, 1)

    def learned(self) -> list[nn.Module]:
        return [self.conv]

    def last_layers(self) -> list[nn.Module]:
        return [self.conv]

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        return {"image": start}


@dataclass
class Mutable:
    width: int = 3


@dataclass(frozen=True)
class Nested:
    generator: Any = RawGeneratorOptions()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class WithoutGenerator:
    losses: Any = RawGeneratorOptions()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Tensors:
    weight: Any = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": len}, "rule 'generator': `generator` is no class; derive one from models.Generator"),
        ({"generator": Idle}, r"test_rules.Idle: rule 'learned': `learned` is not defined"),
        ({"generator": Undeclared}, "Undeclared: rule 'homogeneous': the class attribute is missing"),
        ({"generator": TwoArguments}, "TwoArguments: rule 'constructor': it takes other arguments than `options`"),
        ({"options": Mutable()}, "Mutable: rule 'options': the options are no frozen dataclass"),
        ({"options": WithoutGenerator()}, "WithoutGenerator: rule 'options': there is no section `generator`; add that field"),
        ({"options": Nested(Mutable())}, "rule 'options': section `generator` is no frozen dataclass"),
        ({"options": Nested(Tensors([3]))}, r"rule 'plain options': `generator.weight` holds \[3\]; use numbers"),
    ],
)
def test_a_preset_is_checked_where_it_is_declared(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        replace(RAW, **change)


@pytest.mark.parametrize(
    ("presets", "message"),
    [
        ({}, "models.mine.PRESETS: rule 'raw preset': there is no preset called `raw`"),
        ({"raw": dagan.PRESETS["published"]}, "rule 'raw generator': that of `raw` is none; derive it from models.parts.raw"),
        (
            {"raw": replace(RAW, options=Nested())},
            "rule 'raw options': those of `raw` are none; derive them from models.parts.raw",
        ),
        ({"raw": replace(RAW, narrow={"generator": {"widht": 3}})}, "rule 'narrow': no configuration .*unknown key 'widht'"),
    ],
)
def test_a_system_is_checked_where_it_is_found(presets: dict[str, Preset], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        systems.check_presets("mine", presets)


@pytest.mark.parametrize("name", ["forward", "scale", "intermediates"])
def test_scaling_is_not_a_systems_own(name: str) -> None:
    with pytest.raises(ContractError, match=f"Own: rule 'scaling': a raw generator defines `{name}`; define `refine`"):
        type("Own", (Awake,), {name: lambda self, y, op: y})


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (Hidden, r"Hidden: rule 'learned': `conv.weight` is in none of `learned\(\)`; add its module"),
        (Awake, r"Awake: rule 'zero start': Conv2d.* does not start at zero; use models.parts.layers.zero_last"),
    ],
)
def test_a_network_is_checked_when_it_is_built(
    generator: type[Generator], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = Preset("Mine", generator, dagan.raw, RawOptions(), {})
    monkeypatch.setattr(systems, "find_systems", lambda: {"mine": {"raw": preset}})
    with pytest.raises(ContractError, match=message):
        systems.build_generator({"system": "mine"})


def test_terms_of_one_name_are_refused() -> None:
    gan = systems.build({"system": "dagan", "generator": {"width": 4}})
    twice = LossTerm("image", 1.0, lambda step: torch.zeros(()))
    with pytest.raises(ValueError, match="g_terms: two terms are called 'image'"):
        replace(gan, g_terms=(*gan.g_terms, twice))


def test_every_exported_name_exists_and_none_other_is_invented() -> None:
    exported = [name for name in models.__all__ if name != "__version__"]
    assert all(getattr(models, name).__name__ == name for name in exported)
    assert set(models.__all__) <= set(dir(models))
    with pytest.raises(AttributeError, match="module 'models' has no attribute 'Generater'"):
        _ = models.Generater  # type: ignore[attr-defined]
