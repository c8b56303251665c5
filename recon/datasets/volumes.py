"""Collections of fastMRI files: search, opening, and split by patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kspace.errors import InputError
from kspace.io.fastmri import FastmriVolume, open_volume
from kspace.seeds import seed_of

SUFFIXES = (".h5", ".hdf5")


def find_volumes(paths: Path | Sequence[Path]) -> list[Path]:
    """Find the volumes among files and folders (without subfolders), sorted.

    Raises
    ------
    InputError
        If there are none.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    found = []
    for path in given:
        if not path.exists():
            raise InputError("no such file or folder", path)
        inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError("there are no .h5 files", path)
        found += inside
    return found


def open_volumes(files: Sequence[Path]) -> list[FastmriVolume]:
    """Open all files; one error names all unusable ones.

    Raises
    ------
    InputError
        If some cannot be used, or there are none.
    """
    volumes, failures = [], []
    for path in files:
        try:
            volumes.append(open_volume(path))
        except InputError as error:
            failures.append(f"{path} ({error.what})")
    if failures:
        raise InputError(f"{len(failures)} of {len(files)} files cannot be used: {', '.join(failures)}", fix="leave them out")
    if not volumes:
        raise InputError("there are no files to read")
    return volumes


def split_by_patient(files: Sequence[Path], fractions: Sequence[float], seed: int = 0) -> list[list[Path]]:
    """Split files by patient, because slices and scans of one patient resemble each other.

    Patients are ordered by a hash of seed and pseudonym, so a patient stays in place when others are added, as far as the
    fractions allow. A file without ``patient_id`` is a patient of its own.

    Parameters
    ----------
    files
        fastMRI-style volumes.
    fractions
        Share of the patients of each part, adding up to 1 at most; what is left over is in none. Every part with a share gets
        at least one patient.
    seed
        Another seed, another division.

    Returns
    -------
    list
        The files of each part, in the order given.

    Raises
    ------
    InputError
        If there are fewer patients than parts.
    ValueError
        If the fractions are negative or add up to more than 1.
    """
    if any(f < 0 for f in fractions) or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions {tuple(fractions)} must be positive and add up to 1 at most")
    patient_of = {volume.path: volume.patient for volume in open_volumes(files)}
    patients = sorted(set(patient_of.values()), key=lambda name: seed_of(f"{seed}/{name}"))
    wanted = [f > 0 for f in fractions]
    if len(patients) < sum(wanted):
        raise InputError(f"{len(patients)} patients in {len(files)} files cannot be divided into {sum(wanted)} parts")
    sizes = _apportion(len(patients), fractions)
    parts, start = [], 0
    for size in sizes:
        members = set(patients[start : start + size])
        parts.append([path for path in map(Path, files) if patient_of[path] in members])
        start += size
    return parts


def _apportion(n: int, fractions: Sequence[float]) -> list[int]:
    """Integers near ``n * fractions``, at least 1 for positive fractions, with the rounded sum of the fractions."""
    total = max(round(n * sum(fractions)), sum(f > 0 for f in fractions))
    sizes = [max(int(n * f), 1) if f > 0 else 0 for f in fractions]
    while sum(sizes) != total:
        step = 1 if sum(sizes) < total else -1
        movable = [i for i, size in enumerate(sizes) if fractions[i] > 0 and size + step >= 1]
        i = max(movable, key=lambda i: step * (n * fractions[i] - sizes[i]))
        sizes[i] += step
    return sizes
