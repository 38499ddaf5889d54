"""Chapter 01: native rows become preference pairs, split by prompt and mixed; SFT rows and prompts beside them.

The paper's mixtures are built from filtered sources (2.1). Added here, and stated nowhere in the paper: held-out pairs,
and that no prompt crosses from one split into another. A pair's split is a hash of its first user turn, so that it is
the same in every run, for every seed, and for every source in which the prompt occurs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhflow_utils.data.filters import (
    HeldOut,
    PairMemory,
    conversation_failure,
    first_failure,
    is_too_long,
    opening_key,
    pair_hashes,
    prompt_failure,
)
from rlhflow_utils.data.overview import (
    SourceLengths,
    TokenLength,
    measure,
    prompt_map,
    table1_of,
    token_lengths,
    word_lengths,
)
from rlhflow_utils.data.reading import Candidate, Conversation, Prompt, SourceError
from rlhflow_utils.data.sources import convert, native_rows, read_conversations, read_prompts
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.models.chat import Message, load_tokenizer, prompt_key

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from rlhflow_utils.guide.settings import (
        DataSettings,
        FilterSettings,
        ModelSettings,
        PartitionSettings,
        SourceSettings,
    )
    from rlhflow_utils.guide.stage import Stage


@dataclass
class Funnel:
    """Rows in, dropped by reason, and out, per source.

    `enter` counts what was read; `drop` and `keep` count what became of it. `check` compares the two.
    """

    rows_in: Counter[str] = field(default_factory=Counter)
    rows_out: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    dropped_rows: list[tuple[str, str, str]] = field(default_factory=list)

    def enter(self, source: str, rows: int = 1) -> None:
        """Count rows read from a source."""
        self.rows_in[source] += rows

    def drop(self, source: str, row_id: str, reason: str) -> None:
        """Count one row out, and list it."""
        self.dropped.setdefault(source, Counter())[reason] += 1
        self.dropped_rows.append((source, row_id, reason))

    def keep(self, source: str, rows: int = 1) -> None:
        """Count rows kept."""
        self.rows_out[source] += rows

    def by_reason(self) -> dict[str, int]:
        """Rows dropped by reason, over all sources."""
        return dict(sum(self.dropped.values(), Counter()))

    def check(self) -> None:
        """Raise ValueError where a source's rows do not add up."""
        for source in {*self.rows_in, *self.rows_out, *self.dropped}:
            lost = sum(self.dropped.get(source, Counter()).values())
            if self.rows_in[source] != self.rows_out[source] + lost:
                raise ValueError(
                    f"funnel of {source}: {self.rows_in[source]} rows in, {self.rows_out[source]} out, {lost} dropped"
                )

    def to_json(self) -> dict[str, Any]:
        """``{source: {rows_in, dropped: {reason: rows}, rows_out}}``."""
        return {
            source: {
                "rows_in": count,
                "dropped": dict(sorted(self.dropped.get(source, Counter()).items())),
                "rows_out": self.rows_out[source],
            }
            for source, count in self.rows_in.items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], dropped_rows: Iterable[tuple[str, str, str]] = ()) -> Funnel:
        """The funnel that `to_json` wrote; the list of dropped rows is kept apart from it."""
        return cls(
            rows_in=Counter({source: row["rows_in"] for source, row in content.items()}),
            rows_out=Counter({source: row["rows_out"] for source, row in content.items()}),
            dropped={source: Counter(row["dropped"]) for source, row in content.items()},
            dropped_rows=list(dropped_rows),
        )


CHUNK = 500  # native rows
EXCERPT = 200  # characters of an example


@dataclass(frozen=True)
class Measuring:
    """What lengths are counted with: a tokenizer's folder or id, or words where there is none.

    `name` is what a reader is told: no path of this machine.
    """

    tokenizer: str | None
    settings: ModelSettings | None = None
    name: str | None = None

    @property
    def unit(self) -> str:
        return "tokens" if self.tokenizer else "words"

    @cached_property
    def token_length(self) -> TokenLength:
        """The function from texts to lengths; the tokenizer is loaded once."""
        return token_lengths(load_tokenizer(self.tokenizer, self.settings)) if self.tokenizer else word_lengths


@dataclass(slots=True)
class Judged:
    """A candidate that the rules on one pair have seen. `reason` is None where it passed, and then the rest is set."""

    row_id: str
    reason: str | None
    pair: Candidate
    key: str = ""
    opening: str = ""
    hashes: tuple[int, int] = (0, 0)
    lengths: tuple[int, int, int] = (0, 0, 0)


@dataclass
class SourcePairs:
    """The kept pairs of one source: on disk, with what the splits need in memory (one entry per row of the file)."""

    name: str
    path: Path
    native_rows: int = 0
    row_ids: list[str] = field(default_factory=list)
    openings: list[str] = field(default_factory=list)
    chosen_is_longer: list[bool] = field(default_factory=list)
    lengths: SourceLengths = field(default_factory=SourceLengths)
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self) -> Dataset:
        """The standard rows, memory-mapped."""
        import datasets

        return datasets.Dataset.from_file(str(self.path))


class ArrowSink:
    """Streams rows to an Arrow file that `datasets.Dataset.from_file` maps."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._arrow, self._schema, self._rows = pa, schema, list[Mapping[str, Any]]()
        self._writer = pa.ipc.new_stream(str(path), schema)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._rows.append(row)
        if len(self._rows) >= 1000:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [_column([row[field.name] for row in self._rows], field.type) for field in self._schema]
            self._writer.write_batch(self._arrow.RecordBatch.from_arrays(columns, schema=self._schema))
            self._rows.clear()

    def __enter__(self) -> ArrowSink:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow column; lists of turns are laid out by hand, which is several times faster than Arrow's inference."""
    import pyarrow as pa

    if kind != messages_type():
        return pa.array(values, kind)
    offsets = list(itertools.accumulate((len(turns) for turns in values), initial=0))
    turns = [turn for value in values for turn in value]
    columns = [pa.array([turn[name] for turn in turns], pa.string()) for name in ("role", "content")]
    structs = pa.StructArray.from_arrays(columns, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)


def messages_type() -> pa.DataType:
    """Arrow type of a list of turns."""
    import pyarrow as pa

    return pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def pair_schema() -> pa.Schema:
    """Arrow schema of the standard preference row."""
    import pyarrow as pa

    turns = messages_type()
    return pa.schema({
        "prompt": turns, "chosen": turns, "rejected": turns, "chosen_score": pa.float64(),
        "rejected_score": pa.float64(), "source": pa.string(), "row_id": pa.string(),
    })  # fmt: skip


def standard_row(pair: Candidate, source: str) -> dict[str, Any]:
    """A kept pair in the standard preference format."""
    return {
        "prompt": pair.prompt,
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "source": source,
        "row_id": pair.row_id,
    }


def judge_rows(
    rows: Sequence[tuple[str, Row]], source: SourceSettings, settings: FilterSettings, token_length: TokenLength
) -> list[Judged]:
    """Convert native rows and apply every rule that looks at one pair alone.

    `max_tokens` is not enforced where lengths are counted in words.
    """
    strategy = settings.kwise_pairs.get(source.name, "all_pairs")
    records = (record for row_id, row in rows for record in convert(source, row_id, row, strategy))
    judged = [_judge(source, settings, record) for record in records]
    passed = [item for item in judged if item.reason is None]
    lengths = measure([(j.pair.prompt, j.pair.chosen, j.pair.rejected) for j in passed], token_length)
    for item, length in zip(passed, lengths, strict=True):
        item.lengths = length
        if token_length is not word_lengths and is_too_long(length, settings):
            item.reason = "too_long"
    return judged


def _judge(source: SourceSettings, settings: FilterSettings, record: Any) -> Judged:
    if not isinstance(record, Candidate):
        raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no preference pairs")
    reason = first_failure(record, settings, source.name)
    if reason is not None:
        return Judged(record.row_id, reason, record)
    key = prompt_key(record.prompt)
    opening = key if len(record.prompt) == 1 else opening_key(record.prompt)
    return Judged(record.row_id, None, record, key, opening, pair_hashes(key, record.chosen, record.rejected))


def filter_source(
    source: SourceSettings,
    root: Path | None,
    settings: FilterSettings,
    measuring: Measuring,
    path: Path,
    funnel: Funnel,
    workers: int = 1,
) -> SourcePairs:
    """Convert and filter one source.

    Args:
        source: the source, and `root` the folder of its local files (None: the hub).
        settings: numbers of the rules.
        measuring: tokenizer for lengths.
        path: Arrow file to write the kept pairs to, as standard rows.
        funnel: counts what is read and dropped; what is kept is counted by the caller, who may drop more.
        workers: processes that convert and judge.

    Raises:
        SourceError: the source cannot be read.
    """
    result = SourcePairs(source.name, path)
    memory = PairMemory(settings.max_pairs_per_prompt.get(source.name))
    with ArrowSink(path, pair_schema()) as sink:
        for item in _judged(source, root, settings, measuring, workers, result):
            funnel.enter(source.name)
            reason = item.reason or memory.failure(item.key, item.hashes)
            _remember_example(result, item, reason)
            if reason is not None:
                funnel.drop(source.name, item.row_id, reason)
                continue
            sink.add(standard_row(item.pair, source.name))
            _remember(result, item)
    return result


def _judged(
    source: SourceSettings,
    root: Path | None,
    settings: FilterSettings,
    measuring: Measuring,
    workers: int,
    result: SourcePairs,
) -> Iterator[Judged]:
    chunks = _chunks(native_rows(source, root), result)
    if workers == 1:
        for chunk in chunks:
            yield from judge_rows(chunk, source, settings, measuring.token_length)
        return
    setup = (source, settings, Measuring(measuring.tokenizer, measuring.settings))  # without the loaded tokenizer
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_set_up_worker, initargs=setup) as pool:
        waiting: deque[Future[list[Judged]]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(_judge_in_worker, chunk))
            if len(waiting) > 2 * workers:  # a bounded window: a pool's own map would read the whole source ahead
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


_WORKER: list[Any] = []  # of a worker process: source, settings and the loaded tokenizer


def _set_up_worker(source: SourceSettings, settings: FilterSettings, measuring: Measuring) -> None:
    _WORKER[:] = [source, settings, measuring.token_length]


def _judge_in_worker(rows: list[tuple[str, Row]]) -> list[Judged]:
    return judge_rows(rows, *_WORKER)


def _chunks(rows: Iterable[tuple[str, Row]], result: SourcePairs) -> Iterator[list[tuple[str, Row]]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        result.native_rows += len(chunk)
        yield chunk


def _remember(result: SourcePairs, item: Judged) -> None:
    longer = len(item.pair.chosen) > len(item.pair.rejected)
    result.row_ids.append(item.row_id)
    result.openings.append(item.opening)
    result.chosen_is_longer.append(longer)
    result.lengths.add(item.key, item.lengths, longer)


def _remember_example(result: SourcePairs, item: Judged, reason: str | None) -> None:
    """Keep the first pair of each fate, cut short, for the chapter to show."""
    if (fate := reason or "kept") not in result.examples:
        last = item.pair.prompt[-1]["content"] if item.pair.prompt else ""
        result.examples[fate] = {
            "row_id": item.row_id,
            **{name: _excerpt(text) for name, text in
               (("prompt", last), ("chosen", item.pair.chosen), ("rejected", item.pair.rejected))},
            "chosen_score": item.pair.chosen_score,
            "rejected_score": item.pair.rejected_score,
        }  # fmt: skip


def _excerpt(content: Any) -> str:
    # As JSON, so that an empty string, a zero-width space and the boolean true can be told apart.
    text = json.dumps(content)
    return text if len(text) <= EXCERPT else text[: EXCERPT - 2] + '…"'


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


MAP_PROMPTS = 1500  # points of the prompt map
PARTITIONS = ("test", "sft", "prompts", "judge", "train")
TRAINS = ("sft", "judge", "train")  # partitions whose texts enter a loss: evaluation prompts must not be among them


def partition_of(opening: str, shares: PartitionSettings) -> str:
    """Partition of a pair, from `filters.opening_key` of its prompt (16 hex digits, taken as a number in [0, 1))."""
    position = int(opening, 16) / 16 ** len(opening)
    edge = 0.0
    for name in PARTITIONS[:-1]:
        edge += float(getattr(shares, name))
        if position < edge:
            return name
    return "train"


@dataclass
class Splits:
    """Which pairs of each source go where: source name -> partition -> ascending positions in its file."""

    sources: list[SourcePairs]
    positions: dict[str, dict[str, list[int]]]

    def dataset(self, partition: str, names: Iterable[str] | None = None) -> Dataset:
        """Standard rows of one partition, over all sources or the named ones."""
        return _join(self.sources, {name: self.positions[name][partition] for name in names or self.positions})


def _join(sources: Sequence[SourcePairs], positions: dict[str, list[int]]) -> Dataset:
    import datasets

    parts = [source.load().select(positions[source.name]) for source in sources if source.name in positions]
    return datasets.concatenate_datasets(parts)


def split_pairs(sources: Sequence[SourcePairs], shares: PartitionSettings) -> Splits:
    """Assign every kept pair to a partition."""
    positions: dict[str, dict[str, list[int]]] = {}
    for source in sources:
        places: dict[str, list[int]] = {name: [] for name in PARTITIONS}
        for i, opening in enumerate(source.openings):
            places[partition_of(opening, shares)].append(i)
        positions[source.name] = places
    return Splits(list(sources), positions)


def decontaminate(splits: Splits, held_out: HeldOut, funnel: Funnel) -> None:
    """Take pairs that repeat an evaluation prompt out of what trains, and count every pair of `splits`."""
    for source in splits.sources:
        places = splits.positions[source.name]
        for name in PARTITIONS:
            if name in TRAINS:
                places[name] = keep_apart(source, places[name], held_out, funnel, "pairs")
            funnel.keep(source.name, len(places[name]))


def keep_apart(
    source: SourcePairs, positions: Sequence[int], held_out: HeldOut, funnel: Funnel, flow: str
) -> list[int]:
    """Those positions of a source whose prompts repeat no evaluation prompt; the others are dropped and counted."""
    if not positions:
        return []
    kept = []
    for i, row in zip(positions, source.load().select_columns("prompt").select(positions), strict=True):
        reason = held_out.reason(flow, source.name, source.row_ids[i], row["prompt"])
        if reason is None:
            kept.append(i)
        else:
            funnel.drop(source.name, source.row_ids[i], reason)
    return kept


def build_preference_data(stage: Stage) -> None:
    """Stage: everything that chapter 01 leaves for the others.

    Reads profile sections `data` and `model`; inputs `root` (folder of the source files; else `data.root`, else the
    hub) and `base` (a stage with `model/`, whose tokenizer measures lengths; else the one of `model.base`; else lengths
    are words and `max_tokens` is not enforced). Writes a Dataset per mixture, `test`, `judge` (where its share is above
    0), `sft`, `prompts`, `evaluation_prompts`, `nectar` (where there is an offline source), and `funnel.json`,
    `table1.json`, `decontamination.json`, `prompt_map.json`, `dropped.jsonl`, `examples.json`.

    Raises:
        ValueError: a source cannot be read, or a mixture or the prompts come out empty.
    """
    settings = stage.profile.data
    root = stage.inputs.get("root") or (Path(settings.root) if settings.root else None)
    work = stage.out / "work"
    shutil.rmtree(work, ignore_errors=True)  # this stage starts anew after a kill: it takes seconds to minutes
    work.mkdir(parents=True)
    flows = {name: Funnel() for name in ("pairs", "prompts", "evaluation_prompts", "sft", "nectar")}
    measuring = _measuring(stage)
    sources = _filter_all(settings, root, measuring, work, flows["pairs"])
    splits = split_pairs(sources, settings.partition)
    held_out = _write_prompt_sets(stage, settings, root, splits, work, flows)
    decontaminate(splits, held_out, flows["pairs"])
    for name in ("test", "judge"):
        if name == "test" or settings.partition.judge > 0:
            _save(stage, name, splits.dataset(name))
    sft = write_sft(settings.sft_sources, root, splits.dataset("sft"), held_out, work / "sft.arrow", flows["sft"])
    _save(stage, "sft", sft)
    mixtures = _write_mixtures(stage, settings, splits)
    _write_nectar(stage, measuring, root, work, held_out, flows["nectar"])
    write_json(stage.out / "decontamination.json", held_out.to_json())
    write_json(stage.out / "prompt_map.json", _prompt_map(splits, stage.seed))
    _report(stage, sources, splits, flows, mixtures, measuring)
    shutil.rmtree(work)


def _measuring(stage: Stage) -> Measuring:
    if "base" in stage.inputs:
        folder = stage.inputs["base"]
        path = str(folder / "model" if (folder / "model").is_dir() else folder)
        return Measuring(path, stage.profile.model, "this run's base model")
    return Measuring(stage.profile.model.base, stage.profile.model, stage.profile.model.base)


def _filter_all(
    settings: DataSettings, root: Path | None, measuring: Measuring, work: Path, funnel: Funnel
) -> list[SourcePairs]:
    found = []
    for number, source in enumerate(settings.preference_sources):
        path = work / f"pairs-{number}.arrow"
        found.append(filter_source(source, root, settings.filters, measuring, path, funnel, settings.workers))
        lost = sum(funnel.dropped.get(source.name, Counter()).values())
        print(f"{source.name}: {funnel.rows_in[source.name]} pairs, {lost} dropped", flush=True)
    return found


def _write_prompt_sets(
    stage: Stage, settings: DataSettings, root: Path | None, splits: Splits, work: Path, flows: dict[str, Funnel]
) -> HeldOut:
    """Write `prompts` and `evaluation_prompts`; return what is held out."""

    def all_prompts() -> Any:
        yield from prompts_of_sources(settings.prompt_sources, root)
        yield from prompts_of_pairs(splits.dataset("prompts"))

    table = write_prompts(all_prompts(), work / "prompts.arrow", flows["prompts"])
    evaluation, is_separate = table, bool(settings.evaluation_prompt_sources)
    if is_separate:
        held = prompts_of_sources(settings.evaluation_prompt_sources, root)
        evaluation = write_prompts(held, work / "evaluation.arrow", flows["evaluation_prompts"])
    chosen = choose_evaluation(evaluation, settings.evaluation_prompts, stage.seed)
    if is_separate:
        keep_chosen(evaluation, chosen, flows["evaluation_prompts"])
    held_out = _held_out(settings, root, evaluation, chosen)
    kept = drop_overlap(table, () if is_separate else chosen, held_out, flows["prompts"])
    _save_prompts(stage, "prompts", table, kept)
    _save_prompts(stage, "evaluation_prompts", evaluation, chosen)
    return held_out


def _held_out(settings: DataSettings, root: Path | None, evaluation: PromptTable, chosen: list[int]) -> HeldOut:
    """The run's evaluation prompts and the benchmarks of `data.decontamination.sources`."""
    held_out = HeldOut(settings.decontamination)
    if chosen:
        rows = evaluation.load().select(chosen)
        held_out.add((f"evaluation_prompts:{i}", row["prompt"]) for i, row in enumerate(rows))
    benchmarks = prompts_of_sources(settings.decontamination.sources, root)
    held_out.add((f"{name}:{prompt.row_id}", prompt.prompt) for name, prompt in benchmarks)
    return held_out


def _save_prompts(stage: Stage, name: str, table: PromptTable, positions: list[int]) -> None:
    if not positions:
        raise ValueError(
            f"{name} is empty: {len(table.openings)} prompts were read; raise data.partition.prompts, "
            "add prompt_sources, or lower data.evaluation_prompts"
        )
    _save(stage, name, table.load().select(positions))


def _write_mixtures(stage: Stage, settings: DataSettings, splits: Splits) -> dict[str, Any]:
    counts = {}
    for number, (mixture, members) in enumerate(settings.mixtures.items()):
        positions = {name: splits.positions[name]["train"] for name in members}
        total = sum(len(held) for held in positions.values())
        if settings.max_pairs_per_mixture is not None and total > settings.max_pairs_per_mixture:
            positions = subsample(positions, settings.max_pairs_per_mixture, stage.seed + number)
        kept = sum(len(held) for held in positions.values())
        if not kept:
            raise ValueError(f"mixture {mixture!r} is empty: no pair of {members} is left to train on; see funnel.json")
        dropped = {"subsample": total - kept} if total > kept else {}
        stage.account(f"mixture {mixture}", total, kept, dropped)
        _save(stage, mixture, _join(splits.sources, positions))
        by_source = {name: len(held) for name, held in positions.items()}
        counts[mixture] = {"rows_in": total, "dropped": dropped, "rows_out": kept, "sources": by_source}
        stage.metric(f"01.{mixture}.pairs", kept)
        stage.metric(f"01.{mixture}.length_agreement", _agreement(splits.sources, positions))
    return counts


def subsample(positions: dict[str, list[int]], count: int, seed: int) -> dict[str, list[int]]:
    """A uniform draw of `count` positions over all sources, ascending within each."""
    flat = [(name, i) for name, held in positions.items() for i in held]
    picked = np.random.default_rng(seed).choice(len(flat), size=count, replace=False)
    drawn: dict[str, list[int]] = {name: [] for name in positions}
    for index in sorted(picked):
        name, i = flat[index]
        drawn[name].append(i)
    return drawn


def _agreement(sources: Sequence[SourcePairs], positions: dict[str, list[int]]) -> float:
    longer = [s.chosen_is_longer[i] for s in sources if s.name in positions for i in positions[s.name]]
    return round(sum(longer) / len(longer), 4)


def _write_nectar(
    stage: Stage, measuring: Measuring, root: Path | None, work: Path, held_out: HeldOut, funnel: Funnel
) -> None:
    settings = stage.profile.data
    source = settings.offline_source
    if source is None:
        return
    path = work / "nectar.arrow"
    pairs = filter_source(source, root, settings.filters, measuring, path, funnel, settings.workers)
    kept = keep_apart(pairs, range(len(pairs.openings)), held_out, funnel, "nectar")
    funnel.keep(source.name, len(kept))
    _save(stage, "nectar", pairs.load().select(kept))


def _prompt_map(splits: Splits, seed: int) -> list[dict[str, Any]]:
    """Fig. 7 over at most `MAP_PROMPTS` prompts, as many from each source, each opening once."""
    prompts: list[tuple[str, str]] = []
    for source in splits.sources:
        held = list({source.openings[i]: i for i in reversed(splits.positions[source.name]["train"])}.values())
        drawn = sorted(seeded_order([source.row_ids[i] for i in held], seed)[: MAP_PROMPTS // len(splits.sources)])
        if drawn:
            rows = source.load().select_columns("prompt").select([held[i] for i in drawn])
            prompts += [(source.name, row["prompt"][-1]["content"]) for row in rows]
    try:
        return prompt_map(prompts, seed)
    except ValueError:
        return []  # a handful of hand-written prompts: nothing to draw


def _report(
    stage: Stage,
    sources: list[SourcePairs],
    splits: Splits,
    flows: dict[str, Funnel],
    mixtures: dict[str, Any],
    measuring: Measuring,
) -> None:
    """Check that every flow adds up, and write the counts."""
    for flow, funnel in flows.items():
        funnel.check()
        for name, row in funnel.to_json().items():
            stage.account(f"{flow} {name}", row["rows_in"], row["rows_out"], row["dropped"])
    pairs = flows["pairs"].to_json()
    for source in sources:
        places = splits.positions[source.name]
        pairs.setdefault(source.name, {"rows_in": 0, "dropped": {}, "rows_out": 0})
        pairs[source.name] |= {
            "native_rows": source.native_rows, "partitions": {name: len(held) for name, held in places.items()}
        }  # fmt: skip
    counts = {name: funnel.to_json() for name, funnel in flows.items()} | {"pairs": pairs, "mixtures": mixtures}
    write_json(stage.out / "funnel.json", counts)
    table = table1_of({s.name: s.lengths for s in sources}, measuring.unit, measuring.name)
    write_json(stage.out / "table1.json", table)
    write_json(stage.out / "examples.json", {source.name: source.examples for source in sources})
    _write_dropped(stage.out / "dropped.jsonl", flows)
    for flow, funnel in flows.items():
        prefix = "01" if flow == "pairs" else f"01.{flow}"
        stage.metric(f"{prefix}.rows_in", funnel.rows_in.total())
        stage.metric(f"{prefix}.rows_out", funnel.rows_out.total())
    for name in PARTITIONS:
        stage.metric(f"01.pairs.{name}", sum(len(places[name]) for places in splits.positions.values()))


def _write_dropped(path: Path, flows: dict[str, Funnel]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for flow, funnel in flows.items():
            for source, row_id, reason in funnel.dropped_rows:
                line = {"flow": flow, "source": source, "row_id": row_id, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def _save(stage: Stage, name: str, dataset: Dataset) -> None:
    folder = stage.out / name
    shutil.rmtree(folder, ignore_errors=True)
    dataset.save_to_disk(str(folder))
