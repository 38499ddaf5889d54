"""Judges: comparing scores, relabelling pairs, and the LLM judge against a real HTTP server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import Reply, endpoint
from tiny_models import artifact

from rlhflow_utils.evaluation import judges as jd
from rlhflow_utils.evaluation.judges import comparison_prompt, parse_verdict
from rlhflow_utils.evaluation.policies import judge_answers
from rlhflow_utils.evaluation.reward_models import relabel_by_gold, write_clean_test_pairs
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.tasks import FILLERS


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


REASONING = "What does this print? m=3; n=m-0; print(n)"


def _gold() -> tuple[World, str, str]:
    """The tiny profile's world, with the right answer to `REASONING` and a wrong one."""
    profile = load_profile("tiny")
    assert profile.world is not None
    world = World(profile.world)
    task = world.read_prompt(REASONING)
    assert task is not None
    assert task.answer.endswith("so 3.")
    return world, task.answer, task.answer.replace("3.", "2.")


def _pair(question: str, chosen: str, rejected: str, row_id: str) -> dict[str, Any]:
    return {
        "prompt": _prompt(question),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_score": 4.0,
        "rejected_score": 1.0,
        "row_id": row_id,
    }


def test_relabelling_turns_wrong_labels_round_and_drops_what_has_no_clear_truth() -> None:
    world, right, wrong = _gold()
    rows = [
        _pair(REASONING, right, wrong, "right"),
        _pair(REASONING, wrong, right, "wrong"),
        _pair(REASONING, right, right, "tie"),
        _pair(REASONING, right, f"{FILLERS[0]} {right}", "both right"),
        _pair("no question of this world", "a", "b", "unread"),
    ]
    kept, dropped, turned = relabel_by_gold(rows, world, margin=0.5)
    assert [row["row_id"] for row in kept] == ["right", "wrong"]
    assert dropped == {"no_gold": 1, "small_gold_gap": 2}
    assert turned == 1
    assert kept[0] == {**rows[0], "skill": "reasoning"}
    assert (kept[1]["chosen"], kept[1]["rejected"]) == (rows[1]["rejected"], rows[1]["chosen"])
    assert (kept[1]["chosen_score"], kept[1]["rejected_score"]) == (1.0, 4.0)
    assert relabel_by_gold(rows[2:3], world, margin=0.0)[1]["small_gold_gap"] == 1


def test_held_out_pairs_are_relabelled_where_the_truth_is_known(tmp_path: Path) -> None:
    (_, right, wrong), profile = _gold(), load_profile("tiny")
    rows = [_pair(REASONING, wrong, right, "wrong"), _pair(REASONING, right, wrong, "right")]
    data = artifact(tmp_path / "data", "test", [*rows, _pair("no question of this world", "a", "b", "unread")])
    done = write_clean_test_pairs(data, profile.evaluation, profile.world, into=tmp_path / "pairs")
    assert done.metrics == {"pairs": 2, "label_noise": 0.5}
    assert [row["chosen"][0]["content"] for row in done.dataset()] == [right] * 2


def test_gold_judge_knows_the_right_answer() -> None:
    _, right, wrong = _gold()
    prompts, profile = [_prompt(REASONING)] * 2, load_profile("tiny")
    columns, counts = judge_answers(
        prompts, [right, wrong], [wrong, wrong], profile.evaluation, profile.world, None, 100, None
    )
    assert columns == {
        "reward": [1.0, -1.0], "reference_reward": [-1.0, -1.0], "outcome": [1.0, 0.5], "right": [1.0, 0.0],
        "skill": ["reasoning"] * 2,
    }  # fmt: skip
    assert counts == {}


# --- verdict texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B is wrong. [[A]]", "A"),
        ("[[b]]", "B"),
        ("Both fail.\n[[ tie ]]", "tie"),
        ("At first [[A]] seemed right, but no: [[B]]", "B"),
        ("[[**B**]]", "B"),
        ("<think>[[A]]? No.</think> [[B]]", "B"),
        ("<thinking>[[A]]</thinking> Hard to say.", None),
        ("<think>[[A]]? No, ", None),
        ("I prefer A.", None),
        ("[[C]]", None),
        ("", None),
    ],
)
def test_parse_verdict(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


def test_comparison_prompt_shows_every_turn_and_both_replies_in_order() -> None:
    turns = [*_prompt("one"), {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    text = comparison_prompt(turns, "FIRST", "SECOND")[0]["content"]
    assert "User: one\n\nAssistant: two\n\nUser: three" in text
    assert text.index("<reply_A>\nFIRST") < text.index("<reply_B>\nSECOND")


# --- the endpoint -------------------------------------------------------------------------------------------------


def test_endpoint_judges_both_orders_and_a_second_run_asks_nothing(serve: Any, tmp_path: Path) -> None:
    server = serve(_prefers("good"))
    prompts = [_prompt("q1"), _prompt("q2"), _prompt("q3")]
    a, b = ["good", "bad", "same"], ["bad", "good", "same"]
    judge = endpoint(server.url, "m", tmp_path / "cache" / "verdicts.jsonl")
    assert jd.outcomes(judge, prompts, a, b) == [1.0, 0.0, 0.5]
    assert len(server.prompts) == 4  # two pairs in two orders; the identical pair is not asked
    assert judge.counts["asked"] == 4

    again = endpoint(server.url, "m", tmp_path / "cache" / "verdicts.jsonl")
    assert jd.outcomes(again, prompts, a, b) == [1.0, 0.0, 0.5]
    assert len(server.prompts) == 4
    assert (again.counts["asked"], again.counts["cached"]) == (0, 4)
    other_model = endpoint(server.url, "another", tmp_path / "cache" / "verdicts.jsonl")
    jd.outcomes(other_model, prompts, a, b)
    assert len(server.prompts) == 8


def test_position_bias_is_a_tie_and_a_failed_verdict_is_none(serve: Any) -> None:
    def answer(number: int, prompt: str) -> Reply:
        if "garbage" in prompt:
            return "I would rather talk about the weather."
        return (400, "context too long") if "huge" in prompt else "[[A]]"  # always the first: position bias

    judge = endpoint(serve(answer).url, "m", None)
    prompts = [_prompt("biased"), _prompt("garbage"), _prompt("huge")]
    assert jd.outcomes(judge, prompts, ["x"] * 3, ["y"] * 3) == [0.5, None, None]
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
    judge = endpoint(server.url, "m", None, timeout=0.5, max_retries=3, workers=1)
    assert jd.outcomes(judge, [_prompt("q")], ["good"], ["bad"]) == [1.0]
    assert len(server.prompts) == 4  # the 500, the time-out, then one answer for each order
    assert judge.counts["asked"] == 2


def test_endpoint_counts_what_never_comes_and_asks_for_it_again(serve: Any, tmp_path: Path) -> None:
    slow = True

    def answer(number: int, prompt: str) -> Reply:
        return None if "q2" in prompt and slow else _prefers("good")(number, prompt)

    server = serve(answer)
    prompts, a, b = [_prompt("q1"), _prompt("q2")], ["good", "good"], ["bad", "bad"]
    options: dict[str, Any] = {"timeout": 0.5, "max_retries": 1, "workers": 4}
    judge = endpoint(server.url, "m", tmp_path / "cache.jsonl", **options)
    assert jd.outcomes(judge, prompts, a, b) == [1.0, None]
    assert (judge.counts["timed_out"], judge.counts["asked"]) == (2, 4)
    assert len(server.prompts) == 6  # the two that never come are asked twice
    assert server.most_at_once > 1
    slow = False
    again = endpoint(server.url, "m", tmp_path / "cache.jsonl", **options)
    assert jd.outcomes(again, prompts, a, b) == [1.0, 1.0]
    assert (again.counts["timed_out"], again.counts["cached"], again.counts["asked"]) == (0, 2, 2)
    options = {"max_failed_share": 0.5, "timeout": 0.3, "max_retries": 0}
    nobody = endpoint(serve(lambda number, prompt: None).url, "m", None, **options)
    with pytest.raises(RuntimeError, match=r"2 of 2 verdicts failed \(2 timed_out; the first: 'Request timed out"):
        jd.outcomes(nobody, prompts[:1], a[:1], b[:1])


def test_too_many_failures_are_an_error_and_are_asked_again(serve: Any, tmp_path: Path) -> None:
    """The endpoint refuses every request until it is mended; then the same command gives the true outcomes."""
    mended = False

    def answer(number: int, prompt: str) -> Reply:
        return _prefers("good")(number, prompt) if mended else (400, "Unsupported parameter: 'max_tokens'")

    server, cache = serve(answer), tmp_path / "verdicts.jsonl"
    rows = [_prompt(f"q{i}") for i in range(12)], ["good"] * 12, ["bad"] * 12
    message = r"24 of 24 verdicts failed \(24 refused; .*Unsupported parameter.*judge_model.*max_failed_share"
    with pytest.raises(RuntimeError, match=message) as caught:
        jd.outcomes(endpoint(server.url, "m", cache, max_failed_share=0.02), *rows)
    assert "\n" not in str(caught.value)
    assert not cache.exists()
    mended = True
    judge = endpoint(server.url, "m", cache, max_failed_share=0.02)
    assert jd.outcomes(judge, *rows) == [1.0] * 12
    assert (judge.counts["refused"], judge.counts["asked"]) == (0, 24)


def test_unreadable_replies_are_counted_and_shown_also_those_kept_before_the_rules_changed(
    serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replies, cache = ["[[A]]", "It is [[B]]"], tmp_path / "verdicts.jsonl"
    server = serve(lambda number, prompt: replies[int(prompt[1])])
    questions = [_prompt("q0"), _prompt("q1")]
    lenient = endpoint(server.url, "m", cache).ask(questions, lambda reply: reply, 10)
    assert lenient == replies
    replies[0] = "I cannot say."
    cache.write_text(cache.read_text().replace("[[A]]", "[A]"))
    strict = endpoint(server.url, "m", cache)
    assert strict.ask(questions, parse_verdict, 10) == [None, "B"]
    assert (strict.counts["asked"], strict.counts["cached"], strict.counts["unparsable"]) == (1, 1, 1)
    assert "1 of 2 verdicts failed (1 unparsable; the first: 'I cannot say.')" in capsys.readouterr().out


@pytest.mark.parametrize(("share", "accepted"), [(0.25, True), (0.24, False)])
def test_the_accepted_share_of_failures_is_the_profile_s(serve: Any, share: float, accepted: bool) -> None:
    """One of four requests fails."""
    server = serve(lambda number, prompt: (400, "no") if "q2" in prompt else "[[A]]")
    judge_endpoint = endpoint(server.url, max_failed_share=share)
    questions = [_prompt(f"q{i}") for i in range(4)]
    if accepted:
        assert judge_endpoint.ask(questions, parse_verdict, 10) == ["A", "A", None, "A"]
    else:
        with pytest.raises(RuntimeError, match="1 of 4 verdicts failed"):
            judge_endpoint.ask(questions, parse_verdict, 10)


def test_another_endpoint_of_the_same_model_name_is_asked_itself(serve: Any, tmp_path: Path) -> None:
    for reply in ("[[A]]", "[[B]]"):
        found = endpoint(serve(lambda number, prompt: reply).url, "m", tmp_path / "cache.jsonl")  # noqa: B023
        assert found.ask([_prompt("q")], parse_verdict, 10) == [reply[2]]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_give_no_verdict(broken: float) -> None:
    for rewards in ([1.0, broken], [1.0, 2.0]), ([1.0, 2.0], [1.0, broken]), ([1.0, broken], [1.0, broken]):
        with pytest.raises(ValueError, match="row 1: the score is"):
            jd.compare_rewards(*rewards)


def test_endpoint_tells_the_cost_before_it_starts(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(_prefers("good"))
    judge = endpoint(server.url, "m", None, prices=[10.0, 30.0])
    question = [{"role": "user", "content": "x" * 400}]
    cost = judge.cost([question] * 2 + [_prompt("y" * 10)] * 400, 10_000)
    # 410 characters are 103 tokens: (103 * 10 + 20000 * 30) / 1e6 dollars.
    assert cost.startswith("2 requests (0 more are cached): about 103 prompt tokens, at most 20,000 completion tokens")
    assert cost.endswith(", at most 0.60 dollars")
    assert "no prices given" in endpoint(server.url, "m", None).cost([question], 100)
    assert server.prompts == []
    jd.outcomes(judge, [_prompt("q")], ["good"], ["bad"])
    assert "2 requests (0 more are cached)" in capsys.readouterr().out


def test_a_judge_that_thinks_first_has_room_for_its_thoughts(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It may write so many tokens more, is waited for longer, and its server's temperature is its own."""
    server = serve(lambda number, prompt: "<think>[[B]]? No, A is right.</think> [[A]]")
    judge = endpoint(server.url, thinking=16_000)
    assert judge.ask([_prompt("q")], parse_verdict, 512) == ["A"]
    [request] = server.requests
    assert request["max_completion_tokens"] == 16_512
    assert not {"max_tokens", "temperature"} & set(request)
    assert "at most 16,512 completion tokens" in capsys.readouterr().out
    assert endpoint(server.url).ask([_prompt("q")], parse_verdict, 512) == ["A"]
    assert server.patience == pytest.approx([60 + 16_512 / 20, 60 + 512 / 20], abs=1)
    assert (server.requests[1]["max_tokens"], server.requests[1]["temperature"]) == (512, 0.0)
    assert "max_completion_tokens" not in server.requests[1]


def test_a_verdict_that_was_cut_off_names_the_setting(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    message = {"role": "assistant", "content": "<think>Let me see whether [[A]]"}
    judge = endpoint(serve(lambda number, prompt: {"index": 0, "message": message, "finish_reason": "length"}).url)
    assert judge.ask([_prompt("q")], parse_verdict, 7) == [None]
    assert judge.counts["unparsable"] == 1
    assert "cut off after 7 tokens, raise evaluation.endpoint_thinking_tokens" in capsys.readouterr().out


def test_endpoint_that_keeps_failing_is_an_error_but_keeps_its_verdicts(serve: Any, tmp_path: Path) -> None:
    healthy = False

    def answer(number: int, prompt: str) -> Reply:
        return (503, "overloaded") if "q2" in prompt and not healthy else _prefers("good")(number, prompt)

    server = serve(answer)
    prompts, a, b = [_prompt("q1"), _prompt("q2")], ["good", "good"], ["bad", "bad"]
    cache = tmp_path / "verdicts.jsonl"
    failing = endpoint(server.url, "m", cache, max_retries=0, workers=1)
    with pytest.raises(RuntimeError, match=r"judge endpoint .*overloaded.*evaluation\.endpoint_url"):
        jd.outcomes(failing, prompts, a, b)
    kept = len(cache.read_text().splitlines())
    assert kept >= 1

    cache.write_text(cache.read_text() + '{"key": "cut sho', encoding="utf-8")  # killed while writing
    healthy = True
    asked_before = len(server.prompts)
    judge = endpoint(server.url, "m", cache, max_retries=0)
    assert jd.outcomes(judge, prompts, a, b) == [1.0, 1.0]
    assert len(server.prompts) - asked_before == 4 - kept
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 4


def test_endpoint_unreachable_names_the_setting() -> None:
    judge = endpoint("http://127.0.0.1:9/v1", "m", None, max_retries=0)
    with pytest.raises(RuntimeError, match=r"evaluation\.endpoint_url"):
        jd.outcomes(judge, [_prompt("q")], ["a"], ["b"])
