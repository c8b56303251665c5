"""`recon mask`: draw an undersampling mask, for inspection or for other software."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from kspace.masks import FAMILIES, MaskSpec, acceleration, digest

MAX_AXIS = 65536  # above any real matrix, and above what can be drawn interactively


def mask(spec: str, shape: tuple[int, int], output: Path | None = None, key: str = "", force: bool = False) -> None:
    """Draw an undersampling mask, print what it samples, and write it to a file.

    Parameters
    ----------
    spec
        Mask specification FAMILY:AMOUNT,name=value,... where AMOUNT is an acceleration, a percentage or a fraction, e.g.
        random1d:4, poisson2d:8,centre=24,seed=3, dagan-g1d:30%, partial:6/8, file:mask.mat. See docs/MASKS.md.
    shape
        Matrix size of k-space along ky and kx; kx is the readout.
    output
        Output file: .png (one pixel per sample, white where sampled), .npy (bool) or .h5 (data set "mask", as in fastMRI).
        All can be used as file:PATH. Of a family off the Cartesian grid (radial-nufft, spiral-nufft): .npy, the trajectory for
        recon run --trajectory, or .png, the points of the grid next to a sample.
    key
        Further seed, usually the name of a volume: the mask depends on it as on the specification.
    force
        Overwrite `output` if it exists.
    """
    drawing = MaskSpec.parse(spec)
    _check_shape(shape)
    if drawing.off_grid:
        _trajectory(drawing, (int(shape[0]), int(shape[1])), output, key, force)
        return
    drawn = drawing.draw(shape, key)
    grid = (int(shape[0]), int(shape[1]))
    print(_report(drawing, drawn.numpy(), grid))
    if drawing.family == "file":
        from kspace.masks.files import read_mask

        options = drawing.values()
        print(read_mask(options["path"], options["dc"], options["name"], options["transpose"] == "yes").summary)
    print(f"R {acceleration(drawn, grid):.4g}, digest {digest(drawn, grid)}")
    if output is not None:
        _write(output, drawing, drawn.numpy(), grid, force)
        print(f"written to {output}")


def _trajectory(spec: MaskSpec, shape: tuple[int, int], output: Path | None, key: str, force: bool) -> None:
    from kspace.noncartesian.density import visited

    k = spec.trajectory(shape, key)
    assert k is not None
    drawn = visited(k, shape)
    print(
        f"{spec}: {FAMILIES[spec.family].meaning}\n{shape[0]} (y) x {shape[1]} (x), "
        f"{k.shape[0]} readouts of {k.shape[1]} samples\n"
        f"R {acceleration(drawn, shape):.4g} by the points of the grid next to a sample"
    )
    if output is None:
        return
    if output.suffix.lower() == ".h5":
        raise InputError("'.h5' holds masks of a grid", output, "give .npy for the trajectory, or .png")
    _write(output, spec, k.numpy() if output.suffix.lower() == ".npy" else drawn.numpy(), shape, force)
    print(f"written to {output}")


def _check_shape(shape: tuple[int, int]) -> None:
    if len(shape) != 2 or not all(1 <= n <= MAX_AXIS for n in shape):
        raise InputError(
            f"'{' '.join(map(str, shape))}' is not a matrix size",
            "--shape",
            f"give the size along ky and kx, each 1 to {MAX_AXIS}, e.g. --shape 320 256",
        )


def _report(spec: MaskSpec, mask: NDArray[np.bool_], shape: tuple[int, int]) -> str:
    lines = mask.shape[1] == 1
    n, of = int(mask.sum()), mask.size
    what = "lines" if lines else "points"
    sides = _centre(mask)
    centre = f"{sides[0]} lines" if lines else f"{sides[0]} x {sides[1]}"
    return (
        f"{spec}: {FAMILIES[spec.family].meaning}\n"
        f"{shape[0]} (ky) x {shape[1]} (kx), {n} of {of} {what} sampled ({100 * n / of:.3f} %), fully sampled centre {centre}"
    )


def _centre(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Sides of the largest fully sampled central block with the aspect ratio of the matrix."""
    for n in range(max(mask.shape), 0, -1):
        sides = tuple(max(1, round(n * side / max(mask.shape))) for side in mask.shape)
        block = tuple(slice(side // 2 - m // 2, side // 2 - m // 2 + m) for side, m in zip(mask.shape, sides, strict=True))
        if mask[block].all():
            return sides[0], sides[1]
    return 0, 0


def _write(output: Path, spec: MaskSpec, mask: NDArray[Any], shape: tuple[int, int], force: bool) -> None:
    writers: dict[str, Callable[[Path, MaskSpec, NDArray[Any], tuple[int, int]], None]]
    writers = {".png": _write_png, ".npy": _write_npy, ".h5": _write_h5}
    if output.suffix.lower() not in writers:
        raise InputError(f"'{output.suffix}' is not a mask format", output, f"give {', '.join(writers)}")
    if output.exists() and not force:
        raise InputError("the file exists", output, "give --force to overwrite it")
    with atomic_write(output) as beside:
        writers[output.suffix.lower()](beside, spec, mask, shape)


def _write_png(path: Path, spec: MaskSpec, mask: NDArray[np.bool_], shape: tuple[int, int]) -> None:
    from PIL import Image, PngImagePlugin  # imported here: only PNG files need it

    pixels = np.broadcast_to(mask, shape).astype(np.uint8) * np.uint8(255)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("mask", str(spec))
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=notes, optimize=True)


def _write_npy(path: Path, spec: MaskSpec, mask: NDArray[Any], shape: tuple[int, int]) -> None:
    with path.open("wb") as file:
        np.save(file, mask, allow_pickle=False)


def _write_h5(path: Path, spec: MaskSpec, mask: NDArray[np.bool_], shape: tuple[int, int]) -> None:
    import h5py  # imported here: only HDF5 files need it

    with h5py.File(path, "w") as file:
        file["mask"] = (mask[:, 0] if mask.shape[1] == 1 else mask).astype(np.uint8)
        file["mask"].attrs["mask"] = str(spec)
