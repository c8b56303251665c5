"""What a training loop knows of a GAN: a generator, its critics, and named loss terms that are pure functions of one `Step`.

A loop that trains any system here reads, with the two moves of the game in the open::

    step = gan.step(y, op, target, number=n)
    total(gan.d_terms, step)[0].backward()      # reaches only the critics: their terms detach the image themselves
    total(gan.g_terms, step)[0].backward()      # reaches only the generator: their terms freeze the critics themselves

Everything else that a system wants of the loop (optimisers, learning rates, the number of critic steps, weight clipping) is
plain data in `Gan`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kspace.operators import Sense


class Generator(nn.Module, ABC):
    """Measured k-space to image: ``generator(y, op)``.

    The operator is an argument of each call and never a member, so no coil map and no mask enters the `state_dict`.

    A *raw* generator takes any matrix, coil count and mask, and is positively homogeneous in `y`: it divides `y` by one
    positive number per slice, taken from ``|A^H y|``, and multiplies the image by it. A *published* one keeps the size and the
    intensity range of its paper: the k-space of a single-coil image whose magnitude lies in [0, 1].
    """

    def forward(self, y: Tensor, op: Sense) -> Tensor:
        """k-space ``(*batch coil ky kx)``, complex, to image ``(*batch y x)``, complex of the same precision."""
        return self.stages(y, op)["image"]

    @abstractmethod
    def stages(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """The image under the key ``"image"``, and whatever images on the way to it the loss terms look at, by name.

        All are complex ``(*batch y x)`` and in the units of `y`.
        """

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        """Positive real ``(*batch 1 1)``: the intensity that counts as 1 for the loss terms. 1 for published presets."""
        return torch.ones((*y.shape[:-3], 1, 1), dtype=y.real.dtype, device=y.device)


class Discriminator(nn.Module, ABC):
    """Image to features and scores.

    The image is complex ``(*batch y x)``, in units of the slice's scale; each critic takes from it what its paper shows it
    (magnitude or two channels).
    """

    def forward(self, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """Scores, real ``(n ...)`` with one row for each of the n slices: logits where the loss takes a sigmoid of them."""
        return self.features(image, roi)[-1]

    @abstractmethod
    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations of the layers, outermost first; the last entry is the scores."""


@dataclass(frozen=True, eq=False)
class Step:
    """One batch as the loss terms see it. Images and k-space are in units of the slice's scale (`Generator.scale`).

    Attributes
    ----------
    stages
        Complex images ``(*batch y x)`` by name (`Generator.stages`); ``"image"`` is the generator's output.
    target
        Complex ``(*batch y x)``: the image that was aimed at.
    y
        Complex ``(*batch coil ky kx)``: what was measured.
    op
        The forward model that `y` was measured with.
    generator, discriminators
        The networks. Terms use them only through `score` and `frozen`, or detach what they hand them.
    roi
        Integer ``(*batch 4)``: box of each slice as first row, first column, last row + 1, last column + 1; or None.
    number
        Generator steps taken so far: weights may depend on it.
    held_out
        Acquired samples ``(*batch coil ky kx)`` that the generator did not see, zero elsewhere, and the forward model that
        measures them; None where nothing is held out.
    """

    stages: Mapping[str, Tensor]
    target: Tensor
    y: Tensor
    op: Sense
    generator: Generator
    discriminators: tuple[Discriminator, ...] = ()
    roi: Tensor | None = None
    number: int = 0
    held_out: tuple[Tensor, Sense] | None = None

    @property
    def image(self) -> Tensor:
        """The generator's output, complex ``(*batch y x)``."""
        return self.stages["image"]

    @property
    def discriminator(self) -> Discriminator:
        """The critic of systems that have one."""
        if len(self.discriminators) != 1:
            raise ValueError(f"this step has {len(self.discriminators)} discriminators; name one of `discriminators`")
        return self.discriminators[0]


@dataclass(frozen=True)
class LossTerm:
    """A named, weighted term of a loss.

    Attributes
    ----------
    name
        The name it is logged under.
    weight
        A number, or a function of the number of generator steps taken (`Step.number`).
    fn
        Pure function of a `Step` giving a real scalar.
    """

    name: str
    weight: float | Callable[[int], float]
    fn: Callable[[Step], Tensor]

    def at(self, number: int) -> float:
        """The weight after `number` generator steps."""
        return self.weight(number) if callable(self.weight) else self.weight


def total(terms: Iterable[LossTerm], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of `terms`, and each unweighted value, detached, by name. Terms of weight 0 are not computed."""
    loss = step.image.real.new_zeros(())
    values = {}
    for term in terms:
        weight = term.at(step.number)
        if weight != 0:
            value = term.fn(step)
            loss = loss + weight * value
            values[term.name] = value.detach()
    return loss, values


def terms(*candidates: LossTerm) -> tuple[LossTerm, ...]:
    """The terms less those that are switched off (weight 0 throughout)."""
    return tuple(t for t in candidates if callable(t.weight) or t.weight != 0)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within it, gradients pass through the modules to their input but do not reach their parameters."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@dataclass(frozen=True)
class LearningRate:
    """A learning rate over time, as plain data.

    Attributes
    ----------
    start
        The rate that the other entries multiply.
    kind
        ``constant``; ``step``: times `factor` after every `every` units; ``piecewise``: linear between `points` (unit,
        multiplier), constant outside; ``cosine``: to 0 at the end of training.
    unit
        What `every` and `points` count: ``epoch`` or ``step``.
    warm_up
        Number of steps over which the rate rises linearly from 0.
    """

    start: float
    kind: Literal["constant", "step", "piecewise", "cosine"] = "constant"
    unit: Literal["epoch", "step"] = "epoch"
    every: int = 0
    factor: float = 1.0
    points: tuple[tuple[float, float], ...] = ()
    warm_up: int = 0

    def __post_init__(self) -> None:
        if self.kind == "step" and self.every < 1:
            raise ValueError("a learning rate of kind 'step' needs every >= 1")
        if self.kind == "piecewise" and not self.points:
            raise ValueError("a learning rate of kind 'piecewise' needs points")

    def at(self, step: int, epoch: int, n_steps: int) -> float:
        """The rate of step `step` (from 0) in epoch `epoch` (from 0) of a training of `n_steps` steps."""
        rate = self.start * min(1.0, (step + 1) / self.warm_up if self.warm_up else 1.0)
        t = epoch if self.unit == "epoch" else step
        if self.kind == "step":
            return rate * self.factor ** (t // self.every)
        if self.kind == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, n_steps))))
        if self.kind == "piecewise":
            return rate * _interpolate(t, self.points)
        return rate


def _interpolate(t: float, points: tuple[tuple[float, float], ...]) -> float:
    if t <= points[0][0]:
        return points[0][1]
    for (t0, v0), (t1, v1) in pairwise(points):
        if t < t1:
            return v0 + (v1 - v0) * (t - t0) / (t1 - t0)
    return points[-1][1]


@dataclass(frozen=True)
class Optimiser:
    """An optimiser as plain data; `build` makes it. Its learning rate is set anew at each step from `lr.at`."""

    lr: LearningRate = LearningRate(1e-3, "cosine", warm_up=100)
    name: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over those of `parameters` that can be trained."""
        trained = [p for p in parameters if p.requires_grad]
        if self.name == "sgd":
            return torch.optim.SGD(trained, lr=self.lr.start)
        return torch.optim.Adam(trained, lr=self.lr.start, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class Schedule:
    """The order of the game and its length, as plain data.

    Attributes
    ----------
    n_critic
        Critic steps per generator step.
    order
        ``critic_first``: the generator's gradient is taken against the updated critic; ``simultaneous``: both gradients are
        taken before either update.
    fresh_batch
        The generator step draws a batch of its own instead of using the critic's.
    clip, clip_norms
        Clamp the critic's weights to ± `clip` after each of its steps; scales and shifts of normalisation layers too.
    mask_per
        One mask for each ``slice``, ``batch`` or whole ``run``.
    batch_size, max_epochs, steps_per_epoch
        As published; None: as many steps as the data give.
    patience
        Epochs without improvement on the validation data after which to stop; None: never.
    """

    n_critic: int = 1
    order: Literal["critic_first", "simultaneous"] = "critic_first"
    fresh_batch: bool = False
    clip: float | None = None
    clip_norms: bool = False
    mask_per: Literal["slice", "batch", "run"] = "slice"
    batch_size: int = 4
    max_epochs: int = 50
    steps_per_epoch: int | None = None
    patience: int | None = None

    def clamp(self, discriminator: nn.Module) -> None:
        """Clip the weights of `discriminator` in place, where `clip` says so (Arjovsky 2017, arXiv 1701.07875)."""
        if self.clip is None:
            return
        norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
        with torch.no_grad():
            for module in discriminator.modules():
                if self.clip_norms or not isinstance(module, norms):
                    for p in module.parameters(recurse=False):
                        p.clamp_(-self.clip, self.clip)


@dataclass(frozen=True, eq=False)
class Gan:
    """A system ready to be trained.

    Attributes
    ----------
    generator, discriminators
        The networks.
    g_terms, d_terms
        Loss terms of the generator and of the discriminators.
    g_optimiser, d_optimiser, schedule
        How the published code, or our raw preset, trains it.
    find_roi
        For systems that look at a region of interest: target ``(*batch y x)`` to boxes ``(*batch 4)``, used where the data set
        has none.
    config
        The resolved options, from which `models.systems.build` makes the same system again.
    """

    generator: Generator
    discriminators: tuple[Discriminator, ...]
    g_terms: tuple[LossTerm, ...]
    d_terms: tuple[LossTerm, ...]
    g_optimiser: Optimiser = field(default_factory=Optimiser)
    d_optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    find_roi: Callable[[Tensor], Tensor] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def step(
        self,
        y: Tensor,
        op: Sense,
        target: Tensor,
        roi: Tensor | None = None,
        number: int = 0,
        held_out: tuple[Tensor, Sense] | None = None,
    ) -> Step:
        """Run the generator and lay out what the loss terms need.

        Parameters
        ----------
        y, op
            k-space ``(*batch coil ky kx)``, complex, and its forward model.
        target
            Complex ``(*batch y x)``, in the units of `y`.
        roi
            Integer boxes ``(*batch 4)`` (`Step.roi`). A box without area means that the data set has none for that slice.
        number
            Generator steps taken so far.
        held_out
            See `Step.held_out`, in the units of `y`.
        """
        scale = self.generator.scale(y, op)
        target, y = target / scale, y / scale.unsqueeze(-3)
        if self.find_roi is not None:
            found = self.find_roi(target)
            roi = found if roi is None else torch.where((roi[..., 2:] > roi[..., :2]).all(-1, keepdim=True), roi, found)
        stages = self.generator.stages(y, op)
        if held_out is not None:
            held_out = held_out[0] / scale.unsqueeze(-3), held_out[1]
        return Step(stages, target, y, op, self.generator, self.discriminators, roi, number, held_out)


@dataclass(frozen=True)
class Preset:
    """One way of building a system, found by `models.systems` in the module's ``PRESETS``.

    Attributes
    ----------
    generator
        Makes the generator from keyword options (the section ``generator`` of a configuration).
    gan
        Makes the whole system from the generator and its other sections, each a dataclass given by keyword, with a default.
    """

    generator: Callable[..., Generator]
    gan: Callable[..., Gan]
