"""A simulated twin of a scan: its mask, coil maps and noise, and an object whose truth is known."""

from __future__ import annotations

import torch
from torch import Tensor

from kspace.fourier import centre_crop, fft, ifft
from kspace.operators import ForwardModel
from kspace.simulation.contrast import dead_leaves
from kspace.simulation.from_images import complex_noise
from kspace.simulation.phase import PhaseOptions, draw_phase


def twin(y: Tensor, op: ForwardModel, variance: float | None, seed: int) -> tuple[Tensor, Tensor]:
    """A scan of dead leaves with realistic phase, as energetic as the scan itself.

    Dead leaves have the edges and the spectrum of natural images and no anatomy (Lee, Mumford and Huang 2001,
    doi:10.1023/A:1011109015675): what they say of methods, they say of mask, coils and noise.

    Parameters
    ----------
    y, op
        k-space ``(coil ky kx)`` of one plane and its forward model.
    variance
        E|n|^2 of a sample measured once; None: no noise.
    seed
        Of the object and of the noise.

    Returns
    -------
    tuple
        k-space like `y`, zero where not acquired, and the object, complex ``(y x)``.
    """
    rng = torch.Generator().manual_seed(seed)
    shape = op.shape
    magnitude = dead_leaves((2 * shape[0], 2 * shape[1]), rng)
    phase = draw_phase(magnitude, rng, PhaseOptions())
    # Twice the matrix, cropped: edges are as sharp as k-space can show them, and not sharper.
    drawn = ifft(centre_crop(fft(torch.polar(magnitude, phase)), (shape[0], shape[1]))).to(y.device)
    drawn = drawn.to(y.dtype) * op.support
    measured = op.forward(drawn)
    noise = complex_noise(tuple(y.shape), rng).to(y.device) * (variance or 0.0) ** 0.5
    if op.n_averages is not None:
        noise = noise / op.n_averages.clamp(min=1).sqrt()
    energy, own = (torch.where(op.mask, x, 0).abs().square().sum() for x in (y, measured))
    scale = (energy / own.clamp(min=torch.finfo(own.dtype).tiny)).sqrt()
    return op.mask * (scale * measured + noise), scale * drawn
