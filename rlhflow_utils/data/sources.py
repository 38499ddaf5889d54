"""Converters from each source's native schema to records; what is kept is decided by `filters`.

To add a preference source, write one function, add it to `CONVERTERS` below, and name the source in a profile. For
example, rows with two answers and a rating of each, from 1 to 5 (the higher one is chosen, equal ones are dropped as
``tie``)::

    def my_ratings(row_id: str, row: Row) -> ScoredResponses:
        answers = [get(row, "answer_a"), get(row, "answer_b")]
        scores = [number(get(row, "rating_a")), number(get(row, "rating_b"))]
        return ScoredResponses(row_id, get_prompt(row, "question"), answers, scores)

and in the profile, under ``data``: ``preference_sources: - {name: Mine, schema: my_ratings, files: [mine.jsonl]}``
(`hub_id` instead of `files` for the hub), the name in a mixture, and, where wanted, the smallest gap between ratings
that counts: ``filters.min_score_margin: {Mine: 1.0}``. `get` names a missing field; texts are passed on unchecked.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from rlhflow_utils.data.reading import (
    KNOWN_ROLES,
    Candidate,
    Conversation,
    FieldError,
    Prompt,
    Root,
    Row,
    ScoredResponses,
    SourceError,
    Text,
    get,
    get_label,
    get_prompt,
    get_turns,
    load_rows,
    system_turn,
    user_turn,
)
from rlhflow_utils.guide.settings import SourceSettings
from rlhflow_utils.models.chat import Message

Record = Candidate | Conversation | Prompt | Text
R = TypeVar("R", Candidate, Conversation, Prompt, Text)
KINDS = {Candidate: "preference pairs", Conversation: "conversations", Prompt: "prompts", Text: "texts"}
Converter = Callable[[str, Row], Any]  # row id and native row -> its record, or a list of them
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
        winner, loser = (j, i) if worst_last[j] < worst_last[i] else (i, j)
        texts = scored.answers[winner], scored.answers[loser]
        pair = Candidate(f"{scored.row_id}#{i + 1}v{j + 1}", scored.prompt, *texts)
        pairs.append(_rated(pair, scores[winner], scores[loser]))
    return pairs


def _rated(pair: Candidate, chosen: Any, rejected: Any) -> Candidate:
    pair.chosen_score, pair.rejected_score = number(chosen), number(rejected)
    if (pair.chosen_score is None or pair.rejected_score is None) and pair.evidence is None:
        pair.evidence = "no_label"
    return pair


def _pair(
    row_id: str, row: Row, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected",
    scores: tuple[str, str] | None = None,
) -> Candidate:  # fmt: skip
    """The pair that a row states, in any of TRL's forms: the fields of its prompt, its two answers and their scores."""
    pair = _from_dialogues(row_id, _dialogue(row, prompt, chosen), _dialogue(row, prompt, rejected))
    return _rated(pair, *(get(row, score) for score in scores)) if scores else pair


def _dialogue(row: Row, prompt: str, answer: str) -> list[Message]:
    """One side of a pair: its answer is a string, or turns that follow the prompt, or the whole dialogue as turns."""
    if not isinstance(get(row, answer), list):
        return [*get_prompt(row, prompt), {"role": "assistant", "content": get(row, answer)}]
    turns = get_turns(row, answer)
    if prompt not in row:
        return turns
    context = get_prompt(row, prompt)
    if isinstance(row[prompt], list):
        repeats_prompt = turns[: len(context)] == context
    else:
        repeats_prompt = bool(turns) and turns[0]["role"] != "assistant"  # UltraFeedback's: the first user turn
    return turns if repeats_prompt else context + turns


def _from_dialogues(row_id: str, chosen: list[Message], rejected: list[Message], transcript: bool = False) -> Candidate:
    """A pair given as two whole dialogues: the last turns are the answers, what precedes them the contexts."""
    if not chosen or not rejected:
        return Candidate(row_id, chosen[:-1], "", "", evidence="no_pair", transcript=transcript)
    ends = {chosen[-1]["role"], rejected[-1]["role"]}
    evidence = None if ends == {"assistant"} else "broken_alternation" if ends <= KNOWN_ROLES else "unknown_role"
    return Candidate(
        row_id, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], rejected_prompt=rejected[:-1],
        evidence=evidence, transcript=transcript,
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
    return ScoredResponses(row_id, get_prompt(row, "prompt"), [get(m, "response") for m in members], scores)


def ultrafeedback(row_id: str, row: Row) -> ScoredResponses:
    """openbmb/UltraFeedback: completions scored by ``fine-grained_score`` (the authors' dataset card)."""
    rated = [(get(each, "response"), get(each, "fine-grained_score")) for each in get(row, "completions", list)]
    answers, scores = [text for text, _ in rated], [number(score) for _, score in rated]
    return ScoredResponses(row_id, get_prompt(row, "instruction"), answers, scores)


def code_ultrafeedback(row_id: str, row: Row) -> ScoredResponses:
    """coseal/CodeUltraFeedback: ratings are strings and are compared as numbers.

    Annotations belong to responses by the model's name; the two lists need not be in one order.
    """
    ratings = {str(get(each, "model")): number(get(each, "rating")) for each in get(row, "annotations", list)}
    answers = [(str(get(each, "model")), get(each, "response")) for each in get(row, "responses", list)]
    if missing := [model for model, _ in answers if model not in ratings]:
        raise FieldError(f"field 'annotations' has no entry for the models {missing} of 'responses'")
    scores = [ratings[model] for model, _ in answers]
    return ScoredResponses(row_id, get_prompt(row, "instruction"), [text for _, text in answers], scores)


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
        get_label({"preference": verdict}, "preference", (0, 1, 2, None))
        winner, loser = (j, i) if verdict == 2 else (i, j)
        texts = get(row, f"prediction {winner + 1}"), get(row, f"prediction {loser + 1}")
        evidence = "no_label" if verdict is None else "tie" if verdict == 0 else None
        pairs.append(Candidate(f"{row_id}#{i + 1}v{j + 1}", prompt, *texts, evidence=evidence))
    return pairs


def shp(row_id: str, row: Row) -> Candidate:
    """stanfordnlp/SHP: two Reddit comments on one post, scored by votes; ``labels`` 1 means A is preferred."""
    label = get_label(row, "labels", (0, 1, None))
    winner, loser = "AB" if label == 1 else "BA"
    pair = _pair(row_id, row, "history", f"human_ref_{winner}", f"human_ref_{loser}")
    pair.chosen_score, pair.rejected_score = number(get(row, f"score_{winner}")), number(get(row, f"score_{loser}"))
    pair.score_ratio = number(get(row, "score_ratio"))
    pair.evidence = pair.evidence or ("no_label" if label is None or pair.score_ratio is None else None)
    return pair


def pku_safe_rlhf(row_id: str, row: Row) -> Candidate:
    """PKU-Alignment/PKU-SafeRLHF-30K: a helpfulness and a safety label on two answers.

    The paper (2.1) merges them by a classification into 14 harm categories, and does not state the rule. Reconstructed:
    where exactly one answer is flagged safe, it is chosen, however helpful the other; a safety label against the flags
    is a contradiction. Where the flags are equal, the two labels must agree, else the row contradicts itself.
    """
    safe = [get_label(row, f"is_response_{i}_safe", (True, False, None)) for i in (0, 1)]
    better, safer = (get_label(row, f"{name}_response_id", (0, 1, None)) for name in ("better", "safer"))
    is_known = None not in (*safe, better, safer)
    winner = 0 if not is_known else better if safe[0] == safe[1] else safe.index(True)
    pair = _pair(row_id, row, "prompt", f"response_{winner}", f"response_{1 - winner}")
    if not is_known or safer != winner:
        pair.evidence = pair.evidence or ("contradicted_label" if is_known else "no_label")
    return pair


def orca(row_id: str, row: Row) -> Candidate:
    """argilla/distilabel-intel-orca-dpo-pairs: ``rating`` lists both ratings, ``status`` says "tie" where they tie.

    ``chosen`` is the higher rated answer by construction, whatever order ``rating`` is in, so the ratings are sorted.
    A status of "tie" beside two different ratings is a contradiction.
    """
    pair = _pair(row_id, row, "input")
    pair.prompt = pair.rejected_prompt = system_turn(get(row, "system")) + pair.prompt
    ratings = [number(value) for value in get(row, "rating", list)]
    known = sorted(value for value in ratings if value is not None)
    _rated(pair, *(known[::-1] if len(known) == len(ratings) == 2 else (None, None)))
    if get(row, "status") == "tie":
        pair.evidence = "contradicted_label" if pair.chosen_score != pair.rejected_score else "tie"
    return pair


def summarize_from_feedback(row_id: str, row: Row) -> Candidate:
    """openai/summarize_from_feedback (comparisons): two summaries of a post, in the prompt format of Stiennon et al."""
    summaries, choice = get(row, "summaries", list), get_label(row, "choice", (0, 1, None))
    if len(summaries) != 2:
        raise FieldError(f"field 'summaries' must hold 2 summaries, found {len(summaries)}")
    texts = [get(summary, "text") for summary in summaries]
    subreddit, title, post = (get(row, f"info.{name}") for name in ("subreddit", "title", "post"))
    prompt = joined("", ["SUBREDDIT: r/", subreddit, "\nTITLE: ", title, "\nPOST: ", post, "\nTL;DR:"])
    better, worse = (texts[1], texts[0]) if choice == 1 else (texts[0], texts[1])
    return Candidate(row_id, user_turn(prompt), better, worse, evidence="no_label" if choice is None else None)


def ultrafeedback_binarized(row_id: str, row: Row) -> Candidate:
    """UltraFeedback, two answers a row: message lists and scores (hub), or strings, with the scores in ``metadata``."""
    where = "metadata." if "metadata" in row else ""
    return _pair(row_id, row, scores=(f"{where}score_chosen", f"{where}score_rejected"))


def rlhflow_standard(row_id: str, row: Row) -> Candidate:
    """RLHFlow's ``*-standard`` sets, hendrydong/preference_700K and TRL's forms; scores may be absent, null or text."""
    pair, scores = _pair(row_id, row), (row.get("chosen_score"), row.get("rejected_score"))
    return pair if scores == (None, None) else _rated(pair, *scores)


def pandalm(row_id: str, row: Row) -> Candidate:
    """PandaLM's test set: three annotators say 1, 2 or 0 (tie); the majority decides, without one it is a tie."""
    votes = [get_label(row, f"annotator{i}", (0, 1, 2, None)) for i in (1, 2, 3)]
    verdict = next((vote for vote in (1, 2) if votes.count(vote) > 1), 0)
    winner = verdict or 1
    pair = _pair(row_id, row, "instruction", f"response{winner}", f"response{3 - winner}")
    if context := get(row, "input"):
        pair.prompt = pair.rejected_prompt = user_turn(joined("\n\n", [get(row, "instruction"), context]))
    pair.evidence = pair.evidence or ("no_label" if None in votes else None if verdict else "tie")
    return pair


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


# --- benchmarks, conversations, prompts ---------------------------------------------------------------------------


LLMBAR_SUBSETS = {
    "natural": "llmbar-natural", "adversarial_neighbor": "llmbar-adver-neighbor",
    "adversarial_gptinst": "llmbar-adver-GPTInst", "adversarial_gptout": "llmbar-adver-GPTOut",
    "adversarial_manual": "llmbar-adver-manual",
}  # fmt: skip
FULL_COMPLIANCE, FULL_REFUSAL = "1_full_compliance", "2_full_refusal"


def reward_bench(row_id: str, row: Row) -> Candidate:
    """allenai/reward-bench."""
    pair = _pair(row_id, row)
    pair.subset = get(row, "subset", str)
    return pair


def reward_bench_2(row_id: str, row: Row) -> Candidate:
    """allenai/reward-bench-2: one right answer; in `Ties` any number, and the row's id (``ref:3`` or ``tied:3``)."""
    subset = get(row, "subset", str)
    if subset == "Ties" and not re.fullmatch(r"(ref|tied):\d+", row_id := get(row, "id", str)):
        raise FieldError(f"field 'id' of a row of Ties must be ref:number or tied:number, found {row_id!r}")
    right = _texts(row, "chosen", None if subset == "Ties" else 1)
    return Candidate(row_id, get_prompt(row, "prompt"), right, _texts(row, "rejected"), subset=subset)


def rm_bench(row_id: str, row: Row) -> Candidate:
    """THU-KEG/RM-Bench: answers in three styles on each side; files of one domain name it (``math_filtered.json``)."""
    domain, of_one_domain, _ = row_id.partition("_filtered:")
    sides = _texts(row, "chosen", 3), _texts(row, "rejected", 3)
    subset = get({"domain": domain, **row} if of_one_domain else row, "domain", str)
    return Candidate(row_id, get_prompt(row, "prompt"), *sides, subset=subset)


def _texts(row: Row, path: str, count: int | None = None) -> list[str]:
    texts: list[str] = get(row, path, list)
    if not (texts and all(isinstance(text, str) for text in texts) and len(texts) == (count or len(texts))):
        raise FieldError(f"field {path!r} must be a list of {count or 'one or more'} strings, found {str(texts)[:80]}")
    return texts


def llmbar(row_id: str, row: Row) -> Candidate:
    """princeton-nlp/LLMBar: ``label`` names the better output; the subset is the file's name."""
    winner, stem = get_label(row, "label", (1, 2)), row_id.rpartition(":")[0]
    pair = _pair(row_id, row, "input", f"output_{winner}", f"output_{3 - winner}")
    pair.subset = LLMBAR_SUBSETS.get(stem, stem)
    return pair


def humanevalpack(row_id: str, row: Row) -> Candidate:
    """bigcode/humanevalpack: the canonical solution against the buggy one; the subset is the file's name (language)."""
    declaration = get(row, "prompt", str)  # which RewardBench's answers repeat
    chosen, rejected = (declaration + get(row, name, str) for name in ("canonical_solution", "buggy_solution"))
    subset = f"hep-{row_id.rpartition(':')[0]}"
    return Candidate(row_id, get_prompt(row, "instruction"), chosen, rejected, subset=subset)


def join_xstest(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Join XSTest's prompts with the completions of two models, by id (``1`` in one file is ``v2-1`` in the others).

    The prompt text is the completions' own: the one with id 195 differs between the files.
    """
    labels: dict[str, str] = {}
    completions: dict[str, list[Row]] = {}
    for _, row in rows:
        key = get(row, "id", str).removeprefix("v2-")
        if "completion" in row:
            completions.setdefault(key, []).append(row)
        else:
            labels[key] = get_label(row, "label", ("safe", "unsafe"))
    for key, answers in completions.items():
        if key not in labels:
            raise FieldError(f"id {key!r} of the completions is not in the prompts file; name both kinds in `files`")
        yield f"xstest:{key}", {"label": labels[key], "answers": answers}


def xstest(row_id: str, row: Row) -> Candidate:
    """XSTest, joined: a full compliance against a full refusal, whichever model gave it; others are no pair.

    A safe prompt should be answered (subset xstest-should-respond), an unsafe one refused (xstest-should-refuse).
    """
    answers = get(row, "answers", list)
    if not answers:
        raise FieldError("field 'answers' is empty; `join_xstest` makes these rows")
    by_label = {get(a, "final_label", str): get(a, "completion") for a in answers}
    safe = get(row, "label") == "safe"
    subset = "xstest-should-respond" if safe else "xstest-should-refuse"
    better, worse = (FULL_COMPLIANCE, FULL_REFUSAL) if safe else (FULL_REFUSAL, FULL_COMPLIANCE)
    evidence = None if {better, worse} <= set(by_label) else "no_pair"
    chosen, rejected = ("", "") if evidence else (by_label[better], by_label[worse])
    return Candidate(row_id, get_prompt(answers[0], "prompt"), chosen, rejected, evidence=evidence, subset=subset)


def llama_factory_kto(row_id: str, row: Row) -> Conversation:
    """LLaMA-Factory's unpaired labels: a conversation labelled true is one to imitate, the others are counted out."""
    evidence = {True: None, False: "labelled_bad", None: "no_label"}[get_label(row, "label", (True, False, None))]
    return Conversation(row_id, get_turns(row, "messages"), evidence)


def exact_match(row_id: str, row: Row) -> Prompt:
    """A prompt and its one right answer."""
    answer = get(row, "answer", str)
    if not answer.strip():
        raise FieldError("field 'answer' is empty; an exact-match row needs its answer")
    return Prompt(row_id, get_prompt(row, "prompt"), answer)


CONVERTERS: dict[str, Converter] = {
    **{each.__name__: each for each in (
        hh_rlhf, shp, helpsteer, pku_safe_rlhf, ultrafeedback, ultrafeedback_binarized, code_ultrafeedback, orca,
        summarize_from_feedback, nectar, rlhflow_standard, pandalm, fine_grained_rlhf, reward_bench,
        reward_bench_2, rm_bench, llmbar, humanevalpack, xstest, llama_factory_kto, exact_match,
    )},
    # openbmb/UltraInteract_pair: a correct and an incorrect next step after one trajectory
    "ultrainteract": lambda row_id, row: _pair(row_id, row, "trajectory"),
    # argilla/distilabel-math-preference-dpo: two rated answers
    "argilla_math": lambda row_id, row:
        _pair(row_id, row, "instruction", "chosen_response", "rejected_response", ("chosen_rating", "rejected_rating")),
    # argilla/distilabel-capybara-dpo-7k-binarized: two whole dialogues that differ in the last turn
    "capybara": lambda row_id, row: _pair(row_id, row, scores=("rating_chosen", "rating_rejected")),
    # LLaMA-Factory's sharegpt preference format
    "llama_factory_dpo": lambda row_id, row: _pair(row_id, row, "conversations", "chosen.value", "rejected.value"),
    # RLHFlow/RLHFlow-SFT-Dataset-ver2 and the like; `conversations` is the older name there
    "sft_messages": lambda row_id, row:
        Conversation(row_id, get_turns(row, "messages" if "messages" in row else "conversations")),
    # openai/gsm8k: a question and its worked answer
    "gsm8k": lambda row_id, row:
        Conversation(row_id, [*get_prompt(row, "question"), {"role": "assistant", "content": get(row, "answer")}]),
    # RLHFlow/prompt-collection-v0.1 and the iterative-prompt sets
    "prompt_collection": lambda row_id, row: Prompt(row_id, get_turns(row, "context_messages")),
    # Prompts as one string: `instruction` (AlpacaEval) or `prompt`
    "instructions": lambda row_id, row:
        Prompt(row_id, get_prompt(row, "instruction" if "instruction" in row else "prompt")),
    # Documents for a base model
    "text": lambda row_id, row: Text(row_id, get(row, "text", str)),
}  # fmt: skip
# Schemas in which several native rows belong together: they are joined before conversion.
JOINED = {"helpsteer": group_helpsteer, "xstest": join_xstest}


# --- reading a source ---------------------------------------------------------------------------------------------


def native_rows(source: SourceSettings, root: Root) -> Iterator[tuple[str, Row]]:
    """Native rows with their ids, joined where the schema spreads one example over several, or SourceError."""
    if source.schema_name not in CONVERTERS:
        known = ", ".join(CONVERTERS)
        raise SourceError(f"source {source.name!r}: unknown schema {source.schema_name!r}; known: {known}")
    rows = load_rows(source, root)
    try:
        yield from JOINED[source.schema_name](rows) if source.schema_name in JOINED else rows
    except FieldError as error:
        raise SourceError(f"source {source.name!r}, schema {source.schema_name}: {error}") from error


def convert(source: SourceSettings, row_id: str, row: Row, strategy: PairStrategy = "all_pairs") -> list[Record]:
    """Records of one native row; `strategy` says which pairs several scored answers give (`make_pairs`).

    SourceError where a field is missing or unreadable; the message names source, row and field.
    """
    try:
        found = CONVERTERS[source.schema_name](row_id, row)
    except FieldError as error:
        raise SourceError(f"source {source.name!r}, schema {source.schema_name}, row {row_id}: {error}") from error
    if isinstance(found, ScoredResponses):
        return [*make_pairs(found, strategy)]
    return found if isinstance(found, list) else [found]


def read(source: SourceSettings, root: Root, kind: type[R]) -> Iterator[R]:
    """All records of a source, in file order, as records of one kind.

    A pair also gives a prompt and a conversation (with the chosen answer), a conversation also a prompt (all turns but
    the last) and a text. Candidates are unfiltered: those whose `evidence` is ``no_pair`` hold empty answers.
    SourceError where the source cannot be read, or its records give none of that kind.
    """
    for row_id, row in native_rows(source, root):
        for record in convert(source, row_id, row):
            found = _in_other_words(record, kind)
            if not isinstance(found, kind):
                raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no {KINDS[kind]}")
            yield found


def _in_other_words(record: Record, kind: type) -> Record:
    if kind is Conversation and isinstance(record, Candidate):
        return Conversation(record.row_id, [*record.prompt, {"role": "assistant", "content": record.chosen}])
    if kind is Prompt and isinstance(record, (Candidate, Conversation)):
        return Prompt(record.row_id, record.prompt if isinstance(record, Candidate) else record.messages[:-1])
    if kind is Text and isinstance(record, Conversation):
        return Text(record.row_id, "\n".join(message["content"] for message in record.messages))
    return record


def load_texts(sources: Iterable[SourceSettings], root: Root) -> list[str]:
    """All documents of several sources, in memory."""
    return [record.text for source in sources for record in read(source, root, Text)]
