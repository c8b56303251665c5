"""Raw scans as volumes to train on without fully sampled data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kspace.errors import InputError
from kspace.io import fastmri
from recon.commands.convert import convert
from recon.train.data import DataOptions

RAW = (".h5", ".dat")


def as_volumes(options: DataOptions, folder: Path) -> DataOptions:
    """The options with raw scans (ISMRMRD, Siemens) converted into fastMRI-style volumes in `folder`, which are kept."""
    return replace(
        options,
        path=None if options.path is None else _as_volumes(options.path, folder),
        val_path=None if options.val_path is None else _as_volumes(options.val_path, folder / "val"),
    )


def _as_volumes(path: Path, folder: Path) -> Path:
    if not path.exists():
        raise InputError("no such file or folder", path)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in RAW) if path.is_dir() else [path]
    raw = [file for file in files if not fastmri.is_fastmri(file)]
    if not raw:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        place = folder / f"{file.stem}.h5"
        if list(folder.glob(f"{file.stem}*.h5")):
            continue  # from an earlier start of this run
        if file not in raw:
            place.symlink_to(file.resolve())
        elif file.suffix.lower() == ".dat":
            between = folder / f"{file.stem}.mrd"
            convert(file, between)
            convert(between, place)
            between.unlink()
        else:
            convert(file, place)
    return folder
