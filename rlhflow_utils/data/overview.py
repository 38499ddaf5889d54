"""What the candidate pairs look like: Table 1 beside the paper's, the funnel, the prompt map; the command `data`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhflow_utils.data.filters import DROPPED, words_of
from rlhflow_utils.guide.settings import ModelSettings
from rlhflow_utils.models.chat import load_tokenizer
from rlhflow_utils.models.forward import Model

if TYPE_CHECKING:
    import pandas as pd

TokenLength = Callable[[list[str]], list[int]]  # texts -> their lengths
TOPICS = 20  # singular vectors kept of TF-IDF

TABLE1 = yaml.safe_load((Path(__file__).parent / "table1.yaml").read_text(encoding="utf-8"))
PAPER_TABLE1: dict[str, dict[str, Any]] = TABLE1["paper"]  # source -> its row, under the names of `table1`


def token_length(tokenizer: Model | None, settings: ModelSettings) -> TokenLength | None:
    """The function from texts to lengths in tokens, without special tokens; None where there is no tokenizer."""
    if tokenizer is None:
        return None
    encode = load_tokenizer(tokenizer, settings)
    return lambda texts: [len(ids) for ids in encode(texts, add_special_tokens=False)["input_ids"]] if texts else []


def funnel(pairs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Source -> native rows, pairs in, dropped by reason, pairs out and pairs by split, from the column `fate`."""
    counts = {}
    for source, rows in pairs.groupby("source", sort=False):
        fates = rows.fate.value_counts().sort_index()
        dropped = fates[fates.index.str.startswith(DROPPED)]
        splits = fates.drop(dropped.index)
        counts[str(source)] = {
            "native_rows": rows.row_id.str.replace(r"#\d+v\d+$", "", regex=True).nunique(), "rows_in": len(rows),
            "dropped": {str(fate).removeprefix(DROPPED): int(n) for fate, n in dropped.items()},
            "rows_out": int(splits.sum()), "splits": {str(split): int(n) for split, n in splits.items()},
        }  # fmt: skip
    return counts


def table1(pairs: pd.DataFrame, sources: Iterable[str], tokenizer: str | None) -> list[dict[str, Any]]:
    """Table 1: one entry per source, over the candidate pairs that pass the filters, held-out prompts included.

    Lengths are in tokens of the `tokenizer` of that name; where it is None, in words.
    """
    passed = pairs[~pairs.fate.str.startswith(DROPPED) | pairs.fate.str.endswith("_overlap")]
    rows = []
    for source in sources:
        of_source, paper = passed[passed.source == source], PAPER_TABLE1.get(source)
        kinds = paper or TABLE1["other"].get(source, {})
        rows.append({
            "source": source, "unit": "tokens" if tokenizer else "words", "tokenizer": tokenizer,
            "prompts": int(of_source.prompt_id.nunique()),
            **{name: _mean(of_source[name], 1) for name in ("prompt_length", "chosen_length", "rejected_length")},
            "completion": kinds.get("completion"), "annotator": kinds.get("annotator"), "pairs": len(of_source),
            "chosen_longer_rate": _mean(of_source.chosen_longer, 3), "paper": paper,
        })  # fmt: skip
    return rows


def _mean(values: pd.Series[Any], digits: int) -> float | None:
    return round(float(values.astype(float).mean()), digits) if len(values) else None


def side_by_side(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Table 1 with two lines a source, the paper's and ours, under the paper's columns."""
    columns = {
        "prompts": "prompts", "prompt len.": "prompt_length", "preferred len.": "chosen_length",
        "rejected len.": "rejected_length", "completion": "completion", "annotator": "annotator", "pairs": "pairs",
    }  # fmt: skip
    return [
        {"dataset": row["source"], "": whose, **{title: line[name] for title, name in columns.items()}}
        for row in rows for whose, line in (("paper", row["paper"]), ("ours", row)) if line
    ]  # fmt: skip


def explain_table1(rows: Sequence[Mapping[str, Any]], origin: str, differences: Mapping[str, str]) -> list[str]:
    """Why `table1`'s rows differ from the paper: one line for the lengths, then one a source.

    `origin`: ``world`` (simulated rows), ``files`` (local copies, perhaps slices) or ``hub``. `differences`: source ->
    what is known about the paper's count (`data_cards/facts.yaml`).
    """
    unit = f"tokens of {rows[0]['tokenizer']}" if rows[0]["tokenizer"] else rows[0]["unit"]
    lines = [f"Lengths: ours in {unit}; the paper's unit is not stated (presumably tokens of an unnamed tokenizer)."]
    if origin == "world":
        return [*lines, "Rows: ours are simulated, in the source's native schema; number and length are built in."]
    local = "local rows, perhaps a part of the source; " if origin == "files" else ""
    for row in (row for row in rows if row["paper"]):
        share, known = row["pairs"] / row["paper"]["pairs"], differences.get(row["source"], "")
        lines.append(f"{row['source']}: {share:.1%} of the paper's pairs; {local}{known}".rstrip("; "))
    return lines


def prompt_map(prompts: Sequence[tuple[str, str]], seed: int) -> list[dict[str, Any]]:
    """``[{source, x, y}]`` of (source, text): TF-IDF, its leading singular vectors, and their two principal axes.

    Prompts near each other share words. A handful of prompts without a shared word gives an empty list.
    """
    from sklearn.decomposition import PCA, TruncatedSVD  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]

    try:
        texts = [text for _, text in prompts]
        weights = TfidfVectorizer(analyzer=words_of, min_df=2, sublinear_tf=True).fit_transform(texts)
        topics = TruncatedSVD(min(TOPICS, min(weights.shape) - 1), random_state=seed).fit_transform(weights)
        points = PCA(2, random_state=seed).fit_transform(topics)
    except ValueError:
        return []
    return [{"source": source, "x": round(float(x), 4), "y": round(float(y), 4)}
            for (source, _), (x, y) in zip(prompts, points, strict=True)]  # fmt: skip
