"""Command line: table of subcommands, argument parsing and error reporting.

Each command is a plain function in `recon.commands`: its signature defines the options and its docstring their help. Only the
module of the requested command is imported, so that ``recon --help`` and most error messages are immediate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import inspect
import logging
import re
import signal
import sys
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kspace.errors import InputError
from recon import extensions
from recon.process import (
    EXIT_BUG,
    EXIT_INPUT_ERROR,
    MEMORY_WORDS,
    Stopped,
    memory_is_used_up,
    out_of_memory,
    print_error,
    run_in_child,
)


@dataclass(frozen=True)
class Command:
    """Subcommand: its function, summary, positional parameters and short options.

    A `raw` command parses its arguments itself; an `alone` one has child processes of its own and needs none around it.
    """

    function: str
    summary: str
    positional: tuple[str, ...] = ()
    short: tuple[tuple[str, str], ...] = ()
    raw: bool = False
    alone: bool = False


COMMANDS = {
    "run": Command(
        "recon.commands.run:run",
        "reconstruct raw scans (ISMRMRD, fastMRI HDF5, Siemens twix) into MRD, DICOM, NIfTI and PNG images",
        ("inputs",),
        (("output", "-o"), ("method", "-m"), ("force", "-f")),
    ),
    "info": Command(
        "recon.commands.info:info",
        "summarise raw files: matrix, coils, acceleration, slices, noise, warnings",
        ("inputs",),
    ),
    "replay": Command(
        "recon.commands.replay:replay",
        "repeat the run of a JSON record and compare its pixels bit for bit",
        ("record",),
        (("output", "-o"),),
    ),
    "serve": Command(
        "recon.commands.scanner.serve:serve",
        "serve the MRD streaming protocol to a scanner: raw data in, images out",
        (),
        (("method", "-m"),),
        alone=True,
    ),
    "send": Command(
        "recon.commands.scanner.send:send",
        "stream a scan to an MRD server and write the images that it sends back",
        ("scan", "address"),
        (("output", "-o"), ("force", "-f")),
    ),
    "store": Command(
        "recon.commands.scanner.store:store", "send DICOM files to an archive (C-STORE), with retry", ("node", "inputs")
    ),
    "batch": Command(
        "recon.commands.batch:batch",
        "reconstruct many raw scans, resumable, on one machine or a cluster",
        ("inputs",),
        (("output", "-o"), ("method", "-m"), ("force", "-f")),
    ),
    "demo": Command(
        "recon.commands.demo:demo",
        "simulate a multi-coil scan and reconstruct it",
        (),
        (("output", "-o"), ("force", "-f")),
    ),
    "mask": Command("recon.commands.mask:mask", "draw an undersampling mask", ("spec",), (("output", "-o"), ("force", "-f"))),
    "convert": Command(
        "recon.commands.convert:convert",
        "convert ISMRMRD or NumPy k-space to fastMRI HDF5, and Siemens twix to ISMRMRD",
        ("source", "output"),
        (("force", "-f"),),
    ),
    "simulate": Command(
        "recon.commands.simulate:simulate",
        "simulate multi-coil k-space volumes from folders of images, for training",
        ("images", "output"),
        (("force", "-f"),),
    ),
    "train": Command(
        "recon.commands.train:train", "train a system on fastMRI volumes or on scans simulated from images", raw=True
    ),
    "train-features": Command(
        "recon.commands.train_features:train_features",
        "train the feature network of perceptual losses and metrics on images with bounding boxes",
        ("images", "output"),
        (("force", "-f"),),
    ),
    "export": Command(
        "recon.commands.export:export",
        "export the weights of a training run with their model card",
        ("run",),
        (("output", "-o"), ("force", "-f")),
    ),
    "calibrate": Command(
        "recon.commands.calibrate:calibrate",
        "measure thresholds and conformal factors of the evidence, and store them in the card of weights",
        ("name",),
        (("output", "-o"),),
    ),
    "models": Command("recon.commands.models:models", "list bundled weights, or print a model card", ("name",)),
    "compare": Command(
        "recon.commands.compare:compare",
        "compare classical methods and generators on the same data and masks, with statistics and a report",
        ("data",),
        (("output", "-o"), ("methods", "-m"), ("force", "-f")),
    ),
    "evaluate": Command(
        "recon.commands.evaluate:evaluate", "compute fastMRI volume metrics of reconstructions", ("targets", "predictions")
    ),
}

# Errors of a disk, a path or a limit, wherever they occur; all others are bugs.
SURROUNDINGS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.EPERM, errno.EROFS, errno.ESTALE,
}  # fmt: skip


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    chosen = COMMANDS.get(next(iter(sys.argv[1:]), ""))
    if chosen is not None and chosen.alone:
        return execute(sys.argv[1:])
    return run_in_child(lambda: execute(sys.argv[1:]))


def execute(argv: Sequence[str]) -> int:
    """Run the command of `argv` in this process and return the exit status.

    0 for success, 2 for an error that the user can correct, 1 for a bug, 130 after Ctrl-C, 143 after SIGTERM.
    """
    verbose = "-v" in argv or "--verbose" in argv
    _set_up_logging(verbose)
    try:
        extensions.load()
        arguments = [a for a in argv if a not in ("-v", "--verbose")]
        if arguments and arguments[0] in COMMANDS and COMMANDS[arguments[0]].raw:
            return int(_load(COMMANDS[arguments[0]])(arguments[1:]) or 0)
        name, options = _parse(arguments)
        return _call(COMMANDS[name], options)
    except SystemExit as ending:  # raised by --help and --version
        return int(ending.code or 0)
    except InputError as error:
        print_error(str(error))
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        with contextlib.suppress(OSError):  # the terminal may be what went away
            print_error(f"{what}; nothing half-written was left behind")
        return 128 + number
    except MemoryError as error:
        print_error(out_of_memory(str(error)))
        return EXIT_INPUT_ERROR
    except BrokenPipeError:
        raise
    except Exception as error:
        if any(words in str(error).lower() for words in MEMORY_WORDS) or memory_is_used_up():
            print_error(out_of_memory(str(error)))
            return EXIT_INPUT_ERROR
        if isinstance(error, OSError) and error.errno in SURROUNDINGS:
            print_error(
                f"{error.strerror}{f' in {error.filename}' if error.filename else ''}; check the path, its disk and its rights"
            )
            return EXIT_INPUT_ERROR
        if verbose:
            logging.getLogger(__name__).exception("unexpected failure")
        text = " ".join(str(error).split())
        print_error(f"unexpected {type(error).__name__}: {text[:300]}; this is a defect of recon: repeat with -v and report it")
        return EXIT_BUG


def _parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    import jsonargparse

    import recon

    chosen = next((a for a in argv if not a.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        raise InputError(f"unknown command '{chosen}'", fix=f"the commands are: {', '.join(COMMANDS)}")
    parser = jsonargparse.ArgumentParser(
        prog="recon",
        description="MRI reconstruction from raw k-space with compressed sensing and generative networks.",
        epilog="Every command takes -v for a log. Not for diagnostic use.",
        version=recon.__version__,
        exit_on_error=False,
    )
    commands = parser.add_subcommands(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparser = _subparser(command) if name == chosen else jsonargparse.ArgumentParser(exit_on_error=False)
        commands.add_subcommand(name, subparser, help=command.summary)
    if not argv:
        parser.print_help()
        raise InputError("no command was given", fix="recon --help lists them")
    try:
        parsed = parser.parse_args(list(argv))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise _in_words(text, COMMANDS[chosen] if chosen else None) or InputError(
            text, fix=f"recon {chosen or ''} --help lists the options"
        ) from error
    options = parsed[parsed.command].as_dict()
    return parsed.command, options


def _in_words(text: str, command: Command | None) -> InputError | None:
    """What a parser says of a value that an option does not take, in the words of the command line; None for other messages."""
    found = re.match(r'Parser key "(\w+)"(?: element \d+)?: (?=.*Expected a )(?:.*?Given value: |.*?Got value: )(.*)', text)
    parameters = [] if command is None else _flat_parameters(_load(command))
    parameter = next((p for p in parameters if found is not None and p.name == found[1]), None)
    if found is None or parameter is None:
        return None
    kinds = [kind for kind in typing.get_args(parameter.type) or (parameter.type,) if kind is not type(None)]
    if typing.get_origin(parameter.type) in (typing.Literal, tuple):
        kinds = [parameter.type] if typing.get_origin(parameter.type) is typing.Literal else kinds[:1]
    choices = [str(value) for kind in kinds if typing.get_origin(kind) is typing.Literal for value in typing.get_args(kind)]
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    if len(kinds) != 1 or not (choices or kinds[0] in words):
        return None
    fix = f"choose from {', '.join(choices)}" if choices else f"give {words[kinds[0]]}"
    where = parameter.name if command is not None and parameter.name in command.positional else _flag(parameter.name)
    return InputError(f"'{found[2]}' is {'none of the choices' if choices else 'no such value'}", where, fix)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _subparser(command: Command) -> Any:
    """Argument parser of a command, from its function's signature (types, defaults) and docstring (help)."""
    import docstring_parser
    import jsonargparse

    function = _load(command)
    documentation = docstring_parser.parse(inspect.getdoc(function) or "")
    parser = jsonargparse.ArgumentParser(description=documentation.description, exit_on_error=False)
    parameters = _flat_parameters(function)
    if "config" not in {parameter.name for parameter in parameters}:
        parser.add_argument(
            "--config", action="config", help="YAML file with any of the options below; unknown keys are errors"
        )
    _add_options(parser, parameters, command)
    return parser


def _add_options(parser: Any, parameters: Sequence[_Parameter], command: Command) -> None:
    for parameter in parameters:
        keywords: dict[str, Any] = {"help": parameter.help, "type": parameter.type}
        if typing.get_origin(parameter.type) is tuple:
            items = typing.get_args(parameter.type)
            keywords |= {"nargs": len(items), "type": items[0]}
            if items[-1] is Ellipsis:  # any number of values, in several occurrences too where there is no default to extend
                keywords |= {"nargs": "+"} | ({} if parameter.default else {"action": "extend"})
        if parameter.name in command.positional:
            if typing.get_origin(parameter.type) is list:
                keywords |= {"nargs": "+", "type": typing.get_args(parameter.type)[0]}
            elif parameter.default is not inspect.Parameter.empty:
                keywords |= {"nargs": "?", "default": parameter.default}
            parser.add_argument(parameter.name, **keywords)
            continue
        flags = [_flag(parameter.name)]
        flags += [flag for name, flag in command.short if name == parameter.name]
        if parameter.type is bool:
            parser.add_argument(*flags, action="store_true", default=False, help=keywords["help"])
        elif parameter.default is inspect.Parameter.empty:
            parser.add_argument(*flags, required=True, **keywords)
        else:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            parser.add_argument(*flags, default=default, **keywords)


def parse_values(options: type[Any], values: Mapping[str, object], where: str) -> dict[str, Any]:
    """Values of options, checked and converted as those of the command line.

    Parameters
    ----------
    options
        Dataclass of the options, as `recon.run.options.RunOptions`.
    values
        Values by name: numbers, truth values or texts.
    where
        Their origin, for errors.

    Raises
    ------
    InputError
        If a name is unknown, or a value has the wrong type or is none of the choices.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    _add_options(parser, [p for p in _flat_parameters(options) if p.name in values], Command("", ""))
    try:
        parsed = parser.parse_object(dict(values), defaults=False).as_dict()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())[:300], where, "see recon run --help") from error
    return {name: parsed[name] for name in values}


@dataclass(frozen=True)
class _Parameter:
    name: str
    type: Any
    default: Any
    help: str
    group: str | None


def _flat_parameters(function: Callable[..., Any]) -> list[_Parameter]:
    """Parameters of `function`, with dataclass parameters (groups of options) replaced by their fields."""
    hints, texts = typing.get_type_hints(function), _described(function)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if not dataclasses.is_dataclass(hints[name]):
            found.append(_Parameter(name, hints[name], parameter.default, texts.get(name, ""), None))
            continue
        inner_hints, inner_texts = typing.get_type_hints(hints[name]), _described(hints[name])
        for field in dataclasses.fields(hints[name]):
            found.append(_Parameter(field.name, inner_hints[field.name], field.default, inner_texts.get(field.name, ""), name))
    return found


def _described(documented: Any) -> dict[str, str]:
    import docstring_parser

    # A dataclass that derives from another documents its own fields only.
    documents = [inspect.getdoc(one) for one in reversed(getattr(documented, "__mro__", (documented,))) if one.__doc__]
    parsed = [p for text in documents for p in docstring_parser.parse(text or "").params]
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed}


def _call(command: Command, options: dict[str, Any]) -> int:
    """Call the command's function with its groups of options reassembled."""
    function = _load(command)
    hints = typing.get_type_hints(function)
    arguments: dict[str, Any] = {}
    for parameter in _flat_parameters(function):
        value = options[parameter.name]
        value = tuple(value) if typing.get_origin(parameter.type) is tuple else value
        (arguments if parameter.group is None else arguments.setdefault(parameter.group, {}))[parameter.name] = value
    for name in arguments:
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = hints[name](**arguments[name])
    return int(function(**arguments) or 0)


def _load(command: Command) -> Callable[..., int | None]:
    module, function = command.function.split(":")
    loaded: Callable[..., int | None] = getattr(importlib.import_module(module), function)
    return loaded


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    # Library warnings belong in the log; warnings for the user are printed and recorded explicitly.
    logging.captureWarnings(True)
    warnings.simplefilter("default" if verbose else "ignore")


if __name__ == "__main__":
    sys.exit(main())
