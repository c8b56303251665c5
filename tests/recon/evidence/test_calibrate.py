"""Calibration values: coverage of the interval, limits that validation volumes keep, weights that stay as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kspace.container import Header, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.operators import Sense
from recon.commands.calibrate import calibrate as command
from recon.evidence.calibrate import Labelled, calibrate, conformal_factor, largest_distance
from recon.evidence.calibration import Calibration
from recon.methods import generator, weights
from recon.methods.choose import Method, choose
from recon.methods.classical import CgSense
from recon.methods.generator import GeneratorReconstructor
from recon.run.delivery import Delivery
from recon.run.log import Log
from recon.run.options import RunOptions
from tests.support.planes import plane
from tests.support.weights import written

NOISE = 0.05


def case(seed: int) -> Labelled:
    y, op, x = plane(noise=NOISE, n=48, seed=seed, size=0.25 + 0.02 * seed)
    return Labelled(y, op, x.abs(), NOISE)


def maker(seed: int) -> Callable[[], Labelled]:
    return lambda: case(seed)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = written(tmp_path_factory.mktemp("weights"))
    network = generator.load(path)
    card = replace(network.card, envelope={**network.card.envelope, "masks": ["random1d:3", "poisson2d:4"]})
    seen: list[str] = []
    found = calibrate(
        replace(network, card=card),
        {"random1d:3": [maker(i) for i in range(4)]},
        {"random1d:3": [maker(i) for i in range(4, 6)]},
        k=2,
        progress=seen.append,
    )
    assert seen == ["random1d:3"] * 4
    before = weights.read_card(path).sha256
    assert weights.restate(path, path, calibration=found).sha256 == before
    return path


def test_the_factor_covers_the_nominal_share_on_the_mean_of_volumes() -> None:
    scores = [torch.linspace(0, top, 1000) for top in (1.0, 2.0, 4.0)]
    factor = conformal_factor(scores, 0.8)
    covered = [float((s <= factor).double().mean()) for s in scores]
    assert sum(covered) / 3 == pytest.approx(0.8, abs=2e-3)
    assert largest_distance([{"spectrum/a": 0.1 * i} for i in range(3)]) is None
    assert (largest_distance([{"spectrum/a": v} for v in (0.0, 0.1, 0.2, 0.3, 9.0)]) or 0) > 5


def test_values_in_the_card_are_read_back_and_keep_their_volumes_green(calibrated: Path) -> None:
    calibration = Calibration.of(weights.read_card(calibrated).calibration, "card")
    setting = calibration.nearest("random lines", 3.0, 4)
    assert setting is not None
    assert (setting.n_volumes, calibration.k) == (4, 2)
    assert set(setting.factors) == {"stack", "none"}
    assert calibration.calibration_lines is not None
    made = deliver(calibrated, case(2), "none")
    evidence, planes = made
    assert {"main", "sense", "prior", "difference", "std"} == set(planes)
    assert evidence["uncertainty"]["calibrated"]
    assert evidence["uncertainty"]["coverage_guaranteed"] == pytest.approx(0.9 * 4 / 5)
    assert {evidence[name]["verdict"] for name in ("certificate", "determined", "stability")} == {"green"}
    assert "image statistics" not in str(evidence["guard"]["outside"])


def test_images_that_contradict_the_samples_can_be_calibrated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = generator.load(written(tmp_path))
    monkeypatch.setattr(GeneratorReconstructor, "__call__", lambda _, y, op: 0.3 * CgSense()(y, op))
    found = calibrate(network, {"random1d:3": [maker(0)]}, k=2)
    assert found["settings"]["random1d:3"]["thresholds"]["none"]["ratio"] > 100


def test_an_image_from_elsewhere_is_outside(calibrated: Path) -> None:
    rng = torch.Generator().manual_seed(5)
    _, op, _ = plane(n=48)
    x = torch.randn(48, 48, generator=rng, dtype=torch.complex64) * torch.linspace(0, 1, 48)
    y = op.forward(x) + NOISE * torch.randn(4, 48, 48, generator=rng, dtype=torch.complex64)
    evidence, _ = deliver(calibrated, Labelled(torch.where(op.mask, y, 0), op, x.abs(), NOISE), "none")
    assert any("image statistics" in text for text in evidence["guard"]["outside"])


@pytest.mark.parametrize("refine", ["none", "residual", "stack"])
def test_samples_that_were_not_acquired_change_nothing(refine: str, calibrated: Path) -> None:
    one = case(1)
    rng = torch.Generator().manual_seed(9)
    other = torch.where(one.op.mask, one.y, 1e3 * torch.randn(one.y.shape, generator=rng, dtype=torch.complex64))
    first, second = (deliver(calibrated, replace(one, y=y), refine) for y in (one.y, other))
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][role], second[1][role]) for role in first[1])
    assert {"prior", "difference", "main", "sense"} <= first[1].keys()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_samples_changes_no_verdict(scale: float, calibrated: Path) -> None:
    one = case(1)
    scaled = replace(one, y=one.y * scale, noise_std=NOISE * scale, op=replace(one.op, noise_std=NOISE * scale))
    (first, maps), (second, others) = deliver(calibrated, one, "none"), deliver(calibrated, scaled, "none")
    assert second["certificate"]["chi2"] == pytest.approx(first["certificate"]["chi2"], rel=1e-3)
    # Networks round to bfloat16 where the processor has it (2^-8), and the scales are no powers of two.
    assert second["stability"]["gain"] == pytest.approx(first["stability"]["gain"], rel=1e-2)
    assert second["held_out"]["ratio"] == pytest.approx(first["held_out"]["ratio"], rel=1e-2)
    assert float((others["std"] / scale - maps["std"]).norm()) < 1e-2 * float(maps["std"].norm())


def test_bad_options_and_too_few_volumes_are_one_line(calibrated: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nominal coverage 2"):
        command(str(calibrated), ("x",), nominal=2.0)
    with pytest.raises(InputError, match="give no spread"):
        command(str(calibrated), ("x",), repeats=0)
    with pytest.raises(InputError, match="no such file or folder"):
        command(str(calibrated), (str(tmp_path / "absent"),))


def test_the_weights_in_the_file_stay_bit_for_bit(tmp_path: Path) -> None:
    path = written(tmp_path)

    def values() -> str:
        with safe_open(path, "pt") as file:
            return hashlib.sha256(b"".join(file.get_tensor(n).numpy().tobytes() for n in sorted(file.keys()))).hexdigest()

    before = values()
    card = weights.restate(path, path, calibration={"version": 1})
    assert values() == before
    assert card.calibration == {"version": 1}
    with pytest.raises(InputError, match="cannot be read"):
        Calibration.of(card.calibration, "card")


def deliver(path: Path, one: Labelled, refine: str) -> tuple[dict, dict[str, Tensor]]:
    """The record of the evidence and the planes that `recon run` makes images of."""
    options = RunOptions(method="dagan", weights=path, refine=refine, repeats=2)  # type: ignore[arg-type]
    method, log = choose("dagan", weights=path, refine=refine), Log(tell=None)  # type: ignore[arg-type]
    op: Sense = one.op
    k = KSpace(one.y, op.mask.unsqueeze(0), Header(noise_std=one.noise_std))
    op = replace(op, mask=k.mask)

    def fitted(index: ImageIndex) -> Method:
        return method

    planes = Delivery(method, options, log).planes(k, op, fitted, lambda index: None)
    return log.evidence[-1].record(), planes
