"""Delivery of a generator's image: with its evidence, or the classical image in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kspace.container import ImageIndex, KSpace
from kspace.errors import InputError
from kspace.operators import ForwardModel
from recon.evidence.assess import Assessor, EvidenceOptions, Findings, ScanEvidence
from recon.evidence.record import ITEMS, ROLES, Fallback, GuardReport, HeldOutScore, ImageEvidence
from recon.methods import classical
from recon.methods.choose import Method
from recon.methods.classical import Reconstructor
from recon.run.log import Log
from recon.run.options import RunOptions

# Of a class of errors, what to tell; every other error is named by its class.
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Delivery:
    """What is delivered for each image of a generator.

    Parameters
    ----------
    method
        Of a generator.
    options
        Of the run.
    log
        Takes evidence and warnings.
    """

    def __init__(self, method: Method, options: RunOptions, log: Log) -> None:
        assert method.generator is not None
        self._method, self._log = method, log
        self.name = None if options.classical == "none" else options.classical
        self.companion: Reconstructor | None = None if self.name is None else classical.make(self.name)
        measured = EvidenceOptions(options.evidence, options.guard, options.repeats)
        self._assessor = Assessor(method.generator, self.companion, measured, method.details["refine"])
        self._strict_guard = options.guard == "strict"

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the images delivered: see `roles_of`."""
        return roles_of(self.name)

    def planes(
        self,
        k: KSpace,
        op: ForwardModel,
        fitted: Callable[[ImageIndex], Method],
        score: Callable[[ImageIndex], HeldOutScore | None],
    ) -> dict[str, Tensor]:
        """Images of prepared k-space by role, ``(*batch y x)``: ``main`` and companion complex, the maps of the evidence real
        or complex.

        Parameters
        ----------
        k, op
            Prepared k-space and its forward model.
        fitted
            The method for an image; may fail as a network does.
        score
            Held-out score of its stack, after `fitted`.

        Raises
        ------
        InputError
            If the image cannot be made and there is no classical one.
        """
        index = k.header.index
        beside: Tensor | None = None
        if self.companion is not None:
            assert self.name is not None
            with self._log.step(self.name):
                beside = self.companion(k.data, op)
        with self._log.step("evidence"):
            # Of the last image: all images of an encoding share mask and coils, and so their limits.
            scan = self._assessor.scan(k.data, op, beside, k.header.noise_std, k.header.study)
            guard = self._assessor.guard(scan)
        self._log.thresholds = {name: value for name, value in vars(self._assessor.limits(scan)).items() if value is not None}
        made, found, reason = None, Findings(), self._refused(guard)
        if reason is None:
            made, used, reason = self._attempt(k, op, index, fitted)
            if made is not None:
                found, reason = self._measured(made, scan, used, score(index), index)
        return self._decided(index, made, beside, replace(found, guard=guard), reason)

    def _refused(self, guard: GuardReport | None) -> str | None:
        if guard is None:
            return None
        for difference in guard.outside:
            self._log.warn(f"outside of what {self._method.name} was trained on: {difference}")
        return f"domain guard: {'; '.join(guard.outside)}" if self._strict_guard and guard.outside else None

    def _attempt(
        self, k: KSpace, op: ForwardModel, index: ImageIndex, fitted: Callable[[ImageIndex], Method]
    ) -> tuple[Tensor | None, Method, str | None]:
        """The generated image ``(*batch y x)``, what made it, and why there is none."""
        method = self._method
        try:
            method = fitted(index)
            assert method.reconstruct is not None
            with self._log.step("reconstruct"):
                image = method.reconstruct(k.data, op)
        except OUT_OF_MEMORY as error:
            return None, method, f"out of memory ({_first_line(error)})"
        except Exception as error:  # whatever a network does: the scan must not be lost for it
            if self.companion is None:
                raise
            return None, method, f"{type(error).__name__}: {_first_line(error)}"
        if not bool(torch.isfinite(torch.view_as_real(image)).all()):
            return None, method, "values that are not finite"
        return image, method, None

    def _measured(
        self, image: Tensor, scan: ScanEvidence, method: Method, score: HeldOutScore | None, index: ImageIndex
    ) -> tuple[Findings, str | None]:
        """The evidence of an image ``(*batch y x)``, and why it is not delivered."""
        assert method.reconstruct is not None
        try:
            with self._log.step("evidence"):
                found = self._assessor.judge(image, scan, method.reconstruct, score, index.name)
        except OUT_OF_MEMORY as error:
            self._log.warn(f"{index.name}: no evidence, out of memory ({_first_line(error)}); --evidence basic needs less")
            return Findings(), None
        beyond = found.certificate is not None and found.certificate.verdict == "red"
        assert not beyond or found.certificate is not None
        return found, f"certificate: {found.certificate.says}" if beyond and found.certificate is not None else None

    def _decided(
        self, index: ImageIndex, made: Tensor | None, beside: Tensor | None, found: Findings, reason: str | None
    ) -> dict[str, Tensor]:
        fallback = None
        main = made
        if reason is not None and beside is None and made is None:
            raise InputError(
                f"{index.name}: {self._method.name} gave no image: {reason}",
                "--classical none",
                "leave it out, or choose a classical --method",
            )
        if reason is not None and beside is not None:
            assert self.name is not None
            main, fallback = beside, Fallback(self.name, reason)
            self._log.warn(f"{index.name}: {self.name} delivered in place of {self._method.name}: {reason}")
        assert main is not None
        items = {name: getattr(found, name) for name in ITEMS}
        delivered = self._method.name if fallback is None else fallback.delivered
        counters = {name: int(value) for name, value in vars(index).items()}
        self._log.evidence.append(ImageEvidence(index.name, counters, delivered, self.name, **items, fallback=fallback))
        return {"main": main} | self._maps(main, beside, found, fallback is not None)

    def _maps(self, main: Tensor, beside: Tensor | None, found: Findings, replaced: bool) -> dict[str, Tensor]:
        """Companion, prior, difference and std, all ``(*batch y x)``, as far as they exist. The maps tell of a generated image:
        where a classical one is delivered, they are left out."""
        maps: dict[str, Tensor] = {}
        if beside is not None:
            assert self.name is not None
            maps[self.name] = beside
        if replaced or self._assessor.options.level == "none":
            return maps
        if found.prior is not None:
            maps["prior"] = found.prior
        if beside is not None:
            maps["difference"] = main.abs() - beside.abs()
        if found.std is not None:
            maps["std"] = found.std
        return maps

    def summarise(self) -> None:
        """Warn once of each kind of finding that is not green, with its first image and how many there are."""
        for item in ITEMS:
            if item == "guard":  # has warned for itself
                continue
            known = [(e, getattr(e, item)) for e in self._log.evidence if e.fallback is None and getattr(e, item) is not None]
            bad = [(e, one) for e, one in known if one.verdict != "green" and not _expected(item, one)]
            if bad:
                first, worst = bad[0][0], bad[0][1]
                more = f" (and {len(bad) - 1} more of {len(known)} images)" if len(bad) > 1 else ""
                self._log.warn(f"{item.replace('_', '-')}, {first.image}: {worst.says}{more}")


def roles_of(companion: str | None) -> tuple[str, ...]:
    """Roles of the images of a generator: main, companion, maps of the evidence."""
    return ("main", *(() if companion is None else (companion,)), *ROLES)


def replaced(evidence: list[ImageEvidence]) -> list[ImageEvidence]:
    """Those whose generated image was not delivered."""
    return [one for one in evidence if one.fallback is not None]


def _expected(item: str, found: Any) -> bool:
    """Whether what is not green is only the absence of a calibration: on record, but no warning to repeat for each scan."""
    if item == "uncertainty":
        return not found.calibrated
    return item in ("determined", "stability") and found.threshold is None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
