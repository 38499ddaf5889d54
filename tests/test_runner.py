"""Headless execution: failures, skipping, the summary. The notebooks here are small but real."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import nbformat
import pytest

from rlhflow_utils import __main__ as command_line
from rlhflow_utils.guide import chapters as runner
from rlhflow_utils.guide.chapters import ChapterError, Guide, code_of, find_chapters, sections_read
from rlhflow_utils.guide.profile import ConfigError, Profile
from rlhflow_utils.guide.publishing import METADATA
from rlhflow_utils.guide.stage import PROJECT, Artifact, hash_value, read_artifact, write_json

PARAMETERS = 'PROFILE = "tiny"\nRUN_DIR = "runs/tiny"\nSEED = 0\nOVERRIDES = {}'
STAGES = """
from rlhflow_utils.guide.stage import Summary, stage

@stage
def write(settings, value, *, into):
    (into / "value.txt").write_text(str(value))
    return Summary(metrics={"value": value, "beta": settings.trainer["beta"]})

@stage
def read(file, *, into):
    return Summary(metrics={"text": file.read_text()})
"""
OPEN = """import sys
sys.path.insert(0, r"{folder}")
from pathlib import Path
from tiny_stages import read, write
from rlhflow_utils.guide.run import open_run
run = open_run("{name}", PROFILE, RUN_DIR, SEED, OVERRIDES)"""


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of notebooks in place of the guide's own."""
    (tmp_path / "tiny_stages.py").write_text(STAGES)
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def _write(guide: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = guide / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def _chapter(guide: Path, name: str, *cells: str) -> Path:
    return _write(guide, name, OPEN.format(folder=guide, name=name), *cells)


def _run(guide: Path, **keywords: Any) -> None:
    Guide("tiny", str(guide / "run"), **keywords).run()


def _stale(guide: Path, overrides: dict[str, Any] | None = None) -> list[str]:
    return Guide("tiny", str(guide / "run"), overrides=overrides).stale()


# --- what runs, and mistakes --------------------------------------------------------------------------------------


def test_chapters_are_chosen_by_number(guide: Path) -> None:
    for name in ("00_a", "01_b", "10_c"):
        _write(guide, name)
    assert [path.stem for path in find_chapters()] == ["00_a", "01_b", "10_c"]
    assert [path.stem for path in find_chapters(["10", "00"])] == ["00_a", "10_c"]
    with pytest.raises(ChapterError, match="no chapter 11; chapters are 00, 01, 10"):
        find_chapters(["00", "11"])


def test_code_is_read_without_magics(guide: Path) -> None:
    notebook = _write(guide, "01_x", "%matplotlib inline\na = 1", "!ls\nb = 2")
    assert code_of(notebook) == f"{PARAMETERS}\na = 1\nb = 2"


def test_a_wrong_override_stops_the_guide(guide: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'dpo.trainr'; did you mean 'trainer'"):
        _run(guide, overrides={"dpo.trainr.beta": 1})


def test_the_command_line_ends_in_one_line_and_status_1(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(guide, "01_x")
    assert command_line.main(["run", "--run-dir", str(guide / "run"), "--chapters", "02"]) == 1
    assert capsys.readouterr().err == "error: no chapter 02; chapters are 01\n"
    assert command_line.main(["run", "--set", "dpo.trainr.beta=1"]) == 1
    assert capsys.readouterr().err.startswith(
        "error: tiny.yaml with the override of dpo.trainr.beta: unknown key 'dpo.trainr'"
    )


# --- execution ----------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_one_line_and_the_notebook_is_kept(guide: Path) -> None:
    _chapter(guide, "01_x", 'print("before")', 'raise ValueError("row 3 of shp.jsonl has no field\\n  score_A")')
    _write(guide, "02_y")
    with pytest.raises(ChapterError) as caught:
        _run(guide)
    message = str(caught.value)
    assert message.startswith(
        "chapter 01_x, cell 5: ValueError: row 3 of shp.jsonl has no field score_A (the notebook up"
    )
    assert "\n" not in message
    kept = guide / "run" / "notebooks" / "01_x.ipynb"
    assert kept.name in message
    outputs = [out for cell in nbformat.read(kept, as_version=4).cells for out in cell.get("outputs", [])]
    assert any(out.get("text") == "before\n" for out in outputs)
    assert any(out["output_type"] == "error" for out in outputs)
    assert not (guide / "run" / "chapters" / "01_x.json").exists()
    assert not (guide / "run" / "notebooks" / "02_y.ipynb").exists()


CLOSED = """
try:
    file = open("/dev/full", "w")
    file.write("x")
    file.flush()
except OSError:
    raise RuntimeError("the writer is closed")
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("cell", ['print("x", file=open("/dev/full", "w"), flush=True)', CLOSED])
def test_a_full_disk_in_a_cell_is_one_line_with_what_to_do(cell: str, guide: Path) -> None:
    """Also where a writer that cannot be closed hides it."""
    _chapter(guide, "01_x", cell)
    with pytest.raises(ChapterError) as caught:
        _run(guide)
    message = (
        "chapter 01_x, cell 4: OSError: [Errno 28] No space left on device (free some space, or write to another disk"
    )
    assert str(caught.value).startswith(f"{message}; the notebook up to there: ")
    assert "\n" not in str(caught.value)


STAGE = 'folder = write(run.profile.dpo, 3, into=run / "value")'


def _rewrite(made: Artifact, **changes: Any) -> None:
    """Another manifest, as if the stage had written it."""
    manifest = made.manifest | changes
    write_json(made.path / "manifest.json", {**manifest, "checksum": hash_value(manifest)})


def _summary(guide: Path) -> dict[str, Any]:
    return dict(json.loads((guide / "run" / "summary.json").read_text()))


def test_chapters_run_once_and_again_only_when_they_must(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _chapter(guide, "01_x", STAGE, "run.finish()")
    assert _stale(guide) == ["01_x"]
    _run(guide)
    first = capsys.readouterr().out
    assert "[ 1/1] 01_x: running" in first
    assert "▸ value: running" in first  # the kernel's stage lines reach the terminal
    summary = _summary(guide)
    assert (summary["value.value"], summary["value.beta"]) == (3, 0.1)
    assert summary["wall_seconds.total"] == summary["wall_seconds.01_x"] > 0

    _chapter(guide, "01_x", STAGE, "run.finish()", "# only a comment")
    _run(guide, overrides={"sft.trainer.packing": True})  # no cell of this chapter names the section
    assert "[ 1/1] 01_x: unchanged, skipped" in capsys.readouterr().out
    assert _stale(guide) == []

    _run(guide, overrides={"dpo.trainer.beta": 0.2})
    assert "▸ value: running" in capsys.readouterr().out
    assert _summary(guide)["value.beta"] == 0.2

    made = read_artifact(guide / "run" / "value")
    assert made is not None
    _rewrite(made, wall_seconds=1000.0)
    _chapter(guide, "01_x", STAGE, "shown = folder.metrics", "run.finish()")
    _chapter(guide, "02_y", 'folder = run["value"]', "run.finish()")
    _run(guide, overrides={"dpo.trainer.beta": 0.2})
    again = capsys.readouterr().out
    assert "[ 1/2] 01_x: running" in again  # its code changed,
    assert "▸ value: unchanged, skipped" in again  # its stage did not
    summary = _summary(guide)
    assert 1000 < summary["wall_seconds.01_x"] < 1100, "a skipped stage counts with what it took when it ran"
    assert summary["wall_seconds.02_y"] < 100, "and counts once, for the chapter that made it"

    _run(guide, overrides={"dpo.trainer.beta": 0.3}, only=["01"])
    assert "Outdated now: 02. The same command without --chapters runs them again." in capsys.readouterr().out
    _rewrite(made, key="x")
    assert _stale(guide, overrides={"dpo.trainer.beta": 0.2}) == ["01_x", "02_y"], "its stages are others now"


def test_a_chapter_depends_on_the_content_of_files(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = guide / "rows.txt"
    file.write_text("one")
    _chapter(guide, "01_x", f'folder = read(Path(r"{file}"), into=run / "rows")', "run.finish()")
    _run(guide)
    assert _stale(guide) == []
    file.write_text("two")
    assert _stale(guide) == ["01_x"]
    (guide / "run" / "notebooks" / "01_x.ipynb").unlink()
    file.write_text("one")
    assert _stale(guide) == ["01_x"], "without its executed notebook"
    capsys.readouterr()


def test_a_chapter_depends_on_the_published_numbers_that_it_shows(guide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = guide / "paper.yaml"
    monkeypatch.setattr(runner, "PUBLISHED", {"tables.": paper})
    keys = {"tables.show(rows)": list[str](), "rows": []}
    for number in ("1", "2"):
        paper.write_text(number)
        for code, found in keys.items():
            found.append(Guide("tiny", str(guide / "run")).key_of(_write(guide, "01_x", code)))
    assert {code: len(set(found)) for code, found in keys.items()} == {"tables.show(rows)": 2, "rows": 1}


@pytest.mark.parametrize(
    ("code", "sections"),
    [
        ("run.profile.dpo.trainer", {"dpo"}),
        ("profile = run.profile\nprofile.sft, profile.model", {"sft", "model"}),
        ("profile, sft = run.profile, run['sft']\nprofile.dpo", {"dpo"}),
        ("sft, other = run['sft'], run.profile", None),
        ("run / 'x', run['x'], 'x' in run, run.seed, run.finish()", {"seed"}),
        ("run.caption", {"name", "world"}),
        ("run.data_root(), run.base_model()", {"data", "world", "model"}),
        ("train(profile)", None),
        ("rank(run, model)", None),
        ("rank(run=run)", None),
        ("other = run.profile", None),
        ("print(profile.model_dump())", None),
        ("print(run_dir, profiles)", set()),
    ],
)
def test_sections_that_a_chapter_reads(code: str, sections: set[str] | None) -> None:
    """Handing on the profile or the run means all sections."""
    assert sections_read(ast.parse(code)) == (set(Profile.model_fields) if sections is None else sections)


def test_a_repeated_run_needs_no_heavy_import(guide: Path) -> None:
    code = (
        "import sys; from rlhflow_utils.guide.chapters import Guide\n"
        "Guide('tiny', 'runs/none').stale()\n"
        "heavy = ('torch', 'datasets', 'papermill', 'nbformat', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_two_runs_at_once_do_not_meet(guide: Path) -> None:
    """Kernels have sockets and keys of their own, outside the project and the home folder, which may be read-only."""
    _chapter(guide, "01_x", "import time; time.sleep(1)", STAGE, "run.finish()")
    (guide / "file").touch()
    before = sorted(PROJECT.iterdir())
    code = (
        "import sys; from pathlib import Path; from rlhflow_utils.guide import chapters\n"
        "chapters.NOTEBOOKS = Path(sys.argv[1]) / 'notebooks'\n"
        "chapters.Guide('tiny', sys.argv[2]).run()"
    )
    environment = {**os.environ, "JUPYTER_RUNTIME_DIR": f"{guide}/file/cannot-be-made"}
    commands = [[sys.executable, "-c", code, str(guide), str(guide / name)] for name in ("run", "other")]
    runs = [
        subprocess.Popen(each, cwd=PROJECT, stdout=PIPE, stderr=PIPE, text=True, env=environment) for each in commands
    ]
    try:
        said = [each.communicate(timeout=200) for each in runs]
    finally:
        for each in runs:
            each.kill()
    assert [(each.returncode, errors) for each, (_, errors) in zip(runs, said, strict=True)] == [(0, "")] * 2
    for (output, _), name in zip(said, ("run", "other"), strict=True):
        assert output.splitlines()[-1].endswith("chapter 12 makes the report."), "no report is named that is not there"
        assert (guide / name / "value" / "value.txt").read_text() == "3"
    assert sorted(PROJECT.iterdir()) == before


def test_a_kernel_that_dies_is_one_line_and_leaves_its_last_words(guide: Path) -> None:
    _chapter(guide, "01_x", "import os; os.write(2, b'out of memory')", "os._exit(9)")
    with pytest.raises(
        ChapterError, match=r"^chapter 01_x: Kernel died \(the kernel's last words are in .*01_x.log\)$"
    ):
        _run(guide)
    assert "out of memory" in (guide / "run" / "notebooks" / "01_x.log").read_text()


def test_a_chapter_must_finish(guide: Path) -> None:
    _chapter(guide, "01_x", "x = 1")
    with pytest.raises(ChapterError, match=r"01_x: the last cell must call run.finish\(\); add it"):
        _run(guide)
