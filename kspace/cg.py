"""Conjugate gradients for a batch of planes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor | None,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Solve ``matrix(x) = b`` for every plane of a batch at once (Hestenes and Stiefel 1952, doi:10.6028/jres.049.044).

    Parameters
    ----------
    matrix, precondition
        Hermitian positive definite maps of complex ``(*batch y x)`` to itself, acting on each plane alone; the second is an
        approximation of the inverse of the first.
    b
        Right-hand side, complex ``(*batch y x)``.
    start
        Where to start from, like `b`; None: from 0, which saves one product.
    tolerance
        Relative residual ``||b - matrix(x)|| / ||b||`` at which a plane is left alone.
    max_iterations
        A plane that needs more is returned as it is, with a `RuntimeWarning`.

    Returns
    -------
    Tensor
        Complex ``(*batch y x)``.
    """
    x = 0 * b if start is None else start.expand_as(b)  # a product, so that what is not a number stays visible
    r = b if start is None else b - matrix(x)
    p = precondition(r)
    fall, residual, enough = _inner(r, p), _energy(r), tolerance**2 * _energy(b)
    for _ in range(max_iterations):
        active = residual > enough
        if not active.any():
            return x.clone()
        q = matrix(p)
        step = torch.where(active, fall / _inner(p, q), 0)
        x = x + step * p
        r = r - step * q
        z = precondition(r)
        old, fall, residual = fall, _inner(r, z), _energy(r)
        p = z + torch.where(active, fall / old, 0) * p
    if (residual > enough).any():
        worst = (residual / _energy(b)).sqrt().nan_to_num(0).max().item()
        warnings.warn(
            f"conjugate gradients stopped after {max_iterations} iterations at relative residual {worst:.1e} "
            f"(asked for {tolerance:.0e}); a larger lamda converges faster",
            RuntimeWarning,
            stacklevel=4,
        )
    return x


def _energy(x: Tensor) -> Tensor:
    return _inner(x, x)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    # Real arithmetic halves the work of a complex product of which only the real part is wanted.
    products = torch.view_as_real(a.resolve_conj()) * torch.view_as_real(b.resolve_conj())
    return products.sum((-3, -2, -1)).unsqueeze(-1).unsqueeze(-1)
