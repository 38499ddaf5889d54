"""AlpacaEval-2: the published length-controlled win rates, and judging through the `alpaca_eval` package."""

from __future__ import annotations

import hashlib
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

WEIGHTS = "length_controlled_v1_baseline_gpt4_1106_preview.csv"
PUBLISHED = "alpaca_2.0_lc_results.jsonl"
COLUMNS = {
    "np.tanh(std_delta_len)": "length",
    "instruction_difficulty": "difficulty",
    "not_gamed_baseline.astype(float)": "model",
}  # of the package's `length_controlled_v1` tables


def _difficulties(folder: Path, out: Path) -> np.ndarray:
    ae.write_difficulties(folder, out / "difficulties.csv")
    table = pd.read_csv(out / "difficulties.csv")
    assert list(table["index"]) == list(range(len(table)))
    return table["instruction_difficulty"].to_numpy()


def _win_rates(weights: pd.DataFrame, difficulties: np.ndarray) -> pd.Series:
    """Length-controlled win rate of every model, in per cent."""
    logits = weights[["model"]].to_numpy() + weights[["difficulty"]].to_numpy() * difficulties[None, :]
    return pd.Series(100 * special.expit(logits).mean(axis=1), index=weights.index)


def test_published_length_adjusted_win_rates_come_out(data_root: Path, tmp_path: Path) -> None:
    """From three weights a model and one model's 805 values: at least 195 of 199 published win rates to 0.01 points."""
    folder = data_root / "alpaca-eval-numbers"
    weights = pd.read_csv(folder / WEIGHTS, index_col=0)
    weights = weights.rename(columns=COLUMNS)
    board = pd.read_csv(folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv", index_col=0)
    lines = (folder / PUBLISHED).read_text().splitlines()
    per_prompt = {row["model"]: row["length_controlled_winrate"] for row in map(json.loads, lines)}
    difficulties = _difficulties(folder, tmp_path)
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


def _tables(folder: Path, published: list[float]) -> Path:
    """The package's tables, of one model with the weights 2 (difficulty) and 0.5."""
    folder.mkdir()
    names = ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)"
    (folder / WEIGHTS).write_text(f"{names}\n{ae.SOLVED_FROM},-1,2,0.5\n")
    row = {"model": ae.SOLVED_FROM, "length_controlled_winrate": published}
    (folder / PUBLISHED).write_text(json.dumps(row) + "\n")
    return folder


def test_difficulties_by_hand(tmp_path: Path) -> None:
    # logit(0.5) = 0 and logit(e / (1 + e)) = 1, less 0.5, over 2.
    difficulties = _difficulties(_tables(tmp_path / "tables", [0.5, math.e / (1 + math.e)]), tmp_path)
    assert difficulties == pytest.approx([-0.25, 0.25])


LENGTH, QUALITY, WEIGHT = 1.2, -1.0, 0.8  # of a planted policy
REFERENCE = [{"instruction": f"i{place}", "output": "r" * 500} for place in range(600)]
Planted = tuple[list[float | None], list[dict[str, str]], np.ndarray]


def _planted() -> Planted:
    """Exact verdicts on a policy whose answers are longer where instructions are harder, in another order; ten missing.

    The second is the policy's answers, the third each instruction's difficulty, in order.
    """
    rng = np.random.default_rng(0)
    difficulties = rng.normal(0, 1.5, len(REFERENCE))
    lengths = np.maximum(1, 400 + 60 * difficulties + rng.normal(0, 150, len(REFERENCE))).astype(int)
    gap = (500 - lengths) / np.std(500 - lengths[10:], ddof=1)  # the reference's less ours
    wins = special.expit(QUALITY + WEIGHT * difficulties - LENGTH * np.tanh(gap))
    order = rng.permutation(np.arange(10, len(REFERENCE)))
    outputs = [{"instruction": f"i{place}", "output": "x" * lengths[place]} for place in order]
    return [float(wins[place]) for place in order], outputs, difficulties


def _gamed(difficulties: np.ndarray, length: float) -> pd.DataFrame:
    """Two baselines that game the length, as in the package's file; `length` is what it does to the verdict."""
    rng, tables = np.random.default_rng(1), []
    for model in ("concise", "verbose"):
        gap = rng.normal(0, 1, len(difficulties))
        wins = special.expit(WEIGHT * difficulties + length * np.tanh(gap))
        tables.append(
            pd.DataFrame(
                {"model": model, "index": range(len(gap)), "preference": wins, "std_delta_len": gap,
                 "instruction_difficulty": difficulties, "not_gamed_baseline": False}
            )
        )  # fmt: skip
    return pd.concat(tables)


@pytest.mark.parametrize("name", ["length_controlled_v1", "length_controlled_noreg"])
def test_the_package_s_model_finds_a_planted_win_rate(tmp_path: Path, name: str) -> None:
    """Whatever the order of the answers, and with some missing or without a verdict; length alone is far off."""
    pytest.importorskip("alpaca_eval")
    wins, outputs, difficulties = _planted()
    _gamed(difficulties, -LENGTH).to_csv(tmp_path / "df_gamed.csv", index=False)
    control = ae.LengthControl(name, tmp_path / "df_gamed.csv")
    unread: list[float | None] = [None, *wins[1:]]
    summary = ae.summarise(unread, outputs, REFERENCE, 20, 0.95, 0, control)
    truth = special.expit(QUALITY + WEIGHT * difficulties[10:]).mean()
    assert summary["lc_win_rate"]["value"] == pytest.approx(truth, abs=0.004)
    assert summary["lc_win_rate"]["ci_low"] < truth < summary["lc_win_rate"]["ci_high"]
    assert (summary["lc_win_rate"]["n"], summary["unjudged"], summary["lc_model"]) == (589, 1, name)
    assert abs(summary["win_rate"]["value"] - truth) > 0.03
    assert abs(summary["length_adjusted_win_rate"]["value"] - truth) > 0.02
    assert abs(summary["length_adjusted_win_rate"]["value"] - summary["win_rate"]["value"]) > 0.02
    assert "lc_win_rate" not in ae.summarise(wins, outputs, REFERENCE, 20, 0.95, 0)


def test_gamed_baselines_hold_only_the_official_model_back(tmp_path: Path) -> None:
    pytest.importorskip("alpaca_eval")
    wins, outputs, difficulties = _planted()
    _gamed(difficulties, -3 * LENGTH).to_csv(tmp_path / "df_gamed.csv", index=False)
    rates = {}
    for name in ("length_controlled_v1", "length_controlled_noreg"):
        control = ae.LengthControl(name, tmp_path / "df_gamed.csv")
        rates[name] = ae.length_controlled(wins, outputs, REFERENCE, control, 0.95).value
    assert rates["length_controlled_v1"] > rates["length_controlled_noreg"] + 0.005


def test_the_model_that_the_files_allow_is_used_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "questions", tmp_path / "out"
    root.mkdir()
    assert ae.find_length_control(REFERENCE, root, out) is None
    assert "not AlpacaEval-2's 805 instructions" in capsys.readouterr().out
    digest = hashlib.sha256("\0".join(row["instruction"] for row in REFERENCE).encode()).hexdigest()
    monkeypatch.setattr(ae, "ALPACA_INSTRUCTIONS", digest)
    assert ae.find_length_control(REFERENCE, root, out) is None
    assert "no lc_win_rate: put df_gamed.csv" in capsys.readouterr().out
    _tables(root / ae.NUMBERS, [0.5] * len(REFERENCE))
    found = ae.find_length_control(REFERENCE, root, out)
    assert found == ("length_controlled_noreg", out / "instruction_difficulty.csv")
    assert "the package's length_controlled_noreg with" in capsys.readouterr().out
    (root / "alpaca_eval").mkdir()
    (root / "alpaca_eval/df_gamed.csv").touch()
    found = ae.find_length_control(REFERENCE, root, out)
    assert found == ("length_controlled_v1", root / "alpaca_eval/df_gamed.csv")
    assert "the package's length_controlled_v1 with" in capsys.readouterr().out
    assert ae.find_length_control(REFERENCE[:100], root, out) is None


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
