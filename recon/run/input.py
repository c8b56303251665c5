"""What `recon run` reads from: one face for ISMRMRD, fastMRI HDF5 and Siemens twix files, and recorded MRD streams."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from kspace.container import Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.io import fastmri, mrd
from kspace.io.checksums import sha256
from kspace.io.mrd import recording
from kspace.io.mrd.noncartesian import TrajectoryOptions
from kspace.noise import Noise
from recon.run.describe import describe_scan, describe_volume
from recon.run.options import RunOptions

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """A file of k-space, opened read-only, its images read one at a time."""

    path: Path
    kind: str
    format: str  # short name of the layout, ``mrd`` or ``fastmri``
    expects_noise: bool  # whether to say so where there is no noise scan
    encodings: Sequence[int]  # those that can be reconstructed
    own_formats: Sequence[str]  # output formats that belong to this kind of file, written in any case
    fully_sampled: bool | None  # as the file states; None where only the samples tell
    attributes: Mapping[str, Any]  # what the file says of itself beyond its header
    boxes: Sequence[Sequence[float]]  # rows (slice, class, y0, x0, y1, x1) in points of the image delivered
    has_truth: bool  # whether `truth` is known

    @property
    def stem(self) -> str:
        """Stem of the names of what is written."""

    @property
    def noise(self) -> Noise | None:
        """The noise that a reconstruction whitens with; None where there is none, or where the units of the file matter."""

    @property
    def known_noise(self) -> Noise | None:
        """The noise as far as it is known, whatever the units: for comparison, which has a truth of its own."""

    @property
    def warnings(self) -> Sequence[str]:
        """What was noticed so far."""

    @property
    def xml(self) -> str | None:
        """The ISMRMRD header, for the images that carry it along; None where there is none."""

    def sha256(self) -> str:
        """Checksum of the file."""

    def configure(self, options: RunOptions) -> None:
        """Take those of the options that say how samples are read. Most kinds of file have none."""
        if options.has_frames or options.trajectory is not None or options.density != "pipe":
            fix = "leave --frames, --trajectory and --density out"
            raise InputError("this kind of file has no trajectories", self.path, fix)

    def images(self, encoding: int) -> list[ImageIndex]:
        """The complete images, in order."""

    def incomplete(self, encoding: int) -> list[tuple[ImageIndex, str]]:
        """The images that cannot be reconstructed, each with the reason."""

    def begun(self, encoding: int) -> list[ImageIndex]:
        """Those of the incomplete images that have samples."""

    def n_coils(self, encoding: int) -> int:
        """Number of receive coils."""

    def header(self, encoding: int, index: ImageIndex) -> Header:
        """Header of one image, without reading samples."""

    def load(self, encoding: int, index: ImageIndex) -> KSpace:
        """Read the samples of one image."""

    def load_average(self, encoding: int, index: ImageIndex) -> KSpace | None:
        """The average over the repetitions of this image's slice; None where there is but one."""

    def is_3d(self, encoding: int) -> bool:
        """Whether the images of an encoding are volumes."""

    def has_trajectory(self, encoding: int) -> bool:
        """Whether the samples of an encoding lie off the Cartesian grid."""
        return False

    def truth(self, index: ImageIndex) -> Tensor | None:
        """Noise-free ground truth ``(y x)`` of a simulated image, over the standard deviation of whitened noise; else None."""

    def describe(self) -> Iterator[str]:
        """Lines that say what is in the file, for people."""


@dataclass(frozen=True)
class ConvertedFormat:
    """File format that is converted to ISMRMRD first, so that one reader decides what a scan means.

    Attributes
    ----------
    name
        Of the format, for messages and records.
    recognises
        Whether a file is of this format, by its name or first bytes.
    to_ismrmrd
        Converts a file to an ISMRMRD file, and returns notes for the log.
    """

    name: str
    recognises: Callable[[Path], bool]
    to_ismrmrd: Callable[[Path, Path], tuple[str, ...]]


def _is_twix(path: Path) -> bool:
    return path.suffix.lower() == ".dat"


def _twix_to_ismrmrd(path: Path, output: Path) -> tuple[str, ...]:
    from kspace.io import twix

    return twix.to_ismrmrd(path, output)


CONVERTED = [
    ConvertedFormat("Siemens twix", _is_twix, _twix_to_ismrmrd),
    ConvertedFormat("MRD stream", recording.is_recording, recording.to_ismrmrd),
]


def register(added: ConvertedFormat) -> None:
    """Add a file format from outside this module; the first that recognises a file reads it.

    Raises
    ------
    ValueError
        If there is a format of that name.
    """
    if added.name in [known.name for known in CONVERTED]:
        raise ValueError(f"file format '{added.name}': rule 'name': there is a format of that name; choose another")
    CONVERTED.append(added)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a raw file of any kind that is known.

    Raises
    ------
    InputError
        If there is no such file, or it is of no known kind.
    """
    if converted := next((known for known in CONVERTED if known.recognises(path)), None):
        with _converted(path, converted.to_ismrmrd, converted.name) as source:
            yield source
    else:
        yield open_h5_source(path)


def open_h5_source(path: Path) -> Source:
    """The source of an HDF5 file, which needs no conversion and so nothing to close.

    Raises
    ------
    InputError
        If it is of no known kind.
    """
    return FastmriSource(path) if fastmri.is_fastmri(path) else MrdSource(path)


@contextmanager
def _converted(path: Path, convert: Callable[[Path, Path], tuple[str, ...]], kind: str) -> Iterator[MrdSource]:
    """The source of an ISMRMRD file that `convert` makes of `path`, in a private folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="recon-") as folder:
        converted = Path(folder) / f"{path.stem}.h5"
        try:
            notes = convert(path, converted)
            yield MrdSource(converted, original=path, kind=kind, notes=notes)
        except InputError as error:
            if error.where is None or Path(error.where) != converted:
                raise
            raise InputError(error.what, path, error.fix) from error  # a person knows the file that they gave


class MrdSource(Source):
    """An ISMRMRD file; `original` is the file that it was converted from, where it was."""

    format = "mrd"
    expects_noise = True
    own_formats: Sequence[str] = ()
    fully_sampled: bool | None = None
    attributes: Mapping[str, Any] = MappingProxyType({})
    boxes: Sequence[Sequence[float]] = ()
    has_truth = False

    def __init__(self, path: Path, original: Path | None = None, kind: str = "ISMRMRD", notes: tuple[str, ...] = ()) -> None:
        self.scan = mrd.open_scan(path)
        self._notes = notes
        self.path, self.kind = original or path, kind
        used = [e for e in self.scan.encodings if e.n_readouts]
        self.encodings: Sequence[int] = [e.index for e in used if e.refusal is None]
        self._refused = [f"left out encoding {e.index}: {e.refusal}" for e in used if e.refusal is not None]

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def noise(self) -> Noise | None:
        return self.scan.noise

    @property
    def known_noise(self) -> Noise | None:
        return self.scan.noise

    @property
    def warnings(self) -> Sequence[str]:
        return (*self._notes, *self._refused, *self.scan.warnings)

    @property
    def xml(self) -> str | None:
        return self.scan.xml

    def sha256(self) -> str:
        return sha256(self.path)

    def configure(self, options: RunOptions) -> None:
        given = "--trajectory" if options.trajectory is not None else "--density" if options.density != "pipe" else None
        if given is not None and not any(e.has_trajectory for e in self.scan.encodings):
            kinds = ", ".join(sorted({e.trajectory for e in self.scan.encodings}))
            raise InputError(f"samples lie on a grid ({kinds})", self.path, f"leave {given} out")
        self.scan.ghost = options.ghost
        self.scan.trajectory = TrajectoryOptions(options.trajectory, options.trajectory_units, options.gradient_delay)
        self.scan.split(options.frames, options.spokes_per_frame)

    def images(self, encoding: int) -> list[ImageIndex]:
        return self.scan.images(encoding)

    def incomplete(self, encoding: int) -> list[tuple[ImageIndex, str]]:
        return self.scan.incomplete(encoding)

    def begun(self, encoding: int) -> list[ImageIndex]:
        return self.scan.begun(encoding)

    def n_coils(self, encoding: int) -> int:
        return self.scan.encodings[encoding].n_coils

    def header(self, encoding: int, index: ImageIndex) -> Header:
        return self.scan.header(encoding, index)

    def load(self, encoding: int, index: ImageIndex) -> KSpace:
        return self.scan.load(encoding, index)

    def load_average(self, encoding: int, index: ImageIndex) -> KSpace | None:
        repetitions = {replace(i, repetition=0): i for i in self.images(encoding) if i.repetition != index.repetition}
        if replace(index, repetition=0) not in repetitions:
            return None
        return self.scan.load_average(encoding, index)

    def is_3d(self, encoding: int) -> bool:
        return self.scan.encodings[encoding].is_3d

    def has_trajectory(self, encoding: int) -> bool:
        return self.scan.encodings[encoding].has_trajectory

    def truth(self, index: ImageIndex) -> Tensor | None:
        return None

    def describe(self) -> Iterator[str]:
        return describe_scan(self.scan)


class FastmriSource(Source):
    """A fastMRI volume."""

    kind = "fastMRI"
    format = "fastmri"
    expects_noise = False
    encodings: Sequence[int] = (0,)
    own_formats: Sequence[str] = ("fastmri",)
    xml = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.volume = fastmri.open_volume(path)
        self.fully_sampled: bool | None = not self.volume.has_mask
        self.attributes: Mapping[str, Any] = self.volume.attributes
        self.boxes: Sequence[Sequence[float]] = self.volume.boxes
        self.has_truth = self.volume.has_truth

    @property
    def warnings(self) -> Sequence[str]:
        return self.volume.scan.warnings

    @property
    def noise(self) -> Noise | None:
        # Whitening changes the units: a volume with a target is reconstructed in those that the target has.
        return self.volume.noise if self.volume.target_name is None else None

    @property
    def known_noise(self) -> Noise | None:
        return self.volume.noise

    @property
    def stem(self) -> str:
        return self.path.stem

    def sha256(self) -> str:
        return sha256(self.path)

    def images(self, encoding: int) -> list[ImageIndex]:
        return [ImageIndex(slice=i) for i in range(self.volume.n_slices)]

    def incomplete(self, encoding: int) -> list[tuple[ImageIndex, str]]:
        return []

    def begun(self, encoding: int) -> list[ImageIndex]:
        return []

    def n_coils(self, encoding: int) -> int:
        return self.volume.n_coils

    def header(self, encoding: int, index: ImageIndex) -> Header:
        return self.volume.header(index.slice)

    def load(self, encoding: int, index: ImageIndex) -> KSpace:
        return self.volume.load(index.slice)

    def load_average(self, encoding: int, index: ImageIndex) -> KSpace | None:
        return None

    def is_3d(self, encoding: int) -> bool:
        return False

    def truth(self, index: ImageIndex) -> Tensor | None:
        return self.volume.truth(index.slice)

    def describe(self) -> Iterator[str]:
        return describe_volume(self.volume)
