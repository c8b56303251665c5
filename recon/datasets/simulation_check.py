"""Simulated slices beside scans: the table, numbers and plot of ``recon simulate --check``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kspace import preprocess
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.io import fastmri
from kspace.io.atomic import atomic_write
from kspace.io.images import find_images
from kspace.simulation.check import Measured, measure, outside, ranges
from kspace.simulation.from_images import SynthesisOptions, generator, nominal_header
from recon.datasets.image_dataset import SimulatedDataset
from recon.datasets.patients import group_files

COILS = (1, 4, 8, 8, 8, 12, 16)
SLICES = 2  # of each scan

Limits = Mapping[str, tuple[float, float]]


class _Full:
    """The mask of a fully sampled scan."""

    def draw(self, shape: tuple[int, int], key: str = "") -> Tensor:
        """All of the matrix."""
        return torch.ones(shape, dtype=torch.bool)


def compare_with_scans(
    images: Path,
    output: Path,
    scans: Sequence[Path],
    options: SynthesisOptions,
    examples: int,
    seed: int = 0,
    group_size: int | None = None,
    *,
    draw_matrices: bool = True,
    force: bool = False,
) -> None:
    """Measure simulated training slices and scans alike, and write what was found.

    Raises
    ------
    InputError
        If a scan cannot be read or is not fully sampled, or the output exists.
    """
    if (output / "check.md").exists() and not force:
        raise InputError("the output exists", output / "check.md", "choose another folder, or give --force")
    real = {name: row for path in scans for name, row in measure_scan(path).items()}
    simulated = measure_simulation(images, options, examples, seed, group_size, draw_matrices=draw_matrices)
    limits = ranges(simulated)
    text = table(limits, real)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "check.md", "the check cannot be written") as beside:
        beside.write_text(text + "\n")
    with atomic_write(output / "check.json", "the check cannot be written") as beside:
        beside.write_text(json.dumps({"simulated": simulated, "ranges": limits, "scans": real}, indent=1))
    plot(limits, real).savefig(output / "check.png", dpi=110)
    print(text)
    n_missed = sum(len(outside(row, limits)) for row in real.values())
    n_all = sum(map(len, real.values()))
    print(f"{n_missed} of {n_all} values of scans lie outside of the 5 to 95 % ranges of {len(simulated)} simulated slices")


def measure_scan(path: Path) -> dict[str, Measured]:
    """The middle slices of a fully sampled fastMRI-style volume, by name.

    Raises
    ------
    InputError
        If it is undersampled.
    """
    volume = fastmri.open_volume(path)
    if volume.has_mask:
        raise InputError("only fully sampled scans can be compared with the simulation", path)
    found = {}
    for i in sorted({(2 * n + 1) * volume.n_slices // (2 * SLICES) for n in range(SLICES)}):
        k = volume.load(i)
        if volume.noise is not None:
            k = preprocess.whiten(k, volume.noise)
        found[f"{path.stem}/{i}"] = measure(k)
    return found


def measure_simulation(
    images: Path,
    options: SynthesisOptions,
    examples: int,
    seed: int = 0,
    group_size: int | None = None,
    *,
    draw_matrices: bool = True,
) -> list[Measured]:
    """Training examples as `SimulatedDataset` makes them, fully sampled, of several numbers of coils."""
    groups = group_files(find_images(images), images if images.is_dir() else images.parent, group_size)
    if options.realism is not None:  # the maps are estimated again from the fully sampled data
        options = replace(options, realism=replace(options.realism, estimated_maps=0.0))
    data = SimulatedDataset(groups, options, [_Full()], draw_matrices=draw_matrices, seed=seed)
    rng, rows = generator(seed, "check"), []
    for i in tqdm(range(examples), unit="slice", disable=None):
        index = int(torch.randint(len(data), (), generator=rng))
        own = replace(options, coils=COILS[i % len(COILS)], matrix=data.matrices[index])
        example = data.example(index, i, own, (_Full(),))
        header = replace(nominal_header("", own.matrix), noise_std=1.0)
        rows.append(measure(KSpace(example.y, torch.ones(1, *own.matrix, dtype=torch.bool), header)))
    return rows


def table(limits: Limits, real: Mapping[str, Measured]) -> str:
    """A Markdown table: ranges of the simulation and values of each scan, those outside in bold."""
    names = list(limits)
    lines = ["| | simulated, 5 to 95 % | " + " | ".join(real) + " |", "|" + "---|" * (2 + len(real))]
    for name in names:
        low, high = limits[name]
        cells = []
        for row in real.values():
            text = f"{row[name]:.3g}" if name in row else ""
            cells.append(f"**{text}**" if name in outside(row, limits) else text)
        lines.append(f"| {name} | {low:.3g} to {high:.3g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(limits: Limits, real: Mapping[str, Measured]) -> Any:
    """A figure: one panel for each kind of quantity, the range of the simulation as a band and a line for each scan."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(name.split("/")[0] for name in limits))
    figure = Figure(figsize=(4.2 * len(kinds), 3.8), layout="constrained")
    for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        names = [name for name in limits if name.startswith(f"{kind}/")]
        places = range(len(names))
        low, high = ([limits[name][i] for name in names] for i in (0, 1))
        if len(names) > 1:
            ax.fill_between(places, low, high, alpha=0.25, color="tab:blue", label="simulated, 5 to 95 %")
        else:
            ax.vlines(places, low, high, lw=12, alpha=0.25, color="tab:blue", label="simulated, 5 to 95 %")
        for scan, row in real.items():
            ax.plot(places, [row.get(name, float("nan")) for name in names], ".-", lw=0.8, label=scan)
        ax.set_xticks(list(places), [name.split("/")[1] for name in names], rotation=60, fontsize=7)
        ax.set_title(kind)
        if kind in ("spectrum", "noise"):
            ax.set_yscale("log")
    figure.axes[0].legend(fontsize=5)
    return figure
