"""Discovery of the systems in this package, and their construction from plain options (YAML file or card of weights).

A configuration is a mapping::

    system: refinegan          # a module of this package that has PRESETS
    preset: raw                # one of them; raw by default
    generator: {width: 32}     # one section for each field of the preset's options
    losses: {adversarial: 0}

It holds only what differs from the defaults in the code. Unknown keys, and values of the wrong type, are refused.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import models
from kspace.errors import InputError
from models.parts.consistency import Consistency
from models.parts.contract import ContractError, Preset
from models.parts.interface import Gan, Generator
from models.parts.latent import PriorGenerator
from models.parts.raw import RawGenerator, RawOptions

# Former keys, refused with the name of the new one.
RENAMED = {"schedule.n_critic": "schedule.n_discriminator"}


_ADDED: dict[str, Mapping[str, Preset]] = {}


def find_systems() -> Mapping[str, Mapping[str, Preset]]:
    """Every module of this package that has ``PRESETS``, and every system that was registered, by name.

    Raises
    ------
    ContractError
        If a system breaks a rule of the interface.
    """
    return {**_scan(), **_ADDED}


def register(name: str, presets: Mapping[str, Preset]) -> None:
    """Add a system from outside this package, under `name`.

    Raises
    ------
    ContractError
        If it breaks a rule of the interface, or the name is taken.
    """
    check_presets(name, presets)
    if name in find_systems():
        raise ContractError(f"models.systems.register({name!r})", "name", "there is a system of that name", "choose another")
    _ADDED[name] = presets


@cache
def _scan() -> Mapping[str, Mapping[str, Preset]]:
    found: dict[str, Mapping[str, Preset]] = {}
    for info in sorted(pkgutil.iter_modules(models.__path__), key=lambda info: info.name):
        presets = getattr(importlib.import_module(f"models.{info.name}"), "PRESETS", None)
        if presets is not None:
            check_presets(info.name, presets)
            found[info.name] = presets
    return found


def check_presets(name: str, presets: Mapping[str, Preset]) -> None:
    """Check the declarations of the system called `name`.

    Raises
    ------
    ContractError
        If there is no raw preset, it is none, or ``narrow`` is no configuration.
    """
    where = f"models.{name}.PRESETS"
    if "raw" not in presets:
        raise ContractError(where, "raw preset", "there is no preset called `raw`", "add one for complex multi-coil data")
    raw = presets["raw"]
    is_prior = issubclass(raw.generator, PriorGenerator)  # unconditional: its loss terms know no target
    if not (is_prior or issubclass(raw.generator, RawGenerator)):
        raise ContractError(where, "raw generator", "that of `raw` is none", "derive it from models.parts.raw.RawGenerator")
    if not (is_prior or isinstance(raw.options, RawOptions)):
        raise ContractError(where, "raw options", "those of `raw` are none", "derive them from models.parts.raw.RawOptions")
    for preset in presets.values():
        try:
            _options(preset, preset.narrow)
        except InputError as error:
            raise ContractError(where, "narrow", f"no configuration ({error})", "name sections and options") from error


def build_generator(config: Mapping[str, Any]) -> Generator:
    """Construct the generator alone, for inference: without discriminators, loss terms and their external weights.

    Only ``system``, ``preset`` and ``generator`` of the configuration are read.
    """
    preset = _preset(config)
    return _construct(preset, _section(preset, config, "generator"))


def build(config: Mapping[str, Any]) -> Gan:
    """Construct the whole system; its `config` holds every option, resolved.

    Raises
    ------
    InputError
        If a name, key or value is unknown, or a loss needs weights that are absent.
    ContractError
        If the system breaks a rule of the interface.
    """
    preset = _preset(config)
    options = _options(preset, _given(config))
    gan = preset.gan(_construct(preset, options.generator), options)
    return replace(gan, config=resolve(config))


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in every default, as plain data."""
    options = _options(_preset(config), _given(config))
    return {"system": config["system"], "preset": config.get("preset", "raw"), **asdict(options)}


def renamed(text: str) -> str | None:
    """Fix for a message that mentions a former key: the name of the new one; None where it mentions none."""
    words = set(re.findall(r"\w+", text))
    return next((f"the key is now {new}" for old, new in RENAMED.items() if old.rpartition(".")[2] in words), None)


def _construct(preset: Preset, options: Any) -> Generator:
    make: Any = preset.generator
    try:
        generator: Generator = make(options)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error), "generator") from error
    _check_network(generator)
    return generator


def _check_network(generator: Generator) -> None:
    """Refuse a network that breaks a rule which shows only once it is constructed."""
    where = f"{type(generator).__module__}.{type(generator).__qualname__}"
    blocks = [m for m in generator.modules() if isinstance(m, Consistency)]
    known = {id(p) for module in (*generator.learned(), *blocks) for p in module.parameters()}
    if other := [name for name, p in generator.named_parameters() if id(p) not in known]:
        raise ContractError(where, "learned", f"`{other[0]}` is in none of `learned()`", "add its module to that list")
    if isinstance(generator, RawGenerator):
        for layer in generator.last_layers():
            if any(not p.is_meta and bool(p.detach().any()) for p in layer.parameters()):
                raise ContractError(where, "zero start", f"{layer} does not start at zero", "use models.parts.layers.zero_last")


def _preset(config: Mapping[str, Any]) -> Preset:
    systems = find_systems()
    name, preset = str(config.get("system")), config.get("preset", "raw")
    if name not in systems:
        raise InputError(f"unknown system {name!r}", "system", f"choose from {', '.join(systems)}")
    if preset not in systems[name]:
        raise InputError(f"{name} has no preset {preset!r}", "preset", f"choose from {', '.join(systems[name])}")
    return systems[name][preset]


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("system", "preset")}


def _options(preset: Preset, given: Mapping[str, Any]) -> Any:
    known = preset.sections()
    _refuse_unknown(given, known, "configuration")
    return replace(preset.options, **{name: _section(preset, given, name) for name in known})


def _section(preset: Preset, given: Mapping[str, Any], name: str) -> Any:
    return _override(preset.sections()[name], _mapping(given.get(name), name), name)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"expected a section of keys and values, got {value!r}", where)
    return value


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    unknown = [k for k in given if k not in known]
    if unknown:
        if new := RENAMED.get(f"{where}.{unknown[0]}"):
            raise InputError(f"unknown key {unknown[0]!r}", where, f"the key is now {new}")
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
    """Convert `value` to the type `hint` without guessing: text is no number, and a number is no truth value."""
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
    # PyYAML reads 1e-5 as text, as YAML 1.1 demands.
    hint_text = "write 1.0e-5 where you mean 1e-5" if hint is float and isinstance(value, str) else None
    raise InputError(f"expected {getattr(hint, '__name__', hint)}, got {value!r}", where, hint_text)


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    others = [a for a in arguments if a is not type(None)]
    if len(others) != 1:
        raise TypeError(f"{where}: only one type beside None can be told apart")
    return _convert(value, others[0], where)
