"""What `recon run` reads from: one face for ISMRMRD, fastMRI HDF5 and Siemens twix files, and recorded MRD streams."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kspace.container import Header, Image, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.io import fastmri, mrd
from kspace.io.checksums import sha256
from kspace.io.mrd import recording
from kspace.noise import Noise


class Source(Protocol):
    """A file of k-space, opened read-only, its images read one at a time."""

    path: Path
    kind: str
    expects_noise: bool  # whether to say so where there is no noise scan
    encodings: Sequence[int]  # those that can be reconstructed

    @property
    def stem(self) -> str:
        """Stem of the names of what is written."""

    @property
    def noise(self) -> Noise | None:
        """The noise scan, where there is one."""

    @property
    def warnings(self) -> Sequence[str]:
        """What was noticed so far."""

    @property
    def xml(self) -> str | None:
        """The ISMRMRD header, for the images that carry it along; None where there is none."""

    def sha256(self) -> str:
        """Checksum of the file."""

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

    def check_extra(self, output: Path, stem: str, force: bool) -> None:
        """Refuse early what `export_extra` would refuse late."""

    def export_extra(self, images: Sequence[Image], output: Path, stem: str, method: str, force: bool) -> list[Path]:
        """Write what belongs to this kind of file alone, and return the paths."""


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
    elif fastmri.is_fastmri(path):
        yield FastmriSource(path)
    else:
        yield MrdSource(path)


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


class MrdSource:
    """An ISMRMRD file; `original` is the file that it was converted from, where it was."""

    expects_noise = True

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
    def warnings(self) -> Sequence[str]:
        return (*self._notes, *self._refused, *self.scan.warnings)

    @property
    def xml(self) -> str | None:
        return self.scan.xml

    def sha256(self) -> str:
        return sha256(self.path)

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

    def check_extra(self, output: Path, stem: str, force: bool) -> None:
        pass

    def export_extra(self, images: Sequence[Image], output: Path, stem: str, method: str, force: bool) -> list[Path]:
        return []


class FastmriSource:
    """A fastMRI volume; its reconstruction is also written in the layout of the challenge's submissions."""

    kind = "fastMRI"
    expects_noise = False
    encodings: Sequence[int] = (0,)
    xml = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.volume = fastmri.open_volume(path)

    @property
    def warnings(self) -> Sequence[str]:
        return self.volume.scan.warnings

    @property
    def noise(self) -> Noise | None:
        # Whitening changes the units: a volume with a target is reconstructed in those that the target has.
        return self.volume.noise if self.volume.target_name is None else None

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

    def check_extra(self, output: Path, stem: str, force: bool) -> None:
        target = output / f"{stem}.h5"
        if target.exists() and target.samefile(self.path):
            raise InputError("the reconstruction would overwrite its own input", target, "choose another folder with -o")
        if target.exists() and not force:
            raise InputError(f"{target.name} exists already", output, "give --force to replace it, or another -o")

    def export_extra(self, images: Sequence[Image], output: Path, stem: str, method: str, force: bool) -> list[Path]:
        data = [image.data for image in images]
        return [fastmri.write_reconstruction(output / f"{stem}.h5", data, attributes={"method": method}, force=force)]
