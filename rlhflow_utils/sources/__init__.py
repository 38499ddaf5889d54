"""Converters from each source's native schema to records; what is kept is decided by `filters`.

`CONVERTERS` is the list of known schemas. To add one, write a function ``(row id, native row) -> records`` in the
module of its family and name it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.chat import Message
from rlhflow_utils.sources import benchmarks, dialogues, kwise, pairwise, transcripts
from rlhflow_utils.sources.kwise import PairStrategy, make_pairs
from rlhflow_utils.sources.reading import SourceError, load_rows
from rlhflow_utils.sources.records import Candidate, Conversation, FieldError, Prompt, Record, Row, Scored, Text

if TYPE_CHECKING:
    from rlhflow_utils.settings import SourceSettings

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
    "reward_bench": benchmarks.reward_bench,
    "llmbar": benchmarks.llmbar,
    "humanevalpack": benchmarks.humanevalpack,
    "xstest": benchmarks.xstest,
    # conversations, prompts, texts
    "sft_messages": dialogues.sft_messages,
    "llama_factory_kto": dialogues.llama_factory_kto,
    "gsm8k": dialogues.gsm8k,
    "prompt_collection": dialogues.prompt_collection,
    "instructions": dialogues.instructions,
    "exact_match": dialogues.exact_match,
    "text": dialogues.text,
}

# Schemas in which several native rows belong together: they are joined before conversion.
JOINED: dict[str, Callable[[Iterator[tuple[str, Row]]], Iterator[tuple[str, Row]]]] = {
    "helpsteer": kwise.group_helpsteer,
    "xstest": benchmarks.join_xstest,
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
