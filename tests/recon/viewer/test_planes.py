"""Images as a page stores them, and data in its scripts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.viewer import planes, selection
from recon.viewer.template import in_script
from tests.support.pages import decode


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(selection.BITS), st.integers(0, 2**32 - 1))
def test_codes_survive_storage(ny: int, nx: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (ny, nx)).astype(np.int32)
    np.testing.assert_array_equal(decode(planes.encode(codes), (ny, nx)), codes)


@pytest.mark.parametrize("bits", selection.BITS)
@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e6])
def test_values_are_off_by_half_a_step_at_most(bits: int, unit: float) -> None:
    scale = planes.Quantisation(reference=unit, bits=bits)
    values = (unit * np.linspace(0, 1.25, 5001)).astype(np.float32)[None]
    codes = scale.codes(values)
    assert codes.max() < scale.above
    assert np.abs(codes * scale.step - values).max() <= scale.step / 2 * (1 + 1e-4)
    assert scale.step / unit == pytest.approx(1.25 / 2**bits, rel=4 / 2**bits)


def test_values_above_the_range_and_no_numbers_are_told_apart() -> None:
    scale = planes.Quantisation(1.0, 10)
    codes = scale.codes(np.array([[np.nan, np.inf, 1.3, 1e9, 1.25, -0.1]], np.float32))
    assert codes.tolist() == [[scale.invalid, scale.invalid, scale.above, scale.above, scale.above - 1, 0]]


@pytest.mark.parametrize("bits", selection.BITS)
def test_signed_values_keep_sign_and_zero(bits: int) -> None:
    scale = planes.Quantisation(2.0, bits, signed=True)
    values = np.linspace(-2.5, 2.5, 4001, dtype=np.float32)[None]
    codes = scale.codes(values)
    assert codes.min() >= 0
    assert codes.max() < scale.above
    assert np.abs((codes - scale.zero) * scale.step - values).max() <= scale.step / 2 * (1 + 1e-4)
    assert scale.codes(np.array([[0.0, np.nan]], np.float32)).tolist() == [[scale.zero, scale.invalid]]


def test_json_in_a_script_has_no_nan_and_no_bracket() -> None:
    text = in_script({"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": "<!-- </script> \u2028"})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"a": [None, "Infinity", "-Infinity", 1.5], "b": "<!-- </script> \u2028"}


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 97])
def test_slices_are_taken_from_the_middle_outwards(n: int) -> None:
    order = selection.spread(n)
    assert sorted(order) == list(range(n))
    assert order[:1] == ([n // 2] if n else [])
