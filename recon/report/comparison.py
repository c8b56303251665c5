"""A comparison as the report needs it: values of every volume, failures, and images that are read plane by plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.hdf5 import open_h5
from recon.compare.store import RESULTS, TAKEN, SliceRow, VolumeRow, image_files, read_results, read_slices, read_summary


@dataclass(frozen=True)
class ImageFile:
    """The images of one volume under one mask.

    Attributes
    ----------
    path
        HDF5 file.
    dataset, volume, mask
        What the images are of.
    planes
        Number of each slice that methods were run on, as the data counts them, to its place in the file.
    methods
        Names of the methods that the file holds, those of the comparison first.
    shape
        Points ``(y, x)``.
    has_truth
        Whether there is a reference.
    boxes
        ``(n 6)``: slice, class, y0, x0, y1, x1, pixel k covering the interval from k to k + 1.
    transposed
        Whether x runs down the screen: measured fastMRI files show their readout, here x, downwards.
    """

    path: Path
    dataset: str
    volume: str
    mask: str
    planes: dict[int, int]
    methods: tuple[str, ...]
    shape: tuple[int, int]
    has_truth: bool
    boxes: NDArray[np.float32]
    transposed: bool = False

    @property
    def key(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def maps(self) -> dict[str, str]:
        """None of the series is a map: all are images."""
        return {}

    @property
    def map_reference(self) -> float:
        """Range of the maps; there are none."""
        return 1.0

    @property
    def more(self) -> dict[str, Any]:
        """Nothing but what every viewer shows."""
        return {}

    @property
    def series(self) -> tuple[str, ...]:
        """The truth, where there is one, and the methods."""
        return (*(("truth",) if self.has_truth else ()), *self.methods)

    def read(self, series: str, number: int | None = None) -> NDArray[np.float32]:
        """The slices ``(slice y x)``, or slice `number` ``(y x)``, of a method or of ``truth``."""
        with h5py.File(self.path, "r") as file:
            found = file[series][sorted(self.planes.values())] if number is None else file[series][self.planes[number]]
        return np.asarray(found, dtype=np.float32)

    def sampling(self) -> NDArray[np.bool_] | None:
        """The sampling mask ``(ky kx)``, or ``(ky 1)`` where complete lines are sampled; None where the file has none."""
        with h5py.File(self.path, "r") as file:
            return np.atleast_2d(file["mask"][()]).astype(bool) if "mask" in file else None


@dataclass(frozen=True)
class ComparisonResults:
    """What a comparison's folder holds.

    Attributes
    ----------
    folder
        Where it lies.
    about
        ``compare.json``.
    results
        One row per volume, mask and method.
    failures
        Rows of slices on which a method failed.
    images
        One per volume and mask.
    """

    folder: Path
    about: dict[str, Any]
    results: list[VolumeRow]
    failures: list[SliceRow]
    images: list[ImageFile]

    @property
    def methods(self) -> list[dict[str, Any]]:
        """What ``compare.json`` says about each method, and at least the name of those that only have rows."""
        said = {m["name"]: {"label": m["name"], **m} for m in self.about.get("methods") or []}
        for row in self.results:
            said.setdefault(row.method, {"name": row.method, "label": row.label or row.method})
        return list(said.values())

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that have results, in the order in which they were given."""
        present = dict.fromkeys(row.dataset for row in self.results)
        given = [d["dataset"] for d in self.about.get("data") or [] if d["dataset"] in present]
        return list(dict.fromkeys([*given, *present]))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that at least one volume has."""
        return list(dict.fromkeys(name for row in self.results for name in row.metrics))


def read(folder: Path) -> ComparisonResults:
    """Read the folder of a comparison, finished or not.

    Raises
    ------
    InputError
        If there is no ``compare.json``, or a file cannot be read.
    """
    about = read_summary(folder)
    if about is None:
        raise InputError("no compare.json: not the output of recon compare", folder, "give the folder that followed -o")
    slices = read_slices(folder)
    results = read_results(folder) if (folder / RESULTS).exists() else []
    names = [m["name"] for m in about.get("methods") or []]
    data = about.get("data") or []
    lying = {d["dataset"] for d in data if d.get("kind") == "fastmri" and not d.get("simulated")}
    images = [read_image_file(path, names, slices) for path in image_files(folder)]
    images = [replace(file, transposed=file.dataset in lying) for file in images]
    volumes = [(d["dataset"], v) for d in data for v in d.get("volumes") or []]
    masks = about.get("masks") or []
    images.sort(key=lambda f: (_rank(volumes, (f.dataset, f.volume)), f.dataset, f.volume, _rank(masks, f.mask), f.mask))
    return ComparisonResults(folder, about, results, [row for row in slices if row.failed], images)


def _rank(order: Sequence[object], item: object) -> int:
    return order.index(item) if item in order else len(order)


def read_image_file(path: Path, methods: Sequence[str], slices: Sequence[SliceRow]) -> ImageFile:
    """What a file of images holds, without the images.

    Parameters
    ----------
    path
        File of one volume and one mask.
    methods
        Names of the methods, in the order wanted.
    slices
        Rows of all slices: those without a row have not been reconstructed yet. Without any, all are taken to be there.
    """
    with open_h5(path) as file:
        try:
            dataset, volume, mask = (str(file.attrs[name]) for name in ("dataset", "volume", "mask"))
            # Looked up by name: HDF5 takes a slash in a name for a folder, so a listing may not show it.
            named = [m for m in methods if m not in TAKEN and isinstance(file.get(m), h5py.Dataset)]
            others = [k for k in file if k not in (*TAKEN, *named) and isinstance(file[k], h5py.Dataset)]
            first = file["truth" if "truth" in file else [*named, *others][0]]
            done = {r.slice for r in slices if (r.dataset, r.volume, r.mask) == (dataset, volume, mask)}
            numbers = enumerate(int(s) for s in file.attrs["slices"])
            return ImageFile(
                path=path,
                dataset=dataset,
                volume=volume,
                mask=mask,
                planes={number: place for place, number in numbers if number in done or not slices},
                methods=(*named, *others),
                shape=(int(first.shape[-2]), int(first.shape[-1])),
                has_truth="truth" in file,
                boxes=np.asarray(file["boxes"][()] if "boxes" in file else [], dtype=np.float32).reshape(-1, 6),
            )
        except (KeyError, IndexError) as error:
            raise InputError(f"not the images of a comparison ({error})", path, "delete it, and run again") from error


def as_record(row: VolumeRow) -> dict[str, Any]:
    """A row as the page holds it: fixed columns, then metrics."""
    return {f.name: getattr(row, f.name) for f in fields(row) if f.name != "metrics"} | dict(row.metrics)
