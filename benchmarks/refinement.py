"""Generators on fully sampled real scans: as they come, refined and stacked, against the best tuned classical method.

    python -m benchmarks.refinement [--data FOLDER] [--weights FILE] [--scans brain,fruit,ulf] [--masks ...] [--draws 3]

``--data`` (default: $RECON_DATA) is a folder with ``fastmri_style/{brain_8ch,ge_fruit_8ch,ulf_*}.h5``. PSNR in dB on the
support of each slice, against the root sum of squares of all samples. L1-wavelet and TV are tuned for each mask: for the ULF
scans on the other patient, else on the middle slice by its own truth, which favours them. Draws of the mask are repeated
measures of the same scans: the spread that is printed is over draws and slices, not over subjects.

``--masks`` are separated by semicolons; ``A+B`` acquires what both acquire (``random1d:4+partial:6/8``). ``--virtual-coils 1``
compresses the coils first. Of several ``--weights``, separated by commas, the first are refined and stacked; ``iagan=FILE``
names the method that weights are used by. ``--adapt 60`` adds the network after scan-specific adaptation of so many steps.
``--small`` leaves out the stack. ``--classical tv`` saves time off the grid, where L1-wavelet takes several times as long.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kspace.compression import compress
from kspace.container import KSpace
from kspace.masks import MaskSpec
from recon.compare.cases import Case, FullVolume, find_data, make_case, spread
from recon.compare.metrics import slice_figure
from recon.methods import generator
from recon.methods.adaptation.adapt import Recipe, adapt
from recon.methods.classical import CgSense, L1Wavelet, Reconstructor, TotalVariation
from recon.methods.refine import RefinedGenerator
from recon.methods.stack import SLICES, Stack

MASKS = ("random1d:4", "random1d:8", "uniform1d:4", "poisson2d:4", "poisson2d:8")
CENTRE, FARTHEST = 2e-3, 6  # of the grid of weights, in octaves
ULF_SLICES = 4  # of each volume
CLASSICAL = {"l1-wavelet": L1Wavelet, "tv": TotalVariation}

Row = tuple[str, float, str, str]


def volumes(folder: Path, name: str) -> list[FullVolume]:
    """The volumes of ``brain``, ``fruit`` or ``ulf``, or those that a pattern below ``fastmri_style`` names."""
    pattern = {"brain": "brain_8ch.h5", "fruit": "ge_fruit_8ch.h5", "ulf": "ulf_*.h5"}.get(name, name)
    return find_data([str(folder / "fastmri_style" / pattern)])[0]


def psnr(case: Case, reconstruct: Reconstructor) -> float:
    """PSNR on the support."""
    return slice_figure("psnr_support", case.truth, case.deliver(reconstruct(case.y, case.op)))


def tuned(cases: Sequence[Case], names: Iterable[str] = tuple(CLASSICAL)) -> dict[str, Reconstructor]:
    """Classical methods with the weights that are best by the mean over `cases`, of powers of two around 2e-3.

    The grid grows until its best weight does not lie at its edge, or `FARTHEST` is reached.
    """
    found: dict[str, Reconstructor] = {}
    for name in names:
        method = CLASSICAL[name]
        scores: dict[int, float] = {}

        def score(i: int, method: Any = method, scores: dict[int, float] = scores) -> float:
            if i not in scores:
                scores[i] = float(np.mean([psnr(case, method(lamda=CENTRE * 2.0**i)) for case in cases]))
            return scores[i]

        best = max((-1, 0, 1), key=score)
        while best in (min(scores), max(scores)) and abs(best) < FARTHEST:
            best = max((best - 1, best, best + 1), key=score)
        if abs(best) == FARTHEST:
            print(f"  note: {name}: best weight {CENTRE * 2.0**best:g} lies at the edge of the grid", flush=True)
        found[name] = method(lamda=CENTRE * 2.0**best)
    return found


@dataclass(frozen=True)
class Both:
    """What all of several masks acquire."""

    parts: tuple[MaskSpec, ...]

    def draw(self, shape: tuple[int, int], key: str = "") -> torch.Tensor:
        """Bool ``(ky 1)`` or ``(ky kx)``."""
        found = self.parts[0].draw(shape, key)
        for part in self.parts[1:]:
            found = found & part.draw(shape, key)
        return found


def of_spec(text: str, draw: int) -> Any:
    """A mask, or the intersection of several, by the number of its draw."""
    parts = tuple(replace(MaskSpec.parse(part), seed=draw) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Both(parts)


def with_virtual_coils(volume: FullVolume, n: int) -> FullVolume:
    """The volume after compression of its coils, each slice by itself."""

    def plane(i: int) -> KSpace:
        return compress(volume.plane(i), n)

    return replace(volume, plane=plane)


def measure(
    volume: FullVolume,
    spec: Any,
    slices: Sequence[int],
    methods: dict[str, Reconstructor],
    stack: Stack,
    setting: argparse.Namespace,
) -> tuple[dict[str, list[float]], str]:
    """PSNR of every method on some slices of a volume, and what the stack and adaptation say of themselves."""
    cases = [make_case(volume, i, spec) for i in slices]
    every, says = dict(methods), []
    if not setting.small:
        looked_at = [cases[slices.index(i)] for i in spread(slices, SLICES)]
        fitted = stack.fitted([(case.y, case.op) for case in looked_at])
        assert fitted.fit is not None
        every["stack"] = fitted
        says.append(fitted.fit.says)
    if setting.adapt:
        made = adapt(stack.network, [(case.y, case.op) for case in cases], Recipe(float("inf"), setting.adapt))
        every["adapted network"] = made.network
        says.append(made.says)
    return {name: [psnr(case, method) for case in cases] for name, method in every.items()}, "; ".join(says)


def rows(setting: argparse.Namespace) -> Iterator[Row]:
    """A row for every scan, mask and method: mean over draws and slices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, *more = [_loaded(text, device) for text in setting.weights.split(",")]
    generated: dict[str, Reconstructor] = {"sense": CgSense(), "network": network}
    if not network.generator.fitted:
        generated["residual"] = RefinedGenerator(network)
    for path, other in zip(setting.weights.split(",")[1:], more, strict=True):
        generated[f"network {path}"] = other
    masks = setting.masks.split(";") if setting.masks else MASKS
    for scan in setting.scans.split(","):
        members = volumes(setting.data, scan)
        if setting.virtual_coils:
            members = [with_virtual_coils(volume, setting.virtual_coils) for volume in members]
        for mask in masks:
            values: dict[str, list[float]] = {}
            for patient, others in _patients(members, scan):
                first = [make_case(v, v.n_slices // 2, of_spec(mask, 0)) for v in others]
                methods = {**tuned(first, setting.classical.split(",")), **generated}
                for volume in patient:
                    slices = volume.slices(setting.max_slices or (ULF_SLICES if scan == "ulf" else None))
                    for draw in range(setting.draws):
                        found, says = measure(volume, of_spec(mask, draw), slices, methods, Stack(network), setting)
                        print(f"  {volume.name} {mask} draw {draw}: {says}", flush=True)
                        for name, numbers in found.items():
                            values.setdefault(name, []).extend(numbers)
            yield from _summary(f"{scan} {mask}", values)


def _loaded(text: str, device: str) -> generator.GeneratorReconstructor:
    """The network of ``FILE``, a bundled name, or ``METHOD=FILE`` for a variant of a system."""
    method, given, path = text.rpartition("=")
    return generator.load(path, device, method if given else None, "auto")


def _patients(members: Sequence[FullVolume], scan: str) -> Iterator[tuple[list[FullVolume], list[FullVolume]]]:
    """Volumes to report, and volumes to tune on."""
    if scan != "ulf":
        yield list(members), list(members)
        return
    for own in ("6A", "6B"):
        yield [v for v in members if own in v.name], [v for v in members if own not in v.name]


def _summary(name: str, values: dict[str, list[float]]) -> Iterator[Row]:
    arrays = {method: np.array(numbers) for method, numbers in values.items()}
    best = max(CLASSICAL.keys() & arrays.keys(), key=lambda method: arrays[method].mean())
    for method, array in arrays.items():
        difference = array - arrays[best]
        note = (
            ""
            if method in CLASSICAL
            else f"{difference.mean():+.2f} dB to {best}, least {difference.min():+.2f}, n = {len(array)}"
        )
        yield f"{name}: {method}", float(array.mean()), "dB", note


def times(folder: Path, masks: Sequence[str], weights: str) -> Iterator[Row]:
    """CPU time of a slice of ``brain_8ch.h5``, coil maps apart, as a ratio to L1-wavelet with its defaults; medians of three
    alternating runs."""
    network = generator.load(weights, precision="auto")
    methods: dict[str, Reconstructor] = {
        "l1-wavelet": L1Wavelet(),
        "network": network,
        "residual": RefinedGenerator(network),
        "stack with its weights": Stack(network),
    }
    (volume,) = volumes(folder, "brain")
    for mask in masks:
        case = make_case(volume, 0, of_spec(mask, 0))
        network(case.y, case.op)
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(3):
            for name, method in methods.items():
                start = time.process_time()
                method(case.y, case.op)
                seconds[name].append(time.process_time() - start)
        base = float(np.median(seconds["l1-wavelet"]))
        for name, found in seconds.items():
            yield f"brain {mask}: {name}", float(np.median(found)) / base, "x", f"{np.median(found):.2f} s"


def run() -> Iterator[Row]:
    """Rows of (what, figure, unit, remark), for one draw of each mask."""
    yield from rows(_parser().parse_args(["--draws", "1"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RECON_DATA", "../shared/data")))
    parser.add_argument("--weights", default="refinegan")
    parser.add_argument("--scans", default="brain,fruit,ulf")
    parser.add_argument("--masks", default=None)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--max-slices", type=int, default=None)
    parser.add_argument("--classical", default=",".join(CLASSICAL), help="compared with the better of these")
    parser.add_argument("--virtual-coils", type=int, default=None)
    parser.add_argument("--adapt", type=int, default=None, metavar="STEPS")
    parser.add_argument("--small", action="store_true", help="without the stack")
    parser.add_argument("--time", action="store_true", help="CPU times instead, of a slice of the brain")
    return parser


def main() -> None:
    """Print the rows."""
    setting = _parser().parse_args()
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    start = time.perf_counter()
    masks = setting.masks.split(";") if setting.masks else MASKS
    made = times(setting.data, masks, setting.weights) if setting.time else rows(setting)
    for what, value, unit, note in made:
        print(f"{what:<40} {value:>7.2f} {unit:<3} {note}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
