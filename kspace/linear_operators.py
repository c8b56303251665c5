"""Linear operators, and the elementary ones of MRI.

Operators are immutable values, not `nn.Module`s, so coil maps cannot end up in a `state_dict`. All accept any number of leading
batch dimensions, run on any device, and are differentiable with respect to their argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kspace.fourier import IMAGE_AXES, fft, ifft

if TYPE_CHECKING:
    import sigpy


@dataclass(frozen=True, eq=False)
class LinearOperator(ABC):
    """Linear map between tensors, with its adjoint.

    ``op @ x`` applies it, ``a @ b`` composes (b first), ``op.H`` is the adjoint operator.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint: ``<forward(x), y> == <x, adjoint(y)>`` in the complex Euclidean inner product."""

    def normal(self, x: Tensor) -> Tensor:
        """``adjoint(forward(x))``."""
        return self.adjoint(self.forward(x))

    @abstractmethod
    def to_sigpy(self, shape: Sequence[int]) -> sigpy.linop.Linop:
        """Equivalent SigPy linop over NumPy arrays, for inputs of `shape`."""

    @property
    def H(self) -> LinearOperator:
        """Adjoint operator."""
        return Adjoint(self)

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return Composition(self, other)
        return self.forward(other)

    def to(self, device: torch.device | str) -> LinearOperator:
        """Copy with all tensors on `device`."""
        moved = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor | LinearOperator):
                moved[item.name] = value.to(device)
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Adjoint(LinearOperator):
    """Adjoint of `op`."""

    op: LinearOperator

    def forward(self, x: Tensor) -> Tensor:
        return self.op.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.op.forward(y)

    @property
    def H(self) -> LinearOperator:
        return self.op

    def to_sigpy(self, shape: Sequence[int]) -> sigpy.linop.Linop:
        """As for `op`: `shape` is the input shape of `op`, not of its adjoint."""
        return self.op.to_sigpy(shape).H


@dataclass(frozen=True, eq=False)
class Composition(LinearOperator):
    """Composition ``outer(inner(x))``."""

    outer: LinearOperator
    inner: LinearOperator

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def to_sigpy(self, shape: Sequence[int]) -> sigpy.linop.Linop:
        inner = self.inner.to_sigpy(shape)
        return self.outer.to_sigpy(inner.oshape) * inner


@dataclass(frozen=True, eq=False)
class Fourier(LinearOperator):
    """Centred orthonormal Fourier transform along `axes` (`kspace.fourier`)."""

    axes: tuple[int, ...] = IMAGE_AXES

    def forward(self, x: Tensor) -> Tensor:
        return fft(x, self.axes)

    def adjoint(self, y: Tensor) -> Tensor:
        return ifft(y, self.axes)

    def normal(self, x: Tensor) -> Tensor:
        return x

    def to_sigpy(self, shape: Sequence[int]) -> sigpy.linop.Linop:
        import sigpy

        return sigpy.linop.FFT(tuple(shape), axes=self.axes, center=True)


@dataclass(frozen=True, eq=False)
class Sampling(LinearOperator):
    """Multiplication by the sampling `mask`, bool and broadcastable to ``(*batch coil ky kx)``."""

    mask: Tensor

    def __post_init__(self) -> None:
        check_mask(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.mask

    def normal(self, x: Tensor) -> Tensor:
        return x * self.mask

    def to_sigpy(self, shape: Sequence[int]) -> sigpy.linop.Linop:
        import sigpy

        return sigpy.linop.Multiply(tuple(shape), to_numpy(self.mask.to(torch.float32)))


@dataclass(frozen=True, eq=False)
class Sensitivity(LinearOperator):
    """Multiplication of an image ``(*batch y x)`` by complex coil `maps` ``(*batch coil y x)``."""

    maps: Tensor

    def __post_init__(self) -> None:
        check_maps(self.maps)

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-3) * self.maps

    def adjoint(self, y: Tensor) -> Tensor:
        return (y * self.maps.conj()).sum(-3)

    def normal(self, x: Tensor) -> Tensor:
        return x * self.maps.abs().square().sum(-3)

    def to_sigpy(self, shape: Sequence[int]) -> sigpy.linop.Linop:
        """Equivalent SigPy linop for one image of `shape` ``(y x)``."""
        import sigpy

        maps = to_numpy(unbatched(self.maps, 3, "maps"))
        expand = sigpy.linop.Reshape((1, *shape), tuple(shape))
        return sigpy.linop.Multiply(expand.oshape, maps) * expand


def check_maps(maps: Tensor) -> None:
    """Refuse maps that are not complex ``(*batch coil y x)``."""
    if not maps.is_complex() or maps.ndim < 3:
        raise ValueError(f"maps must be complex (*batch coil y x); got {maps.dtype} of shape {tuple(maps.shape)}")


def check_mask(mask: Tensor) -> None:
    """Refuse a mask that is not bool ``(*batch ky kx)``."""
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ValueError(f"the mask must be bool with at least (ky kx); got {mask.dtype} of shape {tuple(mask.shape)}")


def unbatched(x: Tensor, rank: int, name: str) -> Tensor:
    """The single plane of `x`, any shape with `rank` trailing axes; SigPy's operators have no batch."""
    batch = x.shape[: max(x.ndim - rank, 0)]
    if any(n != 1 for n in batch):
        raise ValueError(f"SigPy's operators have no batch dimension: {name} of shape {tuple(x.shape)} must be a single plane")
    return x.reshape(x.shape[len(batch) :])


def to_numpy(x: Tensor) -> Any:
    """Array of the same shape, for SigPy."""
    return x.detach().cpu().numpy()
