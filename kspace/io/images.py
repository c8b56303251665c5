"""Readers of image folders: JPEG, PNG, TIFF, DICOM, NIfTI and NumPy files, and bounding boxes.

Row 0, the top row of an image, is y index 0; column 0 is x index 0. Values are as stored, without scaling except for the DICOM
rescale slope and intercept.
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

RASTER = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
STACKS = (".nii", ".nii.gz", ".npy")
DICOM = (".dcm", ".ima", ".dicom")
SUFFIXES = (*RASTER, *DICOM, *STACKS)
MAX_PIXELS = 1 << 30  # per file, 4 GiB as float32: more than any scanner series
# The channels of grey images in colour JPEGs differ slightly, because chroma is stored at half resolution.
GREY_TOLERANCE = 12


@dataclass(frozen=True)
class Box:
    """Region of interest as in YOLO text files: class number, centre and size in fractions of the image."""

    label: int
    x: float
    y: float
    width: float
    height: float


def find_images(folder: Path) -> list[Path]:
    """Find all images in a folder and its subfolders, in natural order; hidden files are ignored.

    Raises
    ------
    InputError
        If the folder does not exist, is a file that is not an image, or contains no image.
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
        raise InputError(
            f"no images found (the folder holds {held})", folder, f"give a folder with {', '.join(SUFFIXES)} files"
        )
    return sorted(found, key=natural_key)


def read_image(path: Path) -> NDArray[Any]:
    """Read all slices of an image file.

    NIfTI slices lie along the third stored axis, followed by further axes; each is in radiological orientation: x increases
    towards the patient's left (posterior in sagittal slices) and y towards posterior (or the feet). NumPy files hold
    ``(y, x)`` or ``(slice, y, x)``.

    Returns
    -------
    ndarray
        Float32 ``(slice y x)``, or complex64 if the file is complex.

    Raises
    ------
    InputError
        If the file cannot be read, is coloured, holds values that are not finite, or has another shape.
    """
    readers = {".npy": _read_numpy, ".nii": _read_nifti, ".nii.gz": _read_nifti} | dict.fromkeys(DICOM, _read_dicom)
    reader = readers.get(suffix(path) or "", _read_raster)
    try:
        image = reader(path)
    except InputError:
        raise
    except Exception as error:
        # Decoders of five formats raise many types of errors on damaged files.
        text = " ".join(str(error).split())[:160]
        raise InputError(
            f"cannot read the image ({type(error).__name__}: {text})", path, "remove it, or give --skip-bad"
        ) from error
    if image.ndim != 3 or min(image.shape) < 1 or min(image.shape[1:]) < 2:
        raise InputError(f"expected an image or a stack of images, found shape {image.shape}", path)
    image = image.astype(np.complex64 if np.iscomplexobj(image) else np.float32)
    if not np.isfinite(image).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(image))} pixels are NaN or infinite", path)
    return image


def read_boxes(path: Path) -> list[Box]:
    """Read the boxes of an image from the YOLO text file of the same name (``.txt``); empty without such a file.

    Each line is ``class x y width height``: centre and size in fractions of the image, from its top left corner.

    Raises
    ------
    InputError
        If a line has another format.
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
            raise InputError(f"the box of line {number} is not inside the image: {line[:60]!r}", text_file)
        boxes.append(Box(int(label), *place))
    return boxes


def box_corners(box: Box, shape: Sequence[int], matrix: Sequence[int]) -> tuple[float, float, float, float]:
    """Corners ``(y0, x0, y1, x1)`` of a box in pixels of the image after cropping its k-space to `matrix`.

    Cropping about the centre of k-space maps pixel ``n // 2`` to pixel ``m // 2``, which is not an exact scaling of fractions.
    Pixel k covers the interval from k to k + 1.

    Parameters
    ----------
    box
        Box in fractions of the original image.
    shape
        Matrix size ``(y, x)`` of the original image.
    matrix
        Matrix size ``(y, x)`` of the cropped image.
    """
    corners = []
    for sign in (-0.5, 0.5):
        for centre, size, n, m in zip((box.y, box.x), (box.height, box.width), shape, matrix, strict=True):
            edge = (centre + sign * size) * n
            moved = (edge - 0.5 - n // 2) * m / n + m // 2 + 0.5
            corners.append(min(max(moved, 0.0), float(m)))
    y0, x0, y1, x1 = corners
    return y0, x0, y1, x1


def _read_raster(path: Path) -> NDArray[Any]:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            frames = []
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                if (i + 1) * image.width * image.height > MAX_PIXELS:
                    raise InputError(f"the image has more than {MAX_PIXELS} pixels", path)
                frames.append(_grey(ImageOps.exif_transpose(image), path))
    if len({frame.shape for frame in frames}) > 1:
        raise InputError("the pages of the file differ in size", path)
    return np.stack(frames)


def _grey(image: Any, path: Path) -> NDArray[Any]:
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB" if image.mode != "PA" else "RGBA")
    values = np.asarray(image)
    if values.ndim == 2:
        return values
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        if values[..., -1].min() < 255:
            raise InputError("the image is partly transparent", path, "flatten it")
        values = values[..., :-1]
    spread = int((values.max(-1).astype(np.int32) - values.min(-1)).max())
    if spread > GREY_TOLERANCE:
        raise InputError(f"the image is coloured (channels differ by {spread} of 255)", path, "give grey-scale images")
    grey: NDArray[Any] = values.astype(np.float32).mean(-1)
    return grey


def _read_dicom(path: Path) -> NDArray[Any]:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of non-standard values; only the pixels matter here
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
    # (x, y, slice, time, ...) to (slice and time, y, x).
    return values.reshape(*values.shape[:2], -1, order="F").transpose(2, 1, 0)


def _read_numpy(path: Path) -> NDArray[Any]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.dtype.kind not in "biufc":
        raise InputError(f"the array is of type {values.dtype}, expected numbers", path)
    if values.ndim not in (2, 3) or values.size > MAX_PIXELS:
        raise InputError(f"the array has shape {values.shape}, expected (y, x) or (slice, y, x)", path)
    if values.ndim == 3 and values.shape[-1] in (3, 4) and values.dtype == np.uint8:
        raise InputError(f"the array has shape {values.shape} and 8 bits, a coloured image", path, "give grey-scale images")
    return np.array(values if values.ndim == 3 else values[None])


def dicom_identity(path: Path) -> tuple[str, str]:
    """Patient ID and series UID of a DICOM file; empty if missing or unreadable (`read_image` reports errors)."""
    import pydicom

    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID", "SeriesInstanceUID"])
        return str(tags.get("PatientID", "")), str(tags.get("SeriesInstanceUID", ""))
    except Exception:  # damaged files raise many types of errors, all equivalent for grouping
        return "", ""


def suffix(path: Path) -> str | None:
    """Format of a file as one of `SUFFIXES`, from its name or, for DICOM, its content; None for others."""
    name = path.name.lower()
    known = next((known for known in SUFFIXES if name.endswith(known)), None)
    # Scanners export DICOM without a suffix, or with a UID as the name.
    if known is None and (not path.suffix or path.suffix[1:].isdigit()):
        try:
            with path.open("rb") as file:
                return DICOM[0] if file.read(132)[128:] == b"DICM" else None
        except OSError:
            return None
    return known


def stem(path: Path) -> str:
    """File name without the suffix that `suffix` detects."""
    kind = suffix(path)
    return path.name[: -len(kind)] if kind and path.name.lower().endswith(kind) else path.name


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key for natural order: file 10 follows file 9."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", path.as_posix()) if part]
