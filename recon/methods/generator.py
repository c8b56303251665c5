"""The `Reconstructor` protocol around exported weights: a trained generator looks like any classical method to its callers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import ForwardModel, on_grid
from models.parts.latent import PriorGenerator
from models.parts.sampler import PosteriorSampler
from recon.methods import weights
from recon.methods.precision import Precision, Used, resolve
from recon.methods.prior import fit_to_scan
from recon.methods.weights import Card

if TYPE_CHECKING:
    from models.parts.interface import Generator

# Points of image and coils that a network gets at once: 8 planes of 8 coils of 256 x 256.
MAX_POINTS = 1 << 22


@dataclass(frozen=True, eq=False)
class GeneratorReconstructor:
    """A trained generator, called ``(y, op) -> image``.

    Attributes
    ----------
    generator
        In evaluation mode, on `device`.
    card
        What it was trained for and on.
    sha256
        Of its weights.
    device
        Where it runs; images come back on the device of `y`.
    precision
        Of its networks; everything else is computed in single precision.
    """

    generator: Generator = field(repr=False)
    card: Card = field(repr=False)
    sha256: str
    device: torch.device
    precision: Used = "fp32"

    @property
    def name(self) -> str:
        """The name of the weights."""
        return self.card.name

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``; of positive homogeneity for raw presets."""
        batch = y.shape[:-3]
        n = math.prod(batch)
        y, op = op.balanced(y)
        samples, flat = y.reshape(n, *y.shape[-3:]), op.flattened(batch)
        at_once = max(1, MAX_POINTS // max(1, math.prod(y.shape[-3:])))
        images = [samples.new_zeros((0, *op.shape))]
        reduced = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), reduced:
            for i in range(0, n, at_once):
                part = slice(i, i + at_once)
                here = flat.planes(part).to(self.device)
                images.append(self.on_device(samples[part].to(self.device), here).to(y.device))
        return torch.cat(images).reshape(*batch, *op.shape).clone()

    def on_device(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)`` that lies on `device`, whatever its size;
        differentiable, unless the generator is fitted to each scan."""
        if isinstance(self.generator, PriorGenerator) and self.generator.homogeneous:
            return fit_to_scan(self.generator, y, on_grid(op, self.name, "choose another generator"))
        if self.generator.homogeneous:
            image: Tensor = self.generator(y, op)
            return image
        # Other networks take magnitudes in [0, 1]: the brightest pixel of the zero-filled image counts as 1.
        peak = op.adjoint(y).abs().amax((-2, -1), keepdim=True)
        peak = torch.where(peak > 0, peak, 1)
        scaled: Tensor = self.generator(y / peak.unsqueeze(-3), op)
        return scaled * peak

    def sample(self, y: Tensor, op: ForwardModel, n: int, seed: int = 0) -> Tensor | None:
        """`n` draws of a posterior sampler, complex ``(n *batch y x)``, from k-space ``(*batch coil ky kx)``; None where the
        generator is none."""
        if not isinstance(self.generator, PosteriorSampler):
            return None
        op = on_grid(op, self.name, "choose another generator")
        reduced = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), reduced:
            draws = self.generator.sample(y.to(self.device), op.to(self.device), n, seed)
        return draws.to(y.device).clone()

    def outside(self, op: ForwardModel, acceleration: float | None = None) -> list[str]:
        """In what a scan differs from everything that the generator was trained on, in words; empty where it does not.

        Parameters
        ----------
        op
            Of the scan.
        acceleration
            Its actual R.
        """
        envelope, found = self.card.envelope, []
        if (coils := envelope.get("coils")) and not min(coils) <= op.n_coils <= max(coils):
            found.append(f"{op.n_coils} coils; trained with {min(coils)} to {max(coils)}")
        accelerations = envelope.get("acceleration")
        # 10 % more is not another problem.
        if (
            acceleration is not None
            and accelerations
            and not 0.9 * min(accelerations) <= acceleration <= 1.1 * max(accelerations)
        ):
            found.append(f"acceleration {acceleration:.1f}; trained with {min(accelerations):g} to {max(accelerations):g}")
        return found


def load(
    name_or_path: str | Path,
    device: torch.device | str = "cpu",
    system: str | None = None,
    precision: Precision = "fp32",
) -> GeneratorReconstructor:
    """The reconstructor of exported weights.

    Parameters
    ----------
    name_or_path
        Name of bundled weights, or a .safetensors file made by ``recon export``.
    device
        Where it shall run.
    system
        Refuse weights of any other system; of a variant (`weights.VARIANTS`), take its options.
    precision
        Of the networks: see `recon.methods.precision`.

    Raises
    ------
    InputError
        If there are no such weights, or the file is damaged, truncated, foreign, renamed, or of another system.
    """
    from models.systems import build_generator

    path = weights.find(name_or_path)
    card, state = weights.read(path, system)
    card = weights.as_variant(card, system or str(name_or_path))
    try:
        # Shapes are compared before any memory is taken for them.
        with torch.device("meta"):
            expected = {name: x.shape for name, x in build_generator(card.config).state_dict().items()}
    except InputError as error:
        raise InputError(f"the card describes a network that this version does not know ({error.what})", path) from error
    if {name: x.shape for name, x in state.items()} != expected:
        raise InputError("the weights do not fit the network that their card describes", path, "export them again")
    generator = build_generator(card.config)
    generator.load_state_dict(state)
    generator = generator.eval().requires_grad_(False).to(device)
    generator.to(memory_format=torch.channels_last)  # the faster layout
    return GeneratorReconstructor(generator, card, card.sha256, torch.device(device), resolve(precision, device))
