"""Generators, discriminators and losses of published GAN reconstructions. A network sees no file, header or configuration."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kspace import __version__

if TYPE_CHECKING:
    from models.parts.contract import ContractError, Preset
    from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, Step, total
    from models.parts.raw import RawGenerator, RawGeneratorOptions, RawLosses, RawOptions
    from models.systems import build, build_generator, find_systems, resolve

_HOMES = {
    "parts.contract": ("ContractError", "Preset"),
    "parts.interface": (
        *("Discriminator", "Gan", "Generator", "LearningRate", "LossTerm"),
        *("Optimiser", "Schedule", "Step", "total"),
    ),
    "parts.raw": ("RawGenerator", "RawGeneratorOptions", "RawLosses", "RawOptions"),
    "systems": ("build", "build_generator", "find_systems", "resolve"),
}

__all__ = [
    "ContractError",
    "Discriminator",
    "Gan",
    "Generator",
    "LearningRate",
    "LossTerm",
    "Optimiser",
    "Preset",
    "RawGenerator",
    "RawGeneratorOptions",
    "RawLosses",
    "RawOptions",
    "Schedule",
    "Step",
    "__version__",
    "build",
    "build_generator",
    "find_systems",
    "resolve",
    "total",
]


def __getattr__(name: str) -> Any:
    # PEP 562: PyTorch is imported with the first name that needs it, not with the package.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"models.{home}"), name)
    raise AttributeError(f"module 'models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
