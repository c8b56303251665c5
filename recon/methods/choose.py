"""What `--method` names: a classical reconstructor, or a generator with its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import ForwardModel
from recon.methods import classical
from recon.methods.locally_low_rank import LocallyLowRank
from recon.methods.precision import Precision

if TYPE_CHECKING:
    from recon.methods.generator import GeneratorReconstructor
    from recon.methods.refine import Refinement

SERIES = {LocallyLowRank.name: LocallyLowRank}  # methods that see all frames of a series at once
RSS = "rss"  # magnitude only: an export of the coil images, not a reconstructor


@dataclass(frozen=True)
class Method:
    """A method that was chosen.

    Attributes
    ----------
    name
        As it was asked for.
    reconstruct
        ``(y, op) -> image``; None for `RSS`.
    generator
        The same, where a trained generator makes the image.
    details
        What determines it, for the record.
    """

    name: str
    reconstruct: Callable[[Tensor, ForwardModel], Tensor] | None
    generator: GeneratorReconstructor | None = None
    details: dict[str, str] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """One sentence for people and for DICOM's DerivationDescription."""
        if self.generator is None:
            return f"{self.name} reconstruction"
        card = self.generator.card
        return f"{self.name}: {card.system} generator, weights {card.name} (sha256 {card.sha256[:16]})"


@dataclass(frozen=True)
class OnDevice:
    """A reconstructor on a device, called ``(y, op) -> image``; the image comes back on the device of `y`.

    Attributes
    ----------
    method
        Reconstructor of tensors on any device.
    device
        Where it runs.
    """

    method: Callable[[Tensor, ForwardModel], Tensor]
    device: torch.device

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        return self.method(y.to(self.device), op.to(self.device)).to(y.device)


def choose(
    name: str,
    lamda: float | None = None,
    weights: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    refine: Refinement | None = None,
) -> Method:
    """The method called `name`.

    Parameters
    ----------
    name
        ``rss``, a classical method (`classical.METHODS`), one for series (`SERIES`), or a system with bundled or given weights.
    lamda
        Regularisation weight of a classical method; None: its default.
    weights
        Weights of a generator; None: the bundled ones of that name.
    device
        ``auto``, ``cpu`` or ``cuda``: where the method runs.
    precision
        Of a generator's networks: see `recon.methods.precision`.
    refine
        What follows a generator: see `recon.methods.stack` and `recon.methods.refine`. None: the stack; nothing for a published
        preset, whose images are magnitudes, and for a generator that is fitted to each scan, which a stack would repeat.

    Raises
    ------
    InputError
        If there is no such method, it has no such option, or its weights cannot be used.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device found", "--device", "use --device cpu")
    if name == RSS or name in (*classical.METHODS, *SERIES):
        if refine not in (None, "none"):
            raise InputError(f"{name} is no generator", f"--refine {refine}", "leave it out")
        if weights is not None:
            raise InputError(f"{name} has no weights", "--weights", "leave it out, or choose the generator with --method")
        if name != RSS:
            given: dict[str, Any] = {} if lamda is None else {"lamda": lamda}
            made = SERIES[name](**given) if name in SERIES else classical.make(name, **given)
            place = _place(device)
            placed = made if place.type == "cpu" else OnDevice(made, place)
            return Method(name, placed, details={"reconstructor": repr(made)})
        if lamda is not None:
            raise InputError("rss has no regularisation weight", "--lamda", "leave it out")
        return Method(name, None)
    if lamda is not None:
        raise InputError(f"{name} is a generator and has no regularisation weight", "--lamda", "leave it out")
    return _generator(name, weights, device, precision, refine)


def refined(network: GeneratorReconstructor, refine: Refinement | None) -> classical.Reconstructor:
    """The generator with what follows it.

    Raises
    ------
    InputError
        If its images are magnitudes, which have no residual.
    """
    magnitudes = network.card.preset == "published"
    if refine == "none" or (refine is None and (magnitudes or network.generator.fitted)):
        return network
    if magnitudes:
        raise InputError(
            f"{network.name} is a published preset, whose images are magnitudes", f"--refine {refine}", "use --refine none"
        )
    if refine == "residual":
        from recon.methods.refine import RefinedGenerator

        return RefinedGenerator(network)
    from recon.methods.stack import Stack

    return Stack(network)


def _place(device: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def _generator(name: str, weights: Path | None, device: str, precision: Precision, refine: Refinement | None) -> Method:
    from recon.methods import generator
    from recon.methods.weights import bundled

    if weights is None and name not in bundled():
        known = [RSS, *classical.METHODS, *SERIES, *bundled()]
        raise InputError(
            f"there is no method '{name}'", "--method", f"choose from {', '.join(known)}, or give --weights FILE for a system"
        )
    loaded = generator.load(weights or name, _place(device), name if weights is not None else None, precision)
    details = {
        "weights": loaded.card.name,
        "weights sha256": loaded.sha256,
        "system": loaded.card.system,
        "precision": loaded.precision,
    }
    made = refined(loaded, refine)
    details["refine"] = "none" if made is loaded else refine or "stack"
    return Method(name, made, loaded, details)
