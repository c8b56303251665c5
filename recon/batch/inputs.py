"""The scans of a batch: files, folders, patterns, lists, CSV tables and BIDS trees, and where the images of each go."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kspace.errors import InputError
from recon.batch import bids
from recon.batch.patterns import expand, fixed_part, is_pattern

RAW = (".h5", ".hdf5", ".mrd", ".dat")
"""Suffixes of the raw files that are looked for in folders. Files named otherwise are taken where they are named."""
IMAGES = ".mrd.h5"  # what this program writes
LISTS = (".txt", ".list", ".csv")


@dataclass(frozen=True)
class ScanEntry:
    """One scan of a batch.

    Attributes
    ----------
    source
        Raw file, absolute. Text: of 100,000 scans, `Path` would cost more time than the files.
    name
        Folder and stem of the images, relative to the folder of the batch: ``sub-01/scan`` gives ``sub-01/scan.nii.gz``.
    """

    source: str
    name: str


@dataclass
class BatchInputs:
    """The scans of a batch, found anew at each iteration, in a fixed order: the list is never held in memory.

    Attributes
    ----------
    given
        Files, folders, patterns, or lists (.txt, .csv).
    root
        Folder that the outputs are named relative to; None: derived from `given`.
    share
        Part (i from 0, n) of the scans.
    label
        Label of the images in BIDS names.
    """

    given: Sequence[str]
    root: Path | None = None
    share: tuple[int, int] = (0, 1)
    label: str = "recon"
    _sources: list[_Given] = field(init=False)

    def __post_init__(self) -> None:
        if not self.given:
            raise InputError("no scans were given", "the inputs", "give files, folders, patterns or a list")
        if self.root is not None:
            self.root = Path(os.path.abspath(self.root))
        self._sources = [_given(text) for text in self.given]
        if self.root is None and len(self._sources) > 1:
            self.root = _common([s.root for s in self._sources])

    @property
    def dataset(self) -> Path | None:
        """The BIDS data set that the scans come from; None where they do not."""
        return self._sources[0].dataset if len(self._sources) == 1 else None

    @property
    def folders(self) -> list[Path]:
        """The folders that are looked through."""
        return [s.root for s in self._sources if s.kind == "folder"]

    def __iter__(self) -> Iterator[ScanEntry]:
        for entry in self._everything():
            if self.in_part(entry.name):
                yield entry

    def in_part(self, name: str) -> bool:
        """Whether the scan of this name is one of this part."""
        i, n = self.share
        return n == 1 or int.from_bytes(_digest(name)[:8], "big") % n == i

    def check(self) -> int:
        """Number of scans of this part.

        Raises
        ------
        InputError
            If there is none in any part, or two have one output.
        """
        seen: set[bytes] = set()
        n = n_all = 0
        for entry in self._everything():
            digest = _digest(entry.name)
            if digest in seen:
                other = next(e.source for e in self._everything() if e.name == entry.name)
                raise InputError(
                    f"{other} and {entry.source} would write the same files ({entry.name}.*)",
                    "the inputs",
                    "give --root with a folder above both, or a CSV list with a column 'output'",
                )
            seen.add(digest)
            n_all += 1
            n += self.in_part(entry.name)
        if not n_all:
            raise InputError("no scans found", ", ".join(self.given), f"folders are searched for {', '.join(RAW)}")
        return n

    def _everything(self) -> Iterator[ScanEntry]:
        for source in self._sources:
            for path, wanted in source.files():
                yield ScanEntry(path, wanted or self._name(path, source))

    def _name(self, path: str, source: _Given) -> str:
        root = os.path.join(self.root or source.root, "")
        if not path.startswith(root):
            raise InputError(f"{path} does not lie in {root}", "--root", "give a folder above all scans")
        relative = path.removeprefix(root)
        if self.dataset is not None:
            return bids.output(PurePosixPath(relative), self.label).as_posix()
        return os.path.splitext(relative)[0]


@dataclass(frozen=True)
class _Given:
    """One argument: what kind it is, and the folder that its files are named relative to."""

    text: str
    kind: str
    root: Path
    dataset: Path | None = None

    def files(self) -> Iterator[tuple[str, str | None]]:
        """Each raw file, and its output where a list states one."""
        if self.kind == "folder":
            yield from ((path, None) for path in walk(str(self.root)))
        elif self.kind == "pattern":
            found = expand(os.path.abspath(self.text))
            yield from ((path, None) for path in found if not path.lower().endswith(IMAGES))
        elif self.kind == "list":
            yield from _listed(Path(self.text))
        else:
            yield os.path.abspath(self.text), None


def _given(text: str) -> _Given:
    path = Path(os.path.abspath(text))
    if path.is_dir():
        if (raw := bids.raw_folder(path)) is not None:
            return _Given(text, "folder", raw, path)
        return _Given(text, "folder", path)
    if path.suffix.lower() in LISTS:
        listed = {os.path.dirname(p) for p, _ in _listed(path)}
        return _Given(text, "list", _common(listed) if listed else path.parent)
    if is_pattern(text) and not path.exists():
        return _Given(text, "pattern", fixed_part(os.path.abspath(text)))
    return _Given(text, "file", path.parent)


def walk(folder: str) -> Iterator[str]:
    """The raw files of a folder and its subfolders, by name; hidden ones and written images are left out.

    Raises
    ------
    InputError
        If a folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted((e.name, e.is_dir()) for e in found if not e.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder cannot be read ({error.strerror})", folder, "correct its permissions or path") from error
    for name, is_folder in entries:
        if is_folder:
            yield from walk(os.path.join(folder, name))
        elif (lower := name.lower()).endswith(RAW) and not lower.endswith(IMAGES):
            yield os.path.join(folder, name)


def _listed(path: Path) -> Iterator[tuple[str, str | None]]:
    """The files of a list: a path a line, or a CSV table with a column ``path`` and perhaps ``output``."""
    folder = path.parent
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() != ".csv":
                for line in file:
                    if (text := line.strip()) and not text.startswith("#"):
                        yield os.path.abspath(os.path.join(folder, text)), None
                return
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or []):
                raise InputError(f"the columns are {', '.join(rows.fieldnames or ['none'])}", path, "name one 'path'")
            for row in rows:
                if text := (row["path"] or "").strip():
                    wanted = (row.get("output") or "").strip()
                    yield os.path.abspath(os.path.join(folder, text)), _checked(wanted, path) if wanted else None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the list cannot be read ({reason})", path, "give a text file of paths, or a CSV table") from error


def _checked(text: str, path: Path) -> str:
    output = PurePosixPath(text)
    if output.is_absolute() or ".." in output.parts or output.name.startswith("."):
        raise InputError(f"the output '{text}' leaves the folder of the batch", path, "write it as sub-01/scan")
    return output.as_posix()


def _common(folders: Iterable[str | Path]) -> Path:
    return Path(os.path.commonpath(list(folders)))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
