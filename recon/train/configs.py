"""Configurations of the systems, by name: ``--config refinegan``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from kspace.errors import InputError


def bundled_configs() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    folder = Path(str(files("recon"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def with_paths(argv: Sequence[str]) -> list[str]:
    """Arguments with the name after ``--config`` replaced by its file, where it is not a file itself.

    Raises
    ------
    InputError
        If it is neither a file nor a name.
    """
    found: list[str] = []
    for word in argv:
        if word.startswith("--config="):
            found.append(f"--config={_path(word.removeprefix('--config='))}")
        else:
            found.append(_path(word) if found and found[-1] == "--config" else word)
    return found


def _path(text: str) -> str:
    if Path(text).suffix or Path(text).is_file():  # a folder may have the name of the system that was trained in it
        return text
    known = bundled_configs()
    if text not in known:
        raise InputError(f"there is no configuration '{text}'", "--config", f"give a file, or one of {', '.join(known)}")
    return str(known[text])
