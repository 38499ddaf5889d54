"""MT-Bench and Arena-Hard: real questions, prompts and verdicts; scores by hand; intervals by simulation."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from loopback import Reply, endpoint
from tiny_models import MODEL, save_policy, settings

from rlhflow_utils.evaluation import arena_hard as ah
from rlhflow_utils.evaluation import judges as jd
from rlhflow_utils.evaluation import mt_bench as mt
from rlhflow_utils.online.generation import generate

QUESTIONS, ARENA = "mt-bench/question.jsonl", "arena-hard/question.jsonl"
ALPACA = "alpaca_eval/alpaca_eval_gpt4_baseline.json"
JUDGMENTS = "model_judgment_gemini-1.5-pro-api-0514_phi-3-medium-4k-instruct.jsonl"


# --- MT-Bench -----------------------------------------------------------------------------------------------------


def test_mt_bench_questions_have_two_turns_and_references_where_needed(data_root: Path) -> None:
    questions = mt.read_questions(data_root / "mt-bench")
    assert len(questions) == 80
    assert set(Counter(q.category for q in questions).values()) == {10}
    # Reasoning 101-110, math 111-120, coding 121-130; question 95 carries a hint for people, not a reference.
    assert [q.question_id for q in questions if q.references] == list(range(101, 131))
    assert {q.category for q in questions} == set(mt.TEMPERATURES)
    assert mt.TEMPERATURES == {  # FastChat, llm_judge/common.py: temperature_config
        "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
        "humanities": 0.1,
    }  # fmt: skip


def test_mt_bench_prompts_are_filled_completely(data_root: Path) -> None:
    questions = mt.read_questions(data_root / "mt-bench")
    prompts = mt.read_judge_prompts(data_root / "mt-bench/judge_prompts.jsonl")
    plain, math = questions[0], next(q for q in questions if q.category == "math")
    for question in (plain, math):
        for turn in (1, 2):
            system, user = mt.grading_prompt(question, ["FIRST {answer}", "SECOND"], turn, prompts)
            assert (system["role"], user["role"]) == ("system", "user")
            assert "FIRST {answer}" in user["content"]  # braces in an answer are text
            assert ("SECOND" in user["content"]) == (turn == 2)
            assert question.turns[turn - 1] in user["content"]
            assert ("Reference" in user["content"]) == (question is math)
            assert "{question" not in user["content"]
            assert "{ref_answer" not in user["content"]
    assert math.references is not None
    assert math.references[1] in mt.grading_prompt(math, ["a", "b"], 2, prompts)[1]["content"]


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Clear and correct. Rating: [[8]]", 8.0),
        ("Rating: [[7.5]]", 7.5),
        ("The form asked for is [[5]]. Rating: [[9]]", 9.0),  # FastChat takes the first
        ("Its answer says Rating: [[10]]. Rating: [[2]]", 2.0),
        ("Its answer says Rating: [[10]]. Rating: [2]", 2.0),
        ("Rating: [[ 7 ]]", 7.0),
        ("Rating: [[8/10]]", 8.0),
        ("Rating: [[ 8.5 / 10 ]]", 8.5),
        ("Rating: [[**7**]]", 7.0),
        ("Rating: **[[9]]**", 9.0),
        ("<think>At first [[3]] seemed right.</think>\nRating: [[6]]", 6.0),
        ("At first [[3]] seemed right.</think>Rating: [[6]]", 6.0),  # the chat template had opened the block
        ("<think>Perhaps [[3]].</think>\nI cannot say.", None),
        ("<think>Perhaps [[3]], or", None),
        ("The answer cites [3].", None),
        ("Rating: [[8/100]]", None),
        ("Rating: [[8]]. A score of [[85]]", None),
        ("Rating: [6]", 6.0),
        ("[1] the source, then Rating: [[9]]", 9.0),
        ("Rating: [[rating]]", None),
        ("Rating: 8/10", None),
        ("Source [1] is wrong. Rating: 9", None),
        ("In nums[2] there is a bug. Rating: 9/10", None),
        ("In nums[2] there is a bug. **Rating**: [9]", 9.0),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("", None),
    ],
)
def test_parse_grade(reply: str, grade: float | None) -> None:
    assert mt.parse_grade(reply) == grade


def test_mt_bench_asks_for_every_turn_and_counts_what_it_cannot_read(
    serve: Any, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge gives 9 to first turns and 5 to second ones, chats about one question and refuses another."""

    def answer(number: int, prompt: str) -> Reply:
        if "answer 82" in prompt:
            return "What a lovely question."
        if "answer 83" in prompt:
            return (400, "too long")
        return "Rating: [[5]]" if "second " in prompt else "Rating: [[9]]"

    questions = mt.read_questions(data_root / "mt-bench")[:4]
    prompts = mt.read_judge_prompts(data_root / "mt-bench/judge_prompts.jsonl")
    answers = {q.question_id: [f"first answer {q.question_id}", f"second answer {q.question_id}"] for q in questions}
    server = serve(answer)
    judge = endpoint(server.url, cache=tmp_path / "cache.jsonl", prices=[10.0, 30.0])
    grades = mt.grade_answers(questions, answers, prompts, judge)
    assert "8 requests (0 more are cached)" in capsys.readouterr().out
    assert list(grades["question_id"]) == [81, 81, 82, 82, 83, 83, 84, 84]
    assert list(grades["turn"]) == [1, 2] * 4
    assert grades["grade"].fillna(0).tolist() == [9.0, 5.0, 0, 0, 0, 0, 9.0, 5.0]
    assert (judge.counts["unparsable"], judge.counts["refused"]) == (2, 2)
    result = mt.summarise(grades, samples=50, confidence=0.95, seed=0)
    assert (result["score"]["value"], result["score"]["n"], result["ungraded"]) == (7.0, 2, 4)
    assert (result["turns"]["1"]["value"], result["turns"]["2"]["value"]) == (9.0, 5.0)
    pd.testing.assert_frame_equal(mt.grade_answers(questions, answers, prompts, judge), grades)
    assert "4 requests (4 more are cached)" in capsys.readouterr().out  # what failed is asked again
    with pytest.raises(ValueError, match="none of 2"):
        mt.summarise(grades[2:4], 10, 0.95, 0)


def test_mt_bench_second_turn_sees_the_first_answer(tmp_path: Path) -> None:
    questions = [
        mt.Question(1, "writing", ["red", "blue"], None),
        mt.Question(2, "math", ["one two", "three"], ["2", "3"]),
        mt.Question(3, "math", ["poem " * 150, "short"], ["2", "3"]),
    ]
    policy, asked = save_policy(tmp_path / "policy"), []

    def answer(conversations: Mapping[str, Any], temperature: float) -> dict[str, str]:
        asked.append((list(conversations), temperature))
        rows = [{"prompt_id": key, "prompt": messages} for key, messages in conversations.items()]
        data, _ = generate(policy, rows, settings().variant(1, [temperature]), MODEL, tmp_path, 0)
        return {row["prompt_id"]: row["responses"][0] for row in data}

    answers = mt.answer_questions(questions, answer)
    assert asked == [(["2-0", "3-0"], 0.0), (["1-0"], 0.7), (["2-1"], 0.0), (["1-1"], 0.7)]
    assert set(answers) == {1, 2}
    assert all(len(given) == 2 for given in answers.values())
    prompt = mt.conversation(questions[0], answers[1][:1])
    assert [m["role"] for m in prompt] == ["user", "assistant", "user"]
    assert prompt[1]["content"] == answers[1][0]


# --- Arena-Hard ---------------------------------------------------------------------------------------------------


def test_arena_hard_reads_both_schemas_alike(data_root: Path) -> None:
    folder = data_root / "arena-hard"
    old, new = ah.read_questions(folder / "question.jsonl"), ah.read_questions(folder / "question_2025_schema.jsonl")
    assert len(old) == 500
    assert list(old.items()) == list(new.items())
    assert set(ah.read_answers(folder / "model_answer_gpt-4-0314.jsonl")) == set(old)


def test_real_verdict_texts_are_parsed_exactly(data_root: Path) -> None:
    rows = [json.loads(line) for line in (data_root / "arena-hard" / JUDGMENTS).read_text().splitlines()]
    games = [ah.Games(*(ah.parse_verdict(game["judgment"]) for game in row["games"])) for row in rows]
    recorded = [[game["score"] for game in row["games"]] for row in rows]
    assert [[g.first, g.second] for g in games] == recorded
    assert len(games) == 7
    # Rows 1, 3 and 5 prefer the same place in both orders.
    assert [index for index, g in enumerate(games) if g.contradictory] == [1, 3, 5]


def test_the_judge_s_prompt_has_the_benchmark_s_layout(data_root: Path) -> None:
    """The recorded user prompts come out letter by letter from question, baseline answer and what they hold of ours."""
    folder = data_root / "arena-hard"
    questions, baseline = (
        ah.read_questions(folder / "question.jsonl"),
        ah.read_answers(folder / "model_answer_gpt-4-0314.jsonl"),
    )
    for line in (folder / JUDGMENTS).read_text().splitlines():
        row = json.loads(line)
        first, second = (game["user_prompt"] for game in row["games"])
        identifier = row["question_id"]
        ours = first.split("<|The Start of Assistant B's Answer|>\n")[1].split("\n<|The End of Assistant B's")[0]
        assert ah.comparison_prompt(questions[identifier], baseline[identifier], ours)[1]["content"] == first
        assert ah.comparison_prompt(questions[identifier], ours, baseline[identifier])[1]["content"] == second


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("[[A=B]] as said: [[A=B]]", "A=B"),
        ("Either [[A>B]] or [[B>A]]", "B>A"),
        ("[[ A > B ]]", "A>B"),
        ("[[**B>>A**]]", "B>>A"),
        ("<think>[[A>B]], or rather</think>[[A=B]]", "A=B"),
        ("<think>[[A>B]], or", None),
        ("First [[A>B]], then [[A<B]]", None),
        ("[[A]]", None),
        ("[[A<B]]", None),
        ("A>B", None),
    ],
)
def test_parse_arena_verdict(reply: str, verdict: str | None) -> None:
    assert ah.parse_verdict(reply) == verdict


def test_battles_by_hand() -> None:
    # The baseline is A in the first game, the policy in the second.
    assert ah.Games("B>>A", "A>B").battles == [(1.0, 3), (1.0, 1)]
    assert ah.Games("A>B", "A=B").battles == [(0.0, 1), (0.5, 1)]
    assert ah.Games(None, "B>>A").battles == [(0.0, 3)]
    assert ah.Games(None, None).battles == []


def test_scores_by_hand() -> None:
    ours = [ah.Games("B>A", "A>B"), ah.Games("A>>B", None), ah.Games("A=B", "A>B"), ah.Games(None, None)]
    theirs = [ah.Games("A>B", "A>B")] * 3  # always the first: contradictory
    result = ah.score(ours, samples=200, confidence=0.95, seed=0)
    # Won 1 + 1 + 0.5 + 1 of 1 + 1 + 3 + 1 + 1.
    assert result["score"]["value"] == pytest.approx(3.5 / 7)
    assert result["score"]["n"] == 3
    assert result["verdicts"] == {"B>A": 1, "A>B": 2, "A>>B": 1, "A=B": 1}
    assert result["contradictory"] == 0
    assert result["score"]["ci_low"] < 0.5 < result["score"]["ci_high"]
    biased = ah.score(theirs, samples=200, confidence=0.95, seed=0)
    assert (biased["score"]["value"], biased["contradictory"]) == (0.5, 3)
    with pytest.raises(ValueError, match="none of the games of 1"):
        ah.score([ah.Games(None, None)], 10, 0.95, 0)


def test_arena_hard_intervals_cover_the_truth() -> None:
    """Both games of a question share its luck; a bootstrap over questions knows that."""
    rng = np.random.default_rng(1)
    covered, repeats = 0, 500
    for repeat in range(repeats):
        chance = rng.beta(1.2, 0.8, 80)  # mean 0.6
        games = [ah.Games("B>A" if rng.random() < p else "A>B", "A>B" if rng.random() < p else "B>A") for p in chance]
        score = ah.score(games, samples=300, confidence=0.95, seed=repeat)["score"]
        covered += score["ci_low"] <= 0.6 <= score["ci_high"]
    assert 0.92 <= covered / repeats <= 0.975


def test_arena_hard_judges_both_orders(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(number: int, prompt: str) -> Reply:
        first = prompt.split("Assistant A's Answer|>\n")[1]
        if "biased" in prompt:
            return "[[A>B]]"
        return "[[A>>B]]" if first.startswith("GOOD") else "[[B>>A]]"

    server = serve(answer)
    questions = {"1": "q", "2": "biased"}
    judge = endpoint(server.url, prices=[1, 1])
    games = ah.judge_answers(questions, {"1": "GOOD", "2": "GOOD"}, {"1": "bad", "2": "bad"}, judge)
    assert games == [ah.Games("B>>A", "A>>B"), ah.Games("A>B", "A>B")]
    assert [g.contradictory for g in games] == [False, True]
    assert "4 requests (0 more are cached)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="answer '9' has no question"):
        ah.judge_answers(questions, {"9": "x"}, {}, judge)


# --- what a candidate writes ----------------------------------------------------------------------------------------

PIECES = ["[", "]", "[[", "]]", "Rating: ", "rating", "10", "[10]", "[[10]]", "A", "B>>A", "[[A>>B]]", "[[A]]", "tie",
          "<think>", "</think>", "*", ":", "/10", " ", "\n"]  # fmt: skip
CANDIDATES = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
MANY = hypothesis_settings(max_examples=300, deadline=None, derandomize=True)
PARSERS: list[tuple[Callable[[str], Any], str, Any]] = [
    (mt.parse_grade, "Rating: [[2]]", 2.0), (mt.parse_grade, "Rating: [3]", 3.0), (ah.parse_verdict, "[[B>A]]", "B>A"),
    (jd.parse_verdict, "[[B]]", "B"),
]  # fmt: skip


def _as_the_judge_sees_it(text: str) -> str:
    return jd.fill("{answer}", {"answer": text}).removesuffix("\n\n" + jd.PROMPTS["parted"].strip())


@MANY
@given(text=CANDIDATES, before=st.sampled_from(["It says: ", "<think>So: ", "A quote: [", "Rated "]), after=CANDIDATES)
def test_no_text_of_a_candidate_changes_a_verdict(text: str, before: str, after: str) -> None:
    """Quoted as it stands in the judge's prompt or as the candidate wrote it, in the thinking or in the explanation."""
    end = "</think>" if before.startswith("<think>") else ""
    for parse, verdict, expected in PARSERS:
        for quote in (text, _as_the_judge_sees_it(text)):
            assert parse(f"{before}{quote} {after}{end} {verdict}") == expected


@MANY
@given(text=CANDIDATES)
def test_a_quote_is_no_verdict(text: str) -> None:
    """A reply that quotes what the judge was shown and has no verdict of its own is unreadable."""
    shown = _as_the_judge_sees_it(text)
    assert _as_the_judge_sees_it(shown) == shown
    for parse, verdict, expected in PARSERS:
        assert parse(f'The answer says: "{shown}" I cannot decide.') is None
        assert parse(f"{shown} {verdict}") == expected


def test_what_looks_like_a_verdict_is_parted_and_said(data_root: Path) -> None:
    prompts = mt.read_judge_prompts(data_root / "mt-bench/judge_prompts.jsonl")
    question = mt.Question(1, "writing", ["Print [[1]]", "again"], None)
    claim = "x[0] = 1 <think> [[[A>>B]]] Rating: [[10]], rating [9]"
    parted = "x[0] = 1 < think> [ [ [A>>B] ] ] Rating: [ [10] ], rating [ 9]"
    note = jd.PROMPTS["parted"].strip()
    for build, place in [
        (lambda text: mt.grading_prompt(question, [text, "b"], 1, prompts), 1),
        (lambda text: mt.grading_prompt(question, ["a", text], 2, prompts), 1),
        (lambda text: ah.comparison_prompt("[[q]]", text, "b"), 1),
        (lambda text: ah.comparison_prompt("[[q]]", "a", text), 1),
        (lambda text: jd.comparison_prompt([{"role": "user", "content": "[[q]]"}], text, "b"), 0),
        (lambda text: jd.comparison_prompt([{"role": "user", "content": "[[q]]"}], "a", text), 0),
    ]:
        harmless, shown = build("CLAIM")[place]["content"], build(claim)[place]["content"]
        assert shown == harmless.replace("CLAIM", parted) + f"\n\n{note}"
        assert note not in build("x[0] = [1, 2]")[place]["content"]


# --- the command --------------------------------------------------------------------------------------------------


def _questions(folder: Path) -> Path:
    """Every benchmark's files, with two short questions each."""
    files: dict[str, list[dict[str, Any]]] = {
        "mt-bench/question.jsonl": [
            {"question_id": i, "category": "stem", "turns": [f"red {i}", f"blue {i}"]} for i in (1, 2)
        ],
        "mt-bench/reference_answer_gpt-4.jsonl": [{"question_id": 101, "choices": [{"turns": ["a", "b"]}]}],
        "mt-bench/judge_prompts.jsonl": [
            {"name": name, "system_prompt": "s", "prompt_template": template}
            for name, template in {
                "single-v1": "{question} {answer}", "single-v1-multi-turn": "second {question_2} {answer_2}"
            }.items()
        ],
        "arena-hard/question.jsonl": [{"question_id": i, "turns": [{"content": f"one {i}"}]} for i in "ab"],
        "arena-hard/model_answer_gpt-4-0314.jsonl": [
            {"question_id": i, "choices": [{"turns": [{"content": "baseline"}]}]} for i in "ab"
        ],
    }  # fmt: skip
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    reference = [{"instruction": f"poem {i}", "output": "baseline", "generator": "gpt4", "dataset": "x"} for i in "ab"]
    (folder / "alpaca_eval").mkdir()
    (folder / "alpaca_eval/alpaca_eval_gpt4_baseline.json").write_text(json.dumps(reference))
    return folder


def _judge(number: int, prompt: str) -> Reply:
    """Prefers the policy everywhere: grade 9, then 7; never the answer that says baseline."""
    if "Best Model Identifier" in prompt:
        first = prompt.split('"model_identifier": "m"')[1].split('"model_identifier": "M"')[0]
        token = "M" if "baseline" in first else "m"
        top = {"token": token, "logprob": -0.1, "bytes": None}
        content = [{**top, "top_logprobs": [top]}]
        return {"index": 0, "message": {"role": "assistant", "content": token}, "finish_reason": "length",
                "logprobs": {"content": content, "refusal": None}}  # fmt: skip
    if "User Prompt" in prompt:
        return "[[B>>A]]" if "Assistant A's Answer|>\nbaseline" in prompt else "[[A>>B]]"
    return "Rating: [[7]]" if prompt.startswith("second") else "Rating: [[9]]"


def _chat(benchmark: str, url: str, folder: Path) -> list[str]:
    """The command line, with a policy and questions in a folder."""
    policy, questions = save_policy(folder / "policy"), _questions(folder / "questions")
    arguments = ["chat", "--benchmark", benchmark, "--profile", "slices", "--model", str(policy)]
    arguments += ["--questions", str(questions), "--out", str(folder / "out")]
    for change in (f"endpoint_url={url}", "judge_model=judge", "judge=endpoint", "bootstrap_samples=20"):
        arguments += ["--set", f"evaluation.{change}"]
    return [*arguments, "--set", "generation.sampling.max_tokens=8", "--set", "generation.max_prompt_tokens=150"]


@pytest.mark.parametrize("benchmark", ["mt_bench", "arena_hard", "alpaca_eval"])
def test_one_command_answers_judges_and_scores(
    serve: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, benchmark: str, capsys: Any
) -> None:
    from rlhflow_utils.__main__ import main

    if benchmark == "alpaca_eval":
        pytest.importorskip("alpaca_eval")
    server = serve(_judge)
    arguments = _chat(benchmark, server.url, tmp_path)
    assert main(arguments) == 0
    asked = len(server.prompts)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["questions"], results["dropped"]) == (2, {"prompt_too_long": 0})
    if benchmark == "mt_bench":
        assert (results["score"]["value"], results["turns"]["2"]["value"], asked) == (8.0, 7.0, 4)
    elif benchmark == "arena_hard":
        assert results["score"]["value"] == pytest.approx(1.0, abs=0.01)
        assert (results["verdicts"], results["contradictory"], asked) == ({"B>>A": 2, "A>>B": 2}, 0, 4)
    else:
        assert (results["win_rate"]["value"], results["n"], asked) == (pytest.approx(1.0), 2, 2)
        assert ("lc_win_rate" in results, "length_adjusted_win_rate" in results) == (False, True)
        outputs = json.loads((tmp_path / "out/model_outputs.json").read_text())
        assert [set(row) for row in outputs] == [{"instruction", "output", "generator"}] * 2
    assert main(arguments) == 0
    assert len(server.prompts) == asked  # everything was cached
    assert "judge endpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("benchmark", "reply", "failures"),
    [
        ("mt_bench", (400, "no such parameter"), "4 of 4 verdicts failed .4 refused; .*no such parameter"),
        ("mt_bench", "no idea", "4 of 4 verdicts failed .4 unparsable; .*no idea"),
        ("arena_hard", (400, "no such parameter"), "4 of 4 verdicts failed .4 refused; .*no such parameter"),
        ("arena_hard", "no idea", "4 of 4 verdicts failed .4 unparsable; .*no idea"),
        ("alpaca_eval", "no idea", "2 of 2 verdicts failed .2 unparsable"),
    ],
)
def test_a_judge_without_verdicts_ends_in_one_line_and_is_asked_again(
    serve: Any, tmp_path: Path, capsys: Any, benchmark: str, reply: Reply, failures: str
) -> None:
    from rlhflow_utils.__main__ import main

    mended = False
    server = serve(lambda number, prompt: _judge(number, prompt) if mended else reply)
    arguments = _chat(benchmark, server.url, tmp_path)
    assert main(arguments) == 1
    assert re.search(
        f"^error: judge endpoint .*{failures}.*raise evaluation.max_failed_share$", capsys.readouterr().err, re.M
    )
    assert not (tmp_path / "out/results.json").exists()
    mended = True
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["win_rate" if benchmark == "alpaca_eval" else "score"]["value"] == pytest.approx(
        8.0 if benchmark == "mt_bench" else 1.0
    )


@pytest.mark.parametrize("benchmark", ["mt_bench", "arena_hard", "alpaca_eval"])
def test_a_model_trained_anew_and_an_edited_question_are_answered_and_judged_anew(
    serve: Any, tmp_path: Path, benchmark: str
) -> None:
    """In the same folders; only what changed is asked again."""
    from rlhflow_utils.__main__ import main

    server, policy = serve(_judge), tmp_path / "policy"
    arguments = _chat(benchmark, server.url, tmp_path)
    files = {"mt_bench": "mt-bench/question.jsonl", "arena_hard": "arena-hard/question.jsonl",
             "alpaca_eval": "alpaca_eval/alpaca_eval_gpt4_baseline.json"}  # fmt: skip

    def answers_and_requests() -> tuple[Any, int]:
        before = len(server.prompts)
        assert main(arguments) == 0
        name = "model_outputs.json" if benchmark == "alpaca_eval" else "answers.json"
        return json.loads((tmp_path / "out" / name).read_text()), len(server.prompts) - before

    first, asked = answers_and_requests()
    shutil.rmtree(policy)
    save_policy(policy, seed=1)
    second, again = answers_and_requests()
    assert (second != first, again) == (True, asked)
    file = tmp_path / "questions" / files[benchmark]
    file.write_text(re.sub(r"(red|one|poem) \w", "three blue", file.read_text(), count=1))
    third, again = answers_and_requests()
    assert (third != second, again) == (True, asked / 2)
    assert answers_and_requests() == (third, 0)


@pytest.mark.parametrize(
    ("benchmark", "file", "text", "message"),
    [
        ("mt_bench", QUESTIONS, '{"question_id": 1}', "row 1 .*'category' is missing.*fetch the file again"),
        (
            "mt_bench",
            QUESTIONS,
            '{"question_id": 1, "category": "stem", "turns": ["a"]}',
            "row 1 .*'turns' must hold two",
        ),
        (
            "mt_bench",
            QUESTIONS,
            '{"question_id": 1, "category": "stem", "turns": ["a", null]}',
            "'turns.1' must be a str",
        ),
        (
            "mt_bench",
            QUESTIONS,
            '{"question_id": 1, "category": "math", "turns": ["a", "b"]}',
            "question 1 has no reference answers",
        ),
        (
            "mt_bench",
            "mt-bench/reference_answer_gpt-4.jsonl",
            '{"question_id": 1, "choices": []}',
            "'choices.0.turns' is",
        ),
        ("arena_hard", ARENA, '{"uid": "a", "prompt": "p"}\n{"uid": "b", "pro', "breaks after 1 rows: .*string"),
        ("arena_hard", ARENA, '{"uid": "a", "prompt": ["p"]}', "row 1 .*'prompt' must be a str, found list"),
        (
            "arena_hard",
            ARENA,
            '{"question_id": "a", "turns": [{"content": null}]}',
            "row 1 .*'turns.0.content' must be a",
        ),
        ("alpaca_eval", ALPACA, '[{"instruction": "i"}]', "row 1 .*'output' is missing"),
        ("alpaca_eval", ALPACA, '[{"instruction": "i", "output": ["a"], "generator": "g"}]', "'output' must be a str"),
    ],
)
def test_a_malformed_file_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], benchmark: str, file: str, text: str, message: str
) -> None:
    from rlhflow_utils.__main__ import main

    questions = _questions(tmp_path)
    (questions / file).write_text(text)
    arguments = ["chat", "--benchmark", benchmark, "--profile", "slices", "--out", str(tmp_path)]
    arguments += ["--model", str(save_policy(tmp_path / "policy")), "--questions", str(questions)]
    arguments += ["--set", "evaluation.endpoint_url=http://127.0.0.1:1"]
    assert main([*arguments, "--set", "evaluation.judge_model=judge"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.search(f"^error: .*{file}: .*{message}", printed), printed


def test_marks_and_blank_lines_of_editors_change_no_question(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "mt-bench", tmp_path / "mt-bench")
    (tmp_path / "arena-hard").mkdir()
    shutil.copy(data_root / ARENA, tmp_path / ARENA)
    for file in (QUESTIONS, ARENA):
        content = (tmp_path / file).read_bytes().replace(b"\n", b"\r\n\r\n", 5)
        (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + content + b"\n\n")
    assert mt.read_questions(tmp_path / "mt-bench") == mt.read_questions(data_root / "mt-bench")
    assert ah.read_questions(tmp_path / ARENA) == ah.read_questions(data_root / ARENA)
