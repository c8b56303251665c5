"""The JSON record of a run: method, parameters, versions, checksum, sampling, timings, warnings, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kspace.container import Image
from recon.methods.choose import Method
from recon.output.export import RunRecord
from recon.run.adaptation import as_adapted
from recon.run.delivery import replaced
from recon.run.input import Source
from recon.run.log import Log
from recon.run.options import RunOptions
from recon.run.provenance import provenance
from recon.versions import versions


def run_record(
    source: Source, options: RunOptions, formats: Sequence[str], method: Method, images: Sequence[Image], log: Log
) -> RunRecord:
    """The record of the images of one encoding, written in `formats`."""
    with log.step("checksum"):
        sha256 = source.sha256()
    parameters = {name: value for name, value in vars(options).items() if name != "force"}
    parameters = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
    parameters["format"] = ",".join(formats)
    header = images[0].header if images else None
    with log.step("checksum"):
        origin = (
            {}
            if header is None
            else provenance(
                source.path, sha256, as_adapted(options, log), method, header.encoding, images, log.masks, log.thresholds
            )
        )
    fallen = replaced(log.evidence)
    # Only where no generated image is left is the series a classical one; else each image says what it is.
    classical = bool(fallen) and len(fallen) == len(log.evidence)
    name = fallen[0].delivered if classical else method.name
    described = f"{name} reconstruction in place of {method.name}" if classical else method.description
    details = [f"{described} of {source.kind} raw data", *(str(r["says"]) for r in log.refinement if not classical)]
    if fallen and not classical:
        names = ", ".join(one.image for one in fallen)
        details.append(f"{fallen[0].delivered} in place of {method.name} for {names}")
    return RunRecord(
        method=name,
        generated=method.generator is not None and not classical,
        description="; ".join(details),
        parameters=parameters | method.details,
        versions=versions() | {k: v for k, v in method.details.items() if k == "weights sha256"},
        source=str(source.path),
        source_sha256=sha256,
        mask={"images": log.masks},
        seconds=log.seconds,
        warnings=log.warnings,
        provenance=origin,
        extra={
            "noise": log.noise,
            "refinement": log.refinement,
            "evidence": [one.record() for one in log.evidence],
            "fallback": [{"image": one.image, **vars(one.fallback)} for one in fallen if one.fallback is not None] or None,
        }
        | (
            {}
            if header is None
            else {
                "steps": header.steps,
                "coils": header.coils.numbers,
                "dropped_coils": header.coils.dropped_names,
                "odd_even_phase": _phases(images, "odd_even_phase"),
                "shot_phase": _phases(images, "shot_phase"),
                "encoded_matrix": header.encoded_matrix,
                "recon_matrix": header.recon_matrix,
            }
        ),
    )


def _phases(images: Sequence[Image], name: str) -> list[dict[str, object]] | None:
    """What was corrected of echo-planar images between forward and reversed readouts, or between echo trains."""
    headers = {image.header.index: image.header for image in images}
    found = [(index.name, header.study.get(name)) for index, header in headers.items()]
    return [{"image": name, "phases": phases} for name, phases in found if phases] or None
