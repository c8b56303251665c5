"""The metrics of one volume: fastMRI's on the whole image and on the support, and those of other groups beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from recon.compare.store import GroupImages
from recon.metrics import perceptual, roi, segmentation
from recon.metrics.image import CONVENTIONS, FASTMRI, Convention, foreground, hfen

Float = NDArray[np.float32]

MEASURED = replace(FASTMRI, metrics={**{name: FASTMRI.metrics[name] for name in ("psnr", "ssim", "nmse")}, "hfen": hfen})
"""fastMRI's metrics of a volume, and the high-frequency error norm on the same square."""

PERCEPTUAL = {
    "mr_distance": perceptual.mr_distance,
    "lpips": perceptual.lpips,
    "dists": perceptual.dists,
}
SEGMENTED = {"semantic_score": segmentation.semantic_score}
SMALLER_IS_BETTER = ("nmse", "nmse_missing", "hfen", "mr_distance", "lpips", "dists", "lesion_contrast_error")
WHOLE_IMAGE = tuple(MEASURED.metrics)


def is_better(metric: str, a: float, b: float) -> bool:
    """Whether `a` is the better value of `metric`."""
    return a < b if smaller_is_better(metric) else a > b


def smaller_is_better(metric: str) -> bool:
    """Whether a perfect image has the smallest value."""
    return metric.removesuffix("_support") in SMALLER_IS_BETTER or metric.endswith(("_nmse", "_hfen"))


def check_metric(name: str, option: str) -> None:
    """Refuse a metric that every volume does not have."""
    known = [*WHOLE_IMAGE, *(f"{m}_support" for m in WHOLE_IMAGE)]
    if name not in known:
        raise InputError(f"unknown metric '{name}'", option, f"one of {', '.join(known)}")


def conventions(text: str | None) -> list[Convention]:
    """The conventions that `text` names, separated by commas.

    Raises
    ------
    InputError
        If one is not known.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in CONVENTIONS or name == FASTMRI.name]:
        known = ", ".join(name for name in CONVENTIONS if name != FASTMRI.name)
        raise InputError(f"unknown convention '{unknown[0]}'", "--conventions", f"choose from {known}; fastmri's come always")
    return [CONVENTIONS[name] for name in names]


def support(truth: Float) -> NDArray[np.bool_]:
    """Where a volume shows something, bool ``(slice y x)``: decided by the truth alone, the same for every mask and method."""
    return foreground(np.nan_to_num(truth))


def figures(group: GroupImages, method: str, others: Sequence[Convention] = ()) -> dict[str, float]:
    """The metrics of all slices of a volume, by name; what cannot be measured is left out.

    `others` come as ``<convention>_<metric>``, means over the slices where the convention has one value for each.
    """
    truth, image = group.truth, group.images[method]
    values = {name: float(v[0]) for name, v in MEASURED.measure(truth, image, group.support).items()}
    peak = float(truth.max())
    for convention in others:
        scale = convention.full_scale / peak if convention.full_scale is not None and peak > 0 else 1.0
        for name, v in convention.measure(scale * truth, scale * image).items():
            values[f"{convention.name}_{name}"] = float(v.mean())
    values |= {
        name: value for name, measure in (PERCEPTUAL | SEGMENTED).items() if (value := measure(truth, image)) is not None
    }
    if len(group.boxes):
        place = {number: position for position, number in enumerate(group.slices)}
        boxes = group.boxes.copy()
        boxes[:, 0] = [place[int(number)] for number in boxes[:, 0]]
        values |= roi.measure(truth, image, boxes)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def not_measured() -> dict[str, str]:
    """The metrics of networks whose weights are not to be had, and why."""
    reasons = {name: perceptual.why_not(name.removesuffix("_distance")) for name in PERCEPTUAL}
    reasons |= {name: segmentation.why_not() for name in SEGMENTED}
    return {name: why.partition(" in /")[0] for name, why in reasons.items() if why is not None}  # nobody else's folders


def slice_figure(metric: str, truth: Float, image: Float) -> float:
    """One metric of one slice ``(y x)``, for tuning and convergence."""
    volume = truth[None]
    return float(MEASURED.measure(volume, image[None], support(volume))[metric][0])
