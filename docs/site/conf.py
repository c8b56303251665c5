"""Sphinx configuration; ``make docs`` builds the site from docs/*.md, the docstrings and examples/."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import kspace

ROOT = Path(__file__).parents[2]

project = "recon"
author = "recon developers"
copyright = "recon developers"
version = release = kspace.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["**/*.py", "**/GALLERY_HEADER.rst"]
html_theme = "furo"
html_title = f"recon {version}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# ref.python: short names such as `name` have several homes.
suppress_warnings = [
    "myst.xref_missing",
    "myst.header",
    "config.cache",
    "misc.highlighting_failure",
    "ref.python",
]  # short names have several homes

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "ignore-module-all": True}
autosummary_generate = True
default_role = "code"  # docstrings write `names` for code

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "plot_gallery": os.environ.get("RECON_GALLERY", "1") == "1",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1,
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
}
warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib")
sys.path.insert(0, str(ROOT))
