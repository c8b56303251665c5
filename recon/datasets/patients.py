"""Grouping of images by patient, and split of patients into training and validation.

Slices of one patient resemble each other, so a split by slice would let a network see its own test.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kspace.errors import InputError
from kspace.io.images import DICOM, STACKS, dicom_identity, natural_key, stem, suffix

MAX_SLICES_OF_FOLDER = 512


@dataclass(frozen=True)
class PatientFiles:
    """Image files of one patient, which form one volume and belong to one split.

    Attributes
    ----------
    name
        Unique in the folder; the name of the volume.
    patient
        Pseudonym of the patient. Groups of one patient stay in one split.
    files
        In the order of their names, numbers compared as numbers.
    """

    name: str
    patient: str
    files: tuple[Path, ...]


def file_number(path: Path) -> int:
    """Last number in a file name.

    Raises
    ------
    InputError
        If there is none.
    """
    digits = re.findall(r"\d+", stem(path))
    if not digits:
        raise InputError("the file's name holds no number to group by", path, "leave --group-size out")
    return int(digits[-1])


def group_files(files: Sequence[Path], root: Path, group_size: int | None = None) -> list[PatientFiles]:
    """Group files by patient.

    With `group_size` a group is the files of one folder whose numbers lie within `group_size` consecutive ones, counted from
    the first that is left. Without it a NIfTI or NumPy file is a group of its own (its patient is the ``sub-...`` of its name,
    where it has one), DICOM files are grouped by series and belong to the patient that they name (a hash of it is kept), and
    the other images of one folder are one patient.

    Raises
    ------
    InputError
        If a folder holds more images than one scan has, or a file name has no number to group by.
    """
    folders: dict[str, list[Path]] = {}
    patients: dict[str, str] = {}
    for path in sorted(files, key=natural_key):
        key, patient = _folder(path, root), None
        if group_size is None:
            key, patient = _natural_group(path, root)
        folders.setdefault(key, []).append(path)
        patients.setdefault(key, patient or key)
    if group_size is None:
        for members in folders.values():
            if len(members) > MAX_SLICES_OF_FOLDER:
                raise InputError(
                    f"{len(members)} images in one folder, more than one patient's scan has",
                    members[0].parent,
                    "give --group-size N, the number of neighbouring files that stand for one patient",
                )
        return [PatientFiles(key, patients[key], tuple(members)) for key, members in folders.items()]
    if group_size < 1:
        raise InputError(f"the group size is {group_size}, expected at least 1", "--group-size")
    return [group for key, members in folders.items() for group in _by_number(key, members, group_size)]


def split_groups(
    groups: Sequence[PatientFiles], fraction: float, gap: int = 0, by_number: bool = False
) -> tuple[list[PatientFiles], list[PatientFiles], list[Path]]:
    """Split groups into training and validation; no patient is in both.

    With `by_number` (neighbouring files may be one patient, and nothing says where the next begins) validation is the last
    `fraction` of each folder's files, the `gap` files before it are left out of everything, and so is what remains of a group
    that the cut went through. Without it validation is the last `fraction` of the patients.

    Returns
    -------
    tuple
        Training groups, validation groups, files left out.

    Raises
    ------
    InputError
        If one of the two sides would be empty, or a gap is asked for that has no meaning.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the fraction for validation is {fraction:g}, expected between 0 and 1", "--split")
    if gap < 0 or (gap and not by_number):
        raise InputError(f"a gap of {gap} files", "--gap", "a gap is a number of files, and goes with --group-size")
    if by_number:
        train, val, left_out = _split_by_number(groups, fraction, gap)
    else:
        patients = list(dict.fromkeys(group.patient for group in groups))
        held_out = set(patients[len(patients) - max(1, round(fraction * len(patients))) :])
        train = [group for group in groups if group.patient not in held_out]
        val, left_out = [group for group in groups if group.patient in held_out], []
    if not train or not val:
        raise InputError(
            f"splitting {len(groups)} groups leaves {len(train)} for training and {len(val)} for validation",
            "--split",
            "give more patients, or --group-size where neighbouring files are one patient",
        )
    return train, val, left_out


def _split_by_number(
    groups: Sequence[PatientFiles], fraction: float, gap: int
) -> tuple[list[PatientFiles], list[PatientFiles], list[Path]]:
    folders: dict[Path, list[Path]] = {}
    for group in groups:
        for path in group.files:
            folders.setdefault(path.parent, []).append(path)
    side: dict[Path, str] = {}
    for members in folders.values():
        first = len(members) - round(fraction * len(members))
        for i, path in enumerate(members):
            side[path] = "val" if i >= first else "gap" if i >= first - gap else "train"
    parts: dict[str, list[PatientFiles]] = {"train": [], "val": []}
    kept: set[Path] = set()
    for group in groups:
        sides = {side[path] for path in group.files}
        name = "val" if "val" in sides else "train"
        files = tuple(path for path in group.files if side[path] == name)
        if files:
            parts[name].append(PatientFiles(group.name, group.patient, files))
            kept.update(files)
    return parts["train"], parts["val"], [path for path in side if path not in kept]


def _by_number(key: str, members: Sequence[Path], group_size: int) -> list[PatientFiles]:
    chunks: list[tuple[int, list[Path]]] = []
    for number, path in sorted((file_number(path), path) for path in members):
        if not chunks or number >= chunks[-1][0] + group_size:
            chunks.append((number, []))
        chunks[-1][1].append(path)
    width = len(str(max(file_number(path) for path in members)))
    return [PatientFiles(name := f"{key}_{number:0{width}d}", name, tuple(files)) for number, files in chunks]


def _natural_group(path: Path, root: Path) -> tuple[str, str | None]:
    kind, folder = suffix(path), _folder(path, root)
    if kind in STACKS or path == root:
        subject = re.match(r"sub-[A-Za-z0-9]+", path.name)
        return f"{folder}_{stem(path)}", subject.group() if subject else None
    if kind in DICOM:
        return _dicom_group(path, folder)
    return folder, None


def _dicom_group(path: Path, folder: str) -> tuple[str, str | None]:
    patient, series = (hashlib.sha256(text.encode()).hexdigest() if text else None for text in dicom_identity(path))
    return (f"{folder}_{series[:8]}" if series else folder), patient[:12] if patient else None


def _folder(path: Path, root: Path) -> str:
    """Folders from the root to the file, joined: what the names of volumes begin with."""
    base = root if root.is_dir() else root.parent
    parts = path.parent.relative_to(base).parts
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts) if parts else base.resolve().name) or "images"
