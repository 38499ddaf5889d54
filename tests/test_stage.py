"""The stage contract: whole or absent, skipped while nothing it depends on has changed, resumable after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset, enable_caching, load_from_disk

from rlhflow_utils.guide import stage as core
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.run import Run, locked
from rlhflow_utils.guide.settings import DpoSettings
from rlhflow_utils.guide.stage import (
    PROJECT,
    Artifact,
    Rows,
    Summary,
    check_contents,
    describe,
    hash_path,
    hash_value,
    package_imports,
    relative,
    seed_for,
    stage,
    write_json,
)

CALLS: list[str] = []


@dataclass(frozen=True)
class Part:
    """A part of an artifact, as `Prompts` is."""

    data: Artifact
    start: int = 0


@stage
def write_number(settings: DpoSettings, number: int = 1, *, into: Path, cache_file: Path | None = None) -> Summary:
    """One file, one metric."""
    CALLS.append("number")
    (into / "number.txt").write_text(str(number + settings.trainer["beta"]))
    return Summary({"rows": Rows(10, 7, {"too_long": 3})}, {"number": number})


@stage
def copy_number(number: Artifact | Path | Part, *, into: Path) -> Summary:
    """A stage with an input."""
    CALLS.append("copy")
    source = number.data.path if isinstance(number, Part) else getattr(number, "path", number)
    (into / "copy.txt").write_text((source / "number.txt").read_text())
    return Summary()


@stage
def fail(*, into: Path) -> Summary:
    """Fails half-way."""
    (into / "shard-0").write_text("done")
    raise RuntimeError("the disk is full")


@stage
def write_rows(*, into: Path) -> Summary:
    """Three rows as a `datasets` folder."""
    Dataset.from_dict({"number": [1, 2, 3]}).save_to_disk(into / "data")
    return Summary()


@stage
def map_rows(*, into: Path) -> Summary:
    """Maps rows as a training in a process of its own does, where nobody has told `datasets` not to keep caches."""
    enable_caching()
    write_rows.__wrapped__(into=into)  # type: ignore[attr-defined]
    data = load_from_disk(str(into / "data")).map(lambda row: {"twice": 2 * row["number"]})
    assert {Path(file["filename"]).parent for file in data.cache_files} == {into / "data"}
    return Summary()


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    CALLS.clear()


@pytest.fixture
def profile() -> Profile:
    return load_profile("tiny")


@pytest.fixture
def run(tmp_path: Path, profile: Profile) -> Run:
    return Run("09_test", profile, tmp_path / "run")


@pytest.fixture
def dpo(profile: Profile) -> DpoSettings:
    return profile.dpo


def _beta(settings: DpoSettings, beta: float) -> DpoSettings:
    return settings.model_copy(update={"trainer": {**settings.trainer, "beta": beta}})


# --- one stage ----------------------------------------------------------------------------------------------------


def test_a_finished_stage_says_where_it_comes_from(run: Run, dpo: DpoSettings) -> None:
    found = write_number(dpo, 2, into=run / "number")
    assert found.path == run.folder / "number"
    assert (found.path / "number.txt").read_text() == "2.1"
    assert found.metrics == {"number": 2}
    assert found.rows == {"rows": {"rows_in": 10, "rows_out": 7, "dropped": {"too_long": 3}}}
    record = found.read_json("manifest.json")
    assert record["arguments"]["settings"]["trainer"]["beta"] == 0.1
    assert record["arguments"]["number"] == 2
    assert record["function"].endswith("test_stage.write_number")
    assert {"key", "inputs", "files", "versions", "commit", "dirty", "device", "wall_seconds", "started"} <= set(record)
    assert record["versions"]["trl"] == "1.16.0"
    assert not list((run.folder / ".partial").iterdir())
    copied = copy_number(found, into=run / "copy")
    assert copied.manifest["inputs"] == {"number": ["number"]}


def test_a_failed_stage_leaves_no_folder_but_its_work(run: Run) -> None:
    with pytest.raises(RuntimeError, match="the disk is full"):
        fail(into=run / "fails")
    assert not (run.folder / "fails").exists()
    (partial,) = (run.folder / ".partial").iterdir()
    assert (partial / "shard-0").read_text() == "done"
    assert not (partial / "manifest.json").exists()


def test_rows_that_do_not_add_up_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"10 rows in, 6 out, dropped {'too_long': 3}: not equal"):
        Rows(10, 6, {"too_long": 3})
    assert Rows(10, 7, {"too_long": 3}).rows_out == 7


def test_a_missing_stage_names_the_way_to_make_it(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"sft is missing: run the chapters before 09_test first \(make guide"):
        run["sft"]
    assert "sft" not in run


def test_a_missing_input_is_named(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"input .*nowhere does not exist"):
        copy_number(Path("/nowhere"), into=run / "copy")


def test_a_finished_folder_stays_as_it_is_when_its_rows_are_mapped_and_filtered(run: Run) -> None:
    """`datasets` writes the results of `map` and `filter` beside the rows, unless told not to."""
    enable_caching()
    rows = write_rows(into=run / "rows")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in rows.path.rglob("*")}
    key = hash_path(rows.path)
    data = rows.dataset().map(lambda row: {"twice": 2 * row["number"]}).filter(lambda row: row["number"] > 1)
    assert data.shuffle(seed=0).sort("number")["twice"] == [4, 6]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in rows.path.rglob("*")} == before
    assert hash_path(rows.path) == key


def test_no_cache_file_of_datasets_is_published(run: Run) -> None:
    found = map_rows(into=run / "mapped")
    assert not list(found.path.rglob("cache-*"))
    assert sorted(found.manifest["contents"]) == sorted(write_rows(into=run / "rows").manifest["contents"])
    check_contents(found.path, tuple(found.manifest["contents"].items()))


# --- damage -------------------------------------------------------------------------------------------------------


def _damaged(file: Path, stage: Path) -> str:
    """What is said of a damaged file: one line that names it and the folder to delete."""
    fix = f"delete the folder {relative(stage)} and run again to remake it"
    return re.escape(f"{relative(file)} is damaged: {fix}") + "$"


def test_one_flipped_bit_is_found_before_a_stage_reads_it(run: Run, dpo: DpoSettings) -> None:
    file = write_number(dpo, into=run / "number").path / "number.txt"
    before = file.stat()
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1, *file.read_bytes()[1:]]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as where the disk has changed it
    number = write_number(dpo, into=run / "number")
    assert CALLS == ["number"], "what is skipped is not read"
    for into in (number, Part(number)):
        with pytest.raises(ValueError, match=_damaged(file, number.path)):
            copy_number(into, into=run / "copy")
    assert CALLS == ["number"]
    assert not (run.folder / ".partial" / "copy").exists()
    shutil.rmtree(number.path)
    copy_number(write_number(dpo, into=run / "number"), into=run / "copy")
    assert CALLS == ["number", "number", "copy"]
    assert (run.folder / "copy" / "copy.txt").read_text() == "1.1"


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: os.truncate(file, 1)], ids=["gone", "truncated"])
def test_a_file_that_is_gone_or_cut_off_is_found(harm: Callable[[Path], None], run: Run, dpo: DpoSettings) -> None:
    number = write_number(dpo, into=run / "number")
    harm(number.path / "number.txt")
    with pytest.raises(ValueError, match=_damaged(number.path / "number.txt", number.path)):
        copy_number(number, into=run / "copy")


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff", None])
def test_a_manifest_that_was_edited_is_found_when_it_is_read(text: str | None, run: Run, dpo: DpoSettings) -> None:
    file = write_number(dpo, into=run / "number").path / "manifest.json"
    edited = file.read_text().replace('"number": 1', '"number": 2') if text is None else text
    file.write_bytes(edited.encode("latin-1"))
    for read in (lambda: write_number(dpo, into=run / "number"), lambda: run["number"]):
        with pytest.raises(ValueError, match=_damaged(file, file.parent)):
            read()


def test_inputs_are_read_once_a_process(run: Run, dpo: DpoSettings) -> None:
    number = write_number(dpo, into=run / "number")
    copy_number(number, into=run / "copy")
    (number.path / "number.txt").write_text("5")
    copy_number(Part(number), into=run / "other")
    assert (run.folder / "other" / "copy.txt").read_text() == "5"


# --- keys ---------------------------------------------------------------------------------------------------------


def test_an_unchanged_stage_is_skipped(run: Run, dpo: DpoSettings, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_number(dpo, into=run / "number")
    again = write_number(dpo, into=run / "number")
    assert CALLS == ["number"]
    assert again == first
    assert capsys.readouterr().out.splitlines()[-1] == "▸ number: unchanged, skipped"


def test_arguments_are_the_key_and_where_to_write_is_not(run: Run, dpo: DpoSettings, tmp_path: Path) -> None:
    first = write_number(dpo, into=run / "number")
    assert write_number(settings=dpo, number=1, into=run / "other").key == first.key, (
        "neither name nor form of the call"
    )
    assert write_number(dpo, into=run / "number", cache_file=tmp_path / "cache").key == first.key
    CALLS.clear()
    changed = [write_number(_beta(dpo, 0.2), into=run / "number"), write_number(dpo, 3, into=run / "number")]
    assert CALLS == ["number", "number"]
    assert len({first.key, *(each.key for each in changed)}) == 3


def test_a_change_runs_what_depends_on_it(run: Run, dpo: DpoSettings) -> None:
    keys = []
    for settings in (dpo, _beta(dpo, 0.2), _beta(dpo, 0.2)):
        number = write_number(settings, into=run / "number")
        keys.append(copy_number(number, into=run / "copy").key)
    assert CALLS == ["number", "copy", "number", "copy"]
    assert keys[0] != keys[1] == keys[2]
    assert (run.folder / "copy" / "copy.txt").read_text() == "1.2"
    assert copy_number(Part(number), into=run / "copy").key != copy_number(Part(number, 5), into=run / "copy").key


def test_what_made_a_stage_run_again_is_said(
    run: Run, dpo: DpoSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for settings, count in ((dpo, 1), (_beta(dpo, 0.2), 1), (dpo, 3)):
        copy_number(write_number(settings, count, into=run / "number"), into=run / "copy")
    monkeypatch.setattr(core, "hash_code", lambda module: "other")
    write_number(dpo, 3, into=run / "number")
    said = [line for line in capsys.readouterr().out.splitlines() if "running" in line]
    before = dpo.trainer["beta"]
    assert said == [
        "▸ number: running",
        "▸ copy: running",
        f"▸ number: running (settings.trainer.beta {before} → 0.2)",
        "▸ copy: running (number has changed)",
        f"▸ number: running (settings.trainer.beta 0.2 → {before}, number 1 → 3)",
        "▸ copy: running (number has changed)",
        "▸ number: running (its code has changed)",
    ]


def test_files_from_outside_count_by_content(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "number.txt").write_text("5")
    first = copy_number(outside, into=run / "copy")
    assert first.manifest["files"] == {os.path.relpath(outside, PROJECT): hash_path(outside)}
    os.utime(outside / "number.txt", (1, 1))
    assert copy_number(outside, into=run / "copy").key == first.key
    (outside / "number.txt").write_text("6")
    copy_number(outside, into=run / "copy")
    assert (run.folder / "copy" / "copy.txt").read_text() == "6"


def test_equal_work_is_shared_under_its_key(tmp_path: Path, profile: Profile) -> None:
    shared = Run("11_test", profile, tmp_path / "claims", by_key=True)
    first = write_number(profile.dpo, into=shared / "one variant")
    second = write_number(profile.dpo, into=shared / "another")
    assert CALLS == ["number"]
    assert first.path == second.path == tmp_path / "claims" / f"write_number-{first.key}"
    assert write_number(_beta(profile.dpo, 0.3), into=shared / "another").path != first.path


@pytest.mark.parametrize("value", [open, object(), {1, 2}])
def test_what_has_no_content_cannot_be_an_argument(value: object) -> None:
    with pytest.raises(TypeError, match="a stage cannot depend on a"):
        describe(value)


def test_hashes_of_values_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hash_value({"a": 1, "b": [1, 2]}) == hash_value({"b": [1, 2], "a": 1})
    assert hash_value({"b": [1, 2]}) != hash_value({"b": [2, 1]})
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "rows.jsonl").write_text("{}\n")
    assert hash_path(tmp_path / "one") == hash_path(tmp_path / "two")
    (tmp_path / "two" / "sub" / "rows.jsonl").rename(tmp_path / "two" / "sub" / "other.jsonl")
    assert hash_path(tmp_path / "one") != hash_path(tmp_path / "two")
    monkeypatch.setattr(core, "LARGE_FILE", 1)  # then the content is not read
    before = hash_path(tmp_path / "one")
    os.utime(tmp_path / "one" / "sub" / "rows.jsonl", (1, 1))
    assert hash_path(tmp_path / "one") != before


def test_every_label_has_a_seed_of_its_own() -> None:
    seeds = {seed_for(seed, label) for seed in (0, 1) for label in ("sft", "bt_mix1")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- code in the key ----------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package: work -> tools -> sub.deep, lazily; `other` is apart."""
    folder = tmp_path / "pack"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "work.py").write_text("from pack import tools\n\ndef run():\n    return tools.two()\n")
    (folder / "tools.py").write_text("def two():\n    from pack.sub.deep import ONE\n    return ONE + ONE\n")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "deep.py").write_text("ONE = 1\n")
    (folder / "other.py").write_text("X = 1\n")
    monkeypatch.setattr(core, "PACKAGE_FOLDER", folder)
    monkeypatch.setattr(core, "PACKAGE", "pack")
    core.package_imports.cache_clear()
    return folder


def test_code_below_an_import_counts_and_unrelated_modules_do_not(package: Path) -> None:
    before = core.hash_code("pack.work")
    (package / "other.py").write_text("X = 2\n")
    assert core.hash_code("pack.work") == before
    (package / "sub" / "deep.py").write_text("ONE = 2\n")  # reached through a lazy import
    assert core.hash_code("pack.work") != before


def test_a_yaml_file_of_a_modules_own_name_is_part_of_its_code(package: Path) -> None:
    before = core.hash_code("pack.work")
    (package / "paper.yaml").write_text("one: 1\n")  # named like no module
    (package / "other.yaml").write_text("one: 1\n")  # named like a module that nothing here imports
    assert core.hash_code("pack.work") == before
    (package / "sub" / "deep.yaml").write_text("one: 1\n")
    first = core.hash_code("pack.work")
    (package / "sub" / "deep.yaml").write_text("one: 2\n")
    assert len({before, first, core.hash_code("pack.work")}) == 3


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = core.hash_code("pack.work")
    body = 'def run():\n    """A function."""\n    return (tools.two())\n'
    (package / "work.py").write_text(f'"""A module."""\n# Why.\nfrom pack import tools\n\n\n{body}')
    assert core.hash_code("pack.work") == before


def test_imports_are_found_without_importing(package: Path) -> None:
    assert package_imports("import os\nimport pack.tools\nfrom pack import other") == {
        "pack",
        "pack.tools",
        "pack.other",
    }
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import other\n"
    assert package_imports(checked) == set(), "not for type checking alone"


def test_a_real_training_stage_depends_on_what_it_trains_with() -> None:
    closure, queue = set(), ["rlhflow_utils.training.stages"]
    while queue:
        name = queue.pop()
        file = PROJECT / f"{name.replace('.', '/')}.py"
        if name not in closure and file.is_file():
            closure.add(name)
            queue += package_imports(file.read_text(encoding="utf-8"))
    assert {f"rlhflow_utils.{name}" for name in ("training.trainers", "models.chat", "guide.settings")} <= closure
    assert "rlhflow_utils.evaluation.rewardbench" not in closure


# --- kills --------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from pathlib import Path
from rlhflow_utils.guide.stage import Summary, stage

KILLED_AT = int(os.environ.get("KILLED_AT", -1))

@stage
def count(*, into):
    for index in range(5):
        shard = into / f"shard-{index}"
        if not shard.exists():
            (into / "log.txt").open("a").write(f"{index} ")
            shard.write_text(str(index))
        if index == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
    return Summary()

count(into=Path(sys.argv[1]) / "shards")
print("torch" in sys.modules or "datasets" in sys.modules)
"""


def _child(folder: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KILLED_AT": str(killed_at)}
    command = [sys.executable, "-c", CHILD, str(folder)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, env=environment)


def test_a_killed_stage_goes_on_where_it_was_and_is_then_skipped_without_torch(tmp_path: Path) -> None:
    assert _child(tmp_path, killed_at=2).returncode == -signal.SIGKILL
    assert not (tmp_path / "shards").exists()
    assert list(tmp_path.glob(".partial/shards@*/shard-2"))
    resumed = _child(tmp_path, killed_at=-1)
    assert resumed.returncode == 0, resumed.stderr
    assert "▸ shards: running (begun before)" in resumed.stdout
    assert (tmp_path / "shards" / "log.txt").read_text() == "0 1 2 3 4 ", "nothing was made twice"
    assert [(tmp_path / "shards" / f"shard-{i}").read_text() for i in range(5)] == list("01234")
    assert not list((tmp_path / ".partial").iterdir())
    assert _child(tmp_path, killed_at=-1).stdout == "▸ shards: unchanged, skipped\nFalse\n"


def test_a_kill_between_the_renames_loses_nothing(run: Run, dpo: DpoSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_number(dpo, into=run / "number")
    real = os.replace

    def killed_after_the_first(source: Path, target: Path) -> None:
        if Path(target) == run.folder / "number":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(core.os, "replace", killed_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            write_number(_beta(dpo, 0.2), into=run / "number")
    assert not (run.folder / "number").exists()
    CALLS.clear()
    found = write_number(_beta(dpo, 0.2), into=run / "number")
    assert CALLS == [], "the finished work is published, not done again"
    assert (found.path / "number.txt").read_text() == "1.2"
    assert not list((run.folder / ".partial").iterdir())


def test_a_kill_while_the_manifest_is_written_leaves_nothing_behind(
    run: Run, dpo: DpoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def killed_before(source: Path, target: Path) -> None:
        if Path(target).name == "manifest.json":
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(core.os, "replace", killed_before)
        with pytest.raises(KeyboardInterrupt):
            write_number(dpo, into=run / "number")
    assert list(run.folder.glob(".partial/*/*.tmp"))
    number = write_number(dpo, into=run / "number")
    assert list(number.manifest["contents"]) == ["number.txt"]
    assert (copy_number(number, into=run / "copy").path / "copy.txt").exists()


def test_work_under_another_key_is_not_resumed(run: Run, dpo: DpoSettings) -> None:
    with pytest.raises(RuntimeError):
        fail(into=run / "fails")
    (stale,) = (run.folder / ".partial").iterdir()
    shutil.copytree(stale, stale.with_name(f"{stale.name}.removed"))  # as after a kill while it was being removed
    write_number(dpo, into=run / "fails")
    assert sorted(path.name for path in (run.folder / "fails").iterdir()) == ["manifest.json", "number.txt"]
    assert not list((run.folder / ".partial").iterdir())


def test_json_is_never_half_written(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "x.json"
    write_json(file, {"a": "é"})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"}


# --- a run --------------------------------------------------------------------------------------------------------


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    message = "is in use by another run: wait for it, or choose"
    with locked(tmp_path), pytest.raises(RuntimeError, match=message), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_finished_chapter_records_the_stages_it_made_and_read(run: Run, dpo: DpoSettings) -> None:
    number = write_number(dpo, into=run / "number")
    later = Run("10_test", run.profile, run.folder)
    copy = copy_number(later["number"], into=later / "copy")
    later.finish()
    record = json.loads((run.folder / "chapters" / "10_test.json").read_text())
    assert record["chapter"] == "10_test"
    assert record["stages"] == {"number": number.key, "copy": copy.key}


def test_a_run_knows_where_its_models_and_files_are(run: Run, tmp_path: Path) -> None:
    assert "evidence about the method, not about LLaMA-3" in run.caption
    with pytest.raises(FileNotFoundError, match="world is missing"):
        run.data_root()
    real = Run("01_test", load_profile("slices", {"data.root": str(tmp_path)}), tmp_path / "run")
    assert real.data_root() == tmp_path
    assert real.caption == "Profile slices: real rows."
    hub = Run("01_test", load_profile("llama3-8b"), tmp_path / "run")
    assert hub.data_root() is None
    assert hub.base_model() == hub.profile.model.base
    assert hub.preference_start() == hub.profile.model.reward_base != hub.base_model()
    for name in ("sft", "bt_mix2", "bt_judge"):
        write_number(run.profile.dpo, into=tmp_path / "run" / name)
    assert real.reward_model() == real["bt_mix2"]
    assert real.judge_model() == real["bt_judge"]
    assert real.preference_start() == real["sft"]
    with pytest.raises(FileNotFoundError, match=r"data.root nowhere is no folder; set it with DATA_ROOT=folder"):
        Run("01_test", load_profile("slices", {"data.root": "nowhere"}), tmp_path / "run").data_root()
