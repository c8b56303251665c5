"""Series of frames that are reconstructed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kspace.container import Image, ImageIndex, KSpace
from kspace.errors import InputError
from kspace.linear_operators import stacked
from kspace.operators import ForwardModel
from recon.methods.choose import Method
from recon.methods.stack import planes_of
from recon.run.log import Log
from recon.run.one_image import check_method, finished, forward_model, sampling_of
from recon.run.prepare import MapMaker


def reconstruct_series(
    order: Sequence[ImageIndex], load: Callable[[ImageIndex], KSpace], maps: MapMaker, method: Method, log: Log
) -> list[Image]:
    """The images of `order`, all repetitions of a slice at once: their samples are in memory together.

    Parameters
    ----------
    order
        Images of one encoding, repetitions of a slice one after another.
    load
        Prepared k-space of an image.
    maps
        Makes the coil maps.
    method
        Called with ``(frame coil ky kx)``.
    log
        Takes steps and samplings.

    Raises
    ------
    InputError
        If a slice has one repetition only, or its repetitions differ in their numbers of samples.
    """
    images: list[Image] = []
    for one in dict.fromkeys(replace(index, repetition=0) for index in order):
        members = [index for index in order if replace(index, repetition=0) == one]
        if len(members) < 2:
            fix = "give --frames or --spokes-per-frame, or choose another method"
            raise InputError(f"{one.name} has one repetition; the method needs several", f"--method {method.name}", fix)
        with log.step("preprocess"):
            frames = [load(index) for index in members]
            check_method(frames[0], method)
        with log.step("maps"):
            models = [forward_model(k, maps) for k in frames]
        with log.step("reconstruct"):
            found = _together(frames, models, method)
        for k, image in zip(frames, found, strict=True):
            log.masks.append(sampling_of(k))
            images.append(finished(image, k, "main"))
    return images


def _together(frames: Sequence[KSpace], models: Sequence[ForwardModel], method: Method) -> Tensor:
    """Images ``(frame *batch y x)``, plane by plane."""
    assert method.reconstruct is not None
    planes = [planes_of(k.data, op) for k, op in zip(frames, models, strict=True)]
    made = []
    for same in zip(*planes, strict=True):
        try:
            op = stacked([op for _, op in same])
            y = torch.stack([y for y, _ in same])
        except (ValueError, RuntimeError) as error:
            what = "the repetitions differ in their numbers of samples or coils"
            raise InputError(what, f"--method {method.name}", "choose another method") from error
        made.append(method.reconstruct(y, op))
    if frames[0].data.ndim == 3:
        return made[0]
    return torch.stack(made, 1)
