"""Known dirt at a known rate: what the filters of chapter 01 must find, and how much of it.

Each spoiled row has exactly one defect. The reasons carry the names of the filter rules.
"""

from __future__ import annotations

import copy
import random
from dataclasses import asdict, dataclass
from typing import Any

Row = dict[str, Any]

_COMMON = ("empty_turn", "zero_width", "identical_responses", "duplicate_pair", "swapped_duplicate")
DIRT_OF_SOURCE: dict[str, tuple[str, ...]] = {
    "hh_rlhf": (*_COMMON, "role_tag_in_turn", "broken_alternation", "unequal_context"),
    "shp": (*_COMMON, "contradicted_label", "small_margin"),
    "helpsteer": ("empty_turn", "zero_width", "tie", "non_string_content"),
    "pku_safe_rlhf": (*_COMMON, "contradicted_label"),
    "ultrafeedback": ("empty_turn", "zero_width", "tie", "duplicate_pair", "role_tag_in_turn", "non_string_content"),
    "ultrainteract": (*_COMMON, "broken_alternation"),
    "code_ultrafeedback": ("empty_turn", "zero_width", "tie", "duplicate_pair", "non_string_content"),
    "argilla_math": (*_COMMON, "tie", "contradicted_label"),
    "orca": (*_COMMON, "tie", "contradicted_label", "non_string_content"),
    "capybara": (*_COMMON, "tie", "contradicted_label", "broken_alternation", "unequal_context"),
    "summarize": (*_COMMON, "role_tag_in_turn"),
    "nectar": (),
}
ZERO_WIDTH = "\u200b"
ROLE_TAG = " Human: Thank you."


@dataclass(frozen=True)
class PlantedDirt:
    """One spoiled row.

    Attributes:
        source: File stem of the source.
        row: 0-based line of the spoiled row in its file (of a duplicate: the copy).
        id: The row's own id where the schema has one, else null.
        reason: Name of the filter rule that must drop it.
        pairs: Pairs lost by it, counting every pair of a K-wise row (four answers give six).
    """

    source: str
    row: int
    id: str | None
    reason: str
    pairs: int


def plant_dirt(source: str, rows: list[Row], rate: float, rng: random.Random) -> tuple[list[Row], list[PlantedDirt]]:
    """Spoil some rows, and append copies of others.

    Args:
        source: File stem of the source.
        rows: Clean native rows; left unchanged.
        rate: Defects per clean row, spread evenly over the source's reasons, at least one of each.
        rng: Source of randomness.

    Returns:
        The rows with dirt (copies at the end) and the record of it.

    Raises:
        ValueError: the source has too few rows for its dirt.
    """
    rows, reasons = copy.deepcopy(rows), DIRT_OF_SOURCE[source]
    units = _units(source, rows)
    each = max(1, round(rate * len(units) / max(len(reasons), 1)))
    if each * len(reasons) > len(units):
        raise ValueError(
            f"simulator: {source}: {len(units)} rows are too few for {each} of each of {len(reasons)} defects; "
            "raise its rows or lower dirt_rate"
        )
    picked = iter(rng.sample(units, each * len(reasons)))
    record: list[PlantedDirt] = []
    for reason in reasons:
        for _ in range(each):
            index = next(picked)
            if reason in ("duplicate_pair", "swapped_duplicate"):
                rows.append(copy.deepcopy(rows[index]))
                index = len(rows) - 1
            pairs = _spoil(source, rows, index, reason)
            record.append(PlantedDirt(source, index, _id_of(rows[index]), reason, pairs))
    return rows, record


def as_json(record: list[PlantedDirt]) -> list[Row]:
    """The record as plain dictionaries."""
    return [asdict(entry) for entry in record]


def _units(source: str, rows: list[Row]) -> list[int]:
    """Row indices that may be spoiled; one per prompt of HelpSteer, whose rows come in groups of four."""
    return list(range(0, len(rows), 4)) if source == "helpsteer" else list(range(len(rows)))


def _id_of(row: Row) -> str | None:
    if "info" in row:
        return str(row["info"]["id"])
    identity = row.get("id", row.get("post_id"))
    return None if identity is None else str(identity)


def _spoil(source: str, rows: list[Row], index: int, reason: str) -> int:
    """Plant one defect in place; return the number of pairs it costs."""
    row = rows[index]
    if reason == "duplicate_pair":
        return 6 if source in ("ultrafeedback", "code_ultrafeedback") else 1
    if reason == "swapped_duplicate":
        _swap(source, row)
    elif reason == "identical_responses":
        _set_answer(source, row, 1, _get_answer(source, row, 0))
    elif reason in ("empty_turn", "zero_width", "role_tag_in_turn", "non_string_content"):
        old = _get_answer(source, row, 1)
        spoiled: dict[str, str | bool] = {
            "empty_turn": "", "zero_width": ZERO_WIDTH,
            "role_tag_in_turn": f"{old}{ROLE_TAG}", "non_string_content": True,
        }  # fmt: skip
        _set_answer(source, row, 1, spoiled[reason])
        return 3 if source in ("helpsteer", "ultrafeedback", "code_ultrafeedback") else 1
    elif reason == "tie":
        _tie(source, rows, index)
    elif reason == "contradicted_label":
        _contradict(source, row)
    elif reason == "small_margin":
        votes = min(row["score_A"], row["score_B"])
        row["score_A" if row["labels"] == 1 else "score_B"] = 2 * votes
        row["score_ratio"] = 2.0
    elif reason == "broken_alternation":
        _break_alternation(source, row)
    elif reason == "unequal_context":
        _change_context(source, row)
    else:
        raise ValueError(f"simulator: no way to plant {reason!r} in {source}")
    return 1


# Where each schema keeps its answers: 0 and 1 are two different answers (of K-wise rows the first two listed).
_FIELDS = {
    "shp": ("human_ref_A", "human_ref_B"), "pku_safe_rlhf": ("response_0", "response_1"),
    "ultrainteract": ("chosen", "rejected"), "argilla_math": ("chosen_response", "rejected_response"),
    "orca": ("chosen", "rejected"), "hh_rlhf": ("chosen", "rejected"), "capybara": ("chosen", "rejected"),
}  # fmt: skip


def _get_answer(source: str, row: Row, side: int) -> str:
    if source == "helpsteer":
        return str(row["response"])
    if source == "summarize":
        return str(row["summaries"][side]["text"])
    if source in ("ultrafeedback", "code_ultrafeedback"):
        return str(row["completions" if source == "ultrafeedback" else "responses"][side]["response"])
    field = row[_FIELDS[source][side]]
    if source == "hh_rlhf":
        return str(field.rpartition("\n\nAssistant: ")[2])
    return str(field[-1]["content"] if source == "capybara" else field)


def _set_answer(source: str, row: Row, side: int, text: str | bool) -> None:
    if source == "helpsteer":
        row["response"] = text
    elif source == "summarize":
        row["summaries"][side]["text"] = text
    elif source in ("ultrafeedback", "code_ultrafeedback"):
        row["completions" if source == "ultrafeedback" else "responses"][side]["response"] = text
    elif source == "hh_rlhf":
        head, tag, _ = row[_FIELDS[source][side]].rpartition("\n\nAssistant: ")
        row[_FIELDS[source][side]] = f"{head}{tag}{text}"
    elif source == "capybara":
        row[_FIELDS[source][side]][-1]["content"] = text
    else:
        row[_FIELDS[source][side]] = text


def _swap(source: str, row: Row) -> None:
    """Exchange the two answers and leave the label, so that the copy says the opposite."""
    first, second = _get_answer(source, row, 0), _get_answer(source, row, 1)
    _set_answer(source, row, 0, second)
    _set_answer(source, row, 1, first)
    if source == "capybara":
        row["conversation"][-1]["output"] = second
    if source == "pku_safe_rlhf":
        row["is_response_0_safe"] = row["is_response_1_safe"] = True


def _tie(source: str, rows: list[Row], index: int) -> None:
    """Give two answers of one prompt the same score."""
    row = rows[index]
    if source == "helpsteer":
        rows[index + 1].update(helpfulness=row["helpfulness"], correctness=row["correctness"])
    elif source == "ultrafeedback":
        first, second = row["completions"][:2]
        second["annotations"] = copy.deepcopy(first["annotations"])
        second.update({"fine-grained_score": first["fine-grained_score"], "overall_score": first["overall_score"]})
    elif source == "code_ultrafeedback":
        row["annotations"][1]["rating"] = row["annotations"][0]["rating"]
    elif source == "argilla_math":
        row["rejected_rating"] = row["chosen_rating"]
    elif source == "orca":
        row.update(rating=[row["rating"][0]] * 2, status="tie")
    else:
        row["rating_rejected"] = row["rating_chosen"]


def _contradict(source: str, row: Row) -> None:
    """Make another field say the opposite of the label."""
    if source == "shp":
        row["labels"] = 1 - row["labels"]
    elif source == "pku_safe_rlhf":
        row["safer_response_id"] = 1 - row["better_response_id"]
    elif source == "argilla_math":
        row["chosen_rating"], row["rejected_rating"] = row["rejected_rating"], row["chosen_rating"]
    elif source == "orca":
        row["status"] = "tie"
    else:
        row["rating_chosen"], row["rating_rejected"] = row["rating_rejected"], row["rating_chosen"]


def _break_alternation(source: str, row: Row) -> None:
    """Put one more turn of the same role before the last answer, on both sides alike."""
    if source == "hh_rlhf":
        for side in ("chosen", "rejected"):
            head, tag, answer = row[side].rpartition("\n\nAssistant: ")
            row[side] = f"{head}{tag}One moment.{tag}{answer}"
    elif source == "ultrainteract":
        row["trajectory"].append({"from": "user", "value": "Please go on."})
    else:
        for side in ("chosen", "rejected"):
            row[side].insert(-1, {"role": "user", "content": "Please go on."})


def _change_context(source: str, row: Row) -> None:
    """Let the two sides differ before the last answer."""
    if source == "hh_rlhf":
        head, tag, answer = row["rejected"].rpartition("\n\nAssistant: ")
        row["rejected"] = f"{head} Quickly!{tag}{answer}"
    else:
        row["rejected"][-2]["content"] += " Quickly!"
