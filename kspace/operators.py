"""The Cartesian forward model of parallel MRI, which solvers, data consistency, networks and evidence use.

`kspace.noncartesian.operator.NonCartesianSense` is the other. Their interface, `ForwardModel`, and the elementary operators are
in `kspace.linear_operators`; as all operators they are immutable values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import IMAGE_AXES, centring_phases, fft_corner, ifft_corner, to_corner
from kspace.linear_operators import (
    Adjoint,
    Composition,
    ForwardModel,
    Fourier,
    LinearOperator,
    Sampling,
    Sensitivity,
    check_maps,
    check_mask,
    to_numpy,
    unbatched,
)

if TYPE_CHECKING:
    import sigpy

__all__ = [
    "Adjoint",
    "Composition",
    "ForwardModel",
    "Fourier",
    "LinearOperator",
    "Sampling",
    "Sense",
    "Sensitivity",
    "flattened",
    "nearest_circulant",
    "on_grid",
    "transformed_axes",
    "weighted_gram",
]


@dataclass(frozen=True, eq=False)
class Sense(ForwardModel):
    """SENSE forward model of parallel MRI, ``y = mask * fft(maps * image)``.

    Pruessmann et al. 1999, doi:10.1002/(SICI)1522-2594(199911)42:5<952::AID-MRM16>3.0.CO;2-S.

    Attributes
    ----------
    maps
        Complex coil sensitivities ``(*batch coil y x)``, with squared magnitudes that sum over the coils to 1 inside the
        support and to 0 outside, so that the operator norm is at most 1.
    mask
        Bool, broadcastable to ``(*batch coil ky kx)``. For complete phase-encode lines its last axis has length 1, and the
        normal operator needs one-dimensional transforms only.
    noise_std
        Square root of E|n|^2 of one k-space sample measured once; 1 after whitening.
    n_averages
        Integer, broadcastable like `mask`: number of measurements of each sample; None means one. Ignored by `forward` and
        `adjoint`; solvers weight the samples with `weights`.
    calibration
        Complex ``(*batch coil ky kx)``: separate reference lines (`kspace.container.KSpace.calibration`), for methods that fit
        a kernel to them; no part of the model. None: there are none.
    """

    maps: Tensor
    mask: Tensor
    noise_std: float = 1.0
    n_averages: Tensor | None = None
    calibration: Tensor | None = None

    def __post_init__(self) -> None:
        check_maps(self.maps)
        check_mask(self.mask)
        size = self.maps.shape[-2:]
        for name, m in (("mask", self.mask), ("n_averages", self.n_averages)):
            if m is not None and any(a not in (1, b) for a, b in zip(m.shape[-2:], size, strict=True)):
                raise ValueError(f"{name} of shape {tuple(m.shape)} does not fit maps of shape {tuple(self.maps.shape)}")
        if self.calibration is not None and self.calibration.shape[-3:] != self.maps.shape[-3:]:
            shape = tuple(self.calibration.shape)
            raise ValueError(f"calibration of shape {shape} does not fit maps of shape {tuple(self.maps.shape)}")

    @property
    def weights(self) -> Tensor:
        """Weights of the data term, real and broadcastable to k-space: inverse noise variance of each sample relative to a
        single measurement, 0 where not sampled."""
        weights = self.mask.to(self.maps.real.dtype)
        return weights if self.n_averages is None else weights * self.n_averages

    @property
    def unit_weight(self) -> Tensor:
        weights = self.weights if self.weights.ndim > 2 else self.weights.unsqueeze(0)
        return weights.amax((-3, -2, -1), keepdim=True).squeeze(-1)

    @property
    def axes(self) -> tuple[int, ...]:
        return transformed_axes(self.weights)

    @property
    def diagonal(self) -> Tensor:
        constant = (self.maps - self.maps[..., :1, :1]).abs().amax((-3, -2, -1)) < 1e-6
        return constant & (self.n_coils == 1)

    @property
    def frequencies(self) -> tuple[Tensor, Tensor]:
        y, x = ((torch.arange(n, dtype=torch.float64, device=self.maps.device) - n // 2) / n for n in self.shape)
        return y[:, None], x

    @property
    def grid_mask(self) -> Tensor:
        return self.mask

    @property
    def samples(self) -> tuple[int, int]:
        return self.maps.shape[-2], self.maps.shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        return torch.broadcast_shapes(self.maps.shape[:-3], self.mask.shape[:-3])

    def nearest_circulant(self, weights: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
        weights = weights if weights.ndim > 2 else weights.unsqueeze(0)
        return nearest_circulant(self.maps, to_corner(weights, axes), axes)

    def forward(self, x: Tensor) -> Tensor:
        """Image ``(*batch y x)`` to k-space ``(*batch coil ky kx)``, zero where nothing is sampled."""
        self._check(x, 2, "image")
        maps, mask = self._phased_maps, self._phased_mask
        if _tracked(x):
            return mask * fft_corner(maps * x.unsqueeze(-3))
        batch = torch.broadcast_shapes(x.shape[:-2], maps.shape[:-3], mask.shape[:-3])
        y = x.new_empty((*batch, *maps.shape[-3:]), dtype=torch.promote_types(x.dtype, maps.dtype))
        for plane, x_i, maps_i, mask_i in _planes(batch, (x, 2), (maps, 3), (mask, 3)):
            for coils in _chunks(self.n_coils):
                torch.mul(fft_corner(maps_i[coils] * x_i), _coils(mask_i, coils), out=y[plane][coils])
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """k-space ``(*batch coil ky kx)`` to the zero-filled, coil-combined image ``(*batch y x)``."""
        self._check(y, 3, "k-space")
        maps, mask = self._phased_maps, self._phased_mask
        if _tracked(y):
            return (maps.conj() * ifft_corner(mask.conj() * y)).sum(-3)
        mask = mask.conj().resolve_conj()
        batch = torch.broadcast_shapes(y.shape[:-3], maps.shape[:-3], mask.shape[:-3])
        image = y.new_zeros((*batch, *maps.shape[-2:]), dtype=torch.promote_types(y.dtype, maps.dtype))
        for plane, y_i, maps_i, mask_i in _planes(batch, (y, 3), (maps, 3), (mask, 3)):
            for coils in _chunks(self.n_coils):
                _combine(image[plane], ifft_corner(y_i[coils] * _coils(mask_i, coils)), maps_i[coils])
        return image

    def normal(self, x: Tensor) -> Tensor:
        """``adjoint(forward(x))`` of an image ``(*batch y x)``, without transforms along fully sampled lines."""
        self._check(x, 2, "image")
        return self.gram(self.mask.to(self.maps.real.dtype))(x)

    def flattened(self, batch: Sequence[int]) -> Sense:
        return self._each(lambda x: flattened(x, 3, batch))

    def planes(self, index: slice | Tensor) -> Sense:
        return self._each(lambda x: x if len(x) == 1 else x[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Sense:
        counts, lines = (None if x is None else change(x) for x in (self.n_averages, self.calibration))
        return replace(self, maps=change(self.maps), mask=change(self.mask), n_averages=counts, calibration=lines)

    def to_sigpy(self, shape: Sequence[int] | None = None) -> sigpy.linop.Linop:
        """Equivalent `sigpy.mri.linop.Sense` of one plane with the mask as weights, ``(y x)`` to ``(coil ky kx)``.

        Raises
        ------
        ValueError
            If the operator is batched: SigPy linops have no batch dimension.
        """
        # SigPy compares shapes with `zip` and so misses a wrong rank: checked here.
        import sigpy.mri

        maps = unbatched(self.maps, 3, "maps")
        if shape is not None and tuple(shape) != tuple(maps.shape[-2:]):
            raise ValueError(f"the operator takes images of shape {tuple(maps.shape[-2:])}; got {tuple(shape)}")
        mask = unbatched(self.mask, 3, "mask").expand(maps.shape)
        return sigpy.mri.linop.Sense(to_numpy(maps), weights=to_numpy(mask.to(maps.real.dtype)))

    # The origin of images and k-space lies at n // 2, that of the FFT at 0. Instead of shifting arrays in each call, the maps
    # and the mask absorb the equivalent phases (`centring_phases`).

    @cached_property
    def _phased_maps(self) -> Tensor:
        (phase_y, _), (phase_x, _) = self._phases
        return self.maps * (phase_y[:, None] * phase_x)

    @cached_property
    def _phased_mask(self) -> Tensor:
        (_, phase_y), (_, phase_x) = self._phases
        phased = self.mask * (phase_y[:, None] * phase_x)
        return phased if phased.ndim > 2 else phased.unsqueeze(0)

    @property
    def _phases(self) -> list[tuple[Tensor, Tensor]]:
        return [centring_phases(n, self.maps.dtype, self.maps.device) for n in self.maps.shape[-2:]]

    def gram(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        # The k-space phases cancel, and so do the transforms along complete lines.
        weights = weights if weights.ndim > 2 else weights.unsqueeze(0)
        return weighted_gram(self._phased_maps, weights, transformed_axes(weights))

    def _check(self, x: Tensor, rank: int, name: str) -> None:
        if x.ndim < rank or x.shape[-2:] != self.maps.shape[-2:] or (rank == 3 and x.shape[-3] != self.n_coils):
            expected = tuple(self.maps.shape[-rank:]) if rank == 3 else tuple(self.maps.shape[-2:])
            raise ValueError(f"{name} of shape {tuple(x.shape)} does not fit the operator: expected (*batch, {expected})")


def weighted_gram(maps: Tensor, w: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Callable[[Tensor], Tensor]:
    """Function ``x -> sum over coils of conj(maps) F^H w F (maps x)`` of images ``(*batch y x)``.

    Parameters
    ----------
    maps
        Complex ``(*batch coil y x)``, or ``(*batch coil z y x)`` with three `axes`.
    w
        Real, broadcastable to ``(*batch coil ky kx)`` or with kz, with a coil axis.
    axes
        Axes of F, whose origins lie at index 0 (`kspace.fourier.fft_corner`).
    """
    rank = max(len(axes), 2)
    coil = -rank - 1
    if maps.device.type == "cpu" and math.prod(maps.shape[coil:]) <= _SMALL_PLANE:
        conjugate = maps.conj().resolve_conj()
        return lambda x: (conjugate * ifft_corner(w * fft_corner(maps * x.unsqueeze(coil), axes), axes)).sum(coil)

    def apply(x: Tensor) -> Tensor:
        # Volumes go coil by coil everywhere: transforms of all coils at once would take many times their memory.
        if _tracked(x) and (rank == 2 or x.requires_grad):
            return (maps.conj() * ifft_corner(w * fft_corner(maps * x.unsqueeze(coil), axes), axes)).sum(coil)
        batch = torch.broadcast_shapes(x.shape[:-rank], maps.shape[:coil], w.shape[:coil])
        image = x.new_zeros((*batch, *maps.shape[-rank:]), dtype=torch.promote_types(x.dtype, maps.dtype))
        for plane, x_i, maps_i, w_i in _planes(batch, (x, rank), (maps, rank + 1), (w, rank + 1)):
            for coils in _chunks(maps.shape[coil], _CHUNK if rank == 2 else 1):
                spectrum = fft_corner(maps_i[coils] * x_i, axes).mul_(_coils(w_i, coils))
                _combine(image[plane], ifft_corner(spectrum, axes), maps_i[coils])
        return image

    return apply


def on_grid(op: ForwardModel, what: str, fix: str) -> Sense:
    """`op`, which must be Cartesian for `what` to be possible.

    Raises
    ------
    InputError
        If it is not, with `fix` as the remedy.
    """
    if not isinstance(op, Sense):
        raise InputError("its samples do not lie on a Cartesian grid", what, fix)
    return op


def flattened(x: Tensor, rank: int, batch: Sequence[int]) -> Tensor:
    """Merge the `batch` axes of `x`, broadcastable to ``(*batch ...)`` with `rank` trailing axes, into one.

    It has length 1 where `x` is the same for the complete batch.
    """
    x = x.reshape((1,) * (rank - x.ndim) + x.shape)
    own = x.shape[x.ndim - rank :]
    return x.reshape(1, *own) if x.numel() == math.prod(own) else x.expand(*batch, *own).reshape(-1, *own)


def transformed_axes(weights: Tensor) -> tuple[int, ...]:
    """Axes that ``A^H diag(weights) A`` transforms: those along which `weights` ``(... ky kx)`` vary, so y alone for complete
    phase-encode lines."""
    return tuple(axis for axis in IMAGE_AXES if weights.shape[axis] > 1) or IMAGE_AXES[:1]


def nearest_circulant(maps: Tensor, weights: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
    """Eigenvalues of the circulant matrix nearest to ``A^H diag(weights) A``, exact for one coil of unit modulus.

    Chan 1988, doi:10.1137/0909051: the mean over each diagonal, here the point spread function times the autocorrelation of
    the maps. Circulant along `axes`; along y alone there is one matrix per column.

    Parameters
    ----------
    maps
        Complex ``(*batch coil y x)``; their origin is irrelevant.
    weights
        Real, broadcastable to ``(*batch coil ky kx)``, zero frequency at index 0; averaged over coils.
    axes
        Axes to transform.

    Returns
    -------
    Tensor
        Real and not negative, ``(*batch ky kx)``, or ``(*batch ky x)`` along y alone; zero frequency at index 0.
    """
    weights = weights.mean(-3)
    if len(axes) == 2:
        weights = weights.expand(*weights.shape[:-2], *maps.shape[-2:])
    correlation = ifft_corner(fft_corner(maps, axes).abs().square().sum(-3).to(maps.dtype), axes).conj()
    spread = ifft_corner(weights.to(maps.dtype), axes)
    # Normalisation of the product of two orthonormal transforms.
    n = math.prod(maps.shape[axis] for axis in axes)
    return fft_corner(correlation * spread, axes).real.clamp(min=0) / n**0.5


_CHUNK = 4  # coils per step, so that their buffers fit the processor cache
_SMALL_PLANE = 2**15  # samples of a plane below which the calls cost more than the cache saves


def _tracked(x: Tensor) -> bool:
    """Whether to process the whole batch of `x` ``(*batch ...)`` at once: faster on a GPU and under autograd."""
    return x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad)


def _chunks(n_coils: int, size: int = _CHUNK) -> list[slice]:
    return [slice(i, min(i + size, n_coils)) for i in range(0, n_coils, size)]


def _planes(batch: Sequence[int], *tensors: tuple[Tensor, int]) -> Iterator[tuple[Any, ...]]:
    """Index of each plane of `batch`, with that plane of each ``(tensor, number of trailing axes)``."""
    expanded = [x.expand(*batch, *x.shape[-rank:]) for x, rank in tensors]
    for plane in itertools.product(*(range(n) for n in batch)):
        yield plane, *(x[plane] for x in expanded)


def _coils(x: Tensor, coils: slice) -> Tensor:
    """The given coils of ``(coil ky kx)`` or ``(coil kz ky kx)``, or all of a singleton coil axis."""
    return x[coils] if x.shape[0] > 1 else x


def _combine(image: Tensor, coil_images: Tensor, maps: Tensor) -> None:
    """Add ``sum conj(maps) * coil_images`` to `image` in place, without a temporary array of products."""
    for one, map_ in zip(coil_images, maps, strict=True):
        image.addcmul_(one, map_.conj())
