"""The stage contract: whole or absent, skipped while nothing it depends on has changed, resumable after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhflow_utils.guide import code_hash
from rlhflow_utils.guide import stage as manifest
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.provenance import PROJECT
from rlhflow_utils.guide.stage import Run, Stage, is_current, locked, write_json
from rlhflow_utils.guide.tables import run_line

CALLS: list[str] = []


def write_number(stage: Stage, number: int = 1) -> None:
    """A stage function: one file, one metric."""
    CALLS.append(stage.name)
    (stage.out / "number.txt").write_text(str(number + stage.profile.dpo.beta))
    stage.account("rows", 10, 7, {"too_long": 3})
    stage.metric("09.number", number)


def copy_number(stage: Stage) -> None:
    """A stage function with an input."""
    CALLS.append(stage.name)
    (stage.out / "copy.txt").write_text((stage.inputs["number"] / "number.txt").read_text())


def read_undeclared(stage: Stage) -> None:
    """Reads `dpo` without declaring it."""
    stage.metric("beta", stage.profile.dpo.beta)


def lose_rows(stage: Stage) -> None:
    """Reports rows that do not add up."""
    stage.account("pairs", 10, 6, {"too_long": 3})


def fail(stage: Stage) -> None:
    """Fails half-way."""
    (stage.out / "shard-0").write_text("done")
    raise RuntimeError("the disk is full")


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    CALLS.clear()


@pytest.fixture
def profile() -> Profile:
    return load_profile("tiny")


@pytest.fixture
def run(tmp_path: Path, profile: Profile) -> Run:
    return Run("09_test", profile, tmp_path / "run")


def _with(run: Run, overrides: dict[str, Any], seed: int | None = None) -> Run:
    return Run(run.chapter, load_profile("tiny", overrides, seed), run.run_dir)


# --- one stage ----------------------------------------------------------------------------------------------------


def test_a_finished_stage_says_where_it_comes_from(run: Run) -> None:
    folder = run.stage("09_number", write_number, reads=("dpo",), number=2)
    assert folder.path == run.run_dir / "09_number"
    assert (folder.path / "number.txt").read_text() == "2.1"
    assert folder.metrics == {"09.number": 2}
    assert folder.rows == {"rows": {"rows_in": 10, "rows_out": 7, "dropped": {"too_long": 3}}}
    record = folder.read_json("manifest.json")
    assert record["config"]["dpo"]["beta"] == 0.1
    assert record["options"] == {"number": 2}
    assert record["seed"] == manifest.stage_seed(run.profile.seed, "09_number")
    assert {"key", "config_hash", "input_hashes", "versions", "commit", "dirty", "device", "wall_seconds"} <= set(
        record
    )
    assert record["versions"]["trl"] == "1.16.0"
    assert not list((run.run_dir / ".partial").iterdir())


def test_a_failed_stage_leaves_no_folder_but_its_work(run: Run) -> None:
    with pytest.raises(RuntimeError, match="the disk is full"):
        run.stage("09_fails", fail)
    assert not (run.run_dir / "09_fails").exists()
    (partial,) = (run.run_dir / ".partial").iterdir()
    assert (partial / "shard-0").read_text() == "done"
    assert not (partial / "manifest.json").exists()


def test_reading_an_undeclared_section_is_an_error(run: Run) -> None:
    with pytest.raises(AttributeError) as caught:
        run.stage("09_beta", read_undeclared, reads=("model",))
    expected = "stage 09_beta reads profile section 'dpo' but does not declare it in `reads`"
    assert str(caught.value) == expected


def test_rows_that_do_not_add_up_are_an_error(run: Run) -> None:
    with pytest.raises(ValueError, match=r"09_rows, pairs: 10 rows in, 6 out, dropped {'too_long': 3}: not equal"):
        run.stage("09_rows", lose_rows)


def test_a_missing_stage_names_its_chapter(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"stage 02_sft is missing from .*run: run chapter 02 first"):
        run.folder("02_sft")


def test_a_missing_input_is_named(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"input .*nowhere does not exist"):
        run.stage("09_copy", copy_number, inputs={"number": Path("/nowhere")})


# --- keys ---------------------------------------------------------------------------------------------------------


def test_an_unchanged_stage_is_skipped(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.stage("09_number", write_number, reads=("dpo",))
    again = run.stage("09_number", write_number, reads=("dpo",))
    assert again.skipped
    assert CALLS == ["09_number"]
    assert "09_number: unchanged, skipped" in capsys.readouterr().out


def test_only_what_a_stage_depends_on_runs_it_again(run: Run) -> None:
    run.stage("09_number", write_number, reads=("dpo",))
    for changed, again in (
        (_with(run, {"sft.packing": True}), False),  # a section it does not read
        (_with(run, {"dpo.beta": 0.2}), True),
        (_with(run, {"dpo.beta": 0.2}, seed=5), True),
    ):
        CALLS.clear()
        folder = changed.stage("09_number", write_number, reads=("dpo",))
        assert (CALLS == ["09_number"]) is again
        assert folder.skipped is not again
    CALLS.clear()
    changed.stage("09_number", write_number, reads=("dpo",), number=3)
    assert CALLS == ["09_number"]


def test_a_change_runs_what_depends_on_it_and_nothing_else(run: Run) -> None:
    def chain(current: Run) -> None:
        number = current.stage("09_number", write_number, reads=("dpo",))
        current.stage("09_copy", copy_number, inputs={"number": number})
        current.stage("09_other", write_number, reads=("dpo",), inputs={})

    chain(run)
    CALLS.clear()
    chain(_with(run, {"dpo.beta": 0.2}))
    assert CALLS == ["09_number", "09_copy", "09_other"]
    assert (run.run_dir / "09_copy" / "copy.txt").read_text() == "1.2"


def test_files_from_outside_count_by_content(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "number.txt").write_text("5")
    run.stage("09_copy", copy_number, inputs={"number": outside})
    os.utime(outside / "number.txt", (1, 1))
    assert run.stage("09_copy", copy_number, inputs={"number": outside}).skipped
    (outside / "number.txt").write_text("6")
    assert not is_current("09_copy", run.profile, run.run_dir)
    run.stage("09_copy", copy_number, inputs={"number": outside})
    assert (run.run_dir / "09_copy" / "copy.txt").read_text() == "6"


def test_code_changes_the_key_and_comments_do_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "stagepack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    work = package / "work.py"
    work.write_text("def write(stage):\n    (stage.out / 'x').write_text('1')\n")
    monkeypatch.setattr(code_hash, "PACKAGE_FOLDER", package)
    monkeypatch.setattr(code_hash, "PACKAGE", "stagepack")
    monkeypatch.syspath_prepend(str(tmp_path))
    from stagepack.work import write  # type: ignore[import-not-found]

    run.stage("09_x", write)
    work.write_text('"""Words."""\n\ndef write(stage):\n    # why\n    (stage.out / "x").write_text("1")\n')
    assert is_current("09_x", run.profile, run.run_dir)
    work.write_text("def write(stage):\n    (stage.out / 'x').write_text('2')\n")
    assert not is_current("09_x", run.profile, run.run_dir)


def test_stages_of_an_ablation_arm_are_current_with_their_own_numbers(run: Run) -> None:
    arm = run.with_overrides({"dpo.beta": 0.3})
    arm.stage("11_arm", write_number, reads=("dpo",))
    assert arm.used is run.used
    assert is_current("11_arm", run.profile, run.run_dir)  # the runner asks with the main profile
    assert (run.run_dir / "11_arm" / "number.txt").read_text() == "1.3"
    assert not is_current("11_arm", load_profile("tiny", {"dpo.loss_type": "ipo"}), run.run_dir)


def test_every_stage_has_a_seed_of_its_own() -> None:
    seeds = {manifest.stage_seed(seed, name) for seed in (0, 1) for name in ("02_sft", "03_bt_mix1")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- kills --------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import Run

def count(stage):
    for index in range(5):
        shard = stage.out / f"shard-{index}"
        if not shard.exists():
            (stage.out / "log.txt").open("a").write(f"{index} ")
            shard.write_text(str(index))
        if index == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

Run("07_test", load_profile("tiny"), Path(sys.argv[1])).stage("07_shards", count)
"""


def _child(run_dir: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(run_dir), str(killed_at)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_a_killed_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    assert _child(tmp_path, killed_at=2).returncode == -signal.SIGKILL
    assert not (tmp_path / "07_shards").exists()
    assert list(tmp_path.glob(".partial/07_shards@*/shard-2"))
    resumed = _child(tmp_path, killed_at=-1)
    assert resumed.returncode == 0, resumed.stderr
    assert "07_shards: running (resuming)" in resumed.stdout
    stage = tmp_path / "07_shards"
    assert (stage / "log.txt").read_text() == "0 1 2 3 4 "  # nothing was made twice
    assert [(stage / f"shard-{i}").read_text() for i in range(5)] == list("01234")
    assert not list((tmp_path / ".partial").iterdir())


def test_a_kill_between_the_renames_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.stage("09_number", write_number, reads=("dpo",))
    changed = _with(run, {"dpo.beta": 0.2})
    real = os.replace

    def killed_after_the_first(source: Path, target: Path) -> None:
        if Path(target) == run.run_dir / "09_number":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "replace", killed_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            changed.stage("09_number", write_number, reads=("dpo",))
    assert not (run.run_dir / "09_number").exists()
    CALLS.clear()
    folder = changed.stage("09_number", write_number, reads=("dpo",))
    assert CALLS == []  # the finished work is published, not done again
    assert (folder.path / "number.txt").read_text() == "1.2"
    assert not list((run.run_dir / ".partial").iterdir())


def test_work_under_another_key_is_not_resumed(run: Run) -> None:
    with pytest.raises(RuntimeError):
        run.stage("09_fails", fail)
    (stale,) = (run.run_dir / ".partial").iterdir()
    shutil.copytree(stale, stale.with_name(f"{stale.name}.removed"))  # as after a kill while it was being removed
    run.stage("09_fails", write_number, reads=("dpo",))
    assert sorted(path.name for path in (run.run_dir / "09_fails").iterdir()) == ["manifest.json", "number.txt"]
    assert not list((run.run_dir / ".partial").iterdir())


def test_json_is_never_half_written(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "x.json"
    write_json(file, {"a": "é"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"}
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"}


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    message = "is in use by another run: wait for it, or choose"
    with locked(tmp_path), pytest.raises(RuntimeError, match=message), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_finished_chapter_records_the_stages_it_used(run: Run) -> None:
    first = run.stage("09_number", write_number, reads=("dpo",))
    run.folder("09_number")
    run.finish()
    record = json.loads((run.run_dir / "chapters" / "09_test.json").read_text())
    assert record["chapter"] == "09_test"
    assert record["stages"] == {"09_number": first.manifest["key"]}


def test_a_chapter_tells_where_its_numbers_come_from(run: Run) -> None:
    assert "stages made in this chapter: 0, in 0 s" in run_line(run)
    run.stage("09_number", write_number, reads=("dpo",))
    line = run_line(run)
    assert line.startswith(f"profile tiny, seed {run.profile.seed}; commit ")
    assert "torch " in line
    assert "stages made in this chapter: 1, " in line
