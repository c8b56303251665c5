"""The phantom is the truth of other tests, so its own formulas are checked against numerical integrals and grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kspace.fourier import fft, ifft
from kspace.simulation.phantom import AnalyticCoils, Phantom, ellipse, ellipsoid, head_coils, uniform_coil

FLAT = Phantom((ellipse((0.01, -0.02), (0.05, 0.03), 25, 1.0), ellipse((-0.02, 0.01), (0.012, 0.02), -40, -0.6)))
SOLID = Phantom(
    (ellipsoid((0.01, -0.02, 0.005), (0.05, 0.03, 0.04), 25), ellipsoid((-0.02, 0, 0), (0.01, 0.02, 0.03), -40, -0.6))
)
OBLIQUE = np.linalg.qr(np.array([[1, 0.2, 0.1], [-0.3, 1, 0.2], [0.1, -0.4, 1]]).T)[0].T


def _grid(n: int, fov: float) -> np.ndarray:
    return (np.arange(n) - n // 2) / n * fov


def _frequencies(n: int, fov: float) -> np.ndarray:
    return (np.arange(n) - n // 2) / fov


def test_transform_of_ellipses_is_the_integral() -> None:
    # Midpoint rule on a fine grid; the edge of the shapes limits it to about 1e-4 of the area.
    n, fov = 1600, 0.16
    x = _grid(n, fov)
    rho = FLAT.image(x, x[:, None])
    for kx, ky in [(0.0, 0.0), (3.0, -7.0), (25.0, 11.0), (-40.0, 40.0)]:
        wave = np.exp(-2j * np.pi * ky * x)[:, None] * np.exp(-2j * np.pi * kx * x)
        numeric = (rho * wave).sum() * (fov / n) ** 2
        assert abs(FLAT.kspace(kx, ky) - numeric) < 2e-4 * np.pi * 0.05 * 0.03


def test_transform_of_ellipsoids_is_the_integral_of_exact_sections() -> None:
    # Through z the sections are ellipses with their exact transform: a one-dimensional integral that converges fast.
    z, weights = np.polynomial.legendre.leggauss(400)
    for k in [(0.0, 0.0, 0.0), (3.0, -7.0, 5.0), (20.0, 11.0, -13.0)]:
        numeric = 0j
        for shape in SOLID.shapes:
            half = float(np.sqrt(shape.shape_m2[2, 2]))
            for u, weight in zip(shape.centre_m[2] + half * z, half * weights, strict=True):
                cut = Phantom((shape,)).section((0, 0, u), (1, 0, 0), (0, 1, 0))
                numeric += weight * cut.kspace(k[0], k[1]) * np.exp(-2j * np.pi * k[2] * u)
        assert SOLID.kspace(*k) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("dim", [2, 3])
def test_zero_frequency_is_the_volume_and_small_ones_are_continuous(dim: int) -> None:
    shape = ellipse((0.1, 0.2), (0.03, 0.05), 12) if dim == 2 else ellipsoid((0.1, 0.2, 0.3), (0.03, 0.05, 0.04), 12)
    volume = np.pi * 0.03 * 0.05 if dim == 2 else 4 / 3 * np.pi * 0.03 * 0.05 * 0.04
    assert abs(Phantom((shape,)).kspace(*[0.0] * dim)) == pytest.approx(volume, rel=1e-12)
    # Across the switch from series to closed form.
    k = np.linspace(0.0, 1.0, 2001)
    value = np.abs(Phantom((shape,)).kspace(*[k] * dim))
    assert np.abs(np.diff(value, 2)).max() < 1e-5 * volume


def test_parseval() -> None:
    # Energy of the image equals energy of all of k-space; what lies beyond |k| decays as 1/k.
    fov, n = 0.16, 1024
    k = _frequencies(n, fov)
    x = _grid(2000, fov)
    energy = (np.abs(FLAT.kspace(k, k[:, None])) ** 2).sum() / fov**2
    assert energy == pytest.approx((FLAT.image(x, x[:, None]) ** 2).sum() * (fov / 2000) ** 2, rel=2e-3)


@pytest.mark.parametrize(("nx", "ny"), [(64, 48), (63, 49)])
def test_orthonormal_transform_of_the_samples_is_the_image_in_its_own_units(nx: int, ny: int) -> None:
    fov_x, fov_y = 0.18, 0.16
    y = FLAT.kspace(_frequencies(nx, fov_x), _frequencies(ny, fov_y)[:, None]) * np.sqrt(nx * ny) / (fov_x * fov_y)
    image = ifft(torch.from_numpy(y)).numpy()
    # A second way to the same band-limited image: average the object over fine points, cut its spectrum to the band.
    fine = 8
    rho = FLAT.image(_grid(nx * fine, fov_x), _grid(ny * fine, fov_y)[:, None])
    spectrum = fft(torch.from_numpy(rho).to(torch.complex128)).numpy() / fine
    top, left = ny * fine // 2 - ny // 2, nx * fine // 2 - nx // 2
    second = ifft(torch.from_numpy(spectrum[top : top + ny, left : left + nx].copy())).numpy()
    assert np.linalg.norm(image - second) < 0.02 * np.linalg.norm(second)
    inside = FLAT.image(_grid(nx, fov_x), _grid(ny, fov_y)[:, None]) == 1
    assert np.median(image.real[inside]) == pytest.approx(1, abs=0.03)
    assert np.abs(image.imag).max() < 0.1  # of even matrices, the half of the highest frequency


def test_section_has_the_intensities_of_the_plane() -> None:
    origin = np.array([0.004, -0.01, 0.008])
    cut = SOLID.section(origin, OBLIQUE[0], OBLIQUE[1])
    u, v = np.meshgrid(_grid(120, 0.14), _grid(110, 0.14))
    points = origin[:, None, None] + OBLIQUE[0][:, None, None] * u + OBLIQUE[1][:, None, None] * v
    np.testing.assert_array_equal(cut.image(u, v), SOLID.image(*points))
    assert SOLID.section((0, 0, 0.2), (1, 0, 0), (0, 1, 0)).shapes == ()
    assert SOLID.section((0, 0, 0.2), (1, 0, 0), (0, 1, 0)).kspace(1.0, 2.0) == 0


def test_turned_phantom_has_the_turned_spectrum() -> None:
    origin = np.array([0.01, 0.02, -0.03])
    turned = SOLID.section(origin, *OBLIQUE)
    k = np.array([7.0, -4.0, 9.0])
    expected = SOLID.kspace(*(OBLIQUE.T @ k)) * np.exp(2j * np.pi * (OBLIQUE.T @ k) @ origin)
    assert turned.kspace(*k) == pytest.approx(expected, rel=1e-9)


def test_skewed_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="directions must be orthonormal"):
        SOLID.section((0, 0, 0), (1, 0, 0), (0.1, 1, 0))


@pytest.mark.parametrize("directions", [OBLIQUE[:2], OBLIQUE])
def test_coil_kspace_is_the_transform_of_sensitivity_times_object(directions: np.ndarray) -> None:
    coils = head_coils(3, centre_m=(0.01, 0, 0)).section((0.004, -0.01, 0.008), *directions)
    phantom = SOLID.section((0.004, -0.01, 0.008), *directions)
    dim = len(directions)
    n, fov = (1200, 0.15) if dim == 2 else (90, 0.15)
    axes = [_grid(n, fov).reshape([-1 if i == j else 1 for j in range(dim)]) for i in range(dim)]
    product = coils.maps(*axes) * phantom.image(*axes)
    for k in [(0.0, 0.0, 0.0), (6.0, -9.0, 4.0), (20.0, 13.0, -7.0)]:
        wave = np.exp(-2j * np.pi * sum(f * axis for f, axis in zip(k, axes, strict=False)))
        numeric = (product * wave).reshape(3, -1).sum(1) * (fov / n) ** dim
        error = np.abs(coils.kspace(phantom, *k[:dim]) - numeric).max()
        assert error < 2e-3 * np.abs(coils.kspace(phantom, *[0.0] * dim)).max()


def test_section_of_the_coils_is_their_value_in_the_plane() -> None:
    coils, origin = head_coils(12), np.array([0.02, -0.01, 0.03])
    u, v = np.meshgrid(_grid(7, 0.2), _grid(6, 0.2))
    points = origin[:, None, None] + OBLIQUE[0][:, None, None] * u + OBLIQUE[1][:, None, None] * v
    cut = coils.section(origin, OBLIQUE[0], OBLIQUE[1])
    np.testing.assert_allclose(cut.maps(u, v), coils.maps(*points), atol=1e-7)  # frequencies are rounded to 1e-9
    # An axial plane cannot tell frequencies along z apart.
    assert len(coils.section(origin, (1, 0, 0), (0, 1, 0)).frequencies) < len(coils.frequencies)


def test_head_coils_are_a_useful_array() -> None:
    centre = (0.02, 0.03, -0.01)
    coils = head_coils(8, centre)
    assert np.linalg.norm(coils.maps(*centre)) == pytest.approx(1)
    x = _grid(24, 0.2)
    maps = coils.maps(x[None] + centre[0], x[:, None] + centre[1], np.full((1, 1), centre[2]))
    rss = np.linalg.norm(maps, axis=0)[(x[None] ** 2 + x[:, None] ** 2) < 0.09**2]
    assert 0.8 < rss.min() < rss.max() < 1.1
    # g-factor of R = 3 along y, over the points that fold together (Pruessmann 1999).
    folded = maps[:, [4, 12, 20], 6:18]
    gram = np.einsum("cix,cjx->xij", folded.conj(), folded)
    g = np.sqrt(np.einsum("xii,xii->xi", np.linalg.inv(gram), gram).real)
    assert 1 < g.mean() < 1.7
    assert isinstance(uniform_coil(), AnalyticCoils)
    np.testing.assert_array_equal(uniform_coil().maps(x, x, x), np.ones((1, 24)))
