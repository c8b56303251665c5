"""Which software made a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import recon


def versions() -> dict[str, str]:
    """Versions of this project, Python, and the libraries that a result depends on."""
    found = {"recon": recon.__version__, "python": platform.python_version()}
    for package in ("torch", "sigpy", "numpy", "ismrmrd", "h5py", "pydicom", "nibabel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
