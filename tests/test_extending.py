"""The code of docs/EXTENDING.md, taken from the page and run through the contract tests and the command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kspace.errors import InputError
from kspace.fourier import fft
from kspace.masks import MaskSpec, families
from recon import extensions
from recon.methods import classical
from recon.run import input as run_input
from tests.conftest import ROOT
from tests.support.scans import scan

PAGE = (ROOT / "docs" / "EXTENDING.md").read_text()
BLOCKS = dict(re.findall(r"(?ms)^```\w+\n# ([^\n]+)\n(.*?)^```$", PAGE))
PACKAGE = "myrecon"


def run(arguments: list[str], folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)


# ------------------------------------------------------------------------------------------------------ systems and losses


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and tests with the system and the loss of the page."""
    folder = tmp_path_factory.mktemp("copy")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("kspace", "models", "recon", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path in ("models/unetgan.py", "configs/unetgan.yaml"):
        (folder / path).write_text(BLOCKS[path])
    losses, raw = (folder / "models" / "parts" / f"{name}.py" for name in ("losses", "raw"))
    losses.write_text(losses.read_text() + "\n\n" + BLOCKS["append to models/parts/losses.py"])
    last = "    feature_matching: float = 0.0\n"
    assert raw.read_text().count(last) == 1
    raw.write_text(raw.read_text().replace(last, last + BLOCKS["in class Extra of models/parts/raw.py"]))
    return folder


def test_the_system_and_the_loss_pass_the_contract(copy: Path) -> None:
    tests = ["tests/models/test_contract.py", "tests/models/test_systems.py", "tests/models/test_source.py"]
    ended = run(["pytest", *tests, "-k", "unetgan", "-q", "-p", "no:cacheprovider"], copy, copy)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None
    assert int(passed[1]) >= 20, ended.stdout


def test_the_loss_is_zero_for_the_target_and_known_for_a_constant_phase(copy: Path) -> None:
    code = """
import math, torch
from models import systems
from models.parts import losses
from tests.support.scans import scan
y, op, target = scan()
gan = systems.build({"system": "unetgan", "generator": {"width": 4}, "extra": {"phase_error": 0.1}})
assert "extra_phase_error" in [term.name for term in gan.g_terms]
from dataclasses import replace
step = gan.step(y, op, target)
for angle in (0.0, 0.5):
    rotated = replace(step, intermediates={"image": step.target * complex(math.cos(angle), math.sin(angle))})
    torch.testing.assert_close(losses.phase_error(rotated), torch.tensor(1 - math.cos(angle)), atol=1e-5, rtol=1e-4)
"""
    (copy / "check.py").write_text(code)
    ended = run(["check"], copy, copy)
    assert ended.returncode == 0, ended.stderr


# --------------------------------------------------------------------------------------- methods, mask families and formats


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Folder of an installed package with the modules and entry points of the page."""
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").touch()
    for path in (name for name in BLOCKS if name.startswith(f"{PACKAGE}/")):
        (tmp_path / path).write_text(BLOCKS[path])
    points = tomllib.loads(BLOCKS["pyproject.toml"])["project"]["entry-points"][extensions.GROUP]
    assert {f"{module.replace('.', '/')}.py" for module in points.values()} == {n for n in BLOCKS if n.startswith(PACKAGE)}
    about = tmp_path / f"{PACKAGE}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name, module in points.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{extensions.GROUP}]", *lines, ""]))
    return tmp_path


@pytest.fixture
def imported(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The extensions, loaded into this process for one test."""
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setattr(classical, "METHODS", dict(classical.METHODS))
    monkeypatch.setattr(run_input, "CONVERTED", list(run_input.CONVERTED))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    before = dict(families.FAMILIES)
    extensions.load()
    yield package
    families.FAMILIES.clear()
    families.FAMILIES.update(before)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def write_archive(path: Path, spec: str = "golden1d:2") -> torch.Tensor:
    """Undersampled k-space in the format of the page, and the true image ``(y x)``."""
    _, op, target = scan((64, 48), n_coils=4, batch=())
    mask = MaskSpec.parse(spec).draw((64, 48))
    np.savez(path, kspace=(fft(op.maps * target) * mask).numpy(), fov_m=np.array([0.24, 0.32, 0.005]))
    return target


def test_the_mask_family_keeps_its_promises(imported: Path) -> None:
    for n_y, rate in ((64, 4), (65, 3), (128, 8)):
        spec = MaskSpec.parse(f"golden1d:{rate},seed=3")
        mask = spec.draw((n_y, 32), key="a")
        assert int(mask.any(-1).sum()) == round(n_y / rate)
        assert torch.equal(mask, spec.draw((n_y, 32), key="a"))
        assert mask.any(-1)[n_y // 2]
    assert not torch.equal(MaskSpec.parse("golden1d:4").draw((64, 32)), MaskSpec.parse("golden1d:4,seed=1").draw((64, 32)))


def test_the_method_converges_and_is_homogeneous(imported: Path) -> None:
    y, op, target = scan((32, 24), n_coils=4, batch=(2,))
    few, many = (classical.make("landweber", iterations=n)(y, op) for n in (3, 300))
    errors = [((image - target).norm() / target.norm()).item() for image in (op.adjoint(y), few, many)]
    assert errors[0] > errors[1] > errors[2]
    gradient = op.adjoint(y - op.forward(many))
    assert gradient.norm() < 1e-3 * op.adjoint(y).norm(), "the minimum of ||A x - y||^2"
    method = classical.make("landweber")
    torch.testing.assert_close(method(1e-6 * y, op) * 1e6, method(y, op), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method(y[0], type(op)(op.maps[0], op.mask)), method(y, op)[0])


def test_the_command_line_reads_the_format_with_the_method(package: Path) -> None:
    write_archive(package / "mine.npz", "random1d:2")
    arguments = ["recon", "run", "mine.npz", "--method", "landweber", "--format", "nifti", "-o", "out"]
    ended = run(arguments, package, package, ROOT)
    assert ended.returncode == 0, ended.stderr
    assert (package / "out" / "mine.nii.gz").exists()
    drawn = run(["recon", "mask", "golden1d:4", "--shape", "64", "32", "-o", "golden.png"], package, package, ROOT)
    assert drawn.returncode == 0, drawn.stderr
    assert (package / "golden.png").exists()


def test_an_extension_that_cannot_be_imported_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / PACKAGE / "landweber.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(package))
    with pytest.raises(InputError, match=r"the extension cannot be loaded \(No module named .*pip uninstall myrecon"):
        extensions.load()


# ------------------------------------------------------------------------------------------------------------------- rules


def test_rules_of_registration() -> None:
    taken = families.FAMILIES["random1d"]
    with pytest.raises(ValueError, match="mask family 'random1d': rule 'name': there is a family of that name"):
        families.register(taken)
    with pytest.raises(ValueError, match="rule 'name': use lower-case letters, digits and hyphens"):
        families.register(replace(taken, name="My Mask"))
    with pytest.raises(ValueError, match="file format 'MRD stream': rule 'name': there is a format of that name"):
        run_input.register(run_input.CONVERTED[1])
    with pytest.raises(TypeError, match="rule 'name': there is a method called 'sense'"):
        classical.register(classical.CgSense)
    with pytest.raises(TypeError, match="rule 'options': it is no frozen dataclass"):
        classical.register(type("Plain", (), {"name": "plain"}))
    with pytest.raises(TypeError, match=r"rule 'name': write `name: ClassVar\[str\]`"):
        classical.register(families.Option)
