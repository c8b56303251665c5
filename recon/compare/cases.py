"""What methods are compared on: fully sampled volumes of any kind of file, and one slice of them under a mask."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kspace import preprocess
from kspace.container import ImageIndex, KSpace
from kspace.errors import InputError
from kspace.fourier import resize
from kspace.masks import MaskSpec
from kspace.masks.acquisition import acceleration_of, acquire, digest_of, estimate_maps, forward_model
from kspace.operators import ForwardModel
from recon.compare.store import MaskedVolume
from recon.methods.classical import rss
from recon.run.input import Source, open_h5_source

T = TypeVar("T")

SUFFIXES = (".h5", ".hdf5", ".mrd")
CENTRED = 2  # samples by which the measured part of k-space may be off the centre and still count as all of it


class VolumePlace(NamedTuple):
    """Data set, absolute path of the file, and name of a volume."""

    dataset: str
    path: str
    name: str


@dataclass(frozen=True, eq=False)
class FullVolume:
    """A fully sampled volume.

    Attributes
    ----------
    dataset, name
        The collection that it belongs to, and its file (with the contrast or repetition where a file holds several volumes).
    path, kind
        Its file, ``fastmri`` or ``mrd``.
    n_slices
        How many slices it has.
    plane
        Number of a slice to its prepared k-space ``(coil ky kx)``: whitened where the noise is known, without oversampling.
    truth
        Number of a slice to the noise-free ground truth of a simulation, ``(y x)``; None for scans.
    boxes
        Float32 ``(n 6)``: slice, class, y0, x0, y1, x1 in points of the image delivered.
    simulated, attribution
        As the file says.
    """

    dataset: str
    name: str
    path: Path
    kind: str
    n_slices: int
    plane: Callable[[int], KSpace] = field(repr=False)
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 6), np.float32), repr=False)
    simulated: bool = False
    attribution: str | None = None
    truth: Callable[[int], Tensor | None] | None = field(default=None, repr=False)

    @property
    def place(self) -> VolumePlace:
        """Where it is found again, by another process too."""
        return VolumePlace(self.dataset, str(self.path.resolve()), self.name)

    def slices(self, at_most: int | None = None) -> tuple[int, ...]:
        """Numbers of slices, at most so many, spread evenly."""
        return tuple(spread(range(self.n_slices), at_most))


@dataclass(frozen=True, eq=False)
class Case:
    """One slice under one mask: what every method is given, and what it should show.

    Attributes
    ----------
    y, op
        k-space ``(coil ky kx)``, zero where not acquired, and the operator with maps of the acquired samples; off the grid
        ``(coil readout sample)``.
    truth
        Float32 ``(y x)``: root sum of squares of the coil images of all samples, cut to `shape`; the noise-free
        ground truth of simulated volumes.
    shape
        Points ``(y x)`` of the image delivered.
    maps_seconds
        Wall time of the estimation of the maps.
    digest
        Identity of the sampling.
    full
        The scan before it was undersampled; no method sees it.
    """

    y: Tensor
    op: ForwardModel
    truth: NDArray[np.float32]
    shape: tuple[int, int]
    maps_seconds: float
    digest: str = ""
    full: KSpace | None = field(default=None, repr=False)

    def deliver(self, image: Tensor) -> NDArray[np.float32]:
        """The magnitude of an image ``(y x)``, cut to `shape`."""
        return resize(image.detach().cpu().abs(), self.shape).float().numpy()


def make_case(volume: FullVolume, number: int, spec: MaskSpec, maps: str = "espirit") -> Case:
    """A slice of a volume under the mask that is drawn for the volume.

    Raises
    ------
    InputError
        If it cannot be read, or no coil maps can be made of what is left.
    """
    k = volume.plane(number)
    case = _case(acquire(k, spec, volume.name), k, maps)
    if volume.truth is None or (imaged := volume.truth(number)) is None:
        return case
    return replace(case, truth=resize(imaged, case.shape).numpy())


def case_of(k: KSpace, mask: Tensor, maps: str = "espirit") -> Case:
    """The case of fully sampled k-space `k` under `mask`, bool ``(ky 1)`` or ``(ky kx)``; only the truth sees the rest.

    Raises
    ------
    InputError
        If no coil maps can be made of what is left.
    """
    return _case(preprocess.undersample(k, mask), k, maps)


def _case(acquired: KSpace, k: KSpace, maps: str) -> Case:
    start = time.perf_counter()
    sensitivities = estimate_maps(acquired, maps)
    seconds = time.perf_counter() - start
    op, shape = forward_model(acquired, sensitivities), delivered_shape(k)
    return Case(acquired.data, op, resize(rss(k.data), shape).float().numpy(), shape, seconds, digest_of(acquired), k)


def delivered_shape(k: KSpace) -> tuple[int, int]:
    """Points ``(y x)`` of the recon field of view in the image of a prepared plane, without interpolation."""
    header = k.header
    axes = (2, 1) if "decouple" in header.steps else (1, 0)
    found = []
    for axis, n in zip(axes, k.data.shape[-2:], strict=True):
        old, new = header.encoded_fov_m[axis], header.recon_fov_m[axis]
        m = round(n * new / old) if old > 0 and new > 0 else header.recon_matrix[axis]
        found.append(min(n, m) if m > 0 else n)
    return found[0], found[1]


def groups_of(volume: FullVolume, specs: Sequence[MaskSpec]) -> list[tuple[FullVolume, MaskSpec, MaskedVolume]]:
    """The volume under each of the masks, every one of them drawn once for all of its slices.

    Raises
    ------
    InputError
        If there is no such mask for this shape, or the volume cannot be read.
    """
    k = volume.plane(volume.slices(1)[0])
    found = []
    for spec in specs:
        acquired = acquire(k, spec, volume.name)
        group = MaskedVolume(volume.dataset, volume.name, str(spec), digest_of(acquired), acceleration_of(acquired))
        found.append((volume, spec, group))
    return found


def parse_masks(text: str, seed: int = 0) -> list[MaskSpec]:
    """``random1d:4,poisson2d:8,centre=24``: specifications separated by commas, as their options are.

    `seed` is that of those which have none.

    Raises
    ------
    InputError
        If one cannot be read, or is given twice.
    """
    words: list[str] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        name = word.partition("=")[0]
        if "=" in word and ":" not in name and words:
            words[-1] += f",{word}"
        else:
            words.append(word)
    specs = [MaskSpec.parse(word) for word in words]
    specs = [replace(spec, seed=seed) if seed and not spec.seed else spec for spec in specs]
    if not specs:
        raise InputError("no masks", "--masks", "name some, e.g. --masks random1d:4,random1d:8")
    if len(set(map(str, specs))) < len(specs):
        raise InputError("a mask is given twice", "--masks", "leave one out")
    return specs


def find_data(
    given: Sequence[str], but_not: Path | None = None, at_most: int | None = None
) -> tuple[list[FullVolume], list[tuple[str, Path]]]:
    """The fully sampled volumes, and the scans without truth (name of the data set, path), among files and folders.

    Parameters
    ----------
    given
        Files, folders (looked through with their subfolders) or patterns, each with ``NAME=`` before it to name its data set.
        Without, a data set is called by the folder that its files lie in.
    but_not
        A folder that is passed over.
    at_most
        At most so many volumes of a data set, spread evenly.

    Raises
    ------
    InputError
        If there are none, or some cannot be used (all are named), or two volumes have one name.
    """
    volumes: list[FullVolume] = []
    scans: list[tuple[str, Path]] = []
    failures = []
    for dataset, path in _files(given, but_not):
        try:
            found = volumes_of(dataset, path)
        except InputError as error:
            failures.append(f"{path} ({error.what})")
            continue
        volumes += found
        scans += [] if found else [(dataset, path)]
    if failures:
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise InputError(f"{len(failures)} files cannot be used: {', '.join(failures[:5])}{more}", fix="leave them out")
    names = [(volume.dataset, volume.name) for volume in volumes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two volumes are called {twice[1]} in {twice[0]}", "the data", "give them as NAME=FOLDER each")
    datasets = dict.fromkeys(volume.dataset for volume in volumes)
    kept = [v for d in datasets for v in spread([v for v in volumes if v.dataset == d], at_most)]
    return kept, scans


def spread(items: Sequence[T], at_most: int | None) -> list[T]:
    """At most so many items, from the middles of equal parts: the ends of a stack show little."""
    if at_most is None or at_most >= len(items):
        return list(items)
    return [items[int((i + 0.5) * len(items) / at_most)] for i in range(at_most)]


def _files(given: Sequence[str], but_not: Path | None) -> Iterator[tuple[str, Path]]:
    seen: set[Path] = set()
    for text in given:
        name, equals, rest = text.partition("=")
        named = bool(equals) and "/" not in name and not Path(text).exists()
        pattern = rest if named else text
        starts = [Path(pattern)] if Path(pattern).exists() else [Path(p) for p in sorted(glob.glob(pattern))]
        if not starts:
            raise InputError("no such file or folder", pattern, "check the path")
        for path in (path for start in starts for path in _below(start)):
            passed_over = but_not is not None and but_not.resolve() in path.resolve().parents
            if not passed_over and path.resolve() not in seen:
                seen.add(path.resolve())
                yield name if named else path.resolve().parent.name, path
    if not seen:
        raise InputError("there are no .h5 files", ", ".join(given), "give files, or folders of them")


def _below(start: Path) -> list[Path]:
    return sorted(p for p in start.rglob("*") if p.suffix.lower() in SUFFIXES) if start.is_dir() else [start]


def volumes_of(dataset: str, path: Path) -> list[FullVolume]:
    """The fully sampled volumes of a file; none where it is undersampled.

    Raises
    ------
    InputError
        If it cannot be read, holds no complete image, or its samples lie off the Cartesian grid.
    """
    source = open_h5_source(path)
    if any(source.has_trajectory(encoding) for encoding in source.encodings):
        what = "samples off the Cartesian grid cannot be undersampled by masks"
        raise InputError(
            what, path, "give Cartesian scans, with --masks radial-nufft or spiral-nufft, or reconstruct it by recon run"
        )
    stacks: dict[tuple[int, ImageIndex], list[ImageIndex]] = {}
    for encoding in source.encodings if source.fully_sampled is not False else ():
        for index in source.images(encoding):
            stacks.setdefault((encoding, replace(index, slice=0)), []).append(index)
    if not stacks and source.fully_sampled is None:
        raise InputError("no complete image", path, "see recon info")
    boxes = np.asarray(source.boxes, dtype=np.float32).reshape(-1, 6)
    simulated, attribution = bool(source.attributes.get("simulated")), source.attributes.get("attribution")
    found = []
    for (encoding, first), members in stacks.items():
        name = path.name if len(stacks) == 1 else f"{path.name} ({first.name}, encoding {encoding})"
        members = sorted(members, key=lambda index: index.slice)
        n_planes, plane = _planes(source, encoding, members)
        if source.fully_sampled is None and not is_full(plane(n_planes // 2).mask):
            return []
        truth = _truth(source, members) if source.has_truth else None
        about = boxes, simulated, attribution and str(attribution), truth
        found.append(FullVolume(dataset, name, path, source.format, n_planes, plane, *about))
    return found


def _truth(source: Source, members: Sequence[ImageIndex]) -> Callable[[int], Tensor | None]:
    return lambda i: source.truth(members[i])


def _planes(source: Source, encoding: int, members: Sequence[ImageIndex]) -> tuple[int, Callable[[int], KSpace]]:
    """The number of 2-D planes of a stack of slices, or of a 3-D scan, and how to get one."""

    def load(i: int) -> KSpace:
        return preprocess.prepare(source.load(encoding, members[i]), source.known_noise)

    if not source.is_3d(encoding):
        return len(members), load
    whole = lru_cache(maxsize=1)(load)  # a 3-D scan is read once for all of its planes
    n = whole(0).data.shape[0]

    def plane(i: int) -> KSpace:
        k, x = whole(i // n), i % n

        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[x if len(values) > 1 else 0]

        data, mask = of(k.data), of(k.mask)
        assert data is not None
        assert mask is not None
        return KSpace(data, mask, k.header, of(k.n_averages), of(k.calibration))

    return n * len(members), plane


def is_full(mask: Tensor) -> bool:
    """Whether a mask ``(*batch ky kx)`` samples a box around the centre of k-space completely, and nothing outside.

    A margin that was not measured on either side is resolution that nobody asked for; on one side only it is partial Fourier.
    """
    plane = mask.reshape(-1, *mask.shape[-2:])[0]
    for axis in (0, 1):
        lines = plane.any(1 - axis)
        if len(lines) == 1:  # complete lines along this axis
            continue
        where = lines.nonzero()[:, 0]
        first, last = int(where.min()), int(where.max())
        if abs(first - (len(lines) - 1 - last)) > CENTRED + (len(lines) % 2 == 0):
            return False
        plane = plane.narrow(axis, first, last - first + 1)
    return bool(plane.all())
