"""Augmentation of training data by physically plausible transformations.

Everything is done to fully sampled coil images, all coils alike, before undersampling, and keeps white noise white: flips and
turns only move samples about, phase and rotations are unitary, and shrinking is a scan of a larger field of view with as many
points. Enlarging is left out: nothing was measured beyond the edge of k-space, and a network would learn that it is empty.
Intensities are not scaled: reconstructions are homogeneous, and the noise level of the data would no longer be what it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kspace.fourier import centre_crop, fft, ifft
from kspace.simulation.receiver import smooth_phase


@dataclass(frozen=True)
class Augment:
    """Random flips, rotations, shrinking and phase. Called ``(coil images, boxes, seed) -> (coil images, boxes)``.

    A pure function of its arguments: the caller makes the seed from the seed of the run, the epoch and the example, so neither
    the number of workers nor their order matters.

    Attributes
    ----------
    flip
        Probability of a flip along each axis.
    quarter_turns
        Whether images are rotated by multiples of 90 degrees; by 180 degrees only if not square.
    rotation_deg
        Largest further rotation, to either side, at most 45. Pixels are taken as square; what leaves the image on one side
        comes in on the other, so it is for objects with air around them.
    smallest
        Images are shrunk by a factor between this and 1, at least 0.5; what is beyond the edge is continued by reflection.
    phase_std
        Standard deviation of a further smooth phase, in radians.
    """

    flip: float = 0.5
    quarter_turns: bool = True
    rotation_deg: float = 10.0
    smallest: float = 0.9
    phase_std: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.flip <= 1 and 0 <= self.rotation_deg <= 45 and 0.5 <= self.smallest <= 1 and self.phase_std >= 0):
            raise ValueError(f"augmentation out of range: {self}")

    def __call__(self, images: Tensor, boxes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Augment one example.

        Parameters
        ----------
        images
            Fully sampled coil images, complex ``(coil y x)``.
        boxes
            ``(n 5)``: class, y0, x0, y1, x1 in points of the image, pixel k covering k to k + 1.
        seed
            What is drawn depends on it alone.

        Returns
        -------
        tuple
            Coil images of the same shape, and the boxes that are still inside.
        """
        rng = torch.Generator().manual_seed(seed)

        def uniform() -> float:
            return float(torch.rand((), generator=rng))

        flips = [axis for axis in (-2, -1) if uniform() < self.flip]
        turns = int(4 * uniform()) if self.quarter_turns else 0
        angle = math.radians(self.rotation_deg) * (2 * uniform() - 1)
        factor = self.smallest + (1 - self.smallest) * uniform()
        if images.shape[-1] != images.shape[-2]:
            turns -= turns % 2
        images, boxes = flip(images, boxes, flips)
        images, boxes = quarter_turns(images, boxes, turns)
        images, boxes = rotate(images, boxes, angle)
        images, boxes = shrink(images, boxes, factor)
        if self.phase_std:
            phase = smooth_phase(images.shape[-2:], rng, self.phase_std).to(images.device)
            images = images * torch.polar(torch.ones_like(phase), phase)
        return images, boxes


def flip(images: Tensor, boxes: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Mirror images ``(coil y x)`` about pixel ``n // 2`` of each of `axes` (-2 is y, -1 is x), and the boxes with them.

    k-space is mirrored about its centre too: ``y[k]`` becomes ``y[-k]``, without a shift of phase.
    """
    matrix = torch.eye(2, dtype=torch.float64)
    for axis in axes:
        matrix[axis, axis] = -1.0
        images = images.flip(axis)
        if images.shape[axis] % 2 == 0:
            images = images.roll(1, axis)
    return images, _move(boxes, matrix, images.shape)


def quarter_turns(images: Tensor, boxes: Tensor, turns: int) -> tuple[Tensor, Tensor]:
    """Rotate images ``(coil y x)`` by `turns` times 90 degrees about pixel ``n // 2``, from the y axis towards the x axis.

    Raises
    ------
    ValueError
        If the images are not square and the number of turns is odd.
    """
    turns %= 4
    if turns % 2:
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(f"only square images can be rotated by 90 degrees; got {tuple(images.shape)}")
        # (y, x) -> (-x, y): a transposition and a mirror.
        images, boxes = flip(images.mT, boxes[:, [0, 2, 1, 4, 3]], [-2])
    return flip(images, boxes, [-2, -1]) if turns >= 2 else (images, boxes)


def rotate(images: Tensor, boxes: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Rotate images ``(coil y x)`` by `angle` (radians, from the x axis towards the y axis) about pixel ``n // 2``.

    Three shears, each a shift of lines by a phase in their Fourier transform, so the rotation is unitary: white noise stays
    white, and rotating back restores the image (Unser, Thevenaz and Yaroslavsky, IEEE Trans Image Process 1995;4:1371,
    doi:10.1109/83.465102).
    """
    if angle == 0:
        return images, boxes
    images = _shear(images, -1, -math.tan(angle / 2))
    images = _shear(images, -2, math.sin(angle))
    images = _shear(images, -1, -math.tan(angle / 2))
    c, s = math.cos(angle), math.sin(angle)
    return images, _move(boxes, torch.tensor([[c, s], [-s, c]], dtype=torch.float64), images.shape)


def shrink(images: Tensor, boxes: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Shrink images ``(coil y x)`` by about `factor`, at most 1: the same number of points over a field of view 1 / factor as
    large, its outside a reflection of the inside. The larger voxels give more signal; white noise keeps its variance."""
    n = images.shape[-2:]
    larger = [max(m, min(2 * m - 2, round(m / factor))) for m in n]
    if list(n) == larger:
        return images, boxes
    before = [big // 2 - m // 2 for m, big in zip(n, larger, strict=True)]
    after = [big - m - left for m, big, left in zip(n, larger, before, strict=True)]
    parts = torch.view_as_real(images.resolve_conj()).movedim(-1, 0)
    padded = torch.nn.functional.pad(parts, (before[1], after[1], before[0], after[0]), mode="reflect")
    wide = torch.view_as_complex(padded.movedim(0, -1).contiguous())
    matrix = torch.diag(torch.tensor([m / big for m, big in zip(n, larger, strict=True)], dtype=torch.float64))
    return ifft(centre_crop(fft(wide), n)), _move(boxes, matrix, n)


def _shear(images: Tensor, axis: int, slope: float) -> Tensor:
    """Shift every line along `axis` by `slope` times its distance from the centre on the other axis."""
    other = -3 - axis
    n, n_lines = images.shape[axis], images.shape[other]
    k = (torch.arange(n, device=images.device) - n // 2) / n
    shift = slope * (torch.arange(n_lines, device=images.device) - n_lines // 2)
    phase = -2 * math.pi * (shift[:, None] * k if axis == -1 else k[:, None] * shift)
    ramp = torch.polar(torch.ones_like(phase), phase).to(images.dtype)
    return ifft(fft(images, (axis,)) * ramp, (axis,))


def _move(boxes: Tensor, matrix: Tensor, shape: torch.Size) -> Tensor:
    """Bounding boxes of `boxes` after `matrix`, acting on ``(y, x)`` about pixel ``n // 2``; those outside are dropped."""
    if not len(boxes):
        return boxes
    size = torch.tensor(shape[-2:], dtype=torch.float64)
    origin = size // 2 + 0.5
    y0, x0, y1, x1 = boxes[:, 1:].double().unbind(1)
    corners = torch.stack([torch.stack([y, x], -1) for y in (y0, y1) for x in (x0, x1)], 1)  # (n 4 2)
    moved = (corners - origin) @ matrix.T + origin
    moved = moved.clamp_min(0).minimum(size)
    low, high = moved.amin(1), moved.amax(1)
    result = torch.cat([boxes[:, :1].double(), low, high], 1).to(boxes.dtype)
    return result[((high - low) > 0).all(1)]
