"""What a finished run of the guide must show: `pytest tests/guide_run --run-dir runs/tiny`.

The numbers come from learning; these tests hold them to their targets and show that nothing held out was trained on.
"""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import BANDS
from rlhflow_utils.models.chat import prompt_key
from rlhflow_utils.simulator.corpus import write_documents
from rlhflow_utils.simulator.gold import World

SECTIONS = ("chat", "chat_hard", "safety", "reasoning", "overall")
ACCURACY = ("bt_mix2_test.accuracy", "pm_mix2_test.accuracy")
POLICIES = ("sft", "offline_dpo", "iter1", "iter2", "iter3")
JUDGES, POLICY = 0.02, 0.04  # what a machine may move (guide/paper.yaml)


@pytest.fixture(scope="module")
def run_dir(request: pytest.FixtureRequest) -> Path:
    option = request.config.getoption("--run-dir")
    if option is None:
        pytest.skip("give --run-dir runs/tiny to check a finished run")
    return PROJECT / str(option)


@pytest.fixture(scope="module")
def summary(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def manifests(run_dir: Path) -> dict[str, dict[str, Any]]:
    files = sorted(run_dir.glob("*/manifest.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def test_every_headline_metric_is_there(summary: dict[str, Any]) -> None:
    wanted = [f"rewardbench_{method}.{section}" for method in ("prompting", "bt", "pm") for section in SECTIONS]
    wanted += [*ACCURACY, "wall_seconds.total"]
    wanted += [f"length_bias_{mixture}.mean_pearson" for mixture in ("mix1", "mix2")]
    for iteration in (1, 2, 3):
        key = f"iter{iteration}_evaluation.gold_win_rate_vs_sft"
        wanted += [key, f"{key}_ci_low", f"{key}_ci_high"]
    for policy in ("sft", "offline_dpo", "iter3"):
        for metric in (
            "gold_reward",
            "gold_win_rate_vs_sft",
            "gold_length_adjusted_win_rate_vs_sft",
            "accuracy",
            "mean_length",
        ):
            wanted.append(f"{policy}_evaluation.{metric}")
    wanted += [f"{policy}_exact_match.exact_match" for policy in ("sft", "offline_dpo", "iterative_dpo")]
    assert [key for key in wanted if summary.get(key) is None] == []
    assert all(not isinstance(value, dict | list) for value in summary.values()), "the summary is flat"


def test_the_headlines_are_the_published_ones(summary: dict[str, Any]) -> None:
    """Within the bands that the choice of a machine explains; the lines name what fell out."""
    published = json.loads((PROJECT / "results" / "tiny" / "summary.json").read_text(encoding="utf-8"))["summary"]
    gaps = {name: abs(summary[name] - published[name]) for name in BANDS}
    assert {name: gap for name, gap in gaps.items() if gap > BANDS[name]} == {}


def test_judges_learn_what_the_world_is_for(summary: dict[str, Any], run_dir: Path) -> None:
    """The bars of the tiny world: where a bar is a section of 120 pairs, its interval must reach it."""
    longer = json.loads((run_dir / "bt_mix2_test" / "results.json").read_text(encoding="utf-8"))["longer_wins"]
    for key in ACCURACY:
        assert summary[key] >= 0.93 - JUDGES, f"{key}: clean held-out pairs"
        assert summary[f"{key}_ci_low"] > longer["ci_high"]
    for section in SECTIONS:
        assert summary[f"rewardbench_bt.{section}_ci_high"] >= 0.85, section
    prompting, bt, pm = (summary[f"rewardbench_{judge}.overall"] for judge in ("prompting", "bt", "pm"))
    assert pm >= bt - 0.03 - JUDGES, "the PM is near the BT model"
    assert summary["rewardbench_prompting.overall_ci_low"] > 0.5, "a judge that is only prompted is better than a coin"
    assert prompting < min(bt, pm)
    for section in ("safety", "reasoning"):
        assert summary[f"rewardbench_bt.{section}"] > summary[f"rewardbench_bt_mix1.{section}"], f"mix2 knows {section}"


def test_answers_get_better_and_not_only_shorter(summary: dict[str, Any], run_dir: Path) -> None:
    """Right answers rise with each iteration, and the length-adjusted win rate says it is not brevity alone."""
    right = {policy: summary[f"{policy}_evaluation.accuracy"] for policy in POLICIES}
    controlled = {policy: summary[f"{policy}_evaluation.gold_length_adjusted_win_rate_vs_sft"] for policy in POLICIES}
    assert right["sft"] <= 0.60 + POLICY
    assert right["iter3"] >= 0.80 - POLICY
    assert right["sft"] < right["iter1"] < right["iter2"]
    assert right["iter3"] > right["iter2"] - POLICY
    assert controlled["iter3"] >= 0.60 - POLICY
    assert controlled["iter3"] > controlled["offline_dpo"] > 0.5
    results = json.loads((run_dir / "iter3_evaluation" / "results.json").read_text(encoding="utf-8"))
    assert results["n"] >= 900, "held-out prompts"
    for k in (1, 2, 3):
        without = f"unpenalised{k}_evaluation"
        assert summary[f"{without}.accuracy"] > right["sft"], "growing answers cost less than being wrong"
    assert summary["unpenalised3_evaluation.mean_length"] > summary["iter3_evaluation.mean_length"]


def test_rows_add_up_in_every_stage(manifests: dict[str, dict[str, Any]]) -> None:
    assert len(manifests) > 30
    for stage, manifest in manifests.items():
        for name, rows in manifest["rows"].items():
            assert rows["rows_in"] == rows["rows_out"] + sum(rows["dropped"].values()), f"{stage}, {name}"


def test_manifests_say_what_made_them(manifests: dict[str, dict[str, Any]]) -> None:
    for manifest in manifests.values():
        assert manifest["versions"]["trl"]
        assert manifest["arguments"]
        assert manifest["function"].startswith("rlhflow_utils.")
        assert isinstance(manifest["wall_seconds"], float)


def test_held_out_prompts_touch_no_training_step(run_dir: Path) -> None:
    """Neither the evaluation prompts nor the test pairs' prompts are in anything that any trainer was given."""
    data = run_dir / "preference_data"
    held_out = {prompt_key(row["prompt"]) for row in load_from_disk(str(data / "evaluation_prompts"))}
    test = {prompt_key(row["prompt"]) for row in load_from_disk(str(data / "test"))}
    assert len(held_out) >= 500
    assert len(test) >= 100
    trained: dict[str, set[str]] = {"sft": {prompt_key(r["messages"][:-1]) for r in load_from_disk(str(data / "sft"))}}
    for name in ("mix1", "mix2", "offline", "prompts"):
        trained[name] = {prompt_key(row["prompt"]) for row in load_from_disk(str(data / name))}
    for folder in sorted(run_dir.glob("*_pairs")):
        trained[folder.name] = {prompt_key(row["prompt"]) for row in load_from_disk(str(folder / "data"))}
    assert "iter3_pairs" in trained
    for name, prompts in trained.items():
        assert not prompts & held_out, f"{name} holds evaluation prompts"
    assert not (trained["mix1"] | trained["mix2"]) & test, "a test prompt is in a mixture"


def test_trainers_saw_only_what_their_stage_accounts_for(run_dir: Path, manifests: dict[str, dict[str, Any]]) -> None:
    """Tokenised training sets are as long as the rows accounted for, and contain no tokenised held-out prompt."""
    from rlhflow_utils.models.chat import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(run_dir / "sft" / "model")
    evaluation = load_from_disk(str(run_dir / "preference_data" / "evaluation_prompts"))
    prompts = {tuple(encode_prompt(row["prompt"], tokenizer)) for row in evaluation}
    for stage in ("iter1_dpo", "iter2_dpo", "iter3_dpo", "offline_dpo"):
        rows = load_from_disk(str(run_dir / stage / "tokenised"))
        assert len(rows) == manifests[stage]["rows"]["training_rows"]["rows_out"]
        assert not {tuple(ids) for ids in rows["prompt_ids"]} & prompts, stage


def test_the_base_models_documents_hold_no_held_out_prompt(run_dir: Path) -> None:
    """They are plain text: no evaluation prompt's wording occurs in them, in any form."""
    world = load_profile("tiny").world
    assert world is not None
    text = "\n".join(islice(write_documents(World(world), random.Random(0)), 20_000))
    lines = (run_dir / "world" / "eval_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["context_messages"][-1]["content"] for line in lines]
    assert [question for question in questions if question in text] == []


def test_iterations_use_fresh_prompts_and_the_reference_is_sft(
    run_dir: Path, manifests: dict[str, dict[str, Any]]
) -> None:
    seen: set[str] = set()
    for stage in ("iter1_responses", "iter2_responses", "iter3_responses"):
        ids = set(load_from_disk(str(run_dir / stage / "data"))["prompt_id"])
        assert not ids & seen, f"{stage} repeats prompts"
        seen |= ids
    for iteration in (1, 2, 3):
        manifest = manifests[f"iter{iteration}_dpo"]
        assert manifest["inputs"]["reference"] == ["sft"]
        assert manifest["inputs"]["pairs"] == [f"iter{iteration}_pairs"]


def test_report_is_one_self_contained_page(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 2  # the win rate over iterations, RewardBench
    assert not re.search(r"""(?:src|href)=["']https?://""", page), "the report loads something from the network"
    assert not re.search(r"<script[^>]+src=", page)
    assert str(PROJECT) not in page


def test_executed_notebooks_have_no_errors(run_dir: Path) -> None:
    files = sorted((run_dir / "notebooks").glob("*.ipynb"))
    assert len(files) == 13
    for file in files:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
        assert not [output for output in outputs if output["output_type"] == "error"], file.name
