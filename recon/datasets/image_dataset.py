"""Training examples from pictures, simulated when they are asked for: nothing but the pictures lies on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from torch import Tensor

from kspace import coils, preprocess
from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.io.images import STACKS, box_corners, read_boxes, read_image
from kspace.masks import digest
from kspace.operators import Sense
from kspace.simulation.from_images import SynthesisOptions, generator, simulate_example
from recon.datasets.example import Example, Key, Shape
from recon.datasets.kspace_dataset import Augmentation, MaskSource
from recon.datasets.patients import PatientFiles


class SimulatedDataset(torch.utils.data.Dataset[Example]):
    """Pictures as `Example`s, for use like `recon.datasets.kspace_dataset.KSpaceDataset`, with the same samplers and `collate`.

    Each item is a pure function of its picture, the seed, the options and, with `resample`, the epoch: receiver, SNR, phase,
    noise and mask are drawn anew for every picture in every epoch. Coil maps are estimated from the acquired samples of each
    example, as for a scan, which takes most of the time. Target and truth are without noise: that of a fully sampled slice is
    in part that of the samples which were kept, and a network would learn to keep it.

    Parameters
    ----------
    groups
        Patients and their pictures; see `recon.datasets.patients.group_files` and `split_groups`.
    options
        How pictures become k-space.
    masks
        One of these draws the mask of an example.
    resample
        True for training. False: the same simulation and mask in every epoch, the mask one for each patient.
    maps, calibration_width
        Method and number of central samples, as for `kspace.coils.estimate_maps`.
    augment
        Applied to the fully sampled coil images, before undersampling.
    seed
        Seed of everything that is drawn.

    Raises
    ------
    InputError
        If there are no pictures or no masks, or a stack of slices cannot be read. A picture that cannot be read is an error
        when it is asked for.
    """

    def __init__(
        self,
        groups: Sequence[PatientFiles],
        options: SynthesisOptions,
        masks: Sequence[MaskSource],
        *,
        resample: bool = True,
        maps: str = "espirit",
        calibration_width: int = 24,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if not masks:
            raise InputError("no masks to undersample simulated k-space with", fix="give at least one")
        self.options, self.masks, self.resample, self.seed = options, tuple(masks), resample, seed
        self.maps, self.calibration_width, self.augment = maps, calibration_width, augment
        self.items = [
            (group, path, i)
            for group in groups
            for path in group.files
            for i in range(len(read_image(path)) if path.name.lower().endswith(STACKS) else 1)
        ]
        if not self.items:
            raise InputError("no images to simulate k-space from")

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shapes(self) -> list[Shape]:
        """For each item what must be equal within a batch."""
        n_coils = self.options.coils if self.options.maps is None else len(self.options.maps)
        return [(n_coils, *self.options.matrix)] * len(self.items)

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        group, path, slice_index = self.items[index]
        epoch = epoch if self.resample else 0
        name = f"{group.name}/{path.name}/{slice_index}"
        picture = torch.from_numpy(read_image(path)[slice_index])
        scan = simulate_example(picture, generator(self.seed, name, epoch), self.options, str(path))
        k, boxes = scan.kspace, self._boxes(path, picture)
        clean = scan.maps * scan.target
        if self.augment is not None:
            seed = generator(self.seed, name, epoch, "augment").initial_seed()
            clean, _ = self.augment(clean, boxes, seed)
            images, boxes = self.augment(ifft(k.data), boxes, seed)
            k = k.after("augment", data=fft(images))
        mask = self._draw(f"{name}/{epoch}" if self.resample else group.name)
        k = preprocess.undersample(k, mask)
        sensitivities = coils.estimate_maps(k, self.maps, self.calibration_width)
        matrix = self.options.matrix
        attributes: dict[str, Any] = {"simulated": True, "acquisition": "SIMULATED"}
        return Example(
            y=k.data,
            op=Sense(sensitivities, k.mask),
            target=(clean * sensitivities.conj()).sum(0),
            truth=torch.linalg.vector_norm(clean, dim=0),
            keys=(Key(path.name, slice_index, group.patient, digest(mask, matrix)),),
            boxes=(boxes,),
            recon_shapes=(matrix,),
            attributes=(attributes,),
        )

    def _boxes(self, path: Path, picture: Tensor) -> Tensor:
        rows = [(box.label, *box_corners(box, picture.shape, self.options.matrix)) for box in read_boxes(path)]
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)

    def _draw(self, key: str) -> Tensor:
        choice = int(torch.randint(len(self.masks), (), generator=generator(self.seed, key, "mask")))
        return self.masks[choice].draw(self.options.matrix, f"{self.seed}/{key}")
