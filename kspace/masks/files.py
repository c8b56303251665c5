"""Masks that somebody else drew: .npy, .mat, .png and .h5 files, with the zero frequency in the centre or in the corner."""

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
from kspace.masks.request import Mask, Request, central

MAX_SAMPLES = 2**26  # of a mask; a file that claims more is damaged or hostile
MAX_BYTES = 2**29
# What the readers raise on damaged files, depending on where the damage is.
DAMAGED = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, SyntaxError, RuntimeError, MemoryError),
    *(zlib.error, tokenize.TokenError),  # from inside MATLAB's data, and NumPy's header
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A mask as it was read.

    Attributes
    ----------
    mask
        Bool, ``(ky,)`` for lines or ``(ky, kx)``, zero frequency at index ``n // 2``.
    zero_frequency
        Where the file has it: ``centre`` or ``corner``.
    said
        One line for a person: the name, the shape and what was recognised.
    """

    mask: Mask
    zero_frequency: str
    said: str


def from_file(ask: Request) -> Mask:
    """The mask of ``file:PATH``: a pure function of the file; it is remembered until the file changes."""
    path = Path(ask.options["path"])
    read = read_mask(path, ask.options["dc"], ask.options["name"], ask.options["transpose"] == "yes")
    shape = read.mask.shape
    if shape == (ask.ny,) or shape == (ask.ny, 1):
        return read.mask.reshape(-1)
    if shape != (ask.ny, ask.nx):
        if len(shape) == 1:
            what, fits = f"the mask has {shape[0]} lines, the k-space {ask.ny} (ky) x {ask.nx} (kx)", shape[0] == ask.nx
        else:
            what = f"the mask is {shape[0]} x {shape[1]}, the k-space {ask.ny} (ky) x {ask.nx} (kx)"
            fits = shape == (ask.nx, ask.ny)
        fix = "it would fit the transposed k-space: ky comes first, the readout last" if fits else "masks are never stretched"
        raise InputError(what, path, fix + (", or add transpose=yes" if fits and len(shape) == 2 else ""))
    return read.mask[:, 0] if (read.mask == read.mask[:, :1]).all() else read.mask


def read_mask(path: str | Path, dc: str = "auto", name: str | None = None, transpose: bool = False) -> MaskFile:
    """Read a mask, recognise where its zero frequency is, and move that to index ``n // 2``.

    Parameters
    ----------
    path
        .npy, .mat (any version), .png or .h5. Axes of length 1 are ignored: fastMRI's ``(1, W, 1)`` is a mask of W lines.
    dc
        Where the zero frequency is: ``centre``, ``corner``, or ``auto``, to recognise it by the denser sampling around it.
    name
        Which variable or data set of a .mat or .h5 file; None for the only one, or the one called ``mask``.
    transpose
        Swap the two axes: for masks that sample columns where lines of ky are meant.

    Raises
    ------
    InputError
        If the file is missing, damaged or hostile, holds no mask, or does not show where its zero frequency is.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise InputError("there is no such mask file", path, str(getattr(error, "strerror", error))) from None
    if not path.is_file():
        raise InputError("this is not a file", path)
    if stat.st_size > MAX_BYTES:
        raise InputError(f"{stat.st_size} bytes are too many for a mask", path)
    return _read(path, (stat.st_mtime_ns, stat.st_size), dc, name, transpose)


@functools.lru_cache(maxsize=16)  # keyed by the file's time and size too
def _read(path: Path, _state: tuple[int, int], dc: str, name: str | None, transpose: bool) -> MaskFile:
    readers: dict[str, Callable[[Path, str | None], NDArray[Any]]] = {
        ".npy": _npy,
        ".png": _png,
        ".mat": _mat,
        ".h5": _h5,
        ".hdf5": _h5,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"'{path.suffix}' is no format for masks", path, "give " + ", ".join(readers))
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
    said = f"{path.name}: {shape}, zero frequency {'recognised' if dc == 'auto' else 'given'} in the {where}"
    # Said once per file. It matters most where something was moved, so that one is heard without asking.
    log.log(logging.WARNING if where == "corner" and dc == "auto" else logging.INFO, "%s", said)
    moved.flags.writeable = False
    return MaskFile(moved, where, said)


def zero_frequency(mask: Mask, where: Path) -> str:
    """``centre`` or ``corner``: the one around which the mask samples clearly more densely, and which itself is sampled."""
    axes = tuple(range(mask.ndim))
    moved = np.roll(mask, [n // 2 for n in mask.shape], axes)
    if np.array_equal(mask, moved):
        return "centre"  # it makes no difference
    zero = tuple(n // 2 for n in mask.shape)
    if mask[zero] and _denser(mask, moved):
        return "centre"
    if moved[zero] and _denser(moved, mask):
        return "corner"
    what = "the mask does not show where its zero frequency is: it is not clearly denser around the centre or the corner"
    raise InputError(what, where, "say dc=centre or dc=corner")


def _denser(mask: Mask, other: Mask) -> bool:
    """Whether `mask` is sampled more densely around its centre than `other`, beyond what chance would do."""
    fraction = float(mask.mean())
    block = tuple(central(n, min(n, max(3, n // 8))) for n in mask.shape)
    here, there = int(mask[block].sum()), int(other[block].sum())
    deviation = math.sqrt(2 * mask[block].size * fraction * (1 - fraction))
    if here > 1.5 * there and here - there > 3 * deviation:
        return True
    # Few lines, but among them a block without gaps, that independent lines would hardly ever make.
    full = _full_centre(mask)
    return full > 2 * _full_centre(other) and fraction ** (full - 1) < 0.01


def _full_centre(mask: Mask) -> int:
    """Samples of the largest fully sampled central block of equal sides."""
    side = 0
    while side < min(mask.shape) and mask[tuple(central(n, side + 1) for n in mask.shape)].all():
        side += 1
    return int(side**mask.ndim)


def _two_valued(raw: NDArray[Any], path: Path) -> Mask:
    if raw.dtype.kind not in "biuf":
        raise InputError(f"a mask holds numbers, not {raw.dtype}", path)
    mask = np.squeeze(raw)
    if mask.ndim == 0:
        mask = mask.reshape(1)
    if mask.ndim > 2 or mask.size == 0:
        raise InputError(f"a mask has one axis (lines) or two (ky, kx); this one is {raw.shape}", path)
    if mask.dtype.kind == "f" and not np.isfinite(mask).all():
        raise InputError("the mask has samples that are not finite", path)
    values = np.unique(mask)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0) or values[-1] < 0:
        few = ", ".join(f"{value:g}" for value in values[:3].astype(float))
        raise InputError(
            f"a mask has two values, 0 and another; this one has {len(values)} ({few}{', ...' if len(values) > 3 else ''})",
            path,
        )
    if values[-1] == 0:
        raise InputError("the mask samples nothing", path)
    return np.ascontiguousarray(mask != 0)


def _npy(path: Path, name: str | None) -> NDArray[Any]:
    _no_name(path, name)
    # Mapped, so that a header that claims more than the file holds allocates nothing.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError("this is an archive of arrays, not one array", path, "save the mask with numpy.save")
    _check_size(array.shape, path)
    return np.array(array)


def _png(path: Path, name: str | None) -> NDArray[Any]:
    _no_name(path, name)
    from PIL import Image  # imported here: only pictures need it

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                _check_size((picture.height, picture.width), path)
                plain = picture if picture.mode in ("1", "L", "I", "I;16") else picture.convert("L")
                return np.array(plain)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(str(error)) from None


def _mat(path: Path, name: str | None) -> NDArray[Any]:
    with path.open("rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head or head[:8] == b"\x89HDF\r\n\x1a\n":
        return _h5(path, name).T  # MATLAB writes columns first, and HDF5 keeps that order
    import scipy.io  # imported here: only these files need it

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
    import h5py  # imported here: only these files need it

    with h5py.File(path, "r") as file:
        # Only what lies in this very file is read: no link, no virtual data set leads anywhere else.
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
    """The variable to read: the one that was named, else the only one, else ``mask``."""
    if name is not None:
        if name not in shapes:
            raise InputError(f"there is no mask '{name}'", path, f"it holds {', '.join(shapes) or 'no arrays'}")
        return name
    if len(shapes) == 1:
        return next(iter(shapes))
    if "mask" in shapes:
        return "mask"
    raise InputError(
        "the file holds no mask" if not shapes else "the file holds several arrays",
        path,
        f"name=: {', '.join(shapes)}" if shapes else None,
    )


def _no_name(path: Path, name: str | None) -> None:
    if name is not None:
        raise InputError(f"name={name} has no meaning", path, "it chooses among the arrays of .mat and .h5 files")


def _check_size(shape: tuple[int, ...], path: Path) -> None:
    if (n := int(np.prod([float(m) for m in shape]))) > MAX_SAMPLES:
        raise InputError(f"{n} samples {shape} are too many for a mask", path)
