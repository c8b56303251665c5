"""``recon store``: DICOM files to an archive."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kspace.errors import InputError

if TYPE_CHECKING:
    from recon.serve.store import Node

PAUSES_S = (1.0, 5.0, 15.0)


def store(node: str, inputs: list[Path], spool: Path | None = None) -> int:
    """Send DICOM files to a node by C-STORE, and wait for its confirmation of each.

    Parameters
    ----------
    node
        AET@HOST:PORT.
    inputs
        DICOM files, or folders of them (as recon run writes); they are left as they are.
    spool
        Folder that keeps what could not be sent; recon serve --store, or this command with the same spool, sends it later.

    Returns
    -------
    int
        0 where the node has confirmed all images, else 2.
    """
    from recon.serve.store import parse_node

    target = parse_node(node)
    files = [file for path in inputs for file in (sorted(path.rglob("*.dcm")) if path.is_dir() else [path])]
    if missing := [path for path in files if not path.is_file()]:
        raise InputError("no such file", missing[0], "check the path")
    if not files:
        raise InputError("no DICOM files (*.dcm)", inputs[0], "give files, or folders that recon run wrote")
    with tempfile.TemporaryDirectory(prefix="recon-store-") as temporary:
        return _deliver(target, files, spool or Path(temporary), spool is not None)


def _deliver(target: Node, files: Sequence[Path], spool: Path, keeps: bool) -> int:
    from recon.serve.store import ArchiveQueue, enqueue_files

    lines: list[str] = []
    delivery = ArchiveQueue(target, spool, lines.append, PAUSES_S)
    enqueue_files(files, spool)
    for pause in (*PAUSES_S, None):
        if delivery.deliver() or pause is None:
            break
        print(lines[-1], file=sys.stderr, flush=True)
        time.sleep(pause)
    left, rejected = len(delivery.waiting()), len(delivery.rejected())
    if left or rejected:
        what = f"{left} images were not sent, {rejected} rejected ({lines[-1].removeprefix(f'{target}: ')})"
        raise InputError(what, str(target), f"they wait in {spool}" if keeps else "repeat the command; the files are unchanged")
    print(f"{len(files)} images taken by {target}")
    return 0
