"""The paper's tables beside ours: every cell has a line, numbers come from `results/`, gaps say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhflow_utils.claims.tables import table_6
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import Artifact


def _with_interval(key: str, value: float) -> dict[str, float]:
    return {key: value, f"{key}_ci_low": value - 0.1, f"{key}_ci_high": value + 0.1}


@pytest.fixture
def results(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A published tiny run and the academic results of one policy of another profile, as files."""
    summary = {
        **_with_interval("rewardbench_bt.safety", 0.8),
        "rewardbench_pm.chat": 0.6,
        "rewardbench_pm.safety": None,
        **_with_interval("iter3_evaluation.gold_length_adjusted_win_rate_vs_sft", 0.7),
        "iter3_evaluation.proxy_win_rate_vs_sft": 0.9,
        **_with_interval("sft_evaluation.gold_length_adjusted_win_rate_vs_sft", 0.5),
        **_with_interval("sft_exact_match.exact_match", 0.75),
    }
    academic = {
        "tasks": {"gsm8k": {"value": 0.805, "ci_low": 0.78, "ci_high": 0.83, "n": 1319, "shots": 8}},
        "absent": {},
    }
    score = {"value": 8.1, "ci_low": 7.8, "ci_high": 8.4, "n": 80}
    for name, content in {
        "tiny/summary.json": {"summary": summary},
        "gemma-2b/academic_iterative_dpo.json": academic,
        "gemma-2b/mt_bench_sft.json": {"judge": "gpt-4", "score": score, "turns": {}},
        "gemma-2b/alpaca_eval_sft.json": {"judge": "gpt-4", "win_rate": score, "length_adjusted_win_rate": score},
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return tables.read_results(tmp_path)


def _find(lines: list[dict[str, Any]], **head: str) -> list[dict[str, Any]]:
    return [line for line in lines if all(line[key] == value for key, value in head.items())]


def test_table_2(results: dict[str, Any]) -> None:
    lines = tables.table_2(results)
    assert len(lines) == 3 * 4
    assert _find(lines, judge="bt", section="safety") == [
        {"judge": "bt", "section": "safety", "paper": 87.8, "ours": pytest.approx(80.0),
         "setting": "tiny", "95 % interval": "70.0 … 90.0"}
    ]  # fmt: skip
    [without_interval] = _find(lines, judge="pm", section="chat")
    assert (without_interval["ours"], without_interval["95 % interval"]) == (60.0, None)
    [missing] = _find(lines, judge="pm", section="safety")
    assert (missing["paper"], missing["ours"]) == (89.7, "not run here")


def test_table_4_shows_measurements_only(results: dict[str, Any]) -> None:
    """Neither SFT against itself, nor the RM as judge of the policy that it trained."""
    lines = tables.table_4(results)
    assert len(lines) == 3 * 3
    [gold] = _find(lines, policy="iterative DPO", benchmark="LC AlpacaEval-2 (%)")
    assert (gold["paper"], gold["ours"]) == (37.2, pytest.approx(70.0))
    assert gold["setting"] == "tiny: iteration 3, gold judge, length-adjusted win rate against SFT"
    [graded] = _find(lines, policy="SFT", benchmark="MT-Bench (1-10)")
    assert (graded["paper"], graded["ours"], graded["95 % interval"]) == (7.69, 8.1, "7.80 … 8.40")
    assert graded["setting"] == "gemma-2b: mt_bench, judge gpt-4, n = 80"
    assert {line["ours"] for line in _find(lines, benchmark="Arena-Hard (%)")} == {"not run here"}
    [some_questions] = _find(lines, policy="SFT", benchmark="LC AlpacaEval-2 (%)")
    assert some_questions["ours"] == "not run here"


def test_table_5_takes_any_profile(results: dict[str, Any]) -> None:
    lines = tables.table_5(results)
    assert len(lines) == 3 * (len(tables.ACADEMIC["SFT"]) + 1)
    [line] = _find(lines, policy="iterative DPO", task="gsm8k")
    assert (line["paper"], line["ours"]) == (80.7, pytest.approx(80.5))
    assert line["setting"] == "gemma-2b: lm-eval, 8 shots, n = 1319"
    [skill] = _find(lines, policy="SFT", task="untouched skill")
    assert (skill["paper"], skill["ours"]) == (None, 75.0)
    assert skill["setting"] == "tiny: SFT, a skill absent from preferences and prompts"
    assert _find(lines, policy="SFT", task="arc")[0]["ours"] == "not run here"


def test_iterative_dpo_has_no_length_penalty_where_both_were_run(results: dict[str, Any]) -> None:
    """As in the paper, and the same policy in both tables."""
    rate = "gold_length_adjusted_win_rate_vs_sft"
    results["tiny"] |= {
        **_with_interval(f"unpenalised3_evaluation.{rate}", 0.6),
        "unpenalised3_evaluation.mean_length": 80.0,
    }
    results["tiny"] |= {"iterative_dpo_exact_match.exact_match": 0.9, "unpenalised_exact_match.exact_match": 0.8}
    [lc] = _find(tables.table_4(results), policy="iterative DPO", benchmark="LC AlpacaEval-2 (%)")
    assert (lc["ours"], lc["setting"][:37]) == (pytest.approx(60.0), "tiny: iteration 3, no length penalty,")
    [skill] = _find(tables.table_5(results), policy="iterative DPO", task="untouched skill")
    assert (skill["ours"], skill["setting"][:24]) == (pytest.approx(80.0), "tiny: no length penalty,")


def test_table_6() -> None:
    rates, lengths = [0.5, 0.6, 0.7], [40.0, 44.0, 48.0]
    seeds = {str(i): {"length_adjusted_win_rate@1": rates[i], "mean_length@1": lengths[i]} for i in range(3)}
    lines = table_6({"k": {"variants": {"mix1_rm": seeds}, "confidence": 0.95}})
    assert len(lines) == 3 * 3
    [line] = _find(lines, row="with UltraRM-13B", column="length")
    # mean 44, t with two degrees of freedom 4.3027, standard error 4 / √3
    assert (line["paper"], line["ours"], line["95 % interval"]) == (745, 44.0, "34.1 … 53.9")
    [line] = _find(lines, row="with UltraRM-13B", column="LC AlpacaEval-2 (%)")
    assert line["ours"] == pytest.approx(60.0)
    [missing] = _find(lines, row="ours", column="Arena-Hard (%)")
    assert (missing["paper"], missing["ours"]) == (29.1, "not run here")


def test_the_committed_results_fill_the_tables() -> None:
    """What `results/` holds today appears; every table renders."""
    results = tables.read_results()
    for table in (tables.table_2, tables.table_4, tables.table_5):
        lines = table(results)
        assert any(line["ours"] != tables.NOT_RUN for line in lines)
        assert tables.markdown_table(lines).count("\n") == len(lines) + 1


def test_the_recipe_beside_ours() -> None:
    profile = load_profile("llama3-8b")
    ours = {**profile.reward_model.trainer, "global_batch_size": profile.reward_model.global_batch_size}
    lines = tables.comparison_table({**ours, "learning_rate": 1e-5}, tables.paper_settings("reward_model", "llama"))
    assert [line.split() for line in lines if line.endswith("deviation")] == [
        ["learning_rate", "1e-05", "2e-06", "deviation"]
    ]
    assert tables.paper_settings("reward_model", "google/gemma-2b-it")["learning_rate"] == 1e-5
    assert tables.comparison_table({}, tables.paper_settings("base_model", None)) == ["  not in the paper"]


def test_a_section_beside_the_recipe() -> None:
    tiny = load_profile("tiny")
    rows = tables.settings_rows(tiny.reward_model, "reward_model", tiny.model.base, {"optimiser steps": 1234})
    assert rows[2] == {"setting": "learning_rate", "paper": "2e-06", "ours": "0.001"}
    assert rows[-1] == {"setting": "optimiser steps", "paper": None, "ours": 1234}
    rows = tables.settings_rows(tiny.generation, "generation", tiny.model.base)
    assert {"setting": "n", "paper": "8", "ours": "8"} in rows


def test_row_counts_add_up_line_by_line(tmp_path: Path) -> None:
    rows = {"prompts": {"rows_in": 1500, "rows_out": 1480, "dropped": {"tie": 0, "too_long": 20}},
            "pairs": {"rows_in": 4, "rows_out": 4, "dropped": {}}}  # fmt: skip
    stage = Artifact(tmp_path / "iter1_pairs", {"rows": rows})
    assert tables.row_counts([stage]) == [
        {"stage": "iter1_pairs", "rows": "prompts", "in": 1500, "out": 1480, "dropped": "too_long 20"},
        {"stage": "iter1_pairs", "rows": "pairs", "in": 4, "out": 4, "dropped": None},
    ]
