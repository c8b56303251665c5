"""GRAPPA: lines that were not acquired, from their neighbours in all coils, by a kernel that is fitted to reference lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import ForwardModel, Sense, flattened, on_grid
from recon.methods.kernel_fit import Kernel, Normal, joint_fit, targets

_WHERE = "method grappa"
_OTHER = "choose sense or l1-wavelet"
EQUATIONS = 2  # for each unknown, at least
MOST_UNKNOWNS = 1500  # where a smaller kernel is possible: eigenvectors take their third power
_AT_ONCE = 2**27  # bytes of equations that are in memory together


@dataclass(frozen=True)
class Comb:
    """Indices ``start + spacing * i``, i < count, of an axis."""

    start: int
    spacing: int
    count: int

    @property
    def index(self) -> slice:
        """Of its points."""
        return slice(self.start, self.start + self.spacing * (self.count - 1) + 1, self.spacing)

    @classmethod
    def of(cls, lines: Tensor) -> Comb | None:
        """The comb in bool ``(n)``, beside which one block of lines may be sampled completely; None where there is none."""
        where: list[int] = lines.nonzero().flatten().tolist()
        if not where:
            return None
        widest = max((b - a for a, b in itertools.pairwise(where)), default=1)
        for spacing in range(widest, len(lines)):
            for phase in {where[0] % spacing, where[-1] % spacing}:
                teeth = [i for i in where if i % spacing == phase]
                rest = [i for i in where if i % spacing != phase]
                even = teeth[-1] - teeth[0] == spacing * (len(teeth) - 1)
                if even and (not rest or bool(lines[rest[0] : rest[-1] + 1].all())):
                    return cls(teeth[0], spacing, len(teeth))
        return cls(where[0], 1, 1) if len(where) == 1 else None


@dataclass(frozen=True)
class Grappa:
    """Generalised autocalibrating partially parallel acquisitions. Griswold et al. 2002, doi:10.1002/mrm.10171.

    The missing samples of each coil are linear combinations of the nearest samples of all coils. The weights are those that fit
    the reference lines best, with Tikhonov's regularisation; measured samples stay as they are, and the coil images are
    combined with the coil maps.

    Planes of which not every line is complete are those of a 3-D scan, ``(x coil kz ky)``: their kernels are one that extends
    along kx too (Brau et al. 2008, doi:10.1002/mrm.21481), transformed, so that all planes share the reference samples.

    Reference lines are the separate ones of the operator where it has some, else the block that is sampled completely.

    Attributes
    ----------
    lamda
        Weight of the squared norm of the kernel, relative to the mean eigenvalue of the normal matrix of the fit. None: of each
        plane the one with the least generalised cross validation (Golub, Heath and Wahba 1979,
        doi:10.1080/00401706.1979.10489751), which grows with the noise of the reference lines.
    lines
        Samples of the comb that a kernel takes along an undersampled axis; two where there are too few reference lines.
    points
        Samples of a kernel along an axis that is sampled completely, and along kx of 3-D scans.
    """

    name: ClassVar[str] = "grappa"
    label: ClassVar[str] = "GRAPPA"
    by_default: ClassVar[bool] = False  # in a comparison: most masks are not uniform
    lamda: float | None = None
    lines: int = 4
    points: int = 5

    def __post_init__(self) -> None:
        if self.lamda is not None and not (math.isfinite(self.lamda) and self.lamda >= 0):
            raise InputError(f"lamda must be finite and at least 0; got {self.lamda}", _WHERE, "choose 1e-6 to 1e-2")
        if self.lines < 2 or self.lines % 2 or self.points < 1 or self.points % 2 == 0:
            what = f"a kernel of {self.lines} lines and {self.points} points"
            raise InputError(what, _WHERE, "give an even number of lines and an odd number of points")

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``.

        Raises
        ------
        InputError
            If the samples are not uniform, or there are too few reference lines.
        """
        filled = self.fill(y, op)
        return Sense(op.maps, torch.ones(1, 1, 1, dtype=torch.bool, device=filled.device)).adjoint(filled)

    def fill(self, y: Tensor, op: ForwardModel) -> Tensor:
        """k-space of all coils, complex ``(*batch coil ky kx)``: `y` with the samples that `op` leaves out.

        Raises
        ------
        InputError
            If the samples are not uniform, or there are too few reference lines.
        """
        op = on_grid(op, _WHERE, _OTHER)
        batch = torch.broadcast_shapes(y.shape[:-3], op.batch)
        planes, flat = flattened(y, 3, batch).expand(math.prod(batch), -1, -1, -1), op.flattened(batch)
        mask = flat.mask.all(-3).expand(-1, *op.shape)
        planes = torch.where(mask.unsqueeze(-3), planes.detach(), 0)
        reference = planes if flat.calibration is None else flat.calibration
        out = planes.clone()
        for which, one in _by_mask(mask, len(planes)):
            joint = flat.mask.shape[-1] > 1 and len(which) >= self.points
            pattern = Pattern.of(one, None if flat.calibration is None else (reference != 0).any(-3).any(0))
            if pattern.complete:
                continue
            kernels = self._kernels(pattern, y.shape[-3], len(which) if joint else 1)
            size = self._bytes(pattern, kernels, planes)
            parts = which.split(max(_AT_ONCE // size, 1))
            blocks = (_block_of(reference, part, pattern) for part in parts)
            if joint:
                fits = joint_fit(blocks, [len(part) for part in parts], kernels, self.points, self.lamda)
            else:
                fits = (Normal.of(block, kernels).solve(self.lamda) for block in blocks)
            for part, weights in zip(parts, fits, strict=True):
                estimated = _apply(planes[part], weights.to(planes.dtype), pattern, kernels)
                out[part] = torch.where(one, planes[part], estimated)
        return out.reshape(*batch, *y.shape[-3:])

    def _kernels(self, pattern: Pattern, n_coils: int, n_planes: int) -> tuple[Kernel, Kernel]:
        """The largest for which there are enough reference samples, in one plane or in `n_planes` together."""
        extent = self.points if n_planes > 1 else 1
        choices = [(self.points,) if c.spacing == 1 else tuple(range(self.lines, 0, -2)) for c in pattern.combs]
        for widths in itertools.product(*choices):
            kernels = tuple(Kernel(c.spacing, min(w, c.count)) for c, w in zip(pattern.combs, widths, strict=True))
            places = [n - k.span + 1 for n, k in zip(pattern.size, kernels, strict=True)]
            unknowns = extent * n_coils * math.prod(k.width for k in kernels)
            enough = all(n >= k.fewest for n, k in zip(places, kernels, strict=True))
            large = unknowns > MOST_UNKNOWNS and any(k.width > 2 for k in kernels if k.spacing > 1)
            if enough and not large and n_planes * math.prod(places) >= EQUATIONS * unknowns:
                return kernels[0], kernels[1]
        raise InputError(_too_few(pattern, kernels, n_coils), _WHERE, _OTHER)

    def _bytes(self, pattern: Pattern, kernels: Sequence[Kernel], y: Tensor) -> int:
        n = math.prod(max(m - k.span + 1, 1) for m, k in zip(pattern.size, kernels, strict=True))
        unknowns = y.shape[-3] * (math.prod(k.width for k in kernels) + math.prod(k.spacing for k in kernels))
        return n * unknowns * y.element_size()


@dataclass(frozen=True)
class Pattern:
    """Uniform sampling of a plane, and where its reference lines are.

    Attributes
    ----------
    combs
        Along ky and kx.
    rows, columns
        Of the block of reference samples; empty without one.
    """

    combs: tuple[Comb, Comb]
    rows: slice
    columns: slice

    @property
    def complete(self) -> bool:
        """Whether nothing is missing between the samples."""
        return all(c.spacing == 1 for c in self.combs)

    @property
    def size(self) -> tuple[int, int]:
        """Of the block of reference samples."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @classmethod
    def of(cls, mask: Tensor, reference: Tensor | None) -> Pattern:
        """Of bool ``(ky kx)``, and that of separate reference lines where there are some.

        Raises
        ------
        InputError
            If the sampling is not uniform.
        """
        combs = Comb.of(mask.any(-1).cpu()), Comb.of(mask.any(-2).cpu())
        regular = torch.zeros_like(mask)
        if combs[0] is None or combs[1] is None:
            raise InputError("the sampled lines are not evenly spaced", _WHERE, _OTHER)
        regular[combs[0].index, combs[1].index] = True
        if not bool(mask[regular].all()):
            raise InputError("the sampled points are not evenly spaced", _WHERE, _OTHER)
        block = mask if reference is None else reference
        rows, columns = _block(block, mask & ~regular if reference is None else reference)
        return cls((combs[0], combs[1]), rows, columns)


def _too_few(pattern: Pattern, kernels: Sequence[Kernel], n_coils: int) -> str:
    """Which reference samples there are, and which the smallest kernels need."""
    unknowns = n_coils * math.prod(k.width for k in kernels)
    spacing = " x ".join(str(k.spacing) for k in kernels if k.spacing > 1)
    needed = [k.span - 1 + k.fewest for k in kernels]
    if min(k.spacing for k in kernels) > 1:
        have = " x ".join(map(str, pattern.size)) if any(pattern.size) else "no"
        return f"{have} reference samples, {' x '.join(map(str, needed))} are needed (spacing {spacing}, {n_coils} coils)"
    along = 0 if kernels[0].spacing > 1 else 1
    across = (pattern.size[1 - along] or pattern.combs[1 - along].count) - kernels[1 - along].span + 1
    lines = kernels[along].span - 1 + math.ceil(EQUATIONS * unknowns / max(across, 1))
    have = str(pattern.size[along] or "no")
    return f"{have} reference lines, {max(lines, needed[along])} are needed (spacing {spacing}, {n_coils} coils)"


def _block(sampled: Tensor, inside: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the completely sampled block of bool ``(ky kx)`` that holds the points `inside`; else empty."""
    if not bool(inside.any()):
        return slice(0, 0), slice(0, 0)
    ends = []
    for axis in (1, 0):
        where = inside.any(axis).nonzero().flatten()
        ends.append([int(where[0]), int(where[-1]) + 1])
    (top, bottom), (left, right) = ends
    if not bool(sampled[top:bottom, left:right].all()):
        return slice(0, 0), slice(0, 0)
    while top > 0 and bool(sampled[top - 1, left:right].all()):
        top -= 1
    while bottom < len(sampled) and bool(sampled[bottom, left:right].all()):
        bottom += 1
    while left > 0 and bool(sampled[top:bottom, left - 1].all()):
        left -= 1
    while right < sampled.shape[1] and bool(sampled[top:bottom, right].all()):
        right += 1
    return slice(top, bottom), slice(left, right)


def _by_mask(mask: Tensor, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of planes that share a mask ``(ky kx)``, of ``(plane|1 ky kx)``."""
    if len(mask) == 1 or bool((mask == mask[0]).all()):
        yield torch.arange(n, device=mask.device), mask[0]
        return
    found, which = torch.unique(mask, dim=0, return_inverse=True)
    for i, one in enumerate(found):
        yield (which == i).nonzero().flatten(), one


def _block_of(reference: Tensor, part: Tensor, pattern: Pattern) -> Tensor:
    """Reference samples ``(plane coil ky kx)`` of the planes `part`."""
    taken = reference[part] if len(reference) > 1 else reference.expand(len(part), -1, -1, -1)
    return taken[..., pattern.rows, pattern.columns]


def _apply(y: Tensor, weights: Tensor, pattern: Pattern, kernels: Sequence[Kernel]) -> Tensor:
    """The samples between the teeth, complex ``(plane coil ky kx)``, zero elsewhere; `y` likewise."""
    n, n_coils = len(y), y.shape[-3]
    rows, columns = pattern.combs
    pads = [*kernels[1].pads, *kernels[0].pads]
    comb = torch.nn.functional.pad(y[..., rows.index, columns.index], pads)
    shape = n_coils, kernels[0].width, kernels[1].width
    # One convolution for all planes, each a group with a kernel of its own.
    kernel = weights.mT.reshape(-1, *shape).contiguous()
    found = torch.nn.functional.conv2d(comb.flatten(0, 1).unsqueeze(0), kernel, groups=n)[0]
    found = found.reshape(n, n_coils, -1, *found.shape[-2:])
    out = torch.zeros_like(y)
    for i, (dy, dx) in enumerate(targets(kernels)):
        (to_y, from_y), (to_x, from_x) = (
            _places(c, d, size) for c, d, size in zip(pattern.combs, (dy, dx), y.shape[-2:], strict=True)
        )
        out[..., to_y, to_x] = found[:, :, i, from_y, from_x]
    return out


def _places(comb: Comb, offset: int, n: int) -> tuple[slice, slice]:
    """Of an axis of n points, those `offset` after each tooth, and the estimates that belong there. The last before the first
    tooth, and those after the last one, only as far as k-space ends there: what is farther was left out on purpose."""
    s = comb.spacing
    if s == 1:
        return comb.index, slice(0, comb.count)
    first = comb.start - s + offset  # the cell before the first tooth
    last = comb.start + (comb.count - 1) * s + offset
    skip_first = first < 0 or comb.start >= s
    skip_last = last >= n or (offset > 0 and n - 1 - (last - offset) >= s)
    begin, end = int(skip_first), comb.count + 1 - int(skip_last)
    return slice(first + begin * s, first + (end - 1) * s + 1, s), slice(begin, end)
