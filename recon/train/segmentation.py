"""Training of the segmentation network of `models.parts.segmentation` on images, with classes made from their intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kspace.io.images import read_image
from kspace.simulation.from_images import crop_to_matrix
from models.parts.segmentation import TissueNet
from recon.datasets.patients import PatientFiles
from recon.metrics.segmentation import dice, segment, tissue_labels

SIZE = 160
EVERY = 3  # neighbouring slices are alike


@dataclass(frozen=True, eq=False)
class SegmentedImages:
    """Magnitudes ``(n 1 y x)`` with maximum 1, and their classes ``(n y x)``."""

    images: Tensor
    labels: Tensor


def load_segmented(groups: Sequence[PatientFiles]) -> SegmentedImages:
    """Every third image of `groups`, cut to `SIZE` pixels in k-space, with its classes (`tissue_labels`)."""
    images, labels = [], []
    paths: list[Path] = [path for group in groups for path in group.files]
    for path in paths[::EVERY]:
        image = crop_to_matrix(torch.from_numpy(read_image(path)[0]).float(), (SIZE, SIZE), str(path)).abs()
        image = image / image.max().clamp(min=1e-12)
        found = tissue_labels(image.numpy())
        if found is not None:
            images.append(image[None])
            labels.append(torch.from_numpy(found))
    return SegmentedImages(torch.stack(images), torch.stack(labels))


def fit(
    network: TissueNet, train: SegmentedImages, val: SegmentedImages, steps: int, batch_size: int, rate: float
) -> dict[str, float]:
    """Train in place on images of varied contrast and little noise; returns ``dice``, the mean on `val`."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    network.train().to(memory_format=torch.channels_last)
    for _ in range(steps):
        which = torch.randint(len(train.images), (batch_size,))
        x = train.images[which] + 0.02 * torch.rand(batch_size, 1, 1, 1) * torch.randn(batch_size, 1, SIZE, SIZE)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x.abs() * (0.7 + 0.3 * torch.rand(batch_size, 1, 1, 1)))
        F.cross_entropy(logits.float(), train.labels[which]).backward()
        optimiser.step()
        schedule.step()
    network.eval()
    found = [dice(segment(network, x[0].numpy()), np.asarray(labels)) for x, labels in zip(val.images, val.labels, strict=True)]
    return {"dice": float(np.mean(found))}
