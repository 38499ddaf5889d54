"""RM and PM on held-out pairs, and the correlation of reward with length: stages on tiny real models."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file
from scipy import special
from tiny_models import MODEL, WORDS, prompts, save_policy, save_reward_model, score

from rlhflow_utils.evaluation import reward_models as rm
from rlhflow_utils.evaluation import rewardbench
from rlhflow_utils.evaluation.statistics import calibration, wilson_interval
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import Artifact, seal, write_json
from rlhflow_utils.models.chat import load_tokenizer
from rlhflow_utils.models.forward import reward_rows
from rlhflow_utils.models.preference_model import preference_probability, rank_responses
from rlhflow_utils.models.reward_model import score_responses


def _rows(count: int) -> list[dict[str, Any]]:
    words = WORDS.split()
    rows = []
    for index, row in enumerate(prompts(count)):
        chosen, rejected = " ".join(words[index % 5 :][: 1 + index % 4]), " ".join(words[index % 3 :][: 4 - index % 4])
        sides = {"chosen": chosen, "rejected": rejected}
        answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        rows.append({"prompt": row["prompt"], **answers, "skill": ["chat", "safety"][index % 2], "row_id": str(index)})
    return rows


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    policy = save_policy(folder / "policy")
    return policy, save_reward_model(folder / "reward", policy)


def _artifact(folder: Path, rows: list[dict[str, Any]], name: str = "data") -> Artifact:
    Dataset.from_list(rows).save_to_disk(str(folder / name))
    return Artifact(folder, {"key": folder.name, "contents": {}})


@pytest.mark.parametrize("kind", ["reward", "preference"])
def test_accuracy_is_the_share_of_pairs_in_the_right_order(
    kind: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    profile, rows = load_profile("tiny"), _rows(12)
    pairs = _artifact(tmp_path / "pairs", rows)
    triples = [(row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]
    if kind == "reward":
        done = rm.evaluate_judge(models[1], "bt", pairs, profile.reward_model, MODEL, 0.9, into=tmp_path / "test")
        chosen = score(models[1], [(x, a) for x, a, _ in triples], 100, MODEL)
        rejected = score(models[1], [(x, b) for x, _, b in triples], 100, MODEL)
        right = [a > b for a, b in zip(chosen, rejected, strict=True)]
        assert done.read_json("results.json")["chosen_rewards"] == pytest.approx(chosen, abs=1e-5)
    else:
        section = profile.preference_model
        done = rm.evaluate_judge(models[0], "pm", pairs, section, MODEL, 0.9, into=tmp_path / "test")
        probabilities = preference_probability(models[0], triples, 100, MODEL)
        right = [p > 0.5 for p in probabilities]
    results = done.read_json("results.json")
    assert 0 < sum(right) < 12, "the test needs both outcomes"
    assert done.metrics["accuracy"] == results["accuracy"]["value"] == sum(right) / 12
    assert done.metrics["accuracy_ci_low"] == wilson_interval(sum(right) / 12, 12, 0.9)[0]
    assert done.metrics["accuracy_safety"] == sum(right[1::2]) / 6
    assert (
        results["longer_wins"]["value"] == sum((len(a) > len(b)) + (len(a) == len(b)) / 2 for _, a, b in triples) / 12
    )
    table = results["calibration"]
    p = special.expit(np.subtract(chosen, rejected)) if kind == "reward" else np.array(probabilities)
    for name, column in calibration([*p, *(1 - p)], [1] * 12 + [0] * 12).items():
        assert table[name] == pytest.approx(column, abs=1e-4)
    gaps = [abs(p - seen) * n for p, seen, n in zip(table["predicted"], table["observed"], table["count"], strict=True)]
    assert results["calibration_error"] == pytest.approx(sum(gaps) / 24)
    assert sum(table["count"]) == 24  # every pair in both directions
    assert done.rows["pairs"] == {"rows_in": 12, "rows_out": 12, "dropped": {}}


def test_without_a_gold_judge_the_pairs_stay_as_annotated(tmp_path: Path) -> None:
    profile, rows = load_profile("tiny"), [{**row, "skill": "?"} for row in _rows(3)]
    data = _artifact(tmp_path / "data", rows, "test")
    settings = profile.evaluation.model_copy(update={"judge": "reward_model"})
    done = rm.write_clean_test_pairs(data, settings, profile.world, into=tmp_path / "test_pairs")
    assert [{**row, "skill": "?"} for row in done.dataset()] == rows
    assert done.dataset()["skill"][:] == [None] * 3
    assert done.metrics == {"pairs": 3, "label_noise": 0.0}


def test_length_bias_is_the_mean_correlation_within_prompts(tmp_path: Path) -> None:
    rows = [
        {"lengths": [1, 2, 3, 6], "rewards": [0.0, 1.0, 0.0, 1.0]},
        {"lengths": [1, 2, 3, 4], "rewards": [4.0, 3.0, 2.0, 1.0]},
        {"lengths": [5, 5, 5, 5], "rewards": [4.0, 3.0, 2.0, 1.0]},
    ]
    scores = _artifact(tmp_path / "scores", rows)
    done = rm.measure_length_bias(scores, load_profile("tiny").evaluation, 0, into=tmp_path / "length_bias_mix1")
    # The first by hand: x - mean = (-2, -1, 0, 3), y - mean = (-.5, .5, -.5, .5), so 2 / sqrt(14).
    assert done.metrics["mean_pearson"] == pytest.approx((2 / math.sqrt(14) - 1) / 2)
    assert done.read_json("results.json")["correlations"] == [pytest.approx(2 / math.sqrt(14)), pytest.approx(-1), None]
    assert done.rows["prompts"]["dropped"] == {"undefined": 1}


@pytest.mark.parametrize("method", ["bt", "pm"])
def test_a_model_that_overflows_stops_every_stage_and_the_row_is_named(
    method: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """The embedding of one token is infinite, as half precision gives; only the last response has it."""
    broken = tmp_path / "broken"
    shutil.copytree(models[1 if method == "bt" else 0], broken)
    weights = load_file(broken / "model.safetensors")
    [token] = load_tokenizer(broken).encode(" red", add_special_tokens=False)
    next(values for name, values in weights.items() if "embed_tokens" in name)[token] = math.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    profile, prompt = load_profile("tiny"), [{"role": "user", "content": "what is the sky"}]
    texts = {"chosen": "blue", "rejected": "blue red"}
    rows = [{"prompt_id": "p0", "prompt": prompt, "responses": ["blue", "blue blue", *texts.values()]}]
    pair = {side: [{"role": "assistant", "content": text}] for side, text in texts.items()}
    responses, into = _artifact(tmp_path / "responses", rows), tmp_path / "out"
    pairs = _artifact(tmp_path / "pairs", [{"prompt": prompt, "skill": None, **pair}])
    bench = [{"row_id": "r", "subset": "hep-cpp", "prompt": prompt, **texts}]

    def rank() -> Artifact:
        if method == "bt":
            return score_responses(broken, responses, profile.reward_model, MODEL, into=into)
        return rank_responses(broken, responses, profile.preference_model, "knock_out", MODEL, into=into)

    def test() -> Artifact:
        settings = profile.reward_model if method == "bt" else profile.preference_model
        return rm.evaluate_judge(broken, method, pairs, settings, MODEL, 0.9, into=into)

    message = r"(conversation|comparison) \d, prompt 'what is the sky': the score is nan"
    with pytest.raises(ValueError, match=message):
        rank()
    with pytest.raises(ValueError, match=message):
        test()
    with pytest.raises(ValueError, match=message):
        rewardbench.judge_rows(bench, method, broken, 1000)
    assert not into.exists()


def test_a_score_in_a_file_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """A shard that an interrupted stage left."""
    rows = [{"prompt_id": "p0", "prompt": "q", "responses": ["a", "b"]}]
    write_json(tmp_path / "shards" / "00000.tmp", [[1.0, math.nan]])
    seal(tmp_path / "shards" / "00000.tmp", tmp_path / "shards" / "00000.json")
    with pytest.raises(ValueError, match="prompt p0, response 1: the score is nan"):
        reward_rows(_artifact(tmp_path / "responses", rows), lambda: list, tmp_path, None)
