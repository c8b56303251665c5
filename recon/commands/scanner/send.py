"""``recon send``: a scan to an MRD server, and its images into a file."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kspace.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from kspace.io.mrd.file_stream import FileStream
    from kspace.io.mrd.image_file import MrdImageFile
    from kspace.io.mrd.stream import Message

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TEXT_LENGTH = 2000
NO_IMAGES = ("null", "savedataonly", "default_measurement_dependencies.xml")  # configurations that ask for none


def send(
    scan: Path,
    address: str,
    output: Path = Path("images.h5"),
    config: str = "default",
    parameters: str | None = None,
    waveforms: bool = False,
    timeout: float = 600.0,
    total_timeout: float = 14400.0,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    force: bool = False,
) -> int:
    """Stream a scan to an MRD server, and write the images that it sends back.

    Parameters
    ----------
    scan
        ISMRMRD file; it is opened read-only, and read as it is sent.
    address
        Server: HOST:PORT.
    output
        MRD file for the images; it appears when the server has sent all of them.
    config
        Configuration to ask for: a name, or a JSON text, or a file of one (.json).
    parameters
        JSON text, or a file of one (.json), that follows the header.
    waveforms
        Send the waveforms of the file too.
    timeout
        Seconds without any byte from or to the server, after which the session is given up.
    total_timeout
        Seconds after which it is given up in any case.
    tls_ca
        Certificate authorities (PEM) of the server: connect by TLS.
    tls_cert
        Certificate (PEM) to show to the server.
    tls_key
        Its private key (PEM), where it is not in the same file.
    force
        Overwrite an existing output.

    Returns
    -------
    int
        0, or 2 where the server sent no image although one was asked for.
    """
    from kspace.io.mrd.file_stream import open_file_stream
    from recon.commands.scanner.client import Exchange, connect, parse_address, tls_context

    server = parse_address(address)
    _check_output(output, scan, force)
    configuration, follows = _content(config), None if parameters is None else _content(parameters)
    if (tls_cert or tls_key) and tls_ca is None:
        raise InputError("a certificate is for TLS", "--tls-cert and --tls-key", "give --tls-ca FILE")
    tls = None if tls_ca is None else tls_context(tls_ca, tls_cert, tls_key)
    with open_file_stream(scan) as stream, ExitStack() as stack:
        connection = connect(server, tls=tls)
        received = Received(output, stream.xml, len(stream.headers), stack)
        sent = _outgoing(stream, configuration, follows, waveforms, received)
        complete = Exchange(connection, sent, received.take, server, timeout, total_timeout).run()
        received.end(complete)
    if not received.n_images:
        if config.lower() in NO_IMAGES:
            return 0
        raise InputError(f"{server} sent no image", fix="see its messages above, and its log")
    print(output)
    return 0


class Received:
    """What came from the server: images go into a file, texts to the terminal.

    Parameters
    ----------
    output
        File that takes its name when `stack` is left without an exception; none is made without images.
    xml
        ISMRMRD header of the scan, stored with the images.
    n_readouts
        Number of readouts to send, for the progress bar.
    stack
        Holds the file and the bar.
    """

    def __init__(self, output: Path, xml: str, n_readouts: int, stack: ExitStack) -> None:
        from tqdm import tqdm

        self._output, self._xml, self._stack = output, xml, stack
        self._file: MrdImageFile | None = None
        self._levels: Counter[str] = Counter()
        self.n_images = 0
        bar = tqdm(total=n_readouts, desc=output.stem, unit="readout", disable=None, leave=False)
        self.progress: tqdm[None] = stack.enter_context(bar)

    def take(self, message: Message) -> None:
        """Store an image, print a text."""
        from kspace.io.mrd.image_file import new_image_file
        from kspace.io.mrd.stream import StreamImage, StreamText

        if isinstance(message, StreamImage):
            if self._file is None:
                self._file = self._stack.enter_context(new_image_file(self._output, self._xml))
            self._file.append(message.head, message.attributes, message.pixels)
            self.n_images += 1
            self.progress.set_postfix(images=self.n_images, refresh=False)
        elif isinstance(message, StreamText):
            level, text = split_level(message.text)
            self._levels[level] += 1
            if level != "DEBUG" or logging.getLogger().isEnabledFor(logging.INFO):
                self._say(f"{level.lower()}: {text}")
        else:
            self._say(f"warning: the server sent a {type(message).__name__}, which was left out")

    def end(self, complete: bool) -> None:
        """Say what the server did not take."""
        if not complete:
            self._say("warning: the server ended the session before it had taken the whole scan")

    def _say(self, line: str) -> None:
        self.progress.write(line, file=sys.stderr)


def split_level(text: str) -> tuple[str, str]:
    """Level of a server's text (its first word where that is one, else INFO), and the rest without control characters."""
    plain = "".join(c if c.isprintable() else " " for c in text).strip()[:TEXT_LENGTH]
    first, _, rest = plain.partition(" ")
    word = first.strip("[]:").upper()
    return (word, rest.strip()) if word in LEVELS else ("INFO", plain)


def _outgoing(stream: FileStream, config: str, parameters: str | None, waveforms: bool, received: Received) -> Iterator[bytes]:
    """Messages of the session in the order of the reference client."""
    from kspace.io.mrd import sending
    from kspace.io.mrd.stream import StreamReadout

    yield sending.config_text(config) if config.startswith("{") else sending.config_file(config)
    yield sending.header(stream.xml)
    if parameters is not None:
        yield sending.text(parameters)
    for message in stream.messages() if waveforms else stream.readouts():
        if isinstance(message, StreamReadout):
            yield sending.readout(message)
            received.progress.update()
        else:
            yield sending.waveform(message)
    yield sending.close()


def _content(given: str) -> str:
    """A name or a JSON text as given, or the content of a JSON file."""
    path = Path(given)
    if given.lstrip().startswith("{") or path.suffix != ".json":
        if len(given.encode()) > 1023 and not given.lstrip().startswith("{"):
            raise InputError("the name is longer than the protocol's 1023 bytes", "--config", "give a JSON text")
        return given.strip()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8'})", path, "give a JSON file"
        ) from error
    if not text.startswith("{"):
        raise InputError("no JSON object", path, "give a JSON file")
    return text


def _check_output(output: Path, scan: Path, force: bool) -> None:
    """Refuse before the scan is sent what would fail after it."""
    if output.exists() and scan.exists() and output.samefile(scan):
        raise InputError("the images would overwrite the scan", output, "choose another -o")
    if output.is_dir():
        raise InputError("this is a folder", output, "give a file with -o")
    if output.exists() and not force:
        raise InputError("exists already", output, "give --force to replace it, or another -o")
    if not output.absolute().parent.is_dir():
        raise InputError("the folder does not exist", output.absolute().parent, "make it, or choose another -o")
