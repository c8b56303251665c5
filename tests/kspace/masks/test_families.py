"""Mask families: exact acceleration, reproducibility, and refusal of impossible requests."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kspace.errors import InputError
from kspace.masks import FAMILIES, MaskSpec, acceleration, digest
from kspace.seeds import RandomGenerator

LINES = ["random1d", "equispaced1d", "uniform1d", "gancs", "seitzer"]
POINTS = ["poisson2d", "radial", "spiral", "centre"]
FASTMRI = ["fastmri-random", "fastmri-equispaced", "fastmri-equispaced-fraction", "fastmri-magic"]
DAGAN = ["dagan-g1d", "dagan-g2d", "dagan-p2d"]
OFF_GRID = ["radial-nufft", "spiral-nufft"]
EXAMPLES = [f"{name}:4" for name in LINES + POINTS + FASTMRI] + [f"{name}:30%" for name in DAGAN] + ["partial:6/8"]


def zero(mask: torch.Tensor, shape: tuple[int, int]) -> bool:
    return bool(mask.expand(shape)[shape[0] // 2, shape[1] // 2])


def check_acceleration(mask: torch.Tensor, shape: tuple[int, int], r: float) -> None:
    assert abs(1 / acceleration(mask, shape) - 1 / r) <= max(0.005, 0.5 / shape[0]) + 1e-12
    assert zero(mask, shape)


def test_every_family_of_the_table_is_tested_here() -> None:
    assert {*LINES, *POINTS, *FASTMRI, *DAGAN, *OFF_GRID, "partial", "file"} == FAMILIES.keys()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LINES), st.integers(1, 400), st.floats(1, 30), st.integers(0, 9), st.none() | st.integers(1, 40))
def test_line_families_have_exactly_the_lines(family: str, ny: int, r: float, seed: int, centre: int | None) -> None:
    n_lines = round(ny / r)
    spec = MaskSpec(family, r, centre, seed)
    if n_lines < 1 or (centre or 1) > n_lines:
        with pytest.raises(InputError, match="the nearest possible"):
            spec.draw((ny, 8))
        return
    mask = spec.draw((ny, 8), "volume.h5")
    assert mask.shape == (ny, 1)
    assert mask.dtype == torch.bool
    assert mask.sum() == n_lines
    check_acceleration(mask, (ny, 8), r)
    if centre:
        assert mask[ny // 2 - centre // 2 :][:centre].all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(POINTS), st.integers(1, 60), st.integers(1, 60), st.floats(1, 16), st.integers(0, 9))
def test_point_families_have_exactly_the_points(family: str, ny: int, nx: int, r: float, seed: int) -> None:
    n_points = round(ny * nx / r)
    spec = MaskSpec(family, r, seed=seed)
    if n_points < 1:
        with pytest.raises(InputError, match="the nearest possible"):
            spec.draw((ny, nx))
        return
    mask = spec.draw((ny, nx), "volume.h5")
    assert mask.shape == (ny, nx)
    if family == "centre":  # each side is rounded by half a point at most
        assert abs(1 / acceleration(mask, (ny, nx)) - 1 / r) <= 0.5 / ny + 0.5 / nx + 1e-12
        return
    check_acceleration(mask, (ny, nx), r)
    assert mask.sum() == n_points


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(1, 1.99), st.sampled_from(["high", "low"]))
def test_partial_fourier_keeps_one_side_and_the_zero_frequency(ny: int, r: float, keep: str) -> None:
    spec = MaskSpec("partial", r, options=(("keep", keep),))
    n_lines = round(ny / r)
    if n_lines <= ny // 2:
        with pytest.raises(InputError, match=rf"the nearest possible is partial:{ny // 2 + 1}/{ny}"):
            spec.draw((ny, 4))
        return
    mask = spec.draw((ny, 4))[:, 0]
    expected = torch.arange(ny) >= ny - n_lines if keep == "high" else torch.arange(ny) < n_lines
    assert torch.equal(mask, expected)
    check_acceleration(mask[:, None], (ny, 4), r)


@pytest.mark.parametrize("r", [1.01, 1.2, 2, 3, 8, 20])
@pytest.mark.parametrize("shape", [(64, 64), (31, 33), (33, 96), (7, 5), (1, 34)])
@pytest.mark.parametrize("family", POINTS)
def test_accelerations_where_sigpy_raises_or_never_returns(family: str, shape: tuple[int, int], r: float) -> None:
    if round(shape[0] * shape[1] / r) >= 1:
        check_acceleration(MaskSpec(family, r).draw(shape), shape, r)


@pytest.mark.parametrize("family", ["radial", "spiral"])
def test_trajectories_exist_for_every_size(family: str) -> None:
    for n in range(1, 200, 1 if family == "radial" else 7):
        check_acceleration(MaskSpec(family, 3).draw((8, n)), (8, n), 3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(320, 320), (640, 368), (396, 768), (203, 181)])
@pytest.mark.parametrize("family", [*LINES, *POINTS])
def test_accelerations_of_real_matrices(family: str, shape: tuple[int, int]) -> None:
    for r in (1.05, 1.5, 2, 4, 6.5, 8, 12, 20):
        for seed in range(3 if family in LINES else 1):
            check_acceleration(MaskSpec(family, r, seed=seed).draw(shape, "k"), shape, r)


def test_the_central_block_of_super_resolution_keeps_the_proportions() -> None:
    mask = MaskSpec.parse("centre:4").draw((320, 256))
    expected = torch.zeros(320, 256, dtype=torch.bool)
    expected[80:240, 64:192] = True
    assert torch.equal(mask, expected)
    assert MaskSpec.parse("centre:4,axes=ky").draw((320, 256)).squeeze().nonzero().ravel().tolist() == list(range(120, 200))


# --- one drawing everywhere


PROBE = """
import random, sys, numpy as np, torch
seed = int(sys.argv[1])
random.seed(seed); np.random.seed(seed); torch.manual_seed(seed); torch.set_num_threads(1)
from kspace.masks import MaskSpec, digest
for text in sys.argv[2:]:
    print(digest(MaskSpec.parse(text).draw((48, 40), "file1000001.h5"), (48, 40)))
"""

# Drawn once and written down: whoever changes how a mask is drawn changes what published numbers mean.
KNOWN = "7cf907e9e8e8632bdb9d71534a339d1c4d38fbc9be99ac5ab80bed8533c98158"


def drawn_here() -> list[str]:
    return [digest(MaskSpec.parse(text).draw((48, 40), "file1000001.h5"), (48, 40)) for text in EXAMPLES]


def test_another_process_under_other_seeds_draws_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, "1", *EXAMPLES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == drawn_here()


def test_masks_match_stored_digests() -> None:
    assert hashlib.sha256("\n".join(drawn_here()).encode()).hexdigest() == KNOWN, dict(zip(EXAMPLES, drawn_here(), strict=True))


def test_global_random_generators_are_neither_used_nor_changed() -> None:
    for text in EXAMPLES:
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002 - the global generator is the point
        torch.manual_seed(5)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        MaskSpec.parse(f"{text},seed=77").draw((44, 36), "never drawn before")
        assert random.getstate() == before[0]
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), before[2])


def test_the_returned_mask_is_a_copy() -> None:
    spec = MaskSpec("poisson2d", 4)
    first = spec.draw((32, 32))
    kept = first.clone()
    first.fill_(True)
    assert torch.equal(spec.draw((32, 32)), kept)


def test_seeds_keys_and_families_draw_different_masks() -> None:
    seen = set()
    for family in ["random1d", "gancs", "seitzer", "poisson2d", "radial", "spiral", "dagan-g1d", "dagan-g2d", "dagan-p2d"]:
        for seed in range(4):
            for key in ("", "a.h5", "b.h5"):
                seen.add(digest(MaskSpec(family, 4, seed=seed).draw((96, 96), key), (96, 96)))
    assert len(seen) == 9 * 4 * 3


def test_the_random_generator_is_the_documented_stream() -> None:
    words = np.random.PCG64(int.from_bytes(hashlib.sha256(b"text").digest(), "little")).random_raw(3)
    assert RandomGenerator("text").uniform(3).tolist() == [int(word) // 2**11 / 2**53 for word in words]


# --- digest and acceleration


def test_the_digest_is_that_of_the_full_grid() -> None:
    lines = MaskSpec("random1d", 4).draw((64, 48))
    same = [lines, lines.expand(64, 48), lines[None], lines.expand(1, 1, 64, 48).contiguous()]
    assert len({digest(mask, (64, 48)) for mask in same}) == 1
    assert digest(lines, (64, 48)) != digest(lines, (64, 47))
    other = lines.expand(64, 48).clone()
    other[3, 4] ^= True
    assert digest(other, (64, 48)) != digest(lines, (64, 48))
    # The digest includes the grid: the same bits on another matrix are another mask.
    ones = torch.ones(1, 1, dtype=torch.bool)
    assert digest(ones, (4, 8)) != digest(ones, (8, 4))


def test_acceleration_counts_the_grid() -> None:
    assert acceleration(MaskSpec("random1d", 4).draw((64, 48)), (64, 48)) == 4
    assert acceleration(torch.zeros(64, 1, dtype=torch.bool), (64, 48)) == float("inf")
    with pytest.raises(ValueError, match="must be bool"):
        acceleration(torch.ones(64, 1), (64, 48))
    with pytest.raises(ValueError, match="is not one mask"):
        digest(torch.ones(3, 64, 48, dtype=torch.bool), (64, 48))


# --- the text


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("random1d:4", MaskSpec("random1d", 4)),
        ("random1d:25%", MaskSpec("random1d", 4)),
        ("poisson2d:8,centre=24,seed=3", MaskSpec("poisson2d", 8, 24, 3)),
        (" poisson2d:8 , seed = 3 , center=24 ", MaskSpec("poisson2d", 8, 24, 3)),
        ("dagan-g1d:30%", MaskSpec("dagan-g1d", 100 / 30)),
        ("partial:6/8,keep=low", MaskSpec("partial", 8 / 6, options=(("keep", "low"),))),
        ("uniform1d:spacing=3,centre=24", MaskSpec("uniform1d", None, 24, options=(("spacing", "3"),))),
        ("uniform1d,spacing=3", MaskSpec("uniform1d", options=(("spacing", "3"),))),
        ("file:a/b,c.npy", MaskSpec("file", options=(("path", "a/b,c.npy"),))),
        (
            "file:C:/x=y.mat,name=m,dc=corner",
            MaskSpec("file", options=(("dc", "corner"), ("name", "m"), ("path", "C:/x=y.mat"))),
        ),
    ],
)
def test_specifications_are_parsed_and_written(text: str, spec: MaskSpec) -> None:
    assert MaskSpec.parse(text) == spec
    assert MaskSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["random1d:4", "dagan-g1d:30%", "poisson2d:8,centre=24,seed=3", "partial:75%,keep=low", "file:m.npy,dc=corner"]
)
def test_specifications_keep_their_text(text: str) -> None:
    assert str(MaskSpec.parse(text)) == text


@given(st.sampled_from([*LINES, *POINTS[:3]]), st.floats(1, 1e6), st.none() | st.integers(1, 999), st.integers(0, 2**32 - 1))
def test_any_specification_survives_a_round_trip_through_text(family: str, r: float, centre: int | None, seed: int) -> None:
    spec = MaskSpec(family, r, centre, seed)
    assert MaskSpec.parse(str(spec)) == spec
    assert hash(MaskSpec.parse(str(spec))) == hash(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rondom1d:4", r"unknown mask family 'rondom1d'.*did you mean 'random1d'\?"),
        ("xyz:4", "unknown mask family 'xyz'.*one of random1d, "),
        ("random1d", "needs an acceleration.*random1d:25%"),
        ("random1d:0.5", "would sample 200 %.*the nearest possible acceleration is 1"),
        ("random1d:250%", "would sample 250 %.*the nearest possible acceleration is 1"),
        ("random1d:-4", "'-4' is not an acceleration"),
        ("random1d:0", "'0' is not an acceleration"),
        ("random1d:nan", "'nan' is not an acceleration"),
        ("random1d:1e999", "finite"),
        ("random1d:4,centre", "'centre' is not name=value"),
        ("random1d:4,centre=0", "the nearest possible is centre=1"),
        ("random1d:4,centre=3.5", "centre=3.5 is not a whole number"),
        ("random1d:4,seed=-1", "the nearest possible is seed=0"),
        ("random1d:4,alpha=2", "no option 'alpha'.*centre, seed"),
        ("gancs:4,alpha=-1", "not a finite number"),
        ("gancs:4,alpha=x", "could not convert"),
        ("random1d:4,seed=1,seed=2", "given twice"),
        ("partial:75%,centre=3", "no option 'centre'"),
        ("partial:75%,keep=left", "'left' is not one of high, low"),
        ("spiral:4,interleaves=0", "not a whole number above 0"),
        ("file:", "needs a path"),
    ],
)
def test_unreadable_specifications_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("random1d:4", (0, 8), "0 x 8 has no samples.*1 x 8"),
        ("random1d:4", (8, 0), "8 x 0 has no samples.*8 x 1"),
        ("random1d:100", (32, 8), "leaves no line of 32.*the nearest possible acceleration is 32"),
        ("poisson2d:100", (4, 8), "leaves no point of 32.*the nearest possible acceleration is 32"),
        ("random1d:10,centre=40", (320, 8), "exceeds the 32 lines.*centre=32, or acceleration 8$"),
        ("random1d:4,centre=400", (320, 8), "exceeds the 80 lines.*the nearest possible is centre=80$"),
        ("poisson2d:8,centre=24", (64, 64), "needs 24x24 points.*centre=22, or acceleration 7.11$"),
        ("poisson2d:8,centre=24", (16, 256), "the nearest possible is centre=16$"),
        ("uniform1d", (64, 8), "uniform1d:4 or uniform1d:spacing=4"),
        ("uniform1d:spacing=65", (64, 8), "the nearest possible is spacing=64"),
        ("uniform1d:spacing=4,centre=65", (64, 8), "the nearest possible is centre=64"),
        ("uniform1d:4,spacing=3", (64, 8), "spacing=3 cannot make 16 lines.*the nearest possible is spacing=[4-6]"),
        ("fastmri-random:4,centre=20", (64, 8), "20 calibration lines exceed.*the nearest possible is centre=16"),
        ("fastmri-equispaced:2.5", (64, 8), "needs an integer acceleration.*the nearest possible is 2"),
        ("fastmri-random:8", (12, 8), "rounds to 0 lines.*centre=1"),
        ("dagan-g2d:60%", (64, 64), "from 1 to 50 %.*the nearest possible is 50%"),
        ("dagan-g2d:0.5%", (64, 64), "from 1 to 50 %.*the nearest possible is 1%"),
        ("dagan-g1d:1%", (16, 16), "leaves no line.*6.25%"),
    ],
)
def test_impossible_requests_name_the_nearest_possible(text: str, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskSpec.parse(text).draw(shape)


@pytest.mark.parametrize(
    ("text", "nearest", "shape"),
    [
        ("random1d:100", "random1d:32", (32, 8)),
        ("random1d:10,centre=40", "random1d:8,centre=40", (320, 8)),
        ("poisson2d:8,centre=24", "poisson2d:7.11,centre=24", (64, 64)),
        ("poisson2d:8,centre=24", "poisson2d:8,centre=22", (64, 64)),
        ("dagan-g1d:1%", "dagan-g1d:6.25%", (16, 16)),
        ("fastmri-equispaced-fraction:4,centre=16", "fastmri-equispaced-fraction:4,centre=15", (64, 8)),
    ],
)
def test_the_nearest_possible_request_succeeds(text: str, nearest: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        MaskSpec.parse(text).draw(shape)
    assert zero(MaskSpec.parse(nearest).draw(shape), shape)


def test_the_fraction_is_the_inverse_acceleration() -> None:
    assert MaskSpec.parse("random1d:4").fraction == 0.25
    assert MaskSpec.parse("partial:6/8").fraction == 0.75
    assert MaskSpec.parse("file:m.npy").fraction is None
