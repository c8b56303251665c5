"""The part of an image that the data determine, and the rest, which is the prior's."""

from __future__ import annotations

import torch
from torch import Tensor

from kspace.normal_equations import solve
from kspace.operators import ForwardModel, Sense
from recon.evidence.record import Determined

LEAST_LAMDA = 1e-4  # below, conjugate gradients need hundreds of iterations
TOLERANCE, ITERATIONS = 1e-4, 100


def determined_part(image: Tensor, op: ForwardModel, noise_std: float, lamda: float | None = None) -> tuple[Tensor, float]:
    """``(A^H W A + lamda I)^-1 A^H W A x`` and lamda, noise over signal variance; at least `LEAST_LAMDA`.

    One coil of unit modulus: ``A^H A x`` exactly, the projection onto the sampled part of k-space, and lamda 0.

    Parameters
    ----------
    image
        Complex ``(*batch y x)``.
    op
        Forward model.
    noise_std
        Square root of E|n|^2 of a sample measured once.
    lamda
        That of another image, of which this one is a component; None: of this image.
    """
    if isinstance(op, Sense) and op.n_coils == 1 and torch.allclose(op.maps.abs(), torch.ones_like(op.maps.real), atol=1e-4):
        return op.normal(image), 0.0
    if lamda is None:
        inside = image[op.support.expand(image.shape)]
        signal = float(inside.abs().double().square().mean()) if inside.numel() else 0.0
        lamda = max(noise_std**2 / signal, LEAST_LAMDA) if signal > 0 else 1.0
    weight = torch.tensor(lamda, dtype=image.real.dtype, device=image.device)
    seen = op.gram(op.weights)(image)
    # From zero: the image itself already solves the system to within lamda, and nothing would be left for the prior.
    return solve(op, weight, seen, tolerance=TOLERANCE, max_iterations=ITERATIONS, warn=False), lamda


def judge_determined(image: Tensor, part: Tensor, lamda: float, threshold: float | None) -> Determined:
    """Share of the prior in an image, complex ``(*batch y x)``, of which the data determine `part`, of the same shape."""
    energy = float(image.abs().double().square().sum())
    share = float((image - part).abs().double().square().sum()) / energy if energy > 0 else 0.0
    how = "exact null space of one coil" if lamda == 0 else f"lamda {lamda:.2g}"
    says = f"{100 * share:.2g} % of the image's energy is not determined by the data ({how})"
    if threshold is None:
        return Determined("amber", f"{says}; the card has no limit for it: recon calibrate makes one", share, lamda, None)
    if share > threshold:
        return Determined("amber", f"{says}, more than on validation volumes ({threshold:.2%})", share, lamda, threshold)
    return Determined("green", f"{says}, as on validation volumes", share, lamda, threshold)
