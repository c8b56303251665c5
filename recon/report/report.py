"""The report of a comparison: one page that opens offline, and figures for papers."""

from __future__ import annotations

from pathlib import Path

from kspace.io.atomic import atomic_write
from recon.report import comparison, figures, page


def write(folder: Path, megabytes: float = 45.0) -> Path:
    """Write ``index.html`` and ``figures/*.png, *.pdf`` into the folder of a comparison, finished or not.

    The page holds everything it needs: it opens from a disk, by mail, without a network. Images are stored in 10 to 12 bits
    (`recon.report.planes`); where not all fit, as many slices as do, spread over the volumes, and the page says so.

    Parameters
    ----------
    folder
        Output of `recon compare`.
    megabytes
        Size (10^6 bytes) that the page has at most. About 5 of them are Plotly and the page itself.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        If the folder holds no comparison, a file in it cannot be read, or the report cannot be written.
    """
    found = comparison.read(folder)
    figures.write(found, folder / "figures")
    path = folder / "index.html"
    with atomic_write(path) as beside:
        beside.write_text(page.build(found, megabytes), encoding="utf-8")
    return path
