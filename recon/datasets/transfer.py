"""Transfer of an `Example` from a data loader worker to the main process.

Shared memory is ten times slower than memory, because its pages are new each time, and each tensor costs a file descriptor.
Cached coil maps are therefore passed by name and read in the main process, k-space is reduced to acquired lines, and everything
is sent as one buffer.
"""

from __future__ import annotations

import math
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.operators import Sense
from recon.datasets.example import Example
from recon.datasets.maps_cache import Entry

Layout = list[tuple[str, torch.dtype, torch.Size]]


def reduce_example(example: Example) -> tuple[Any, tuple[Any, ...]]:
    """Reduction of an example for `multiprocessing`: a function and its arguments."""
    if not isinstance(example.op, Sense):
        return Example, tuple(getattr(example, f.name) for f in fields(example))
    kept = all(entry is not None and entry.path.exists() for entry in example.entries)
    tensors: dict[str, Tensor | None] = {"y": example.y}
    if not kept:
        tensors |= {"maps": example.op.maps, "target": example.target, "truth": example.truth}
    tensors |= {"n_averages": example.op.n_averages, "mask": example.op.mask}
    present = {name: x for name, x in tensors.items() if x is not None}
    lines = _lines(example.op.mask, example.y.shape)
    if lines is not None:
        present["y"] = _planes(example.y).index_select(-2, lines)
    layout = [(name, x.dtype, x.shape) for name, x in present.items()]
    content = torch.cat([x.contiguous().reshape(-1).view(torch.uint8) for x in present.values()])
    rest = {
        "keys": example.keys,
        "recon_shapes": example.recon_shapes,
        "attributes": example.attributes,
        "entries": example.entries,
    }
    boxes = [box.tolist() for box in example.boxes]
    return _rebuild, (content, layout, example.y.shape, example.op.noise_std, boxes, kept, rest)


def _rebuild(
    content: Tensor,
    layout: Layout,
    shape: torch.Size,
    noise_std: float,
    boxes: list[list[list[float]]],
    kept: bool,
    rest: dict[str, Any],
) -> Example:
    parts = content.split([math.prod(size) * dtype.itemsize for _, dtype, size in layout])
    tensors = {name: part.view(dtype).reshape(size) for (name, dtype, size), part in zip(layout, parts, strict=True)}
    if kept:
        tensors |= _read_entries(rest["entries"], batched=len(shape) > 3)
    y, mask = tensors["y"], tensors["mask"]
    lines = _lines(mask, shape)
    if lines is not None:
        # NumPy: torch would share this little work among threads, and wait for the slowest.
        whole = np.zeros((len(y), *shape[-2:]), y.numpy().dtype)
        whole[:, lines.numpy()] = y.numpy()
        y = torch.from_numpy(whole).reshape(shape)
    return Example(
        y=y,
        op=Sense(tensors["maps"], mask, noise_std, tensors.get("n_averages")),
        target=tensors.get("target"),
        truth=tensors.get("truth"),
        boxes=tuple(torch.tensor(rows, dtype=torch.float32).reshape(-1, 5) for rows in boxes),
        **rest,
    )


def _read_entries(entries: tuple[Entry, ...], batched: bool) -> dict[str, Tensor]:
    read = []
    for entry in entries:
        descriptor = entry.open()
        arrays = None if descriptor is None else entry.read(descriptor)
        if arrays is None:
            raise InputError(
                "coil maps were removed or damaged while in use", entry.path, "start again: they are estimated again"
            )
        read.append(arrays)
    if len(read) == 1:
        columns = [x.unsqueeze(0) if batched else x for x in read[0]]
    else:
        columns = [torch.stack(column) for column in zip(*read, strict=True)]
    return dict(zip(("maps", "target", "truth"), columns, strict=True))


def _lines(mask: Tensor, shape: torch.Size) -> Tensor | None:
    """Indices of lines acquired in any example under `mask`; None for 2-D undersampling."""
    if mask.shape[-1] > 1:
        return None
    return mask.expand(*shape[:-3], 1, shape[-2], 1).reshape(-1, shape[-2]).any(0).nonzero().flatten()


def _planes(y: Tensor) -> Tensor:
    return y.reshape(-1, *y.shape[-2:])


ForkingPickler.register(Example, reduce_example)
