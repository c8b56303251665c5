"""Data consistency: combination of a prior's image with the measured k-space samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kspace.fourier import fft, ifft
from kspace.normal_equations import solve
from kspace.operators import ForwardModel, Sense


def data_consistency(
    image: Tensor,
    y: Tensor,
    op: ForwardModel,
    lamda: float | Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> Tensor:
    """Image nearest to `image` that is consistent with the measured samples.

    With `lamda`, the solution of ``(A^H W A + lamda I) x = A^H W y + lamda image`` by conjugate gradients, with
    W = ``op.weights`` (Aggarwal 2019, doi:10.1109/TMI.2018.2865356). Without it, exact replacement of the sampled part of
    k-space, which is defined for one coil only.

    Parameters
    ----------
    image
        Complex ``(*batch y x)``: image of the prior, z.
    y
        Complex ``(*batch coil ky kx)``: measured k-space.
    op
        Forward model. Its maps are constants without gradient.
    lamda
        Noise variance over signal variance, positive; a number, or a differentiable tensor broadcastable to ``(*batch 1 1)``.
        None for exact replacement.
    tolerance, max_iterations
        See `regularised_solve`.

    Returns
    -------
    Tensor
        Complex ``(*batch y x)``. Differentiable in `image`, `y` and `lamda`.

    Raises
    ------
    ValueError
        If `lamda` is not positive, or is None with several coils or a coil map that is not of unit modulus.
    """
    if lamda is None:
        return _replace_samples(image, y, op)
    return regularised_solve(image, op.back_projection(y), op, lamda, tolerance=tolerance, max_iterations=max_iterations)


def regularised_solve(
    image: Tensor | None,
    back_projection: Tensor,
    op: ForwardModel,
    lamda: float | Tensor,
    *,
    tolerance: float = 1e-6,
    gradient_tolerance: float | None = None,
    max_iterations: int = 500,
) -> Tensor:
    """Solve ``(A^H W A + lamda I) x = A^H W y + lamda image`` for a given `back_projection` ``A^H W y``.

    For repeated solves with the same samples; otherwise see `data_consistency`.

    Parameters
    ----------
    image
        Complex ``(*batch y x)``; None for 0.
    back_projection
        Complex ``(*batch y x)``: ``op.back_projection(y)``.
    op, lamda
        As for `data_consistency`.
    tolerance
        Relative residual ``||b - M x|| / ||b||`` at which the conjugate gradients of a plane stop.
    gradient_tolerance
        The same for the solve in the backward pass; None for `tolerance`.
    max_iterations
        Limit after which the current estimate is returned with a `RuntimeWarning`.

    Returns
    -------
    Tensor
        Complex ``(*batch y x)``. Differentiable in `image`, `back_projection` and `lamda` by implicit differentiation: the
        backward pass is one solve with the same matrix, independent of the number of iterations.
    """
    if isinstance(lamda, float | int) and not (lamda > 0 and math.isfinite(lamda)):
        raise ValueError(f"lamda must be positive and finite; got {lamda}")
    weight = torch.as_tensor(lamda, dtype=back_projection.real.dtype, device=back_projection.device)
    solved: Tensor = _RegularisedSolve.apply(
        image, back_projection, weight, op, max_iterations, tolerance, gradient_tolerance or tolerance
    )
    return solved


def _replace_samples(image: Tensor, y: Tensor, op: ForwardModel) -> Tensor:
    if not isinstance(op, Sense):
        raise ValueError("exact replacement is defined on the Cartesian grid; give lamda (noise over signal variance)")
    if op.n_coils != 1:
        raise ValueError(
            f"exact replacement is defined for one coil; {op.n_coils} coils need lamda (noise over signal variance)"
        )
    if not torch.allclose(op.maps.abs(), torch.ones((), dtype=op.maps.real.dtype, device=op.maps.device), atol=1e-4):
        raise ValueError("exact replacement needs a coil map of unit modulus; give lamda")
    predicted = fft(image.unsqueeze(-3) * op.maps)
    return (ifft(torch.where(op.mask, y, predicted)) * op.maps.conj()).squeeze(-3)


class _RegularisedSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor | None,
        back_projection: Tensor,
        lamda: Tensor,
        op: ForwardModel,
        max_iterations: int,
        tolerance: float,
        gradient_tolerance: float,
    ) -> Tensor:
        b = back_projection if image is None else back_projection + lamda * image
        solution = solve(op, lamda, b, image, tolerance=tolerance, max_iterations=max_iterations)
        ctx.op, ctx.options = op, {"tolerance": gradient_tolerance, "max_iterations": max_iterations}
        ctx.shapes = back_projection.shape, lamda.shape
        ctx.save_for_backward(solution, image, lamda)
        return solution

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        solution, image, lamda = ctx.saved_tensors
        # The matrix is Hermitian, so the adjoint of the solve is the same solve: u = M^-1 g.
        u = solve(ctx.op, lamda, gradient, **ctx.options)
        to_image = to_back_projection = to_lamda = None
        if ctx.needs_input_grad[0]:
            to_image = (lamda * u).sum_to_size(image.shape)
        if ctx.needs_input_grad[1]:
            to_back_projection = u.sum_to_size(ctx.shapes[0])
        if ctx.needs_input_grad[2]:
            off = -solution if image is None else image - solution
            to_lamda = (u.conj() * off).real.sum_to_size(ctx.shapes[1])
        return to_image, to_back_projection, to_lamda, None, None, None, None
