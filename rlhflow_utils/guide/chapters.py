"""Runs the chapters headless, in order, skips what is current, and publishes what came out.

Papermill executes, but only warns about a parameter that a notebook does not have, and checks no types: here both are
errors. Nothing heavy is imported before a chapter has to run.
"""

from __future__ import annotations

import ast
import base64
import inspect
import io
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlhflow_utils.guide import stage, tables
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run, locked, quiet_libraries
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import PROJECT, STAGE_LINE, read_artifact, write_json

Options = Mapping[str, Any] | None
Numbers = Sequence[str] | None  # of chapters, in two digits
NOTEBOOKS = PROJECT / "notebooks"
SOURCES = NOTEBOOKS / "source"
README = PROJECT / "README.md"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
PROGRESS = (STAGE_LINE, "  step ", "generation: ")  # output lines that the terminal shows too
SKIPPED = re.compile(rf"{STAGE_LINE}.*(unchanged|skipped)")
KERNEL_SECONDS = 300  # a kernel may take so long to start: on a loaded machine, 60 (the default) is too short
PUBLISHED = {"read_results": tables.RESULTS, "read_records": tables.RESULTS / "claims"}  # reader -> what it reads
WHERE = ("OVERRIDES", "RUN_DIR")  # parameters that a chapter's currency does not depend on: sections count by content


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
    profile_name: str, run_dir: str, seed: int | None = None, overrides: Options = None,
    only: Numbers = None, parameters: Options = None,
) -> None:  # fmt: skip
    """Execute the chapters (`only`: these numbers) and write `summary.json` and `report.html` into the run folder.

    `run_dir` is relative to the project, `overrides` are dotted profile keys, `parameters` further notebook parameters.
    ChapterError where a chapter failed: its executed notebook up to the failure is kept in the run folder.
    """
    quiet_libraries()
    profile, values = _values(profile_name, run_dir, seed, overrides, parameters)
    chapters, folder, hash_of = find_chapters(only), PROJECT / run_dir, cache(stage.hash_path)
    with locked(folder):
        started = time.time()
        print(f"Guide on profile {profile.name}: {len(chapters)} chapters, run folder {run_dir}", flush=True)
        for index, chapter in enumerate(chapters):
            position = f"[{index + 1:2d}/{len(chapters)}] {chapter.stem}"
            check_parameters(chapter, values)
            if chapter_is_current(chapter, values, profile, folder, hash_of):
                print(f"{position}: unchanged, skipped", flush=True)
            else:
                print(f"{position}: running", flush=True)
                print(f"{position}: done in {_run_chapter(chapter, values, profile, folder):.0f} s", flush=True)
        write_summary(folder)
        _write_report(folder)
        print(f"Finished in {time.time() - started:.0f} s. Open {run_dir}/report.html", flush=True)


def stale_chapters(
    profile_name: str,
    run_dir: str,
    seed: int | None,
    overrides: Options,
    only: Numbers,
    parameters: Options,
) -> list[str]:
    """Names of the chapters that are not current; running them may make later ones stale, too."""
    profile, values = _values(profile_name, run_dir, seed, overrides, parameters)
    hash_of, chapters = cache(stage.hash_path), find_chapters(only)
    return [c.stem for c in chapters if not chapter_is_current(c, values, profile, PROJECT / run_dir, hash_of)]


def find_chapters(only: Numbers = None) -> list[Path]:
    """Notebooks in reading order, all or those with the given numbers."""
    chapters = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := sorted(set(only or []) - set(chapters)):
        raise ChapterError(f"no chapter {', '.join(unknown)}; chapters are {', '.join(chapters)}")
    return [path for number, path in chapters.items() if not only or number in only]


def notebook_parameters(notebook: Path) -> dict[str, Any]:
    """Names and default values of the cell tagged `parameters`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell["source"] for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if not tagged:
        raise ChapterError(f"{notebook.name}: no cell is tagged `parameters`")
    assigns = [node for node in ast.parse("".join(tagged[0])).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigns}


def check_parameters(notebook: Path, values: Mapping[str, Any]) -> None:
    """Raise ChapterError where a parameter does not exist in the notebook or has another type than its default."""
    known = notebook_parameters(notebook)
    for name, value in values.items():
        if name not in known:
            raise ChapterError(f"{notebook.stem}: unknown parameter {name!r}; it has {', '.join(sorted(known))}")
        if type(value) is not type(known[name]):
            expected, found = type(known[name]).__name__, type(value).__name__
            raise ChapterError(f"{notebook.stem}: parameter {name} must be {expected}, got {found} {value!r}")


def write_summary(folder: Path) -> dict[str, Any]:
    """Write `summary.json`: every metric of the stages that the chapters used, and the seconds of each chapter."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "chapters").glob("*.json"))]
    names = sorted({name for record in records for name in record["stages"]})
    seconds = {f"wall_seconds.{record['chapter']}": record.get("wall_seconds", 0.0) for record in records}
    metrics = tables.metrics_of(each for name in names if (each := read_artifact(folder / name)))
    summary = {**metrics, **seconds, "wall_seconds.total": round(sum(seconds.values()), 1)}
    write_json(folder / "summary.json", summary)
    return summary


def _values(
    name: str, run_dir: str, seed: int | None, overrides: Options, parameters: Options
) -> tuple[Profile, dict[str, Any]]:
    """The profile, and the parameters of every notebook."""
    profile = load_profile(name, overrides, seed)
    values = {"PROFILE": name, "RUN_DIR": run_dir, "SEED": profile.seed, "OVERRIDES": dict(overrides or {})}
    return profile, {**values, **(parameters or {})}


def _run_chapter(notebook: Path, values: Mapping[str, Any], profile: Profile, folder: Path) -> float:
    """Execute a chapter and complete its record; returns the seconds it took."""
    record_file = folder / "chapters" / f"{notebook.stem}.json"
    record_file.unlink(missing_ok=True)
    started, key = time.time(), chapter_key(notebook, values, profile)
    _execute(notebook, folder / "notebooks" / notebook.name, dict(values))
    if not record_file.is_file():
        raise ChapterError(f"{notebook.stem}: the last cell must call run.finish(); add it")
    record, seconds = json.loads(record_file.read_text(encoding="utf-8")), time.time() - started
    cost = round(seconds + record.pop("saved_seconds"), 1)  # of a fresh run: with the stages that were skipped
    write_json(record_file, {**record, "key": key, "profile": profile.name, "wall_seconds": cost})
    write_summary(folder)
    return seconds


def _execute(notebook: Path, output: Path, values: dict[str, Any]) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    output.parent.mkdir(parents=True, exist_ok=True)
    # No TCP port, which any local user could read; sockets of its own, since two runs would choose the same names.
    with tempfile.TemporaryDirectory(prefix="rlhflow-") as sockets:
        private = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        try:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=values, kernel_name="python3", cwd=str(PROJECT),
                progress_bar=False, log_output=True, stdout_file=StageLines(), stderr_file=io.StringIO(),
                config=private, start_timeout=KERNEL_SECONDS,
            )  # fmt: skip
        except PapermillExecutionError as error:
            what = f"{error.ename}: {' '.join(str(error.evalue).split())[:600]}"
            kept = f"the notebook up to there: {stage.relative(output)}"
            raise ChapterError(f"chapter {notebook.stem}, cell {error.exec_count}: {what} ({kept})") from None


def _write_report(folder: Path) -> None:
    """Export the last chapter as one self-contained page, unless the page is newer."""
    executed, page = folder / "notebooks" / "12_reproduction_report.ipynb", folder / "report.html"
    if not executed.is_file() or (page.is_file() and page.stat().st_mtime > executed.stat().st_mtime):
        return
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, embed_images=True)
    body, _ = exporter.from_notebook_node(clean(nbformat.read(executed, as_version=4)))
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>RLHF Workflow</title><style>{STYLE}</style>"
    page.write_text(f"{head}<main>{body}</main></html>", encoding="utf-8")


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;margin:0}
main{max-width:60rem;margin:2rem auto;padding:0 1rem}
img{max-width:100%} table{border-collapse:collapse;margin:1rem 0} pre{white-space:pre-wrap}
td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem} a.anchor-link{display:none}
"""


# --- what is current ------------------------------------------------------------------------------------------------


def chapter_is_current(
    notebook: Path, values: Mapping[str, Any], profile: Profile, folder: Path, hash_of: Callable[[Path], str]
) -> bool:
    """Whether a chapter's last execution still stands. Imports nothing heavy and starts no kernel."""
    record_file = folder / "chapters" / f"{notebook.stem}.json"
    if not (record_file.is_file() and (folder / "notebooks" / notebook.name).is_file()):
        return False
    record = json.loads(record_file.read_text(encoding="utf-8"))
    if record.get("key") != chapter_key(notebook, values, profile):
        return False
    return all(_stage_is_current(folder / name, key, hash_of) for name, key in record["stages"].items())


def chapter_key(notebook: Path, values: Mapping[str, Any], profile: Profile) -> str:
    """Hash of a chapter's code, the modules it imports, its parameters, and the sections and results that it reads."""
    code = code_of(notebook)
    modules = {name: stage.hash_code(name) for name in sorted(stage.package_imports(code))}
    parameters = {name: value for name, value in values.items() if name not in WHERE}
    sections = {name: stage.describe(getattr(profile, name)) for name in sorted(sections_read(ast.parse(code)))}
    published = [stage.hash_path(folder) for name, folder in PUBLISHED.items() if name in code and folder.is_dir()]
    return stage.hash_value([stage.hash_source(code), modules, parameters, sections, published])


def code_of(notebook: Path) -> str:
    """All code cells of a notebook as one Python text, magics left out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).split("\n")]
    return "\n".join(line for line in lines if not re.match(r"\s*[%!]", line))


def sections_read(tree: ast.AST) -> set[str]:
    """Profile sections that code, or a method of `run` that it uses, names; all, where it hands either of them on."""
    parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    named, found = _named_profile(tree), set[str]()
    for node in ast.walk(tree):
        parent = parents.get(id(node))
        attribute = parent.attr if isinstance(parent, ast.Attribute) else None
        if _is_profile(node):
            if attribute not in Profile.model_fields and id(node) not in named:
                return set(Profile.model_fields)
            found |= {attribute} if attribute else set()
        elif isinstance(node, ast.Name) and node.id == "run" and isinstance(node.ctx, ast.Load):
            if not isinstance(parent, ast.Attribute | ast.BinOp | ast.Subscript | ast.Compare):
                return set(Profile.model_fields)
            found |= _sections_of_methods().get(attribute or "", set())
    return found


@cache
def _sections_of_methods() -> dict[str, set[str]]:
    """Method or property of `Run` -> profile sections that it reads."""
    methods = [node for node in ast.walk(ast.parse(inspect.getsource(Run))) if isinstance(node, ast.FunctionDef)]
    return {node.name: sections_read(node) for node in methods if node.name != "__init__"}


def _is_profile(node: ast.AST) -> bool:
    """`profile`, `run.profile` or `self.profile`, where it is read."""
    named = isinstance(node, ast.Name) and node.id == "profile" and isinstance(node.ctx, ast.Load)
    return named or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("run.profile", "self.profile"))


def _named_profile(tree: ast.AST) -> set[int]:
    """Identities of the values in `profile = run.profile`, also as a part of a longer assignment."""
    assigned = [(node.targets[0], node.value) for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    split = [[each.elts if isinstance(each, ast.Tuple) else [each] for each in sides] for sides in assigned]
    pairs = [pair for sides in split for pair in zip(*sides, strict=False)]
    return {id(value) for target, value in pairs if ast.unparse(target) == "profile"}


def _stage_is_current(folder: Path, key: str, hash_of: Callable[[Path], str]) -> bool:
    found = read_artifact(folder)
    files = {PROJECT / name: known for name, known in found.manifest["files"].items()} if found else {}
    unchanged = (path.exists() and hash_of(path) == known for path, known in files.items())
    return found is not None and found.key == key and all(unchanged)


# --- publishing -----------------------------------------------------------------------------------------------------


def sync() -> None:
    """Rebuild every notebook that differs from its source, without outputs."""
    import nbformat

    for source in sorted(SOURCES.glob("[0-9][0-9]_*.py")):
        target, wanted = NOTEBOOKS / f"{source.stem}.ipynb", read_source(source)
        if not target.is_file() or cells_of(nbformat.read(target, as_version=4)) != cells_of(wanted):
            nbformat.write(clean(wanted), target)
            print(f"notebooks/{target.name} rebuilt from its source")


def publish(run_dir: str) -> None:
    """Copy a run's executed chapters into `notebooks/`; RuntimeError where one is outdated or shows a local path.

    A chapter whose text alone has changed is not outdated: it gets the new text around the cells that ran.
    """
    import nbformat

    for executed in sorted((PROJECT / run_dir / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        ran, notebook = clean(nbformat.read(executed, as_version=4)), read_source(SOURCES / f"{executed.stem}.py")
        if cells_of(ran, "code") != cells_of(notebook, "code"):
            raise RuntimeError(f"{run_dir}/notebooks/{executed.name} is not the current chapter: run the guide again")
        done = iter([cell for cell in ran.cells if cell.cell_type == "code"])
        notebook.cells = [next(done) if cell.cell_type == "code" else cell for cell in notebook.cells]
        notebook = clean(notebook)
        if named := [path for path in (str(PROJECT), str(Path.home())) if path in nbformat.writes(notebook)]:
            raise RuntimeError(f"{executed.name} shows the path {named[0]}: print paths relative to the project")
        nbformat.write(notebook, NOTEBOOKS / executed.name)


def read_source(source: Path) -> Any:
    """The notebook that a py:percent file describes, without outputs."""
    import jupytext

    return jupytext.read(source, fmt="py:percent")


def cells_of(notebook: Any, kind: str = "") -> list[tuple[str, str, list[str]]]:
    """What makes a chapter: kind, text and tags of its cells, or of those of one kind."""
    cells = [cell for cell in notebook.cells if kind in ("", cell.cell_type)]
    return [(cell.cell_type, cell.source.strip(), list(cell.metadata.get("tags", []))) for cell in cells]


def clean(notebook: Any) -> Any:
    """The notebook as it is committed: stable ids and counters, small pictures, no traces of papermill or stderr."""
    import nbformat

    notebook.metadata, notebook.nbformat, notebook.nbformat_minor = nbformat.from_dict(METADATA), 4, 5
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            count += cell.execution_count is not None
            cell.execution_count = count if cell.execution_count is not None else None
            cell.outputs = [each for output in cell.outputs if (each := _clean_output(output, count))]
    return notebook


def _clean_output(output: Any, count: int) -> Any:
    """An output as it is committed; None for warnings, which name the machine's paths, and lines of skipped stages."""
    if output.get("name") == "stderr":
        return None
    if output.get("name") == "stdout":
        lines = output.text.splitlines(keepends=True)
        output.text = "".join(line for line in lines if not SKIPPED.match(line))
        return output if output.text.strip() else None
    if "execution_count" in output:
        output.execution_count = count
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = small_picture(output.data["image/png"])
    return output


def small_picture(encoded: str) -> str:
    """A base64 PNG with 64 colours, which are enough for a plot: a third of its size and less."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    buffer = io.BytesIO()
    # MAXCOVERAGE keeps rare colours: a single red bar must not turn orange.
    small = picture.quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def publish_results(run_dir: str) -> None:
    """Copy a run's summary and provenance to `results/<profile>/`; where the judge knows the truth, into the README."""
    last = PROJECT / run_dir / "chapters" / "12_reproduction_report.json"
    if not last.is_file():
        raise RuntimeError(f"{run_dir} is not a finished run: run the guide first")
    profile = load_profile(json.loads(last.read_text(encoding="utf-8"))["profile"])
    run, judge = Run(last.stem, profile, PROJECT / run_dir), profile.evaluation.judge
    facts = {key: run["sft"].manifest[key] for key in ("python", "versions", "commit", "dirty", "device")}
    facts |= {"profile": profile.name, "judge": judge, "mixture": profile.data.main_mixture}
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    target = tables.RESULTS / profile.name
    write_json(target / "summary.json", {"provenance": facts, "summary": summary})
    if judge == "gold":
        from rlhflow_utils.guide.figures import policies

        names = [*(f"iter{k}" for k in tables.iterations(summary)), "offline_dpo"]
        found = [run[f"{name}_evaluation"].read_json("results.json")["estimates"]["win_rate"] for name in names]
        others, caption = {"offline DPO": found.pop()}, f"{run.caption} One seed."
        policies.win_rate_over_iterations(found, judge, others, caption).savefig(target / "win_rate.png", dpi=110)
        replace_block("results", readme_block(summary, facts))


def readme_block(summary: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The README's results: the policies, then the judges."""
    rows = (tables.policy_rows(summary, facts["judge"]), tables.judge_rows(summary, facts["mixture"]))
    time_taken = f"The run took {summary['wall_seconds.total'] / 60:.1f} minutes.\n"
    return "\n\n".join([*map(tables.markdown_table, rows), time_taken])


def block_of(name: str) -> re.Pattern[str]:
    """The README's part between `<!-- name:begin -->` and `<!-- name:end -->`, as the second group."""
    return re.compile(rf"(<!-- {name}:begin -->\n)(.*?)(<!-- {name}:end -->)", re.DOTALL)


def replace_block(name: str, text: str) -> None:
    """Rewrite a block of the README."""
    readme = README.read_text(encoding="utf-8")
    README.write_text(block_of(name).sub(lambda match: match[1] + text + match[3], readme), encoding="utf-8")
