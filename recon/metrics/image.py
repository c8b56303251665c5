"""Image metrics in the conventions of published work, where one name stands for different definitions.

NMSE is a ratio of squared norms in fastMRI and of norms in DAGAN; the range of PSNR is the maximum of the volume, of the image,
1 or 255; SSIM is used with four ranges and two windows. Each metric here therefore belongs to a named `Convention`, and tables
state theirs.

Each metric is computed on the whole image and, if a support is given, on the support (suffix ``_support``): dark background
inflates the metrics of all methods.

Arrays are NumPy ``(slice y x)``, real or complex (magnitude).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Metric = Callable[[Array, Array, Mask | None], float]
Scope = Literal["volume", "slice"]


@dataclass(frozen=True)
class Convention:
    """Set of metrics as defined by one published work.

    Attributes
    ----------
    name
        Short name, printed with each result.
    scope
        One value per volume or per slice.
    metrics
        Name to function ``(target, image, support) -> value``; of a volume ``(slice y x)`` or of a slice ``(y x)``.
    crop
        Side of the centre square to which target and image are cropped; 0 for the smaller side; None for no crop.
    says
        Description of the convention, for tables.
    full_scale
        Intensity that the images of the convention reach; None where its metrics do not depend on it.
    """

    name: str
    scope: Scope
    metrics: Mapping[str, Metric]
    says: str
    crop: int | None = None
    full_scale: float | None = None

    def measure(self, target: NDArray, image: NDArray, support: Mask | None = None) -> dict[str, Array]:
        """Compare a volume with its target.

        Parameters
        ----------
        target, image
            ``(slice y x)``, in the intensity range that the convention expects.
        support
            Bool, shape of `target`: region of the metrics ``..._support``; None omits them.

        Returns
        -------
        dict
            Metric name to float64 values ``(1)`` per volume, or ``(slice)``.

        Raises
        ------
        ValueError
            If the shapes differ.
        """
        if target.shape != image.shape or target.ndim != 3:
            raise ValueError(f"target and image must both be (slice y x); got {target.shape} and {image.shape}")
        if support is not None and support.shape != target.shape:
            raise ValueError(f"support {support.shape} must have the target's shape {target.shape}")
        volumes = [_cut(_magnitude(x), self.crop) for x in (target, image)]
        masks = [None] if support is None else [None, _cut(support, self.crop)]
        values: dict[str, Array] = {}
        for mask in masks:
            for name, metric in self.metrics.items():
                suffix = "" if mask is None else "_support"
                values[name + suffix] = np.array(self._apply(metric, volumes[0], volumes[1], mask), dtype=np.float64)
        return values

    def _apply(self, metric: Metric, target: Array, image: Array, support: Mask | None) -> list[float]:
        if self.scope == "volume":
            return [metric(target, image, support)]
        masks = [None] * len(target) if support is None else list(support)
        return [metric(t, x, m) for t, x, m in zip(target, image, masks, strict=True)]


def mse(target: Array, image: Array, support: Mask | None = None) -> float:
    """Mean squared error over all points of the support."""
    error = _inside(target - image, support)
    return float(np.mean(error**2)) if error.size else float("nan")


def nmse(target: Array, image: Array, support: Mask | None = None) -> float:
    """``||image - target||^2 / ||target||^2``, NMSE of fastMRI and Recon-GLGAN. NaN for a zero target."""
    return nrmse(target, image, support) ** 2


def nrmse(target: Array, image: Array, support: Mask | None = None) -> float:
    """``||image - target|| / ||target||``, NMSE of DAGAN. NaN for a zero target."""
    norm = float(np.linalg.norm(_inside(target, support)))
    return float(np.linalg.norm(_inside(target - image, support))) / norm if norm > 0 else float("nan")


def snr(target: Array, image: Array, support: Mask | None = None) -> float:
    """``20 log10(||target|| / ||image - target||)`` in dB, SNR of GANCS."""
    return -20 * _log10(nrmse(target, image, support))


def psnr(
    target: Array, image: Array, support: Mask | None = None, *, data_range: float | None = None, offset: float = 0.0
) -> float:
    """``10 log10(range^2 / (MSE + offset))`` in dB.

    Parameters
    ----------
    target, image
        Real, any shape.
    support
        Region over which the error is averaged; the range is that of all points.
    data_range
        Range; None for the maximum of `target`.
    offset
        Added to the MSE (1e-6 in RefineGAN).
    """
    peak = float(target.max()) if data_range is None else data_range
    error = np.asarray(_inside(target - image, support), dtype=np.float64)
    return 20 * _log10(peak) - 10 * _log10(float(np.mean(error**2)) + offset) if error.size else float("nan")


def ssim(
    target: Array,
    image: Array,
    support: Mask | None = None,
    *,
    data_range: float | None = None,
    window: Literal["uniform", "gaussian"] = "uniform",
) -> float:
    """Mean structural similarity over the slices (Wang et al. 2004, doi:10.1109/TIP.2003.819861), by scikit-image.

    Parameters
    ----------
    target, image
        Real ``(slice y x)`` or ``(y x)``.
    support
        Region over which the local similarity is averaged. Without it, a margin of half a window is excluded.
    data_range
        Range; None for the maximum of `target`. NaN if it is not positive.
    window
        ``uniform`` 7x7 with sample covariance (fastMRI, DAGAN, Recon-GLGAN) or ``gaussian`` of sigma 1.5 (Seitzer).
    """
    # Imported here: scikit-image takes half a second to import.
    from skimage.metrics import structural_similarity

    peak = float(target.max()) if data_range is None else data_range
    if not peak > 0:
        return float("nan")
    shape = (-1, *target.shape[-2:])
    targets, images = target.reshape(shape), image.reshape(shape)
    compare = partial(structural_similarity, data_range=peak, gaussian_weights=window == "gaussian")
    if support is None:
        return float(np.mean([compare(t, x) for t, x in zip(targets, images, strict=True)]))
    maps = np.stack([compare(t, x, full=True)[1] for t, x in zip(targets, images, strict=True)])
    inside = support.reshape(shape)
    return float(maps[inside].mean()) if inside.any() else float("nan")


def hfen(target: Array, image: Array, support: Mask | None = None) -> float:
    """High-frequency error norm: ``||LoG(image) - LoG(target)|| / ||LoG(target)||``.

    LoG is the Laplacian of a Gaussian, 15x15 points, sigma 1.5, of each zero-padded slice. The norm of Ravishankar and Bresler
    2011, doi:10.1109/TMI.2010.2090538, is not normalised; here it is, to be independent of the image scale.
    """
    from scipy.ndimage import convolve

    kernel = laplacian_of_gaussian()[(None,) * (target.ndim - 2)]
    edges = [convolve(np.asarray(x, dtype=np.float64), kernel, mode="constant") for x in (target, image)]
    return nrmse(edges[0], edges[1], support)


def laplacian_of_gaussian(n: int = 15, sigma: float = 1.5) -> Array:
    """Zero-sum kernel ``(n n)`` of `hfen`, equal to MATLAB's ``fspecial('log', n, sigma)``."""
    axis = np.arange(n) - (n - 1) / 2
    r2 = axis[:, None] ** 2 + axis**2
    gauss = np.exp(-r2 / (2 * sigma**2))
    kernel = gauss / gauss.sum() * (r2 - 2 * sigma**2) / sigma**4
    return kernel - kernel.mean()


def square_crop(volume: NDArray) -> NDArray:
    """Crop a volume ``(slice y x)`` to the centre square of its smaller side, positioned as in fastMRI.

    fastMRI's evaluation crops to (width, width) and refuses volumes that are wider than high; here those are cropped to
    (height, height).
    """
    return _cut(volume, 0)


def foreground(target: NDArray, fraction: float = 0.1) -> Mask:
    """Foreground mask: smoothed magnitude above `fraction` of its 99th percentile, holes filled slice by slice.

    For targets without coil maps; with maps, ``op.support`` is more accurate.

    Parameters
    ----------
    target
        ``(slice y x)``.
    fraction
        Threshold, relative to the 99th percentile of the smoothed volume.

    Returns
    -------
    NDArray
        Bool ``(slice y x)``.
    """
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    magnitude = np.asarray(_magnitude(target), dtype=np.float64)
    smooth = np.stack([gaussian_filter(plane, 1.5) for plane in magnitude])
    mask = smooth > fraction * np.percentile(smooth, 99)
    return np.stack([binary_fill_holes(plane) for plane in mask])


FASTMRI = Convention(
    name="fastmri",
    scope="volume",
    metrics={"mse": mse, "nmse": nmse, "psnr": psnr, "ssim": ssim},
    crop=0,
    says="by volume, centre square; squared norms; PSNR and SSIM range = maximum of the target volume; SSIM 7x7 uniform",
)
"""Zbontar et al. 2018, doi:10.48550/arXiv.1811.08839; equal to ``fastmri.evaluate``."""

RECON_GLGAN = Convention(
    name="reconglgan",
    scope="volume",
    metrics={"nmse": nmse, "psnr": psnr, "ssim": ssim},
    crop=150,
    says="by volume, centre 150x150; squared norms; PSNR and SSIM range = maximum of the target volume; SSIM 7x7 uniform",
)
"""Recon-GLGAN (Murugesan et al. 2019): fastMRI's metrics on the centre 150x150; its region of interest is `RECON_GLGAN_ROI`."""

RECON_GLGAN_ROI = Convention(
    name="reconglgan-roi",
    scope="volume",
    metrics=RECON_GLGAN.metrics,
    crop=60,
    says="as reconglgan, on the centre 60x60",
)
"""Recon-GLGAN's region of interest."""

DAGAN = Convention(
    name="dagan",
    scope="slice",
    metrics={"nmse": nrmse, "psnr": partial(psnr, data_range=1.0), "ssim": partial(ssim, data_range=2.0)},
    says="by slice, images in [0, 1]; NMSE = ratio of norms, not squared; PSNR range 1; SSIM range 2 (inflated), 7x7 uniform",
    full_scale=1.0,
)
"""Yang et al. 2018, doi:10.1109/TMI.2017.2785879, as its code computes them. For images in [0, 1]."""

REFINEGAN = Convention(
    name="refinegan",
    scope="slice",
    metrics={"psnr": partial(psnr, data_range=255.0, offset=1e-6)},
    says="by slice, magnitudes in 0 to 255, unclipped; PSNR range 255, 1e-6 added to the MSE",
    full_scale=255.0,
)
"""Quan et al. 2018, doi:10.1109/TMI.2018.2820120, as its code computes it. Its definitions of SSIM and NRMSE are not public."""

GANCS = Convention(
    name="gancs",
    scope="slice",
    metrics={"snr": snr},
    says="by slice; SNR = ratio of the norms of target and error",
)
"""Mardani et al. 2019, doi:10.1109/TMI.2018.2858752."""

SEITZER = Convention(
    name="seitzer",
    scope="slice",
    metrics={"psnr": psnr, "ssim": partial(ssim, window="gaussian"), "hfen": hfen},
    says="by slice; PSNR and SSIM range = maximum of the target slice; SSIM Gaussian of sigma 1.5; HFEN relative to the target",
)
"""Seitzer et al. 2018, doi:10.1007/978-3-030-00928-1_27: the statistics of the paper."""

CONVENTIONS = {c.name: c for c in (FASTMRI, RECON_GLGAN, RECON_GLGAN_ROI, DAGAN, REFINEGAN, GANCS, SEITZER)}


def mean_and_spread(values: Array) -> tuple[float, float]:
    """Mean and twice the sample standard deviation of `values` ``(n)``, as in fastMRI; the latter is NaN for n = 1."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), 2 * float(values.std(ddof=1)) if values.size > 1 else float("nan")


def _magnitude(x: NDArray) -> Array:
    return np.abs(x) if np.iscomplexobj(x) else x


def _inside(x: Array, support: Mask | None) -> Array:
    return x if support is None else x[support]


def _log10(x: float) -> float:
    # A perfect image has zero error and infinite PSNR: no warning.
    return float(np.log10(x)) if x > 0 else float("-inf") if x == 0 else float("nan")


def _cut(volume: NDArray, crop: int | None) -> NDArray:
    if crop is None:
        return volume
    n_y, n_x = volume.shape[-2:]
    side = min(n_y, n_x, crop or max(n_y, n_x))
    top, left = (n_y - side) // 2, (n_x - side) // 2  # fastMRI's crop, not `kspace.fourier.central`, for comparable metrics
    return volume[..., top : top + side, left : left + side]
