"""Linear operators: their interface, the elementary ones of MRI, and the interface of forward models.

Operators are immutable values, not `nn.Module`s, so coil maps cannot end up in a `state_dict`. All accept any number of leading
batch dimensions, run on any device, and are differentiable with respect to their argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

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


class ForwardModel(LinearOperator):
    """Forward model of parallel MRI: coil sensitivities, Fourier transform, sampling; an image to the samples of all coils.

    Where ``(y x)`` stands for an image, it is ``(z y x)`` for a model with a `rank` of 3.

    Attributes
    ----------
    maps
        Complex coil sensitivities ``(*batch coil y x)``, with squared magnitudes that sum over the coils to 1 inside the
        support and to 0 outside.
    mask
        Bool, broadcastable to the samples ``(*batch coil ky kx)``: True where one was acquired.
    noise_std
        Square root of E|n|^2 of one k-space sample measured once; 1 after whitening.
    n_averages
        Integer, broadcastable like `mask`: number of measurements of each sample; None means one.
    noise_known
        Whether `noise_std` was measured and solvers stop where only noise is left: off the grid alone.
    """

    maps: Tensor
    mask: Tensor
    noise_std: float
    n_averages: Tensor | None
    noise_known: bool = False

    @property
    def n_coils(self) -> int:
        """Number of coils."""
        return self.maps.shape[-self.rank - 1]

    @property
    def rank(self) -> int:
        """Axes of an image: 2 for planes, 3 for volumes whose planes are coupled."""
        return 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Matrix ``(y x)`` of the image."""
        return tuple(self.maps.shape[-self.rank :])

    @cached_property
    def support(self) -> Tensor:
        """Bool ``(*batch y x)``: True where any coil map is non-zero. The image is undetermined outside."""
        support: Tensor | None = None
        for one in self.maps.unbind(-self.rank - 1):  # coil by coil: not of all at once
            support = one != 0 if support is None else support | (one != 0)
        assert support is not None
        return support

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Weights W of the data term, real and broadcastable to the samples: inverse noise variance of each relative to a
        single measurement, 0 where not acquired."""

    @property
    @abstractmethod
    def unit_weight(self) -> Tensor:
        """Eigenvalue of ``A^H W A`` that the scale of a problem refers to, real ``(*batch|1 1 1)``: that of sampled frequencies
        on a grid, the mean of all elsewhere."""

    @property
    def least_residual(self) -> float:
        """Relative residual of the normal equations of SENSE below which an image gets no better."""
        return 0.0

    @property
    @abstractmethod
    def axes(self) -> tuple[int, ...]:
        """Image axes along which ``A^H W A`` couples pixels."""

    @property
    @abstractmethod
    def diagonal(self) -> Tensor:
        """Bool ``(*batch|1)``: whether ``A^H W A`` is diagonal in the Fourier domain."""

    @property
    @abstractmethod
    def frequencies(self) -> tuple[Tensor, ...]:
        """Where k-space is sampled: (kz,) ky and kx in cycles per pixel, -0.5 to 0.5, real, broadcastable to the samples."""

    @property
    def sampled_fraction(self) -> Tensor:
        """Share of the points of the Cartesian grid at which there is a sample, real ``(*batch)``."""
        mask = self.grid_mask if self.grid_mask.ndim > 2 else self.grid_mask.unsqueeze(0)
        return mask.expand(*mask.shape[: -self.rank], *self.shape).float().mean(tuple(range(-self.rank - 1, 0)))

    @property
    @abstractmethod
    def grid_mask(self) -> Tensor:
        """Points of the Cartesian grid at which there is a sample, or that are nearest to one: bool, broadcastable to
        ``(*batch 1 ky kx)``."""

    @abstractmethod
    def gram(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """Function ``x -> A^H diag(weights) A x`` of images ``(*batch y x)``, for real weights broadcastable to k-space."""

    @abstractmethod
    def nearest_circulant(self, weights: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
        """Eigenvalues of the circulant matrix nearest to ``A^H diag(weights) A``, real ``(*batch ky kx)``; see
        `kspace.operators.nearest_circulant`."""

    @abstractmethod
    def flattened(self, batch: Sequence[int]) -> Self:
        """Operator with the axes of `batch` merged into one, of length 1 for what all planes share."""

    @abstractmethod
    def planes(self, index: slice | Tensor) -> Self:
        """Selected planes of a `flattened` operator."""

    @property
    @abstractmethod
    def samples(self) -> tuple[int, int]:
        """Shape of the samples of a coil: ``(ky kx)`` on a grid, ``(readout sample)`` elsewhere."""

    @property
    @abstractmethod
    def batch(self) -> tuple[int, ...]:
        """Batch shape of maps and sampling."""

    @cached_property
    def circulant(self) -> Tensor:
        """`nearest_circulant` of ``A^H W A`` along `axes`: a preconditioner."""
        return self.nearest_circulant(self.weights, self.axes)

    def balanced(self, y: Tensor) -> tuple[Tensor, ForwardModel]:
        """Samples ``(*batch coil ky kx)`` and forward model such that ``A^H y`` is `zero_filled` and the norm of A about 1."""
        return y, self

    def zero_filled(self, y: Tensor) -> Tensor:
        """Image ``(*batch y x)`` of the samples ``(*batch coil ky kx)`` without inversion: ``A^H y``, the density of samples
        compensated where it is not that of a grid."""
        return self.adjoint(y)

    def reference(self, y: Tensor, rhs: Tensor) -> Tensor:
        """Image ``(*batch y x)`` whose largest pixel sets the scale of a regularised problem, given the samples ``(*batch coil
        ky kx)`` and `rhs` ``(*batch y x)``, their `back_projection` over `unit_weight`."""
        return rhs

    def back_projection(self, y: Tensor) -> Tensor:
        """``A^H W y`` with the `weights` W, ``(*batch coil ky kx)`` to ``(*batch y x)``: normal equations' right-hand side."""
        return self.adjoint(y if self.n_averages is None else y * self.n_averages)

    def to(self, device: torch.device | str) -> Self:
        moved = super().to(device)
        assert isinstance(moved, type(self))
        return moved


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


def with_tensors(op: ForwardModel, change: Callable[[Tensor], Tensor]) -> ForwardModel:
    """`op` with each of its tensors changed; maps are ``(*batch coil y x)``."""
    tensors = {f.name: getattr(op, f.name) for f in fields(op)}
    changed = {name: change(x) for name, x in tensors.items() if isinstance(x, Tensor)}
    return replace(op, **changed)


def stacked(ops: Sequence[ForwardModel]) -> ForwardModel:
    """Operators of one kind, with tensors of equal shapes, as that of a batch: maps ``(op *batch coil y x)``.

    Raises
    ------
    ValueError
        If shapes differ.
    """
    tensors: dict[str, list[Any]] = {f.name: [getattr(op, f.name) for op in ops] for f in fields(ops[0])}
    if any(len({x.shape for x in values if isinstance(x, Tensor)}) > 1 for values in tensors.values()):
        raise ValueError("operators of different shapes cannot be stacked")
    joined = {name: _stack(values) for name, values in tensors.items() if all(isinstance(x, Tensor) for x in values)}
    return replace(ops[0], **joined)


def _stack(values: Sequence[Tensor]) -> Tensor:
    """Tensors along a new first axis, without a copy where all are one: maps that frames share are many times the frames."""
    first = values[0]
    if all(x.data_ptr() == first.data_ptr() and x.stride() == first.stride() for x in values):
        return first.expand(len(values), *first.shape)
    return torch.stack(list(values))
