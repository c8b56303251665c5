"""What the third column of a trajectory is, and what its readouts are: planes, stacks or volumes."""

from __future__ import annotations

import numpy as np
import pytest

from kspace.errors import InputError
from kspace.noncartesian.layout import placed, third_column
from kspace.noncartesian.trajectory import golden_angles, kooshball, radial, rotated_stack

N = 8
PLANE = radial(6, 2 * N)
ROWS = np.repeat(np.arange(N), 6)
STACK = np.tile(PLANE, (N, 1, 1))


def columned(k: np.ndarray, last: np.ndarray | float) -> np.ndarray:
    return np.concatenate([k[..., :2], np.broadcast_to(last, k.shape[:2])[..., None]], -1)


def test_the_third_column() -> None:
    radius = np.hypot(*np.moveaxis(STACK, -1, 0))
    kz = ((ROWS - N // 2) / N)[:, None]
    of_partition = radius * (1 + np.tile(np.arange(6), N))[:, None]  # differs between spokes, not between partitions
    ball = kooshball(48, 2 * N)
    for last, n, partition, expected in (
        (0.0, N, ROWS, "none"),
        (kz, N, ROWS, "kz"),
        (ball[..., 2], N, np.zeros(48, int), "kz"),
        (np.abs(ball[..., 2]), N, np.zeros(48, int), "kz"),
        (radius, N, ROWS, "density"),
        (of_partition, N, ROWS, "density"),
        (radius, 1, 0 * ROWS, "density"),
        (3.0, 1, 0 * ROWS, "none"),
    ):
        assert third_column(columned(STACK, last), partition, n, "scan.h5") == expected
    with pytest.raises(InputError, match="kz or a density"):
        third_column(columned(STACK, np.abs(ball[..., 2])), ROWS, N, "scan.h5")
    with pytest.raises(InputError, match="the encoded matrix has one partition"):
        third_column(ball, ROWS, 1, "scan.h5")


def test_with_four_columns_the_third_is_kz() -> None:
    radius = np.hypot(*np.moveaxis(STACK, -1, 0))[..., None]
    for last, n, expected in ((np.abs(STACK[..., 0]), N, "kz"), (0.0, N, "none"), (0.0, 1, "none"), (3.0, 1, "none")):
        assert third_column(np.concatenate([columned(STACK, last), radius], -1), ROWS, n, "scan.h5") == expected
    with pytest.raises(InputError, match="kz changes along the readouts, and the encoded matrix has one partition"):
        third_column(np.concatenate([columned(STACK, np.abs(STACK[..., 0])), radius], -1), ROWS, 1, "scan.h5")


def test_stacks_of_equal_planes() -> None:
    kz = ((ROWS - N // 2) / N)[:, None]
    assert placed(STACK, ROWS, N, "").layout == "stack"
    for last in (kz, 3 * kz + 1):  # in whatever units, where the counters say the same
        found = placed(columned(STACK, last), ROWS, N, "")
        assert found.layout == "stack"
        assert found.rows is not None
        assert np.array_equal(found.rows, ROWS)
    # Counters that say nothing: kz does.
    stated = placed(columned(STACK, kz[::-1]), 0 * ROWS, N, "")
    assert stated.rows is not None
    assert np.array_equal(stated.rows, ROWS[::-1])
    # Some partitions alone are a stack, too.
    assert placed(STACK[12:30], ROWS[12:30], N, "").layout == "stack"


def test_volumes() -> None:
    stack, rows = rotated_stack([6] * N, 2 * N)
    assert "differ in their trajectories" in placed(stack[..., :2], rows, N, "").why
    assert np.allclose(placed(stack[..., :2], rows, N, "").points, stack)
    assert "5 to 6 readouts" in placed(STACK[1:], ROWS[1:], N, "").why
    between = stack + [0, 0, 0.4 / N] * np.sin(rows)[:, None, None]
    assert "between those of the grid" in placed(between, rows, N, "").why
    assert "along the readouts" in placed(kooshball(48, 2 * N), 0 * rows, N, "").why
    with pytest.raises(InputError, match="kz falls while the partition counter rises"):
        placed(stack * [1, 1, -1], rows, N, "")
    with pytest.raises(InputError, match=r"kz reaches 0\.098"):
        placed(kooshball(48, 2 * N) * [1, 1, 0.1], 0 * rows, N, "")
    with pytest.raises(InputError, match="partitions from -1 to -1 lie outside the encoded matrix of 8"):
        placed(STACK, np.full(48, -1), N, "")


def test_golden_means_cover_half_a_sphere_evenly() -> None:
    """Chan et al. 2009: the heights of any number of successive spokes are spread evenly, and so are their angles."""
    ends = kooshball(300, 4)[100:, -1]
    ends = ends / np.linalg.norm(ends, axis=1, keepdims=True)
    assert np.abs(np.sort(ends[:, 2]) - (np.arange(200) + 0.5) / 200).max() < 0.02
    turns = np.sort(np.arctan2(ends[:, 1], ends[:, 0]) / (2 * np.pi) % 1)
    assert np.abs(turns - (np.arange(200) + 0.5) / 200).max() < 0.02
    assert np.allclose(golden_angles(3)[1], np.deg2rad(111.246), atol=1e-4)
