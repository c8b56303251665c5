"""What is held out is never seen, the calibration area never held out, and a scan alone teaches a generator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kspace.errors import InputError
from kspace.io import fastmri
from kspace.operators import Sense
from kspace.simulation.acquisition import ScanProtocol, accelerate, add_noise_scan, cartesian, coil_covariance
from kspace.simulation.measurement import write_scan
from kspace.simulation.phantom import Phantom, ellipsoid, head_coils
from models.parts.interface import Step
from models.parts.losses import held_out
from models.systems import build
from recon.commands import train
from recon.commands.raw_volumes import as_volumes
from recon.datasets.example import Example, Key
from recon.datasets.kspace_dataset import Draw, KSpaceDataset
from recon.methods import weights
from recon.train.data import DataOptions, make_data
from recon.train.supervision import HeldOutRecorder, Split, self_supervised
from tests.support.scans import coil_maps, ellipses
from tests.support.training import small

SHAPE = (48, 40)


def _batch(lines: bool, n: int = 2) -> Example:
    rng = torch.Generator().manual_seed(4)
    masks = []
    for _ in range(n):
        mask = torch.rand(1, SHAPE[0], 1 if lines else SHAPE[1], generator=rng) < 0.4
        mask[:, 20:28, slice(None) if lines else slice(16, 24)] = True
        masks.append(mask)
    maps = torch.stack([coil_maps(3, SHAPE)] * n)
    target = torch.stack([ellipses(SHAPE, i) for i in range(n)])
    op = Sense(maps, torch.stack(masks))
    return Example(
        y=op.forward(target),
        op=op,
        target=None,
        truth=None,
        keys=tuple(Key("scan.h5", i, "p", "m") for i in range(n)),
        boxes=(torch.zeros(0, 5),) * n,
        recon_shapes=(SHAPE,) * n,
        attributes=({},) * n,
        entries=(None,) * n,
    )


@pytest.mark.parametrize("lines", [True, False])
def test_splits_divide_what_was_acquired(lines: bool) -> None:
    batch, split = _batch(lines), Split(share=0.3, reserved=0.2, seed=1)
    _, validated = split.validate(batch)
    shares, ever_held = [], torch.zeros_like(batch.op.mask)
    for number in range(40):
        seen, held = split.train(batch, number)
        assert not bool((seen.op.mask & held.mask).any())
        assert not bool((seen.op.mask & validated.mask).any()), "reserved for validation"
        assert not bool((held.mask & validated.mask).any())
        assert bool((seen.op.mask | held.mask | validated.mask).eq(batch.op.mask).all()), "nothing is lost"
        centre = slice(None) if lines else slice(16, 24)
        assert bool(seen.op.mask[:, :, 20:28, centre].all()), "the calibration area stays"
        assert not bool(seen.y[~seen.op.mask.expand_as(seen.y)].any())
        ever_held |= held.mask
        shares.append(float(held.mask.sum() / (batch.op.mask.sum() - validated.mask.sum())))
    outside = batch.op.mask & ~validated.mask
    outside[:, :, 20:28, slice(None) if lines else slice(16, 24)] = False
    assert bool(ever_held[outside].float().mean() > 0.95), "every sample has its turn"
    assert 0.1 < np.mean(shares) < 0.3
    again, _ = split.train(batch, 3)
    assert torch.equal(again.op.mask, split.train(batch, 3)[0].op.mask)
    assert torch.equal(split.validate(batch)[1].mask, validated.mask)


def test_a_slice_without_samples_to_spare_is_refused() -> None:
    batch = _batch(lines=True, n=1)
    centre = torch.zeros_like(batch.op.mask)
    centre[..., 20:28, :] = True
    with pytest.raises(InputError, match=r"scan\.h5: only 0 samples lie outside of the calibration area"):
        Split().train(replace(batch, op=replace(batch.op, mask=centre)), 0)


def test_the_loss_is_the_error_of_the_prediction_on_held_out_samples() -> None:
    batch = _batch(lines=False)
    _, held = Split().train(batch, 0)
    target = torch.stack([ellipses(SHAPE, i) for i in range(2)])
    gan = build(small())

    def loss(image: torch.Tensor) -> float:
        step = Step({"image": image}, image, batch.y, batch.op, gan.generator, held_out=(batch.y * held.mask, held))
        return float(held_out(step))

    assert loss(target) == pytest.approx(0, abs=1e-5)
    assert loss(0 * target) == pytest.approx(2, rel=1e-5)
    assert loss(0.9 * target) == pytest.approx(0.2, rel=1e-4)


def test_the_generator_does_not_see_what_is_held_out() -> None:
    batch, gan = _batch(lines=False), self_supervised(build(small()))
    seen, held = Split().train(batch, 0)
    other = replace(batch, y=batch.y + 100 * held.mask)
    again, _ = Split().train(other, 0)
    assert torch.equal(gan.generator(seen.y, seen.op), gan.generator(again.y, again.op))
    assert [term.name for term in gan.g_terms] == ["held_out"]
    assert not gan.d_terms


def test_the_recorder_compares_with_sense_on_the_same_samples() -> None:
    batch, split = _batch(lines=False), Split(reserved=0.2)
    seen, held = split.validate(batch)
    target = torch.stack([ellipses(SHAPE, i) for i in range(2)])
    recorder = HeldOutRecorder(("held_out",))
    recorder.add_held_out(batch, seen, held, 0.9 * target, 0)
    found = recorder.finish()
    assert found["held_out_error"] == pytest.approx(0.1, rel=1e-3)
    assert found["gain_db"] == pytest.approx(20 * np.log10(found["sense_held_out_error"] / 0.1), abs=1.0)
    assert recorder.finish() == {}


@pytest.fixture(scope="module")
def raw_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undersampled ISMRMRD scan of two slices, with a noise scan."""
    path = tmp_path_factory.mktemp("raw") / "scan.h5"
    phantom = Phantom((ellipsoid((0.0, 0.0, 0.0), (0.08, 0.1, 0.09)), ellipsoid((0.02, 0.0, 0.0), (0.02, 0.03, 0.05), 0.5)))
    protocol = ScanProtocol(matrix=(48, 48, 1), fov_m=(0.24, 0.24, 0.005), n_slices=2)
    scan = add_noise_scan(cartesian(protocol, phantom, head_coils(4), coil_covariance(4, 1e-3)))
    write_scan(accelerate(scan, 2, calibration=16), path)
    return path


def test_a_raw_scan_alone_lowers_its_held_out_error(raw_scan: Path, tmp_path: Path) -> None:
    argv = ["--system", "refinegan", "--generator.width", "8", "--generator.depth", "2", "--generator.chain", "1",
            "--data.path", str(raw_scan), "--data.supervision", "self", "--data.calibration_width", "16",
            "--data.batch_size", "2", "--trainer.accelerator", "cpu", "--update.ema", "0", "--g_optimiser.lr.start", "3e-3",
            "--g_optimiser.lr.warm_up", "1", "--trainer.enable_progress_bar", "false"]  # fmt: skip
    for steps in (1, 40):
        assert train.train([*argv, "--trainer.max_steps", str(steps), "-o", str(tmp_path / str(steps))]) == 0
    first, last = (weights.read_card(tmp_path / str(steps) / "last.safetensors") for steps in (1, 40))
    assert last.metrics["held_out_error"] < 0.97 * first.metrics["held_out_error"]
    assert last.metrics["sense_held_out_error"] == pytest.approx(first.metrics["sense_held_out_error"], rel=1e-5)
    assert last.data["supervision"] == "self"
    assert last.data["simulated"] is False
    assert (tmp_path / "40" / "volumes" / "scan.h5").is_file(), "converted once, into the folder of the run"


def test_a_folder_of_scans_is_divided_and_none_validates_itself(raw_scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.h5").write_bytes(raw_scan.read_bytes())
    options = as_volumes(
        DataOptions(path=folder, supervision="self", calibration_width=16, val_fraction=0.34), tmp_path / "volumes"
    )
    assert options.path == tmp_path / "volumes"
    data = make_data(options)
    trained: object = data.train
    (validated,) = data.val.values()
    assert isinstance(trained, KSpaceDataset)
    assert isinstance(validated, KSpaceDataset)
    files = [{volume.path.name for volume in part.volumes} for part in (trained, validated)]
    assert not files[0] & files[1]
    assert files[0] | files[1] == {"a.h5", "b.h5", "c.h5"}
    assert data.split is not None
    assert data.split.reserved == 0
    example = trained[Draw(0, 0)]
    assert example.target is None
    assert fastmri.open_volume(options.path / "a.h5").has_mask
    with pytest.raises(InputError, match=r"needs --data\.path"):
        DataOptions(images=folder, supervision="self")
