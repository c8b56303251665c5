"""Containers: they hold, check and remember. Physics are functions `KSpace -> KSpace`, elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kspace.errors import InputError

if TYPE_CHECKING:  # headers are read by commands that need no tensor: importing torch takes a second
    from numpy.typing import NDArray
    from torch import Tensor

Vector = tuple[float, float, float]
Matrix = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """Where an image lies in the patient. Patient coordinates are DICOM's LPS, lengths in metres.

    Attributes
    ----------
    position_m
        The point on which voxel ``n // 2`` (0-based) of every axis lies.
    read_dir, phase_dir, slice_dir
        Unit vectors of growing x, y and z index.
    fov_m
        Field of view ``(x, y, z)`` of the image that this geometry describes.
    table_position_m
        Patient table position, as the scanner gave it.
    nominal
        True where the directions and positions were not measured but assumed (arrays, simulated files): no statement about
        left and right may rest on them.
    """

    position_m: Vector = (0.0, 0.0, 0.0)
    read_dir: Vector = (1.0, 0.0, 0.0)
    phase_dir: Vector = (0.0, 1.0, 0.0)
    slice_dir: Vector = (0.0, 0.0, 1.0)
    fov_m: Vector = (0.0, 0.0, 0.0)
    table_position_m: Vector = (0.0, 0.0, 0.0)
    nominal: bool = False


@dataclass(frozen=True, order=True)
class ImageIndex:
    """Which image of a scan. Ordered as volumes are written: repetition varies fastest, then phase, set, contrast."""

    contrast: int = 0
    set: int = 0
    phase: int = 0
    repetition: int = 0
    slice: int = 0

    @property
    def name(self) -> str:
        """The non-zero counters in words: ``slice 3, repetition 2``."""
        parts = [f"{name} {value}" for name, value in vars(self).items() if value]
        return ", ".join(reversed(parts)) or "slice 0"


@dataclass(frozen=True)
class ReceiveCoils:
    """The receive coils behind the coil axis of k-space, and what became of them in preprocessing.

    Attributes
    ----------
    numbers
        Channel numbers in the raw file of the coils that are used, in order; empty where no file states them (all are used).
    names
        Name of each channel of the raw file; empty where the header has none.
    dropped
        Channel numbers of the coils that were removed.
    compression
        Complex ``(virtual coil)``, the combinations that `kspace.compression.compress` formed; None without compression.
    """

    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    dropped: tuple[int, ...] = ()
    compression: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def dropped_names(self) -> tuple[str, ...]:
        """Each of `dropped` as a person reads it: ``"2 (C)"``, its number and its name where it has one."""
        return tuple(f"{c} ({self.names[c]})" if c < len(self.names) and self.names[c] else str(c) for c in self.dropped)


@dataclass(frozen=True)
class Header:
    """What belongs to the samples of one image and is not a sample.

    Attributes
    ----------
    source
        Name of the file, for messages.
    encoding
        Index of the encoding space in the file's header.
    index
        Which image of the scan this is.
    encoded_matrix, recon_matrix
        Points ``(x, y, z)`` of the encoded k-space and of the image to deliver.
    encoded_fov_m, recon_fov_m
        Field of view ``(x, y, z)`` of both, in metres.
    geometry
        Position and directions, from the central readout of the image; ``fov_m`` is that of the recon space.
    noise_std
        Square root of E|n|^2 of one k-space sample (before averaging): 1 after whitening, None where not known.
    acceleration
        Nominal undersampling factor ``(ky, kz)`` of the header.
    central
        Fields of the central readout that images must carry (ISMRMRD names: ``measurement_uid``, ``acquisition_time_stamp``,
        ``physiology_time_stamp``, ``user_int``, ``user_float``, ``average``, ``flags``, ``position`` in mm, ...).
    study
        Facts of the scan's header under ISMRMRD's names (``systemVendor``, ``systemFieldStrength_T``, ``TR``, ``TE``,
        ``flipAngle_deg``, ``protocolName``, ``patientPosition``, ``frameOfReferenceUID``, ``studyDate``, ...), where present.
    coils
        The receive coils behind the coil axis.
    encoded_readout
        Points of the readout before `kspace.preprocess.remove_oversampling`, None where that step was not applied: with the
        dwell time, they give the bandwidth of a pixel.
    steps
        Names of the processing steps applied so far, oldest first.
    """

    source: str = ""
    encoding: int = 0
    index: ImageIndex = ImageIndex()
    encoded_matrix: Matrix = (0, 0, 1)
    recon_matrix: Matrix = (0, 0, 1)
    encoded_fov_m: Vector = (0.0, 0.0, 0.0)
    recon_fov_m: Vector = (0.0, 0.0, 0.0)
    geometry: Geometry = Geometry()
    noise_std: float | None = None
    acceleration: tuple[float, float] = (1.0, 1.0)
    central: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    coils: ReceiveCoils = ReceiveCoils()
    encoded_readout: int | None = None
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class KSpace:
    """Measured samples of one image, on the grid of its encoded matrix.

    Attributes
    ----------
    data
        Complex ``(*batch coil ky kx)``, zero where nothing was acquired; the readout is always last. A 3-D scan is
        ``(kz coil ky kx)`` until `kspace.preprocess.decouple` makes it ``(x coil kz ky)``, a batch of 2-D planes.
    mask
        Bool, broadcastable to `data`; True where a sample was acquired. Its coil axis has length 1, and its readout axis too
        where whole lines were acquired.
    header
        What belongs to the samples.
    n_averages
        Integer, shape of `mask`: how often each sample was measured, 0 where it was not; `data` holds the mean. The noise
        variance of a sample is ``header.noise_std ** 2 / n_averages``.
    calibration
        Complex ``(*batch coil ky kx)`` on the same grid, where separate calibration lines were acquired; zero elsewhere. It
        serves the coil maps only, and may have another scale than `data`. None where the calibration is embedded.

    Raises
    ------
    ValueError
        If the shapes or dtypes contradict each other.
    """

    data: Tensor
    mask: Tensor
    header: Header
    n_averages: Tensor | None = None
    calibration: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.data.is_complex() or self.data.ndim < 3:
            raise ValueError(
                f"k-space must be complex (*batch coil ky kx); got {self.data.dtype} of shape {tuple(self.data.shape)}"
            )
        import torch

        if self.mask.dtype != torch.bool:
            raise ValueError(f"the mask must be bool; got {self.mask.dtype}")
        _check_broadcast("mask", self.mask, self.data)
        if self.n_averages is not None:
            if self.n_averages.is_floating_point() or self.n_averages.is_complex():
                raise ValueError(f"n_averages must be integer; got {self.n_averages.dtype}")
            if self.n_averages.shape != self.mask.shape:
                raise ValueError(
                    f"n_averages {tuple(self.n_averages.shape)} must have the mask's shape {tuple(self.mask.shape)}"
                )
        if self.calibration is not None and self.calibration.shape != self.data.shape:
            raise ValueError(f"calibration {tuple(self.calibration.shape)} must have the data's shape {tuple(self.data.shape)}")

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return self.data.shape[-3]

    def after(self, step: str, *, header: dict[str, Any] | None = None, **changes: Any) -> KSpace:
        """The container after a processing step: `changes` replace fields, `header` replaces fields of the header.

        Raises
        ------
        InputError
            If `step` was applied before: whitening twice is impossible, not invisible.
        """
        if step in self.header.steps:
            done = ", ".join(self.header.steps)
            raise InputError(f"step '{step}' was already applied (steps: {done})", self.header.source or None)
        new_header = replace(self.header, steps=(*self.header.steps, step), **(header or {}))
        return replace(self, header=new_header, **changes)


@dataclass(frozen=True, eq=False)
class Image:
    """One reconstructed image.

    Attributes
    ----------
    data
        Complex ``(z y x)``, z = 1 for a 2-D image; or real of the same shape, for magnitude-only results (`rss`) and maps.
    header
        That of the k-space it was made from, its geometry describing this image.
    role
        ``main`` for the result that was asked for; otherwise what the extra series shows (``sense``, ``uncertainty``, ...).
    """

    data: Tensor
    header: Header
    role: str = "main"

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ValueError(f"an image must be (z y x); got shape {tuple(self.data.shape)}")

    @property
    def geometry(self) -> Geometry:
        """Position, directions and field of view of this image in the patient."""
        return self.header.geometry

    def numpy(self) -> NDArray[Any]:
        """The pixels, complex64 or float32: ``(y x)``, or ``(z y x)`` of a slab (z > 1). Shares memory with `data` on a CPU."""
        pixels: NDArray[Any] = self.data.detach().cpu().numpy()
        return pixels[0] if pixels.shape[0] == 1 else pixels


def _check_broadcast(name: str, x: Tensor, data: Tensor) -> None:
    # Not torch.broadcast_shapes, whose first call imports SymPy: half a second of every command.
    padded = (1,) * (data.ndim - x.ndim) + tuple(x.shape)
    if x.ndim > data.ndim or any(m not in (1, n) for m, n in zip(padded, data.shape, strict=True)):
        raise ValueError(f"{name} of shape {tuple(x.shape)} does not broadcast to the data's {tuple(data.shape)}")
