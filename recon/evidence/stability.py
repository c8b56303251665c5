"""Stability: the largest amplification of a perturbation at the noise level that a few power iterations find."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kspace.operators import ForwardModel
from kspace.simulation.from_images import complex_noise
from recon.evidence.record import Stability
from recon.methods.classical import CgSense

Reconstruct = Callable[[Tensor, ForwardModel], Tensor]
PLANES = 4  # of a volume
ITERATIONS = 3


def largest_gain(
    network: Reconstruct, companion: Reconstruct | None, y: Tensor, op: ForwardModel, noise_norm: float, seed: int
) -> tuple[float, float | None]:
    """Gain ``||x(y + d) - x(y)|| / ||d||`` of network and companion, the largest of `ITERATIONS` perturbations.

    The perturbation ``d = c A v`` has the norm of the noise; v starts as noise and becomes the change of the image: power
    iteration of the network behind the forward model, without derivatives. As it needs no adjoint it finds a lower bound.

    Parameters
    ----------
    network, companion
        ``(y, op) -> image``.
    y, op
        Complex ``(*batch coil ky kx)``, zero where not acquired.
    noise_norm
        Norm of the perturbation.
    seed
        Of the first one.
    """
    rng = torch.Generator().manual_seed(seed)
    v = complex_noise(tuple(y.shape[:-3]) + op.shape, rng).to(y.device) * op.support
    start, gain, tried = network(y, op), 0.0, []
    for _ in range(ITERATIONS):
        d = op.forward(v.to(y.dtype))
        norm = float(torch.linalg.vector_norm(d))
        if norm == 0:
            break
        d = d * (noise_norm / norm)
        tried.append(d)
        v = network(y + d, op) - start
        gain = max(gain, float(torch.linalg.vector_norm(v)) / noise_norm)
    if companion is None or not tried:
        return gain, None
    # SENSE is linear: its change is its image of the perturbation.
    linear = isinstance(companion, CgSense)
    unperturbed = None if linear else companion(y, op)
    changes = [companion(d, op) if unperturbed is None else companion(y + d, op) - unperturbed for d in tried]
    return gain, max(float(torch.linalg.vector_norm(change)) for change in changes) / noise_norm


def judge_stability(gain: float, companion_gain: float | None, threshold: float | None) -> Stability:
    """The gains with their verdict; `threshold` is one of their ratio."""
    says = f"a perturbation at the noise level changes the network's image by {gain:.2f} times its norm"
    if companion_gain is None:
        return Stability("amber", f"{says}; no classical image to compare with", gain, None, threshold)
    says += f", the classical image by {companion_gain:.2f}"
    if threshold is None:
        return Stability(
            "amber", f"{says}; the card has no limit for it: recon calibrate makes one", gain, companion_gain, None
        )
    if gain > threshold * max(companion_gain, 1e-12):
        return Stability("amber", f"{says}: more than on validation volumes", gain, companion_gain, threshold)
    return Stability("green", f"{says}: as on validation volumes", gain, companion_gain, threshold)
