"""What is trained on and what it is validated with, from options to batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

import recon
from kspace.augment import Augment
from kspace.dataset import Draw, KSpaceDataset, ShapeBatchSampler, find_volumes, split_by_patient
from kspace.errors import InputError
from kspace.example import Example, collate
from kspace.groups import group_files, split_groups
from kspace.image_dataset import SimulatedDataset
from kspace.images import find_images
from kspace.masks import MaskSpec
from kspace.synthesis import SynthesisOptions
from recon.training.examples import Examples, Kept, Simulations, Strips

T = TypeVar("T")


@dataclass(frozen=True)
class DataOptions:
    """What to train on, and how it is undersampled.

    Parameters
    ----------
    path
        fastMRI-style volumes: a folder with train/ and val/, or a folder or file that is divided by patient.
    val_path
        Volumes to validate with, in place of a part of `path`.
    images
        Folder of pictures that multi-coil scans are simulated from, in place of `path`.
    group_size
        Pictures of a folder whose numbers lie within this many consecutive ones are one patient.
    val_fraction
        Share of the patients (with `group_size`, of each folder's pictures) to validate with.
    gap
        Pictures before those of validation that are left out of everything; goes with `group_size`.
    masks
        One of these is drawn for each slice, e.g. random1d:4, poisson2d:8 (`recon mask` shows them).
    val_masks
        Validate with each of these in turn; default: `masks`.
    val_volumes
        At most so many volumes, spread over all, to validate with.
    matrix
        Points (ky, kx) of simulated k-space.
    coils
        Simulated numbers of coils to choose from.
    val_coils
        Simulated number of coils in validation.
    snr
        Smallest and largest simulated signal-to-noise ratio.
    phase_std
        Standard deviation of the simulated phase, in radians.
    variants
        Scans simulated of each picture in each epoch.
    maps
        How coil maps are made from the undersampled centre: espirit or jsense.
    calibration_width
        At most this many central lines and points are used for the maps.
    strip
        Train on strips of so many points along x where whole lines are sampled; 0 for whole slices.
    augment
        Flip, turn, shrink and add phase at random; not together with `cache`.
    cache
        Folder in which examples are kept once made, so that they are the same in every epoch and cost little. Without it maps
        are made anew each time.
    batch_size
        Slices of a batch on each device; default: the system's.
    workers
        Processes that make examples; 0 for none but the main one.
    seed
        Seed of everything that is drawn.
    """

    path: Path | None = None
    val_path: Path | None = None
    images: Path | None = None
    group_size: int | None = None
    val_fraction: float = 0.1
    gap: int = 0
    masks: tuple[str, ...] = ("random1d:4",)
    val_masks: tuple[str, ...] = ()
    val_volumes: int | None = None
    matrix: tuple[int, int] = (256, 256)
    coils: tuple[int, ...] = (8,)
    val_coils: int = 8
    snr: tuple[float, float] = (10.0, 50.0)
    phase_std: float = 1.0
    variants: int = 1
    maps: str = "espirit"
    calibration_width: int = 24
    strip: int = 0
    augment: bool = False
    cache: Path | None = None
    batch_size: int | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.path is None) == (self.images is None):
            raise InputError("nothing to train on" if self.path is None else "volumes and pictures at once", "--data",
                             "give --data.path (fastMRI-style volumes) or --data.images (a folder of pictures)")  # fmt: skip
        if not self.masks:
            raise InputError("no masks", "--data.masks", "give at least one")
        if self.augment and self.cache is not None:
            raise InputError("augmentation makes every example new, a cache keeps them", "--data", "choose one")
        for name in ("val_coils", "variants", "calibration_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1", f"--data.{name}")
        if not self.coils or min(self.coils) < 1:
            raise InputError(f"the numbers of coils are {list(self.coils)}", "--data.coils", "give positive numbers")


@dataclass(frozen=True, eq=False)
class DataSets:
    """What the options stand for.

    Attributes
    ----------
    train
        Examples to learn from.
    val
        Name of each mask, and examples to validate with.
    summary
        What was used, in words, for the card of the weights.
    """

    train: Examples
    val: dict[str, Examples]
    summary: dict[str, Any]


def make_data(options: DataOptions, mask_per: str = "slice") -> DataSets:
    """Find the files, divide them, and say how examples are made of them.

    Raises
    ------
    InputError
        If there is nothing to train on or to validate with, or options contradict each other.
    """
    masks = [MaskSpec.parse(text) for text in options.masks]
    val_masks = [MaskSpec.parse(text) for text in options.val_masks or options.masks]
    if mask_per == "batch":
        raise InputError("one mask per batch is not available", "schedule.mask_per", "choose slice or run")
    sources: list[Any] = [OneMask(mask) for mask in masks] if mask_per == "run" else list(masks)
    make = _from_images if options.images is not None else _from_volumes
    train, val, summary = make(options, sources, val_masks)
    if options.strip:
        train = Strips(train, options.strip, options.seed)
        if not any(train.lines):
            raise InputError(
                "strips need masks of whole lines", "--data.strip", "leave it out, or choose masks such as random1d:4"
            )
    summary |= {"n_train": len(train), "n_val": {name: len(part) for name, part in val.items()}, "masks": list(options.masks)}
    return DataSets(train, val, summary)


@dataclass(frozen=True)
class OneMask:
    """Always the same mask, whatever the slice."""

    spec: MaskSpec

    def draw(self, shape: tuple[int, int], key: str = "") -> torch.Tensor:
        """The mask of `spec` for `shape`; `key` does not matter."""
        return self.spec.draw(shape, "")


def _from_volumes(
    options: DataOptions, masks: list[Any], val_masks: list[MaskSpec]
) -> tuple[Examples, dict[str, Examples], dict]:
    assert options.path is not None
    inside = options.path / "train", options.path / "val"
    if options.val_path is not None:
        train_files, val_files = find_volumes(options.path), find_volumes(options.val_path)
    elif inside[0].is_dir() and inside[1].is_dir():
        train_files, val_files = (find_volumes(folder) for folder in inside)
    else:
        files = find_volumes(options.path)
        train_files, val_files = split_by_patient(files, (1 - options.val_fraction, options.val_fraction), options.seed)
    val_files = _spread(val_files, options.val_volumes)
    maps: dict[str, Any] = {"maps": options.maps, "calibration_width": options.calibration_width, "seed": options.seed}
    train: Any = KSpaceDataset(
        train_files, masks, resample=options.cache is None, augment=Augment() if options.augment else None, **maps
    )
    val: dict[str, Any] = {str(mask): KSpaceDataset(val_files, [mask], **maps) for mask in val_masks}
    summary = {"source": str(options.path), "simulated": all(v.attributes.get("simulated") for v in train.volumes)}
    if options.cache is None:
        return train, val, summary
    about = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in (*train_files, *val_files)]
    keep = partial(_kept, options, about)
    return keep("train", train), {name: keep(f"val {name}", part) for name, part in val.items()}, summary


def _from_images(
    options: DataOptions, masks: list[Any], val_masks: list[MaskSpec]
) -> tuple[Examples, dict[str, Examples], dict]:
    assert options.images is not None
    groups = group_files(find_images(options.images), options.images, options.group_size)
    by_number = options.group_size is not None
    train_groups, val_groups, left_out = split_groups(groups, options.val_fraction, options.gap, by_number)
    val_groups = _spread(val_groups, options.val_volumes)
    scans = SynthesisOptions(options.matrix, options.val_coils, options.snr, options.phase_std)
    maps: dict[str, Any] = {"maps": options.maps, "calibration_width": options.calibration_width, "seed": options.seed}
    train: Any = Simulations(
        train_groups, scans, options.coils, masks, variants=options.variants, resample=options.cache is None,
        augment=Augment() if options.augment else None, **maps,
    )  # fmt: skip
    val: dict[str, Any] = {str(mask): _Volumes(val_groups, scans, [mask], resample=False, **maps) for mask in val_masks}
    summary = {
        "source": str(options.images), "simulated": True, "coils": list(options.coils), "snr": list(options.snr),
        "matrix": list(options.matrix), "n_left_out": len(left_out),
    }  # fmt: skip
    if options.cache is None:
        return train, val, summary
    about = [[g.name, [f.name for f in g.files]] for g in (*train_groups, *val_groups)]
    keep = partial(_kept, options, about)
    return keep("train", train), {name: keep(f"val {name}", part) for name, part in val.items()}, summary


class _Volumes(SimulatedDataset):
    """Pictures of one patient as slices of one volume, for metrics by volume."""

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        example = super().__getitem__(item)
        index = item[0] if isinstance(item, tuple) else item
        group, _, _ = self.items[index]
        return replace(example, keys=(example.keys[0]._replace(file=group.name, slice=index),))


def _kept(options: DataOptions, files: Sequence[Any], role: str, source: Examples) -> Kept:
    unimportant = ("path", "val_path", "images", "strip", "cache", "batch_size", "workers", "val_masks", "augment")
    about = {k: v for k, v in asdict(options).items() if k not in unimportant}
    if role != "train":
        about = {k: v for k, v in about.items() if k not in ("masks", "coils", "variants")}
    text = json.dumps([role, about, files, recon.__version__], default=str)
    assert options.cache is not None
    return Kept(source, options.cache, text)


def _spread(items: Sequence[T], n: int | None) -> list[T]:
    """At most `n` of them, evenly spread."""
    if n is None or n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


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
    """

    def __init__(self, passes: ShapeBatchSampler, per_epoch: int, used: Callable[[], int]) -> None:
        self.passes, self.per_epoch, self.used = passes, per_epoch, used

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[Draw]]:
        position, current, batches = self.used(), -1, []
        for place in range(position, position + self.per_epoch):
            number, within = divmod(place, len(self.passes))
            if number != current:
                self.passes.set_epoch(number)
                current, batches = number, list(self.passes.__iter__())
            yield batches[within]


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
        """The batches of one pass over the training data."""
        return ShapeBatchSampler(
            self.data.train.shapes, self.batch_size, shuffle=self.shuffle, seed=self.seed, n_replicas=n_replicas, rank=rank
        )

    def n_batches(self, n_replicas: int = 1) -> int:
        """Batches of an epoch on each of `n_replicas` processes."""
        return self.per_epoch or len(self.passes(n_replicas))

    def train_dataloader(self) -> DataLoader[Example]:
        assert self.trainer is not None
        passes = self.passes(self.trainer.world_size, self.trainer.global_rank)
        module: Any = self.trainer.lightning_module
        if n := self._n_overfit():
            return self._loader(self.data.train, Stream(passes, n, lambda: 0))
        stream = Stream(passes, self.n_batches(self.trainer.world_size), lambda: module.batch_count)
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
