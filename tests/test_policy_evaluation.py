"""A policy against a reference in the tiny world: pairing, estimates, skills, and the exact-match stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from tiny_models import save_policy, save_reward_model, score

from rlhflow_utils.evaluation import policies as pe
from rlhflow_utils.evaluation.statistics import length_adjusted_win_rate
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.stage import Artifact
from rlhflow_utils.simulator.corpus import write_prompts
from rlhflow_utils.simulator.gold import World


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("tiny", {"evaluation.bootstrap_samples": 200})


@pytest.fixture(scope="module")
def questions(profile: Profile) -> dict[str, str]:
    """Two prompts about reasoning and two about safety, with their right answers."""
    assert profile.world is not None
    world = World(profile.world)
    rows = [row["context"] for row in write_prompts(world, 0, "eval", world.settings.eval_prompts)]
    chosen = [[p for p in rows if world.skill_of(p) == skill][:2] for skill in ("reasoning", "safety")]
    tasks = {prompt: world.read_prompt(prompt) for prompts in chosen for prompt in prompts}
    return {prompt: task.answer for prompt, task in tasks.items() if task is not None}


WRONG = "I do not know."


def _rows(
    questions: dict[str, str], right: list[bool], finish: str = "stop", reward: float = 0.5
) -> list[dict[str, Any]]:
    """One response to each question: the right answer, or a wrong one."""
    return [
        {
            "prompt_id": f"p{index}",
            "prompt": [{"role": "user", "content": prompt}],
            "responses": [answer if good else WRONG],
            "finish_reasons": [finish],
            "rewards": [reward],
        }
        for index, ((prompt, answer), good) in enumerate(zip(questions.items(), right, strict=True))
    ]


def _artifact(folder: Path, rows: list[dict[str, Any]]) -> Artifact:
    Dataset.from_list(rows).save_to_disk(str(folder / "data"))
    return Artifact(folder, {"key": folder.name, "contents": {}})


def _evaluate(
    folder: Path, profile: Profile, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str = "evaluation"
) -> Artifact:
    return pe.evaluate_policy(
        _artifact(folder / f"{name}_ours", ours), _artifact(folder / f"{name}_theirs", theirs), profile.evaluation,
        profile.world, None, 1, 0, cache_file=folder / "cache" / "judge.jsonl", into=folder / name,
    )  # fmt: skip


OURS, THEIRS = [True, False, True, True], [False, False, True, False]


def test_compare_pairs_by_prompt_and_counts(questions: dict[str, str], profile: Profile, tmp_path: Path) -> None:
    ours, theirs = _rows(questions, OURS), _rows(questions, THEIRS)[::-1]
    done = _evaluate(tmp_path, profile, ours, theirs)
    result = done.read_json("results.json")
    columns, estimates = result["prompts"], result["estimates"]
    assert columns["prompt_id"] == ["p0", "p1", "p2", "p3"]
    assert columns["reward"] == [1, -1, 1, 1]
    assert columns["reference_reward"] == [-1, -1, 1, -1]
    assert columns["outcome"] == [1.0, 0.5, 0.5, 1.0]
    assert columns["right"] == [1.0, 0.0, 1.0, 1.0]
    assert columns["skill"] == ["reasoning", "reasoning", "safety", "safety"]
    assert result["counts"] == {"wins": 2, "ties": 2, "losses": 0}
    assert estimates["win_rate"] == {"value": 0.75, "ci_low": 0.5, "ci_high": 1.0, "n": 4}
    assert estimates["reward"]["value"] == 0.5
    assert estimates["accuracy"]["value"] == 0.75
    assert estimates["proxy_reward"]["value"] == 0.5
    assert estimates["mean_length"]["value"] == sum(len(row["responses"][0]) for row in ours) / 4
    assert estimates["truncation_rate"]["value"] == 0.0
    assert result["skills"]["reasoning"]["reward"]["value"] == 0.0
    assert result["skills"]["reasoning"]["accuracy"]["value"] == 0.5
    assert result["skills"]["safety"]["reward"] == {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 2}
    assert done.metrics["gold_win_rate_vs_sft"] == 0.75
    assert done.metrics["gold_win_rate_vs_sft_ci_low"] == 0.5
    assert done.metrics["gold_reward"] == 0.5
    assert {
        "gold_length_adjusted_win_rate_vs_sft",
        "proxy_win_rate_vs_sft",
        "accuracy",
        "mean_length",
        "truncation_rate",
    } <= set(done.metrics)
    assert done.rows["prompts"] == {"rows_in": 4, "rows_out": 4, "dropped": {}}


def test_the_length_adjusted_rate_compares_with_the_reference_s_lengths(
    questions: dict[str, str], profile: Profile, tmp_path: Path
) -> None:
    ours, theirs = _rows(questions, [True, False, True, False]), _rows(questions, [False, True, False, False])
    for row, times in zip(ours, (9, 0, 3, 0), strict=True):
        row["responses"][0] += " Have a nice day." * times
    results = _evaluate(tmp_path, profile, ours, theirs).read_json("results.json")
    columns, estimates = results["prompts"], results["estimates"]
    lengths = [[len(row["responses"][0]) for row in rows] for rows in (ours, theirs)]
    wanted = length_adjusted_win_rate(columns["outcome"], *lengths, profile.evaluation.confidence).win_rate
    assert estimates["length_adjusted_win_rate"]["value"] == pytest.approx(wanted.value)
    assert abs(wanted.value - estimates["win_rate"]["value"]) > 0.02


def test_the_proxy_has_an_outcome_of_its_own(questions: dict[str, str], profile: Profile, tmp_path: Path) -> None:
    """The proxy prefers our second answer, which the gold judge calls equally wrong."""
    ours, theirs = _rows(questions, [False] * 4, finish="length"), _rows(questions, [False] * 4)
    ours[1] |= {"rewards": [0.9], "responses": [f"{WRONG} Sorry."]}
    estimates = _evaluate(tmp_path, profile, ours, theirs).read_json("results.json")["estimates"]
    assert estimates["win_rate"]["value"] == 0.5
    assert estimates["proxy_win_rate"]["value"] == (1 + 3 * 0.5) / 4
    assert estimates["truncation_rate"]["value"] == 1.0


def test_the_ranking_reward_is_penalised(profile: Profile, tmp_path: Path) -> None:
    penalty = profile.pair_building.length_penalty
    results = {"prompts": {"proxy_reward": [1.0, 2.0, 0.0], "length": [10, 20, 60]}}
    ranked = pe.ranking_reward(Run("09_iterative_dpo", profile, tmp_path), results)
    assert penalty > 0
    assert ranked["value"] == pytest.approx(1.0 - 30 * penalty)
    assert ranked["ci_low"] < ranked["value"] < ranked["ci_high"]
    assert ranked["n"] == 3


def test_a_policy_against_itself_is_all_ties(questions: dict[str, str], profile: Profile, tmp_path: Path) -> None:
    """Also where a reward in bfloat16 came out otherwise in another batch."""
    rows = _rows(questions, OURS)
    result = _evaluate(tmp_path, profile, rows, _rows(questions, OURS, reward=0.501)).read_json("results.json")
    assert result["estimates"]["proxy_win_rate"]["value"] == 0.5
    assert result["counts"] == {"wins": 0, "ties": 4, "losses": 0}
    assert result["estimates"]["win_rate"] == {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5, "n": 4}


def test_different_prompts_or_several_responses_are_refused(
    questions: dict[str, str], profile: Profile, tmp_path: Path
) -> None:
    rows = _rows(questions, OURS)
    with pytest.raises(ValueError, match=r"4 prompts and the reference 3.*\['p3'\]"):
        _evaluate(tmp_path, profile, rows, rows[:3], "fewer")
    two = [{**row, "responses": ["a", "b"]} for row in rows]
    with pytest.raises(ValueError, match="p0: 2 responses"):
        _evaluate(tmp_path, profile, two, rows, "two")


def test_an_endpoint_s_verdicts_outlive_their_stage(questions: dict[str, str], tmp_path: Path, serve: Any) -> None:
    """The stage runs again in another folder, as after a change of code: the judge is asked nothing twice."""
    server = serve(lambda number, prompt: "[[A]]")
    changes = {"evaluation.judge": "endpoint", "evaluation.endpoint_url": server.url, "evaluation.judge_model": "m"}
    judged = load_profile("tiny", {**changes, "evaluation.bootstrap_samples": 20})
    for name in ("first", "second"):
        done = _evaluate(tmp_path, judged, _rows(questions, OURS), _rows(questions, THEIRS), name)
        assert done.metrics["endpoint_win_rate_vs_sft"] == 0.5  # always the first: contradictory, so ties
        assert done.metrics["endpoint_contradictory"] == 2
        assert "endpoint_reward" not in done.metrics
        assert done.read_json("results.json")["skills"] == {}
    assert len(server.prompts) == 4  # two pairs differ, in two orders; the identical answers are not sent
    assert (done.metrics["endpoint_asked"], done.metrics["endpoint_cached"]) == (0, 4)


def test_a_prompt_without_a_verdict_is_counted_and_in_no_win_rate(
    questions: dict[str, str], tmp_path: Path, serve: Any
) -> None:
    """The judge prefers the right answer and refuses the last prompt; our last answer is wrong."""
    last = list(questions)[-1]

    def answer(number: int, prompt: str) -> Any:
        first = prompt.split("<reply_A>")[1].split("</reply_A>")[0]
        return (400, "refused") if last in prompt else "[[B]]" if WRONG in first else "[[A]]"

    url = serve(answer).url

    def judged_profile(share: float) -> Profile:
        changes = {"judge": "endpoint", "endpoint_url": url, "judge_model": "m", "max_failed_share": share}
        return load_profile("tiny", {f"evaluation.{name}": value for name, value in changes.items()})

    ours, theirs = _rows(questions, [True, True, True, False]), _rows(questions, [False] * 3 + [True])
    done = _evaluate(tmp_path, judged_profile(0.5), ours, theirs)
    results = done.read_json("results.json")
    assert results["prompts"]["outcome"] == [1.0, 1.0, 1.0, None]
    assert results["prompts"]["prompt_id"] == ["p0", "p1", "p2", "p3"]
    assert (results["n"], results["counts"]) == (3, {"wins": 3, "ties": 0, "losses": 0})
    assert results["estimates"]["win_rate"]["value"] == done.metrics["endpoint_win_rate_vs_sft"] == 1.0
    assert (results["estimates"]["win_rate"]["n"], results["estimates"]["length_adjusted_win_rate"]["n"]) == (3, 3)
    assert results["estimates"]["mean_length"]["n"] == 4
    assert done.rows["prompts"] == {"rows_in": 4, "rows_out": 3, "dropped": {"no_verdict": 1}}
    assert done.metrics["endpoint_refused"] == 2
    with pytest.raises(RuntimeError, match="2 of 8 verdicts failed"):
        _evaluate(tmp_path, judged_profile(0.02), ours, theirs, "strict")
    with pytest.raises(ValueError, match="no verdict on any of 1 prompts"):
        _evaluate(tmp_path, judged_profile(1.0), ours[3:], theirs[3:], "none")


def test_a_judge_trained_anew_into_the_same_folder_judges_anew(questions: dict[str, str], tmp_path: Path) -> None:
    changes = {"evaluation.judge": "reward_model", "evaluation.judge_model": str(tmp_path / "judge")}
    profile = load_profile("tiny", {**changes, "evaluation.bootstrap_samples": 20})
    run, policy, found = Run("10_policy_evaluation", profile, tmp_path / "run"), save_policy(tmp_path / "policy"), []
    ours, theirs = (_artifact(tmp_path / str(i), _rows(questions, right)) for i, right in enumerate((OURS, THEIRS)))
    for seed in (0, 1):
        save_reward_model(tmp_path / "judge", policy, seed)
        done = pe.evaluate_policy(
            ours, theirs, profile.evaluation, None, run.judge_model(), 1000, 0,
            cache_file=tmp_path / "cache.jsonl", into=tmp_path / "evaluation",
        )  # fmt: skip
        found.append(done.read_json("results.json")["prompts"]["reward"])
        assert found[-1] == pytest.approx(score(tmp_path / "judge", _conversations(questions, OURS), 1000), abs=1e-5)
    assert found[0] != found[1]


def test_an_answer_without_a_reward_is_left_out_of_means_and_verdicts(
    questions: dict[str, str], profile: Profile, tmp_path: Path
) -> None:
    """The second answer is too long for the RM, as judge and as proxy."""
    ours, theirs = _rows(questions, OURS), _rows(questions, THEIRS)
    ours[1] |= {"responses": ["far " * 300], "rewards": [None]}
    found = _evaluate(tmp_path, profile, ours, theirs).read_json("results.json")
    assert found["prompts"]["proxy_reward"] == found["prompts"]["proxy_outcome"] == [0.5, None, 0.5, 0.5]
    assert (found["estimates"]["proxy_reward"]["n"], found["estimates"]["reward"]["n"]) == (3, 4)
    run = Run("10_policy_evaluation", profile, tmp_path)
    assert pe.ranking_reward(run, found)["n"] == 3
    save_reward_model(tmp_path / "judge", save_policy(tmp_path / "policy"))
    changes = {"evaluation.judge": "reward_model", "evaluation.judge_model": str(tmp_path / "judge")}
    done = _evaluate(
        tmp_path, load_profile("tiny", {**changes, "evaluation.bootstrap_samples": 20}), ours, theirs, "rm"
    )
    assert done.read_json("results.json")["prompts"]["outcome"][1] is None
    assert done.rows["prompts"] == {"rows_in": 4, "rows_out": 3, "dropped": {"no_verdict": 1}}


def _conversations(questions: dict[str, str], right: list[bool]) -> list[Any]:
    return [(row["prompt"], row["responses"][0]) for row in _rows(questions, right)]


def _tests(folder: Path, tests: dict[str, str]) -> Path:
    rows = [{"prompt": prompt, "answer": answer, "id": prompt} for prompt, answer in tests.items()]
    folder.mkdir()
    (folder / "translation_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_exact_match_prompts_are_distinct(profile: Profile, tmp_path: Path) -> None:
    root = _tests(tmp_path / "root", dict.fromkeys(("a b", "A  B", "c"), "x"))
    done = pe.write_exact_match_prompts(profile.evaluation, root, into=tmp_path / "exact_match_prompts")
    rows = list(load_from_disk(str(done.path / "exact_match")))
    assert [row["prompt"][-1]["content"].casefold().split() for row in rows] == [["a", "b"], ["c"]]
    assert done.rows["prompts"]["dropped"] == {"repeated_prompt": 1}


def test_exact_match_forgives_outer_space_and_counts_prompts_without_a_response(
    questions: dict[str, str], profile: Profile, tmp_path: Path
) -> None:
    answers = _rows(questions, OURS)
    answers[0]["responses"] = [f" {answers[0]['responses'][0]} "]
    root = _tests(tmp_path / "root", {**questions, "too long to be asked": "z"})
    done = pe.evaluate_exact_match(
        _artifact(tmp_path / "answers", answers), profile.evaluation, root, into=tmp_path / "sft_exact_match"
    )
    assert done.read_json("results.json")["prompts"]["correct"] == [1.0, 0.0, 1.0, 1.0]
    assert done.metrics["exact_match"] == 0.75
    assert done.rows["prompts"] == {"rows_in": 5, "rows_out": 4, "dropped": {"no_response": 1}}
