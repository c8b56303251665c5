"""Measure the layout: files per folder, import cycles, homonyms, docstrings, lengths. Prints the table of docs/ARCHITECTURE.md.

python docs/architecture.py            # the table
python docs/architecture.py --missing  # and every public definition that falls short
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kspace", "models", "recon")
MOST_FILES = 16
ARRAYS = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
# ``(coil y x)``, ``(*batch ny, nx)``, ``(n,)``; or a word for something without axes, or of any shape.
SHAPE = re.compile(
    r"\(\*?[a-z_0-9][a-z_0-9*]*(?:[ ,]+[a-z_0-9*|]+)*,?\)|[Ss]calar|any shape|shape of|same shape|matri|like `|of `|shaped"
)


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes
    ----------
    name
        Dotted name; a package has that of its folder.
    path
        Relative to the root of the project.
    tree
        Syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module


def modules() -> dict[str, Module]:
    """All modules of the three packages, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            found[name] = Module(name, relative, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imports(module: Module, known: Mapping[str, Module]) -> set[str]:
    """Modules of ours that a module imports, at its head or inside of functions.

    What a package's `__init__` offers lazily stands there for type checkers only, and is not counted.
    """
    found = set()
    lazy = [n for n in module.tree.body if isinstance(n, ast.If)] if module.path.name == "__init__.py" else []
    for node in ast.walk(ast.Module([n for n in module.tree.body if n not in lazy], [])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in known else node.module} & known.keys()
    return found - {module.name}


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components with more than one node (Tarjan 1972, doi:10.1137/0201010)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component, stack[at:] = stack[at:], []
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def room(name: str) -> str:
    """The room that a module belongs to: a folder of `recon`, `kspace` or `models`, or the package itself."""
    parts = name.split(".")
    if parts[0] == "recon" and len(parts) == 2:
        return name  # a file of the top level, as cli.py: a room of its own
    return ".".join(parts[:2]) if len(parts) > 2 or (ROOT / Path(*parts)).is_dir() else parts[0]


def rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The import graph of the rooms."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        found[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(found)


def files_per_folder() -> dict[str, int]:
    """Number of modules in every folder, `__init__` and `__main__` apart."""
    count: dict[str, int] = defaultdict(int)
    for module in modules().values():
        if not module.path.name.startswith("__"):
            count[module.path.parent.as_posix()] += 1
    return dict(count)


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(module: Module) -> Iterator[tuple[str, Definition]]:
    """Public classes, functions and methods of a module, by qualified name."""
    if any(part.startswith("_") for part in module.name.split(".")):
        return
    for node in module.tree.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        yield f"{module.name}.{node.name}", node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{module.name}.{node.name}.{inner.name}", inner


def homonyms() -> dict[str, list[str]]:
    """Public classes that share their name with another, by name."""
    where: dict[str, list[str]] = defaultdict(list)
    for module in modules().values():
        for name, node in public(module):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(name)
    return {name: places for name, places in where.items() if len(places) > 1}


def takes_arrays(node: Definition) -> bool:
    """Whether a function has an argument, or a dataclass a field, that is a tensor or an array."""
    if isinstance(node, ast.ClassDef):
        hints = [inner.annotation for inner in node.body if isinstance(inner, ast.AnnAssign)]
    else:
        arguments = node.args
        hints = [a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.annotation]
    return any(ARRAYS.search(ast.unparse(hint)) for hint in hints)


def inherited(known: Mapping[str, Module]) -> set[str]:
    """Methods whose documentation is that of a base class: of ours, or of a library (hooks of Lightning and torch)."""
    classes: dict[str, tuple[str, ast.ClassDef]] = {}
    for module in known.values():
        classes |= {node.name: (module.name, node) for node in module.tree.body if isinstance(node, ast.ClassDef)}

    def documented(name: str, method: str) -> bool:
        if name not in classes:
            return name not in ("Protocol", "object", "ABC")  # a library's class, which documents its own hooks
        _, node = classes[name]
        own = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == method and ast.get_docstring(n)]
        return bool(own) or any(documented(ast.unparse(base).split("[")[0], method) for base in node.bases)

    return {
        f"{module}.{name}.{inner.name}"
        for name, (module, node) in classes.items()
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
        and any(documented(ast.unparse(base).split("[")[0], inner.name) for base in node.bases)
    }


def undocumented() -> tuple[list[str], list[str], int]:
    """Public definitions without docstring, those that take arrays and give no shape, and how many there are."""
    silent, shapeless, n = [], [], 0
    known = modules()
    from_base = inherited(known)
    for module in known.values():
        texts = {name: ast.get_docstring(node) or "" for name, node in public(module)}
        for name, node in public(module):
            n += 1
            text = texts[name]
            if not text and name not in from_base:
                silent.append(name)
            # A method may leave the shapes to its class.
            around = text + texts.get(name.rpartition(".")[0], "")
            if text and takes_arrays(node) and not SHAPE.search(around):
                shapeless.append(name)
    return silent, shapeless, n


def body_lines() -> list[int]:
    """Lines of the body of every function, its docstring apart."""
    found = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    found.append((body[-1].end_lineno or 0) - body[0].lineno + 1)
    return found


def table() -> list[tuple[str, str]]:
    """The rows of the table: what is measured, and its value."""
    known = modules()
    graph = {name: imports(module, known) for name, module in known.items()}
    count = files_per_folder()
    fullest = max(count, key=lambda folder: count[folder])
    silent, shapeless, n = undocumented()
    lines = sorted(body_lines())
    lengths = {str(m.path): len((ROOT / m.path).read_text().splitlines()) for m in known.values()}
    longest = max(lengths, key=lambda path: lengths[path])
    return [
        ("modules", str(len(known))),
        (f"files in the fullest folder (limit {MOST_FILES})", f"{count[fullest]} ({fullest})"),
        ("import cycles between modules", str(len(cycles(graph)))),
        ("import cycles between rooms", str(len(cycles(rooms(graph))))),
        ("homonymous public types", str(len(homonyms()))),
        ("public definitions with a docstring", f"{100 * (1 - len(silent) / n):.1f} % of {n}"),
        ("of those that take arrays: with shapes", f"{len(shapeless)} without"),
        ("lines of a function's body: median, 90th percentile, longest",
         f"{statistics.median(lines):.0f}, {lines[int(0.9 * len(lines))]}, {lines[-1]}"),
        ("longest file", f"{lengths[longest]} lines ({longest})"),
    ]  # fmt: skip


def main() -> None:
    """Print the table, and with --missing what falls short."""
    print("| measured | value |\n|---|---|")
    for name, value in table():
        print(f"| {name} | {value} |")
    if "--missing" in sys.argv:
        silent, shapeless, _ = undocumented()
        print("\nno docstring:", *silent, "\nno shapes:", *shapeless, "\nhomonyms:", homonyms(), sep="\n  ")


if __name__ == "__main__":
    main()
