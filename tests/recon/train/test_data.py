"""What training sees: strips, kept examples, simulations, the stream of batches, and what is measured and logged."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kspace.data_consistency import data_consistency
from kspace.errors import InputError
from kspace.fourier import fft
from kspace.io.images import find_images
from kspace.masks import MaskSpec
from kspace.noncartesian.operator import NonCartesianSense
from kspace.operators import Sense
from kspace.simulation.from_images import SynthesisOptions
from kspace.simulation.phase import PhaseOptions
from kspace.simulation.realism import Realism
from models.parts.interface import LossTerm, Step
from models.systems import build
from recon.datasets.example import Example, Key, collate
from recon.datasets.kspace_dataset import Draw, ShapeBatchSampler
from recon.datasets.patients import group_files
from recon.methods import classical
from recon.metrics import image as metrics
from recon.train import health, validation
from recon.train.data import DataOptions, make_data
from recon.train.examples import CroppedReadouts, Kept, PlainImages, Simulations, crop_readout, read_example, write_example
from recon.train.loaders import Stream
from recon.train.validation import Recorder, SliceResult
from tests.support.scans import scan
from tests.support.training import Scans, pictures, small

# ------------------------------------------------------------------------------------------------------------------ strips


def test_a_strip_is_the_scan_of_a_narrower_object() -> None:
    whole = Scans(1, (32, 24), 3, noise=0.0)[Draw(0)]
    strip = crop_readout(whole, 5, 10)
    assert strip.target is not None
    assert whole.target is not None
    torch.testing.assert_close(strip.target, whole.target[:, 5:15])
    torch.testing.assert_close(strip.y, strip.op.forward(strip.target), atol=1e-5, rtol=1e-4)


def test_reconstructing_a_strip_is_the_strip_of_the_reconstruction() -> None:
    whole = Scans(1, (32, 24), 3, noise=0.1)[Draw(0)]
    strip = crop_readout(whole, 7, 9)
    full = data_consistency(torch.zeros(32, 24, dtype=torch.complex64), whole.y, whole.op, 0.01)
    part = data_consistency(torch.zeros(32, 9, dtype=torch.complex64), strip.y, strip.op, 0.01)
    torch.testing.assert_close(part, full[:, 7:16], atol=1e-4, rtol=1e-3)


def test_noise_keeps_its_standard_deviation_in_a_strip() -> None:
    whole = Scans(1, (64, 64), 8, noise=1.0)[Draw(0)]
    noise = replace(whole, y=whole.y - whole.op.forward(whole.target))  # type: ignore[arg-type]
    sampled = crop_readout(noise, 11, 16).y[:, whole.op.mask[0, :, 0]]
    assert float(sampled.abs().square().mean()) == pytest.approx(1.0, abs=0.05)


def test_boxes_move_with_the_strip() -> None:
    whole = replace(Scans(1)[Draw(0)], boxes=(torch.tensor([[1.0, 2, 3, 8, 9], [2.0, 0, 0, 4, 4]]),))
    assert crop_readout(whole, 5, 8).boxes[0].tolist() == [[1, 2, 0, 8, 4]]


def test_strips_lie_over_the_object_and_move_with_the_epoch() -> None:
    source = Scans(2, (32, 64))
    strips = CroppedReadouts(source, 16)
    assert strips.shapes == [(2, 32, 16)] * 8, "each slice as often as strips fit into it"
    sums = {float(strips[Draw(0, epoch)].truth.sum()) for epoch in range(12)}  # type: ignore[union-attr]
    assert len(sums) > 3
    a, b = strips[Draw(1, 4)], strips[Draw(1, 4)]
    assert torch.equal(a.y, b.y)
    assert not torch.equal(strips[Draw(0, 4)].y, strips[Draw(1, 4)].y), "strips of one slice lie in different places"
    assert strips[Draw(5, 0)].keys == strips[Draw(4, 0)].keys
    assert strips[Draw(3, 0)].keys != strips[Draw(4, 0)].keys
    assert len(CroppedReadouts(source, 16, copies=2)) == 4
    assert CroppedReadouts(source, 100)[Draw(0)].y.shape == (2, 32, 64), "wider than the image is the image"


def test_points_cannot_be_cut() -> None:
    y, op, _ = scan(lines=False, batch=())
    example = replace(Scans(1)[Draw(0)], y=y, op=op)
    with pytest.raises(ValueError, match="only an example with complete lines"):
        crop_readout(example, 0, 8)


# ----------------------------------------------------------------------------------------------------------- kept examples


def same(a: Example, b: Example) -> None:
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.op.mask, b.op.mask)
    torch.testing.assert_close(a.op.maps, b.op.maps, atol=1e-3, rtol=1e-3)  # half precision
    assert torch.equal(a.target, b.target)  # type: ignore[arg-type]
    assert torch.equal(a.truth, b.truth)  # type: ignore[arg-type]
    assert (a.keys, a.recon_shapes) == (b.keys, b.recon_shapes)
    assert torch.equal(a.boxes[0], b.boxes[0])


@pytest.mark.parametrize("lines", [True, False])
def test_what_is_written_is_read(tmp_path: Path, lines: bool) -> None:
    example = Scans(1)[Draw(0)]
    if not lines:
        y, op, target = scan(lines=False, batch=(), noise=0.1)
        op = Sense(op.maps, op.mask[None], 2.5, torch.ones(1, *op.mask.shape, dtype=torch.int32) * 3)
        example = replace(example, y=y * op.mask, op=op, target=target, truth=target.abs())
    example = replace(example, boxes=(torch.tensor([[1.0, 2, 3, 4, 5]]),), attributes=({"acquisition": "T1", "odd": [1]},))
    write_example(tmp_path / "a.safetensors", example)
    again = read_example(tmp_path / "a.safetensors")
    same(example, again)
    assert again.op.noise_std == example.op.noise_std
    assert (again.op.n_averages is None) == (example.op.n_averages is None)
    assert again.attributes == ({"acquisition": "T1"},)
    collate([again, again])


def test_kept_examples_are_made_once(tmp_path: Path) -> None:
    source = Scans(3)
    kept = Kept(source, tmp_path, "scans")
    first = [kept[Draw(i, epoch)] for epoch in (0, 1) for i in range(3)]
    assert source.drawn == [Draw(0), Draw(1), Draw(2)]
    same(first[0], first[3])
    same(first[1], source[Draw(1)])
    other = Kept(Scans(3), tmp_path, "other scans")
    _ = other[Draw(0)]
    assert len(list(tmp_path.glob("*/about.txt"))) == 2, "what depends on other things lies elsewhere"


def test_a_damaged_kept_example_is_named(tmp_path: Path) -> None:
    kept = Kept(Scans(1), tmp_path, "scans")
    _ = kept[Draw(0)]
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a kept example is damaged .*; delete the file: it is made again"):
        _ = kept[Draw(0)]


# ------------------------------------------------------------------------------------------------------------- simulations


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("heads") / "p", n=12)


def simulations(heads: Path, **more: Any) -> Simulations:
    groups = group_files(find_images(heads), heads, 2)
    masks = [MaskSpec.parse(text) for text in ("random1d:2", "poisson2d:2")]
    options = SynthesisOptions((32, 32), 1, (20.0, 20.0))
    return Simulations(groups, options, (1, 2, 3), masks, variants=2, calibration_width=12, **more)


def test_simulations_have_the_shapes_that_they_promise(heads: Path) -> None:
    data = simulations(heads)
    assert len(data) == 24
    for i in range(0, 24, 5):
        example, shape = data[Draw(i, 1)], data.shapes[i]
        assert (*example.y.shape, int(example.op.mask.shape[-1] == 1)) == shape
        assert data.lines[i] == (example.op.mask.shape[-1] == 1)
    assert len(Counter(data.shapes)) == 6, "coils and kinds of masks all occur"


@pytest.mark.parametrize("n_coils", [1, 2])
def test_simulations_off_the_grid_train_a_network(heads: Path, n_coils: int) -> None:
    groups = group_files(find_images(heads), heads, 2)
    options = SynthesisOptions((32, 32), n_coils, (20.0, 20.0))
    data = Simulations(groups, options, (n_coils,), [MaskSpec.parse("radial-nufft:1")], calibration_width=12)
    assert not any(data.lines)
    example = data[Draw(0, 1)]
    assert isinstance(example.op, NonCartesianSense)
    torch.manual_seed(0)
    generator = build({"system": "refinegan", "generator": {"width": 4, "depth": 2}}).generator
    image = generator(*example.op.balanced(example.y))
    loss = (image - example.target).abs().square().sum()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in generator.parameters())
    error = float((image.detach().abs() - example.target.abs()).norm() / example.target.norm())
    assert error < 0.35, "no worse than what the solves of data consistency start from"


def test_simulations_are_functions_of_item_and_epoch(heads: Path) -> None:
    data = simulations(heads)
    a, b = data[Draw(4, 1)], simulations(heads)[Draw(4, 1)]
    assert torch.equal(a.y, b.y)
    assert not torch.equal(a.y, data[Draw(4, 2)].y)
    fixed = simulations(heads, resample=False)
    assert torch.equal(fixed[Draw(4, 1)].y, fixed[Draw(4, 2)].y)
    assert not torch.equal(fixed[Draw(4)].truth, fixed[Draw(5)].truth), "variants of a picture differ"  # type: ignore[arg-type]


def test_training_and_validation_share_no_picture(heads: Path) -> None:
    options = DataOptions(
        images=heads, masks=("random1d:2",), group_size=2, val_fraction=0.25, gap=2, matrix=(32, 32), calibration_width=12
    )
    data = make_data(options)
    train: Any = data.train
    used = {path for _, path, _ in train.base.items}
    held: Any = data.val["random1d:2"]
    validated = {path for _, path, _ in held.items}
    assert not used & validated
    assert len(used) + len(validated) == 12 - data.summary["n_left_out"]
    assert {held[Draw(i)].keys[0].file for i in range(len(held))} == {group.name for group, _, _ in held.items}


def test_a_cache_freezes_the_training_examples_on_request_only(heads: Path, tmp_path: Path) -> None:
    options = DataOptions(
        images=heads,
        masks=("random1d:2",),
        matrix=(32, 32),
        calibration_width=12,
        cache=tmp_path,
        group_size=2,
        val_fraction=0.25,
    )
    fresh, frozen = make_data(options), make_data(replace(options, freeze=True))
    assert not torch.equal(fresh.train[Draw(1, 0)].y, fresh.train[Draw(1, 1)].y), "a new example in every epoch"
    assert torch.equal(fresh.train[Draw(1, 1)].y, fresh.train[Draw(1, 1)].y), "of its seed alone"
    assert torch.equal(frozen.train[Draw(1, 0)].y, frozen.train[Draw(1, 1)].y)
    kept: Any = fresh.val["random1d:2"]
    assert torch.equal(kept[Draw(0, 0)].y, kept[Draw(0, 1)].y)
    assert list(kept.folder.rglob("*.safetensors")), "examples to validate with are kept"
    with pytest.raises(InputError, match=r"data\.freeze.*give --data\.cache"):
        replace(options, cache=None, freeze=True)
    with pytest.raises(InputError, match=r"data\.freeze: the samples of a mask do not lie on a Cartesian grid"):
        make_data(replace(options, masks=("radial-nufft:1",), freeze=True))
    off_grid = make_data(replace(options, masks=("random1d:2",), val_masks=("radial-nufft:1",)))
    assert isinstance(off_grid.val["radial-nufft:1"][Draw(0, 0)].op, NonCartesianSense), "not kept, but made"


def test_training_examples_are_of_many_kinds_and_validation_of_images_alone(heads: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.full((40, 40), 5.0 + 2.0j, np.complex64))
    simulation = Realism(
        (24, 40),
        dead_leaves=0.3,
        other=0.3,
        estimated_maps=0.2,
        intensities=0,
        blur=0,
        phase=PhaseOptions(blobs=0, power_law=0, tissue=0),
    )
    data = make_data(
        DataOptions(
            images=heads,
            masks=("random1d:2,centre=8",),
            calibration_width=12,
            simulation=simulation,
            others=tmp_path,
            variants=12,
            group_size=2,
            val_fraction=0.25,
            coils=(3,),
        )
    )
    examples = [data.train[Draw(i, 0)] for i in range(0, len(data.train), 2)]
    for example, shape in zip(examples, data.train.shapes[::2], strict=True):
        assert example.y.shape == shape[:3]
    flat = [e for e in examples if e.truth is not None and float(e.truth.std() / e.truth.mean()) < 0.02]
    assert 0.15 < len(flat) / len(examples) < 0.45, "the share of the other images"
    assert len({e.y.shape for e in examples}) > 2
    true = [float(e.op.maps.abs().square().sum(0).max()) for e in examples]
    assert min(true) > 0.99
    noise = [float((e.y - e.op.forward(e.target)).abs().square().sum() / e.op.mask.expand_as(e.y).sum()) for e in examples]
    assert 0.7 < np.median(noise) < 1.3, "the target is without noise"
    (held,) = data.val.values()
    assert {held[Draw(i)].y.shape for i in range(2)} == {held[Draw(0)].y.shape}, "one matrix for a patient"


def test_plain_pictures_lie_between_0_and_1_and_are_sampled_without_noise(heads: Path) -> None:
    groups = group_files(find_images(heads), heads, 2)
    masks = [MaskSpec.parse("random1d:2"), MaskSpec.parse("random1d:4")]
    data = PlainImages(groups, (40, 40), masks, "batch")
    example = data[Draw(3, 7)]
    assert example.target is not None
    assert float(example.target.real.max()) == pytest.approx(1.0, abs=0.01)
    assert float(example.target.imag.abs().max()) == 0
    torch.testing.assert_close(example.y, fft(example.target)[None] * example.op.mask)
    same_batch, other_batch = data[Draw(5, 7)], [data[Draw(5, place)] for place in range(8, 14)]
    assert torch.equal(same_batch.op.mask, example.op.mask), "one mask for a batch"
    assert any(not torch.equal(x.op.mask, example.op.mask) for x in other_batch)
    run = PlainImages(groups, (40, 40), masks, "run")
    assert torch.equal(run[Draw(0, 0)].op.mask, run[Draw(4, 9)].op.mask)
    by_slice = PlainImages(groups, (40, 40), masks[:1], "slice")
    assert not torch.equal(by_slice[Draw(0, 0)].op.mask, by_slice[Draw(1, 0)].op.mask)


# ------------------------------------------------------------------------------------------------------------------ stream


def test_the_stream_depends_on_how_much_was_used_and_on_nothing_else() -> None:
    shapes = [(1, 8, 8)] * 5 + [(2, 8, 8)] * 4

    def stream(per_epoch: int, used: int) -> list[list[Draw]]:
        return list(Stream(ShapeBatchSampler(shapes, 2, shuffle=True, seed=3), per_epoch, lambda: used))

    whole = stream(20, 0)
    for used in (1, 4, 5, 11):
        assert stream(6, used) == whole[used : used + 6]
    assert Counter(d.item for batch in whole[:5] for d in batch) == Counter(range(9)), "a pass sees everything once"
    assert [d.epoch for d in (batch[0] for batch in whole)] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    numbered = Stream(ShapeBatchSampler(shapes, 2), 7, lambda: 3, by_batch=True)
    assert [{d.epoch for d in batch} for batch in numbered] == [{k} for k in range(3, 10)]


# ------------------------------------------------------------------------------------------------------------------ health


def a_step() -> Step:
    gan = build(small("dagan"))
    y, op, target = scan()
    return gan.step(y, op, target)


def test_the_gradient_of_a_term_is_the_one_known_by_hand() -> None:
    step = a_step()
    step.intermediates["image"].retain_grad()
    only = replace(step, intermediates={"image": step.intermediates["image"]})
    terms = [
        LossTerm("energy", 3.0, lambda s: s.image.abs().square().sum() / 2),
        LossTerm("none", 1.0, lambda s: sum((p.square().sum() for p in s.generator.parameters()), torch.zeros(()))),
        LossTerm("off", 0.0, lambda s: s.image.abs().sum()),
    ]
    found = health.gradient_norms(terms, only)
    assert set(found) == {"energy", "none"}
    torch.testing.assert_close(found["energy"], 3 * torch.linalg.vector_norm(step.image.detach()))
    assert found["none"] == 0
    assert all(p.grad is None for p in step.generator.parameters()), "looking leaves no gradient behind"


def test_the_discriminators_accuracy_is_the_share_of_slices_that_it_ranks_right() -> None:
    class Mean(nn.Module):
        conditional = False

        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, image: torch.Tensor, roi: Any = None) -> torch.Tensor:
            return self.sign * image.abs().mean((-2, -1))[:, None]

    image, target = torch.zeros(4, 5, 5), torch.zeros(4, 5, 5)
    target[:3], image[3] = 2.0, 1.0
    step = replace(a_step(), intermediates={"image": image.to(torch.complex64)}, target=target.to(torch.complex64))
    for sign, share in ((1.0, 0.75), (-1.0, 0.25), (0.0, 0.5)):
        found = health.discriminator_scores(replace(step, discriminators=(Mean(sign),)))  # type: ignore[arg-type]
        assert float(found["discriminator/accuracy"]) == share
        assert float(found["discriminator/real"]) == 1.5 * sign
        assert float(found["discriminator/fake"]) == 0.25 * sign


def test_diversity_is_that_of_the_generator_and_none_without_noise() -> None:
    batch = collate([Scans(1)[Draw(0)]])
    still = batch.op.adjoint(batch.y)

    class Noisy(nn.Module):
        def forward(self, y: torch.Tensor, op: Sense) -> torch.Tensor:
            return op.adjoint(y) * 1.25

    class Still(nn.Module):
        def forward(self, y: torch.Tensor, op: Sense) -> torch.Tensor:
            return op.adjoint(y)

    assert health.diversity(Still(), batch, still) is None
    found = health.diversity(Noisy(), batch, still)
    assert found is not None
    assert float(found) == pytest.approx(0.25, rel=1e-5)


# -------------------------------------------------------------------------------------------------------------- validation


def test_validation_is_by_volume_and_the_gain_is_over_sense() -> None:
    data = Scans(4, (24, 24), 3, noise=0.05)  # square: fastMRI's metrics cut other images
    recorder = Recorder(("a", "b"))
    volumes: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for order in (2, 0, 3, 1):
        batch = collate([data[Draw(order)]])
        assert batch.target is not None
        image = batch.op.adjoint(batch.y) * 0.5 + 0.5 * batch.target
        key = batch.keys[0]
        recorder.add(SliceResult.of(batch, 0, image, key), 0 if key.file == "volume0" else 1)
        sense = classical.make("sense")(batch.y, batch.op)
        arrays = (batch.truth, image.abs(), sense.abs())
        volumes.setdefault(key.file, []).append((key.slice, *(x[0].numpy() for x in arrays)))  # type: ignore[index]
    gains, nmse = {}, {}
    for name, slices in volumes.items():
        truth, ours, theirs = (np.stack(x) for x in list(zip(*sorted(slices, key=lambda s: s[0]), strict=True))[1:])
        gains[name] = metrics.psnr(truth, ours) - metrics.psnr(truth, theirs)
        nmse[name] = metrics.FASTMRI.measure(truth, ours)["nmse"][0]
    found = recorder.finish()
    assert found["gain_db"] == pytest.approx(np.mean(list(gains.values())), abs=1e-3)
    assert found["gain_db/a"] == pytest.approx(gains["volume0"], abs=1e-3)
    assert found["nmse/b"] == pytest.approx(nmse["volume1"], rel=1e-5)
    assert recorder.finish() == {}, "each validation starts anew"


def test_sense_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("recon.train.validation.sense", lambda: lambda y, op: calls.append(1) or op.adjoint(y))
    recorder = Recorder()
    batch = collate([Scans(1)[Draw(0)]])
    for _ in range(3):
        recorder.add(SliceResult.of(batch, 0, batch.op.adjoint(batch.y), batch.keys[0]), 0)
        assert recorder.finish()["gain_db"] == 0.0
    assert len(calls) == 1


@pytest.mark.parametrize(("n", "m"), [(8, 5), (8, 4), (7, 5), (7, 4), (8, 9)])
def test_images_are_cut_about_their_origin(n: int, m: int) -> None:
    """Where boxes are moved to, and exported images are cut: one row off where an even matrix becomes odd, before."""
    x = torch.zeros(1, n, n)
    x[0, n // 2, n // 2] = 1
    cut = validation._cut(x, (m, m))
    assert cut.shape[-2:] == (min(n, m), min(n, m))
    assert cut[0, min(n, m) // 2, min(n, m) // 2] == 1


def test_images_are_cut_to_the_matrix_that_is_delivered() -> None:
    batch = collate([replace(Scans(1, (24, 16))[Draw(0)], recon_shapes=((20, 12),))])
    result = SliceResult.of(batch, 0, batch.target, Key("f", 0, "p", "m"))  # type: ignore[arg-type]
    assert batch.truth is not None
    np.testing.assert_array_equal(result.truth, batch.truth[0, 2:22, 2:14].numpy())


def test_a_papers_own_metrics_stand_beside() -> None:
    recorder = Recorder(convention=metrics.REFINEGAN)
    batch = collate([Scans(1)[Draw(0)]])
    assert batch.target is not None
    assert batch.truth is not None
    recorder.add(SliceResult.of(batch, 0, batch.target + 0.1 * batch.target, batch.keys[0]), 0)
    error = 255 * 0.1 * batch.truth
    expected = 20 * np.log10(255) - 10 * np.log10(float(error.square().mean()))
    found = recorder.finish()
    assert found["refinegan_psnr"] == pytest.approx(expected, abs=1e-3)
    assert found["refinegan_psnr_zero_filled"] < found["refinegan_psnr"]
