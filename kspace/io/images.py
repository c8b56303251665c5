"""Reading folders of pictures: JPEG, PNG, TIFF, DICOM, NIfTI and NumPy files, and the boxes beside them.

Row 0 of a picture is its top row and is y index 0; column 0 is x index 0. Nothing is scaled: values are as stored, DICOM's
after its rescale slope and intercept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
STACKS = (".nii", ".nii.gz", ".npy")
DICOM = (".dcm", ".ima", ".dicom")
SUFFIXES = (*PICTURES, *DICOM, *STACKS)
MAX_PIXELS = 1 << 30  # of one file, 4 GiB as float32: more than any scanner's series
# Colour JPEGs of grey pictures differ by a few steps between channels, because chroma is stored at half the resolution.
GREY_TOLERANCE = 12


@dataclass(frozen=True)
class Box:
    """A region of interest, in fractions of the picture: class number, centre and size, as YOLO text files hold them."""

    label: int
    x: float
    y: float
    width: float
    height: float


def find_images(folder: Path) -> list[Path]:
    """All pictures in a folder and the folders below it, numbers in names sorted as numbers; hidden files are passed over.

    Raises
    ------
    InputError
        If the folder does not exist, is a file that is not a picture, or holds no picture.
    """
    if folder.is_file() and suffix(folder):
        return [folder]
    if not folder.is_dir():
        raise InputError("no such folder of images", folder, "check the path")
    relative = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    found = [folder / path for path in visible if suffix(folder / path)]
    if not found:
        held = f"{len(visible)} other files" if visible else "nothing"
        raise InputError(f"no images (it holds {held})", folder, f"give a folder with {', '.join(SUFFIXES)} files")
    return sorted(found, key=natural_key)


def read_image(path: Path) -> NDArray[Any]:
    """Read every slice of a file.

    NIfTI slices run along the third stored axis, further axes follow; in each slice x grows towards the patient's left (or
    back, in sagittal slices) and y towards the back (or the feet), as radiologists see them. NumPy files hold ``(y, x)`` or
    ``(slice, y, x)``.

    Returns
    -------
    ndarray
        ``(slice y x)``, float32, or complex64 where the file holds complex numbers.

    Raises
    ------
    InputError
        If the file cannot be read, holds colours, numbers that are not finite, or is not of a shape that is a picture.
    """
    readers = {".npy": _read_numpy, ".nii": _read_nifti, ".nii.gz": _read_nifti} | dict.fromkeys(DICOM, _read_dicom)
    reader = readers.get(suffix(path) or "", _read_picture)
    try:
        image = reader(path)
    except InputError:
        raise
    except Exception as error:
        # Decoders of five formats fail in as many ways on damaged files; which way is of no use to a person with thousands.
        text = " ".join(str(error).split())[:160]
        raise InputError(
            f"cannot read the image ({type(error).__name__}: {text})", path, "remove it, or give --skip-bad"
        ) from error
    if image.ndim != 3 or min(image.shape) < 1 or min(image.shape[1:]) < 2:
        raise InputError(f"expected a picture or a stack of them, got shape {image.shape}", path)
    image = image.astype(np.complex64 if np.iscomplexobj(image) else np.float32)
    if not np.isfinite(image).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(image))} pixels are NaN or infinite", path)
    return image


def read_boxes(path: Path) -> list[Box]:
    """Boxes of a picture, from the YOLO text file beside it (same name, ``.txt``); none where there is no such file.

    Each line is ``class x y width height``: the centre and the size as fractions of the picture, from its top left corner.

    Raises
    ------
    InputError
        If a line does not hold this.
    """
    text_file = path.with_suffix(".txt")
    if not text_file.is_file():
        return []
    boxes = []
    for number, line in enumerate(text_file.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label, *place = (float(word) for word in line.split())
            if len(place) != 4 or label != int(label) or label < 0:
                raise ValueError
        except (ValueError, OverflowError) as error:
            raise InputError(f"line {number} is {line[:60]!r}, expected 'class x y width height'", text_file) from error
        if not all(0 <= value <= 1 for value in place) or min(place[2:]) <= 0:
            raise InputError(f"the box of line {number} is not inside the picture: {line[:60]!r}", text_file)
        boxes.append(Box(int(label), *place))
    return boxes


def box_corners(box: Box, shape: Sequence[int], matrix: Sequence[int]) -> tuple[float, float, float, float]:
    """Corners ``(y0, x0, y1, x1)`` of a box in points of the image that is left when k-space is cropped to `matrix`.

    Cropping k-space about its centre keeps pixel ``n // 2`` of the picture on pixel ``m // 2`` of the image, so fractions of
    the one are not exactly fractions of the other. Pixel k covers the interval from k to k + 1.

    Parameters
    ----------
    box
        In fractions of the picture.
    shape
        Points ``(y, x)`` of the picture.
    matrix
        Points ``(y, x)`` of the image.
    """
    corners = []
    for sign in (-0.5, 0.5):
        for centre, size, n, m in zip((box.y, box.x), (box.height, box.width), shape, matrix, strict=True):
            edge = (centre + sign * size) * n
            moved = (edge - 0.5 - n // 2) * m / n + m // 2 + 0.5
            corners.append(min(max(moved, 0.0), float(m)))
    y0, x0, y1, x1 = corners
    return y0, x0, y1, x1


def _read_picture(path: Path) -> NDArray[Any]:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            frames = []
            for i in range(getattr(picture, "n_frames", 1)):
                picture.seek(i)
                if (i + 1) * picture.width * picture.height > MAX_PIXELS:
                    raise InputError(f"the image has more than {MAX_PIXELS} pixels", path)
                frames.append(_grey(ImageOps.exif_transpose(picture), path))
    if len({frame.shape for frame in frames}) > 1:
        raise InputError("the pages of the file differ in size", path)
    return np.stack(frames)


def _grey(picture: Any, path: Path) -> NDArray[Any]:
    if picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB" if picture.mode != "PA" else "RGBA")
    values = np.asarray(picture)
    if values.ndim == 2:
        return values
    if picture.mode in ("LA", "RGBA", "La", "RGBa"):
        if values[..., -1].min() < 255:
            raise InputError("the picture is partly transparent", path, "flatten it")
        values = values[..., :-1]
    spread = int((values.max(-1).astype(np.int32) - values.min(-1)).max())
    if spread > GREY_TOLERANCE:
        raise InputError(f"the picture is coloured (channels differ by {spread} of 255)", path, "give grey-scale images")
    grey: NDArray[Any] = values.astype(np.float32).mean(-1)
    return grey


def _read_dicom(path: Path) -> NDArray[Any]:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every value that breaks the standard; only the pixels matter here
        dataset = pydicom.dcmread(path)
        if int(dataset.get("SamplesPerPixel", 1)) != 1:
            raise InputError("the DICOM image is coloured", path, "give grey-scale images")
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
        if int(dataset.Rows) * int(dataset.Columns) * frames > MAX_PIXELS:
            raise InputError(f"the image has more than {MAX_PIXELS} pixels", path)
        values = np.asarray(apply_modality_lut(dataset.pixel_array, dataset))
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() + values.min() - values.astype(np.float32)
    return values if values.ndim == 3 else values[None]


def _read_nifti(path: Path) -> NDArray[Any]:
    import nibabel

    scan: Any = nibabel.load(path)
    if scan.get_data_dtype().fields is not None:
        raise InputError("the NIfTI image is coloured", path, "give grey-scale images")
    if int(np.prod(scan.shape, dtype=np.int64)) > MAX_PIXELS:
        raise InputError(f"the image has more than {MAX_PIXELS} pixels", path)
    values = np.asarray(scan.dataobj)
    values = values.reshape(*values.shape, *(1,) * (3 - values.ndim))
    codes = nibabel.aff2axcodes(scan.affine)
    towards = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
    for axis in (0, 1):
        if codes[axis] in ("R", "A", "S"):
            values = np.flip(values, axis)
    if towards.get(codes[0], 0) > towards.get(codes[1], 0):
        values = values.swapaxes(0, 1)
    # (x, y, slice, time, ...) becomes (every slice of every time, y, x).
    return values.reshape(*values.shape[:2], -1, order="F").transpose(2, 1, 0)


def _read_numpy(path: Path) -> NDArray[Any]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.dtype.kind not in "biufc":
        raise InputError(f"the array holds {values.dtype}, expected numbers", path)
    if values.ndim not in (2, 3) or values.size > MAX_PIXELS:
        raise InputError(f"the array is {values.shape}, expected (y, x) or (slice, y, x)", path)
    if values.ndim == 3 and values.shape[-1] in (3, 4) and values.dtype == np.uint8:
        raise InputError(f"the array is {values.shape} of 8 bit, a coloured picture", path, "give grey-scale images")
    return np.array(values if values.ndim == 3 else values[None])


def dicom_identity(path: Path) -> tuple[str, str]:
    """Patient ID and series UID of a DICOM file; empty where it does not say, or cannot be read (`read_image` says why)."""
    import pydicom

    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID", "SeriesInstanceUID"])
        return str(tags.get("PatientID", "")), str(tags.get("SeriesInstanceUID", ""))
    except Exception:  # decoders fail in many ways on damaged files; grouping needs none of them told apart
        return "", ""


def suffix(path: Path) -> str | None:
    """Which of `SUFFIXES` a file is to be read as, from its name or, for DICOM, its content; None for others."""
    name = path.name.lower()
    known = next((known for known in SUFFIXES if name.endswith(known)), None)
    # Scanners export DICOM without a suffix, or with a UID for a name.
    if known is None and (not path.suffix or path.suffix[1:].isdigit()):
        try:
            with path.open("rb") as file:
                return DICOM[0] if file.read(132)[128:] == b"DICM" else None
        except OSError:
            return None
    return known


def stem(path: Path) -> str:
    """The file's name without what `suffix` recognises."""
    kind = suffix(path)
    return path.name[: -len(kind)] if kind and path.name.lower().endswith(kind) else path.name


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key under which file 10 follows file 9."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", path.as_posix()) if part]
