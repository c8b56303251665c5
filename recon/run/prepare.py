"""Preprocessing as the options of a run say, and the coil maps that go with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kspace import coils, preprocess
from kspace.compression import to_virtual
from kspace.container import ImageIndex, KSpace
from kspace.io.coil_maps import load_maps
from kspace.noise import Noise
from kspace.noncartesian.gridding import calibration_of, compensated
from kspace.noncartesian.volume import check_memory, estimate_volume_maps
from recon.run.input import Source
from recon.run.log import Log
from recon.run.options import RunOptions


def prepare(k: KSpace, noise: Noise | None, options: RunOptions, log: Log) -> KSpace:
    """`kspace.preprocess.prepare` with `options`; dead coils are logged."""
    k = preprocess.prepare(
        k,
        noise,
        conjugated=options.conjugate,
        n_virtual=options.virtual_coils,
        partial_fourier=options.partial_fourier,
    )
    if k.is_volume:
        check_memory(k, options.method)
    if k.trajectory is not None:
        k = compensated(k, options.density)
    if dropped := k.header.coils.dropped_names:
        why = "all samples are zero" if noise is None else "noise variance below 1e-6 of the median"
        log.warn(f"coils {', '.join(dropped)} are dead ({why}): dropped")
    return k


class MapMaker:
    """Coil maps of one image after another. What images share is estimated once: the average over interleaved repetitions, and
    separate calibration lines that serve all repetitions. Embedded calibration is every image's own."""

    def __init__(self, source: Source, noise: Noise | None, options: RunOptions, log: Log) -> None:
        self._source, self._noise, self._options, self._log = source, noise, options, log
        self._averaged: tuple[ImageIndex, Tensor, bool] | None = None
        self._separate: tuple[Tensor, Tensor] | None = None

    def of(self, k: KSpace) -> Tensor:
        """Maps, complex64 ``(*batch coil y x)``, or ``(coil z y x)`` of a volume, for prepared k-space.

        Raises
        ------
        InputError
            If there is nothing to make them from, or a file of maps cannot be used.
        """
        if self._options.maps not in coils.METHODS:
            return load_maps(Path(self._options.maps), k, self._noise)
        if k.calibration is not None:
            if self._separate is None or not torch.equal(self._separate[0], k.calibration):
                self._separate = k.calibration, self._estimate(k)
            return self._separate[1]
        if self._options.has_frames:
            return self._shared(k)  # each frame alone would flicker
        try:
            return self._estimate(k)
        except coils.NoCalibration:
            return self._shared(k)

    def _shared(self, k: KSpace) -> Tensor:
        # With all coils, then combined as those of `k` were: compression of its own would choose other virtual coils.
        maps, is_volume = self._of_average(k)
        if not is_volume:
            maps = to_virtual(maps, k)
            return maps.transpose(0, 1) if k.is_volume else maps
        maps = to_virtual(maps.transpose(0, 1), k)
        return maps.transpose(0, 1) if k.is_volume else maps

    def _of_average(self, k: KSpace) -> tuple[Tensor, bool]:
        """Maps of all repetitions together, and whether they are those of a volume."""
        index = replace(k.header.index, repetition=0)
        if self._averaged is None or self._averaged[0] != index:
            averaged = self._source.load_average(k.header.encoding, k.header.index)
            if averaged is None:
                self._estimate(k)  # says what is missing
                raise AssertionError("unreachable")
            if k.trajectory is None:
                self._log.warn("no calibration lines: coil maps come from the average over the interleaved repetitions")
            else:
                self._log.warn("coil maps come from the readouts of all repetitions together")
            prepared = prepare(averaged, self._noise, replace(self._options, virtual_coils=None), Log())
            self._averaged = index, self._estimate(prepared), prepared.is_volume
        return self._averaged[1:]

    def _estimate(self, k: KSpace) -> Tensor:
        width = self._options.calibration_width

        def of_plane(k: KSpace) -> Tensor:
            return coils.estimate_maps(k, self._options.maps, calibration_width=width)

        if k.is_volume:
            return estimate_volume_maps(k, width, of_plane)
        return of_plane(k if k.trajectory is None else calibration_of(k, width))
