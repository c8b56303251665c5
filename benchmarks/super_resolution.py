"""Super-resolution of volumes in planes and in 3-D, on analytic phantoms and on heads: simulated, and labelled so.

    python -m benchmarks.super_resolution [--steps 80] [--mask centre:4]
    python -m benchmarks.super_resolution --steps 200 --train mni152.nii.gz --test colin27.nii.gz

Random ellipsoids whose k-space is known in closed form, 24 x 32 x 32 points, one coil, noise. The readout (24) is complete,
the other two axes hold the central block of ``--mask``. mDCSRN's densely connected network is trained twice without its
discriminator, with equal width, steps and volumes: on planes (``dims: 2``) and on volumes (``dims: 3``). Eight further
phantoms are measured: PSNR in dB of the magnitude of whole volumes, the full block being the truth.

With ``--train`` and ``--test``, magnitudes of two different subjects (NIfTI) take the place of the phantoms. Their k-space is
cropped to voxels of 2.5 mm, a random quadratic phase and noise are added. Every second training volume is still a phantom;
the others are slabs of 24 axial planes, mirrored at random. Eight such slabs of the test volume are measured, which cover
it evenly. Colin27 (Holmes 1998, doi:10.1097/00004728-199803000-00032) is in Debian's ``mricron-data``
(``/usr/share/mricron/templates/ch2.nii.gz``), MNI152 (Fonov 2011, doi:10.1016/j.neuroimage.2010.07.033) in ``nilearn``
(``nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz``).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kspace.fourier import fft, ifft, resize
from kspace.masks import MaskSpec
from kspace.operators import Sense
from kspace.simulation.phantom import Phantom, ellipsoid
from models.parts.interface import Generator, total
from models.systems import build

SHAPE, FOV_M = (24, 32, 32), 0.2
TEST = 8
NOISE = 0.01  # of the largest magnitude, E|n|^2 of a sample is its square
VOXEL_MM = 2.5

Row = tuple[str, float, str, str]
Scan = tuple[Tensor, Sense, Tensor]


def phantom(seed: int) -> Phantom:
    """A head-sized ellipsoid with a dozen of smaller ones in it."""
    rng = np.random.default_rng(seed)
    parts = [ellipsoid((0.0, 0.0, 0.0), (0.075, 0.085, 0.08), 1.0)]
    for _ in range(12):
        centre, axes = rng.uniform(-0.045, 0.045, 3), rng.uniform(0.005, 0.03, 3)
        parts.append(ellipsoid(tuple(centre), tuple(axes), float(rng.uniform(-0.6, 0.8))))
    return Phantom(tuple(parts))


def phantom_image(seed: int) -> Tensor:
    """Complex ``(z y x)`` of `SHAPE`, the largest magnitude 1."""
    k = [(np.arange(n) - n // 2) / FOV_M for n in SHAPE]
    full = phantom(seed).kspace(k[2][None, None], k[1][None, :, None], k[0][:, None, None])
    image = ifft(ifft(torch.from_numpy(full).to(torch.complex64), (-3,)), (-2, -1))
    return image / image.abs().max()


def head(path: Path) -> Tensor:
    """Magnitude ``(z y x)`` of a NIfTI volume, inferior to superior, anterior to posterior, right to left; voxels of
    `VOXEL_MM`, the largest magnitude 1."""
    import nibabel

    found = nibabel.as_closest_canonical(nibabel.load(path))
    volume = torch.from_numpy(np.ascontiguousarray(found.get_fdata(dtype=np.float32).transpose(2, 1, 0)[:, ::-1, ::-1]))
    sizes = found.header.get_zooms()[2::-1]
    shape = [2 * round(n * size / VOXEL_MM / 2) for n, size in zip(volume.shape, sizes, strict=True)]
    axes = (-3, -2, -1)
    image = ifft(resize(fft(volume.to(torch.complex64), axes), shape), axes).abs()
    return image / image.max()


def with_phase(image: Tensor, rng: torch.Generator) -> Tensor:
    """Magnitude ``(z y x)`` times a random quadratic phase of a standard deviation of about 1 rad."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    parts = torch.stack([torch.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
    return torch.polar(image, torch.einsum("p,pzyx->zyx", 0.6 * torch.randn(len(parts), generator=rng), parts))


def slab(volume: Tensor, seed: int, at: float | None = None) -> Tensor:
    """Complex ``(24 y x)``: axial planes of a magnitude ``(z y x)``, from the share `at` of its length on; None: a random
    place, mirrored at random from left to right."""
    rng = torch.Generator().manual_seed(seed)
    first = float(torch.rand((), generator=rng)) if at is None else at
    first = round(first * (len(volume) - SHAPE[0]))
    planes = volume[first : first + SHAPE[0]]
    if at is None and seed % 4 > 1:
        planes = planes.flip(-1)
    return with_phase(planes, rng)


def scan(target: Tensor, seed: int, mask: str) -> Scan:
    """k-space ``(z 1 ky kx)`` after decoupling, its operator, and the target, complex ``(z y x)``."""
    drawn = MaskSpec.parse(mask).draw((target.shape[-2], target.shape[-1])).to(torch.bool)
    op = Sense(torch.ones(len(target), 1, *target.shape[1:], dtype=torch.complex64), drawn)
    rng = torch.Generator().manual_seed(seed)
    y = op.forward(target)
    return y + NOISE * op.mask * torch.randn(y.shape, dtype=y.dtype, generator=rng), op, target


def psnr(image: Tensor, target: Tensor) -> float:
    """PSNR of magnitudes ``(z y x)``; the range is the largest magnitude, 1."""
    return float(-10 * (image.abs() - target.abs()).square().mean().log10())


def trained(dims: int, steps: int, example: Callable[[int], Scan]) -> tuple[Generator, float]:
    """The generator, and CPU seconds of a step."""
    torch.manual_seed(0)
    options = {"width": 16, "growth": 8, "blocks": 2, "units": 3, "dims": dims}
    gan = build({"system": "mdcsrn", "generator": options, "losses": {"adversarial": 0.0}})
    optimiser = gan.g_optimiser.build(gan.generator.parameters())
    start = time.process_time()
    for n in range(steps):
        y, op, target = example(1000 + n)
        optimiser.param_groups[0]["lr"] = gan.g_optimiser.lr.at(n, 0, steps)
        loss, _ = total(gan.g_terms, gan.step(y, op, target, number=n))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return gan.generator.eval().requires_grad_(False), (time.process_time() - start) / steps


def rows(mask: str, steps: int, train: Path | None = None, test: Path | None = None) -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    volumes = (head(train), head(test)) if train is not None and test is not None else None

    def example(seed: int) -> Scan:
        image = phantom_image(seed) if volumes is None or seed % 2 else slab(volumes[0], seed)
        return scan(image, seed, mask)

    def tested(seed: int) -> Scan:
        image = phantom_image(seed) if volumes is None else slab(volumes[1], seed, seed / (TEST - 1))
        return scan(image, seed, mask)

    name = "phantoms" if test is None else test.name.split(".")[0]
    tests = [tested(seed) for seed in range(TEST)]
    blurred = [psnr(op.adjoint(y), target) for y, op, target in tests]
    yield f"{name} {mask}: zero-filled", float(np.mean(blurred)), "dB", f"{TEST} simulated volumes"
    for dims in (2, 3):
        network, seconds = trained(dims, steps, example)
        found = [psnr(network(y, op), target) for y, op, target in tests]
        gain = np.array(found) - np.array(blurred)
        n = sum(p.numel() for p in network.parameters())
        note = f"{gain.mean():+.2f} dB, least {gain.min():+.2f}; {n:,} parameters, {steps} steps of {seconds:.2f} CPU s"
        yield f"{name} {mask}: dims {dims}", float(np.mean(found)), "dB", note


def run() -> Iterator[Row]:
    """Rows for half the points along both axes."""
    yield from rows("centre:4", 80)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mask", default="centre:4")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--train", type=Path, default=None, help="NIfTI magnitude of one subject")
    parser.add_argument("--test", type=Path, default=None, help="of another subject")
    setting = parser.parse_args()
    if (setting.train is None) != (setting.test is None):
        parser.error("--train and --test belong together")
    for what, value, unit, note in rows(setting.mask, setting.steps, setting.train, setting.test):
        print(f"{what:<40} {value:>7.2f} {unit:<3} {note}", flush=True)


if __name__ == "__main__":
    main()
