"""Converting and filtering one source, in one pass, from native rows to an Arrow file.

Rows are streamed in chunks: a chunk is converted and judged by the rules that see one pair alone (in worker processes
where asked for), then the rules that remember other pairs are applied in order, and what is kept goes to disk. Memory
holds a few chunks and a few hashes per pair, however large the source.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.chat import load_tokenizer, prompt_key
from rlhflow_utils.filters import PairMemory, first_failure, is_too_long, opening_key, pair_hashes
from rlhflow_utils.funnel import Funnel
from rlhflow_utils.source_statistics import SourceLengths, TokenLength, measure, token_lengths, word_lengths
from rlhflow_utils.sources import SourceError, convert, native_rows
from rlhflow_utils.sources.records import Candidate, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from rlhflow_utils.settings import FilterSettings, ModelSettings, SourceSettings

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
