"""Runs the chapters headless, in order, and skips what is current: `python -m rlhflow_utils run`.

Papermill executes; the strictness is ours. Papermill only warns about a parameter that a notebook does not have, and
checks no types: here both are errors. A chapter is skipped, without starting a kernel, when its record in
`runs/<run>/chapters/` still fits its code cells, its parameters and the keys of the stages that it used.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhflow_utils.code_hash import hash_value
from rlhflow_utils.config import Profile, load_profile
from rlhflow_utils.manifest import STAGE_LINE, chapter_hash, is_current, locked, write_json
from rlhflow_utils.provenance import PROJECT, quiet_libraries

NOTEBOOKS = PROJECT / "notebooks"
PROGRESS = (STAGE_LINE, "  step ", "generation: ")  # output lines that the terminal shows too
KERNEL_SECONDS = 300  # a kernel may take so long to start: on a loaded machine, 60 (the default) is too short


class ChapterError(RuntimeError):
    """A chapter failed; the message is one line with chapter, cell and fix."""


class StageLines(io.TextIOBase):
    """Passes on a kernel's progress lines, so that the terminal shows how far a chapter is."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.startswith(PROGRESS):
                print(f"        {line}", flush=True)
        return len(text)


def run_guide(
    profile_name: str,
    run_dir: str,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Execute the chapters of the guide and write `summary.json` and `report.html`.

    Args:
        profile_name: a profile's name or file.
        run_dir: run folder, relative to the project.
        seed: replaces the profile's seed.
        overrides: dotted profile keys -> values.
        only: two-digit chapter numbers; None: all.
        parameters: further notebook parameters, by name.

    Raises:
        ConfigError: the profile or an override is wrong.
        ChapterError: a chapter failed; its executed notebook up to the failure is kept in the run folder.
    """
    quiet_libraries()
    profile = load_profile(profile_name, dict(overrides or {}), seed)
    chapters = find_chapters(only)
    values = {
        "PROFILE": profile_name, "RUN_DIR": run_dir, "SEED": profile.seed, "OVERRIDES": dict(overrides or {}),
        **(parameters or {}),
    }  # fmt: skip
    folder = PROJECT / run_dir
    with locked(folder):
        started = time.time()
        print(f"Guide on profile {profile.name}: {len(chapters)} chapters, run folder {run_dir}", flush=True)
        for index, chapter in enumerate(chapters):
            _run_chapter(chapter, f"[{index + 1:2d}/{len(chapters)}]", values, profile, folder)
        write_summary(folder)
        _write_report(folder)
        print(f"Finished in {time.time() - started:.0f} s. Open {run_dir}/report.html", flush=True)


def find_chapters(only: Sequence[str] | None = None) -> list[Path]:
    """Notebooks in reading order, all or those with the given numbers."""
    chapters = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not only:
        return chapters
    chosen = [path for path in chapters if path.name[:2] in only]
    unknown = sorted(set(only) - {path.name[:2] for path in chosen})
    if unknown:
        raise ChapterError(f"no chapter {', '.join(unknown)}; chapters are {', '.join(p.name[:2] for p in chapters)}")
    return chosen


def code_of(notebook: Path) -> str:
    """All code cells of a notebook as one Python text, magics left out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).split("\n")]
    return "\n".join(line for line in lines if not re.match(r"\s*[%!]", line))


def notebook_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values of the cell tagged `parameters`."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            body = ast.parse("".join(cell["source"])).body
            assigns = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
            return {node.targets[0].id: ast.literal_eval(node.value) for node in assigns}  # type: ignore[attr-defined]
    raise ChapterError(f"{notebook.name}: no cell is tagged `parameters`")


def check_parameters(notebook: Path, values: Mapping[str, Any]) -> None:
    """Raise ChapterError where a parameter does not exist in the notebook or has another type than its default."""
    known = notebook_parameters(notebook)
    for name, value in values.items():
        if name not in known:
            raise ChapterError(f"{notebook.stem}: unknown parameter {name!r}; it has {', '.join(sorted(known))}")
        if type(value) is not type(known[name]):
            expected, found = type(known[name]).__name__, type(value).__name__
            raise ChapterError(f"{notebook.stem}: parameter {name} must be {expected}, got {found} {value!r}")


def chapter_is_current(notebook: Path, values: Mapping[str, Any], profile: Profile, folder: Path) -> bool:
    """Whether a chapter's last execution still stands. Imports nothing heavy and starts no kernel."""
    record_file = folder / "chapters" / f"{notebook.stem}.json"
    executed = folder / "notebooks" / notebook.name
    if not (record_file.is_file() and executed.is_file()):
        return False
    record = json.loads(record_file.read_text(encoding="utf-8"))
    if record.get("key") != _chapter_key(notebook, values, record["stages"]):
        return False
    return all(
        is_current(name, profile, folder) and _manifest_key(folder / name) == key
        for name, key in record["stages"].items()
    )


def write_summary(folder: Path) -> dict[str, Any]:
    """Write `summary.json`: every headline metric of the run's current stages, flat, and the seconds spent."""
    summary: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for file in sorted((folder / "chapters").glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        seconds[record["chapter"]] = record["wall_seconds"]
        for stage in sorted(record["stages"]):
            manifest = json.loads((folder / stage / "manifest.json").read_text(encoding="utf-8"))
            summary.update(manifest["metrics"])
    ordered = dict(sorted(summary.items()))
    ordered.update({f"wall_seconds.{name}": value for name, value in seconds.items()})
    ordered["wall_seconds.total"] = round(sum(seconds.values()), 1)
    write_json(folder / "summary.json", ordered)
    return ordered


def _run_chapter(notebook: Path, position: str, values: Mapping[str, Any], profile: Profile, folder: Path) -> None:
    check_parameters(notebook, values)
    if chapter_is_current(notebook, values, profile, folder):
        print(f"{position} {notebook.stem}: unchanged, skipped", flush=True)
        return
    print(f"{position} {notebook.stem}: running", flush=True)
    record_file = folder / "chapters" / f"{notebook.stem}.json"
    record_file.unlink(missing_ok=True)
    started = time.time()
    _execute(notebook, folder / "notebooks" / notebook.name, dict(values))
    if not record_file.is_file():
        raise ChapterError(f"{notebook.stem}: the last cell must call run.finish(); add it")
    record = json.loads(record_file.read_text(encoding="utf-8"))
    wall = time.time() - started
    # What the chapter costs from nothing: a stage that was skipped this time counts with what it took when it ran.
    cost = round(wall + record.pop("saved_seconds"), 1)
    record |= {"key": _chapter_key(notebook, values, record["stages"]), "wall_seconds": cost}
    write_json(record_file, record)
    print(f"{position} {notebook.stem}: done in {wall:.0f} s", flush=True)
    write_summary(folder)


def _execute(notebook: Path, output: Path, values: dict[str, Any]) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    private = Config({"KernelManager": {"transport": "ipc"}})  # no TCP port, which any local user could read

    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook), str(output), parameters=values, kernel_name="python3", cwd=str(PROJECT),
            progress_bar=False, log_output=True, stdout_file=StageLines(), stderr_file=io.StringIO(), config=private,
            start_timeout=KERNEL_SECONDS,
        )  # fmt: skip
    except PapermillExecutionError as error:
        message = " ".join(str(error.evalue).split())
        raise ChapterError(
            f"chapter {notebook.stem}, cell {error.exec_count}: {error.ename}: {message[:600]} "
            f"(the notebook up to there: {os.path.relpath(output, PROJECT)})"
        ) from None


def _chapter_key(notebook: Path, values: Mapping[str, Any], stages: Mapping[str, str]) -> str:
    # Stages bring the profile values they read; the chapter itself depends on its code and parameters.
    return hash_value([chapter_hash(code_of(notebook)), {k: v for k, v in values.items() if k != "OVERRIDES"}, stages])


def _manifest_key(stage_folder: Path) -> str | None:
    file = stage_folder / "manifest.json"
    return str(json.loads(file.read_text(encoding="utf-8"))["key"]) if file.is_file() else None


def _write_report(folder: Path) -> None:
    """Export the last chapter as one self-contained page."""
    executed = sorted((folder / "notebooks").glob("12_*.ipynb"))
    if not executed:
        return
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_input_prompt=True, embed_images=True)
    exporter.exclude_output_prompt = True
    notebook = nbformat.read(executed[0], as_version=4)
    body, _ = exporter.from_notebook_node(notebook)
    page = "<!doctype html><html lang='en'><meta charset='utf-8'><title>RLHF Workflow</title>"
    page += f"<style>{REPORT_STYLE}</style>"
    (folder / "report.html").write_text(f"{page}<main>{body}</main></html>", encoding="utf-8")


REPORT_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;margin:0}
main{max-width:60rem;margin:2rem auto;padding:0 1rem}
img{max-width:100%} table{border-collapse:collapse;margin:1rem 0} pre{white-space:pre-wrap}
td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:right}
th{text-align:left} a.anchor-link{display:none}
"""
