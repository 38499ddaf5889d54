"""Judges: comparing scores, cleaning pairs, and the LLM judge against a real HTTP server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import Reply

from rlhflow_utils.evaluation import judges as jd
from rlhflow_utils.evaluation.judges import EndpointJudge, both_orders, comparison_prompt, parse_verdict
from rlhflow_utils.guide.profile import load_profile


class LengthJudge:
    """Scores a response by its length: a judge whose every verdict can be checked by eye."""

    name = "gold"

    def __init__(self) -> None:
        self.seen = 0

    def rewards(self, prompts: jd.Prompts, responses: Any) -> list[float]:
        self.seen += len(responses)
        return [float(len(response)) for response in responses]

    def outcomes(self, prompts: jd.Prompts, responses_a: Any, responses_b: Any) -> list[float]:
        return jd.compare_rewards(self.rewards(prompts, responses_a), self.rewards(prompts, responses_b))


def _prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _prefers(word: str) -> Callable[[int, str], Reply]:
    """A judge without position bias: it prefers the reply that contains a word."""

    def answer(number: int, prompt: str) -> Reply:
        first = prompt.split("<reply_A>")[1].split("</reply_A>", maxsplit=1)[0]
        return "I compared them. [[A]]" if word in first else "Reply B it is. [[B]]"

    return answer


# --- judges that score --------------------------------------------------------------------------------------------


def test_compare_rewards() -> None:
    assert jd.compare_rewards([1.0, 0.0, 2.0], [0.5, 0.0, 3.0]) == [1.0, 0.5, 0.0]


def test_judge_pairs_calls_identical_responses_a_tie_without_asking() -> None:
    judge = LengthJudge()
    outcomes = jd.judge_pairs([_prompt("q")] * 3, ["long one", "same", "x"], ["short", "same", "xx"], judge)
    assert outcomes == [1.0, 0.5, 0.0]
    assert judge.seen == 4
    with pytest.raises(ValueError, match="2 prompts, 1 and 2 responses"):
        jd.judge_pairs([_prompt("q")] * 2, ["a"], ["b", "c"], judge)


def _pair(chosen: str, rejected: str, row_id: str) -> dict[str, Any]:
    return {
        "prompt": _prompt("q"),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_score": 4.0,
        "rejected_score": 1.0,
        "source": "s",
        "row_id": row_id,
    }


def test_clean_pairs_turns_wrong_labels_round_and_drops_ties() -> None:
    rows = [_pair("longer", "short", "right"), _pair("ab", "abcd", "wrong"), _pair("ab", "cd", "tie")]
    clean = jd.clean_pairs(rows, LengthJudge())
    assert [row["row_id"] for row in clean.rows] == ["right", "wrong"]
    assert clean.dropped == {"gold_tie": 1}
    assert clean.flipped == 1
    assert clean.rows[0] == rows[0]
    turned = clean.rows[1]
    assert (turned["chosen"][0]["content"], turned["rejected"][0]["content"]) == ("abcd", "ab")
    assert (turned["chosen_score"], turned["rejected_score"]) == (1.0, 4.0)


def test_clean_pairs_leaves_rows_alone_where_the_truth_is_unknown() -> None:
    judge = LengthJudge()
    judge.name = "reward_model"
    rows = [_pair("ab", "abcd", "wrong")]
    assert jd.clean_pairs(rows, judge) == (rows, {}, 0)
    assert judge.seen == 0


@pytest.mark.parametrize(
    ("judge", "world", "fix"),
    [("gold", False, "simulated world"), ("reward_model", True, r"judge_model"), ("endpoint", True, r"endpoint_url")],
)
def test_a_judge_without_what_it_needs_names_the_setting(judge: str, world: bool, fix: str) -> None:
    profile = load_profile("tiny")
    settings = profile.evaluation.model_copy(update={"judge": judge})
    with pytest.raises(ValueError, match=f"evaluation.judge: {judge} needs .*{fix}"):
        jd.build_judge(settings, profile.world if world else None, None, batch_tokens=100)


def test_gold_judge_knows_the_right_answer() -> None:
    profile = load_profile("tiny")
    judge = jd.build_judge(profile.evaluation, profile.world, None, batch_tokens=100)
    assert isinstance(judge, jd.GoldJudge)
    [prompt] = [_prompt("What does this print? m=3; n=m-0; print(n)")]
    task = judge.world.read_prompt(prompt[0]["content"])
    assert task is not None
    right, wrong = task.answer, task.answer.replace("3.", "2.")
    assert right.endswith("so 3.")
    assert judge.name == "gold"
    assert judge.rewards([prompt, prompt], [right, wrong]) == [1.0, -1.0]
    assert jd.judge_pairs([prompt] * 3, [right, wrong, wrong], [wrong, right, "?"], judge) == [1.0, 0.0, 0.5]


# --- verdict texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B is wrong. [[A]]", "A"),
        ("[[b]]", "B"),
        ("Both fail.\n[[ tie ]]", "tie"),
        ("At first [[A]] seemed right, but no: [[B]]", "B"),
        ("I prefer A.", "unparsable"),
        ("[[C]]", "unparsable"),
        ("", "unparsable"),
    ],
)
def test_parse_verdict(reply: str, verdict: str) -> None:
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize(
    ("forward", "backward", "outcome"),
    [("A", "B", 1.0), ("B", "A", 0.0), ("A", "A", 0.5), ("B", "B", 0.5), ("A", "tie", 0.5), ("unparsable", "B", 0.5)],
)
def test_both_orders_must_agree(forward: str, backward: str, outcome: float) -> None:
    assert both_orders(forward, backward) == outcome


def test_comparison_prompt_shows_every_turn_and_both_replies_in_order() -> None:
    turns = [*_prompt("one"), {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    text = comparison_prompt(turns, "FIRST", "SECOND")
    assert "User: one\n\nAssistant: two\n\nUser: three" in text
    assert text.index("<reply_A>\nFIRST") < text.index("<reply_B>\nSECOND")


# --- the endpoint -------------------------------------------------------------------------------------------------


def test_endpoint_judges_both_orders_and_a_second_run_asks_nothing(serve: Any, tmp_path: Path) -> None:
    server = serve(_prefers("good"))
    prompts = [_prompt("q1"), _prompt("q2"), _prompt("q3")]
    a, b = ["good", "bad", "same"], ["bad", "good", "same"]
    judge = EndpointJudge(server.url, "m", tmp_path / "cache" / "verdicts.jsonl")
    assert jd.judge_pairs(prompts, a, b, judge) == [1.0, 0.0, 0.5]
    assert len(server.prompts) == 4  # two pairs in two orders; the identical pair is not asked
    assert judge.counts["asked"] == 4

    again = EndpointJudge(server.url, "m", tmp_path / "cache" / "verdicts.jsonl")
    assert jd.judge_pairs(prompts, a, b, again) == [1.0, 0.0, 0.5]
    assert len(server.prompts) == 4
    assert (again.counts["asked"], again.counts["cached"]) == (0, 4)
    other_model = EndpointJudge(server.url, "another", tmp_path / "cache" / "verdicts.jsonl")
    jd.judge_pairs(prompts, a, b, other_model)
    assert len(server.prompts) == 8


def test_endpoint_counts_position_bias_garbage_and_refusals_as_ties(serve: Any) -> None:
    def answer(number: int, prompt: str) -> Reply:
        if "garbage" in prompt:
            return "I would rather talk about the weather."
        return (400, "context too long") if "huge" in prompt else "[[A]]"  # always the first: position bias

    judge = EndpointJudge(serve(answer).url, "m", None)
    prompts = [_prompt("biased"), _prompt("garbage"), _prompt("huge")]
    assert jd.judge_pairs(prompts, ["x"] * 3, ["y"] * 3, judge) == [0.5, 0.5, 0.5]
    assert judge.counts["contradictory"] == 1
    assert judge.counts["unparsable"] == 2
    assert judge.counts["refused"] == 2
    assert judge.counts["asked"] == 6


def test_endpoint_retries_server_errors_and_time_outs(serve: Any) -> None:
    def answer(number: int, prompt: str) -> Reply:
        if number == 0:
            return (500, "out of memory")
        return None if number == 1 else _prefers("good")(number, prompt)

    server = serve(answer)
    judge = EndpointJudge(server.url, "m", None, timeout=0.5, max_retries=3, workers=1)
    assert jd.judge_pairs([_prompt("q")], ["good"], ["bad"], judge) == [1.0]
    assert len(server.prompts) == 4  # the 500, the time-out, then one answer for each order
    assert judge.counts["asked"] == 2


def test_endpoint_counts_what_never_comes_and_asks_for_it_again(serve: Any, tmp_path: Path) -> None:
    slow = True

    def answer(number: int, prompt: str) -> Reply:
        return None if "q2" in prompt and slow else _prefers("good")(number, prompt)

    server = serve(answer)
    prompts, a, b = [_prompt("q1"), _prompt("q2")], ["good", "good"], ["bad", "bad"]
    options: dict[str, Any] = {"timeout": 0.5, "max_retries": 1, "workers": 4}
    judge = EndpointJudge(server.url, "m", tmp_path / "cache.jsonl", **options)
    assert jd.judge_pairs(prompts, a, b, judge) == [1.0, 0.5]
    assert (judge.counts["timed_out"], judge.counts["retried"], judge.counts["asked"]) == (2, 2, 4)
    assert server.most_at_once > 1
    slow = False
    again = EndpointJudge(server.url, "m", tmp_path / "cache.jsonl", **options)
    assert jd.judge_pairs(prompts, a, b, again) == [1.0, 1.0]
    assert (again.counts["timed_out"], again.counts["cached"], again.counts["asked"]) == (0, 2, 2)
    nobody = EndpointJudge(serve(lambda number, prompt: None).url, "m", None, timeout=0.3, max_retries=0)
    with pytest.raises(RuntimeError, match="no reply in time to any of 2 requests"):
        jd.judge_pairs(prompts[:1], a[:1], b[:1], nobody)


def test_endpoint_tells_the_cost_before_it_starts(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(_prefers("good"))
    judge = EndpointJudge(server.url, "m", None, prices=[10.0, 30.0])
    question = [{"role": "user", "content": "x" * 400}]
    cost = judge.endpoint.cost([question, question, _prompt("y" * 10)], 100, judge.prices)
    assert (cost.requests, cost.cached, cost.prompt_tokens, cost.completion_tokens) == (2, 0, 103, 200)
    assert cost.dollars == pytest.approx((103 * 10 + 200 * 30) / 1e6)
    assert "no prices given" in str(judge.endpoint.cost([question], 100))
    assert server.prompts == []
    jd.judge_pairs([_prompt("q")], ["good"], ["bad"], judge)
    assert "2 requests (0 more are cached)" in capsys.readouterr().out


def test_endpoint_that_keeps_failing_is_an_error_but_keeps_its_verdicts(serve: Any, tmp_path: Path) -> None:
    healthy = False

    def answer(number: int, prompt: str) -> Reply:
        return (503, "overloaded") if "q2" in prompt and not healthy else _prefers("good")(number, prompt)

    server = serve(answer)
    prompts, a, b = [_prompt("q1"), _prompt("q2")], ["good", "good"], ["bad", "bad"]
    cache = tmp_path / "verdicts.jsonl"
    failing = EndpointJudge(server.url, "m", cache, max_retries=0, workers=1)
    with pytest.raises(RuntimeError, match=r"judge endpoint .*overloaded.*evaluation\.endpoint_url"):
        jd.judge_pairs(prompts, a, b, failing)
    kept = len(cache.read_text().splitlines())
    assert kept >= 1

    cache.write_text(cache.read_text() + '{"key": "cut sho', encoding="utf-8")  # killed while writing
    healthy = True
    asked_before = len(server.prompts)
    judge = EndpointJudge(server.url, "m", cache, max_retries=0)
    assert jd.judge_pairs(prompts, a, b, judge) == [1.0, 1.0]
    assert len(server.prompts) - asked_before == 4 - kept
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 4


def test_endpoint_unreachable_names_the_setting() -> None:
    judge = EndpointJudge("http://127.0.0.1:9/v1", "m", None, max_retries=0)
    with pytest.raises(RuntimeError, match=r"evaluation\.endpoint_url"):
        jd.judge_pairs([_prompt("q")], ["a"], ["b"], judge)
