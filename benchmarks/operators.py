"""Forward and adjoint of `Sense` against `sigpy.mri.linop.Sense`: the same maps, mask and images on the same cores."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from kspace.masks import MaskSpec
from kspace.operators import Sense

Row = tuple[str, float, str, str]
N_SLICES, N_COILS = 4, 12


def run() -> list[Row]:
    """Seconds for a forward and an adjoint of each slice, and the ratio; the results of both are compared first."""
    rows: list[Row] = []
    for shape in ((256, 256), (320, 368)):
        for spec in (MaskSpec("random1d", 4.0), MaskSpec("poisson2d", 8.0)):
            rows += _compare(shape, spec)
    return rows


def _compare(shape: tuple[int, int], spec: MaskSpec) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(N_SLICES, N_COILS, *shape, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    image = torch.randn(N_SLICES, *shape, dtype=torch.complex64, generator=generator)
    op = Sense(maps, spec.draw(shape).expand(N_SLICES, 1, -1, -1))
    linops = [Sense(plane, op.mask[0]).to_sigpy() for plane in maps]
    images = image.numpy()

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return op.adjoint(op.forward(image))

    def peer() -> np.ndarray:
        return np.stack([linop.H(linop(plane)) for linop, plane in zip(linops, images, strict=True)])

    difference = np.linalg.norm(ours().numpy() - peer()) / np.linalg.norm(peer())
    assert difference < 1e-5, f"the two disagree by {difference:.2g}"
    seconds = _alternate(ours, peer)
    what = f"{shape[0]}x{shape[1]}, {N_COILS} coils, {spec}"
    note = f"batch of {N_SLICES}, {torch.get_num_threads()} threads"
    return [
        (f"forward + adjoint, {what}", 1e3 * seconds[0] / N_SLICES, "ms/slice", note),
        (f"  SigPy {1e3 * seconds[1] / N_SLICES:.3g} ms/slice: times faster", seconds[1] / seconds[0], "x", "at least 3"),
    ]


def _alternate(*functions: Callable[[], object], n: int = 7) -> list[float]:
    """The median time of each, run in turn: what else the machine does hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(n):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            record.append(time.perf_counter() - start)
    return [float(np.median(record)) for record in times]
