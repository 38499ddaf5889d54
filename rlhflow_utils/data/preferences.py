"""Converters of preference schemas: one pair a row, or several answers with ratings or ranks (`make_pairs`)."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rlhflow_utils.data.reading import Candidate, FieldError, Row, ScoredResponses, get, get_label, get_turns, user_turn
from rlhflow_utils.models.chat import Message

COMPARISONS = list(itertools.combinations(range(4), 2))  # 1v2 1v3 1v4 2v3 2v4 3v4, counted from 0
PairStrategy = Literal["all_pairs", "best_vs_random", "best_vs_worst"]


def number(value: Any) -> float | None:
    """A score as float; numbers written as text are cast, anything else is None (no label)."""
    try:
        result = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: an integer of hundreds of digits
        return None
    return result if math.isfinite(result) else None


def joined(separator: str, parts: Sequence[Any]) -> Any:
    """The parts as one string; where one of them is no string, that part instead, for the filters to count."""
    odd = [part for part in parts if not isinstance(part, str)]
    return odd[0] if odd else separator.join(parts)


def make_pairs(scored: ScoredResponses, strategy: PairStrategy) -> list[Candidate]:
    """Candidates from one row of scored answers, the higher scored as chosen; row ids end in ``#<i>v<j>``, from 1.

    ``all_pairs``: K (K - 1) / 2 of them. ``best_vs_worst``: one. ``best_vs_random``: the best against one other, drawn
    by a hash of the row id, so that every run draws alike. A missing score counts as the worst; of equal ones the first
    listed is the better. Fewer than two answers give one candidate with the evidence ``no_pair``.
    """
    count, scores = len(scored.answers), scored.scores
    if count < 2:
        return [Candidate(scored.row_id, scored.prompt, "", "", evidence="no_pair")]
    worst_last = [math.inf if score is None else -score for score in scores]
    best, *others = sorted(range(count), key=worst_last.__getitem__)
    draw = int(hashlib.sha256(scored.row_id.encode()).hexdigest(), 16) % len(others)
    positions = {
        "all_pairs": list(itertools.combinations(range(count), 2)),
        "best_vs_worst": [(best, others[-1])],
        "best_vs_random": [(best, others[draw])],
    }[strategy]
    pairs = []
    for i, j in positions:
        first, second = scores[i], scores[j]
        winner, loser = (j, i) if first is not None and second is not None and second > first else (i, j)
        texts = scored.answers[winner], scored.answers[loser]
        pair = Candidate(f"{scored.row_id}#{i + 1}v{j + 1}", scored.prompt, *texts)
        pairs.append(_rated(pair, scores[winner], scores[loser]))
    return pairs


def _rated(pair: Candidate, chosen: Any, rejected: Any) -> Candidate:
    pair.chosen_score, pair.rejected_score = number(chosen), number(rejected)
    if (pair.chosen_score is None or pair.rejected_score is None) and pair.evidence is None:
        pair.evidence = "no_label"
    return pair


def _from_dialogues(row_id: str, chosen: list[Message], rejected: list[Message], transcript: bool = False) -> Candidate:
    """A pair given as two whole dialogues: the last turns are the answers, what precedes them the contexts."""
    if not chosen or not rejected:
        return Candidate(row_id, chosen[:-1], "", "", evidence="no_pair", transcript=transcript)
    ends_well = chosen[-1]["role"] == rejected[-1]["role"] == "assistant"
    return Candidate(
        row_id, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], rejected_prompt=rejected[:-1],
        evidence=None if ends_well else "broken_alternation", transcript=transcript,
    )  # fmt: skip


def group_helpsteer(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Gather HelpSteer's consecutive rows of one prompt into one row ``{prompt, rows}``, named by the first."""
    for _, group in itertools.groupby(rows, key=lambda item: get(item[1], "prompt")):
        members = list(group)
        yield members[0][0], {"prompt": get(members[0][1], "prompt"), "rows": [row for _, row in members]}


def helpsteer(row_id: str, row: Row) -> ScoredResponses:
    """nvidia/HelpSteer, grouped by prompt: scored by mean(helpfulness, correctness) (the authors' early README)."""
    members = get(row, "rows", list)
    rated = [(number(get(m, "helpfulness")), number(get(m, "correctness"))) for m in members]
    scores = [None if a is None or b is None else (a + b) / 2 for a, b in rated]
    return ScoredResponses(row_id, user_turn(get(row, "prompt")), [get(m, "response") for m in members], scores)


def ultrafeedback(row_id: str, row: Row) -> ScoredResponses:
    """openbmb/UltraFeedback: completions scored by ``fine-grained_score`` (the authors' dataset card)."""
    completions = get(row, "completions", list)
    scores = [number(get(each, "fine-grained_score")) for each in completions]
    answers = [get(each, "response") for each in completions]
    return ScoredResponses(row_id, user_turn(get(row, "instruction")), answers, scores)


def code_ultrafeedback(row_id: str, row: Row) -> ScoredResponses:
    """coseal/CodeUltraFeedback: ratings are strings and are compared as numbers.

    Annotations belong to responses by the model's name; the two lists need not be in one order.
    """
    ratings = {str(get(each, "model")): number(get(each, "rating")) for each in get(row, "annotations", list)}
    answers = [(str(get(each, "model")), get(each, "response")) for each in get(row, "responses", list)]
    if missing := [model for model, _ in answers if model not in ratings]:
        raise FieldError(f"field 'annotations' has no entry for the models {missing} of 'responses'")
    scores = [ratings[model] for model, _ in answers]
    return ScoredResponses(row_id, user_turn(get(row, "instruction")), [text for _, text in answers], scores)


def fine_grained_rlhf(row_id: str, row: Row) -> list[Candidate]:
    """allenai/FineGrainedRLHF: four predictions, six comparisons (1, 2, or 0 for no preference).

    All six are candidates. The prompt is the passages the answer must rest on, then the question.
    """
    passages = get(row, "passages", list)
    if not all(isinstance(passage, list) for passage in passages):
        raise FieldError("field 'passages' must hold lists of sentences")
    question = joined("", ["Question: ", get(row, "question")])
    prompt = user_turn(joined("\n\n", [*(joined("\n", passage) for passage in passages), question]))
    preferences = get(row, "preference", list)
    if len(preferences) != len(COMPARISONS):
        raise FieldError(f"field 'preference' must hold 6 comparisons, found {len(preferences)}")
    pairs = []
    for verdict, (i, j) in zip(preferences, COMPARISONS, strict=True):
        get_label({"preference": verdict}, "preference", (0, 1, 2))
        winner, loser = (j, i) if verdict == 2 else (i, j)
        texts = get(row, f"prediction {winner + 1}"), get(row, f"prediction {loser + 1}")
        evidence = "tie" if verdict == 0 else None
        pairs.append(Candidate(f"{row_id}#{i + 1}v{j + 1}", prompt, *texts, evidence=evidence))
    return pairs


def shp(row_id: str, row: Row) -> Candidate:
    """stanfordnlp/SHP: two Reddit comments on one post, scored by votes; ``labels`` 1 means A is preferred."""
    winner, loser = "AB" if get_label(row, "labels", (0, 1)) == 1 else "BA"
    ratio = number(get(row, "score_ratio"))
    return Candidate(
        row_id, user_turn(get(row, "history")), get(row, f"human_ref_{winner}"), get(row, f"human_ref_{loser}"),
        chosen_score=number(get(row, f"score_{winner}")), rejected_score=number(get(row, f"score_{loser}")),
        score_ratio=ratio, evidence="no_label" if ratio is None else None,
    )  # fmt: skip


def pku_safe_rlhf(row_id: str, row: Row) -> Candidate:
    """PKU-Alignment/PKU-SafeRLHF-30K: a helpfulness and a safety label on two answers.

    The paper says that the two signals are merged, not how. Reconstructed: where exactly one answer is flagged safe, it
    is chosen, however helpful the other; a safety label against the flags is a contradiction. Where the flags are
    equal, the two labels must agree on the better answer, else the row contradicts itself.
    """
    safe = [get_label(row, f"is_response_{i}_safe", (True, False)) for i in (0, 1)]
    better = get_label(row, "better_response_id", (0, 1))
    safer = get_label(row, "safer_response_id", (0, 1))
    winner = better if safe[0] == safe[1] else safe.index(True)
    return Candidate(
        row_id, user_turn(get(row, "prompt")), get(row, f"response_{winner}"), get(row, f"response_{1 - winner}"),
        evidence=None if safer == winner else "contradicted_label",
    )  # fmt: skip


def ultrainteract(row_id: str, row: Row) -> Candidate:
    """openbmb/UltraInteract_pair: a correct and an incorrect next step after one trajectory (already paired)."""
    return Candidate(row_id, get_turns(row, "trajectory", "from", "value"), get(row, "chosen"), get(row, "rejected"))


def argilla_math(row_id: str, row: Row) -> Candidate:
    """argilla/distilabel-math-preference-dpo: two rated answers."""
    texts = get(row, "chosen_response"), get(row, "rejected_response")
    pair = Candidate(row_id, user_turn(get(row, "instruction")), *texts)
    return _rated(pair, get(row, "chosen_rating"), get(row, "rejected_rating"))


def orca(row_id: str, row: Row) -> Candidate:
    """argilla/distilabel-intel-orca-dpo-pairs: ``rating`` lists both ratings, ``status`` says "tie" where they tie.

    ``chosen`` is the higher rated answer by construction, whatever order ``rating`` is in, so the ratings are sorted.
    A status of "tie" beside two different ratings is a contradiction.
    """
    system = get(row, "system")
    prompt = ([{"role": "system", "content": system}] if system else []) + user_turn(get(row, "input"))
    pair = Candidate(row_id, prompt, get(row, "chosen"), get(row, "rejected"))
    ratings = [number(value) for value in get(row, "rating", list)]
    known = sorted(value for value in ratings if value is not None)
    _rated(pair, *(known[::-1] if len(known) == len(ratings) == 2 else (None, None)))
    if get(row, "status") == "tie":
        pair.evidence = "contradicted_label" if pair.chosen_score != pair.rejected_score else "tie"
    return pair


def capybara(row_id: str, row: Row) -> Candidate:
    """argilla/distilabel-capybara-dpo-7k-binarized: two whole dialogues that differ in the last turn."""
    get(row, "conversation")  # the set's own copy of the context; its absence means another schema
    pair = _from_dialogues(row_id, get_turns(row, "chosen"), get_turns(row, "rejected"))
    return _rated(pair, get(row, "rating_chosen"), get(row, "rating_rejected"))


def summarize_from_feedback(row_id: str, row: Row) -> Candidate:
    """openai/summarize_from_feedback (comparisons): two summaries of a post, in the prompt format of Stiennon et al."""
    info, summaries = get(row, "info"), get(row, "summaries", list)
    choice = get_label(row, "choice", (0, 1))
    if len(summaries) != 2:
        raise FieldError(f"field 'summaries' must hold 2 summaries, found {len(summaries)}")
    texts = [get(summary, "text") for summary in summaries]
    subreddit, title, post = (get(info, name) for name in ("subreddit", "title", "post"))
    prompt = joined("", ["SUBREDDIT: r/", subreddit, "\nTITLE: ", title, "\nPOST: ", post, "\nTL;DR:"])
    return Candidate(row_id, user_turn(prompt), texts[choice], texts[1 - choice])


def ultrafeedback_binarized(row_id: str, row: Row) -> Candidate:
    """UltraFeedback, two answers a row: message lists and scores (hub), or strings, with the scores in ``metadata``."""
    scores = get(row, "metadata") if "metadata" in row else row
    if isinstance(get(row, "chosen"), list):
        pair = _from_dialogues(row_id, get_turns(row, "chosen"), get_turns(row, "rejected"))
    else:
        pair = Candidate(row_id, user_turn(get(row, "prompt")), get(row, "chosen"), get(row, "rejected"))
    return _rated(pair, get(scores, "score_chosen"), get(scores, "score_rejected"))


def rlhflow_standard(row_id: str, row: Row) -> Candidate:
    """RLHFlow's ``*-standard`` sets and hendrydong/preference_700K: two dialogues; scores may be null or text."""
    pair = _from_dialogues(row_id, get_turns(row, "chosen"), get_turns(row, "rejected"))
    chosen, rejected = row.get("chosen_score"), row.get("rejected_score")
    return pair if chosen is None and rejected is None else _rated(pair, chosen, rejected)


def llama_factory_dpo(row_id: str, row: Row) -> Candidate:
    """LLaMA-Factory's sharegpt preference format."""
    prompt = get_turns(row, "conversations", "from", "value")
    return Candidate(row_id, prompt, get(row, "chosen.value"), get(row, "rejected.value"))


def pandalm(row_id: str, row: Row) -> Candidate:
    """PandaLM's test set: three annotators say 1, 2 or 0 (tie); the majority decides, without one it is a tie."""
    votes = [get_label(row, f"annotator{i}", (0, 1, 2)) for i in (1, 2, 3)]
    verdict = next((vote for vote in (1, 2) if votes.count(vote) > 1), 0)
    instruction, context = get(row, "instruction"), get(row, "input")
    prompt = joined("\n\n", [instruction, context]) if context else instruction
    winner = verdict or 1
    texts = get(row, f"response{winner}"), get(row, f"response{3 - winner}")
    return Candidate(row_id, user_turn(prompt), *texts, evidence=None if verdict else "tie")


# Only a tag after a blank line opens a turn: "Human:" is also typed inside turns.
TURN = re.compile(r"(?:\A|\n)\n(Human|Assistant):[ \t]*")


def parse_transcript(text: str) -> list[Message] | None:
    """Turns of ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``, white space stripped; None where no turn opens the text."""
    opening, *parts = TURN.split("\n\n" + text.lstrip("\n"))
    if opening or not parts:
        return None
    roles = ["user" if tag == "Human" else "assistant" for tag in parts[0::2]]
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, parts[1::2], strict=True)]


def hh_rlhf(row_id: str, row: Row) -> Candidate:
    """Anthropic/hh-rlhf: two dialogues, each one string; they should differ in the last answer only."""
    sides = get(row, "chosen"), get(row, "rejected")
    chosen, rejected = (parse_transcript(side) if isinstance(side, str) else None for side in sides)
    if chosen is None or rejected is None:
        return Candidate(row_id, [], *sides, evidence="broken_alternation", transcript=True)
    return _from_dialogues(row_id, chosen, rejected, transcript=True)


def nectar(row_id: str, row: Row) -> Candidate | ScoredResponses:
    """berkeley-nest/Nectar: seven answers in the order of their ranks 1 (best) to 7; scores are minus ranks."""
    ranks = [(number(get(each, "rank")), get(each, "answer")) for each in get(row, "answers", list)]
    ranks.sort(key=lambda item: math.inf if item[0] is None else item[0])
    text = get(row, "prompt")
    prompt = parse_transcript(text) if isinstance(text, str) else None
    if prompt is None:
        return Candidate(row_id, [], text, text, evidence="broken_alternation", transcript=True)
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt.pop()  # the generation prompt at the end
    scores = [None if rank is None else -rank for rank, _ in ranks]
    return ScoredResponses(row_id, prompt, [answer for _, answer in ranks], scores)
