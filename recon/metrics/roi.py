"""Metrics of regions of interest, because lesions hardly affect the mean over an image.

Volumes are ``(slice y x)``, real or complex (magnitude). Boxes are rows ``(slice, class, y0, x0, y1, x1)`` in pixels; pixel k
covers the interval from k to k + 1 and belongs to a box if its centre does.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from recon.metrics import image as metrics
from recon.metrics.image import Array, Mask

RING = 0.5  # width of the surrounding ring relative to the shorter side of the box ...
NARROWEST = 2  # ... and its minimum in pixels


def measure(truth: NDArray, image: NDArray, boxes: NDArray) -> dict[str, float]:
    """Compute the metrics of one volume inside its boxes.

    Parameters
    ----------
    truth, image
        ``(slice y x)``.
    boxes
        ``(n 6)``: slice, class, y0, x0, y1, x1.

    Returns
    -------
    dict
        ``roi_psnr``
            ``10 log10(max(truth)^2 / MSE)`` in dB, with the MSE over the pixels of all boxes and the range of the whole
            volume, as in fastMRI's PSNR (Zbontar et al. 2018, doi:10.48550/arXiv.1811.08839).
        ``roi_ssim``
            Local structural similarity (`recon.metrics.image.ssim`, 7x7 uniform, range = maximum of the volume) averaged
            over the same pixels.
        ``lesion_contrast_error``
            ``sum |C(image) - C(truth)| / sum |C(truth)|`` over the boxes, with C from `contrasts`: the absolute relative
            error for a single box, and finite even if one of several boxes has no contrast.

        NaN without boxes.

    Raises
    ------
    ValueError
        If the shapes differ, or a box refers to a slice outside the volume.
    """
    truth, image = _checked(truth, image)
    inside = box_mask(boxes, truth.shape)
    if not inside.any():
        return dict.fromkeys(("roi_psnr", "roi_ssim", "lesion_contrast_error"), math.nan)
    true, found = contrasts(truth, boxes), contrasts(image, boxes)
    known = np.isfinite(true) & np.isfinite(found)
    total = float(np.abs(true[known]).sum())
    return {
        "roi_psnr": metrics.psnr(truth, image, inside),
        "roi_ssim": metrics.ssim(truth, image, inside),
        "lesion_contrast_error": float(np.abs(found - true)[known].sum()) / total if total > 0 else math.nan,
    }


def contrast_errors(truth: NDArray, image: NDArray, boxes: NDArray) -> Array:
    """``(C(image) - C(truth)) / |C(truth)|`` of each box ``(n)``, with C from `contrasts`; negative for lost contrast."""
    truth, image = _checked(truth, image)
    true, found = contrasts(truth, boxes), contrasts(image, boxes)
    magnitude = np.abs(true)
    return np.divide(found - true, magnitude, out=np.full(len(true), np.nan), where=magnitude > 0)


def contrasts(volume: NDArray, boxes: NDArray) -> Array:
    """Michelson contrast ``(a - b) / (a + b)`` of each box ``(n)``, with the means a inside and b in a surrounding ring.

    Michelson 1927, Studies in Optics (visibility of fringes). The ring is half as wide as the box's shorter side, at least 2
    pixels, and excludes other boxes of the slice. NaN if box or ring is empty, or both means are 0.
    """
    volume = np.asarray(_magnitude(volume), dtype=np.float64)
    boxes = _checked_boxes(boxes, volume.shape)
    taken = box_mask(boxes, volume.shape)
    values = np.full(len(boxes), np.nan)
    for i, (index, _, y0, x0, y1, x1) in enumerate(boxes):
        plane, others = volume[int(index)], taken[int(index)]
        inside = _rectangle(plane.shape, y0, x0, y1, x1)
        width = max(RING * min(y1 - y0, x1 - x0), NARROWEST)
        ring = _rectangle(plane.shape, y0 - width, x0 - width, y1 + width, x1 + width) & ~others
        if inside.any() and ring.any():
            a, b = float(plane[inside].mean()), float(plane[ring].mean())
            values[i] = (a - b) / (a + b) if a + b > 0 else np.nan
    return values


def box_mask(boxes: NDArray, shape: tuple[int, ...]) -> Mask:
    """Bool ``(slice y x)`` of `shape`: True inside any of the boxes ``(n 6)``."""
    mask = np.zeros(shape, dtype=np.bool_)
    for index, _, y0, x0, y1, x1 in _checked_boxes(boxes, shape):
        mask[int(index)] |= _rectangle(shape[1:], y0, x0, y1, x1)
    return mask


def _rectangle(shape: tuple[int, ...], y0: float, x0: float, y1: float, x1: float) -> Mask:
    y, x = (np.arange(n) + 0.5 for n in shape)
    inside: Mask = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return inside


def _checked(truth: NDArray, image: NDArray) -> tuple[Array, Array]:
    if truth.shape != image.shape or truth.ndim != 3:
        raise ValueError(f"truth and image must both be (slice y x); got {truth.shape} and {image.shape}")
    return _magnitude(truth), _magnitude(image)


def _checked_boxes(boxes: NDArray, shape: tuple[int, ...]) -> Array:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 6) if np.size(boxes) == 0 else np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise ValueError(f"boxes must be rows (slice, class, y0, x0, y1, x1); got shape {boxes.shape}")
    if len(boxes) and not (boxes[:, 0].min() >= 0 and boxes[:, 0].max() < shape[0]):
        raise ValueError(
            f"boxes refer to slices {boxes[:, 0].min():g} to {boxes[:, 0].max():g} of a volume of {shape[0]} slices"
        )
    return boxes


def _magnitude(x: NDArray) -> Array:
    return np.abs(x) if np.iscomplexobj(x) else x
