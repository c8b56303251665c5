"""What the quick commands must not wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kspace.simulation.measurement import write_scan
from recon.commands.demo import head_scan
from tests.conftest import ROOT

HEAVY = ("torch", "sigpy", "scipy", "matplotlib", "pytorch_lightning", "skimage", "nibabel", "pydicom", "plotly")
PROGRAM = (
    "import sys\nfrom recon import cli\ncode = cli.execute(sys.argv[1:])\n"
    f"print('LOADED', *[m for m in {HEAVY} if m in sys.modules])\nsys.exit(code)"
)


def loaded(program: str, *arguments: str) -> tuple[str, list[str]]:
    """What a fresh interpreter printed, and which of the heavy modules it then held."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    said, _, modules = done.stdout.rpartition("LOADED")
    return said, modules.split()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--help"], "reconstruct raw scans"), (["run", "--help"], "--virtual-coils"), (["info", "--help"], "inputs")],
)
def test_help_loads_no_heavy_module(arguments: list[str], says: str) -> None:
    said, modules = loaded(PROGRAM, *arguments)
    assert says in said
    assert modules == []


def test_info_of_a_scan_loads_no_heavy_module(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_scan(head_scan(matrix=64, n_slices=2, n_coils=3), path)
    said, modules = loaded(PROGRAM, "info", str(path))
    assert "2 complete (2 slices" in said
    assert "3 coils" in said
    assert modules == []


@pytest.mark.parametrize("package", ["kspace", "recon"])
def test_importing_a_package_loads_no_heavy_module_and_every_export_resolves(package: str) -> None:
    program = (
        f"import sys, {package} as p\nassert p.__version__\nbefore = [m for m in {HEAVY} if m in sys.modules]\n"
        "for name in p.__all__:\n    getattr(p, name)\n    assert name[0] == '_' or name in dir(p)\nprint('LOADED', *before)"
    )
    assert loaded(program)[1] == []


def test_all_packages_have_one_version() -> None:
    import kspace
    import recon

    assert kspace.__version__ == recon.__version__
