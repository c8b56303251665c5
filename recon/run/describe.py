"""What is in a raw file, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from recon.run.selection import by_reason

if TYPE_CHECKING:  # a description needs no torch
    from kspace.container import ImageIndex
    from kspace.io.fastmri import FastmriVolume
    from kspace.io.mrd import Encoding, MrdScan
    from kspace.noise import Noise


def describe_scan(scan: MrdScan) -> Iterator[str]:
    """Describe an ISMRMRD scan, line by line: encodings, images, noise."""
    yield f"  {scan.n_readouts} readouts; noise: {_describe_noise(scan.noise)}"
    for encoding in scan.encodings:
        yield (
            f"  encoding {encoding.index}: {encoding.trajectory}, {encoding.n_readouts} imaging readouts, "
            f"{encoding.n_coils} coils"
        )
        yield (
            f"    encoded {_matrix(encoding.encoded_matrix)} over {_mm(encoding.encoded_fov_m)} mm, "
            f"recon {_matrix(encoding.recon_matrix)} over {_mm(encoding.recon_fov_m)} mm (x, y, z)"
        )
        if encoding.refusal is not None:
            yield f"    cannot be reconstructed: {encoding.refusal}"
        elif encoding.n_readouts:
            yield from _describe_encoding(scan, encoding)


def _describe_encoding(scan: MrdScan, encoding: Encoding) -> Iterator[str]:
    ky, kz = encoding.acceleration
    mode = f" (calibrationMode {encoding.calibration_mode})" if encoding.calibration_mode else ""
    yield f"    acceleration {ky:g} x {kz:g}, calibration {encoding.calibration}{mode}, centre of k-space {encoding.centre}"
    if layout := scan.describe_trajectory(encoding.index):
        yield f"    {layout}"
    images = scan.images(encoding.index)
    yield f"    images: {_describe_images(images)}"
    for line in by_reason(scan.incomplete(encoding.index)):
        yield f"    incomplete: {line}"
    if images:
        header = scan.header(encoding.index, images[0])
        facts = [str(header.study[name]) for name in ("protocolName", "systemVendor", "systemModel") if header.study.get(name)]
        if field := header.study.get("systemFieldStrength_T"):
            facts.append(f"{field:.3g} T")
        yield f"    scan: {', '.join(facts) or 'unnamed'}"
        yield f"    first image at {_lps(header.geometry.position_m)}{', directions nominal' * header.geometry.nominal}"


def _describe_noise(noise: Noise | None) -> str:
    if noise is None:
        return "no noise scan (reconstruction will not whiten; give a separate one with --noise FILE)"
    std = np.sqrt(np.real(np.diag(noise.covariance)))
    dwell = f", dwell {noise.dwell_s * 1e6:.3g} us" if noise.dwell_s else ""
    return f"{noise.n_samples} samples{dwell}, standard deviation {std.min():.3g} to {std.max():.3g} over the coils"


def _describe_images(images: list[ImageIndex]) -> str:
    if not images:
        return "none complete"
    counts = [(name, len({getattr(i, name) for i in images})) for name in ("slice", "repetition", "phase", "set", "contrast")]
    return f"{len(images)} complete ({', '.join(f'{n} {name}s' if n > 1 else f'1 {name}' for name, n in counts)})"


def describe_volume(volume: FastmriVolume) -> Iterator[str]:
    """Describe a fastMRI volume, line by line: sizes, mask, target."""
    (n_ky, n_kx), (n_y, n_x) = volume.matrix, volume.recon_shape
    sampled = volume.mask.float().mean().item()
    yield f"  {volume.n_slices} slices, {volume.n_coils} coils, readout {n_kx}, phase {n_ky}; recon {n_x} x {n_y} (x, y)"
    yield f"  acquisition {volume.attributes.get('acquisition') or 'unnamed'}, patient {volume.patient or 'unnamed'}"
    yield f"  sampled: {100 * sampled:.1f} % ({'fully' if sampled == 1 else f'acceleration {1 / sampled:.2f}'})"
    yield f"  target: {volume.target_name or 'none'}"


def _matrix(matrix: tuple[int, int, int]) -> str:
    return " x ".join(map(str, matrix))


def _mm(fov_m: tuple[float, float, float]) -> str:
    return " x ".join(f"{1000 * v:g}" for v in fov_m)


def _lps(position_m: tuple[float, float, float]) -> str:
    # Adding 0 avoids printing -0.0.
    return f"({', '.join(f'{round(1000 * v, 1) + 0.0:.1f}' for v in position_m)}) mm LPS"
