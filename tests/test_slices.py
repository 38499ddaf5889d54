"""The whole guide on real rows, shortened: the same thirteen notebooks, headless, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhflow_utils.guide.stage import PROJECT

# Everything that only takes time is made small; sources, filters, splits and stages stay those of the profile.
SHORT = {
    "base_model.architecture.hidden_size": 32, "base_model.architecture.num_hidden_layers": 1,
    "base_model.architecture.intermediate_size": 64, "base_model.architecture.num_attention_heads": 2,
    "base_model.tokens": 20_000,
    "sft.trainer.num_train_epochs": 0.2, "sft.trainer.max_length": 256,
    "data.max_pairs_per_mixture": 48, "data.evaluation_prompts": 12, "length_bias.prompts": 6,
    "generation.sampling.max_tokens": 8, "iterative.iterations": 2, "iterative.prompts_per_iteration": 8,
    "evaluation.bootstrap_samples": 100,
}  # fmt: skip
SOURCE_ROWS = {"HH-RLHF": 2312, "UltraFeedback": 1200, "LLaMA-Factory": 300, "PandaLM": 999, "FineGrainedRLHF": 3000}


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def guide(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a finished, shortened run."""
    folder = tmp_path_factory.mktemp("slices") / "run"
    command = [sys.executable, "-m", "rlhflow_utils", "run", "--profile", "slices", "--run-dir", str(folder)]
    command += ["--data-root", str(data_root)]
    command += [text for key, value in SHORT.items() for text in ("--set", f"{key}={value}")]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return folder


def _manifests(guide: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(guide.glob("*/manifest.json"))}


def test_every_chapter_ran(guide: Path) -> None:
    assert len(list((guide / "chapters").glob("*.json"))) == 13
    assert (guide / "report.html").stat().st_size > 10_000


def test_every_stage_accounts_for_every_row(guide: Path) -> None:
    counted = 0
    for stage, manifest in _manifests(guide).items():
        for name, rows in manifest["rows"].items():
            assert rows["rows_in"] == rows["rows_out"] + sum(rows["dropped"].values()), (stage, name)
            counted += rows["rows_in"]
    assert counted > 10_000


def test_every_real_row_came_in(guide: Path) -> None:
    rows = _manifests(guide)["preference_data"]["rows"]
    assert {name: rows[f"pairs {name}"]["rows_in"] for name in SOURCE_ROWS} == SOURCE_ROWS


def test_the_real_benchmarks_are_scored(guide: Path) -> None:
    results = json.loads((guide / "rewardbench_bt" / "results.json").read_text())
    assert "natural" in str(sorted(results["subsets"]))
    summary = json.loads((guide / "summary.json").read_text())
    assert 0 <= summary["rewardbench_bt.overall"] <= 1


def test_the_judge_is_a_reward_model_of_its_own(guide: Path) -> None:
    manifests = _manifests(guide)
    assert "bt_judge" in manifests
    summary = json.loads((guide / "summary.json").read_text())
    assert 0 <= summary["iter2_evaluation.reward_model_win_rate_vs_sft"] <= 1
    assert not any("gold" in name for name in summary)
