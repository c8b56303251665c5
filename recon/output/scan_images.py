"""Images of a run as the viewer of a page takes them: upright, on square pixels, one entry for each volume and stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from kspace.container import Image
from recon.output.geometry import slice_stacks, voxel_m
from recon.output.png import view_of
from recon.output.series import Series, Volume, pixels, volume_of

MAPS = {"difference": "signed", "prior": "magnitude", "std": "magnitude"}
"""Roles that are maps in the units of the image, in the order of the panels."""
SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the maps, relative to the largest value of the images
SQUARE = 0.01  # deviation of the pixel's sides from each other that is not corrected
COUNTERS = ("contrast", "set", "phase", "repetition")


@dataclass(frozen=True, eq=False)
class ScanImages:
    """Images and maps of one volume and one stack of slices; see `recon.viewer.selection.ViewedImages`.

    Attributes
    ----------
    volume
        Its counters in words.
    images
        By role, then by the number of the slice (or of the plane of a slab): image and plane.
    letters
        Directions of the patient at the left, right, top and bottom edge; None where they are nominal.
    notes
        Number of the slice to the position of its evidence.
    """

    volume: str
    images: Mapping[str, Mapping[int, tuple[Image, int]]]
    letters: tuple[str, str, str, str] | None
    notes: Mapping[int, int] = field(default_factory=dict)
    dataset: str = ""
    mask: str = ""
    has_truth: bool = False
    transposed: bool = False

    @property
    def key(self) -> str:
        """The volume."""
        return self.volume

    @property
    def planes(self) -> dict[int, int]:
        """Number of each slice to its place."""
        numbers = sorted({number for role in self.images.values() for number in role})
        return {number: place for place, number in enumerate(numbers)}

    @property
    def methods(self) -> tuple[str, ...]:
        """Roles: the main image, classical images, maps."""
        order = ("main", *(role for role in self.images if role != "main" and role not in MAPS), *MAPS)
        return tuple(role for role in order if role in self.images)

    @property
    def series(self) -> tuple[str, ...]:
        """The same."""
        return self.methods

    @property
    def shape(self) -> tuple[int, int]:
        """Points ``(y, x)`` as shown."""
        role = next(iter(self.images.values()))
        ny, nx = upright_plane(*next(iter(role.values()))).shape
        return int(ny), int(nx)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """None: ``(0 6)``."""
        return np.zeros((0, 6), np.float32)

    @property
    def maps(self) -> dict[str, str]:
        """Kind of each role that is a map."""
        return {role: kind for role, kind in MAPS.items() if role in self.images}

    @property
    def map_reference(self) -> float:
        """Largest magnitude of the maps; 1 where they are zero."""
        tops = [float(np.abs(plane).max()) for role in self.maps for plane in self.all_of(role)]
        return max(tops, default=0.0) or 1.0

    @property
    def more(self) -> dict[str, Any]:
        """Letters, evidence and first scale of the maps, for the scripts."""
        return {"letters": self.letters, "notes": {str(n): k for n, k in self.notes.items()}, "map_scale": self._map_scale()}

    def all_of(self, role: str) -> Iterator[NDArray[np.float32]]:
        """Every plane ``(y x)`` of a role, upright."""
        return (upright_plane(*found) for found in self.images[role].values())

    def read(self, series: str, number: int | None = None) -> NDArray[np.float32]:
        """All planes ``(slice y x)``, or one ``(y x)``, of a role; NaN where the role has none."""
        if number is None:
            return np.stack(list(self.all_of(series)))
        found = self.images[series].get(number)
        return np.full(self.shape, np.nan, np.float32) if found is None else upright_plane(*found)

    def sampling(self) -> NDArray[np.bool_] | None:
        """Not shown."""
        return None

    def _map_scale(self) -> float:
        """The least of `SCALES` that holds all but 0.5 % of the values of each map."""
        values = [np.percentile(np.abs(plane), 99.5) for role in self.maps for plane in self.all_of(role)]
        top = max((float(plane.max()) for plane in self.all_of(self.methods[0])), default=0.0)
        wanted = max(values, default=0.0) / top if top > 0 else 0.0
        return next((scale for scale in SCALES if scale >= wanted), SCALES[-1])


def upright_plane(image: Image, z: int) -> NDArray[np.float32]:
    """Plane `z` of an image ``(z y x)``, float32 ``(y x)``, in radiological view and interpolated to square pixels."""
    view = view_of(image.header.geometry)
    plane = view.apply(pixels(image)[z])
    dx, dy, _ = voxel_m(image)
    across, down = (dy, dx) if view.transpose else (dx, dy)
    if abs(across / down - 1) <= SQUARE:
        return np.ascontiguousarray(plane)
    pixel = min(across, down)
    size = (max(1, round(plane.shape[1] * across / pixel)), max(1, round(plane.shape[0] * down / pixel)))
    resized = PilImage.fromarray(np.ascontiguousarray(plane)).resize(size, PilImage.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32)


def is_resampled(image: Image) -> bool:
    """Whether `upright_plane` interpolates."""
    dx, dy, _ = voxel_m(image)
    return bool(abs(dx / dy - 1) > SQUARE)


def scan_images(series: Sequence[Series], evidence: Sequence[Mapping[str, Any]] = ()) -> list[ScanImages]:
    """One entry for each volume and stack of parallel slices of the images of a run."""
    everything = [image for one in series for image in one.images]
    mains = [image for image in everything if image.role == "main"]
    found = []
    for contrast in sorted({image.header.index.contrast for image in mains}):
        members = [image for image in mains if image.header.index.contrast == contrast]
        stacks = slice_stacks(members)
        for volume in sorted({volume_of(image) for image in members}):
            for number, stack in enumerate(stacks, start=1):
                chosen = [i for i in everything if volume_of(i) == volume and i.header.index.slice in stack.slices]
                if any(image.role == "main" for image in chosen):
                    name = _name(volume, mains) + (f", stack {number}" if len(stacks) > 1 else "")
                    found.append(_gathered(name, chosen, evidence))
    return found


def _gathered(name: str, images: Sequence[Image], evidence: Sequence[Mapping[str, Any]]) -> ScanImages:
    roles: dict[str, dict[int, tuple[Image, int]]] = {}
    notes: dict[int, int] = {}
    slab = max(image.data.shape[0] for image in images) > 1
    for image in images:
        for z in range(image.data.shape[0]):
            number = z if slab else image.header.index.slice
            roles.setdefault(image.role, {})[number] = (image, z)
            of = _evidence_of(image, evidence) if image.role == "main" else None
            if of is not None:
                notes[number] = of
    geometry = images[0].header.geometry
    return ScanImages(name, roles, None if geometry.nominal else view_of(geometry).letters, notes)


def _evidence_of(image: Image, evidence: Sequence[Mapping[str, Any]]) -> int | None:
    index = vars(image.header.index)
    return next(
        (k for k, one in enumerate(evidence) if {**index, **(one.get("index") or {})} == index and one.get("index")), None
    )


def _name(volume: Volume, images: Sequence[Image]) -> str:
    """The counters that vary among the images, in words."""
    columns = zip(*{volume_of(image) for image in images}, strict=True)
    varying = [len(set(values)) > 1 for values in columns]
    parts = [f"{counter} {n}" for counter, n, varies in zip(COUNTERS, volume, varying, strict=True) if varies]
    return ", ".join(parts) or "the scan"
