"""Evaluation prompts kept apart from what trains: n-grams by hand, matches shown, rows accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhflow_utils.data.filters import HeldOut, NgramIndex, words_of
from rlhflow_utils.guide.settings import DecontaminationSettings

EVALUATION = "Name the three longest rivers of the old world and their sources."  # twelve words


def user(*contents: str) -> list[Any]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def index(size: int = 4, min_overlap: float = 0.5, **prompts: list[Any]) -> NgramIndex:
    built = NgramIndex(size, min_overlap)
    for name, prompt in prompts.items():
        built.add(name, prompt)
    return built


def test_words_are_blind_to_case_and_punctuation_but_not_to_operators() -> None:
    assert words_of("Print: X+1,\n please!") == ["print", "x", "+", "1", "please"]
    assert words_of("a * 1") != words_of("a + 1")
    assert words_of("Straße  是") == ["strasse", "是"]


def test_overlap_is_the_share_of_the_evaluation_prompt_in_shared_ngrams() -> None:
    built = index(river=user(EVALUATION))
    whole = built.find(user("Please: " + EVALUATION.upper()))
    assert whole is not None
    assert whole[:2] == ("river", 1.0)
    # "the three longest rivers of the" are 6 of 12 words: three 4-grams, which cover six positions.
    half = built.find(user("I saw the three longest rivers of the moon"))
    assert half == ("river", 0.5, "the three longest rivers of the")
    assert built.find(user("I saw three longest rivers of the moon")) is None  # 5 of 12
    assert built.find(user("the three longest roads and the three longest rivers")) is None  # 4 of 12, once


def test_scattered_ngrams_add_up_and_the_best_match_is_named() -> None:
    built = index(other=user("one two three four nine nine nine nine nine"), river=user(EVALUATION))
    prompt = "one two three four; name the three longest lakes, old world and their sources"
    assert built.find(user(prompt)) == ("river", 9 / 12, "name the three longest old world and their sources")


def test_later_turns_count_when_long_and_answers_never() -> None:
    built = index(river=user(EVALUATION, "ok", "thank you"), dialogue=user("hello", EVALUATION, "x y z w v u t s"))
    assert built.find(user("hi", "there", EVALUATION)) is not None
    assert built.find(user("hi", EVALUATION, "thanks")) is None  # there it is an assistant's turn
    assert built.find(user("thank you")) is None  # a short later turn of an evaluation prompt
    assert built.find(user("well: x y z w v")) == ("dialogue", 5 / 8, "x y z w v")


def test_a_short_prompt_must_be_repeated_whole() -> None:
    built = index(short=user("Who are you?"), empty=user("??"))
    assert built.find(user("who are YOU")) == ("short", 1.0, "who are you")
    assert built.find(user("Tell me who are you in detail")) is None
    assert built.find(user("...")) is None  # no words: not the evaluation prompt without words
    assert built.find(user("")) is None


def test_reasons_and_matches_are_shown() -> None:
    held_out = HeldOut(DecontaminationSettings(ngram=4, min_overlap=0.5, sources=[]))
    held_out.add([("E:0", user(EVALUATION))])
    assert held_out.contamination("pairs", "S", "r0", user("  " + EVALUATION)) == "evaluation_overlap"
    assert held_out.contamination("pairs", "S", "r1", user("the three longest rivers of the moon")) == "ngram_overlap"
    assert held_out.contamination("pairs", "S", "r2", user("the three longest rivers of the moon")) == "ngram_overlap"
    assert held_out.contamination("pairs", "S", "r3", user("another question altogether, is it not")) is None
    shown = held_out.matches
    assert [(m["row_id"], m["reason"], m["evaluation_id"], m["overlap"]) for m in shown] == [
        ("r0", "evaluation_overlap", "E:0", 1.0),
        ("r1", "ngram_overlap", "E:0", 0.5), ("r2", "ngram_overlap", "E:0", 0.5),
    ]  # fmt: skip
    assert shown[1]["shared"] == "the three longest rivers of the"
    assert json.loads(json.dumps(shown)) == shown


def test_agrees_with_a_search_over_all_positions() -> None:
    """An independent oracle: mark every position of the evaluation text that lies in some shared n-gram."""
    import random

    draw = random.Random(0)
    for _ in range(200):
        evaluation = [draw.choice("abcd") for _ in range(draw.randint(3, 12))]
        training = [draw.choice("abcd") for _ in range(draw.randint(0, 30))]
        marked = set()
        for i in range(len(evaluation) - 2):
            gram = evaluation[i : i + 3]
            if any(training[j : j + 3] == gram for j in range(len(training))):
                marked |= {i, i + 1, i + 2}
        found = index(3, 1e-9, e=user(" ".join(evaluation))).find(user(" ".join(training)))
        assert (found[1] if found else 0.0) == len(marked) / len(evaluation)


def test_real_rows_that_repeat_an_evaluation_prompt(data_root: Path) -> None:
    """HH-RLHF row 75 opens like XSTest's row 182; UltraFeedback and LLaMA-Factory repeat long instructions."""
    from rlhflow_utils.data.mixtures import prompts_of_sources
    from rlhflow_utils.data.reading import Candidate
    from rlhflow_utils.data.sources import read
    from rlhflow_utils.guide.profile import load_profile

    settings = load_profile("slices").data
    held_out = HeldOut(settings.decontamination)
    sources = settings.decontamination.sources
    held_out.add((f"{name}:{p.row_id}", p.prompt) for name, p in prompts_of_sources(sources, data_root))
    pairs = [pair for pair in read(settings.preference_sources[0], data_root, Candidate) if pair.prompt]
    dropped = {
        p.row_id: held_out.contamination("pairs", "HH-RLHF", p.row_id, p.prompt) for p in pairs if p.evidence is None
    }
    assert dropped["harmless-base.test:75"] == "evaluation_overlap"
    assert held_out.matches[0]["evaluation_id"] == "XSTest:xstest:182"
    assert sum(reason is not None for reason in dropped.values()) == len(held_out.matches) < 20
