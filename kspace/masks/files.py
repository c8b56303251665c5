"""Masks from .npy, .mat, .png and .h5 files, with the zero frequency in the centre or in the corner."""

from __future__ import annotations

import functools
import logging
import math
import tokenize
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.fourier import central
from kspace.masks.request import Mask, Request

MAX_SAMPLES = 2**26  # a mask file that declares more is damaged or hostile
MAX_BYTES = 2**29
# Errors that the readers raise on damaged files, depending on where the damage is.
DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, SyntaxError, RuntimeError, MemoryError),
    *(zlib.error, tokenize.TokenError),  # from inside MATLAB's data, and NumPy's header
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MaskFile:
    """Mask read from a file.

    Attributes
    ----------
    mask
        Bool ``(ky,)`` for lines or ``(ky, kx)``, zero frequency at index ``n // 2``.
    zero_frequency
        Its place in the file: ``centre`` or ``corner``.
    summary
        One line of text: file name, shape and place of the zero frequency.
    """

    mask: Mask
    zero_frequency: str
    summary: str


def from_file(request: Request) -> Mask:
    """Mask of ``file:PATH``, bool ``(ny,)`` or ``(ny, nx)``; cached until the file changes."""
    path = Path(request.options["path"])
    read = read_mask(path, request.options["dc"], request.options["name"], request.options["transpose"] == "yes")
    shape = read.mask.shape
    if shape == (request.ny,) or shape == (request.ny, 1):
        return read.mask.reshape(-1)
    if shape != (request.ny, request.nx):
        if len(shape) == 1:
            what, fits = (
                f"the mask has {shape[0]} lines, the k-space {request.ny} (ky) x {request.nx} (kx)",
                shape[0] == request.nx,
            )
        else:
            what = f"the mask is {shape[0]} x {shape[1]}, the k-space {request.ny} (ky) x {request.nx} (kx)"
            fits = shape == (request.nx, request.ny)
        fix = "it would fit the transposed k-space: ky comes first, the readout last" if fits else "masks are not resized"
        raise InputError(what, path, fix + (", or add transpose=yes" if fits and len(shape) == 2 else ""))
    return read.mask[:, 0] if (read.mask == read.mask[:, :1]).all() else read.mask


def read_mask(path: str | Path, dc: str = "auto", name: str | None = None, transpose: bool = False) -> MaskFile:
    """Read a mask, detect the place of its zero frequency and move it to index ``n // 2``.

    Parameters
    ----------
    path
        .npy, .mat (any version), .png or .h5. Axes of length 1 are ignored: fastMRI's ``(1, W, 1)`` is a mask of W lines.
    dc
        Place of the zero frequency: ``centre``, ``corner``, or ``auto`` to detect it by its denser surroundings.
    name
        Variable or data set of a .mat or .h5 file; None for the only one, or the one named ``mask``.
    transpose
        Swap the two axes, for masks that undersample along columns instead of ky.

    Raises
    ------
    InputError
        If the file is missing, damaged or hostile, holds no mask, or its zero frequency cannot be located.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise InputError("mask file not found", path, str(getattr(error, "strerror", error))) from None
    if not path.is_file():
        raise InputError("not a regular file", path)
    if stat.st_size > MAX_BYTES:
        raise InputError(f"{stat.st_size} bytes are too many for a mask, the limit is {MAX_BYTES}", path)
    return _read(path, (stat.st_mtime_ns, stat.st_size), dc, name, transpose)


@functools.lru_cache(maxsize=16)  # modification time and size are part of the key
def _read(path: Path, _state: tuple[int, int], dc: str, name: str | None, transpose: bool) -> MaskFile:
    readers: dict[str, Callable[[Path, str | None], NDArray[Any]]] = {
        ".npy": _npy,
        ".png": _png,
        ".mat": _mat,
        ".h5": _h5,
        ".hdf5": _h5,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"'{path.suffix}' is not a mask format", path, "give " + ", ".join(readers))
    try:
        raw = readers[path.suffix.lower()](path, name)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"the file cannot be read as a mask ({type(error).__name__}: {str(error)[:120]})", path) from None
    mask = _two_valued(raw, path)
    mask = mask.T if transpose else mask
    where = zero_frequency(mask, path) if dc == "auto" else dc
    moved = np.roll(mask, [n // 2 for n in mask.shape], tuple(range(mask.ndim))) if where == "corner" else mask
    if not moved[tuple(n // 2 for n in moved.shape)]:
        other = "centre" if where == "corner" else "corner"
        raise InputError(f"the mask does not sample the zero frequency, taken to be in the {where}", path, f"try dc={other}")
    shape = " x ".join(str(n) for n in mask.shape) + (" lines" if mask.ndim == 1 else "")
    summary = f"{path.name}: {shape}, zero frequency {'detected' if dc == 'auto' else 'given'} in the {where}"
    # Logged once per file; a guess that changes the mask is a warning.
    log.log(logging.WARNING if where == "corner" and dc == "auto" else logging.INFO, "%s", summary)
    moved.flags.writeable = False
    return MaskFile(moved, where, summary)


def zero_frequency(mask: Mask, where: Path) -> str:
    """Place of the zero frequency of `mask`, bool ``(n,)`` or ``(ky, kx)``: ``centre`` or ``corner``.

    It is the one that is sampled and around which sampling is significantly denser; InputError if neither is.
    """
    axes = tuple(range(mask.ndim))
    moved = np.roll(mask, [n // 2 for n in mask.shape], axes)
    if np.array_equal(mask, moved):
        return "centre"  # equivalent
    zero = tuple(n // 2 for n in mask.shape)
    if mask[zero] and _denser(mask, moved):
        return "centre"
    if moved[zero] and _denser(moved, mask):
        return "corner"
    what = "the zero frequency cannot be located: sampling is not clearly denser around the centre or the corner"
    raise InputError(what, where, "give dc=centre or dc=corner")


def _denser(mask: Mask, other: Mask) -> bool:
    """Whether `mask` is significantly denser around its centre than `other`."""
    fraction = float(mask.mean())
    block = tuple(central(n, min(n, max(3, n // 8))) for n in mask.shape)
    here, there = int(mask[block].sum()), int(other[block].sum())
    deviation = math.sqrt(2 * mask[block].size * fraction * (1 - fraction))
    if here > 1.5 * there and here - there > 3 * deviation:
        return True
    # Few lines, but among them a contiguous block that independent random lines would almost never form.
    full = _full_centre(mask)
    return full > 2 * _full_centre(other) and fraction ** (full - 1) < 0.01


def _full_centre(mask: Mask) -> int:
    """Number of samples of the largest fully sampled central block of equal sides."""
    side = 0
    while side < min(mask.shape) and mask[tuple(central(n, side + 1) for n in mask.shape)].all():
        side += 1
    return int(side**mask.ndim)


def _two_valued(raw: NDArray[Any], path: Path) -> Mask:
    if raw.dtype.kind not in "biuf":
        raise InputError(f"expected a numeric or bool mask, found {raw.dtype}", path)
    mask = np.squeeze(raw)
    if mask.ndim == 0:
        mask = mask.reshape(1)
    if mask.ndim > 2 or mask.size == 0:
        raise InputError(f"expected a mask of one axis (lines) or two (ky, kx), found shape {raw.shape}", path)
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise InputError("the mask holds values that are not finite", path)
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0) or values[-1] < 0:
        few = ", ".join(f"{value:g}" for value in values[:3].astype(float))
        raise InputError(
            f"expected a mask of two values, 0 and another, found {len(values)} ({few}{', ...' if len(values) > 3 else ''})",
            path,
        )
    if values[-1] == 0:
        raise InputError("the mask is all zero", path)
    return np.ascontiguousarray(mask != 0)


def _npy(path: Path, name: str | None) -> NDArray[Any]:
    _no_name(path, name)
    # Memory-mapped, so that a header that declares more than the file holds allocates nothing.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError("expected one array, found an archive of arrays", path, "save the mask with numpy.save")
    _check_size(array.shape, path)
    return np.array(array)


def _png(path: Path, name: str | None) -> NDArray[Any]:
    _no_name(path, name)
    from PIL import Image  # imported here: only PNG files need it

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                _check_size((image.height, image.width), path)
                return np.array(image if image.mode in ("1", "L", "I", "I;16") else image.convert("L"))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(str(error)) from None


def _mat(path: Path, name: str | None) -> NDArray[Any]:
    with path.open("rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head or head[:8] == b"\x89HDF\r\n\x1a\n":
        return _h5(path, name).T  # MATLAB arrays are column-major, so HDF5 shows the axes reversed
    import scipy.io  # imported here: only .mat files need it

    try:
        shapes = _variables(scipy.io.whosmat(path))
        chosen = _chosen(path, name, shapes)
        _check_size(shapes[chosen], path)
        return np.asarray(scipy.io.loadmat(path, variable_names=[chosen])[chosen])
    except scipy.io.matlab.MatReadError as error:
        raise ValueError(str(error)) from None


def _variables(listed: list[tuple[str, tuple[int, ...], str]]) -> dict[str, tuple[int, ...]]:
    kinds = ("int", "uint", "double", "single", "logical")
    return {name: shape for name, shape, kind in listed if kind.startswith(kinds)}


def _h5(path: Path, name: str | None) -> NDArray[Any]:
    import h5py  # imported here: only HDF5 files need it

    with h5py.File(path, "r") as file:
        # Links, virtual and external data sets could read other files, so only data stored in this file are considered.
        inside = [key for key in file if isinstance(file.get(key, getlink=True), h5py.HardLink)]
        found = {key: file[key] for key in ([name] if name and "/" in name and name in file else inside)}
        sets = {key: one for key, one in found.items() if isinstance(one, h5py.Dataset)}
        numbers = {
            key: one for key, one in sets.items() if one.dtype.kind in "biuf" and not one.is_virtual and not one.external
        }
        chosen = numbers[_chosen(path, name, {key: one.shape for key, one in numbers.items()})]
        _check_size(chosen.shape, path)
        return np.asarray(chosen[()])


def _chosen(path: Path, name: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    """Variable to read: `name` if given, else the only one, else ``mask``."""
    if name is not None:
        if name not in shapes:
            raise InputError(f"array '{name}' not found", path, f"the file holds {', '.join(shapes) or 'no arrays'}")
        return name
    if len(shapes) == 1:
        return next(iter(shapes))
    if "mask" in shapes:
        return "mask"
    raise InputError(
        "the file holds no mask" if not shapes else "the file holds several arrays",
        path,
        f"give name= with one of {', '.join(shapes)}" if shapes else None,
    )


def _no_name(path: Path, name: str | None) -> None:
    if name is not None:
        raise InputError(f"name={name} does not apply to this format", path, "it selects an array of a .mat or .h5 file")


def _check_size(shape: tuple[int, ...], path: Path) -> None:
    if (n := int(np.prod([float(m) for m in shape]))) > MAX_SAMPLES:
        raise InputError(f"{n} samples {shape} are too many for a mask", path)
