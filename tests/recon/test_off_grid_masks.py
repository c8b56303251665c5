"""Masks off the Cartesian grid in the data sets, in training steps, in comparison and in simulation."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recon
from kspace.errors import InputError
from kspace.io.fastmri import open_volume
from kspace.masks import MaskSpec
from kspace.noncartesian.operator import NonCartesianSense
from kspace.simulation.from_images import SynthesisOptions
from models.parts.interface import total
from models.systems import build
from recon.commands.simulate import simulate
from recon.datasets.example import collate
from recon.datasets.image_dataset import SimulatedDataset
from recon.datasets.kspace_dataset import KSpaceDataset
from recon.datasets.patients import PatientFiles
from recon.datasets.transfer import reduce_example
from recon.methods.classical import CgSense
from recon.report import report
from tests.support.comparisons import run, volumes

RADIAL, SPIRAL = MaskSpec.parse("radial-nufft:2"), MaskSpec.parse("spiral-nufft:1.5,interleaves=6")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return volumes(tmp_path / "v", 2, n_slices=1)


def test_examples_of_a_batch_may_differ_in_their_trajectories(folder: Path) -> None:
    files = sorted(folder.glob("*.h5"))
    a, b = KSpaceDataset(files, [RADIAL])[0], KSpaceDataset(files, [SPIRAL])[1]
    assert isinstance(a.op, NonCartesianSense)
    rebuilt, arguments = reduce_example(b)  # as it travels from a worker
    batch = collate([a, rebuilt(*arguments)])
    assert isinstance(batch.op, NonCartesianSense)
    assert batch.target is not None
    images = CgSense()(batch.y, batch.op)
    alone = CgSense()(b.y, b.op)
    assert torch.allclose(images[1], alone, atol=2e-3 * float(alone.abs().max()))
    for image, target in zip(images, batch.target, strict=True):
        assert float((image - target).norm() / target.norm()) < 0.2
    moved = batch.to("cpu")
    assert torch.equal(moved.y, batch.y)
    with pytest.raises(InputError, match="on and off the Cartesian grid"):
        collate([a, KSpaceDataset(files, [MaskSpec.parse("random1d:2")])[0]])


def test_a_cache_of_maps_serves_masks_off_the_grid(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.glob("*.h5"))
    first = KSpaceDataset(files, [RADIAL], cache=tmp_path / "cache")[0]
    again = KSpaceDataset(files, [RADIAL], cache=tmp_path / "cache")[0]
    without = KSpaceDataset(files, [RADIAL])[0]
    assert torch.equal(first.op.maps, again.op.maps)
    assert torch.allclose(first.op.maps, without.op.maps, atol=1e-5)


def test_a_system_takes_a_training_step(folder: Path) -> None:
    gan = build({"system": "refinegan", "preset": "raw", "generator": {"width": 4}})
    batch = collate([KSpaceDataset(sorted(folder.glob("*.h5")), [RADIAL])[0]])
    assert batch.target is not None
    y, op = batch.op.balanced(batch.y)
    step = gan.step(y, op, batch.target)
    loss, _ = total(gan.g_terms, step)
    loss.backward()
    gradients = [p.grad for p in gan.generator.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


def test_simulated_examples_have_independent_noise(tmp_path: Path) -> None:
    Image.fromarray((np.indices((80, 80)).sum(0) % 200).astype(np.uint8)).save(tmp_path / "a.png")
    options = SynthesisOptions(matrix=(32, 32), coils=2, snr=(5.0, 5.0))
    group = PatientFiles("p", "p", (tmp_path / "a.png",))
    example = SimulatedDataset([group], options, [RADIAL], maps="jsense")[0]
    assert isinstance(example.op, NonCartesianSense)
    clean = replace(options, snr=(1e6, 1e6))
    still = SimulatedDataset([group], clean, [RADIAL], maps="jsense")[0]
    # The spokes cross at the centre: noise of a grid would be the same in all of them.
    scale = float((example.y.conj() * still.y).sum().abs() / (still.y.abs().square().sum()))
    noise = (example.y - scale * still.y)[:, :, 32]
    assert float(noise.std()) == pytest.approx(1.0, abs=0.35)


@pytest.mark.slow
def test_compare_runs_methods_on_trajectories(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda folder: folder / "index.html")  # has tests of its own
    words = ("--masks", "radial-nufft:2,random1d:2", "--methods", "zero-filled,sense,refinegan", "--max-volumes", 1)
    assert run(folder, "-o", tmp_path / "out", *words) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "slices.csv").open()))
    found = {(row["mask"], row["method"]): row["status"] for row in rows}
    assert found == {(m, n): "ok" for m in ("radial-nufft:2", "random1d:2") for n in ("zero-filled", "sense", "refinegan")}
    results = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    values = {(r["mask"], r["method"]): r for r in results}
    psnr = [float(values["radial-nufft:2", name]["psnr"]) for name in ("zero-filled", "sense")]
    assert psnr[1] > psnr[0]


@pytest.mark.filterwarnings("ignore::recon.images.ReconWarning")
def test_simulate_writes_scans_off_the_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    image = 200 * ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) * (1 + 0.2 * np.sin(6 * x))
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / "a.png")
    settings = {"matrix": (48, 40), "coils": 4, "snr": 40.0, "smooth": True}
    simulate(tmp_path / "images", tmp_path / "out", sampling="radial-nufft:1", **settings)  # type: ignore[arg-type]
    (scan,) = (tmp_path / "out").glob("*.mrd")
    with recon.open(scan) as opened:
        found = np.abs(opened.reconstruct(method="sense")[0].numpy())
    truth = open_volume(scan.with_suffix(".h5")).truth(0)
    assert truth is not None
    expected = truth.numpy()
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)  # in units of the noise, not up to a factor
    with pytest.raises(InputError, match="samples on the Cartesian grid"):
        simulate(tmp_path / "images", tmp_path / "other", sampling="random1d:4", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()
