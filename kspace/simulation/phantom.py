"""Analytic phantoms and coils: their k-space is known exactly, so nothing that is tested with them can hide in a grid.

Ellipses and ellipsoids have closed Fourier transforms (Van de Walle et al. 2000, doi:10.1109/42.887613, in two dimensions;
Koay et al. 2007, doi:10.1002/mrm.21292, in three). A coil sensitivity that is a finite sum of complex exponentials moves
that transform to a few neighbouring frequencies, so multi-coil k-space is exact too (Guerquin-Kern et al. 2012,
doi:10.1109/TMI.2011.2174158, section III-C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Points r with ``(r - centre)^T S^-1 (r - centre) <= 1``: an ellipse in two dimensions, an ellipsoid in three.

    Attributes
    ----------
    centre_m
        Centre, ``(dim,)`` metres.
    shape_m2
        The symmetric positive definite matrix S, ``(dim, dim)`` square metres; its eigenvalues are the squared semi-axes.
    intensity
        Value inside; where shapes overlap their intensities add.
    """

    centre_m: Real
    shape_m2: Real
    intensity: float = 1.0

    def kspace(self, k: Sequence[Real]) -> Complex:
        """Fourier integral at frequencies `k`, one broadcastable array of cycles/m per dimension.

        ``F(k) = intensity * sqrt(det S) * exp(-2j pi k.c) * B(q)`` with ``q = sqrt(k^T S k)`` and the transform of the unit
        ball, ``B(q) = J1(2 pi q) / q`` in two dimensions and ``(sin(2 pi q) - 2 pi q cos(2 pi q)) / (2 pi^2 q^3)`` in three.
        """
        square = sum(self.shape_m2[i, j] * k[i] * k[j] for i in range(len(k)) for j in range(len(k)))
        ball = _disc(np.sqrt(square)) if len(k) == 2 else _ball(np.sqrt(square))
        value: Complex = ball * (self.intensity * np.sqrt(np.linalg.det(self.shape_m2)))
        for axis, centre in zip(k, self.centre_m, strict=True):
            value = value * np.exp(-2j * np.pi * axis * centre)
        return value

    def image(self, r: Sequence[Real]) -> Real:
        """Intensity inside, 0 outside, at points `r`: one broadcastable array of metres per dimension."""
        inverse = np.linalg.inv(self.shape_m2)
        d = [axis - centre for axis, centre in zip(r, self.centre_m, strict=True)]
        square = sum(inverse[i, j] * d[i] * d[j] for i in range(len(d)) for j in range(len(d)))
        return np.where(square <= 1, self.intensity, 0.0)

    def section(self, origin_m: Real, axes: Real) -> Ellipsoid | None:
        """The shape in the coordinates ``r = origin + u_1 axes[0] + ...``; None where the plane misses it."""
        q = np.linalg.inv(self.shape_m2)
        d = origin_m - self.centre_m
        m = axes @ q @ axes.T
        centre = -np.linalg.solve(m, axes @ q @ d)
        rest = 1 - d @ q @ d + centre @ m @ centre
        if rest < 1e-12:
            return None
        return Ellipsoid(centre.astype(np.float64), (rest * np.linalg.inv(m)).astype(np.float64), self.intensity)


def ellipse(
    centre_m: Sequence[float], semi_axes_m: Sequence[float], angle_deg: float = 0.0, intensity: float = 1.0
) -> Ellipsoid:
    """An ellipse ``(x, y)`` whose first semi-axis is rotated by `angle_deg` from x towards y."""
    a = np.deg2rad(angle_deg)
    return _turned(centre_m, semi_axes_m, np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]), intensity)


def ellipsoid(
    centre_m: Sequence[float],
    semi_axes_m: Sequence[float],
    angle_deg: float = 0.0,
    intensity: float = 1.0,
) -> Ellipsoid:
    """An ellipsoid ``(x, y, z)`` that is rotated about z by `angle_deg`, from x towards y."""
    a = np.deg2rad(angle_deg)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return _turned(centre_m, semi_axes_m, turn, intensity)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A sum of ellipses, or of ellipsoids.

    Attributes
    ----------
    shapes
        The parts, all of the same dimension.
    """

    shapes: tuple[Ellipsoid, ...]

    def kspace(self, kx: ArrayLike, ky: ArrayLike, kz: ArrayLike | None = None) -> Complex:
        """Fourier integral ``F(k) = integral rho(r) exp(-2j pi k.r) dr`` at `kx`, `ky` (and `kz`), broadcastable, cycles/m.

        Sampled on an n-point grid of field of view L at ``k = (i - n//2) / L``, ``F(k) * sqrt(n) / L`` (a factor for every
        axis) is the k-space of which `kspace.fourier.ifft` gives the band-limited image in units of the intensities.
        """
        k = _arrays(kx, ky, kz)
        total = np.zeros(np.broadcast_shapes(*(axis.shape for axis in k)), np.complex128)
        for shape in self.shapes:
            total += shape.kspace(k)
        return total

    def image(self, x: ArrayLike, y: ArrayLike, z: ArrayLike | None = None) -> Real:
        """Intensity at points `x`, `y` (and `z`), broadcastable, metres."""
        r = _arrays(x, y, z)
        total = np.zeros(np.broadcast_shapes(*(axis.shape for axis in r)))
        for shape in self.shapes:
            total += shape.image(r)
        return total

    def section(self, origin_m: ArrayLike, *directions: ArrayLike) -> Phantom:
        """The phantom in the coordinates of a scan: ``r = origin + u_1 directions[0] + u_2 directions[1] (+ u_3 ...)``.

        Two orthonormal directions cut an ellipsoid phantom by a plane into ellipses, exactly; three turn it.
        """
        origin, axes = np.asarray(origin_m, float), _orthonormal(directions)
        cut = (shape.section(origin, axes) for shape in self.shapes)
        return Phantom(tuple(shape for shape in cut if shape is not None))


@dataclass(frozen=True, eq=False)
class AnalyticCoils:
    """Receive sensitivities ``s_c(r) = sum_j coefficients[c, j] * exp(2j pi frequencies[j] . r)``.

    Attributes
    ----------
    frequencies
        ``(n_frequencies, dim)`` cycles/m.
    coefficients
        Complex ``(coil, n_frequencies)``.
    """

    frequencies: Real
    coefficients: Complex

    @property
    def n_coils(self) -> int:
        """Number of coils."""
        return self.coefficients.shape[0]

    def maps(self, x: ArrayLike, y: ArrayLike, z: ArrayLike | None = None) -> Complex:
        """Sensitivities at points `x`, `y` (and `z`), broadcastable, metres: complex ``(coil, ...)``."""
        r = _arrays(x, y, z)
        total = np.zeros((self.n_coils, *np.broadcast_shapes(*(axis.shape for axis in r))), np.complex128)
        for frequency, weights in zip(self.frequencies, self.coefficients.T, strict=True):
            wave: Complex = np.exp(2j * np.pi * sum(f * axis for f, axis in zip(frequency, r, strict=True)))
            total += weights.reshape(-1, *[1] * wave.ndim) * wave
        return total

    def kspace(self, phantom: Phantom, kx: ArrayLike, ky: ArrayLike, kz: ArrayLike | None = None) -> Complex:
        """Fourier integral of sensitivity times phantom, exact: complex ``(coil, ...)``; otherwise as `Phantom.kspace`."""
        k = _arrays(kx, ky, kz)
        total = np.zeros((self.n_coils, *np.broadcast_shapes(*(axis.shape for axis in k))), np.complex128)
        for frequency, weights in zip(self.frequencies, self.coefficients.T, strict=True):
            moved = phantom.kspace(*(axis - f for axis, f in zip(k, frequency, strict=True)))
            total += weights.reshape(-1, *[1] * moved.ndim) * moved
        return total

    def section(self, origin_m: ArrayLike, *directions: ArrayLike) -> AnalyticCoils:
        """The sensitivities in the coordinates of a scan, as `Phantom.section`. Frequencies that fall together are joined."""
        axes = _orthonormal(directions)
        weights = self.coefficients * np.exp(2j * np.pi * self.frequencies @ np.asarray(origin_m, float))
        unique, place = np.unique(np.round(self.frequencies @ axes.T, 9), axis=0, return_inverse=True)
        joined = np.zeros((self.n_coils, len(unique)), np.complex128)
        np.add.at(joined.T, place.ravel(), weights.T)
        return AnalyticCoils(unique, joined)


def uniform_coil() -> AnalyticCoils:
    """One coil of sensitivity 1 everywhere."""
    return AnalyticCoils(np.zeros((1, 3)), np.ones((1, 1), np.complex128))


def head_coils(
    n_coils: int,
    centre_m: Sequence[float] = (0.0, 0.0, 0.0),
    radius_m: float = 0.14,
    loop_m: float = 0.06,
    period_m: float = 0.4,
) -> AnalyticCoils:
    """Receive loops around a head, on a cylinder along the patient's z axis (two rings from 12 coils on).

    A loop's sensitivity is that of a magnetic dipole of its size, ``B_x - i B_y`` by reciprocity, fitted (ridge least squares)
    by the 31 exponentials whose frequencies are at most 2 periods within `period_m`. What counts is the fit: it is smooth,
    complex, and exact in k-space. Over a head, the root sum of squares of eight coils lies between 0.9 and 1.05, and their
    g-factor at R = 3 is about 1.3.

    Parameters
    ----------
    n_coils
        Number of coils.
    centre_m
        Centre of the cylinder, patient coordinates; there the root sum of squares is 1.
    radius_m, loop_m
        Radius of the cylinder and of the loops.
    period_m
        Distance at which the sensitivities repeat; it must exceed the phantom.
    """
    line = np.linspace(-0.11, 0.11, 12)
    points = np.stack(np.meshgrid(line, line, np.linspace(-0.08, 0.08, 7), indexing="ij"), -1).reshape(-1, 3)
    points = points[np.hypot(points[:, 0], points[:, 1]) < 0.75 * radius_m]
    steps = np.stack(np.meshgrid([-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 3)
    frequencies = steps[(steps**2).sum(1) <= 4] / period_m
    waves = np.exp(2j * np.pi * points @ frequencies.T)
    fields = np.stack([_dipole(points - at, _inward(at), loop_m) for at in _loops(n_coils, radius_m)], -1)
    normal = waves.conj().T @ waves + 1e-3 * len(points) * np.eye(len(frequencies))
    coefficients = np.linalg.solve(normal, waves.conj().T @ fields).T
    # Every exponential is 1 at the centre, so the sum of the coefficients is the sensitivity there.
    coefficients /= np.linalg.norm(coefficients.sum(1))
    return AnalyticCoils(frequencies, coefficients * np.exp(-2j * np.pi * frequencies @ np.asarray(centre_m, float)))


def _inward(at: Real) -> Real:
    radial = at * (1, 1, 0)
    return -radial / np.linalg.norm(radial)


def _loops(n_coils: int, radius_m: float) -> list[Real]:
    n_rings = 2 if n_coils >= 12 else 1
    per_ring = -(-n_coils // n_rings)
    places = []
    for c in range(n_coils):
        ring, place = c % n_rings, c // n_rings
        angle = 2 * np.pi * (place + 0.5 * ring) / per_ring + 0.2
        height = 0.05 * (2 * ring - 1) if n_rings == 2 else 0.0
        places.append(np.array([radius_m * np.cos(angle), radius_m * np.sin(angle), height]))
    return places


def _dipole(d: Real, moment: Real, loop_m: float) -> Complex:
    square = (d**2).sum(-1, keepdims=True) + loop_m**2
    field = (3 * d * (d @ moment)[:, None] - moment * square) / square**2.5
    return field[:, 0] - 1j * field[:, 1]


def _turned(centre: Sequence[float], semi_axes: Sequence[float], turn: Real, intensity: float) -> Ellipsoid:
    return Ellipsoid(np.asarray(centre, float), turn @ np.diag(np.square(semi_axes)) @ turn.T, intensity)


def _disc(q: Real) -> Real:
    # scipy is imported where it is used: `recon --help` must not wait for it.
    from scipy.special import j1

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(q > 1e-8, j1(2 * np.pi * q) / q, np.pi)


def _ball(q: Real) -> Real:
    t = 2 * np.pi * q
    with np.errstate(divide="ignore", invalid="ignore"):
        closed = (np.sin(t) - t * np.cos(t)) / (2 * np.pi**2 * q**3)
    # Below, the closed form loses its digits to cancellation; the series is exact to t^6 / 45360.
    return np.where(t > 0.05, closed, 4 * np.pi / 3 * (1 - t**2 / 10 + t**4 / 280))


def _arrays(x: ArrayLike, y: ArrayLike, z: ArrayLike | None) -> tuple[Real, ...]:
    return tuple(np.asarray(axis, np.float64) for axis in ((x, y) if z is None else (x, y, z)))


def _orthonormal(directions: Sequence[ArrayLike]) -> Real:
    axes = np.asarray(directions, np.float64)
    if not np.allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-6):
        raise ValueError(f"directions must be orthonormal; got {axes.round(6).tolist()}")
    # Directions from a file are float32: without this the section would be stretched by 1e-7.
    u, _, v = np.linalg.svd(axes, full_matrices=False)
    return u @ v
