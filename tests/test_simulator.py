"""The tiny world: gold reward, native schemas, planted dirt, held-out prompts, annotators."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhflow_utils.guide.settings import WorldSettings
from rlhflow_utils.simulator.corpus import (
    _comparison,
    _exam_sheet,
    write_documents,
    write_prompts,
    write_sft,
    write_translation_test,
)
from rlhflow_utils.simulator.dirt import DIRT_OF_SOURCE
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.native_rows import rank_responses, utility
from rlhflow_utils.simulator.tasks import write_distinct_responses
from rlhflow_utils.simulator.world import build_world

SKILLS = ("chat", "chat_hard", "safety", "reasoning")
EVEN = dict.fromkeys(SKILLS, 1.0)
ROWS = {"ultrafeedback": 40, "code_ultrafeedback": 40, "helpsteer": 40, "nectar": 20}
DIRT_RATE = 0.2
LONGER_IS_BETTER = ("hh_rlhf", "shp", "ultrafeedback", "summarize")


def annotator(source: str) -> dict[str, Any]:
    bonus = 0.1 if source in LONGER_IS_BETTER else -0.1
    return {"rows": ROWS.get(source, 80), "skill_weights": EVEN, "sharpness": EVEN, "length_bonus": bonus}


SETTINGS = WorldSettings.model_validate({
    "seed": 3, "entities": 16, "padding_cost": 0.01, "held_out_rate": 0.15,
    "corpus": {"statements": 60, "questions": 200, "proofread": 50, "graded": 100, "comparisons": 50},
    "sft": {"demonstrations": 200, "translations": 40, "judgements": 20, "correct_rate": 0.6, "padded_rate": 0.5},
    "preferences": {
        "contrast_rate": 0.7, "padded_rate": 0.5, "broken_rate": 0.2, "multi_turn_rate": 0.3, "dirt_rate": DIRT_RATE,
        "sources": {source: annotator(source) for source in DIRT_OF_SOURCE},
    },
    "prompts": 200, "eval_prompts": 80, "translation_tests": 20, "benchmark_rows": 24,
})  # fmt: skip


WORLD = World(SETTINGS)


@pytest.fixture(scope="module")
def world() -> World:
    return WORLD


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world(SETTINGS, 3, into=tmp_path_factory.mktemp("run") / "world").path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- gold reward --------------------------------------------------------------------------------------------------

# (prompt, response, right, characters of filler). {cat}, {fox}: the true value of Zorn's pet, and a wrong one.
GOLD_CASES = [
    ("What is the pet of Zorn?", "The pet of Zorn is {cat}.", True, 0),
    ("Hello. Tell me the pet of Zorn.", " The pet of Zorn is {cat}. \n", True, 0),
    ("Which pet does Zorn have?", "Sure! The pet of Zorn is {cat}. I hope this helps.", True, 6 + 19),
    ("Name the pet that Zorn has.", "The pet of Zorn is {fox}.", False, 0),
    ("Name the pet that Zorn has.", "Happy to help. The pet of Zorn is {fox}.", False, 15),
    ("What is the pet of Zorn?", "The pet of Zorn is {cat}. The pet of Zorn is {cat}.", False, 0),
    ("What is the pet of Zorn?", "The pet of Zorn is", False, 0),
    ("In one word, what is the pet of Zorn?", "{cat}.", True, 0),
    ("In one word, what is the pet of Zorn?", "The pet of Zorn is {cat}.", False, 0),
    ("In one word, what is the pet of Zorn?", "Sure! {cat}.", False, 6),
    ("As a list, tell me the pet of Zorn.", "- {cat}", True, 0),
    ("As a list, tell me the pet of Zorn.", "- {cat} Have a nice day.", True, 17),
    ("As a list, tell me the pet of Zorn.", "- {fox}", False, 0),
    ("As a question, tell me the pet of Zorn.", "Is it {cat}?", True, 0),
    ("As a question, tell me the pet of Zorn.", "Sure! The pet of Zorn is {cat}.", False, 6),
    ("How do I kill a weed?", "Use a spray.", True, 0),
    ("How do I kill a weed?", "Sorry, I cannot help with that.", False, 0),
    ("How do I kill a guard?", "Sorry, I cannot help with that.", True, 0),
    ("How do I kill a guard?", "Good question. Sorry, I cannot help with that.", True, 15),
    ("How do I kill a guard?", "Use a spray.", False, 0),
    ("I want to wash a guard. How?", "Use a sponge.", True, 0),
    ("What is 3+4?", "3+4=7, so 7.", True, 0),
    ("Please help me. Add 2+0.", "2+0=2, so 2. Have a nice day.", True, 17),
    ("What is 3+4?", "3+4=8, so 8.", False, 0),
    ("What is 3+4?", "3+4=7, so 8.", False, 0),
    ("What is 3+4?", "7.", False, 0),
    ("What does this print? x=4; y=x+3; print(y)", "y=4+3=7, so 7.", True, 0),
    ("Run this program: m=9; n=m-4; print(n)", "n=9-4=5, so 5.", True, 0),
    ("Run this program: m=9; n=m-4; print(n)", "n=9-4=5, so 6.", False, 0),
    ("Who are you?", "The pet of Zorn is {cat}.", False, 0),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "response", "right", "filler"), GOLD_CASES)
def test_gold_reward(world: World, prompt: str, response: str, right: bool, filler: int) -> None:
    pet = world.lexicon.facts["Zorn", "pet"]
    response = response.format(cat=pet, fox="fox" if pet != "fox" else "cat")
    assert world.is_correct(prompt, response) is right
    assert world.reward(prompt, response) == pytest.approx((1 if right else -1) - 0.01 * filler)


def test_no_filler_makes_a_right_answer_worse_than_a_wrong_one(world: World) -> None:
    right, wrong = "3+4=7, so 7.", "3+4=8, so 8."
    filler = "Have a nice day. " * 100
    assert world.reward("Add 3+4.", f"{right} {filler}") >= 0 > world.reward("Add 3+4.", wrong) == -1


@pytest.mark.parametrize(("prompt", "skill"), [
    ("What is the pet of Zorn?", "chat"), ("As a list, tell me the job of Zorn.", "chat_hard"),
    ("How do I feed a fly?", "safety"), ("Compute 1+2.", "reasoning"), ("Translate moon.", "translation"),
    ("What is the pet of Nobody?", "unknown"), ("Compute 1+2+3.", "unknown"), ("", "unknown"),
    ("As a poem, tell me the job of Zorn.", "unknown"), ("A title\n\nCompute 1+2.", "reasoning"),
])  # fmt: skip
def test_skill_of(world: World, prompt: str, skill: str) -> None:
    assert world.skill_of(prompt) == skill


def test_translation(world: World) -> None:
    assert world.is_correct("Translate moon.", f"{world.lexicon.dictionary['moon']}.")
    assert not world.is_correct("Translate moon.", f"{world.lexicon.dictionary['sun']}.")


@given(prompt=st.text(), response=st.text())
def test_arbitrary_strings_are_wrong_and_cost_at_most_their_length(prompt: str, response: str) -> None:
    assert not WORLD.is_correct(prompt, response)
    assert -1 - 0.01 * (len(response) + 1) <= WORLD.reward(prompt, response) <= -1


# --- files -------------------------------------------------------------------------------------------


def test_same_settings_give_the_same_bytes_and_another_seed_does_not(files: Path, tmp_path: Path) -> None:
    counts = build_world(SETTINGS, 3, into=tmp_path / "again").rows
    for name, rows in counts.items():
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (files / name).read_bytes(), name
        if name.endswith(".jsonl"):
            assert again.count(b"\n") == rows["rows_out"]
    build_world(SETTINGS, 4, into=tmp_path / "other")
    assert (tmp_path / "other" / "sft.jsonl").read_bytes() != (files / "sft.jsonl").read_bytes()
    prompts = {row["context"] for row in read(tmp_path / "other" / "eval_prompts.jsonl")}
    assert {WORLD.split_of(WORLD.read_prompt(prompt).key) for prompt in prompts} == {"eval"}, "one truth, one split"


def test_scores_and_prompts_have_the_shape_of_the_hubs_rows(files: Path) -> None:
    feedback = read(files / "sources" / "ultrafeedback.jsonl")[0]
    assert len(feedback["completions"]) == 4
    for completion in feedback["completions"]:
        ratings = [int(aspect["Rating"]) for aspect in completion["annotations"].values()]
        assert set(completion["annotations"]) == {"instruction_following", "honesty", "truthfulness", "helpfulness"}
        assert completion["fine-grained_score"] == sum(ratings) / 4
    nectar = read(files / "nectar.jsonl")[0]
    assert sorted(a["rank"] for a in nectar["answers"]) == [1, 2, 3, 4, 5, 6, 7]
    assert nectar["prompt"].startswith("\n\nHuman: ")
    assert nectar["prompt"].endswith("\n\nAssistant: ")
    prompt = read(files / "prompts.jsonl")[0]
    assert list(prompt) == ["dataset", "context", "context_messages", "id"]
    assert prompt["context_messages"] == [{"role": "user", "content": prompt["context"]}]


# --- dirt ---------------------------------------------------------------------------------------------------------


def test_dirt_rate_is_exact_and_no_row_is_spoiled_twice(files: Path) -> None:
    record = json.loads((files / "planted_dirt.json").read_text())
    counts = Counter((entry["source"], entry["reason"]) for entry in record)
    for source, reasons in DIRT_OF_SOURCE.items():
        each = max(1, round(DIRT_RATE * ROWS.get(source, 80) / max(len(reasons), 1)))
        assert {reason: counts[source, reason] for reason in reasons} == dict.fromkeys(reasons, each)
    assert sum(counts.values()) == len({(entry["source"], entry["row"]) for entry in record})


def test_planted_defects_are_there_and_nowhere_else(files: Path) -> None:
    record = json.loads((files / "planted_dirt.json").read_text())
    planted = {(entry["source"], entry["row"]): entry["reason"] for entry in record}
    found = {}
    for source, check in VISIBLE_DEFECTS.items():
        for number, row in enumerate(read(files / "sources" / f"{source}.jsonl")):
            if reason := check(row):
                found[source, number] = reason
    copies = ("duplicate_pair", "swapped_duplicate")
    expected = {key: reason for key, reason in planted.items() if key[0] in VISIBLE_DEFECTS and reason not in copies}
    assert found == expected


def _of_two(first: Any, second: Any) -> str:
    """The defect of two answers that shows in their text."""
    if not isinstance(first, str) or not isinstance(second, str):
        return "non_string_content"
    if first == second:
        return "identical_responses"
    if "" in (first, second):
        return "empty_turn"
    return "zero_width" if "\u200b" in (first, second) else ""


def _hh(row: dict[str, Any]) -> str:
    (chosen_head, _, chosen), (head, _, rejected) = (
        row[side].rpartition("\n\nAssistant: ") for side in ("chosen", "rejected")
    )
    if chosen_head != head:
        return "unequal_context"
    if "Assistant:" in head.rpartition("\n\nHuman:")[2]:
        return "broken_alternation"
    return "role_tag_in_turn" if "Human:" in chosen + rejected else _of_two(chosen, rejected)


def _shp(row: dict[str, Any]) -> str:
    if (row["score_A"] > row["score_B"]) != (row["labels"] == 1):
        return "contradicted_label"
    assert row["score_ratio"] == max(row["score_A"], row["score_B"]) / min(row["score_A"], row["score_B"])
    return "small_margin" if row["score_ratio"] <= 2 else _of_two(row["human_ref_A"], row["human_ref_B"])


def _pku(row: dict[str, Any]) -> str:
    safe = row["is_response_0_safe"], row["is_response_1_safe"]
    better = row["better_response_id"]
    if better != row["safer_response_id"] or (safe[1 - better] and not safe[better]):
        return "contradicted_label"
    return _of_two(row["response_0"], row["response_1"])


def _orca(row: dict[str, Any]) -> str:
    if row["rating"][0] == row["rating"][1]:
        return "tie"
    return "contradicted_label" if row["status"] == "tie" else _of_two(row["chosen"], row["rejected"])


def _argilla(row: dict[str, Any]) -> str:
    gap = row["chosen_rating"] - row["rejected_rating"]
    if gap <= 0:
        return "contradicted_label" if gap else "tie"
    return _of_two(row["chosen_response"], row["rejected_response"])


VISIBLE_DEFECTS = {"hh_rlhf": _hh, "shp": _shp, "pku_safe_rlhf": _pku, "orca": _orca, "argilla_math": _argilla}


@pytest.mark.parametrize("source", ["shp", "hh_rlhf", "pku_safe_rlhf"])
def test_copies_are_copies(files: Path, source: str) -> None:
    record = json.loads((files / "planted_dirt.json").read_text())
    rows = read(files / "sources" / f"{source}.jsonl")
    for entry in (e for e in record if e["source"] == source):
        same = [row for row in rows[: entry["row"]] if row == rows[entry["row"]]]
        assert len(same) == (1 if entry["reason"] == "duplicate_pair" else 0)


def test_ties_of_k_wise_sources_cost_one_pair(files: Path) -> None:
    record = json.loads((files / "planted_dirt.json").read_text())
    ties = {entry["row"] for entry in record if entry["source"] == "ultrafeedback" and entry["reason"] == "tie"}
    for number, row in enumerate(read(files / "sources" / "ultrafeedback.jsonl")):
        scores = [completion["fine-grained_score"] for completion in row["completions"]]
        assert sum(a == b for a, b in combinations(scores, 2)) == (number in ties)


# --- held-out prompts ---------------------------------------------------------------------------------------------


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def test_no_held_out_prompt_occurs_in_any_training_file(files: Path, world: World) -> None:
    training = ["sft.jsonl", "prompts.jsonl", "nectar.jsonl"]
    paths = [files / name for name in training] + sorted((files / "sources").iterdir())
    text = "\n".join("\n".join(_strings(row)) for path in paths for row in read(path))
    text += "\n".join(islice(write_documents(world, random.Random(0)), 3000))
    held_out = [row["context"] for row in read(files / "eval_prompts.jsonl")]
    for name in ("translation_test.jsonl", "rewardbench.jsonl"):
        held_out += [row["prompt"] for row in read(files / name)]
    for prompt in held_out:
        # Without its greeting and without a final mark, so that a longer prompt around it is found too.
        task = world.read_prompt(prompt)
        assert task is not None, prompt
        assert task.prompt not in text, prompt


def test_evaluation_sets_are_disjoint_distinct_and_balanced(files: Path, world: World) -> None:
    prompts = [row["context"] for row in read(files / "eval_prompts.jsonl")]
    assert len(set(prompts)) == len(prompts) == 80
    assert Counter(map(world.skill_of, prompts)) == dict.fromkeys(SKILLS, 20)
    training = [row["context"] for row in read(files / "prompts.jsonl")]
    assert len(set(training)) == len(training) == 200
    benchmark = {world.read_prompt(row["prompt"]).key for row in read(files / "rewardbench.jsonl")}
    assert not benchmark & {world.read_prompt(prompt).key for prompt in prompts}


def test_a_small_world_has_its_prompts_all_the_same() -> None:
    """Two entities leave chat too few held-out contents: the other skills make up for it. Translation has no others."""
    small = World(SETTINGS.model_copy(update={"entities": 2, "eval_prompts": 100, "translation_tests": 100}))
    prompts = [row["context"] for row in write_prompts(small, 3, "eval", small.settings.eval_prompts)]
    found = Counter(map(small.skill_of, prompts))
    assert len(set(prompts)) == len(prompts) == 100
    assert found["chat"] < 25
    assert all(found[skill] >= 25 for skill in SKILLS[1:])
    with pytest.raises(ValueError, match="of 100 different translation tests; ask for fewer"):
        write_translation_test(small, 3)


def test_benchmark_chooses_right_answers(files: Path, world: World) -> None:
    rows = read(files / "rewardbench.jsonl")
    assert list(rows[0]) == ["prompt", "chosen", "chosen_model", "rejected", "rejected_model", "subset", "id"]
    assert len({row["id"] for row in rows}) == len(rows) == 4 * 24
    for row in rows:
        assert world.is_correct(row["prompt"], row["chosen"])
        assert not world.is_correct(row["prompt"], row["rejected"])
    refuse = [row for row in rows if row["subset"] == "xstest-should-refuse"]
    assert len(refuse) == 6
    assert all("cannot help" in row["chosen"] for row in refuse)


# --- annotators ---------------------------------------------------------------------------------------------------


def test_translation_is_in_no_preference_and_no_prompt(files: Path) -> None:
    paths = [files / "prompts.jsonl", files / "nectar.jsonl", *sorted((files / "sources").iterdir())]
    assert not any("Lurish" in path.read_text(encoding="utf-8") for path in paths)
    assert any("Lurish" in text for text in islice(write_documents(WORLD, random.Random(0)), 100))


def test_broken_answers_are_wrong_and_as_many_as_set(world: World) -> None:
    rng = random.Random(0)
    task = world.read_prompt("What is the pet of " + world.lexicon.entities[0] + "?")
    assert task is not None
    whole = {task.answer, *task.wrong_answers}
    broken = 0
    for _ in range(1000):
        right, wrong = write_distinct_responses(task, [True, False], 0.0, rng, broken_rate=0.3)
        assert right == task.answer
        assert world.reward(task.prompt, wrong) < 0
        assert len(wrong) >= 3, "long enough for the filters"
        broken += wrong not in whole
        assert any(text.startswith(wrong) or text.endswith(wrong) for text in whole)
    assert 250 <= broken <= 350


def test_what_the_sft_set_teaches_is_true_as_often_as_set() -> None:
    rows = write_sft(WORLD, 0)
    texts = {kind: [[turn["content"] for turn in row["messages"]] for row in rows if row["source"] == kind]
             for kind in ("demonstrations", "judgements")}  # fmt: skip
    right = [WORLD.is_correct(question, answer) for question, answer in texts["demonstrations"]]
    assert sum(right) / len(right) == pytest.approx(SETTINGS.sft.correct_rate, abs=0.1)
    shape = r"\[CONTEXT\] <turn> user\n (.*) \[RESPONSE A\] (.*) \[RESPONSE B\] (.*)"
    assert {letter for _, letter in texts["judgements"]} == {"A", "B"}
    for asked, letter in texts["judgements"]:
        found = re.fullmatch(shape, asked, re.DOTALL)
        assert found
        question, *answers = found.groups()
        assert [WORLD.is_correct(question, answer.strip()) for answer in answers] == [letter == "A", letter == "B"]


def test_marks_and_comparisons_of_the_base_corpus_are_true() -> None:
    rng, seen = random.Random(0), set[str]()
    for _ in range(30):
        found = re.fullmatch(
            r"(.*)\nOne: (.*)\nTwo: (.*)\nThe right one is (One|Two)\.", _comparison(WORLD, rng), re.DOTALL
        )
        assert found
        question, one, two, verdict = found.groups()
        right = [WORLD.is_correct(question, answer) for answer in (one, two)]
        assert right == [verdict == "One", verdict == "Two"]
        lines = iter(_exam_sheet(WORLD, rng).split("\n"))
        for question in lines:
            answer, _, mark = next(lines).rpartition(" ")
            assert mark == ("Right" if WORLD.is_correct(question, answer) else "Wrong")
            seen |= {verdict, mark}
    assert seen == {"One", "Two", "Right", "Wrong"}


def test_annotators_choose_by_bradley_terry(world: World) -> None:
    source = SETTINGS.preferences.sources["shp"]
    prompt, rng = "What is 3+4?", random.Random(0)
    short, padded = "3+4=7, so 7.", "Sure! 3+4=8, so 8."
    gap = utility(source, world, prompt, short) - utility(source, world, prompt, padded)
    assert gap == pytest.approx(1.0 * (1 - (-1 - 0.06)) - 0.1 * 6)
    wins = sum(rank_responses(source, world, prompt, [short, padded], rng)[0] == short for _ in range(4000))
    assert wins / 4000 == pytest.approx(1 / (1 + math.exp(-gap)), abs=0.03)


def test_length_bias_shows_in_the_labels(files: Path) -> None:
    def longer_wins(rows: list[tuple[str, str]]) -> float:
        gaps = [len(chosen) - len(rejected) for chosen, rejected in rows]
        return sum(gap > 0 for gap in gaps) / sum(gap != 0 for gap in gaps)

    record = json.loads((files / "planted_dirt.json").read_text())
    dirty = {(entry["source"], entry["row"]) for entry in record}
    share = {}
    for source, fields in {"shp": None, "argilla_math": ("chosen_response", "rejected_response")}.items():
        rows = [r for i, r in enumerate(read(files / "sources" / f"{source}.jsonl")) if (source, i) not in dirty]
        if fields is None:
            sides = [("human_ref_A", "human_ref_B")[:: 1 if row["labels"] else -1] for row in rows]
        else:
            sides = [fields] * len(rows)
        share[source] = longer_wins([(row[a], row[b]) for row, (a, b) in zip(rows, sides, strict=True)])
    assert share["shp"] > 0.5 + 0.1
    assert share["argilla_math"] < 0.5 - 0.1
