"""The record of the evidence of one image, as it stands in the JSON record under ``extra.evidence``.

Frozen: what reads a record (``recon replay``, ``scan.html``) relies on these names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["green", "amber", "red"]
Measured = Literal["delivered image", "image before exact data consistency"]
NoiseSource = Literal["noise scan", "outermost samples", "companion's residual"]
ROLES = ("prior", "difference", "std")
"""Roles of the real images beside ``main`` and the companion (``sense`` or ``l1-wavelet``): magnitude of the part that the data
do not determine; magnitude of the delivered image minus that of the companion, signed; half width of the interval or, without
calibration, absent."""
ITEMS = ("certificate", "determined", "held_out", "uncertainty", "stability", "guard")


@dataclass(frozen=True)
class Certificate:
    """Agreement with the acquired samples: ``chi2 = sum w |y - A x|^2 / (sigma^2 N)`` of the complex, uncropped image.

    Attributes
    ----------
    verdict, says
        Red beyond a threshold; one sentence.
    chi2, companion_chi2
        Of the image named by `of`, and of the companion; 1 is the noise. The companion's exceeds 1 where coil maps are wrong.
    delivered_chi2
        Of the generated image itself; differs from `chi2` where that is of the image before exact data consistency.
    per_coil
        chi2 of each coil in use.
    by_radius
        chi2 in rings of k-space of equal width, centre first; None for a ring without samples.
    ratio
        Largest of `chi2` and the rings' over that of the companion, the latter not less than 1, nor in a ring than in all.
    threshold
        Of `ratio`; None where there is no companion.
    local, companion_local, local_threshold
        Largest pixel of the low-passed residual image ``A^H W (y - A x)`` in standard deviations of its noise: a small object
        that the data contradict shows here first. The threshold is one of ``local / max(companion_local, 1)``.
    noise_std, noise
        sigma, the square root of E|n|^2 of a sample measured once, in the units of the whitened data, and where it is from.
    of
        What `chi2`, `per_coil` and `by_radius` are of.
    """

    verdict: Verdict
    says: str
    chi2: float
    companion_chi2: float | None
    delivered_chi2: float
    per_coil: tuple[float, ...]
    by_radius: tuple[float | None, ...]
    ratio: float
    threshold: float | None
    local: float
    companion_local: float | None
    local_threshold: float | None
    noise_std: float
    noise: NoiseSource
    of: Measured = "delivered image"


@dataclass(frozen=True)
class Determined:
    """What the data determine of the image, ``(A^H W A + lamda I)^-1 A^H W A x``, and what they do not.

    Attributes
    ----------
    verdict, says
        Amber beyond the threshold; one sentence.
    share_of_prior
        Energy of the rest over that of the image, inside the support of the coil maps.
    lamda
        Noise over signal variance; 0: one coil, exact null space.
    threshold
        Of the share: largest on validation volumes; None: not calibrated.
    """

    verdict: Verdict
    says: str
    share_of_prior: float
    lamda: float
    threshold: float | None


@dataclass(frozen=True)
class HeldOutScore:
    """Prediction of acquired samples that neither image used.

    Attributes
    ----------
    verdict, says
        Amber where the generated image predicts them worse than the companion; one sentence.
    error, companion_error
        Weighted squared error over that of predicting zero.
    ratio, ratio_error
        Of both errors, and its standard error over the held-out units; the latter None where it was not estimated.
    unit, n_held_out
        ``lines`` or ``points``, and how many.
    images
        Whose samples were held out: those of the volume whose stack was fitted, or the image's own.
    """

    verdict: Verdict
    says: str
    error: float
    companion_error: float
    ratio: float
    ratio_error: float | None
    unit: str
    n_held_out: int
    images: tuple[str, ...]


@dataclass(frozen=True)
class Uncertainty:
    """Half width of the interval of the magnitude, image role ``std``.

    Attributes
    ----------
    verdict, says
        Amber without calibration, or outside of what the card was calibrated for; one sentence.
    calibrated
        Whether the card holds a conformal factor for this mask family, acceleration and refinement; else there is no map.
    factor
        What the standard deviation of the K reconstructions is multiplied by; None: not calibrated.
    coverage_nominal, coverage_guaranteed
        Mean share of pixels in the support inside of the interval on exchangeable volumes; and its distribution-free bound.
    k
        How many reconstructions; 0: none, and nothing else is known.
    mean_width
        Mean half width over the mean magnitude, inside the support.
    key
        Calibration that was used, ``random1d:4``.
    """

    verdict: Verdict
    says: str
    calibrated: bool
    factor: float | None
    coverage_nominal: float | None
    coverage_guaranteed: float | None
    k: int
    mean_width: float | None
    key: str | None = None


@dataclass(frozen=True)
class Stability:
    """Largest amplification of a perturbation of the samples at the noise level, found by power iteration.

    Attributes
    ----------
    verdict, says
        Amber beyond the threshold; one sentence.
    gain, companion_gain
        ``||x(y + d) - x(y)|| / ||d||`` of the network and of the companion, each the largest of the same perturbations.
    threshold
        Of their ratio; None: not calibrated.
    """

    verdict: Verdict
    says: str
    gain: float
    companion_gain: float | None
    threshold: float | None


@dataclass(frozen=True)
class GuardReport:
    """Comparison of the scan with what the weights were trained on.

    Attributes
    ----------
    verdict, says
        Amber where something is outside; one sentence.
    outside
        What is outside, each in words.
    distance
        Root mean square of the standardised image statistics; None: the card has none.
    threshold
        Of the distance: largest on validation volumes with a margin.
    unknown
        What the card does not say, so that it could not be checked.
    """

    verdict: Verdict
    says: str
    outside: tuple[str, ...]
    distance: float | None
    threshold: float | None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fallback:
    """Delivery of a classical image in place of the generated one.

    Attributes
    ----------
    delivered
        Name of the method whose image is the main one.
    reason
        In words.
    """

    delivered: str
    reason: str


@dataclass(frozen=True)
class ImageEvidence:
    """All evidence of one image. An item is None where it was not asked for, or the generated image does not exist.

    Attributes
    ----------
    image
        Name of the image, as in ``mask.images``.
    index
        Its counters: contrast, set, phase, repetition, slice.
    delivered
        Method of the main image.
    companion
        Method of the classical image; None where ``--classical none`` was given.
    certificate, determined, held_out, uncertainty, stability, guard
        See there.
    fallback
        Why a classical image was delivered; None: the generated one was.
    """

    image: str
    index: dict[str, int]
    delivered: str
    companion: str | None
    certificate: Certificate | None = None
    determined: Determined | None = None
    held_out: HeldOutScore | None = None
    uncertainty: Uncertainty | None = None
    stability: Stability | None = None
    guard: GuardReport | None = None
    fallback: Fallback | None = field(default=None)

    @property
    def verdict(self) -> Verdict:
        """The worst of all items; red after a fallback."""
        found = {item.verdict for name in ITEMS if (item := getattr(self, name)) is not None}
        if self.fallback is not None or "red" in found:
            return "red"
        return "amber" if "amber" in found else "green"

    def record(self) -> dict[str, Any]:
        """For the JSON record: every entry above, and ``verdict``."""
        return {**asdict(self), "verdict": self.verdict}
