"""Schemas in which a native row is one pair."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlhflow_utils.sources.records import (
    Candidate,
    FieldError,
    Row,
    from_dialogues,
    get,
    get_list,
    get_messages,
    get_one_of,
    joined,
    number,
    user_turn,
)


def shp(row_id: str, row: Row) -> list[Candidate]:
    """stanfordnlp/SHP: two Reddit comments on one post, scored by votes; ``labels`` 1 means A is preferred."""
    a_wins = get_one_of(row, "labels", (0, 1)) == 1
    scores = number(get(row, "score_A")), number(get(row, "score_B"))
    texts = get(row, "human_ref_A"), get(row, "human_ref_B")
    winner = 0 if a_wins else 1
    pair = Candidate(
        row_id, user_turn(get(row, "history")), texts[winner], texts[1 - winner],
        chosen_score=scores[winner], rejected_score=scores[1 - winner], score_ratio=number(get(row, "score_ratio")),
    )  # fmt: skip
    if pair.score_ratio is None:
        pair.evidence = "no_label"
    return [pair]


def pku_safe_rlhf(row_id: str, row: Row) -> list[Candidate]:
    """PKU-Alignment/PKU-SafeRLHF-30K: a helpfulness and a safety label on two answers.

    The paper says that the two signals are merged, not how. Reconstructed: where exactly one answer is flagged safe, it
    is chosen, however helpful the other; a safety label against the flags is a contradiction. Where the flags are
    equal, the two labels must agree on the better answer, else the row contradicts itself.
    """
    safe = [get_one_of(row, f"is_response_{i}_safe", (True, False)) for i in (0, 1)]
    better = get_one_of(row, "better_response_id", (0, 1))
    safer = get_one_of(row, "safer_response_id", (0, 1))
    winner = better if safe[0] == safe[1] else safe.index(True)
    pair = Candidate(
        row_id, user_turn(get(row, "prompt")), get(row, f"response_{winner}"), get(row, f"response_{1 - winner}"),
        evidence=None if safer == winner else "contradicted_label",
    )  # fmt: skip
    return [pair]


def ultrainteract(row_id: str, row: Row) -> list[Candidate]:
    """openbmb/UltraInteract_pair: a correct and an incorrect next step after one trajectory (already paired)."""
    prompt = get_messages(row, "trajectory", "from", "value")
    return [Candidate(row_id, prompt, get(row, "chosen"), get(row, "rejected"))]


def argilla_math(row_id: str, row: Row) -> list[Candidate]:
    """argilla/distilabel-math-preference-dpo: two rated answers."""
    prompt = user_turn(get(row, "instruction"))
    chosen, rejected = get(row, "chosen_response"), get(row, "rejected_response")
    return [_rated(Candidate(row_id, prompt, chosen, rejected), get(row, "chosen_rating"), get(row, "rejected_rating"))]


def orca(row_id: str, row: Row) -> list[Candidate]:
    """argilla/distilabel-intel-orca-dpo-pairs: ``rating`` lists both ratings, ``status`` says "tie" where they tie.

    ``chosen`` is the higher rated answer by construction, whatever order ``rating`` is in, so the ratings are sorted.
    A status of "tie" beside two different ratings is a contradiction.
    """
    system = get(row, "system")
    prompt = ([{"role": "system", "content": system}] if system else []) + user_turn(get(row, "input"))
    pair = Candidate(row_id, prompt, get(row, "chosen"), get(row, "rejected"))
    status, ratings = get(row, "status"), [number(value) for value in get_list(row, "rating")]
    known = sorted(value for value in ratings if value is not None)
    _rated(pair, *((known[1], known[0]) if len(known) == len(ratings) == 2 else (None, None)))
    if status == "tie":
        pair.evidence = "contradicted_label" if pair.chosen_score != pair.rejected_score else "tie"
    return [pair]


def capybara(row_id: str, row: Row) -> list[Candidate]:
    """argilla/distilabel-capybara-dpo-7k-binarized: two whole dialogues that differ in the last turn."""
    get(row, "conversation")  # the set's own copy of the context; its absence means another schema
    pair = from_dialogues(row_id, get_messages(row, "chosen"), get_messages(row, "rejected"))
    return [_rated(pair, get(row, "rating_chosen"), get(row, "rating_rejected"))]


def summarize_from_feedback(row_id: str, row: Row) -> list[Candidate]:
    """openai/summarize_from_feedback (comparisons): two summaries of a post, in the prompt format of Stiennon et al."""
    info, summaries = get(row, "info"), get_list(row, "summaries")
    choice = get_one_of(row, "choice", (0, 1))
    if len(summaries) != 2:
        raise FieldError(f"field 'summaries' must hold 2 summaries, found {len(summaries)}")
    texts = [get(summary, "text") for summary in summaries]
    subreddit, title, post = (get(info, name) for name in ("subreddit", "title", "post"))
    prompt = joined("", ["SUBREDDIT: r/", subreddit, "\nTITLE: ", title, "\nPOST: ", post, "\nTL;DR:"])
    return [Candidate(row_id, user_turn(prompt), texts[choice], texts[1 - choice])]


def ultrafeedback_binarized(row_id: str, row: Row) -> list[Candidate]:
    """UltraFeedback, two answers a row: message lists and scores (hub), or strings, with the scores in ``metadata``."""
    scores = get(row, "metadata") if "metadata" in row else row
    if isinstance(get(row, "chosen"), list):
        pair = from_dialogues(row_id, get_messages(row, "chosen"), get_messages(row, "rejected"))
    else:
        pair = Candidate(row_id, user_turn(get(row, "prompt")), get(row, "chosen"), get(row, "rejected"))
    return [_rated(pair, get(scores, "score_chosen"), get(scores, "score_rejected"))]


def rlhflow_standard(row_id: str, row: Row) -> list[Candidate]:
    """RLHFlow's ``*-standard`` sets and hendrydong/preference_700K: two dialogues; scores may be null or text."""
    pair = from_dialogues(row_id, get_messages(row, "chosen"), get_messages(row, "rejected"))
    chosen, rejected = row.get("chosen_score"), row.get("rejected_score")
    return [pair if chosen is None and rejected is None else _rated(pair, chosen, rejected)]


def llama_factory_dpo(row_id: str, row: Row) -> list[Candidate]:
    """LLaMA-Factory's sharegpt preference format."""
    prompt = get_messages(row, "conversations", "from", "value")
    return [Candidate(row_id, prompt, get(row, "chosen.value"), get(row, "rejected.value"))]


def pandalm(row_id: str, row: Row) -> list[Candidate]:
    """PandaLM's test set: three annotators say 1, 2 or 0 (tie); the majority decides, without one it is a tie."""
    votes = [get_one_of(row, f"annotator{i}", (0, 1, 2)) for i in (1, 2, 3)]
    (vote, count), *_ = Counter(votes).most_common()
    verdict = vote if count > 1 else 0
    instruction, context = get(row, "instruction"), get(row, "input")
    prompt = joined("\n\n", [instruction, context]) if context else instruction
    winner = 2 if verdict == 2 else 1
    pair = Candidate(row_id, user_turn(prompt), get(row, f"response{winner}"), get(row, f"response{3 - winner}"))
    if verdict == 0:
        pair.evidence = "tie"
    return [pair]


def _rated(pair: Candidate, chosen: Any, rejected: Any) -> Candidate:
    pair.chosen_score, pair.rejected_score = number(chosen), number(rejected)
    if (pair.chosen_score is None or pair.rejected_score is None) and pair.evidence is None:
        pair.evidence = "no_label"
    return pair
