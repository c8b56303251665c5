"""Run the benchmarks and print their rows: what was measured, the figure, the unit, and the peer or remark beside it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform

NAMES = ("startup", "read_mrd", "operators", "solve", "noncartesian", "volumes", "dataset", "pipeline", "serve", "batch", "epi")


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="which (default: all)")
    names = parser.parse_args().names or NAMES
    n_cores = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {n_cores} cores, Python {platform.python_version()}")
    for name in names:
        print(f"\n{name}", flush=True)
        for what, value, unit, note in importlib.import_module(f"benchmarks.{name}").run():
            print(f"  {what:<58} {value:>9.3g} {unit:<10} {note}", flush=True)


if __name__ == "__main__":
    main()
