"""`recon demo`: simulated scan of an analytic head phantom and its reconstructions. Needs no data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kspace.container import Geometry, Vector
from kspace.errors import InputError
from kspace.simulation.acquisition import (
    Acquisition,
    ScanProtocol,
    accelerate,
    add_noise_scan,
    cartesian,
    coil_covariance,
    interleave_slices,
    mark_last,
)
from kspace.simulation.measurement import true_image, write_scan
from kspace.simulation.phantom import Ellipsoid, Phantom, ellipsoid, head_coils

HEAD_CENTRE_M = (0.006, -0.012, 0.021)
NOISE_STD = 0.016  # per k-space sample; the intensity of the brain is 0.5


def demo(
    output: Path = Path("demo"),
    methods: tuple[str, ...] = ("sense", "l1-wavelet", "refinegan"),
    force: bool = False,
) -> int:
    """Simulate a multi-coil scan, reconstruct it with several methods, and compare them with the ground truth.

    The scan is a regular ISMRMRD file: three oblique, off-centre slices of a head phantom, eight coils, a noise scan, twofold
    readout oversampling, and threefold acceleration with embedded calibration lines.

    Parameters
    ----------
    output
        Folder for the scan (phantom.h5), the images of each method (one folder each), and the comparison figure
        (phantom.png).
    methods
        Reconstruction methods: rss, zero-filled, sense, grappa, l1-wavelet, tv, or names of bundled weights.
    force
        Overwrite existing outputs.

    Returns
    -------
    int
        0.
    """
    path = output / "phantom.h5"
    if path.exists() and not force:
        raise InputError("the file exists", path, "give --force to overwrite it, or another --output")
    # The pipeline takes seconds to import: the check above comes first.
    from recon.commands.run import run
    from recon.methods.choose import choose
    from recon.run.options import RunOptions

    for method in methods:
        choose(method)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the output folder ({error.strerror})", output, "choose a writable one") from error
    scan = head_scan()
    x, y, _ = scan.spaces[0].recon_matrix
    print(f"writing {path}: {x}x{y}, {scan.coils.n_coils} coils, R = {scan.spaces[0].acceleration[0]}", flush=True)
    write_scan(scan, path)
    for method in methods:
        print(f"\nreconstructing: recon run {path} -o {output / method} --method {method}", flush=True)
        run([path], output / method, RunOptions(method=method, force=force))
    figure = output / "phantom.png"
    show(scan, {method: read_slices(output / method / "phantom.mrd.h5") for method in methods}, figure)
    print(f"\nside by side, with errors scaled by 5:\n{figure}")
    return 0


def read_slices(path: Path) -> NDArray[np.float32]:
    """Magnitudes ``(slice y x)`` of the only image series in an MRD file written by `recon run`."""
    import h5py

    with h5py.File(path, "r") as file:
        (series,) = (group["data"][:, 0, 0] for name, group in file["dataset"].items() if name.startswith("image_"))
    return np.abs(series).astype(np.float32)


def truth_of(scan: Acquisition, index: int) -> NDArray[np.float64]:
    """Noise-free ground truth of slice `index`, ``(y x)``: root sum of squares of the whitened coil images."""
    whiten = np.linalg.inv(np.linalg.cholesky(scan.covariance))
    whitened = np.einsum("ij,jyx->iyx", whiten, true_image(scan, scan.coils, slice=index)[:, 0])
    return np.asarray(np.linalg.norm(whitened, axis=0))


def show(scan: Acquisition, images: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Figure of the middle slice of `images` ``(slice y x)``: ground truth and methods, and 5x errors on the same scale."""
    # Imported here: slow to import, and `recon --help` must be fast.
    from matplotlib.figure import Figure

    from recon.metrics.image import psnr
    from recon.output.png import view_of

    index = len(next(iter(images.values()))) // 2
    truth, view = truth_of(scan, index), view_of(head_geometry())
    inside = truth > 0.1 * truth.max()
    top = float(np.percentile(truth[inside], 99.5))
    figure = Figure(figsize=(3 * (1 + len(images)), 6.5), layout="constrained", facecolor="black")
    axes = figure.subplots(2, 1 + len(images), squeeze=False)
    panels = {"truth": truth.astype(np.float32), **{name: found[index] for name, found in images.items()}}
    for column, (name, image) in enumerate(panels.items()):
        error = 5 * np.abs(image - truth)
        caption = name if name == "truth" else f"{name}  {psnr(truth, image, inside):.1f} dB"
        for ax, shown, title in ((axes[0][column], image, caption), (axes[1][column], error, "5x |error|")):
            ax.imshow(view.apply(shown.astype(np.float32)), cmap="gray", vmin=0, vmax=top)
            ax.set_title(title if (column or ax is axes[0][column]) else "", color="white", fontsize=11)
            ax.axis("off")
    axes[1][0].set_visible(False)
    figure.suptitle(
        "Analytic head phantom, 8 coils, R = 3. PSNR on the object. Not for diagnostic use.", color="white", fontsize=11
    )
    figure.savefig(path, dpi=110, facecolor="black")


def head_scan(
    matrix: int = 256, n_slices: int = 3, n_coils: int = 8, factor: int = 3, noise_std: float = NOISE_STD
) -> Acquisition:
    """Simulated scan of `demo`: noise scan, then `n_slices` interleaved slices of `head_phantom`, R = `factor` along ky.

    The slices are oblique, as for a slightly rotated head, and the field of view is off centre.
    """
    protocol = ScanProtocol(
        matrix=(matrix, matrix, 1),
        fov_m=(0.24, 0.24, 0.004),
        geometry=head_geometry(),
        n_slices=n_slices,
        slice_spacing_m=0.014,
        dwell_s=7.6e-6,
    )
    phantom, coils = head_phantom(HEAD_CENTRE_M), head_coils(n_coils, HEAD_CENTRE_M)
    scan = cartesian(protocol, phantom, coils, coil_covariance(n_coils, noise_std))
    scan = mark_last(interleave_slices(accelerate(scan, factor, calibration=24)))
    return add_noise_scan(scan, n_readouts=64, n_samples=256, dwell_s=2e-5)


def head_geometry() -> Geometry:
    """Oblique, off-centre geometry of the slices of `head_scan`."""
    tilt, rotation = np.deg2rad(12.0), np.deg2rad(4.0)
    read = np.array([np.cos(rotation), np.sin(rotation), 0.0])
    phase = np.array([-np.sin(rotation) * np.cos(tilt), np.cos(rotation) * np.cos(tilt), np.sin(tilt)])
    return Geometry((0.002, -0.008, 0.026), _vector(read), _vector(phase), _vector(np.cross(read, phase)))


def _vector(v: NDArray[np.float64]) -> Vector:
    return float(v[0]), float(v[1]), float(v[2])


def head_phantom(centre_m: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Phantom:
    """Shepp-Logan-like head phantom with MR contrast, lesions and fine detail.

    After the three-dimensional Shepp-Logan phantom (Koay 2007, doi:10.1002/mrm.21292). Intensities: scalp 0.85, skull 0.08,
    brain 0.5. Patient coordinates are LPS: the face points to -y. Fine detail: bars 1.2 to 2 mm wide in the left hemisphere.
    """
    parts = [
        ellipsoid((0, 0, 0), (0.0760, 0.0980, 0.0900), 0, 0.85),
        ellipsoid((0, 0.001, 0), (0.0715, 0.0930, 0.0855), 0, -0.77),
        ellipsoid((0, 0.0015, 0), (0.0660, 0.0870, 0.0800), 0, 0.42),
        ellipsoid((0, 0.0015, 0), (0.0580, 0.0780, 0.0720), 0, 0.10),
        ellipsoid((0.0215, -0.004, 0), (0.0100, 0.0300, 0.0300), 18, -0.42),
        ellipsoid((-0.0215, -0.004, 0), (0.0140, 0.0370, 0.0360), -18, -0.42),
        ellipsoid((0, -0.0400, 0), (0.0200, 0.0230, 0.0450), 0, 0.18),
        ellipsoid((0, -0.0030, 0), (0.0045, 0.0045, 0.0300), 0, 0.25),
        ellipsoid((0, 0.0150, 0), (0.0045, 0.0045, 0.0300), 0, 0.25),
        ellipsoid((-0.0080, 0.0600, 0), (0.0046, 0.0023, 0.0300), 0, 0.25),
        ellipsoid((0, 0.0600, 0), (0.0023, 0.0023, 0.0300), 0, 0.25),
        ellipsoid((0.0065, 0.0600, 0), (0.0023, 0.0046, 0.0300), 0, 0.25),
        *_lesions(),
        *_bars(),
    ]
    return Phantom(tuple(Ellipsoid(part.centre_m + np.asarray(centre_m), part.shape_m2, part.intensity) for part in parts))


def _lesions() -> list[Ellipsoid]:
    return [
        ellipsoid((-0.0420, 0.0420, 0.006), (0.0050, 0.0040, 0.0180), 20, 0.35),
        ellipsoid((-0.0330, 0.0490, 0.006), (0.0018, 0.0018, 0.0180), 0, 0.35),
        ellipsoid((0.0180, -0.0560, 0.006), (0.0015, 0.0015, 0.0180), 0, 0.40),
        ellipsoid((0.0400, -0.0350, 0.006), (0.0070, 0.0060, 0.0200), -30, 0.06),
    ]


def _bars() -> list[Ellipsoid]:
    """Three groups of four thin ellipsoids with gaps as wide as the bars."""
    bars = []
    for row, width in enumerate((0.0020, 0.0016, 0.0012)):
        for i in range(4):
            centre = (0.0240 + 2 * width * i, 0.0320 + 0.0105 * row, 0.004)
            bars.append(ellipsoid(centre, (width / 2, 0.0042, 0.0300), 0, 0.35))
    return bars
