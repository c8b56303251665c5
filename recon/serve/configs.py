"""Configurations that a client may ask for: a fixed list of names, or parameters in JSON under the schema of ``recon run``.

A text of a client is data: it names no module that is imported, no file that is read, and XML in it is not parsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn

from kspace.errors import InputError
from recon.run.options import RunOptions
from recon.serve.interface import Purpose, ResolvedConfig

CLASSICAL_METHODS = ("zero-filled", "sense", "grappa", "l1-wavelet", "tv", "rss")
GENERATORS = (
    "refinegan",
    "dagan",
    "gancs",
    "reconglgan",
    "varnet",
    "dealiasing",
    "visual",
    "kspacegan",
    "rcgan",
    "srgan",
    "mdcsrn",
)
METHODS = (*CLASSICAL_METHODS, *GENERATORS)
"""Names of configurations that choose a method; those of generators are the names of ``configs/*.yaml``, without those that are
fitted to each slice, for which nobody waits at the scanner."""

PURPOSES: Mapping[str, Purpose] = {
    "null": "nothing",
    "savedataonly": "save",
    "default_measurement_dependencies": "dependency",
}
OWN = ("", "default", "recon", "openrecon")
"""Names that ask for the server's own method."""
SYNONYMS = {"simplefft": "rss"}
"""Names of python-ismrmrd-server whose method exists here."""

REMOTE = (
    "method", "refine", "lamda", "tolerance", "maps", "calibration_width", "virtual_coils", "no_whiten", "partial_fourier",
    "ghost", "trajectory_units", "gradient_delay", "density", "frames", "spokes_per_frame", "conjugate", "encoding", "slices",
    "repetitions", "incomplete", "precision",
)  # fmt: skip
"""Options of ``recon run`` that a client may set: none that names a file or concerns the machine."""

TEXT_BYTES = 2**16
SUFFIXES = (".xml", ".json", ".yaml", ".yml")
OF_METHOD = ("weights", "refine", "lamda", "tolerance")  # options that belong to one method
WHERE = "the configuration"
KNOWN = f"choose from {', '.join((*METHODS, 'default', 'null', 'savedataonly'))}"


def resolve(config: str, defaults: ResolvedConfig) -> ResolvedConfig:
    """The meaning of a configuration that a client sent: its file name, its text, or the JSON text after the header.

    A name is one of `METHODS`, `PURPOSES`, `OWN` and `SYNONYMS`, in any case, with or without ``.xml``, ``.json`` or ``.yaml``.
    A JSON text is an object of options of ``recon run`` (those in `REMOTE`), ``classical_first`` and ``config``, itself or
    under ``parameters`` (as OpenRecon and python-ismrmrd-server send it); the names of options may lack their underscores.

    Parameters
    ----------
    config
        What the client sent.
    defaults
        What holds where the configuration says nothing.

    Returns
    -------
    ResolvedConfig
        For an unknown name, or XML, `defaults` with a remark.

    Raises
    ------
    InputError
        If the text is too long, or a value breaks the schema.
    """
    if len(config) > TEXT_BYTES or len(config.encode(errors="replace")) > TEXT_BYTES:
        raise InputError(f"a text of {len(config)} characters, at most {TEXT_BYTES} bytes are read", WHERE, KNOWN)
    text = config.strip().strip("\0\ufeff").strip()
    if text.startswith("{"):
        return _of_parameters(_parse(text), defaults)
    if text.startswith("<"):
        return _own(defaults, "an XML configuration was sent, whose steps belong to another server")
    return _of_name(text, defaults)


def _of_name(text: str, defaults: ResolvedConfig) -> ResolvedConfig:
    name = text.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    name = SYNONYMS.get(name, name)
    if name in OWN:
        return replace(defaults, purpose="reconstruct")
    if name in PURPOSES:
        return replace(defaults, purpose=PURPOSES[name])
    if name in METHODS:
        return replace(defaults, options=_with_method(defaults.options, name), purpose="reconstruct")
    return _own(defaults, f"there is no configuration '{_shown(text)}'")


def _own(defaults: ResolvedConfig, why: str) -> ResolvedConfig:
    remark = f"{why}: reconstructed with the server's own method, {defaults.options.method}; {KNOWN}"
    return replace(defaults, purpose="reconstruct", remarks=(*defaults.remarks, remark))


def _with_method(options: RunOptions, method: str) -> RunOptions:
    if method == options.method:
        return options
    default = RunOptions()
    names = (*OF_METHOD, *(("maps", "calibration_width") if method == "rss" else ()))
    return replace(options, method=method, **{name: getattr(default, name) for name in names})


def _of_parameters(values: Mapping[str, Any], defaults: ResolvedConfig) -> ResolvedConfig:
    parameters = values.get("parameters", values)
    if not isinstance(parameters, dict):
        raise InputError("'parameters' is no JSON object", WHERE, 'send {"parameters": {"config": NAME}}')
    options, found = {}, defaults
    known = {_plain(name): name for name in (*REMOTE, "classical_first", "config", "customconfig")}
    for name, value in parameters.items():
        if _plain(name) not in known:
            raise InputError(f"there is no parameter '{_shown(name)}'", WHERE, f"choose from {', '.join(known.values())}")
        options[known[_plain(name)]] = value
    # A name typed by the operator comes before the choice from the list.
    custom, listed = (_text(options, name) for name in ("customconfig", "config"))
    if custom or listed:
        found = _of_name(custom or listed, found)
    first = options.pop("classical_first", None)
    if first is not None:
        found = replace(found, classical_first=_boolean("classical_first", first))
    return replace(found, options=_with_options(found.options, options)) if options else found


def _text(options: dict[str, Any], name: str) -> str:
    value = options.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise InputError(f"'{name}' is {_shown(value)}, expected a name", WHERE, KNOWN)
    return (value or "").strip()


def _with_options(options: RunOptions, values: Mapping[str, Any]) -> RunOptions:
    """`options` with `values`, as the command line takes them."""
    from recon.cli import parse_values  # jsonargparse takes a while to load

    flags = {field.name for field in fields(RunOptions) if field.type == "bool"}
    given = {name: _boolean(name, value) if name in flags else value for name, value in values.items() if value is not None}
    if nested := [name for name, value in given.items() if not isinstance(value, (str, int, float))]:
        raise InputError(f"'{nested[0]}' is {_shown(given[nested[0]])}, expected one value", WHERE)
    parsed = parse_values(RunOptions, given, WHERE)
    for name, value in parsed.items():
        _check(name, value)
    chosen = replace(_with_method(options, parsed.get("method", options.method)), **parsed)
    _check_method(chosen, given)
    return chosen


def _check_method(options: RunOptions, given: Mapping[str, Any]) -> None:
    """Refuse early what no method would take, so that the operator hears of it at the start of the scan."""
    if "lamda" in given and options.method in (*GENERATORS, "rss"):
        raise InputError(f"{options.method} has no regularisation weight", WHERE, "leave 'lamda' out")
    if given.get("refine", "none") != "none" and options.method in CLASSICAL_METHODS:
        raise InputError(f"{options.method} is no generator", WHERE, "leave 'refine' out")


def _check(name: str, value: Any) -> None:
    if name == "method" and value not in METHODS:
        raise InputError(f"there is no method '{_shown(value)}'", WHERE, f"choose from {', '.join(METHODS)}")
    if name == "maps" and value not in ("espirit", "jsense"):
        raise InputError(f"'maps' is '{_shown(value)}'", WHERE, "a client may choose espirit or jsense")
    if name in ("calibration_width", "virtual_coils") and not 0 < value <= 4096:
        raise InputError(f"'{name}' is {value}", WHERE, "choose a number from 1 to 4096")
    if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
        raise InputError(f"'{name}' is {value}", WHERE, "choose a finite number that is not negative")


def _boolean(name: str, value: object) -> bool:
    """A truth value, which user interfaces also send as text or number."""
    words = {1: True, 0: False, "true": True, "false": False, "1": True, "0": False, "": False}  # True is 1
    key = value.strip().lower() if isinstance(value, str) else value
    if isinstance(key, (str, int)) and key in words:
        return words[key]
    raise InputError(f"'{name}' is {_shown(value)}, expected true or false", WHERE)


def _parse(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not JSON ({_shown(error)})", WHERE, f"send JSON, or a name: {KNOWN}") from error
    if not isinstance(values, dict):
        raise InputError("no JSON object", WHERE, 'send {"parameters": {"config": NAME}}')
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise InputError(f"the JSON text holds {name}", WHERE, "send finite numbers")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _shown(value: object) -> str:
    """A peer's value in a message: short, without control characters."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= 64 else text[:61] + "..."
