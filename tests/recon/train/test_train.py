"""The game itself: who moves when, what is averaged, clipped, refused, and that a resumed run is the run."""

from __future__ import annotations

import copy
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from models.parts.interface import Gan, LearningRate, LossTerm, Optimiser, Schedule, Step
from models.systems import build
from recon.train.callbacks import Interrupted
from recon.train.module import Diverged, UpdateOptions, batches_per_step, regions
from tests.support.training import Scans, setup, small, state


class Record(pl.Callback):
    """Copies of both networks after every batch."""

    def __init__(self) -> None:
        self.generators: list[list[Tensor]] = []
        self.discriminators: list[list[Tensor]] = []

    def note(self, module: Any) -> None:
        self.generators.append([p.detach().clone() for p in module.generator.parameters()])
        self.discriminators.append([p.detach().clone() for p in module.discriminators.parameters()])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def moved(self, which: str) -> list[bool]:
        found = getattr(self, which)
        return [any(not torch.equal(p, q) for p, q in zip(a, b, strict=True)) for a, b in pairwise(found)]


def with_schedule(**schedule: Any) -> dict[str, Any]:
    return small("dagan", schedule=schedule)


# ------------------------------------------------------------------------------------------------------------- whose turn


@pytest.mark.parametrize(
    ("schedule", "generator", "discriminator"),
    [
        ({}, [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
        ({"order": "simultaneous"}, [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
        ({"n_discriminator": 3}, [0, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]),
        ({"n_discriminator": 3, "order": "simultaneous"}, [0, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]),
        ({"fresh_batch": True}, [0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]),
        ({"fresh_batch": True, "n_discriminator": 2}, [0, 0, 1, 0, 0, 1], [1, 1, 0, 1, 1, 0]),
    ],
)
def test_who_moves_when(tmp_path: Path, schedule: dict[str, Any], generator: list[int], discriminator: list[int]) -> None:
    record = Record()
    steps = sum(generator)
    trainer, module, loaders = setup(tmp_path, with_schedule(**schedule), callbacks=[record], max_steps=steps)
    trainer.fit(module, loaders)
    assert record.moved("generators") == [bool(x) for x in generator]
    assert record.moved("discriminators") == [bool(x) for x in discriminator]
    assert trainer.global_step == module.step_count == steps, "steps are the generator's"


def test_without_a_game_there_is_no_discriminator_to_move(tmp_path: Path) -> None:
    record = Record()
    config = small("dagan", losses={"adversarial": 0}, schedule={"n_discriminator": 5, "fresh_batch": True})
    trainer, module, loaders = setup(tmp_path, config, callbacks=[record])
    trainer.fit(module, loaders)
    assert all(record.moved("generators"))
    assert not any(record.moved("discriminators"))
    assert batches_per_step(module.gan) == 1


def quadratic() -> Gan:
    """A system whose moves can be done by hand: plain gradient descent, terms that are known functions of the weights."""
    gan = build(small("dagan"))

    def discriminator_term(step: Step) -> Tensor:
        return sum(((p - 1).square().sum() for p in step.discriminator.parameters()), torch.zeros(()))

    def generator_term(step: Step) -> Tensor:
        # Its gradient depends on the discriminator, so the order of the moves shows.
        height = sum((p.detach().sum() for p in step.discriminator.parameters()), torch.zeros(()))
        return height * sum((p.sum() for p in step.generator.parameters()), torch.zeros(()))

    sgd = Optimiser(LearningRate(0.1), name="sgd")
    return Gan(
        gan.generator, gan.discriminators,
        (LossTerm("g", 0.5, generator_term),), (LossTerm("d", 2.0, discriminator_term),), sgd, sgd,
        config=gan.config,
    )  # fmt: skip


@pytest.mark.parametrize("order", ["discriminator_first", "simultaneous"])
def test_moves_are_the_weighted_gradients_in_the_order_that_is_asked_for(tmp_path: Path, order: Any) -> None:
    gan = quadratic()
    gan = Gan(gan.generator, gan.discriminators, gan.g_terms, gan.d_terms, gan.g_optimiser, gan.d_optimiser,
              Schedule(order=order), config=gan.config)  # fmt: skip
    g0 = [p.detach().clone() for p in gan.generator.parameters()]
    d0 = [p.detach().clone() for p in gan.discriminators[0].parameters()]
    trainer, module, loaders = setup(tmp_path, gan, max_steps=1, update=UpdateOptions(ema=0))
    trainer.fit(module, loaders)
    d1 = [p - 0.1 * 2 * 2 * (p - 1) for p in d0]
    height = sum(p.sum() for p in (d1 if order == "discriminator_first" else d0))
    for p, expected in zip(gan.discriminators[0].parameters(), d1, strict=True):
        torch.testing.assert_close(p, expected)
    for p, before in zip(gan.generator.parameters(), g0, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.1 * 0.5 * height if p.requires_grad else before, rtol=1e-4, atol=1e-5)


def test_weights_of_the_discriminator_are_clipped_after_its_steps(tmp_path: Path) -> None:
    trainer, module, loaders = setup(tmp_path, with_schedule(clip=0.01, clip_norms=True))
    trainer.fit(module, loaders)
    assert max(float(p.detach().abs().max()) for p in module.discriminators.parameters()) <= 0.01
    assert max(float(p.detach().abs().max()) for p in module.generator.parameters()) > 0.01


def test_learning_rates_follow_the_generators_steps(tmp_path: Path) -> None:
    rates: list[tuple[float, float]] = []

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(tuple(o.param_groups[0]["lr"] for o in trainer.optimizers))  # type: ignore[arg-type]

    lr = {"start": 1e-2, "kind": "cosine", "warm_up": 2}
    config = small(
        "dagan", g_optimiser={"lr": lr}, d_optimiser={"lr": {"start": 0.5, "warm_up": 0}}, schedule={"n_discriminator": 2}
    )
    trainer, module, loaders = setup(tmp_path, config, callbacks=[Rates()], max_steps=3)
    trainer.fit(module, loaders)
    plan = LearningRate(1e-2, "cosine", warm_up=2)
    assert module.n_steps == 3
    assert [g for g, _ in rates] == pytest.approx([plan.at(k, 0, 3) for k in (0, 0, 1, 1, 2, 2)])
    assert {d for _, d in rates} == {0.5}


# ------------------------------------------------------------------------------------------------- averages, clipping, NaN


def test_the_average_is_the_recursion_that_it_says(tmp_path: Path) -> None:
    record = Record()
    trainer, module, loaders = setup(tmp_path, callbacks=[record], update=UpdateOptions(ema=0.2))
    mean = [p.detach().clone() for p in module.generator.parameters()]
    trainer.fit(module, loaders)
    for n, now in enumerate(record.generators[1:], start=1):
        decay = min(0.2, (1 + n) / (10 + n))
        mean = [decay * m + (1 - decay) * p for m, p in zip(mean, now, strict=True)]
    assert module.average is not None
    for p, expected in zip(module.average.parameters(), mean, strict=True):
        torch.testing.assert_close(p, expected)
    assert module.best_generator is module.average


@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2), ("value", float("inf"))])
def test_gradients_are_clipped(tmp_path: Path, algorithm: str, order: float) -> None:
    seen: list[float] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            for network in (pl_module.generator, pl_module.discriminators):
                grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
                seen.append(float(torch.linalg.vector_norm(torch.cat(grads), order)))

    update = UpdateOptions(clip=1e-3, clip_algorithm=algorithm)
    trainer, module, loaders = setup(tmp_path, callbacks=[Look()], update=update)
    trainer.fit(module, loaders)
    assert len(seen) == 8
    assert seen == pytest.approx([1e-3] * 8, rel=1e-3), "gradients this large are cut to the limit exactly"


def poisoned(which: str, at: int, slope: bool = False) -> Gan:
    gan = build(small("dagan"))

    def bad(step: Step) -> Tensor:
        value = step.image.abs().mean() if which == "g" else step.discriminator(step.target).mean()
        if step.number < at:
            return 0 * value
        # The root of zero is zero, and its slope is infinite.
        return (0 * value).sqrt() if slope else value * float("nan")

    terms = {"g": gan.g_terms, "d": gan.d_terms}
    terms[which] = (*terms[which], LossTerm("poison", 1.0, bad))
    return Gan(gan.generator, gan.discriminators, terms["g"], terms["d"], gan.g_optimiser, gan.d_optimiser, gan.schedule,
               config=gan.config)  # fmt: skip


@pytest.mark.parametrize(("which", "network"), [("g", "generator"), ("d", "discriminator")])
def test_a_loss_that_is_not_finite_stops_the_run_naming_step_and_term(tmp_path: Path, which: str, network: str) -> None:
    trainer, module, loaders = setup(tmp_path, poisoned(which, 2), validate=True, max_epochs=4, max_steps=-1, n=2)
    with pytest.raises(
        Diverged, match=rf"the {network}'s loss term 'poison' became nan at generator step 3 \(epoch 2, batch 3\)"
    ):
        trainer.fit(module, loaders)
    assert all(bool(torch.isfinite(x).all()) for x in module.state_dict().values()), "the networks are as they were"
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert int(kept["state_dict"]["steps"]) == 2, "the last good checkpoint is kept"


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_move(tmp_path: Path) -> None:
    trainer, module, loaders = setup(tmp_path, poisoned("g", 1, slope=True), n=2)
    with pytest.raises(Diverged, match=r"the gradient of the generator became (nan|inf) at generator step 2"):
        trainer.fit(module, loaders)
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


# --------------------------------------------------------------------------------------------------------------- resuming


class Press(pl.Callback):
    """Ctrl-C while batch `at` is under way."""

    def __init__(self, at: int, times: int = 1) -> None:
        self.at, self.times = at, times

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.batch_count == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def run(folder: Path, callbacks: list[pl.Callback], resume: Path | None = None, **options: Any) -> dict[str, Tensor]:
    # The gradient penalty draws random numbers, and two discriminator steps make batches and steps differ.
    config = small("refinegan", losses={"gradient_penalty": 1.0}, schedule={"n_discriminator": 2})
    trainer, module, loaders = setup(folder, config, n=6, callbacks=callbacks, **options)
    try:
        trainer.fit(module, loaders, ckpt_path=resume, weights_only=True)
    except Interrupted:
        return {}
    return {**state(module), **{f"optimiser {i}": _flat(o) for i, o in enumerate(trainer.optimizers)}}


def _flat(optimiser: torch.optim.Optimizer) -> Tensor:
    moments = [x.flatten() for p in optimiser.state.values() for x in p.values() if isinstance(x, Tensor)]
    return torch.cat(moments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A run of 6 steps that nobody interrupted."""
    before = torch.get_rng_state()
    found = run(tmp_path_factory.mktemp("whole"), [], max_epochs=4, max_steps=-1)
    torch.set_rng_state(before)
    return found


@pytest.mark.parametrize("at", [3, 4, 8])
def test_a_run_that_was_interrupted_and_resumed_is_the_run_bit_for_bit(
    tmp_path: Path, whole: dict[str, Tensor], at: int
) -> None:
    # 3 batches an epoch, 2 to a step: `at` is in the middle of an epoch, of a step and an epoch, or at the end of an epoch.
    before = signal.getsignal(signal.SIGINT)
    assert run(tmp_path / "part", [Press(at)], max_epochs=4, max_steps=-1) == {}
    assert signal.getsignal(signal.SIGINT) is before, "the signal's handler is given back"
    assert (tmp_path / "part" / "last.safetensors").is_file(), "Ctrl-C exports what there is"
    torch.manual_seed(99)
    resumed = run(tmp_path / "part", [], tmp_path / "part" / "checkpoints" / "last.ckpt", max_epochs=4, max_steps=-1)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path: Path) -> None:
    # As from `timeout -s INT`, which signals the process and then its group.
    assert run(tmp_path / "part", [Press(3, times=2)], max_epochs=4, max_steps=-1) == {}
    assert (tmp_path / "part" / "last.safetensors").is_file()


def test_resuming_from_the_checkpoint_of_a_validation_goes_on_bit_for_bit(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    run(tmp_path / "part", [Press(7)], max_epochs=4, max_steps=-1, validate=True)
    best = tmp_path / "part" / "checkpoints" / "best.ckpt"
    resumed = run(tmp_path / "part", [], best, max_epochs=4, max_steps=-1, validate=True)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_the_second_interrupt_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.train.callbacks.SAME_WISH_S", -1.0)  # as if it came long after the first
    trainer, module, loaders = setup(tmp_path, callbacks=[Press(1, times=2)])
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(module, loaders)
    finally:
        signal.signal(signal.SIGINT, before)


# -------------------------------------------------------------------------------------------------------------- precision


def test_half_precision_reaches_networks_and_nothing_else(tmp_path: Path) -> None:
    trainer, module, loaders = setup(tmp_path, small("dagan", generator={"width": 4}), precision="bf16-mixed")
    seen: dict[str, set[torch.dtype]] = {"conv": set(), "image": set()}
    for m in module.generator.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.register_forward_hook(lambda _m, _x, out: seen["conv"].add(out.dtype))
    intermediates = module.generator.intermediates

    def look(*arguments: Any) -> dict[str, Tensor]:
        found = intermediates(*arguments)
        seen["image"] |= {x.dtype for x in found.values()}
        return found

    module.generator.intermediates = look
    module.gan.generator.intermediates = look
    trainer.fit(module, loaders)
    assert seen == {"conv": {torch.bfloat16}, "image": {torch.complex64}}
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("capable", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True, "avx512_bf16": False}])
def test_half_precision_that_would_be_slow_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], capable: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable)
    setup(tmp_path, precision="32-true")
    assert capsys.readouterr().err == ""
    setup(tmp_path, precision="bf16-mixed")
    said = capsys.readouterr().err
    if "avx2" not in capable:
        assert said == ""
    else:
        assert said.startswith(
            "recon: warning: --trainer.precision bf16-mixed: this processor does not multiply bfloat16 (no avx512"
        )
        assert said.endswith("; leave it out\n")


def test_regions_are_the_largest_box_in_whole_points() -> None:
    example = Scans(1)[0, 0]  # type: ignore[index]
    boxes = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0], [1, 2.5, 3.5, 9.2, 8.0]])
    batch = copy.copy(example)
    object.__setattr__(batch, "boxes", (boxes, torch.zeros(0, 5)))
    assert regions(batch).tolist() == [[2, 3, 10, 8], [0, 0, 0, 0]]
