"""Locally low rank reconstruction of a series of frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import ForwardModel
from recon.methods.classical import flattened
from recon.methods.regularisers import Sparsity

if TYPE_CHECKING:
    from recon.methods.solvers import Planes

_RELAXATION = 1.8  # as in `recon.methods.solvers`


@dataclass(frozen=True)
class LocallyLowRank:
    """``argmin over the frames x_t: sum_t 1/2 ||W^(1/2)(A_t x_t - y_t)||^2 + lamda m sum_b ||R_b x||_*``, R_b x the matrix
    of the pixels of block b and the frames, m the largest pixel of the zero-filled images.

    Trzasko and Manduca 2011, Proc. ISMRM 19:4371; Zhang, Pauly and Levesque 2015, doi:10.1002/mrm.25161. Alternating direction
    method of multipliers; the blocks move from iteration to iteration, so that their edges do not stay in the image. All frames
    are in memory together: some 320 bytes for each pixel and frame (measured: 40 frames of 128 x 128, 8 coils).

    Attributes
    ----------
    lamda
        Relative to the largest pixel of the zero-filled images.
    iterations
        Of ADMM, always as many.
    block
        Side of a block in pixels.
    """

    name: ClassVar[str] = "llr"
    lamda: float = 0.05
    iterations: int = 30
    block: int = 8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lamda) and self.lamda > 0):
            raise InputError(f"lamda must be finite and positive; got {self.lamda}", "method llr", "choose 1e-3 to 1e-1")
        if self.iterations < 1 or self.block < 2:
            raise InputError(
                f"{self.iterations} iterations with blocks of {self.block}", "method llr", "give at least 1, and blocks of 2"
            )

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Images, complex ``(frame y x)``, from k-space ``(frame coil ky kx)``.

        Raises
        ------
        InputError
            If there is one frame only.
        """
        if y.ndim != 4 or len(y) < 2:
            raise InputError("needs several frames of one plane", "method llr", "give --frames, or choose another method")
        from recon.methods.solvers import Planes

        samples, flat, _ = flattened(y, op)
        planes = Planes.of(samples, flat)
        largest = planes.scale.max()
        if largest == 0:
            return torch.zeros_like(planes.rhs)
        # One scale for all frames: their blocks are compared.
        planes = replace(planes, rhs=planes.rhs * (planes.scale / largest), scale=largest.expand_as(planes.scale))
        return planes.finish(self._solve(planes))

    def _solve(self, planes: Planes) -> Tensor:
        from recon.methods.solvers import MinimiseX

        threshold = self.lamda * max(1.0, self.block / 4)
        step = MinimiseX(planes, Frames(planes.shape), self.lamda / threshold)
        x = v = planes.rhs
        u = torch.zeros_like(v)
        # Shifts in an order that covers the block evenly.
        shifts = [(7 * i % self.block, (3 * i + i // self.block) % self.block) for i in range(self.iterations)]
        for shift in shifts:
            x = step(x, v - u)
            relaxed = torch.add(_RELAXATION * x, v, alpha=1 - _RELAXATION)
            v = shrink_blocks(relaxed + u, threshold, self.block, shift)
            u = u + relaxed - v
        return x


class Frames(Sparsity):
    """Nuclear norms of the blocks of a series ``(frame y x)``, with G = 1.

    Parameters
    ----------
    shape
        ``(y x)`` of a frame.
    block
        Side of a block.
    """

    threshold = 0.1
    inner_steps = 4

    def __init__(self, shape: tuple[int, int], block: int = 8) -> None:
        self.gram_eigenvalues, self._block = torch.ones(shape), block

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, v: Tensor) -> Tensor:
        return v

    def gram(self, x: Tensor) -> Tensor:
        return x

    def norm(self, v: Tensor) -> Tensor:
        return torch.linalg.svdvals(_casorati(v, self._block)[0]).sum()

    def shrink(self, v: Tensor, step: float) -> Tensor:
        return shrink_blocks(v, step, self._block)


def shrink_blocks(x: Tensor, threshold: float, block: int, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Singular values of each block shrunk by `threshold`: the proximal operator of the sum of their nuclear norms.

    Parameters
    ----------
    x
        Frames, complex ``(frame y x)``.
    threshold
        In units of `x`.
    block
        Side of a block; those at the end of an axis are smaller.
    shift
        ``(y x)`` by which the grid of blocks is moved, periodically.

    Returns
    -------
    Tensor
        Like `x`.
    """
    n, ny, nx = x.shape
    casorati, (height, width) = _casorati(x.roll(shift, (-2, -1)), block)
    # Of the Gram matrix of the frames, which is small: the singular values are the roots of its eigenvalues.
    values, vectors = torch.linalg.eigh(casorati.mH @ casorati)
    singular = values.clamp(min=0).sqrt()
    factor = (1 - threshold / singular.clamp(min=1e-30)).clamp(min=0)
    shrunk = casorati @ ((vectors * factor.unsqueeze(-2)) @ vectors.mH)
    back = shrunk.reshape(height // block, width // block, block, block, n).permute(4, 0, 2, 1, 3)
    return back.reshape(n, height, width)[:, :ny, :nx].roll((-shift[0], -shift[1]), (-2, -1))


def _casorati(x: Tensor, block: int) -> tuple[Tensor, tuple[int, int]]:
    """Pixels by frames of each block, ``(block pixel frame)``, of frames ``(frame y x)``, and the size that they cover."""
    n, ny, nx = x.shape
    height, width = (-(-size // block) * block for size in (ny, nx))
    padded = torch.nn.functional.pad(x, (0, width - nx, 0, height - ny))
    tiles = padded.reshape(n, height // block, block, width // block, block)
    return tiles.permute(1, 3, 2, 4, 0).reshape(-1, block * block, n), (height, width)
