"""Validation by volume, as fastMRI does it, beside SENSE on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kspace.fourier import central
from kspace.linear_operators import with_tensors
from kspace.operators import ForwardModel
from recon.datasets.example import Example, Key
from recon.methods import classical
from recon.metrics import image as metrics

Array = NDArray[np.float32]
Reconstruct = Callable[[Tensor, ForwardModel], Tensor]


@dataclass(frozen=True, eq=False)
class SliceResult:
    """Magnitudes ``(y x)`` of one slice, cut to the matrix that is delivered.

    Attributes
    ----------
    key
        Which slice and mask.
    truth
        Root sum of squares of the fully sampled coil images.
    image
        The generator's.
    support
        Where the coil maps say something.
    y, op
        What was measured, for one slice; None once SENSE and zero filling are known.
    sense, zero_filled
        The reconstructions to compare with.
    """

    key: Key
    truth: Array
    image: Array
    support: NDArray[np.bool_]
    y: Tensor | None = None
    op: ForwardModel | None = None
    crop: tuple[int, int] = (0, 0)
    sense: Array | None = None
    zero_filled: Array | None = None

    @staticmethod
    def of(batch: Example, i: int, image: Tensor, key: Key) -> SliceResult:
        """Slice `i` of a batch whose images are `image` ``(n y x)``."""
        assert batch.truth is not None
        crop = batch.recon_shapes[i]
        op = with_tensors(batch.op, lambda x: x[i])
        return SliceResult(
            key=key,
            truth=_cut(batch.truth[i], crop),
            image=_cut(image[i], crop),
            support=_cut(op.support.float(), crop) > 0,
            y=batch.y[i],
            op=op,
            crop=crop,
        )


@dataclass
class Recorder:
    """Gathers the slices of one validation and measures its volumes.

    Attributes
    ----------
    settings
        Name of each data loader: the mask that it draws.
    gather
        Joins a list over the processes of a distributed training.
    convention
        Metrics of the system's paper, which are measured too, on images times its `full_scale`; None: only fastMRI's.
    """

    settings: Sequence[str] = ("",)
    gather: Callable[[list[Any]], list[Any]] = field(default=lambda found: found)
    convention: metrics.Convention | None = None
    slices: dict[tuple[int, Key], SliceResult] = field(default_factory=dict)
    known: dict[tuple[int, Key], tuple[Array, Array]] = field(default_factory=dict)

    def add(self, result: SliceResult, setting: int) -> None:
        """Take a slice in. SENSE and zero filling do not change from one validation to the next: they are made once."""
        where = (setting, result.key)
        if where not in self.known:
            assert result.y is not None
            assert result.op is not None
            self.known[where] = (
                _cut(sense()(result.y, result.op), result.crop),
                _cut(result.op.adjoint(result.y), result.crop),
            )
        reference, zero_filled = self.known[where]
        self.slices[where] = replace(result, y=None, op=None, sense=reference, zero_filled=zero_filled)

    def finish(self) -> dict[str, float]:
        """Metrics averaged over the volumes, of all settings together and of each, and start anew.

        ``gain_db`` is the PSNR on the support less that of SENSE: the figure to watch.
        """
        found = self.gather(list(self.slices.items()))
        self.slices = {}
        volumes: dict[tuple[int, str], dict[Key, SliceResult]] = {}
        for (setting, key), result in found:
            volumes.setdefault((setting, key.file), {})[key] = result
        rows = [(setting, self._measure(list(slices.values()))) for (setting, _), slices in sorted(volumes.items())]
        means = _mean([row for _, row in rows])
        for i, name in enumerate(self.settings if len(self.settings) > 1 else ()):
            means |= {f"{metric}/{name}": value for metric, value in _mean([row for s, row in rows if s == i]).items()}
        return means

    def _measure(self, slices: Sequence[SliceResult]) -> dict[str, float]:
        row = _measure(slices)
        if self.convention is not None:
            unit = self.convention.full_scale or 1.0
            truth, image, before = (unit * np.stack([getattr(s, n) for s in slices]) for n in ("truth", "image", "zero_filled"))
            for values, suffix in ((image, ""), (before, "_zero_filled")):
                found = self.convention.measure(truth, values)
                row |= {f"{self.convention.name}_{name}{suffix}": float(v.mean()) for name, v in found.items()}
        return row


def sense() -> Reconstruct:
    """The classical reconstruction that generators are compared with while they are trained."""
    return classical.make("sense")


def _measure(slices: Sequence[SliceResult]) -> dict[str, float]:
    slices = sorted(slices, key=lambda s: s.key.slice)
    truth, image, classical, support = (
        np.stack([getattr(s, name) for s in slices]) for name in ("truth", "image", "sense", "support")
    )
    ours = metrics.FASTMRI.measure(truth, image, support)
    theirs = metrics.FASTMRI.measure(truth, classical, support)
    row = {name: float(values[0]) for name, values in ours.items() if not name.startswith("mse")}
    row |= {"sense_psnr_support": float(theirs["psnr_support"][0]), "sense_ssim_support": float(theirs["ssim_support"][0])}
    return {**row, "gain_db": row["psnr_support"] - row["sense_psnr_support"]}


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = rows[0] if rows else ()
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _cut(x: Tensor, crop: tuple[int, int]) -> Array:
    x = x.detach().abs().float().cpu()
    rows, columns = (central(n, min(n, m)) for n, m in zip(x.shape[-2:], crop, strict=True))
    cut: Array = x[..., rows, columns].numpy().copy()
    return cut


def panel(results: Sequence[SliceResult], titles: Sequence[str] = ()) -> Any:
    """A figure with one row per slice: zero-filled, SENSE, output, target, and the errors of SENSE and output, five times."""
    # Imported here: nobody who trains without images should wait for it.
    from matplotlib.figure import Figure

    columns = ("zero-filled", "SENSE", "output", "target", "5x |SENSE - target|", "5x |output - target|")
    figure = Figure(figsize=(2.2 * len(columns), 2.35 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), len(columns), squeeze=False)
    for row, result in enumerate(results):
        assert result.sense is not None
        assert result.zero_filled is not None
        errors = [5 * np.abs(x - result.truth) * result.support for x in (result.sense, result.image)]
        top = float(np.percentile(result.truth, 99.8)) or 1.0
        for ax, x in zip(axes[row], (result.zero_filled, result.sense, result.image, result.truth, *errors), strict=True):
            ax.imshow(x, cmap="gray", vmin=0, vmax=top)
            ax.set_xticks([])
            ax.set_yticks([])
        axes[row][0].set_ylabel(titles[row] if titles else result.key.file, fontsize=8)
    for ax, title in zip(axes[0], columns, strict=True):
        ax.set_title(title, fontsize=8)
    return figure
