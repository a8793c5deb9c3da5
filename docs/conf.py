"""Sphinx configuration: markdown pages, and a recipe reference written from the code."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reference

reference.write(Path(__file__).parent / "_generated" / "recipe.md")

project = "etude"
release = metadata.version("etude")
copyright = "the etude authors, Apache-2.0"

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"etude {release}"
html_copy_source = False
html_show_sourcelink = False
