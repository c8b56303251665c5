"""Every method on every slice of a volume under one mask: the same objects for all, results kept as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kspace.errors import InputError
from kspace.masks import MaskSpec, acceleration
from recon.compare import store
from recon.compare.cases import Case, FullVolume, make_case, spread
from recon.compare.held_out import has_no_phase
from recon.compare.holding import NoiseLevel
from recon.compare.methods import ComparedMethod, call
from recon.compare.metrics import figures, support
from recon.compare.store import GroupImages, MaskedVolume, SliceLog, SliceRow, VolumeRow
from recon.compare.timing import Cost, measure
from recon.methods.stack import SLICES, Stack
from recon.metrics.image import Convention
from recon.metrics.missing import METRIC, MissingEnergies, missing_energies, missing_error

REASON = 300  # characters


@dataclass(eq=False)
class Runner:
    """Runs what has not been run yet.

    Attributes
    ----------
    folder
        Of the comparison.
    methods
        All of them.
    log
        The rows of slices so far.
    maps
        How coil maps are made.
    progress
        Counts pairs of slice and method.
    outside
        By method and mask: in what the data differ from all that a generator was trained on.
    noise
        By volume: how its noise is known.
    fits
        By method, and by volume and mask: the weights of a stack and how they were chosen.
    warm
        Methods and shapes ``(coil ky kx)`` that were called before: their next call is timed.
    """

    folder: Path
    methods: Sequence[ComparedMethod]
    log: SliceLog
    maps: str
    progress: tqdm[None]
    outside: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    noise: dict[str, str] = field(default_factory=dict)
    fits: dict[str, dict[str, Any]] = field(default_factory=dict)
    warm: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)

    def run(self, volume: FullVolume, slices: Sequence[int], spec: MaskSpec, group: MaskedVolume) -> GroupImages | None:
        """All slices of one volume and mask; their images, None where not one slice could be read."""
        images = self._begun(group, slices)
        stacks: dict[str, Stack] = {}
        rows = self.log.of(group)

        def done(position: int, method: ComparedMethod) -> bool:
            row = rows.get((slices[position], method.name))
            return row is not None and (row.failed or (images is not None and images.made(method.name, position)))

        for position, number in enumerate(slices):
            missing = [method for method in self.methods if not done(position, method)]
            self.progress.update(len(self.methods) - len(missing))
            if not missing:
                continue
            try:
                case = self._case(volume, number, spec, group)
            except Exception as error:  # whatever a file or an estimate can raise: the others go on
                for method in missing:
                    self.log.append(self._row(group, number, method, _reason(error), None, Cost(0.0)))
                continue
            if images is None:
                images = _empty(group, slices, case, volume)
            images.truth[position] = case.truth
            stacks = stacks or self._stacks(volume, slices, spec, group)
            made = [self._one(group, number, position, method, case, images, stacks) for method in missing]
            images.support = support(images.truth)
            store.write_images(self.folder, images)
            for row in made:  # behind the images: a row says that its image is there
                self.log.append(row)
        return images

    def _stacks(self, volume: FullVolume, slices: Sequence[int], spec: MaskSpec, group: MaskedVolume) -> dict[str, Stack]:
        """The stacks among the methods, with their weights for this volume and mask.

        A slice that cannot be read leaves the choice to the others; without any, each call makes its own weights.
        """
        found: dict[str, Stack] = {}
        cases: list[Case] = []
        for method in self.methods:
            if not isinstance(method.reconstruct, Stack):
                continue
            if not cases:
                for number in spread(slices, SLICES):
                    with suppress(InputError, ValueError, RuntimeError):
                        cases.append(self._case(volume, number, spec, group))
            if not cases:
                break
            start = time.perf_counter()
            stack = method.reconstruct.fitted([(case.y, case.op) for case in cases])
            seconds = time.perf_counter() - start
            assert stack.fit is not None
            entry = {"says": stack.fit.says, "seconds_per_slice": _rounded(seconds / len(slices)), **stack.fit.record()}
            self.fits.setdefault(method.name, {})[f"{group.volume}, {group.mask}"] = entry
            found[method.name] = stack
        return found

    def _case(self, volume: FullVolume, number: int, spec: MaskSpec, group: MaskedVolume) -> Case:
        case = make_case(volume, number, spec, self.maps)
        shape = tuple(case.y.shape)
        if case.digest != group.digest:
            raise InputError(f"slice {number} was acquired otherwise than the others: its mask is not that of the volume")
        if ("coil maps", shape) not in self.warm:  # the first call planned transforms and loaded libraries
            self.warm.add(("coil maps", shape))
            case = make_case(volume, number, spec, self.maps)
        return case

    def _one(
        self,
        group: MaskedVolume,
        number: int,
        position: int,
        method: ComparedMethod,
        case: Case,
        images: GroupImages,
        stacks: Mapping[str, Stack],
    ) -> SliceRow:
        """One method on one slice: an image, or a row that says why there is none."""
        self.progress.set_postfix_str(f"{group.volume} {number}, {group.mask}: {method.name}")
        reconstruct = stacks.get(method.name, method.under(group.mask))
        image = images.images.setdefault(method.name, np.full_like(images.truth, np.nan))
        cost, reason, energies = Cost(0.0), "", None
        try:
            if (method.name, tuple(case.y.shape)) not in self.warm:
                call(reconstruct, case.y, case.op)
                self.warm.add((method.name, tuple(case.y.shape)))
            result, cost = measure(lambda: call(reconstruct, case.y, case.op))
            image[position] = case.deliver(result)
            energies = self._energies(result, case, group)
        except Exception as error:  # whatever a method can raise: its row says so, the others go on
            reason = _reason(error)
        self._note_outside(method, group, case)
        return self._row(group, number, method, reason, case, cost, energies)

    def _share(self, method: ComparedMethod, group: MaskedVolume) -> float:
        """Seconds of a slice that the weights of a stack took."""
        entry = self.fits.get(method.name, {}).get(f"{group.volume}, {group.mask}", {})
        return float(entry.get("seconds_per_slice") or 0.0)

    def _energies(self, image: Tensor, case: Case, group: MaskedVolume) -> MissingEnergies | None:
        if case.full is None:
            return None
        noise = NoiseLevel.of(case.full)
        self.noise.setdefault(f"{group.dataset}/{group.volume}", noise.says)
        if has_no_phase(image):
            image = image * torch.sgn(case.op.adjoint(case.y))
        return missing_energies(image, case.op, case.full, noise.variance)

    def _row(
        self,
        group: MaskedVolume,
        number: int,
        method: ComparedMethod,
        reason: str,
        case: Case | None,
        cost: Cost,
        energies: MissingEnergies | None = None,
    ) -> SliceRow:
        self.progress.update()
        return SliceRow(
            *(group.dataset, group.volume, number, group.mask, group.digest, group.acceleration, method.name),
            status="failed" if reason else "ok",
            reason=reason,
            seconds=None if reason else _rounded(cost.seconds + self._share(method, group)),
            maps_seconds=None if case is None else _rounded(case.maps_seconds),
            peak_cpu_mb=_rounded(cost.peak_cpu_mb),
            peak_gpu_mb=_rounded(cost.peak_gpu_mb),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            missing_error=None if energies is None else energies.error,
            missing_signal=None if energies is None else energies.signal,
            missing_noise=None if energies is None else energies.noise,
        )

    def _note_outside(self, method: ComparedMethod, group: MaskedVolume, case: Case) -> None:
        if method.generator is None:
            return
        said = self.outside.setdefault(method.name, {}).setdefault(group.mask, [])
        r = acceleration(case.op.grid_mask, (case.op.shape[-2], case.op.shape[-1]))
        said += [text for text in method.generator.outside(case.op, r) if text not in said]

    def _begun(self, group: MaskedVolume, slices: Sequence[int]) -> GroupImages | None:
        """What an earlier, interrupted run left of this group."""
        path = self.folder / group.file
        if not path.exists():
            return None
        images = store.read_images(path)
        if images.group != group or images.slices != tuple(slices):
            raise InputError("the images are of another comparison", path, "give --force, or another folder with -o")
        return images


def give_up(group: MaskedVolume, slices: Sequence[int], log: SliceLog, methods: Sequence[ComparedMethod], reason: str) -> None:
    """A row of failure for every slice and method that has none yet."""
    known = log.of(group)
    for number in slices:
        for method in methods:
            if (number, method.name) not in known:
                what = (group.dataset, group.volume, number, group.mask, group.digest, group.acceleration, method.name)
                log.append(SliceRow(*what, status="failed", reason=reason[:REASON]))


def volume_rows(
    group: MaskedVolume,
    n_slices: int,
    images: GroupImages | None,
    log: SliceLog,
    methods: Sequence[ComparedMethod],
    others: Sequence[Convention],
) -> list[VolumeRow]:
    """One row for each method, with the metrics of the volume where no slice failed."""
    found = []
    for method in methods:
        rows = [row for (_, name), row in log.of(group).items() if name == method.name]
        failures = [row for row in rows if row.failed]
        metrics = {} if failures or images is None or len(rows) < n_slices else figures(images, method.name, others)
        corrected = missing_error([energies for row in rows if (energies := _of_row(row)) is not None])
        if metrics and corrected is not None:
            metrics[METRIC] = corrected
        found.append(
            VolumeRow(
                *(group.dataset, group.volume, group.mask, group.digest, group.acceleration, method.name, method.label),
                n_slices=n_slices,
                n_failed=len(failures),
                reason=failures[0].reason if failures else "",
                seconds_per_slice=_mean([row.seconds for row in rows]),
                maps_seconds_per_slice=_mean([row.maps_seconds for row in rows]),
                peak_cpu_mb=_largest([row.peak_cpu_mb for row in rows]),
                peak_gpu_mb=_largest([row.peak_gpu_mb for row in rows]),
                metrics=metrics,
            )
        )
    return found


def _of_row(row: SliceRow) -> MissingEnergies | None:
    if row.missing_error is None or row.missing_signal is None:
        return None
    return MissingEnergies(row.missing_error, row.missing_signal, row.missing_noise)


def _empty(group: MaskedVolume, slices: Sequence[int], case: Case, volume: FullVolume) -> GroupImages:
    shape = (len(slices), *case.shape)
    boxes = volume.boxes[np.isin(volume.boxes[:, 0], slices)]
    mask = case.op.grid_mask[0].cpu().numpy()
    return GroupImages(group, tuple(slices), np.full(shape, np.nan, np.float32), np.zeros(shape, bool), boxes, mask)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{name}{text}"[:REASON] or type(error).__name__


def _rounded(value: float | None) -> float | None:
    """To four digits, as files keep it: a resumed run gives the same means as one that was not interrupted."""
    return None if value is None else float(f"{value:.4g}")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
