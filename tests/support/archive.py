"""A DICOM archive for tests: pynetdicom's storage provider on the loopback address."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt

from recon.serve.store import Node


@dataclass
class Archive:
    """A storage provider, and what it was sent."""

    node: Node
    stored: list[Dataset] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of the next answers; 0 from then on

    @property
    def uids(self) -> list[str]:
        return [ds.SOPInstanceUID for ds in self.stored]


@contextlib.contextmanager
def archive(
    port: int = 0, title: str = "ARCHIVE", syntaxes: object = None, statuses: tuple[int, ...] = ()
) -> Iterator[Archive]:
    """A provider on the loopback address that insists on its title."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

    def take(event: evt.Event) -> int:
        if found.statuses and (status := found.statuses.pop(0)):
            return status
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        found.stored.append(dataset)
        return 0

    entity = AE(ae_title=title)
    entity.require_called_aet = True
    entity.add_supported_context(MRImageStorage, *([syntaxes] if syntaxes else []))
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    assert server is not None
    found = Archive(Node("ARCHIVE", "127.0.0.1", server.server_address[1]), statuses=list(statuses))
    try:
        yield found
    finally:
        server.shutdown()
