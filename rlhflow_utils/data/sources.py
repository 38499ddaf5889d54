"""Converters from each source's native schema to records; what is kept is decided by `filters`.

`CONVERTERS` is the list of known schemas. To add one, write a function ``(row id, native row) -> records`` in the
module of its family and name it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.data import preferences as kwise
from rlhflow_utils.data import preferences as pairwise
from rlhflow_utils.data import preferences as transcripts
from rlhflow_utils.data.preferences import PairStrategy, make_pairs
from rlhflow_utils.data.reading import (
    Candidate,
    Conversation,
    FieldError,
    Prompt,
    Record,
    Row,
    Scored,
    SourceError,
    Text,
    get,
    get_list,
    get_messages,
    get_one_of,
    get_text,
    load_rows,
    user_turn,
)
from rlhflow_utils.models.chat import Message

if TYPE_CHECKING:
    from rlhflow_utils.guide.settings import SourceSettings

LLMBAR_SUBSETS = {
    "natural": "llmbar-natural",
    "adversarial_neighbor": "llmbar-adver-neighbor",
    "adversarial_gptinst": "llmbar-adver-GPTInst",
    "adversarial_gptout": "llmbar-adver-GPTOut",
    "adversarial_manual": "llmbar-adver-manual",
}
FULL_COMPLIANCE, FULL_REFUSAL = "1_full_compliance", "2_full_refusal"


def reward_bench(row_id: str, row: Row) -> list[Candidate]:
    """allenai/reward-bench: ``extra`` carries the subset and the benchmark's id."""
    extra = {"subset": get_text(row, "subset"), "id": get(row, "id")}
    return [Candidate(row_id, user_turn(get(row, "prompt")), get(row, "chosen"), get(row, "rejected"), extra=extra)]


def llmbar(row_id: str, row: Row) -> list[Candidate]:
    """princeton-nlp/LLMBar: ``label`` names the better output; the subset is the file's name."""
    winner = get_one_of(row, "label", (1, 2))
    stem = row_id.rpartition(":")[0]
    texts = get(row, f"output_{winner}"), get(row, f"output_{3 - winner}")
    return [Candidate(row_id, user_turn(get(row, "input")), *texts, extra={"subset": LLMBAR_SUBSETS.get(stem, stem)})]


def humanevalpack(row_id: str, row: Row) -> list[Candidate]:
    """bigcode/humanevalpack: the canonical solution against the buggy one; the subset is the file's name (language)."""
    prompt = get_text(row, "prompt")
    texts = get_text(row, "canonical_solution"), get_text(row, "buggy_solution")
    chosen, rejected = (f"{prompt}{text}" for text in texts)  # RewardBench's answers repeat the declaration
    extra = {"subset": f"hep-{row_id.rpartition(':')[0]}", "id": get(row, "task_id")}
    return [Candidate(row_id, user_turn(get(row, "instruction")), chosen, rejected, extra=extra)]


def join_xstest(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Join XSTest's prompts with the completions of two models, by id (``1`` in one file is ``v2-1`` in the others).

    The prompt text is the completions' own: the one with id 195 differs between the files.
    """
    labels: dict[str, str] = {}
    completions: dict[str, list[Row]] = {}
    for _, row in rows:
        key = get_text(row, "id").removeprefix("v2-")
        if "completion" in row:
            completions.setdefault(key, []).append(row)
        else:
            labels[key] = get_one_of(row, "label", ("safe", "unsafe"))
    for key, answers in completions.items():
        if key not in labels:
            raise FieldError(f"id {key!r} of the completions is not in the prompts file; name both kinds in `files`")
        yield f"xstest:{key}", {"label": labels[key], "answers": answers}


def xstest(row_id: str, row: Row) -> list[Candidate]:
    """XSTest, joined: a full compliance against a full refusal, whichever model gave it; others are no pair.

    A safe prompt should be answered (subset xstest-should-respond), an unsafe one refused (xstest-should-refuse).
    """
    answers = get_list(row, "answers")
    if not answers:
        raise FieldError("field 'answers' is empty; `join_xstest` makes these rows")
    prompt = user_turn(get(answers[0], "prompt"))
    by_label = {get_text(a, "final_label"): get(a, "completion") for a in answers}
    safe = get(row, "label") == "safe"
    extra = {"subset": "xstest-should-respond" if safe else "xstest-should-refuse", "id": row_id}
    if FULL_COMPLIANCE not in by_label or FULL_REFUSAL not in by_label:
        return [Candidate(row_id, prompt, "", "", evidence="no_pair", extra=extra)]
    comply, refuse = by_label[FULL_COMPLIANCE], by_label[FULL_REFUSAL]
    return [Candidate(row_id, prompt, *((comply, refuse) if safe else (refuse, comply)), extra=extra)]


def sft_messages(row_id: str, row: Row) -> list[Conversation]:
    """RLHFlow/RLHFlow-SFT-Dataset-ver2 and the like: ``messages``; ``conversations`` is the older name there."""
    return [Conversation(row_id, get_messages(row, "messages" if "messages" in row else "conversations"))]


def llama_factory_kto(row_id: str, row: Row) -> list[Conversation]:
    """LLaMA-Factory's unpaired labels: a conversation labelled true is one to imitate, the others are counted out."""
    good = get_one_of(row, "label", (True, False))
    return [Conversation(row_id, get_messages(row, "messages"), evidence=None if good else "labelled_bad")]


def gsm8k(row_id: str, row: Row) -> list[Conversation]:
    """openai/gsm8k: a question and its worked answer."""
    question = user_turn(get(row, "question"))
    return [Conversation(row_id, [*question, {"role": "assistant", "content": get(row, "answer")}])]


def prompt_collection(row_id: str, row: Row) -> list[Prompt]:
    """RLHFlow/prompt-collection-v0.1 and the iterative-prompt sets: ``context_messages``."""
    return [Prompt(row_id, get_messages(row, "context_messages"))]


def instructions(row_id: str, row: Row) -> list[Prompt]:
    """Prompts as one string: ``instruction`` (AlpacaEval) or ``prompt``."""
    return [Prompt(row_id, user_turn(get(row, "instruction" if "instruction" in row else "prompt")))]


def exact_match(row_id: str, row: Row) -> list[Prompt]:
    """A prompt and its one right answer."""
    answer = get_text(row, "answer")
    if not answer.strip():
        raise FieldError("field 'answer' is empty; an exact-match row needs its answer")
    prompt = get(row, "prompt")
    return [Prompt(row_id, get_messages(row, "prompt") if isinstance(prompt, list) else user_turn(prompt), answer)]


def text(row_id: str, row: Row) -> list[Text]:
    """Documents: ``text``."""
    return [Text(row_id, get_text(row, "text"))]


__all__ = [
    "CONVERTERS", "Candidate", "Conversation", "PairStrategy", "Prompt", "SourceError", "Text", "as_conversation",
    "as_prompt", "convert", "load_rows", "load_texts", "native_rows", "read_candidates", "read_conversations",
    "read_prompts", "read_texts",
]  # fmt: skip

Converter = Callable[[str, Row], list[Any]]

CONVERTERS: dict[str, Converter] = {
    # pairs
    "hh_rlhf": transcripts.hh_rlhf,
    "shp": pairwise.shp,
    "helpsteer": kwise.helpsteer,
    "pku_safe_rlhf": pairwise.pku_safe_rlhf,
    "ultrafeedback": kwise.ultrafeedback,
    "ultrafeedback_binarized": pairwise.ultrafeedback_binarized,
    "ultrainteract": pairwise.ultrainteract,
    "code_ultrafeedback": kwise.code_ultrafeedback,
    "argilla_math": pairwise.argilla_math,
    "orca": pairwise.orca,
    "capybara": pairwise.capybara,
    "summarize_from_feedback": pairwise.summarize_from_feedback,
    "nectar": transcripts.nectar,
    "rlhflow_standard": pairwise.rlhflow_standard,
    "llama_factory_dpo": pairwise.llama_factory_dpo,
    "pandalm": pairwise.pandalm,
    "fine_grained_rlhf": kwise.fine_grained_rlhf,
    # pairs that evaluate reward models
    "reward_bench": reward_bench,
    "llmbar": llmbar,
    "humanevalpack": humanevalpack,
    "xstest": xstest,
    # conversations, prompts, texts
    "sft_messages": sft_messages,
    "llama_factory_kto": llama_factory_kto,
    "gsm8k": gsm8k,
    "prompt_collection": prompt_collection,
    "instructions": instructions,
    "exact_match": exact_match,
    "text": text,
}

# Schemas in which several native rows belong together: they are joined before conversion.
JOINED: dict[str, Callable[[Iterator[tuple[str, Row]]], Iterator[tuple[str, Row]]]] = {
    "helpsteer": kwise.group_helpsteer,
    "xstest": join_xstest,
}


def native_rows(source: SourceSettings, root: Path | None) -> Iterator[tuple[str, Row]]:
    """Native rows with their ids, joined where the schema spreads one example over several.

    Raises:
        SourceError: the source cannot be read, or its schema is unknown.
    """
    if source.schema_name not in CONVERTERS:
        known = ", ".join(CONVERTERS)
        raise SourceError(f"source {source.name!r}: unknown schema {source.schema_name!r}; known: {known}")
    rows = load_rows(source, root)
    join = JOINED.get(source.schema_name)
    if join is None:
        yield from rows
        return
    try:
        yield from join(rows)
    except FieldError as error:
        raise SourceError(f"source {source.name!r}, schema {source.schema_name}: {error}") from error


def convert(
    source: SourceSettings, row_id: str, row: Row, strategy: PairStrategy = "all_pairs"
) -> list[Candidate | Conversation | Prompt | Text]:
    """Records of one native row.

    Args:
        source: names the schema.
        row_id: id of the row, from `native_rows`.
        row: the native row.
        strategy: which pairs are made where the row scores several answers (`kwise.make_pairs`).

    Raises:
        SourceError: a field is missing or unreadable; the message names source, row and field.
    """
    try:
        records: list[Record] = CONVERTERS[source.schema_name](row_id, row)
        return [
            pair
            for record in records
            for pair in (make_pairs(record, strategy) if isinstance(record, Scored) else [record])
        ]
    except FieldError as error:
        raise SourceError(f"source {source.name!r}, schema {source.schema_name}, row {row_id}: {error}") from error


def read_records(source: SourceSettings, root: Path | None) -> Iterator[Candidate | Conversation | Prompt | Text]:
    """All records of a source, in file order."""
    for row_id, row in native_rows(source, root):
        yield from convert(source, row_id, row)


def read_candidates(source: SourceSettings, root: Path | None) -> Iterator[Candidate]:
    """Pairs of a source, unfiltered (those whose `evidence` is ``no_pair`` hold empty answers)."""
    for record in read_records(source, root):
        if not isinstance(record, Candidate):
            raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no preference pairs")
        yield record


def read_conversations(source: SourceSettings, root: Path | None) -> Iterator[Conversation]:
    """Conversations to imitate; of a preference source, the prompts with their chosen answers."""
    for record in read_records(source, root):
        if not isinstance(record, (Candidate, Conversation)):
            raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no conversations")
        yield as_conversation(record)


def read_prompts(source: SourceSettings, root: Path | None) -> Iterator[Prompt]:
    """Prompts; of a conversation, all turns before the last; of a pair, its prompt."""
    for record in read_records(source, root):
        if isinstance(record, Text):
            raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no prompts")
        yield as_prompt(record)


def read_texts(source: SourceSettings, root: Path | None) -> Iterator[Text]:
    """Documents; of a conversation, its turns one below the other."""
    for record in read_records(source, root):
        if isinstance(record, Text):
            yield record
        elif isinstance(record, Conversation):
            yield Text(record.row_id, "\n".join(message["content"] for message in record.messages))
        else:
            raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no texts")


def load_texts(sources: Iterable[SourceSettings], root: Path | None) -> list[str]:
    """All documents of several sources, in order, in memory."""
    return [record.text for source in sources for record in read_texts(source, root)]


def as_conversation(record: Candidate | Conversation) -> Conversation:
    """A pair as the conversation that ends in its chosen answer."""
    if isinstance(record, Conversation):
        return record
    answer: Message = {"role": "assistant", "content": record.chosen}
    return Conversation(record.row_id, [*record.prompt, answer])


def as_prompt(record: Candidate | Conversation | Prompt) -> Prompt:
    """The prompt of any record that has one."""
    if isinstance(record, Prompt):
        return record
    turns = record.prompt if isinstance(record, Candidate) else record.messages[:-1]
    return Prompt(record.row_id, turns)
