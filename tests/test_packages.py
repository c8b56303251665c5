"""The wheel and the source archive: what is in them, and that they work outside of the checkout."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from kspace import __version__
from kspace.errors import InputError
from models.systems import find_systems
from recon.train.configs import bundled_configs, with_paths
from tests.conftest import ROOT
from tests.support.training import pictures


def build(folder: Path, *kinds: str) -> list[Path]:
    targets = [word for kind in kinds for word in ("-t", kind)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "hatchling", "build", *targets, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "wheel")[0]


def test_the_wheel_holds_weights_configurations_assets_and_type_information(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = message_from_bytes(archive.read(f"mri_gan_recon-{__version__}.dist-info/METADATA"))
    assert wheel.name == f"mri_gan_recon-{__version__}-py3-none-any.whl"
    for path in (*ROOT.glob("models/weights/*.safetensors"), *ROOT.glob("recon/*/assets/*"), *ROOT.glob("recon/configs/*")):
        assert path.relative_to(ROOT).as_posix() in names
    assert {f"{package}/py.typed" for package in ("kspace", "models", "recon")} <= names
    assert {name.split("/")[0] for name in names} == {"kspace", "models", "recon", f"mri_gan_recon-{__version__}.dist-info"}
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    assert "cluster" in about.get_all("Provides-Extra")
    assert {url.partition(",")[0] for url in about.get_all("Project-URL")} == {
        "Homepage",
        "Documentation",
        "Issues",
        "Changelog",
    }
    assert {f"Programming Language :: Python :: 3.{n}" for n in (11, 12, 13)} <= set(about.get_all("Classifier"))


def test_the_source_archive_is_reproducible_and_holds_no_data(tmp_path: Path) -> None:
    first, second = (build(tmp_path / name, "sdist")[0] for name in ("one", "two"))
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    with tarfile.open(first) as archive:
        suffixes = {Path(member.name).suffix for member in archive if member.isfile()}
        folders = {member.name.split("/")[1] for member in archive}
    assert not suffixes & {".h5", ".dat", ".npy", ".nii", ".gz", ".dcm", ".jpg", ".png"}
    assert {"kspace", "models", "recon", "LICENSE", "README.md", "pyproject.toml"} <= folders


def test_configurations_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(bundled_configs()) == set(find_systems())
    path = str(ROOT / "recon" / "configs" / "dagan.yaml")
    assert with_paths(["--config", "dagan", "--init", "dagan"]) == ["--config", path, "--init", "dagan"]
    assert with_paths(["--config=dagan"]) == [f"--config={path}"]
    (tmp_path / "dagan").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_paths(["--config=dagan"]) == [f"--config={path}"]
    assert with_paths(["--config", "own.yaml"]) == ["--config", "own.yaml"]
    with pytest.raises(InputError, match="--config: there is no configuration 'cyclegan'; give a file, or one of csgm, dagan"):
        with_paths(["--config", "cyclegan"])


def test_the_unpacked_wheel_finds_what_it_holds(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import recon; print(recon.__file__); from recon.train.configs import bundled_configs; "
        "print(all(p.is_file() for p in bundled_configs().values())); from recon.batch.page import write_page; "
        "from pathlib import Path; print(write_page(Path('.')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == [str(tmp_path / "recon" / "__init__.py"), "True", "batch.html"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dependencies", ["ours", "index"])
def test_an_installed_wheel_runs_demo_weights_and_training(dependencies: str, wheel: Path, tmp_path: Path) -> None:
    """With the dependencies of this environment, and with those of the index that pip is configured for (gigabytes)."""
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
    site = next(place.glob("lib/python*/site-packages"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    pip = (place / "bin" / "python", "-m", "pip")
    if dependencies == "ours":
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])  # searched after its own packages
        run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    else:
        run(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
        assert "No broken requirements" in run(*pip, "check")
    where = run(place / "bin" / "python", "-c", "import kspace, models, recon; print(kspace.__file__, recon.__file__)")
    assert all(word.startswith(str(site)) for word in where.split())
    recon = place / "bin" / "recon"
    assert "refinegan" in run(recon, "models")
    run(recon, "demo", "-o", "demo", "--methods", "sense")
    assert (tmp_path / "demo" / "phantom.png").is_file()
    quick = ("--method", "refinegan", "--refine", "none", "--evidence", "none", "--slices", "0")
    run(recon, "batch", tmp_path / "demo" / "phantom.h5", "-o", "many", *quick)
    assert (tmp_path / "many" / "phantom.nii.gz").is_file()
    options = ["--generator.width", "4", "--data.matrix", "[32,32]", "--data.coils", "[2]", "--data.val_coils", "2"]
    options += ["--data.batch_size", "1", "--data.masks", "[random1d:2]", "--data.calibration_width", "12"]
    options += ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--trainer.accelerator", "cpu"]
    options += ["--data.images", pictures(tmp_path / "heads"), "--data.group_size", "2", "--data.val_fraction", "0.25"]
    assert "generator steps" in run(recon, "train", "--config", "dagan", *options, "-o", "run")


def test_the_workflow_of_the_public_ci_calls_targets_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert set(workflow["jobs"]) == {"lint", "test", "docs", "wheel"}
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    called = [target for command in commands for target in re.findall(r"make ([a-z-]+)", command)]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert len(called) == len(commands) == 5
    assert set(called) <= targets
