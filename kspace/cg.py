"""Conjugate gradients for a batch of linear systems."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Watch = Callable[[int, Tensor], None]
"""Callback after each iteration with its number, from 1, and the current solution, which it must not modify."""


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor | None,
    tolerance: float | Tensor,
    max_iterations: int,
    *,
    warn: bool = True,
    watch: Watch | None = None,
    rank: int = 2,
) -> Tensor:
    """Solve ``matrix(x) = b`` for all planes of a batch simultaneously (Hestenes and Stiefel 1952, doi:10.6028/jres.049.044).

    Parameters
    ----------
    matrix, precondition
        Hermitian positive definite functions of complex ``(*batch y x)`` that act on each plane separately; the second
        approximates the inverse of the first.
    b
        Right-hand side, complex ``(*batch y x)``.
    start
        Initial estimate, complex ``(*batch y x)``; None for 0, which saves one product.
    tolerance
        Relative residual ``||b - matrix(x)|| / ||b||`` at which a plane has converged; a tensor ``(*batch 1 1)`` sets it per
        plane. The lower limit is a hundredth of the machine epsilon of the dtype, also for 0.
    max_iterations
        Limit after which the current estimate is returned.
    warn
        Whether reaching the limit gives a `RuntimeWarning`.
    watch
        Called after each iteration.
    rank
        Axes that belong to one system: 2 for planes, 3 for volumes ``(*batch z y x)``, whose tolerance is ``(*batch 1 1 1)``.

    Returns
    -------
    Tensor
        Complex ``(*batch y x)``; each plane is independent of the others.
    """
    x = 0 * b if start is None else start.expand_as(b).clone()  # not zeros_like: NaN in b must propagate
    r = b if start is None else b - matrix(x)
    least = torch.finfo(b.dtype).eps / 100
    enough = (tolerance.clamp(min=least) if isinstance(tolerance, Tensor) else max(tolerance, least)) ** 2 * energy(b, rank)
    p = precondition(r)
    fall = inner(r, p, rank)
    for iteration in range(1, max_iterations + 1):
        active = (energy(r, rank) > enough) & (fall > 0)
        if not active.any():
            return x
        q = matrix(p)
        step = torch.where(active, fall / inner(p, q, rank), 0)
        x = x + step * p
        r = r - step * q
        if watch is not None:
            watch(iteration, x)
        if iteration < max_iterations:
            z = precondition(r)
            old, fall = fall, inner(r, z, rank)
            p = z + torch.where(active, fall / old, 0) * p
    if warn and (energy(r, rank) > enough).any():
        worst = (energy(r, rank) / energy(b, rank)).sqrt().nan_to_num(0).max().item()
        warnings.warn(
            f"conjugate gradients stopped after {max_iterations} iterations at relative residual {worst:.1e} "
            f"(requested {float(torch.as_tensor(tolerance).min()):.0e}); a larger lamda converges faster",
            RuntimeWarning,
            stacklevel=5,
        )
    return x


def energy(x: Tensor, rank: int = 2) -> Tensor:
    """Squared Euclidean norm of every plane of complex ``(*batch y x)``: real ``(*batch 1 1)``; of volumes with `rank` 3."""
    return inner(x, x, rank)


def inner(a: Tensor, b: Tensor, rank: int = 2) -> Tensor:
    """Real part of the inner product of every plane of complex ``(*batch y x)``: real ``(*batch 1 1)``; of every volume
    ``(*batch z y x)``, real ``(*batch 1 1 1)``, with a `rank` of 3."""
    # Only the real part is needed; real arithmetic halves the work. Two sums instead of
    # one, whose split among threads, and so rounding, would depend on the batch.
    products = torch.view_as_real(a.resolve_conj()) * torch.view_as_real(b.resolve_conj())
    sums = products.sum((-2, -1))
    for _ in range(rank - 1):
        sums = sums.sum(-1)
    return sums.reshape(*sums.shape, *[1] * rank)
