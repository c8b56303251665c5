"""What a client may ask for: a fixed list and a schema; all else is refused in words, and nothing is imported or opened."""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from dataclasses import replace

import pytest
import yaml

from kspace.errors import InputError
from models.systems import find_systems
from recon.methods import classical
from recon.methods.weights import bundled, read_card
from recon.run.options import RunOptions
from recon.serve import configs
from recon.serve.configs import resolve
from recon.serve.interface import ResolvedConfig
from tests.conftest import ROOT

OWN = ResolvedConfig(RunOptions(method="refinegan", refine="none", mrd_pixels="uint16"), classical_first=True)


def test_the_list_is_what_the_package_has() -> None:
    fitted = {name for name, path in bundled().items() if find_systems()[read_card(path).system]["raw"].generator.fitted}
    assert set(configs.GENERATORS) == set(bundled()) - fitted, "no operator waits for a fit to each slice"
    assert {"csgm", "iagan"} == fitted
    assert set(configs.GENERATORS) <= {yaml.safe_load(p.read_text())["system"] for p in (ROOT / "configs").glob("*.yaml")}
    assert set(configs.CLASSICAL_METHODS) == {*classical.METHODS, "rss"}
    assert set(configs.REMOTE) <= set(vars(RunOptions()))
    assert not set(configs.REMOTE) & {"weights", "noise", "device", "force", "format", "mrd_pixels", "complex"}


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, name) for name in configs.METHODS]
    + [("SENSE.xml", "sense"), ("refinegan.yaml", "refinegan"), ("simplefft", "rss")],
)
def test_names_choose_the_method(name: str, method: str) -> None:
    found = resolve(name, OWN)
    assert (found.options.method, found.purpose, found.remarks) == (method, "reconstruct", ())
    assert found.options.refine == ("none" if method == "refinegan" else None)
    assert found.classical_first
    assert found.options.mrd_pixels == "uint16"


@pytest.mark.parametrize("name", ["", "default", "default.xml", "openrecon", "\0"])
def test_names_that_ask_for_the_servers_own_method(name: str) -> None:
    assert resolve(name, OWN) == OWN


@pytest.mark.parametrize(
    ("name", "purpose"),
    [("null", "nothing"), ("savedataonly", "save"), ("default_measurement_dependencies.xml", "dependency")],
)
def test_reserved_names(name: str, purpose: str) -> None:
    found = resolve(name, OWN)
    assert (found.purpose, found.options, found.remarks) == (purpose, OWN.options, ())


@pytest.mark.parametrize("name", ["invertcontrast", "this", "../etc/passwd", "recon.commands.train", "x" * 1023, "a\x1b[2Jb"])
def test_unknown_names_get_the_own_method_with_a_remark_and_import_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError(f"{given} {named}")

    before = set(sys.modules)
    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    found = resolve(name, OWN)
    monkeypatch.undo()
    assert set(sys.modules) == before
    assert (found.options, found.purpose) == (OWN.options, "reconstruct")
    (remark,) = found.remarks
    assert "refinegan" in remark
    assert name[:40].replace("\x1b", "?") in remark
    assert remark.isprintable()
    assert len(remark) < 400


def test_xml_is_not_parsed() -> None:
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'
    found = resolve(bomb, OWN)
    assert found.options == OWN.options
    assert "XML" in found.remarks[0]


def test_parameters_are_those_of_the_command_line_under_any_spelling() -> None:
    text = {"config": "tv", "customconfig": "", "lamda": "0.01", "calibrationwidth": 20, "noWhiten": "true", "slices": "0,3-5"}
    for sent in ({"parameters": text}, text):
        found = resolve(json.dumps(sent), OWN)
        assert found.options == replace(
            OWN.options, method="tv", refine=None, lamda=0.01, calibration_width=20, no_whiten=True, slices="0,3-5"
        )
        assert (found.remarks, found.classical_first) == ((), True)
    assert not resolve('{"classical-first": "0"}', OWN).classical_first
    assert resolve('{"customconfig": "sense", "config": "dagan"}', OWN).options.method == "sense"
    assert resolve('{"config": "savedataonly"}', OWN).purpose == "save"
    assert resolve("{}", OWN) == OWN


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"weights": "/etc/passwd"}', "no parameter 'weights'"),
        ('{"maps": "/etc/passwd"}', "espirit or jsense"),
        ('{"method": "os"}', "no method 'os'"),
        ('{"method": ["sense"]}', "expected one value"),
        ('{"config": {"a": 1}}', "expected a name"),
        ('{"virtual_coils": true}', "virtual_coils"),
        ('{"virtual_coils": 100000}', "1 to 4096"),
        ('{"encoding": 1.5}', "encoding"),
        ('{"refine": "more"}', "refine"),
        ('{"config": "sense", "refine": "stack"}', "sense is no generator"),
        ('{"lamda": 0.1}', "refinegan has no regularisation weight"),
        ('{"method": "tv", "lamda": 1e999}', "finite"),
        ('{"method": "tv", "lamda": -1}', "not negative"),
        ('{"lamda": NaN}', "holds NaN"),
        ('{"conjugate": "perhaps"}', "true or false"),
        ('{"parameters": []}', "no JSON object"),
        ('{"parameters": ', "not JSON"),
        ('{"a":' * 20000, "at most 65536 bytes"),
        ('{"a":' * 12000, "not JSON"),
        ("{" + " " * 2**16 + "}", "at most 65536 bytes"),
    ],
)
def test_what_breaks_the_schema_is_refused_in_one_line(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        resolve(text, OWN)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
