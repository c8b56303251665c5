"""The record of the evidence: names that other programs rely on, and the worst verdict."""

import json
from dataclasses import fields
from pathlib import Path

from recon.evidence import record
from recon.evidence.record import ITEMS, ROLES, Certificate, Fallback, GuardReport, ImageEvidence
from tests.conftest import ROOT

GUARD = GuardReport("green", "inside", (), 0.4, 1.0)


def test_the_verdict_is_the_worst_one_and_red_after_a_fallback() -> None:
    def of(**items: object) -> str:
        return ImageEvidence("slice 0", {}, "refinegan", "sense", **items).verdict  # type: ignore[arg-type]

    certificate = Certificate("red", "", 9.0, 1.0, 9.0, (9.0,), (9.0,), 9.0, 4.0, 9.0, 1.0, 4.0, 1.0, "noise scan")
    assert of() == "green"
    assert of(guard=GUARD) == "green"
    assert of(guard=GuardReport("amber", "outside", ("16 coils",), None, None)) == "amber"
    assert of(guard=GUARD, certificate=certificate) == "red"
    assert of(guard=GUARD, fallback=Fallback("sense", "not finite")) == "red"


def test_the_record_is_json_with_every_item() -> None:
    made = ImageEvidence("slice 3", {"slice": 3}, "refinegan", "sense", guard=GUARD).record()
    assert {*ITEMS, "image", "index", "delivered", "companion", "fallback", "verdict"} == set(made)
    assert json.loads(json.dumps(made))["guard"]["distance"] == 0.4


def test_the_page_names_every_field_and_role() -> None:
    page = (Path(ROOT) / "docs" / "TRUST.md").read_text(encoding="utf-8")
    for name in (record.Certificate, record.Determined, record.HeldOutScore, record.Uncertainty, record.Stability, GuardReport):
        missing = [f.name for f in fields(name) if f.name not in ("verdict", "says") and f"`{f.name}`" not in page]
        assert not missing, f"{name.__name__}: {missing}"
    assert all(f"`{role}`" in page for role in ROLES)
