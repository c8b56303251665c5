"""BIDS data sets: raw data in ``sourcedata``, images in ``derivatives/recon`` under BIDS names.

Gorgolewski et al., The brain imaging data structure, Scientific Data 3 (2016) 160044, https://doi.org/10.1038/sdata.2016.44;
names of derivatives as in version 1.9 of the specification.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import recon
from kspace.errors import InputError
from kspace.io.atomic import atomic_write

DESCRIPTION = "dataset_description.json"
SUFFIX = "MRI"  # of images of files whose names do not say what was acquired


def raw_folder(folder: Path) -> Path | None:
    """``sourcedata`` of a BIDS data set; None where `folder` is no data set with raw data.

    Raises
    ------
    InputError
        If the description of the data set cannot be read.
    """
    if not (folder / DESCRIPTION).is_file() or not (folder / "sourcedata").is_dir():
        return None
    return folder / "sourcedata" if "BIDSVersion" in _read(folder / DESCRIPTION) else None


def output(raw: PurePosixPath, label: str) -> PurePosixPath:
    """Folder and stem of the images of a raw file.

    Parameters
    ----------
    raw
        Relative to ``sourcedata``: ``sub-01/ses-1/anat/sub-01_ses-1_T1w.h5``, or any name in folders ``sub-01[/ses-1]``.
    label
        Of the derivative, e.g. the method: ``sub-01_ses-1_desc-sense_T1w``.
    """
    entities = [part for part in raw.parts[:-1] if re.fullmatch(r"(sub|ses)-[A-Za-z0-9]+", part)]
    words = raw.stem.split("_")
    is_named = bool(re.fullmatch(r"sub-[A-Za-z0-9]+", words[0]))
    description = f"desc-{re.sub('[^A-Za-z0-9]', '', label)}"
    if is_named:
        suffix = words.pop() if len(words) > 1 and "-" not in words[-1] else SUFFIX
        words = [word for word in words if not word.startswith("desc-")]
    else:
        suffix, words = SUFFIX, [*entities, f"acq-{re.sub('[^A-Za-z0-9]', '', raw.stem)}"]
    return raw.with_name("_".join([*words, description, suffix]))


def describe(dataset: Path, output_folder: Path, method: str) -> None:
    """Write the description of the derivative data set, where there is none yet.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    path = output_folder / DESCRIPTION
    if path.exists():
        return
    about = _read(dataset / DESCRIPTION)
    content = {
        "Name": f"Reconstructions of {about.get('Name') or dataset.name}",
        "BIDSVersion": about["BIDSVersion"],
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "recon", "Version": recon.__version__, "Description": f"recon batch, method {method}"}],
        "SourceDatasets": [{"URL": dataset.as_uri()}],
    }
    with atomic_write(path, make_folder=True) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the description of the data set cannot be read ({error})", path, "correct it") from error
    return found if isinstance(found, dict) else {}
