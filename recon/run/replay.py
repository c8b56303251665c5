"""Repetition of a run from its JSON record: the same inputs, options and device type give the same pixels, bit for bit."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from kspace import coils
from kspace.errors import InputError
from kspace.io.checksums import sha256
from recon.methods import weights
from recon.run.input import Source, open_source
from recon.run.options import RunOptions, checked
from recon.run.pipeline import check_room, choose_method, reconstruct_source, save_results
from recon.run.provenance import OF_THE_OUTPUT, SCHEMA, checksum, pixel_checksums
from recon.versions import code, versions

MOST_BYTES = 64 << 20  # of a record: some hundred thousand images
MOST_THREADS = 1024
ADAPT_SECONDS = 7 * 86400.0  # no limit

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Recorded:
    """What a JSON record says of a run.

    Attributes
    ----------
    path
        The record.
    inputs
        ``what``, ``path``, ``sha256`` of each input file, and the ``name`` of weights.
    configuration, configuration_sha256
        Options that determine the images, and their checksum.
    output
        Options of how they were written.
    encoding
        Of the raw file.
    versions, code, machine
        As recorded.
    pixels
        ``image``, ``role`` and ``sha256`` of each image.
    """

    path: Path
    inputs: list[dict[str, Any]]
    configuration: dict[str, Any]
    configuration_sha256: str
    output: dict[str, Any]
    encoding: int
    versions: dict[str, Any]
    code: dict[str, Any]
    machine: dict[str, Any]
    pixels: list[dict[str, Any]]


@dataclass(frozen=True)
class Replayed:
    """Outcome of a repetition.

    Attributes
    ----------
    n_equal
        Images whose pixels are those of the record.
    different
        Image and role of all others, with the difference in words.
    written
        Output files.
    """

    n_equal: int
    different: list[str]
    written: list[Path]


def read_record(path: Path) -> Recorded:
    """Read the JSON record of a run.

    Raises
    ------
    InputError
        If there is no such file, it is larger than `MOST_BYTES`, not JSON, of another schema, or incomplete.
    """
    content = _json(path)
    known = _entry(content, "provenance", dict, path)
    if (schema := known.get("schema")) != SCHEMA:
        raise InputError(
            f"a record of schema {_printable(schema)[:40]}; this version reads schema {SCHEMA}",
            path,
            "replay it with the version of recon that it names under versions",
        )
    parameters = _entry(content, "parameters", dict, path)
    recorded = Recorded(
        path=path,
        inputs=_entries(known, "inputs", ("what", "sha256"), path),
        configuration=_entry(known, "configuration", dict, path),
        configuration_sha256=_entry(known, "configuration_sha256", str, path),
        output={name: parameters[name] for name in OF_THE_OUTPUT if name in parameters and name != "force"},
        encoding=_entry(known, "encoding", int, path),
        versions=_entry(content, "versions", dict, path),
        code=_entry(known, "code", dict, path),
        machine=_entry(known, "machine", dict, path),
        pixels=_entries(known, "pixels", ("image", "role", "sha256"), path),
    )
    if not recorded.pixels or not any(one["what"] == "raw file" for one in recorded.inputs):
        raise InputError("the record names no raw file, or no images", path, "give a record that recon run wrote")
    return recorded


def options_of(recorded: Recorded, raw: Path | None = None) -> tuple[Path, RunOptions]:
    """Raw file and options of the repetition: recorded options, found files, the recorded device type and precision.

    Raises
    ------
    InputError
        If a file is gone, an option is unknown or has no valid value, or this machine lacks the device type.
    """
    where = recorded.path
    values = dict(recorded.configuration) | recorded.output
    if unknown := values.keys() - {f.name for f in fields(RunOptions)}:
        raise InputError(f"the record has an option {min(unknown)[:40]!r} that this version does not know", where, None)
    for name in ("weights", "noise"):
        if isinstance(values.get(name), str):
            values[name] = _found(values[name], name, where)
    if isinstance(values.get("maps"), str) and values["maps"] not in coils.METHODS:
        values["maps"] = str(_found(values["maps"], "coil maps", where))
    device = recorded.machine.get("device")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("the images were made on CUDA, and there is no CUDA device here", where, "replay on such a machine")
    if values.get("adapt") is not None:
        # As many steps as were taken, however long they take here.
        values |= {"adapt": ADAPT_SECONDS, "save_weights": None}
    values |= {"device": device, "precision": recorded.machine.get("precision"), "encoding": recorded.encoding, "force": False}
    path = next(one.get("path") for one in recorded.inputs if one["what"] == "raw file")
    return raw if raw is not None else _found(path, "raw file", where), checked(RunOptions(**values))


def changed_inputs(recorded: Recorded, raw: Path, options: RunOptions) -> list[str]:
    """Inputs whose checksum is not that of the record, each with both checksums.

    Raises
    ------
    InputError
        If a file cannot be read, or weights are damaged.
    """
    files = {"raw file": raw, "noise scan": options.noise, "coil maps": Path(options.maps)}
    found = []
    for one in recorded.inputs:
        what, then = str(one["what"]), str(one["sha256"])
        if what == "weights":
            now = weights.read(weights.find(options.weights or options.method))[0].sha256
        elif what in files and files[what] is not None:
            now = sha256(files[what] or raw)
        else:
            raise InputError(f"the record has an input {what[:40]!r} that its options do not name", recorded.path, None)
        if now != then:
            found.append(f"{what} has changed: sha256 {then[:16]} in the record, {now[:16]} now")
    if (now := checksum(recorded.configuration)) != recorded.configuration_sha256:
        then = recorded.configuration_sha256
        found.append(f"configuration has changed: sha256 {then[:16]} in the record, {now[:16]} now")
    return found


def other_software(recorded: Recorded) -> list[str]:
    """Versions, code and machine properties that differ from the record; each names both."""
    here: dict[str, object] = dict(versions())
    pairs = [(name, recorded.versions.get(name), now) for name, now in here.items()]
    then, now = recorded.code, code()
    if then.get("sha256") != now["sha256"]:
        pairs.append(("code", _code_in_words(then), _code_in_words(now)))
    machine = recorded.machine
    pairs.append(("instruction set", machine.get("instructions"), torch.backends.cpu.get_cpu_capability()))
    if machine.get("device") == "cuda" and torch.cuda.is_available():
        pairs.append(("GPU", machine.get("gpu"), torch.cuda.get_device_name()))
    return [f"{name}: {_printable(a)} in the record, {_printable(b)} here" for name, a, b in pairs if a != b]


def reproduce(recorded: Recorded, raw: Path, options: RunOptions, output: Path | None = None) -> Replayed:
    """Reconstruct as recorded, compare the checksums of the pixels, and write the images into `output` where it is given.

    Nothing is overwritten: `options.force` is ignored.

    Raises
    ------
    InputError
        If the reconstruction fails, or an output exists.
    """
    roles = tuple(dict.fromkeys(("main", *(str(one["role"]) for one in recorded.pixels))))
    method = choose_method(options)
    with _threads(recorded.machine.get("threads")), open_source(raw) as source:
        if output is not None:
            _check_room(source, output, options, roles)
        results = reconstruct_source(source, method, options, folder=output)
        written = save_results(results, source, output, options) if output is not None else []
    now = pixel_checksums([image for result in results for image in result.images])
    equal, different = _compared(recorded.pixels, now)
    return Replayed(equal, different, written)


def _check_room(source: Source, output: Path, options: RunOptions, roles: Sequence[str]) -> None:
    try:
        check_room(source, output, options, roles)
    except InputError as error:
        raise InputError(error.what, error.where, "give another -o; a repetition replaces nothing") from error


def _compared(then: list[dict[str, Any]], now: list[dict[str, str]]) -> tuple[int, list[str]]:
    before, after = ({(_printable(p["image"]), _printable(p["role"])): p["sha256"] for p in pixels} for pixels in (then, now))
    different = [f"{image} ({role}): not made now" for image, role in before.keys() - after.keys()]
    different += [f"{image} ({role}): not in the record" for image, role in after.keys() - before.keys()]
    shared = before.keys() & after.keys()
    different += [f"{image} ({role}): other pixels" for image, role in shared if before[image, role] != after[image, role]]
    return sum(before[key] == after[key] for key in shared), sorted(different)


@contextmanager
def _threads(n: object) -> Iterator[None]:
    """The number of threads of the record: sums are rounded in the order in which threads share them."""
    before = torch.get_num_threads()
    if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST_THREADS:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _found(path: object, what: str, record: Path) -> Path:
    """The file that a record names, or one of the same name beside the record.

    Raises
    ------
    InputError
        If neither is a regular file.
    """
    try:
        candidates = [Path(str(path)), record.absolute().parent / Path(str(path)).name]
        for candidate in candidates:
            # Not a pipe or a device: a record from elsewhere may name anything.
            if candidate.exists() and stat.S_ISREG(candidate.stat().st_mode):
                return candidate
    except (OSError, ValueError):  # too long, not permitted, or with a zero byte
        pass
    fix = "give it with --raw" if what == "raw file" else "put it back, or beside the record"
    raise InputError(f"the {what} {str(path)[:200]!r} of the record is gone", record, fix)


def _json(path: Path) -> dict[str, Any]:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError("not a file", path, "give the JSON record of a run, such as out/scan.json")
        if about.st_size > MOST_BYTES:
            raise InputError(f"larger than {MOST_BYTES >> 20} MB: no record of a run", path, "give out/scan.json")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "not JSON"
        raise InputError(f"the record cannot be read ({reason})", path, "give the JSON record of a run") from error
    if not isinstance(content, dict):
        raise InputError("JSON, but no record of a run", path, "give the JSON record of a run, such as out/scan.json")
    return content


def _entry(content: dict[str, Any], name: str, kind: type[Kind], path: Path) -> Kind:
    value = content.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        fix = "it was written by an earlier version, or is no record of recon run" if name == "provenance" else None
        raise InputError(f"the record has no valid entry '{name}'", path, fix)
    return value


def _entries(content: dict[str, Any], name: str, texts: tuple[str, ...], path: Path) -> list[dict[str, Any]]:
    """A list of dictionaries that have the `texts`."""
    found = _entry(content, name, list, path)
    if not all(isinstance(one, dict) and all(isinstance(one.get(text), str) for text in texts) for one in found):
        raise InputError(f"the record has no valid entry '{name}'", path, None)
    return found


def _printable(value: object) -> str:
    """Text of a record for the terminal: short, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:120])


def _code_in_words(about: dict[str, Any] | dict[str, str | None]) -> str:
    return f"{about.get('commit') or about.get('version')} (sha256 {str(about.get('sha256'))[:16]})"
