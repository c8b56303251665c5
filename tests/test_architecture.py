"""Layout: direction of imports, rooms, owners of domain libraries, names, documentation."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

OWNERS = {
    "ismrmrd": ("kspace/io/mrd/",),
    "twixtools": ("kspace/io/twix/file.py", "kspace/io/twix/header.py"),
    "pydicom": ("recon/output/dicom.py", "kspace/io/images.py", "recon/datasets/patients.py", "recon/serve/store.py"),
    "pynetdicom": ("recon/serve/store.py",),
    "nibabel": ("recon/output/nifti.py", "kspace/io/images.py"),
    "pytorch_lightning": ("recon/commands/train.py", "recon/train/"),
    "finufft": ("kspace/noncartesian/nufft.py",),
    "pypulseq": ("kspace/noncartesian/pulseq.py",),
    "distributed": ("recon/batch/cluster.py",),
    "dask": ("recon/batch/cluster.py",),
    "jsonargparse": ("recon/cli.py", "recon/commands/train.py"),
}
FILES = sorted(
    p.relative_to(ROOT).as_posix() for folder in ("kspace", "models", "recon") for p in (ROOT / folder).rglob("*.py")
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports(name: str) -> None:
    modules = imports(ROOT / name)
    package = name.split("/")[0]
    roots = {m.split(".")[0] for m in modules}
    if package == "kspace":
        assert not roots & {"models", "recon"}
    if name.startswith("kspace/") and name.count("/") == 1 and name != "kspace/__init__.py":
        assert not any(m.startswith("kspace.io") for m in modules), "kspace/*.py reads no files"
    if package == "models":
        assert "recon" not in roots
        ours = {m for m in modules if m.startswith("kspace.")}
        allowed = (
            "kspace.__version__",
            "kspace.operators",
            "kspace.data_consistency",
            "kspace.fourier",
            "kspace.errors",
        )
        assert all(m.startswith(allowed) for m in ours), ours
    for library, owners in OWNERS.items():
        assert library not in roots or name.startswith(owners), f"{name} imports {library}, which {owners} own"


@pytest.mark.parametrize("name", FILES)
def test_no_pickle_and_no_raw_data_opened_for_writing(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("allow_pickle") == "False", f"{name}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "h5py.File":
            assert len(node.args) >= 2 or any(k.arg == "mode" for k in node.keywords), f"{name}:{node.lineno}"


@pytest.fixture(scope="module")
def layout() -> ModuleType:
    """The script that prints the table of docs/ARCHITECTURE.md."""
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_neither_modules_nor_rooms_import_in_a_circle(layout: ModuleType) -> None:
    known = layout.modules()
    graph = {name: layout.imports(module, known) for name, module in known.items()}
    assert layout.cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert layout.cycles(graph) == []
    assert layout.cycles(layout.rooms(graph)) == []


def test_folders_hold_at_most_sixteen_files(layout: ModuleType) -> None:
    assert {folder: n for folder, n in layout.files_per_folder().items() if n > layout.MOST_FILES} == {}


def test_public_types_have_names_of_their_own(layout: ModuleType) -> None:
    assert layout.homonyms() == {}


def test_public_definitions_are_documented_with_shapes(layout: ModuleType) -> None:
    silent, shapeless, n = layout.undocumented()
    assert n > 500
    assert silent == []
    assert shapeless == []


def test_the_table_of_the_documentation_has_every_measure(layout: ModuleType) -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name, _ in layout.table():
        assert f"| {name} |" in page


def test_no_test_imports_another() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        others = {m for m in imports(path) if m.startswith("tests.") and ".test_" in m}
        assert not others, f"{path.name} imports {others}: shared helpers belong to tests/support"
