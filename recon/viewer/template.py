"""Pages in one file: templates, scripts and styles joined, and data that cannot inject markup."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

OWN = __package__


def asset(name: str, package: str = OWN) -> str:
    """Text of a file in the folder ``assets`` of a package."""
    return files(package).joinpath("assets", name).read_text(encoding="utf-8")


def page(body: str, package: str = OWN) -> str:
    """Template of a whole page, whose body is that of an asset: head with its policy, style and title."""
    return asset("page.html").replace("{{body}}", asset(body, package))


def fill(template: str, parts: Mapping[str, str]) -> str:
    """`template` with each ``{{name}}`` replaced by that part."""
    # Not str.replace one after the other: a method may be called "{{blocks}}".
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def in_script(value: object) -> str:
    """JSON that may stand in a script element: no ``<`` in it, NaN as null, infinity as text."""
    dumped = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return dumped.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def facts(kind: str, entries: Sequence[tuple[str, str]]) -> str:
    """Definition list of terms and HTML, which the caller has escaped; entries without text are left out."""
    items = "".join(f"<div><dt>{html.escape(term)}</dt><dd>{text}</dd></div>" for term, text in entries if text)
    return f'<dl class="facts {kind}">{items}</dl>'
