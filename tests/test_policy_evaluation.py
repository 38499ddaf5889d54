"""A policy against a reference in the tiny world: pairing, estimates, breakdown by skill, and the two stages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from loopback import ChatServer

from rlhflow_utils.evaluation import policies as pe
from rlhflow_utils.evaluation.judges import GoldJudge, build_judge, compare_rewards
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.stage import Run, Stage
from rlhflow_utils.online.iterative_dpo import ranking_reward
from rlhflow_utils.simulator.corpus import write_eval_prompts


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("tiny", {"evaluation.bootstrap_samples": 200})


@pytest.fixture(scope="module")
def judge(profile: Profile) -> GoldJudge:
    gold = build_judge(profile.evaluation, profile.world, None, batch_tokens=1)
    assert isinstance(gold, GoldJudge)
    return gold


@pytest.fixture(scope="module")
def questions(judge: GoldJudge) -> dict[str, str]:
    """Two prompts about reasoning and two about safety, with their right answers."""
    rows = [row["context"] for row in write_eval_prompts(judge.world)]
    chosen = [[p for p in rows if judge.world.skill_of(p) == skill][:2] for skill in ("reasoning", "safety")]
    tasks = {prompt: judge.world.read_prompt(prompt) for prompts in chosen for prompt in prompts}
    return {prompt: task.answer for prompt, task in tasks.items() if task is not None}


class SilentJudge:
    """A judge that gives outcomes but no rewards, as an endpoint does."""

    name = "endpoint"
    counts = {"asked": 4, "unparsable": 1}  # noqa: RUF012

    def outcomes(self, prompts: Any, responses_a: Any, responses_b: Any) -> list[float]:
        return compare_rewards([len(r) for r in responses_a], [len(r) for r in responses_b])


WRONG = "I do not know."


def _rows(questions: dict[str, str], right: list[bool], finish: str = "stop", **columns: Any) -> list[dict[str, Any]]:
    """One response to each question: the right answer, or a wrong one."""
    return [
        {
            "prompt_id": f"p{index}",
            "prompt": [{"role": "user", "content": prompt}],
            "responses": [answer if good else WRONG],
            "finish_reasons": [finish],
            **columns,
        }
        for index, ((prompt, answer), good) in enumerate(zip(questions.items(), right, strict=True))
    ]


OURS, THEIRS = [True, False, True, True], [False, False, True, False]


def test_compare_pairs_by_prompt_and_counts(questions: dict[str, str], judge: GoldJudge, profile: Profile) -> None:
    ours, theirs = _rows(questions, OURS, rewards=[0.5]), _rows(questions, THEIRS)[::-1]
    result = pe.compare_policies(ours, theirs, judge, profile.evaluation, seed=0)
    arrays, estimates = result["prompts"], result["estimates"]
    assert arrays["prompt_id"] == ["p0", "p1", "p2", "p3"]
    assert arrays["reward"] == [1, -1, 1, 1]
    assert arrays["reference_reward"] == [-1, -1, 1, -1]
    assert arrays["outcome"] == [1.0, 0.5, 0.5, 1.0]
    assert arrays["right"] == [1.0, 0.0, 1.0, 1.0]
    assert arrays["skill"] == ["reasoning", "reasoning", "safety", "safety"]
    assert result["counts"] == {"wins": 2, "ties": 2, "losses": 0}
    assert estimates["win_rate"]["value"] == 0.75
    assert estimates["win_rate"]["ci_low"] == 0.5  # the worst draw of prompts: ties only
    assert estimates["reward"]["value"] == 0.5
    assert estimates["right_share"]["value"] == 0.75
    assert estimates["proxy_reward"]["value"] == 0.5
    assert estimates["mean_length"]["value"] == sum(len(row["responses"][0]) for row in ours) / 4
    assert estimates["truncated_share"]["value"] == 0.0
    assert result["skills"]["reasoning"]["reward"]["value"] == 0.0
    assert result["skills"]["safety"]["reward"] == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 2}
    assert "proxy_win_rate" not in estimates  # the reference's answers carry no rewards of the proxy
    assert json.loads(json.dumps(result)) == result


def test_the_proxy_s_view_stands_beside_the_judge_s(
    questions: dict[str, str], judge: GoldJudge, profile: Profile
) -> None:
    """The proxy likes our second answer better, which the gold judge calls equally wrong."""
    ours, theirs = _rows(questions, [False] * 4, rewards=[0.5]), _rows(questions, [False] * 4, rewards=[0.5])
    ours[1]["rewards"] = [0.9]
    estimates = pe.compare_policies(ours, theirs, judge, profile.evaluation, seed=0)["estimates"]
    assert estimates["win_rate"]["value"] == 0.5
    assert estimates["proxy_win_rate"]["value"] == (1 + 3 * 0.5) / 4


def test_the_ranking_reward_is_penalised(profile: Profile, tmp_path: Path) -> None:
    penalty = profile.pair_building.length_penalty
    results = {"prompts": {"proxy_reward": [1.0, 2.0, 0.0], "length": [10, 20, 60]}}
    ranked = ranking_reward(Run("09_iterative_dpo", profile, tmp_path), results)
    assert penalty > 0
    assert ranked["value"] == pytest.approx(1.0 - 30 * penalty)
    assert ranked["ci_low"] < ranked["value"] < ranked["ci_high"]
    assert ranked["n"] == 3


def test_a_policy_against_itself_is_all_ties(questions: dict[str, str], judge: GoldJudge, profile: Profile) -> None:
    rows = _rows(questions, OURS)
    result = pe.compare_policies(rows, rows, judge, profile.evaluation, seed=0)
    assert result["counts"] == {"wins": 0, "ties": 4, "losses": 0}
    assert result["estimates"]["win_rate"] == {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5, "n": 4}


def test_a_judge_without_rewards_gives_outcomes_and_counts(questions: dict[str, str], profile: Profile) -> None:
    ours = _rows(questions, OURS, finish="length")
    result = pe.compare_policies(ours, _rows(questions, [False] * 4), SilentJudge(), profile.evaluation, seed=0)
    assert result["judge"] == "endpoint"
    assert result["prompts"]["outcome"][1] == 0.5  # identical responses
    assert result["judge_counts"] == {"asked": 4, "unparsable": 1}
    assert result["skills"] is None
    assert "reward" not in result["estimates"]
    assert result["estimates"]["truncated_share"]["value"] == 1.0


def test_different_prompts_or_several_responses_are_refused(
    questions: dict[str, str], judge: GoldJudge, profile: Profile
) -> None:
    rows = _rows(questions, OURS)
    with pytest.raises(ValueError, match=r"4 prompts and the reference 3.*\['p3'\]"):
        pe.compare_policies(rows, rows[:3], judge, profile.evaluation, seed=0)
    two = [{**row, "responses": ["a", "b"]} for row in rows]
    with pytest.raises(ValueError, match="p0: 2 responses"):
        pe.compare_policies(two, rows, judge, profile.evaluation, seed=0)


def test_exact_match_forgives_outer_space_only() -> None:
    assert pe.exact_match(["ala ", "Ala", "ala bo"], ["ala", "ala", "ala  bo"]) == [1.0, 0.0, 0.0]


def _save(folder: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).save_to_disk(str(folder / "data"))
    return folder


def test_policy_stage_records_headline_metrics(questions: dict[str, str], profile: Profile, tmp_path: Path) -> None:
    inputs = {
        "policy": _save(tmp_path / "p", _rows(questions, OURS)),
        "reference": _save(tmp_path / "r", _rows(questions, THEIRS)),
    }
    stage = Stage("09_iter1_evaluation", profile, inputs, tmp_path, seed=1)
    pe.evaluate_policy(stage, key="09.iter1")
    assert stage.metrics["09.iter1.gold_win_rate_vs_sft"] == 0.75
    assert stage.metrics["09.iter1.gold_win_rate_vs_sft_ci_low"] == 0.5
    assert stage.metrics["09.iter1.gold_win_rate_vs_sft_ci_high"] == 1.0
    assert stage.metrics["09.iter1.gold_reward"] == 0.5
    assert "09.iter1.mean_length" in stage.metrics
    assert stage.rows["judged prompts"] == {"rows_in": 4, "rows_out": 4, "dropped": {}}
    assert json.loads((tmp_path / "results.json").read_text())["counts"]["wins"] == 2


def test_an_endpoint_s_verdicts_outlive_their_stage(
    questions: dict[str, str], profile: Profile, tmp_path: Path
) -> None:
    """The stage runs again in another folder, as after a change of code: the judge is asked nothing twice."""
    server = ChatServer(lambda number, prompt: "[[A]]")
    changes = {"evaluation.judge": "endpoint", "evaluation.endpoint_url": server.url, "evaluation.judge_model": "m"}
    judged = load_profile("tiny", {**changes, "evaluation.bootstrap_samples": 20})
    run = tmp_path / "run"
    inputs = {
        "policy": _save(run / "p", _rows(questions, OURS)),
        "reference": _save(run / "r", _rows(questions, THEIRS)),
    }
    for name in ("first", "second"):
        (run / ".partial" / name).mkdir(parents=True)
        stage = Stage("09_iter1_evaluation", judged, inputs, run / ".partial" / name, seed=1)
        pe.evaluate_policy(stage, key="09.iter1")
        assert stage.metrics["09.iter1.endpoint_win_rate_vs_sft"] == 0.5  # always the first: contradictory, so ties
        assert stage.metrics["09.iter1.endpoint_contradictory"] == 2
    server.close()
    assert len(server.prompts) == 4
    assert (stage.metrics["09.iter1.endpoint_asked"], stage.metrics["09.iter1.endpoint_cached"]) == (0, 4)


def test_exact_match_prompts_are_distinct(profile: Profile, tmp_path: Path) -> None:
    tests = [{"prompt": prompt, "answer": "x", "id": prompt} for prompt in ("a b", "A  B", "c")]
    (tmp_path / "translation_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    stage = Stage("10_prompts", SimpleNamespace(evaluation=profile.evaluation), {"root": tmp_path}, tmp_path, seed=1)
    pe.write_exact_match_prompts(stage)
    rows = list(Dataset.load_from_disk(str(tmp_path / "exact_match")))
    assert [row["prompt"][-1]["content"].casefold().split() for row in rows] == [["a", "b"], ["c"]]
    assert stage.rows["prompts"]["dropped"] == {"repeated_prompt": 1}


def test_exact_match_stage_counts_prompts_without_a_response(
    questions: dict[str, str], profile: Profile, tmp_path: Path
) -> None:
    tests = [{"prompt": prompt, "answer": answer, "id": prompt} for prompt, answer in questions.items()]
    tests.append({"prompt": "too long to be asked", "answer": "z", "id": "z"})
    (tmp_path / "translation_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    inputs = {"policy": _save(tmp_path / "p", _rows(questions, OURS)), "root": tmp_path}
    stage = Stage("10_exact_match", SimpleNamespace(evaluation=profile.evaluation), inputs, tmp_path, seed=1)
    pe.evaluate_exact_match(stage, key="10.sft")
    assert stage.metrics["10.sft.exact_match"] == 0.75
    assert stage.rows["exact match"] == {"rows_in": 5, "rows_out": 4, "dropped": {"no_response": 1}}
