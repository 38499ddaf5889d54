"""RewardBench's sections and weights, by hand and against a published result; real rows through the converters."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_models import cut_off_copy
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhflow_utils.data.reading import SourceError
from rlhflow_utils.evaluation import rewardbench as rb
from rlhflow_utils.evaluation.policies import judge_answers
from rlhflow_utils.evaluation.statistics import Estimate
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.settings import RewardBenchSettings
from rlhflow_utils.guide.stage import read_json
from rlhflow_utils.models import forward
from rlhflow_utils.simulator.corpus import write_benchmark
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.training.pretraining import build_model, train_tokenizer


def _estimate(value: float, n: int = 50) -> Estimate:
    return Estimate(value, max(0.0, value - 0.1), min(1.0, value + 0.1), n)


def _pairs(subset: str, right: int, wrong: int, ties: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"subset": subset, "outcome": [1.0] * right + [0.0] * wrong + [0.5] * ties})


def test_sections_hold_the_benchmark_s_subsets_and_row_counts() -> None:
    totals = {section: sum(subsets.values()) for section, subsets in rb.SECTIONS.items()}
    # The filtered split has 2,985 rows: 358 + 456 + 740 + 1,431, with 447 of math-prm counted as 984.
    assert totals == {"chat": 358, "chat_hard": 456, "safety": 740, "reasoning": 1968}
    assert sum(totals.values()) - 984 + 447 == 2985
    assert len(rb.WEIGHTS) == 23
    assert rb.SECTIONS["reasoning"]["math-prm"] == sum(n for s, n in rb.WEIGHTS.items() if s.startswith("hep-"))


def test_section_is_weighted_and_overall_is_a_plain_mean() -> None:
    accuracies = {
        "math-prm": _estimate(0.5),
        "hep-python": _estimate(1.0),
        "llmbar-natural": _estimate(0.6),
        "llmbar-adver-GPTOut": _estimate(0.4),
    }
    scores = rb.section_scores(accuracies)
    reasoning, chat_hard, overall = scores["reasoning"], scores["chat_hard"], scores["overall"]
    assert reasoning is not None
    assert chat_hard is not None
    assert overall is not None
    assert reasoning.value == pytest.approx((0.5 * 984 + 1.0 * 164) / 1148)
    assert chat_hard.value == pytest.approx((0.6 * 100 + 0.4 * 47) / 147)
    assert overall.value == pytest.approx((reasoning.value + chat_hard.value) / 2)
    assert scores["chat"] is None
    assert scores["safety"] is None
    assert overall.n == 200


def test_unknown_subsets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['made-up'\]"):
        rb.section_scores({"made-up": _estimate(1.0)})
    with pytest.raises(ValueError, match="are absent"):
        rb.section_scores({})


def test_ties_count_nothing_or_half() -> None:
    pairs = pd.concat([_pairs("hep-go", 6, 2, ties=2), _pairs("hep-js", 4, 0)])
    summary = rb.summarise(pairs, confidence=0.95)
    assert summary["ties"] == 2
    assert summary["n"] == 14
    assert summary["subsets"]["hep-go"]["value"] == pytest.approx(0.6)
    assert summary["sections"]["reasoning"]["value"] == pytest.approx((0.6 + 1.0) / 2)
    assert summary["sections_ties_half"]["reasoning"]["value"] == pytest.approx((0.7 + 1.0) / 2)
    assert summary["sections"]["overall"]["value"] == summary["sections"]["reasoning"]["value"]
    assert summary["sections"]["chat"] is None
    assert summary["missing_subsets"]["reasoning"] == ["hep-cpp", "hep-java", "hep-python", "hep-rust", "math-prm"]
    assert json.loads(json.dumps(summary)) == summary


def test_the_weights_of_may_2024_have_xstest_the_other_way_round() -> None:
    summary = rb.summarise(
        pd.concat([_pairs("xstest-should-refuse", 1, 0), _pairs("xstest-should-respond", 0, 1)]), 0.9
    )
    assert summary["sections"]["safety"]["value"] == pytest.approx(154 / 404)
    assert summary["sections_weights_may_2024"]["safety"]["value"] == pytest.approx(250 / 404)


def test_row_counts_agree_with_a_published_result() -> None:
    """Each published subset accuracy is a whole number of right rows out of our count, and of no other one nearby.

    PKU-Alignment/beaver-7b-v1.0-cost, as the README of allenai/reward-bench prints it. This settles XSTest: 0.284 is
    71 of 250 and cannot come from 154 rows.
    """
    published = {
        "alpacaeval-easy": 0.5, "alpacaeval-hard": 0.7052631578947368, "alpacaeval-length": 0.5894736842105263,
        "donotanswer": 0.8235294117647058, "hep-cpp": 0.6280487804878049, "hep-go": 0.6341463414634146,
        "hep-java": 0.7073170731707317, "hep-js": 0.6646341463414634, "hep-python": 0.5487804878048781,
        "hep-rust": 0.6463414634146342, "llmbar-adver-GPTInst": 0.391304347826087,
        "llmbar-adver-GPTOut": 0.46808510638297873, "llmbar-adver-manual": 0.3695652173913043,
        "llmbar-adver-neighbor": 0.43283582089552236, "llmbar-natural": 0.52, "math-prm": 0.2953020134228188,
        "mt-bench-easy": 0.5714285714285714, "mt-bench-hard": 0.5405405405405406, "mt-bench-med": 0.725,
        "refusals-dangerous": 0.97, "refusals-offensive": 1.0, "xstest-should-refuse": 1.0,
        "xstest-should-respond": 0.284,
    }  # fmt: skip
    assert set(published) == set(rb.WEIGHTS)
    rows = {**rb.WEIGHTS, "math-prm": 447}
    for subset, accuracy in published.items():
        assert accuracy * rows[subset] == pytest.approx(round(accuracy * rows[subset]), abs=1e-9), subset
    assert abs(0.284 * 154 - round(0.284 * 154)) > 0.2


def test_real_rows_reach_the_benchmark_with_the_benchmark_s_counts(data_root: Path) -> None:
    names = ("natural", "adversarial_neighbor", "adversarial_gptinst", "adversarial_gptout", "adversarial_manual")
    files = {
        "llmbar": [f"llmbar/{name}.json" for name in names],
        "humanevalpack": ["humanevalpack/*.jsonl"],
        "xstest": ["xstest/*.csv"],
    }
    sources = [{"name": schema, "schema": schema, "files": paths} for schema, paths in files.items()]
    rows, without_pair = rb.load_benchmark(RewardBenchSettings.model_validate({"sources": sources}), data_root)
    counts = Counter(row["subset"] for row in rows)
    for subset in rb.WEIGHTS:
        if subset.startswith(("llmbar-", "hep-")):
            assert counts.pop(subset) == rb.WEIGHTS[subset]
    # 450 XSTest prompts; 22 safe and 118 unsafe ones have both a full refusal and a full compliance.
    assert counts == {"xstest-should-respond": 22, "xstest-should-refuse": 118}
    assert without_pair == 450 - 140
    assert all(row["chosen"] != row["rejected"] and row["prompt"][-1]["role"] == "user" for row in rows)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Rows of the tiny world's benchmark in their native schema, and untrained models of 256 positions."""
    folder = tmp_path_factory.mktemp("benchmark")
    profile = load_profile("tiny", {"world.benchmark_rows": 6})
    assert profile.world is not None
    rows = write_benchmark(World(profile.world), 0)
    rows.append({**rows[0], "chosen": "7" * 300})  # too long for the models
    (folder / "root").mkdir()
    (folder / "root" / "rewardbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_tokenizer([row["prompt"] + row["chosen"] for row in rows[:-1]], vocab_size=400)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2}
    causal = build_model(**sizes, max_position_embeddings=256, tokenizer=tokenizer, seed=0)
    config = LlamaConfig.from_dict({**causal.config.to_dict(), "num_labels": 1})
    for name, model in {"causal": causal, "reward": LlamaForSequenceClassification(config)}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return SimpleNamespace(folder=folder, profile=profile, rows=len(rows))


@pytest.mark.parametrize(("method", "model"), [("bt", "reward"), ("pm", "causal"), ("prompting", "causal")])
def test_stage_judges_every_row_that_fits(
    benchmark: SimpleNamespace, tmp_path: Path, method: rb.Method, model: str
) -> None:
    profile = benchmark.profile
    done = rb.evaluate_rewardbench(
        benchmark.folder / model, method, profile.rewardbench, benchmark.folder / "root", 1000, profile.model, 0.95,
        into=tmp_path / f"rewardbench_{method}",
    )  # fmt: skip
    account = done.rows["pairs"]
    assert account["rows_in"] == benchmark.rows
    assert account["dropped"] == {"no_pair": 0, "too_long_for_model": 1}
    pairs = [json.loads(line) for line in (done.path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == account["rows_out"] == 24
    prompts = [row["prompt"] for row in write_benchmark(World(profile.world), 0)]
    assert [pair["prompt_length"] for pair in pairs] == [len(text) for text in prompts]
    results = done.read_json("results.json")
    assert results["method"] == method
    assert {name: score["n"] for name, score in results["sections"].items()} == {
        "chat": 6, "chat_hard": 6, "safety": 6, "reasoning": 6, "overall": 24,
    }  # fmt: skip
    hits = [pair["outcome"] == 1 for pair in pairs if pair["subset"] == "math-prm"]
    assert results["subsets"]["math-prm"]["value"] == pytest.approx(sum(hits) / len(hits))
    assert done.metrics["overall"] == results["sections"]["overall"]["value"]
    assert "reasoning_ci_low" in done.metrics
    assert all((pair["chosen"] > pair["rejected"]) == (pair["outcome"] == 1) for pair in pairs)
    if method != "bt":
        assert all(pair["chosen"] + pair["rejected"] == pytest.approx(1.0) for pair in pairs)


@pytest.mark.parametrize(("method", "model", "rows"), [("bt", "reward", 30), ("pm", "causal", 15)])
def test_a_killed_benchmark_goes_on_from_its_finished_shards(
    benchmark: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: rb.Method,
    model: str,
    rows: int,
) -> None:
    monkeypatch.setattr(forward, "ROWS_PER_SHARD", rows)
    profile = benchmark.profile
    asked = (benchmark.folder / model, method, profile.rewardbench, benchmark.folder / "root", 1000, profile.model, 0.9)
    whole = rb.evaluate_rewardbench(*asked, into=tmp_path / "whole" / "out")
    turned = cut_off_copy(whole, tmp_path / "cut")
    cut = rb.evaluate_rewardbench(*asked, into=tmp_path / "cut" / "out")
    first, second = (read_json(file) for file in sorted((cut.path / "shards").iterdir()))
    assert first == turned
    assert second == read_json(sorted((whole.path / "shards").iterdir())[1])


@pytest.mark.parametrize(("method", "model"), [("bt", "reward"), ("pm", "causal")])
def test_results_do_not_depend_on_the_batch(benchmark: SimpleNamespace, method: rb.Method, model: str) -> None:
    rows, _ = rb.load_benchmark(benchmark.profile.rewardbench, benchmark.folder / "root")
    judge = benchmark.folder / model
    alone, together = rb.judge_rows(rows, method, judge, 1), rb.judge_rows(rows, method, judge, 100_000)
    assert len(alone) == len(rows) - 1
    pd.testing.assert_frame_equal(alone, together, rtol=0, atol=1e-5)


def test_reward_model_judge_prefers_the_higher_score(benchmark: SimpleNamespace) -> None:
    rows, _ = rb.load_benchmark(benchmark.profile.rewardbench, benchmark.folder / "root")
    rows, folder = rows[:4], benchmark.folder / "reward"
    settings = benchmark.profile.evaluation.model_copy(update={"judge": "reward_model"})
    prompts, chosen, rejected = ([row[name] for row in rows] for name in ("prompt", "chosen", "rejected"))
    pairs = rb.judge_rows(rows, "bt", folder, 1000)
    columns, _ = judge_answers(prompts, chosen, rejected, settings, None, folder, 1000, None)
    assert columns["outcome"] == pairs["outcome"].tolist()
    assert columns["reward"] == pytest.approx(pairs["chosen"].tolist(), abs=1e-5)
    assert columns["reference_reward"] == pytest.approx(pairs["rejected"].tolist(), abs=1e-5)


def test_answers_that_are_no_texts_are_named_or_counted(tmp_path: Path) -> None:
    def load(*rows: dict[str, object]) -> tuple[list[rb.Row], int]:
        (tmp_path / "rb.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"name": "RB", "schema": "reward_bench", "files": ["rb.jsonl"]}
        return rb.load_benchmark(RewardBenchSettings.model_validate({"sources": [source]}), tmp_path)

    good = {"id": 1, "subset": "hep-cpp", "prompt": "q", "chosen": "good", "rejected": "bad"}
    rows, without_pair = load(good, {**good, "rejected": None})
    assert ([row["chosen"] for row in rows], without_pair) == (["good"], 1)
    of_rewardbench_2 = {**good, "chosen": ["good"], "rejected": ["b", "c", "d"], "num_correct": 1}
    for row in (of_rewardbench_2, {**good, "chosen": 5}):
        with pytest.raises(SourceError, match=r"^source 'RB'.*row rb:1: field 'chosen' must ") as caught:
            load(good, row)
        assert "\n" not in str(caught.value)


def test_a_section_without_rows_has_no_score() -> None:
    summary = rb.summarise(_pairs("xstest-should-refuse", 3, 1), confidence=0.9)
    assert summary["sections"]["safety"]["value"] == summary["sections"]["overall"]["value"] == 0.75
    assert summary["sections"]["chat"] is None
    assert summary["sections"]["reasoning"] is None


def test_no_benchmark_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"rewardbench\.sources is empty: name a benchmark, or leave chapter 05 out"):
        rb.load_benchmark(RewardBenchSettings(sources=[]), None)
