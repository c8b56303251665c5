"""One image from prepared k-space: coil maps, reconstruction, recon matrix."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from kspace import preprocess
from kspace.container import Image, KSpace
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.masks import acceleration, digest
from kspace.noncartesian import gridding
from kspace.operators import ForwardModel, Sense
from recon.evidence.record import ROLES
from recon.methods.choose import SERIES, Method
from recon.output.series import IN_PLACE
from recon.run.delivery import Delivery
from recon.run.log import Log
from recon.run.prepare import MapMaker
from recon.run.refinement import Refinement

LINEAR = ("sense", "zero-filled", "rss")
SUPPORT_HOLDS = 0.5  # of the energy of the zero-filled coil images, noise and aliases included


def forward_model(k: KSpace, maps: MapMaker) -> ForwardModel:
    """The forward model of prepared k-space: Cartesian, or of its trajectory."""
    if k.trajectory is not None:
        return gridding.forward_model(k, maps.of(k))
    return Sense(maps.of(k), k.mask, k.header.noise_std or 1.0, k.n_averages, k.calibration)


def reconstruct_image(
    k: KSpace, maps: MapMaker, method: Method, log: Log, refinement: Refinement, delivery: Delivery | None
) -> list[Image]:
    """One image from prepared k-space: coil maps, reconstruction, recon matrix.

    A generator's image is followed by the classical one of the same data, so that a person can look at both, and by the maps
    of its evidence.
    """
    log.masks.append(sampling_of(k))
    _check_aliases(k, method, log)
    if method.reconstruct is None:
        with log.step("reconstruct"):
            # The sum is taken on the final matrix: interpolating it would blur what interpolating its parts does not.
            coil_images = preprocess.to_recon_matrix(_volume(_coil_images(k), k), k.header)
            return [Image(_root_sum_of_squares(coil_images), k.header)]
    with log.step("maps"):
        op = forward_model(k, maps)
    _check_support(k, op, log)
    if delivery is None:
        with log.step("reconstruct"):
            return [finished(method.reconstruct(k.data, op), k, "main")]
    planes = delivery.planes(k, op, refinement.of, refinement.score)
    images = []
    for role, found in planes.items():
        image = finished(found.to(k.data.dtype), k, role)
        if role in ROLES:
            values = image.data.real if role == "difference" else image.data.abs()
            image = replace(image, data=values.contiguous())
        elif role == "main" and (fallback := log.evidence[-1].fallback) is not None:
            steps = (*k.header.steps, f"{fallback.delivered}{IN_PLACE}{method.name}")
            image = replace(image, header=replace(image.header, steps=steps))
        images.append(image)
    return images


def check_method(k: KSpace, method: Method) -> None:
    """Refuse what takes planes for independent where they are not, and priors off the Cartesian grid.

    Raises
    ------
    InputError
        For a generator, or a method for series, and k-space of a volume; for a generator that is fitted to each scan, and
        k-space off the grid.
    """
    if k.trajectory is not None and not k.is_volume and method.generator is not None and method.generator.generator.fitted:
        raise InputError("its samples do not lie on a Cartesian grid", method.name, "choose another generator")
    if k.is_volume and (method.generator is not None or method.name in SERIES):
        what = "works plane by plane, and the trajectory couples all planes of the volume"
        fix = "choose rss, zero-filled, sense, l1-wavelet or tv"
        raise InputError(what, f"--method {method.name}", fix)


def sampling_of(k: KSpace) -> dict[str, object]:
    """Name, digest of the sampling and acceleration of an image, for the record."""
    shape = (k.data.shape[-2], k.data.shape[-1])
    sampled: dict[str, object] = {"digest": digest(k.mask, shape), "acceleration": acceleration(k.mask, shape)}
    if k.trajectory is not None:
        sampled = gridding.sampling_of(k)
    return {"image": k.header.index.name, **sampled}


def _coil_images(k: KSpace) -> Tensor:
    return ifft(k.data) if k.trajectory is None else gridding.coil_images(k)


def _root_sum_of_squares(coil_images: Tensor) -> Tensor:
    """Real ``(z y x)`` of complex ``(coil z y x)``, of whatever size: squares of samples below 1e-23 would vanish."""
    magnitude = coil_images.abs()
    # A power of two, so that no digit changes.
    scale = 2.0 ** math.frexp(float(magnitude.max()))[1]
    return (magnitude / scale).square().sum(0).sqrt() * scale


def finished(planes: Tensor, k: KSpace, role: str) -> Image:
    """The finished image of reconstructed planes ``(y x)``, ``(x z y)`` or, of a stack or volume, ``(z y x)``."""
    volume = preprocess.to_recon_matrix(_volume(planes.unsqueeze(-4 if k.is_volume else -3), k), k.header)[0]
    if not torch.isfinite(torch.view_as_real(volume)).all():
        raise InputError(
            "the reconstruction gave values that are not finite", k.header.source or None, "try --method zero-filled"
        )
    return Image(volume, k.header, role)


def _volume(planes: Tensor, k: KSpace) -> Tensor:
    """``(coil z y x)`` from the plane ``(coil y x)`` of a 2-D scan, the planes ``(x coil z y)`` of a decoupled 3-D one, those
    of a stack, ``(z coil y x)``, or a volume of its own."""
    if k.is_volume:
        return planes
    if planes.ndim == 4 and k.trajectory is not None:
        return planes.transpose(0, 1)
    return planes.unsqueeze(-3) if planes.ndim == 3 else planes.permute(1, 2, 3, 0)


def _check_aliases(k: KSpace, method: Method, log: Log) -> None:
    """Say so where a linear method is asked to separate aliases that a single coil cannot tell apart."""
    n_coils = len(k.header.coils.numbers) or k.n_coils
    if method.name not in LINEAR or n_coils > 1 or k.trajectory is not None or k.is_volume:
        return
    rows = torch.nonzero(k.mask.reshape(-1, *k.mask.shape[-2:])[0].any(-1)).flatten()
    steps = rows.diff()
    if len(steps) and steps.min() > 1:
        log.warn(
            f"one coil cannot separate the aliases of R = {int(steps.min())}: they remain in the image; "
            "reconstruct all coils, or try --method l1-wavelet"
        )


def _check_support(k: KSpace, op: ForwardModel, log: Log) -> None:
    """Say so where the coil maps are empty although there is signal: a blank image must not look like a result."""
    energy = _coil_images(k).abs().square().sum(-op.rank - 1)
    inside = float((energy * op.support).sum() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny))
    if energy.max() > 0 and inside < SUPPORT_HOLDS:
        log.warn(
            f"{k.header.index.name}: the coil maps cover {100 * inside:.0f} % of the signal's energy; "
            "with few calibration lines try --maps jsense, or give --maps FILE"
        )
