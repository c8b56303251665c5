"""SENSE of the slices of a scan against SigPy's conjugate gradients, and against the Fourier transforms alone.

    python -m benchmarks solve

The same k-space, maps, weight and relative residual for both, CPU seconds on one thread. The transforms alone are those of the
products with A^H W A, 2 for each coil and iteration, on arrays of the same layout.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from kspace import normal_equations, preprocess
from kspace.cg import conjugate_gradients
from kspace.coils import estimate_maps
from kspace.fourier import fft_corner, ifft_corner
from kspace.masks import MaskSpec
from kspace.operators import Sense
from recon.methods import classical

Row = tuple[str, float, str, str]
ROUNDS = 2
MATRIX, COILS, SLICES = 192, 8, 4
METHOD = classical.CgSense()


def run() -> Iterator[Row]:
    """Rows of (what, number, unit, remark)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        full, maps = _slices()
        for spec in (MaskSpec("random1d", 4.0), MaskSpec("poisson2d", 4.0)):
            mask = spec.draw((MATRIX, MATRIX))
            yield from _compare(full * mask, Sense(maps, mask), f"{SLICES} slices {MATRIX}x{MATRIX}, {COILS} coils, {spec}")
    finally:
        torch.set_num_threads(threads)


def _slices() -> tuple[Tensor, Tensor]:
    """Fully sampled k-space of a head phantom and its coil maps, both ``(slice coil y x)``."""
    from kspace.io.mrd import open_scan
    from kspace.simulation.measurement import write_scan
    from recon.commands.demo import head_scan

    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        write_scan(head_scan(MATRIX, SLICES, COILS, 1), path := Path(folder) / "scan.h5")
        scan = open_scan(path)
        ks = [preprocess.remove_oversampling(scan.load(0, index)) for index in scan.images(0)]
    return torch.stack([k.data for k in ks]), torch.stack([estimate_maps(k) for k in ks])


def _compare(y: Tensor, op: Sense, what: str) -> Iterator[Row]:
    def peer() -> None:
        import sigpy

        for plane, maps in zip(y, op.maps, strict=True):
            linop, array = Sense(maps, op.mask).to_sigpy(), plane.numpy()
            enough = METHOD.stop(op) * float(np.linalg.norm(linop.H(array)))
            solver = sigpy.app.LinearLeastSquares(
                linop, array, lamda=METHOD.lamda, max_iter=METHOD.iterations, tol=enough, show_pbar=False
            )
            solver.run()

    ours, theirs, alone = _seconds(lambda: METHOD(y, op)), _seconds(peer), _transforms(y, op)
    yield f"sense, {what}", 1e3 * ours / len(y), "ms/slice", f"median of {ROUNDS}"
    yield "  SigPy's conjugate gradients: times as long", theirs / ours, "x", "at least 2"
    yield "  its Fourier transforms alone: times as long", alone / ours, "x", "1 is the bound"


def _transforms(y: Tensor, op: Sense) -> float:
    """Seconds of the transforms of all products with A^H W A."""
    shapes: list[tuple[torch.Size, tuple[int, ...]]] = []

    def counted(matrix: Callable[[Tensor], Tensor], *rest: object, **options: object) -> Tensor:
        def product(x: Tensor) -> Tensor:
            n = op.n_coils
            shape = torch.Size([*x.shape[:-2], n, *x.shape[-2:]])
            shapes.append((shape, tuple(axis for axis in (-2, -1) if shape[axis] > 1)))
            return matrix(x)

        return conjugate_gradients(product, *rest, **options)  # type: ignore[arg-type]

    with mock.patch.object(normal_equations, "conjugate_gradients", counted):
        METHOD(y, op)
    arrays = {shape: torch.zeros(shape, dtype=y.dtype) for shape, _ in shapes}
    return _seconds(lambda: [ifft_corner(fft_corner(arrays[shape], axes), axes) for shape, axes in shapes])


def _seconds(function: Callable[[], object]) -> float:
    """Median CPU seconds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


if __name__ == "__main__":
    for row in run():
        print("{:<72} {:>9.3g} {:<9} {}".format(*row), flush=True)
