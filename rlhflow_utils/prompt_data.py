"""Prompts, evaluation prompts and SFT rows: from their own sources, and from preference pairs set aside for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.chat import Message, prompt_key
from rlhflow_utils.decontamination import HeldOut
from rlhflow_utils.filters import conversation_failure, opening_key, prompt_failure
from rlhflow_utils.funnel import Funnel
from rlhflow_utils.pair_table import ArrowSink, messages_type
from rlhflow_utils.sources import read_conversations, read_prompts
from rlhflow_utils.sources.records import Conversation, Prompt

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from rlhflow_utils.settings import SourceSettings

Row = Mapping[str, Any]


@dataclass
class PromptTable:
    """Distinct prompts on disk; `openings`, `sources` and `row_ids` have one entry per row of the file."""

    path: Path
    openings: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    row_ids: list[str] = field(default_factory=list)

    def load(self) -> Dataset:
        """Rows ``prompt_id, prompt, source``, memory-mapped."""
        import datasets

        return datasets.Dataset.from_file(str(self.path))


def prompt_schema() -> pa.Schema:
    """Arrow schema of a prompt row; `prompt_id` is `chat.prompt_key`."""
    import pyarrow as pa

    return pa.schema({"prompt_id": pa.string(), "prompt": messages_type(), "source": pa.string()})


def sft_schema() -> pa.Schema:
    """Arrow schema of an SFT row."""
    import pyarrow as pa

    return pa.schema({"messages": messages_type(), "source": pa.string(), "row_id": pa.string()})


def prompts_of_sources(sources: Iterable[SourceSettings], root: Path | None) -> Iterator[tuple[str, Prompt]]:
    """(source name, prompt) of every prompt of several sources."""
    for source in sources:
        for prompt in read_prompts(source, root):
            yield source.name, prompt


def prompts_of_pairs(rows: Iterable[Row]) -> Iterator[tuple[str, Prompt]]:
    """(source name, prompt) of standard preference rows."""
    for row in rows:
        yield row["source"], Prompt(row["row_id"], row["prompt"])


def write_prompts(prompts: Iterable[tuple[str, Prompt]], path: Path, funnel: Funnel) -> PromptTable:
    """Write the distinct, well-formed prompts to an Arrow file.

    Dropped: the structural reasons of `filters`, and ``repeated_prompt``. What is kept is not yet counted as such.
    """
    table, seen = PromptTable(path), set[str]()
    with ArrowSink(path, prompt_schema()) as sink:
        for source, record in prompts:
            funnel.enter(source)
            reason = prompt_failure(record.prompt)
            key = "" if reason else prompt_key(record.prompt)
            if reason is None and key in seen:
                reason = "repeated_prompt"
            if reason is not None:
                funnel.drop(source, record.row_id, reason)
                continue
            seen.add(key)
            sink.add({"prompt_id": key, "prompt": record.prompt, "source": source})
            table.openings.append(opening_key(record.prompt))
            table.sources.append(source)
            table.row_ids.append(record.row_id)
    return table


def seeded_order(keys: Sequence[str], seed: int) -> list[int]:
    """Positions of keys in an order that depends on the seed and the keys alone, not on their number or order."""
    return sorted(range(len(keys)), key=lambda i: (hashlib.sha256(f"{seed}:{keys[i]}".encode()).digest(), i))


def choose_evaluation(table: PromptTable, count: int, seed: int) -> list[int]:
    """Positions of at most `count` prompts, drawn by the seed, ascending."""
    return sorted(seeded_order(table.openings, seed)[:count])


def keep_chosen(table: PromptTable, chosen: Iterable[int], funnel: Funnel) -> None:
    """Count a table of evaluation prompts: those not chosen are dropped as ``subsample``."""
    kept = set(chosen)
    for i, source in enumerate(table.sources):
        if i in kept:
            funnel.keep(source)
        else:
            funnel.drop(source, table.row_ids[i], "subsample")


def drop_overlap(table: PromptTable, moved: Iterable[int], held_out: HeldOut, funnel: Funnel) -> list[int]:
    """Positions of the prompts for generation.

    Args:
        table: all prompts.
        moved: positions that became evaluation prompts; they leave as ``used_for_evaluation``.
        held_out: the evaluation prompts; what repeats one of them leaves under the reason it gives.
        funnel: counts the rows of this table.
    """
    taken, kept = set(moved), []
    for i, row in enumerate(table.load()):
        source, row_id = table.sources[i], table.row_ids[i]
        reason = "used_for_evaluation" if i in taken else held_out.reason("prompts", source, row_id, row["prompt"])
        if reason is None:
            funnel.keep(source)
            kept.append(i)
        else:
            funnel.drop(source, row_id, reason)
    return kept


def write_sft(
    sources: Iterable[SourceSettings],
    root: Path | None,
    pairs: Iterable[Row],
    held_out: HeldOut,
    path: Path,
    funnel: Funnel,
) -> Dataset:
    """Write SFT rows: the conversations of `sources`, then the chosen answers of `pairs`.

    Dropped: the structural reasons of `filters`; those of `held_out` for conversations that repeat an evaluation
    prompt; ``repeated_answer`` for chosen answers that several pairs of a prompt share (rows of `sources` are taken as
    often as they occur).
    """
    import datasets

    seen: set[tuple[str, str]] = set()
    with ArrowSink(path, sft_schema()) as sink:
        for name, record, from_pair in _conversations(sources, root, pairs):
            funnel.enter(name)
            reason = conversation_failure(record)
            if reason is None:
                reason = held_out.reason("sft", name, record.row_id, record.messages[:-1])
            if reason is None and from_pair:
                identity = (prompt_key(record.messages[:-1]), record.messages[-1]["content"])
                reason = "repeated_answer" if identity in seen else None
                seen.add(identity)
            if reason is not None:
                funnel.drop(name, record.row_id, reason)
                continue
            funnel.keep(name)
            sink.add({"messages": record.messages, "source": name, "row_id": record.row_id})
    return datasets.Dataset.from_file(str(path))


def _conversations(
    sources: Iterable[SourceSettings], root: Path | None, pairs: Iterable[Row]
) -> Iterator[tuple[str, Conversation, bool]]:
    for source in sources:
        for record in read_conversations(source, root):
            yield source.name, record, False
    for row in pairs:
        messages: list[Message] = [*row["prompt"], *row["chosen"]]
        yield row["source"], Conversation(row["row_id"], messages), True
