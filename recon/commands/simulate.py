"""`recon simulate`: fastMRI volumes of simulated k-space from folders of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from kspace.errors import InputError
from kspace.io.images import find_images
from recon.batch.jobs import DeadJob, Job, JobWorkers
from recon.batch.options import ClusterOptions
from recon.datasets.patients import PatientFiles, group_files, split_groups
from recon.datasets.simulated import VolumeRecipe, WrittenVolume, write_simulated
from recon.datasets.simulation_check import compare_with_scans


def simulate(
    images: Path,
    output: Path,
    matrix: tuple[int, ...] = (),
    coils: int = 8,
    snr: float | None = None,
    snr_max: float | None = None,
    smooth: bool = False,
    phase_std: float = 1.0,
    maps_from: Path | None = None,
    group_size: int | None = None,
    split: float = 0.0,
    gap: int = 0,
    seed: int = 0,
    attribution: str = "",
    sampling: str | None = None,
    skip_bad: bool = False,
    check: tuple[Path, ...] = (),
    examples: int = 100,
    force: bool = False,
    cluster: ClusterOptions = ClusterOptions(),
) -> None:
    """Simulate fastMRI volumes of k-space from folders of images (JPEG, PNG, TIFF, DICOM, NIfTI, .npy).

    Images get a random orientation and frame, and their k-space is cropped to the matrix; half of the volumes get another
    contrast. Realistic phase, coil sensitivities and correlated noise are added. Boxes in YOLO text files become regions of
    interest, and the images themselves the noise-free ground truth. The result depends only on images, options and seed. The
    data are simulated; results obtained with them must be labelled so.

    Parameters
    ----------
    images
        Folder of images, including subfolders.
    output
        Folder for the volumes.
    matrix
        Matrix size ky kx of all volumes. Default: random for each volume, 96 to 208 (with --smooth 256 256). Smaller images
        are refused, because their k-space does not fill the matrix.
    coils
        Number of coils (SigPy's birdcage with random deviations).
    snr
        Mean magnitude in the object over the standard deviation of the noise in the real part of the optimally combined image.
        Default: random from 5 to 1200, more often low (with --smooth 20).
    snr_max
        Draw the SNR of each volume between snr and this value.
    smooth
        Simulate uncropped images of their own contrast with smooth phase instead of realistic scans.
    phase_std
        Standard deviation of the smooth phase over the image, in radians.
    maps_from
        ISMRMRD or fastMRI HDF5 scan from which coil maps and, if available, noise covariance are taken.
    group_size
        Number of consecutive files of a folder that form one patient and volume. Default: the images of a folder, a NIfTI or
        NumPy file, or a DICOM series.
    split
        Write train/ and val/, with this fraction of each folder's files, or of the patients, for validation.
    gap
        Number of files before the validation files that are left out, because patient boundaries are unknown.
    seed
        Seed of all random generators.
    attribution
        Licence of the images and the attribution that it requires; stored in the volumes and in results derived from them.
    sampling
        Write the scan of each volume off the Cartesian grid too, as an ISMRMRD file with its trajectory (NAME.mrd), for example
        radial-nufft:4 or spiral-nufft:2: see docs/MASKS.md.
    skip_bad
        Skip unusable images, listing them and their number, instead of stopping at the first.
    check
        Compare the simulation with these fully sampled scans (fastMRI HDF5) instead of writing volumes: the output folder gets
        a table (check.md), values (check.json) and a plot (check.png).
    examples
        Number of simulated slices for the check.
    force
        Overwrite existing volumes.
    cluster
        Where the work is done. The volumes are the same on workers.
    """
    cluster.refuse_threads()
    if cluster.gpus:
        raise InputError("simulation runs on the CPU", "--gpus", "leave it out")
    root = images if images.is_dir() else images.parent
    recipe = VolumeRecipe(
        *(root.absolute(), tuple(matrix), coils, snr, snr_max, smooth, phase_std),
        *(None if maps_from is None else maps_from.absolute(), seed, attribution, skip_bad, force, sampling),
    )
    if check:
        if cluster.scheduler is not None:
            raise InputError("the check runs in one process", "--scheduler", "leave it out")
        options = replace(recipe, maps_from=None).options()
        draws = recipe.draws_matrices
        compare_with_scans(images, output, check, options, examples, seed, group_size, draw_matrices=draws, force=force)
        return
    _ = recipe.options()  # refused before the images are looked at
    groups = group_files(find_images(images), images, group_size)
    parts, left_out = {"": groups}, 0
    if split:
        train, val, lost = split_groups(groups, split, gap, by_number=group_size is not None)
        parts, left_out = {"train": train, "val": val}, len(lost)
    elif gap:
        raise InputError(f"a gap of {gap} files without a split", "--gap", "give --split as well")
    jobs = [(output / part / f"{group.name}.h5", group) for part, members in parts.items() for group in members]
    _check_outputs([path for path, _ in jobs], output, force)
    written = _write_all(recipe, jobs, output.absolute(), cluster)
    _summarise(recipe, written, left_out)


def _write_all(
    recipe: VolumeRecipe, jobs: Sequence[tuple[Path, PatientFiles]], output: Path, cluster: ClusterOptions
) -> list[WrittenVolume]:
    """The volumes that were written, in the order of `jobs`, here or on workers."""
    found: dict[str, WrittenVolume] = {}
    work = []
    for path, group in jobs:
        name = path.absolute().relative_to(output).with_suffix("").as_posix()
        files = tuple(file.absolute() for file in group.files)  # the working folders of workers differ
        work.append(Job(name, {"recipe": recipe, "path": path.absolute(), "group": replace(group, files=files)}))
    if cluster.scheduler is not None:  # a volume is made again where its worker died before it could answer
        work = [Job(job.name, {**job.arguments, "recipe": replace(recipe, force=True)}) for job in work]
    with JobWorkers(cluster, output) if cluster.scheduler is not None else nullcontext() as workers:
        here = ((job, write_simulated(**job.arguments)) for job in work)
        ended = here if workers is None else workers.each(write_simulated, work)
        for job, result in tqdm(ended, total=len(work), unit="volume", disable=None):
            if isinstance(result, DeadJob):
                result = _dead(job.arguments["path"], result, recipe.skip_bad)
            for text in result.bad:
                tqdm.write(f"skipped: {text}", file=sys.stderr)
            found[job.name] = result
    return [found[job.name] for job in work]


def _dead(path: Path, dead: DeadJob, skip_bad: bool) -> WrittenVolume:
    error = InputError(dead.says, path, "give the workers more memory, or leave its images out")
    if not skip_bad:
        raise error
    return WrittenVolume(path, 0, 0, (str(error),))


def _summarise(recipe: VolumeRecipe, volumes: Sequence[WrittenVolume], left_out: int) -> None:
    """Print a summary; InputError if no image could be used."""
    bad = [text for volume in volumes for text in volume.bad]
    by_part: dict[str, int] = {}
    for volume in volumes:
        if volume.n_slices:
            by_part[volume.path.parent.name] = by_part.get(volume.path.parent.name, 0) + volume.n_slices
    if not by_part:
        raise InputError(f"none of the images could be used; the first: {bad[0]}")
    parts = ", ".join(f"{count} in {name}" for name, count in by_part.items())
    n_bytes = sum(volume.n_bytes for volume in volumes)
    n_slices = sum(by_part.values())
    print(f"{n_slices} slices ({parts}), {n_bytes / 1e9:.2f} GB, {recipe.options().coils} coils, seed {recipe.seed}")
    if left_out:
        print(f"{left_out} images between training and validation were left out")
    if bad:
        print(f"{len(bad)} bad images were skipped")


def _check_outputs(paths: Sequence[Path], output: Path, force: bool) -> None:
    """Before hours of work, not after."""
    if output.exists() and not output.is_dir():
        raise InputError("the output is a file, expected a folder", output)
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise InputError(f"{len(existing)} of the volumes exist", existing[0], "choose another folder, or give --force")
