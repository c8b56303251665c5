"""Does the ranking by held-out samples agree with the ranking by PSNR against the truth?

    python -m benchmarks.rank_agreement [--data FOLDER] [--draws 3] [--slices 2] [--only NAME] [--masks MASK ...]

Fully sampled slices are undersampled; every method reconstructs them, and from the samples that are left when some are held out
once more. The first gives the PSNR on the support, the second the held-out error, and the ranks of the two are compared. The
truth is the fully sampled slice, noise included; of the simulated volume also the slice without noise.
``--data`` (default: $RECON_DATA) is a folder with ``brain_t1c/`` (pictures, from which one volume is simulated) and
``fastmri_style/``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from kspace.container import Header, KSpace
from kspace.masks import MaskSpec
from kspace.operators import Sense as Op
from recon.commands.simulate import simulate
from recon.compare.held_out import HeldOutComparison, Reconstruct
from recon.compare.holding import hold_out
from recon.compare.methods import by_default
from recon.datasets.example import Example
from recon.datasets.kspace_dataset import KSpaceDataset
from recon.methods.choose import choose
from recon.methods.classical import CgSense, L1Wavelet, TotalVariation, ZeroFilled
from recon.metrics import image as metrics

MASKS = ("random1d:4", "random1d:8", "poisson2d:4", "poisson2d:8")
SCANS = ("brain_8ch", "ge_fruit_8ch")
SIMULATED = "brain_t1c (simulated)"
QUIET = "brain_t1c (simulated), truth without noise"
PICTURES = range(561, 573)  # of brain_t1c/meningioma, from its last tenth
MATRIX = (160, 160)
SENSE_WEIGHTS = (1e-3, 1e-2, 5e-2)
SPARSE_WEIGHTS = (5e-4, 2e-3, 8e-3)


@dataclass(frozen=True)
class Outcome:
    """One slice under one mask: PSNR in dB and held-out error of the methods that both could be measured of."""

    dataset: str
    mask: str
    names: tuple[str, ...]
    psnr: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def spearman(self) -> float:
        """Spearman's rank correlation; 1 where the held-out error orders methods as PSNR does."""
        return float(spearmanr(-np.array(self.error), self.psnr).statistic)

    @property
    def kendall(self) -> float:
        """Kendall's tau-b: pairs in the same order less pairs in the other, over all pairs."""
        return float(kendalltau(-np.array(self.error), self.psnr).statistic)

    @property
    def same_top(self) -> bool:
        """Whether both put the same method first."""
        return int(np.argmin(self.error)) == int(np.argmax(self.psnr))

    @property
    def lost(self) -> float:
        """PSNR of the best method less that of the one that the held-out error chooses, in dB."""
        return max(self.psnr) - self.psnr[int(np.argmin(self.error))]

    def only(self, keep: str) -> Outcome:
        """The same, of the methods whose names begin with `keep`."""
        at = [i for i, name in enumerate(self.names) if name.startswith(keep)]
        parts = (tuple(column[i] for i in at) for column in (self.names, self.psnr, self.error))
        names, psnr, error = parts
        return Outcome(self.dataset, self.mask, names, psnr, error)  # type: ignore[arg-type]


def methods() -> dict[str, Reconstruct]:
    """Classical methods at several weights, and the generators that ship."""
    found: dict[str, Reconstruct] = {"zero-filled": ZeroFilled()}
    found |= {f"sense {w:g}": CgSense(lamda=w) for w in SENSE_WEIGHTS}
    found |= {f"l1-wavelet {w:g}": L1Wavelet(lamda=w) for w in SPARSE_WEIGHTS}
    found |= {f"tv {w:g}": TotalVariation(lamda=w) for w in SPARSE_WEIGHTS}
    for name in by_default([MaskSpec.parse(mask).family for mask in MASKS]):
        made = choose(name, device="cpu").reconstruct
        assert made is not None
        found[name] = made
    return found


def measure(
    example: Example, known_noise: bool, made: Mapping[str, Reconstruct], draws: int, truths: Mapping[str, NDArray], mask: str
) -> list[Outcome]:
    """Both figures of every method on one undersampled slice, for each of the truths ``(y x)``."""
    op = example.op
    k = KSpace(example.y, op.mask, Header(noise_std=op.noise_std if known_noise else None, steps=("whiten",) * known_noise))
    comparison = HeldOutComparison(tuple(made), draws)
    for draw, held in comparison.begin(k):
        rest = hold_out(k, held)
        # The calibration area is whole in every draw, so ESPIRiT's maps are the same.
        part = Op(op.maps, rest.mask, op.noise_std)
        for name, reconstruct in made.items():
            comparison.add(draw, name, k, held, part, reconstruct(rest.data, part), None)
    error = {row["name"]: row["mean"] for row in comparison.summary()["methods"] if row["mean"] is not None}
    images = {name: made[name](k.data, op).abs().numpy() for name in error}
    found = []
    for dataset, truth in truths.items():
        psnr = tuple(metrics.psnr(truth, image, op.support.numpy()) for image in images.values())
        found.append(Outcome(dataset, mask, tuple(error), psnr, tuple(error.values())))
    return found


def outcomes(data: Path, draws: int, slices: int, only: str = "", masks: Sequence[str] = MASKS) -> Iterator[Outcome]:
    """One for each slice, mask and truth, of the data sets whose name begins with `only`."""
    made = methods()
    with tempfile.TemporaryDirectory() as folder:
        files = {SIMULATED: _simulated(data, Path(folder), 20.0)}
        files |= {name: data / "fastmri_style" / f"{name}.h5" for name in SCANS}
        quiet = KSpaceDataset([_simulated(data, Path(folder), 1e8)])
        for dataset, text in ((d, m) for d in files if d.startswith(only) for m in masks):
            path = files[dataset]
            examples = KSpaceDataset([path], [MaskSpec.parse(text)])
            n = len(examples)
            for i in range(min(slices, n)):
                at = int((i + 0.5) * n / min(slices, n))
                example = examples[at]
                assert example.truth is not None
                truths = {dataset: example.truth.numpy()}
                if dataset == SIMULATED:
                    truths[QUIET] = _scaled_to(quiet[at].truth, example.truth)
                yield from measure(example, examples.volumes[0].noise is not None, made, draws, truths, text)


def _scaled_to(truth: Tensor | None, noisy: Tensor) -> NDArray:
    """Whitening gives each file its own unit."""
    assert truth is not None
    return (truth * (truth * noisy).sum() / truth.square().sum()).numpy()


def _simulated(data: Path, folder: Path, snr: float) -> Path:
    pictures, volumes = folder / "pictures", folder / f"volumes-{snr:g}"
    (pictures / "meningioma").mkdir(parents=True, exist_ok=True)
    for number in PICTURES:
        for suffix in ("jpg", "txt"):
            shutil.copy(data / "brain_t1c" / "meningioma" / f"{number}.{suffix}", pictures / "meningioma")
    simulate(pictures, volumes, matrix=MATRIX, coils=8, snr=snr, smooth=True)
    (path,) = volumes.glob("**/*.h5")
    return path


def table(found: list[Outcome]) -> None:
    """Print the mean over the slices of each data set and mask, and over all."""
    print("| data | mask | slices | Spearman | Kendall | same method first | PSNR lost by choosing [dB] |")
    print("|---|---|---|---|---|---|---|")
    groups = dict.fromkeys((o.dataset, o.mask) for o in found)
    for dataset, mask in groups:
        _row(f"{dataset} | {mask}", [o for o in found if (o.dataset, o.mask) == (dataset, mask)])
    scans = [o for o in found if o.dataset != QUIET]  # the same slices are not counted twice
    _row("all but the truth without noise | all", scans)
    for keep in ("sense", "l1-wavelet", "tv"):
        _row(f"the same, weights of {keep} only | all", [o.only(keep) for o in scans])


def _row(head: str, found: list[Outcome]) -> None:
    spearman, kendall, lost = (np.mean([getattr(o, name) for o in found]) for name in ("spearman", "kendall", "lost"))
    worst = max(o.lost for o in found)
    first = f"{sum(o.same_top for o in found)} of {len(found)}"
    print(
        f"| {head} | {len(found)} | {spearman:.2f} | {kendall:.2f} | {first} | {lost:.2f} (at most {worst:.2f}) |", flush=True
    )


def main() -> None:
    """Print the table, and every single outcome before it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("RECON_DATA"), help="default: $RECON_DATA")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--slices", type=int, default=2, help="of each volume")
    parser.add_argument("--only", default="", help="of data sets whose name begins so")
    parser.add_argument("--masks", nargs="+", default=MASKS)
    arguments = parser.parse_args()
    if arguments.data is None or not Path(arguments.data).is_dir():
        parser.error("give --data FOLDER, or set RECON_DATA")
    torch.set_num_threads(1)
    found = []
    a = arguments
    for outcome in outcomes(Path(a.data), a.draws, a.slices, a.only, a.masks):
        found.append(outcome)
        pairs = zip(outcome.names, outcome.psnr, outcome.error, strict=True)
        listed = ", ".join(f"{n} {p:.1f} dB/{e:.3f}" for n, p, e in sorted(pairs, key=lambda row: row[2]))
        print(f"{outcome.dataset}, {outcome.mask}: {listed}\n", flush=True)
    table(found)


if __name__ == "__main__":
    main()
