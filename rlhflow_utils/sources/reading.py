"""Native rows, from local files or the hub, with the ids by which every later count names them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rlhflow_utils.sources.records import Row

if TYPE_CHECKING:
    from rlhflow_utils.settings import SourceSettings

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# ValueError: JSON, UTF-8; RecursionError: JSON nested thousands deep; OverflowError: a date out of range.
BROKEN_FILE = (OSError, EOFError, zlib.error, ValueError, csv.Error, RecursionError, OverflowError)


class SourceError(ValueError):
    """A source cannot be read; the message is one line with the source, the place and the fix."""


def load_rows(source: SourceSettings, root: Path | None) -> Iterator[tuple[str, Row]]:
    """Native rows with their ids.

    Args:
        source: where the rows are. With a `root`, `source.files` are globs under it; without one, the hub is read
            (and `source.files`, where given, names files of the hub repository).
        root: folder of local files.

    Yields:
        (row id, native row). The id is ``<file stem>:<0-based position>``, on the hub ``<split>:<position>``.

    Raises:
        SourceError: a file or the hub cannot be read.
    """
    if root is not None and source.files is not None:
        for path, stem in _local_files(source, root):
            for index, row in enumerate(_file_rows(source, path)):
                yield f"{stem}:{index}", row
    elif source.hub_id is not None:
        yield from _hub_rows(source)
    else:
        raise SourceError(f"source {source.name!r} has no hub_id and no local files: set data.root and its `files`")


def _local_files(source: SourceSettings, root: Path) -> list[tuple[Path, str]]:
    if not root.is_dir():
        raise SourceError(f"source {source.name!r}: data.root {root} is not a folder; point it at the local files")
    paths: list[Path] = []
    for pattern in source.files or []:
        found = sorted(root.glob(pattern))
        if not found:
            raise SourceError(
                f"source {source.name!r}: no file {pattern!r} under {root}; set data.root or correct `files`"
            )
        paths.extend(found)
    stems = Counter(_stem(path) for path in paths)
    # Two files of one name (train.jsonl in two folders) would share row ids: name the folder too.
    return [(p, _stem(p) if stems[_stem(p)] == 1 else p.relative_to(root).as_posix()) for p in paths]


def _format(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).stem


def _file_rows(source: SourceSettings, path: Path) -> Iterator[Row]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(_format(path))
    if reader is None:
        raise SourceError(f"source {source.name!r}: {path.name} ends in none of {SUFFIXES} (each also with .gz)")
    done = 0
    try:
        with _open(path) as stream:
            for row in reader(stream):
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object with fields, found {type(row).__name__}")
                yield row
                done += 1
    except BROKEN_FILE as error:
        text = " ".join(str(error).split())[:200]
        raise SourceError(f"source {source.name!r}: {path.name} breaks after {done} rows: {text}") from error
    if not done:
        raise SourceError(
            f"source {source.name!r}: {path.name} holds no rows; fetch it again, or take it out of `files`"
        )


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))


def _jsonl(stream: IO[bytes]) -> Iterator[Any]:
    # Bytes split at "\n" alone: str.splitlines would also cut at U+2028 and form feeds inside a text.
    for number, line in enumerate(stream):
        text = line.decode("utf-8-sig" if number == 0 else "utf-8")
        if text.strip():
            yield json.loads(text)


def _json(stream: IO[bytes]) -> Iterator[Any]:
    content = json.loads(stream.read().decode("utf-8-sig"))
    if not isinstance(content, list):
        raise ValueError(f"expected a list of rows, found {type(content).__name__}")
    yield from content


def _csv(stream: IO[bytes]) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    for row in csv.DictReader(_csv_lines(io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")), strict=True):
        if None in row or None in row.values():
            raise ValueError("a line has more or fewer fields than the header")
        yield row


def _csv_lines(stream: io.TextIOWrapper) -> Iterator[str]:
    # A last field that was cut short looks like a whole one; published files do lack the line break that would tell.
    for line in stream:
        if not line.endswith(("\n", "\r")):
            name = Path(stream.name).name
            logging.getLogger(__name__).warning("%s ends without a line break: its last row may be cut short", name)
        yield line


def _parquet(stream: IO[bytes]) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:  # not all of them are ValueError or OSError
        raise ValueError(str(error)) from error


def _hub_rows(source: SourceSettings) -> Iterator[tuple[str, Row]]:
    import datasets

    if source.revision is None:
        logging.getLogger(__name__).warning(
            "source %s: no revision of %s is pinned; the default branch is read", source.name, source.hub_id
        )
    split = source.split or "train"
    try:
        rows = datasets.load_dataset(
            source.hub_id, source.hub_config, data_files=source.files, revision=source.revision, split=split
        )
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:160]
        raise SourceError(
            f"source {source.name!r}: cannot load {source.hub_id} from the hub ({text}); go online (and log in where "
            "the set is gated), or set data.root to a folder with local copies and name them in `files`"
        ) from error
    for index, row in enumerate(rows):
        yield f"{split}:{index}", row
