"""Masks sample where they say that they do: densities, spacings and distances against second, naive implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sigpy.mri
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from kspace.masks import FAMILIES, MaskSpec
from kspace.masks.poisson import disc
from kspace.seeds import RandomGenerator


def drawn(text: str, shape: tuple[int, int], key: str = "") -> NDArray[np.bool_]:
    mask = MaskSpec.parse(text).draw(shape, key).numpy()
    return mask[:, 0] if mask.shape[1] == 1 else mask


def frequency(text: str, n: int, draws: int) -> NDArray[np.float64]:
    return np.mean([drawn(text, (n, 1), f"{i}.h5") for i in range(draws)], axis=0)


def naive(n: int, density: NDArray[np.float64], centre: slice, n_lines: int, draws: int) -> NDArray[np.float64]:
    """How often a line is drawn, one after another without replacement, by NumPy."""
    rng, mean = np.random.default_rng(1), np.zeros(n)
    density = density.copy()
    density[centre] = 0
    for _ in range(draws):
        lines = rng.choice(n, n_lines - (centre.stop - centre.start), replace=False, p=density / density.sum())
        mean[lines] += 1 / draws
    mean[centre] = 1
    return mean


def test_the_random_generator_is_uniform_and_chooses_as_numpy_does() -> None:
    u = np.concatenate([RandomGenerator(f"key {i}").uniform(100) for i in range(200)])
    assert 0 <= u.min() < u.max() < 1
    counts = np.histogram(u, 50, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 95  # chi squared of 49 degrees: 1 in 10,000
    weights = np.array([0.0, 1, 2, 3, 10])
    ours = np.mean([np.isin(np.arange(5), RandomGenerator(f"{i}").choose(weights, 2)) for i in range(4000)], axis=0)
    rng = np.random.default_rng(0)
    other = [np.isin(np.arange(5), rng.choice(5, 2, replace=False, p=weights / weights.sum())) for _ in range(4000)]
    assert np.abs(ours - np.mean(other, axis=0)).max() < 0.05
    assert ours[0] == 0
    with pytest.raises(ValueError, match="cannot choose 5 of 4"):
        RandomGenerator("").choose(weights, 5)


@pytest.mark.parametrize(("n", "centre"), [(40, slice(15, 25)), (41, slice(15, 25))])
def test_random_lines_are_equally_likely(n: int, centre: slice) -> None:
    mean = frequency("random1d:2,centre=10", n, 800)
    assert (mean[centre] == 1).all()
    rest = np.delete(mean, np.r_[centre])
    expected = (round(n / 2) - 10) / (n - 10)
    assert np.abs(rest - expected).max() < 4.5 * math.sqrt(expected * (1 - expected) / 800)


@pytest.mark.parametrize("n", [48, 49])
def test_gancs_lines_fall_off_as_a_power(n: int) -> None:
    # As published: density over the index whose zero frequency is 0, three lines around it.
    unshifted = np.abs(np.arange(n) - n / 2) / (n / 2)
    density = np.fft.fftshift(unshifted**2) if n % 2 == 0 else (1 - np.abs(np.arange(n) - n // 2) / (n / 2)) ** 2
    expected = naive(n, density, slice(n // 2 - 1, n // 2 + 2), round(n / 4), 1500)
    assert np.abs(frequency("gancs:4", n, 1500) - expected).max() < 0.08


def test_seitzer_rows_are_gaussian_on_a_floor() -> None:
    n, r = 128, 4
    i = np.arange(n)
    density = np.exp(-0.5 * (i - n / 2) ** 2 / (n / 10) ** 2) + (n / (2 * r)) / n
    expected = naive(n, density, slice(60, 68), n // r, 1500)
    assert np.abs(frequency(f"seitzer:{r}", n, 1500) - expected).max() < 0.08


@pytest.mark.parametrize("text", ["random1d:4", "equispaced1d:4", "uniform1d:4", "fastmri-random:4"])
def test_default_calibration_is_about_that_of_fastmri(text: str) -> None:
    for n, r, expected in [(320, 4, 26), (320, 8, 13), (368, 4, 29), (64, 4, 8), (32, 4, 4)]:
        mask = drawn(text.replace(":4", f":{r}"), (n, 8))
        block = n // 2 - expected // 2
        if text.startswith(("random", "equi")):
            assert mask[block : block + expected].all()
            assert mask.sum() - expected >= mask.sum() // 2 - 1  # half of the lines are random


@pytest.mark.parametrize(("n", "r"), [(320, 4), (321, 8), (64, 4), (95, 3)])
def test_equispaced_gaps_differ_by_one_line(n: int, r: int) -> None:
    for key in "abcd":
        mask = drawn(f"equispaced1d:{r},centre=7", (n, 1), key)
        lines = np.flatnonzero(mask)
        assert len(lines) == round(n / r)
        outside = np.concatenate([np.diff(lines[lines < n // 2 - 3]), np.diff(lines[lines > n // 2 + 3])])
        assert outside.max() - outside.min() <= 1


@pytest.mark.parametrize(("n", "r"), [(320, 4), (321, 8), (256, 2), (95, 3), (368, 6)])
def test_uniform_lines_have_one_spacing_and_a_block(n: int, r: int) -> None:
    for key in "abcd":
        lines = np.flatnonzero(drawn(f"uniform1d:{r}", (n, 1), key))
        assert len(lines) == round(n / r)
        spacing = np.diff(lines).max()
        gaps = np.diff(lines)
        comb = lines[lines % spacing == lines[0] % spacing]
        assert set(gaps[:3]) == {spacing}
        rest = np.setdiff1d(lines, comb)
        assert rest.max() - rest.min() < 0.6 * n
        # The lines off the comb span one contiguous block around k = 0.
        assert np.isin(np.arange(rest.min(), rest.max() + 1), lines).all()
        assert rest.min() <= n // 2 <= rest.max() or n // 2 in lines


def test_uniform_lines_of_a_scanner() -> None:
    lines = np.flatnonzero(drawn("uniform1d:spacing=3,centre=48", (144, 1)))
    block = set(range(48, 96))
    assert block <= set(lines)
    assert {line % 3 for line in set(lines) - block} == {lines[0] % 3}
    assert len(lines) == 48 + 32


@pytest.mark.parametrize("kind", ["random", "equispaced", "equispaced_fraction", "magic"])
@pytest.mark.parametrize(("n", "r", "fraction"), [(368, 4, 0.08), (372, 8, 0.04), (181, 4, 0.08)])
def test_fastmri_masks_are_fastmris(kind: str, n: int, r: int, fraction: float) -> None:
    from fastmri.data.subsample import create_mask_for_mask_type

    name = "file1000001.h5"
    func = create_mask_for_mask_type(kind, [fraction], [r])
    expected, n_centre = func((1, 640, n, 2), seed=tuple(map(ord, name)))
    family = f"fastmri-{kind.replace('_', '-')}"
    ours = drawn(f"{family}:{r}", (n, 640), name)
    assert (ours == expected.numpy().ravel().astype(bool)).all()
    assert (drawn(f"{family}:{r},centre={n_centre}", (n, 640), name) == ours).all()


# --- Poisson discs


@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_the_disc_is_sigpys(shape: tuple[int, int]) -> None:
    ny, nx = shape
    # With an infinite tolerance SigPy stops at its first slope, half of the longer side.
    theirs = sigpy.mri.poisson(shape, 8, seed=7, tol=np.inf, crop_corner=False, dtype=bool)
    y, x = np.mgrid[:ny, :nx]
    radius = np.hypot((y - ny / 2) / (ny / 2), (x - nx / 2) / (nx / 2))
    assert (disc(radius, max(shape) / 2, 7) == theirs).all()


def test_disc_points_keep_their_distance() -> None:
    n, slope = 96, 4.0
    y, x = np.mgrid[:n, :n] - n // 2
    radius = np.hypot(y, x) / (n // 2)
    points = np.argwhere(disc(radius, slope, 3))
    reach = 1 + slope * radius[tuple(points.T)]
    apart = np.hypot(*(points[:, None] - points).transpose(2, 0, 1)) + np.eye(len(points)) * 1e9
    # Points are drawn with subsample precision and rounded down: an error below one sample along each axis.
    assert (apart > np.minimum(reach[:, None], reach) - math.sqrt(2)).all()


@pytest.mark.parametrize("r", [6, 10])
def test_poisson_masks_are_evenly_spread_and_denser_inside(r: int) -> None:
    n = 128
    mask = drawn(f"poisson2d:{r},centre=16", (n, n))
    y, x = np.mgrid[:n, :n] - n // 2
    radius = np.hypot(y, x)
    assert mask[n // 2 - 8 : n // 2 + 8, n // 2 - 8 : n // 2 + 8].all()
    rings = [mask[(radius >= a) & (radius < a + 12)].mean() for a in (12, 24, 36, 48)]
    assert (np.diff(rings) < 0).all()
    assert not mask[radius > n // 2 * 1.15].any()  # corners are excluded, as in SigPy
    assert drawn(f"poisson2d:{r},corners=yes", (n, n))[radius > n // 2 * 1.15].any()
    # In the outer half, nearest neighbours are further apart than independent points of the same density would be.
    outer = np.argwhere(mask & (radius > 36) & (radius < 60))
    nearest = cKDTree(outer).query(outer, 2)[0][:, 1]
    area = math.pi * (60**2 - 36**2)
    independent = 0.5 / math.sqrt(len(outer) / area)
    assert nearest.mean() > 1.3 * independent
    assert np.quantile(nearest, 0.02) > 0.8 * independent


def test_masks_follow_the_proportions_of_the_matrix() -> None:
    mask = drawn("poisson2d:6,centre=8", (64, 192))
    along_y, along_x = np.argwhere(mask).T
    assert along_y.min() <= 3
    assert along_x.min() <= 6
    assert along_y.max() >= 60
    assert along_x.max() >= 186


# --- trajectories


@pytest.mark.parametrize("shape", [(64, 64), (51, 90)])
def test_radial_points_lie_on_golden_angle_spokes(shape: tuple[int, int]) -> None:
    ny, nx = shape
    mask = drawn("radial:5", shape, "a")
    turn = 2 * math.pi * RandomGenerator(f"radial:5\n{ny} {nx}\na").uniform(1)[0]
    allowed = np.zeros(shape, bool)
    covered = 0
    for i in range(200):
        angle = i * math.pi * (3 - math.sqrt(5)) - turn
        along = np.arange(0, 0.75, 0.005 / max(shape))
        k = along[:, None] * np.array([math.sin(angle) * ny, math.cos(angle) * nx])
        at = np.floor(k + 0.5).astype(int) + np.array([ny // 2, nx // 2])
        at = at[((at >= 0) & (at < shape)).all(1)]
        before = allowed.copy()
        allowed[tuple(at.T)] = True
        covered = i
        if (mask <= allowed).all():
            break
    assert (mask <= allowed).all()
    # All spokes but the last are complete, except for pixel corners that steps of half a sample skip.
    assert mask[before].mean() > 0.85
    assert covered > 5
    assert ndimage.label(mask, np.ones((3, 3)))[1] == 1


@pytest.mark.parametrize("text", ["spiral:8", "spiral:4", "spiral:3,alpha=2", "spiral:6,interleaves=4"])
def test_a_spiral_is_connected_and_denser_inside(text: str) -> None:
    n = 128
    mask = drawn(text, (n, n))
    y, x = np.mgrid[:n, :n] - n // 2
    radius = np.hypot(y, x)
    inside = mask & (radius < n // 2 - 1)  # the edges cut its turns in the corners into pieces
    pieces, _ = ndimage.label(inside, np.ones((3, 3)))
    assert np.bincount(pieces.ravel())[1:].max() > 0.97 * inside.sum()
    rings = [mask[(radius >= a) & (radius < a + 16)].mean() for a in (0, 16, 32, 48)]
    assert rings[0] > 1.5 * rings[-1]
    assert mask[radius > n // 2].any()


def test_calibration_is_sampled_where_it_is_asked_for() -> None:
    for family in ("poisson2d", "radial", "spiral"):
        mask = drawn(f"{family}:6,centre=13", (65, 80))
        assert mask[32 - 6 : 32 + 7, 40 - 6 : 40 + 7].all()
        assert mask.sum() == round(65 * 80 / 6)


def test_every_family_has_a_help_text() -> None:
    for family in FAMILIES.values():
        assert family.meaning
        assert all(option.meaning for option in family.options.values())
