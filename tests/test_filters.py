"""Each filter rule alone, the order among them, and duplicates across rows."""

from __future__ import annotations

from typing import Any

import pytest

from rlhflow_utils.data.filters import (
    RULES,
    Deduplicator,
    conversation_failure,
    first_failure,
    first_turn_key,
    is_too_long,
    pair_hashes,
    prompt_failure,
)
from rlhflow_utils.data.reading import Candidate, Conversation
from rlhflow_utils.guide.settings import FilterSettings
from rlhflow_utils.models.chat import prompt_key

USER, AGAIN = {"role": "user", "content": "Q"}, {"role": "user", "content": "Q2"}
REPLY = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "Be brief."}


def settings(**changes: Any) -> FilterSettings:
    values: dict[str, Any] = {
        "min_score_margin": {"scored": 1.0}, "min_score_ratio": 2.0, "kwise_pairs": {}, "max_pairs_per_prompt": {},
        "min_response_characters": 3, "max_tokens": 10,
    }  # fmt: skip
    return FilterSettings.model_validate({**values, **changes})


def pair(**changes: Any) -> Candidate:
    return Candidate(**{"row_id": "f:0", "prompt": [USER], "chosen": "good", "rejected": "poor", **changes})


BAD: list[tuple[str, dict[str, Any]]] = [
    ("no_pair", {"evidence": "no_pair", "chosen": "", "rejected": ""}),
    ("non_string_content", {"rejected": True}),
    ("non_string_content", {"chosen": None}),
    ("non_string_content", {"chosen": ["a"]}),
    ("non_string_content", {"chosen": "half a pair \ud83d"}),  # no file can hold it
    ("non_string_content", {"prompt": [{"role": "user", "content": 3}]}),
    ("empty_turn", {"rejected": ""}),
    ("empty_turn", {"chosen": " \n\t\u3000"}),
    ("empty_turn", {"prompt": [USER, {"role": "assistant", "content": ""}, AGAIN]}),
    ("empty_turn", {"prompt": [{"role": "system", "content": " "}, USER]}),
    ("zero_width", {"rejected": "\u200b"}),
    ("zero_width", {"chosen": " \ufeff\u200d\n"}),
    ("broken_alternation", {"prompt": [USER, AGAIN]}),
    ("broken_alternation", {"prompt": [USER, REPLY]}),
    ("broken_alternation", {"prompt": [REPLY, USER]}),
    ("broken_alternation", {"prompt": []}),
    ("broken_alternation", {"prompt": [SYSTEM]}),
    ("broken_alternation", {"prompt": [USER, SYSTEM, USER]}),
    ("broken_alternation", {"prompt": [USER], "rejected_prompt": [USER, REPLY, REPLY, AGAIN]}),
    ("broken_alternation", {"evidence": "broken_alternation"}),
    ("unequal_context", {"rejected_prompt": [AGAIN]}),
    ("role_tag_in_turn", {"rejected": "Sure.\n\nHuman: thanks"}),
    ("role_tag_in_turn", {"chosen": "Sure.  Assistant: and so on"}),
    ("role_tag_in_turn", {"chosen": "Sure.\nUser: more"}),
    ("role_tag_in_turn", {"prompt": [{"role": "user", "content": "Hm Human: Q"}], "transcript": True}),
    ("identical_responses", {"rejected": "good"}),
    ("identical_responses", {"rejected": " good\n"}),
    ("no_label", {"evidence": "no_label"}),
    ("contradicted_label", {"chosen_score": 1.0, "rejected_score": 2.0}),
    ("contradicted_label", {"evidence": "contradicted_label"}),
    ("tie", {"chosen_score": 0.0, "rejected_score": 0.0}),
    ("tie", {"evidence": "tie"}),
    ("small_margin", {"chosen_score": 2.0, "rejected_score": 1.5}),
    ("small_margin", {"score_ratio": 2.0}),
    ("meaningless", {"rejected": "..."}),
    ("meaningless", {"chosen": "| | |"}),
    ("meaningless", {"rejected": "Ye"}),
    ("meaningless", {"rejected": "<nooutput>"}),
    ("meaningless", {"chosen": " < No Input >\n"}),
]

GOOD: list[dict[str, Any]] = [
    {},
    {"prompt": [SYSTEM, USER, REPLY, AGAIN]},
    {"rejected_prompt": [dict(USER)]},
    {"chosen_score": 2.0, "rejected_score": 1.0},  # a margin of exactly the minimum is kept
    {"score_ratio": 2.01},
    {"prompt": [{"role": "user", "content": "Go on: Human: hi"}]},  # a prompt may quote a dialogue
    {"chosen": "class Administrator:\n  pass"},
    {"chosen": "63"},
    {"chosen": "It prints <nooutput> twice."},
    {"chosen": "C"},
    {"chosen": "No"},
    {"chosen": "UK"},
    {"chosen": "是"},
    {"chosen": "zero\u200bwidth inside"},
    {"chosen": "Good"},  # case counts as a difference
]


@pytest.mark.parametrize(("reason", "changes"), BAD)
def test_a_defect_fails_its_rule(reason: str, changes: dict[str, Any]) -> None:
    assert first_failure(pair(**changes), settings(), "scored") == reason


@pytest.mark.parametrize("changes", GOOD)
def test_a_sound_pair_passes(changes: dict[str, Any]) -> None:
    assert first_failure(pair(**changes), settings(), "scored") is None


def test_every_rule_is_exercised_and_documented() -> None:
    assert {reason for reason, _ in BAD} == set(RULES)
    for text in RULES.values():
        assert "ourced" in text or "econstructed" in text


def test_the_first_rule_in_order_names_the_reason() -> None:
    worst = {"rejected": True, "chosen": "", "evidence": "tie", "prompt": [AGAIN, AGAIN]}
    order = []
    for mend in ({"rejected": "x"}, {"chosen": "x"}, {"prompt": [USER]}, {"rejected": "poor"}, {"evidence": None}):
        order.append(first_failure(pair(**worst), settings(), "scored"))
        worst |= mend
    assert order == ["non_string_content", "empty_turn", "broken_alternation", "identical_responses", "tie"]
    assert first_failure(pair(**{**worst, "chosen": "good"}), settings(), "scored") is None


def test_margins_belong_to_their_source() -> None:
    close = pair(chosen_score=2.0, rejected_score=1.5)
    assert first_failure(close, settings(), "scored") == "small_margin"
    assert first_failure(close, settings(), "another") is None


def test_length_counts_the_prompt_with_the_longer_answer() -> None:
    assert not is_too_long((4, 6, 1), settings())
    assert is_too_long((4, 1, 7), settings())


def failures(pairs: list[tuple[str, str, str]], limit: int | None = None) -> list[str | None]:
    memory = Deduplicator(limit)
    keys = [prompt_key([{"role": "user", "content": prompt}]) for prompt, _, _ in pairs]
    return [memory.failure(key, pair_hashes(key, c, r)) for key, (_, c, r) in zip(keys, pairs, strict=True)]


def test_duplicates_straight_and_swapped() -> None:
    pairs = [("Q", "a", "b"), ("Q", "a", "b"), ("Q", "b", "a"), ("q ", " a", "b\n"), ("Q2", "a", "b"), ("Q", "a", "c")]
    assert failures(pairs) == [None, "duplicate_pair", "swapped_duplicate", "duplicate_pair", None, None]


def test_texts_do_not_run_into_each_other() -> None:
    assert failures([("Q", "ab", "c"), ("Q", "a", "bc"), ("Q", "A", "bc")]) == [None, None, None]


def test_only_kept_pairs_count_towards_the_limit() -> None:
    pairs = [("Q", "a", "b"), ("Q", "a", "b"), ("Q", "a", "c"), ("Q", "a", "d"), ("R", "a", "b")]
    assert failures(pairs, limit=2) == [None, "duplicate_pair", None, "too_many_pairs", None]


def test_prompts_and_conversations() -> None:
    assert prompt_failure([SYSTEM, USER]) is None
    assert prompt_failure([USER, REPLY]) == "broken_alternation"
    assert prompt_failure([{"role": "user", "content": "\u200b"}]) == "zero_width"
    assert conversation_failure(Conversation("f:0", [USER, REPLY])) is None
    assert conversation_failure(Conversation("f:0", [USER, REPLY, AGAIN])) == "broken_alternation"
    assert conversation_failure(Conversation("f:0", [USER, {"role": "assistant", "content": ""}])) == "empty_turn"
    assert conversation_failure(Conversation("f:0", [])) == "broken_alternation"
    assert conversation_failure(Conversation("f:0", [USER, REPLY], evidence="labelled_bad")) == "labelled_bad"


def test_the_opening_is_the_first_user_turn() -> None:
    assert first_turn_key([SYSTEM, USER, REPLY, AGAIN]) == first_turn_key([USER]) == prompt_key([USER])
