"""The figure of one slice: what every method made of it, on one grey scale, and its errors on another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon.report.comparison import ImageFile
from recon.report.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


ERROR_SCALE = 0.1
"""White in the error images, relative to the largest value of the truth."""


def draw_slice(figure: Figure, theme: Theme, file: ImageFile) -> bool:
    """Truth and methods in the upper row, absolute errors below; the slice with a box, or the middle one."""
    if not file.planes or not file.series:
        return False
    number = _slice(file)
    planes = {name: file.read(name, number).T if file.transposed else file.read(name, number) for name in file.series}
    reference = planes.get("truth", next(iter(planes.values())))
    finite = reference[np.isfinite(reference)]
    top = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    white = float(np.percentile(finite, 99.5)) if finite.size else top
    rows, aspect = 2 if file.has_truth else 1, reference.shape[0] / reference.shape[1]
    width = 1.25
    figure.set_size_inches(width * len(planes), rows * width * aspect + 0.4)
    figure.set_layout_engine("constrained", w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    axes: Any = figure.subplots(rows, len(planes), squeeze=False)
    for column, (name, plane) in enumerate(planes.items()):
        _show(axes[0, column], plane, white if white > 0 else top)
        axes[0, column].set_title("truth" if name == "truth" else theme.label(name), fontsize=7)
        if file.has_truth and name == "truth":
            axes[1, column].axis("off")
        elif file.has_truth:
            _show(axes[1, column], np.abs(plane - reference), ERROR_SCALE * top)
    _outline(axes[0, 0], file, number)
    says = f"{file.dataset}: {file.volume}, slice {number}, {file.mask}"
    errors = f"; below: absolute error, white = {100 * ERROR_SCALE:g} % of the truth's maximum" if file.has_truth else ""
    figure.supxlabel((says + errors).replace("$", r"\$"), fontsize=6.5)
    return True


def _slice(file: ImageFile) -> int:
    marked = sorted({int(box[0]) for box in file.boxes} & set(file.planes))
    numbers = marked or sorted(file.planes)
    return numbers[len(numbers) // 2]


def _show(ax: Axes, plane: NDArray[np.float32], white: float) -> None:
    ax.axis("off")
    if np.isfinite(plane).any():
        ax.imshow(plane, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    else:
        ax.text(0.5, 0.5, "failed", ha="center", va="center", transform=ax.transAxes)


def _outline(ax: Axes, file: ImageFile, number: int) -> None:
    from matplotlib.patches import Rectangle

    for slice_number, _, y0, x0, y1, x1 in file.boxes:
        if int(slice_number) == number:
            y0, x0, y1, x1 = (x0, y0, x1, y1) if file.transposed else (y0, x0, y1, x1)
            # Pixel k covers k to k + 1 there, k - 1/2 to k + 1/2 here.
            ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor="#ffd23f", linewidth=0.8))
