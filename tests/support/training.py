"""Small data and systems for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from kspace.operators import Sense
from models.parts.interface import Gan
from models.systems import build, find_systems
from recon.commands.train import make_trainer, planned_steps
from recon.datasets.example import Example, Key, Shape
from recon.datasets.kspace_dataset import Draw
from recon.methods.weights import Card
from recon.train.data import DataSets
from recon.train.loaders import DataModule
from recon.train.module import GanModule, UpdateOptions
from recon.train.validation import Recorder
from tests.support.scans import coil_maps, ellipses, mask_of


class Scans(torch.utils.data.Dataset[Example]):
    """Line-sampled scans of ellipses; with `noise`, other noise in every epoch. Two slices are one volume."""

    def __init__(self, n: int, shape: tuple[int, int] = (24, 16), n_coils: int = 2, noise: float = 0.02) -> None:
        self.n, self.shape, self.n_coils, self.noise = n, shape, n_coils, noise
        self.lines = [True] * n
        self.drawn: list[Draw] = []

    def __len__(self) -> int:
        return self.n

    @property
    def shapes(self) -> list[Shape]:
        return [(self.n_coils, *self.shape)] * self.n

    def __getitem__(self, item: Draw) -> Example:
        self.drawn.append(Draw(*item))
        index, epoch = item
        target, maps = ellipses(self.shape, index), coil_maps(self.n_coils, self.shape)
        op = Sense(maps, mask_of(self.shape, lines=True, seed=index)[None])
        g = torch.Generator().manual_seed(1000 * index + epoch)
        noise = self.noise * torch.randn(maps.shape, generator=g, dtype=torch.complex64)
        return Example(
            y=op.forward(target) + noise * op.mask,
            op=op,
            target=target,
            truth=(maps * target).abs().square().sum(-3).sqrt(),
            keys=(Key(f"volume{index // 2}", index % 2, f"p{index // 2}", f"m{index}"),),
            boxes=(torch.zeros(0, 5),),
            recon_shapes=(self.shape,),
            attributes=({},),
        )


def small(system: str = "dagan", **sections: Any) -> dict[str, Any]:
    """A configuration that trains in milliseconds."""
    preset = find_systems()[system]["raw"]
    if preset.generator.fitted:
        return {"system": system, **preset.narrow, **sections}
    generator = {"width": 4, **({"depth": 2} if system in ("dagan", "refinegan", "reconglgan") else {})}
    discriminator: dict[str, Any] = {"discriminator": {"width": 4, "depth": 2}} if system in ("dagan", "refinegan") else {}
    return {"system": system, "generator": generator, **discriminator, **sections}


def setup(
    folder: Path,
    gan: Gan | dict[str, Any] | None = None,
    *,
    n: int = 4,
    batch_size: int = 2,
    shuffle: bool = True,
    update: UpdateOptions = UpdateOptions(),  # noqa: B008 - frozen
    callbacks: list[pl.Callback] | None = None,
    validate: bool = False,
    **trainer: Any,
) -> tuple[pl.Trainer, GanModule, DataModule]:
    """Trainer, module and loaders of a small run; ``trainer.fit(module, loaders)`` runs it."""
    torch.manual_seed(1)
    gan = build(gan or small()) if not isinstance(gan, Gan) else gan
    loaders = DataModule(DataSets(Scans(n), {"lines": Scans(2)}, {}), batch_size, shuffle=shuffle)
    module = GanModule(gan, update, Recorder(("lines",)))
    options = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu",
               "max_steps": 4, "log_every_n_steps": 1, "limit_val_batches": 1.0 if validate else 0, **trainer}  # fmt: skip
    made = make_trainer(folder, gan, {**options, "callbacks": callbacks}, Card("", dict(gan.config)), validate)
    module.n_steps = planned_steps(made, loaders, gan)
    return made, module, loaders


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def pictures(folder: Path, n: int = 8, size: int = 40) -> Path:
    """Grey pictures 1.png, 2.png, ... of ellipses."""
    folder.mkdir(parents=True)
    for i in range(n):
        values = (255 * ellipses((size, size), i).abs().clamp(0, 1)).byte().numpy()
        Image.fromarray(np.asarray(values)).save(folder / f"{i + 1}.png")
    return folder
