"""Rows, files and judges' replies, changed at random: each is read, dropped for a reason, or refused in one line.

A part of the fault campaign (`faults.py`). Every function returns its outcomes with their counts and the first crashes.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rlhflow_utils.data.filters import conversation_failure, first_failure, structural_failure
from rlhflow_utils.data.reading import Candidate, Conversation, SourceError, file_rows
from rlhflow_utils.data.sources import convert
from rlhflow_utils.evaluation import arena_hard, judges, mt_bench
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.settings import SourceSettings

Result = dict[str, Any]
Cases = Iterator[tuple[str, Callable[[], list[str]]]]  # what it is, and what gives its outcomes
TINY = load_profile("tiny").data
ODD: list[Any] = [
    None, True, 0, -1, 10**400, 1e308, math.nan, math.inf, "", " ", "\u200b", "\ud800", "\u202e", "\x00", "<|end|>",
    "\n\nHuman: a\n\nAssistant: b", [], {}, [None], [[]], {"role": "tool", "content": "x"}, [{"role": 1}], "x" * 5000,
]  # fmt: skip
REFUSED = "refused in one line"


def tried(what: str, cases: Cases) -> Result:
    """The outcomes of cases (each with a name), and the first crashes."""
    outcomes, crashes, number = Counter[str](), list[str](), 0
    for number, (name, case) in enumerate(cases, 1):  # noqa: B007
        try:
            outcomes.update(case())
        except SourceError as error:
            outcomes[REFUSED if "\n" not in str(error) else "refused in several lines"] += 1
        except Exception as error:
            outcomes["crashed"] += 1
            crashes.append(f"{name}: {type(error).__name__}: {error}"[:200])
    return {what: number, "outcomes": dict(outcomes.most_common()), "crashes": crashes[:5]}


def mutate(value: Any, draw: random.Random) -> Any:
    """A row with one place of it changed: removed, repeated, renamed, or replaced by something odd."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key, kind = draw.choice(list(value)), draw.random()
        others = {name: item for name, item in value.items() if name != key}
        renamed = f"{key}_" if kind < 0.18 else key
        return others if kind < 0.12 else {**others, renamed: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        place, kind = draw.randrange(len(value)), draw.random()
        middle = [] if kind < 0.12 else [value[place]] * 2 if kind < 0.2 else [mutate(value[place], draw)]
        return [*value[:place], *middle, *value[place + 1 :]]
    if isinstance(value, str) and value and draw.random() < 0.5:
        place = draw.randrange(len(value))
        return value[:place] + str(draw.choice(ODD)) + value[place:]
    return draw.choice(ODD)


def rows(world: Path, number: int, draw: random.Random) -> Result:
    """Native rows of every source of the world, changed once to three times, through converters and filters."""
    sources = [*TINY.preference_sources, *TINY.sft_sources, *TINY.prompt_sources]
    sources += [TINY.offline_source] if TINY.offline_source else []
    natives = [(source, row) for source in sources for file in source.files or [] for row in file_rows(world / file)]

    def fates(source: SourceSettings, row_id: str, row: Any) -> list[str]:
        records = convert(source, row_id, row if isinstance(row, dict) else {"row": row})
        return sorted({fate_of(record, source) for record in records} or {"no record"})

    def cases() -> Cases:
        for index in range(number):
            source, row = draw.choice(natives)
            for _ in range(draw.randint(1, 3)):
                row = mutate(row, draw)
            yield source.schema_name, partial(fates, source, f"fuzz:{index}", row)

    return tried("rows", cases())


def fate_of(record: Any, source: SourceSettings) -> str:
    """`kept`, or the reason for which the filters drop a record."""
    if isinstance(record, Candidate):
        reason = first_failure(record, TINY.filters, source.name)
    elif isinstance(record, Conversation):
        reason = conversation_failure(record)
    else:
        reason = structural_failure([record.prompt])
    return f"dropped: {reason}" if reason else "kept"


def file_bytes(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """The rows (of text fields) as a file of that name."""
    import pandas as pd

    frame, name = pd.DataFrame(rows), suffix.removesuffix(".gz")
    if name == ".parquet":
        return frame.to_parquet()
    text = {".jsonl": lambda: "".join(f"{json.dumps(row)}\n" for row in rows), ".json": lambda: json.dumps(rows),
            ".csv": lambda: frame.to_csv(index=False)}[name]()  # fmt: skip
    return gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()


def files(folder: Path, number: int, draw: random.Random) -> Result:
    """Files of every kind with bytes cut off, changed, put in or taken out: read, or refused in one line."""
    rows = [{"prompt": f"question {i}, \u00e4", "answer": f"line\n{i}"} for i in range(20)]
    kinds = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")
    whole = {suffix: file_bytes(rows, suffix) for suffix in kinds}
    folder.mkdir()

    def read(file: Path) -> list[str]:
        return ["read as it was" if list(file_rows(file)) == rows else "read otherwise"]

    def cases() -> Cases:
        for _ in range(number):
            suffix = draw.choice(kinds)
            content, place = whole[suffix], draw.randrange(len(whole[suffix]))
            noise = draw.randbytes(draw.randint(1, 4))
            file = folder / f"rows{suffix}"
            file.write_bytes(draw.choice([
                content[:place], content[:place] + noise + content[place + len(noise) :],
                content[:place] + noise + content[place:], content[:place] + content[place + 3 :], noise * 5,
                b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content * 2,
            ]))  # fmt: skip
            yield suffix, partial(read, file)

    return tried("files", cases())


NOISE = [
    "I think ", "[", "]", "[[", "]]", "A", "B", "tie", "7", "10", ".5", "\n", "**", " is better: ", "rating: ", ">",
    ">>", "=", "\u00e9\u4e2d", "\ud800", "[1]", "0", "\x00", "{", "}", "%s", "((", " ",
]  # fmt: skip
VERDICTS: dict[str, tuple[Callable[[str], Any], dict[str, Any]]] = {
    "pair": (judges.parse_verdict, {"[[A]]": "A", "[[B]]": "B", "[[tie]]": "tie"}),
    "grade": (mt_bench.parse_grade, {"[[7]]": 7.0, "[[9.5]]": 9.5, "[[11]]": None}),
    "arena": (arena_hard.parse_verdict, {f"[[{each}]]": each for each in ("A>>B", "A>B", "A=B", "B>A", "B>>A")}),
}


def replies(number: int, draw: random.Random) -> Result:
    """Judge replies: noise alone (a verdict or none, never a crash), and a verdict among words, which must be read."""

    def read(name: str, noise: list[str], text: str | None) -> list[str]:
        parse, known = VERDICTS[name]
        if text is None:
            found = parse("".join(noise))
            valid = found is None or found in known.values() or (name == "grade" and 1 <= found <= 10)
            return ["noise: no verdict" if found is None else "noise: a verdict" if valid else "misread"]
        words = "".join(piece for piece in noise if not set(piece) & set("[]"))
        return ["verdict read" if parse(f"{words} {text} {words}") == known[text] else "misread"]

    def cases() -> Cases:
        for _ in range(number):
            name = draw.choice(list(VERDICTS))
            text = draw.choice(list(VERDICTS[name][1])) if draw.random() < 0.5 else None
            yield name, partial(read, name, [draw.choice(NOISE) for _ in range(draw.randint(0, 25))], text)

    return tried("replies", cases())
