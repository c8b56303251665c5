"""What the raw presets share: options, scaling, starting image, adversarial training, and terms that any of them may add."""
# ruff: noqa: RUF009 - the defaults are frozen dataclasses

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kspace.errors import InputError
from kspace.operators import Sense
from models.parts import losses
from models.parts.adversarial import AdversarialWeights, adversarial, discriminator_terms, feature_matching
from models.parts.consistency import Consistency, Observation, Start, slice_scale, starting_image
from models.parts.contract import ContractError
from models.parts.interface import Discriminator, Gan, Generator, LearningRate, LossTerm, Optimiser, Schedule, terms
from models.parts.layers import Norm, from_channels, to_channels
from models.parts.perceptual import Perceptual, perceptual_term


@dataclass(frozen=True)
class RawGeneratorOptions:
    """Options that every raw generator has.

    Parameters
    ----------
    norm
        Normalisation: ``none`` or ``instance``; ``batch`` makes a slice's result depend on its batch.
    start
        Starting image: ``sense``, the regularised solve, or ``adjoint``, ``A^H y``.
    start_lamda
        Regularisation of that solve.
    consistency
        Data consistency after each network.
    lamda
        Its initial weight, noise over signal variance: see `models.parts.consistency.Consistency`.
    learn_lamda
        Train that weight.
    adapt_lamda
        Make it depend on noise, acceleration and axes of undersampling of the scan.
    tolerance
        Relative residual of all solves.
    """

    norm: Norm = "none"
    start: Start = "sense"
    start_lamda: float = 0.02
    consistency: bool = True
    lamda: float = 0.1
    learn_lamda: bool = True
    adapt_lamda: bool = True
    tolerance: float = 1e-3

    def data_consistency(self, exact: bool = False) -> Consistency:
        """Make one block of data consistency; `exact` replaces the samples of single-coil scans."""
        return Consistency(self.lamda, self.learn_lamda, exact, self.tolerance, self.adapt_lamda)


@dataclass(frozen=True)
class RawLosses(AdversarialWeights):
    """Loss weights that every raw preset has; 0 switches a term off.

    Parameters
    ----------
    image
        Weight of the image error.
    perceptual
        Weight of the perceptual term.
    """

    image: float = 1.0
    perceptual: float = 0.0


@dataclass(frozen=True)
class Extra:
    """Weights of further terms, logged as ``extra_`` and their name: see the function of that name in `models.parts.losses`."""

    l1: float = 0.0
    l2: float = 0.0
    nmse: float = 0.0
    structural_dissimilarity: float = 0.0
    total_variation: float = 0.0
    frequency: float = 0.0
    kspace_masked: float = 0.0
    kspace_full: float = 0.0
    data_consistency_error: float = 0.0
    cyclic_measurement: float = 0.0
    cyclic_image: float = 0.0
    feature_matching: float = 0.0


@dataclass(frozen=True)
class RawOptions:
    """Sections that the configuration of every raw preset has; each system adds its ``discriminator``.

    Parameters
    ----------
    generator, losses, extra
        Network and loss weights.
    perceptual
        Features of the perceptual term.
    g_optimiser, d_optimiser, schedule
        Training.
    """

    generator: RawGeneratorOptions = RawGeneratorOptions()
    losses: RawLosses = RawLosses()
    perceptual: Perceptual = Perceptual()
    extra: Extra = Extra()
    g_optimiser: Optimiser = Optimiser()
    d_optimiser: Optimiser = Optimiser(LearningRate(1e-4), betas=(0.5, 0.999))
    schedule: Schedule = Schedule()


class RawGenerator(Generator):
    """Generator for complex multi-coil data: any matrix, coil count and mask, homogeneous in `y`, zero for a slice of zeros.

    A system implements `refine` on scaled data; scaling and starting image are done here. An untrained generator returns its
    starting image, up to data consistency: the layers in `last_layers` start at zero.

    Parameters
    ----------
    options
        See there.
    """

    homogeneous = True
    options: Any

    def __init__(self, options: RawGeneratorOptions) -> None:
        super().__init__()
        self.options = options

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if taken := sorted({"forward", "intermediates", "scale"} & set(vars(cls))):
            where = f"{cls.__module__}.{cls.__qualname__}"
            raise ContractError(where, "scaling", f"a raw generator defines `{taken[0]}`", "define `refine` on scaled data")

    @abstractmethod
    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """Reconstruct from the starting image, complex ``(*batch y x)``, all in units of the slice's scale.

        Returns
        -------
        dict
            Images, complex ``(*batch y x)``, by name; the result under ``"image"``.
        """

    @abstractmethod
    def last_layers(self) -> list[nn.Module]:
        """List the layers that end a correction and start at zero; empty where a network's output replaces the image."""

    def scale(self, y: Tensor, op: Sense) -> Tensor:
        """`slice_scale` of k-space ``(*batch coil ky kx)``: real ``(*batch 1 1)``."""
        return slice_scale(y, op)

    def prepared(self, y: Tensor, op: Sense) -> tuple[Observation, Tensor, Tensor]:
        """Scaled observation of k-space ``(*batch coil ky kx)``, starting image ``(*batch y x)``, and the factor that restores
        units, real ``(*batch 1 1)``."""
        observed, unit = Observation.scaled(y, op)
        start = starting_image(observed, self.options.start, self.options.start_lamda, self.options.tolerance)
        return observed, start, unit

    def intermediates(self, y: Tensor, op: Sense) -> dict[str, Tensor]:
        """``start`` and the images of `refine`, complex ``(*batch y x)``, in the units of `y`, ``(*batch coil ky kx)``."""
        observed, start, unit = self.prepared(y, op)
        return {name: image * unit for name, image in {"start": start, **self.refine(start, observed)}.items()}


class Cascade(RawGenerator):
    """Chain of networks that each correct the image, data consistency after each: exact for one coil.

    Parameters
    ----------
    options
        See there.
    networks
        Two channels to two, real ``(n 2 y x)``; the last layer of each is its submodule ``last``.
    length
        Number of networks in the chain where some are repeated (`chain`); None: each once.
    """

    def __init__(self, options: RawGeneratorOptions, networks: Iterable[nn.Module], length: int | None = None) -> None:
        super().__init__(options)
        self.networks = nn.ModuleList(networks)
        blocks = (length or len(self.networks)) if options.consistency else 0
        self.consistency = nn.ModuleList(options.data_consistency(exact=True) for _ in range(blocks))

    def learned(self) -> list[nn.Module]:
        """The networks of the chain."""
        return list(self.networks)

    def chain(self) -> list[nn.Module]:
        """The networks in the order of their use."""
        return list(self.networks)

    def last_layers(self) -> list[nn.Module]:
        """Those of the networks."""
        return [network.get_submodule("last") for network in self.networks]

    def adopted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a shorter chain, tensors of any shape, continued to the length of this one.

        Each further network begins as the last one with its last layer at zero: at first it adds nothing but another step of
        data consistency.
        """
        found, end = dict(state), 0
        while any(name.startswith(f"networks.{end}.") for name in state):
            end += 1
        for new in range(end, len(self.networks)) if end else ():
            for name, x in state.items():
                part, _, rest = name.partition(".")
                number, _, rest = rest.partition(".")
                if number == str(end - 1):
                    zero = part == "networks" and rest.startswith("last.")
                    found[f"{part}.{new}.{rest}"] = torch.zeros_like(x) if zero else x.clone()
        return found

    def refine(self, start: Tensor, observed: Observation) -> dict[str, Tensor]:
        """``before_k`` and ``after_k`` (data consistency) of each network, and ``image``, complex ``(*batch y x)``."""
        image, found = start, {}
        for k, network in enumerate(self.chain()):
            image = found[f"before_{k}"] = image + correction(network, image, observed.op)
            if self.consistency:
                image = self.consistency[k](image, observed)
            found[f"after_{k}"] = image
        return {**found, "image": image}


def correction(network: nn.Module, image: Tensor, op: Sense) -> Tensor:
    """Output of a network of two channels for an image, complex ``(*batch y x)``, inside the support of the coil maps."""
    return from_channels(network(to_channels(image)), like=image) * op.support


def extra_terms(extra: Extra) -> tuple[LossTerm, ...]:
    """Generator terms that `extra` gives a weight."""
    functions = {**vars(losses), "feature_matching": feature_matching}
    return terms(*(LossTerm(f"extra_{f.name}", getattr(extra, f.name), functions[f.name]) for f in fields(extra)))


def assemble(
    generator: Generator,
    options: RawOptions,
    discriminator: Discriminator | None,
    *fidelity: LossTerm,
    images: Sequence[str] = ("image",),
    weight: float | Callable[[int], float] | None = None,
    d_weight: float = 1.0,
    find_roi: Callable[[Tensor], Tensor] | None = None,
) -> Gan:
    """Assemble a raw system: its own terms, the perceptual, adversarial and extra ones, and those of the discriminator.

    Parameters
    ----------
    generator, discriminator
        The networks; without a discriminator the adversarial terms must have the weight 0.
    options
        Weights of the common terms, and training.
    fidelity
        Terms of the system itself, that of the image first.
    images
        Names of the intermediates that the discriminator scores; its terms are averaged over them.
    weight
        Weight of the generator's adversarial term, over the number of steps; None: the constant of the options.
    d_weight
        Weight of the discriminator's own loss.
    find_roi
        Target, complex ``(*batch y x)``, to boxes, integer ``(*batch 4)``: see `Gan`.

    Raises
    ------
    InputError
        If a term needs a discriminator and there is none.
    """
    given = options.losses
    weight = given.adversarial / len(images) if weight is None else weight
    plays = given.adversarial or options.extra.feature_matching
    if discriminator is None and plays:
        raise InputError("this system has no discriminator", "losses.adversarial", "give the adversarial terms the weight 0")
    g_terms = terms(
        *fidelity,
        perceptual_term("perceptual", given.perceptual, options.perceptual),
        LossTerm("adversarial", weight, partial(adversarial, kind=given.kind, images=images)),
    )
    d_terms = discriminator_terms(given, d_weight if plays else 0.0, images)
    g_terms += extra_terms(options.extra)
    training = options.g_optimiser, options.d_optimiser, options.schedule
    discriminators = () if discriminator is None else (discriminator,)
    return Gan(generator, discriminators, g_terms, d_terms, *training, find_roi)
