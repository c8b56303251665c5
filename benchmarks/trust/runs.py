"""Cost of the evidence, and samples that were not acquired."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.trust.common import SYSTEMS, Setting, deliver
from recon.api import example_scan
from recon.commands.calibrate import labelled
from recon.commands.run import run
from recon.run.options import RunOptions

ROUNDS = 3
LEVELS: dict[str, dict[str, Any]] = {
    "none": {"evidence": "none", "guard": "off"},
    "guard": {"evidence": "none"},
    "basic": {"evidence": "basic"},
    "stability": {"evidence": "full", "repeats": 0},
    "full": {"evidence": "full"},
}
"""Options of `recon run`, each measuring more than the one before."""
ITEMS = {
    "guard": "domain guard",
    "basic": "certificate, determined part and held-out score",
    "stability": "stability",
    "full": "uncertainty",
}


def cost(setting: Setting) -> None:
    """Rounds of runs on the simulated example of 3 slices, in one process, in turning order; items by differences of rounds."""
    with tempfile.TemporaryDirectory() as folder:
        path = example_scan(Path(folder) / "scan.h5", matrix=128, acceleration=3)
        for refine in ("stack", "none"):
            seconds: dict[str, list[float]] = {name: [] for name in LEVELS}
            for i in range(ROUNDS):
                for name in (*LEVELS, *LEVELS)[i : i + len(LEVELS)]:
                    options = RunOptions(method=setting.system, weights=setting.weights, refine=refine, force=True)  # type: ignore[arg-type]
                    start = time.perf_counter()
                    run([path], Path(folder) / "out", replace(options, **LEVELS[name]))
                    seconds[name].append(time.perf_counter() - start)
            ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(seconds["full"], seconds["none"], strict=True))
            print(f"{refine}: wall time with evidence over without {ratios}; shares of the run with evidence:")
            taken = {name: statistics.median(found) for name, found in seconds.items()}
            for (name, longer), shorter in zip(list(taken.items())[1:], taken.values(), strict=False):
                print(f"  {ITEMS[name]} {(longer - shorter) / taken['full']:.0%}", flush=True)


def leak(setting: Setting) -> None:
    """Every system and refinement with other values where nothing was acquired: images and evidence bit for bit."""
    volume = min(setting.test_volumes(), key=lambda v: v.plane(0).data.numel())
    for spec in setting.specs():
        one = labelled(volume, spec)
        rng = torch.Generator().manual_seed(0)
        noise = 1e3 * torch.randn(one.y.shape, generator=rng, dtype=torch.complex64) * one.y.abs().max()
        other = replace(one, y=torch.where(one.op.mask, one.y, noise))
        for name in SYSTEMS:
            for refine in ("none", "residual", "stack"):
                method = setting.method(name, refine)
                first, second = (deliver(method, case) for case in (one, other))
                same = first[0] == second[0] and first[1].keys() == second[1].keys()
                same = same and all(torch.equal(first[1][role], second[1][role]) for role in first[1])
                print(f"{spec} {name} {refine}: {'identical' if same else 'DIFFERENT'} ({', '.join(first[1])})", flush=True)
