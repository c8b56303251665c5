"""Evidence of generators of other kinds: posterior samplers, and priors that are fitted to each scan."""

from __future__ import annotations

from pathlib import Path

import torch

from kspace.data_consistency import data_consistency
from models import csgm
from recon.evidence.assess import Assessor, EvidenceOptions, before_exact_consistency
from recon.evidence.replicates import repeat, spread_of
from recon.methods import generator
from recon.methods.classical import CgSense
from tests.support.scans import scan
from tests.support.weights import written

SENSE = CgSense()


def test_the_interval_of_a_sampler_rests_on_its_draws(tmp_path: Path) -> None:
    network = generator.load(written(tmp_path, system="rcgan", generator={"width": 8, "blocks": 2, "samples": 3}))
    y, op, _ = scan((48, 32), batch=(), lines=False, noise=0.01)
    found = repeat(network, network, y, op, 0.01, 3, 0)
    draws = network.sample(y, op, 3)
    assert draws is not None
    assert torch.equal(found.images, draws)
    assert not found.held, "nothing was held out of them"
    torch.testing.assert_close(network(y, op), draws.mean(0))
    spread = spread_of(network(y, op), found, op.support)
    assert float(spread[op.support].min()) > 0
    assert network.sample(y, op, 3, seed=1) is not None

    judged = Assessor(network, SENSE, EvidenceOptions(k=3), "none")
    evidence = judged.judge(network(y, op), judged.scan(y, op, SENSE(y, op), 0.01, {}), network, None, "slice 0")
    assert evidence.held_out is not None, "measured on a reconstruction of fewer samples"
    assert evidence.stability is not None


def test_one_coil_is_judged_before_the_samples_of_each_draw_are_replaced(tmp_path: Path) -> None:
    network = generator.load(written(tmp_path, system="rcgan", generator={"width": 8, "blocks": 2, "samples": 3}))
    y, op, _ = scan((48, 32), n_coils=1, batch=(), lines=False, noise=0.01)
    before = before_exact_consistency(network, y, op)
    assert before is not None
    torch.testing.assert_close(data_consistency(before, y, op), network(y, op), msg="replacement is affine: so is its mean")
    assert float((before - network(y, op)).abs().max()) > 1e-3 * float(before.abs().max())
    judged = Assessor(network, SENSE, EvidenceOptions(k=3), "none")
    evidence = judged.judge(network(y, op), judged.scan(y, op, SENSE(y, op), 0.01, {}), network, None, "slice 0")
    assert evidence.certificate is not None
    assert evidence.certificate.of == "image before exact data consistency"


def test_a_network_without_noise_is_repeated_on_perturbed_samples(tmp_path: Path) -> None:
    network = generator.load(written(tmp_path, system="gancs", generator={"width": 4, "blocks": 1}))
    y, op, _ = scan((48, 32), batch=(), lines=False, noise=0.01)
    assert network.sample(y, op, 2) is None
    assert len(repeat(network, network, y, op, 0.01, 2, 0).held) == 2


def test_a_fit_is_neither_repeated_for_an_interval_nor_differentiated(tmp_path: Path) -> None:
    network = generator.load(written(tmp_path, system="csgm", generator=csgm.NARROW["generator"]))
    y, op, _ = scan((48, 32), batch=(), lines=False, noise=0.01)
    judged = Assessor(network, SENSE, EvidenceOptions(), "none")
    evidence = judged.judge(network(y, op), judged.scan(y, op, SENSE(y, op), 0.01, {}), network, None, "slice 0")
    assert evidence.certificate is not None
    assert evidence.determined is not None
    assert evidence.held_out is not None
    assert evidence.uncertainty is None
    assert evidence.stability is None
