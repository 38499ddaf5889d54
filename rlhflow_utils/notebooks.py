"""Keeps `notebooks/NN_*.ipynb` and `notebooks/source/NN_*.py` the same chapter.

`sync` rebuilds a notebook whose code or text differs from its `.py`; `publish` takes the outputs of an executed run
into the committed notebooks, without papermill's traces.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from PIL import Image

from rlhflow_utils.provenance import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
SOURCES = NOTEBOOKS / "source"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sync() -> list[str]:
    """Rebuild every notebook that differs from its source; returns their names."""
    changed = []
    for source in sorted(SOURCES.glob("[0-9][0-9]_*.py")):
        target = NOTEBOOKS / f"{source.stem}.ipynb"
        wanted = read_source(source)
        if target.is_file() and cells_of(nbformat.read(target, as_version=4)) == cells_of(wanted):
            continue
        write_notebook(wanted, target)
        changed.append(source.stem)
        print(f"notebooks/{target.name} rebuilt from its source")
    return changed


def publish(run_dir: str) -> None:
    """Copy executed chapters of a run into `notebooks/`.

    Raises:
        RuntimeError: an executed chapter is not the committed one, or holds a path of this machine.
    """
    for source in sorted(SOURCES.glob("[0-9][0-9]_*.py")):
        executed = PROJECT / run_dir / "notebooks" / f"{source.stem}.ipynb"
        if not executed.is_file():
            continue
        notebook = without_traces(nbformat.read(executed, as_version=4))
        if cells_of(notebook) != cells_of(read_source(source)):
            raise RuntimeError(f"{run_dir}/notebooks/{executed.name} is not the current chapter: run the guide again")
        text = nbformat.writes(notebook)
        for path in (str(PROJECT), str(Path.home())):
            if path in text:
                raise RuntimeError(f"{executed.name} shows the path {path}: print paths relative to the project")
        write_notebook(notebook, NOTEBOOKS / executed.name)


def read_source(source: Path) -> Any:
    """The notebook that a py:percent file describes, without outputs."""
    return jupytext.read(source, fmt="py:percent")


def cells_of(notebook: Any) -> list[tuple[str, str, list[str]]]:
    """What makes a chapter: kind, text and tags of its cells."""
    return [(cell.cell_type, cell.source.strip(), list(cell.metadata.get("tags", []))) for cell in notebook.cells]


def without_traces(notebook: Any) -> Any:
    """The notebook without papermill's injected cell and metadata."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code":  # warnings on stderr name the machine's paths; results are on stdout
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = small_picture(output.data["image/png"])
        cell.metadata = nbformat.NotebookNode({"tags": tags} if tags else {})
    return notebook


def small_picture(encoded: str) -> str:
    """A base64 PNG with 64 colours, which are enough for a plot: a third of its size and less.

    The palette covers all colours, rare ones too: a single red bar must not turn orange.
    """
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    small = picture.quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def write_notebook(notebook: Any, target: Path) -> None:
    """Write with stable cell ids and our metadata alone, so that diffs show changes of content only."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:02d}"
        if not cell.metadata.get("tags"):
            cell.metadata = nbformat.NotebookNode({})
    nbformat.write(notebook, target)
