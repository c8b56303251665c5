"""`recon train-features`: training of the networks of `models.parts.features` and `models.parts.segmentation`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from kspace.errors import InputError
from kspace.io.images import find_images
from models.parts.features import MrFeatures
from models.parts.segmentation import TissueNet
from recon.datasets.patients import group_files, split_groups
from recon.train import features, segmentation
from recon.versions import versions


def train_features(
    images: Path,
    output: Path,
    network: Literal["features", "segmentation"] = "features",
    group_size: int = 12,
    val_fraction: float = 0.1,
    gap: int = 20,
    epochs: int = 12,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    licence: str = "",
    attribution: str = "",
    seed: int = 0,
    force: bool = False,
) -> None:
    """Train the feature network of perceptual losses and metrics, or the segmentation network of the semantic score.

    Parameters
    ----------
    images
        Folder of images; for features with bounding boxes in YOLO text files; each subfolder is a class.
    output
        Output weights, a .safetensors file.
    network
        features; or segmentation: tissue classes by intensity, which needs no boxes.
    group_size
        Number of consecutive images of a folder that are treated as one patient.
    val_fraction
        Fraction of each folder's images used for validation.
    gap
        Number of images before the validation images that are left out of both sets.
    epochs
        Number of epochs; of features the first 70 % at half the image size.
    batch_size
        Images per step.
    learning_rate
        Peak learning rate of Adam, with warm-up and cosine decay.
    licence
        Licence of the images, stored in the file.
    attribution
        Attribution that the licence requires.
    seed
        Seed of all random generators.
    force
        Overwrite an existing file.

    Raises
    ------
    InputError
        If there are no images with boxes, or the output exists or cannot be written.
    """
    if output.suffix != ".safetensors":
        raise InputError("the output must end in .safetensors", output)
    if output.exists() and not force:
        raise InputError("the file exists", output, "choose another name, or give --force")
    torch.manual_seed(seed)
    train_groups, val_groups, _ = split_groups(group_files(find_images(images), images, group_size), val_fraction, gap, True)
    data: dict[str, object] = {"source": images.name, "licence": licence, "attribution": attribution}
    training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    if network == "segmentation":
        tissue = TissueNet()
        few, others = segmentation.load_segmented(train_groups), segmentation.load_segmented(val_groups)
        found = segmentation.fit(tissue, few, others, epochs * -(-len(few.images) // batch_size), batch_size, learning_rate)
        data |= {"n_train": len(few.images), "n_val": len(others.images)}
        about = {"tasks": ["tissue class by intensity"], "data": data, "training": training, "metrics": found}
        features.write(output, tissue, {**about, "versions": versions()})
        print(f"Dice {found['dice']:.3f} on {len(others.images)} images\n{output}")
        return
    train, val = features.load_images(train_groups), features.load_images(val_groups)
    n_classes = 1 + int(max(train.tumour.max(), val.tumour.max()))
    mr = MrFeatures(n_classes=n_classes)
    found = features.fit(mr, train, val, epochs, batch_size, learning_rate)
    about = {
        "tasks": ["tumour class", "tumour box", "rotation by quarter turns"],
        "data": {**data, "n_train": len(train.images), "n_val": len(val.images)},
        "training": training,
        "metrics": found,
        "versions": versions(),
    }  # fmt: skip
    features.write(output, mr, about)
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()) + f" on {len(val.images)} images\n{output}")
