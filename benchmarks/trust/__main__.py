"""Command line: see the package."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.trust import common, detect, loss, runs, scans

PARTS = {
    "detect": detect.detect,
    "coverage": detect.coverage,
    "loss": loss.loss,
    "outside": scans.outside,
    "perturb": scans.perturb,
    "cost": runs.cost,
    "leak": runs.leak,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--volumes", nargs="*", default=[])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RECON_DATA", ".")))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--system", default="refinegan")
    parser.add_argument("--masks", default="random1d:4,poisson2d:4")
    parser.add_argument("--at-most", type=int, default=8)
    given = parser.parse_args()
    start = time.perf_counter()
    setting = common.Setting(tuple(given.volumes), given.data, given.weights, given.masks, given.at_most, given.system)
    PARTS[given.part](setting)
    print(f"({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
