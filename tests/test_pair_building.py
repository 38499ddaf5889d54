"""Pairs from scored responses: hand-computed penalties, order, ties, randomness."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_models import artifact

from rlhflow_utils.guide.settings import PairBuildingSettings
from rlhflow_utils.guide.stage import Artifact
from rlhflow_utils.online.pair_building import build_pair, build_preference_pairs, penalised_rewards

PROMPT = [{"role": "user", "content": "Name a colour."}]


def row(responses: list[str], rewards: list[float], prompt_id: str = "p0") -> dict[str, Any]:
    ids = [[10 + index, 11, 2] for index in range(len(responses))]
    return {
        "prompt_id": prompt_id,
        "prompt": PROMPT,
        "responses": responses,
        "response_ids": ids,
        "rewards": rewards,
        "source": "demo",
    }


def chosen_and_rejected(pair: dict[str, Any] | str) -> tuple[str, str]:
    assert isinstance(pair, dict)
    return pair["chosen"][0]["content"], pair["rejected"][0]["content"]


def test_penalty_is_per_character() -> None:
    # 1.0 - 0.1 * 3 = 0.7; 2.0 - 0.1 * 12 = 0.8; accents and emoji are one character each
    assert penalised_rewards([1.0, 2.0], ["red", "a deep green"], 0.1) == pytest.approx([0.7, 0.8])
    assert penalised_rewards([0.0], ["é🙂"], 0.5) == [-1.0]


def test_best_against_worst_with_everything_a_dpo_row_needs() -> None:
    pair = build_pair(row(["red", "teal", "blue!"], [0.1, 0.9, -0.4]), "best_vs_worst", 0.0, seed=0)
    assert pair == {
        "prompt_id": "p0",
        "prompt": PROMPT,
        "chosen": [{"role": "assistant", "content": "teal"}],
        "chosen_ids": [11, 11, 2],
        "chosen_score": 0.9,
        "chosen_penalised": 0.9,
        "rejected": [{"role": "assistant", "content": "blue!"}],
        "rejected_ids": [12, 11, 2],
        "rejected_score": -0.4,
        "rejected_penalised": -0.4,
        "source": "demo",
        "row_id": "p0",
    }


@pytest.mark.parametrize("strategy", ["best_vs_worst", "best_vs_random", "random"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_named_wherever_it_stands(strategy: Any, broken: float, tmp_path: Path) -> None:
    texts = ["a", "bb", "ccc"]
    for place in range(3):
        rewards = [1.0, 0.5, 0.0]
        rewards[place] = broken
        with pytest.raises(ValueError, match=rf"prompt p0, response {place}: the score is {broken}"):
            build_pair(row(texts, rewards), strategy, 0.01, seed=0)
    with pytest.raises(ValueError, match="prompt p0, response 0"):
        build_pair(row(["a", "a"], [broken, broken]), strategy, 0.0, seed=0)  # nor is it called identical
    rows = [row(texts, [1.0, 0.5, 0.0], "p1"), row(texts, [broken, 1.0, 0.5], "p2")]
    settings = PairBuildingSettings(
        ranker="reward_model", tournament="round_robin", strategy=strategy, length_penalty=0.0
    )
    with pytest.raises(ValueError, match="prompt p2, response 0"):
        build_preference_pairs(artifact(tmp_path / "scores", "data", rows), settings, 0, into=tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_the_penalised_order_is_not_undone_by_the_raw_reward() -> None:
    # Raw: the long one is best. Penalised by 0.1 per character: 1.0 - 2.0 = -1.0 against 0.8 - 0.3 = 0.5.
    scored = row(["x" * 20, "red"], [1.0, 0.8])
    assert chosen_and_rejected(build_pair(scored, "best_vs_worst", 0.0, 0)) == ("x" * 20, "red")
    for strategy in ("best_vs_worst", "best_vs_random", "random"):
        pair = build_pair(scored, strategy, 0.1, 0)  # type: ignore[arg-type]
        assert chosen_and_rejected(pair) == ("red", "x" * 20)
        assert isinstance(pair, dict)
        assert pair["chosen_score"] < pair["rejected_score"]
        assert pair["chosen_penalised"] == pytest.approx(0.5)
        assert pair["rejected_penalised"] == pytest.approx(-1.0)


def test_unfinished_responses_keep_their_exact_ids() -> None:
    scored = row(["red", "gree"], [1.0, 0.0])
    scored["response_ids"] = [[10, 2], [10, 11, 12]]  # the second was cut off: no end-of-turn token
    pair = build_pair(scored, "best_vs_worst", 0.0, 0)
    assert isinstance(pair, dict)
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([10, 2], [10, 11, 12])


@pytest.mark.parametrize("strategy", ["best_vs_worst", "best_vs_random", "random"])
def test_prompts_without_a_preference_are_dropped_with_the_reason(strategy: Any) -> None:
    assert build_pair(row(["red"] * 3, [1.0, 1.0, 1.0]), strategy, 0.0, 0) == "identical_responses"
    assert build_pair(row(["red"] * 2, [1.0, 0.9]), strategy, 0.0, 0) == "identical_responses"
    assert build_pair(row(["red", "blue"], [1.0, 1.0]), strategy, 0.0, 0) == "tie"
    # A tie of the penalised rewards is a tie: 1.0 - 0.25 * 3 = 1.25 - 0.25 * 4
    assert build_pair(row(["red", "blue"], [1.0, 1.25]), strategy, 0.25, 0) == "tie"


def test_random_choices_are_random_over_prompts_and_fixed_by_the_seed() -> None:
    def rivals(strategy: Any, seed: int) -> list[tuple[str, str]]:
        rows = [row(["a", "b", "c", "d"], [0.4, 0.3, 0.2, 0.1], f"p{index}") for index in range(600)]
        return [chosen_and_rejected(build_pair(each, strategy, 0.0, seed)) for each in rows]

    against_best = Counter(rivals("best_vs_random", 1))
    assert set(against_best) == {("a", "b"), ("a", "c"), ("a", "d")}
    assert min(against_best.values()) > 150  # 200 expected, standard deviation 11.5
    both_random = Counter(rivals("random", 1))
    assert set(both_random) == {(x, y) for x in "abcd" for y in "abcd" if x < y}
    assert min(both_random.values()) > 60  # 100 expected, standard deviation 9
    assert rivals("random", 1) == rivals("random", 1) != rivals("random", 2)


@pytest.mark.parametrize("strategy", ["best_vs_random", "random"])
def test_a_random_partner_is_another_text(strategy: Any) -> None:
    """Of eight answers seven are the same: every prompt still gives a pair, as with best against worst."""
    rows = [row(["red"] * 7 + ["blue"], [1.0] * 7 + [0.5], f"p{index}") for index in range(50)]
    assert {chosen_and_rejected(build_pair(each, strategy, 0.0, 1)) for each in rows} == {("red", "blue")}


def test_wrong_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"prompt p7: .*'responses': 2, .*'rewards': 4.* score the same K"):
        build_pair({**row(["red", "blue"], [1.0] * 4), "prompt_id": "p7"}, "best_vs_worst", 0.0, 0)
    with pytest.raises(ValueError, match="a pair needs two responses"):
        build_pair(row(["red"], [1.0]), "best_vs_worst", 0.0, 0)


def test_stage_accounts_and_measures(tmp_path: Path) -> None:
    rows = [
        row(["red", "yellow"], [1.0, 0.0], "p0"),
        row(["red", "blue"], [0.0, 3.0], "p1"),
        row(["a", "a"], [1.0, 1.0], "p2"),
        row(["a", "b"], [1.0, 1.0], "p3"),
    ]
    pairs = _pairs(tmp_path, rows, "best_vs_worst")
    assert pairs.rows["prompts"] == {"rows_in": 4, "rows_out": 2, "dropped": {"identical_responses": 1, "tie": 1}}
    assert pairs.metrics == {
        "pairs": 2,
        "mean_chosen_length": 3.5,
        "mean_rejected_length": 4.5,
        "mean_margin": 2.0,
        "mean_penalised_margin": 2.0,
    }
    assert list(pairs.dataset()["row_id"]) == ["p0", "p1"]


def test_a_stage_without_a_single_pair_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 1 prompts gave a pair: \{'identical_responses': 1, 'tie': 0\}"):
        _pairs(tmp_path, [row(["a", "a"], [1.0, 1.0])], "random")


def test_best_and_worst_cannot_be_asked_of_a_knock_out() -> None:
    values: dict[str, Any] = {"ranker": "preference_model", "tournament": "knock_out", "length_penalty": 0.0}
    with pytest.raises(ValueError, match="a knock-out finds no worst response: tournament round_robin"):
        PairBuildingSettings(**values, strategy="best_vs_worst")
    assert PairBuildingSettings(**values, strategy="best_vs_random").tournament == "knock_out"


def _pairs(folder: Path, rows: list[dict[str, Any]], strategy: Any) -> Artifact:
    settings = PairBuildingSettings(
        ranker="reward_model", tournament="round_robin", strategy=strategy, length_penalty=0.0
    )
    return build_preference_pairs(artifact(folder / "scores", rows=rows), settings, 0, into=folder / "pairs")
