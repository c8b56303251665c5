"""The page: template, style, scripts, data and images put into one file that needs nothing else."""

from __future__ import annotations

import html
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from recon.report.comparison import ComparisonResults, as_record
from recon.report.wording import as_json
from recon.viewer import selection
from recon.viewer.template import asset, facts, fill, in_script, page

SHARED = "recon.viewer"
SCRIPTS = (
    ("base.js", SHARED),
    ("table.js", __package__),
    ("plots.js", __package__),
    *((name, SHARED) for name in ("planes.js", "panels.js", "viewer.js", "input.js")),
    ("start.js", __package__),
)
"""Joined in this order into one scope."""
FAILURE = ("dataset", "volume", "slice", "mask", "method", "reason")
"""What the page tells of a slice on which a method failed."""


def build(comparison: ComparisonResults, megabytes: float) -> str:
    """The whole page.

    Parameters
    ----------
    comparison
        What to show.
    megabytes
        Size (10^6 bytes) that the page has at most; images that do not fit are left out, and the page says how many.
    """
    found = selection.volumes(comparison.images)
    parts = {
        "title": html.escape(f"recon compare: {', '.join(comparison.datasets) or 'no data yet'}"),
        "head": _head(comparison),
        "style": asset("page.css"),
        "scripts": "\n".join(asset(*one) for one in SCRIPTS),
        "plotly": _plotly(),
        "data": in_script(_data(comparison)),
    }
    empty = selection.PageImages(selection.BITS[-1], n_total=sum(len(v.slices) for v in found))
    template = page("template.html", __package__)
    base = len(fill(template, {**parts, "images": in_script(selection.describe(found, empty)), "blocks": ""}).encode())
    held = selection.hold(found, max(0, int(megabytes * 1e6) - base))
    blocks = "".join(selection.wrap(key, content) for key, content in held.blocks.items())
    return fill(template, {**parts, "images": in_script(selection.describe(found, held)), "blocks": blocks})


def _plotly() -> str:
    # Imported here: only the page needs it.
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")


def _data(comparison: ComparisonResults) -> dict[str, Any]:
    about = comparison.about
    parts = ("masks", "metric", "tuning", "convergence", "statistics", "held_out")
    return {
        **{name: about.get(name) or [] for name in parts},
        "datasets": comparison.datasets,
        "methods": comparison.methods,
        "metrics": as_json(comparison.metrics),
        "rows": _columnar([as_record(r) for r in comparison.results]),
        "failures": _columnar([{name: getattr(r, name) for name in FAILURE} for r in comparison.failures]),
    }


def _columnar(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def _head(comparison: ComparisonResults) -> str:
    """What was compared, on what, by which machine, and the verdict: readable without scripts too."""
    about = comparison.about
    methods, n_volumes = comparison.methods, len({(r.dataset, r.volume) for r in comparison.results})
    scans = _scans(about)
    sizes = [(n_volumes, "volume", "")] * bool(n_volumes or not scans) + [(len(scans), "scan", " without truth")] * bool(scans)
    subject = " and ".join(_count(n, what) + more for n, what, more in sizes)
    heading = f"{_count(len(methods), 'method')} on {subject}"
    lines = [f"<h1>{html.escape(heading)}</h1>"]
    if not about.get("finished", False):
        lines.append('<p class="note warning">Not finished: the figures below are those of the part done.</p>')
    verdict = " ".join(about.get("verdict") or ["No verdict: too little has been measured."])
    lines.append(f'<p class="verdict">{html.escape(verdict)}</p>')
    lines.append(facts("facts", _facts(comparison)))
    lines.append(f"<details><summary>How it was made</summary>{facts('details', _making(about))}</details>")
    return "\n".join(lines)


def _facts(comparison: ComparisonResults) -> list[tuple[str, str]]:
    about, machine = comparison.about, comparison.about.get("machine") or {}
    processor = f"{machine.get('cpu') or 'processor unknown'}, {_count(machine.get('threads') or 1, 'thread')}"
    runs_on = f"{processor}; {machine.get('gpu') or 'no GPU'}"
    failed = Counter(row.method for row in comparison.failures)
    failures = ", ".join(f"{name}: {_count(n, 'slice')}" for name, n in failed.items())
    scans = [f"<b>{html.escape(name)}</b>: without truth, judged by held-out samples" for name in _scans(about)]
    masks = ", ".join(about.get("masks") or []) + ", drawn once per volume, the same for every method"
    return [
        ("Data", "<br>".join([*(_data_line(d) for d in about.get("data", [])), *scans])),
        ("Methods", html.escape(", ".join(str(m["label"]) for m in comparison.methods))),
        ("Masks", html.escape(masks) if comparison.results or not scans else ""),
        ("Coil maps", html.escape(str(about.get("maps") or ""))),
        ("Weights of classical methods", html.escape(_tuning(about))),
        ("Failed", html.escape(failures) if failures else "no slice"),
        ("Machine", html.escape(runs_on)),
    ]


def _scans(about: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(str(entry["scan"]) for entry in about.get("held_out") or []))


def _making(about: dict[str, Any]) -> list[tuple[str, str]]:
    versions = {"recon": about.get("recon"), **((about.get("machine") or {}).get("versions") or {})}
    # The first word is the path of the program.
    command = shlex.join(["recon", *map(str, (about.get("command") or [])[1:])])
    absent = (f"{name}: {why}" for name, why in (about.get("not_measured") or {}).items())
    return [
        ("Command", f"<code>{html.escape(command)}</code>"),
        ("Begun", html.escape(str(about.get("created") or ""))),
        ("Versions", html.escape(", ".join(f"{name} {version}" for name, version in versions.items() if version))),
        ("Not measured", "<br>".join(map(html.escape, absent))),
    ]


def _data_line(entry: dict[str, Any]) -> str:
    size = f"{_count(len(entry.get('volumes') or []), 'volume')}, {_count(int(entry.get('n_slices') or 0), 'slice')}"
    origin = "simulated k-space" if entry.get("simulated") else "measured k-space"
    origin += ", truth without noise" if entry.get("noise_free") else ""
    credit = f"; {entry['attribution']}" if entry.get("attribution") else ""
    name = html.escape(str(entry.get("dataset") or entry.get("path") or ""))
    return f"<b>{name}</b>: {html.escape(f'{size}; {origin}{credit}')}"


def _tuning(about: dict[str, Any]) -> str:
    tuned = about.get("tuning") or []
    if not tuned:
        return "default weights, not tuned"
    names = ", ".join(dict.fromkeys(str(t["method"]) for t in tuned))
    return f"{names} tuned by {about.get('metric') or tuned[0].get('metric')} for each mask, on slices that are not reported"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
