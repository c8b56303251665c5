"""``scan.html``: the images of a run and their evidence on one page that opens offline, for a person."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recon.output.scan_images import is_resampled, scan_images
from recon.output.series import CLASSICAL, NOTICE, RunRecord, Series, origin, plain
from recon.viewer import selection
from recon.viewer.template import asset, facts, fill, in_script, page

MEGABYTES = 25.0
"""Size (10^6 bytes) that a page has at most: fewer bits first, then fewer slices, and the page says so."""
SCRIPTS = ("base.js", "planes.js", "panels.js", "viewer.js", "input.js", "scan.js")
QUESTIONS = {
    "certificate": ("agreement", "Does the image agree with the acquired samples?"),
    "determined": ("determined by data", "How much of the image do the data not determine?"),
    "held_out": ("held-out samples", "Does it predict acquired samples that it did not use?"),
    "uncertainty": ("uncertainty", "How far may pixel values be off?"),
    "stability": ("stability", "How much does noise in the samples change the image?"),
    "guard": ("training domain", "Is the scan like those that the network was trained on?"),
}
"""Item of the evidence: its short name, and the question that it answers."""
WORST_FIRST = ("red", "amber", "green")
IN_WORDS = {
    "green": "No objection was found. That is not a proof that the image is right.",
    "amber": "Caution: at least one check needs a look.",
    "red": "Objection: at least one check speaks against the generated image.",
}
LIMITS = (
    "Nothing here proves an image. Green means that no check objected.",
    "Agreement with the acquired samples says nothing about samples that were not acquired: an object that lies only in what "
    "the data do not determine passes this check. The map of the prior shows where that is possible.",
    "The interval holds on average over pixels of volumes like those of the calibration, not for every pixel and not for a "
    "lesion; there is no guarantee outside of the domain that the card of the weights states.",
    "The classical image is not the truth: it has noise and aliasing of its own. The difference is no error map.",
    "The guard compares a few statistics with those of the training set. A scan may pass and still be unlike it.",
    "Pathology that is absent from the training data may be weakened or removed without any check noticing.",
)
LABELS = {
    "difference": "difference: main − classical",
    "prior": "prior: not determined by the data",
    "std": "uncertainty: half width of the interval",
}


def write_page(path: Path, series: Sequence[Series], record: RunRecord, megabytes: float = MEGABYTES) -> None:
    """Write the page of a run.

    Parameters
    ----------
    path
        New file.
    series
        All series of the run.
    record
        Its record; ``extra["evidence"]`` has one entry for each image, see `recon.evidence.record`.
    megabytes
        Size that the page has at most.
    """
    path.write_text(build(series, record, megabytes), encoding="utf-8")


def build(series: Sequence[Series], record: RunRecord, megabytes: float = MEGABYTES) -> str:
    """The page as text; see `write_page`."""
    evidence = [dict(one) for one in record.extra.get("evidence") or []]
    found = selection.volumes(scan_images(series, evidence))
    name = Path(record.source).name
    parts = {
        "title": html.escape(f"{record.method}: {name}"),
        "head": _head(series, record, evidence),
        "sections": "\n".join([_evidence(record, evidence), _limits(record), _origin(record)]),
        "style": asset("page.css") + asset("scan.css"),
        "scripts": "\n".join(asset(script) for script in SCRIPTS),
        "data": in_script(_data(series, record, evidence)),
    }
    empty = selection.PageImages(selection.BITS[-1], n_total=sum(len(v.slices) for v in found))
    template = page("scan.html")
    base = len(fill(template, {**parts, "images": in_script(selection.describe(found, empty)), "blocks": ""}).encode())
    held = selection.hold(found, max(0, int(megabytes * 1e6) - base))
    blocks = "".join(selection.wrap(key, content) for key, content in held.blocks.items())
    return fill(template, {**parts, "images": in_script(selection.describe(found, held)), "blocks": blocks})


def worst(verdicts: Sequence[str]) -> str:
    """The worst of some verdicts; green where there is none."""
    return next((verdict for verdict in WORST_FIRST if verdict in verdicts), "green")


def _head(series: Sequence[Series], record: RunRecord, evidence: Sequence[Mapping[str, Any]]) -> str:
    name = html.escape(Path(record.source).name or "unnamed scan")
    lines = [f"<h1>{html.escape(record.method)} image of {name}</h1>", _banner(evidence), _verdict(record, evidence)]
    lines.append(facts("", _facts(series, record, evidence)))
    if record.warnings:
        items = "".join(f"<li>{html.escape(warning)}</li>" for warning in record.warnings)
        lines.append(f'<div class="note warning"><b>Warnings of the run</b><ul>{items}</ul></div>')
    return "\n".join(line for line in lines if line)


def _banner(evidence: Sequence[Mapping[str, Any]]) -> str:
    """Which images are classical in place of generated ones, and why."""
    fallen: dict[tuple[str, str], list[str]] = {}
    for one in evidence:
        if fallback := one.get("fallback"):
            fallen.setdefault((str(fallback["delivered"]), str(fallback["reason"])), []).append(str(one.get("image")))
    if not fallen:
        return ""
    lines = [
        f"{html.escape(delivered)} in place of the generated image for {_few(images, len(evidence))}: {html.escape(reason)}."
        for (delivered, reason), images in fallen.items()
    ]
    return f'<p class="note stop" role="alert"><b>A classical image was delivered.</b> {"<br>".join(lines)}</p>'


def _verdict(record: RunRecord, evidence: Sequence[Mapping[str, Any]]) -> str:
    if not evidence:
        if not record.generated:
            return (
                '<p class="verdict">A classical reconstruction: no generator took part, so there is no evidence to weigh.</p>'
            )
        words = "No evidence was made for this generated image (--evidence none). Judge it as unverified."
        return f'<p class="verdict amber">{words}</p>'
    verdict = worst([str(one.get("verdict")) for one in evidence])
    return f'<p class="verdict {verdict}">{html.escape(IN_WORDS[verdict])}</p>'


def _facts(series: Sequence[Series], record: RunRecord, evidence: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    study = series[0].images[0].header.study
    patient = ", ".join(plain(str(study[key]), 64) for key in ("patientName", "patientID") if study.get(key))
    scan = ", ".join(plain(str(study[key]), 64) for key in ("protocolName", "studyDate", "systemModel") if study.get(key))
    rates = [float(m["acceleration"]) for m in record.mask.get("images", []) if m.get("acceleration")]
    spread = f"R = {min(rates):.2f}" + (f" to {max(rates):.2f}" if max(rates) - min(rates) >= 0.01 else "") if rates else ""
    n = sum(len(one.images) for one in series if one.role == "main")
    companion = next((str(one["companion"]) for one in evidence if one.get("companion")), "")
    companion = companion or next((one.role for one in series if one.role in CLASSICAL), "")
    remarks = []
    if any(is_resampled(image) for one in series for image in one.images):
        remarks.append("interpolated to square pixels on this page; the other files are not")
    if any(image.header.geometry.nominal for one in series for image in one.images):
        remarks.append("directions are nominal: left and right are unknown")
    listed = [
        ("Patient", patient),
        ("Scan", scan),
        ("Main image", f"{record.method}{', made by a trained generator' if record.generated else ''}"),
        ("Beside it", f"{companion}, classical, of the same samples" if companion else ""),
        ("Images", f"{n}; {spread}" if spread else str(n)),
        ("Remarks", "; ".join(remarks)),
        ("Notice", NOTICE),
    ]
    return [(term, html.escape(text)) for term, text in listed]


def _evidence(record: RunRecord, evidence: Sequence[Mapping[str, Any]]) -> str:
    if not evidence:
        body = '<p class="says">None.</p>'
    else:
        rows = [row for name in QUESTIONS if (row := _row(name, evidence))]
        head = "<thead><tr><th>Check</th><th>Verdict</th><th>What was found</th></tr></thead>"
        body = f'<table class="evidence">{head}<tbody>{"".join(rows)}</tbody></table>'
    return f'<section id="evidence" aria-labelledby="evidence-title"><h2 id="evidence-title">Evidence</h2>{body}</section>'


def _row(name: str, evidence: Sequence[Mapping[str, Any]]) -> str:
    """One check: the worst verdict over the images, and what is said of the first image that has it."""
    items = [(str(one.get("image")), one[name]) for one in evidence if one.get(name)]
    if not items:
        return ""
    counts = Counter(str(item["verdict"]) for _, item in items)
    verdict = worst(list(counts))
    image, item = next((image, item) for image, item in items if item["verdict"] == verdict)
    of = ""
    if len(evidence) > 1:
        others = ", ".join(f"{n} {v}" for v in WORST_FIRST if (n := counts[v]))
        of = f'<span class="of">{html.escape(image)}; of {len(items)} images: {others}</span>'
    return (
        f"<tr><th scope=row>{html.escape(QUESTIONS[name][1])}</th>"
        f'<td class="one"><span class="verdict-chip {verdict}">{verdict}</span></td>'
        f"<td>{html.escape(str(item['says']))}{of}</td></tr>"
    )


def _limits(record: RunRecord) -> str:
    said = LIMITS if record.generated or record.extra.get("evidence") else LIMITS[-1:]
    items = "".join(f"<li>{html.escape(text)}</li>" for text in (f"{NOTICE}.", *said))
    return (
        '<section id="limits" aria-labelledby="limits-title"><h2 id="limits-title">What these numbers do not say</h2>'
        f"<ul>{items}</ul></section>"
    )


def _origin(record: RunRecord) -> str:
    listed = [
        ("raw file", record.source),
        *origin(record).items(),
        ("versions", ", ".join(f"{name} {value}" for name, value in record.versions.items())),
    ]
    entries = [(term, html.escape(str(text))) for term, text in listed]
    again = '<p class="says">recon replay on the JSON record beside this page repeats the run and compares the pixels.</p>'
    return (
        '<section id="origin" aria-labelledby="origin-title"><h2 id="origin-title">Provenance</h2>'
        f"{facts('details', entries)}{again if record.provenance else ''}</section>"
    )


def _few(images: Sequence[str], total: int) -> str:
    if len(images) == total:
        return "all images" if total > 1 else "this image"
    return ", ".join(html.escape(image) for image in images[:4]) + (f" and {len(images) - 4} more" if len(images) > 4 else "")


def _data(series: Sequence[Series], record: RunRecord, evidence: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the scripts need beside the images; tables of a comparison, which the viewer looks at, are empty."""
    main = f"main: {record.method}" + (" (generated)" if record.generated else "")
    labels = {"main": main, **{one.role: f"{one.role} (classical)" for one in series if one.role in CLASSICAL}, **LABELS}
    roles = list(dict.fromkeys(one.role for one in series))
    nothing: dict[str, Any] = {"columns": [], "rows": []}
    return {
        "rows": nothing,
        "failures": nothing,
        "metrics": [],
        "methods": [{"name": role, "label": labels.get(role, role)} for role in roles],
        "evidence": [_for_script(one) for one in evidence],
    }


def _for_script(one: Mapping[str, Any]) -> dict[str, Any]:
    items = [{"name": QUESTIONS[name][0], "verdict": one[name]["verdict"]} for name in QUESTIONS if one.get(name)]
    fallback = one.get("fallback")
    main = f"main: {one.get('delivered')} ({'classical, in place of the generated image' if fallback else 'generated'})"
    return {"name": str(one.get("image")), "main": main, "items": items, "fallback": fallback["reason"] if fallback else None}
