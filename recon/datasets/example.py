"""One example for training or comparison, and a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from kspace.errors import InputError
from kspace.fourier import ifft_corner, to_centre
from kspace.linear_operators import with_tensors
from kspace.noncartesian.operator import NonCartesianSense
from kspace.operators import ForwardModel, Sense
from recon.datasets.maps_cache import Entry

Shape = tuple[int, ...]


class Key(NamedTuple):
    """Identity of an example, slice and mask; results with equal keys are comparable."""

    file: str
    slice: int
    patient: str
    mask: str


@dataclass(frozen=True, eq=False)
class Example:
    """Acquired samples, forward model and ground truth of one slice or a batch of slices.

    Attributes
    ----------
    y
        Complex64 ``(*batch coil ky kx)``, zero where not acquired.
    op
        The operator with maps from the acquired samples. Off the Cartesian grid, `y` is ``(*batch coil readout sample)``.
    target
        Complex64 ``(*batch y x)``: the coil images of the fully sampled data, combined with the maps of `op`. None where the
        file is undersampled itself.
    truth
        Real ``(*batch y x)``: root sum of squares of these coil images, whose centre of `recon_shapes` is fastMRI's target.
    keys
        Which slice and mask; one for each example of a batch.
    boxes
        For each example its regions of interest, float32 ``(n 5)``: class, y0, x0, y1, x1 in points of `target`.
    recon_shapes
        For each example the points ``(y, x)`` of the image to deliver, the centre of `target`.
    attributes
        For each example the attributes of its file (``acquisition``, ``max`` in the units of the file, ...).
    entries
        For each example the entry of the cache that holds its maps, target and truth; None where there is none. The way from a
        worker to the main process is shorter past it (`recon.datasets.transfer`).
    """

    y: Tensor
    op: ForwardModel
    target: Tensor | None
    truth: Tensor | None
    keys: tuple[Key, ...]
    boxes: tuple[Tensor, ...]
    recon_shapes: tuple[tuple[int, int], ...]
    attributes: tuple[dict[str, Any], ...]
    entries: tuple[Entry | None, ...] = (None,)

    def to(self, device: torch.device | str) -> Example:
        """Copy with all tensors on `device`."""
        return self._map(lambda x: x.to(device))

    def pin_memory(self) -> Example:
        """Copy with all tensors in page-locked memory; called by `DataLoader`."""
        return self._map(lambda x: x.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Example:
        return replace(
            self,
            y=change(self.y),
            op=with_tensors(self.op, change),
            target=None if self.target is None else change(self.target),
            truth=None if self.truth is None else change(self.truth),
            boxes=tuple(change(box) for box in self.boxes),
        )


def collate(examples: Sequence[Example]) -> Example:
    """Collate single examples of equal shape into a batch.

    Line masks are expanded where joined with 2-D masks; examples without `n_averages` count as measured
    once beside others that have them. Off the Cartesian grid readouts of weight 0 make up for different numbers of samples.

    Raises
    ------
    ValueError
        If shapes or noise levels differ, or only some have a target.
    """
    if off_grid := [example for example in examples if isinstance(example.op, NonCartesianSense)]:
        if len(off_grid) < len(examples):
            raise InputError(
                "a batch cannot mix samples on and off the Cartesian grid", "the masks", "choose masks of one kind"
            )
        examples = _padded(examples)
    shapes = {tuple(example.y.shape) for example in examples}
    levels = {example.op.noise_std for example in examples}
    if len(shapes) != 1 or len(levels) != 1:
        raise ValueError(
            f"a batch needs one shape and one noise level; got {sorted(shapes)} and {sorted(levels)}: use ShapeBatchSampler"
        )
    return Example(
        y=torch.stack([example.y for example in examples]),
        op=_joined([example.op for example in examples], levels.pop()),
        target=_stack_optional([example.target for example in examples]),
        truth=_stack_optional([example.truth for example in examples]),
        keys=tuple(key for example in examples for key in example.keys),
        boxes=tuple(box for example in examples for box in example.boxes),
        recon_shapes=tuple(shape for example in examples for shape in example.recon_shapes),
        attributes=tuple(entry for example in examples for entry in example.attributes),
        entries=tuple(entry for example in examples for entry in example.entries),
    )


def _joined(ops: Sequence[ForwardModel], noise_std: float) -> ForwardModel:
    """The operators of single examples as that of a batch."""
    maps = torch.stack([op.maps for op in ops])
    if off_grid := [op for op in ops if isinstance(op, NonCartesianSense)]:
        names = ("trajectory", "sample_weights", "density")
        stacked: dict[str, Any] = {name: torch.stack([getattr(op, name) for op in off_grid]) for name in names}
        return NonCartesianSense(maps, **stacked, noise_std=noise_std, noise_known=all(op.noise_known for op in off_grid))
    masks, counts = [op.mask for op in ops], [op.n_averages for op in ops]
    n_averages = None
    if any(count is not None for count in counts):
        n_averages = _stack([m.to(torch.int32) if c is None else c for m, c in zip(masks, counts, strict=True)])
    return Sense(maps, _stack(masks), noise_std, n_averages)


def _padded(examples: Sequence[Example]) -> list[Example]:
    """Examples off the grid with equal numbers of readouts and samples: those added have weight and density 0."""
    n, m = (max(example.y.shape[axis] for example in examples) for axis in (-2, -1))
    found = []
    for example in examples:
        assert isinstance(example.op, NonCartesianSense)
        op, (rows, columns) = example.op, example.y.shape[-2:]
        more = (0, m - columns, 0, n - rows)
        weights = op.weights.squeeze(-3) if op.sample_weights is None else op.sample_weights
        op = replace(
            op,
            trajectory=pad(op.trajectory, (0, 0, *more)),
            sample_weights=pad(weights, more),
            density=pad(op.compensation, more),
        )
        found.append(replace(example, y=pad(example.y, more), op=op))
    return found


def combine(y: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Target and ground truth of fully sampled data: coil images combined with the maps, and root sum of squares.

    Moving coil arrays costs more than transforming them. So the origin of k-space stays where it is, which gives the images a
    phase that is taken off the combined one, and that of the images comes out in the corner: they meet the maps by quadrants.

    Parameters
    ----------
    y
        Complex64 ``(coil ky kx)``.
    maps
        Complex64 ``(coil y x)``.

    Returns
    -------
    tuple
        Complex64 and float32 ``(y x)``.
    """
    coil_images = ifft_corner(y)
    n_y, n_x = coil_images.shape[-2:]
    power = torch.zeros(n_y, n_x)
    for image in coil_images:
        power += image.real.square() + image.imag.square()
    target = coil_images.new_empty(n_y, n_x)
    for centred_y, corner_y in _halves(n_y):
        for centred_x, corner_x in _halves(n_x):
            here, there = maps[:, centred_y, centred_x], coil_images[:, corner_y, corner_x]
            target[centred_y, centred_x] = torch.linalg.vecdot(here, there, dim=0)
    ramps = [torch.exp(-2j * torch.pi * (torch.arange(n).double() - n // 2) * (n // 2) / n) for n in (n_y, n_x)]
    return target * (ramps[0][:, None] * ramps[1]).to(target.dtype), to_centre(power.sqrt_())


def _halves(n: int) -> list[tuple[slice, slice]]:
    """Slices of the two halves of a centred axis of n points whose origin is moved to the corner."""
    middle = n // 2
    return [(slice(0, middle), slice(n - middle, n)), (slice(middle, n), slice(0, n - middle))]


def _stack(masks: Sequence[Tensor]) -> Tensor:
    n_kx = max(mask.shape[-1] for mask in masks)
    return torch.stack([mask.expand(*mask.shape[:-1], n_kx) for mask in masks])


def _stack_optional(images: Sequence[Tensor | None]) -> Tensor | None:
    present = [image for image in images if image is not None]
    if present and len(present) != len(images):
        raise ValueError("a batch cannot mix examples with and without a target")
    return torch.stack(present) if present else None
