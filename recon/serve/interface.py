"""What the parts of the server hand to each other: a resolved configuration, and images on their way to the client.

A scan is reconstructed in several jobs, perhaps in several worker processes: what must stay the same from one to the next
(series numbers, UIDs, the scale of integers) travels with the jobs as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from recon.run.options import RunOptions

if TYPE_CHECKING:  # the server's front starts without torch
    from recon.run.pipeline import Result

Purpose = Literal["reconstruct", "save", "nothing", "dependency"]
"""What becomes of a session's raw data: images; only the saved file (``savedataonly``); neither is asked for (``null``); or the
noise scan that another scan depends on (``default_measurement_dependencies.xml``). The raw data are saved in each case."""


@dataclass(frozen=True)
class ResolvedConfig:
    """What a client's configuration means.

    Attributes
    ----------
    options
        How to reconstruct.
    purpose
        What becomes of the raw data.
    classical_first
        Send the classical image before the generated one.
    remarks
        What the operator should know, e.g. that the name was unknown and the server's own method taken instead; sent as a text
        at level ERROR, and part of the comment of each image.
    """

    options: RunOptions
    purpose: Purpose = "reconstruct"
    classical_first: bool = False
    remarks: tuple[str, ...] = ()


class ConfigResolver(Protocol):
    """`recon.serve.configs.resolve`."""

    def __call__(self, config: str, defaults: ResolvedConfig) -> ResolvedConfig:
        """The meaning of a configuration: its file name, or its text, or the JSON text that may follow the header.

        `defaults` is what holds where the configuration says nothing: the server's own options, or for the JSON text after the
        header the configuration before it. No module is imported and no file read that the text names.

        Raises
        ------
        InputError
            If a value breaks the schema. An unknown name is no error but a remark.
        """


@dataclass
class OutgoingState:
    """What stays the same for all images of one scan; JSON-compatible.

    Attributes
    ----------
    remarks
        Of the configuration, for the image comments.
    classical_first
        Of the configuration.
    kept
        What the encoder of the images keeps from one call to the next.
    """

    remarks: tuple[str, ...] = ()
    classical_first: bool = False
    kept: dict[str, Any] = field(default_factory=dict)


class ImageEncoder(Protocol):
    """`recon.serve.outgoing.messages`."""

    def __call__(self, results: Sequence[Result], xml: str, options: RunOptions, state: OutgoingState) -> Iterator[bytes]:
        """Yield the MRD messages of images, in the order in which the scanner wants them.

        It is called once for each part of a scan that was reconstructed, with the images of that part alone.

        Parameters
        ----------
        results
            Images of the part, by encoding, with their record.
        xml
            ISMRMRD header of the scan.
        options
            How they were reconstructed; `mrd_pixels` says how pixels are stored.
        state
            Changed in place; the next call of the same scan gets it back.
        """
