"""Fourth stage: scans without truth, judged by what is held out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from kspace.errors import InputError
from recon.batch.jobs import DeadJob, Job
from recon.compare.folder import ComparisonSummary
from recon.compare.plan import ComparisonPlan
from recon.compare.stages.crew import Bench, Crew

HOLDING_DRAWS = 5  # of a scan without truth, where their number is not given


def hold_out_one(bench: Bench, path: Path, show: bool) -> dict[str, Any]:
    """Judge the methods on one scan; `show`: with a progress bar."""
    from recon.compare.held_out import compare_scan

    bar = tqdm(desc=f"held out: {path.name}", unit="image", disable=None if show else True, leave=False)

    def advance(done: int, total: int, what: str) -> None:
        bar.total, bar.n = total, done
        bar.set_postfix_str(what)

    methods = {method.name: method.reconstruct for method in bench.methods}
    options = bench.options
    settings: dict[str, Any] = {"draws": options.draws or HOLDING_DRAWS, "seed": options.seed, "maps": options.maps}
    try:
        return compare_scan(path, methods, max_slices=options.max_slices, progress=advance, **settings)
    except InputError as error:  # of many scans, one that nothing can be held out of must not cost the others
        return _nothing(path, error.what)
    finally:
        bar.close()


def hold_out_all(plan: ComparisonPlan, summary: ComparisonSummary, crew: Crew) -> ComparisonSummary:
    """Judge the methods on the scans without truth by what is held out of them."""
    known = {entry["scan"] for entry in summary.held_out}
    wanted = {f"held out {path.resolve()}": (dataset, path) for dataset, path in plan.scans if path.name not in known}
    jobs = [Job(name, {"path": path.resolve(), "show": not crew.is_apart}) for name, (_, path) in wanted.items()]
    found: dict[str, dict[str, Any]] = {}
    begun = summary
    for job, result in crew.each(hold_out_one, jobs):
        dataset, path = wanted[job.name]
        entry = _nothing(path, result.says) if isinstance(result, DeadJob) else result
        found[job.name] = {"dataset": dataset, **entry}
        new = [found[name] for name in wanted if name in found]
        summary = begun.kept(plan.output, held_out=(*begun.held_out, *new))
    return summary


def _nothing(path: Path, why: str) -> dict[str, Any]:
    return {"scan": path.name, "methods": [], "ranking": [], "says": f"{path.name}: {why}."}
