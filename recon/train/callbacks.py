"""Callbacks of a training: validation images, weights on disk, random state, orderly end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from recon.methods import weights
from recon.methods.weights import Card
from recon.train.module import GanModule
from recon.train.validation import SliceResult, panel
from recon.versions import versions

SAME_WISH_S = 1.0  # within which a second Ctrl-C says no more than the first


class Interrupted(RuntimeError):
    """Ctrl-C came; the step that was under way was finished."""


class Keeper(Callback):
    """Writes ``best.safetensors`` and ``last.safetensors``, whole files that `recon run` can use at any time.

    Parameters
    ----------
    folder
        Of the run.
    card
        With everything that is known before the training.
    """

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.card = folder, card
        self.best = -float("inf")
        self.validated: tuple[int, dict[str, float]] = (-1, {})  # at which step, and with what result

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        assert isinstance(pl_module, GanModule)
        self.validated = (pl_module.step_count, metrics)
        self.keep(trainer, pl_module, "last")
        if metrics.get("gain_db", -float("inf")) > self.best:
            self.best = metrics["gain_db"]
            self.keep(trainer, pl_module, "best")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted):
            self._end(trainer, pl_module)

    def _end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.keep(trainer, module, "last")
        trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt")

    def keep(self, trainer: pl.Trainer, module: pl.LightningModule, name: str) -> None:
        """Write the generator as it is now, with a card."""
        assert isinstance(module, GanModule)
        if not trainer.is_global_zero:
            return
        training = {
            **self.card.training, "steps": module.step_count, "epochs": trainer.current_epoch,
            "averaged": module.average is not None,
        }  # fmt: skip
        step, metrics = self.validated
        card = replace(self.card, training=training, metrics=metrics if step == module.step_count else {}, versions=versions())
        weights.write(self.folder / f"{name}{weights.SUFFIX}", module.best_generator.state_dict(), card, force=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = float(state_dict["best"])


class Panels(Callback):
    """An image of a few validation slices after each validation: a PNG file, and TensorBoard's.

    Parameters
    ----------
    folder
        Of the PNG files.
    n
        Slices.
    """

    def __init__(self, folder: Path, n: int = 4) -> None:
        self.folder, self.n = folder, n
        self.shown: list[tuple[str, SliceResult]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Callbacks come before the module, which starts anew; on other processes than the first nobody looks.
        assert isinstance(pl_module, GanModule)
        assert pl_module.recorder is not None
        slices = sorted(pl_module.recorder.slices.items(), key=lambda item: (item[0][0], item[0][1]))
        picked = [slices[(2 * i + 1) * len(slices) // (2 * self.n)] for i in range(min(self.n, len(slices)))]
        names = pl_module.recorder.settings
        self.shown = [(f"{names[where]} {key.file}/{key.slice}", result) for (where, key), result in picked]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.shown or not trainer.is_global_zero or trainer.sanity_checking:
            return
        assert isinstance(pl_module, GanModule)
        figure = panel([result for _, result in self.shown], [title for title, _ in self.shown])
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / f"step_{pl_module.step_count:07d}.png", dpi=110)
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_figure("validation", figure, pl_module.step_count, close=False)
        self.shown = []


class RandomState(Callback):
    """Keeps the state of torch's random generators in the checkpoint, so that a resumed run draws what it would have drawn."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["random"]["cuda"] = torch.cuda.get_rng_state_all()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint.get("random")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.loaded is None:
            return
        torch.set_rng_state(self.loaded["cpu"].cpu())
        cuda = self.loaded.get("cuda", [])
        if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in cuda])
        self.loaded = None


class StopOnSignal(Callback):
    """Ctrl-C ends the training after the step that is under way; a second one ends it at once.

    Several processes end after the same step, whichever of them was told, and in whichever step: one that went on alone would
    wait for the others for ever.
    """

    def __init__(self) -> None:
        self.asked, self.first = False, 0.0
        self.before: Callable[[int, FrameType | None], Any] | int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not earlier: the trainer remembers the handlers of its own start, and sets them again at its end.
        def ask(number: int, frame: FrameType | None) -> None:
            # `timeout` and shells signal a process and then its group: both mean the same wish.
            if self.asked and time.monotonic() - self.first > SAME_WISH_S:
                signal.default_int_handler(number, frame)
            if not self.asked:
                self.asked, self.first = True, time.monotonic()

        try:
            self.before = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not the main thread: nobody can press Ctrl-C on it either
            self.before = None

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        several = trainer.world_size > 1
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False) if several else self.asked:
            raise Interrupted

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        # Several processes may have different numbers of batches to validate with: they end with the next step of training.
        if self.asked and trainer.world_size == 1:
            raise Interrupted

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None
