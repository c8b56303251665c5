"""Python interface: open a scan, reconstruct it, look at the images, save them. The same pipeline as the command.

::

    import recon

    with recon.open("scan.h5") as scan:
        images = scan.reconstruct(method="refinegan")
    images[0].numpy()
    images.save("out", formats=("dicom",))

Nothing is written unless `Images.save` is called. Errors that a person can mend are `InputError`; what a run has to say is a
Python warning of class `ReconWarning`, and stays on the result.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from kspace.container import Geometry, Header, Image, ImageIndex, KSpace
from kspace.errors import InputError
from recon.images import Images, ReconWarning, facts_table, upright
from recon.run.input import Source, open_source
from recon.run.options import RunOptions, checked

if TYPE_CHECKING:  # a scan is opened and described without torch
    from torch import Tensor

    from kspace.noise import Noise
    from kspace.operators import Sense
    from recon.methods.precision import Precision

__all__ = [
    "Image",
    "Images",
    "InputError",
    "KSpace",
    "Place",
    "ReconWarning",
    "ReconstructOptions",
    "Scan",
    "example_scan",
    "method_names",
    "open",
    "upright",
]


class ReconstructOptions(TypedDict, total=False):
    """Options of `Scan.reconstruct`: those of ``recon run`` that concern the images, described in `RunOptions`."""

    weights: str | Path | None
    refine: Literal["stack", "residual", "none"] | None
    adapt: float | None
    adapt_steps: int
    save_weights: str | Path | None
    lamda: float | None
    tolerance: float | None
    maps: str | Path
    calibration_width: int
    virtual_coils: int | None
    noise: str | Path | None
    no_whiten: bool
    partial_fourier: Literal["zero-filled", "pocs"]
    ghost: Literal["auto", "linear", "polynomial", "entropy", "none"]
    trajectory: str | Path | None
    trajectory_units: Literal["fraction", "grid", "1/m", "rad", "rad/m"] | None
    gradient_delay: Literal["auto", "none"]
    density: Literal["pipe", "voronoi"]
    frames: int | None
    spokes_per_frame: int | None
    conjugate: bool
    encoding: int | None
    slices: str | Iterable[int] | None
    repetitions: str | Iterable[int] | None
    incomplete: bool
    device: Literal["auto", "cpu", "cuda"]
    precision: Precision
    evidence: Literal["full", "basic", "none"]
    guard: Literal["warn", "strict", "off"]
    classical: Literal["sense", "l1-wavelet", "none"]
    repeats: int


class Place(TypedDict, total=False):
    """Which image of a scan: counters as in `kspace.container.ImageIndex`, 0 where not given, and the encoding."""

    contrast: int
    set: int
    phase: int
    repetition: int
    encoding: int


def open(path: str | PathLike[str]) -> Scan:
    """Open a raw scan, read-only: ISMRMRD HDF5, fastMRI HDF5, Siemens twix (.dat) or a recorded MRD stream.

    Headers are read now, samples when they are needed. A context manager; without ``with``, call `Scan.close`, or leave it to
    the garbage collector.

    Raises
    ------
    InputError
        If there is no such file, or it cannot be read.
    """
    return Scan(Path(path))


class Scan:
    """A raw scan, open for reading. Made by `recon.open`.

    Attributes
    ----------
    path
        The file.
    kind
        ``ISMRMRD``, ``fastMRI``, ``Siemens twix`` or ``MRD stream``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        stack = ExitStack()
        self._open: Source | None = stack.enter_context(open_source(path))
        self.kind: str = self._open.kind
        # Files that had to be converted lie in a temporary folder until then.
        self._finalizer = weakref.finalize(self, stack.close)

    def __enter__(self) -> Scan:
        self._source  # noqa: B018  a closed scan is refused here, not at the first use
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what reading needs. Images that were reconstructed stay usable; closing twice does nothing."""
        self._open = None
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._open is None

    @property
    def _source(self) -> Source:
        if self._open is None:
            raise InputError("the scan was closed", self.path, "open it again with recon.open")
        return self._open

    @property
    def encodings(self) -> tuple[int, ...]:
        """Encoding spaces of the file that can be reconstructed."""
        return tuple(self._source.encodings)

    @property
    def indices(self) -> tuple[ImageIndex, ...]:
        """The complete images of all encodings, in order."""
        return tuple(index for e in self.encodings for index in self._source.images(e))

    @property
    def n_slices(self) -> int:
        """Number of different slices among the complete images."""
        return len({index.slice for index in self.indices})

    @property
    def n_coils(self) -> int:
        """Number of receive coils of the first encoding."""
        return self._source.n_coils(self.encodings[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Points ``(z y x)`` of one image of the first encoding, as delivered."""
        x, y, z = self.header().recon_matrix
        return z, y, x

    @property
    def noise(self) -> Noise | None:
        """Noise covariance of the coils, from the noise scan of the file; None where it has none."""
        return self._source.noise

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was noticed while reading, so far."""
        return tuple(self._source.warnings)

    @property
    def geometry(self) -> Geometry:
        """Geometry of the first image."""
        return self.header().geometry

    def header(self, slice: int | None = None, **place: Unpack[Place]) -> Header:
        """Header of one image, without reading samples; the first image where no `slice` is named.

        Raises
        ------
        InputError
            If there is no such image.
        """
        encoding, index = self._find(slice, place)
        return self._source.header(encoding, index)

    def kspace(self, slice: int | None = None, *, prepared: bool = True, **place: Unpack[Place]) -> KSpace:
        """k-space of one image.

        Parameters
        ----------
        slice
            Number of the slice, as in the file; None: the first.
        prepared
            Dead coils dropped, whitened, readout oversampling removed, as a reconstruction sees it; False: as acquired.
        place
            Other counters, and the encoding, of the image.

        Returns
        -------
        KSpace
            Complex64 ``(coil ky kx)``, ``(kz coil ky kx)`` of a 3-D scan, ``(x coil kz ky)`` once that is prepared; zero where
            nothing was acquired.

        Raises
        ------
        InputError
            If there is no such image, or its samples are damaged.
        """
        encoding, index = self._find(slice, place)
        k = self._source.load(encoding, index)
        return self._steps()[0](k) if prepared else k

    def operator(
        self, slice: int | None = None, *, maps: str | Path = "espirit", calibration_width: int = 24, **place: Unpack[Place]
    ) -> Sense:
        """Forward model of one image: coil maps and mask, for ``y = scan.kspace(slice).data``.

        Parameters
        ----------
        slice
            Number of the slice, as in the file; None: the first.
        maps
            ``espirit``, ``jsense``, or a file of coil maps.
        calibration_width
            At most this many central lines and points are used for the maps.
        place
            Other counters, and the encoding, of the image.

        Raises
        ------
        InputError
            If there is nothing to estimate the maps from.
        """
        from kspace.operators import Sense

        prepare, maps_of = self._steps(maps=maps, calibration_width=calibration_width)
        k = prepare(self.kspace(slice, prepared=False, **place))
        return Sense(maps_of(k), k.mask, k.header.noise_std or 1.0, k.n_averages, k.calibration)

    def maps(
        self, slice: int | None = None, *, maps: str | Path = "espirit", calibration_width: int = 24, **place: Unpack[Place]
    ) -> Tensor:
        """Coil sensitivity maps of one image, complex64 ``(*batch coil y x)``, of whitened coils; see `operator`."""
        return self.operator(slice, maps=maps, calibration_width=calibration_width, **place).maps

    def mask(self, slice: int | None = None, **place: Unpack[Place]) -> Tensor:
        """Sampling mask of one image: bool, ``(1 ky 1)`` where complete readouts were acquired."""
        return self.kspace(slice, **place).mask

    def reconstruct(self, method: str = "sense", **options: Unpack[ReconstructOptions]) -> Images:
        """Reconstruct the scan, or some of its slices. Writes no file.

        Parameters
        ----------
        method
            One of `recon.method_names`; with ``weights``, the system that these belong to.
        options
            See `ReconstructOptions`; ``slices`` and ``repetitions`` may also be numbers, ``slices=[0, 2]``.

        Returns
        -------
        Images
            The images, with method, record and warnings.

        Raises
        ------
        InputError
            If the scan, or its combination with the options, cannot be used.
        """
        from recon.run.pipeline import choose_method, reconstruct_source

        resolved = _resolve(method, dict(options))
        said: list[str] = []
        results = reconstruct_source(self._source, choose_method(resolved), resolved, said.append, show_progress=False)
        for message in said:
            warnings.warn(message, ReconWarning, stacklevel=2)
        return Images(results, self._source, resolved)

    def describe(self) -> str:
        """What ``recon info`` says about the scan."""
        from recon.commands.info import describe_source

        return "\n".join(describe_source(self._source))

    def __repr__(self) -> str:
        return f"<Scan {self.path.name}: {'closed' if self.closed else ', '.join(self._facts().values())}>"

    def _repr_html_(self) -> str:
        facts = {"state": "closed"} if self.closed else self._facts() | {"warnings": "\n".join(self.warnings)}
        return facts_table(str(self.path), facts)

    def _facts(self) -> dict[str, str]:
        z, y, x = self.shape
        matrix = f"{x} x {y}" + (f" x {z}" if z > 1 else "")
        ky, kz = self.header().acceleration
        return {
            "kind": self.kind,
            "images": f"{len(self.indices)} images in {self.n_slices} slices",
            "matrix": f"{matrix} (x y{' z' if z > 1 else ''})",
            "coils": f"{self.n_coils} coils",
            "acceleration": f"R = {ky * kz:g}",
            "noise": "noise scan" if self.noise is not None else "no noise scan",
        }

    def _find(self, slice: int | None, place: Place) -> tuple[int, ImageIndex]:
        encoding = place.get("encoding", self.encodings[0])
        if encoding not in self.encodings:
            raise InputError(f"there is no encoding {encoding}", self.path, f"the file has {self.encodings}")
        found = self._source.images(encoding)
        wanted = {name: value for name, value in place.items() if name != "encoding"}
        if unknown := wanted.keys() - ImageIndex.__dataclass_fields__.keys():
            raise InputError(f"images have no counter '{min(unknown)}'", self.path, f"one of {', '.join(vars(ImageIndex()))}")
        if slice is None and not wanted and found:
            return encoding, found[0]
        index = ImageIndex(slice=slice or 0, **wanted)  # type: ignore[arg-type]
        if index not in found:
            raise InputError(f"there is no complete image {index.name}", self.path, "scan.indices lists them")
        return encoding, index

    def _steps(self, **options: Any) -> tuple[Any, Any]:
        """The steps of the pipeline before the reconstruction: preparation, and coil maps of what it returned."""
        from recon.run.log import Log
        from recon.run.pipeline import choose_noise
        from recon.run.prepare import MapMaker, prepare

        resolved, log = _resolve("sense", options), Log(tell=None)
        noise = choose_noise(self._source, resolved, log)
        return lambda k: prepare(k, noise, resolved, log), MapMaker(self._source, noise, resolved, log).of


def method_names() -> tuple[str, ...]:
    """Names of the methods that can be asked for without a file of weights: classical ones, and bundled weights."""
    from recon.methods import classical
    from recon.methods.choose import RSS, SERIES
    from recon.methods.weights import bundled

    return RSS, *classical.METHODS, *SERIES, *bundled()


def example_scan(
    path: str | PathLike[str] = "example.h5",
    *,
    matrix: int = 128,
    n_slices: int = 3,
    n_coils: int = 8,
    acceleration: int = 3,
    force: bool = False,
) -> Path:
    """Write a simulated scan of a head phantom, with noise scan and calibration lines, as an ISMRMRD file.

    Parameters
    ----------
    path
        The file.
    matrix
        Points along x and y.
    n_slices, n_coils
        Oblique slices, and receive coils.
    acceleration
        Undersampling factor along ky, outside of 24 calibration lines; 1: fully sampled.
    force
        Replace the file if it exists.

    Raises
    ------
    InputError
        If the file exists, or cannot be written.
    """
    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    path = Path(path)
    if path.exists() and not force:
        raise InputError("the file exists", path, "give force=True to replace it, or another path")
    write_scan(head_scan(matrix, n_slices, n_coils, acceleration), path)
    return path


def _resolve(method: str, options: dict[str, Any]) -> RunOptions:
    """The options of a run, from keywords as people write them."""
    known = ReconstructOptions.__annotations__
    if unknown := options.keys() - known.keys():
        raise InputError(f"there is no option '{min(unknown)}'", "reconstruct", f"the options are {', '.join(known)}")
    for name in ("weights", "noise", "save_weights"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    for name in ("slices", "repetitions"):
        value = options.get(name)
        if value is not None and not isinstance(value, str):
            options[name] = ",".join(str(int(n)) for n in ([value] if isinstance(value, int) else value))
    if "maps" in options:
        options["maps"] = str(options["maps"])
    return checked(RunOptions(method=method, **options))
