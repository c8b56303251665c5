"""The feature network's training: boxes rotate with images, and a small set is learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from kspace.errors import InputError
from kspace.io.images import find_images
from models.parts.features import load_mr_features
from recon.commands.train_features import train_features
from recon.datasets.patients import group_files, split_groups
from recon.train import features


@pytest.mark.parametrize("turns", range(4))
def test_boxes_rotate_as_images_do(turns: int) -> None:
    image = torch.zeros(64, 64)
    image[8:16, 40:60] = 1  # y0 y1, x0 x1
    box = torch.tensor([50 / 64, 12 / 64, 20 / 64, 8 / 64])
    x, y, w, h = (64 * features.rotate_box(box, turns)).tolist()
    inside = torch.rot90(image, turns, (-2, -1)).nonzero()
    assert inside.min(0).values.tolist() == pytest.approx([y - h / 2, x - w / 2])
    assert (inside.max(0).values + 1).tolist() == pytest.approx([y + h / 2, x + w / 2])


def test_overlap_of_boxes_by_hand() -> None:
    a = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    b = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    torch.testing.assert_close(features.intersection_over_union(a, b), torch.tensor([1.0, 1 / 3, 0.0]))


def labelled_images(folder: Path, n: int, labelled: bool = True) -> Path:
    rng = np.random.default_rng(0)
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
        for i in range(n):
            image = rng.integers(0, 30, (256, 256)).astype(np.uint8)
            y, x = rng.integers(40, 150, 2)
            image[y : y + 60, x : x + 60] = 120 + 120 * label
            image[:20] = 255  # the side that is up
            Image.fromarray(image).save(folder / str(label) / f"{i}.png")
            if labelled:
                place = f"{(x + 30) / 256} {(y + 30) / 256} {60 / 256} {60 / 256}"
                (folder / str(label) / f"{i}.txt").write_text(f"{label} {place}\n")
    return folder


def test_weights_are_trained_written_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SIZE", 64)
    out = tmp_path / "f.safetensors"
    options = {"group_size": 2, "val_fraction": 0.25, "gap": 0, "epochs": 30, "batch_size": 6}
    # Class numbers of two: the network of three classes is what `load_mr_features` knows.
    folder = labelled_images(tmp_path / "in", 12)
    label = folder / "1" / "0.txt"
    label.write_text("2" + label.read_text()[1:])
    torch.manual_seed(0)
    train_features(folder, out, **options, licence="CC0", attribution="nobody")  # type: ignore[arg-type]
    with safe_open(out, "pt") as file:
        about = file.metadata()["about"]
    assert '"licence": "CC0"' in about
    network = load_mr_features(out)
    groups = group_files(find_images(folder), folder, 2)
    val = features.load_images(split_groups(groups, 0.25, 0, True)[1])
    found = features.measure(network, val)
    assert found["rotation_accuracy"] > 0.6  # a quarter is chance
    with pytest.raises(InputError, match="the file exists"):
        train_features(folder, out)


def test_images_without_boxes_are_refused(tmp_path: Path) -> None:
    folder = labelled_images(tmp_path / "in", 6, labelled=False)
    with pytest.raises(InputError, match="no images with boxes"):
        train_features(folder, tmp_path / "f.safetensors", group_size=2, val_fraction=0.25, gap=0)
