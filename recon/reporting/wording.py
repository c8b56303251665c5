"""What the columns of the results are called for people, which way they are better, and by whose convention they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from recon.metrics import CONVENTIONS

Better = Literal["higher", "lower", ""]
WHOLE = "fastMRI's definitions by volume on the whole image (squared norms; range = maximum of the volume; SSIM 7x7 uniform)"
SUPPORT = "the same, where the coils see the object: background that every method leaves black does not count"
PERCEPTUAL = "perceptual distance between features of image and truth; comparable only with figures from the same features"
REGION = "inside the boxes that the data carry"

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
    "roi_psnr": ("PSNR in boxes", "higher", "dB"),
    "roi_ssim": ("SSIM in boxes", "higher", ""),
    "lesion_contrast_error": ("Lesion contrast error", "lower", ""),
}
_PERCEPTUAL = ("mr_distance", "lpips", "dists")
_REGION = ("roi_psnr", "roi_ssim", "lesion_contrast_error")


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
    group, says = ("Whole image", WHOLE) if base in _KNOWN else ("Other", "as the column of results.csv is named")
    if convention:
        group, says = f"{convention} convention", CONVENTIONS[convention].says
    elif base in _PERCEPTUAL:
        group, says = "Perceptual", PERCEPTUAL
    elif base in _REGION:
        group, says = "Regions of interest", REGION
    elif support:
        group, says = "Support", f"{WHOLE}; {SUPPORT}"
    name = f"{label}, support" if support else label
    return MetricName(key, name, better, unit, group, says)


def as_json(keys: list[str]) -> list[dict[str, str]]:
    """Words for all columns, for the page."""
    return [asdict(metric_name(key)) for key in keys]
