"""Evidence of images from samples off the Cartesian grid: against the noise that was added, and samples that were left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kspace.noncartesian.operator import NonCartesianSense
from kspace.noncartesian.trajectory import golden_angles, radial
from kspace.simulation.from_images import complex_noise
from kspace.simulation.noncartesian import write_trajectory_scan
from recon.evidence.certificate import misfit
from recon.evidence.determined import determined_part
from recon.evidence.guard import ScanFacts
from recon.evidence.replicates import held_out_of_replicates, replicate
from recon.methods.classical import CgSense, ZeroFilled
from recon.methods.held_out import Candidates, together, without
from recon.run.options import RunOptions
from recon.run.pipeline import reconstruct_file
from tests.support.off_grid import N, scan_of
from tests.support.scans import coil_maps, ellipses

SHAPE = (40, 48)


def scan(n_spokes: int = 30, std: float = 0.02) -> tuple[Tensor, NonCartesianSense, Tensor]:
    op = NonCartesianSense(coil_maps(4, SHAPE), torch.from_numpy(radial(n_spokes, 80, golden_angles(n_spokes))), noise_std=std)
    image = ellipses(SHAPE, 3).to(torch.complex64)
    y = op.forward(image)
    return y + std * complex_noise(tuple(y.shape), torch.Generator().manual_seed(0)), op, image


def test_the_misfit_of_the_truth_is_the_noise() -> None:
    y, op, image = scan()
    found = misfit(image, y, op, 0.02)
    assert found.chi2 == pytest.approx(1.0, abs=0.03)
    assert all(chi2 == pytest.approx(1.0, abs=0.12) for chi2 in found.by_radius if chi2 is not None)
    assert 1.5 < found.local < 5  # the largest of some 2000 Rayleigh distributed pixels, many of them alike
    wrong = image.clone()
    wrong[18:22, 22:26] += 0.3
    assert misfit(wrong, y, op, 0.02).local > 10


def test_leaving_readouts_out_is_not_having_measured_them() -> None:
    y, op, image = scan()
    held = torch.zeros(30, 1, dtype=torch.bool)
    held[[2, 11, 17]] = True
    rest = without(op, held)
    alone = NonCartesianSense(op.maps, op.trajectory[~held[:, 0]], density=rest.compensation[~held[:, 0]])
    # Whatever stands at what was left out.
    spoilt = torch.where(held, float("nan"), y)
    seen = torch.where(rest.mask, spoilt, 0)
    for method in (CgSense(), ZeroFilled()):
        expected = method(y[:, ~held[:, 0]], alone)
        assert torch.allclose(method(seen, rest), expected, atol=1e-4 * float(expected.abs().max()))
    assert float(rest.compensation.sum() / op.compensation.sum()) == pytest.approx(1.0, abs=0.05)
    both = together([op, rest])
    images = CgSense()(torch.stack([y, seen]), both)
    assert torch.allclose(images[1], CgSense()(seen, rest), atol=1e-3 * float(image.abs().max()))


def test_candidates_are_readouts() -> None:
    y, op, _ = scan()
    found = Candidates.of_model(op)
    assert (found.unit, found.n, found.regular) == ("readouts", 30, False)
    masks = found.draw(3, 0.12, 0)
    assert [int(mask.sum()) for mask in masks] == [4, 4, 4]
    assert int(torch.stack(masks).any(0).sum()) == 12
    # Spokes crowd in the centre: a sample there stands for less of k-space.
    weights = found.importance()
    assert weights.shape == y.shape[-2:]
    assert float(weights[:, 40].mean()) < 0.2 * float(weights[:, 5].mean())


def test_held_out_readouts_tell_the_better_method() -> None:
    y, op, _ = scan(16)
    made = replicate(ZeroFilled(), y, op, 0.02, 3, 0)
    score = held_out_of_replicates(made, CgSense(), y, op, "slice 0")
    assert score is not None
    assert score.unit == "readouts"
    assert score.ratio > 1.2
    assert score.verdict == "amber"
    other = held_out_of_replicates(replicate(CgSense(), y, op, 0.02, 3, 0), ZeroFilled(), y, op, "slice 0")
    assert other is not None
    assert other.verdict == "green"


def test_the_determined_part_and_the_facts_of_a_scan() -> None:
    y, op, image = scan(60)
    part, lamda = determined_part(image, op, 0.02)
    assert lamda > 0
    assert float((part - image)[op.support].norm() / image.norm()) < 0.1
    checkers = torch.from_numpy((-1.0) ** np.indices(SHAPE).sum(0)).to(torch.complex64)  # the corner of k-space
    unseen, _ = determined_part(checkers, op, 0.02, lamda)
    assert float(unseen.norm() / checkers.norm()) < 0.5
    facts = ScanFacts.of(y, op, image, 0.02, {})
    assert facts.kind == "points"
    assert facts.matrix == SHAPE
    assert 1 < facts.acceleration < 2
    assert facts.statistics


@pytest.mark.slow
def test_a_generator_comes_with_its_evidence(tmp_path: Path) -> None:
    spokes = radial(34, 2 * N, golden_angles(34))
    source = replace(scan_of(), trajectory=spokes)
    write_trajectory_scan(source, tmp_path / "scan.h5", spokes)
    reconstruct_file(tmp_path / "scan.h5", tmp_path / "out", RunOptions(method="refinegan", format="mrd"))
    record = json.loads((tmp_path / "out" / "scan.json").read_text())["extra"]
    (evidence,) = record["evidence"]
    assert evidence["delivered"] == "refinegan"
    assert evidence["certificate"]["verdict"] == "green"
    assert evidence["held_out"]["unit"] == "readouts"
    assert evidence["stability"]["gain"] > 0
    assert not evidence["uncertainty"]["calibrated"]
    (stack,) = record["refinement"]
    assert stack["unit"] == "readouts"
    assert sum(stack["weights"].values()) == pytest.approx(1.0)
