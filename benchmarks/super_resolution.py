"""Super-resolution of volumes in planes and in 3-D, on analytic phantoms: simulated, and labelled so.

    python -m benchmarks.super_resolution [--steps 80] [--mask centre:4]

Random ellipsoids whose k-space is known in closed form, 24 x 32 x 32 points, one coil, noise. The readout (24) is complete,
the other two axes hold the central block of ``--mask``. mDCSRN's densely connected network is trained twice without its
discriminator, with equal width, steps and volumes: on planes (``dims: 2``) and on volumes (``dims: 3``). Eight further
phantoms are measured: PSNR in dB of the magnitude of whole volumes, the full block being the truth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from kspace.fourier import ifft
from kspace.masks import MaskSpec
from kspace.operators import Sense
from kspace.simulation.phantom import Phantom, ellipsoid
from models.parts.interface import Generator, total
from models.systems import build

SHAPE, FOV_M = (24, 32, 32), 0.2
TEST = 8
NOISE = 0.01  # of the largest magnitude, E|n|^2 of a sample is its square

Row = tuple[str, float, str, str]


def phantom(seed: int) -> Phantom:
    """A head-sized ellipsoid with a dozen of smaller ones in it."""
    rng = np.random.default_rng(seed)
    parts = [ellipsoid((0.0, 0.0, 0.0), (0.075, 0.085, 0.08), 1.0)]
    for _ in range(12):
        centre, axes = rng.uniform(-0.045, 0.045, 3), rng.uniform(0.005, 0.03, 3)
        parts.append(ellipsoid(tuple(centre), tuple(axes), float(rng.uniform(-0.6, 0.8))))
    return Phantom(tuple(parts))


def scan(seed: int, mask: str) -> tuple[Tensor, Sense, Tensor]:
    """k-space ``(z 1 ky kx)`` of one phantom after decoupling, its operator, and the target ``(z y x)``, complex."""
    k = [(np.arange(n) - n // 2) / FOV_M for n in SHAPE]
    full = torch.from_numpy(phantom(seed).kspace(k[2][None, None], k[1][None, :, None], k[0][:, None, None])).to(
        torch.complex64
    )
    target = ifft(ifft(full, (-3,)), (-2, -1))
    target = target / target.abs().max()
    drawn = MaskSpec.parse(mask).draw(SHAPE[1:]).to(torch.bool)
    op = Sense(torch.ones(SHAPE[0], 1, *SHAPE[1:], dtype=torch.complex64), drawn)
    rng = torch.Generator().manual_seed(seed)
    y = op.forward(target)
    return y + NOISE * op.mask * torch.randn(y.shape, dtype=y.dtype, generator=rng), op, target


def psnr(image: Tensor, target: Tensor) -> float:
    """PSNR of magnitudes ``(z y x)``; the range is the largest magnitude, 1."""
    return float(-10 * (image.abs() - target.abs()).square().mean().log10())


def trained(dims: int, mask: str, steps: int) -> tuple[Generator, float]:
    """The generator, and CPU seconds of a step."""
    torch.manual_seed(0)
    options = {"width": 16, "growth": 8, "blocks": 2, "units": 3, "dims": dims}
    gan = build({"system": "mdcsrn", "generator": options, "losses": {"adversarial": 0.0}})
    optimiser = gan.g_optimiser.build(gan.generator.parameters())
    start = time.process_time()
    for n in range(steps):
        y, op, target = scan(1000 + n, mask)
        optimiser.param_groups[0]["lr"] = gan.g_optimiser.lr.at(n, 0, steps)
        loss, _ = total(gan.g_terms, gan.step(y, op, target, number=n))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return gan.generator.eval().requires_grad_(False), (time.process_time() - start) / steps


def rows(mask: str, steps: int) -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    tests = [scan(seed, mask) for seed in range(TEST)]
    blurred = [psnr(op.adjoint(y), target) for y, op, target in tests]
    yield f"phantoms {mask}: zero-filled", float(np.mean(blurred)), "dB", f"{TEST} simulated volumes"
    for dims in (2, 3):
        network, seconds = trained(dims, mask, steps)
        found = [psnr(network(y, op), target) for y, op, target in tests]
        gain = np.array(found) - np.array(blurred)
        n = sum(p.numel() for p in network.parameters())
        note = f"{gain.mean():+.2f} dB, least {gain.min():+.2f}; {n:,} parameters, {steps} steps of {seconds:.2f} CPU s"
        yield f"phantoms {mask}: dims {dims}", float(np.mean(found)), "dB", note


def run() -> Iterator[Row]:
    """Rows for half the points along both axes."""
    yield from rows("centre:4", 80)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mask", default="centre:4")
    parser.add_argument("--steps", type=int, default=80)
    setting = parser.parse_args()
    for what, value, unit, note in rows(setting.mask, setting.steps):
        print(f"{what:<40} {value:>7.2f} {unit:<3} {note}", flush=True)


if __name__ == "__main__":
    main()
