"""Second stage: every method on every slice of every volume under every mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tqdm import tqdm

from kspace.masks import MaskSpec
from recon.batch.jobs import DeadJob, Job
from recon.compare import merge as merging
from recon.compare import store
from recon.compare.cases import VolumePlace
from recon.compare.folder import ComparisonSummary
from recon.compare.plan import ComparisonPlan
from recon.compare.runs import Runner, give_up, volume_rows
from recon.compare.stages.crew import Bench, Crew
from recon.compare.store import MaskedVolume, SliceLog, SliceRow, VolumeRow


@dataclass(frozen=True)
class GroupResult:
    """What became of one volume under one mask.

    Attributes
    ----------
    rows
        One for each method.
    is_new
        Whether anything was measured, or `rows` are those of an earlier run.
    outside, noise, fits
        As in `recon.compare.runs.Runner`.
    """

    rows: list[VolumeRow]
    is_new: bool = True
    outside: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    noise: Mapping[str, str] = field(default_factory=dict)
    fits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def run_group(
    bench: Bench,
    place: VolumePlace,
    spec: MaskSpec,
    group: MaskedVolume,
    slices: tuple[int, ...],
    known: Sequence[SliceRow],
    before: list[VolumeRow],
) -> GroupResult:
    """Every method on every slice of one volume under one mask, as far as `known` rows of slices do not say it.

    `before` are the rows of the volume by an earlier run.
    """
    log = bench.log or SliceLog(bench.output, group, known)
    n_before = len(log.rows)
    runner = Runner(bench.output, bench.methods, log, bench.options.maps, bench.progress, warm=bench.warm)
    images = runner.run(bench.volume(place), slices, spec, group)
    if len(before) == len(bench.methods) and len(log.rows) == n_before:
        return GroupResult(before, is_new=False)
    rows = volume_rows(group, len(slices), images, log, bench.methods, bench.conventions)
    return GroupResult(rows, True, runner.outside, runner.noise, runner.fits)


def run_all(plan: ComparisonPlan, summary: ComparisonSummary, crew: Crew) -> tuple[ComparisonSummary, list[VolumeRow]]:
    """Run every method on every slice of every volume under every mask; the rows of the volumes, merged ones included."""
    log = SliceLog(plan.output)
    work = {group: (volume, spec, volume.slices(plan.options.max_slices)) for volume, spec, group in plan.groups}
    earlier = store.read_results(plan.output) if (plan.output / store.RESULTS).exists() else []
    before = {(row.group, row.method): row for row in earlier}
    names = {_name(group): group for group in work}
    found: dict[MaskedVolume, GroupResult] = {}
    jobs = (
        Job(
            name,
            {
                "place": work[group][0].place,
                "spec": work[group][1],
                "group": group,
                "slices": work[group][2],
                "known": list(log.of(group).values()),
                "before": [before[key] for method in plan.methods if (key := (group, method.name)) in before],
            },
        )
        for name, group in names.items()
    )
    total = sum(len(slices) for *_, slices in work.values()) * len(plan.methods)
    begun = summary
    with tqdm(total=total, desc="compare", unit="image", disable=None) as progress:
        crew.bench.log, crew.bench.progress = log, progress
        for job, result in crew.each(run_group, jobs):
            group = names[job.name]
            if crew.is_apart:
                log.collect(group)
                progress.update(len(work[group][2]) * len(plan.methods))
            if isinstance(result, DeadJob):
                give_up(group, work[group][2], log, plan.methods, result.says)
                result = GroupResult(_rows(plan, group, work[group][2], log))
            found[group] = result
            if result.is_new:
                ended = [found[group] for group in work if group in found]
                store.write_results(plan.output, merging.join([row for each in ended for row in each.rows], plan.merged))
                summary = _with(begun, ended).kept(plan.output)
    if crew.is_apart:
        log.arrange(list(work), [method.name for method in plan.methods])
    rows = merging.join([row for group in work for row in found[group].rows], plan.merged)
    store.write_results(plan.output, rows)
    return summary, rows


def _name(group: MaskedVolume) -> str:
    """Folder and stem of the images of a volume and mask."""
    return PurePosixPath(group.file).with_suffix("").as_posix()


def _rows(plan: ComparisonPlan, group: MaskedVolume, slices: tuple[int, ...], log: SliceLog) -> list[VolumeRow]:
    path = plan.output / group.file
    images = store.read_images(path) if path.exists() else None
    return volume_rows(group, len(slices), images, log, plan.methods, plan.conventions)


def _with(summary: ComparisonSummary, results: Iterable[GroupResult]) -> ComparisonSummary:
    """The summary with what the results say of methods and noise, in their order."""
    noise = dict(summary.noise)
    methods = [{**m, "outside": deepcopy(m["outside"]), "fits": deepcopy(m["fits"])} for m in summary.methods]
    for result in results:
        noise |= {name: says for name, says in result.noise.items() if name not in noise}
        for method in methods:
            method["fits"].update(result.fits.get(method["name"], {}))
            for mask, texts in result.outside.get(method["name"], {}).items():
                said = method["outside"].setdefault(mask, [])
                said += [text for text in texts if text not in said]
    return summary.changed(methods=tuple(methods), noise=noise)
