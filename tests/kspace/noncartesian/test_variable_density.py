"""Spirals from the parameters of a header, against the conditions of their design and an integration of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kspace.errors import InputError
from kspace.noncartesian.variable_density import GAMMA, arm_of, spiral_arms
from tests.support.spirals import ARM, PARAMETERS, integrated

FIRST = np.zeros(1, np.int64)
# Limited by the slew rate, by the gradient, and with a field of view that falls.
ARMS = (
    replace(ARM, step_s=1e-7),
    replace(ARM, step_s=1e-7, gradient_g_per_cm=1.0),
    replace(ARM, step_s=1e-7, fov_cm=(30.0, -8.0, 0.5)),
)


@pytest.mark.parametrize("arm", ARMS)
def test_the_conditions_of_the_design(arm: object) -> None:
    assert isinstance(arm, type(ARM))
    k = spiral_arms(arm, FIRST, 10**6)[0] / 100
    z = k[:, 0] + 1j * k[:, 1]
    r, angle = np.abs(z), np.unwrap(np.angle(z[1:]))
    speed, slew = (np.abs(np.diff(z, order)) / arm.step_s**order for order in (1, 2))
    assert r[-2] < arm.largest_per_cm <= r[-1]
    assert speed.max() < 1.001 * GAMMA * arm.gradient_g_per_cm
    used = speed.max() / GAMMA / arm.gradient_g_per_cm, np.median(slew) / GAMMA / arm.slew_g_per_cm_per_s
    assert max(used) > 0.999  # one of them limits the arm
    assert np.quantile(slew, 0.99) < 1.01 * GAMMA * arm.slew_g_per_cm_per_s
    middle = 0.5 * (r[2:] + r[1:-1])
    pitch = np.diff(angle) / np.diff(r[1:])
    expected = 2 * np.pi / arm.interleaves * np.polynomial.polynomial.polyval(middle, arm.fov_cm)
    assert np.allclose(pitch[50:], expected[50:], rtol=2e-3)


def test_nyquist_along_the_arm() -> None:
    arm = replace(ARM, step_s=1e-5, gradient_g_per_cm=10.0)
    k = spiral_arms(arm, FIRST, 10**5)[0] / 100
    assert np.hypot(*np.diff(k, axis=0).T).max() < 1.05 / arm.fov_cm[0]


def test_steps_agree_with_a_finer_integration() -> None:
    found = spiral_arms(ARM, FIRST, 10**5)[0] / 100
    truth = -integrated(ARM, len(found), 20)
    n = min(len(found), len(truth))
    assert abs(len(found) - len(truth)) <= 2
    # In grid points; a step of the design is up to one point long.
    assert np.hypot(*(found[:n] - truth[:n]).T).max() * ARM.fov_cm[0] < 0.2


def test_arms_and_their_lengths() -> None:
    counter = np.arange(ARM.interleaves)
    arms = spiral_arms(ARM, counter, 100)
    assert arms.shape == (ARM.interleaves, 100, 2)
    assert np.array_equal(arms[:, 0], np.zeros((ARM.interleaves, 2)))
    assert arms[0, 1, 0] < 0  # Gadgetron's sign
    a = 2 * np.pi / ARM.interleaves
    clockwise = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    assert np.allclose(arms[1], arms[0] @ clockwise.T)
    assert spiral_arms(ARM, counter, 10**5).shape[1] < 10**4
    assert ARM.reached_per_cm(100) < ARM.largest_per_cm <= ARM.reached_per_cm(10**5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"krmax_per_cm": None, "interleaves": None}, "HargreavesVDS2000 lacks interleaves, krmax_per_cm"),
        ({"FOVCoeff_1_cm": None}, "lacks FOVCoeff_1_cm"),
        ({"fov_coefficients": 2}, "lacks FOVCoeff_2_cm"),
        ({"MaxGradient_G_per_cm": 0.0}, "has MaxGradient_G_per_cm = 0, expected more than 0"),
        ({"fov_coefficients": 2, "FOVCoeff_2_cm": -30.0}, "reach a field of view of zero"),
        ({"interleaves": 7}, "kspace_encode_step_1 reaches 7, trajectoryDescription has 7 interleaves"),
        ({"SamplingTime_ns": 2000}, "sample_time_us is 4, SamplingTime_ns of trajectoryDescription 2000"),
    ],
)
def test_parameters_that_do_not_describe_an_arm(changes: dict[str, float | None], message: str) -> None:
    parameters = {name: value for name, value in {**PARAMETERS, **changes}.items() if value is not None}
    with pytest.raises(InputError, match=message) as caught:
        arm_of(parameters, 4e-6, 7, "scan.h5")
    assert "--trajectory FILE" in str(caught.value)


def test_parameters_that_do() -> None:
    assert arm_of(PARAMETERS, 4e-6, 7, "scan.h5") == ARM
    assert arm_of(PARAMETERS, None, 0, "scan.h5") == ARM
