"""The classical reconstructions, judged: against BART, against themselves run longer, and against other weights.

    python -m benchmarks.baselines {images,brain,uniform,weights,convergence,speed} [--data FOLDER]

``--data`` (default: $RECON_DATA) is a folder with ``refinegan_brain/`` (8-bit images and masks with the zero frequency in the
corner) and ``fastmri_style/`` (fully sampled k-space). Weights are chosen on other images, or other masks, than those that the
tables show. Seconds are CPU seconds on one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kspace.coils import estimate_maps
from kspace.container import Header, KSpace
from kspace.fourier import fft, ifft, to_centre
from kspace.masks import MaskSpec
from kspace.operators import Sense as Op
from recon.methods import bart
from recon.methods.classical import CgSense, L1Wavelet, TotalVariation, ZeroFilled, objective, rss
from recon.methods.grappa import Grappa

TUNING, SHOWN = (3, 23, 43), (53, 61, 69, 77, 85, 93)
OUR_WEIGHTS = (7e-4, 1.5e-3, 2e-3, 3e-3)
BART_TV_WEIGHTS = (3e-3, 5e-3, 8e-3, 1.2e-2, 1.8e-2, 2.7e-2, 4e-2)
BART_WAVELET_WEIGHTS = (2e-3, 3e-3, 4.5e-3, 7e-3)
SENSE_WEIGHTS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

Case = tuple[Tensor, Op, Tensor]  # k-space, operator, magnitude of the truth


def psnr(image: Tensor, truth: Tensor, where: Tensor | None = None, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio of magnitudes in dB, on `where` (default: everywhere); the peak is that of `truth`."""
    error = (image.abs() - truth.abs()).square()
    error = error if where is None else error[where]
    return float(10 * torch.log10((peak or float(truth.abs().max())) ** 2 / error.mean()))


def image_case(data: Path, percent: int, index: int) -> Case:
    """One 8-bit image, its k-space under a radial mask, one coil."""
    files = sorted((data / "refinegan_brain" / "train").glob("*.png"))
    truth = torch.from_numpy(np.array(Image.open(files[index]), np.float32))
    corner = np.array(Image.open(data / "refinegan_brain" / "masks" / f"mask_{percent}.png")) > 0
    mask = to_centre(torch.from_numpy(corner)).unsqueeze(0)
    y = fft(truth.to(torch.complex64)).unsqueeze(0) * mask
    return y, Op(torch.ones(1, *truth.shape, dtype=torch.complex64), mask), truth


def scan_case(data: Path, name: str, index: int, mask_text: str) -> Case:
    """One fully sampled slice, undersampled; maps from the sampled centre; truth: the maps-combined fully sampled image."""
    with h5py.File(data / "fastmri_style" / f"{name}.h5", "r") as f:
        full = torch.from_numpy(f["kspace"][index]).transpose(-1, -2).contiguous()
    mask = MaskSpec.parse(mask_text).draw((full.shape[-2], full.shape[-1]), name)
    y = full * mask
    op = Op(estimate_maps(KSpace(y, mask, Header(source=name))), mask)
    return y, op, (ifft(full) * op.maps.conj()).sum(0).abs()


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result and the CPU seconds it took."""
    start = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - start


def tune(weights: Sequence[float], score: Callable[[float], float]) -> float:
    """The weight with the highest score."""
    return max(weights, key=score)


def images(data: Path) -> None:
    """Total variation and wavelets against BART's total variation on 8-bit images with radial masks."""
    print("| sampled | method | weight | PSNR [dB] | seconds |\n|---|---|---|---|---|")
    for percent in (10, 20, 30, 40):
        tuning, shown = ([image_case(data, percent, i) for i in group] for group in (TUNING, SHOWN))
        for name, make, weights in _image_methods():
            value, seconds, best = _tuned(make, weights, tuning, shown)
            print(f"| {percent} % | {name} | {best:g} | {value:.2f} | {seconds:.2f} |", flush=True)
        filled = np.mean([psnr(ZeroFilled()(y, op), truth, peak=255) for y, op, truth in shown])
        print(f"| {percent} % | zero-filled |  | {filled:.2f} |  |", flush=True)


Run = Callable[[Tensor, Op], tuple[Tensor, float]]  # image and CPU seconds
Make = Callable[[float], Run]  # the same, from a weight


def _ours(method: Any) -> Make:
    return lambda weight: lambda y, op: timed(replace(method, lamda=weight), y, op)


def _barts(kind: str) -> Make:
    return lambda weight: lambda y, op: bart.pics(y, op.maps, "-R", f"{kind}:3:0:{weight}", "-i100")


def _image_methods() -> list[tuple[str, Make, Sequence[float]]]:
    rows: list[tuple[str, Make, Sequence[float]]] = [
        ("tv", _ours(TotalVariation()), (5e-4, 1.5e-3, 4e-3)),
        ("tv, default weight", _ours(TotalVariation()), (TotalVariation().lamda,)),
        ("l1-wavelet, default weight", _ours(L1Wavelet()), (L1Wavelet().lamda,)),
    ]
    if bart.available():
        rows.append(("bart pics -S -R T:3:0:w -i100", _barts("T"), BART_TV_WEIGHTS))
    return rows


def _tuned(make: Make, weights: Sequence[float], tuning: list[Case], shown: list[Case]) -> tuple[float, float, float]:
    """PSNR and seconds on `shown` with the weight that is best on `tuning`, and that weight."""

    def score(weight: float, cases: list[Case]) -> tuple[float, float]:
        runs = [(make(weight)(y, op), truth) for y, op, truth in cases]
        values = [psnr(image, truth, peak=255) for (image, _), truth in runs]
        return float(np.mean(values)), float(np.mean([seconds for (_, seconds), _ in runs]))

    best = weights[0] if len(weights) == 1 else tune(weights, lambda w: score(w, tuning)[0])
    return *score(best, shown), best


def brain(data: Path) -> None:
    """Wavelets and total variation against BART's, with the same maps, on an 8-coil brain at R = 4 random lines."""
    tuning, shown = ([scan_case(data, "brain_8ch", 0, f"random1d:4,seed={s}") for s in g] for g in ((10, 11), (0, 1, 2)))

    def score(reconstruct: Run, cases: list[Case]) -> tuple[float, float, float]:
        rows = []
        for y, op, truth in cases:
            image, seconds = reconstruct(y, op)
            rows.append((psnr(image, truth, op.support), psnr(image * op.support, truth), seconds))
        support, whole, seconds = (float(np.mean(column)) for column in zip(*rows, strict=True))
        return support, whole, seconds

    print("| method | weight | PSNR on the support [dB] | on the whole image [dB] | seconds |\n|---|---|---|---|---|")
    for name, make, weights in _brain_methods():
        scores = [score(make(w), tuning)[0] for w in weights]
        best = weights[int(np.argmax(scores))]
        support, whole, seconds = score(make(best), shown)
        print(f"| {name} | {best:g} | {support:.2f} | {whole:.2f} | {seconds:.2f} |", flush=True)


def uniform(data: Path) -> None:
    """GRAPPA against SENSE and wavelets with their defaults, on uniform masks with reference lines; PSNR in dB on the
    support, CPU seconds in brackets."""
    methods = (Grappa(), CgSense(), L1Wavelet())
    print(f"| scan | mask | zero-filled | {' | '.join(m.name for m in methods)} |\n|---|---|{'---|' * (len(methods) + 1)}")
    for name, index in (("brain_8ch", 0), ("ge_fruit_8ch", 4)):
        for mask in ("uniform1d:2", "uniform1d:3", *(f"uniform1d:spacing={s},centre=24" for s in (2, 3, 4))):
            y, op, truth = scan_case(data, name, index, mask)
            cells = [f"{psnr(op.adjoint(y), truth, op.support):.2f}"]
            for method in methods:
                image, seconds = timed(method, y, op)
                cells.append(f"{psnr(image, truth, op.support):.2f} ({seconds:.2f})")
            print(f"| {name} | {mask} | {' | '.join(cells)} |", flush=True)


def _brain_methods() -> list[tuple[str, Make, Sequence[float]]]:
    rows: list[tuple[str, Make, Sequence[float]]] = [
        ("sense", _ours(CgSense()), SENSE_WEIGHTS),
        ("l1-wavelet", _ours(L1Wavelet()), OUR_WEIGHTS),
        ("tv", _ours(TotalVariation()), OUR_WEIGHTS),
    ]
    if bart.available():
        rows.append(("bart pics -S -R W:3:0:w -i100", _barts("W"), BART_WAVELET_WEIGHTS))
        rows.append(("bart pics -S -R T:3:0:w -i100", _barts("T"), BART_TV_WEIGHTS))
    return rows


def weights(data: Path) -> None:
    """The default and the tuned weight against the best over weights and iteration counts on the very image."""
    scans = [("brain_8ch", 0, 0, "random1d:4", "random1d:4,seed=10")]
    scans += [("ge_fruit_8ch", 4, 2, "random1d:4", "random1d:4,seed=10")]
    scans += [(f"ulf_6B_{c}", 1, 1, "random1d:3", "random1d:3,seed=10") for c in ("GRE", "FSE", "FLAIR")]
    print("| scan | method | default | tuned (weight) | best (weight, iterations) | best - default | best - tuned |")
    print("|---|---|---|---|---|---|---|")
    for name, shown_index, tuning_index, shown_mask, tuning_mask in scans:
        y, op, truth = scan_case(data, name, shown_index, shown_mask)
        # The weight is tuned on another person where there is one, else on another slice or mask.
        other = scan_case(data, name.replace("6B", "6A"), tuning_index, tuning_mask)
        for method, grid in ((CgSense(), SENSE_WEIGHTS), (L1Wavelet(), _WIDE), (TotalVariation(), _WIDE)):
            scores = [psnr(replace(method, lamda=w)(other[0], other[1]), other[2], other[1].support) for w in grid]
            chosen = grid[int(np.argmax(scores))]
            default = psnr(method(y, op), truth, op.support)
            tried = {
                (w, n): psnr(replace(method, lamda=w, iterations=n)(y, op), truth, op.support)
                for w in grid
                for n in (5, 15, 50, method.iterations)
            }
            tuned, best = tried[chosen, method.iterations], max(tried, key=lambda key: tried[key])
            print(
                f"| {name} | {method.name} | {default:.2f} | {tuned:.2f} ({chosen:g}) "
                f"| {tried[best]:.2f} ({best[0]:g}, {best[1]}) | {tried[best] - default:.2f} | {tried[best] - tuned:.2f} |",
                flush=True,
            )


_WIDE = (5e-4, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def convergence(data: Path) -> None:
    """The objective at the defaults against a run ten times longer, without its stopping rule."""
    cases = {
        "8-bit image, radial 10 %": image_case(data, 10, 53),
        "8-bit image, radial 30 %": image_case(data, 30, 53),
        "brain_8ch, random1d:4": scan_case(data, "brain_8ch", 0, "random1d:4"),
        "ulf_6B_FSE, random1d:3": scan_case(data, "ulf_6B_FSE", 1, "random1d:3"),
    }
    print("| case | method | objective above the long run's | image, relative difference | seconds |\n|---|---|---|---|---|")
    for name, (y, op, _) in cases.items():
        for method in (CgSense(), L1Wavelet(), TotalVariation()):
            long = replace(method, iterations=10 * method.iterations, tolerance=0.0)
            (a, seconds), (b, _) = timed(method, y, op), timed(long, y, op)
            ratio = objective(method, a, y, op) / objective(long, b, y, op)
            change = float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))
            print(f"| {name} | {method.name} | {ratio - 1:.1e} | {change:.1e} | {seconds:.2f} |", flush=True)


def speed(data: Path) -> None:
    """Seconds of every stage for 8 coils of 230 x 180 at R = 4 random lines, with SigPy's and BART's beside."""
    print("| stage | this project | BART | SigPy |\n|---|---|---|---|")
    for stage, ours, theirs, sigpys in _stages(data):
        print(f"| {stage} | {ours:.2f} | {_or_dash(theirs)} | {_or_dash(sigpys)} |", flush=True)


def _or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def _stages(data: Path) -> Iterator[tuple[str, float, float | None, float | None]]:
    import sigpy.mri.app

    y, op, _ = scan_case(data, "brain_8ch", 0, "random1d:4")
    k = KSpace(y, op.mask, Header())
    timed(rss, y)  # the first transform plans
    yield "root sum of squares", timed(rss, y)[1], None, None
    apps = sigpy.mri.app
    array, maps = y.numpy(), op.maps.numpy()
    scaled = array / float(y.abs().max())
    peak = float(op.adjoint(y).abs().max())

    def sigpys(app: Any, *arguments: Any, **options: Any) -> float:
        # With the constructor, which does half of the work: calibration kernels, step sizes by power iteration.
        return timed(lambda: app(*arguments, show_pbar=False, **options).run())[1]

    peer = bart.ecalib(y, "-r", "24")[1] if bart.available() else None
    yield "coil maps (ESPIRiT)", timed(estimate_maps, k)[1], peer, sigpys(apps.EspiritCalib, array, calib_width=14)
    yield "coil maps (JSENSE)", timed(estimate_maps, k, "jsense")[1], None, sigpys(apps.JsenseRecon, scaled)
    wavelet, variation = L1Wavelet(), TotalVariation()
    rows: list[tuple[str, Any, tuple[str, ...], Any, float]] = [
        ("sense", CgSense(), ("-l2", "-r", "0.01", "-i30"), apps.SenseRecon, 0.01),
        ("l1-wavelet", wavelet, ("-R", "W:3:0:0.003", "-i100"), apps.L1WaveletRecon, wavelet.lamda * peak),
        ("tv", variation, ("-R", "T:3:0:0.008", "-i100"), apps.TotalVariationRecon, variation.lamda * peak),
    ]
    for name, method, options, app, lamda in rows:
        peer = bart.pics(y, op.maps, *options)[1] if bart.available() else None
        yield name, timed(method, y, op)[1], peer, sigpys(app, array, maps, lamda)


def run() -> Iterator[tuple[str, float, str, str]]:
    """Rows for ``python -m benchmarks``: seconds of each stage, BART's and SigPy's in the remark."""
    data = os.environ.get("RECON_DATA")
    if not data or not (Path(data) / "fastmri_style").is_dir():
        yield "classical reconstructions", float("nan"), "s", "skipped: set RECON_DATA to a folder with fastmri_style/"
        return
    for stage, ours, theirs, sigpys in _stages(Path(data)):
        yield f"{stage}, 8 coils 230x180, R = 4", ours, "s CPU", f"BART {_or_dash(theirs)}, SigPy {_or_dash(sigpys)}"


def main() -> None:
    """Print one of the tables."""
    tables = {f.__name__: f for f in (images, brain, uniform, weights, convergence, speed)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=tables)
    parser.add_argument("--data", type=Path, default=os.environ.get("RECON_DATA"), help="default: $RECON_DATA")
    arguments = parser.parse_args()
    if arguments.data is None or not arguments.data.is_dir():
        parser.error("give --data FOLDER, or set RECON_DATA")
    torch.set_num_threads(1)
    tables[arguments.table](arguments.data)


if __name__ == "__main__":
    main()
