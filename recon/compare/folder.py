"""Folder of a comparison and its summary: begun, found again, or refused because it holds another comparison."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import recon
from kspace.errors import InputError
from recon.compare import store
from recon.compare.cases import FullVolume
from recon.compare.methods import BART, ComparedMethod
from recon.compare.metrics import not_measured
from recon.compare.plan import CompareOptions, ComparisonPlan
from recon.compare.timing import cpu_name
from recon.methods import bart as bart_program
from recon.versions import versions

OURS = (store.SUMMARY, store.SLICES, store.RESULTS, store.IMAGES, "table.md", "table.tex", "figures", "index.html")


Entries = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class ComparisonSummary:
    """What was compared, how it was tuned, and what follows. Fields are the keys of ``compare.json``, in its order.

    Attributes
    ----------
    recon, command, created
        Version of the software, command line, and time of the first run (ISO 8601, UTC).
    finished
        Whether every step is done.
    machine
        ``cpu``, ``threads``, ``gpu``, ``versions``; ``workers`` where several processes ran at once.
    options
        What identifies the comparison: a run with other options is refused the folder.
    data
        For each data set ``dataset``, ``path``, ``kind``, ``volumes``, ``n_slices``, ``simulated``, ``noise_free``,
        ``attribution``.
    masks, maps, metric
        Specifications of the masks, method of the coil maps, metric that weights are tuned by.
    methods
        For each method ``name``, ``label``, ``family``, ``details``, ``weights_sha256``, ``options``, ``tuned`` (weight by
        mask), ``outside`` (differences to the training by mask), ``fits`` (weights of a stack by volume and mask);
        ``merged_from`` of another comparison.
    not_measured
        Metrics that are missing, and why.
    tuning, convergence, statistics, held_out
        Entries of `recon.compare.tuning`, `recon.compare.statistics` and `recon.compare.held_out`.
    verdict
        Sentences of `recon.compare.verdict`.
    draws
        Entries of `recon.compare.statistics.over_draws`.
    warnings
        In what the tuning data may not suit.
    noise
        By volume, how its noise is known.
    """

    recon: str
    command: tuple[str, ...]
    created: str
    finished: bool
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    data: Entries
    masks: tuple[str, ...]
    maps: str
    metric: str
    methods: Entries
    not_measured: Mapping[str, str]
    tuning: Entries = ()
    convergence: Entries = ()
    statistics: Entries = ()
    held_out: Entries = ()
    verdict: tuple[str, ...] = ()
    draws: Entries = ()
    warnings: tuple[str, ...] = ()
    noise: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """The content of ``compare.json``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"version": store.VERSION} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def changed(self, **changes: Any) -> ComparisonSummary:
        """The summary with `changes`."""
        return replace(self, **changes)

    def kept(self, folder: Path, **changes: Any) -> ComparisonSummary:
        """The summary with `changes`, written to the folder of the comparison."""
        changed = replace(self, **changes)
        store.write_summary(folder, changed.content)
        return changed


def read_summary(folder: Path) -> ComparisonSummary | None:
    """Read the summary of an earlier run; None where there is none.

    Raises
    ------
    InputError
        If ``compare.json`` is damaged, or of another version.
    """
    content = store.read_summary(folder)
    if content is None:
        return None
    values: dict[str, Any] = {f.name: content[f.name] for f in fields(ComparisonSummary) if f.name in content}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return ComparisonSummary(**values)
    except TypeError as error:
        raise InputError(f"incomplete ({error})", folder / store.SUMMARY, "choose another folder, or give --force") from error


def begin(plan: ComparisonPlan) -> ComparisonSummary:
    """What `compare.json` of the folder says so far: of an earlier run of the same comparison, or nothing yet.

    Raises
    ------
    InputError
        If it holds another comparison.
    """
    folder = plan.output
    if folder.exists() and not folder.is_dir():
        raise InputError("a file, not a folder", folder, "choose another -o")
    if plan.options.force and (folder / store.SUMMARY).exists():
        for name in OURS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    before = read_summary(folder)
    if before is not None:
        differing = [name for name in plan.identity if before.options.get(name) != plan.identity[name]]
        if differing:
            name = differing[0]
            was, is_now = (_short(options.get(name)) for options in (before.options, plan.identity))
            more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
            fix = "choose another folder with -o, or give --force to start anew"
            raise InputError(f"the folder holds another comparison ({name}: {was}; now {is_now}{more})", folder, fix)
        return replace(before, finished=False, methods=_restored(before.methods, plan.methods))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made ({error.strerror or error})", folder, "choose another -o") from error
    return _new_summary(plan).kept(folder)


def _restored(before: Sequence[Mapping[str, Any]], methods: Sequence[ComparedMethod]) -> Entries:
    outside = {m["name"]: m.get("outside", {}) for m in before}
    fits = {m["name"]: m.get("fits", {}) for m in before}
    return tuple(
        method.says() | {"outside": outside.get(method.name, {}), "fits": fits.get(method.name, {})} for method in methods
    )


def _new_summary(plan: ComparisonPlan) -> ComparisonSummary:
    datasets: dict[tuple[str, str], list[FullVolume]] = {}
    for volume in plan.volumes:
        datasets.setdefault((volume.dataset, volume.kind), []).append(volume)
    return ComparisonSummary(
        recon=recon.__version__,
        command=("recon", *sys.argv[1:]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        finished=False,
        machine=machine(plan.methods, plan.options),
        options=plan.identity,
        data=tuple(_described(dataset, kind, volumes, plan.options) for (dataset, kind), volumes in datasets.items()),
        masks=tuple(str(spec) for spec in plan.specs),
        maps=plan.options.maps,
        metric=plan.options.tune_metric,
        methods=tuple(method.says() for method in plan.methods),
        not_measured=not_measured(),
    )


def machine(methods: Sequence[ComparedMethod], options: CompareOptions) -> dict[str, Any]:
    """What ``compare.json`` says of the machine that the methods run on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() and options.device != "cpu" else None
    said = versions() | ({"bart": bart_program.version()} if any(m.family == BART for m in methods) else {})
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "gpu": gpu, "versions": said}


def _described(dataset: str, kind: str, volumes: Sequence[FullVolume], options: CompareOptions) -> dict[str, Any]:
    attributions = dict.fromkeys(volume.attribution for volume in volumes if volume.attribution)
    folders = dict.fromkeys(volume.path.resolve().parent.name for volume in volumes)
    return {
        "dataset": dataset,
        "path": volumes[0].path.name if len(volumes) == 1 else ", ".join(folders),
        "kind": kind,
        "volumes": [volume.name for volume in volumes],
        "n_slices": sum(len(volume.slices(options.max_slices)) for volume in volumes),
        "simulated": any(volume.simulated for volume in volumes),
        "noise_free": all(volume.truth is not None for volume in volumes),
        "attribution": "; ".join(attributions) or None,
    }


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 80 else f"{text[:77]}..."
