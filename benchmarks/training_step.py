"""One training step of every system: CPU seconds, as a ratio to RefineGAN's, and peak memory.

    python -m benchmarks.training_step [--systems varnet,visual] [--size 192] [--bundled]

Raw presets with their defaults, or (``--bundled``) with the generators of the bundled weights; one batch of four strips of 64
columns and 8 coils, as in the trainings of docs/TRAINING.md: discriminator's and generator's update, in bfloat16 where the
processor multiplies it. Each system runs in a process of its own; the memory is the largest resident set during the steps less
that before the network was made.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
import yaml

from kspace.masks import MaskSpec
from kspace.operators import Sense
from models.parts.interface import total
from models.systems import build, find_systems
from recon.methods import weights
from recon.methods.precision import multiplies_bfloat16
from recon.train.configs import bundled_configs

STEPS, STRIP, COILS, BATCH = 3, 64, 8, 4
Row = tuple[str, float, str, str]


def batch(size: int) -> tuple[torch.Tensor, Sense, torch.Tensor]:
    """k-space ``(4 8 size 64)``, its operator under random1d:4, and the object ``(4 size 64)``: noise."""
    shape = (size, STRIP)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn((BATCH, *shape), dtype=torch.complex64, generator=generator)
    maps = torch.randn((BATCH, COILS, *shape), dtype=torch.complex64, generator=generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    op = Sense(maps, MaskSpec.parse("random1d:4").draw(shape)[None])
    return op.forward(target), op, target


def one(system: str, size: int, bundled: bool = False) -> dict[str, float]:
    """CPU seconds of a step, median of three after one untimed, and peak memory in MB."""
    torch.set_num_threads(1)
    y, op, target = batch(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = yaml.safe_load(bundled_configs()[system].read_text())
    gan = build(weights.read_card(weights.find(system)).config if bundled else config)
    parts = [(gan.g_optimiser.build(gan.generator.parameters()), gan.g_terms)]
    if gan.d_terms:
        critics = [p for d in gan.discriminators for p in d.parameters()]
        parts.insert(0, (gan.d_optimiser.build(critics), gan.d_terms))
    seconds = []
    for number in range(STEPS + 1):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16("cpu")):
            step = gan.step(y, op, target, number=10_000 + number)
            for optimiser, terms in parts:
                optimiser.zero_grad()
                total(terms, step)[0].backward()
                optimiser.step()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": float(np.median(seconds[1:])), "mb": peak / 1024}


def run(systems: list[str] | None = None, size: int = 192, bundled: bool = False) -> Iterator[Row]:
    """Rows of (what, figure, unit, remark)."""
    base = None
    for system in dict.fromkeys(["refinegan", *(systems or find_systems())]):
        command = [sys.executable, "-m", "benchmarks.training_step", "--one", system, "--size", str(size)]
        command += ["--bundled"] if bundled else []
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        said = json.loads(answer.splitlines()[-1])
        base = base or said["seconds"]
        yield f"training step: {system}", said["seconds"] / base, "x", f"{said['seconds']:.2f} s CPU, {said['mb']:.0f} MB"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=None)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--bundled", action="store_true", help="generators of the bundled weights")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(one(a.one, a.size, a.bundled)))
        return
    for what, value, unit, note in run(a.systems.split(",") if a.systems else None, a.size, a.bundled):
        print(f"{what:<40} {value:>7.2f} {unit:<3} {note}", flush=True)


if __name__ == "__main__":
    main()
