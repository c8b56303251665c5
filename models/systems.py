"""Find the systems in this package and build them from plain options, as a YAML file or a weights card holds them.

A configuration is a mapping::

    system: refinegan          # a module of this package that has PRESETS
    preset: raw                # one of them; raw by default
    generator: {width: 32}     # keyword options of the preset's generator
    losses: {adversarial: 0}   # and one section for each keyword of its `gan`

Only what differs from the defaults in the code is given. Unknown keys, and values of the wrong type, are refused.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import models
from kspace.errors import InputError
from models.interface import Gan, Generator, Preset


@cache
def find_systems() -> Mapping[str, Mapping[str, Preset]]:
    """Every module of this package that has ``PRESETS``, by name."""
    found: dict[str, Mapping[str, Preset]] = {}
    for info in sorted(pkgutil.iter_modules(models.__path__), key=lambda info: info.name):
        presets = getattr(importlib.import_module(f"models.{info.name}"), "PRESETS", None)
        if presets is not None:
            found[info.name] = presets
    return found


def build_generator(config: Mapping[str, Any]) -> Generator:
    """The generator alone: what inference needs, without critics, loss terms or their weights."""
    preset = _preset(config)
    return preset.generator(**_generator_options(preset, config))


def build(config: Mapping[str, Any]) -> Gan:
    """The whole system; its `config` holds every option, resolved.

    Raises
    ------
    InputError
        If a name, key or value is not one that the system knows, or a loss needs weights that are not to be had.
    """
    preset = _preset(config)
    options, sections = _generator_options(preset, config), _sections(preset, config)
    gan = preset.gan(_construct(preset.generator, options), **sections)
    return replace(gan, config=resolve(config))


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with every default filled in, as plain data."""
    preset = _preset(config)
    sections = {name: asdict(section) for name, section in _sections(preset, config).items()}
    options = _generator_options(preset, config)
    return {"system": config["system"], "preset": config.get("preset", "raw"), "generator": options, **sections}


def _construct(make: Callable[..., Generator], options: Mapping[str, Any]) -> Generator:
    try:
        return make(**options)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error), "generator") from error


def _preset(config: Mapping[str, Any]) -> Preset:
    systems = find_systems()
    name, preset = str(config.get("system")), config.get("preset", "raw")
    if name not in systems:
        raise InputError(f"unknown system {name!r}", "system", f"choose from {', '.join(systems)}")
    if preset not in systems[name]:
        raise InputError(f"{name} has no preset {preset!r}", "preset", f"choose from {', '.join(systems[name])}")
    return systems[name][preset]


def _generator_options(preset: Preset, config: Mapping[str, Any]) -> dict[str, Any]:
    given = _mapping(config.get("generator"), "generator")
    known = _keywords(preset.generator)
    hints = get_type_hints(preset.generator.__init__ if inspect.isclass(preset.generator) else preset.generator)
    _refuse_unknown(given, known, "generator")
    return {k: _convert(given[k], hints[k], f"generator.{k}") if k in given else default for k, default in known.items()}


def _sections(preset: Preset, config: Mapping[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in _keywords(preset.gan).items() if is_dataclass(v)}
    given = {k: v for k, v in config.items() if k not in ("system", "preset", "generator")}
    _refuse_unknown(given, known, "the configuration")
    return {k: _override(default, _mapping(given.get(k), k), k) for k, default in known.items()}


def _keywords(make: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"expected a section of keys and values, got {value!r}", where)
    return value


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    unknown = [k for k in given if k not in known]
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}", where, f"the keys are {', '.join(known)}")


def _override(default: Any, given: Mapping[str, Any], where: str) -> Any:
    _refuse_unknown(given, {f.name: f for f in fields(default)}, where)
    hints = get_type_hints(type(default))
    changes = {}
    for key, value in given.items():
        current, path = getattr(default, key), f"{where}.{key}"
        if is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = _override(current, value, path)
        else:
            changes[key] = _convert(value, hints[key], path)
    try:
        return replace(default, **changes)
    except ValueError as error:
        raise InputError(str(error), where) from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` asks for, without ever guessing: text is not a number, a number is not a truth value."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise InputError(f"got {value!r}", where, f"choose from {', '.join(map(str, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    # PyYAML takes 1e-5 for text, as it follows YAML 1.1 to the letter.
    hint_text = "write 1.0e-5 where you mean 1e-5" if hint is float and isinstance(value, str) else None
    raise InputError(f"expected {getattr(hint, '__name__', hint)}, got {value!r}", where, hint_text)


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    others = [a for a in arguments if a is not type(None)]
    if len(others) != 1:
        raise TypeError(f"{where}: only one type beside None can be told apart")
    return _convert(value, others[0], where)
