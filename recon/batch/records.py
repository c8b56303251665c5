"""Done or not: what the JSON record of a scan must say for the scan to be skipped."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import recon
from kspace.errors import InputError
from kspace.io.checksums import sha256
from recon.run.options import RunOptions

PATHS = ("weights", "noise")  # options that are files
ENCODINGS = 16  # at most so many of one raw file are looked for


@dataclass(frozen=True)
class Identity:
    """What determines the images of a raw file besides the file.

    Attributes
    ----------
    options
        Those of ``recon run`` as plain data, paths absolute.
    key
        Digest of the options, the contents of the files that they name, the weights, and the version of this project.
    """

    options: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class FileStamp:
    """Size and time of modification of a raw file: where both are as recorded, so is its content.

    Attributes
    ----------
    n_bytes
        Size.
    mtime_ns
        Time of modification, nanoseconds since 1970.
    """

    n_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | Path) -> FileStamp:
        """Of a file.

        Raises
        ------
        OSError
            If there is none.
        """
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class ScanRecord:
    """What the JSON records of a scan that is done say.

    Attributes
    ----------
    seconds
        Time of all steps.
    n_warnings
        Number of warnings.
    evidence
        Number of images by verdict of the evidence; empty where none was asked for.
    files
        What was written, relative to the folder of the batch.
    """

    seconds: float
    n_warnings: int
    evidence: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def identity(options: RunOptions) -> Identity:
    """The identity of a batch.

    Raises
    ------
    InputError
        If a file that the options name cannot be read, or there are no such weights.
    """
    plain = {name: value for name, value in vars(options).items() if name != "force"}
    contents: dict[str, str] = {}
    for name in PATHS:
        if plain[name] is not None:
            plain[name] = os.path.abspath(plain[name])
            contents[name] = _checksum(Path(plain[name]), f"--{name}")
    if plain["maps"] not in ("espirit", "jsense"):
        plain["maps"] = os.path.abspath(plain["maps"])
        contents["maps"] = _checksum(Path(plain["maps"]), "--maps")
    if options.weights is None and (bundled := _bundled(options.method)) is not None:
        contents["weights"] = bundled
    said = json.dumps([plain, contents, recon.__version__], sort_keys=True)
    return Identity(plain, hashlib.sha256(said.encode()).hexdigest()[:32])


def _checksum(path: Path, option: str) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", option, "correct the path") from error


def _bundled(method: str) -> str | None:
    """Checksum of bundled weights, without loading them."""
    from importlib import resources

    found = resources.files("models").joinpath("weights", f"{method}.safetensors")
    return hashlib.sha256(found.read_bytes()).hexdigest() if found.is_file() else None


def plain_options(stated: Mapping[str, Any], force: bool) -> RunOptions:
    """The options of ``recon run`` from plain data."""
    paths = {name: Path(stated[name]) for name in PATHS if stated[name] is not None}
    return RunOptions(**{**stated, **paths, "force": force})


def read_records(folder: str | Path, name: str) -> list[dict[str, Any]]:
    """The JSON records of a scan, one for each encoding; empty where there is none, or one is damaged."""
    stem = os.path.join(folder, name)
    if (single := _read(f"{stem}.json")) is not None:
        return [single]
    if not os.path.isdir(os.path.dirname(stem)):
        return []
    return [record for e in range(ENCODINGS) if (record := _read(f"{stem}_enc{e}.json")) is not None]


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb", buffering=0) as file:
            found = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def done(folder: str | Path, source: str, name: str, key: str, checksum: bool = False) -> tuple[ScanRecord | None, str]:
    """The record of a scan, if it is done, else the reason why it is not.

    Parameters
    ----------
    folder
        Of the batch.
    source
        Raw file.
    name
        Folder and stem of the images, relative to `folder`.
    key
        From `identity`.
    checksum
        Compare the checksum of the raw file even where size and time of modification are as recorded.
    """
    records = read_records(folder, name)
    if not records:
        return None, "new"
    about = [_about(record) for record in records]
    if any(a.get("key") != key for a in about):
        return None, "other options, version or weights"
    if any(a.get("n_records") != len(records) for a in about):
        return None, "not all encodings"
    parent = os.path.dirname(name)
    files = tuple(os.path.join(parent, file) for record in records for file in record.get("files") or [])
    if missing := next((file for file in files if not os.path.lexists(os.path.join(folder, file))), None):
        return None, f"{missing} is missing"
    try:
        stamp = FileStamp.of(source)
        same = all((a.get("n_bytes"), a.get("mtime_ns")) == (stamp.n_bytes, stamp.mtime_ns) for a in about)
        if (checksum or not same) and any(record.get("source_sha256") != sha256(Path(source)) for record in records):
            return None, "the raw file has changed"
    except OSError:
        return None, "the raw file cannot be read"
    return summarise(records, files), ""


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    found = (record.get("extra") or {}).get("batch")
    return found if isinstance(found, dict) else {}


def owner(records: list[dict[str, Any]]) -> str | None:
    """Name of the scan of a batch that records belong to; empty: they are those of ``recon run``; None: there are none."""
    return str(_about(records[0]).get("name") or "") if records else None


def summarise(records: list[dict[str, Any]], files: tuple[str, ...] = ()) -> ScanRecord:
    """What the records of one scan say together."""
    verdicts: Counter[str] = Counter()
    for record in records:
        found = (record.get("extra") or {}).get("evidence") or []
        for item in found if isinstance(found, list) else [found]:
            if isinstance(item, dict) and item.get("verdict"):
                verdicts[str(item["verdict"])] += 1
    seconds = sum(float(v) for record in records for v in (record.get("seconds") or {}).values())
    n_warnings = sum(len(record.get("warnings") or []) for record in records)
    return ScanRecord(round(seconds, 4), n_warnings, dict(verdicts), files)
