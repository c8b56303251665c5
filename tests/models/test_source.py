"""Source of the package: documented interfaces, no repeated code, cheap import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "models").rglob("*.py"))
RUN = 6


def statements(path: Path) -> list[str]:
    """Lines of code, without blank lines, comments, imports, docstrings and lines of punctuation alone."""
    text = path.read_text()
    tree = ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    kept = [" ".join(line.split()) for number, line in lines if number not in skipped]
    return [line for line in kept if any(c.isalnum() for c in line) and not line.startswith("#")]


def test_no_run_of_six_lines_is_written_twice() -> None:
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in FILES:
        lines = statements(path)
        for i in range(len(lines) - RUN + 1):
            places[tuple(lines[i : i + RUN])].append(f"{path.name}, statement {i}")
    assert sum(map(len, places.values())) > 1000
    assert not {run: where for run, where in places.items() if len(where) > 1}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def takes_tensor(function: Function) -> bool:
    annotated = [a.annotation for a in (*function.args.args, *function.args.kwonlyargs) if a.annotation is not None]
    return any(ast.unparse(annotation) in ("Tensor", "Tensor | None") for annotation in annotated)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_public_name_is_documented_with_the_shapes_that_it_takes(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module"
    for name, node in public(tree):
        text = ast.get_docstring(node)
        assert text, name
        if isinstance(node, Function) and takes_tensor(node):
            assert "``(" in text, f"{name} takes a tensor: name its shape"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, models; assert 'torch' not in sys.modules; models.Generator; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
