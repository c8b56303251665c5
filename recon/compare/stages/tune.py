"""First stage: regularisation weights, chosen on slices that are not reported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from kspace.errors import InputError
from kspace.masks import MaskSpec
from recon.batch.jobs import DeadJob, Job
from recon.compare import tuning
from recon.compare.cases import VolumePlace
from recon.compare.folder import ComparisonSummary
from recon.compare.plan import ComparisonPlan
from recon.compare.stages.crew import Bench, Crew


def tune_one(bench: Bench, method: str, spec: MaskSpec, slices: tuple[tuple[VolumePlace, int], ...]) -> dict[str, Any]:
    """The weight of one method for one mask, and the curve that led to it."""
    found = tuning.search(bench.method(method), bench.cases(spec, slices), bench.options.tune_metric)
    return found | {"mask": str(spec)}


def tune_all(plan: ComparisonPlan, summary: ComparisonSummary, crew: Crew) -> ComparisonSummary:
    """Choose the regularisation weights of the methods that have one, for every mask, where there is something to tune on.

    Raises
    ------
    InputError
        If worker processes die of it.
    """
    if not plan.tuning:
        return summary
    tunable = [method for method in plan.methods if method.weight is not None]
    own = [spec for spec in plan.specs if str(spec) not in plan.drawn]  # further draws share the weights of the first
    order = [(method.name, str(spec)) for spec in own for method in tunable]
    found: dict[tuple[str, str], Mapping[str, Any]] = {(entry["method"], entry["mask"]): entry for entry in summary.tuning}
    slices = tuple((s.volume.place, s.number) for s in plan.tuning)
    jobs = (
        Job(f"tuning {method.name} {spec}", {"method": method.name, "spec": spec, "slices": slices})
        for spec in own
        for method in tunable
        if (method.name, str(spec)) not in found
    )
    progress = tqdm(total=len(order), initial=len(found), desc="tuning", unit="weight", disable=None, leave=False)
    for job, entry in crew.each(tune_one, jobs):
        if isinstance(entry, DeadJob):
            raise InputError(entry.says, job.name, "give the workers more memory, or fewer --tune-slices")
        found[entry["method"], entry["mask"]] = entry | {"on": [s.name for s in plan.tuning]}
        summary = summary.kept(plan.output, tuning=tuple(found[key] for key in order if key in found))
        progress.update()
        progress.set_postfix_str(job.name)
    progress.close()
    for method in tunable:
        method.tuned.update({mask: found[name, mask]["chosen"] for name, mask in order if name == method.name})
        method.tuned.update({d: method.tuned[mask] for d, mask in plan.drawn.items() if mask in method.tuned})
    warnings = (*plan.warnings, *tuning.at_edge(summary.tuning))
    for warning in warnings:
        tqdm.write(f"recon: warning: {warning}", file=sys.stderr)
    methods = [{**said, "tuned": dict(m.tuned)} for m, said in zip(plan.methods, summary.methods, strict=True)]
    return replace(summary, methods=tuple(methods), warnings=warnings)
