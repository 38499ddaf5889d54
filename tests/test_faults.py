"""A short form of the fault campaign (`benchmarks/faults.py`), and the table of the last long one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import benchmark_script

from rlhflow_utils.guide.publishing import block_of
from rlhflow_utils.guide.stage import PROJECT

SCRIPT = PROJECT / "benchmarks" / "faults.py"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    return benchmark_script("faults")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three kills, flipped bits in weights, a shard and a checkpoint, files that may not grow, and some fuzz."""
    out = tmp_path_factory.mktemp("faults") / "campaign.json"
    command = [sys.executable, str(SCRIPT), "--short", "--kills", "3", "--seed", "0", "--out", str(out)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(json.loads(out.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_ends_as_if_nothing_had_happened(short: dict[str, Any], faults: ModuleType) -> None:
    kills = short["kills"]
    assert (kills["kills"], kills["equal"], kills["orphans"], kills["wrong"]) == (3, kills["runs"], 0, [])
    found = {**short["published"], **short["unfinished"], **short["machine"]}
    assert {name: fault["outcome"] for name, fault in found.items()} == dict.fromkeys(
        ("weights bit flipped", "shard bit flipped", "checkpoint weights bit flipped", "file size limit"), "one_line"
    )
    line = found["weights bit flipped"]["line"]
    assert line == (
        "error: run/sft/model/model.safetensors is damaged: delete the folder run/sft and run again to remake it"
    )
    folder = "run/.partial/sft@[0-9a-f]+/checkpoints/checkpoint-2"
    line = f"error: {folder}/model.safetensors is damaged: delete the folder {folder} and run again to remake it"
    assert re.fullmatch(line, found["checkpoint weights bit flipped"]["line"])
    line = r"error: run/.partial/iter2_responses@\w+/shards-\w+/00001\.\w+\.arrow is damaged: delete it and run again.*"
    assert re.fullmatch(line, found["shard bit flipped"]["line"])
    assert "raise the limit on the size of a file (ulimit -f)" in found["file size limit"]["line"]
    for kind, number in (("rows", 200), ("files", 60), ("replies", 100)):
        assert short[kind][kind] == number
        assert short[kind]["crashes"] == []
        assert not {"crashed", "misread", "refused in several lines"} & set(short[kind]["outcomes"])
    assert faults.failures(short) == []


def test_what_must_not_happen_is_a_failure(faults: ModuleType) -> None:
    fine = {"outcome": "one_line", "orphans": False}
    fuzz = {kind: {"outcomes": {"kept": 3}, "crashes": []} for kind in ("rows", "files", "replies")}
    kills = {"kills": 3, "runs": 1, "equal": 1, "orphans": 0, "wrong": []}
    good = {
        "published": {"a": fine},
        "unfinished": {"b bit flipped": fine},
        "machine": {"c": fine},
        "kills": kills,
        **fuzz,
    }
    assert faults.failures(good) == []
    silent = {**fine, "outcome": "silent"}
    for change in (
        {"published": {"a bit flipped": silent}},
        {"unfinished": {"b bit flipped": silent}},
        {"unfinished": {"b truncated": {**fine, "outcome": "unnamed"}}},
        {"machine": {"c": {**fine, "outcome": "obscure"}}},
        {"machine": {"c": {**fine, "orphans": True}}},
        {"kills": {**kills, "orphans": 1}},
        {"kills": {**kills, "wrong": ["sft: contents"]}},
        {"rows": {"outcomes": {"crashed": 1}, "crashes": ["hh_rlhf: KeyError: 'x'"]}},
        {"replies": {"outcomes": {"misread": 1}, "crashes": []}},
    ):
        assert len(faults.failures({**good, **change})) == 1, change


def test_contributing_shows_the_last_campaign(faults: ModuleType) -> None:
    shown = block_of("faults").search(faults.SHOWN.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown[2] == faults.table(json.loads(Path(faults.TARGET).read_text(encoding="utf-8")))
