"""What the columns of the results are called for people, which way they are better, and by whose convention they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from recon.metrics.image import CONVENTIONS, FASTMRI

Better = Literal["higher", "lower", ""]
WHOLE = f"fastMRI's convention: {FASTMRI.says}; HFEN relative to the target"
SUPPORT = (
    "on the object only (truth above a tenth of its 99th percentile, holes filled): "
    "background that every method leaves black does not count"
)
PERCEPTUAL = {
    "mr_distance": "distance of features of this project's own small MR network: comparable with itself only",
    "lpips": "LPIPS 0.1 on VGG-16 (Zhang et al. 2018), of natural images",
    "dists": "DISTS (Ding et al. 2020), of natural images",
}
SEMANTIC = {
    "semantic_score": "Dice of a small segmentation network (tissue by intensity) on the image over that on the truth",
}
REGION = {
    "roi_psnr": "inside the boxes that the data carry, range = maximum of the volume",
    "roi_ssim": "mean of the map of local similarity inside the boxes that the data carry",
    "lesion_contrast_error": "errors of the contrasts between boxes and their surroundings, relative to these contrasts",
}

# Name in results.csv: what people call it, which way it is better, its unit, its group, what the group means.
_KNOWN: dict[str, tuple[str, Better, str]] = {
    "psnr": ("PSNR", "higher", "dB"),
    "ssim": ("SSIM", "higher", ""),
    "nmse": ("NMSE", "lower", ""),
    "hfen": ("HFEN", "lower", ""),
    "mse": ("MSE", "lower", ""),
    "snr": ("SNR", "higher", "dB"),
    "mr_distance": ("MR-feature distance", "lower", ""),
    "lpips": ("LPIPS", "lower", ""),
    "dists": ("DISTS", "lower", ""),
    "semantic_score": ("Semantic score", "higher", ""),
    "roi_psnr": ("PSNR in boxes", "higher", "dB"),
    "roi_ssim": ("SSIM in boxes", "higher", ""),
    "lesion_contrast_error": ("Lesion contrast error", "lower", ""),
}


@dataclass(frozen=True)
class MetricName:
    """A column of the results.

    Attributes
    ----------
    key
        Name of the column.
    label
        For headings.
    better
        ``higher``, ``lower``, or empty where that is not known: then no value is called the best.
    unit
        Empty for ratios.
    group
        Columns of one group stand side by side.
    says
        The convention in one sentence.
    """

    key: str
    label: str
    better: Better
    unit: str
    group: str
    says: str


def metric_name(key: str) -> MetricName:
    """Words for a column such as ``psnr``, ``ssim_support`` or ``dagan_nmse``."""
    convention = next((c for c in sorted(CONVENTIONS, key=len, reverse=True) if key.startswith(f"{c}_")), None)
    rest = key.removeprefix(f"{convention}_") if convention else key
    support = rest.endswith("_support")
    base = rest.removesuffix("_support")
    label, better, unit = _KNOWN.get(base, (base.replace("_", " "), "", ""))
    group, says = ("Image", WHOLE) if base in _KNOWN else ("Other", "as the column of results.csv is named")
    if convention:
        group, says = f"{convention} convention", CONVENTIONS[convention].says
    elif base in PERCEPTUAL:
        group, says = "Perceptual", PERCEPTUAL[base]
    elif base in SEMANTIC:
        group, says = "Segmentation", SEMANTIC[base]
    elif base in REGION:
        group, says = "Regions of interest", REGION[base]
    elif support:
        group, says = "Support", f"{WHOLE}; {SUPPORT}"
    name = f"{label}, support" if support else label
    return MetricName(key, name, better, unit, group, says)


def as_json(keys: list[str]) -> list[dict[str, str]]:
    """Words for all columns, for the page."""
    return [asdict(metric_name(key)) for key in keys]
