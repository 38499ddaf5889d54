"""Native rows, from local files or the hub, and the records that converters make of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from rlhflow_utils.guide.settings import SourceSettings
from rlhflow_utils.guide.stage import Artifact
from rlhflow_utils.models.chat import Message

LOG = logging.getLogger(__name__)
Row = dict[str, Any]
Root = Artifact | Path | None  # where local files lie: the simulated world, a folder, or None for the hub
# Names of the three roles, sharegpt's, Gemma's and OpenAI's among them. Turns of others (tools) are for the filters.
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
KNOWN_ROLES = set(ROLES.values())


class FieldError(ValueError):
    """A native row lacks a field, or the field cannot be read; `sources.convert` adds source and row."""


class SourceError(ValueError):
    """A source cannot be read; the message is one line with the source, the place and the fix."""


# --- records ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Candidate:
    """A preference pair before filtering."""

    row_id: str  # the native row's, with `#1v2` where the native row gives several pairs
    prompt: list[Message]  # context of the chosen answer
    chosen: Any  # a string (in some benchmarks a list); anything else is left as it is, for the filters to count
    rejected: Any
    chosen_score: float | None = None  # the native scores, where the schema has them
    rejected_score: float | None = None
    rejected_prompt: list[Message] | None = None  # context of the rejected answer, where the row states its own
    evidence: str | None = None  # the reason that the native labels give against the pair: `tie`, `no_label`, ...
    score_ratio: float | None = None  # higher score over lower (SHP)
    transcript: bool = False  # the turns were cut out of one string: a role tag inside a turn is a suspect cut
    subset: str | None = None  # of a benchmark


@dataclass(slots=True)
class ScoredResponses:
    """Several scored answers to one prompt; higher is better, None is a score that cannot be read."""

    row_id: str
    prompt: list[Message]
    answers: list[Any]
    scores: list[float | None]


@dataclass(slots=True)
class Conversation:
    """A dialogue to imitate, ending in an assistant turn; `evidence` is a native reason against it."""

    row_id: str
    messages: list[Message]
    evidence: str | None = None


@dataclass(slots=True)
class Prompt:
    """A prompt without an answer, or with the one right answer of an exact-match task."""

    row_id: str
    prompt: list[Message]
    answer: str | None = None


@dataclass(slots=True)
class Text:
    """A document for a base model."""

    row_id: str
    text: str


# --- fields -------------------------------------------------------------------------------------------------------


def get(row: Row, path: str, kind: type = object) -> Any:
    """The value at a dotted path (``info.post``, ``turns.0``), of a `kind` (null is an empty list), or FieldError."""
    node: Any = row
    for part in path.split("."):
        if isinstance(node, list):
            node = {str(place): item for place, item in enumerate(node)}
        if not isinstance(node, dict) or part not in node:
            there = sorted(node) if isinstance(node, dict) else type(node).__name__
            fix = "rename it, or change `schema` (docs/own_data.md)"
            raise FieldError(f"field {path!r} is missing (found: {there}); {fix}")
        node = node[part]
    if kind is list and node is None:
        return []
    if not isinstance(node, kind):
        raise FieldError(f"field {path!r} must be a {kind.__name__}, found {type(node).__name__}")
    return node


def get_label(row: Row, path: str, allowed: Sequence[Any]) -> Any:
    """A label that must be one of a few values (``True`` is not 1 here; None among them: it may be null)."""
    value = get(row, path)
    if not any(type(item) is type(value) and item == value for item in allowed):
        raise FieldError(f"field {path!r} must be one of {list(allowed)}, found {value!r}")
    return value


def user_turn(content: Any) -> list[Message]:
    """A single-turn prompt."""
    return [{"role": "user", "content": content}]


def system_turn(content: Any) -> list[Message]:
    """A system turn; none where it says nothing."""
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    return [] if is_empty else [{"role": "system", "content": content}]


def get_turns(row: Row, path: str) -> list[Message]:
    """A list of turns, ``role`` and ``content`` or sharegpt's ``from`` and ``value``.

    Roles get the names of `ROLES`; others stay as they are, as does content that is no text. Empty system turns go.
    """
    native = get(row, path, list)
    is_sharegpt = all(isinstance(turn, dict) and "from" in turn for turn in native)
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    have_roles = all(isinstance(turn, dict) and role_key in turn for turn in native)
    if native and not (have_roles and any(content_key in turn for turn in native)):
        raise FieldError(f"field {path!r} must hold turns with a role and a content, found {str(native)[:80]!r}")
    turns: list[Message] = []
    for turn in native:
        role, content = str(turn[role_key]), joined_parts(turn.get(content_key))
        role = ROLES.get(role, role)
        turns += system_turn(content) if role == "system" else [{"role": role, "content": content}]
    return turns


def joined_parts(content: Any) -> Any:
    """Content given as parts, ``{"type": "text", "text": ...}``, as one text, as chat templates write it."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text", "") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    is_text = texts and len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if is_text else content


def get_prompt(row: Row, path: str) -> list[Message]:
    """A prompt: a list of turns, or a single user turn."""
    return get_turns(row, path) if isinstance(get(row, path), list) else user_turn(get(row, path))


# --- files and the hub --------------------------------------------------------------------------------------------


def load_rows(source: SourceSettings, root: Root) -> Iterator[tuple[str, Row]]:
    """Native rows with their ids: ``<file stem>:<0-based position>``, on the hub ``<split>:<position>``.

    With a `root`, `source.files` are globs under it; without one they name files of the hub repository. SourceError
    where a file or the hub cannot be read.
    """
    folder = root.path if isinstance(root, Artifact) else root
    try:
        if folder is not None and source.files is not None:
            for name, path in _local_files(source.files, folder):
                yield from ((f"{name}:{index}", row) for index, row in enumerate(file_rows(path)))
        else:
            yield from _hub_rows(source)
    except SourceError as error:
        raise SourceError(f"source {source.name!r}: {error}") from error


def _local_files(patterns: list[str], folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise SourceError(f"data.root {folder} is not a folder; point it at the local files")
    paths: list[Path] = []
    for pattern in patterns:
        if not (found := sorted(folder.glob(pattern))):
            raise SourceError(f"no file {pattern!r} under {folder}; mend data.root or `files`")
        paths.extend(found)
    stems = [Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem for path in paths]
    # Two files of one name (train.jsonl in two folders) would share row ids: name the folder too.
    names = [
        stem if stems.count(stem) == 1 else path.relative_to(folder).as_posix()
        for path, stem in zip(paths, stems, strict=True)
    ]
    return list(zip(names, paths, strict=True))


def file_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a local file; `columns` are those of a CSV without header. SourceError: no rows, or not whole.

    Blank lines and byte order marks are skipped.
    """
    name = path.name.lower()
    reader = READERS.get(Path(name.removesuffix(".gz")).suffix)
    if reader is None:
        raise SourceError(f"{path.name} ends in none of {tuple(READERS)} (each also with .gz)")
    done = 0
    try:
        with cast("IO[bytes]", gzip.open(path) if name.endswith(".gz") else path.open("rb")) as stream:
            for row in _csv(stream, columns) if columns else reader(stream):
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object with fields, found {type(row).__name__}")
                yield row
                done += 1
    except Exception as error:  # gzip, json, csv and pyarrow have a dozen kinds for a broken file
        raise SourceError(f"{path.name} breaks after {done} rows: {one_line(error)}") from error
    if not done:
        raise SourceError(f"{path.name} holds no rows; fetch it again, or take it out of `files`")


def one_line(error: BaseException) -> str:
    """The start of an error's message, without line breaks."""
    return " ".join(str(error).split())[:200]


def _jsonl(stream: IO[bytes]) -> Iterator[Any]:
    # Bytes split at "\n" alone: str.splitlines would also cut at U+2028 and form feeds inside a text.
    for line in stream:
        text = line.decode("utf-8-sig")  # where files were put together, a mark opens later lines, too
        if text.strip():
            yield json.loads(text)


def _json(stream: IO[bytes]) -> Iterator[Any]:
    try:
        content = json.loads(stream.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        advice = "these are JSON lines, not one list: name the file .jsonl; " if error.msg == "Extra data" else ""
        raise ValueError(f"{advice}{error}") from error
    if not isinstance(content, list):
        raise ValueError(f"expected a list of rows, found {type(content).__name__}")
    yield from content


def _csv(stream: IO[bytes], columns: Sequence[str] | None = None) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    # Not pandas: it fills a line that lacks fields with empty ones.
    lines = _csv_lines(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
    for row in csv.DictReader(lines, columns, strict=True):
        if None in row or None in row.values():
            raise ValueError("a line has more or fewer fields than the header")
        yield row


def _csv_lines(stream: io.TextIOWrapper) -> Iterator[str]:
    # A last field that was cut short looks like a whole one; published files do lack the line break that would tell.
    for line in stream:
        if not line.endswith(("\n", "\r")):
            LOG.warning("%s ends without a line break: its last row may be cut short", Path(stream.name).name)
        yield line


def _parquet(stream: IO[bytes]) -> Iterator[Any]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1000):
        yield from batch.to_pylist()


READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _hub_rows(source: SourceSettings) -> Iterator[tuple[str, Row]]:
    import datasets

    if source.hub_id is None:
        raise SourceError("no hub_id and no local files: set data.root and `files`")
    if source.revision is None:
        LOG.warning("source %s: no revision of %s is pinned; the default branch is read", source.name, source.hub_id)
    split = source.split or "train"
    try:
        rows = datasets.load_dataset(
            source.hub_id, source.hub_config, data_files=source.files, revision=source.revision, split=split
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"cannot load {source.hub_id} from the hub ({one_line(error)}); go online (and log in where the set is "
            "gated), or set data.root to a folder with local copies and name them in `files`"
        ) from error
    yield from ((f"{split}:{index}", row) for index, row in enumerate(rows))


Parsed = TypeVar("Parsed")


def read_rows(path: Path, parse: Callable[[Any], Parsed], columns: Sequence[str] | None = None) -> list[Parsed]:
    """Every row of a benchmark's file. SourceError where a row lacks what `parse` takes from it by key and index."""
    parsed: list[Parsed] = []
    try:
        for row in file_rows(path, columns):
            parsed.append(parse(row))
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        problem = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(
            f"{path}: row {len(parsed) + 1} is not as the benchmark publishes it ({problem}); fetch the file again"
        ) from error
    return parsed
