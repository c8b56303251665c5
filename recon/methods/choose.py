"""What `--method` names: a classical reconstructor, a generator with its weights, or the locally low rank one of a series."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import ForwardModel
from recon.methods import classical
from recon.methods.classical import flattened
from recon.methods.precision import Precision
from recon.methods.regularisers import Sparsity

if TYPE_CHECKING:
    from recon.methods.generator import GeneratorReconstructor
    from recon.methods.refine import Refinement
    from recon.methods.solvers import Planes

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
    tolerance: float | None = None,
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
    tolerance
        Of SENSE: see `classical.CgSense`.

    Raises
    ------
    InputError
        If there is no such method, it has no such option, or its weights cannot be used.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device found", "--device", "use --device cpu")
    if tolerance is not None and name != classical.CgSense.name:
        raise InputError(f"{name} does not stop at a residual", "--tolerance", "leave it out, or use --method sense")
    if name == RSS or name in (*classical.METHODS, *SERIES):
        if refine not in (None, "none"):
            raise InputError(f"{name} is no generator", f"--refine {refine}", "leave it out")
        if weights is not None:
            raise InputError(f"{name} has no weights", "--weights", "leave it out, or choose the generator with --method")
        if name != RSS:
            options = {"lamda": lamda, "tolerance": tolerance}
            given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
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


_RELAXATION = 1.8  # as in `recon.methods.solvers`
# Of locally low rank series: best, or nearly, for two phantoms on the grid and off it at four levels of noise.
_LEAST, _OF_NOISE = 0.05, 0.4
_LOOKED_AT = 4  # frames whose noise is estimated


@dataclass(frozen=True)
class LocallyLowRank:
    """``argmin over the frames x_t: sum_t 1/2 ||W^(1/2)(A_t x_t - y_t)||^2 + lamda m sum_b ||R_b x||_*``, R_b x the matrix
    of the pixels of block b and the frames, m the largest pixel of the zero-filled images.

    Trzasko and Manduca 2011, Proc. ISMRM 19:4371; Zhang, Pauly and Levesque 2015, doi:10.1002/mrm.25161. Alternating direction
    method of multipliers; the blocks move from iteration to iteration, so that their edges do not stay in the image. All frames
    are in memory together: some 320 bytes for each pixel and frame (measured: 40 frames of 128 x 128, 8 coils).

    Attributes
    ----------
    lamda
        Relative to the largest pixel of the zero-filled images. None: 0.05, or `_OF_NOISE` of the largest singular value that
        noise alone gives a block where that is more; it is known where the outermost samples are noise.
    iterations
        Of ADMM, always as many.
    block
        Side of a block in pixels.
    """

    name: ClassVar[str] = "llr"
    lamda: float | None = None
    iterations: int = 30
    block: int = 8

    def __post_init__(self) -> None:
        if self.lamda is not None and not (math.isfinite(self.lamda) and self.lamda > 0):
            raise InputError(f"lamda must be finite and positive; got {self.lamda}", "method llr", "choose 1e-3 to 1e-1")
        if self.iterations < 1 or self.block < 2:
            raise InputError(
                f"{self.iterations} iterations with blocks of {self.block}", "method llr", "give at least 1, and blocks of 2"
            )

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Images, complex ``(frame y x)``, from k-space ``(frame coil ky kx)``.

        Raises
        ------
        InputError
            If there is one frame only.
        """
        if y.ndim != 4 or len(y) < 2:
            raise InputError("needs several frames of one plane", "method llr", "give --frames, or choose another method")
        from recon.methods.solvers import Planes

        samples, flat, _ = flattened(y, op)
        planes = Planes.of(samples, flat)
        largest = planes.scale.max()
        if largest == 0:
            return torch.zeros_like(planes.rhs)
        # One scale for all frames: their blocks are compared.
        shares = planes.scale / largest
        start = (planes.rhs if planes.start is None else planes.start) * shares
        planes = replace(planes, rhs=planes.rhs * shares, scale=largest.expand_as(planes.scale), start=start)
        return planes.finish(self._solve(planes, self._by_noise(samples, flat, planes) if self.lamda is None else self.lamda))

    def _by_noise(self, y: Tensor, op: ForwardModel, planes: Planes) -> float:
        """The default weight for k-space ``(frame coil ky kx)``. Noise of standard deviation s gives an m x n matrix singular
        values up to ``s (sqrt m + sqrt n)`` (Marchenko and Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994)."""
        from recon.methods.held_out import noise_variance

        n, found = len(y), []
        for i in sorted({int((i + 0.5) * n / _LOOKED_AT) for i in range(_LOOKED_AT)}):
            variance = noise_variance(y[i : i + 1], op.planes(slice(i, i + 1)), math.inf)  # no noise that is only stated
            if variance is None:
                return _LEAST
            found.append(variance)
        w = planes.op.weights
        total = w.expand(*w.shape[:-3], 1, *planes.op.samples).sum((-3, -2, -1)) / math.prod(planes.shape)
        pixel = (total.sqrt() / planes.top.flatten()).mean() / planes.scale.max()
        largest = math.sqrt(sum(found) / len(found)) * float(pixel) * (self.block + math.sqrt(n))
        return max(_LEAST, _OF_NOISE * largest)

    def _solve(self, planes: Planes, lamda: float) -> Tensor:
        from recon.methods.solvers import MinimiseX

        threshold = lamda * max(1.0, self.block / 4)
        step = MinimiseX(planes, Frames(planes.shape), lamda / threshold)
        assert planes.start is not None
        x = v = planes.start
        u = torch.zeros_like(v)
        # Shifts in an order that covers the block evenly.
        shifts = [(7 * i % self.block, (3 * i + i // self.block) % self.block) for i in range(self.iterations)]
        for shift in shifts:
            x = step(x, v - u)
            relaxed = torch.add(_RELAXATION * x, v, alpha=1 - _RELAXATION)
            v = shrink_blocks(relaxed + u, threshold, self.block, shift)
            u = u + relaxed - v
        return x


class Frames(Sparsity):
    """Nuclear norms of the blocks of a series ``(frame y x)``, with G = 1.

    Parameters
    ----------
    shape
        ``(y x)`` of a frame.
    block
        Side of a block.
    """

    threshold = 0.1
    inner_steps = 4

    def __init__(self, shape: Sequence[int], block: int = 8) -> None:
        self.gram_eigenvalues, self._block = torch.ones(tuple(shape)), block

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, v: Tensor) -> Tensor:
        return v

    def gram(self, x: Tensor) -> Tensor:
        return x

    def norm(self, v: Tensor) -> Tensor:
        return torch.linalg.svdvals(_casorati(v, self._block)[0]).sum()

    def shrink(self, v: Tensor, step: float) -> Tensor:
        return shrink_blocks(v, step, self._block)


def shrink_blocks(x: Tensor, threshold: float, block: int, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Singular values of each block shrunk by `threshold`: the proximal operator of the sum of their nuclear norms.

    Parameters
    ----------
    x
        Frames, complex ``(frame y x)``.
    threshold
        In units of `x`.
    block
        Side of a block; those at the end of an axis are smaller.
    shift
        ``(y x)`` by which the grid of blocks is moved, periodically.

    Returns
    -------
    Tensor
        Like `x`.
    """
    n, ny, nx = x.shape
    casorati, (height, width) = _casorati(x.roll(shift, (-2, -1)), block)
    # Of the Gram matrix of the frames, which is small: the singular values are the roots of its eigenvalues.
    values, vectors = torch.linalg.eigh(casorati.mH @ casorati)
    singular = values.clamp(min=0).sqrt()
    factor = (1 - threshold / singular.clamp(min=1e-30)).clamp(min=0)
    shrunk = casorati @ ((vectors * factor.unsqueeze(-2)) @ vectors.mH)
    back = shrunk.reshape(height // block, width // block, block, block, n).permute(4, 0, 2, 1, 3)
    return back.reshape(n, height, width)[:, :ny, :nx].roll((-shift[0], -shift[1]), (-2, -1))


def _casorati(x: Tensor, block: int) -> tuple[Tensor, tuple[int, int]]:
    """Pixels by frames of each block, ``(block pixel frame)``, of frames ``(frame y x)``, and the size that they cover."""
    n, ny, nx = x.shape
    height, width = (-(-size // block) * block for size in (ny, nx))
    padded = torch.nn.functional.pad(x, (0, width - nx, 0, height - ny))
    tiles = padded.reshape(n, height // block, block, width // block, block)
    return tiles.permute(1, 3, 2, 4, 0).reshape(-1, block * block, n), (height, width)


SERIES = {LocallyLowRank.name: LocallyLowRank}  # methods that see all frames of a series at once
