"""Export of results as MRD, DICOM, NIfTI and PNG with a JSON record, all or nothing."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kspace.container import Image
from kspace.errors import InputError
from kspace.io.atomic import sync, sync_folder
from recon.output.series import NOTICE, RunRecord, Series, make_series

if TYPE_CHECKING:
    from recon.output.mrd import MrdPixels

__all__ = ["FORMATS", "RunRecord", "check_outputs", "export"]

SUFFIXES = {"mrd": ".mrd.h5", "dicom": "_dicom", "nifti": ".nii.gz", "png": ".png", "html": ".html", "fastmri": ".h5"}
FORMATS = tuple(SUFFIXES)
OF_THE_RUN = ("html", "fastmri")
"""Formats with one file for the run: a page of all roles, and a submission of the main images."""
USUAL = tuple(name for name in FORMATS if name not in OF_THE_RUN)


def export(
    images: Sequence[Image],
    record: RunRecord,
    out: Path,
    stem: str,
    formats: Sequence[str] = USUAL,
    complex_images: bool = False,
    force: bool = False,
    xml: str | bytes | None = None,
    mrd_pixels: MrdPixels = "float32",
    tell: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write the images of one run.

    Files in ``out``: ``<stem>.mrd.h5``, ``<stem>_dicom/*.dcm``, ``<stem>.nii.gz`` and ``<stem>.png`` for the main images, the
    same with ``<stem>_<role>`` for each further role, ``<stem>.h5`` in fastMRI's layout for the main images, ``<stem>.html``
    for all of them, and ``<stem>.json``. They appear together once all are complete; after an exception, including Ctrl-C, the
    directory is unchanged.

    Parameters
    ----------
    images
        Images ``(z y x)``, finite; one per slice, or per slab, of every contrast, set, phase and repetition.
    record
        Run record.
    out
        Output directory, created if necessary.
    stem
        Name of the outputs without suffix.
    formats
        Any of ``mrd``, ``dicom``, ``nifti``, ``png``, ``html``, ``fastmri``. The JSON record is always written.
    complex_images
        Write complex values of complex images to MRD and NIfTI; DICOM and PNG hold magnitudes.
    force
        Overwrite outputs of the same names.
    xml
        ISMRMRD header of the raw file to copy into the MRD file, if any.
    mrd_pixels
        ``float32``, or ``uint16``: magnitudes in the MRD file as integers, one scale per series.
    tell
        Called with each warning that a format adds to the record.

    Returns
    -------
    list of Path
        Written files and directories, the JSON record last.

    Raises
    ------
    InputError
        If an output exists without `force`, the directory cannot be written, or images are inconsistent.
    """
    started = time.perf_counter()
    out = Path(out)
    series = make_series(images, record)
    roles = tuple(dict.fromkeys(one.role for one in series))
    check_outputs(out, stem, formats, force, roles, Path(record.source) if record.source else None)
    made = _make_directory(out)
    room: Path | None = None
    try:
        room = Path(tempfile.mkdtemp(prefix=f".{stem}.", suffix=".part", dir=out))
        fresh = room / "new"
        fresh.mkdir()
        _write_all(fresh, series, record, stem, formats, complex_images, xml, mrd_pixels, tell, started)
        sync(fresh)
        written = _publish(fresh, room, out, _existing(out, stem, formats, roles) if force else [], stem)
    except BaseException as error:
        _remove(room, made)
        if isinstance(error, OSError):
            raise InputError(f"cannot write the results ({error.strerror or error})", out, "choose another -o") from error
        raise
    _remove(room, [])
    return written


def check_outputs(
    out: Path,
    stem: str,
    formats: Sequence[str] = USUAL,
    force: bool = False,
    roles: Sequence[str] = ("main",),
    source: Path | None = None,
) -> None:
    """Check formats, existing outputs, write permission and overwriting of the input `source`, before reconstruction.

    Writes nothing. Outputs of other formats are never touched, not even with `force`.

    Raises
    ------
    InputError
        As `export`.
    """
    out = Path(out)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"unknown format '{unknown[0]}'", "--format", f"choose from {', '.join(FORMATS)}")
    if not stem or stem.startswith(".") or Path(stem).name != stem or any(ord(c) < 32 for c in stem):
        raise InputError(f"'{stem}' cannot be the name of an output", "the inputs", "rename the file")
    existing = _existing(out, stem, formats, roles)
    if source is not None and (same := next((p for p in existing if source.exists() and p.samefile(source)), None)):
        raise InputError("the reconstruction would overwrite its own input", same, "choose another folder with -o")
    if existing and not force:
        raise InputError(f"{existing[0].name} exists already", out, "give --force to replace it, or another -o")
    parent = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise InputError(f"{parent} is not a directory", "-o", "give a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("no permission to write", parent, "choose another -o")


def _existing(out: Path, stem: str, formats: Sequence[str], roles: Sequence[str]) -> list[Path]:
    """Existing outputs of the same names, including numbered NIfTI stacks."""
    if not out.is_dir():
        return []
    bases = [role_stem(stem, role) for role in roles]
    names = {f"{stem}.json"} | {base + SUFFIXES[name] for base in bases for name in formats if _holds(name, base == stem)}
    stacks = [re.compile(re.escape(base) + r"_stack\d+\.nii\.gz") for base in bases if "nifti" in formats]
    try:
        return sorted(p for p in out.iterdir() if p.name in names or any(s.fullmatch(p.name) for s in stacks))
    except OSError as error:
        raise InputError(f"cannot read the directory ({error.strerror})", out, "choose another -o") from error


def _holds(name: str, main: bool) -> bool:
    """Whether a format has a file for this role: those of the run have one beside the main images."""
    return main or name not in OF_THE_RUN


def role_stem(stem: str, role: str) -> str:
    """Stem of a role: ``scan`` for the main images, ``scan_<role>`` for others."""
    return stem if role == "main" else f"{stem}_{re.sub('[^A-Za-z0-9.-]+', '-', role)}"


def _write_all(
    folder: Path,
    series: Sequence[Series],
    record: RunRecord,
    stem: str,
    formats: Sequence[str],
    complex_images: bool,
    xml: str | bytes | None,
    mrd_pixels: MrdPixels,
    tell: Callable[[str], None] | None,
    started: float,
) -> None:
    """Write all formats to one new folder. Each format's library is imported only if that format is written."""
    warnings = list(record.warnings)
    rescale: list[dict[str, Any]] = []
    for role in dict.fromkeys(one.role for one in series):
        name = role_stem(stem, role)
        members = [one for one in series if one.role == role]
        images = [image for one in members for image in one.images]
        if "mrd" in formats:
            from recon.output.mrd import write_mrd

            write_mrd(folder / (name + SUFFIXES["mrd"]), members, record, complex_images, xml, mrd_pixels)
        if "dicom" in formats:
            from recon.output.dicom import write_dicom

            rescale += write_dicom(folder / (name + SUFFIXES["dicom"]), members, record)
        if "nifti" in formats:
            from recon.output.nifti import write_nifti

            warnings += write_nifti(folder / (name + SUFFIXES["nifti"]), images, record, complex_images)[1]
        if "png" in formats:
            from recon.output.png import write_montage

            write_montage(folder / (name + SUFFIXES["png"]), images, record)
        if "fastmri" in formats and _holds("fastmri", role == "main"):
            from recon.output.submission import write_submission

            write_submission(folder / (name + SUFFIXES["fastmri"]), images, record)
    if "html" in formats:
        from recon.output.scan_page import write_page

        write_page(folder / (stem + SUFFIXES["html"]), series, replace(record, warnings=list(dict.fromkeys(warnings))))
    if tell is not None:
        for warning in warnings[len(record.warnings) :]:
            tell(warning)
    content = _record_content(folder, series, record, rescale, list(dict.fromkeys(warnings)))
    content["seconds"].setdefault("export", round(time.perf_counter() - started, 4))
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / f"{stem}.json").write_text(text + "\n", encoding="utf-8")


def _record_content(
    folder: Path, series: Sequence[Series], record: RunRecord, rescale: Sequence[dict[str, Any]], warnings: list[str]
) -> dict[str, Any]:
    slopes = {entry["number"]: entry["rescale_slope"] for entry in rescale}
    axes = ("contrast", "set", "phase", "repetition")
    volumes = {}
    for role in dict.fromkeys(one.role for one in series):
        found = sorted(v for one in series if one.role == role for v in one.volumes)
        volumes[role] = [dict(zip(axes, volume, strict=True)) for volume in found]
    shown = [
        {
            "number": one.number,
            "role": one.role,
            "contrast": one.contrast,
            "description": one.description,
            "image_type": "\\".join(one.image_type),
            "matrix": list(reversed(one.images[0].data.shape)),
            "n_images": len(one.images),
            "dicom_series_instance_uid": one.uid if one.number in slopes else None,
            "dicom_rescale_slope": slopes.get(one.number),
            "nominal_geometry": one.images[0].header.geometry.nominal,
        }
        for one in series
    ]
    content = {"notice": NOTICE, **asdict(record), "warnings": warnings}
    return content | {"series": shown, "volumes": volumes, "files": sorted(path.name for path in folder.iterdir())}


def _plain(value: Any) -> Any:
    """Convert to JSON types: NumPy numbers to numbers, paths to text, non-finite numbers to text (JSON has no NaN)."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _publish(fresh: Path, room: Path, out: Path, replaced: Sequence[Path], stem: str) -> list[Path]:
    """Move old outputs aside and new ones into place, the record last; undo all moves on failure."""
    aside = room / "old"
    aside.mkdir()
    last = f"{stem}.json"
    moves = [(path, aside / path.name) for path in replaced]
    moves += [(path, out / path.name) for path in sorted(fresh.iterdir(), key=lambda p: (p.name == last, p.name))]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            # Recorded before the move, so that an interrupt in between is undone too.
            done.append((source, target))
            if os.path.lexists(target):
                raise InputError(f"{target.name} exists already", out, "another run wrote it meanwhile; give --force")
            os.rename(source, target)
    except BaseException:
        for source, target in reversed(done):
            if os.path.lexists(target) and not os.path.lexists(source):
                os.rename(target, source)
        raise
    sync_folder(out)
    return [target for _, target in moves[len(replaced) :]]


def _make_directory(out: Path) -> list[Path]:
    """Create `out`; return the created directories, deepest first."""
    missing = [path for path in (out, *out.absolute().parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the directory ({error.strerror})", out, "choose another -o") from error
    return missing


def _remove(room: Path | None, directories: Sequence[Path]) -> None:
    """Remove the temporary folder, and created directories that are empty."""
    if room is not None:
        shutil.rmtree(room, ignore_errors=True)
    for path in directories:
        with suppress(OSError):
            path.rmdir()
