"""Provenance of the images of a run: checksums of what went in and of what came out, code, seed, mask, thresholds, machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kspace import coils
from kspace.container import Image
from kspace.io.checksums import sha256
from recon.methods.choose import Method
from recon.run.options import RunOptions
from recon.versions import code

SCHEMA = 1
OF_THE_OUTPUT = ("format", "complex", "mrd_pixels", "save_weights", "strict", "force")
"""Options that change how images are written, not the images."""


def provenance(
    source: Path,
    source_sha256: str,
    options: RunOptions,
    method: Method,
    encoding: int,
    images: Sequence[Image],
    masks: Sequence[Mapping[str, object]],
    thresholds: Mapping[str, object],
) -> dict[str, Any]:
    """What a record says of the origin of its images; `recon.run.replay` reads it.

    Parameters
    ----------
    source, source_sha256
        Raw file and its checksum.
    options
        Of the run.
    method
        As chosen.
    encoding
        Of the raw file.
    images
        Finished images.
    masks
        Digest of the sampling of each image.
    thresholds
        Of the evidence, by item.

    Returns
    -------
    dict
        ``schema``; ``inputs``: what, path and sha256 of each file; ``configuration`` and its sha256; ``code``; ``seed``;
        ``mask_sha256``; ``thresholds``; ``machine``; ``pixels``: name, role and sha256 of each image.
    """
    configuration = configuration_of(options)
    return {
        "schema": SCHEMA,
        "inputs": [
            {"what": "raw file", "path": str(source.absolute()), "sha256": source_sha256},
            *_weights(options, method),
            *_other_files(options),
        ],
        "configuration": configuration,
        "configuration_sha256": checksum(configuration),
        "code": code(),
        "seed": getattr(method.reconstruct, "seed", None),
        "mask_sha256": _mask_checksum(masks),
        "thresholds": dict(thresholds),
        "machine": machine(method),
        "encoding": encoding,
        "pixels": pixel_checksums(images),
    }


def configuration_of(options: RunOptions) -> dict[str, Any]:
    """The options that determine the images, as JSON types; paths absolute."""
    found = {name: value for name, value in asdict(options).items() if name not in OF_THE_OUTPUT}
    if options.maps not in coils.METHODS:
        found["maps"] = str(Path(options.maps).absolute())
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in found.items()}


def checksum(value: object) -> str:
    """SHA-256 of a value of JSON types: of its text with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def pixel_checksums(images: Sequence[Image]) -> list[dict[str, str]]:
    """``image``, ``role`` and ``sha256`` of images ``(z y x)``: of type, shape and little-endian values, before any export."""
    return [{"image": i.header.index.name, "role": i.role, "sha256": _pixel_checksum(i)} for i in images]


def _pixel_checksum(image: Image) -> str:
    values = np.ascontiguousarray(image.data.detach().resolve_conj().resolve_neg().cpu().numpy())
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    found = hashlib.sha256(f"{values.dtype.name} {values.shape}\n".encode())
    found.update(values.data)
    if image.release is not None:
        image.release()
    return found.hexdigest()


def machine(method: Method) -> dict[str, Any]:
    """What the rounding of the last digits depends on: device and its name, instruction set, threads,
    precision of networks."""
    place = _device(method)
    return {
        "device": place.type,
        "gpu": torch.cuda.get_device_name(place) if place.type == "cuda" else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "precision": method.details.get("precision", "fp32"),
    }


def _device(method: Method) -> torch.device:
    made = method.generator if method.generator is not None else method.reconstruct
    place = getattr(made, "device", torch.device("cpu"))
    return place if isinstance(place, torch.device) else torch.device(place)


def _weights(options: RunOptions, method: Method) -> Iterator[dict[str, str | None]]:
    if method.generator is not None:
        # Of the values, as the card has it: a file of weights is checked against it whenever it is read.
        path = None if options.weights is None else str(options.weights.absolute())
        yield {"what": "weights", "path": path, "name": method.generator.name, "sha256": method.generator.sha256}


def _other_files(options: RunOptions) -> Iterator[dict[str, str]]:
    maps = None if options.maps in coils.METHODS else Path(options.maps)
    for what, path in (("coil maps", maps), ("noise scan", options.noise)):
        if path is not None:
            yield {"what": what, "path": str(path.absolute()), "sha256": sha256(path)}


def _mask_checksum(masks: Sequence[Mapping[str, object]]) -> str:
    """The digest that all images share, or the SHA-256 of the list of their digests."""
    digests = [str(mask["digest"]) for mask in masks]
    return digests[0] if len(set(digests)) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
