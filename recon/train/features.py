"""Training of the small feature network of `models.parts.features`, on images with boxes.

Three tasks at once, one for each kind of thing that a perceptual loss should notice: the class of the tumour (contrast), its
box (where), and by how many quarter turns the image was rotated (anatomy; Gidaris, Singh and Komodakis 2018, arXiv
1803.07728).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from kspace.io.images import read_boxes, read_image
from kspace.simulation.from_images import crop_to_matrix
from models.parts.features import MrFeatures
from recon.datasets.patients import PatientFiles

SIZE = 256
HALF_EPOCHS = 0.7  # share of the training that is done at half the size, at a quarter of the cost


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with what is to be learned of them.

    Attributes
    ----------
    images
        Half precision ``(n 1 y x)``, the brightest point of each 1.
    tumour
        Class ``(n,)``.
    box
        ``(n 4)``: centre x, centre y, width, height as fractions of the image.
    """

    images: Tensor
    tumour: Tensor
    box: Tensor

    def batch(self, which: Tensor, turns: Tensor, halved: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Images rotated by `turns` quarters, classes, and the boxes rotated with them."""
        images = torch.stack([torch.rot90(self.images[i].float(), int(k), (-2, -1)) for i, k in zip(which, turns, strict=True)])
        boxes = torch.stack([rotate_box(self.box[i], int(k)) for i, k in zip(which, turns, strict=True)])
        return F.avg_pool2d(images, 2) if halved else images, self.tumour[which], boxes


def rotate_box(box: Tensor, turns: int) -> Tensor:
    """The box ``(4,)`` (centre x, centre y, width, height) after `turns` quarter turns as ``torch.rot90`` makes them."""
    x, y, w, h = box.unbind()
    for _ in range(turns % 4):
        x, y, w, h = y, 1 - x, h, w
    return torch.stack([x, y, w, h])


def load_images(groups: Sequence[PatientFiles]) -> LabelledImages:
    """All images of `groups` that have a box; of several the first counts.

    Raises
    ------
    InputError
        If none has one.
    """
    from tqdm import tqdm

    images, classes, boxes = [], [], []
    for path in tqdm([path for group in groups for path in group.files], "reading", unit="image", disable=None):
        stored = read_boxes(path)
        if not stored:
            continue
        image = crop_to_matrix(torch.from_numpy(read_image(path)[0]).float(), (SIZE, SIZE), str(path)).abs()
        images.append((image / image.max().clamp(min=1e-12)).half()[None])
        classes.append(stored[0].label)
        boxes.append([stored[0].x, stored[0].y, stored[0].width, stored[0].height])
    if not images:
        raise InputError("there are no images with boxes", groups[0].files[0].parent if groups else None)
    return LabelledImages(torch.stack(images), torch.tensor(classes), torch.tensor(boxes))


def fit(
    network: MrFeatures, train: LabelledImages, val: LabelledImages, epochs: int, batch_size: int, learning_rate: float
) -> dict[str, float]:
    """Train in place; returns the metrics on `val` (`measure`)."""
    from tqdm import trange

    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
    steps = epochs * -(-len(train.images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    network.to(memory_format=torch.channels_last)
    with trange(epochs, desc="training", unit="epoch", disable=None) as progress:
        for epoch in progress:
            network.train()
            for which in torch.randperm(len(train.images)).split(batch_size):
                turns = torch.randint(4, which.shape)
                optimiser.zero_grad()
                value = loss(network, *train.batch(which, turns, epoch < HALF_EPOCHS * epochs), turns)
                value.backward()
                optimiser.step()
                schedule.step()
                progress.set_postfix(loss=f"{float(value.detach()):.3f}")
    return measure(network, val)


def loss(network: MrFeatures, images: Tensor, tumour: Tensor, box: Tensor, turns: Tensor) -> Tensor:
    """Cross entropies of class and rotation, and ten times the L1 error of the box, whose fractions are small numbers.

    `images` ``(n 1 y x)``, `tumour` and `turns` ``(n,)``, `box` ``(n 4)``.
    """
    with torch.autocast("cpu", torch.bfloat16):
        out = network(images)
    return (
        F.cross_entropy(out["tumour"].float(), tumour)
        + F.cross_entropy(out["rotation"].float(), turns)
        + 10 * F.l1_loss(out["box"].float(), box)
    )


@torch.no_grad()
def measure(network: MrFeatures, labelled: LabelledImages) -> dict[str, float]:
    """Shares of right classes and rotations (every image in every rotation), and the mean overlap of the boxes.

    The overlap is intersection over union.
    """
    network.eval()
    right, rotated, overlap, n = 0.0, 0.0, 0.0, 0
    for which in torch.arange(len(labelled.images)).split(32):
        for k in range(4):
            turns = torch.full_like(which, k)
            images, tumour, box = labelled.batch(which, turns, halved=False)
            out = network(images)
            right += float((out["tumour"].argmax(1) == tumour).sum())
            rotated += float((out["rotation"].argmax(1) == k).sum())
            overlap += float(intersection_over_union(out["box"], box).sum())
            n += len(which)
    return {"tumour_accuracy": right / n, "rotation_accuracy": rotated / n, "box_overlap": overlap / n}


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Of boxes ``(n 4)`` (centre x, centre y, width, height)."""
    low = torch.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    both = (high - low).clamp(min=0).prod(1)
    return both / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - both)


def write(path: Path, network: nn.Module, about: Mapping[str, object]) -> None:
    """Write the weights in half precision, atomically, with `about` as JSON metadata."""
    from safetensors.torch import save_file

    state = {name: x.detach().half().contiguous() for name, x in network.state_dict().items()}
    with atomic_write(path, "the weights cannot be written", make_folder=True) as beside:
        save_file(state, beside, metadata={"format": "recon features 1", "about": json.dumps(about)})
