"""Sphinx renders the README, the chapters, the claims and the data cards as one book: `make book`.

The source folder is the project itself, so every relative link of a page is a link of the book. No notebook is
executed: the book shows the committed outputs. It needs no network: MathJax, which draws the formulas, is part of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mathjax
from sphinx.application import Sphinx

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = ("data_cards", "docs", "notebooks", "results")
DOCS = "\n".join(f"docs/{path.stem}" for path in sorted(PROJECT.glob("docs/*.md")))
CONTENTS = f"""
```{{toctree}}
:caption: Chapters
:hidden:
:glob:
notebooks/*
```
```{{toctree}}
:caption: More
:hidden:
{DOCS}
results/claims/README
CONTRIBUTING
CHANGELOG
```
```{{toctree}}
:caption: Data cards
:hidden:
:glob:
data_cards/*
```
"""

project = html_title = "RLHF Workflow, executable"
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/claims/README.md"]
include_patterns += ["notebooks/*.ipynb", "data_cards/*.md", "docs/*.md"]
# A folder that is not excluded is searched, and .venv and runs are large.
exclude_patterns = [path.name for path in PROJECT.iterdir() if path.is_dir() and path.name not in FOLDERS]

extensions = ["myst_nb", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_render_image_options = {"alt": "The figure that this cell draws"}

html_theme = "furo"
html_static_path = ["_static", str(Path(mathjax.__file__).parent / "static" / "mathjax" / "es5" / "tex-svg.js")]
html_css_files = ["book.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = html_use_index = False
mathjax_path = "tex-svg.js"


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """The README is the first page; the list of all pages is the book's alone."""
    if name == root_doc:
        source[0] += CONTENTS


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Copy the first page to `index.html`, which a web server shows for a folder."""
    if error is None:
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index)
