"""Any row and any file: a clear error or an accounted drop; never a nameless crash, a hang or a silent loss."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_filters import settings as filter_settings
from test_sources import CASES, settings

from rlhflow_utils.data import sources
from rlhflow_utils.data.filters import (
    DROPPED,
    NgramIndex,
    conversation_failure,
    first_failure,
    pair_hashes,
    structural_failure,
    words_of,
)
from rlhflow_utils.data.mixtures import candidates
from rlhflow_utils.data.reading import Candidate, Conversation, Prompt, SourceError, load_rows
from rlhflow_utils.data.sources import CONVERTERS, convert
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.models.chat import INVISIBLE, normal_text

hypothesis_settings.register_profile(
    "data", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
DATA = hypothesis_settings.get_profile("data")
FORMATS = ("jsonl", "json", "csv", "parquet")

# --- rows ---------------------------------------------------------------------------------------------------------

ODD_TEXTS = [
    "", " \n", "\u200b", "\ufeff", "...", "Human: hi", "\n\nHuman: a\n\nAssistant: b", "\ud83d", "nan", "1e999", "{}",
    "a\0b", "\r\n\u2028\x0c", "x" * 5000,
]  # fmt: skip
TEXTS = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10), st.just(10**400), st.floats(), st.sampled_from(ODD_TEXTS), TEXTS
)
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", None])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": SCALARS}), max_size=4)
VALUES = st.recursive(
    st.one_of(SCALARS, TURNS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
ROWS_OF = {schema: [row for name, row, _ in CASES if name == schema] for schema, _, _ in CASES}
ROWS_OF |= {
    "fine_grained_rlhf": [{"question": "Q", "passages": [["T", "s"]], "preference": [0, 1, 2, 1, 2, 1],
                           **{f"prediction {i}": f"p{i}" for i in range(1, 5)}}],
    "xstest": [{"label": "safe", "answers": [{"prompt": "Q", "completion": "a", "final_label": "2_full_refusal"}]}],
    "sft_messages": [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}]}],
    "llama_factory_kto": [{"messages": [{"role": "user", "content": "Q"}], "label": True}],
    "gsm8k": [{"question": "Q", "answer": "a"}],
    "prompt_collection": [{"context_messages": [{"role": "user", "content": "Q"}]}],
    "instructions": [{"instruction": "Q"}],
    "exact_match": [{"prompt": "Q", "answer": "a"}],
    "text": [{"text": "a"}],
}  # fmt: skip


@st.composite
def spoiled_rows(draw: st.DrawFn, schema: str) -> dict[str, Any]:
    """A good row of a schema with some values, at any depth, replaced, or taken away, or renamed."""
    row: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(ROWS_OF[schema]))))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = row
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and draw(st.booleans()):
                node = node[key]
                continue
            how = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
            value = node.pop(key) if how != "replace" else None
            if how == "replace":
                node[key] = draw(VALUES)
            elif how == "rename" and isinstance(node, dict):
                node[f"{key}_"] = value
            break
    return row


def judged(record: Any) -> str | None:
    """What the filters say about a record of any kind."""
    if isinstance(record, Candidate):
        return first_failure(record, filter_settings(), "scored")
    if isinstance(record, Conversation):
        return conversation_failure(record)
    return structural_failure([record.prompt]) if isinstance(record, Prompt) else None


@pytest.mark.parametrize("schema", sorted(CONVERTERS))
@hypothesis_settings(DATA, max_examples=30)
@given(data=st.data())
def test_a_spoiled_row_is_refused_by_name_or_gives_records_that_the_rules_can_judge(
    schema: str, data: st.DataObject
) -> None:
    row = data.draw(st.one_of(spoiled_rows(schema), st.dictionaries(st.text(max_size=8), VALUES, max_size=4)))
    try:
        records = convert(settings(schema), "f:7", row)
    except SourceError as error:
        message = str(error)
        assert message.startswith(f"source 'S', schema {schema}, row f:7: ")
        assert "\n" not in message
        message.encode()  # can be printed: no lone surrogates
        return
    assert records  # a native row never vanishes
    for record in records:
        if judged(record) is None and isinstance(record, Candidate):
            texts = [*(turn["content"] for turn in record.prompt), record.chosen, record.rejected]
            assert all(isinstance(text, str) and INVISIBLE.sub("", text).strip() for text in texts)
            "".join(texts).encode()
            assert record.prompt[-1]["role"] == "user"
            assert record.chosen.split() != record.rejected.split()


STANDARD = st.lists(
    st.fixed_dictionaries(
        {"chosen": TURNS, "rejected": TURNS, "chosen_score": SCALARS, "rejected_score": SCALARS}
    ) | st.builds(
        lambda prompt, good, bad: {
            side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", good), ("rejected", bad))
        },
        TEXTS, TEXTS, TEXTS,
    ),
    min_size=1, max_size=8,
)  # fmt: skip


def has_tool(row: dict[str, Any]) -> bool:
    return any(turn["role"] == "tool" for side in ("chosen", "rejected") for turn in row[side])


def judged_file(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table of candidate pairs of one file."""
    write(folder / "f.jsonl", rows)
    tiny = load_profile("tiny")
    only = {"preference_sources": [settings("rlhflow_standard", ["f.jsonl"])], "offline_source": None}
    data = tiny.data.model_copy(update={**only, "filters": filter_settings()})
    return list(candidates(data, folder, None, tiny.model))


@hypothesis_settings(DATA, max_examples=80)
@given(rows=STANDARD)
def test_every_row_of_a_file_is_kept_once_or_dropped_once_and_filtering_again_changes_nothing(
    rows: list[dict[str, Any]],
) -> None:
    with TemporaryDirectory() as name:
        table = judged_file(Path(name), rows)
        assert [row["row_id"] for row in table] == [f"f:{i}" for i in range(len(rows))]
        kept = [row for row in table if not row["fate"].startswith(DROPPED)]
        fates = [entry["fate"] for entry, row in zip(table, rows, strict=True) if has_tool(row)]
        assert set(fates) <= {f"{DROPPED}unknown_role", f"{DROPPED}no_pair"}
        again = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in kept]
        if again:
            fixed = judged_file(Path(name), again)
            assert [(r["prompt"], r["chosen"], r["rejected"], r["fate"]) for r in fixed] == [
                (r["prompt"], r["chosen"], r["rejected"], r["fate"]) for r in kept
            ]


@hypothesis_settings(DATA, max_examples=100)
@given(key=st.text(max_size=5), chosen=st.text(), rejected=st.text(), space=st.sampled_from([" ", "\n", "\t \n"]))
def test_a_pair_and_its_mirror_have_each_others_hashes(key: str, chosen: str, rejected: str, space: str) -> None:
    hashes = pair_hashes(key, chosen, rejected)
    assert pair_hashes(key, rejected, chosen) == hashes[::-1]
    assert pair_hashes(key, chosen + space, space + rejected) == hashes
    assert (hashes[0] == hashes[1]) == (normal_text(chosen) == normal_text(rejected))


@hypothesis_settings(DATA, max_examples=100)
@given(text=st.text(), before=st.text(max_size=20), size=st.integers(1, 9))
def test_a_prompt_with_words_always_matches_itself_even_inside_another(text: str, before: str, size: int) -> None:
    index = NgramIndex(size, 1.0)
    index.add("e", [{"role": "user", "content": text}])
    words = words_of(text)
    found = index.find([{"role": "user", "content": text}])
    assert (found is not None and found[:2] == ("e", 1.0)) if words else found is None
    inside = index.find([{"role": "user", "content": f"{before} {text}"}])
    assert inside is not None or len(words) < size


# --- files --------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> None:
    path.write_bytes(serialised(rows, path.name.partition(".")[2].removesuffix(".gz"), encoding))


def serialised(rows: list[dict[str, Any]], kind: str, encoding: str = "utf-8") -> bytes:
    """The rows in one of the formats."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode(encoding)
    if kind == "json":
        return json.dumps(rows).encode(encoding)
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode(encoding)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def read(content: bytes, name: str) -> list[dict[str, Any]] | str:
    """The rows that a file with this content holds, or the error's one line."""
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            return [row for _, row in load_rows(settings("text", [name]), Path(folder))]
        except SourceError as error:
            message = str(error)
    assert message.startswith(f"source 'S': {name} ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [*FORMATS, *(f"{name}.gz" for name in FORMATS)])
@hypothesis_settings(DATA, max_examples=40)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_every_format_gives_back_any_text(suffix: str, texts: list[str]) -> None:
    rows = [{"text": text, "other": f"{i}"} for i, text in enumerate(texts)]
    content = serialised(rows, suffix.removesuffix(".gz"))
    assert read(gzip.compress(content) if suffix.endswith(".gz") else content, f"x.{suffix}") == rows


@pytest.mark.parametrize("suffix", [*FORMATS, *(f"{name}.gz" for name in FORMATS)])
@hypothesis_settings(DATA, max_examples=40)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=40).map(str.encode), st.just(b"[" * 100_000)))
def test_any_bytes_are_rows_or_one_clear_line(suffix: str, content: bytes) -> None:
    found = read(content, f"x.{suffix}")
    assert isinstance(found, str) or len(found) >= 1  # an empty file is an error, too


ROWS = [{"text": f"text {i} ünï", "other": str(i)} for i in range(50)]


@pytest.mark.parametrize("suffix", [*FORMATS, *(f"{name}.gz" for name in FORMATS)])
@hypothesis_settings(DATA, max_examples=40)
@given(data=st.data())
def test_a_truncated_file_is_an_error_unless_it_ends_where_a_row_may(suffix: str, data: st.DataObject) -> None:
    whole = serialised(ROWS, suffix.removesuffix(".gz"))
    whole = gzip.compress(whole, mtime=0) if suffix.endswith(".gz") else whole
    content = whole[: data.draw(st.integers(0, len(whole) - 1))]
    found = read(content, f"x.{suffix}")
    if suffix in ("jsonl", "csv") and not isinstance(found, str):
        # Plain lines say nowhere how many there are. Of CSV the last field may be cut, too; `load_rows` warns (below).
        whole_rows = len(found) - (suffix == "csv" and not content.endswith((b"\n", b"\r")))
        assert found[:whole_rows] == ROWS[:whole_rows]
        assert suffix == "csv" or content.endswith((b"}", b"\n"))
    else:
        assert isinstance(found, str)


def test_a_csv_file_without_a_last_line_break_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.csv").write_bytes(b"text,other\na,12\nb,1")  # the 1 may have been a 13
    assert len(list(load_rows(settings("text", ["x.csv"]), tmp_path))) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "x.csv ends without a line break: its last row may be cut short"
    ]
    (tmp_path / "x.csv").write_bytes(b"text,other\na,12\nb,13\n")
    assert len(list(load_rows(settings("text", ["x.csv"]), tmp_path))) == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize("suffix", ["jsonl.gz", "json.gz", "csv.gz", "parquet.gz"])
@hypothesis_settings(DATA, max_examples=40)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_checked_file_never_changes_rows_unnoticed(suffix: str, position: float, bit: int) -> None:
    content = bytearray(gzip.compress(serialised(ROWS, suffix.removesuffix(".gz")), mtime=0))
    content[int(position * len(content))] ^= 1 << bit
    found = read(bytes(content), f"x.{suffix}")
    assert isinstance(found, str) or found == ROWS  # equal: the bit was in gzip's header (name, time, system)


@pytest.mark.parametrize("suffix", FORMATS[:3])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "cp1252", "shift_jis", "utf-8-sig"])
def test_another_encoding_is_refused_or_read_right(suffix: str, encoding: str) -> None:
    text = "日本" if encoding == "shift_jis" else "naïve café"
    rows = [{"text": text, "other": "1"}]
    if suffix == "csv":
        content = serialised(rows, suffix, encoding)
    else:
        lines = json.dumps(rows[0], ensure_ascii=False)
        content = (f"[{lines}]" if suffix == "json" else lines + "\n").encode(encoding)
    found = read(content, f"x.{suffix}")
    assert found == rows if encoding == "utf-8-sig" else isinstance(found, str)


# --- no hang ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", ["\n\nHuman: ", "\n\nAssistant:", " ", "\t", "\u200b", "Human:", "\nUser", "< no "])
def test_long_runs_take_no_time(piece: str, tmp_path: Path) -> None:
    text = "\n\nHuman: " + piece * (1_000_000 // len(piece))
    started = time.process_time()
    write(tmp_path / "f.jsonl", [{"chosen": text + "\n\nAssistant: a", "rejected": text + "\n\nAssistant: b"}])
    for record in sources.read(settings("hh_rlhf", ["f.jsonl"]), tmp_path, Candidate):
        judged(record)
    assert time.process_time() - started < 10  # a second at most; a search that goes back and forth takes hours


def test_one_word_repeated_is_searched_in_no_time() -> None:
    index = NgramIndex(8, 0.5)
    prompt = [{"role": "user", "content": "a " * 20_000}]
    started = time.process_time()
    index.add("e", prompt)
    assert index.find(prompt) == ("e", 1.0, ("a " * 100).strip() + " ")
    assert time.process_time() - started < 10
