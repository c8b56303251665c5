"""Examples for training: what a scan would have acquired, and nothing else, reaches `y` and `op`."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kspace import coils
from kspace.container import Header, KSpace
from kspace.errors import InputError
from kspace.fourier import fft
from kspace.io.fastmri import open_volume, write_volume
from kspace.masks import MaskSpec, acceleration, digest
from kspace.operators import Sense
from recon.datasets import maps_cache
from recon.datasets.example import Example, collate
from recon.datasets.kspace_dataset import Draw, KSpaceDataset, ShapeBatchSampler, find_volumes, open_volumes, split_by_patient
from recon.datasets.maps_cache import cached_maps

LINES = MaskSpec("random1d", 2.0, centre=12)


def phantom(shape: tuple[int, int], n_coils: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """An object ``(y x)`` with phase, and smooth coil maps ``(coil y x)`` of unit root sum of squares."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, shape[0]), torch.linspace(-1, 1, shape[1]), indexing="ij")
    image = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1).float() * (1 + 0.4 * torch.sin(6 * x + seed) * torch.cos(5 * y))
    angles = torch.arange(n_coils) * 2 * torch.pi / n_coils
    raw = [torch.exp(-((x - torch.cos(a)) ** 2 + (y - torch.sin(a)) ** 2) / 3 + 1j * (a + 0.5 * x)) for a in angles]
    maps = torch.stack(raw)
    return image * torch.exp(1j * (0.4 * x + 0.3 * y)), maps / maps.abs().square().sum(0).sqrt()


def slices(shape: tuple[int, int] = (40, 32), n: int = 2, n_coils: int = 4, mask: Tensor | None = None) -> list[KSpace]:
    n_ky, n_kx = shape
    header = Header(
        encoded_matrix=(n_kx, n_ky, 1),
        recon_matrix=(n_kx, n_ky, 1),
        encoded_fov_m=(0.2, 0.2, 0.005),
        recon_fov_m=(0.2, 0.2, 0.005),
    )
    found = []
    for i in range(n):
        image, maps = phantom(shape, n_coils, i)
        y = fft(1e-5 * (i + 1) * image * maps)
        noise = 1e-8 * torch.randn(y.shape, dtype=torch.complex64)
        sampled = torch.ones(1, n_ky, 1, dtype=torch.bool) if mask is None else mask
        found.append(KSpace((y + noise) * sampled, sampled, header))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three volumes of two patients, two shapes."""
    path = tmp_path / "volumes"
    path.mkdir()
    for name, shape, patient in (("a", (40, 32), "p1"), ("b", (36, 32), "p2"), ("c", (40, 32), "p1")):
        write_volume(path / f"{name}.h5", slices(shape), patient_id=patient, boxes=[(1, 0, 2, 3, 12, 13)])
    return path


def equal(a: Example, b: Example) -> bool:
    pairs = [(a.y, b.y), (a.op.maps, b.op.maps), (a.op.mask, b.op.mask), (a.target, b.target), (a.truth, b.truth)]
    return a.keys == b.keys and all(torch.equal(x, y) for x, y in pairs)


def test_an_example(folder: Path) -> None:
    dataset = KSpaceDataset(find_volumes(folder), [LINES])
    example = dataset[1]
    stored = open_volume(folder / "a.h5").load(1).data
    mask = LINES.draw((40, 32), "a.h5")
    assert torch.equal(example.op.mask, mask[None])
    assert torch.equal(example.y, torch.where(mask, stored, 0))
    assert example.keys == (("a.h5", 1, "p1", digest(mask, (40, 32))),)
    assert example.boxes[0].tolist() == [[0, 2, 3, 12, 13]]
    # A second way to the truth, in NumPy.
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(stored.numpy(), axes), norm="ortho"), axes)
    np.testing.assert_allclose(example.truth.numpy(), np.sqrt((np.abs(images) ** 2).sum(0)), rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(example.truth, open_volume(folder / "a.h5").target(1), rtol=1e-4, atol=1e-10)
    combined = (images * example.op.maps.numpy().conj()).sum(0)
    np.testing.assert_allclose(example.target.numpy(), combined, rtol=1e-4, atol=1e-10)
    # The maps are those of the coils, up to the object's support and a phase, so the target is the object's magnitude.
    object_, maps = phantom((40, 32), 4, 1)
    inside = object_.abs() > 0.5
    overlap = (example.op.maps.conj() * maps).sum(0).abs()[inside]
    assert overlap.median() > 0.999
    assert ((example.target.abs() - 2e-5 * object_.abs()).abs()[inside].median()) < 2e-7
    residual = example.op.forward(example.target) - example.y
    assert residual.norm() < 0.1 * example.y.norm()


def test_what_was_not_acquired_does_not_matter(folder: Path) -> None:
    for name, spec in (("a.h5", LINES), ("c.h5", MaskSpec("poisson2d", 3.0, centre=12))):
        dataset = KSpaceDataset([folder / name], [spec])
        before = dataset[0]
        mask = spec.draw((40, 32), name).expand(40, 32).mT.numpy()
        with h5py.File(folder / name, "a") as file:
            volume = file["kspace"][()]
            volume[..., ~mask] += 1e3 * np.random.default_rng(0).standard_normal(volume[..., ~mask].shape)
            file["kspace"][...] = volume
        after = dataset[0]
        assert torch.equal(before.y, after.y)
        assert torch.equal(before.op.maps, after.op.maps)
        assert not torch.equal(before.target, after.target)


def test_masks(folder: Path) -> None:
    files = find_volumes(folder)
    fixed = KSpaceDataset(files, [LINES])
    assert torch.equal(fixed[0].op.mask, fixed[Draw(1, epoch=7)].op.mask)  # one mask for a volume
    specs = [LINES, MaskSpec("equispaced1d", 3.0, centre=10)]
    dataset = KSpaceDataset(files, specs, resample=True)
    drawn = [dataset[(0, epoch)].op.mask[0] for epoch in range(8)]
    assert len({digest(mask, (40, 32)) for mask in drawn}) > 4
    rates = {round(acceleration(mask, (40, 32)), 1) for mask in drawn}
    assert rates == {2.0, 3.1}  # 20 lines and 13 of 40
    assert torch.equal(dataset[(0, 3)].op.mask, KSpaceDataset(files, specs, resample=True)[(0, 3)].op.mask)
    other = [KSpaceDataset(files, specs, resample=True, seed=1)[(0, epoch)].op.mask[0] for epoch in range(3)]
    assert any(not torch.equal(a, b) for a, b in zip(drawn, other, strict=False))


def test_prospective_files_have_no_truth(tmp_path: Path) -> None:
    mask = LINES.draw((40, 32), "x")[None]
    path = write_volume(tmp_path / "u.h5", slices(mask=mask))
    example = KSpaceDataset([path])[0]
    assert example.target is None
    assert example.truth is None
    assert torch.equal(example.op.mask, mask)
    with pytest.raises(InputError, match=r"u\.h5: 1 of 1 files are undersampled already"):
        KSpaceDataset([path], [LINES])


def test_the_same_path_as_a_prospective_scan(tmp_path: Path) -> None:
    """Undersampled afterwards or before: the same samples, the same maps."""
    full = slices()
    mask = LINES.draw((40, 32), "v.h5")[None]
    retrospective = KSpaceDataset([write_volume(tmp_path / "v.h5", full)], [LINES])[1]
    undersampled = [replace(k, data=k.data * mask, mask=mask) for k in full]
    prospective = KSpaceDataset([write_volume(tmp_path / "w.h5", undersampled)])[1]
    assert torch.equal(retrospective.y, prospective.y)
    assert torch.equal(retrospective.op.maps, prospective.op.maps)
    assert retrospective.keys[0].mask == prospective.keys[0].mask


def test_oversampling_is_removed_and_noise_whitened(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    colour = torch.randn(4, 4, dtype=torch.complex64, generator=generator) + 2 * torch.eye(4)
    noise = torch.einsum("dc,cyx->dyx", colour, torch.randn(4, 64, 128, dtype=torch.complex64, generator=generator))
    header = Header(
        encoded_matrix=(128, 64, 1),
        recon_matrix=(64, 64, 1),
        encoded_fov_m=(0.4, 0.2, 0.005),
        recon_fov_m=(0.2, 0.2, 0.005),
    )
    k = KSpace(noise, torch.ones(1, 64, 1, dtype=torch.bool), header)
    write_volume(tmp_path / "n.h5", [k], noise_covariance=colour @ colour.mH)
    example = KSpaceDataset([tmp_path / "n.h5"], [MaskSpec("random1d", 1.0)])[0]
    assert example.y.shape == (4, 64, 64)
    assert example.op.noise_std == 1.0
    samples = example.y.flatten(1)
    covariance = samples @ samples.mH / samples.shape[1]
    assert (covariance - torch.eye(4)).abs().max() < 0.07  # 4096 samples: three standard deviations are 0.05


def test_dead_coils_are_left_out(tmp_path: Path) -> None:
    covariance = torch.diag(torch.tensor([1, 1e-9, 1, 1], dtype=torch.complex64))
    path = write_volume(tmp_path / "d.h5", slices(), noise_covariance=covariance)
    dataset = KSpaceDataset([path], [LINES])
    assert dataset[0].y.shape[0] == dataset.shapes[0][0] == 3


def flip(images: Tensor, boxes: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    return (images.flip(-1) * torch.exp(torch.tensor(1j * (seed % 7))), boxes + 1) if seed % 2 else (images, boxes)


def test_augmentation_precedes_undersampling(folder: Path) -> None:
    plain = KSpaceDataset(find_volumes(folder), [LINES])
    augmented = KSpaceDataset(find_volumes(folder), [LINES], augment=flip, cache=folder.parent / "cache")
    changed = 0
    for epoch in range(10):
        a, b = plain[(0, epoch)], augmented[(0, epoch)]
        assert torch.equal(a.op.mask, b.op.mask)
        assert equal(b, augmented[(0, epoch)])
        turned = b.truth.flip(-1)
        if torch.allclose(turned, a.truth, rtol=1e-3, atol=1e-9):
            changed += 1
            torch.testing.assert_close(b.y, b.y * b.op.mask)
            continue
        torch.testing.assert_close(a.truth, b.truth, rtol=1e-4, atol=1e-9)
    assert 0 < changed < 10
    assert not any((folder.parent / "cache").rglob("*.maps"))


# Loading ---------------------------------------------------------------------------------------------------------------------


def test_workers_give_the_same_examples_in_the_same_order(folder: Path) -> None:
    dataset = KSpaceDataset(find_volumes(folder), [LINES], resample=True)
    epochs: list[list[Example]] = []
    for workers in (0, 2):
        sampler = ShapeBatchSampler(dataset.shapes, 2, shuffle=True)
        sampler.set_epoch(3)
        context = "fork" if workers else None
        loader = DataLoader(
            dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, multiprocessing_context=context
        )
        epochs.append(list(loader))
    assert [batch.y.shape[-2] for batch in epochs[0]].count(36) == 1
    for a, b in zip(*epochs, strict=True):
        assert equal(a, b)


@pytest.mark.parametrize("spec", [LINES, MaskSpec("poisson2d", 3.0, centre=12)], ids=str)
@pytest.mark.parametrize("cached", [False, True])
def test_examples_arrive_from_workers_as_they_were(folder: Path, spec: MaskSpec, cached: bool) -> None:
    dataset = KSpaceDataset(find_volumes(folder), [spec], cache=folder.parent / "cache" if cached else None)
    for batch_size in (1, 2):
        sampler = ShapeBatchSampler(dataset.shapes, batch_size)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
        for batch, draws in zip(loader, sampler, strict=True):
            here = collate([dataset[draw] for draw in draws])
            assert equal(batch, here)
            assert batch.y.is_contiguous()
            assert [box.tolist() for box in batch.boxes] == [box.tolist() for box in here.boxes]
            assert (batch.recon_shapes, batch.attributes, batch.entries) == (here.recon_shapes, here.attributes, here.entries)


def test_a_batch_is_its_examples(folder: Path) -> None:
    dataset = KSpaceDataset([folder / "a.h5"], [LINES])
    examples = [dataset[0], dataset[1]]
    batch = collate(examples)
    assert [key.slice for key in batch.keys] == [0, 1]
    forward, adjoint = batch.op.forward(batch.target), batch.op.adjoint(batch.y)
    for i, example in enumerate(examples):
        torch.testing.assert_close(forward[i], example.op.forward(example.target))
        torch.testing.assert_close(adjoint[i], example.op.adjoint(example.y))
    assert equal(batch.to("cpu"), batch)
    points = replace(examples[1], op=Sense(examples[1].op.maps, examples[1].op.mask.expand(1, 40, 32), 1.0, None))
    counted = replace(examples[0], op=replace(examples[0].op, n_averages=2 * examples[0].op.mask.int()))
    mixed = collate([counted, points])
    assert torch.equal(mixed.op.weights[0], 2 * examples[0].op.weights.expand(1, 40, 32))
    assert torch.equal(mixed.op.weights[1], examples[1].op.weights.expand(1, 40, 32))
    with pytest.raises(ValueError, match="one shape and one noise level"):
        collate([examples[0], replace(examples[1], op=replace(examples[1].op, noise_std=2.0))])
    with pytest.raises(ValueError, match="with and without a target"):
        collate([examples[0], replace(examples[1], target=None)])


def test_batches_have_one_shape_and_lose_nothing() -> None:
    shapes = [(4, 40, 32)] * 7 + [(4, 36, 32)] * 4 + [(8, 40, 32)]
    sampler = ShapeBatchSampler(shapes, 3, shuffle=True)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 6
        assert all(len({shapes[draw.item] for draw in batch}) == 1 for batch in batches)
        assert all(draw.epoch == epoch for batch in batches for draw in batch)
        epochs.append([draw.item for batch in batches for draw in batch])
        assert sorted(epochs[-1]) == list(range(12))
    assert epochs[0] != epochs[1]
    sampler.set_epoch(0)
    assert [draw.item for batch in sampler for draw in batch] == epochs[0]
    assert [draw.item for batch in ShapeBatchSampler(shapes, 3) for draw in batch] == list(range(12))
    assert [len(batch) for batch in ShapeBatchSampler(shapes, 3, drop_last=True)] == [3, 3, 3]


@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_an_epoch(drop_last: bool) -> None:
    shapes = [(1, 8, 8)] * 10 + [(1, 9, 8)] * 4
    samplers = [ShapeBatchSampler(shapes, 2, shuffle=True, drop_last=drop_last, n_replicas=3, rank=rank) for rank in range(3)]
    shares = [[tuple(draw.item for draw in batch) for batch in sampler] for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {2 if drop_last else 3}
    together = [batch for share in shares for batch in share]
    assert len(set(together)) == (6 if drop_last else 7)
    assert samplers[0].sampler is samplers[0]
    with pytest.raises(ValueError, match="rank 3 of 3"):
        ShapeBatchSampler(shapes, 2, n_replicas=3, rank=3)


def test_nothing_leaks_over_many_reads(folder: Path) -> None:
    dataset = KSpaceDataset(find_volumes(folder), [LINES], cache=folder.parent / "cache")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for i in range(60):
        dataset[i % len(dataset)]
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    for i in range(600):
        dataset[i % len(dataset)]
    # An example is 0.1 MB; what fastMRI's readers lost over the years was every one of them.
    assert resident() - before < 6e6
    assert len(os.listdir("/proc/self/fd")) == files


def test_corrupted_files_are_named_at_once(folder: Path) -> None:
    (folder / "b.h5").write_bytes((folder / "b.h5").read_bytes()[:-5000])
    (folder / "d.h5").write_text("no")
    with pytest.raises(InputError) as failure:
        KSpaceDataset(find_volumes(folder), [LINES])
    message = str(failure.value)
    assert message.startswith("2 of 4 files cannot be used: ")
    assert f"{folder / 'b.h5'} (the HDF5 file is truncated)" in message
    assert f"{folder / 'd.h5'} (not an HDF5 file)" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="no files"):
        open_volumes([])
    with pytest.raises(InputError, match=r"no \.h5 files"):
        find_volumes(folder.parent)
    with pytest.raises(InputError, match="no such file"):
        find_volumes(folder / "absent.h5")


def test_an_error_in_a_worker_arrives_whole(folder: Path) -> None:
    with h5py.File(folder / "b.h5", "a") as file:
        file["kspace"][0, 0, 0, 0] = np.nan
    dataset = KSpaceDataset([folder / "b.h5"], [LINES])
    loader = DataLoader(dataset, batch_size=1, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(InputError, match=r"slice 0 of kspace holds NaN or infinite samples"):
        list(loader)


def test_datasets_travel_to_spawned_workers(folder: Path) -> None:
    dataset = KSpaceDataset(find_volumes(folder), [LINES])
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - what the data loader does
    assert equal(copy[0], dataset[0])


# Splits ----------------------------------------------------------------------------------------------------------------------


def test_no_patient_is_in_two_parts(tmp_path: Path) -> None:
    files = []
    for i in range(24):
        patient = f"p{i // 3}" if i < 21 else ""  # seven patients with three scans, three files that do not say
        files.append(write_volume(tmp_path / f"{i:02}.h5", slices((12, 12), 1, 1), patient_id=patient))
    parts = split_by_patient(files, (0.6, 0.2, 0.2), seed=1)
    assert sorted(path for part in parts for path in part) == files
    patients = [{open_volume(path).patient for path in part} for part in parts]
    assert [len(names) for names in patients] == [6, 2, 2]
    assert len(set.union(*patients)) == 10
    assert split_by_patient(files[::-1], (0.6, 0.2, 0.2), seed=1)[1] == parts[1][::-1]
    assert split_by_patient(files, (0.6, 0.2, 0.2), seed=2) != parts
    assert [len(part) > 0 for part in split_by_patient(files, (0.98, 0.01, 0.01))] == [True] * 3
    assert split_by_patient(files, (0.5, 0.0))[1] == []
    with pytest.raises(InputError, match="1 patients in 3 files cannot be divided into 2 parts"):
        split_by_patient(files[:3], (0.5, 0.5))
    with pytest.raises(ValueError, match="add up to 1 at most"):
        split_by_patient(files, (0.8, 0.4))


# The cache of coil maps ------------------------------------------------------------------------------------------------------


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts how often maps are made."""
    made: list[int] = []
    original = coils.estimate_maps

    def counting(*arguments: object, **keywords: object) -> Tensor:
        made.append(1)
        return original(*arguments, **keywords)

    monkeypatch.setattr(coils, "estimate_maps", counting)
    return made


def undersampled(seed: int = 0) -> KSpace:
    k = slices(n=1)[0]
    mask = replace(LINES, seed=seed).draw((40, 32), "x")[None]
    return replace(k, data=k.data * mask, mask=mask)


def test_cached_maps_are_the_maps(tmp_path: Path, estimates: list[int]) -> None:
    k = undersampled()
    plain = cached_maps(k, None)
    torch.testing.assert_close(plain, coils.estimate_maps(k), rtol=0, atol=1e-4)
    estimates.clear()
    assert torch.equal(cached_maps(k, tmp_path), plain)
    assert torch.equal(cached_maps(k, tmp_path), plain)
    assert len(estimates) == 1
    # What they depend on makes another entry, what they do not depend on does not.
    outside = k.data.clone()
    outside[:, 0] += 1
    cached_maps(replace(k, data=torch.where(k.mask, outside, 0)), tmp_path)
    assert len(estimates) == 1
    centre = k.data.clone()
    centre[0, 20, 16] *= 1.0001
    cached_maps(replace(k, data=centre), tmp_path)
    cached_maps(k, tmp_path, calibration_width=10)
    narrow = k.mask.clone()
    narrow[:, 14:16] = False
    cached_maps(replace(k, mask=narrow), tmp_path)
    cached_maps(replace(k, calibration=2j * k.data), tmp_path)
    assert len(estimates) == 5


def test_masks_with_one_centre_share_maps(tmp_path: Path, estimates: list[int]) -> None:
    k = slices(n=1)[0]
    for seed in range(4):
        mask = torch.zeros(1, 40, 1, dtype=torch.bool)
        mask[:, 14:26] = True
        mask[:, [1 + seed, 9 - seed, 30 + seed]] = True
        cached_maps(replace(k, data=k.data * mask, mask=mask), tmp_path)
    assert len(estimates) == 1


def test_damaged_and_stale_entries_are_made_again(
    tmp_path: Path, estimates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    k = undersampled()
    maps = cached_maps(k, tmp_path)
    (entry,) = tmp_path.rglob("*.maps")
    good = entry.read_bytes()
    flipped = bytearray(good)
    flipped[-100] ^= 1
    for content in (bytes(flipped), good[:-1], b"", b"\0" * len(good), good[:40] + b"x" + good[41:]):
        entry.write_bytes(content)
        estimates.clear()
        assert torch.equal(cached_maps(k, tmp_path), maps)
        assert len(estimates) == 1
        assert entry.read_bytes() == good
    monkeypatch.setattr(maps_cache, "_program", lambda: "another version")
    estimates.clear()
    cached_maps(k, tmp_path)
    assert len(estimates) == 1


def test_full_disk_goes_on_without_the_cache_and_says_so(tmp_path: Path) -> None:
    k = undersampled()
    maps = cached_maps(k, None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match=f"coil maps cannot be kept in .*{os.strerror(errno.EFBIG)}"):
            assert torch.equal(cached_maps(k, tmp_path), maps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_cannot_be_written_is_refused_at_start_up(folder: Path) -> None:
    with pytest.raises(InputError, match="the cache of coil maps cannot be written"):
        KSpaceDataset(find_volumes(folder), [LINES], cache=folder / "a.h5" / "cache")


def test_what_interrupted_runs_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "ab" / ".x.part", tmp_path / "ab" / ".y.part"
    old.parent.mkdir()
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    maps_cache.prepare_folder(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def _read_all(arguments: tuple[list[Path], Path, int]) -> list[Tensor]:
    files, folder, seed = arguments
    torch.set_num_threads(1)
    dataset = KSpaceDataset(files, [LINES], cache=folder)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    maps = {i: dataset[i].op.maps.numpy() for i in order}
    return [maps[i] for i in sorted(maps)]


def test_processes_share_a_cache(folder: Path) -> None:
    files, shared = find_volumes(folder), folder.parent / "cache"
    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map(_read_all, [(files, shared, seed) for seed in range(6)])
    expected = [KSpaceDataset(files, [LINES])[i].op.maps.numpy() for i in range(6)]
    for maps in results:
        for a, b in zip(maps, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(list(shared.rglob("*.maps"))) == 6
    assert list(shared.rglob(".*.part")) == []


def test_real_files(data_dir: Path, tmp_path: Path) -> None:
    files = [data_dir / "fastmri_style" / name for name in ("brain_8ch.h5", "ulf_6A_FLAIR.h5")]
    dataset = KSpaceDataset(files, [MaskSpec("random1d", 4.0)], cache=tmp_path)
    first = dataset[0]
    assert equal(first, dataset[0])
    target = dataset.volumes[0].target(0)
    inside = target > 0.1 * target.max()
    # Where there is signal, the combined image has the magnitude of the root sum of squares.
    error = (first.target.abs() - target)[inside].norm() / target[inside].norm()
    assert error < 0.05
    single = dataset[1]
    assert torch.equal(single.op.maps, torch.ones_like(single.op.maps))
    torch.testing.assert_close(single.target.abs(), dataset.volumes[1].target(0), rtol=1e-4, atol=1e-10)
