"""Each filter rule alone, the order among them, and duplicates across rows."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

from rlhflow_utils.data.filters import (
    RULES,
    Deduplicator,
    HeldOut,
    conversation_failure,
    first_failure,
    first_turn_key,
    pair_hashes,
    structural_failure,
)
from rlhflow_utils.data.mixtures import judge, split_of
from rlhflow_utils.data.reading import Candidate, Conversation
from rlhflow_utils.guide.settings import DecontaminationSettings, FilterSettings, PartitionSettings, SourceSettings
from rlhflow_utils.models.chat import prompt_key

USER, AGAIN = {"role": "user", "content": "Q"}, {"role": "user", "content": "Q2"}
REPLY = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "12"}


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
    ("unknown_role", {"prompt": [USER, {**REPLY, "content": None}, TOOL]}),
    ("unknown_role", {"rejected_prompt": [USER, TOOL]}),
    ("unknown_role", {"evidence": "unknown_role"}),
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
    ("zero_width", {"chosen": "\u200e\u2066"}),  # marks of direction
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
    ("identical_responses", {"rejected": "go\u200bod"}),
    ("identical_responses", {"chosen": "caf\u00e9", "rejected": "cafe\u0301"}),
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
    {"chosen": "10²", "rejected": "102"},
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
    source = SourceSettings(name="S", schema="rlhflow_standard")
    native = {"prompt": "why", "chosen": "good", "rejected": "poor"}
    for lengths, reason in (([4, 6, 1], None), ([4, 1, 7], "too_long")):
        [row] = judge([("f:0", native)], source, settings(), lambda texts, lengths=lengths: lengths)  # type: ignore[misc]
        assert row["reason"] == reason


def failures(pairs: list[tuple[str, str, str]], limit: int | None = None) -> list[str | None]:
    memory = Deduplicator(limit)
    keys = [prompt_key([{"role": "user", "content": prompt}]) for prompt, _, _ in pairs]
    return [memory.failure(key, pair_hashes(key, c, r)) for key, (_, c, r) in zip(keys, pairs, strict=True)]


def test_duplicates_straight_and_swapped() -> None:
    pairs = [("Q", "a", "b"), ("Q", "a", "b"), ("Q", "b", "a"), ("q ", " A", "b\n"), ("Q2", "a", "b"), ("Q", "a", "c")]
    assert failures(pairs) == [None, "duplicate_pair", "swapped_duplicate", "duplicate_pair", None, None]


def test_texts_do_not_run_into_each_other() -> None:
    assert failures([("Q", "ab", "c"), ("Q", "a", "bc"), ("Q", "a b", "c")]) == [None, None, None]


def test_only_kept_pairs_count_towards_the_limit() -> None:
    pairs = [("Q", "a", "b"), ("Q", "a", "b"), ("Q", "a", "c"), ("Q", "a", "d"), ("R", "a", "b")]
    assert failures(pairs, limit=2) == [None, "duplicate_pair", None, "too_many_pairs", None]


def test_prompts_and_conversations() -> None:
    assert structural_failure([[SYSTEM, USER]]) is None
    assert structural_failure([[USER, REPLY]]) == "broken_alternation"
    assert structural_failure([[{"role": "user", "content": "\u200b"}]]) == "zero_width"
    assert structural_failure([[USER, TOOL]]) == "unknown_role"
    assert conversation_failure(Conversation("f:0", [USER, {**REPLY, "content": None}, TOOL, REPLY])) == "unknown_role"
    assert conversation_failure(Conversation("f:0", [USER, TOOL])) == "unknown_role"
    assert conversation_failure(Conversation("f:0", [USER, REPLY])) is None
    assert conversation_failure(Conversation("f:0", [USER, REPLY, AGAIN])) == "broken_alternation"
    assert conversation_failure(Conversation("f:0", [USER, {"role": "assistant", "content": ""}])) == "empty_turn"
    assert conversation_failure(Conversation("f:0", [])) == "broken_alternation"
    assert conversation_failure(Conversation("f:0", [USER, REPLY], evidence="labelled_bad")) == "labelled_bad"


# Spellings of one prompt: composed and decomposed, full width, with a zero-width space, a byte order mark, a mark of
# direction, a soft hyphen, in capitals, with other white space.
SPELLINGS = [
    *(unicodedata.normalize(form, "Où est le café 3 ?") for form in ("NFC", "NFD", "NFKD")),
    "Où est le café ３ ?", "Où est le ca\u200bfé 3 ?", "Où est le café 3 ?\ufeff", "\u202aOù est le café 3 ?\u202c",
    "Où est le ca\u00adfé 3 ?", "OÙ EST LE CAFÉ 3 ?", " Où  est le\u00a0café 3\u202f?\n",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_prompt_in_other_spellings_is_one_prompt_everywhere(spelling: str) -> None:
    def user(text: str) -> list[Any]:
        return [{"role": "user", "content": text}]

    shares = PartitionSettings(test=0.2, sft=0.2, prompts=0.2, judge=0.2)
    assert prompt_key(user(spelling)) == prompt_key(user(SPELLINGS[0]))
    assert split_of(first_turn_key(user(spelling)), shares) == split_of(first_turn_key(user(SPELLINGS[0])), shares)
    assert failures([(SPELLINGS[0], "Café", "b"), (spelling, unicodedata.normalize("NFD", "Café"), "b")]) == [
        None, "duplicate_pair"
    ]  # fmt: skip
    held_out = HeldOut(DecontaminationSettings(ngram=4, min_overlap=0.5, sources=[]))
    held_out.add([("e", user(SPELLINGS[0])), ("long", user(f"{SPELLINGS[0]} et où est le thé de la reine"))])
    assert held_out.contamination("pairs", "S", "r", user(spelling)) == "evaluation_overlap"
    repeated = user(f"{spelling} Et où est le thé de la dame")
    assert held_out.contamination("pairs", "S", "r", repeated) == "ngram_overlap"


def test_prompts_that_differ_in_a_letter_a_digit_or_an_accent_are_two() -> None:
    texts = ["café 3", "cafe 3", "café 4", "cafés 3", "café 3 + 1", "café 3 - 1"]
    assert len({prompt_key([{"role": "user", "content": text}]) for text in texts}) == len(texts)


def test_the_opening_is_the_first_user_turn() -> None:
    assert first_turn_key([SYSTEM, USER, REPLY, AGAIN]) == first_turn_key([USER]) == prompt_key([USER])
