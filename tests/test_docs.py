"""What `docs/` shows is what the code and the committed results say: tables, plans, prices, blocks of a profile."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from datasets import Dataset

from rlhflow_utils.evaluation.judges import MAX_TOKENS, ChatEndpoint, comparison_prompt
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.publishing import block_of
from rlhflow_utils.guide.stage import PROJECT, read_json
from rlhflow_utils.training.capacity import capacity_plan, machine_of
from rlhflow_utils.training.check import check_configs

PAGE = PROJECT / "docs" / "choosing.md"
SCALE = (PROJECT / "docs" / "scale.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = block_of(name).search(PAGE.read_text(encoding="utf-8"))
    assert found, name
    return found[2].strip()


def test_the_tables_are_those_of_the_results() -> None:
    for name, text in runpy.run_path(str(PAGE.with_suffix(".py")))["blocks"]().items():
        assert block(name) == text, f"block {name} is stale: run `python docs/choosing.py`"


def test_the_line_of_the_profiles_penalty_is_that_of_the_published_run() -> None:
    summary = read_json(PROJECT / "results" / "tiny" / "summary.json")["summary"]
    line = next(line for line in block("penalty").splitlines() if line.startswith("| 0.03 |")).split(" | ")
    names = ("mean_chosen_length", "mean_rejected_length", "mean_margin")
    chosen, rejected, margin = (summary[f"iter1_pairs.{name}"] for name in names)
    assert line[2:5] == [f"{chosen:.1f}", f"{rejected:.1f}", f"{margin:.2f}"], "run `python docs/choosing.py runs/tiny`"


def test_kl_of_smollm2_is_what_the_page_says() -> None:
    summary = read_json(PROJECT / "results" / "smollm2" / "summary.json")["summary"]
    page, prompts = " ".join(PAGE.read_text(encoding="utf-8").split()), summary["iter1_answers.responses"]
    assert f"Its KL grows to {max(summary[f'iter{k}_kl.kl'] for k in (1, 2, 3)):.1f} nats in three iterations" in page
    assert f"at equal lengths a separate judge sees no gain, on {prompts} prompts" in page
    assert {summary[f"iter{k}_dpo.steps"] for k in (1, 2, 3)} == {7}
    rate = "evaluation.reward_model_length_adjusted_win_rate_vs_sft"
    assert all(summary[f"iter{k}_{rate}_ci_low"] < 0.5 for k in (1, 2, 3))


def test_the_row_on_reward_models_has_the_numbers_of_claim_k() -> None:
    parts = {part["comparison"]: part for part in read_json(PROJECT / "results" / "claims" / "k.json")["comparisons"]}
    for name in ("the RMs' RewardBench, mix2 − mix1", "RM of mix2 − of mix1"):
        part = parts[name]
        assert f"{part['effect']:+.3f} ({part['ci_low']:.3f} to {part['ci_high']:.3f}" in PAGE.read_text(
            encoding="utf-8"
        )


def test_the_example_prints_ratio_and_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"responses": ["a" * 4, "b" * 8], "rewards": [1.0, 3.0]},
        {"responses": ["c" * 10, "d" * 20], "rewards": [2.0, 0.0]},
        {"responses": ["e", "e"], "rewards": [1.0, 1.0]},
    ]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "runs/tiny/iter1_scores/data" in code
    exec(code.replace("runs/tiny/iter1_scores/data", str(tmp_path / "data")), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "spread of rewards / spread of lengths: 0.286"  # (1 + 1) / (2 + 5)
    assert lines[1] == "0: chosen 9.0 characters, rejected 12.0"
    assert lines[-1] == "0.3: chosen 9.0 characters, rejected 12.0"  # 1 - 1.2 < 3 - 2.4


def test_the_plan_of_gemma_2b_is_what_make_check_prints() -> None:
    shown = SCALE.partition("```text\ncapacity")[2].partition("```")[0].splitlines()
    lines = capacity_plan(load_profile("gemma-2b"), machine_of("RTX4090-24", 1))
    assert f"capacity{shown[0]}" == lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1].splitlines()]
    kept = [cells[0].index(name) for name in ("stage", "weights", "KV cache", "peak", "hours", "fits, or set")]
    planned = [[row[place] for place in kept] for row in (cells[0], *cells[2:])]
    planned[0][-1] = "fits"
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in shown[1:-3]] == planned
    assert shown[-3:] == lines[2:]


def test_the_blocks_of_a_profile_are_valid(tmp_path: Path) -> None:
    for name, text in enumerate(re.findall(r"```yaml\n(.*?)```", SCALE, re.DOTALL)):
        file = tmp_path / f"block{name}.yaml"
        file.write_text(f"extends: gemma-2b\nname: block{name}\n{text}", encoding="utf-8")
        check_configs(load_profile(str(file)))


def test_the_price_of_a_judge_is_the_estimates() -> None:
    profile = load_profile("gemma-2b", {"evaluation.endpoint_prices": [2.0, 8.0]})
    prompts = [[{"role": "user", "content": f"{place:04d}{'x' * 636}"}] for place in range(1000)]
    asked = [
        comparison_prompt(x, *order) for x in prompts for order in (("a" * 1200, "b" * 1200), ("b" * 1200, "a" * 1200))
    ]
    assert f"```text\n{ChatEndpoint(profile.evaluation, None).cost(asked, MAX_TOKENS)}\n```" in SCALE
