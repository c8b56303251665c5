"""Who does the work of a comparison: this process, with the objects of the plan, or workers, which make them again.

Both call the same functions with the same arguments, so the results are the same; only the seconds differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from kspace.masks import MaskSpec
from recon.batch.jobs import DeadJob, Job, JobWorkers
from recon.batch.options import ClusterOptions
from recon.compare.cases import Case, FullVolume, VolumePlace, make_case, volumes_of
from recon.compare.folder import machine
from recon.compare.methods import ComparedMethod, choose
from recon.compare.metrics import conventions
from recon.compare.plan import CompareOptions, ComparisonPlan
from recon.compare.store import SliceLog
from recon.metrics.image import Convention

Tuned = Mapping[str, Mapping[str, float]]


@dataclass(eq=False)
class Bench:
    """What a process works with.

    Attributes
    ----------
    output, options
        Of the comparison.
    methods, conventions
        As in `ComparisonPlan`.
    volumes
        By place; others are looked for in their files.
    log
        The rows of all slices; None in a worker, where each volume and mask has rows of its own.
    progress
        Counts pairs of slice and method.
    warm
        As in `recon.compare.runs.Runner`.
    """

    output: Path
    options: CompareOptions
    methods: list[ComparedMethod]
    conventions: list[Convention]
    volumes: Mapping[VolumePlace, FullVolume] = field(default_factory=dict)
    log: SliceLog | None = None
    progress: tqdm[None] = field(default_factory=lambda: tqdm(disable=True))
    warm: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)
    _cases: dict[tuple[str, tuple[tuple[VolumePlace, int], ...]], list[Case]] = field(default_factory=dict)

    def volume(self, place: VolumePlace) -> FullVolume:
        """The volume at a place.

        Raises
        ------
        InputError
            If its file cannot be read.
        """
        return self.volumes.get(place) or _volumes(place.dataset, place.path)[place.name]

    def cases(self, spec: MaskSpec, slices: tuple[tuple[VolumePlace, int], ...]) -> list[Case]:
        """Slices under one mask, kept until others are asked for."""
        key = str(spec), slices
        if key not in self._cases:
            self._cases.clear()
            self._cases[key] = [make_case(self.volume(place), n, spec, self.options.maps) for place, n in slices]
        return self._cases[key]

    def method(self, name: str) -> ComparedMethod:
        """The method of this name."""
        return next(method for method in self.methods if method.name == name)


class Crew(AbstractContextManager["Crew"]):
    """This process, or the workers of a scheduler.

    Parameters
    ----------
    plan
        Of the comparison.
    cluster
        Where the workers are; without a scheduler, this process does everything.

    Raises
    ------
    InputError
        If the workers cannot be used.
    """

    def __init__(self, plan: ComparisonPlan, cluster: ClusterOptions) -> None:
        volumes = [*plan.volumes, *(s.volume for s in plan.tuning)]
        found = {volume.place: volume for volume in volumes}
        self.bench = Bench(plan.output, plan.options, plan.methods, plan.conventions, found)
        self._workers = JobWorkers(cluster, plan.output.resolve()) if cluster.scheduler is not None else None

    @property
    def is_apart(self) -> bool:
        """Whether other processes do the work."""
        return self._workers is not None

    def machine(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What ``compare.json`` says of the machine that the work is done on; `own`: of this one."""
        if self._workers is None:
            return dict(own)
        ((_, found),) = self.each(_machine, [Job("machine")])
        return dict(own) if isinstance(found, DeadJob) else {**found, "workers": self._workers.says}

    def each(self, function: Callable[..., Any], jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Call ``function(bench, **arguments)`` for each job; jobs and results in the order in which they end.

        Raises
        ------
        Exception
            What the function raised first.
        """
        if self._workers is None:
            for job in jobs:
                yield job, function(self.bench, **job.arguments)
            return
        options = travelling(self.bench.options)
        tuned = {method.name: dict(method.tuned) for method in self.bench.methods}
        common = {"function": function, "options": options, "output": str(self.bench.output.resolve()), "tuned": tuned}
        wrapped = (Job(job.name, common | {"arguments": job.arguments}) for job in jobs)
        for job, result in self._workers.each(call, wrapped):
            yield Job(job.name, job.arguments["arguments"]), result

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._workers is not None:
            self._workers.__exit__(kind, error, trace)


def call(function: Callable[..., Any], options: CompareOptions, output: str, tuned: Tuned, arguments: Mapping[str, Any]) -> Any:
    """In a worker: call ``function(bench, **arguments)``."""
    bench = _bench(options, output)
    for method in bench.methods:
        method.tuned.clear()
        method.tuned.update(tuned.get(method.name, {}))
    return function(bench, **arguments)


def travelling(options: CompareOptions) -> CompareOptions:
    """Options for other processes, whose working folders differ: paths of weights are absolute."""
    named = (text.partition("=") for text in options.weights)
    return replace(options, weights=tuple(f"{name}={Path(path).resolve()}" for name, _, path in named), merge=(), tune_on=())


@lru_cache(maxsize=1)
def _bench(options: CompareOptions, output: str) -> Bench:
    """Methods are loaded once in a worker."""
    methods = choose(options.methods, options.weights, options.bart, options.device, options.precision)
    return Bench(Path(output), options, methods, conventions(options.conventions))


@lru_cache(maxsize=2)
def _volumes(dataset: str, path: str) -> dict[str, FullVolume]:
    return {volume.name: volume for volume in volumes_of(dataset, Path(path))}


def _machine(bench: Bench) -> dict[str, Any]:
    return machine(bench.methods, bench.options)
