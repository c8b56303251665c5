"""All evidence of one generated image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kspace.operators import ForwardModel, Sense
from recon.evidence.calibration import Calibration, Setting, Thresholds
from recon.evidence.certificate import certificate, misfit, weighed
from recon.evidence.determined import determined_part, judge_determined
from recon.evidence.guard import ScanFacts, inspect
from recon.evidence.noise import noise_level, residual_of
from recon.evidence.record import (
    Certificate,
    Determined,
    GuardReport,
    HeldOutScore,
    Measured,
    NoiseSource,
    Stability,
    Uncertainty,
)
from recon.evidence.replicates import held_out_of_replicates, quick, repeat, replicate, spread_of, worst_case_scale
from recon.evidence.stability import PLANES, judge_stability, largest_gain
from recon.methods.generator import GeneratorReconstructor

Level = Literal["full", "basic", "none"]
Guard = Literal["warn", "strict", "off"]
Reconstruct = Callable[[Tensor, ForwardModel], Tensor]


@dataclass(frozen=True)
class EvidenceOptions:
    """What is measured.

    Attributes
    ----------
    level
        ``full``; ``basic``: without uncertainty and stability; ``none``.
    guard
        ``warn``, ``strict`` or ``off``.
    k
        Reconstructions for the uncertainty.
    seed
        Of everything random.
    """

    level: Level = "full"
    guard: Guard = "warn"
    k: int = 4
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ScanEvidence:
    """What is known before the network runs.

    Attributes
    ----------
    y, op
        Complex ``(*batch coil ky kx)``, zero where not acquired, and its forward model.
    classical
        Companion's image, complex ``(*batch y x)``; None: there is none.
    noise
        Standard deviation of a sample, and its source; None: neither noise nor signal.
    facts
        For the guard.
    setting
        Calibration that fits; None: none does.
    """

    y: Tensor
    op: ForwardModel
    classical: Tensor | None
    noise: tuple[float, NoiseSource] | None
    facts: ScanFacts
    setting: Setting | None


@dataclass(frozen=True, eq=False)
class Findings:
    """Items of the record, and the maps that go with them.

    Attributes
    ----------
    certificate, determined, held_out, uncertainty, stability, guard
        None where not measured.
    prior
        Part that the data do not determine, complex ``(*batch y x)``.
    std
        Half width of the interval, real ``(*batch y x)``; None without calibration.
    """

    certificate: Certificate | None = None
    determined: Determined | None = None
    held_out: HeldOutScore | None = None
    uncertainty: Uncertainty | None = None
    stability: Stability | None = None
    guard: GuardReport | None = None
    prior: Tensor | None = None
    std: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Assessor:
    """Measures the evidence of a generator's images.

    Attributes
    ----------
    network
        The generator.
    companion
        The classical method; None: none.
    options
        What to measure.
    refine
        ``stack``, ``residual`` or ``none``: which calibration holds.
    """

    network: GeneratorReconstructor
    companion: Reconstruct | None
    options: EvidenceOptions
    refine: str = "stack"
    calibration: Calibration = field(init=False)

    def __post_init__(self) -> None:
        card = self.network.card
        object.__setattr__(self, "calibration", Calibration.of(card.calibration, f"the card of {card.name}"))

    def scan(
        self, y: Tensor, op: ForwardModel, classical: Tensor | None, noise_std: float | None, study: Mapping[str, Any]
    ) -> ScanEvidence:
        """What the samples ``(*batch coil ky kx)`` say before the network runs.

        Parameters
        ----------
        y, op
            k-space and forward model; samples that were not acquired have no influence.
        classical
            Companion's image, complex ``(*batch y x)``.
        noise_std
            Of the header; None: unknown.
        study
            Scan header, for the field strength.
        """
        y = torch.where(op.mask, y, 0)
        noise = None
        if bool((y != 0).any()):
            residual = residual_of(classical if classical is not None else y.new_zeros((*y.shape[:-3], *op.shape)), y, op)
            noise = noise_level(y, op, noise_std, residual)
        facts = ScanFacts.of(y, op, classical, None if noise is None else noise[0], study)
        # Cards are calibrated with masks of a grid.
        known = isinstance(op, Sense)
        setting = self.calibration.nearest(facts.kind, facts.acceleration, facts.coils) if known else None
        return ScanEvidence(y, op, classical, noise, facts, setting)

    def limits(self, scan: ScanEvidence) -> Thresholds:
        """Thresholds for a scan: those of the card, or the defaults."""
        found = None if scan.setting is None else scan.setting.thresholds.get(self.refine)
        return found or Thresholds()

    def guard(self, scan: ScanEvidence) -> GuardReport | None:
        """The domain guard's report; None where it is off."""
        if self.options.guard == "off":
            return None
        return inspect(scan.facts, self.network.card, self.calibration, scan.setting, self.limits(scan))

    def judge(
        self, image: Tensor, scan: ScanEvidence, reconstruct: Reconstruct, held_out: HeldOutScore | None, name: str
    ) -> Findings:
        """Everything but the guard, of a finite image.

        Parameters
        ----------
        image
            Complex ``(*batch y x)``.
        scan
            From `scan`.
        reconstruct
            What made the image.
        held_out
            Score of the volume's stack; None: measured here, if at all.
        name
            Of the image, for the record.
        """
        if self.options.level == "none" or scan.noise is None:
            return Findings()
        magnitudes = self.network.card.preset == "published"
        judged = image if not magnitudes or scan.classical is None else torch.polar(image.abs(), scan.classical.angle())
        limits, std = self.limits(scan), scan.noise[0]
        part, lamda = determined_part(judged, scan.op, std)
        found = Findings(
            certificate=self._certificate(judged, scan, limits, magnitudes),
            determined=judge_determined(judged, part, lamda, limits.share),
            held_out=held_out,
            prior=(judged - part) * scan.op.support,
        )
        found = self._repeated(found, judged, scan, reconstruct, name)
        assert found.certificate is not None
        return replace(found, certificate=weighed(found.certificate, found.held_out))

    def _certificate(self, image: Tensor, scan: ScanEvidence, limits: Thresholds, magnitudes: bool) -> Certificate:
        assert scan.noise is not None
        std = scan.noise[0]
        delivered = misfit(image, scan.y, scan.op, std)
        beside = None if scan.classical is None else misfit(scan.classical, scan.y, scan.op, std)
        before = None if magnitudes else before_exact_consistency(self.network, scan.y, scan.op)
        judged = delivered if before is None else misfit(before, scan.y, scan.op, std)
        of: Measured = "delivered image" if before is None else "image before exact data consistency"
        note = "a published preset gives magnitudes: judged with the phase of the classical image" if magnitudes else ""
        return certificate(judged, beside, delivered, scan.noise, limits, of, note)

    def _repeated(self, found: Findings, image: Tensor, scan: ScanEvidence, reconstruct: Reconstruct, name: str) -> Findings:
        """Uncertainty, stability, and the held-out score where no stack has one."""
        assert scan.noise is not None
        std, k = scan.noise[0], self.options.k
        # A fit takes minutes and has no gradient: it is neither repeated for an interval nor differentiated for stability.
        full = self.options.level == "full" and not self.network.generator.fitted
        needed = k if full else (0 if found.held_out is not None or self.companion is None else 1)
        if needed:
            repeated = repeat(self.network, reconstruct, scan.y, scan.op, std, needed, self.options.seed)
            if found.held_out is None and self.companion is not None:
                # Draws of a posterior sampler hold nothing out.
                scored = (
                    repeated if repeated.held else replicate(quick(reconstruct), scan.y, scan.op, std, 1, self.options.seed)
                )
                found = replace(found, held_out=held_out_of_replicates(scored, self.companion, scan.y, scan.op, name))
            if full:
                sigma = spread_of(image, repeated, scan.op.support)
                found = self._uncertainty(found, sigma, image, scan)
        elif full:
            says = "K = 0: no repeated reconstructions, so no interval"
            found = replace(found, uncertainty=Uncertainty("amber", says, False, None, None, None, 0, None))
        if not full:
            return found
        y, op = _few_planes(scan.y, scan.op)
        gains = largest_gain(self.network, self.companion, y, op, worst_case_scale(y, op, std), self.options.seed)
        return replace(found, stability=judge_stability(*gains, self.limits(scan).gain))

    def _uncertainty(self, found: Findings, sigma: Tensor, image: Tensor, scan: ScanEvidence) -> Findings:
        k, setting = self.options.k, scan.setting
        factor = None if setting is None or self.calibration.k != k else setting.factors.get(self.refine)
        if setting is None or factor is None:
            why = (
                "the card has no calibration for this mask, acceleration and number of coils"
                if setting is None or self.calibration.k == k
                else f"the card was calibrated with K = {self.calibration.k}"
            )
            return replace(found, uncertainty=Uncertainty("amber", f"no interval: {why}", False, None, None, None, k, None))
        std = factor * sigma
        inside = scan.op.support.expand(image.shape)
        width = float(std[inside].mean() / image.abs()[inside].mean().clamp(min=1e-30)) if bool(inside.any()) else 0.0
        nominal, n = self.calibration.nominal, setting.n_volumes
        says = (
            f"the magnitude lies in +- {width:.1%} of the mean (map: std) for {nominal:.0%} of the pixels of volumes like "
            f"those of the calibration ({setting.key}, {n} volumes); no guarantee for other scans"
        )
        item = Uncertainty("green", says, True, factor, nominal, nominal * n / (n + 1), k, width, setting.key)
        return replace(found, uncertainty=item, std=std)


def before_exact_consistency(network: GeneratorReconstructor, y: Tensor, op: ForwardModel) -> Tensor | None:
    """A network's image before it ends in exact replacement of the samples, complex ``(*batch y x)``; None where it does not.

    Parameters
    ----------
    network
        The generator.
    y, op
        Complex ``(*batch coil ky kx)``, and its forward model.
    """
    from models.parts.raw import Cascade

    generator = network.generator
    if not isinstance(op, Sense) or op.n_coils != 1 or not isinstance(generator, Cascade) or not len(generator.consistency):
        return None
    with torch.inference_mode():
        found = generator.intermediates(y.to(network.device), op.to(network.device))
    return found[f"before_{len(generator.networks) - 1}"].to(y.device).clone()


def _few_planes(y: Tensor, op: ForwardModel) -> tuple[Tensor, ForwardModel]:
    """At most `PLANES` planes of a volume, spread over it."""
    if y.ndim == 3:
        return y, op
    flat = y.reshape(-1, *y.shape[-3:])
    n = min(PLANES, len(flat))
    chosen = torch.tensor([int((i + 0.5) * len(flat) / n) for i in range(n)], device=y.device)
    return flat[chosen], op.flattened(y.shape[:-3]).planes(chosen)
