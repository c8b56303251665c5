"""Build the documentation site: ``python docs/site/build.py``, output in build/docs. Warnings are errors."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
PAGES = {
    "Use": ["SCANNER", "MASKS", "TRAINING", "TRAINING_DATA", "SYSTEMS", "COMPARE", "HELD_OUT"],
    "Results": ["RESULTS", "BASELINES"],
    "Develop": ["NOTATION", "ARCHITECTURE", "EXTENDING"],
}
MODULES = {
    "recon": ["recon.api", "recon.run.options", "recon.methods.classical", "recon.metrics.image"],
    "kspace": [
        "kspace.container", "kspace.operators", "kspace.fourier", "kspace.preprocess", "kspace.coils", "kspace.noise",
        "kspace.masks.spec", "kspace.errors",
    ],
    "models": ["models.parts.interface", "models.systems", "models.parts.losses"],
}  # fmt: skip


def assemble(source: Path) -> None:
    """Put the pages of docs/, the README as index, and the list of modules into one source tree."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    shutil.copytree(ROOT / "docs" / "img", source / "img")
    for page in sorted((ROOT / "docs").glob("*.md")):
        (source / page.name).write_text(page.read_text())
    toctrees = [_toctree("", ["gallery/index", "reference"])]
    listed = {name for names in PAGES.values() for name in names}
    PAGES["More"] = sorted(p.stem for p in (ROOT / "docs").glob("*.md") if p.stem not in listed)
    toctrees += [_toctree(caption, names) for caption, names in PAGES.items() if names]
    readme = (ROOT / "README.md").read_text().replace("](docs/img/", "](img/")
    readme = re.sub(r"\]\(docs/(\w+)\.md\)", r"](\1.md)", readme)
    readme = re.sub(r"\[([\w./]+)\]\((?:CONTRIBUTING\.md|CHANGELOG\.md|CITATION\.cff|examples)\)", r"\1", readme)
    (source / "index.md").write_text(readme + "\n" + "\n".join(toctrees))
    body = "".join(_package(name, modules) for name, modules in MODULES.items())
    (source / "reference.rst").write_text("Reference\n=========\n\n" + body)


def _toctree(caption: str, names: list[str]) -> str:
    title = f":caption: {caption}\n" if caption else ""
    return f"```{{toctree}}\n:hidden:\n{title}\n" + "\n".join(names) + "\n```\n"


def _package(name: str, modules: list[str]) -> str:
    parts = "".join(f"{m}\n{'~' * len(m)}\n\n.. automodule:: {m}\n\n" for m in modules)
    return f"{name}\n{'-' * len(name)}\n\n{parts}"


if __name__ == "__main__":
    assemble(BUILD / "docs-source")
    arguments = ["-W", "--keep-going", "-q", "-b", "html", "-c", str(Path(__file__).parent)]
    sys.exit(main([*arguments, "-d", str(BUILD / "doctrees"), str(BUILD / "docs-source"), str(BUILD / "docs"), *sys.argv[1:]]))
