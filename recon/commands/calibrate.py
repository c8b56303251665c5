"""`recon calibrate`: thresholds and conformal factors of the evidence, into the card of a file of weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import ifft
from kspace.masks import MaskSpec
from kspace.operators import on_grid
from recon.compare.cases import Case, FullVolume, case_of, find_data, parse_masks, spread
from recon.evidence.calibrate import Labelled
from recon.evidence.calibrate import calibrate as measure
from recon.methods import generator, weights

MASKS = "random1d:4,random1d:8,uniform1d:4,poisson2d:4,poisson2d:8"
ONE_COIL = "random1d:4,poisson2d:4"
FEWEST = 4


def calibrate(
    name: str,
    volumes: tuple[str, ...],
    output: Path | None = None,
    masks: str = MASKS,
    one_coil: str = ONE_COIL,
    at_most: int = 8,
    nominal: float = 0.9,
    repeats: int = 4,
) -> None:
    """Measure thresholds and conformal factors of the evidence on validation volumes, and store them in the card.

    Parameters
    ----------
    name
        Name of bundled weights, or a file of weights. The weights themselves stay as they are.
    volumes
        Fully sampled volumes with truth that nothing was trained on (recon simulate): files, folders or patterns.
    output
        Write another file instead of replacing the given one.
    masks
        Settings: mask families and accelerations, separated by commas.
    one_coil
        Settings for single-coil scans, for which the coils are combined; empty for none.
    at_most
        Number of volumes for each setting, one slice of each; the others count for the image statistics, without the network.
    nominal
        Share of the pixels that the interval shall cover.
    repeats
        Reconstructions for the uncertainty (recon run --repeats).
    """
    if not 0 < nominal < 1:
        raise InputError(f"nominal coverage {nominal:g} is not between 0 and 1", "--nominal", "give 0.9")
    if repeats < 1:
        raise InputError(f"{repeats} repeated reconstructions give no spread", "--repeats", "give at least 1")
    path = weights.find(name)
    network = generator.load(path)
    everything = [v for v in find_data(volumes)[0] if v.truth is not None]
    found = spread(everything, at_most)
    others = [v for v in everything if v not in found]
    if len(found) < FEWEST:
        raise InputError(f"{len(found)} volumes with truth", "--volumes", f"at least {FEWEST}: recon simulate makes them")
    settings = [(str(s), s, False) for s in parse_masks(masks)]
    settings += [(f"{s},1coil", s, True) for s in parse_masks(one_coil)] if one_coil else []
    cases, further = ({key: [_case(v, s, one) for v in some] for key, s, one in settings} for some in (found, others))
    total, done = sum(map(len, cases.values())), [0]

    def progress(key: str) -> None:
        done[0] += 1
        print(f"{done[0]} of {total}: {key}", file=sys.stderr, flush=True)

    calibration = measure(network, cases, further, nominal, repeats, progress)
    calibration["data"] = {"volumes": [v.name for v in found], "simulated": all(v.simulated for v in found)}
    card = weights.restate(path, output or path, calibration=calibration)
    print(f"{output or path}: {len(cases)} settings from {len(found)} volumes (sha256 of the weights {card.sha256[:16]})")


def _case(volume: FullVolume, spec: MaskSpec, one_coil: bool) -> Callable[[], Labelled]:
    return lambda: labelled(volume, spec, one_coil)


def labelled(volume: FullVolume, spec: MaskSpec, one_coil: bool = False, number: int | None = None) -> Labelled:
    """A slice of a volume (None: the middle one) under a mask, with all coils, or combined to one.

    Raises
    ------
    InputError
        If it cannot be read, has no truth, or no maps can be made.
    """
    number = volume.n_slices // 2 if number is None else number
    k = volume.plane(number)
    if one_coil:
        k = combined(k)
    case: Case = case_of(k, spec.draw((k.data.shape[-2], k.data.shape[-1]), volume.name))
    truth = None if volume.truth is None else volume.truth(number)
    if truth is None:
        raise InputError("no truth without noise", volume.path, "recon simulate makes volumes that have one")
    op = on_grid(case.op, str(spec), "calibrate with masks of a grid")
    return Labelled(case.y, op, truth.abs().float(), k.header.noise_std)


def combined(k: KSpace) -> KSpace:
    """Whitened k-space ``(coil ky kx)`` as one coil would have measured it: combined with its coil maps, ``(1 ky kx)``."""
    from kspace import coils
    from kspace.fourier import fft

    maps = coils.estimate_maps(k, "espirit")
    image = (maps.conj() * ifft(k.data)).sum(-3, keepdim=True)
    # Maps of unit root sum of squares keep white noise white.
    support = (maps != 0).any(-3, keepdim=True)
    if not bool(support.all()):
        rng = torch.Generator().manual_seed(0)
        noise = torch.view_as_complex(torch.randn((*image.shape, 2), generator=rng)) * (k.header.noise_std or 0.0) / 2**0.5
        image = torch.where(support, image, noise)
    return replace(k, data=fft(image))
