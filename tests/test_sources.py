"""Converters against hand-written native rows, readers against awkward files, and both against real rows."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhflow_utils.data.filters import first_failure
from rlhflow_utils.data.reading import Candidate, Conversation, Prompt, SourceError, get, load_rows, read_rows
from rlhflow_utils.data.sources import (
    CONVERTERS,
    convert,
    load_texts,
    native_rows,
    read,
)
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.settings import SourceSettings

USER = [{"role": "user", "content": "Q"}]
DIALOGUE = [*USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "Q2"}]
SHAREGPT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "a"}, {"from": "human", "value": "Q2"}]


def settings(schema: str, files: list[str] | None = None, hub_id: str | None = None) -> SourceSettings:
    return SourceSettings.model_validate(
        {"name": "S", "schema": schema, "hub_id": hub_id, "hub_config": None, "revision": None, "split": None,
         "files": files}
    )  # fmt: skip


def answer(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def with_feedback(response: str, score: float | None) -> dict[str, Any]:
    return {"response": response, "fine-grained_score": score, "overall_score": 1.0}


# schema, native row, expected (prompt, chosen, rejected, chosen_score, rejected_score, evidence) of each candidate
SHP = {"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 0, "score_A": 3, "score_B": 9,
       "score_ratio": 3.0}  # fmt: skip
PKU = {"prompt": "Q", "response_0": "0", "response_1": "1", "is_response_0_safe": True, "is_response_1_safe": True,
       "better_response_id": 1, "safer_response_id": 1}  # fmt: skip
ORCA = {"system": "", "input": "Q", "chosen": "g", "rejected": "b", "rating": [3.0, 8.0], "status": "swapped"}
CODE = {"instruction": "Q", "responses": [{"model": "m", "response": "x"}, {"model": "n", "response": "y"}],
        "annotations": [{"model": "n", "rating": "10"}, {"model": "m", "rating": "9"}]}  # fmt: skip
PANDA = {"instruction": "I", "input": "X", "response1": "1", "response2": "2",
         "annotator1": 2, "annotator2": 1, "annotator3": 2}  # fmt: skip
SUMMARY = {"info": {"id": "t3", "post": "P", "title": "T", "subreddit": "S"}, "choice": 1,
           "summaries": [{"text": "a"}, {"text": "b"}]}  # fmt: skip
CASES: list[tuple[str, dict[str, Any], list[tuple[Any, ...]]]] = [
    ("hh_rlhf",
     {"chosen": "\n\nHuman: Q\n\nAssistant: a\n\nHuman: Q2\n\nAssistant: Human: no", "rejected":
      "\n\nHuman: Q\n\nAssistant: a\n\nHuman: Q2\n\nAssistant: "},
     [(DIALOGUE, "Human: no", "", None, None, None)]),
    ("hh_rlhf", {"chosen": "no tags", "rejected": "at all"},
     [([], "no tags", "at all", None, None, "broken_alternation")]),
    ("shp", SHP, [(USER, "B", "A", 9.0, 3.0, None)]),
    ("shp", {**SHP, "labels": 1}, [(USER, "A", "B", 3.0, 9.0, None)]),
    ("pku_safe_rlhf", PKU, [(USER, "1", "0", None, None, None)]),
    # Only answer 0 is safe: it is chosen although 1 is more helpful.
    ("pku_safe_rlhf", {**PKU, "is_response_1_safe": False, "safer_response_id": 0},
     [(USER, "0", "1", None, None, None)]),
    ("pku_safe_rlhf", {**PKU, "is_response_1_safe": False}, [(USER, "0", "1", None, None, "contradicted_label")]),
    ("pku_safe_rlhf", {**PKU, "safer_response_id": 0}, [(USER, "1", "0", None, None, "contradicted_label")]),
    ("ultrainteract", {"trajectory": SHAREGPT, "chosen": "g", "rejected": "b"},
     [(DIALOGUE, "g", "b", None, None, None)]),
    ("argilla_math",
     {"instruction": "Q", "chosen_response": "g", "rejected_response": "b", "chosen_rating": 7.0,
      "rejected_rating": 7.0},
     [(USER, "g", "b", 7.0, 7.0, None)]),
    ("orca", ORCA, [(USER, "g", "b", 8.0, 3.0, None)]),
    ("orca", {**ORCA, "rating": None}, [(USER, "g", "b", None, None, "no_label")]),
    ("orca", {**ORCA, "status": "tie"}, [(USER, "g", "b", 8.0, 3.0, "contradicted_label")]),
    ("orca", {**ORCA, "status": "tie", "rating": [8, 8], "system": "Sys"},
     [([{"role": "system", "content": "Sys"}, *USER], "g", "b", 8.0, 8.0, "tie")]),
    ("capybara",
     {"chosen": [*DIALOGUE, answer("g")], "rejected": [*DIALOGUE, answer("b")],
      "rating_chosen": 5, "rating_rejected": 1},
     [(DIALOGUE, "g", "b", 5.0, 1.0, None)]),
    ("summarize_from_feedback", SUMMARY,
     [([{"role": "user", "content": "SUBREDDIT: r/S\nTITLE: T\nPOST: P\nTL;DR:"}], "b", "a", None, None, None)]),
    ("ultrafeedback_binarized",
     {"prompt": "Q", "chosen": "g", "rejected": "b", "metadata": {"score_chosen": 8.5, "score_rejected": 7}},
     [(USER, "g", "b", 8.5, 7.0, None)]),
    ("ultrafeedback_binarized",
     {"chosen": [*USER, answer("g")], "rejected": [*USER, answer("b")], "score_chosen": 8.5, "score_rejected": 7},
     [(USER, "g", "b", 8.5, 7.0, None)]),
    ("rlhflow_standard",
     {"chosen": [*USER, answer("g")], "rejected": [*USER, answer("b")], "chosen_score": None, "rejected_score": None},
     [(USER, "g", "b", None, None, None)]),
    ("rlhflow_standard",
     {"chosen": [*USER, answer("g")], "rejected": [*USER, answer("b")], "chosen_score": "10", "rejected_score": "9"},
     [(USER, "g", "b", 10.0, 9.0, None)]),
    ("llama_factory_dpo",
     {"conversations": [{"from": "system", "value": "Sys"}, *SHAREGPT], "chosen": {"from": "gpt", "value": "g"},
      "rejected": {"from": "gpt", "value": "b"}},
     [([{"role": "system", "content": "Sys"}, *DIALOGUE], "g", "b", None, None, None)]),
    ("pandalm", PANDA, [([{"role": "user", "content": "I\n\nX"}], "2", "1", None, None, None)]),
    ("pandalm", {**PANDA, "annotator1": 0, "annotator3": 0},
     [([{"role": "user", "content": "I\n\nX"}], "1", "2", None, None, "tie")]),
    ("pandalm", {**PANDA, "annotator3": 0, "input": "", "response1": True},  # 2, 1, 0: no majority
     [([{"role": "user", "content": "I"}], True, "2", None, None, "tie")]),
    ("code_ultrafeedback", CODE, [(USER, "y", "x", 10.0, 9.0, None)]),  # "9" > "10" as strings
    ("ultrafeedback",
     {"instruction": "Q", "completions": [with_feedback("a", 1.5), with_feedback("b", 4), with_feedback("c", None)]},
     [(USER, "b", "a", 4.0, 1.5, None), (USER, "a", "c", 1.5, None, "no_label"),
      (USER, "b", "c", 4.0, None, "no_label")]),
    ("ultrafeedback", {"instruction": "Q", "completions": []}, [(USER, "", "", None, None, "no_pair")]),
    ("helpsteer",
     {"prompt": "Q", "rows": [{"response": "a", "helpfulness": 3, "correctness": 4},
                              {"response": "b", "helpfulness": 4, "correctness": 4}]},
     [(USER, "b", "a", 4.0, 3.5, None)]),
    ("nectar",
     {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": [{"answer": "b", "rank": 2.0}, {"answer": "a", "rank": 1.0}]},
     [(USER, "a", "b", -1.0, -2.0, None)]),
    ("reward_bench", {"prompt": "Q", "chosen": "g", "rejected": "b", "subset": "donotanswer"},
     [(USER, "g", "b", None, None, None)]),
    ("reward_bench_2", {"prompt": "Q", "chosen": ["g"], "rejected": ["b", "c", "d"], "subset": "Math"},
     [(USER, ["g"], ["b", "c", "d"], None, None, None)]),
    ("reward_bench_2", {"prompt": "Q", "chosen": ["g", "h"], "rejected": ["b"], "subset": "Ties", "id": "tied:7"},
     [(USER, ["g", "h"], ["b"], None, None, None)]),
    ("rm_bench", {"prompt": "Q", "chosen": ["g", "h", "i"], "rejected": ["b", "c", "d"], "domain": "chat"},
     [(USER, ["g", "h", "i"], ["b", "c", "d"], None, None, None)]),
    ("llmbar", {"input": "Q", "output_1": "b", "output_2": "g", "label": 2}, [(USER, "g", "b", None, None, None)]),
    ("humanevalpack",
     {"prompt": "def f\n", "instruction": "Q", "canonical_solution": "return 1",
      "buggy_solution": "return 2"},
     [(USER, "def f\nreturn 1", "def f\nreturn 2", None, None, None)]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "row", "expected"), CASES)
def test_native_row_gives_these_candidates(schema: str, row: dict[str, Any], expected: list[tuple[Any, ...]]) -> None:
    got: list[Any] = convert(settings(schema), "f:0", row)
    assert [(c.prompt, c.chosen, c.rejected, c.chosen_score, c.rejected_score, c.evidence) for c in got] == expected


def test_each_pair_schema_has_a_hand_written_row() -> None:
    without = {"fine_grained_rlhf", "xstest", "sft_messages", "llama_factory_kto", "gsm8k", "prompt_collection",
               "instructions", "exact_match", "text"}  # fmt: skip
    assert set(CONVERTERS) - {schema for schema, _, _ in CASES} == without  # these have tests of their own below


# The forms of one pair that TRL, OpenAI, Gemma and sharegpt write; what is empty or in parts says the same as without.
GOOD, POOR = [*DIALOGUE, answer("good")], [*DIALOGUE, answer("poor")]
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("rlhflow_standard", {"chosen": GOOD, "rejected": POOR}),
    ("rlhflow_standard", {"prompt": DIALOGUE, "chosen": GOOD[3:], "rejected": POOR[3:]}),
    ("rlhflow_standard", {"prompt": "Q", "chosen": GOOD[1:], "rejected": POOR[1:]}),
    ("rlhflow_standard", {"prompt": DIALOGUE, "chosen": "good", "rejected": "poor"}),
    ("rlhflow_standard", {"prompt": "Q", "chosen": GOOD, "rejected": POOR}),
    ("rlhflow_standard", {"chosen": [{"role": "system", "content": " "}, *GOOD],
                          "rejected": [{"role": "system", "content": None}, *POOR]}),
    ("rlhflow_standard", {"chosen": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in GOOD],
                          "rejected": POOR}),
    ("rlhflow_standard", {"prompt": [{**t, "role": t["role"].replace("assistant", "model")} for t in DIALOGUE],
                          "chosen": [{"role": "model", "content": "good"}], "rejected": POOR[3:]}),
    ("rlhflow_standard", {"chosen": [*SHAREGPT, {"from": "gpt", "value": "good"}],
                          "rejected": [*SHAREGPT, {"from": "gpt", "value": "poor"}]}),
    ("llama_factory_dpo", {"conversations": [{"from": "system", "value": ""}, *SHAREGPT],
                           "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "poor"}}),
    ("orca", {**ORCA, "system": " ", "input": DIALOGUE, "chosen": "good", "rejected": "poor"}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "row"), FORMS)
def test_every_form_of_a_pair_is_the_same_pair(schema: str, row: dict[str, Any]) -> None:
    (pair,) = convert(settings(schema), "f:0", row)
    assert isinstance(pair, Candidate)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.evidence) == (DIALOGUE, "good", "poor", None)
    assert pair.rejected_prompt == pair.prompt


def test_a_prompt_of_the_system_alone_is_followed_by_the_users_turn() -> None:
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": [system], "chosen": [*USER, answer("a")], "rejected": [*USER, answer("b")]}
    (pair,) = convert(settings("rlhflow_standard"), "f:0", row)
    assert isinstance(pair, Candidate)
    assert pair.prompt == pair.rejected_prompt == [system, *USER]


def test_developer_is_openais_name_of_the_system() -> None:
    turns = [{"role": "developer", "content": "Be brief."}, *USER]
    row = {"chosen": [*turns, answer("a")], "rejected": [*turns, answer("b")]}
    (pair,) = convert(settings("rlhflow_standard"), "f:0", row)
    assert pair.prompt[0] == {"role": "system", "content": "Be brief."}


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]}
ODD: list[tuple[str, dict[str, Any], str]] = [
    ("rlhflow_standard", {"chosen": [*USER, CALL, {"role": "tool", "content": "12"}, answer("It is 12")],
                          "rejected": [*USER, answer("poor")]}, "unknown_role"),
    ("rlhflow_standard", {"chosen": [*USER, {"role": "function", "content": "12"}, answer("It is 12")],
                          "rejected": [*USER, answer("poor")]}, "unknown_role"),
    ("rlhflow_standard", {"chosen": [*USER, {"role": "tool", "content": "12"}], "rejected": POOR}, "unknown_role"),
    ("pandalm", {**PANDA, "response2": [{"role": "tool", "content": "12"}]}, "unknown_role"),
    ("llama_factory_dpo", {"conversations": [*SHAREGPT, {"from": "observation", "value": "12"}],
                           "chosen": {"value": "good"}, "rejected": {"value": "poor"}}, "unknown_role"),
    ("rlhflow_standard", {"chosen": [*USER, {"role": "assistant", "tool_calls": []}], "rejected": [*USER, answer("b")]},
     "non_string_content"),
    ("rlhflow_standard", {"chosen": [*USER, answer(None)], "rejected": [*USER, answer("b")]}, "non_string_content"),
    ("rlhflow_standard", {"chosen": [*USER, answer([{"type": "image"}])], "rejected": POOR}, "non_string_content"),
    ("pandalm", {**PANDA, "annotator3": None}, "no_label"),
    ("shp", {**SHP, "labels": None}, "no_label"),
    ("pku_safe_rlhf", {**PKU, "is_response_0_safe": None}, "no_label"),
    ("summarize_from_feedback", {**SUMMARY, "choice": None}, "no_label"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "row", "reason"), ODD)
def test_an_odd_row_is_counted_and_its_neighbours_stay(
    tmp_path: Path, schema: str, row: dict[str, Any], reason: str
) -> None:
    good = next(native for name, native, _ in CASES if name == schema)
    lines = "".join(json.dumps(native) + "\n" for native in (good, row, good))
    (tmp_path / "f.jsonl").write_text(lines, encoding="utf-8")
    filters = load_profile("slices").data.filters.model_copy(update={"min_response_characters": 1})
    pairs = read(settings(schema, ["f.jsonl"]), tmp_path, Candidate)
    assert [first_failure(pair, filters, "S") for pair in pairs] == [None, reason, None]


def test_fine_grained_gives_six_comparisons_in_the_files_order() -> None:
    row = {"question": "Q", "passages": [["T", "s"]], "preference": [0, 1, 2, 1, 2, 1],
           **{f"prediction {i}": f"p{i}" for i in range(1, 5)}}  # fmt: skip
    got: list[Any] = convert(settings("fine_grained_rlhf"), "f:0", row)
    assert [(c.row_id, c.chosen, c.rejected, c.evidence) for c in got] == [
        ("f:0#1v2", "p1", "p2", "tie"), ("f:0#1v3", "p1", "p3", None), ("f:0#1v4", "p4", "p1", None),
        ("f:0#2v3", "p2", "p3", None), ("f:0#2v4", "p4", "p2", None), ("f:0#3v4", "p3", "p4", None),
    ]  # fmt: skip
    assert got[0].prompt == [{"role": "user", "content": "T\ns\n\nQuestion: Q"}]


def test_nectar_pairs_the_best_with_a_fixed_random_other() -> None:
    answers = [{"answer": str(rank), "rank": float(rank)} for rank in range(1, 8)]
    row = {"prompt": "\n\nHuman: Q\n\nAssistant: ", "answers": answers}
    drawn: list[Any] = [convert(settings("nectar"), f"f:{i}", row, "best_vs_random")[0] for i in range(300)]
    assert {c.chosen for c in drawn} == {"1"}
    assert set(Counter(c.rejected for c in drawn)) == {"2", "3", "4", "5", "6", "7"}
    again: list[Any] = [convert(settings("nectar"), f"f:{i}", row, "best_vs_random")[0] for i in range(300)]
    assert [c.rejected for c in again] == [c.rejected for c in drawn]


def test_conversations_prompts_and_texts(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    whole = [*USER, answer("a")]
    write("sft.jsonl", [{"messages": whole}])
    write("kto.jsonl", [{"messages": whole, "label": True}, {"messages": whole, "label": False}])
    write("gsm.jsonl", [{"question": "Q", "answer": "a #### 2"}])
    write("prompts.jsonl", [{"context_messages": DIALOGUE}])
    write("eval.jsonl", [{"instruction": "Q"}, {"prompt": "Q2"}])
    write("exact.jsonl", [{"prompt": "Q", "answer": "A"}])
    write("text.jsonl", [{"text": "one"}, {"text": "two"}])
    conversation = next(read(settings("sft_messages", ["sft.jsonl"]), tmp_path, Conversation))
    assert (conversation.row_id, conversation.messages) == ("sft:0", whole)
    labelled = list(read(settings("llama_factory_kto", ["kto.jsonl"]), tmp_path, Conversation))
    assert [c.evidence for c in labelled] == [None, "labelled_bad"]
    texts = [settings("gsm8k", ["gsm.jsonl"]), settings("text", ["text.jsonl"])]
    assert load_texts(texts, tmp_path) == ["Q\na #### 2", "one", "two"]
    assert next(read(settings("prompt_collection", ["prompts.jsonl"]), tmp_path, Prompt)).prompt == DIALOGUE
    evaluation = read(settings("instructions", ["eval.jsonl"]), tmp_path, Prompt)
    assert [p.prompt[0]["content"] for p in evaluation] == ["Q", "Q2"]
    assert next(read(settings("exact_match", ["exact.jsonl"]), tmp_path, Prompt)).answer == "A"
    assert next(read(settings("gsm8k", ["gsm.jsonl"]), tmp_path, Prompt)).prompt == USER
    with pytest.raises(SourceError, match="holds no preference pairs"):
        next(read(settings("text", ["text.jsonl"]), tmp_path, Candidate))


# --- errors -------------------------------------------------------------------------------------------------------


OPTIONAL = {"rlhflow_standard": ("chosen_score", "rejected_score")}  # HH-RLHF's copy has no scores


@pytest.mark.parametrize("schema", sorted({schema for schema, _, _ in CASES}))
def test_every_missing_field_is_named(schema: str) -> None:
    row = next(row for name, row, _ in CASES if name == schema)
    refused = 0
    for field in row:
        if field in OPTIONAL.get(schema, ()):
            continue
        named = "score_chosen" if field == "metadata" else field  # without metadata, the hub's columns are expected
        with pytest.raises(SourceError, match=f"source 'S', .*row f:3: field '{named}"):
            convert(settings(schema), "f:3", {key: value for key, value in row.items() if key != field})
        refused += 1
    assert refused >= 1
    with pytest.raises(SourceError, match="f:3"):
        convert(settings(schema), "f:3", {"renamed": 1})


@pytest.mark.parametrize(
    ("schema", "row", "field"),
    [
        ("shp", {**SHP, "labels": 2}, "labels"),
        ("shp", {**SHP, "labels": True}, "labels"),
        ("pandalm", {**PANDA, "annotator2": "1"}, "annotator2"),
        ("code_ultrafeedback", {**CODE, "annotations": []}, "annotations"),
        ("rlhflow_standard", {"chosen": [{"role": "user", "text": "x"}], "rejected": []}, "chosen"),
    ],
)
def test_a_field_with_an_impossible_value_is_named(schema: str, row: dict[str, Any], field: str) -> None:
    with pytest.raises(SourceError, match=field):
        convert(settings(schema), "f:0", row)


@pytest.mark.parametrize(
    ("files", "content", "message"),
    [
        (["absent.jsonl"], b"", "no file 'absent.jsonl'"),
        (["x.txt"], b"hello", "ends in none of"),
        (["x.jsonl"], b'{"text": "a"}\n{"text": ', "breaks after 1 rows"),
        (["x.jsonl"], b'["a"]\n', "expected an object"),
        (["x.jsonl"], b'{"text": "\xff"}\n', "breaks after 0 rows"),
        (["x.json"], b'{"text": "a"}', "expected a list"),
        (["x.json"], b'{"text": "a"}\n{"text": "b"}\n', "JSON lines, not one list: name the file .jsonl"),
        (["x.csv"], b"text,other\na\n", "more or fewer fields"),
        (["x.jsonl.gz"], gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:40], "breaks after"),
        (["x.parquet"], b"PAR1 not really", "breaks after 0 rows"),
    ],
)
def test_a_file_that_cannot_be_read_gives_one_clear_line(
    tmp_path: Path, files: list[str], content: bytes, message: str
) -> None:
    if content:
        (tmp_path / files[0]).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        list(load_rows(settings("text", files), tmp_path))
    assert "'S'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neither_files_nor_hub_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no hub_id and no local files"):
        list(load_rows(settings("text"), tmp_path))
    with pytest.raises(SourceError, match=r"data\.root"):
        list(load_rows(settings("text", ["x.jsonl"]), tmp_path / "absent"))
    with pytest.raises(SourceError, match="unknown schema 'nope'"):
        list(native_rows(settings("nope", ["x.jsonl"]), tmp_path))


def test_an_unreachable_hub_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"cannot load nobody/nothing-here from the hub.*data\.root"):
        list(load_rows(settings("text", hub_id="nobody/nothing-here"), None))


# --- readers ------------------------------------------------------------------------------------------------------


def test_every_format_reads_the_same_rows(tmp_path: Path) -> None:
    texts = ["line\u2028separator", "form\x0cfeed", "two\nlines", "ünï", '"quoted", with comma']
    lines = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.rstrip(b"\n"))  # a BOM, and no newline at the end
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (tmp_path / "c.json").write_text(json.dumps([{"text": t} for t in texts]), encoding="utf-8")
    quoted = "".join('"' + t.replace('"', '""') + '"\n' for t in texts)
    (tmp_path / "d.csv").write_bytes(("text\n" + quoted).encode())
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.parquet"):
        rows = list(load_rows(settings("text", [name]), tmp_path))
        assert [row["text"] for _, row in rows] == texts, name
        assert [row_id for row_id, _ in rows] == [f"{name[0]}:{i}" for i in range(5)]


def test_byte_order_marks_blank_lines_and_capital_suffixes_are_no_rows(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    two_put_together = mark + b'{"text": "a"}\r\n\r\n' + mark + b'{"text": "b"}\n\n'
    (tmp_path / "a.JSONL").write_bytes(two_put_together)
    (tmp_path / "b.csv.GZ").write_bytes(gzip.compress(mark + b"text\na\n\nb\n\n", mtime=0))
    (tmp_path / "c.csv").write_bytes(mark + b"a\n\nb\n\n")
    for name in ("a.JSONL", "b.csv.GZ"):
        rows = list(load_rows(settings("text", [name]), tmp_path))
        assert rows == [(f"{name[0]}:0", {"text": "a"}), (f"{name[0]}:1", {"text": "b"})]
    assert read_rows(tmp_path / "c.csv", lambda row: row["text"], ["text"]) == ["a", "b"]  # MMLU's have no header


def test_a_benchmarks_file_names_the_row_and_field_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"question": "Q", "turns": ["a"]}\n{"question": null}\n', encoding="utf-8")
    with pytest.raises(SourceError, match=r"x\.jsonl: row 2 .*field 'question' must be a str, found NoneType"):
        read_rows(tmp_path / "x.jsonl", lambda row: get(row, "question", str))
    with pytest.raises(SourceError, match=r"x\.jsonl: row 2 .*no field 'turns'"):
        read_rows(tmp_path / "x.jsonl", lambda row: row["turns"][0])
    (tmp_path / "x.jsonl").write_text('{"question": "Q"}\n{"question"', encoding="utf-8")
    with pytest.raises(SourceError, match=r"x\.jsonl breaks after 1 rows"):
        read_rows(tmp_path / "x.jsonl", lambda row: row["question"])


def test_globs_are_sorted_and_equal_names_keep_their_folder(tmp_path: Path) -> None:
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    ids = [row_id for row_id, _ in load_rows(settings("text", ["*/train.jsonl"]), tmp_path)]
    assert ids == ["a/train.jsonl:0", "b/train.jsonl:0"]


def test_helpsteer_rows_are_gathered_by_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": p, "response": r, "helpfulness": h, "correctness": 1} for p, r, h in
            (("P", "a", 1), ("P", "b", 3), ("P", "c", 3), ("R", "d", 2))]  # fmt: skip
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    candidates = read(settings("helpsteer", ["h.jsonl"]), tmp_path, Candidate)
    got = [(c.row_id, c.chosen, c.rejected, c.evidence) for c in candidates]
    assert got == [("h:0#1v2", "b", "a", None), ("h:0#1v3", "c", "a", None), ("h:0#2v3", "b", "c", None),
                   ("h:3", "", "", "no_pair")]  # fmt: skip


# --- real rows ----------------------------------------------------------------------------------------------------


def test_xstest_join_counts(data_root: Path) -> None:
    candidates = list(read(settings("xstest", ["xstest/*.csv"]), data_root, Candidate))
    assert len(candidates) == 450
    pairs = [c for c in candidates if c.evidence is None]
    assert Counter(c.subset for c in pairs) == {"xstest-should-respond": 22, "xstest-should-refuse": 118}


def test_llmbar_and_humanevalpack_have_rewardbench_row_counts(data_root: Path) -> None:
    files = ["llmbar/natural.json", "llmbar/adversarial_*.json"]
    llmbar = Counter(c.subset for c in read(settings("llmbar", files), data_root, Candidate))
    assert llmbar == {"llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
                      "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46}  # fmt: skip
    candidates = read(settings("humanevalpack", ["humanevalpack/*.jsonl"]), data_root, Candidate)
    hep = Counter(c.subset for c in candidates)
    assert hep == {f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")}


def test_real_files_have_the_rows_their_readme_counts(data_root: Path) -> None:
    counts = {
        "hh-rlhf/harmless-base.test.jsonl.gz": 2312, "ultrafeedback-binarized-sample/train_clean.jsonl": 1000,
        "llama-factory-preference-demo/dpo_en_demo.json": 300, "pandalm-testset/testset-v1.json": 999,
        "xstest/xstest_v2_completions_mistralguard.csv": 450, "mbpp/mbpp.jsonl": 974, "truthfulqa/TruthfulQA.csv": 817,
    }  # fmt: skip
    assert {name: sum(1 for _ in load_rows(settings("text", [name]), data_root)) for name in counts} == counts


def test_kto_demo_gives_sft_rows_from_true_labels(data_root: Path) -> None:
    source = settings("llama_factory_kto", ["llama-factory-preference-demo/kto_en_demo.json"])
    good = Counter(c.evidence for c in read(source, data_root, Conversation))
    assert good == {None: 150, "labelled_bad": 150}
