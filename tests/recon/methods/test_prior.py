"""Fit of a prior to one scan: held-out samples, noise level, data consistency, methods csgm and iagan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kspace.errors import InputError
from kspace.operators import Sense
from models import csgm
from models.parts.consistency import Observation
from models.parts.latent import PriorGenerator
from recon.compare.methods import choose as choose_several
from recon.methods import generator, weights
from recon.methods.choose import choose
from recon.methods.prior import Judge, fit_plane, fit_to_scan
from recon.run.adaptation import check_adaptation
from recon.run.options import RunOptions
from tests.support.scans import scan
from tests.support.weights import trained, written

SHAPE = (48, 32)
NARROW = csgm.NARROW["generator"]


def prior() -> PriorGenerator:
    network, _ = trained("csgm", generator=NARROW)
    assert isinstance(network, PriorGenerator)
    return network.requires_grad_(False)


def points(n_coils: int = 3, noise: float = 0.0) -> tuple[torch.Tensor, Sense, torch.Tensor]:
    torch.manual_seed(0)
    return scan(SHAPE, n_coils, batch=(), lines=False, noise=noise)


def test_the_fit_never_sees_what_judges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    y, op, _ = points()
    found: list[Observation] = []

    def record(network: PriorGenerator, observed: Observation, options: object, watch: Judge) -> object:
        found.extend((observed, watch.held))
        return type("Fitted", (), {"image": torch.zeros(SHAPE, dtype=torch.complex64)})()

    monkeypatch.setattr("recon.methods.prior.fit", record)
    fit_plane(prior(), y, op)
    seen, held = found
    n_held = int(held.op.mask.sum())
    assert n_held > 20
    assert not bool((seen.op.mask & held.op.mask).any())
    assert torch.equal(seen.op.mask | held.op.mask, op.mask)
    assert float(seen.y[..., held.op.mask.expand(SHAPE)].abs().max()) == 0
    centre = slice(SHAPE[0] // 2 - 3, SHAPE[0] // 2 + 3), slice(SHAPE[1] // 2 - 3, SHAPE[1] // 2 + 3)
    assert not bool(held.op.mask.expand(SHAPE)[centre].any()), "the calibration area stays with the fit"


def test_a_residual_like_noise_ends_the_fit() -> None:
    y, op, target = points(noise=0.1)
    judge = Judge(Observation.of(y, op), Observation.of(y, op), 0.01 * 2)
    wrong = torch.zeros_like(target)
    assert judge(target[None]).enough
    assert not judge(wrong[None]).enough
    assert not Judge(judge.seen, judge.held, None)(target[None]).enough, "without a known noise level nothing ends early"
    look = judge(torch.stack([wrong, target]))
    assert float(look.errors[0]) == pytest.approx(1)
    assert int(look.errors.argmin()) == 1


def test_the_weight_of_the_prior_is_noise_over_error() -> None:
    y, op, target = points(n_coils=1)
    error = 0.3 * torch.randn(SHAPE, dtype=torch.complex64)  # E|e|^2 = 0.09 a pixel and a sample
    judge = Judge(Observation.of(y, op), Observation.of(y, op), 0.0045)
    assert judge.prior_weight(target + error, 0.5) == pytest.approx(0.05, rel=0.25)
    assert judge.prior_weight(target, 0.5) == 1.0, "an error below the noise counts fully"
    assert Judge(judge.seen, judge.held, None).prior_weight(target, 0.5) == 0.5


def test_planes_are_fitted_one_by_one_and_few_samples_hold_nothing_out() -> None:
    network = prior()
    y, op, _ = scan(SHAPE, 2, batch=(2,), lines=False)
    together = fit_to_scan(network, y, op)
    alone = fit_to_scan(network, y[1], Sense(op.maps[1], op.mask))
    torch.testing.assert_close(together[1], alone, rtol=1e-4, atol=1e-5)
    few = torch.zeros(SHAPE, dtype=torch.bool)
    few[21:27, 13:19] = True
    image, fitted = fit_plane(network, y[0] * few, Sense(op.maps[0], few))
    assert fitted is not None
    assert bool(torch.isfinite(image.abs()).all())
    zeros, fitted = fit_plane(network, torch.zeros_like(y[0]), Sense(op.maps[0], op.mask))
    assert fitted is None
    assert zeros.abs().max() == 0


def test_iagan_is_csgm_with_adaptation(tmp_path: Path) -> None:
    path = written(tmp_path, system="csgm", generator=NARROW)
    plain = generator.load(path)
    adaptive = generator.load(path, system="iagan")
    assert plain.sha256 == adaptive.sha256
    assert (plain.name, adaptive.name) == ("small", "iagan")
    assert plain.generator.options.fit.adaptation == 2
    assert adaptive.generator.options.fit.adaptation == 300
    assert adaptive.generator.options.fit.steps == plain.generator.options.fit.steps
    method = choose("iagan", weights=path)
    assert method.details["refine"] == "none", "a stack would repeat the fit"
    compared = choose_several("sense,iagan", [f"iagan={path}"])[1]
    assert compared.label == "IAGAN"
    assert compared.generator is not None
    assert compared.generator.generator.options.fit.adaptation == 300
    with pytest.raises(InputError, match="these are weights of dagan, not of iagan"):
        choose("iagan", weights=written(tmp_path, "other.safetensors"))
    with pytest.raises(InputError, match="csgm is fitted to each scan anyway; leave it out"):
        check_adaptation(choose("csgm", weights=path), RunOptions(method="csgm", adapt=1.0))


def test_variants_are_bundled_with_their_system() -> None:
    found = weights.bundled()
    assert all((name in found) == (system in found) for name, (system, _) in weights.VARIANTS.items())


def test_the_reconstructor_fits_in_inference_mode(tmp_path: Path) -> None:
    method = generator.load(written(tmp_path, system="csgm", generator=NARROW))
    y, op, target = points()
    image = method(y, op)
    assert image.shape == target.shape
    assert not image.requires_grad
    torch.testing.assert_close(method(1e4 * y, op) / 1e4, image, rtol=1e-2, atol=1e-3)


def test_half_precision_does_not_reach_the_fit() -> None:
    network = prior()
    y, op, _ = points()
    full = fit_to_scan(network, y, op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fit_to_scan(network, y, op), full)
