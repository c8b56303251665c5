"""Containers of k-space, images and their headers. Processing steps are functions `KSpace -> KSpace` in other modules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kspace.errors import InputError

if TYPE_CHECKING:  # headers are read by commands that need no tensor: importing torch takes a second
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

Vector = tuple[float, float, float]
Matrix = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """Position and orientation of an image in DICOM patient coordinates (LPS), lengths in metres.

    Attributes
    ----------
    position_m
        Centre of the voxel with index ``n // 2`` (0-based) on every axis.
    read_dir, phase_dir, slice_dir
        Unit vectors of increasing x, y and z index.
    fov_m
        Field of view ``(x, y, z)`` of the image that this geometry describes.
    table_position_m
        Patient table position as reported by the scanner.
    nominal
        True where directions and positions are assumed, not measured (plain arrays, simulated files): left and right are then
        unknown.
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
    """Counters that identify one image of a scan, ordered for output: repetition fastest, then phase, set, contrast."""

    contrast: int = 0
    set: int = 0
    phase: int = 0
    repetition: int = 0
    slice: int = 0

    @property
    def name(self) -> str:
        """Non-zero counters as text: ``slice 3, repetition 2``."""
        parts = [f"{name} {value}" for name, value in vars(self).items() if value]
        return ", ".join(reversed(parts)) or "slice 0"


@dataclass(frozen=True)
class ReceiveCoils:
    """Receive coils of the coil axis: channels used, dropped and combined in preprocessing.

    Attributes
    ----------
    numbers
        Channel numbers in the raw file of the coils in use, in order; empty where the file has none (all are used).
    names
        Name of each channel of the raw file; empty if the header has none.
    dropped
        Channel numbers of the removed coils.
    compression
        Complex ``(virtual coil)`` compression matrix of `kspace.compression.compress`; None without compression.
    """

    numbers: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    dropped: tuple[int, ...] = ()
    compression: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def dropped_names(self) -> tuple[str, ...]:
        """Number and, where known, name of each dropped coil: ``"2 (C)"``."""
        return tuple(f"{c} ({self.names[c]})" if c < len(self.names) and self.names[c] else str(c) for c in self.dropped)


@dataclass(frozen=True)
class Header:
    """Acquisition parameters and processing history of one image.

    Attributes
    ----------
    source
        Name of the file, for error messages.
    encoding
        Index of the encoding space in the file's header.
    index
        Counters of this image.
    encoded_matrix, recon_matrix
        Matrix size ``(x, y, z)`` of the encoded k-space and of the reconstructed image.
    encoded_fov_m, recon_fov_m
        Field of view ``(x, y, z)`` of both, in metres.
    geometry
        Position and orientation from the central readout; ``fov_m`` is that of the recon space.
    noise_std
        Square root of E|n|^2 of one k-space sample before averaging: 1 after whitening, None if unknown.
    acceleration
        Nominal undersampling factor ``(ky, kz)`` from the header.
    central
        Fields of the central readout that image headers need (ISMRMRD names: ``measurement_uid``, ``acquisition_time_stamp``,
        ``physiology_time_stamp``, ``user_int``, ``user_float``, ``average``, ``flags``, ``position`` in mm, ...).
    study
        Scan header fields under their ISMRMRD names (``systemVendor``, ``systemFieldStrength_T``, ``TR``, ``TE``,
        ``flipAngle_deg``, ``protocolName``, ``patientPosition``, ``frameOfReferenceUID``, ``studyDate``, ...), where present.
    coils
        Receive coils of the coil axis.
    encoded_readout
        Readout samples before `kspace.preprocess.remove_oversampling`, None if that step was not applied; with the dwell time
        they give the pixel bandwidth.
    steps
        Names of the applied processing steps, oldest first.
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
    """Measured k-space samples of one image on its encoded matrix.

    Attributes
    ----------
    data
        Complex ``(*batch coil ky kx)``, zero where not acquired; the readout is always last. A 3-D scan is
        ``(kz coil ky kx)`` until `kspace.preprocess.decouple` makes it ``(x coil kz ky)``, a batch of 2-D planes.
    mask
        Bool, broadcastable to `data`; True where a sample was acquired. Its coil axis has length 1; so has its readout axis
        if complete readouts were acquired.
    header
        Acquisition parameters and processing history.
    n_averages
        Integer, shape of `mask`: number of measurements of each sample, 0 if none; `data` holds their mean. The noise variance
        of a sample is ``header.noise_std ** 2 / n_averages``.
    calibration
        Complex ``(*batch coil ky kx)`` on the same grid: separately acquired calibration lines, zero elsewhere. Used for coil
        maps only; its scale may differ from that of `data`. None for embedded calibration.
    trajectory
        Real ``(readout sample 2)``: kx and ky in cycles per pixel of ``header.encoded_matrix``; `data` is then ``(*batch coil
        readout sample)``. With kz, ``(readout sample 3)``, the samples are those of a volume. None: the samples lie on the grid
        of that matrix.
    density
        Real ``(readout sample)``: density compensation from the file; None without.

    Raises
    ------
    ValueError
        If shapes or dtypes are inconsistent.
    """

    data: Tensor
    mask: Tensor
    header: Header
    n_averages: Tensor | None = None
    calibration: Tensor | None = None
    trajectory: Tensor | None = None
    density: Tensor | None = None

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
        if self.trajectory is not None and tuple(self.trajectory.shape) not in [(*self.data.shape[-2:], d) for d in (2, 3)]:
            raise ValueError(f"trajectory {tuple(self.trajectory.shape)} does not fit data of shape {tuple(self.data.shape)}")

    @property
    def n_coils(self) -> int:
        """Number of receive coils."""
        return self.data.shape[-3]

    @property
    def is_volume(self) -> bool:
        """Whether the planes of the image are coupled: its trajectory has kz."""
        return self.trajectory is not None and self.trajectory.shape[-1] == 3

    def after(self, step: str, *, header: dict[str, Any] | None = None, **changes: Any) -> KSpace:
        """Copy after a processing step: `changes` replace fields, `header` replaces fields of the header.

        Raises
        ------
        InputError
            If `step` was applied before.
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
        Header of the source k-space, with the geometry of this image.
    role
        ``main`` for the requested result; otherwise the content of an additional series (``sense``, ``uncertainty``, ...).
    release
        Gives memory of pixels back that lie in a file; None where they lie in memory. To be called after they were read.
    """

    data: Tensor
    header: Header
    role: str = "main"
    release: Callable[[], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ValueError(f"an image must be (z y x); got shape {tuple(self.data.shape)}")

    @property
    def geometry(self) -> Geometry:
        """Position, directions and field of view of this image in the patient."""
        return self.header.geometry

    def numpy(self) -> NDArray[Any]:
        """Pixels, complex64 or float32 ``(y x)``, or ``(z y x)`` for z > 1. Shares memory with `data` on the CPU."""
        pixels: NDArray[Any] = self.data.detach().cpu().numpy()
        return pixels[0] if pixels.shape[0] == 1 else pixels


def _check_broadcast(name: str, x: Tensor, data: Tensor) -> None:
    # Not torch.broadcast_shapes: its first call imports SymPy, half a second per command.
    padded = (1,) * (data.ndim - x.ndim) + tuple(x.shape)
    if x.ndim > data.ndim or any(m not in (1, n) for m, n in zip(padded, data.shape, strict=True)):
        raise ValueError(f"{name} of shape {tuple(x.shape)} does not broadcast to the data's {tuple(data.shape)}")
