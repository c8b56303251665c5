"""`recon compare`: every method on the same samples, the same coil maps and the same truth, in one table."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kspace.errors import InputError
from recon.compare import merge as merging
from recon.compare import store, tuning
from recon.compare.cases import make_case
from recon.compare.folder import ComparisonSummary, begin
from recon.compare.methods import BART, CLASSICAL
from recon.compare.plan import CompareOptions, ComparisonPlan, make_plan
from recon.compare.runs import Runner, volume_rows
from recon.compare.statistics import over_draws, statistics
from recon.compare.store import SliceLog, VolumeRow
from recon.compare.tables import write_tables
from recon.compare.verdict import verdict

HOLDING_DRAWS = 5  # of a scan without truth, where their number is not given


def compare(data: list[str], output: Path, options: CompareOptions = CompareOptions()) -> None:
    """Compare reconstruction methods on the same data, and write a report.

    Fully sampled scans are undersampled by each mask and compared with what they were; scans that are undersampled themselves
    are judged by acquired samples that are held out. Interrupted, the same command goes on where it was.

    Parameters
    ----------
    data
        fastMRI-style HDF5 or ISMRMRD files, or folders of them (with subfolders). NAME=PATH gives the data set a name, which
        otherwise is that of the folder.
    output
        Folder of the comparison: index.html, table.md, table.tex, results.csv, slices.csv, figures.
    options
        How to compare.

    Raises
    ------
    InputError
        If a method, mask or file cannot be used, or the folder holds another comparison; before anything is computed.
    """
    plan = make_plan(data, output, options)
    summary = begin(plan)
    with _interruptible(output):
        summary = tune_all(plan, summary)
        summary, rows = run_all(plan, summary)
        summary = converge_all(plan, summary)
        summary = hold_out_all(plan, summary)
        conclude(plan, summary, rows)
    from recon.report import report

    print(report.write(output))


def tune_all(plan: ComparisonPlan, summary: ComparisonSummary) -> ComparisonSummary:
    """Choose the regularisation weights of the methods that have one, for every mask, where there is something to tune on."""
    if not plan.tuning:
        return summary
    done = list(summary.tuning)

    def keep() -> None:
        summary.kept(plan.output, tuning=tuple(done))

    own = [spec for spec in plan.specs if str(spec) not in plan.drawn]  # further draws share the weights of the first
    tuning.tune(plan.methods, own, plan.tuning, plan.options.tune_metric, done, keep, plan.options.maps)
    for method in plan.methods:
        method.tuned.update({d: method.tuned[mask] for d, mask in plan.drawn.items() if mask in method.tuned})
    warnings = (*plan.warnings, *tuning.at_edge(done))
    for warning in warnings:
        tqdm.write(f"recon: warning: {warning}", file=sys.stderr)
    methods = [{**said, "tuned": dict(m.tuned)} for m, said in zip(plan.methods, summary.methods, strict=True)]
    return replace(summary, tuning=tuple(done), methods=tuple(methods), warnings=warnings)


def run_all(plan: ComparisonPlan, summary: ComparisonSummary) -> tuple[ComparisonSummary, list[VolumeRow]]:
    """Run every method on every slice of every volume under every mask; the rows of the volumes, merged ones included."""
    log = SliceLog(plan.output)
    work = [(*group, group[0].slices(plan.options.max_slices)) for group in plan.groups]
    total = sum(len(slices) for *_, slices in work) * len(plan.methods)
    rows: list[VolumeRow] = []
    earlier = store.read_results(plan.output) if (plan.output / store.RESULTS).exists() else []
    before = {(row.group, row.method): row for row in earlier}
    with tqdm(total=total, desc="compare", unit="image", disable=None) as progress:
        outside = {m["name"]: deepcopy(m["outside"]) for m in summary.methods}
        fits = {m["name"]: deepcopy(m["fits"]) for m in summary.methods}
        noise = dict(summary.noise)
        runner = Runner(plan.output, plan.methods, log, plan.options.maps, progress, outside, noise, fits)
        for volume, spec, group, slices in work:
            n_before = len(log.rows)
            images = runner.run(volume, slices, spec, group)
            known = [before[key] for method in plan.methods if (key := (group, method.name)) in before]
            if len(known) == len(plan.methods) and len(log.rows) == n_before:  # measured by an earlier run
                rows += known
                continue
            rows += volume_rows(group, len(slices), images, log, plan.methods, plan.conventions)
            store.write_results(plan.output, merging.join(rows, plan.merged))
            said = {m: {"outside": deepcopy(outside.get(m, {})), "fits": deepcopy(fits.get(m, {}))} for m in outside}
            methods = tuple({**m, **said[m["name"]]} for m in summary.methods)
            summary = summary.kept(plan.output, methods=methods, noise=dict(noise))
    rows = merging.join(rows, plan.merged)
    store.write_results(plan.output, rows)
    return summary, rows


def converge_all(plan: ComparisonPlan, summary: ComparisonSummary) -> ComparisonSummary:
    """For each iterative method and mask the curve of its convergence, on the middle slice of the first volume."""
    known = {(entry["method"], entry["mask"]) for entry in summary.convergence}
    for volume, spec, group in plan.groups[: len(plan.specs)]:  # of the first volume
        wanted = [m for m in plan.methods if m.family == CLASSICAL and m.weight is not None]
        wanted = [m for m in wanted if (m.name, group.mask) not in known]
        if not wanted:
            continue
        number = volume.slices(1)[0]
        try:
            case = make_case(volume, number, spec, plan.options.maps)
        except InputError:  # the rows of this slice say why
            continue
        curves = [tuning.converge(method, group.mask, case, plan.options.tune_metric) for method in wanted]
        where = {"dataset": group.dataset, "volume": group.volume, "slice": number}
        new = tuple({**curve, **where} for curve in curves if curve is not None)
        summary = summary.kept(plan.output, convergence=(*summary.convergence, *new))
    return summary


def hold_out_all(plan: ComparisonPlan, summary: ComparisonSummary) -> ComparisonSummary:
    """Judge the methods on the scans without truth by what is held out of them."""
    known = {entry["scan"] for entry in summary.held_out}
    for dataset, path in plan.scans:
        if path.name in known:
            continue
        from recon.compare.held_out import compare_scan

        bar = tqdm(desc=f"held out: {path.name}", unit="image", disable=None, leave=False)

        def advance(done: int, total: int, what: str, bar: Any = bar) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(what)

        methods = {method.name: method.reconstruct for method in plan.methods}
        settings: dict[str, Any] = {
            "draws": plan.options.draws or HOLDING_DRAWS,
            "seed": plan.options.seed,
            "maps": plan.options.maps,
        }
        try:
            entry = compare_scan(path, methods, max_slices=plan.options.max_slices, progress=advance, **settings)
        except InputError as error:  # of many scans, one that nothing can be held out of must not cost the others
            entry = {"scan": path.name, "methods": [], "ranking": [], "says": f"{path.name}: {error.what}."}
        bar.close()
        summary = summary.kept(plan.output, held_out=(*summary.held_out, {"dataset": dataset, **entry}))
    return summary


def conclude(plan: ComparisonPlan, summary: ComparisonSummary, rows: Sequence[VolumeRow]) -> ComparisonSummary:
    """Statistics, verdict and tables."""
    known = [method.name for method in plan.methods]
    merged = merging.methods_of(plan.merged, plan.options.merge, known)
    methods = (*(m for m in summary.methods if m["name"] in known), *merged)
    classical = [m["name"] for m in methods if m["family"] in (CLASSICAL, BART)]
    found = tuple(statistics(rows, classical, plan.options.tune_metric))
    draws = tuple(over_draws(rows, plan.drawn, classical, plan.options.tune_metric))
    summary = replace(summary, methods=methods, statistics=found, draws=draws)
    summary = summary.kept(plan.output, verdict=tuple(verdict(summary.content)), finished=True)
    write_tables(plan.output, summary.content, rows)
    return summary


@contextlib.contextmanager
def _interruptible(output: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"recon: {output} holds the results so far; the same command goes on from there", file=sys.stderr, flush=True)
        raise
