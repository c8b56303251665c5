"""Series of images, with the order, labels and window shared by all output formats."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kspace.container import Header, Image
from kspace.errors import InputError
from recon.output.geometry import check_geometry, slice_stacks, voxel_m

NOTICE = "NOT FOR DIAGNOSTIC USE"
CLASSICAL = frozenset({"rss", "zero-filled", "sense", "l1-wavelet", "tv"})
"""Roles of additional series that are classical reconstructions, not maps or generated images."""
IN_PLACE = " in place of "
"""In the last processing step of a classical image that was delivered in place of a generated one."""

Volume = tuple[int, int, int, int]
"""(contrast, set, phase, repetition) of an image; sorts with repetition fastest."""


@dataclass(frozen=True)
class RunRecord:
    """Provenance of images: parts go into each output, all of it into the JSON record.

    Attributes
    ----------
    method
        Name of the reconstruction (``sense``, ``refinegan``, ...).
    generated
        Whether the main images are from a trained generator, and hence marked as derived.
    description
        One sentence: model, version, strength. DICOM's DerivationDescription of generated images.
    parameters
        Resolved parameters of the run.
    versions
        Software versions, and checksums of weights (``{"weights sha256": "9f86..."}``).
    source, source_sha256
        Raw file and its checksum, which may be empty.
    mask
        Sampling: digest, acceleration, counts per image.
    seconds
        Duration of each step.
    warnings
        Warnings for the user.
    provenance
        Checksums of inputs, configuration, code and pixels, see `recon.run.provenance`; empty where they are not known.
    extra
        Further JSON-compatible entries.
    """

    method: str
    generated: bool
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    source: str = ""
    source_sha256: str = ""
    mask: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Series:
    """Images of one role, contrast and matrix size, in output order.

    Attributes
    ----------
    number
        Series number from 1, over all roles and contrasts of a run.
    uid
        DICOM SeriesInstanceUID.
    role, contrast
        See `Image` and `ImageIndex`.
    images
        At least one, sorted by volume, then position along the slice direction: converters take the first two instances of a
        series for neighbouring slices.
    image_type
        DICOM ImageType.
    description
        At most 64 characters, with the method and the notice against diagnostic use.
    window
        Lower and upper limit of the grey scale of the series.
    """

    number: int
    uid: str
    role: str
    contrast: int
    images: tuple[Image, ...]
    image_type: tuple[str, str, str]
    description: str
    window: tuple[float, float]

    @property
    def volumes(self) -> list[Volume]:
        """Sorted volumes of the series; the temporal position of an image is its index in this list."""
        return sorted({volume_of(image) for image in self.images})


def make_series(images: Sequence[Image], record: RunRecord, n_contrasts: int = 1) -> list[Series]:
    """Sort images ``(z y x)`` into one series per role and contrast, ``main`` first.

    Parameters
    ----------
    images
        Images of a scan, or of a part of it.
    record
        Run record.
    n_contrasts
        Contrasts of the scan, where `images` may be a part of it: several are named in the descriptions.

    Raises
    ------
    InputError
        If two images have the same index, the images of a series differ in matrix size, or values are not finite.
    """
    if not images:
        raise InputError("no images to write", record.source or None)
    roles = sorted({image.role for image in images}, key=lambda role: (role != "main", role))
    keys = [(role, c) for role in roles for c in sorted({i.header.index.contrast for i in images if i.role == role})]
    found = []
    for number, (role, contrast) in enumerate(keys, start=1):
        members = [image for image in images if image.role == role and image.header.index.contrast == contrast]
        several = max(n_contrasts, len({c for r, c in keys if r == role})) > 1
        check_images(members)
        found.append(
            Series(
                number=number,
                uid=new_uid(),
                role=role,
                contrast=contrast,
                images=tuple(in_order(members)),
                image_type=_image_type(role, members, record),
                description=_description(role, members[0].header, record, several),
                window=window(members),
            )
        )
    return found


def in_order(images: Sequence[Image]) -> list[Image]:
    """Sort images of one series by volume, then stack, then position along the slice direction."""
    slices = [s for stack in slice_stacks(images) for s in stack.slices]
    place = {s: p for p, s in enumerate(slices)}
    return sorted(images, key=lambda image: (volume_of(image), place[image.header.index.slice]))


def check_images(images: Sequence[Image]) -> None:
    """Raise `InputError` if images of one role and contrast cannot form one series; see `make_series`."""
    first = images[0]
    seen = set()
    for image in images:
        where = image.header.source or None
        if image.header.index in seen:
            raise InputError(f"two {image.role} images have the index {image.header.index}", where)
        seen.add(image.header.index)
        if image.data.shape != first.data.shape or image.data.is_complex() != first.data.is_complex():
            raise InputError(
                f"images of one series differ: {_kind(first)} and {_kind(image)}", where, "reconstruct them one by one"
            )
        if not np.isfinite(pixels(image, complex_images=True)).all():
            raise InputError(
                f"the {image.role} image ({image.header.index.name}) holds values that are not finite",
                where,
                "the samples may be damaged: copy or convert the scan again",
            )
        voxel_m(image)
        check_geometry(image.header.geometry, where)


def pixels(image: Image, complex_images: bool = False) -> NDArray[Any]:
    """Values of an image, float32 ``(z y x)`` (magnitude if complex), or complex64 with `complex_images`."""
    data = image.data.detach().resolve_conj().cpu()
    if data.is_complex() and not complex_images:
        data = data.abs()
    data = data.to(torch.complex64 if data.is_complex() else torch.float32)
    if image.release is None:
        return data.numpy()
    data = data.clone()
    image.release()
    return data.numpy()


def volume_of(image: Image) -> Volume:
    """(contrast, set, phase, repetition) of an image."""
    index = image.header.index
    return index.contrast, index.set, index.phase, index.repetition


def window(images: Sequence[Image]) -> tuple[float, float]:
    """Common grey scale of all images: 0 (signed data: 0.5th percentile) to the 99.5th percentile."""
    # Evenly spread values are enough for a percentile: about 2^16 of an image, 2^22 of all.
    most = min(2**16, max(1, 2**22 // len(images)))
    samples = []
    for image in images:
        values = pixels(image).ravel()
        # An odd step, or the values would share their columns; a copy, or each would hold its image in memory.
        samples.append(values[:: max(1, values.size // most) | 1].copy())
    values = np.concatenate(samples)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    low = min(low, 0.0) if values.min() < 0 else 0.0
    if high <= low:
        high = max(float(pixels(image).max()) for image in images)
    return (low, high) if high > low else (low, low + 1.0)


def is_generated(role: str, image: Image, record: RunRecord) -> bool:
    """Whether the images are from a generator: main images, or further complex ones of no classical method."""
    if replacement(image) is not None:
        return False
    return record.generated and (role == "main" or (role not in CLASSICAL and image.data.is_complex()))


def comments(series: Series, record: RunRecord) -> str:
    """Image comments of a series: notice, method, and nominal geometry."""
    image = series.images[0]
    parts = [NOTICE, method_of(series.role, record)]
    if any(is_generated(series.role, one, record) for one in series.images):
        parts += ["reconstructed by a trained generator", record.description]
    if image.header.geometry.nominal:
        parts.append("directions and positions are nominal, left and right unknown")
    return "; ".join(part for part in parts if part)


def method_of(role: str, record: RunRecord) -> str:
    """Method of a series: that of the run, or the role of an additional series."""
    return record.method if role == "main" else role


def origin(record: RunRecord) -> dict[str, str]:
    """Provenance for the attributes of an image, by name; without paths, which may name people."""
    known = record.provenance
    code = known.get("code") or {}
    found = {f"{one['what']} sha256": one["sha256"] for one in known.get("inputs", [])}
    found |= {
        "configuration sha256": known.get("configuration_sha256"),
        "mask sha256": known.get("mask_sha256"),
        "code": " ".join(part for part in (code.get("version"), code.get("commit")) if part),
        "code sha256": code.get("sha256"),
        "seed": known.get("seed"),
        "thresholds": _listed(known.get("thresholds") or {}),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())


def replacement(image: Image) -> str | None:
    """``sense in place of refinegan`` where a classical image was delivered in place of a generated one; else None."""
    last = image.header.steps[-1] if image.header.steps else ""
    return last if IN_PLACE in last and image.role == "main" else None


def new_uid(*entropy: str) -> str:
    """DICOM UID under the UUID root 2.25: random, or determined by the texts of `entropy`."""
    made = uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(entropy)) if entropy else uuid.uuid4()
    return f"2.25.{made.int}"


def _image_type(role: str, images: Sequence[Image], record: RunRecord) -> tuple[str, str, str]:
    if any(is_generated(role, image, record) for image in images):
        return ("DERIVED", "PRIMARY", "OTHER")
    if role == "main" or role in CLASSICAL:
        return ("ORIGINAL", "PRIMARY", "OTHER")
    return ("DERIVED", "SECONDARY", "OTHER")


def _description(role: str, header: Header, record: RunRecord, several: bool) -> str:
    """Series description of at most 64 characters: labels are kept, the protocol name is truncated.

    One of `several` contrasts is identified by its number, as DICOM counts echoes, and its echo time if known.
    """
    which = ""
    if several:
        contrast = header.index.contrast
        times = header.study.get("TE")
        # A single echo time for several contrasts identifies none.
        time = of_contrast(times, contrast) if isinstance(times, (tuple, list)) and len(times) > 1 else None
        which = f"C{contrast + 1} " if time is None else f"C{contrast + 1} TE {time:.4g} "
    deep = " DL" if record.generated and role not in CLASSICAL else ""
    marks = f"{which}{method_of(role, record)[: 38 - len(deep) - len(which)]}{deep} {NOTICE}"
    protocol = plain(str(header.study.get("protocolName") or ""), 63 - len(marks))
    return f"{protocol} {marks}".strip()


def of_contrast(values: Any, contrast: int) -> float | None:
    """Entry of a header list for a contrast (a single entry applies to all contrasts); None if missing."""
    numbers = [] if values is None else list(values) if isinstance(values, (tuple, list)) else [values]
    if len(numbers) == 1:
        return float(numbers[0])
    return float(numbers[contrast]) if contrast < len(numbers) else None


def plain(text: str, length: int) -> str:
    """`text` as one line of at most `length` characters without backslashes, DICOM's value separator."""
    return " ".join("".join(c if c.isprintable() else " " for c in text.replace("\\", "/")).split())[: max(length, 0)].strip()


def _kind(image: Image) -> str:
    return f"{'complex' if image.data.is_complex() else 'real'} {tuple(image.data.shape)}"
