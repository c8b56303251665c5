"""`recon evaluate`: fastMRI volume metrics of stored reconstructions."""

from __future__ import annotations

import csv as csv_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from recon.metrics.image import CONVENTIONS, Convention, foreground, mean_and_spread

Challenge = Literal["multicoil", "singlecoil"]
SUFFIXES = (".h5", ".hdf5")
_TARGETS = {"multicoil": ("reconstruction_rss",), "singlecoil": ("reconstruction_esc",)}


@dataclass(frozen=True)
class Row:
    """Metrics of one volume: file name, number of slices, name of the target data set, and mean of each metric."""

    name: str
    n_slices: int
    target: str
    metrics: dict[str, float]


def evaluate(
    targets: Path,
    predictions: Path,
    challenge: Challenge | None = None,
    acquisition: str | None = None,
    acceleration: int | None = None,
    convention: str = "fastmri",
    csv: Path | None = None,
) -> None:
    """Compare reconstructions with their targets volume by volume, as in the fastMRI evaluation.

    Prints mean and twice the standard deviation of each metric over the volumes, on the whole image and on the support (where
    the target exceeds a tenth of its 99th percentile, holes filled).

    Parameters
    ----------
    targets
        A fastMRI-style file with reconstruction_rss or reconstruction_esc, or a folder of them.
    predictions
        A file with the data set reconstruction, or a folder of files with the names of the targets.
    challenge
        multicoil compares with reconstruction_rss, singlecoil with reconstruction_esc. Default: whichever the target has,
        reconstruction_rss first.
    acquisition
        Restrict to volumes of this acquisition (attribute of the targets, e.g. CORPD_FBK or AXT2).
    acceleration
        Restrict to volumes of this acceleration (attribute of the targets).
    convention
        Definition of the metrics: fastmri, reconglgan, reconglgan-roi, dagan, refinegan, gancs or seitzer. All but the first
        two groups expect a certain range of intensities.
    csv
        CSV file for the metrics of each volume.

    Raises
    ------
    InputError
        If a target has no prediction, their shapes do not match, or a file is damaged.
    """
    chosen = _convention(convention)
    pairs = select(pair_files(targets, predictions), acquisition, acceleration)
    if not pairs:
        raise InputError(f"no volume of acquisition {acquisition} and acceleration {acceleration}", targets)
    rows = [compare_files(target, prediction, challenge, chosen) for target, prediction in pairs]
    if csv is not None:
        write_csv(csv, rows)
    print(summary(rows, chosen))


def pair_files(targets: Path, predictions: Path) -> list[tuple[Path, Path]]:
    """Pair targets and predictions of the same file name, sorted by name; other predictions are ignored.

    Raises
    ------
    InputError
        If there are no targets, or predictions are missing.
    """
    for path in (targets, predictions):
        if not path.exists():
            raise InputError("no such file or folder", path)
    files = sorted(p for p in targets.iterdir() if p.suffix in SUFFIXES and p.is_file()) if targets.is_dir() else [targets]
    if not files:
        raise InputError("no .h5 files found", targets)
    if not predictions.is_dir():
        if len(files) > 1:
            raise InputError(f"a single prediction file for {len(files)} targets", predictions, "give a folder")
        return [(files[0], predictions)]
    missing = [file.name for file in files if not (predictions / file.name).is_file()]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{len(missing)} of {len(files)} targets have no prediction ({named})", predictions)
    return [(file, predictions / file.name) for file in files]


def select(pairs: Sequence[tuple[Path, Path]], acquisition: str | None, acceleration: int | None) -> list[tuple[Path, Path]]:
    """Keep the pairs whose target has these attributes; None matches any."""
    from kspace.io.hdf5 import read_attributes

    if acquisition is None and acceleration is None:
        return list(pairs)
    kept = []
    for target, prediction in pairs:
        attributes = read_attributes(target)
        if acquisition is not None and attributes.get("acquisition") != acquisition:
            continue
        if acceleration is not None and attributes.get("acceleration") != acceleration:
            continue
        kept.append((target, prediction))
    return kept


def compare_files(target_file: Path, prediction_file: Path, challenge: Challenge | None, convention: Convention) -> Row:
    """Compute the metrics of one volume.

    Raises
    ------
    InputError
        If a file cannot be read or the shapes do not match.
    """
    # Imported here: h5py is slow to import, and `recon --help` must be fast.
    from kspace.io.hdf5 import read_images

    names = _TARGETS[challenge] if challenge else ("reconstruction_rss", "reconstruction_esc")
    target_name, target = read_images(target_file, names)
    _, prediction = read_images(prediction_file, ("reconstruction",))
    if len(target) != len(prediction):
        raise InputError(f"{len(prediction)} slices, the target has {len(target)}", prediction_file)
    side = min(target.shape[-2:])
    if min(prediction.shape[-2:]) < side:
        shapes = f"{prediction.shape[-1]} x {prediction.shape[-2]}, the target {target.shape[-1]} x {target.shape[-2]}"
        raise InputError(f"the images are too small: {shapes}", prediction_file)
    target, prediction = _cut_to(target, side), _cut_to(prediction, side)
    values = convention.measure(target, prediction, foreground(target))
    return Row(target_file.name, len(target), target_name, {name: float(v.mean()) for name, v in values.items()})


def summary(rows: Sequence[Row], convention: Convention) -> str:
    """Text of `evaluate`: one line each for the whole image, the support, and the convention."""
    parts: dict[str, list[str]] = {"whole": [], "support": []}
    for name in rows[0].metrics:
        mean, spread = mean_and_spread(np.array([row.metrics[name] for row in rows]))
        region = "support" if name.endswith("_support") else "whole"
        spread_text = f"{spread:.4g}" if len(rows) > 1 else "-"
        parts[region].append(f"{name.removesuffix('_support').upper()} = {mean:.4g} +/- {spread_text}")
    volumes = f"{len(rows)} volume{'s' * (len(rows) > 1)}, {sum(row.n_slices for row in rows)} slices"
    targets = ", ".join(sorted({row.target for row in rows}))
    lines = [f"{region:8}{'  '.join(entries)}" for region, entries in parts.items()]
    return "\n".join([*lines, f"{volumes}, against {targets}; {convention.name}: {convention.says}; +/- 2 standard deviations"])


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per volume (atomic write).

    Raises
    ------
    InputError
        If it cannot be written.
    """
    with atomic_write(path) as beside, beside.open("w", newline="") as file:
        writer = csv_module.writer(file)
        writer.writerow(["volume", "slices", "target", *rows[0].metrics])
        writer.writerows([row.name, row.n_slices, row.target, *row.metrics.values()] for row in rows)


def _convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise InputError(f"unknown convention '{name}'", "--convention", f"choose from {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


def _cut_to(volume: np.ndarray, side: int) -> np.ndarray:
    # fastMRI's crop, for comparable metrics; it differs from `kspace.fourier.central` for even n and odd side.
    top, left = ((n - side) // 2 for n in volume.shape[-2:])
    return volume[:, top : top + side, left : left + side]
