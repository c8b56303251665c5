"""One Lightning module for every system: it knows a `Gan`, and no system by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from models.parts.interface import Gan, Optimiser, Step, total
from recon.datasets.example import Example
from recon.train import health
from recon.train.supervision import HeldOutRecorder, Split
from recon.train.validation import Recorder, SliceResult

if TYPE_CHECKING:
    from kspace.operators import Sense


class Diverged(RuntimeError):
    """A loss or a gradient is not a finite number; the networks are as they were before the step."""


@dataclass(frozen=True)
class UpdateOptions:
    """How the networks are updated, beyond what the system's own optimisers and schedule say.

    Attributes
    ----------
    ema
        Decay of the running average of the generator's weights, which is what is validated and exported; 0 for none. Early on
        it is (1 + n) / (10 + n) after n steps, if that is smaller.
    clip
        Largest norm (or value, as `clip_algorithm` says) of the gradient of each network; 0 for no clipping.
    clip_algorithm
        ``norm`` or ``value``.
    """

    ema: float = 0.999
    clip: float = 0.0
    clip_algorithm: str = "norm"


class GanModule(pl.LightningModule):
    """Adversarial training of any `Gan`, manually optimised.

    Parameters
    ----------
    gan
        The system.
    options
        See there.
    recorder
        Collects the validation slices.
    n_steps
        Generator steps of the whole training, which learning rates refer to.
    split
        Self-supervision: which acquired samples are held out; None where the target is known.
    """

    def __init__(
        self,
        gan: Gan,
        options: UpdateOptions,
        recorder: Recorder | None = None,
        n_steps: int = 0,
        split: Split | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.gan, self.options, self.recorder, self.n_steps, self.split = gan, options, recorder, n_steps, split
        # Channels last: a complex image as two channels already lies in memory so, and convolutions are up to twice as fast.
        self.generator = gan.generator.to(memory_format=torch.channels_last)
        self.discriminators = nn.ModuleList(gan.discriminators).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(gan.generator).requires_grad_(False).eval() if options.ema else None
        # Steps of the generator and batches seen. Part of the state, so that a resumed run goes on where it was.
        self.steps: Tensor
        self.batches: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.step_count = self.batch_count = 0
        self.latest: dict[str, Tensor] = {}

    # ------------------------------------------------------------------------------------------------ adversarial training

    @property
    def plays(self) -> bool:
        """Whether there is a discriminator to train."""
        return bool(self.gan.d_terms)

    @property
    def batches_per_step(self) -> int:
        """Batches that one generator step takes."""
        return batches_per_step(self.gan)

    def training_step(self, batch: Example, batch_idx: int) -> None:
        gan, schedule = self.gan, self.gan.schedule
        turn = self.batch_count % self.batches_per_step
        generator_plays = turn == self.batches_per_step - 1
        discriminator_plays = self.plays and not (generator_plays and schedule.fresh_batch)
        self._set_rates()
        g_opt, *d_opt = self._optimisers()
        values: dict[str, Tensor] = {}

        # One run of the generator serves both moves, unless the generator draws a batch of its own.
        with torch.set_grad_enabled(generator_plays):
            step = self._step(batch)

        if discriminator_plays:
            d_loss, d_values = total(gan.d_terms, step)  # the terms detach the image
            self._check(d_values, "discriminator")
            d_opt[0].zero_grad()
            self.manual_backward(d_loss)
            if schedule.order == "discriminator_first" or not generator_plays:
                self._move_discriminator(d_opt[0])
            values |= {f"d/{name}": value for name, value in d_values.items()}

        if generator_plays:
            if self._is_logged():
                values |= self._health(step)
            g_loss, g_values = total(gan.g_terms, step)  # the terms freeze the discriminator
            self._check(g_values, "generator")
            g_opt.zero_grad()
            self.manual_backward(g_loss)
            if discriminator_plays and schedule.order == "simultaneous":
                self._move_discriminator(d_opt[0])
            g_opt.step()
            self._count_step()
            values |= {f"g/{name}": value for name, value in g_values.items()}

        self.batch_count += 1
        self.batches.fill_(self.batch_count)
        self._log(values)

    def _move_discriminator(self, optimiser: LightningOptimizer) -> None:
        # Lightning counts every optimiser's steps; `max_steps` and the names of checkpoints shall mean the generator's.
        with _uncounted(optimiser):
            optimiser.step()
        for discriminator in self.discriminators:
            self.gan.schedule.clamp(discriminator)

    def _step(self, batch: Example) -> Step:
        if self.split is not None:
            seen, held = self.split.train(batch, self.batch_count)
            start = seen.op.adjoint(seen.y)  # in place of a target, which no term looks at
            op = cast("Sense", seen.op)
            return self.gan.step(seen.y, op, start, regions(batch), self.step_count, held_out=(batch.y * held.mask, held))
        assert batch.target is not None
        y, balanced = batch.op.balanced(batch.y)
        # Systems are annotated with the operator of a grid; what they use of it, every forward model has.
        return self.gan.step(y, cast("Sense", balanced), batch.target, regions(batch), number=self.step_count)

    @torch.no_grad()
    def _count_step(self) -> None:
        self.step_count += 1
        self.steps.fill_(self.step_count)
        if self.average is not None:
            decay = min(self.options.ema, (1 + self.step_count) / (10 + self.step_count))
            for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for kept, current in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                kept.copy_(current)

    # ----------------------------------------------------------------------------------------------------------- optimisers

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimisers = [self.gan.g_optimiser.build(self.generator.parameters())]
        if self.plays:
            optimisers.append(self.gan.d_optimiser.build(self.discriminators.parameters()))
        return optimisers

    def _optimisers(self) -> list[LightningOptimizer]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def _set_rates(self) -> None:
        described: list[Optimiser] = [self.gan.g_optimiser, self.gan.d_optimiser]
        for plain, optimiser in zip(described, self._optimisers(), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = plain.lr.at(self.step_count, self.current_epoch, self.n_steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients are in their own units here, whatever the precision: clip them, and refuse what is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        network = "generator" if optimizer is self._optimisers()[0].optimizer else "discriminator"
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # With a gradient scaler the first steps overflow, and are skipped, by design.
        if not torch.isfinite(norm) and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            raise Diverged(f"the gradient of the {network} became {norm.item()} at {self._when()}")
        self.latest[f"gradient_norm/{network}"] = norm
        if self.options.clip and self.options.clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, self.options.clip)
        elif self.options.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.options.clip, norm)

    def _check(self, values: Mapping[str, Tensor], network: str) -> None:
        if not values or bool(torch.isfinite(torch.stack([v.float() for v in values.values()])).all()):
            return
        name, value = next((n, v) for n, v in values.items() if not torch.isfinite(v))
        raise Diverged(f"the {network}'s loss term '{name}' became {value.item()} at {self._when()}")

    def _when(self) -> str:
        return f"generator step {self.step_count + 1} (epoch {self.current_epoch}, batch {self.batch_count + 1})"

    # -------------------------------------------------------------------------------------------------------------- logging

    def _is_logged(self) -> bool:
        """Whether this is the last generator step before the trainer writes to its loggers again."""
        every: int = getattr(self.trainer, "log_every_n_steps", 0)
        return bool(every) and self.batch_count % every + self.batches_per_step >= every

    def _health(self, step: Step) -> dict[str, Tensor]:
        found = {f"gradient/{name}": value for name, value in health.gradient_norms(self.gan.g_terms, step).items()}
        return {**found, **(health.discriminator_scores(step) if self.plays else {})}

    def _log(self, values: Mapping[str, Tensor]) -> None:
        # Some values are not new with each batch; what is written is the latest of each.
        self.latest.update(values, lr=torch.tensor(self._optimisers()[0].param_groups[0]["lr"]))
        shown = {name: value for name, value in self.latest.items() if name.startswith(("g/", "d/"))}
        rest = {name: value for name, value in self.latest.items() if name not in shown}
        # With several processes what is logged is their mean, as if it were one batch.
        together = self.trainer.world_size > 1
        self.log_dict(shown, prog_bar=True, batch_size=1, sync_dist=together)
        self.log_dict(rest, batch_size=1, sync_dist=together)

    # ----------------------------------------------------------------------------------------------------------- validation

    @property
    def best_generator(self) -> nn.Module:
        """What is validated and exported: the running average of the generator, where there is one."""
        return self.average if self.average is not None else self.generator

    def validation_step(self, batch: Example, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert self.recorder is not None
        if self.split is not None:
            assert isinstance(self.recorder, HeldOutRecorder)
            seen, held = self.split.validate(batch)
            self.recorder.add_held_out(batch, seen, held, self.best_generator(seen.y, seen.op), dataloader_idx)
            return
        y, op = batch.op.balanced(batch.y)
        image = self.best_generator(y, op)
        if batch_idx == 0 and dataloader_idx == 0:
            spread = health.diversity(self.best_generator, replace(batch, y=y, op=op), image)
            if spread is not None:
                self.log("health/diversity", spread, batch_size=1)
        for i, key in enumerate(batch.keys):
            self.recorder.add(SliceResult.of(batch, i, image, key), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        assert self.recorder is not None
        for name, value in self.recorder.finish().items():
            self.log(f"val/{name}", value, prog_bar=name == "gain_db", batch_size=1)

    # ------------------------------------------------------------------------------------------------------------ moving on

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step_count = int(checkpoint["state_dict"]["steps"])
        self.batch_count = int(checkpoint["state_dict"]["batches"])


def batches_per_step(gan: Gan) -> int:
    """Batches from one generator step to the next."""
    per_step = gan.schedule.n_discriminator if gan.d_terms else 1
    return per_step + int(gan.schedule.fresh_batch and bool(gan.d_terms))


def regions(batch: Example) -> Tensor:
    """Boxes ``(n 4)``: the largest region of interest of each slice, in whole points; zeros where there is none."""
    found = torch.zeros(len(batch.boxes), 4, dtype=torch.int64, device=batch.y.device)
    for row, boxes in zip(found, batch.boxes, strict=True):
        if len(boxes):
            corners = boxes[:, 1:]
            row.copy_(_outward(corners[((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])).argmax()]))
    return found


def _outward(corners: Tensor) -> Tensor:
    return torch.cat([corners[:2].floor(), corners[2:].ceil()]).to(torch.int64)


@contextmanager
def _uncounted(optimiser: LightningOptimizer) -> Iterator[None]:
    before, after = optimiser._on_before_step, optimiser._on_after_step
    optimiser._on_before_step = optimiser._on_after_step = lambda: None
    try:
        yield
    finally:
        optimiser._on_before_step, optimiser._on_after_step = before, after
