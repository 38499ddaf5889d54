"""The README shows what `results/` holds, and nothing typed by hand."""

from __future__ import annotations

import json

import pytest

from rlhflow_utils.guide.chapters import BLOCK, CLAIMS_BLOCK, README, RESULTS, claims_block, iterations, readme_block
from rlhflow_utils.guide.provenance import PROJECT
from rlhflow_utils.guide.tables import cell, interval, markdown_table


def test_readme_block_is_the_one_that_results_give() -> None:
    file = RESULTS / "tiny" / "summary.json"
    assert file.is_file(), "results/tiny/summary.json is missing: run `make guide notebooks`"
    summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
    match = BLOCK.search(README.read_text(encoding="utf-8"))
    assert match is not None
    assert match[0] == match[1] + readme_block(summary) + match[2]


def test_readme_shows_the_claims_that_results_hold() -> None:
    match = CLAIMS_BLOCK.search(README.read_text(encoding="utf-8"))
    assert match is not None
    assert match[0] == match[1] + claims_block() + match[2]


def test_readme_shows_the_two_commands_and_links_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    first_screen = "\n".join(text.splitlines()[:20])
    assert "make guide" in first_screen
    assert "make test" in first_screen
    for target in [part.split(")")[0] for part in text.split("](")[1:]]:
        if not target.startswith("http"):
            assert (PROJECT / target).exists(), f"README links to {target}"


def test_iterations_are_read_from_the_keys() -> None:
    assert iterations({"09.iter2.gold_win_rate_vs_sft": 0.6, "09.iter1.gold_win_rate_vs_sft": 0.5, "x": 1}) == [1, 2]


def test_markdown_table_by_hand() -> None:
    table = markdown_table([{"policy": "SFT", "rate": 0.5, "n": 1200}, {"policy": "DPO", "rate": None, "n": 3}], "note")
    assert table == "| policy | rate | n |\n| :--- | ---: | ---: |\n| SFT | 0.500 | 1,200 |\n| DPO | – | 3 |\n\n*note*"


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.12345, "0.123"), (123.456, "123.5"), (True, "True"), (5, "5")]
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_interval() -> None:
    assert interval({"ci_low": 0.1, "ci_high": 0.25}) == "0.100 … 0.250"
    assert interval(None) == "–"
