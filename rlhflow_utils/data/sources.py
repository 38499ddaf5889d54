"""Converters from each source's native schema to records; what is kept is decided by `filters`.

To add a preference source, write one function in `preferences.py`, add it to `_CONVERTERS` below, and name the source
in a profile. For example, one answer a row pair with ratings from 1 to 5 (the higher rating is chosen, equal ratings
are dropped as ``tie``)::

    def my_ratings(row_id: str, row: Row) -> ScoredResponses:
        answers = [get(row, "answer_a"), get(row, "answer_b")]
        scores = [number(get(row, "rating_a")), number(get(row, "rating_b"))]
        return ScoredResponses(row_id, user_turn(get(row, "question")), answers, scores)

and in the profile, under ``data``: ``preference_sources: - {name: Mine, schema: my_ratings, files: [mine.jsonl]}``
(`hub_id` instead of `files` for the hub), the name in a mixture, and, where wanted, the smallest gap between ratings
that counts: ``filters.min_score_margin: {Mine: 1.0}``. `get` names a missing field; texts are passed on unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rlhflow_utils.data import preferences
from rlhflow_utils.data.preferences import PairStrategy, make_pairs
from rlhflow_utils.data.reading import (
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
    get_turns,
    load_rows,
    user_turn,
)
from rlhflow_utils.guide.settings import SourceSettings

Record = Candidate | Conversation | Prompt | Text
R = TypeVar("R", Candidate, Conversation, Prompt, Text)
KINDS = {Candidate: "preference pairs", Conversation: "conversations", Prompt: "prompts", Text: "texts"}
LLMBAR_SUBSETS = {
    "natural": "llmbar-natural",
    "adversarial_neighbor": "llmbar-adver-neighbor",
    "adversarial_gptinst": "llmbar-adver-GPTInst",
    "adversarial_gptout": "llmbar-adver-GPTOut",
    "adversarial_manual": "llmbar-adver-manual",
}
FULL_COMPLIANCE, FULL_REFUSAL = "1_full_compliance", "2_full_refusal"


def reward_bench(row_id: str, row: Row) -> Candidate:
    """allenai/reward-bench: ``extra`` carries the subset and the benchmark's id."""
    extra = {"subset": get(row, "subset", str), "id": get(row, "id")}
    return Candidate(row_id, user_turn(get(row, "prompt")), get(row, "chosen"), get(row, "rejected"), extra=extra)


def llmbar(row_id: str, row: Row) -> Candidate:
    """princeton-nlp/LLMBar: ``label`` names the better output; the subset is the file's name."""
    winner = get_label(row, "label", (1, 2))
    stem = row_id.rpartition(":")[0]
    texts = get(row, f"output_{winner}"), get(row, f"output_{3 - winner}")
    return Candidate(row_id, user_turn(get(row, "input")), *texts, extra={"subset": LLMBAR_SUBSETS.get(stem, stem)})


def humanevalpack(row_id: str, row: Row) -> Candidate:
    """bigcode/humanevalpack: the canonical solution against the buggy one; the subset is the file's name (language)."""
    prompt = get(row, "prompt", str)
    texts = get(row, "canonical_solution", str), get(row, "buggy_solution", str)
    chosen, rejected = (f"{prompt}{text}" for text in texts)  # RewardBench's answers repeat the declaration
    extra = {"subset": f"hep-{row_id.rpartition(':')[0]}", "id": get(row, "task_id")}
    return Candidate(row_id, user_turn(get(row, "instruction")), chosen, rejected, extra=extra)


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
    prompt = user_turn(get(answers[0], "prompt"))
    by_label = {get(a, "final_label", str): get(a, "completion") for a in answers}
    safe = get(row, "label") == "safe"
    extra = {"subset": "xstest-should-respond" if safe else "xstest-should-refuse", "id": row_id}
    if FULL_COMPLIANCE not in by_label or FULL_REFUSAL not in by_label:
        return Candidate(row_id, prompt, "", "", evidence="no_pair", extra=extra)
    comply, refuse = by_label[FULL_COMPLIANCE], by_label[FULL_REFUSAL]
    return Candidate(row_id, prompt, *((comply, refuse) if safe else (refuse, comply)), extra=extra)


def llama_factory_kto(row_id: str, row: Row) -> Conversation:
    """LLaMA-Factory's unpaired labels: a conversation labelled true is one to imitate, the others are counted out."""
    good = get_label(row, "label", (True, False))
    return Conversation(row_id, get_turns(row, "messages"), evidence=None if good else "labelled_bad")


def exact_match(row_id: str, row: Row) -> Prompt:
    """A prompt and its one right answer."""
    answer = get(row, "answer", str)
    if not answer.strip():
        raise FieldError("field 'answer' is empty; an exact-match row needs its answer")
    prompt = get(row, "prompt")
    return Prompt(row_id, get_turns(row, "prompt") if isinstance(prompt, list) else user_turn(prompt), answer)


# Each gives the record of a native row, or a list of them.
Converter = Callable[[str, Row], Any]
_CONVERTERS: tuple[Converter, ...] = (
    preferences.hh_rlhf, preferences.shp, preferences.helpsteer, preferences.pku_safe_rlhf, preferences.ultrafeedback,
    preferences.ultrafeedback_binarized, preferences.ultrainteract, preferences.code_ultrafeedback,
    preferences.argilla_math, preferences.orca, preferences.capybara, preferences.summarize_from_feedback,
    preferences.nectar, preferences.rlhflow_standard, preferences.llama_factory_dpo, preferences.pandalm,
    preferences.fine_grained_rlhf, reward_bench, llmbar, humanevalpack, xstest, llama_factory_kto, exact_match,
)  # fmt: skip
CONVERTERS: dict[str, Converter] = {
    **{each.__name__: each for each in _CONVERTERS},
    # RLHFlow/RLHFlow-SFT-Dataset-ver2 and the like; `conversations` is the older name there
    "sft_messages": lambda row_id, row: Conversation(
        row_id, get_turns(row, "messages" if "messages" in row else "conversations")
    ),
    # openai/gsm8k: a question and its worked answer
    "gsm8k": lambda row_id, row: Conversation(
        row_id, [*user_turn(get(row, "question")), {"role": "assistant", "content": get(row, "answer")}]
    ),
    # RLHFlow/prompt-collection-v0.1 and the iterative-prompt sets
    "prompt_collection": lambda row_id, row: Prompt(row_id, get_turns(row, "context_messages")),
    # Prompts as one string: `instruction` (AlpacaEval) or `prompt`
    "instructions": lambda row_id, row: Prompt(
        row_id, user_turn(get(row, "instruction" if "instruction" in row else "prompt"))
    ),
    # Documents for a base model
    "text": lambda row_id, row: Text(row_id, get(row, "text", str)),
}
# Schemas in which several native rows belong together: they are joined before conversion.
JOINED = {"helpsteer": preferences.group_helpsteer, "xstest": join_xstest}


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
            found = record if isinstance(record, kind) else _in_other_words(record, kind)
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


def read_candidates(source: SourceSettings, root: Root) -> Iterator[Candidate]:
    """Pairs of a source, unfiltered."""
    return read(source, root, Candidate)


def read_prompts(source: SourceSettings, root: Root) -> Iterator[Prompt]:
    """Prompts of a source."""
    return read(source, root, Prompt)


def load_texts(sources: Iterable[SourceSettings], root: Root) -> list[str]:
    """All documents of several sources, in memory."""
    return [record.text for source in sources for record in read(source, root, Text)]
