"""Data sets that wrap data sets: mixed simulations, examples kept on disk, and cropped readouts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.utils.data
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.io.atomic import atomic_write
from kspace.io.images import read_image
from kspace.masks import MaskSpec, digest
from kspace.operators import Sense, on_grid
from kspace.simulation.from_images import SynthesisOptions, crop_to_matrix, generator
from kspace.simulation.realism import draw_matrix
from recon.datasets.example import Example, Key, Shape
from recon.datasets.image_dataset import SimulatedDataset
from recon.datasets.kspace_dataset import Draw
from recon.datasets.patients import PatientFiles


class Examples(Protocol):
    """A data set whose items are drawn by `Draw`, and whose batches need equal shapes."""

    @property
    def shapes(self) -> list[Shape]:
        """For each item what must be equal within a batch: coils, ky, kx, and what else matters."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: Draw) -> Example: ...


class Simulations(torch.utils.data.Dataset[Example]):
    """Every image as `variants` scans that differ in number of coils, mask, SNR, phase and noise.

    Which coils and which mask an item has is a function of seed, image and variant, so that batches of equal shape can be
    planned; everything else is drawn anew in each epoch with `resample`.

    Parameters
    ----------
    groups
        Patients and their images.
    options
        As for `SimulatedDataset`; its number of coils does not matter.
    coils, masks
        To choose from, evenly.
    variants
        Scans of each image.
    resample
        False: the same scans in every epoch.
    more
        Further options of `SimulatedDataset`.
    """

    def __init__(
        self,
        groups: Sequence[PatientFiles],
        options: SynthesisOptions,
        coils: Sequence[int],
        masks: Sequence[MaskSpec],
        *,
        variants: int = 1,
        resample: bool = True,
        seed: int = 0,
        **more: Any,
    ) -> None:
        self.masks = tuple(masks)
        self.base = SimulatedDataset(groups, options, masks, resample=True, seed=seed, **more)
        self.variants, self.resample = variants, resample
        self.choices: list[tuple[int, MaskSpec, tuple[int, int]]] = []
        draws = self.base.draw_matrices and options.realism is not None
        for (group, path, i), matrix in zip(self.base.items, self.base.matrices, strict=True):
            for variant in range(variants):
                rng = generator(seed, group.name, path.name, i, variant, "choice")
                c, m = (int(torch.randint(n, (), generator=rng)) for n in (len(coils), len(masks)))
                drawn = draw_matrix(rng, options.realism) if draws and options.realism is not None else matrix
                self.choices.append((coils[c], masks[m], drawn))
        line_kinds = {mask: _samples_lines(mask, self.base.matrices[0]) for mask in masks}
        self.lines = [line_kinds[mask] for _, mask, _ in self.choices]

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def shapes(self) -> list[Shape]:
        """Coils, ky, kx, and whether the mask consists of complete lines."""
        return [(n, *matrix, int(line)) for (n, _, matrix), line in zip(self.choices, self.lines, strict=True)]

    def __getitem__(self, item: Draw) -> Example:
        index, epoch = item
        source, variant = divmod(index, self.variants)
        epoch = epoch * self.variants + variant if self.resample else variant
        n_coils, mask, matrix = self.choices[index]
        return self.base.example(source, epoch, replace(self.base.options, coils=n_coils, matrix=matrix), (mask,))


class PlainImages(torch.utils.data.Dataset[Example]):
    """Images as published presets expect them: one coil of sensitivity 1, no noise, no phase, magnitudes in [0, 1].

    8-bit images are divided by 255, others by their own maximum. Nothing here resembles a scan.

    Parameters
    ----------
    groups
        Patients and their images.
    matrix
        Points (y, x); larger images are cut in k-space.
    masks
        One of these draws the mask of an example.
    mask_per
        Another mask for each ``slice`` in each pass, for each ``batch`` (items are then drawn with the number of the batch in
        place of that of the pass), or the same one for the whole ``run``.
    seed
        Of the choice among masks, and of the masks.
    """

    def __init__(
        self,
        groups: Sequence[PatientFiles],
        matrix: tuple[int, int],
        masks: Sequence[MaskSpec],
        mask_per: str = "slice",
        seed: int = 0,
    ) -> None:
        self.items = [(group, path) for group in groups for path in group.files]
        self.matrix, self.masks, self.mask_per, self.seed = matrix, tuple(masks), mask_per, seed
        self.lines = [all(_samples_lines(mask, matrix) for mask in masks)] * len(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shapes(self) -> list[Shape]:
        """All alike."""
        return [(1, *self.matrix)] * len(self.items)

    def __getitem__(self, item: Draw) -> Example:
        index, epoch = item
        group, path = self.items[index]
        stored = read_image(path)
        if len(stored) != 1:
            raise InputError(f"{len(stored)} slices in one file, expected an image", path)
        source = torch.from_numpy(stored[0])
        peak = 255.0 if stored.dtype.itemsize == 1 else float(source.abs().max()) or 1.0
        image = crop_to_matrix(source.float() / peak, self.matrix, str(path))
        image = torch.complex(image.abs(), torch.zeros(self.matrix))
        key = {"slice": f"{path.name}/{epoch}", "batch": str(epoch), "run": ""}[self.mask_per]
        choice = int(torch.randint(len(self.masks), (), generator=generator(self.seed, key, "mask")))
        mask = self.masks[choice].draw(self.matrix, f"{self.seed}/{key}").to(torch.bool)[None]
        op = Sense(torch.ones(1, *self.matrix, dtype=torch.complex64), mask)
        return Example(
            y=op.forward(image),
            op=op,
            target=image,
            truth=image.abs(),
            keys=(Key(group.name, index, group.patient, digest(mask, self.matrix)),),
            boxes=(torch.zeros(0, 5),),
            recon_shapes=(self.matrix,),
            attributes=({"simulated": True},),
        )


class Kept(torch.utils.data.Dataset[Example]):
    """The examples of a data set, made once and read from a folder ever after.

    What takes long, the coil maps of each example, is then not made again in every epoch; in return every epoch sees the same
    examples. Files appear whole, so any number of processes may share the folder. Maps are kept in half precision.

    Parameters
    ----------
    source
        What makes the examples.
    folder
        Where they are kept, under a name that depends on `description`.
    description
        Everything that the examples depend on.
    """

    def __init__(self, source: Examples, folder: Path, description: str) -> None:
        self.source = source
        self.folder = folder / hashlib.sha256(description.encode()).hexdigest()[:16]
        self.shapes = source.shapes
        self.lines = _lines_of(source)
        about = self.folder / "about.txt"
        with atomic_write(about, "examples cannot be kept", "choose another --data.cache", make_folder=True) as beside:
            beside.write_text(description)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, item: Draw) -> Example:
        index = item[0]
        path = self.folder / f"{index // 1000:03d}" / f"{index:06d}.safetensors"
        if path.exists():
            return read_example(path)
        example = self.source[Draw(index, 0)]
        path.parent.mkdir(exist_ok=True)
        write_example(path, example)
        return read_example(path)  # so that the first epoch sees the numbers that the others do


class CroppedReadouts(torch.utils.data.Dataset[Example]):
    """Each line-sampled example with its readout cropped in image space to `width` points of x.

    Where complete lines along kx are sampled, undersampling acts along ky alone: columns of the image do not see each other,
    and a crop of it is what a scan of a narrower object would have given, exactly. Each such example is several items. Examples
    that are 2-D undersampled stay complete.

    Parameters
    ----------
    source
        What makes the examples; it says which are sampled in lines (`lines`).
    width
        Points along x.
    copies
        Crops of each example in one pass; None: as many as fit into it.
    seed
        The position of a crop is a function of seed, item and epoch.
    """

    def __init__(self, source: Examples, width: int, copies: int | None = None, seed: int = 0) -> None:
        self.source, self.width, self.seed = source, width, seed
        shapes, lines = source.shapes, _lines_of(source)
        counts = [(copies or max(1, shape[2] // width)) if line else 1 for shape, line in zip(shapes, lines, strict=True)]
        self.items = [(index, copy) for index, n in enumerate(counts) for copy in range(n)]
        self.lines = [lines[index] for index, _ in self.items]
        self.shapes: list[Shape] = [
            (*shapes[i][:2], min(width, shapes[i][2]), *shapes[i][3:]) if lines[i] else shapes[i] for i, _ in self.items
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: Draw) -> Example:
        index, copy = self.items[item[0]]
        epoch = item[1]
        example = self.source[Draw(index, epoch)]
        if not self.lines[item[0]]:
            return example
        columns = example.op.support.any(-2).nonzero()[:, 0]
        n_x = example.y.shape[-1]
        first, last = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, n_x)
        # Anywhere over the object, and no more than a quarter of the crop beside it.
        low = max(0, first - self.width // 4)
        high = min(n_x, last + self.width // 4) - self.width
        start = min(low, n_x - self.width) if high <= low else None
        rng = generator(self.seed, index, copy, epoch, "strip")
        return crop_readout(
            example, int(torch.randint(low, high + 1, (), generator=rng)) if start is None else max(0, start), self.width
        )


def crop_readout(example: Example, start: int, width: int) -> Example:
    """Columns `start` to `start` + `width` of one example whose complete lines along kx are sampled.

    The transform along x is orthonormal on either matrix, so the noise keeps its standard deviation.
    """
    op = on_grid(example.op, "--data.strip", "leave it out")
    if op.mask.shape[-1] != 1:
        raise ValueError("only an example with complete lines can have its readout cropped")
    n_x = example.y.shape[-1]
    width = min(width, n_x)
    columns = slice(start, start + width)

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[..., columns].clone()

    boxes = example.boxes[0].clone()
    boxes[:, [2, 4]] = (boxes[:, [2, 4]] - start).clamp(0, width)
    boxes = boxes[boxes[:, 4] > boxes[:, 2]]
    return replace(
        example,
        y=fft(ifft(example.y, (-1,))[..., columns], (-1,)),
        op=replace(op, maps=op.maps[..., columns].clone()),
        target=cut(example.target),
        truth=cut(example.truth),
        boxes=(boxes,),
        recon_shapes=((example.recon_shapes[0][0], min(width, example.recon_shapes[0][1])),),
    )


def write_example(path: Path, example: Example) -> None:
    """One example as a safetensors file: the acquired samples only, maps in half precision."""
    from safetensors.torch import save_file

    op = on_grid(example.op, "--data.cache", "keep examples of a grid only")
    acquired = op.mask.expand(*op.mask.shape[:-1], example.y.shape[-1])[0]
    tensors = {
        "samples": _pairs(example.y[:, acquired]),
        "mask": op.mask.to(torch.uint8),
        "maps": _pairs(op.maps).half(),
        "boxes": example.boxes[0].contiguous(),
    }
    if op.n_averages is not None:
        tensors["n_averages"] = op.n_averages.contiguous()
    if example.target is not None and example.truth is not None:
        tensors |= {"target": _pairs(example.target), "truth": example.truth.contiguous()}
    about = {
        "key": list(example.keys[0]),
        "recon_shape": list(example.recon_shapes[0]),
        "noise_std": op.noise_std,
        "attributes": {k: v for k, v in example.attributes[0].items() if isinstance(v, str | int | float | bool)},
    }
    with atomic_write(path, "an example cannot be kept") as beside:
        save_file({k: v.clone() for k, v in tensors.items()}, beside, metadata={"about": json.dumps(about)})


def read_example(path: Path) -> Example:
    """What `write_example` wrote.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"a kept example is damaged ({error})", path, "delete the file: it is made again") from error
    maps = torch.view_as_complex(tensors["maps"].float())
    mask = tensors["mask"].bool()
    y = torch.zeros(maps.shape, dtype=torch.complex64)
    y[:, mask.expand(*mask.shape[:-1], y.shape[-1])[0]] = torch.view_as_complex(tensors["samples"])
    whole = "target" in tensors
    return Example(
        y=y,
        op=Sense(maps, mask, float(about["noise_std"]), tensors.get("n_averages")),
        target=torch.view_as_complex(tensors["target"]) if whole else None,
        truth=tensors["truth"] if whole else None,
        keys=(Key(*about["key"]),),
        boxes=(tensors["boxes"],),
        recon_shapes=((about["recon_shape"][0], about["recon_shape"][1]),),
        attributes=(about["attributes"],),
    )


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()).contiguous()


def _samples_lines(mask: MaskSpec, matrix: tuple[int, int]) -> bool:
    return not mask.off_grid and mask.draw(matrix, "").shape[-1] == 1


def _lines_of(source: Any) -> list[bool]:
    lines: list[bool] | None = getattr(source, "lines", None)
    if lines is None:  # fastMRI-style files: any of the masks may be drawn for any slice
        kinds = [{_samples_lines(mask, shape[1:3]) for mask in source.masks} for shape in set(source.shapes)]
        one = all(kind == {True} for kind in kinds)
        if not one and any(True in kind for kind in kinds):
            return [False] * len(source)
        return [one] * len(source)
    return lines
