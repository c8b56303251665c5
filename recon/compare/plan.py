"""What a comparison is asked to do, looked at as a whole before anything long begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import recon
from kspace.errors import InputError
from kspace.masks import MaskSpec
from recon.compare import merge as merging
from recon.compare import tuning
from recon.compare.cases import FullVolume, find_data, groups_of, parse_masks
from recon.compare.methods import ComparedMethod, by_default, choose
from recon.compare.metrics import check_metric, conventions
from recon.compare.store import MaskedVolume, VolumeRow
from recon.methods import classical
from recon.methods.precision import Precision
from recon.metrics.image import Convention


@dataclass(frozen=True)
class CompareOptions:
    """How to compare.

    Attributes
    ----------
    methods
        Separated by commas: zero-filled, sense, grappa, l1-wavelet, tv, and bundled generators (recon models), and those of
        --weights. Default: all of them but grappa, which needs uniform masks, and generators that were trained on other
        families of masks, or are fitted to each scan. A+residual and A+stack refine the generator A; mean:A:B is the mean of
        the images of A and B.
    masks
        Separated by commas, e.g. random1d:4,random1d:8,poisson2d:8; see docs/MASKS.md. Each is drawn once for a volume.
    weights
        NAME=FILE: a generator of your own, exported by recon export. May be given several times.
    bart
        Add BART's pics (wavelets and total variation), with the same coil maps; the program bart has to be installed.
    tune_on
        Files or folders, none of them reported, on which the regularisation weights of the classical methods are chosen for
        every mask. Left out: their default weights, and the tables say so.
    tune_metric
        What is tuned for; the best classical method is the best by it, and the verdict speaks of it.
    tune_slices
        On how many slices, spread over the volumes.
    conventions
        Metrics of other groups too, separated by commas: dagan, refinegan, gancs, seitzer, reconglgan, reconglgan-roi.
    max_volumes
        At most so many volumes of a data set, spread evenly.
    max_slices
        At most so many slices of a volume, spread evenly.
    seed
        Seed of masks that state none, and of the lines held out of scans without truth.
    maps
        Coil maps, one set for all methods: espirit or jsense, from the acquired samples.
    draws
        How often each mask is drawn for a volume (default 1), repeated measures with an interval over the draws; and how often
        lines are held out of a scan without truth (default 5).
    merge
        results.csv of an earlier comparison, to stand beside the new rows. May be given several times.
    device
        Where networks run; the classical methods run on the CPU.
    precision
        Of the networks: auto is bf16 where the hardware multiplies it, else fp32. The rest is fp32.
    force
        Start anew in a folder that holds another comparison, which is deleted.
    """

    methods: str | None = None
    masks: str = "random1d:4"
    weights: tuple[str, ...] = ()
    bart: bool = False
    tune_on: tuple[str, ...] = ()
    tune_metric: str = "psnr_support"
    tune_slices: int = 4
    conventions: str | None = None
    max_volumes: int | None = None
    max_slices: int | None = None
    seed: int = 0
    maps: Literal["espirit", "jsense"] = "espirit"
    draws: int | None = None
    merge: tuple[Path, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    force: bool = False


@dataclass(frozen=True, eq=False)
class ComparisonPlan:
    """What is to be done, checked.

    Attributes
    ----------
    output, options
        As given.
    methods, specs, conventions
        Which methods, masks and further metrics.
    volumes, scans
        Fully sampled volumes, and (data set, path) of the scans without truth.
    groups
        Every volume under every mask.
    tuning
        The slices to tune on.
    drawn
        Masks that are further draws of another one, and which.
    warnings
        What to know of the tuning data.
    merged
        Rows of earlier comparisons.
    identity
        What makes this comparison another one than another.
    """

    output: Path
    options: CompareOptions
    methods: list[ComparedMethod]
    specs: list[MaskSpec]
    conventions: list[Convention]
    volumes: list[FullVolume]
    scans: list[tuple[str, Path]]
    groups: list[tuple[FullVolume, MaskSpec, MaskedVolume]]
    tuning: list[tuning.TuningSlice]
    drawn: dict[str, str]
    warnings: list[str]
    merged: list[VolumeRow]
    identity: dict[str, Any]


def make_plan(data: Sequence[str], output: Path, options: CompareOptions) -> ComparisonPlan:
    """Look at everything that was asked for, before anything long begins.

    Raises
    ------
    InputError
        If any of it cannot be used.
    """
    check_metric(options.tune_metric, "--tune-metric")
    for name in ("tune_slices", "max_volumes", "max_slices", "draws"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"{value} is too few", f"--{name.replace('_', '-')}", "give 1 or more")
    specs, others = parse_masks(options.masks, options.seed), conventions(options.conventions)
    specs, drawn = draws_of(specs, options.draws or 1)
    if options.methods is None:
        own = [text.partition("=")[0] for text in options.weights]
        unasked = [name for name in by_default({spec.family for spec in specs}) if name not in own]
        options = replace(options, methods=",".join([*classical.unasked(), *unasked, *own]))
    methods = choose(options.methods, options.weights, options.bart, options.device, options.precision)
    volumes, scans = find_data(data, output, options.max_volumes)
    tuned: list[tuning.TuningSlice] = []
    if options.tune_on:
        apart, undersampled = find_data(options.tune_on, output)
        if undersampled:
            raise InputError(f"{undersampled[0][1].name} is undersampled: it has no truth", "--tune-on", "leave it out")
        tuning.check_apart(apart, volumes)
        tuned = tuning.tuning_slices(apart, options.tune_slices)
    groups = [group for volume in volumes for group in groups_of(volume, specs)]
    differing = tuning.unlike(tuned, volumes) if tuned else []
    merged = merging.read_merged(options.merge, [group for *_, group in groups])
    identity = _identity(options, methods, specs, volumes, scans, tuned)
    return ComparisonPlan(
        output, options, methods, specs, others, volumes, scans, groups, tuned, drawn, differing, merged, identity
    )


def draws_of(specs: Sequence[MaskSpec], n: int) -> tuple[list[MaskSpec], dict[str, str]]:
    """Each mask with its `n` draws, by the seeds that follow its own; and which mask each further draw is one of."""
    every: list[MaskSpec] = []
    drawn: dict[str, str] = {}
    for spec in specs:
        more = [replace(spec, seed=spec.seed + i) for i in range(1, n)]
        drawn |= {str(one): str(spec) for one in more}
        every += [spec, *more]
    return every, drawn


def _identity(
    options: CompareOptions,
    methods: Sequence[ComparedMethod],
    specs: Sequence[MaskSpec],
    volumes: Sequence[FullVolume],
    scans: Sequence[tuple[str, Path]],
    tuned: Sequence[tuning.TuningSlice],
) -> dict[str, Any]:
    """What has to be equal for rows to belong to one comparison, in terms of JSON."""
    files = [[v.dataset, v.name, v.path.stat().st_size] for v in volumes] + [[d, p.name, p.stat().st_size] for d, p in scans]
    kept = ("tune_metric", "conventions", "max_slices", "seed", "maps", "draws", "device", "precision")
    return {
        "recon": recon.__version__,
        "data": files,
        "methods": [[m.name, m.sha256 or ""] for m in methods],
        "masks": [str(spec) for spec in specs],
        "tuned on": [s.name for s in tuned],
        **{name: getattr(options, name) for name in kept},
    }
