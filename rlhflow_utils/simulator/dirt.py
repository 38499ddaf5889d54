"""Known dirt at a known rate: what the filters of chapter 01 must find, and how much of it.

Each spoiled row has exactly one defect; `dirt.yaml` says which, under the names of the filter rules, and where it is.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.simulator.native_rows import Row

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DIRT_OF_SOURCE: dict[str, list[str]] = {
    **{source: _DATA["common"] + reasons for source, reasons in _DATA["reasons"].items()},
    **_DATA["reasons_of_many_answers"],
}
_TAG = "\n\nAssistant: "
_CHANGES: dict[str, Callable[[str, str], tuple[Any, Any]]] = {  # of the two answers
    "identical_responses": lambda first, second: (first, first),
    "empty_turn": lambda first, second: (first, ""),
    "zero_width": lambda first, second: (first, "\u200b"),
    "role_tag_in_turn": lambda first, second: (first, f"{second} Human: Thank you."),
    "non_string_content": lambda first, second: (first, True),
    "swapped_duplicate": lambda first, second: (second, first),  # the label stays: the copy says the opposite
}


def plant_dirt(source: str, rows: list[Row], rate: float, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """The rows with dirt (copies at the end) and the record of it; ``rows`` stays as it is.

    ``rate`` is defects per clean row, spread evenly over the source's reasons, at least one of each. The record names
    source, 0-based row (of a duplicate: the copy), the row's own id, the filter rule and the pairs lost by it.
    """
    rows, reasons = copy.deepcopy(rows), DIRT_OF_SOURCE[source]
    units = range(0, len(rows), 4 if source == "helpsteer" else 1)  # HelpSteer's rows come in groups of four
    each = max(1, round(rate * len(units) / max(len(reasons), 1)))
    if each * len(reasons) > len(units):
        few = f"simulator: {source}: {len(units)} rows are too few for {each} of each of {len(reasons)} defects"
        raise ValueError(f"{few}; raise its rows or lower dirt_rate")
    picked = rng.sample(units, each * len(reasons))
    record: list[Row] = []
    for index, reason in zip(picked, [reason for reason in reasons for _ in range(each)], strict=True):
        if "duplicate" in reason:
            rows.append(copy.deepcopy(rows[index]))
            index = len(rows) - 1
        _spoil(source, rows, index, reason)
        lost = _DATA["pairs"].get(source, {}).get(reason, 1)
        holder = rows[index].get("info", rows[index])
        identity = holder.get("id", holder.get("post_id"))
        record.append({"source": source, "row": index, "id": identity, "reason": reason, "pairs": lost})
    return rows, record


def _spoil(source: str, rows: list[Row], index: int, reason: str) -> None:
    """Plant one defect in place."""
    row = rows[index]
    if reason in _CHANGES:
        _change_answers(source, row, _CHANGES[reason])
    if reason == "swapped_duplicate" and source == "capybara":
        row["conversation"][-1]["output"] = row["chosen"][-1]["content"]
    elif reason == "swapped_duplicate" and source == "pku_safe_rlhf":
        row["is_response_0_safe"] = row["is_response_1_safe"] = True
    elif reason == "tie":
        _tie(source, rows, index)
    elif reason == "contradicted_label":
        _contradict(source, row)
    elif reason == "small_margin":
        row["score_A" if row["labels"] == 1 else "score_B"] = 2 * min(row["score_A"], row["score_B"])
        row["score_ratio"] = 2.0
    elif reason == "broken_alternation":
        _break_alternation(source, row)
    elif reason == "unequal_context" and source == "hh_rlhf":
        row["rejected"] = f" Quickly!{_TAG}".join(row["rejected"].rsplit(_TAG, 1))
    elif reason == "unequal_context":
        row["rejected"][-2]["content"] += " Quickly!"
    elif reason not in {*_CHANGES, "duplicate_pair"}:
        raise ValueError(f"simulator: no way to plant {reason!r} in {source}")


def _change_answers(source: str, row: Row, change: Callable[[str, str], tuple[Any, Any]]) -> None:
    """Change two different answers in place, of K-wise rows the first two."""
    ways = _DATA["answers"].get(source, (["chosen"], ["rejected"]))
    places = [(reduce(lambda holder, step: holder[step], way, row), key) for *way, key in ways]
    parts = [holder[key].rpartition(_TAG) for holder, key in places]
    for (holder, key), (head, tag, _), text in zip(places, parts, change(parts[0][2], parts[1][2]), strict=True):
        holder[key] = f"{head}{tag}{text}" if tag else text


def _tie(source: str, rows: list[Row], index: int) -> None:
    """Give two answers of one prompt the same score."""
    row = rows[index]
    if source in _DATA["graded"]:
        holder, keys = _DATA["graded"][source]
        first, second = (row[holder] if holder else rows[index : index + 2])[:2]
        second.update(copy.deepcopy({key: first[key] for key in keys}))
    elif source == "orca":
        row.update(rating=[row["rating"][0]] * 2, status="tie")
    else:
        chosen, rejected = _DATA["ratings"][source]
        row[rejected] = row[chosen]


def _contradict(source: str, row: Row) -> None:
    """Make another field say the opposite of the label."""
    if source == "shp":
        row["labels"] = 1 - row["labels"]
    elif source == "pku_safe_rlhf":
        row["safer_response_id"] = 1 - row["better_response_id"]
    elif source == "orca":
        row["status"] = "tie"
    else:
        chosen, rejected = _DATA["ratings"][source]
        row[chosen], row[rejected] = row[rejected], row[chosen]


def _break_alternation(source: str, row: Row) -> None:
    """Put one more turn of the same role before the last answer, on both sides alike."""
    if source == "ultrainteract":
        row["trajectory"].append({"from": "user", "value": "Please go on."})
    elif source == "hh_rlhf":
        row |= {side: f"{_TAG}One moment.{_TAG}".join(row[side].rsplit(_TAG, 1)) for side in ("chosen", "rejected")}
    else:
        for side in ("chosen", "rejected"):
            row[side].insert(-1, {"role": "user", "content": "Please go on."})
