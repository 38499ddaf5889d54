"""Schemas in which a native row is one pair."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from rlhflow_utils.data.reading import (
    Candidate,
    FieldError,
    Row,
    ScoredResponses,
    get,
    get_list,
    get_messages,
    get_one_of,
    joined,
    number,
    user_turn,
)
from rlhflow_utils.models.chat import Message

COMPARISONS = list(itertools.combinations(range(4), 2))  # 1v2 1v3 1v4 2v3 2v4 3v4, counted from 0
PairStrategy = Literal["all_pairs", "best_vs_random", "best_vs_worst"]


# --- pairs of scored answers --------------------------------------------------------------------------------------


def make_pairs(scored: ScoredResponses, strategy: PairStrategy) -> list[Candidate]:
    """Candidates from one row of scored answers, the higher scored as chosen; row ids end in ``#<i>v<j>``, from 1.

    ``all_pairs``: K (K - 1) / 2 of them. ``best_vs_worst``: one. ``best_vs_random``: the best against one other, drawn
    by a hash of the row id, so that every run draws alike. A missing score counts as the worst; of equal ones the first
    listed is the better. Fewer than two answers give one candidate with the evidence ``no_pair``.
    """
    count, scores = len(scored.answers), scored.scores
    if count < 2:
        return [Candidate(scored.row_id, scored.prompt, "", "", evidence="no_pair")]
    best, *others = sorted(range(count), key=lambda i: _worst_last(scores[i]))
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
        pair = Candidate(
            f"{scored.row_id}#{i + 1}v{j + 1}", scored.prompt, scored.answers[winner], scored.answers[loser]
        )
        pairs.append(_rated(pair, scores[winner], scores[loser]))
    return pairs


def _worst_last(score: float | None) -> float:
    return float("inf") if score is None else -score


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


# --- schemas ------------------------------------------------------------------------------------------------------


def group_helpsteer(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Gather HelpSteer's consecutive rows of one prompt into one row ``{prompt, rows}``, named by the first."""
    for _, group in itertools.groupby(rows, key=lambda item: get(item[1], "prompt")):
        members = list(group)
        yield members[0][0], {"prompt": get(members[0][1], "prompt"), "rows": [row for _, row in members]}


def helpsteer(row_id: str, row: Row) -> list[ScoredResponses]:
    """nvidia/HelpSteer, grouped by prompt: scored by mean(helpfulness, correctness) (the authors' early README)."""
    members = get_list(row, "rows")
    rated = [(number(get(m, "helpfulness")), number(get(m, "correctness"))) for m in members]
    scores = [None if a is None or b is None else (a + b) / 2 for a, b in rated]
    return [ScoredResponses(row_id, user_turn(get(row, "prompt")), [get(m, "response") for m in members], scores)]


def ultrafeedback(row_id: str, row: Row) -> list[ScoredResponses]:
    """openbmb/UltraFeedback: completions scored by ``fine-grained_score`` (the authors' dataset card)."""
    completions = get_list(row, "completions")
    scores = [number(get(completion, "fine-grained_score")) for completion in completions]
    answers = [get(completion, "response") for completion in completions]
    return [ScoredResponses(row_id, user_turn(get(row, "instruction")), answers, scores)]


def code_ultrafeedback(row_id: str, row: Row) -> list[ScoredResponses]:
    """coseal/CodeUltraFeedback: ratings are strings and are compared as numbers.

    Annotations belong to responses by the model's name; the two lists need not be in one order.
    """
    ratings = {str(get(a, "model")): number(get(a, "rating")) for a in get_list(row, "annotations")}
    responses = get_list(row, "responses")
    missing = [get(r, "model") for r in responses if str(get(r, "model")) not in ratings]
    if missing:
        raise FieldError(f"field 'annotations' has no entry for the models {missing} of 'responses'")
    scores = [ratings[str(get(r, "model"))] for r in responses]
    return [
        ScoredResponses(row_id, user_turn(get(row, "instruction")), [get(r, "response") for r in responses], scores)
    ]


def fine_grained_rlhf(row_id: str, row: Row) -> list[Candidate]:
    """allenai/FineGrainedRLHF: four predictions, six comparisons (1, 2, or 0 for no preference).

    All six are candidates. The prompt is the passages the answer must rest on, then the question.
    """
    passages = get_list(row, "passages")
    if not all(isinstance(passage, (list, tuple)) for passage in passages):
        raise FieldError("field 'passages' must hold lists of sentences")
    question = joined("", ["Question: ", get(row, "question")])
    prompt = user_turn(joined("\n\n", [*(joined("\n", passage) for passage in passages), question]))
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
    pair = _from_dialogues(row_id, get_messages(row, "chosen"), get_messages(row, "rejected"))
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
        pair = _from_dialogues(row_id, get_messages(row, "chosen"), get_messages(row, "rejected"))
    else:
        pair = Candidate(row_id, user_turn(get(row, "prompt")), get(row, "chosen"), get(row, "rejected"))
    return [_rated(pair, get(scores, "score_chosen"), get(scores, "score_rejected"))]


def rlhflow_standard(row_id: str, row: Row) -> list[Candidate]:
    """RLHFlow's ``*-standard`` sets and hendrydong/preference_700K: two dialogues; scores may be null or text."""
    pair = _from_dialogues(row_id, get_messages(row, "chosen"), get_messages(row, "rejected"))
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


# Only a tag after a blank line opens a turn: "Human:" is also typed inside turns.
TURN = re.compile(r"(?:\A|\n)\n(Human|Assistant):[ \t]*")


def parse_transcript(text: str) -> list[Message] | None:
    """Turns of ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``, white space stripped; None where no turn opens the text."""
    opening, *parts = TURN.split("\n\n" + text.lstrip("\n"))
    if opening or not parts:
        return None
    roles = ["user" if tag == "Human" else "assistant" for tag in parts[0::2]]
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, parts[1::2], strict=True)]


def hh_rlhf(row_id: str, row: Row) -> list[Candidate]:
    """Anthropic/hh-rlhf: two dialogues, each one string; they should differ in the last answer only."""
    sides = get(row, "chosen"), get(row, "rejected")
    if not all(isinstance(side, str) for side in sides):
        return [_unparsed(row_id, *sides)]
    chosen, rejected = (parse_transcript(side) for side in sides)
    if chosen is None or rejected is None:
        return [_unparsed(row_id, *sides)]
    return [_from_dialogues(row_id, chosen, rejected, transcript=True)]


def _unparsed(row_id: str, chosen: Any, rejected: Any) -> Candidate:
    return Candidate(row_id, [], chosen, rejected, evidence="broken_alternation", transcript=True)


def nectar(row_id: str, row: Row) -> list[Candidate | ScoredResponses]:
    """berkeley-nest/Nectar: seven answers ranked 1 (best) to 7, here in the order of their ranks.

    Scores are minus the ranks.
    """
    ranks = [(number(get(answer, "rank")), get(answer, "answer")) for answer in get_list(row, "answers")]
    scored = [(None if rank is None else -rank, answer) for rank, answer in ranks]
    scored.sort(key=lambda item: _worst_last(item[0]))
    text = get(row, "prompt")
    prompt = parse_transcript(text) if isinstance(text, str) else None
    if prompt is None:
        return [_unparsed(row_id, text, text)]
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt.pop()  # the generation prompt at the end
    return [ScoredResponses(row_id, prompt, [answer for _, answer in scored], [score for score, _ in scored])]
