"""Training and comparison examples from fastMRI files, by retrospective undersampling of fully sampled k-space.

One slice becomes one `Example`: the undersampled samples `y`, the operator with coil maps estimated from them, and the ground
truth. All other samples affect the ground truth only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.utils.data
from torch import Tensor

from kspace import preprocess
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import central, fft, ifft
from kspace.io.fastmri import FastmriVolume
from kspace.masks.acquisition import MaskSource, acquire, digest_of, forward_model
from kspace.noncartesian.gridding import calibration_of
from kspace.seeds import seed_of
from recon.datasets.example import Example, Key, Shape, collate, combine
from recon.datasets.maps_cache import Entry, cached_maps, cached_references, prepare_folder
from recon.datasets.transfer import reduce_example
from recon.datasets.volumes import find_volumes, open_volumes, split_by_patient

__all__ = [
    "Draw",
    "KSpaceDataset",
    "ShapeBatchSampler",
    "collate",
    "find_volumes",
    "open_volumes",
    "reduce_example",  # imported so that examples travel by it
    "split_by_patient",
]

Augmentation = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""``(coil images (coil y x), boxes (n 5), seed) -> (coil images, boxes)``: a pure function of its arguments."""


class Draw(NamedTuple):
    """An index into a data set, and the epoch that random masks and augmentation depend on."""

    item: int
    epoch: int = 0


class KSpaceDataset(torch.utils.data.Dataset[Example]):
    """`Example`s from the slices of fastMRI files.

    Each item is a pure function of its file, its index, the epoch and the options: independent of global random
    generators and the number of workers. No file stays open. With `ShapeBatchSampler` and `collate`::

        sampler = ShapeBatchSampler(dataset.shapes, batch_size=4, shuffle=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=2)

    Parameters
    ----------
    files
        Volumes; see `find_volumes` and `split_by_patient`. All are opened at once here, and all bad ones are named.
    masks
        One of these draws the mask of an example. Empty: the masks of the files themselves count (prospectively undersampled
        scans); examples of undersampled files have no truth then.
    resample
        True for training: another mask for each slice in each epoch. False: one mask for each volume, always the same one.
    cache
        Folder for coil maps (`recon.datasets.maps_cache`); None makes them anew each time. Not used with `augment`, whose
        every example has maps of its own.
    maps, calibration_width
        Method and number of central samples, as for `kspace.coils.estimate_maps`.
    augment
        Applied to the fully sampled coil images, before undersampling.
    seed
        Seed of the choice among `masks`, of resampled masks and of the augmentation.

    Raises
    ------
    InputError
        If there are no files, some cannot be used, or undersampled ones are to be undersampled.
    """

    def __init__(
        self,
        files: Sequence[Path],
        masks: Sequence[MaskSource] = (),
        *,
        resample: bool = False,
        cache: Path | None = None,
        maps: str = "espirit",
        calibration_width: int = 24,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.volumes = open_volumes(files)
        undersampled = [volume.path for volume in self.volumes if volume.has_mask]
        if masks and undersampled:
            raise InputError(
                f"{len(undersampled)} of {len(self.volumes)} files are undersampled already", undersampled[0], "leave them out"
            )
        if cache is not None:
            prepare_folder(cache)
        self.masks, self.resample, self.seed = tuple(masks), resample, seed
        self.cache = cache if augment is None else None
        self.maps, self.calibration_width, self.augment = maps, calibration_width, augment
        self.items = [(v, i) for v, volume in enumerate(self.volumes) for i in range(volume.n_slices)]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shapes(self) -> list[Shape]:
        """Shape of each item, equal within a batch."""
        shapes = [(v.n_coils - _n_dead(v), *v.matrix, *v.recon_shape, int(v.noise is not None)) for v in self.volumes]
        return [shapes[v] for v, _ in self.items]

    def __getitem__(self, item: int | Draw | tuple[int, int]) -> Example:
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        v, slice_index = self.items[index]
        volume = self.volumes[v]
        k = self._fully_sampled(volume, slice_index)
        boxes = _on_grid(volume.boxes_of(slice_index), volume.recon_shape, k)
        name = f"{volume.path.name}/{slice_index}/{epoch}" if self.resample else volume.path.name
        if self.augment is not None:
            images, boxes = self.augment(ifft(k.data), boxes, seed_of(f"{self.seed}/{volume.path.name}/{slice_index}/{epoch}"))
            k = k.after("augment", data=fft(images))
        full = k.data
        if self.masks:
            k = self._acquired(k, name)
        maps, target, truth, entry = self._references(k, None if volume.has_mask else full)
        return Example(
            y=k.data,
            op=forward_model(k, maps),
            target=target,
            truth=truth,
            keys=(Key(volume.path.name, slice_index, volume.patient, digest_of(k)),),
            boxes=(boxes,),
            recon_shapes=(volume.recon_shape,),
            attributes=(volume.attributes,),
            entries=(entry,),
        )

    def _fully_sampled(self, volume: FastmriVolume, slice_index: int) -> KSpace:
        """A slice as `recon run` would prepare it: whitened where the noise is known, without readout oversampling."""
        return preprocess.prepare(volume.load(slice_index), volume.noise, keep_silent=True)

    def _references(self, k: KSpace, full: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None, Entry | None]:
        """Maps of the samples of `k`, target and truth of all samples `full` (None: unknown), and where they are kept."""
        if k.trajectory is not None:
            k = calibration_of(k, self.calibration_width)
        if full is not None and self.cache is not None and k.n_coils > 1:
            return cached_references(k, full, combine, self.cache, self.maps, self.calibration_width)
        maps = cached_maps(k, self.cache, self.maps, self.calibration_width)
        return (maps, None, None, None) if full is None else (maps, *combine(full, maps), None)

    def _acquired(self, k: KSpace, name: str) -> KSpace:
        chosen = self.masks[seed_of(f"{self.seed}/{name}") % len(self.masks)]
        return acquire(k, chosen, f"{self.seed}/{name}" if self.resample else name)


class ShapeBatchSampler(torch.utils.data.Sampler[list[Draw]]):
    """Sampler of batches of equal shape, ordered by seed and epoch alone and divided among processes.

    All processes get the same number of batches: where they do not come out even, the first of the epoch's batches are given
    out again (rows of results are keyed by file and slice, so that doubles can be told), or with `drop_last` the last are left
    out.

    Parameters
    ----------
    shapes
        Shape of each item; `KSpaceDataset.shapes`.
    batch_size
        Items in a batch; the last batch of a shape may be smaller. A function gives it for each shape.
    shuffle
        Whether the order is random, another one in each epoch (`set_epoch`).
    drop_last
        Leave out smaller batches.
    seed
        Seed of the order.
    n_replicas, rank
        Number of processes, and which one this is.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        batch_size: int | Callable[[Shape], int],
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        n_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        groups: dict[Shape, list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        size_of = batch_size if callable(batch_size) else lambda _: batch_size
        self._groups = [(size_of(shape), group) for shape, group in groups.items()]
        if min([size for size, _ in self._groups], default=size_of(())) < 1 or not 0 <= rank < n_replicas:
            raise ValueError(f"batch size {batch_size}, rank {rank} of {n_replicas}: impossible")
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.n_replicas, self.rank, self.epoch = n_replicas, rank, 0

    @property
    def sampler(self) -> ShapeBatchSampler:
        """Itself: Lightning calls ``set_epoch`` on ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and through the items the random masks, of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        n = sum(len(self._cut(*group)) for group in self._groups)
        return n // self.n_replicas if self.drop_last else -(-n // self.n_replicas)

    def __iter__(self) -> Iterable[list[Draw]]:  # type: ignore[override]
        generator = torch.Generator().manual_seed(seed_of(f"{self.seed}/{self.epoch}"))
        batches = []
        for size, group in self._groups:
            order = [group[i] for i in torch.randperm(len(group), generator=generator)] if self.shuffle else group
            batches += self._cut(size, order)
        if self.shuffle:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
        total = len(self) * self.n_replicas
        for number in range(self.rank, total, self.n_replicas):
            yield [Draw(index, self.epoch) for index in batches[number % len(batches)]]

    def _cut(self, size: int, order: list[int]) -> list[list[int]]:
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return [batch for batch in batches if len(batch) == size] if self.drop_last else batches


def _n_dead(volume: FastmriVolume) -> int:
    return 0 if volume.noise is None else len(preprocess.dead_coils(volume.noise))


def _on_grid(boxes: Tensor, recon_shape: tuple[int, int], k: KSpace) -> Tensor:
    """Boxes ``(n 5)`` in points of the image delivered, moved to points of the whole image."""
    shift = [central(n, m).start for n, m in zip(k.data.shape[-2:], recon_shape, strict=True)]
    return boxes + torch.tensor([0, *shift, *shift])
