"""Each item of the evidence against what is known: dense algebra, planted errors, samples that were not acquired."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.masks import MaskSpec
from kspace.operators import Sense
from kspace.simulation.from_images import complex_noise
from recon.evidence import masks
from recon.evidence.calibration import Calibration, Setting, Thresholds
from recon.evidence.certificate import Misfit, certificate, misfit, weighed
from recon.evidence.determined import determined_part
from recon.evidence.noise import noise_level, residual_of
from recon.evidence.record import NoiseSource
from recon.evidence.replicates import held_out_of_replicates, replicate, score, spread_of
from recon.evidence.stability import largest_gain
from recon.methods.classical import CgSense
from tests.support.planes import plane

SENSE = CgSense()
N = 64


def test_rings_that_the_companion_fits_below_its_misfit_in_all_are_no_alarm() -> None:
    """Errors of coil maps at a high SNR, of which SENSE fits those in the outer rings; at the noise, rings count in full."""
    companion, judged = Misfit(8.4, (), (90.0, 16.0, 1.0), 1.0), Misfit(11.0, (), (88.0, 16.6, 7.0), 1.0)
    assert judged.ratio(companion) == pytest.approx(11.0 / 8.4)
    companion, judged = Misfit(0.8, (), (1.0, 0.8, 0.7), 1.0), Misfit(1.4, (), (1.0, 0.9, 7.0), 1.0)
    assert judged.ratio(companion) == pytest.approx(7.0)


def test_chi2_of_the_truth_is_one_in_all_by_coil_and_by_radius() -> None:
    y, op, x = plane()
    found = misfit(x, y, op, 0.05)
    assert found.chi2 == pytest.approx(1, abs=0.05)
    assert found.per_coil == pytest.approx([1] * 4, abs=0.1)
    assert [v for v in found.by_radius if v is not None] == pytest.approx([1] * 8, abs=0.25)
    assert found.local < 5


def test_a_large_misfit_replaces_an_image_unless_held_out_samples_or_unknown_noise_speak_for_it() -> None:
    y, op, x = plane()
    good, bad = misfit(x, y, op, 0.05), misfit(0.5 * x, y, op, 0.05)

    def verdict(noise: NoiseSource, ratio: float | None, error: float | None = 0.1) -> str:
        found = certificate(bad, good, bad, (0.05, noise), Thresholds())
        assert found.verdict == "red"
        held_out = None if ratio is None else score(ratio, 1.0, error, "lines", 20, ("slice 0",))
        return weighed(found, held_out).verdict

    assert verdict("noise scan", None) == "red"
    assert verdict("noise scan", 0.9) == "red"  # within two standard errors
    assert verdict("noise scan", 0.1, None) == "red"  # of unknown error
    assert verdict("noise scan", 0.7) == "amber"
    assert verdict("outermost samples", 0.7) == "amber"
    assert verdict("companion's residual", 1.5) == "amber"
    green = certificate(good, good, good, (0.05, "noise scan"), Thresholds())
    assert weighed(green, None) is green


def test_averages_count_as_often_as_they_were_measured() -> None:
    y, op, x = plane()
    counts = torch.where(op.mask, 4, 0)
    clean = op.forward(x)
    averaged = replace(op, n_averages=counts)
    assert misfit(x, clean + (y - clean) / 2, averaged, 0.05).chi2 == pytest.approx(misfit(x, y, op, 0.05).chi2, rel=1e-4)


@pytest.mark.parametrize(("ky", "ring"), [(2, 0), (28, 7)])
def test_an_error_shows_in_the_ring_where_it_lies(ky: int, ring: int) -> None:
    y, op, x = plane(spec="random1d:1")
    wrong = x + 0.05 * torch.exp(2j * torch.pi * ky * torch.arange(N)[:, None] / N)
    rings = [v or 0 for v in misfit(wrong, y, op, 0.05).by_radius]
    assert abs(rings.index(max(rings)) - ring) <= 1
    assert misfit(wrong, y, op, 0.05).ratio(misfit(x, y, op, 0.05)) > 1.3


def test_a_small_object_that_the_data_contradict_is_seen_locally() -> None:
    y, op, x = plane()
    planted = x.clone()
    planted[30:34, 40:44] += 0.2
    right, wrong = misfit(x, y, op, 0.05), misfit(planted, y, op, 0.05)
    assert wrong.local_ratio(right) > 1.5
    assert wrong.chi2 < 1.1  # in the mean it disappears


def test_determined_part_of_several_coils_is_the_regularised_projection() -> None:
    _, op, x = plane(n=16, spec="random1d:2,centre=4")
    part, lamda = determined_part(x, op, 0.3)
    columns = torch.eye(256, dtype=torch.complex64).reshape(256, 16, 16)
    matrix = torch.stack([op.normal(column).flatten() for column in columns], 1)
    dense = torch.linalg.solve(matrix + lamda * torch.eye(256), matrix @ x.flatten())
    assert lamda == pytest.approx(0.09 / float(x.abs().square().mean()), rel=1e-3)
    assert (part.flatten() - dense).norm() < 5e-3 * dense.norm()


def test_what_no_sample_sees_is_the_priors_share_even_without_noise() -> None:
    _, op, x = plane(n=16, spec="random1d:4,centre=4")
    columns = torch.eye(256, dtype=torch.complex64).reshape(256, 16, 16)
    matrix = torch.stack([op.normal(column).flatten() for column in columns], 1)
    values, vectors = torch.linalg.eigh(matrix)
    unseen = vectors[:, 0].reshape(16, 16) * x.norm()
    assert float(values[0]) < 1e-3
    part, lamda = determined_part(unseen, op, 0.2)
    assert float((unseen - part).norm() / unseen.norm()) == pytest.approx(lamda / (lamda + float(values[0])), abs=0.02)


def test_determined_part_of_one_coil_is_the_sampled_part_of_kspace() -> None:
    y, op, x = plane(n_coils=1)
    part, lamda = determined_part(x, op, 0.05)
    assert lamda == 0
    assert torch.allclose(op.forward(part), op.forward(x), atol=1e-5)
    assert torch.allclose(op.forward(x - part), torch.zeros_like(y), atol=1e-5)


def test_noise_is_that_of_the_scan_or_of_the_outermost_samples_or_of_the_residual() -> None:
    y, op, x = plane()
    residual = residual_of(x, y, op)
    assert noise_level(y, op, 0.05, residual) == (0.05, "noise scan")
    rng = torch.Generator().manual_seed(2)
    smooth = torch.where(op.mask, 0.05 * complex_noise(tuple(y.shape), rng), 0)
    std, source = noise_level(smooth, op, None, residual)
    assert source == "outermost samples"
    assert std == pytest.approx(0.05, rel=0.1)
    strong = torch.where(op.mask, op.forward(x), 0)
    std, source = noise_level(strong, op, None, residual)
    assert source == "companion's residual"
    assert std == pytest.approx(0.05, rel=0.05)


def test_replicates_leave_out_lines_that_do_not_repeat_and_predict_them() -> None:
    y, op, _ = plane()
    found = replicate(SENSE, y, op, 0.05, 3, 0)
    assert all(bool(held.any()) and not bool((held & op2.mask).any()) for held, op2 in zip(found.held, found.ops, strict=True))
    assert not bool((found.held[0] & found.held[1]).any())
    again = replicate(SENSE, y, op, 0.05, 3, 0)
    assert torch.equal(found.images, again.images)
    sigma = spread_of(SENSE(y, op), found, op.support)
    assert float(sigma.min()) > 0
    score = held_out_of_replicates(found, SENSE, y, op, "slice 0")
    assert score is not None
    assert score.ratio == pytest.approx(1)
    assert score.verdict == "green"
    flipped = replace(found, images=-4 * found.images)
    worse = held_out_of_replicates(flipped, SENSE, y, op, "slice 0")
    assert worse is not None
    assert worse.verdict == "amber"


def test_gain_of_a_linear_method_is_found_and_that_of_an_unstable_one_is_larger() -> None:
    y, op, _ = plane(spec="random1d:2")
    gain, beside = largest_gain(SENSE, SENSE, y, op, 1.0, 0)
    assert gain == pytest.approx(beside, rel=1e-3)

    def unstable(y: Tensor, op: Sense) -> Tensor:
        image = SENSE(y, op)
        return image + 5 * image.roll(3, -1)

    assert largest_gain(unstable, SENSE, y, op, 1.0, 0)[0] > 4 * gain


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_item_depends_on_the_unit_of_the_samples(scale: float) -> None:
    y, op, x = plane()
    one, other = misfit(x, y, op, 0.05), misfit(scale * x, scale * y, op, scale * 0.05)
    assert other.chi2 == pytest.approx(one.chi2, rel=1e-3)
    assert other.local == pytest.approx(one.local, rel=1e-3)
    assert determined_part(scale * x, op, scale * 0.05)[1] == pytest.approx(determined_part(x, op, 0.05)[1], rel=1e-3)


def test_kinds_of_masks() -> None:
    kinds = {
        "random1d:4": "random lines", "uniform1d:4": "regular lines", "poisson2d:4": "points", "radial:5": "points"
    }  # fmt: skip
    for text, kind in kinds.items():
        mask = MaskSpec.parse(text).draw((96, 96), "x")
        assert masks.kind_of(mask, (96, 96)) == kind
    assert masks.kind_of(torch.ones(96, 1, dtype=torch.bool), (96, 96)) == "complete"
    known = [(k, r, p) for k, r, p, _ in masks.trained_profiles(["poisson2d:5"], (96, 96), 1)]
    other = MaskSpec.parse("dagan-g2d:20%").draw((96, 96), "x")
    same = MaskSpec.parse("poisson2d:5").draw((96, 96), "y")
    away = [masks.nearest_profile(masks.profile(m, (96, 96)), "points", 5.0, known) for m in (other, same)]
    assert away[0] is not None
    assert away[1] is not None
    assert away[0] > 0.066 > away[1]
    assert masks.nearest_profile(known[0][2], "points", 12.0, known) is None


def test_the_nearest_calibration_is_of_the_same_kind_and_coils() -> None:
    settings = tuple(Setting(k, "points", r, 8) for k, r in (("poisson2d:4", 4.0), ("poisson2d:8", 8.0), ("p:4,1coil", 4.0)))
    calibration = Calibration(settings)
    assert calibration.nearest("points", 7.0, 8) is settings[1]
    assert calibration.nearest("points", 4.0, 1) is settings[2]
    assert calibration.nearest("points", 20.0, 8) is None
    assert calibration.nearest("random lines", 4.0, 8) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 0}, "version 0"),
        ({"nominal": 1.5}, "nominal coverage 1.5"),
        ({"settings": {"a": {}}}, "cannot be read"),
        ({"ratio": 2.0}, "turns red at 2 and amber at 5"),
        ({"factor": -1.0}, "conformal factor -1.0"),
        ({"local": float("nan")}, "threshold local is nan"),
    ],
)
def test_calibration_that_contradicts_itself_is_one_line(change: dict[str, Any], said: str) -> None:
    limits: dict[str, float] = {"ratio": 10.0, "ratio_amber": 5.0}
    entry: dict[str, Any] = {
        "kind": "points", "acceleration": 4, "n_volumes": 8, "factors": {"stack": 2.0}, "statistics": {},
        "thresholds": {"stack": limits},
    }  # fmt: skip
    found: dict[str, Any] = {"version": 1, "nominal": 0.9, "k": 4, "settings": {"poisson2d:4": entry}}
    assert Calibration.of(found, "card").settings[0].thresholds["stack"].ratio == 10
    for name, value in change.items():
        if name in ("ratio", "local"):
            limits[name] = value
        elif name == "factor":
            entry["factors"]["stack"] = value
        else:
            found[name] = value
    with pytest.raises(InputError, match=said) as caught:
        Calibration.of(found, "card")
    assert "\n" not in str(caught.value)
    assert Calibration.of({}, "card") == Calibration()
    assert Thresholds().share is None
