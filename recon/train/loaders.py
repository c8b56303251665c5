"""Examples to batches, for one process or many, in an order that a resumed run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from recon.datasets.example import Example, Shape, collate
from recon.datasets.kspace_dataset import Draw, ShapeBatchSampler
from recon.train.data import DataSets
from recon.train.examples import Examples


class Stream(Sampler[list[Draw]]):
    """Batches without end, pass after pass over the data, each in an order of its own.

    What comes next depends on how many batches were used so far and on nothing else, so a run that is resumed in the middle of
    a pass goes on with the very batch that would have come.

    Parameters
    ----------
    passes
        Makes the batches of one pass.
    per_epoch
        Batches until the iterator ends; the next one goes on where it ended.
    used
        Says how many batches were used so far.
    by_batch
        Draw items with the number of their batch in place of that of the pass.
    """

    def __init__(self, passes: ShapeBatchSampler, per_epoch: int, used: Callable[[], int], by_batch: bool = False) -> None:
        self.passes, self.per_epoch, self.used, self.by_batch = passes, per_epoch, used, by_batch

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        position, current, batches = self.used(), -1, []
        for place in range(position, position + self.per_epoch):
            number, within = divmod(place, len(self.passes))
            if number != current:
                self.passes.set_epoch(number)
                current, batches = number, list(self.passes.__iter__())
            yield [Draw(draw.item, place) for draw in batches[within]] if self.by_batch else batches[within]


class DataModule(pl.LightningDataModule):
    """Loaders for the trainer, each process with its share.

    Parameters
    ----------
    data
        See `make_data`.
    batch_size
        Slices of a batch on each device.
    workers, seed
        See `DataOptions`.
    per_epoch
        Batches of an epoch; None: one pass over the data.
    shuffle
        Whether the order of a pass is random.
    """

    def __init__(
        self,
        data: DataSets,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        per_epoch: int | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.workers, self.seed = data, batch_size, workers, seed
        self.per_epoch, self.shuffle = per_epoch, shuffle

    def passes(self, n_replicas: int = 1, rank: int = 0) -> ShapeBatchSampler:
        """The batches of one pass over the training data.

        The smallest items come in batches of `batch_size`, those that are twice as large or more (complete slices beside
        cropped readouts) in batches of about as many points: a step costs the same, and memory is bounded.
        """
        shapes = self.data.train.shapes
        smallest = min((shape[1] * shape[2] for shape in shapes), default=1)

        def size(shape: Shape) -> int:
            return max(1, self.batch_size // round(shape[1] * shape[2] / smallest)) if shape else self.batch_size

        return ShapeBatchSampler(shapes, size, shuffle=self.shuffle, seed=self.seed, n_replicas=n_replicas, rank=rank)

    def n_batches(self, n_replicas: int = 1) -> int:
        """Batches of an epoch on each of `n_replicas` processes."""
        return self.per_epoch or len(self.passes(n_replicas))

    def train_dataloader(self) -> DataLoader[Example]:
        assert self.trainer is not None
        passes = self.passes(self.trainer.world_size, self.trainer.global_rank)
        module: Any = self.trainer.lightning_module
        if n := self._n_overfit():
            return self._loader(self.data.train, Stream(passes, n, lambda: 0))
        stream = Stream(passes, self.n_batches(self.trainer.world_size), lambda: module.batch_count, self.data.by_batch)
        return self._loader(self.data.train, stream)

    def val_dataloader(self) -> list[DataLoader[Example]]:
        assert self.trainer is not None
        if self._n_overfit():  # then the question is whether the very batches that are trained on are learned
            return [self.train_dataloader()]
        n, rank = self.trainer.world_size, self.trainer.global_rank
        samplers = [ShapeBatchSampler(part.shapes, 1, n_replicas=n, rank=rank) for part in self.data.val.values()]
        return [self._loader(part, s) for part, s in zip(self.data.val.values(), samplers, strict=True)]

    def _n_overfit(self) -> int:
        """The same few batches over and over, if the trainer's ``overfit_batches`` asks for them."""
        assert self.trainer is not None
        asked: float = getattr(self.trainer, "overfit_batches", 0)
        return int(asked if isinstance(asked, int) else asked * self.n_batches(self.trainer.world_size))

    def _loader(self, examples: Examples, sampler: Sampler[list[Draw]]) -> DataLoader[Example]:
        return DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=_collate,
            num_workers=self.workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
            # Each iterator draws a seed for its workers: not from the generator that the training draws from, since a resumed
            # run makes another number of iterators. Items depend on neither.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _collate(examples: Sequence[Example]) -> Example:
    return collate(examples)
