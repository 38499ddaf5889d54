"""Runs the chapters headless, in order, and skips what is current: `python -m rlhflow_utils run`.

Papermill executes; the strictness is ours. Papermill only warns about a parameter that a notebook does not have, and
checks no types: here both are errors. A chapter is skipped, without starting a kernel, when its record in
`runs/<run>/chapters/` still fits its code cells, its parameters and the keys of the stages that it used.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from PIL import Image

from rlhflow_utils.guide.code_hash import hash_value
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.provenance import PROJECT, quiet_libraries
from rlhflow_utils.guide.stage import STAGE_LINE, chapter_hash, is_current, locked, write_json
from rlhflow_utils.guide.tables import markdown_table, with_interval

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


RESULTS = PROJECT / "results"
README = PROJECT / "README.md"
BLOCK = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)
CLAIMS_BLOCK = re.compile(r"(<!-- claims:begin -->\n).*?(<!-- claims:end -->)", re.DOTALL)
CLAIMS_SHOWN = "abcdefgh"  # of the README; chapter 12 has all
POLICIES = {"sft": "SFT (π₀)", "offline_dpo": "offline DPO", "iterative_dpo": "iterative DPO"}
PAPER_LC = {"sft": "10.2", "offline_dpo": "22.5", "iterative_dpo": "37.2"}


def publish_results(run_dir: str) -> Path:
    """Copy a run's summary, with its provenance and the headline figure, to `results/<profile>/`.

    Raises:
        RuntimeError: the run is not finished.
    """
    from rlhflow_utils.guide import figures as plotting

    folder = PROJECT / run_dir
    summary_file, last = folder / "summary.json", folder / "chapters" / "12_reproduction_report.json"
    if not (summary_file.is_file() and last.is_file()):
        raise RuntimeError(f"{run_dir} is not a finished run: run the guide first")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    manifest = json.loads((folder / "02_sft" / "manifest.json").read_text(encoding="utf-8"))
    kept = ("profile", "python", "versions", "commit", "dirty", "device")
    record = {"provenance": {key: manifest[key] for key in kept}, "summary": summary}
    target = RESULTS / str(manifest["profile"])
    write_json(target / "summary.json", record)
    if manifest["profile"] == "tiny":
        n = summary["01.evaluation_prompts.rows_out"]
        figure = plotting.win_rate_over_iterations(
            [{**estimate(summary, f"09.iter{k}.gold_win_rate_vs_sft"), "n": n} for k in iterations(summary)],
            others={"offline DPO": estimate(summary, "10.offline_dpo.gold_win_rate_vs_sft")},
            caption="Simulated world, model of under one million parameters, one seed. "
            "Evidence about the method, not about LLaMA-3.",
        )
        figure.savefig(target / "win_rate.png", dpi=110)
        update_readme()
    return target


def readme_block(summary: dict[str, Any]) -> str:
    """The README's results: three policies, then the judges."""
    rows = [
        {
            "policy": name,
            "win rate vs SFT (95 % interval)": with_interval(estimate(summary, f"10.{key}.gold_win_rate_vs_sft")),
            "LC win rate": with_interval(estimate(summary, f"10.{key}.gold_lc_win_rate_vs_sft")),
            "right answers": with_interval(estimate(summary, f"10.{key}.right_share")),
            "length (characters)": summary[f"10.{key}.mean_length"],
            "exact match, untouched skill": with_interval(estimate(summary, f"10.{key}.exact_match")),
            "paper: LC AlpacaEval-2 (%)": PAPER_LC[key],
        }
        for key, name in POLICIES.items()
    ]
    loop = ", ".join(
        f"iteration {k}: {with_interval(estimate(summary, f'09.iter{k}.gold_win_rate_vs_sft'))}"
        for k in iterations(summary)[:-1]
    )
    sections = ("chat", "chat_hard", "safety", "reasoning", "overall")
    judges = [
        {"judge": label, **{s: with_interval(estimate(summary, f"05.rewardbench.{key}.{s}")) for s in sections}}
        for key, label in {"prompting": "prompting", "bt": "BT", "pm": "PM"}.items()
    ]
    bias = ", ".join(
        f"{m}: {summary[f'06.length_bias.mean_pearson.{m}']:+.3f} "
        f"({_interval(estimate(summary, f'06.length_bias.mean_pearson.{m}'))})"
        for m in ("mix1", "mix2")
    )
    minutes = summary["wall_seconds.total"] / 60
    return (
        f"{markdown_table(rows)}\n\nThe win rate on the way there, after {loop}.\n\n{markdown_table(judges)}\n\n"
        f"Held-out accuracy on clean labels: BT {with_interval(estimate(summary, '03.bt.accuracy'))}, "
        f"PM {with_interval(estimate(summary, '04.pm.accuracy'))}. "
        f"Correlation of length and reward (Fig. 5), RM of {bias}. The run took {minutes:.1f} minutes.\n"
    )


def claims_block() -> str:
    """The README's claims: the head of chapter 12's table, from `results/claims/`."""
    from rlhflow_utils.claims.verdicts import MISSING, READING, claims_table, read_records

    records = read_records()
    shown = {name: record for name, record in records.items() if name in CLAIMS_SHOWN}
    if not shown:
        return f"{MISSING}\n"
    rest = len(records) - len(shown)
    return (
        f"{markdown_table(claims_table(shown))}\n\n{READING} Chapter 12 has these and {rest} more, with every "
        "comparison.\n"
    )


def update_readme() -> None:
    """Rewrite the README's blocks from `results/tiny/summary.json` and `results/claims/`."""
    summary = json.loads((RESULTS / "tiny" / "summary.json").read_text(encoding="utf-8"))["summary"]
    text = README.read_text(encoding="utf-8")
    text = BLOCK.sub(lambda match: match[1] + readme_block(summary) + match[2], text)
    text = CLAIMS_BLOCK.sub(lambda match: match[1] + claims_block() + match[2], text)
    README.write_text(text, encoding="utf-8")


def iterations(summary: dict[str, Any]) -> list[int]:
    """Numbers of the iterations that a summary holds."""
    return sorted(int(key[7]) for key in summary if re.fullmatch(r"09\.iter\d\.gold_win_rate_vs_sft", key))


def estimate(summary: dict[str, Any], key: str) -> dict[str, float]:
    """A metric of a summary with its interval."""
    return {"value": summary[key], "ci_low": summary[f"{key}_ci_low"], "ci_high": summary[f"{key}_ci_high"]}


def _interval(value: dict[str, float]) -> str:
    return f"{value['ci_low']:.3f} … {value['ci_high']:.3f}"


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
