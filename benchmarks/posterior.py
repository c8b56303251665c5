"""Draws of a posterior sampler on fully sampled scans: what their mean gains, their spread, and what a draw costs.

    python -m benchmarks.posterior [--data FOLDER] [--weights FILE] [--scans brain,fruit] [--masks ...] [--draws 32] [--time]

PSNR in dB on the support of the mean of K draws, against the root sum of squares of all samples; with draws of the true
posterior the mean of 8 gains 2.5 dB over one. APSD is the average standard deviation of a pixel over the mean magnitude. CFID
needs many scans: it is printed where there are at least `FEWEST` slices. ``--time``: CPU time of K draws as a ratio to that
of one, on a slice of ``brain_8ch.h5``, maps apart, median of three alternating runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.refinement import of_spec, volumes
from kspace.fourier import resize
from recon.compare.cases import make_case
from recon.methods import generator
from recon.metrics.posterior import CFID_FEATURES, apsd, cfid, gain_of_a_posterior, mr_features_of, psnr_of_means

MASKS = ("random1d:4", "random1d:8", "poisson2d:4", "poisson2d:8")
COUNTS = (1, 2, 4, 8, 16, 32)
FEWEST = 64  # slices, twice the features

Row = tuple[str, float, str, str]


def rows(setting: argparse.Namespace) -> Iterator[Row]:
    """Rows of (what, figure, unit, remark) for each scan and mask."""
    network = generator.load(setting.weights, precision="auto")
    counts = [n for n in COUNTS if n <= setting.draws]
    for scan in setting.scans.split(","):
        for mask in setting.masks.split(";"):
            psnrs, spreads, shown = [], [], []
            for volume in volumes(setting.data, scan):
                for i in volume.slices(setting.max_slices):
                    case = make_case(volume, i, of_spec(mask, 0))
                    draws = network.sample(case.y, case.op, setting.draws)
                    assert draws is not None, "the weights are of no posterior sampler"
                    images = resize(draws, case.shape).numpy()
                    support = resize(case.op.support, case.shape).numpy()
                    psnrs.append(psnr_of_means(case.truth, images, support, counts))
                    spreads.append(apsd(images, support))
                    shown.append((case.truth, images[0], resize(case.op.adjoint(case.y), case.shape).numpy()))
            name, n = f"{scan} {mask}", len(psnrs)
            mean = {k: float(np.mean([found[k] for found in psnrs])) for k in counts}
            for k in counts:
                note = f"{mean[k] - mean[1]:+.2f} dB over one; of the posterior {gain_of_a_posterior(k):+.2f}; n = {n}"
                yield f"{name}: mean of {k}", mean[k], "dB", note
            yield f"{name}: APSD", 100 * float(np.mean(spreads)), "%", f"of the mean magnitude, {setting.draws} draws"
            if n >= FEWEST:
                features = [mr_features_of(images) for images in zip(*shown, strict=True)]
                yield f"{name}: CFID", cfid(*features), "", f"{CFID_FEATURES}; one draw each, n = {n}"


def times(setting: argparse.Namespace) -> Iterator[Row]:
    """CPU time of K draws as a ratio to one."""
    network = generator.load(setting.weights, precision="auto")
    (volume,) = volumes(setting.data, "brain")
    for mask in setting.masks.split(";"):
        case = make_case(volume, 0, of_spec(mask, 0))
        network.sample(case.y, case.op, 1)
        seconds: dict[int, list[float]] = {1: [], 2: [], 5: []}
        for _ in range(3):
            for k, found in seconds.items():
                start = time.process_time()
                network.sample(case.y, case.op, k)
                found.append(time.process_time() - start)
        middle = {k: float(np.median(found)) for k, found in seconds.items()}
        each = (middle[5] - middle[1]) / 4
        for k in (2, 5):
            yield f"brain {mask}: {k} draws", middle[k] / middle[1], "x", f"{middle[k]:.2f} s"
        yield f"brain {mask}: a further draw", each / middle[1], "x", f"{each:.2f} s; the rest is scale and starting image"


def run() -> Iterator[Row]:
    """Times, for the command that runs all benchmarks."""
    yield from times(_parser().parse_args([]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RECON_DATA", "../shared/data")))
    parser.add_argument("--weights", default="rcgan")
    parser.add_argument("--scans", default="brain,fruit")
    parser.add_argument("--masks", default=";".join(MASKS))
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--max-slices", type=int, default=None)
    parser.add_argument("--time", action="store_true", help="CPU times instead, of a slice of the brain")
    return parser


def main() -> None:
    """Print the rows."""
    setting = _parser().parse_args()
    for what, value, unit, note in times(setting) if setting.time else rows(setting):
        print(f"{what:<40} {value:>8.3f} {unit:<3} {note}", flush=True)


if __name__ == "__main__":
    main()
