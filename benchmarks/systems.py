"""Every bundled system beside SENSE and the best tuned classical method, on the same masks, maps and samples.

    python -m benchmarks.systems [--data FOLDER] [--scans '*.h5'] [--masks ...] [--weights NAME,...] [--max-slices 1] [...]

Scans and masks as in `benchmarks.refinement`; by default the four settings of docs/RESULTS.md. PSNR in dB on the support of
each slice; L1-wavelet and TV are tuned for each mask by the truth of the slices themselves, which favours them, and only the
better one is shown. Differences to it come with Student's 95 % interval over the slices: with one slice of each volume, over
volumes. Then the distance between MR features, the semantic score, and CPU seconds of a slice. ``mean:A:B`` is the mean of the
images of A and B, and ``NAME=FILE`` takes weights from a file. ``--refined`` adds each generator with its residual and its
stack.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.refinement import of_spec, tuned, volumes
from recon.compare.cases import Case, make_case
from recon.compare.methods import by_default, choose
from recon.compare.metrics import slice_figure
from recon.compare.statistics import interval
from recon.methods.classical import CgSense, Reconstructor
from recon.metrics.perceptual import mr_distance
from recon.metrics.segmentation import semantic_score

MASKS = ("random1d:4", "random1d:8", "poisson2d:4", "poisson2d:8")

Row = tuple[str, float, str, str]


@dataclass(frozen=True)
class Measured:
    """One method on some slices: PSNR ``(slice)``, feature distance, semantic score, and CPU seconds of a slice."""

    psnr: np.ndarray
    distance: float
    semantic: float | None
    seconds: float


def measure(cases: Sequence[Case], method: Reconstructor) -> Measured:
    """The figures of `method`."""
    start = time.process_time()
    images = [case.deliver(method(case.y, case.op)) for case in cases]
    seconds = (time.process_time() - start) / len(cases)
    pairs = [(case.truth[None], image[None]) for case, image in zip(cases, images, strict=True)]
    scores = [found for pair in pairs if (found := semantic_score(*pair)) is not None]
    return Measured(
        np.array([slice_figure("psnr_support", case.truth, image) for case, image in zip(cases, images, strict=True)]),
        float(np.mean([mr_distance(*pair) for pair in pairs])),
        float(np.mean(scores)) if scores else None,
        seconds,
    )


def named(name: str, own: Sequence[str] = ()) -> Reconstructor:
    """A generator, refined where its name says so, or a mean of several; `own` are weights, ``NAME=FILE``."""
    members = name.removeprefix("mean:").replace("+", ":").split(":")
    return choose(name, [text for text in own if text.partition("=")[0] in members])[0].reconstruct


def rows(setting: argparse.Namespace) -> Iterator[Row]:
    """A row for every scan, mask and method."""
    masks = setting.masks.split(";")
    names = setting.weights.split(",") if setting.weights else by_default({mask.partition(":")[0] for mask in masks})
    own = [name for name in names if "=" in name]
    names = [name.partition("=")[0] for name in names]
    if setting.refined:
        names = [f"{name}{suffix}" for name in names for suffix in ("", "+residual", "+stack")]
    methods = {"sense": CgSense(), **{name: named(name, own) for name in names}}
    for scan in setting.scans.split(","):
        for mask in masks:
            members = [(v, i) for v in volumes(setting.data, scan) for i in v.slices(setting.max_slices)]
            cases = [make_case(volume, i, of_spec(mask, 0)) for volume, i in members]
            classical = {name: measure(cases, method) for name, method in tuned(cases, setting.classical.split(",")).items()}
            best = max(classical, key=lambda name, known=classical: known[name].psnr.mean())  # type: ignore[misc]
            yield _row(f"{scan} {mask}: {best}", classical[best], None)
            for name, method in methods.items():
                yield _row(f"{scan} {mask}: {name}", measure(cases, method), classical[best])


def _row(what: str, found: Measured, reference: Measured | None) -> Row:
    note = f"n = {len(found.psnr)}, MR distance {found.distance:.4f}, {found.seconds:.2f} s"
    if found.semantic is not None:
        note = f"semantic {found.semantic:.3f}, {note}"
    if reference is not None:
        difference = found.psnr - reference.psnr
        between = interval(difference)
        limits = "" if between is None else f" [{between[0]:+.2f}, {between[1]:+.2f}]"
        note = f"{difference.mean():+.2f}{limits} dB, least {difference.min():+.2f}; {note}"
    return what, float(found.psnr.mean()), "dB", note


def run() -> Iterator[Row]:
    """Rows of the brain, for the command that runs all benchmarks."""
    yield from rows(_parser().parse_args(["--scans", "brain"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RECON_DATA", "../shared/data")))
    parser.add_argument("--scans", default="brain")
    parser.add_argument("--masks", default=";".join(MASKS), help="separated by semicolons")
    parser.add_argument("--weights", default=None, help="default: every bundled generator that knows these masks")
    parser.add_argument("--classical", default="l1-wavelet,tv", help="compared with the better of these")
    parser.add_argument("--max-slices", type=int, default=1)
    parser.add_argument("--refined", action="store_true")
    return parser


def main() -> None:
    """Print the rows."""
    setting = _parser().parse_args()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    for what, value, unit, note in rows(setting):
        print(f"{what:<40} {value:>7.2f} {unit:<3} {note}", flush=True)


if __name__ == "__main__":
    main()
