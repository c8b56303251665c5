"""Data-consistency certificate: chi2 of an image at the acquired samples, in all, by coil, by radius, and locally."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kspace.fourier import fft, ifft
from kspace.operators import ForwardModel
from recon.evidence.calibration import Thresholds
from recon.evidence.noise import n_samples, residual_of
from recon.evidence.record import Certificate, HeldOutScore, Measured, NoiseSource, Verdict

RINGS = 8  # of equal width; the corners count to the last
FEWEST = 64  # samples of a ring
LOW_PASS = 0.2  # standard deviation of the Gaussian window of the local residual, as a fraction of half of k-space


@dataclass(frozen=True)
class Misfit:
    """Agreement of one image with the samples, in units of the noise.

    Attributes
    ----------
    chi2, per_coil, by_radius, local
        As in `Certificate`.
    """

    chi2: float
    per_coil: tuple[float, ...]
    by_radius: tuple[float | None, ...]
    local: float

    def ratio(self, other: Misfit) -> float:
        """Largest ratio to another image, in all and by radius.

        What is below the noise counts as the noise, and in a ring, what is below the other's misfit in all, as that: at an SNR
        of hundreds errors of the coil maps set the scale, also where SENSE fits them.
        """
        pairs = [(self.chi2, other.chi2), *zip(self.by_radius, other.by_radius, strict=True)]
        return max(a / max(b, 1.0, other.chi2) for a, b in pairs if a is not None and b is not None)

    def local_ratio(self, other: Misfit) -> float:
        """Ratio of the local residuals; what is below the noise counts as the noise."""
        return self.local / max(other.local, 1.0)


def misfit(image: Tensor, y: Tensor, op: ForwardModel, noise_std: float) -> Misfit:
    """Misfit of an image, complex ``(*batch y x)``, to k-space ``(*batch coil ky kx)`` with noise `noise_std`."""
    residual = residual_of(image, y, op)
    weights = op.weights.expand(residual.shape)
    power = weights * residual.abs().square() / noise_std**2
    mask = op.mask.expand(residual.shape)
    coil_axes = [i for i in range(power.ndim) if i != power.ndim - 3]
    per_coil = power.double().sum(coil_axes) / mask.sum(coil_axes).clamp(min=1)
    rings = (_radius(op) * RINGS).long().clamp(max=RINGS - 1).expand(power.shape)
    by_radius: list[float | None] = []
    for i in range(RINGS):
        here = mask & (rings == i)
        n = int(here.sum())
        by_radius.append(float(power[here].double().sum()) / n if n >= FEWEST else None)
    chi2 = float(power.double().sum()) / max(n_samples(op, y), 1)
    return Misfit(chi2, tuple(per_coil.tolist()), tuple(by_radius), _local(residual, op, noise_std))


def certificate(
    judged: Misfit,
    companion: Misfit | None,
    delivered: Misfit,
    noise: tuple[float, NoiseSource],
    thresholds: Thresholds,
    of: Measured = "delivered image",
    note: str = "",
) -> Certificate:
    """The certificate with its verdict.

    Parameters
    ----------
    judged
        Of the image named by `of`.
    companion
        Of the classical image; None: without.
    delivered
        Of the generated image itself.
    noise
        Standard deviation, and its source.
    thresholds
        From the card, or the defaults.
    of
        What was judged.
    note
        Why a red verdict cannot be given, for an image that has no phase of its own; empty: it can.
    """
    ratio = delivered.chi2 if companion is None else max(judged.ratio(companion), delivered.ratio(companion))
    local = delivered.local if companion is None else delivered.local_ratio(companion)
    verdict: Verdict = "green"
    if companion is None or ratio > thresholds.ratio_amber or local > thresholds.local_amber:
        verdict = "amber"
    if companion is not None and not note and (ratio > thresholds.ratio or local > thresholds.local):
        verdict = "red"
    return Certificate(
        verdict=verdict,
        says=_sentence(verdict, ratio, local, judged, companion, thresholds, noise[1], of, note),
        chi2=judged.chi2,
        companion_chi2=None if companion is None else companion.chi2,
        delivered_chi2=delivered.chi2,
        per_coil=judged.per_coil,
        by_radius=judged.by_radius,
        ratio=ratio,
        threshold=None if companion is None else thresholds.ratio,
        local=delivered.local,
        companion_local=None if companion is None else companion.local,
        local_threshold=None if companion is None else thresholds.local,
        noise_std=noise[0],
        noise=noise[1],
        of=of,
    )


def weighed(found: Certificate, held_out: HeldOutScore | None) -> Certificate:
    """The certificate in the light of the other evidence: amber in place of red where nothing else is against the image.

    A misfit of several times the noise says little at an SNR of hundreds, where errors of the coil maps exceed the noise, and
    nothing where the noise is guessed from the residual of a companion that fits a single coil. A generated image that predicts
    held-out samples better than the companion, beyond two standard errors, is not replaced by it.

    Parameters
    ----------
    found
        As `certificate` made it.
    held_out
        Score of the same reconstruction; None: not measured.
    """
    if found.verdict != "red":
        return found
    if found.noise == "companion's residual":
        why = "the noise is not known well enough to replace the image"
    elif held_out is not None and held_out.ratio_error is not None and held_out.ratio + 2 * held_out.ratio_error < 1:
        why = f"not replaced, since held-out {held_out.unit} are predicted better than by the classical image"
    else:
        return found
    return replace(found, verdict="amber", says=f"{found.says}; {why}")


def _sentence(
    verdict: Verdict,
    ratio: float,
    local: float,
    judged: Misfit,
    companion: Misfit | None,
    thresholds: Thresholds,
    noise: NoiseSource,
    of: Measured,
    note: str,
) -> str:
    what = f"misfit to the acquired samples {judged.chi2:.3g} times the noise (of the {of}, noise from the {noise})"
    if companion is None:
        return f"{what}; no classical image to compare with"
    beside = f"classical image {companion.chi2:.3g}"
    where = f"largest ratio {ratio:.3g}, locally {local:.3g}; limits {thresholds.ratio:.3g} and {thresholds.local:.3g}"
    words = {"green": "as expected", "amber": "larger than on validation volumes", "red": "beyond the limits"}
    return f"{what}, {beside}: {words[verdict]} ({where}){f'; {note}' if note else ''}"


def _local(residual: Tensor, op: ForwardModel, noise_std: float) -> float:
    """Largest pixel of the low-passed ``A^H W r`` inside the support, in standard deviations of its noise."""
    y, x = ((torch.arange(n, dtype=torch.float64, device=residual.device) - n // 2) / max(n / 2, 1) for n in op.shape)
    smooth = ifft(_window(torch.hypot(y[:, None], x)).to(op.maps.real.dtype) * fft(op.back_projection(residual))).abs()
    # Maps of unit root sum of squares: the noise of A^H W n has the variance sum(w) sigma^2 over the number of pixels, each
    # frequency its share.
    shares = op.weights.double() * _window(_radius(op)).square()
    power = shares.expand(*shares.shape[:-2], *op.samples).sum((-2, -1)).mean().item() / math.prod(op.shape)
    inside = torch.where(op.support, smooth, 0)
    return float(inside.max()) / (noise_std * math.sqrt(max(power, 1e-30)))


def _window(radius: Tensor) -> Tensor:
    return torch.exp(-0.5 * (radius / LOW_PASS).square())


def _radius(op: ForwardModel) -> Tensor:
    """Distance of samples from the centre of k-space in halves of the matrix, float64, broadcastable to them."""
    ky, kx = op.frequencies
    return 2 * torch.hypot(ky.double(), kx.double())
