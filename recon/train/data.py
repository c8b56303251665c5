"""What is trained on and what it is validated with, from options to examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

import recon
from kspace.errors import InputError
from kspace.io.images import find_images
from kspace.masks import MaskSpec
from kspace.simulation.from_images import SynthesisOptions
from kspace.simulation.realism import SNR, Realism
from recon.datasets.augment import Augment
from recon.datasets.example import Example
from recon.datasets.image_dataset import SimulatedDataset
from recon.datasets.kspace_dataset import KSpaceDataset, find_volumes, open_volumes, split_by_patient
from recon.datasets.patients import PatientFiles, group_files, split_groups
from recon.train.examples import CroppedReadouts, Examples, Kept, PlainImages, Simulations
from recon.train.supervision import Split

T = TypeVar("T")
PLAIN_MATRIX = 256, 256
RESERVED = 0.1  # of the samples of scans that validate themselves


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
        Folder of images that multi-coil scans are simulated from, in place of `path`.
    plain
        Take the images as published presets expect them, in place of simulated scans: one coil, no noise, no phase,
        magnitudes in [0, 1].
    group_size
        Images of a folder whose numbers lie within this many consecutive ones are one patient.
    val_fraction
        Share of the patients (with `group_size`, of each folder's images) to validate with.
    gap
        Images before those of validation that are left out of everything; goes with `group_size`.
    supervision
        full: fully sampled volumes, or images, show what to aim at. self: undersampled scans alone; part of the samples
        outside of the calibration area is held out in each step, and the error on it is the loss. Raw scans (ISMRMRD, Siemens)
        are converted into the folder of the run.
    hold_out
        That part.
    masks
        One of these is drawn for each slice, e.g. random1d:4, poisson2d:8 (`recon mask` shows them).
    val_masks
        Validate with each of these in turn; default: `masks`.
    val_volumes
        At most so many volumes, spread over all, to validate with.
    others
        Folder or file of further images of any sizes (.npy may be complex), for the share of the training examples that
        `simulation.other` says.
    matrix
        Points (ky, kx) of simulated k-space; default: drawn for each slice, by `simulation.matrix` (256 256 with `smooth`).
    coils
        Simulated numbers of coils to choose from.
    val_coils
        Simulated number of coils in validation.
    snr
        Smallest and largest simulated signal-to-noise ratio.
    simulation
        How far simulated scans are spread in matrix, frame, contrast and phase.
    smooth
        Simulate whole images with smooth phase and estimated maps instead, as before version 0.5.
    phase_std
        Standard deviation of that smooth phase, in radians.
    variants
        Scans simulated of each image in each epoch.
    maps
        How coil maps are made from the undersampled centre: espirit or jsense.
    calibration_width
        At most this many central lines and points are used for the maps.
    strip
        Width, in pixels along x, of cropped readouts where complete lines are sampled; 0: complete slices.
    strips
        Crops of each slice in one pass; default: as many as fit. Fewer give 2-D undersampled slices a larger share.
    augment
        Flip, turn, shrink and add phase at random; not together with `freeze`.
    cache
        Folder for what does not change from one epoch to the next: examples to validate with, and coil maps of volumes.
    freeze
        Keep the training examples in `cache` too, so that they cost little and are the same in every epoch.
    batch_size
        Slices (or cropped readouts) of a batch on each device; default: the system's. Larger slices come in smaller batches.
    workers
        Processes that make examples; 0 for none but the main one.
    seed
        Seed of everything that is drawn.
    """

    path: Path | None = None
    val_path: Path | None = None
    images: Path | None = None
    plain: bool = False
    group_size: int | None = None
    val_fraction: float = 0.1
    gap: int = 0
    supervision: Literal["full", "self"] = "full"
    hold_out: float = 0.3
    masks: tuple[str, ...] = ("random1d:4",)
    val_masks: tuple[str, ...] = ()
    val_volumes: int | None = None
    others: Path | None = None
    matrix: tuple[int, int] | None = None
    coils: tuple[int, ...] = (8,)
    val_coils: int = 8
    snr: tuple[float, float] = SNR
    simulation: Realism = field(default_factory=Realism)
    smooth: bool = False
    phase_std: float = 1.0
    variants: int = 1
    maps: str = "espirit"
    calibration_width: int = 24
    strip: int = 0
    strips: int | None = None
    augment: bool = False
    cache: Path | None = None
    freeze: bool = False
    batch_size: int | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.path is None) == (self.images is None):
            raise InputError("nothing to train on" if self.path is None else "volumes and images at once", "--data",
                             "give --data.path (fastMRI-style volumes) or --data.images (a folder of images)")  # fmt: skip
        if self.plain and (self.images is None or self.strip or self.augment or self.cache):
            raise InputError("plain images", "--data.plain", "needs --data.images, and no --data.strip, augmentation or cache")
        if self.supervision == "self" and (self.path is None or self.freeze or self.augment):
            raise InputError("self-supervision", "--data.supervision", "needs --data.path, and neither freeze nor augment")
        if not 0 < self.hold_out < 1:
            raise InputError(f"the part that is held out is {self.hold_out}", "--data.hold_out", "give one between 0 and 1")
        if not self.masks:
            raise InputError("no masks", "--data.masks", "give at least one")
        if self.freeze and self.cache is None:
            raise InputError("no folder to keep the training examples in", "--data.freeze", "give --data.cache as well")
        if self.augment and self.freeze:
            raise InputError("augmentation makes every example new, --data.freeze keeps them", "--data", "choose one")
        for name in ("val_coils", "variants", "calibration_width", "strips"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
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
    by_batch
        Items of `train` are drawn with the number of their batch in place of that of the pass.
    split
        What is held out in self-supervised training.
    """

    train: Examples
    val: dict[str, Examples]
    summary: dict[str, Any]
    by_batch: bool = False
    split: Split | None = None


def make_data(options: DataOptions, mask_per: str = "slice") -> DataSets:
    """Find the files, divide them, and say how examples are made of them.

    Raises
    ------
    InputError
        If there is nothing to train on or to validate with, or options contradict each other.
    """
    masks = [MaskSpec.parse(text) for text in options.masks]
    val_masks = [MaskSpec.parse(text) for text in options.val_masks or options.masks]
    if mask_per == "batch" and not options.plain:
        raise InputError("one mask per batch is for plain images", "schedule.mask_per", "choose slice or run, or --data.plain")
    sources: list[Any] = [OneMask(mask) for mask in masks] if mask_per == "run" else list(masks)
    if options.plain:
        train, val, summary = _from_plain(options, masks, val_masks, mask_per)
    elif options.supervision == "self":
        train, val, summary = _from_scans(options, sources)
    else:
        make = _from_images if options.images is not None else _from_volumes
        train, val, summary = make(options, sources, val_masks)
    if options.strip:
        train = CroppedReadouts(train, options.strip, options.strips, options.seed)
        if not any(train.lines):
            raise InputError(
                "cropped readouts need masks of complete lines",
                "--data.strip",
                "leave it out, or choose masks such as random1d:4",
            )
    summary |= {
        "n_train": len(train),
        "n_val": {name: len(part) for name, part in val.items()},
        "masks": [mask_name(mask) for mask in masks],
    }
    split = None
    if options.supervision == "self":  # where the scans validate themselves, a part of their samples is never trained on
        split = Split(options.hold_out, RESERVED if summary.pop("validates_itself") else 0.0, options.seed)
    return DataSets(train, val, summary, by_batch=mask_per == "batch", split=split)


def mask_name(spec: MaskSpec) -> str:
    """The mask as it is written; of a file its name only, since folders of a machine are nobody else's business."""
    options = dict(spec.options)
    return str(spec).replace(options["path"], Path(options["path"]).name) if spec.family == "file" else str(spec)


@dataclass(frozen=True)
class OneMask:
    """Always the same mask, whatever the slice."""

    spec: MaskSpec

    def draw(self, shape: tuple[int, int], key: str = "") -> torch.Tensor:
        """The mask of `spec` for `shape`; `key` does not matter."""
        return self.spec.draw(shape, "")

    @property
    def off_grid(self) -> bool:
        """As of `spec`."""
        return self.spec.off_grid

    def trajectory(self, shape: tuple[int, int], key: str = "") -> torch.Tensor | None:
        """The trajectory of `spec` for the matrix `shape`, ``(readout sample 2)``; None on the grid."""
        return self.spec.trajectory(shape, "")


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
    folder = None if options.cache is None or options.freeze else options.cache / "maps"
    train: Any = KSpaceDataset(
        train_files, masks, resample=not options.freeze, augment=Augment() if options.augment else None, cache=folder, **maps
    )
    val: dict[str, Any] = {mask_name(mask): KSpaceDataset(val_files, [mask], **maps) for mask in val_masks}
    summary = {"source": str(options.path), "simulated": all(v.attributes.get("simulated") for v in train.volumes)}
    if options.cache is None:
        return train, val, summary
    about = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in (*train_files, *val_files)]
    return _keep(options, about, train, val, summary)


def _from_scans(options: DataOptions, masks: list[Any]) -> tuple[Examples, dict[str, Examples], dict]:
    """Undersampled scans as they are; fully sampled ones undersampled by `masks`, without a look at the rest."""
    assert options.path is not None
    files = find_volumes(options.path)
    val_files = find_volumes(options.val_path) if options.val_path is not None else []
    itself = False
    if not val_files:
        itself = len({volume.patient for volume in open_volumes(files)}) < 2
        parts = (1 - options.val_fraction, options.val_fraction)
        files, val_files = (files, files) if itself else split_by_patient(files, parts, options.seed)
    val_files = _spread(val_files, options.val_volumes)
    maps: dict[str, Any] = {"maps": options.maps, "calibration_width": options.calibration_width, "seed": options.seed}
    folder = None if options.cache is None else options.cache / "maps"

    def read(paths: Sequence[Path], resample: bool) -> Examples:
        kinds = {volume.has_mask for volume in open_volumes(paths)}
        if len(kinds) > 1:
            raise InputError("some scans are undersampled and some are not", options.path, "train on one kind")
        return KSpaceDataset(paths, () if True in kinds else masks, resample=resample and not itself, cache=folder, **maps)

    train = read(files, True)
    summary = {"source": str(options.path), "simulated": False, "validates_itself": itself, "supervision": "self"}
    return train, {"held_out": read(val_files, False)}, summary


def _from_images(
    options: DataOptions, masks: list[Any], val_masks: list[MaskSpec]
) -> tuple[Examples, dict[str, Examples], dict]:
    assert options.images is not None
    train_groups, val_groups, n_left_out = _groups(options)
    realism = None if options.smooth else options.simulation
    matrix = options.matrix or PLAIN_MATRIX
    scans = SynthesisOptions(matrix, options.val_coils, options.snr, options.phase_std, realism)
    maps: dict[str, Any] = {
        "maps": options.maps, "calibration_width": options.calibration_width, "seed": options.seed,
        "draw_matrices": options.matrix is None,
    }  # fmt: skip
    others = [] if options.others is None else find_images(options.others)
    train: Any = Simulations(
        train_groups, scans, options.coils, masks, variants=options.variants, resample=not options.freeze,
        augment=Augment() if options.augment else None, others=others, **maps,
    )  # fmt: skip
    if realism is not None:  # slices of one volume have one contrast
        scans = replace(scans, realism=replace(realism, intensities=0.0))
    val: dict[str, Any] = {mask_name(mask): _Volumes(val_groups, scans, [mask], resample=False, **maps) for mask in val_masks}
    ranges = (
        {"matrix": list(options.matrix or matrix)} if realism is None or options.matrix else {"matrix_range": realism.matrix}
    )
    summary = {
        "source": str(options.images), "simulated": True, "coils": list(options.coils), "snr": list(options.snr),
        **ranges, "n_left_out": n_left_out, "simulation": None if realism is None else asdict(realism),
    }  # fmt: skip
    if options.cache is None:
        return train, val, summary
    about = ["targets without noise", *([g.name, [f.name for f in g.files]] for g in (*train_groups, *val_groups))]
    return _keep(options, about, train, val, summary)


def _keep(
    options: DataOptions, files: Sequence[Any], train: Examples, val: dict[str, Examples], summary: dict[str, Any]
) -> tuple[Examples, dict[str, Examples], dict]:
    """The examples to validate with kept on disk, and those to train on where `freeze` asks for it."""
    kept = {name: part if _off_grid(part) else _kept(options, files, f"val {name}", part) for name, part in val.items()}
    if not options.freeze:
        return train, kept, summary
    if _off_grid(train):
        what = "the samples of a mask do not lie on a Cartesian grid"
        raise InputError(what, "--data.freeze", "leave it out: only examples of a grid are frozen")
    return _kept(options, files, "train", train), kept, summary


def _off_grid(source: Any) -> bool:
    return any(mask.off_grid for mask in source.masks)


def _from_plain(
    options: DataOptions, masks: list[MaskSpec], val_masks: list[MaskSpec], mask_per: str
) -> tuple[Examples, dict[str, Examples], dict]:
    train_groups, val_groups, n_left_out = _groups(options)
    matrix = options.matrix or PLAIN_MATRIX
    train = PlainImages(train_groups, matrix, masks, mask_per, options.seed)
    val: dict[str, Examples] = {
        mask_name(mask): PlainImages(val_groups, matrix, [mask], "run", options.seed) for mask in val_masks
    }
    about = {"simulated": True, "coils": [1], "matrix": list(matrix), "n_left_out": n_left_out}
    return train, val, {"source": str(options.images), **about}


def _groups(options: DataOptions) -> tuple[list[PatientFiles], list[PatientFiles], int]:
    """Images to train on, to validate with, and how many are left out of both."""
    assert options.images is not None
    groups = group_files(find_images(options.images), options.images, options.group_size)
    by_number = options.group_size is not None
    train, val, left_out = split_groups(groups, options.val_fraction, options.gap, by_number)
    return train, _spread(val, options.val_volumes), len(left_out)


class _Volumes(SimulatedDataset):
    """Images of one patient as slices of one volume, for metrics by volume."""

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        example = super().__getitem__(item)
        index = item[0] if isinstance(item, tuple) else item
        group, _, _ = self.items[index]
        return replace(example, keys=(example.keys[0]._replace(file=group.name, slice=index),))


def _kept(options: DataOptions, files: Sequence[Any], role: str, source: Examples) -> Kept:
    unimportant = ("path", "val_path", "images", "strip", "strips", "cache", "freeze",
                   "batch_size", "workers", "val_masks", "augment")  # fmt: skip
    about = {k: v for k, v in asdict(options).items() if k not in unimportant}
    if role != "train":
        about = {k: v for k, v in about.items() if k not in ("masks", "coils", "variants", "others")}
    text = json.dumps([role, about, files, recon.__version__], default=str)
    assert options.cache is not None
    return Kept(source, options.cache, text)


def _spread(items: Sequence[T], n: int | None) -> list[T]:
    """At most `n` of them, evenly spread."""
    if n is None or n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]
