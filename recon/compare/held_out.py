"""Comparison without ground truth: how well a reconstruction predicts samples that were acquired and held out.

Some of the acquired lines (of a scan that is undersampled along ky only) or points (ky-kz; every readout of a 3-D scan, every
sample of a plane that was sampled point by point) outside the calibration area are taken out of a scan. Coil maps and image x
are made from the rest, and the samples ``A x`` of all coils at the places taken out are compared with what was measured there::

    error = (sum |A x - y|^2 - expected noise energy) / (sum |y|^2 - expected noise energy)

0 is a perfect prediction, 1 that of a black image. It is cross-validation as Ward 1984 and, for MRI, SSDU use it (Yaman et al.
2020, doi:10.1002/mrm.28378), with the noise subtracted that no method could have predicted. It sees what the coil maps let
through: what lies outside their support is the same error for every method. The reconstruction of the rest has fewer samples
than that of the scan, and the error tells nothing of the frequencies where nothing was acquired: see docs/HELD_OUT.md for how
far its ranking agrees with that by PSNR.

`compare_scan` gives a dictionary that fits JSON, an unknown value being None::

    scan         name of the file                       kind        ISMRMRD, fastMRI, ...
    encoding     its number                             unit        "lines" or "points"
    slices       names of the images: "slice 3", ...    mask        text of the mask that undersampled it first; None
    n_calibration  [ky, kx] of the area that is never held out (kx 1: complete lines); of the first image
    n_candidates   units outside of it                  n_held_out  of these, taken out in each draw
    acceleration   [of the scan, of the rest in the first draw]
    fraction, seed what was asked for
    noise        {"source": "whitening" | "header" | "outer k-space" | "unknown", "says": sentence}
    floor        expected noise energy over signal energy, all draws together: what the noise would add to every error if it
                 were not subtracted; None where it is unknown and nothing was subtracted
    resolution   standard deviation, in units of the error, that the noise alone gives a perfect prediction; None likewise
    draws        [{"draw": number, "digest": of the mask that was left (first image), "weight", "floor", "resolution"}]
    methods      [{"name", "values": [error of each draw, all slices together], "mean", "spread": standard deviation over the
                   draws, "rank": 1 is best, "behind": mean difference to the best, "behind_error": its standard error over the
                   draws, "tied": whether that difference is below twice its error, "reason": why it failed, else None,
                   "note": what else to know, else None}], in the order of the methods handed over
    ranking      names of the methods that did not fail, best first
    says         the outcome in a sentence

A mean is the formula above with sums over all draws (a mean weighted by signal energy, ``weight``), and the spread that of a
ratio of sums: in a draw of weak samples alone, noise makes an error of any size, or, where it exceeds them, None.

A method that fails on one image of one draw has no values at all: a mean over fewer draws would be another comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kspace import coils, preprocess
from kspace.container import ImageIndex, KSpace
from kspace.errors import InputError
from kspace.masks import MaskSpec, acceleration, digest
from kspace.operators import Sense
from recon import memory
from recon.compare.held_out_summary import Energies, rows, sentence
from recon.compare.holding import NoiseLevel, hold_out
from recon.methods.held_out import Candidates
from recon.run.input import Source, open_source
from recon.run.options import RunOptions

Reconstruct = Callable[[Tensor, Sense], Tensor]
Progress = Callable[[int, int, str], None]


def compare_scan(
    source: Source | Path,
    methods: Mapping[str, Reconstruct],
    *,
    draws: int = 5,
    seed: int = 0,
    fraction: float = 0.1,
    max_slices: int | None = None,
    mask: MaskSpec | None = None,
    encoding: int | None = None,
    maps: str = RunOptions.maps,
    calibration_width: int = RunOptions.calibration_width,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare methods on a scan whose truth nobody has, by the samples that are held out of it.

    Parameters
    ----------
    source
        The scan, or the path of its file.
    methods
        Name to ``(y, op) -> image``.
    draws
        How often samples are taken out. As far as there are enough, no sample is taken out twice.
    seed
        Of the draws; they are the same for every method and, where slices share a mask, for every slice.
    fraction
        Part of the candidates (lines or points outside the calibration area) that a draw takes out, at least one.
    max_slices
        At most so many images, spread over the scan; None: all.
    mask
        Undersamples a scan with all samples first, so that the held-out error can be put beside that against the truth.
    encoding
        Of an ISMRMRD file; None: the first.
    maps, calibration_width
        Method and width of the calibration, as for `kspace.coils.estimate_maps`.
    progress
        Called as ``(reconstructions done, of how many, what was done)``.

    Returns
    -------
    dict
        As the module says.

    Raises
    ------
    InputError
        If nothing can be held out: no acquired samples outside the calibration area, or fewer than draws.
    """
    if not methods:
        raise InputError("no methods to compare", "--methods", "name some")
    with _opened(source) as scan:
        number = scan.encodings[0] if encoding is None else encoding
        indices = _spread(scan.images(number), max_slices)
        if not indices:
            raise InputError("no complete image", scan.path, "see recon info")
        result = HeldOutComparison(tuple(methods), draws, seed, fraction)
        total, done = len(indices) * draws * len(methods), 0
        for index in indices:
            k = _load(scan, number, index, mask)
            for draw, held in result.begin(k, scan.path):
                rest = hold_out(k, held)
                op = Sense(_maps(rest, maps, calibration_width), rest.mask, k.header.noise_std or 1.0, rest.n_averages)
                for name, reconstruct in methods.items():
                    result.add(draw, name, k, held, op, *_attempt(reconstruct, rest.data, op))
                    done += 1
                    if progress is not None:
                        progress(done, total, f"{index.name}, draw {draw + 1}: {name}")
            memory.release()
        about = {"scan": scan.path.name, "kind": scan.kind, "encoding": number, "slices": [i.name for i in indices]}
    return {**about, "mask": None if mask is None else str(mask), **result.summary()}


class HeldOutComparison:
    """Adds up energies over images, draws and methods; for k-space that is prepared already.

    Parameters
    ----------
    names
        Of the methods.
    draws, seed, fraction
        As for `compare_scan`.
    """

    def __init__(self, names: Sequence[str], draws: int = 5, seed: int = 0, fraction: float = 0.1) -> None:
        if draws < 1 or not 0 < fraction < 1:
            raise InputError(
                f"{draws} draws of a part {fraction:g}", "the held-out samples", "choose 1 or more, between 0 and 1"
            )
        self.names, self.seed, self.fraction = tuple(names), seed, fraction
        self.draws = [Energies(errors=dict.fromkeys(names, 0.0)) for _ in range(draws)]
        self.about: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self.notes: dict[str, str] = {}

    def begin(self, k: KSpace, where: Path | str | None = None) -> Iterator[tuple[int, Tensor]]:
        """For each draw its number and what it takes out of `k`, bool ``(ky kx)`` or ``(ky 1)``.

        Raises
        ------
        InputError
            If nothing can be held out.
        """
        candidates = Candidates.of(k)
        n = int(candidates.where.sum())
        if n < len(self.draws):
            what = f"{n} acquired {candidates.unit} outside the calibration area, too few for {len(self.draws)} draws"
            raise InputError(what, where, "give a mask where all samples were acquired, or fewer draws")
        noise, shape = NoiseLevel.of(k), (k.data.shape[-2], k.data.shape[-1])
        for number, held in enumerate(candidates.draw(len(self.draws), self.fraction, self.seed)):
            held = held.to(k.data.device)
            energies = self.draws[number]
            rest = (k.mask & ~held).reshape(-1, *torch.broadcast_shapes(k.mask.shape[-2:], held.shape)).all(0)
            if not self.about:
                self.about = {
                    "unit": candidates.unit,
                    "n_calibration": list(candidates.calibration),
                    "n_candidates": n,
                    "n_held_out": int(held.sum()),
                    "acceleration": [acceleration(m.reshape(-1, *m.shape[-2:]).all(0), shape) for m in (k.mask, rest)],
                    "fraction": self.fraction,
                    "seed": self.seed,
                }
            if noise.variance is None or "noise" not in self.about:
                self.about["noise"] = {"source": noise.source, "says": noise.says}
            energies.digest = energies.digest or digest(rest, shape)
            _add_noise(energies, noise, k, held)
            energies.signal += _energy(k.data, held)
            yield number, held

    def add(self, draw: int, name: str, k: KSpace, held: Tensor, op: Sense, image: Tensor | None, reason: str | None) -> None:
        """Count what the image of a method, made from the rest, predicts for the samples of `k` at `held`."""
        if image is None:
            self.reasons.setdefault(name, reason or "no image")
            return
        if has_no_phase(image):
            self.notes[name] = "its images have no phase: judged with that of the zero-filled image"
            image = image * torch.sgn(op.adjoint(torch.where(op.mask, k.data, 0)))
        held = held.expand(*op.mask.shape[:-2], *held.shape[-2:])
        self.draws[draw].errors[name] += _energy(Sense(op.maps, held).forward(image) - k.data, held)

    def summary(self) -> dict[str, Any]:
        """The dictionary that the module describes, without what it says of the file."""
        table = rows(self.names, self.draws, self.reasons, self.notes)
        ranking = [r["name"] for r in sorted((r for r in table if r["rank"] is not None), key=lambda r: r["rank"])]
        known = all(e.noise is not None for e in self.draws)
        every = Energies(
            sum(e.signal for e in self.draws),
            sum(e.noise or 0.0 for e in self.draws) if known else None,
            sum(e.noise_variance for e in self.draws),
        )
        draws = [
            {"draw": i, "digest": e.digest, "weight": e.share(every), "floor": e.floor, "resolution": e.resolution}
            for i, e in enumerate(self.draws)
        ]
        result = {
            **self.about,
            "floor": every.floor,
            "resolution": every.resolution,
            "draws": draws,
            "methods": table,
            "ranking": ranking,
        }
        return {**result, "says": sentence(result)}


def _add_noise(energies: Energies, noise: NoiseLevel, k: KSpace, held: Tensor) -> None:
    """Add what the noise is expected to give at `held`, averages counted."""
    if noise.variance is None or energies.noise is None:
        energies.noise = None  # unknown in one image is unknown in the sum
        return
    counts = torch.ones_like(k.mask, dtype=torch.float64) if k.n_averages is None else k.n_averages.double().clamp(min=1)
    plane = (*k.data.shape[:-3], 1, *k.data.shape[-2:])
    share = torch.where(held, 1 / counts, 0).expand(plane)
    energies.noise += float(share.sum()) * float(noise.variance.sum())
    # |n|^2 of a complex Gaussian is distributed exponentially: its standard deviation is its mean.
    energies.noise_variance += float(share.square().sum()) * float(noise.variance.square().sum())


def _energy(y: Tensor, where: Tensor) -> float:
    return float(torch.where(where, y, 0).abs().double().square().sum())


def has_no_phase(image: Tensor) -> bool:
    """Whether an image, complex ``(*batch y x)``, is a magnitude: what networks give that know magnitudes only."""
    return bool((image.imag == 0).all() and (image.real >= 0).all() and (image.real > 0).any())


def _attempt(reconstruct: Reconstruct, y: Tensor, op: Sense) -> tuple[Tensor | None, str | None]:
    """The image, or why there is none: one method that fails must not end the comparison of the others."""
    try:
        image = reconstruct(y, op)
    except (InputError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    if image.shape != (*op.maps.shape[:-3], *op.maps.shape[-2:]):
        return None, f"an image of shape {tuple(image.shape)}"
    if not bool(torch.isfinite(torch.view_as_real(image)).all()):
        return None, "values that are not finite"
    return image, None


def _maps(rest: KSpace, method: str, calibration_width: int) -> Tensor:
    return coils.estimate_maps(rest, method, calibration_width=calibration_width)


def _load(scan: Source, encoding: int, index: ImageIndex, mask: MaskSpec | None) -> KSpace:
    # A volume with a target is whitened here too: nothing is compared with that target.
    k = preprocess.prepare(scan.load(encoding, index), scan.known_noise)
    if mask is None:
        return k
    return preprocess.undersample(k, mask.draw((k.data.shape[-2], k.data.shape[-1]), scan.path.name))


@contextmanager
def _opened(source: Source | Path) -> Iterator[Source]:
    if isinstance(source, Path):
        with open_source(source) as scan:
            yield scan
    else:
        yield source


def _spread(indices: Sequence[ImageIndex], at_most: int | None) -> list[ImageIndex]:
    if at_most is None or at_most >= len(indices):
        return list(indices)
    # The middles of equal parts: ends of a stack show little.
    return [indices[int((i + 0.5) * len(indices) / at_most)] for i in range(at_most)]
