"""Cost of the evidence, and samples that were not acquired."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.trust.common import SYSTEMS, Setting, deliver
from recon.api import example_scan
from recon.commands.calibrate import labelled
from recon.commands.run import run
from recon.run.options import RunOptions


def cost(setting: Setting) -> None:
    """Pairs of runs on the simulated example of 3 slices, in one process; the order alternates."""
    with tempfile.TemporaryDirectory() as folder:
        path = example_scan(Path(folder) / "scan.h5", matrix=128, acceleration=3)
        for refine in ("stack", "none"):
            ratios, shares = [], []
            for i in range(3):
                seconds = {}
                for level in ("none", "full") if i % 2 else ("full", "none"):
                    options = RunOptions(
                        method=setting.system, weights=setting.weights, refine=refine, evidence=level, force=True  # type: ignore[arg-type]
                    )  # fmt: skip
                    start = time.perf_counter()
                    run([path], Path(folder) / "out", options)
                    seconds[level] = time.perf_counter() - start
                    if level == "full":
                        spent = json.loads((Path(folder) / "out" / "scan.json").read_text())["seconds"]
                        shares.append({name: value / seconds[level] for name, value in spent.items()})
                ratios.append(seconds["full"] / seconds["none"])
            mean = {name: sum(s.get(name, 0.0) for s in shares) / len(shares) for name in shares[0]}
            largest = sorted(mean.items(), key=lambda item: -item[1])
            named = ", ".join(f"{name} {value:.0%}" for name, value in largest if value > 0.005)
            print(f"{refine}: wall time with evidence over without {', '.join(f'{r:.2f}' for r in ratios)}; shares: {named}")


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
