"""Scan-specific adaptation: a few parameters of a generator are trained on the acquired samples of one volume.

Test-time training (Darestani, Liu and Heckel 2022, "Test-time training can close the natural distribution shift performance gap
in deep learning based compressed sensing", ICML, PMLR 162:4754-4776). In each step random acquired samples outside of the
calibration area are taken out of the input of the network, which has to predict them. Further samples are taken out of
everything and tell when to stop.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kspace.fourier import fft
from kspace.operators import Sense
from kspace.seeds import RandomGenerator
from recon.methods.generator import GeneratorReconstructor
from recon.methods.held_out import Candidates, without

FEWEST = 20  # lines or points below which nothing can be spared
SHARE = 0.05  # of the generator's parameters, at most, that are adapted
SLICES = 6  # of a volume, at most, that a generator is adapted on


@dataclass(frozen=True)
class Recipe:
    """How a generator is adapted.

    Attributes
    ----------
    seconds
        Time after which no further step begins.
    steps
        Most steps; one slice each.
    rate
        Learning rate of Adam.
    unused
        Share of the candidates that no step sees, and that decide when to stop.
    predicted
        Share of the others that a step takes out and predicts.
    check
        Steps between two looks at the unused samples.
    patience
        Looks without improvement after which adaptation ends.
    seed
        Of all draws.
    """

    seconds: float
    steps: int = 60
    rate: float = 3e-4
    unused: float = 0.12
    predicted: float = 0.2
    check: int = 5
    patience: int = 3
    seed: int = 0


@dataclass(eq=False)
class State:
    """Where an adaptation stands: what it needs to go on as if it had not stopped.

    Attributes
    ----------
    step
        Steps taken.
    values, best
        Adapted parameters by name, tensors of any shape, now and where the unused samples were predicted best.
    optimiser
        State of Adam: tensors of any shape, by parameter and name.
    errors
        Relative squared error at the unused samples, by step; that at step 0 is the network's own.
    """

    step: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)

    @property
    def best_step(self) -> int:
        """The step whose parameters are used."""
        return min(self.errors, key=lambda step: (self.errors[step], step))


@dataclass(frozen=True, eq=False)
class Adapted:
    """A generator after adaptation.

    Attributes
    ----------
    network
        The generator with the best parameters; the one that was given, where adaptation was not possible or did not help.
    recipe
        How.
    state
        Where adaptation ended; None where it was not possible.
    why
        What ended it, in words.
    """

    network: GeneratorReconstructor
    recipe: Recipe
    state: State | None
    why: str

    @property
    def says(self) -> str:
        """One sentence for records and DICOM."""
        if self.state is None:
            return f"{self.network.name} not adapted: {self.why}"
        first, best = self.state.errors[0], self.state.errors[self.state.best_step]
        return (
            f"{self.network.name} adapted to the scan in {self.state.best_step} steps ({self.why}): error at unused samples "
            f"{best / first - 1:+.1%}"
        )

    def record(self) -> dict[str, Any]:
        """What the record of a run keeps."""
        found: dict[str, Any] = {"recipe": vars(self.recipe), "why": self.why}
        if self.state is not None:
            errors = {str(step): error for step, error in sorted(self.state.errors.items())}
            found |= {"steps": self.state.step, "best_step": self.state.best_step, "unused_errors": errors}
        return found


def adapted_parameters(network: GeneratorReconstructor) -> list[str]:
    """Names of the parameters that adaptation changes: the smallest tensors, up to `SHARE` of all parameters.

    These are the weights of data consistency, biases, normalisation, and the convolutions at full resolution.
    """
    sizes = sorted((p.numel(), name) for name, p in network.generator.named_parameters())
    most, total, names = SHARE * sum(n for n, _ in sizes), 0, []
    for n, name in sizes:
        total += n
        if total > most:
            break
        names.append(name)
    return names


def adapt(
    network: GeneratorReconstructor,
    cases: Sequence[tuple[Tensor, Sense]],
    recipe: Recipe,
    state: State | None = None,
    clock: Callable[[], float] = time.monotonic,
    keep: Callable[[State], None] | None = None,
) -> Adapted:
    """Adapt a generator to a volume. The one that was given does not change.

    Parameters
    ----------
    network
        Generator.
    cases
        k-space ``(coil ky kx)`` and operator of slices of the volume.
    recipe
        How.
    state
        Of an adaptation of the same volume by the same recipe, to go on with.
    clock
        Seconds, for the time limit.
    keep
        Called with the state after each look at the unused samples, to save it.
    """
    slices = [found for number, (y, op) in enumerate(cases) if (found := _Slice.of(y, op, recipe, number)) is not None]
    if not slices:
        return Adapted(network, recipe, None, f"fewer than {FEWEST} lines or points outside the calibration area")
    generator = copy.deepcopy(network.generator).requires_grad_(False)
    chosen = set(adapted_parameters(network))
    parameters = {name: p for name, p in generator.named_parameters() if name in chosen}
    for p in parameters.values():
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(list(parameters.values()), lr=recipe.rate)
    state = State() if state is None else copy.deepcopy(state)
    _restore(state, parameters, optimiser)
    trained = replace(network, generator=generator)
    why, until = "all steps", clock() + recipe.seconds
    if not state.errors:
        state.errors[0] = _unused_error(trained, slices)
        state.best = _values(parameters)
    while state.step < recipe.steps:
        if clock() >= until:
            why = "time limit"
            break
        if state.step - state.best_step >= recipe.patience * recipe.check:
            why = "no further gain at unused samples"
            break
        _step(trained, slices[state.step % len(slices)], optimiser, recipe, state.step)
        state.step += 1
        if state.step % recipe.check == 0:
            state.errors[state.step] = _unused_error(trained, slices)
            if state.best_step == state.step:
                state.best = _values(parameters)
            if keep is not None:
                keep(_kept(state, parameters, optimiser))
    state = _kept(state, parameters, optimiser)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state.best[name])
    generator.requires_grad_(False)
    return Adapted(network if state.best_step == 0 else trained, recipe, state, why)


@dataclass(frozen=True, eq=False)
class _Slice:
    """A slice with its unused samples ``(ky kx|1)``, and what may be taken out of the others."""

    y: Tensor
    op: Sense
    unused: Tensor
    candidates: Candidates
    number: int

    @classmethod
    def of(cls, y: Tensor, op: Sense, recipe: Recipe, number: int) -> _Slice | None:
        found = Candidates.among(op.mask.reshape(-1, *op.mask.shape[-2:]).all(0).cpu(), y.shape[-2:])
        if found.n < FEWEST:
            return None
        unused = found.draw(1, recipe.unused, recipe.seed)[0]
        rest = replace(found, where=found.where & ~unused)
        return cls(torch.where(op.mask, y, 0), op, unused, rest, number)

    def predicted(self, recipe: Recipe, step: int) -> Tensor:
        """What step number `step` takes out, bool ``(ky kx|1)``."""
        random = RandomGenerator(f"adapt\n{recipe.seed}\n{self.number}\n{step}")
        ky, kx = self.candidates.where.nonzero().T.numpy()
        chosen = random.uniform(len(ky)).argsort()[: max(1, round(recipe.predicted * len(ky)))]
        mask = torch.zeros_like(self.unused)
        mask[ky[chosen], kx[chosen]] = True
        return mask


def _predict(network: GeneratorReconstructor, s: _Slice, out: Tensor) -> Tensor:
    """Samples ``(coil ky kx)`` that the network predicts from a slice without the samples `out` ``(ky kx|1)``."""
    op = without(s.op, out).to(network.device)
    reduced = torch.autocast(network.device.type, torch.bfloat16, enabled=network.precision == "bf16")
    with reduced:
        image = network.on_device(torch.where(op.mask, s.y.to(network.device), 0), op)
    return fft(image.unsqueeze(-3) * op.maps)


def _step(network: GeneratorReconstructor, s: _Slice, optimiser: torch.optim.Adam, recipe: Recipe, step: int) -> None:
    predicted = s.predicted(recipe, step)
    optimiser.zero_grad(set_to_none=True)
    samples = _predict(network, s, s.unused | predicted)
    where = predicted.expand(samples.shape[-2:]).to(samples.device)
    y = s.y.to(samples.device)[..., where]
    e = samples[..., where] - y
    tiny = torch.finfo(torch.float32).tiny
    # As Darestani et al. and Yaman et al. 2020 (doi:10.1002/mrm.28378): l2 follows the strong samples, l1 the weak ones too.
    loss = e.abs().sum() / y.abs().sum().clamp(min=tiny) + e.norm() / y.norm().clamp(min=tiny)
    loss.backward()
    optimiser.step()


def _unused_error(network: GeneratorReconstructor, slices: Sequence[_Slice]) -> float:
    """Mean over the slices of the squared error at the unused samples over their energy."""
    total = 0.0
    for s in slices:
        with torch.no_grad():
            samples = _predict(network, s, s.unused).cpu()
        w = s.unused.expand(samples.shape[-2:])
        e, y = ((x.to(torch.complex128).abs().square() * w).sum() for x in (samples - s.y.cpu(), s.y.cpu()))
        total += float(e / y.clamp(min=1e-300))
    return total / len(slices)


def _kept(state: State, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Adam) -> State:
    return replace(state, values=_values(parameters), optimiser=_moments(parameters, optimiser))


def _values(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _moments(parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Adam) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.detach().clone() for key, value in optimiser.state[p].items()}
        for name, p in parameters.items()
        if p in optimiser.state
    }


def _restore(state: State, parameters: dict[str, torch.nn.Parameter], optimiser: torch.optim.Adam) -> None:
    with torch.no_grad():
        for name, value in state.values.items():
            parameters[name].copy_(value)
    for name, moments in state.optimiser.items():
        optimiser.state[parameters[name]] = {key: value.clone() for key, value in moments.items()}
