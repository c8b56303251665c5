"""Semantic score of a reconstruction: how much of a segmentation survives it (Seitzer 2018, arXiv 1806.11216).

The score is the mean Dice coefficient (Dice 1945, doi:10.2307/1932409) of a segmentation network on the reconstruction over
that of the same network on the truth: 1 where the network segments both equally well. The reference segmentation is made from
the truth's intensities (`tissue_labels`): classes of tissue by brightness, not anatomy drawn by a person.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kspace.errors import InputError

if TYPE_CHECKING:
    from models.parts.segmentation import TissueNet

Labels = NDArray[np.int64]
SMOOTH = 1.0  # pixels, standard deviation: without it noise decides the class of single pixels
BACKGROUND = 0.1  # of the 99th percentile
LEAST = 64  # pixels of tissue, below which there is nothing to segment


def semantic_score(truth: NDArray, image: NDArray, weights: Path | None = None) -> float | None:
    """Dice of the network on `image` over that on `truth`, mean over the slices.

    Parameters
    ----------
    truth, image
        ``(slice y x)``, real or complex (magnitude).
    weights
        Of the network; None for the bundled ones.

    Returns
    -------
    float or None
        None if the weights are missing, or no slice holds tissue of three intensities.
    """
    try:
        network = _network(weights)
    except InputError:
        return None
    scores = []
    for wanted, found in zip(np.abs(truth), np.abs(image), strict=True):
        labels = tissue_labels(wanted)
        if labels is None:
            continue
        peak = float(wanted.max())
        scores.append(dice(segment(network, found / peak), labels) / max(dice(segment(network, wanted / peak), labels), 1e-6))
    return float(np.mean(scores)) if scores else None


def why_not(weights: Path | None = None) -> str | None:
    """Reason why the score is unavailable; None if it is available."""
    try:
        _network(weights)
    except InputError as error:
        return str(error)
    return None


def tissue_labels(image: NDArray) -> Labels | None:
    """Classes of a magnitude image ``(y x)``: 0 background, 1 to 3 by rising intensity; None where there is too little.

    The image is smoothed; background lies below a tenth of the 99th percentile; the other limits are Otsu's for three classes
    (Liao 2001, J. Inf. Sci. Eng. 17:713).
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_multiotsu

    smooth = gaussian_filter(np.abs(image).astype(np.float32), SMOOTH)
    limit = BACKGROUND * np.percentile(smooth, 99)
    tissue = smooth[smooth > limit]
    if len(tissue) < LEAST or len(np.unique(tissue)) < 3:
        return None
    limits = threshold_multiotsu(np.minimum(tissue, np.percentile(tissue, 99)), classes=3)
    labels: Labels = np.where(smooth > limit, 1 + np.digitize(smooth, limits), 0).astype(np.int64)
    return labels


@torch.inference_mode()
def segment(network: TissueNet, image: NDArray) -> Labels:
    """The network's classes, ``(y x)``, of a magnitude image ``(y x)`` of maximum about 1."""
    x = torch.from_numpy(np.ascontiguousarray(image, np.float32)).clamp(0, 1)[None, None]
    labels: Labels = network(x).argmax(1)[0].numpy()
    return labels


def dice(a: Labels, b: Labels) -> float:
    """Mean Dice coefficient of the tissue classes of two label images ``(y x)``, those that neither has left out."""
    found = []
    for label in range(1, 4):
        there = (a == label).sum() + (b == label).sum()
        if there:
            found.append(2 * ((a == label) & (b == label)).sum() / there)
    return float(np.mean(found)) if found else 0.0


@lru_cache(maxsize=2)
def _network(path: Path | None) -> TissueNet:
    from models.parts.segmentation import load_tissue

    return load_tissue(path)
