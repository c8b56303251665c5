"""Deployment files: what can be checked of them without a container engine, a console or an init system."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kspace
from recon import cli
from recon.run.options import RunOptions
from recon.serve.configs import METHODS, resolve
from recon.serve.interface import ResolvedConfig
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
# Saved protocols name them: an id that was released is never renamed.
IDS = {"config", "classicalfirst"}
CHOICES = {"refinegan", "dagan", "gancs", "reconglgan", "sense", "grappa", "l1-wavelet", "tv", "rss", "savedataonly"}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    spec = importlib.util.spec_from_file_location("package", DEPLOY / "package.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def label(package: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = package.read_label()
    return found


def test_the_label_keeps_the_schema_of_openrecon(label: dict[str, Any]) -> None:
    assert set(label) == {"general", "reconstruction", "parameters"}
    general, reconstruction = label["general"], label["reconstruction"]
    assert {"name", "version", "vendor", "information", "id", "regulatory_information"} == set(general)
    assert re.fullmatch(r"\d+\.\d+\.\d+", general["version"])
    assert general["version"] == kspace.__version__
    assert all(isinstance(value, str) for value in general["regulatory_information"].values())
    assert {
        "device_trade_name", "production_identifier", "manufacturer_address", "made_in", "manufacture_date", "material_number",
        "gtin", "udi", "safety_advices", "special_operating_instructions", "additional_relevant_information",
    } == set(general["regulatory_information"])  # fmt: skip
    assert reconstruction["transfer_protocol"] == {"protocol": "ISMRMRD", "version": "1.4.1"}
    assert (reconstruction["port"], reconstruction["emitter"], reconstruction["injector"]) == (9002, "raw", "image")
    assert reconstruction["content_qualification_type"] == "RESEARCH"
    for name in ("can_process_adjustment_data", "can_use_gpu"):
        assert isinstance(reconstruction[name], bool)
    for name in ("min_count_required_gpus", "min_required_gpu_memory", "min_required_memory", "min_count_required_cpu_cores"):
        assert type(reconstruction[name]) is int
    assert len(label["parameters"]) <= 14
    for parameter in label["parameters"]:
        assert re.fullmatch("[A-Za-z0-9]+", parameter["id"])
        assert set(parameter) <= {"id", "label", "type", "values", "default", "information"}
        assert isinstance(parameter["label"]["en"], str)


def test_the_label_has_one_choice_whose_ids_the_server_knows(label: dict[str, Any]) -> None:
    (choice,) = (p for p in label["parameters"] if p["type"] == "choice")
    assert choice["id"] == "config"
    assert {parameter["id"] for parameter in label["parameters"]} == IDS
    assert {value["id"] for value in choice["values"]} >= CHOICES
    assert choice["default"] in CHOICES
    defaults = {parameter["id"]: parameter["default"] for parameter in label["parameters"]}
    for value in choice["values"]:
        assert isinstance(value["name"]["en"], str)
        sent = json.dumps({"parameters": {**defaults, "config": value["id"]}})
        found = resolve(sent, ResolvedConfig(RunOptions()))
        assert found.remarks == ()
        assert value["id"] in (found.options.method, "savedataonly")


def saved_image(path: Path, label: str | None, name: str) -> Path:
    """What `docker save` writes, as far as the package looks at it."""
    config = {"config": {"Labels": None if label is None else {name: label}}}
    with tarfile.open(path, "w") as archive:
        for member, content in (("config.json", config), ("manifest.json", [{"Config": "config.json"}])):
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def test_the_openrecon_zip(package: ModuleType, label: dict[str, Any], tmp_path: Path) -> None:
    encoded = package.encode_label()
    assert json.loads(base64.b64decode(encoded)) == label
    image = saved_image(tmp_path / "image.tar", encoded, package.LABEL_NAME)
    target = package.package_openrecon(image, tmp_path / "out")
    name = f"OpenRecon_recon_recon_V{kspace.__version__}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name}.zip"]
    with zipfile.ZipFile(target) as archive:
        assert sorted(archive.namelist()) == [f"{name}.pdf", f"{name}.tar"]
        assert archive.read(f"{name}.tar") == image.read_bytes()
        assert archive.read(f"{name}.pdf").startswith(b"%PDF-")
        assert archive.read(f"{name}.pdf").rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("wrong", [None, "e30="])
def test_an_image_without_this_label_is_refused(wrong: str | None, package: ModuleType, tmp_path: Path) -> None:
    image = saved_image(tmp_path / "image.tar", wrong, package.LABEL_NAME)
    with pytest.raises(SystemExit, match="does not carry the label"):
        package.package_openrecon(image, tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not (shutil.which("mke2fs") and shutil.which("debugfs")), reason="needs e2fsprogs")
def test_the_fire_image_holds_the_exported_root(package: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "root" / "opt").mkdir(parents=True)
    (tmp_path / "root" / "opt" / "start").write_text("#!/bin/sh\n")
    (tmp_path / "root" / "opt" / "start").chmod(0o755)
    (tmp_path / "root" / "link").symlink_to("opt/start")
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        archive.add(tmp_path / "root", ".")
    image = package.package_fire(tmp_path / "root.tar", tmp_path / "recon.img")

    def look(command: str) -> str:
        return subprocess.run(["debugfs", "-R", command, str(image)], capture_output=True, text=True, check=True).stdout

    assert "Mode:  0755" in look("stat /opt/start")
    assert look("cat /opt/start") == "#!/bin/sh\n"
    assert "Type: directory" in look("stat /tmp/share")
    assert 'Fast link dest: "opt/start"' in look("stat /link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recon.img", "root", "root.tar"]


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_the_dockerfile_copies_what_there_is_and_has_its_stages() -> None:
    found = instructions()
    stages = [rest.split(" AS ")[1] for name, rest in found if name == "FROM"]
    assert stages == ["build", "base", "openrecon", "fire", "plain"]
    for name, rest in found:
        if name == "COPY" and "--from" not in rest:
            *sources, _ = (part for part in rest.split() if not part.startswith("--"))
            assert all((ROOT / source).exists() for source in sources), rest
        if name == "CMD":
            assert isinstance(json.loads(rest), list)
    users = [(name, rest) for name, rest in found if name in ("FROM", "USER")]
    assert users[users.index(("FROM", "base AS openrecon")) + 1] == ("USER", "root")
    assert users[-1] == ("USER", "recon")
    assert any(name == "ARG" and rest.startswith("TORCH_INDEX=") and rest.endswith("/cpu") for name, rest in found)
    assert any(name == "LABEL" and "openrecon.metadata:1.1.0" in rest for name, rest in found)


def test_the_commands_are_those_of_the_command_line(tmp_path: Path) -> None:
    commands = [json.loads(rest) for name, rest in instructions() if name == "CMD"]
    unit = re.search(r"(?m)^ExecStart=\S+ (.*) \$RECON_ARGS$", (DEPLOY / "recon.service").read_text())
    assert unit is not None
    echoed = subprocess.run(
        [str(DEPLOY / "fire" / "start.sh"), "/dev/stdout"],
        env={"RECON_BIN": "echo", "RECON_SHARE": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    commands += [unit[1].split(), echoed.stdout.split()]
    serving = [command[command.index("serve") :] for command in commands if "serve" in command]
    assert len(serving) == 4
    for command in serving:
        name, options = cli._parse(command)
        assert (name, options["port"]) == ("serve", 9002)
        assert options["method"] in METHODS


def test_the_apptainer_definition_copies_what_there_is() -> None:
    text = (DEPLOY / "recon.def").read_text()
    files = re.search(r"%files\n((?:    .*\n)+)", text)
    assert files is not None
    for line in files[1].splitlines():
        source, target = line.split()
        assert (ROOT / source).exists()
        assert target == f"/src/{source}"
    assert set(re.findall(r"(?m)^%(\w+)", text)) == {
        "arguments", "files", "post", "environment", "runscript", "startscript", "test", "help"
    }  # fmt: skip


def test_the_start_script_of_fire_leaves_one_process_and_a_log(tmp_path: Path) -> None:
    script = DEPLOY / "fire" / "start.sh"
    assert script.stat().st_mode & 0o111
    environment = {"RECON_BIN": sys.executable, "RECON_SHARE": str(tmp_path), "RECON_PORT": "9999", "PATH": "/usr/bin:/bin"}
    # The interpreter is given the arguments of the server: it cannot open a file called "serve", and says so in the log.
    started = subprocess.Popen([str(script), str(tmp_path / "log" / "recon.log")], env=environment, cwd=tmp_path)
    assert started.wait(20) == 2
    assert "serve" in (tmp_path / "log" / "recon.log").read_text()
    assert (tmp_path / "recon").is_dir()
    echoed = subprocess.run(
        [str(script), "/dev/stdout"], env={**environment, "RECON_BIN": "echo"}, capture_output=True, text=True
    )
    assert echoed.stdout.split()[:5] == ["serve", "--host", "0.0.0.0", "--port", "9999"]
    assert f"--spool {tmp_path}/recon" in echoed.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_systemd_unit_is_understood(tmp_path: Path) -> None:
    text = (DEPLOY / "recon.service").read_text()
    unit = tmp_path / "recon.service"
    unit.write_text(text.replace("/opt/recon/bin/recon", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "recon.service" not in done.stderr
    assert "/opt/recon/bin/recon serve" in text
