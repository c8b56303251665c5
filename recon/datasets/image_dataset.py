"""Training examples simulated from images on the fly, without k-space on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from torch import Tensor

from kspace import coils
from kspace.container import KSpace
from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.io.images import STACKS, box_corners, read_boxes, read_image
from kspace.masks.acquisition import MaskSource, acquire, digest_of, estimate_maps, forward_model
from kspace.simulation.contrast import dead_leaves
from kspace.simulation.from_images import Simulation, SynthesisOptions, complex_noise, generator, simulate_example
from kspace.simulation.phase import uniform
from kspace.simulation.realism import FULL_SHARE, SMALLEST_JUDGED, Realism, draw_matrix, object_region
from recon.datasets.example import Example, Key, Shape
from recon.datasets.kspace_dataset import Augmentation
from recon.datasets.patients import PatientFiles


class SimulatedDataset(torch.utils.data.Dataset[Example]):
    """Simulated `Example`s from images, for the samplers and `collate` of `recon.datasets.kspace_dataset.KSpaceDataset`.

    Each item is a pure function of its image, the seed, the options and, with `resample`, the epoch: receiver, SNR, phase,
    noise and mask are drawn anew for each image and epoch. Coil maps are estimated from the acquired samples of each
    example, as for a scan, which takes most of the time; with ``options.realism`` and `resample` most examples have the true
    maps, and a share of the images are replaced by dead leaves or `others`. Target and truth are noise-free: the noise of a
    fully sampled slice correlates with that of the retained samples, and a network would learn to preserve it.

    Parameters
    ----------
    groups
        Patients and their images; see `recon.datasets.patients.group_files` and `split_groups`.
    options
        Options of the simulation.
    masks
        Masks, one of which is drawn per example.
    resample
        True for training. False for the same simulation in every epoch, with one mask per patient.
    maps, calibration_width
        Method and number of central samples, as for `kspace.coils.estimate_maps`.
    augment
        Applied to the fully sampled coil images, before undersampling.
    others
        Files of other images, for the share ``options.realism.other`` of the examples.
    draw_matrices
        Draw the matrix size of each image (patient, without `resample`) by ``options.realism.matrix`` instead of
        ``options.matrix``.
    seed
        Seed of all random generators.

    Raises
    ------
    InputError
        If there are no images or no masks, or a stack of slices cannot be read. Unreadable images raise it on access.
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
        others: Sequence[Path] = (),
        draw_matrices: bool = False,
        seed: int = 0,
    ) -> None:
        if not masks:
            raise InputError("no masks to undersample simulated k-space with", fix="give at least one")
        self.options, self.masks, self.resample, self.seed = options, tuple(masks), resample, seed
        self.maps, self.calibration_width, self.augment = maps, calibration_width, augment
        self.items = [(group, path, i) for group in groups for path, i in _slices(group.files)]
        if not self.items:
            raise InputError("no images to simulate k-space from")
        self.others = [(path, i, min(read_image(path)[i].shape)) for path, i in _slices(others)]
        self.draw_matrices = draw_matrices and options.realism is not None
        self.matrices = [self._matrix(group, path, i) for group, path, i in self.items]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shapes(self) -> list[Shape]:
        """Shape of each item, equal within a batch."""
        return [(self._n_coils, *matrix) for matrix in self.matrices]

    @property
    def _n_coils(self) -> int:
        return self.options.coils if self.options.maps is None else len(self.options.maps)

    def __getitem__(self, item: int | tuple[int, int]) -> Example:
        index, epoch = item if isinstance(item, tuple) else (item, 0)
        return self.example(index, epoch, replace(self.options, matrix=self.matrices[index]), self.masks)

    def example(self, index: int, epoch: int, options: SynthesisOptions, masks: Sequence[MaskSource]) -> Example:
        """Example of image `index` in `epoch`, with given options and masks."""
        group, path, slice_index = self.items[index]
        epoch = epoch if self.resample else 0
        name = f"{group.name}/{path.name}/{slice_index}"
        source = generator(self.seed, name, epoch, "source")
        image, own = self._image(path, slice_index, options, source)
        scan = simulate_example(image, generator(self.seed, name, epoch), options, str(path))
        k = scan.kspace
        boxes = _boxes(path, image, scan, options.matrix) if own else torch.zeros(0, 5)
        clean = scan.maps * scan.target
        true_maps = self._true_maps(scan, options.realism, source)
        if self.augment is not None:
            seed = generator(self.seed, name, epoch, "augment").initial_seed()
            clean, _ = self.augment(clean, boxes, seed)
            images, boxes = self.augment(ifft(k.data), boxes, seed)
            k = k.after("augment", data=fft(images))
            true_maps = None  # augmentation moves them, and is not smooth
        k = self._acquired(k, clean, f"{name}/{epoch}" if self.resample else group.name, masks)
        maps = self._estimated_maps(k, scan) if true_maps is None else true_maps
        attributes: dict[str, Any] = {"simulated": True, "acquisition": "SIMULATED"}
        return Example(
            y=k.data,
            op=forward_model(k, maps),
            target=(clean * maps.conj()).sum(0),
            truth=torch.view_as_real(clean).square().sum((0, -1)).sqrt(),
            keys=(Key(path.name, slice_index, group.patient, digest_of(k)),),
            boxes=(boxes,),
            recon_shapes=(options.matrix,),
            attributes=(attributes,),
        )

    def _matrix(self, group: PatientFiles, path: Path, index: int) -> tuple[int, int]:
        if not self.draw_matrices or self.options.realism is None:
            return self.options.matrix
        key = (path.name, index) if self.resample else ()
        smallest = 0 if self.resample else SMALLEST_JUDGED
        return draw_matrix(generator(self.seed, group.name, *key, "matrix"), self.options.realism, smallest)

    def _image(self, path: Path, index: int, options: SynthesisOptions, rng: torch.Generator) -> tuple[Tensor, bool]:
        """Image of an item or its replacement in training, and whether it is the item's own."""
        realism = options.realism
        if realism is not None and self.resample:
            choice, pick = uniform(rng), uniform(rng)
            if choice < realism.dead_leaves:
                return dead_leaves([round(n / FULL_SHARE) for n in options.matrix], rng), False
            fitting = [(p, i) for p, i, smallest in self.others if smallest >= max(options.matrix)]
            if fitting and choice < realism.dead_leaves + realism.other:
                path, index = fitting[int(pick * len(fitting))]
                return torch.from_numpy(read_image(path)[index]), False
        return torch.from_numpy(read_image(path)[index]), True

    def _true_maps(self, scan: Simulation, realism: Realism | None, rng: torch.Generator) -> Tensor | None:
        """True coil maps for examples that use them, else None."""
        if realism is None or not self.resample or uniform(rng) < realism.estimated_maps:
            return None
        if uniform(rng) < realism.object_maps:
            return scan.maps * object_region(scan.target.abs())
        return scan.maps

    def _estimated_maps(self, k: KSpace, scan: Simulation) -> Tensor:
        try:
            return estimate_maps(k, self.maps, self.calibration_width)
        except coils.NoCalibration:
            if not self.resample or self.options.realism is None:
                raise
            return scan.maps  # a small matrix at a high acceleration: the next epoch draws another

    def _acquired(self, k: KSpace, clean: Tensor, key: str, masks: Sequence[MaskSource]) -> KSpace:
        """What one of the masks acquires of `k`; off the grid of the coil images without noise, with noise of its own."""
        chosen = masks[int(torch.randint(len(masks), (), generator=generator(self.seed, key, "mask")))]
        if not getattr(chosen, "off_grid", False):
            return acquire(k, chosen, f"{self.seed}/{key}")
        k = acquire(replace(k, data=fft(clean)), chosen, f"{self.seed}/{key}")
        return replace(k, data=k.data + complex_noise(k.data.shape, generator(self.seed, key, "samples")))


def _slices(files: Iterable[Path]) -> list[tuple[Path, int]]:
    return [(path, i) for path in files for i in range(len(read_image(path)) if path.name.lower().endswith(STACKS) else 1)]


def _boxes(path: Path, image: Tensor, scan: Simulation, matrix: tuple[int, int]) -> Tensor:
    shape = image.shape if scan.frame is not None else matrix
    rows = [(box.label, *box_corners(box, image.shape, shape)) for box in read_boxes(path)]
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return boxes if scan.frame is None else scan.frame.boxes(boxes, image.shape, matrix)
