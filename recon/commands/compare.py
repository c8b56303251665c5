"""`recon compare`: every method on the same samples, the same coil maps and the same truth, in one table."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from recon.batch.options import ClusterOptions
from recon.compare import merge as merging
from recon.compare.folder import ComparisonSummary, begin
from recon.compare.methods import BART, CLASSICAL
from recon.compare.plan import CompareOptions, ComparisonPlan, make_plan
from recon.compare.stages.converge import converge_all
from recon.compare.stages.crew import Crew
from recon.compare.stages.hold_out import hold_out_all
from recon.compare.stages.run import run_all
from recon.compare.stages.tune import tune_all
from recon.compare.statistics import over_draws, statistics
from recon.compare.store import VolumeRow
from recon.compare.tables import write_tables
from recon.compare.verdict import verdict


def compare(
    data: list[str], output: Path, options: CompareOptions = CompareOptions(), cluster: ClusterOptions = ClusterOptions()
) -> None:
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
    cluster
        Where the work is done. Figures are the same on workers, seconds are not: several methods run at once.

    Raises
    ------
    InputError
        If a method, mask or file cannot be used, or the folder holds another comparison; before anything is computed.
    """
    cluster.refuse_threads()
    plan = make_plan(data, output, options)
    summary = begin(plan)
    with _interruptible(output), Crew(plan, cluster) as crew:
        summary = replace(summary, machine=crew.machine(summary.machine))
        summary = tune_all(plan, summary, crew)
        summary, rows = run_all(plan, summary, crew)
        summary = converge_all(plan, summary, crew)
        summary = hold_out_all(plan, summary, crew)
        conclude(plan, summary, rows)
    from recon.report import report

    print(report.write(output))


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
