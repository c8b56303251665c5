"""The interface of a GAN: generator, discriminators, and named loss terms that are pure functions of one `Step`.

A training loop for any system, both updates explicit::

    step = gan.step(y, op, target, number=n)
    total(gan.d_terms, step)[0].backward()      # reaches the discriminators only: these terms detach the image
    total(gan.g_terms, step)[0].backward()      # reaches the generator only: these terms freeze the discriminators

Optimisers, learning rates, the number of discriminator steps and weight clipping are plain data in `Gan`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kspace.operators import Sense


class Generator(nn.Module, ABC):
    """Image from undersampled k-space: ``generator(y, op)``.

    The operator is an argument of each call and never a member: coil maps and masks do not enter the `state_dict`.

    Attributes
    ----------
    homogeneous
        Declared by each class. True: any matrix, coil count and mask, and ``generator(c * y, op) = c * generator(y, op)`` for
        c > 0 (raw presets). False: matrix size and intensity range of the paper, a single-coil image with magnitudes in [0, 1]
        (published presets).
    fitted
        Each image is an optimisation of its own: too slow for what repeats a reconstruction, and without gradients.
    begins_from
        Other systems whose weights this one can begin with (`adopted`).
    """

    homogeneous: ClassVar[bool]
    fitted: ClassVar[bool] = False
    begins_from: ClassVar[tuple[str, ...]] = ()

    def forward(self, y: Tensor, op: Sense) -> Tensor:
        """Reconstruct k-space ``(*batch coil ky kx)``, complex, to the image ``(*batch y x)``, complex, same precision."""
        return self.intermediates(y, op)["image"]

    @abstractmethod
    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """Reconstruct, and keep the images on the way that loss terms use.

        Parameters
        ----------
        y, op
            k-space, complex ``(*batch coil ky kx)``, and its forward model.

        Returns
        -------
        dict
            Complex images ``(*batch y x)`` in the units of `y`, by name; the result under ``"image"``.
        """

    def training_images(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """The images that loss terms see, as `intermediates` unless overridden, of k-space ``(*batch coil ky kx)``.

        A generator that takes noise draws it anew here; called for a reconstruction, its noise is fixed.
        """
        return self.intermediates(y, op)

    @abstractmethod
    def learned(self) -> list[nn.Module]:
        """List the trained networks, without the weights of data consistency."""

    def adopted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights that this generator begins with, from those of an earlier one, tensors of any shape: the same by default."""
        return dict(state)

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        """Intensity that counts as 1 in the loss terms: positive, real ``(*batch 1 1)``.

        1 unless overridden, as published presets compute in their own range. `y` is complex ``(*batch coil ky kx)``.
        """
        return torch.ones((*y.shape[:-3], 1, 1), dtype=y.real.dtype, device=y.device)


class Discriminator(nn.Module, ABC):
    """Features and scores of an image, complex ``(*batch y x)``, in units of the slice's scale.

    Each discriminator takes from it what its paper shows: the magnitude, or two channels.

    Attributes
    ----------
    conditional
        It judges pairs, complex ``(*batch 2 y x)``: the image and the starting image.
    """

    conditional: ClassVar[bool] = False

    def forward(self, image: Tensor, roi: Tensor | None = None) -> Tensor:
        """Score an image, complex ``(*batch y x)``; `roi` as `Step.roi`.

        Returns
        -------
        Tensor
            Real ``(n ...)``, one row for each of the n slices; logits where the loss applies a sigmoid.
        """
        return self.features(image, roi)[-1]

    @abstractmethod
    def features(self, image: Tensor, roi: Tensor | None = None) -> list[Tensor]:
        """Activations of the layers for an image, complex ``(*batch y x)``, outermost first; the last entry is the scores."""


@dataclass(frozen=True, eq=False)
class Step:
    """One training batch as the loss terms see it, in units of the slice's scale (`Generator.scale`).

    Attributes
    ----------
    intermediates
        Complex images ``(*batch y x)`` by name (`Generator.intermediates`); ``"image"`` is the generator's output.
    target
        Complex reference image ``(*batch y x)``.
    y
        Measured k-space, complex ``(*batch coil ky kx)``.
    op
        Forward model of `y`.
    generator, discriminators
        The networks. Generator terms use the discriminators within `frozen`; discriminator terms detach the image.
    roi
        Region of interest of each slice, integer ``(*batch 4)``: first row, first column, last row + 1, last column + 1; or
        None.
    number
        Generator steps taken so far; loss weights may depend on it.
    held_out
        Acquired samples ``(*batch coil ky kx)`` that the generator did not see, zero elsewhere, and the forward model that
        measures them; None where nothing is held out.
    """

    intermediates: Mapping[str, Tensor]
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
        """Output of the generator, complex ``(*batch y x)``."""
        return self.intermediates["image"]

    @property
    def discriminator(self) -> Discriminator:
        """The only discriminator; ValueError where there are none or several."""
        if len(self.discriminators) != 1:
            raise ValueError(f"this step has {len(self.discriminators)} discriminators; name one of `discriminators`")
        return self.discriminators[0]

    def judged(self, image: Tensor, discriminator: Discriminator | None = None) -> Tensor:
        """What a discriminator judges (default: the only one) of an image, complex ``(*batch y x)``: itself, or the pair."""
        discriminator = self.discriminator if discriminator is None else discriminator
        if not discriminator.conditional:
            return image
        return torch.stack([image, self.intermediates["start"].detach()], -3)

    def score(self, image: Tensor) -> Tensor:
        """Scores of the only discriminator for an image, complex ``(*batch y x)``: real ``(n ...)``."""
        return self.discriminator(self.judged(image), self.roi)


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
        Pure function of a `Step`, returning a real scalar.
    """

    name: str
    weight: float | Callable[[int], float]
    fn: Callable[[Step], Tensor]

    def at(self, number: int) -> float:
        """Weight after `number` generator steps."""
        return self.weight(number) if callable(self.weight) else self.weight


def total(terms: Iterable[LossTerm], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of `terms`, a real scalar, and each unweighted value, detached, by name. Terms of weight 0 are skipped."""
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
    """Drop the terms that are switched off (weight 0 throughout)."""
    return tuple(t for t in candidates if callable(t.weight) or t.weight != 0)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Context in which gradients pass through the modules to their input but do not reach their parameters."""
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
    """Learning-rate schedule as plain data.

    Attributes
    ----------
    start
        Base rate; the other entries multiply it.
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
        """Rate at `step` of `n_steps` in `epoch`, both counted from 0."""
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
    """Optimiser as plain data; `build` makes it. The training loop sets the rate of each step from `lr.at`.

    Adam: Kingma and Ba 2015, arXiv 1412.6980.
    """

    lr: LearningRate = LearningRate(1e-3, "cosine", warm_up=100)
    name: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser over those of `parameters` that require gradients."""
        trained = [p for p in parameters if p.requires_grad]
        if self.name == "sgd":
            return torch.optim.SGD(trained, lr=self.lr.start)
        return torch.optim.Adam(trained, lr=self.lr.start, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class Schedule:
    """Order and length of the adversarial training, as plain data.

    Attributes
    ----------
    n_discriminator
        Discriminator steps per generator step.
    order
        ``discriminator_first``: the generator's gradient is taken against the updated discriminator; ``simultaneous``: both
        gradients are taken before either update.
    fresh_batch
        The generator step draws its own batch instead of reusing the discriminator's.
    clip, clip_norms
        Clamp the discriminator's weights to ± `clip` after each of its steps; with `clip_norms` also the scales and shifts of
        normalisation layers.
    mask_per
        One mask for each ``slice``, ``batch`` or whole ``run``.
    batch_size, max_epochs, steps_per_epoch
        As published; None: as many steps as the data give.
    patience
        Epochs without improvement on the validation data after which to stop; None: never.
    """

    n_discriminator: int = 1
    order: Literal["discriminator_first", "simultaneous"] = "discriminator_first"
    fresh_batch: bool = False
    clip: float | None = None
    clip_norms: bool = False
    mask_per: Literal["slice", "batch", "run"] = "slice"
    batch_size: int = 4
    max_epochs: int = 50
    steps_per_epoch: int | None = None
    patience: int | None = None

    def clamp(self, discriminator: nn.Module) -> None:
        """Clip the weights of a WGAN critic in place, where `clip` is set (Arjovsky 2017, arXiv 1701.07875)."""
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
    """Trainable system: networks, loss terms, optimisers and schedule.

    Attributes
    ----------
    generator, discriminators
        The networks.
    g_terms, d_terms
        Loss terms of the generator, that of image fidelity first, and of the discriminators. Names are unique within each.
    g_optimiser, d_optimiser, schedule
        Training as published, or as the raw preset defines it.
    find_roi
        Regions of interest, for discriminators that use one: target, complex ``(*batch y x)``, to boxes, integer
        ``(*batch 4)``; called where the data set has none.
    config
        Resolved options, from which `models.systems.build` makes the same system again.
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

    def __post_init__(self) -> None:
        for side, found in (("g_terms", self.g_terms), ("d_terms", self.d_terms)):
            names = [term.name for term in found]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{side}: two terms are called {twice!r}; each is logged under its name, so choose another")

    def step(
        self,
        y: Tensor,
        op: Sense,
        target: Tensor,
        roi: Tensor | None = None,
        number: int = 0,
        held_out: tuple[Tensor, Sense] | None = None,
    ) -> Step:
        """Run the generator and collect what the loss terms need.

        Parameters
        ----------
        y, op
            k-space ``(*batch coil ky kx)``, complex, and its forward model.
        target
            Complex ``(*batch y x)``, in the units of `y`.
        roi
            Integer boxes ``(*batch 4)`` (`Step.roi`); a box of zero area marks a slice without one.
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
        intermediates = self.generator.training_images(y, op)
        if held_out is not None:
            held_out = held_out[0] / scale.unsqueeze(-3), held_out[1]
        return Step(intermediates, target, y, op, self.generator, self.discriminators, roi, number, held_out)
