"""Schemas in which a native row scores several answers to one prompt, and the pairs that are made of them.

Which pairs: `make_pairs` knows three strategies. *All pairs* is sourced for UltraFeedback, HelpSteer and
CodeUltraFeedback (the authors' cards and early README); how the offline baseline paired Nectar's seven answers is not
stated, *best against a random other* is reconstructed. *At most k pairs a prompt* is a rule of `filters`
(`max_pairs_per_prompt`), because it counts over native rows.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rlhflow_utils.sources.records import (
    Candidate,
    FieldError,
    Row,
    Scored,
    get,
    get_list,
    get_one_of,
    joined,
    number,
    user_turn,
)

COMPARISONS = list(itertools.combinations(range(4), 2))  # 1v2 1v3 1v4 2v3 2v4 3v4, counted from 0
PairStrategy = Literal["all_pairs", "best_vs_random", "best_vs_worst"]


# --- pairs of scored answers --------------------------------------------------------------------------------------


def make_pairs(scored: Scored, strategy: PairStrategy) -> list[Candidate]:
    """Candidates from one row of scored answers, the higher scored as chosen.

    Args:
        scored: K answers and their scores.
        strategy: ``all_pairs``: K (K - 1) / 2 candidates. ``best_vs_random``: the best against one other, drawn by a
            hash of the row id, so that every run draws alike. ``best_vs_worst``: the best against the worst. A missing
            score counts as the worst; of equal ones the first listed is the better.

    Returns:
        Candidates whose row ids end in ``#<i>v<j>``, positions counted from 1. Fewer than two answers give one
        candidate with the evidence ``no_pair``, so that the row is counted.
    """
    if len(scored.answers) < 2:
        return [Candidate(scored.row_id, scored.prompt, "", "", evidence="no_pair")]
    return [_pair(scored, i, j) for i, j in _positions(scored, strategy)]


def _positions(scored: Scored, strategy: PairStrategy) -> list[tuple[int, int]]:
    count = len(scored.answers)
    if strategy == "all_pairs":
        return list(itertools.combinations(range(count), 2))
    best, *others = sorted(range(count), key=lambda i: -_rankable(scored.scores[i]))
    if strategy == "best_vs_worst":
        return [(best, others[-1])]
    draw = int(hashlib.sha256(scored.row_id.encode()).hexdigest(), 16) % len(others)
    return [(best, others[draw])]


def _rankable(score: float | None) -> float:
    return float("-inf") if score is None else score


def _pair(scored: Scored, i: int, j: int) -> Candidate:
    first, second = scored.scores[i], scored.scores[j]
    winner, loser = (j, i) if first is not None and second is not None and second > first else (i, j)
    evidence = "no_label" if first is None or second is None else None
    return Candidate(
        f"{scored.row_id}#{i + 1}v{j + 1}", scored.prompt, scored.answers[winner], scored.answers[loser],
        chosen_score=scored.scores[winner], rejected_score=scored.scores[loser], evidence=evidence,
    )  # fmt: skip


# --- schemas ------------------------------------------------------------------------------------------------------


def group_helpsteer(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Gather HelpSteer's consecutive rows of one prompt into one row ``{prompt, rows}``, named by the first."""
    for _, group in itertools.groupby(rows, key=lambda item: get(item[1], "prompt")):
        members = list(group)
        yield members[0][0], {"prompt": get(members[0][1], "prompt"), "rows": [row for _, row in members]}


def helpsteer(row_id: str, row: Row) -> list[Scored]:
    """nvidia/HelpSteer, grouped by prompt: scored by mean(helpfulness, correctness) (the authors' early README)."""
    members = get_list(row, "rows")
    scores = [_mean(number(get(m, "helpfulness")), number(get(m, "correctness"))) for m in members]
    return [Scored(row_id, user_turn(get(row, "prompt")), [get(m, "response") for m in members], scores)]


def ultrafeedback(row_id: str, row: Row) -> list[Scored]:
    """openbmb/UltraFeedback: completions scored by ``fine-grained_score`` (the authors' dataset card)."""
    completions = get_list(row, "completions")
    scores = [number(get(completion, "fine-grained_score")) for completion in completions]
    answers = [get(completion, "response") for completion in completions]
    return [Scored(row_id, user_turn(get(row, "instruction")), answers, scores)]


def code_ultrafeedback(row_id: str, row: Row) -> list[Scored]:
    """coseal/CodeUltraFeedback: ratings are strings and are compared as numbers.

    Annotations belong to responses by the model's name; the two lists need not be in one order.
    """
    ratings = {str(get(a, "model")): number(get(a, "rating")) for a in get_list(row, "annotations")}
    responses = get_list(row, "responses")
    missing = [get(r, "model") for r in responses if str(get(r, "model")) not in ratings]
    if missing:
        raise FieldError(f"field 'annotations' has no entry for the models {missing} of 'responses'")
    scores = [ratings[str(get(r, "model"))] for r in responses]
    return [Scored(row_id, user_turn(get(row, "instruction")), [get(r, "response") for r in responses], scores)]


def fine_grained_rlhf(row_id: str, row: Row) -> list[Candidate]:
    """allenai/FineGrainedRLHF: four predictions, six comparisons (1, 2, or 0 for no preference).

    All six are candidates. The prompt is the passages the answer must rest on, then the question.
    """
    passages = [joined("\n", _as_list(passage)) for passage in get_list(row, "passages")]
    question = joined("", ["Question: ", get(row, "question")])
    prompt = user_turn(joined("\n\n", [*passages, question]))
    preferences = get_list(row, "preference")
    if len(preferences) != len(COMPARISONS):
        raise FieldError(f"field 'preference' must hold 6 comparisons, found {len(preferences)}")
    pairs = []
    for verdict, (i, j) in zip(preferences, COMPARISONS, strict=True):
        get_one_of({"preference": verdict}, "preference", (0, 1, 2))
        winner, loser = (j, i) if verdict == 2 else (i, j)
        texts = get(row, f"prediction {winner + 1}"), get(row, f"prediction {loser + 1}")
        evidence = "tie" if verdict == 0 else None
        pairs.append(Candidate(f"{row_id}#{i + 1}v{j + 1}", prompt, *texts, evidence=evidence))
    return pairs


def _as_list(passage: Any) -> Sequence[Any]:
    if not isinstance(passage, (list, tuple)):
        raise FieldError(f"field 'passages' must hold lists of sentences, found {type(passage).__name__}")
    return passage


def _mean(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2
