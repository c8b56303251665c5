"""Which software made a result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import recon

PACKAGES = ("kspace", "models", "recon")


def versions() -> dict[str, str]:
    """Versions of this project, Python, and the libraries that a result depends on."""
    found = {"recon": recon.__version__, "python": platform.python_version()}
    for package in ("torch", "sigpy", "numpy", "ismrmrd", "h5py", "pydicom", "nibabel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@cache
def code() -> dict[str, str | None]:
    """The code in use: ``version``; ``sha256`` of all Python files of the three packages; ``commit`` of git, or None.

    The commit ends in ``-dirty`` where tracked files of the checkout differ from it. The checksum identifies the code where
    there is no git, and finds changes that were not committed.
    """
    return {"version": recon.__version__, "commit": _commit(), "sha256": _sources()}


def _sources() -> str:
    root, found = Path(recon.__file__).parent.parent, hashlib.sha256()
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def _commit() -> str | None:
    root = Path(recon.__file__).parent.parent
    if not (root / ".git").exists():
        return _installed_commit()
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        # Without optional locks: describing must not write into the repository.
        environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a repository that it does not trust
        return None
    return said or None


def _installed_commit() -> str | None:
    """The commit that pip installed from, which it notes for a repository (PEP 610)."""
    try:
        noted = json.loads(distribution("mri-gan-recon").read_text("direct_url.json") or "{}")
        return str(noted["vcs_info"]["commit_id"])
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
