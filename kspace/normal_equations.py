"""Regularised normal equations of parallel MRI, ``(A^H W A + lamda I) x = b``: the one SENSE solve.

Where whole lines are sampled, A^H W A acts along y alone and every column of the image is a system of its own. Each then takes
its own steps, which are fewer; columns without signal cost nothing; and the few that are worked on at a time, with their coil
maps, stay in the cache of a CPU through all iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kspace.cg import Watch, conjugate_gradients, energy
from kspace.fourier import fft_corner, ifft_corner
from kspace.operators import ForwardModel, Sense, flattened

CPU_CHUNK = 2**17  # k-space samples solved together on a CPU: with their maps they fit into its cache
DEVICE_CHUNK = 2**26  # on an accelerator: 0.5 GiB in single precision, and a few buffers of that size
CPU_BATCH = 2**22  # k-space samples prepared together on a CPU: what bounds the memory


def solve(
    op: ForwardModel,
    lamda: Tensor,
    b: Tensor,
    start: Tensor | None = None,
    *,
    tolerance: float,
    max_iterations: int,
    warn: bool = True,
    watch: Watch | None = None,
) -> Tensor:
    """``(A^H W A + lamda I)^-1 b`` by preconditioned conjugate gradients, W being ``op.weights``.

    Pruessmann et al. 2001, doi:10.1002/mrm.1241; the preconditioner is circulant: Chan 1988, doi:10.1137/0909051.

    Parameters
    ----------
    op
        The forward model, with or without batch, on any device.
    lamda
        Real, broadcastable to ``(*batch 1 1)``; not negative.
    b, start
        Right-hand side and initial value (None: 0), complex ``(*batch y x)``.
    tolerance
        Relative residual ``||b - M x|| / ||b||`` at which a plane is solved.
    max_iterations
        A plane that needs more is returned as it is.
    warn
        Whether such a plane is worth a `RuntimeWarning`.
    watch
        Sees every iteration, as ``(plane y x)``. All planes are then solved together, however many.

    Returns
    -------
    Tensor
        Complex ``(*batch y x)``. A plane does not depend on the others of its batch.

    Of a model with a `rank` of 3, `b` and the solution are ``(*batch z y x)``, and a plane is a volume.
    """
    rank, image = op.rank, b.shape[-op.rank :]
    lines = op.axes == (-2,) and image[-1] > 1
    shape = torch.broadcast_shapes(b.shape[:-rank], op.batch, lamda.shape[:-rank])
    b, start = b.expand(*shape, *image), None if start is None else start.expand(*shape, *image)
    samples = math.prod(shape) * _size(op)
    if not lines and (samples <= chunk(b.device) or watch is not None):
        # As it is: who solves with one operator again and again shares what the operator remembers.
        options: dict[str, Any] = {"warn": warn, "watch": watch, "rank": rank}
        return conjugate_gradients(*_system(op, lamda), b, start, tolerance, max_iterations, **options)
    systems = _Systems(
        op.flattened(shape),
        flattened(lamda, rank, shape),
        b.reshape(-1, *image),
        None if start is None else start.reshape(-1, *image),
        tolerance,
    )
    method, size = (_solve_columns, batch(b.device)) if lines else (_solve, chunk(b.device))
    solved = [method(part, max_iterations, warn, watch) for part in systems.parts(size, watch)]
    return torch.cat(solved).reshape(b.shape) if solved else torch.zeros_like(b)


def chunk(device: torch.device) -> int:
    """How many samples, of all coils, to solve for at a time on `device`."""
    return CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK


def batch(device: torch.device) -> int:
    """How many samples, of all coils, to hold copies of at a time on `device`."""
    return CPU_BATCH if device.type == "cpu" else DEVICE_CHUNK


def planes_at_once(op: ForwardModel) -> int:
    """How many planes of `op` fit into a `batch`."""
    return max(batch(op.maps.device) // _size(op), 1)


def _size(op: ForwardModel) -> int:
    """Points of the coil images of a plane or volume."""
    return math.prod(op.maps.shape[-op.rank - 1 :])


@dataclass(frozen=True, eq=False)
class _Systems:
    """Independent systems, one a plane. What all share has a batch of 1."""

    op: ForwardModel
    lamda: Tensor  # (plane|1 1 1)
    b: Tensor  # (plane y x) or (plane z y x)
    start: Tensor | None
    tolerance: float | Tensor  # a tensor: (plane 1 1)

    def __getitem__(self, index: slice | Tensor) -> _Systems:
        def take(x: Tensor) -> Tensor:
            return x if len(x) == 1 else x[index]

        start = None if self.start is None else self.start[index]
        tolerance = take(self.tolerance) if isinstance(self.tolerance, Tensor) else self.tolerance
        return _Systems(self.op.planes(index), take(self.lamda), self.b[index], start, tolerance)

    def parts(self, size: int, watch: Watch | None) -> Iterator[_Systems]:
        """The systems in chunks of about `size` samples; all at once where somebody watches."""
        n = len(self.b) if watch is not None else max(size // _size(self.op), 1)
        if n >= len(self.b):
            yield from [self] if len(self.b) else []
            return
        for first in range(0, len(self.b), n):
            yield self[first : first + n]

    def columns(self) -> _Systems:
        """One system for each column of each plane, ``(plane x, 1 y)``, of an operator that samples whole lines."""
        n, _, n_x = self.b.shape

        def turn(x: Tensor) -> Tensor:
            if len(x) == 1 and x.shape[-1] == 1:
                return x.mT
            x = x.expand(n, *x.shape[1:-1], n_x).movedim(-1, 1)
            return x.reshape(n * n_x, *x.shape[2:]).unsqueeze(-2).contiguous()

        assert isinstance(self.op, Sense)
        op = replace(
            self.op,
            maps=turn(self.op.maps),
            mask=turn(self.op.mask),
            n_averages=None if self.op.n_averages is None else turn(self.op.n_averages),
            calibration=None,
        )
        b = turn(self.b)
        # Each column may keep its share of the residual of its plane: those with little signal need not be as exact.
        signal = energy(b)
        share = signal.reshape(n, n_x).mean(1).repeat_interleave(n_x)[:, None, None]
        return _Systems(op, turn(self.lamda), b, None if self.start is None else turn(self.start),
                        self.tolerance * (share / signal).sqrt())  # fmt: skip


def _solve_columns(systems: _Systems, max_iterations: int, warn: bool, watch: Watch | None) -> Tensor:
    n, n_y, n_x = systems.b.shape

    def planes(columns: Tensor) -> Tensor:
        return columns.reshape(n, n_x, n_y).mT

    columns = systems.columns()
    see = None if watch is None else lambda iteration, x: watch(iteration, planes(x))
    return planes(_solve(columns, max_iterations, warn, see))


def _solve(systems: _Systems, max_iterations: int, warn: bool, watch: Watch | None) -> Tensor:
    """Solve the systems chunk by chunk; where b is zero, so is the solution."""
    # Not "> 0": what is not a number must stay visible.
    rank = systems.op.rank
    index = (energy(systems.b, rank).flatten() != 0).nonzero().flatten()
    kept = systems if len(index) == len(systems.b) else systems[index]
    solution = torch.zeros_like(systems.b)

    def whole(part: Tensor) -> Tensor:
        return solution.index_copy(0, index, part)

    see = None if watch is None else lambda iteration, x: watch(iteration, whole(x))
    solved = [
        conjugate_gradients(
            *_system(part.op, part.lamda), part.b, part.start, part.tolerance, max_iterations, warn=warn, watch=see, rank=rank
        )
        for part in kept.parts(chunk(systems.b.device), watch)
    ]
    return whole(torch.cat(solved)) if solved else solution


def _system(op: ForwardModel, lamda: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """``A^H W A + lamda I``, and a circulant approximation of its inverse."""
    weights = op.weights
    gram, axes = op.gram(weights), op.axes
    eigenvalues = op.circulant
    # Where nothing is sampled the circulant matrix has eigenvalues near 0; the true one has not, as coils fill in for each
    # other. Their mean was about the best of several terms tried against that: half the iterations of the circulant matrix
    # alone on an 8-coil brain at R = 4.
    inverse = 1 / (eigenvalues + eigenvalues.mean(axes, keepdim=True) + lamda).clamp(min=1e-12)
    support = op.support
    outside = 1 / lamda.clamp(min=1e-12)

    def precondition(r: Tensor) -> Tensor:
        # Outside of the support of the maps the matrix is lamda I and nothing else, and what is 0 there stays 0.
        inside = ifft_corner(inverse * fft_corner(torch.where(support, r, 0), axes), axes)
        return torch.where(support, inside, outside * r)

    return lambda x: gram(x) + lamda * x, precondition
