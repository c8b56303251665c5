"""`recon train-features`: training of the small feature network of `models.features`."""

from __future__ import annotations

from pathlib import Path

import torch

from kspace.errors import InputError
from kspace.io.images import find_images
from models.features import MrFeatures
from recon.datasets.patients import group_files, split_groups
from recon.train import features
from recon.versions import versions


def train_features(
    images: Path,
    output: Path,
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
    """Train the feature network that perceptual losses and distances use, on images with boxes.

    Parameters
    ----------
    images
        Folder of images with boxes in YOLO text files beside them; each folder in it is a class.
    output
        The weights, a .safetensors file.
    group_size
        LabelledImages of a folder whose numbers lie within this many consecutive ones are one patient.
    val_fraction
        Share of each folder's images to validate with.
    gap
        LabelledImages before those of validation that are left out of everything.
    epochs
        Passes over the images; the first 70 % at half the size.
    batch_size
        LabelledImages of a step.
    learning_rate
        Highest rate of Adam; it rises, then falls along a cosine.
    licence
        Of the images, for the file's own record.
    attribution
        Whom the licence wants named.
    seed
        Of everything that is drawn.
    force
        Overwrite an existing file.

    Raises
    ------
    InputError
        If there are no images with boxes, or the file exists or cannot be written.
    """
    if output.suffix != ".safetensors":
        raise InputError("weights are files that end in .safetensors", output)
    if output.exists() and not force:
        raise InputError("the file exists", output, "choose another name, or give --force")
    torch.manual_seed(seed)
    train_groups, val_groups, _ = split_groups(group_files(find_images(images), images, group_size), val_fraction, gap, True)
    train, val = features.load_images(train_groups), features.load_images(val_groups)
    n_classes = 1 + int(max(train.tumour.max(), val.tumour.max()))
    network = MrFeatures(n_classes=n_classes)
    found = features.fit(network, train, val, epochs, batch_size, learning_rate)
    about = {
        "tasks": ["tumour class", "tumour box", "rotation by quarter turns"],
        "data": {"source": images.name, "n_train": len(train.images), "n_val": len(val.images), "licence": licence,
                 "attribution": attribution},
        "training": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed},
        "metrics": found,
        "versions": versions(),
    }  # fmt: skip
    features.write(output, network, about)
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()) + f" on {len(val.images)} images\n{output}")
