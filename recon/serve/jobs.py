"""What a worker process does with a scan: begin it, reconstruct a part of it, finish it, and keep its raw data.

A job is a dictionary of JSON types and needs nothing of the jobs before it, so that any worker can do it: what was received is
on the disk, as the recorded stream.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kspace.errors import InputError
from kspace.io.atomic import atomic_write
from kspace.io.checksums import sha256
from kspace.io.mrd import open_scan
from kspace.io.mrd.header import MrdHeader, parse_header
from kspace.io.mrd.recording import to_ismrmrd
from recon import memory
from recon.methods.choose import Method
from recon.run.options import RunOptions
from recon.run.pipeline import Result, choose_method, reconstruct_source
from recon.serve.configs import resolve
from recon.serve.intake import Key, name_of
from recon.serve.interface import OutgoingState, ResolvedConfig
from recon.serve.options import from_json, to_json
from recon.serve.outgoing import frame_remarks, messages
from recon.serve.source import ServedSource, cut_out, replaced_noise
from recon.serve.store import enqueue

Job = Mapping[str, Any]
Tell = Callable[[str, str], None]
"""Sends a text to the operator: its level (INFO, WARNING, ERROR) and the text."""
Deliver = Callable[[Path], None]
"""Hands a file of MRD messages over, to be sent and removed."""

CLASSICAL = "sense"  # what is made where the method fails
WARM = 2  # methods that are kept loaded


@dataclass
class Workshop:
    """Does jobs. Keeps methods loaded from one job to the next.

    Attributes
    ----------
    defaults
        The server's own configuration.
    noise_folder
        Where noise scans of their own are kept.
    tell, deliver
        Where texts and images go.
    store_folder
        Spool of the DICOM archive; None where there is none.
    """

    defaults: ResolvedConfig
    noise_folder: Path
    tell: Tell
    deliver: Deliver
    store_folder: Path | None = None
    _methods: dict[str, Method] = field(default_factory=dict)

    def do(self, job: Job) -> dict[str, Any]:
        """Do a job.

        Raises
        ------
        InputError
            If what the client sent cannot be used.
        """
        return {"begin": self._begin, "part": self._part, "finish": self._finish, "keep": keep}[job["kind"]](job)

    def method(self, options: RunOptions) -> Method:
        """The method of `options`, loaded when it is first asked for."""
        name = json.dumps(to_json(options), sort_keys=True)
        if name not in self._methods:
            if len(self._methods) >= WARM:
                self._methods.pop(next(iter(self._methods)))
            self._methods[name] = choose_method(options)
        return self._methods[name]

    def _begin(self, job: Job) -> dict[str, Any]:
        """Read configuration and header, so that what cannot be used is refused before the scan has been acquired."""
        config = self.defaults if job["config"] is None else resolve(job["config"], self.defaults)
        if job["parameters"] is not None:
            config = resolve(job["parameters"], config)
        for remark in config.remarks:
            self.tell("ERROR", remark)
        begun: dict[str, Any] = {
            "purpose": config.purpose,
            "options": to_json(config.options),
            "state": asdict(OutgoingState(tuple(config.remarks), config.classical_first)),
            "streaming": False,
            "n_averages": 1,
        }
        header = parse_header(job["xml"], "the MRD header")
        for line in header.warnings:
            self.tell("WARNING", line)
        if config.purpose != "reconstruct":
            return begun
        method = self.method(config.options)
        self._say_dependencies(header)
        limits = [e.limits["average"].maximum + 1 for e in header.encodings if "average" in e.limits]
        begun["n_averages"] = max([1, *limits])
        # A DICOM series has one scale and one numbering, so an archive gets the scan as a whole.
        begun["streaming"] = self.store_folder is None and not needs_whole_scan(method, config.options)
        return begun

    def _say_dependencies(self, header: MrdHeader) -> None:
        for name in header.dependencies:
            if not noise_file(self.noise_folder, name).exists():
                self.tell("WARNING", f"measurement {name}, which this one depends on, was not received: its noise is not used")

    def _part(self, job: Job) -> dict[str, Any]:
        """Images whose last line has arrived."""
        keys = [_key(key) for key in job["keys"]]
        with cut_out(Path(job["stream"]), job["xml"], job["ranges"], keys) as source:
            if not set(keys) <= set(source.all_images()):
                raise InputError("not complete yet", "the images", None)  # the end of the scan will tell
            state = _state(job)
            made = self._reconstruct(source, job, state)
        done = {name_of(key): digest for key, digest in source.fingerprints.items()}
        return {"fingerprints": done, "state": asdict(state), "fallbacks": made.n_fallbacks}

    def _finish(self, job: Job) -> dict[str, Any]:
        """The ISMRMRD file of the whole scan, and the images that were not reconstructed before."""
        stream, file = Path(job["stream"]), Path(job["file"])
        warnings = to_ismrmrd(stream, file, job["n_bytes"])
        for line in warnings:
            self.tell("WARNING", line)
        if job["purpose"] == "dependency":
            return self._keep_noise(job, file) | {"warnings": list(warnings)}
        state, sent = _state(job), {_key(name): digest for name, digest in job["sent"].items()}
        made = Made()
        if job["purpose"] == "reconstruct":
            whole = ServedSource(file, stream, None, whole=True)
            left = {key for key in whole.all_images() if key not in sent}
            if left or not sent:
                made += self._reconstruct(ServedSource(file, stream, left, whole=True), job, state)
            changed = {key for key in sent if key in whole.all_images() and _changed(whole, key, sent[key])}
            if changed:
                self.tell("WARNING", f"readouts came after their image was sent: {len(changed)} images are sent again")
                made += self._reconstruct(ServedSource(file, stream, changed, whole=True), job, state)
            for line in frame_remarks(state):
                self.tell("WARNING", line)
            if sent and not left and not changed:
                for line in whole.warnings:
                    self.tell("WARNING", line)
        n_images = made.n_images + len(sent)
        return {"n_images": n_images, "fallbacks": made.n_fallbacks, "state": asdict(state), "warnings": list(warnings)}

    def _keep_noise(self, job: Job, file: Path) -> dict[str, Any]:
        header = parse_header(job["xml"], "the MRD header")
        name = header.study.get("measurementID")
        if name is None:
            raise InputError("no measurementID, so no scan can refer to it", "the MRD header", "send the noise with the scan")
        from kspace.io.mrd import read_noise

        noise = read_noise(file)  # what cannot be used later is refused now
        kept = noise_file(self.noise_folder, str(name))
        with atomic_write(kept) as beside:
            beside.write_bytes(file.read_bytes())
        self.tell("INFO", f"noise scan of measurement {name} kept ({noise.n_samples} samples)")
        return {"n_images": 0, "noise": str(kept)}

    def _reconstruct(self, source: ServedSource, job: Job, state: OutgoingState) -> Made:
        """Images of a source, delivered. Where the method fails, the classical ones."""
        options = from_json(job["options"])
        wanted = options.noise
        header = parse_header(job["xml"], "the MRD header")
        kept = [noise_file(self.noise_folder, name) for name in header.dependencies]
        noise = replaced_noise(source, next((path for path in kept if path.exists()), None), wanted)
        options = replace(options, noise=noise)
        instead = bool(job["classical"])
        if instead:
            options = classical(options)
        started = time.perf_counter()
        try:
            results = self._results(source, options)
        except InputError as error:
            if self.method(options).generator is None:
                raise
            self.tell("ERROR", f"{options.method} failed ({error}): the classical image instead")
            state.remarks = (*state.remarks, f"{options.method} failed, {CLASSICAL} instead")
            instead, options = True, classical(options)
            results = self._results(source, options)
        with self._outgoing(Path(job["out"])) as path, path.open("wb") as out:
            for message in messages(results, job["xml"], options, state):
                out.write(message)
        if self.store_folder is not None:
            self._store(results, self.store_folder)
        names = _names(results)
        self.tell("INFO", f"{names} by {options.method} in {time.perf_counter() - started:.1f} s")
        memory.release()
        n_images = sum(len(result.images) for result in results)
        return Made(n_images, n_images if instead else sum(len(result.fallbacks) for result in results))

    def _store(self, results: Sequence[Result], folder: Path) -> None:
        """Hand the images to the archive. The client has them already: a full disk costs no more than the archive's."""
        try:
            enqueue(results, folder)
        except (OSError, InputError) as error:
            self.tell("ERROR", f"the images are not sent to the archive ({error})")

    def _results(self, source: ServedSource, options: RunOptions) -> list[Result]:
        return reconstruct_source(source, self.method(options), options, lambda line: self.tell("WARNING", line), False)

    @contextmanager
    def _outgoing(self, base: Path) -> Iterator[Path]:
        path = base.with_name(f"{base.name}.{time.monotonic_ns()}.part")
        try:
            yield path
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self.deliver(path)


@dataclass(frozen=True)
class Made:
    """How many images were delivered.

    Attributes
    ----------
    n_images
        All of them.
    n_fallbacks
        Classical images in place of those of the method that was asked for: its evidence was against it, or it failed.
    """

    n_images: int = 0
    n_fallbacks: int = 0

    def __add__(self, other: Made) -> Made:
        return Made(self.n_images + other.n_images, self.n_fallbacks + other.n_fallbacks)


def keep(job: Job) -> dict[str, Any]:
    """Check the ISMRMRD file against the stream, write the record with both checksums, and remove the stream.

    The stream stays where it holds more than the file does.
    """
    stream, file = Path(job["stream"]), Path(job["file"])
    record = {name: job[name] for name in ("outcome", "config", "parameters", "client", "n_readouts", "warnings", "started")}
    whole = file.exists() and _same_readouts(file, int(job["n_readouts"]))
    record |= {"stream_sha256": sha256(stream), "stream_bytes": stream.stat().st_size}
    if whole:
        record |= {"file": file.name, "file_sha256": sha256(file), "file_bytes": file.stat().st_size}
    removed = whole and not job["more"]
    with atomic_write(Path(job["record"])) as beside:
        beside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if removed:
        stream.unlink()
    return {"file": str(file if whole else stream)}


def needs_whole_scan(method: Method, options: RunOptions) -> bool:
    """Whether an image of this method depends on more of the scan than its own readouts."""
    from recon.methods.stack import Stack

    selection = (options.slices, options.repetitions, options.encoding)
    return isinstance(method.reconstruct, Stack) or options.incomplete or any(chosen is not None for chosen in selection)


def classical(options: RunOptions) -> RunOptions:
    """The same options for the classical image."""
    return replace(options, method=CLASSICAL, weights=None, refine=None, lamda=None, tolerance=None)


def noise_file(folder: Path, measurement: str) -> Path:
    """Where the noise scan of a measurement is kept. No name that a peer sends leads out of the folder."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", measurement).lstrip(".")[:64]
    return folder / f"{plain}-{hashlib.sha256(measurement.encode()).hexdigest()[:12]}.h5"


def _same_readouts(file: Path, n_readouts: int) -> bool:
    try:
        return open_scan(file).n_readouts == n_readouts
    except InputError:
        return False


def _changed(source: ServedSource, key: Key, digest: str) -> bool:
    encoding, contrast, set_, phase, repetition, place = key
    from kspace.container import ImageIndex

    source.load(encoding, ImageIndex(contrast, set_, phase, repetition, place))
    return source.fingerprints[key] != digest


def _state(job: Job) -> OutgoingState:
    state = OutgoingState(**job["state"])
    state.remarks = tuple(state.remarks)
    return state


def _names(results: Sequence[Result]) -> str:
    names = list(dict.fromkeys(image.header.index.name for result in results for image in result.images))
    return names[0] if len(names) == 1 else f"{len(names)} images"


def _key(name: Sequence[int] | str) -> Key:
    parts = name.split(",") if isinstance(name, str) else name
    encoding, contrast, set_, phase, repetition, place = (int(part) for part in parts)
    return encoding, contrast, set_, phase, repetition, place
