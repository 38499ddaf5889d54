"""Runs the chapters headless, in order, and skips what is current.

Nothing heavy is imported before a chapter has to run.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rlhflow_utils.guide import stage, tables
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run, fix_of, locked, quiet_libraries, shortened
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import PROJECT, STAGE_LINE, read_artifact, read_json, write_json

NOTEBOOKS = PROJECT / "notebooks"
PROGRESS = (STAGE_LINE, "  step ", "generation: ")  # output lines that the terminal shows too
KERNEL_SECONDS = 300  # a kernel may take so long to start: on a loaded machine, 60 (the default) is too short
PUBLISHED = {  # what stands in a chapter -> what it reads
    "tables.": tables.PAPER_FILE, "read_results": tables.RESULTS, "read_records": tables.RESULTS / "claims",
    "machines.json": tables.RESULTS / "tiny" / "machines.json",
}  # fmt: skip


class ChapterError(RuntimeError):
    """A chapter failed; the message is one line with chapter, cell and fix."""


class StageLines(io.TextIOBase):
    """Passes on a kernel's progress lines, so that the terminal shows how far a chapter is."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.startswith(PROGRESS):
                print(f"        {line}", flush=True)
        return len(text)


class Guide:
    """The chapters of one run: which of them are current, and executing the others.

    `run_dir` is relative to the project, `overrides` are dotted profile keys, `only` are numbers of chapters in two
    digits (None: all). All chapters have the same four parameters, `values`.
    """

    def __init__(
        self, profile: str, run_dir: str, seed: int | None = None, overrides: Mapping[str, Any] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.profile, overrides = load_profile(profile, overrides, seed), dict(overrides or {})
        self.values = {"PROFILE": profile, "RUN_DIR": run_dir, "SEED": self.profile.seed, "OVERRIDES": overrides}
        self.folder, self.chapters = PROJECT / run_dir, find_chapters(only)
        self.hash_of = cache(stage.hash_path)

    def run(self) -> None:
        """Execute what is not current and write `summary.json` and `report.html` into the run folder.

        ChapterError where a chapter failed: its executed notebook up to the failure is kept in the run folder.
        """
        quiet_libraries()
        with locked(self.folder):
            started, where = time.time(), self.values["RUN_DIR"]
            count = len(self.chapters)
            print(f"Guide on profile {self.profile.name}: {count} chapter(s), run folder {where}", flush=True)
            for number, chapter in enumerate(self.chapters, 1):
                position = f"[{number:2d}/{count}] {chapter.stem}"
                if self.is_current(chapter):
                    print(f"{position}: unchanged, skipped", flush=True)
                else:
                    print(f"{position}: running", flush=True)
                    print(f"{position}: done in {self._run_chapter(chapter):.0f} s", flush=True)
            write_summary(self.folder)
            from rlhflow_utils.guide.publishing import write_report

            reported = write_report(self.folder)
            page = f"Open {where}/report.html" if reported else f"Read {where}/notebooks; chapter 12 makes the report."
            print(f"Finished in {time.time() - started:.0f} s. {page}", flush=True)
            ran = [each for each in find_chapters() if self._record_file(each).is_file()]
            if outdated := [each.stem[:2] for each in ran if each not in self.chapters and not self.is_current(each)]:
                again = "The same command without --chapters runs them again."
                print(f"Outdated now: {', '.join(outdated)}. {again}", flush=True)

    def stale(self) -> list[str]:
        """Names of the chapters that are not current; running them may make later ones stale, too."""
        return [chapter.stem for chapter in self.chapters if not self.is_current(chapter)]

    def is_current(self, notebook: Path) -> bool:
        """Whether a chapter's last execution still stands. Imports nothing heavy and starts no kernel."""
        record_file = self._record_file(notebook)
        if not (record_file.is_file() and (self.folder / "notebooks" / notebook.name).is_file()):
            return False
        record = read_json(record_file)
        stages = record["stages"].items()
        return record.get("key") == self.key_of(notebook) and all(self._stands(name, key) for name, key in stages)

    def key_of(self, notebook: Path) -> str:
        """Hash of a chapter's code, of the modules it imports, and of the parameters, sections and results it reads."""
        code = code_of(notebook)
        modules = {name: stage.hash_code(name) for name in sorted(stage.package_imports(code))}
        parameters = [self.values["PROFILE"], self.values["SEED"]]  # overrides count by the sections' content
        sections = {name: stage.describe(getattr(self.profile, name)) for name in sections_read(ast.parse(code))}
        published = [stage.hash_path(path) for name, path in PUBLISHED.items() if name in code and path.exists()]
        return stage.hash_value([stage.hash_source(code), modules, parameters, sections, published])

    def _stands(self, name: str, key: str) -> bool:
        """Whether a stage is still the one of that key, and the files that it read are what they were."""
        found = read_artifact(self.folder / name)
        if found is None or found.key != key:
            return False
        files = {PROJECT / file: known for file, known in found.manifest["files"].items()}
        return all(file.exists() and self.hash_of(file) == known for file, known in files.items())

    def _record_file(self, notebook: Path) -> Path:
        return self.folder / "chapters" / f"{notebook.stem}.json"

    def _run_chapter(self, notebook: Path) -> float:
        """Execute a chapter and complete its record; returns the seconds it took."""
        record_file, started, key = self._record_file(notebook), time.time(), self.key_of(notebook)
        record_file.unlink(missing_ok=True)
        execute(notebook, self.folder / "notebooks" / notebook.name, self.values)
        if not record_file.is_file():
            raise ChapterError(f"{notebook.stem}: the last cell must call run.finish(); add it")
        record, seconds = read_json(record_file), time.time() - started
        cost = round(seconds + record.pop("saved_seconds"), 1)  # of a fresh run: with the stages that were skipped
        write_json(record_file, {**record, "key": key, "profile": self.profile.name, "wall_seconds": cost})
        write_summary(self.folder)
        return seconds


def execute(notebook: Path, output: Path, values: dict[str, Any]) -> None:
    """Run a notebook with these parameters in a kernel of its own, or raise ChapterError.

    What the kernel and its children write to stderr, beside the notebook's own, is kept in a file beside `output`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    output.parent.mkdir(parents=True, exist_ok=True)
    log = output.with_suffix(".log")
    # No TCP port, which any local user could read. A folder for its sockets and keys: two runs would choose the same
    # names, and neither the project nor the home folder need be writable.
    with tempfile.TemporaryDirectory(prefix="rlhflow-") as own, _stderr_into(log):
        files = {"transport": "ipc", "ip": f"{own}/kernel", "connection_file": f"{own}/kernel.json"}
        private = Config({"KernelManager": files})
        try:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=values, kernel_name="python3", cwd=str(PROJECT),
                progress_bar=False, log_output=True, stdout_file=StageLines(), stderr_file=io.StringIO(),
                config=private, start_timeout=KERNEL_SECONDS,
            )  # fmt: skip
        except PapermillExecutionError as error:
            plain = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))  # IPython colours it
            said = [f"{error.ename}: {error.evalue}", *plain.splitlines()]
            what = next(filter(fix_of, said), said[0])  # what the system refused may stand behind another error
            fix = "; ".join(filter(None, [fix_of(what), f"the notebook up to there: {stage.relative(output)}"]))
            raise ChapterError(f"chapter {notebook.stem}, cell {error.exec_count}: {shortened(what)} ({fix})") from None
        except (DeadKernelError, RuntimeError) as error:  # killed, for want of memory perhaps, or not even started
            last = f"the kernel's last words are in {stage.relative(log)}"
            raise ChapterError(f"chapter {notebook.stem}: {error} ({last})") from error


@contextmanager
def _stderr_into(log: Path) -> Iterator[None]:
    """Let child processes that are started here write their stderr into a file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def find_chapters(only: Sequence[str] | None = None) -> list[Path]:
    """Notebooks in reading order, all or those with the given numbers."""
    chapters = {path.name[:2]: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := sorted(set(only or []) - set(chapters)):
        raise ChapterError(f"no chapter {', '.join(unknown)}; chapters are {', '.join(chapters)}")
    return [path for number, path in chapters.items() if not only or number in only]


def write_summary(folder: Path) -> None:
    """Write `summary.json`: every metric of the stages that the chapters used, and the seconds of each chapter."""
    names = sorted({name for record in tables.chapter_records(folder) for name in record["stages"]})
    seconds = {f"wall_seconds.{chapter}": taken for chapter, taken in tables.chapter_seconds(folder).items()}
    metrics = tables.metrics_of(each for name in names if (each := read_artifact(folder / name)))
    write_json(folder / "summary.json", {**metrics, **seconds, "wall_seconds.total": round(sum(seconds.values()), 1)})


def code_of(notebook: Path) -> str:
    """All code cells of a notebook as one Python text, magics left out."""
    cells = [cell for cell in read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).split("\n")]
    return "\n".join(line for line in lines if not re.match(r"\s*[%!]", line))


def sections_read(tree: ast.AST) -> set[str]:
    """Profile sections that code, or a method of `run` that it uses, names; all, where it hands either of them on."""
    parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    assigns = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    naming = [node.value for node in assigns if re.search(r"\bprofile\b", ast.unparse(node.targets[0]))]
    named = {id(each) for value in naming for each in getattr(value, "elts", [value])}  # profile = run.profile
    found = set[str]()
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(getattr(node, "ctx", None), ast.Load) else ""
        parent = parents.get(id(node))
        attribute = parent.attr if isinstance(parent, ast.Attribute) else ""
        if name in ("profile", "run.profile", "self.profile"):
            if attribute in Profile.model_fields:
                found.add(attribute)
            elif id(node) not in named:
                return set(Profile.model_fields)
        elif name == "run":
            if not isinstance(parent, ast.Attribute | ast.BinOp | ast.Subscript | ast.Compare):
                return set(Profile.model_fields)
            found |= _sections_of_methods().get(attribute, set())
    return found


@cache
def _sections_of_methods() -> dict[str, set[str]]:
    """Method or property of `Run` -> profile sections that it reads."""
    methods = [node for node in ast.walk(ast.parse(inspect.getsource(Run))) if isinstance(node, ast.FunctionDef)]
    return {node.name: sections_read(node) for node in methods if node.name != "__init__"}
