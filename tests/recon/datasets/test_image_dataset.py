"""Examples that are simulated when they are asked for are like those from files, and the same in every worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kspace.errors import InputError
from kspace.io.images import find_images
from kspace.simulation.from_images import SynthesisOptions
from recon.datasets.augment import Augment
from recon.datasets.example import collate
from recon.datasets.image_dataset import SimulatedDataset
from recon.datasets.kspace_dataset import ShapeBatchSampler
from recon.datasets.patients import group_files

OPTIONS = SynthesisOptions(matrix=(32, 24), coils=3, snr=(10.0, 10.0))


class _Lines:
    """Every second line and the centre, shifted by the key."""

    def draw(self, shape: tuple[int, int], key: str) -> torch.Tensor:
        mask = torch.zeros(shape[0], 1, dtype=torch.bool)
        mask[len(key) % 2 :: 2] = True
        mask[8:24] = True
        return mask


def _dataset(folder: Path, **options: object) -> SimulatedDataset:
    if not folder.exists():
        folder.mkdir()
        y, x = np.mgrid[:64, :48]
        for number in range(1, 5):
            picture = 80.0 * ((y - 32) ** 2 / 28**2 + (x - 24) ** 2 / 20**2 < 1) + 20 * number * (y > 40)
            Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
        (folder / "2.txt").write_text("1 0.5 0.5 0.25 0.25")
        np.save(folder / "stack.npy", np.stack([picture, picture + 5]))
    values: dict[str, object] = {"masks": [_Lines()], "calibration_width": 16} | options
    return SimulatedDataset(group_files(find_images(folder), folder), OPTIONS, **values)  # type: ignore[arg-type]


def test_an_example_is_a_measurement_with_unit_noise(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "images")
    assert len(dataset) == 6
    assert dataset.shapes == [(3, 32, 24)] * 6
    example = dataset[1]
    assert example.target is not None
    assert example.y.shape == (3, 32, 24)
    residual = (example.y - example.op.forward(example.target))[example.op.mask.expand(3, 32, 24)]
    assert float(residual.abs().square().mean()) == pytest.approx(1, rel=0.2), "the noise, all of it"
    assert not example.y[~example.op.mask.expand(3, 32, 24)].any()
    assert example.truth is not None
    quiet = SimulatedDataset(
        group_files(find_images(tmp_path / "images"), tmp_path / "images"), replace(OPTIONS, snr=(1e6, 1e6)), [_Lines()]
    )[1]
    assert quiet.truth is not None
    scale = float(example.truth.max() / quiet.truth.max())
    assert torch.allclose(example.truth, scale * quiet.truth, rtol=1e-3), "no noise in what is to be learned"
    assert example.boxes[0].shape == (1, 5)
    assert example.keys[0].patient == dataset[0].keys[0].patient
    assert dataset[4].keys[0].patient != example.keys[0].patient  # a stack is a patient of its own


def test_epochs_differ_in_training_and_not_in_validation(tmp_path: Path) -> None:
    training, validation = _dataset(tmp_path / "images", augment=Augment()), _dataset(tmp_path / "images", resample=False)
    assert torch.equal(training[2, 3].y, training[2, 3].y)
    assert not torch.equal(training[2, 3].y, training[2, 4].y)
    assert torch.equal(validation[2, 3].y, validation[2, 4].y)
    assert validation[0].keys[0].mask == validation[1].keys[0].mask


def test_workers_deliver_the_same(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "images")
    sampler = ShapeBatchSampler(dataset.shapes, batch_size=3, shuffle=True)
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=1)
    batches = list(loader)
    assert [len(batch.keys) for batch in batches] == [3, 3]
    for batch, draws in zip(batches, ShapeBatchSampler(dataset.shapes, batch_size=3, shuffle=True), strict=True):
        torch.testing.assert_close(batch.y, torch.stack([dataset[draw].y for draw in draws]))


def test_a_missing_mask_or_picture_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no masks"):
        _dataset(tmp_path / "images", masks=[])
    with pytest.raises(InputError, match="no images"):
        SimulatedDataset([], OPTIONS, [_Lines()])
    dataset = _dataset(tmp_path / "images")
    (tmp_path / "images" / "1.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"cannot read the image.*1\.png"):
        dataset[0]
