"""The plain side of `data.py`: preference rows converted and filtered by `datasets`, one row at a time.

Written the way the released scripts are: a `map` into turns, one `filter` per rule, a `map` into the standard row. The
rules are the package's own, restated here without its code, so that equal output says something.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

TAG = re.compile(r"(?:\A|\n)\n(Human|Assistant):[ \t]*")


def split_dialogue(text: str) -> list[dict[str, str]]:
    """Turns of one dialogue string."""
    _, *parts = TAG.split("\n\n" + text.lstrip("\n"))
    return [
        {"role": "user" if tag == "Human" else "assistant", "content": content.strip()}
        for tag, content in zip(parts[0::2], parts[1::2], strict=True)
    ]


def contents(row: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in row["chosen"] + row["rejected"]]


def no_empty_turn(row: dict[str, Any]) -> bool:
    return all(len(text.strip()) > 0 for text in contents(row))


def no_zero_width(row: dict[str, Any]) -> bool:
    return all(re.sub("[\u200b-\u200d\u2060\ufeff]", "", text).strip() for text in contents(row))


def alternating(row: dict[str, Any]) -> bool:
    for side in (row["chosen"], row["rejected"]):
        if len(side) % 2 != 0:
            return False
        for i, turn in enumerate(side):
            if turn["role"] != ["user", "assistant"][i % 2]:
                return False
    return True


def same_context(row: dict[str, Any]) -> bool:
    return bool(row["chosen"][:-1] == row["rejected"][:-1])


def no_role_tag(row: dict[str, Any]) -> bool:
    pattern = r"(?m)\b(?:Human|Assistant):|^[ \t]*User:"
    return all(re.search(pattern, text) is None for text in contents(row))


def answers_differ(row: dict[str, Any]) -> bool:
    chosen, rejected = (row[side][-1]["content"].split() for side in ("chosen", "rejected"))
    return bool(chosen != rejected)


def meaningful(row: dict[str, Any]) -> bool:
    for side in ("chosen", "rejected"):
        text = row[side][-1]["content"].strip()
        scrap = 1 < len(text) < 3 and text.isascii() and text.isalpha() and not text.isupper()
        if not any(c.isalnum() for c in text) or (scrap and text.lower() not in ("no", "ok", "hi")):
            return False
    return True


class FirstOfItsKind:
    """Whether a pair has not been kept before, as it stands or with its sides exchanged."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.counts: Counter[str] = Counter()

    def __call__(self, row: dict[str, Any]) -> bool:
        answers = [" ".join(row[side][-1]["content"].split()) for side in ("chosen", "rejected")]
        prompt = [[turn["role"], " ".join(turn["content"].split()).casefold()] for turn in row["chosen"][:-1]]
        straight, swapped = (
            hashlib.sha256(json.dumps([prompt, pair]).encode()).hexdigest() for pair in (answers, answers[::-1])
        )
        if straight in self.seen or swapped in self.seen:
            self.counts["duplicate_pair" if straight in self.seen else "swapped_duplicate"] += 1
            return False
        self.seen.add(straight)
        return True


PLAIN_RULES = {
    "empty_turn": no_empty_turn, "zero_width": no_zero_width, "broken_alternation": alternating,
    "unequal_context": same_context, "role_tag_in_turn": no_role_tag, "identical_responses": answers_differ,
    "meaningless": meaningful,
}  # fmt: skip


def to_turns(row: dict[str, Any]) -> dict[str, Any]:
    return {side: split_dialogue(row[side]) for side in ("chosen", "rejected")}


def to_standard(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:],
        "chosen_score": None, "rejected_score": None, "source": "HH-RLHF", "row_id": f"rows:{row['index']}",
    }  # fmt: skip


def run_plain(file: Path, out: Path, is_fused: bool) -> tuple[int, dict[str, int], Path]:
    """`datasets`, row by row: map, filters, map."""
    import datasets

    counts: dict[str, int] = {}
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(out))
    rows = rows.map(lambda row, index: to_turns(row) | {"index": index}, with_indices=True)
    if is_fused:
        rows = rows.filter(lambda row: all(rule(row) for rule in PLAIN_RULES.values()))
    for reason, rule in {} if is_fused else PLAIN_RULES.items():
        kept = rows.filter(rule)
        counts[reason], rows = len(rows) - len(kept), kept
    first = FirstOfItsKind()
    rows = rows.filter(first)
    turns = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    text, score = datasets.Value("string"), datasets.Value("float64")
    features = datasets.Features({
        "prompt": turns, "chosen": turns, "rejected": turns, "chosen_score": score, "rejected_score": score,
        "source": text, "row_id": text,
    })  # fmt: skip
    rows = rows.map(to_standard, remove_columns=rows.column_names, features=features)
    rows.save_to_disk(out / "kept")
    return len(rows), counts | first.counts, out / "kept"
