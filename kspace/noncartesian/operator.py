"""SENSE forward model on any trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kspace.fourier import IMAGE_AXES, fft_corner, ifft_corner, to_corner
from kspace.linear_operators import check_maps, to_numpy, unbatched
from kspace.noncartesian.density import pipe_density, visited
from kspace.noncartesian.nufft import to_image, to_samples
from kspace.operators import ForwardModel, flattened, weighted_gram

if TYPE_CHECKING:
    import sigpy


@dataclass(frozen=True, eq=False)
class NonCartesianSense(ForwardModel):
    """SENSE forward model on any trajectory, ``y = NUFFT(maps * image)``.

    Pruessmann et al. 2001, doi:10.1002/mrm.1241. ``A^H W A`` is a Toeplitz matrix between coil maps, applied on a grid of twice
    the size (Wajer and Pruessmann 2001, Proc. ISMRM 9:767; Fessler et al. 2005, doi:10.1109/TSP.2005.853152): `gram` and
    `normal` need one non-uniform transform for their kernel, and Fourier transforms on any device from then on.

    Attributes
    ----------
    maps
        Complex coil sensitivities ``(*batch coil y x)``.
    trajectory
        Real ``(*batch readout sample 2)``: kx and ky in cycles per pixel, -0.5 to 0.5 for the resolution of the maps.
    sample_weights
        Real, not negative, ``(*batch readout sample)``: inverse noise variance of each sample relative to that of one
        measurement, 0 for what was not acquired; None: 1.
    density
        Real ``(*batch readout sample)``: density compensation of `zero_filled`, in points of the grid; None: `pipe_density`.
        Least squares make no use of it.
    noise_std
        Square root of E|n|^2 of one k-space sample measured once; 1 after whitening.
    gain
        Real ``(*batch readout sample)``: factor of each sample in A; see `balanced`. None: 1.
    """

    maps: Tensor
    trajectory: Tensor
    sample_weights: Tensor | None = None
    density: Tensor | None = None
    noise_std: float = 1.0
    gain: Tensor | None = None

    def __post_init__(self) -> None:
        check_maps(self.maps)
        if self.trajectory.ndim < 3 or self.trajectory.shape[-1] != 2 or not self.trajectory.is_floating_point():
            shape = tuple(self.trajectory.shape)
            raise ValueError(f"the trajectory must be real (*batch readout sample 2); got {self.trajectory.dtype} of {shape}")
        for name in ("sample_weights", "density", "gain"):
            x = getattr(self, name)
            if x is not None and x.shape[-2:] != self.samples:
                raise ValueError(f"{name} of shape {tuple(x.shape)} does not fit {self.samples} samples")

    n_averages = None

    @property
    def samples(self) -> tuple[int, int]:
        return self.trajectory.shape[-3], self.trajectory.shape[-2]

    @cached_property
    def weights(self) -> Tensor:
        given = self.trajectory.new_ones(self.samples) if self.sample_weights is None else self.sample_weights
        return given.unsqueeze(-3).to(self.maps.real)

    @cached_property
    def mask(self) -> Tensor:  # type: ignore[override]
        """Bool ``(*batch 1 readout sample)``: where the weight is not 0."""
        return self.weights > 0

    @property
    def unit_weight(self) -> Tensor:
        return self._effective(self.weights).sum((-2, -1)).unsqueeze(-1) / math.prod(self.shape)

    @property
    def least_residual(self) -> float:
        # The centre, sampled many times over, dominates the residual. Below this one only the noise of the frequencies that are
        # sampled least is fitted, and of those that are not: at 34 spokes for 256 points and 8 coils the error against truth
        # is 0.032 here and 0.072 at 1e-5; without noise it still falls, from 0.028 to 0.024.
        return 3e-4

    @property
    def axes(self) -> tuple[int, ...]:
        return IMAGE_AXES

    @property
    def diagonal(self) -> Tensor:
        return torch.zeros(1, dtype=torch.bool, device=self.maps.device)

    @property
    def frequencies(self) -> tuple[Tensor, Tensor]:
        kx, ky = self.trajectory.unsqueeze(-4).unbind(-1)
        return ky, kx

    @cached_property
    def grid_mask(self) -> Tensor:
        found = [visited(points[mask], self.shape) for points, mask in self._by_plane(self.mask.squeeze(-3))]
        return torch.stack(found).reshape(*self._sampling_batch, 1, *self.shape)

    @property
    def batch(self) -> tuple[int, ...]:
        return torch.broadcast_shapes(self.maps.shape[:-3], self._sampling_batch)

    @property
    def _sampling_batch(self) -> tuple[int, ...]:
        return torch.broadcast_shapes(self.trajectory.shape[:-3], self.weights.shape[:-3])

    @cached_property
    def compensation(self) -> Tensor:
        """Density compensation in use, real ``(*batch readout sample)``."""
        if self.density is not None:
            return self.density
        points = self.trajectory.reshape(-1, *self.trajectory.shape[-3:])
        found = torch.stack([pipe_density(one, self.shape) for one in points]).to(self.maps.real)
        return found.reshape(self.trajectory.shape[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Image ``(*batch y x)`` to samples ``(*batch coil readout sample)``, zero where nothing was acquired."""
        self._check(x, self.shape, "image")
        return self._to_samples(self.maps * x.unsqueeze(-3)) * self._factor

    def adjoint(self, y: Tensor) -> Tensor:
        """Samples ``(*batch coil readout sample)`` to the image ``(*batch y x)``; `zero_filled` compensates the density."""
        self._check(y, (self.n_coils, *self.samples), "k-space")
        return (self.maps.conj() * self._to_image(y * self._factor)).sum(-3)

    def zero_filled(self, y: Tensor) -> Tensor:
        return self.adjoint(y if self.gain is not None else y * self.compensation.unsqueeze(-3))

    def reference(self, y: Tensor, rhs: Tensor) -> Tensor:
        return self.zero_filled(y)

    def back_projection(self, y: Tensor) -> Tensor:
        return self.adjoint(y if self.sample_weights is None else y * self.weights)

    def balanced(self, y: Tensor) -> tuple[Tensor, NonCartesianSense]:
        """Samples ``(*batch coil readout sample)`` times the square root of the density compensation, and the operator that
        gives them: its adjoint is `zero_filled`, as on a grid, and its norm about 1. For networks trained on a grid."""
        if self.gain is not None:
            return y, self
        gain = self.compensation.clamp(min=0).sqrt()
        return y * gain.unsqueeze(-3), replace(self, gain=gain)

    def normal(self, x: Tensor) -> Tensor:
        """``adjoint(forward(x))`` of an image ``(*batch y x)``, by the Toeplitz embedding."""
        self._check(x, self.shape, "image")
        return self.gram(self.mask.to(self.maps.real.dtype))(x)

    def gram(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        # A transform of 2n points of an image of n is two of n points, behind a modulation each: no zeros are transformed.
        kernel = self._kernel_of(weights)
        phases = self._modulations
        parts = [weighted_gram(self.maps, kernel[..., i, :, :].unsqueeze(-3)) for i in range(len(phases))]

        def apply(x: Tensor) -> Tensor:
            image = parts[0](x)
            for phase, part in zip(phases[1:], parts[1:], strict=True):
                image = image + phase.conj() * part(phase * x)
            return image

        return apply

    def nearest_circulant(self, weights: Tensor, axes: Sequence[int] = IMAGE_AXES) -> Tensor:
        assert tuple(axes) == IMAGE_AXES
        kernel = self._kernel_of(weights)
        batch = torch.broadcast_shapes(self.maps.shape[:-3], kernel.shape[:-3])
        # Plane by plane, and once for maps that planes share: doubled grids of all coils of a series would fill the memory.
        maps = self.maps.expand(*batch, *self.maps.shape[-3:]).reshape(-1, *self.maps.shape[-3:])
        kernels = kernel.expand(*batch, *kernel.shape[-3:]).reshape(-1, *kernel.shape[-3:])
        shared = len(maps) == 1 or maps.stride(0) == 0
        found, correlation = [], self._correlation(maps[0])
        for i, one in enumerate(kernels):
            if i and not shared:
                correlation = self._correlation(maps[i])
            spread = ifft_corner(_interleaved(one).to(self.maps.dtype))
            found.append(fft_corner(correlation * spread)[::2, ::2].real.clamp(min=0))
        return torch.stack(found).reshape(*batch, *self.shape) * (8 / math.sqrt(math.prod(self.shape)))

    def _correlation(self, maps: Tensor) -> Tensor:
        """Conjugate autocorrelation of ``(coil y x)``, summed over the coils, on the doubled grid where nothing wraps around:
        complex ``(2y 2x)``."""
        ny, nx = self.shape
        power = sum(fft_corner(torch.nn.functional.pad(one, (0, nx, 0, ny))).abs().square() for one in maps)
        assert isinstance(power, Tensor)
        return ifft_corner(power.to(maps.dtype)).conj().resolve_conj()

    def flattened(self, batch: Sequence[int]) -> NonCartesianSense:
        return self._each(lambda x, rank: flattened(x, rank, batch))

    def planes(self, index: slice | Tensor) -> NonCartesianSense:
        return self._each(lambda x, rank: x if len(x) == 1 else x[index])

    def to_sigpy(self, shape: Sequence[int] | None = None) -> sigpy.linop.Linop:
        """Equivalent `sigpy.mri.linop.Sense` of one plane, ``(y x)`` to ``(coil readout sample)``; to the accuracy of SigPy's
        gridding, about 1e-2 by default.

        Raises
        ------
        ValueError
            If the operator is batched or has a gain.
        """
        import sigpy.mri

        if self.gain is not None:
            raise ValueError("SigPy's operator has no gain")
        maps = unbatched(self.maps, 3, "maps")
        points = unbatched(self.trajectory, 3, "trajectory")
        ny, nx = self.shape
        coordinates = torch.stack([points[..., 1] * ny, points[..., 0] * nx], -1)
        return sigpy.mri.linop.Sense(to_numpy(maps), coord=to_numpy(coordinates.to(maps.real.dtype)))

    @cached_property
    def _factor(self) -> Tensor:
        mask = self.mask.to(self.maps.real.dtype)
        return mask if self.gain is None else mask * self.gain.unsqueeze(-3)

    def _effective(self, weights: Tensor) -> Tensor:
        return weights if self.gain is None else weights * self.gain.unsqueeze(-3).square()

    @cached_property
    def _modulations(self) -> list[Tensor]:
        """``exp(-pi j (p_y y / n_y + p_x x / n_x))`` for p of 0 and 1, each ``(y x)``."""
        steps = []
        for n in self.shape:
            angle = -math.pi * torch.arange(n, dtype=torch.float64, device=self.maps.device) / n
            steps.append([torch.polar(torch.ones_like(angle), p * angle) for p in (0, 1)])
        return [(y[:, None] * x).to(self.maps.dtype) for y in steps[0] for x in steps[1]]

    @cached_property
    def _kernel(self) -> Tensor:
        """Kernel of ``A^H W A``, real ``(*batch 4 ky kx)``; see `_make_kernel`."""
        return self._make_kernel(self.weights)

    def _kernel_of(self, weights: Tensor) -> Tensor:
        own = self.weights
        if weights is own:
            return self._kernel
        # Solvers scale the weights of each plane: so is the kernel, without another transform.
        factor = weights.sum((-3, -2, -1), keepdim=True) / own.sum((-3, -2, -1), keepdim=True).clamp(min=1e-30)
        scaled = factor * own
        if scaled.shape == weights.shape and torch.allclose(weights, scaled, rtol=1e-5, atol=0):
            return self._kernel * factor
        return self._make_kernel(weights)

    def _make_kernel(self, weights: Tensor) -> Tensor:
        """Real ``(*batch 4 ky kx)``: transform of the point spread function on the doubled grid, frequencies of even and odd
        index apart, zero frequency at index 0."""
        ny, nx = self.shape
        effective = self._effective(weights.mean(-3, keepdim=True)).squeeze(-3)
        kernels = []
        for points, w in self._by_plane(effective):
            spread = to_image(w.to(torch.complex128).unsqueeze(0), points, (2 * ny, 2 * nx))[0]
            spread[0, :] = 0  # shifts of n pixels do not occur, and would be their own mirror image
            spread[:, 0] = 0
            wide = fft_corner(to_corner(spread, IMAGE_AXES)).real
            # Orthonormal transforms: sqrt(4 n) of the NUFFT and sqrt(4 n) of this one, over n; a quarter for the four parts.
            kernels.append(torch.stack([wide[p::2, q::2] for p in (0, 1) for q in (0, 1)]))
        batch = torch.broadcast_shapes(self.trajectory.shape[:-3], weights.shape[:-3])
        return torch.stack(kernels).reshape(*batch, 4, ny, nx).to(self.maps.real)

    def _by_plane(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Trajectory ``(readout sample 2)`` and `x` ``(readout sample)`` of each plane of ``(*batch readout sample)``."""
        points = self.trajectory
        batch = torch.broadcast_shapes(points.shape[:-3], x.shape[:-2])
        yield from zip(
            points.expand(*batch, *points.shape[-3:]).reshape(-1, *points.shape[-3:]),
            x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]),
            strict=True,
        )

    def _to_samples(self, coil_images: Tensor) -> Tensor:
        return self._transformed(coil_images, self.samples, to_samples)

    def _to_image(self, y: Tensor) -> Tensor:
        return self._transformed(y, self.shape, lambda x, points: to_image(x, points, self.shape))

    def _transformed(self, x: Tensor, shape: tuple[int, int], transform: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`transform` of every plane of ``(*batch coil . .)``, those of one trajectory together."""
        points = self.trajectory
        if math.prod(points.shape[:-3]) == 1:
            flat = transform(x.reshape(-1, *x.shape[-2:]), points.reshape(points.shape[-3:]))
            batch = torch.broadcast_shapes(x.shape[:-3], points.shape[:-3])
            return flat.reshape(*batch, x.shape[-3], *shape)
        batch = torch.broadcast_shapes(x.shape[:-3], points.shape[:-3])
        planes = x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:])
        each = points.expand(*batch, *points.shape[-3:]).reshape(-1, *points.shape[-3:])
        found = [transform(one, where) for one, where in zip(planes, each, strict=True)]
        return torch.stack(found).reshape(*batch, x.shape[-3], *shape)

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> NonCartesianSense:
        changes: dict[str, Any] = {"maps": change(self.maps, 3), "trajectory": change(self.trajectory, 3)}
        for name in ("sample_weights", "density", "gain"):
            x = getattr(self, name)
            changes[name] = None if x is None else change(x, 2)
        made = replace(self, **changes)
        for name, rank in (("_kernel", 3), ("circulant", 2), ("compensation", 2)):  # dear, and the same for the planes kept
            if name in self.__dict__:
                made.__dict__[name] = change(self.__dict__[name], rank)
        return made

    def _check(self, x: Tensor, expected: tuple[int, ...], name: str) -> None:
        if x.ndim < len(expected) or tuple(x.shape[x.ndim - len(expected) :]) != expected:
            raise ValueError(f"{name} of shape {tuple(x.shape)} does not fit the operator: expected (*batch, {expected})")


def _interleaved(kernel: Tensor) -> Tensor:
    """The kernel on the doubled grid, ``(*batch 2ky 2kx)``, of its parts ``(*batch 4 ky kx)``."""
    ny, nx = kernel.shape[-2:]
    wide = kernel.new_empty((*kernel.shape[:-3], 2 * ny, 2 * nx))
    for i in range(4):
        wide[..., i // 2 :: 2, i % 2 :: 2] = kernel[..., i, :, :]
    return wide
