"""The benchmarks' own files: JSON lines, or one JSON list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rlhflow_utils.sources.reading import SourceError

Parsed = TypeVar("Parsed")


def read_rows(path: Path, parse: Callable[[Any], Parsed]) -> list[Parsed]:
    """Every row of a benchmark's file, parsed.

    Args:
        path: ``.jsonl``, or ``.json`` with one list.
        parse: takes what is needed from a row, by key and index.

    Raises:
        FileNotFoundError: no such file.
        SourceError: a row is not JSON, or lacks what `parse` takes from it.
    """
    parsed: list[Parsed] = []
    try:
        for row in _raw_rows(path):
            parsed.append(parse(row))
    except (ValueError, LookupError, TypeError) as error:
        problem = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(
            f"{path}: row {len(parsed) + 1} is not as the benchmark publishes it ({problem}); fetch the file again"
        ) from error
    return parsed


def _raw_rows(path: Path) -> Iterator[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        yield from json.loads(text)
    else:  # Not splitlines: a text may hold other characters that Python takes for line ends.
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
