"""What goes from a run into the project: executed notebooks, results, the README's tables; and the report's page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from PIL import Image

from rlhflow_utils.guide import tables
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import PROJECT, STAGE_LINE, read_json, write_json

NOTEBOOKS = PROJECT / "notebooks"
SOURCES = NOTEBOOKS / "source"
README = PROJECT / "README.md"
LAST_CHAPTER = "12_reproduction_report"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
SKIPPED = re.compile(rf"{STAGE_LINE}.*(unchanged|skipped)")
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>RLHF Workflow</title><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>:root{color-scheme:light dark} body{font:16px/1.5 system-ui,sans-serif;margin:0} a.anchor-link{display:none}
main{max-width:60rem;margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere} img{max-width:100%;background:#fff}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto;overflow-wrap:normal}
td,th{border-bottom:1px solid #8886;padding:.25rem .7rem} pre{white-space:pre-wrap}
</style>"""


def write_report(folder: Path) -> bool:
    """Export the last chapter as one page that loads nothing and runs no script, unless it is newer; False: not run."""
    executed, page = folder / "notebooks" / f"{LAST_CHAPTER}.ipynb", folder / "report.html"
    if not executed.is_file():
        return False
    if page.is_file() and page.stat().st_mtime > executed.stat().st_mtime:
        return True
    from nbconvert import HTMLExporter  # slow to import

    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True, embed_images=True)
    body, _ = exporter.from_notebook_node(clean(nbformat.read(executed, as_version=4)))
    page.write_text(f"{HEAD}<main>{body}</main></html>", encoding="utf-8")
    return True


def sync() -> None:
    """Rebuild every notebook that differs from its source, without outputs."""
    for source in sorted(SOURCES.glob("[0-9][0-9]_*.py")):
        target, wanted = NOTEBOOKS / f"{source.stem}.ipynb", jupytext.read(source)
        if not target.is_file() or cells_of(nbformat.read(target, as_version=4)) != cells_of(wanted):
            nbformat.write(clean(wanted), target)
            print(f"notebooks/{target.name} rebuilt from its source")


def publish(run_dir: str) -> None:
    """Copy a run's executed chapters into `notebooks/`; RuntimeError where one is outdated or shows a local path.

    A chapter whose text alone has changed is not outdated: it gets the new text around the cells that ran.
    """
    for executed in sorted((PROJECT / run_dir / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        ran, notebook = clean(nbformat.read(executed, as_version=4)), jupytext.read(SOURCES / f"{executed.stem}.py")
        if cells_of(ran, "code") != cells_of(notebook, "code"):
            raise RuntimeError(f"{run_dir}/notebooks/{executed.name} is not the current chapter: run the guide again")
        done = iter([cell for cell in ran.cells if cell.cell_type == "code"])
        notebook.cells = [next(done) if cell.cell_type == "code" else cell for cell in notebook.cells]
        notebook = clean(notebook)
        if named := [path for path in (str(PROJECT), str(Path.home())) if path in nbformat.writes(notebook)]:
            raise RuntimeError(f"{executed.name} shows the path {named[0]}: print paths relative to the project")
        nbformat.write(notebook, NOTEBOOKS / executed.name)


def cells_of(notebook: Any, kind: str = "") -> list[tuple[str, str, list[str]]]:
    """What makes a chapter: kind, text and tags of its cells, or of those of one kind."""
    cells = [cell for cell in notebook.cells if kind in ("", cell.cell_type)]
    return [(cell.cell_type, cell.source.strip(), list(cell.metadata.get("tags", []))) for cell in cells]


def clean(notebook: Any) -> Any:
    """The notebook as it is committed: stable ids and counters, small pictures, no traces of papermill or stderr."""
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
            for picture in (each.data for each in cell.outputs if "image/png" in each.get("data", {})):
                title = picture["text/plain"]  # said instead of the picture by nbconvert and MyST-NB
                cell.metadata |= {"alt": title, "mystnb": {"image": {"alt": title}}}
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
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    buffer = io.BytesIO()
    # MAXCOVERAGE keeps rare colours: a single red bar must not turn orange.
    small = picture.quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def profile_of(run_dir: str) -> Profile:
    """The profile of a finished run."""
    last = PROJECT / run_dir / "chapters" / f"{LAST_CHAPTER}.json"
    if not last.is_file():
        raise RuntimeError(f"{run_dir} is not a finished run: run the guide first")
    return load_profile(read_json(last)["profile"])


def publish_results(run_dir: str) -> None:
    """Copy a run's summary and provenance to `results/<profile>/`; where the judge knows the truth, into the README."""
    profile = profile_of(run_dir)
    run, judge = Run(LAST_CHAPTER, profile, PROJECT / run_dir), profile.evaluation.judge
    facts = {key: run["sft"].manifest[key] for key in ("python", "versions", "commit", "dirty", "device")}
    facts |= {"profile": profile.name, "judge": judge, "mixture": profile.data.main_mixture}
    summary, target = read_json(run.folder / "summary.json"), tables.RESULTS / profile.name
    record: dict[str, Any] = {"provenance": facts, "seed": run.seed, "summary": summary}
    if judge == "gold":
        from rlhflow_utils.guide.figures import policies

        iterations = [f"iter{k}" for k in tables.iterations(summary)]
        without = iterations[-1].replace("iter", "unpenalised")
        penalised = {"no length penalty": without} if f"{without}_evaluation" in run else {}
        names = ("sft", "offline_dpo", *iterations, *penalised.values())
        results = {name: run[f"{name}_evaluation"].read_json("results.json") for name in names}
        estimates = {name: result["estimates"] for name, result in results.items()}
        marks = {label: estimates[name] for label, name in {"offline DPO": "offline_dpo", **penalised}.items()}
        progress = [estimates[name] for name in iterations]
        figure = policies.progress_over_iterations(estimates["sft"], progress, judge, marks, run.caption)
        target.mkdir(parents=True, exist_ok=True)
        figure.savefig(target / "progress.png", dpi=110)
        shown = {"SFT": "sft", f"iteration {len(iterations)}": iterations[-1], **penalised}
        answered = {label: run[f"{name}_answers_scored"].dataset() for label, name in shown.items()}
        texts = zip(*(rows["responses"][:] for rows in answered.values()), strict=True)
        changed = [place for place, (before, after, *_) in enumerate(texts) if before != after]
        rewards = {label: results[name]["prompts"]["reward"] for label, name in shown.items()}
        gold = {label: [values[place] for place in changed] for label, values in rewards.items()}
        answered = {label: rows.select(changed) for label, rows in answered.items()}
        answers = tables.answers_beside(answered, gold, count=6)
        record |= {"changed_answers": len(changed), "answers": answers}
        replace_block("results", readme_block(record))
    write_json(target / "summary.json", record)


def readme_block(record: Mapping[str, Any]) -> str:
    """The README's results of one run: some answers, the judges."""
    summary, facts = record["summary"], record["provenance"]
    judges = tables.judge_rows(summary, facts["mixture"])
    return "\n\n".join([
        f"One run, seed {record['seed']}. {len(record['answers'])} of the {record['changed_answers']} held-out prompts "
        "whose answer has changed, evenly spaced. In brackets: the reward of the RM, the true reward.",
        tables.markdown_table(record["answers"]),
        tables.markdown_table(judges),
        f"The run took {summary['wall_seconds.total'] / 60:.1f} minutes.\n",
    ])  # fmt: skip


def block_of(name: str) -> re.Pattern[str]:
    """A file's part between `<!-- name:begin -->` and `<!-- name:end -->`, as the second group."""
    return re.compile(rf"(<!-- {name}:begin -->\n)(.*?)(<!-- {name}:end -->)", re.DOTALL)


def replace_block(name: str, text: str, file: Path = README) -> None:
    """Rewrite a block of the README, or of another file."""
    before = file.read_text(encoding="utf-8")
    file.write_text(block_of(name).sub(lambda match: match[1] + text + match[3], before), encoding="utf-8")
