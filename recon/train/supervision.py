"""Training without fully sampled data: part of the acquired samples is held out, and what the generator predicts of it counts.

Yaman et al., Self-supervised learning of physics-guided reconstruction neural networks without fully sampled reference data,
Magn Reson Med 2020;84:3172, doi:10.1002/mrm.28378. The calibration area always stays with the generator, so the coil maps are
those of the scan. Written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kspace.coils import calibration_region
from kspace.errors import InputError
from kspace.operators import ForwardModel, Sense, on_grid
from kspace.simulation.from_images import generator
from models.parts.interface import Gan, LossTerm
from models.parts.losses import held_out
from recon.datasets.example import Example, Key
from recon.train.validation import Recorder, sense


@dataclass(frozen=True)
class Split:
    """Which acquired samples are held out.

    Attributes
    ----------
    share
        Of the acquired samples (or lines) outside of the calibration area, the part that a training step holds out.
    reserved
        The part of them that no training step sees at all: validation holds out just these. 0: validation draws `share`.
    seed
        Seed of what is drawn.
    """

    share: float = 0.3
    reserved: float = 0.0
    seed: int = 0

    def train(self, batch: Example, number: int) -> tuple[Example, Sense]:
        """A batch without what step `number` holds out, and the operator that measures this.

        Returns
        -------
        tuple
            The batch, its samples zero where held out, and `Sense` with the mask of the held-out samples.
        """
        return self._split(batch, number)

    def validate(self, batch: Example) -> tuple[Example, Sense]:
        """The same for validation: always the same samples of a slice."""
        return self._split(batch, None)

    def _split(self, batch: Example, number: int | None) -> tuple[Example, Sense]:
        op = on_grid(batch.op, "--data.supervision self", "give scans on a Cartesian grid")
        single = op.mask.ndim == 3
        masks = op.mask[None] if single else op.mask
        pairs = [self._masks(mask, key, number) for mask, key in zip(masks, batch.keys, strict=True)]
        seen, held = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
        seen, held = (seen[0], held[0]) if single else (seen, held)
        inside = replace(batch, y=batch.y * seen, op=replace(op, mask=seen))
        return inside, replace(op, mask=held)

    def _masks(self, mask: Tensor, key: Key, number: int | None) -> tuple[Tensor, Tensor]:
        """What the generator sees and what is held out of one slice, bool ``(1 ky kx)`` or ``(1 ky 1)``."""
        candidates = (mask & ~_calibration(mask)).flatten().nonzero()[:, 0].cpu()
        if len(candidates) < 2:
            raise InputError(
                f"only {len(candidates)} samples lie outside of the calibration area, too few to hold some out",
                key.file,
                "leave the scan out",
            )
        order = candidates[torch.randperm(len(candidates), generator=generator(self.seed, key.file, key.slice, "reserved"))]
        n_reserved = max(1, round(self.reserved * len(order))) if self.reserved else 0
        reserved, free = order[:n_reserved], order[n_reserved:]
        if number is None and n_reserved:
            return _without(mask, reserved)
        rng = generator(self.seed, key.file, key.slice, "validation" if number is None else number)
        chosen = free[torch.randperm(len(free), generator=rng)][: max(1, round(self.share * len(free)))]
        seen, _ = _without(mask, torch.cat([reserved, chosen]))
        return seen, _without(mask, chosen)[1]


def self_supervised(gan: Gan) -> Gan:
    """The system with the error on held-out samples as its only loss; without a true image it has no discriminator."""
    return replace(gan, g_terms=(LossTerm("held_out", 1.0, held_out),), d_terms=())


@dataclass
class HeldOutRecorder(Recorder):
    """Validation on held-out samples, beside SENSE on the same data.

    Attributes
    ----------
    errors
        For each data loader and slice the squared errors of the generator and of SENSE, and the energy of the samples.
    """

    errors: dict[tuple[int, Key], tuple[float, float, float]] = field(default_factory=dict)
    sense_errors: dict[tuple[int, Key], float] = field(default_factory=dict)

    def add_held_out(self, batch: Example, seen: Example, held: Sense, image: Tensor, setting: int) -> None:
        """Take a batch in: what was acquired, what the generator saw of it, and what it made of that, complex ``(n y x)``."""
        squared = _squared_errors(batch, held, image)
        for i, key in enumerate(batch.keys):
            where = (setting, key)
            if where not in self.sense_errors:
                self.sense_errors[where] = float(_squared_errors(batch, held, sense()(seen.y, seen.op))[i])
            energy = float((batch.y[i] * held.mask[i]).abs().double().square().sum())
            self.errors[where] = (float(squared[i]), self.sense_errors[where], energy)

    def finish(self) -> dict[str, float]:
        """``held_out_error``, relative and mean over the slices, that of SENSE, and ``gain_db`` of the one over the other."""
        found: Sequence[Any] = self.gather(list(self.errors.items()))
        self.errors = {}
        rows = dict(found)
        if not rows:
            return {}
        ours, theirs, energy = torch.tensor(list(rows.values()), dtype=torch.float64).clamp_min(1e-300).unbind(1)
        return {
            "held_out_error": float((ours / energy).sqrt().mean()),
            "sense_held_out_error": float((theirs / energy).sqrt().mean()),
            "gain_db": float(10 * (theirs / ours).log10().mean()),
        }


def _squared_errors(batch: Example, held: ForwardModel, image: Tensor) -> Tensor:
    error = held.forward(image) - batch.y * held.mask
    return error.abs().double().square().sum((-3, -2, -1))


def _calibration(mask: Tensor) -> Tensor:
    """The central block that was sampled completely: bool, of the shape of `mask`, ``(1 ky kx)`` or ``(1 ky 1)``."""
    inside = torch.zeros_like(mask)
    n_y, n_x = mask.shape[-2:]
    height, width = calibration_region(mask[0])
    y, x = n_y // 2 - height // 2, n_x // 2 - width // 2
    inside[:, y : y + height, x : x + width] = True
    return inside


def _without(mask: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The mask without what lies at the flat `places`, and these alone."""
    held = torch.zeros_like(mask).flatten()
    held[places.to(mask.device)] = True
    held = held.view(mask.shape)
    return mask & ~held, held
