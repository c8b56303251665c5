"""What makes simulated slices like scans: matrix, frame, contrast and phase, with all of their defaults.

Shared by `recon train` and `recon simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.simulation.contrast import map_intensities
from kspace.simulation.phase import PhaseOptions, uniform

SNR = (5.0, 1200.0)
MATRIX_STEP = 16
SIDES = 3  # steps by which the axes of a matrix differ at most
SMALLEST_JUDGED = 96  # below, masks at R = 8 leave too few calibration lines for volumes that methods are judged by
# Beyond this share of the points of a stored (interpolated) image its k-space is emptier than that of a scan.
FULL_SHARE = 0.41
LEAST_AT_EDGE = 0.004
SMALLEST_FRAME = 1.06  # times the extent of the object


@dataclass(frozen=True)
class Realism:
    """How far simulated slices are spread.

    Parameters
    ----------
    matrix
        Smallest and largest number of points along ky and kx, drawn for each axis, where no matrix is given. Volumes for
        validation and of `recon simulate` have at least 96.
    frame
        Probability, along each axis, of a field of view that is cut down towards the object.
    flip
        Probability of a flip along each axis, and of a transposition.
    intensities
        Share of images whose intensities are mapped at random.
    dead_leaves
        Share of training examples that are dead leaves in place of an image.
    other
        Share of training examples from the images of other sources, where there are any.
    blur
        Share of images whose k-space falls off towards its edge, as with relaxation during the readout train and raw filters.
    object_maps
        Share of examples with true coil maps that are zero well outside of the object, as estimated maps are.
    estimated_maps
        Share of training examples whose coil maps are estimated from the acquired samples, in place of the true ones.
    phase
        See `PhaseOptions`.
    """

    matrix: tuple[int, int] = (64, 208)
    frame: float = 0.5
    flip: float = 0.5
    intensities: float = 0.5
    dead_leaves: float = 0.25
    other: float = 0.15
    blur: float = 0.22
    object_maps: float = 0.7
    estimated_maps: float = 0.2
    phase: PhaseOptions = field(default_factory=PhaseOptions)

    def __post_init__(self) -> None:
        shares = (self.frame, self.flip, self.intensities, self.dead_leaves, self.other, self.object_maps, self.estimated_maps,
                  self.blur)  # fmt: skip
        if not all(0 <= share <= 1 for share in shares) or self.dead_leaves + self.other > 1:
            raise InputError(f"a share of the simulation is not between 0 and 1: {self}")
        if not 2 <= self.matrix[0] <= self.matrix[1]:
            raise InputError(f"the range of the matrix is {self.matrix}", fix="give the smaller number first")


def draw_matrix(rng: torch.Generator, realism: Realism, smallest: int = 0) -> tuple[int, int]:
    """Points ``(ky, kx)``, each between those of `realism` and not below `smallest`, in steps of 16 from there;
    they differ by 48 at most."""
    low, high = realism.matrix
    low = min(max(low, smallest), high)
    last = (high - low) // MATRIX_STEP
    ky = int(torch.randint(last + 1, (), generator=rng))
    near = max(0, ky - SIDES), min(last, ky + SIDES)
    kx = int(torch.randint(near[0], near[1] + 1, (), generator=rng))
    return low + MATRIX_STEP * ky, low + MATRIX_STEP * kx


@dataclass(frozen=True)
class Frame:
    """Which part of a stored image is measured, and from which side.

    Attributes
    ----------
    transpose
        Done first.
    flips
        Along y and x, done next.
    start, size
        First point and number of points ``(y, x)`` of what is left.
    """

    transpose: bool
    flips: tuple[bool, bool]
    start: tuple[int, int]
    size: tuple[int, int]

    def image(self, image: Tensor) -> Tensor:
        """Of ``(y x)``, what lies inside."""
        image = self._orient(image)
        (y, x), (n_y, n_x) = self.start, self.size
        return image[y : y + n_y, x : x + n_x]

    def boxes(self, boxes: Tensor, shape: Sequence[int], matrix: Sequence[int]) -> Tensor:
        """Boxes ``(n 5)`` in points of a stored image ``(y x)`` to those of the image of `matrix` points; see `box_corners`."""
        corners = boxes[:, 1:].view(-1, 2, 2)  # (n, low or high, y or x)
        extent = [shape[1], shape[0]] if self.transpose else list(shape)
        if self.transpose:
            corners = corners.flip(-1)
        n = corners.new_tensor(extent)
        flips = torch.tensor(self.flips)
        corners = torch.where(flips, n - corners, corners)
        corners = torch.stack([corners.amin(1), corners.amax(1)], 1) - corners.new_tensor(self.start)
        size, points = corners.new_tensor(self.size), corners.new_tensor(list(matrix))
        corners = (corners - 0.5 - size // 2) * points / size + points // 2 + 0.5
        corners = corners.clamp_min(0).minimum(points)
        inside = (corners[:, 1] > corners[:, 0]).all(-1)
        return torch.cat([boxes[:, :1], corners.reshape(-1, 4)], 1)[inside]

    def _orient(self, image: Tensor) -> Tensor:
        image = image.mT if self.transpose else image
        return image.flip([axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip])


def draw_frame(image: Tensor, matrix: Sequence[int], rng: torch.Generator, realism: Realism) -> Frame:
    """Orientation and field of view for an image ``(y x)`` that is to be measured with `matrix` points.

    The field of view never cuts the object, and never leaves a larger share of the image's own k-space than scans fill: what
    lies beyond was interpolated.
    """
    fits = image.shape[1] >= matrix[0] and image.shape[0] >= matrix[1]
    transpose, flips = uniform(rng) < realism.flip and fits, (uniform(rng) < realism.flip, uniform(rng) < realism.flip)
    oriented = Frame(transpose, flips, (0, 0), (1, 1))._orient(image.abs() if image.is_complex() else image)
    start, size = [], []
    for axis, points in zip((0, 1), matrix, strict=True):
        n, wanted, cut = oriented.shape[axis], uniform(rng), uniform(rng) < realism.frame
        low, high = _extent(oriented, axis)
        smallest = max(SMALLEST_FRAME * (high - low), points / FULL_SHARE)
        if not cut or smallest >= n:
            start.append(0)
            size.append(n)
            continue
        length = min(n, 2 * round((smallest + wanted * (n - smallest)) / 2))
        first = (low + high) // 2 - length // 2
        start.append(max(0, min(first, n - length)))
        size.append(length)
    return Frame(transpose, flips, (start[0], start[1]), (size[0], size[1]))


def _extent(image: Tensor, axis: int) -> tuple[int, int]:
    """First and last point of the object along an axis: where the mean over 4 x 4 points exceeds a tenth of its maximum."""
    coarse = torch.nn.functional.avg_pool2d(image[None].float(), 4, ceil_mode=True)[0]
    line = (coarse > 0.1 * coarse.amax()).any(1 - axis).nonzero()[:, 0]
    if not len(line):
        return 0, int(image.shape[axis])
    return 4 * int(line[0]), min(4 * (int(line[-1]) + 1), int(image.shape[axis]))


def other_contrast(image: Tensor, rng: torch.Generator, realism: Realism) -> Tensor:
    """The image ``(y x)``, or its magnitude with other intensities; a complex image keeps its phase."""
    if uniform(rng) >= realism.intensities:
        return image
    if not image.is_complex():
        return map_intensities(image, rng)
    magnitude = image.abs()
    return image * (map_intensities(magnitude, rng) / magnitude.clamp_min(torch.finfo(magnitude.dtype).tiny))


def blur(image: Tensor, rng: torch.Generator, realism: Realism) -> Tensor:
    """The image ``(y x)``, or with its k-space under Gaussians that leave 0.4 to 100 % of the amplitude at its edges."""
    if uniform(rng) >= realism.blur:
        return image
    logs = [math.log(LEAST_AT_EDGE) * uniform(rng) for _ in image.shape]
    windows = [
        torch.exp(log * ((torch.arange(n) - n // 2) / (n / 2)).square()) for log, n in zip(logs, image.shape, strict=True)
    ]
    return ifft(fft(image) * windows[0][:, None] * windows[1])


def object_region(magnitude: Tensor) -> Tensor:
    """Where estimated coil maps of an object ``(y x)`` would hold something: bool ``(y x)``, the object and a margin."""
    width = 9
    smooth = torch.nn.functional.avg_pool2d(magnitude[None], width, 1, width // 2, count_include_pad=False)[0]
    flat = smooth.flatten()
    return smooth > 0.05 * flat.kthvalue(max(1, int(0.99 * flat.numel()))).values
