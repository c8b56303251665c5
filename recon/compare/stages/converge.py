"""Third stage: how far the iterative methods have come where they stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kspace.errors import InputError
from kspace.masks import MaskSpec
from recon.batch.jobs import DeadJob, Job
from recon.compare import tuning
from recon.compare.cases import VolumePlace, make_case
from recon.compare.folder import ComparisonSummary
from recon.compare.methods import CLASSICAL
from recon.compare.plan import ComparisonPlan
from recon.compare.stages.crew import Bench, Crew
from recon.compare.store import MaskedVolume

Curves = list[dict[str, Any]]


def converge_group(
    bench: Bench, place: VolumePlace, spec: MaskSpec, group: MaskedVolume, number: int, methods: Sequence[str]
) -> Curves:
    """The curves of the methods on one slice; none where it cannot be read."""
    try:
        case = make_case(bench.volume(place), number, spec, bench.options.maps)
    except InputError:  # the rows of this slice say why
        return []
    metric = bench.options.tune_metric
    curves = [tuning.converge(bench.method(name), group.mask, case, metric) for name in methods]
    where = {"dataset": group.dataset, "volume": group.volume, "slice": number}
    return [{**curve, **where} for curve in curves if curve is not None]


def converge_all(plan: ComparisonPlan, summary: ComparisonSummary, crew: Crew) -> ComparisonSummary:
    """For each iterative method and mask the curve of its convergence, on the middle slice of the first volume."""
    known = {(entry["method"], entry["mask"]) for entry in summary.convergence}
    jobs = []
    for volume, spec, group in plan.groups[: len(plan.specs)]:  # of the first volume
        wanted = [m.name for m in plan.methods if m.family == CLASSICAL and m.weight is not None]
        wanted = [name for name in wanted if (name, group.mask) not in known]
        if wanted:
            about = {"place": volume.place, "spec": spec, "group": group, "number": volume.slices(1)[0], "methods": wanted}
            jobs.append(Job(f"convergence {group.mask}", about))
    found: dict[str, Curves] = {}
    begun = summary
    for job, curves in crew.each(converge_group, jobs):
        found[job.name] = [] if isinstance(curves, DeadJob) else curves
        new = [curve for each in jobs for curve in found.get(each.name, [])]
        summary = begun.kept(plan.output, convergence=(*begun.convergence, *new))
    return summary
