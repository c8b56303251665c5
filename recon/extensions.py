"""Extensions from other packages: modules under the entry-point group ``recon.extensions`` that register what they add."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from kspace.errors import InputError

GROUP = "recon.extensions"


def load() -> None:
    """Import every installed extension; it registers its methods, mask families, file formats or systems.

    Raises
    ------
    InputError
        If one cannot be imported, or breaks a rule of what it adds.
    """
    for point in entry_points(group=GROUP):
        _load(point)


def _load(point: EntryPoint) -> None:
    try:
        point.load()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        package = point.dist.name if point.dist is not None else point.value
        raise InputError(
            f"the extension cannot be loaded ({error})", package, f"update it, or pip uninstall {package}"
        ) from error
