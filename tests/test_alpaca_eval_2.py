"""AlpacaEval-2: the published length-controlled win rates, and judging through the `alpaca_eval` package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from loopback import Reply, endpoint
from scipy import special

from rlhflow_utils.evaluation import chat_benchmarks as ae

COLUMNS = {
    "np.tanh(std_delta_len)": "length",
    "instruction_difficulty": "difficulty",
    "not_gamed_baseline.astype(float)": "model",
}  # of the package's `length_controlled_v1` tables


def _difficulties(win_probabilities: list[float], weights: pd.Series) -> np.ndarray:
    """Difficulty of each instruction, solved from one model's length-controlled win probabilities."""
    return np.asarray((special.logit(win_probabilities) - weights["model"]) / weights["difficulty"])


def _win_rates(weights: pd.DataFrame, difficulties: np.ndarray) -> pd.Series:
    """Length-controlled win rate of every model, in per cent."""
    logits = weights[["model"]].to_numpy() + weights[["difficulty"]].to_numpy() * difficulties[None, :]
    return pd.Series(100 * special.expit(logits).mean(axis=1), index=weights.index)


def test_published_length_controlled_win_rates_come_out(data_root: Path) -> None:
    """From three weights a model and one model's 805 values: at least 195 of 199 published win rates to 0.01 points."""
    folder = data_root / "alpaca-eval-numbers"
    weights = pd.read_csv(folder / "length_controlled_v1_baseline_gpt4_1106_preview.csv", index_col=0)
    weights = weights.rename(columns=COLUMNS)
    board = pd.read_csv(folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv", index_col=0)
    lines = (folder / "alpaca_2.0_lc_results.jsonl").read_text().splitlines()
    per_prompt = {row["model"]: row["length_controlled_winrate"] for row in map(json.loads, lines)}
    source = "gpt-3.5-turbo-0613"
    difficulties = _difficulties(per_prompt[source], weights.loc[source])
    ours = _win_rates(weights, difficulties)
    both = board.join(ours.rename("ours"), how="inner")
    gap = (both["ours"] - both["length_controlled_winrate"]).abs()
    assert len(both) == 199
    assert (gap <= 0.01).sum() >= 195
    # Two answered 804 and 803 of the prompts, two were re-annotated after their weights were saved.
    assert set(gap.index[gap > 0.01]) == {"llama-2-70b-chat-hf", "platolm-7b", "dbrx-instruct", "NullModel"}
    # Solved from one model, the difficulties also give other models' values prompt by prompt.
    others = [name for name in ("mistral-large-2402", "Yi-34B-Chat") if name in weights.index]
    for name in others:
        logits = weights.loc[name, "model"] + weights.loc[name, "difficulty"] * difficulties
        assert 1 / (1 + np.exp(-logits)) == pytest.approx(per_prompt[name], abs=1e-6)
    assert len(others) == 2


def test_difficulties_by_hand() -> None:
    weights = pd.DataFrame({"length": [0.0, 9.0], "difficulty": [2.0, 1.0], "model": [0.0, 1.0]}, index=["a", "b"])
    # logit(0.5) = 0, logit(e / (1 + e)) = 1: difficulties 0 and 1/2 for a model of weight 2.
    difficulties = _difficulties([0.5, math.e / (1 + math.e)], weights.loc["a"])
    assert difficulties == pytest.approx([0.0, 0.5])
    rates = _win_rates(weights, difficulties)
    assert rates["b"] == pytest.approx(100 * (1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-1.5))) / 2)


def _verdict(likeliest: dict[str, float]) -> dict[str, Any]:
    tops = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in likeliest.items()]
    message = {"role": "assistant", "content": tops[0]["token"]}
    content = [{**tops[0], "top_logprobs": tops}]
    return {
        "index": 0,
        "message": message,
        "finish_reason": "length",
        "logprobs": {"content": content, "refusal": None},
    }


def _prefers_good(number: int, prompt: str) -> Reply:
    """P = 0.75 for the output that says GOOD, wherever it stands; another token on instruction 3."""
    if "question 3" in prompt:
        return _verdict({"Both": 0.9, "The": 0.1})
    first = prompt.split('"model_identifier": "m"')[1].split('"model_identifier": "M"')[0]
    return _verdict({"m": 0.6, "M": 0.2, "x": 0.2} if "GOOD" in first else {"M": 0.6, "m": 0.2, "x": 0.2})


def test_judging_through_the_package(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("alpaca_eval")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    server = serve(_prefers_good)
    names = [f"question {index}" for index in range(6)]
    outputs = [{"instruction": q, "output": f"GOOD {q}", "generator": "ours"} for q in names]
    reference = [{"instruction": q, "output": f"bad and long {q}", "generator": "baseline"} for q in names[::-1]]
    judge = endpoint(server.url)
    found = ae.judge_outputs(outputs, reference, judge, tmp_path)
    assert found[3] is None
    assert [p for p in found if p is not None] == pytest.approx([0.75] * 5)
    asked = len(server.prompts)
    assert asked == 6
    # The other way round: same pairs, the other side's probability, whatever order the package shows them in.
    back = ae.judge_outputs(reference[::-1], outputs, judge, tmp_path)
    assert [p for p in back if p is not None] == pytest.approx([0.25] * 5)
    # A second run asks only for the verdict that could not be read.
    asked = len(server.prompts)
    assert ae.judge_outputs(outputs, reference, judge, tmp_path) == pytest.approx(found)
    assert len(server.prompts) - asked == 1
    assert "sk-secret" not in "".join(file.read_text() for file in tmp_path.rglob("*.*"))

    with pytest.raises(RuntimeError, match=r"1 of 6 verdicts failed \(1 unparsable; .*likeliest"):
        ae.judge_outputs(outputs, reference, endpoint(server.url, max_failed_share=0.1), tmp_path)
    # Another model's verdicts are its own.
    asked = len(server.prompts)
    ae.judge_outputs(outputs, reference, endpoint(server.url, "another"), tmp_path)
    assert len(server.prompts) - asked == 6

    summary = ae.summarise(found, outputs, reference, samples=50, confidence=0.95, seed=0)
    assert (summary["n"], summary["unjudged"]) == (5, 1)
    assert summary["win_rate"]["value"] == pytest.approx(0.75)
    assert summary["mean_length"] == len("GOOD question 0")


def test_judging_needs_the_same_instructions(tmp_path: Path) -> None:
    ours, theirs = [{"instruction": "a", "output": "x"}], [{"instruction": "b", "output": "y"}]
    with pytest.raises(ValueError, match="same instructions"):
        ae.judge_outputs(ours, theirs, endpoint("http://127.0.0.1:9/v1"), tmp_path)
    with pytest.raises(ValueError, match="no verdict on any of 1"):
        ae.summarise([None], ours, ours, 10, 0.9, 0)
