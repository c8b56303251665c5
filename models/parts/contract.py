"""Declarations of a system and the rules that they follow, checked when its module is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from models.parts.interface import Gan, Generator


class ContractError(TypeError):
    """A system breaks a rule of the interface; the message names the place, the rule and the fix."""

    def __init__(self, where: str, rule: str, broken: str, fix: str) -> None:
        super().__init__(f"{where}: rule '{rule}': {broken}; {fix} (docs/EXTENDING.md)")


@dataclass(frozen=True)
class Preset:
    """Variant of a system, found by `models.systems` in the module's ``PRESETS``.

    Attributes
    ----------
    label
        Name of the system in tables and figures.
    generator
        Class of the generator, which is constructed from `options.generator`.
    gan
        Assembles the system from its generator and options of the type of `options`.
    options
        Default options: a frozen dataclass whose fields are the sections of a configuration, each a frozen dataclass of plain
        values. One of them is ``generator``.
    narrow
        Sections, as in a configuration, that make a network of few parameters without losses that need external weights: the
        variant that tests and examples build.
    size
        Matrix ``(size, size)`` that a published preset requires; None for any.
    convention
        Name of the metric convention of the paper (`recon evaluate --metrics`), or None.

    Raises
    ------
    ContractError
        If a declaration breaks a rule.
    """

    label: str
    generator: type[Generator]
    gan: Callable[[Any, Any], Gan]
    options: Any
    narrow: Mapping[str, Any]
    size: int | None = None
    convention: str | None = None

    def __post_init__(self) -> None:
        _check_generator(self.generator)
        _check_options(self.options)

    def sections(self) -> dict[str, Any]:
        """Default of each section of a configuration, by name."""
        return {f.name: getattr(self.options, f.name) for f in fields(self.options)}


def _check_generator(cls: Any) -> None:
    if not (inspect.isclass(cls) and issubclass(cls, Generator)):
        raise ContractError(f"Preset {cls!r}", "generator", "`generator` is no class", "derive one from models.Generator")
    where = f"{cls.__module__}.{cls.__qualname__}"
    if missing := sorted(cls.__abstractmethods__):
        raise ContractError(where, missing[0], f"`{missing[0]}` is not defined", "define it as `models.Generator` says")
    if not isinstance(getattr(cls, "homogeneous", None), bool):
        raise ContractError(where, "homogeneous", "the class attribute is missing", "write `homogeneous = True` or `= False`")
    if list(inspect.signature(cls).parameters) != ["options"]:
        raise ContractError(
            where, "constructor", "it takes other arguments than `options`", "take one frozen dataclass, `options`"
        )


def _check_options(options: Any) -> None:
    where = f"{type(options).__module__}.{type(options).__qualname__}"
    for name, section in _sections(options, where):
        if not _is_frozen(section):
            raise ContractError(where, "options", f"section `{name}` is no frozen dataclass", "use @dataclass(frozen=True)")
        for path, value in _leaves(section, name):
            if not _is_plain(value):
                raise ContractError(
                    where, "plain options", f"`{path}` holds {value!r}", "use numbers, text, truth values, None and tuples"
                )


def _sections(options: Any, where: str) -> list[tuple[str, Any]]:
    if not _is_frozen(options):
        raise ContractError(where, "options", "the options are no frozen dataclass", "use @dataclass(frozen=True)")
    found = [(f.name, getattr(options, f.name)) for f in fields(options)]
    if "generator" not in dict(found):
        raise ContractError(where, "options", "there is no section `generator`", "add that field")
    return found


def _is_frozen(value: Any) -> bool:
    return is_dataclass(value) and not inspect.isclass(value) and bool(type(value).__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _leaves(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    for f in fields(section):
        value = getattr(section, f.name)
        yield from _leaves(value, f"{path}.{f.name}") if _is_frozen(value) else [(f"{path}.{f.name}", value)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)
