"""MRD image messages as scanners want them: order, series, numbers of frames, integers. Their meta are `recon.output.mrd`'s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.mrd import sending
from kspace.io.mrd.header import Limits, parse_header
from kspace.io.mrd.images import make_image
from recon.output.geometry import slice_stacks
from recon.output.mrd import IntegerScale, image_meta, integer_scale
from recon.output.series import CLASSICAL, RunRecord, Series, make_series, pixels
from recon.run.options import RunOptions
from recon.serve.interface import OutgoingState

if TYPE_CHECKING:
    from kspace.container import Image, ImageIndex
    from recon.run.pipeline import Result

HEADROOM = 4  # of the scale of a series over its first images, where more are to come
AXES = ("set", "phase", "repetition")  # slowest first


@dataclass(frozen=True)
class Protocol:
    """Images of one encoding that the header announces.

    Attributes
    ----------
    slices
        Slices, or slabs, of one volume; None where the header does not say.
    first_slice
        Number of the first one.
    volumes
        Sets, phases and repetitions.
    contrasts
        Number of contrasts.
    planes
        Slices per slab: the recon matrix along z.
    """

    slices: int | None = None
    first_slice: int = 0
    volumes: tuple[int, int, int] = (1, 1, 1)
    contrasts: int = 1
    planes: int = 1

    @property
    def frames(self) -> int | None:
        """Images of one series."""
        return None if self.slices is None else self.slices * math.prod(self.volumes)


def messages(results: Sequence[Result], xml: str, options: RunOptions, state: OutgoingState) -> Iterator[bytes]:
    """Yield the MRD messages of images, series by series, and warnings as texts between them.

    A slice of a 2-D scan keeps the geometry of its source (``Keep_image_geometry`` 1), and ``image_index`` counts its place
    from 1: all slices of a volume, volume after volume, as far as the header announces how many there are, else in order of
    arrival. The slab of a 3-D scan is a new volume: ``Keep_image_geometry`` 0, ``slice`` 0, position at the slab's centre.

    Integers have one scale per series, ``RescaleSlope`` 1 and integer windows; ``IntensitySlope`` and ``IntensityIntercept``
    give the values of the reconstruction. While more images are to come the scale leaves `HEADROOM`; an image that exceeds it
    is stored with ``RescaleSlope`` 2, 4, ..., never clipped, and a warning says so.

    Parameters
    ----------
    results
        Images of a part of the scan, by encoding, with their record.
    xml
        ISMRMRD header of the scan.
    options
        How they were reconstructed; `mrd_pixels` says how pixels are stored.
    state
        Series and scales of the scan; changed in place.

    Raises
    ------
    InputError
        If images of one series differ in size.
    """
    protocols = _protocols(xml)
    for result in results:
        if not result.images:
            continue
        encoding = result.images[0].header.encoding
        protocol = protocols.get(encoding, Protocol())
        found = make_series(result.images, result.record, protocol.contrasts)
        # Maps of the evidence come last, after the images that they are about.
        order = ("classical", "main") if state.classical_first else ("main", "classical")
        found.sort(key=lambda one: [*order, "map"].index(_kind(one)))
        for one in found:
            yield from _Sender(one, encoding, protocol, result.record, options, state).messages()


def frame_remarks(state: OutgoingState) -> list[str]:
    """One line for each series of a scan whose images are not as many as its protocol announces, or of another thickness."""
    lines = []
    for entry in state.kept.get("series", {}).values():
        n, expected = len(entry["used"]), entry["frames"]
        if expected is not None and n != expected:
            lines.append(f"series {entry['number']} ({entry['role']}) has {n} images, the protocol announces {expected}")
        if entry["planes"] != entry["protocol_planes"]:
            lines.append(
                f"series {entry['number']} ({entry['role']}) has {entry['planes']} slices per slab, "
                f"the protocol announces {entry['protocol_planes']}"
            )
    return lines


class _Sender:
    """Messages of the images of one series that one part of the scan gave."""

    def __init__(
        self, series: Series, encoding: int, protocol: Protocol, record: RunRecord, options: RunOptions, state: OutgoingState
    ) -> None:
        self._protocol, self._record, self._options, self._remarks = protocol, record, options, state.remarks
        self._entry = _entry(series, encoding, protocol, options, state)
        self._series = replace(series, number=self._entry["number"], uid=self._entry["uid"])
        blank = not any(pixels(image).any() for image in series.images)
        if options.mrd_pixels == "uint16" and not blank:
            self._fix_scale()
        if not blank:
            # The first slices of a scan are its edge: the window widens as brighter ones come.
            low, high = self._entry.get("window", series.window)
            self._entry["window"] = [min(low, series.window[0]), max(high, series.window[1])]
        low, high = self._entry.get("window", series.window)
        self._series = replace(self._series, window=(low, high))

    def messages(self) -> Iterator[bytes]:
        """Yield the messages of the images, and warnings."""
        for image in self._series.images:
            number = _frame_number(image.header.index, self._entry, self._protocol)
            self._entry["used"].append(number)
            values, scale, gain = self._stored(image)
            if gain > 1:
                yield sending.text(
                    f"WARNING series {self._series.number}, image {number}: brighter than the scale of its series, "
                    f"stored with RescaleSlope {gain}"
                )
            made = make_image(image, values, self._series.number, number, self._meta(image, scale, gain))
            if len(values) > 1:
                made.slice = 0
            yield sending.image(made)

    def _fix_scale(self) -> None:
        """Choose the scale of the series with its first images that are not blank."""
        if "scale" in self._entry:
            return
        scale, frames = integer_scale(self._series), self._entry["frames"]
        more = frames is not None and len(self._entry["used"]) + len(self._series.images) < frames
        room = HEADROOM if more else 1
        self._entry["scale"] = [scale.slope * room, scale.intercept * room, scale.most]

    def _stored(self, image: Image) -> tuple[NDArray[Any], IntegerScale | None, int]:
        """What is stored of an image ``(z y x)``, on which scale, and how many times coarser that is than its series'."""
        if self._options.mrd_pixels != "uint16":
            return pixels(image, self._options.complex), None, 1
        values, gain = pixels(image), 1
        scale = IntegerScale(*self._entry.get("scale", (1.0, 0.0, integer_scale(self._series).most)))
        low, high = float(values.min()), float(values.max())
        # Half a step of tolerance: the brightest value of the series that chose the scale rounds to the largest integer.
        while low < scale.intercept - scale.slope / 2 or high > scale.intercept + scale.slope * (scale.most + 0.5):
            scale, gain = IntegerScale(2 * scale.slope, 2 * scale.intercept, scale.most), 2 * gain
        return scale.store(values), scale, gain

    def _meta(self, image: Image, scale: IntegerScale | None, gain: int) -> Mapping[str, str | list[str]]:
        series = self._series
        meta = image_meta(series, image, self._record, scale)
        comment = "; ".join((str(meta["ImageComment"]), *self._remarks))
        meta |= {
            "ImageComment": comment,
            "ImageComments": comment,
            "SeriesInstanceUID": series.uid,
            # Composer nests a series in its source where this name is the same.
            "SeriesNumberRangeNameUID": f"{series.description} {series.uid}",
            "Keep_image_geometry": "1" if image.data.shape[0] == 1 else "0",
        }
        if scale is not None:
            meta |= {
                "RescaleSlope": str(gain),
                # Windows would be read before or after an offset, depending on the console: that of signed maps is told apart.
                "RescaleIntercept": "0",
                "IntensitySlope": repr(scale.slope),
                "IntensityIntercept": repr(scale.intercept),
            }
        return meta


def _kind(series: Series) -> str:
    if series.role == "main":
        return "main"
    return "classical" if series.role in CLASSICAL else "map"


def _entry(series: Series, encoding: int, protocol: Protocol, options: RunOptions, state: OutgoingState) -> dict[str, Any]:
    """What is kept of a series from one part of the scan to the next."""
    known: dict[str, Any] = state.kept.setdefault("series", {})
    key = f"{encoding}/{series.role}/{series.contrast}"
    if key not in known:
        whole = options.slices is None and options.repetitions is None
        planes = series.images[0].data.shape[0]
        known[key] = {
            "number": len(known) + 1,
            "uid": series.uid,
            "role": series.role,
            "frames": protocol.frames if whole else None,
            "planes": planes,
            "protocol_planes": protocol.planes if whole else planes,
            "places": _places(series.images, protocol),
            "used": [],
        }
    entry: dict[str, Any] = known[key]
    return entry


def _places(images: Sequence[Image], protocol: Protocol) -> dict[str, int]:
    """Places of slices by their numbers: their order in space where all are there at once, else their numbers."""
    slices = [s for stack in slice_stacks(images) for s in stack.slices]
    if len(slices) == protocol.slices:
        return {str(s): place for place, s in enumerate(slices)}
    return {}


def _frame_number(index: ImageIndex, entry: Mapping[str, Any], protocol: Protocol) -> int:
    """``image_index`` of an image, from 1, used once."""
    used = entry["used"]
    if protocol.slices is not None:
        place = entry["places"].get(str(index.slice), index.slice - protocol.first_slice)
        number = 0
        volume = [int(getattr(index, axis)) for axis in AXES]
        for value, n in zip((*volume, place), (*protocol.volumes, protocol.slices), strict=True):
            number = number * n + value if 0 <= value < n else -(2**40)
        if number >= 0 and number + 1 not in used:
            return number + 1
    return max((protocol.frames or 0) if protocol.slices is not None else 0, *used, 0) + 1


def _protocols(xml: str) -> dict[int, Protocol]:
    """What the header announces, by encoding; nothing where it cannot be read ("Dummy XML header")."""
    try:
        header = parse_header(xml, "the header")
    except InputError:
        return {}
    found = {}
    for encoding in header.encodings:
        limits: Mapping[str, Limits] = encoding.limits
        n = {name: limit.maximum - limit.minimum + 1 for name, limit in limits.items()}
        found[encoding.index] = Protocol(
            slices=n.get("slice"),
            first_slice=limits["slice"].minimum if "slice" in limits else 0,
            volumes=(n.get("set", 1), n.get("phase", 1), n.get("repetition", 1)),
            contrasts=n.get("contrast", 1),
            planes=encoding.recon_matrix[2],
        )
    return found
