"""The folder of a comparison: what is written while it runs, and all that its report reads.

    compare.json     what was compared, how it was tuned, what follows; rewritten whole after every stage
    slices.csv       a row for every (volume, slice, mask, method), appended as results come
    results.csv      a row for every (volume, mask, method), with the metrics of the volume; rewritten whole
    images/*.h5      truth and images of one (volume, mask), written whole after every slice

Killed at any moment, the folder can be read, and the comparison goes on from it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from kspace.io.hdf5 import open_h5

VERSION = 1
SUMMARY, SLICES, RESULTS, IMAGES = "compare.json", "slices.csv", "results.csv", "images"
TAKEN = ("truth", "support", "boxes", "mask")  # names of data sets that no method may have

Float = NDArray[np.float32]


@dataclass(frozen=True)
class MaskedVolume:
    """What methods are compared on: one volume under one mask.

    Attributes
    ----------
    dataset, volume
        Names. A dataset is a collection of volumes over which statistics are formed.
    mask
        What was asked for (`kspace.masks.MaskSpec` as text).
    digest
        Of the mask actually drawn: rows of different digests never meet.
    acceleration
        Of the mask actually drawn.
    """

    dataset: str
    volume: str
    mask: str
    digest: str
    acceleration: float = field(compare=False)  # follows from the mask, and files round it

    @property
    def key(self) -> tuple[str, str, str]:
        """What a person means by it; two groups of one key must have one digest."""
        return self.dataset, self.volume, self.mask

    @property
    def file(self) -> str:
        """Name of the file of its images, within the folder of a comparison."""
        text = f"{self.dataset}|{self.volume}|{self.mask}|{self.digest}"
        return f"{IMAGES}/{hashlib.sha256(text.encode()).hexdigest()[:8]}.h5"


@dataclass(frozen=True)
class SliceRow:
    """What became of one method on one slice. None: not measured.

    Attributes
    ----------
    dataset, volume, mask, digest, acceleration
        As in `MaskedVolume`.
    slice
        Number of the slice in its volume.
    method
        Its name.
    status, reason
        ``ok``, or ``failed`` and why.
    seconds
        Wall time of the method, coil maps apart, after one untimed call.
    maps_seconds
        Wall time of the estimation of the coil maps that all methods of this slice share.
    peak_cpu_mb, peak_gpu_mb
        Memory on top of what was in use before the call (`recon.compare.timing`).
    started
        When, ISO 8601, UTC.
    missing_error, missing_signal, missing_noise
        Energies at the samples that the mask left out (`recon.metrics.missing`).
    """

    dataset: str
    volume: str
    slice: int
    mask: str
    digest: str
    acceleration: float
    method: str
    status: str
    reason: str = ""
    seconds: float | None = None
    maps_seconds: float | None = None
    peak_cpu_mb: float | None = None
    peak_gpu_mb: float | None = None
    started: str = ""
    missing_error: float | None = None
    missing_signal: float | None = None
    missing_noise: float | None = None

    @property
    def group(self) -> MaskedVolume:
        """The volume and mask."""
        return MaskedVolume(self.dataset, self.volume, self.mask, self.digest, self.acceleration)

    @property
    def failed(self) -> bool:
        """Whether there is no image."""
        return self.status != "ok"


@dataclass(frozen=True)
class VolumeRow:
    """What became of one method on one volume under one mask. None: not measured.

    Attributes
    ----------
    dataset, volume, mask, digest, acceleration
        As in `MaskedVolume`.
    method, label
        Its name, and how tables call it.
    n_slices, n_failed, reason
        How many slices, on how many of them the method failed, and why on the first of these.
    seconds_per_slice, maps_seconds_per_slice
        Means over the slices.
    peak_cpu_mb, peak_gpu_mb
        Largest over the slices.
    metrics
        By name; empty where the method failed on a slice, for a mean over fewer slices would be another comparison.
    """

    dataset: str
    volume: str
    mask: str
    digest: str
    acceleration: float
    method: str
    label: str
    n_slices: int
    n_failed: int
    reason: str = ""
    seconds_per_slice: float | None = None
    maps_seconds_per_slice: float | None = None
    peak_cpu_mb: float | None = None
    peak_gpu_mb: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def group(self) -> MaskedVolume:
        """The volume and mask."""
        return MaskedVolume(self.dataset, self.volume, self.mask, self.digest, self.acceleration)


@dataclass(eq=False)
class GroupImages:
    """Truth and images of one volume under one mask, as far as they have been made.

    Attributes
    ----------
    group
        Which volume and mask.
    slices
        Numbers of the slices.
    truth
        Float32 ``(slice y x)``, in the units of the k-space given to the methods; NaN where a slice was not looked at yet.
    support
        Bool ``(slice y x)``: where the metrics called ``_support`` look.
    boxes
        Float32 ``(n 6)``: slice number, class, y0, x0, y1, x1, in points of `truth`.
    mask
        Bool ``(ky, kx or 1)``.
    images
        By method: float32 magnitudes ``(slice y x)``; NaN where the method failed or has not run.
    """

    group: MaskedVolume
    slices: tuple[int, ...]
    truth: Float
    support: NDArray[np.bool_]
    boxes: Float
    mask: NDArray[np.bool_]
    images: dict[str, Float] = field(default_factory=dict)

    def made(self, method: str, position: int) -> bool:
        """Whether the image of `method` of the slice at `position` is there."""
        return method in self.images and bool(np.isfinite(self.images[method][position]).all())


def write_images(folder: Path, group: GroupImages) -> Path:
    """Write the images of a volume and mask, atomically."""
    path = folder / group.group.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part, h5py.File(part, "w") as file:
        file["truth"], file["support"], file["boxes"] = group.truth, group.support, group.boxes
        file["mask"] = group.mask.astype(np.uint8)
        for name, image in group.images.items():
            file[name] = image
        for name in ("dataset", "volume", "mask", "digest", "acceleration"):
            file.attrs[name] = getattr(group.group, name)
        file.attrs["slices"] = np.asarray(group.slices, dtype=np.int64)
    return path


def read_images(path: Path) -> GroupImages:
    """Read what `write_images` wrote.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    with open_h5(path) as file:
        try:
            text = {name: str(file.attrs[name]) for name in ("dataset", "volume", "mask", "digest")}
            return GroupImages(
                MaskedVolume(**text, acceleration=float(file.attrs["acceleration"])),
                tuple(int(i) for i in file.attrs["slices"]),
                file["truth"][()],
                file["support"][()],
                file["boxes"][()],
                file["mask"][()].astype(bool),
                {name: file[name][()] for name in file if name not in TAKEN},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the images of a comparison ({error})", path, "delete it, and run again") from error


def image_files(folder: Path) -> list[Path]:
    """The files of images in the folder of a comparison, sorted."""
    return sorted((folder / IMAGES).glob("*.h5"))


class SliceLog:
    """The rows of ``slices.csv``: read at the beginning (a torn last line is dropped), appended and flushed after that.

    A worker has a file of its own for each volume and mask, beside its images; `collect` moves its rows to ``slices.csv``.

    Parameters
    ----------
    folder
        Of the comparison.
    group
        Whose rows alone a worker keeps; None: all.
    rows
        Known to the caller.
    """

    def __init__(self, folder: Path, group: MaskedVolume | None = None, rows: Sequence[SliceRow] = ()) -> None:
        self._folder = folder
        self._path = folder / SLICES if group is None else _own_file(folder, group)
        given = {(row.group, row.slice, row.method) for row in rows}
        found = _read_slices(self._path)
        self.rows: list[SliceRow] = [*rows, *(r for r in found if (r.group, r.slice, r.method) not in given)]
        self._of: dict[MaskedVolume, list[SliceRow]] = {}
        for row in self.rows:
            self._of.setdefault(row.group, []).append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        if group is None:  # of workers whose command was killed
            for path in sorted((folder / IMAGES).glob("*.csv")):
                self._take(path)

    def _write(self) -> None:
        with atomic_write(self._path) as part, part.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f.name for f in fields(SliceRow)])
            writer.writerows(_cells(row) for row in self.rows)

    def collect(self, group: MaskedVolume) -> None:
        """Take over what a worker wrote of a volume and mask."""
        self._take(_own_file(self._folder, group))

    def _take(self, path: Path) -> None:
        for row in _read_slices(path):
            if (row.slice, row.method) not in self.of(row.group):
                self.append(row)
        path.unlink(missing_ok=True)

    def arrange(self, groups: Sequence[MaskedVolume], methods: Sequence[str]) -> None:
        """Put the rows in the order in which one process makes them: workers end in any order."""
        group_of = {group: i for i, group in enumerate(groups)}
        method_of = {name: i for i, name in enumerate(methods)}

        def place(row: SliceRow) -> tuple[int, int, int]:
            return group_of.get(row.group, -1), row.slice, method_of.get(row.method, -1)

        self.rows.sort(key=place)
        self._write()

    def of(self, group: MaskedVolume) -> dict[tuple[int, str], SliceRow]:
        """The rows of a volume and mask, by slice and method."""
        return {(row.slice, row.method): row for row in self._of.get(group, [])}

    def append(self, row: SliceRow) -> None:
        """Keep a row, on the disk too."""
        line = io.StringIO()
        csv.writer(line).writerow(_cells(row))
        with self._path.open("a", newline="") as file:
            file.write(line.getvalue())
        self.rows.append(row)
        self._of.setdefault(row.group, []).append(row)


def read_slices(folder: Path) -> list[SliceRow]:
    """The whole rows of ``slices.csv``, in the order in which they came; none where there is no such file."""
    return _read_slices(folder / SLICES)


def _own_file(folder: Path, group: MaskedVolume) -> Path:
    return (folder / group.file).with_suffix(".csv")


def _read_slices(path: Path) -> list[SliceRow]:
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]  # the last line may have been torn
    return [_slice_row(cells, path) for cells in csv.DictReader(io.StringIO(whole))]


def write_results(folder: Path, rows: Sequence[VolumeRow]) -> Path:
    """Write ``results.csv``; a metric that no row has gets no column."""
    path = folder / RESULTS
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    with atomic_write(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_VOLUME_FIELDS, *names])
        writer.writerows([*_cells(row, _VOLUME_FIELDS), *(_cell(row.metrics.get(n)) for n in names)] for row in rows)
    return path


def read_results(path: Path) -> list[VolumeRow]:
    """Rows of a ``results.csv`` (`path`, or its folder).

    Raises
    ------
    InputError
        If there is no such file, or it is not one that ``recon compare`` wrote.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        with path.open(newline="") as file:
            return [_volume_row(cells, path) for cells in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", path, "give the results.csv of an earlier comparison") from error


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``compare.json``; it appears whole or not at all. Values that are not finite are refused: JSON has none."""
    path = folder / SUMMARY
    with atomic_write(path) as part:
        part.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return path


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What ``compare.json`` says; None where there is none.

    Raises
    ------
    InputError
        If it is damaged, or of another version.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", path, "choose another folder, or give --force") from error
    if not isinstance(summary, dict) or summary.get("version") != VERSION:
        raise InputError("not a comparison of this version", path, "choose another folder, or give --force")
    return summary


_VOLUME_FIELDS = [f.name for f in fields(VolumeRow) if f.name != "metrics"]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)


def _cells(row: Any, names: Iterable[str] | None = None) -> list[str]:
    return [_cell(getattr(row, name)) for name in names or [f.name for f in fields(row)]]


def _read_cells(kind: type, cells: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The values of the fields of the dataclass `kind`, from text."""
    values: dict[str, Any] = {}
    try:
        for f in fields(kind):
            if f.name == "metrics":
                continue
            text = cells[f.name] if f.default is MISSING else cells.get(f.name, "")  # tables of earlier versions have fewer
            if f.type == "str":
                values[f.name] = text
            elif "None" in str(f.type):
                values[f.name] = float(text) if text else None
            else:
                values[f.name] = int(text) if f.type == "int" else float(text)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"not a table of recon compare ({error})", path, "give one that recon compare wrote") from error
    return values


def _slice_row(cells: Mapping[str, str], path: Path) -> SliceRow:
    return SliceRow(**_read_cells(SliceRow, cells, path))


def _volume_row(cells: Mapping[str, str], path: Path) -> VolumeRow:
    values = _read_cells(VolumeRow, cells, path)
    names = [name for name in cells if name not in _VOLUME_FIELDS]
    try:
        return VolumeRow(**values, metrics={name: float(cells[name]) for name in names if cells[name]})
    except (ValueError, TypeError) as error:
        raise InputError(f"not a table of recon compare ({error})", path, "give one that recon compare wrote") from error
