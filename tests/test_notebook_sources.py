"""The committed notebooks: each is its `.py`, executed, strict in its parameters, small and free of this machine."""

from __future__ import annotations

import ast
import base64
import io
import re
from contextlib import nullcontext, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from PIL import Image

from rlhflow_utils.guide import publishing
from rlhflow_utils.guide.chapters import NOTEBOOKS, code_of
from rlhflow_utils.guide.publishing import SOURCES, cells_of, clean, small_picture
from rlhflow_utils.guide.stage import PROJECT

CHAPTERS = [f"{number:02d}" for number in range(13)]
NAMES = sorted(path.stem for path in SOURCES.glob("[0-9][0-9]_*.py"))
PARAMETERS = {"PROFILE": "tiny", "RUN_DIR": "runs/tiny", "SEED": 0, "OVERRIDES": {}}
MAX_BYTES = 400 * 1024
MAX_LINES = 30
MAX_IMPORTS = 8
FOLD = "\n<details><summary>Solution</summary>\n\n"
RAN = re.compile(r"^```python\n(.+?)^```$.+?^```text\n([^`]+)^```$", re.MULTILINE | re.DOTALL)


@cache
def _notebook(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def _code_cells(name: str) -> list[Any]:
    return [cell for cell in _notebook(name).cells if cell.cell_type == "code"]


def _tree(name: str) -> ast.Module:
    return ast.parse(code_of(NOTEBOOKS / f"{name}.ipynb"))


def test_all_thirteen_chapters_are_there() -> None:
    assert [name[:2] for name in NAMES] == CHAPTERS
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_its_source(name: str) -> None:
    assert cells_of(_notebook(name)) == cells_of(jupytext.read(SOURCES / f"{name}.py")), "run: make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_four_and_each_is_used(name: str) -> None:
    [tagged] = [cell for cell in _code_cells(name) if "parameters" in cell.metadata.get("tags", [])]
    assigned = [node for node in ast.parse(tagged.source).body if isinstance(node, ast.Assign)]
    assert {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in assigned} == PARAMETERS
    nodes = [node for node in ast.walk(_tree(name)) if isinstance(node, ast.Name) and node.id in PARAMETERS]
    for parameter in PARAMETERS:
        contexts = [type(node.ctx) for node in nodes if node.id == parameter]
        assert ast.Load in contexts, f"{parameter} is never read"
        assert contexts.count(ast.Store) == 1, f"{parameter} is bound again"


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_that_of_a_chapter(name: str) -> None:
    """Few imports, no class, functions of ten lines at most but for Algorithm 1, and no code printed as a string."""
    tree = _tree(name)
    opening = _code_cells(name)[1]  # the first is that of the parameters
    imports = [node for node in ast.parse(opening.source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert sum((node.end_lineno or 0) - node.lineno + 1 for node in imports) <= MAX_IMPORTS
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 10}
    assert long <= {"algorithm_1"}
    assert "print(inspect.getsource" not in code_of(NOTEBOOKS / f"{name}.ipynb")


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short(name: str) -> None:
    for cell in _code_cells(name):
        lines = len(cell.source.splitlines())
        assert lines <= MAX_LINES, f"{lines} lines in the cell that begins {cell.source.splitlines()[0]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_executed_from_top_to_bottom_without_errors(name: str) -> None:
    cells = [cell for cell in _code_cells(name) if cell.source.strip()]
    counts = [cell.execution_count for cell in cells]
    assert None not in counts, "not executed: make guide, then make notebooks"
    assert counts == sorted(set(counts))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output.evalue for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_small_and_names_no_machine(name: str) -> None:
    file = NOTEBOOKS / f"{name}.ipynb"
    assert file.stat().st_size <= MAX_BYTES, f"{file.stat().st_size / 1024:.0f} KB"
    for path in (file, SOURCES / f"{name}.py"):
        text = path.read_text(encoding="utf-8")
        found = [
            word for word in (str(PROJECT), str(Path.home()) + "/", "/tmp/", "/home/", "site-packages") if word in text
        ]
        assert not found, f"{path.name} shows {found}"


@pytest.mark.parametrize("name", NAMES)
def test_the_chapter_opens_and_finishes_its_run(name: str) -> None:
    calls = [node for node in ast.walk(_tree(name)) if isinstance(node, ast.Call)]
    opened = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "open_run"]
    assert len(opened) == 1
    assert isinstance(opened[0].args[0], ast.Constant)
    assert opened[0].args[0].value == name
    assert any(isinstance(node.func, ast.Attribute) and node.func.attr == "finish" for node in calls)


def _exercises(name: str) -> list[tuple[str, str]]:
    """What to do, and the folded solution, of each exercise of a chapter's source."""
    cells = jupytext.read(SOURCES / f"{name}.py").cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    _, heading, section = text.partition("\n## Exercises\n")
    assert heading, "no section of exercises"
    parts = [part.partition(FOLD) for part in re.split(r"^(?=\*\*\d\. )", section, flags=re.MULTILINE)[1:]]
    assert all(fold and "\n\n</details>" in solution for _, fold, solution in parts), "a solution is not folded"
    return [(task, solution) for task, _, solution in parts]


@pytest.mark.parametrize("name", NAMES)
def test_exercises_state_minutes_what_to_type_and_a_solution_that_was_run(name: str) -> None:
    exercises = _exercises(name)
    assert 1 <= len(exercises) <= 3
    for number, (task, solution) in enumerate(exercises, start=1):
        assert re.match(rf"\*\*{number}\. [^*]+\*\* \(\d+ minutes[,)]", task), task.splitlines()[0]
        assert re.search(r"^```(python|bash)$", task, flags=re.MULTILINE), f"exercise {number} says nothing to type"
        assert RAN.search(solution), f"exercise {number} has no code with its output"
        for code in re.findall(r"^```python\n(.*?)^```$", task + solution, flags=re.MULTILINE | re.DOTALL):
            compile(code, f"{name}, exercise {number}", "exec")


def test_the_solutions_of_chapter_11_print_what_the_records_say(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        for cell in jupytext.read(SOURCES / "11_ablations.py").cells:
            if cell.cell_type == "code" and "run.finish()" not in cell.source:
                exec(cell.source.replace("runs/tiny", str(tmp_path)), scope)
    for _, solution in _exercises("11_ablations"):
        code, printed = RAN.search(solution).groups()  # type: ignore[union-attr]
        with redirect_stdout(io.StringIO()) as shown:
            exec(code, scope)
        assert shown.getvalue() == printed, "the records have changed: correct the solution, and what it says below"


def test_a_published_notebook_has_no_traces() -> None:
    """Papermill's cell, warnings and the lines of skipped stages go; counters begin at one."""
    cells = [
        nbformat.v4.new_code_cell("SEED = 1", metadata={"tags": ["injected-parameters"], "papermill": {}}),
        nbformat.v4.new_code_cell("x", execution_count=2, metadata={"papermill": {"duration": 1}}),
        nbformat.v4.new_code_cell("y", execution_count=3),
    ]
    stream = nbformat.v4.new_output
    skipped, done = "▸ sft: unchanged, skipped\n", "▸ iter1_dpo: done in 12 s\n"
    cells[1].outputs = [
        stream("stream", name="stderr", text="/somewhere/warnings.py"), stream("stream", name="stdout", text=skipped),
        stream("stream", name="stdout", text=skipped + done),
    ]  # fmt: skip
    cells[2].outputs = [stream("execute_result", data={"text/plain": "5"}, execution_count=3)]
    found = clean(nbformat.v4.new_notebook(cells=cells, metadata={"papermill": {"version": "2"}}))
    nbformat.validate(found)
    assert "papermill" not in str(found)
    assert [cell.source for cell in found.cells] == ["x", "y"]
    assert [cell.execution_count for cell in found.cells] == [1, 2]
    assert [output.text for output in found.cells[0].outputs] == [done]
    assert found.cells[1].outputs[0].execution_count == 2
    assert [cell.id for cell in found.cells] == ["cell-00", "cell-01"]


def test_only_the_current_chapter_without_local_paths_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in (
        ("PROJECT", tmp_path),
        ("NOTEBOOKS", tmp_path / "notebooks"),
        ("SOURCES", tmp_path / "source"),
    ):
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(publishing, name, folder)
    (tmp_path / "source" / "01_x.py").write_text("# %% [markdown]\n# # One\n\n# %%\n1 + 1\n")
    publishing.sync()
    target, executed = tmp_path / "notebooks" / "01_x.ipynb", tmp_path / "run" / "notebooks" / "01_x.ipynb"
    notebook = nbformat.read(target, as_version=4)
    assert [cell.source for cell in notebook.cells] == ["# One", "1 + 1"]
    executed.parent.mkdir(parents=True)
    for text, message in ((f"{tmp_path}/rows", "01_x.ipynb shows the path"), ("2", None)):
        notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        nbformat.write(notebook, executed)
        with pytest.raises(RuntimeError, match=message) if message else nullcontext():
            publishing.publish("run")
    assert nbformat.read(target, as_version=4).cells[1].outputs[0].text == "2"
    (tmp_path / "source" / "01_x.py").write_text("# %%\n2 + 2\n")
    with pytest.raises(RuntimeError, match=r"01_x.ipynb is not the current chapter: run the guide again"):
        publishing.publish("run")


def test_a_small_picture_keeps_its_size_and_its_look() -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.imshow([[0.1, 0.5], [0.7, 0.9]])
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    small = base64.b64decode(small_picture(base64.b64encode(buffer.getvalue()).decode()))
    before, after = (plt.imread(io.BytesIO(data))[..., :3] for data in (buffer.getvalue(), small))
    assert before.shape == after.shape
    assert abs(before - after).max() < 0.1
    assert len(small) < len(buffer.getvalue())


def test_a_published_picture_has_its_title_as_alternative_text() -> None:
    from IPython.core.formatters import PlainTextFormatter
    from nbconvert import HTMLExporter

    from rlhflow_utils.guide.figures import style

    figure, [axes] = style.new_figure()
    axes.plot([1, 2])
    buffer = io.BytesIO()
    style.finish(figure, "The loss falls; " + "mix1, " * 20 + "at the end").savefig(buffer)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": PlainTextFormatter()(figure)}
    cell = nbformat.v4.new_code_cell("figure", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("execute_result", data=data, execution_count=1)]
    found = clean(clean(nbformat.v4.new_notebook(cells=[cell])))
    nbformat.validate(found)
    title = f"The loss falls; {'mix1, ' * 20}at the end"
    assert found.cells[0].metadata["mystnb"] == {"image": {"alt": title}}
    assert f'alt="{title}"' in HTMLExporter(template_name="basic").from_notebook_node(found)[0]


def test_a_published_picture_keeps_its_rare_colours() -> None:
    """Colours carry verdicts: thousands of orange and grey pixels must not swallow twenty red ones."""
    picture = Image.effect_noise((400, 300), 60).convert("RGB")
    picture.paste((230, 159, 0), (0, 0, 200, 100))
    picture.paste((213, 94, 0), (10, 10, 30, 11))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    small = small_picture(base64.b64encode(buffer.getvalue()).decode())
    shown = Image.open(io.BytesIO(base64.b64decode(small))).convert("RGB")
    assert max(abs(a - b) for a, b in zip(shown.getpixel((20, 10)), (213, 94, 0), strict=True)) <= 20
    assert max(abs(a - b) for a, b in zip(shown.getpixel((100, 50)), (230, 159, 0), strict=True)) <= 20
