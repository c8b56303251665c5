"""From the samples as read to those that a reconstruction sees, and the coil maps that go with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kspace import coils, preprocess
from kspace.compression import compress, to_virtual
from kspace.container import ImageIndex, KSpace
from kspace.io.coil_maps import load_maps
from kspace.noise import Noise
from kspace.partial_fourier import pocs
from recon.run.input import Source
from recon.run.log import Log
from recon.run.options import RunOptions


def prepare(k: KSpace, noise: Noise | None, options: RunOptions, log: Log) -> KSpace:
    """Everything between the samples as read and the samples that a reconstruction sees."""
    preprocess.check_range(k)
    if options.conjugate:
        k = preprocess.conjugate(k)
    k, dropped = preprocess.drop_dead_coils(k, noise)
    if dropped:
        why = "all samples are zero" if noise is None else "noise variance below 1e-6 of the median"
        log.warn(f"coils {', '.join(dropped)} are dead ({why}): dropped")
    if noise is not None:
        k = preprocess.whiten(k, noise)
    k = preprocess.remove_oversampling(k)
    if options.virtual_coils is not None:
        k = compress(k, options.virtual_coils)
    if options.partial_fourier == "pocs":
        k = pocs(k)
    if k.header.encoded_matrix[2] > 1:
        k = preprocess.decouple(k)
    return k


class MapMaker:
    """Coil maps of one image after another. What images share is estimated once: the average over interleaved repetitions, and
    separate calibration lines that serve all repetitions. Embedded calibration is every image's own."""

    def __init__(self, source: Source, noise: Noise | None, options: RunOptions, log: Log) -> None:
        self._source, self._noise, self._options, self._journal = source, noise, options, log
        self._averaged: tuple[ImageIndex, Tensor] | None = None
        self._separate: tuple[Tensor, Tensor] | None = None

    def of(self, k: KSpace) -> Tensor:
        """Maps, complex64 ``(*batch coil y x)``, for prepared k-space.

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
        try:
            return self._estimate(k)
        except coils.NoCalibration:
            # With all coils, then combined as those of `k` were: compression of its own would choose other virtual coils.
            return to_virtual(self._of_average(k), k)

    def _of_average(self, k: KSpace) -> Tensor:
        index = replace(k.header.index, repetition=0)
        if self._averaged is None or self._averaged[0] != index:
            averaged = self._source.load_average(k.header.encoding, k.header.index)
            if averaged is None:
                self._estimate(k)  # says what is missing
                raise AssertionError("unreachable")
            self._journal.warn("no calibration lines: coil maps come from the average over the interleaved repetitions")
            whole = prepare(averaged, self._noise, replace(self._options, virtual_coils=None), Log())
            self._averaged = index, self._estimate(whole)
        return self._averaged[1]

    def _estimate(self, k: KSpace) -> Tensor:
        return coils.estimate_maps(k, self._options.maps, calibration_width=self._options.calibration_width)
