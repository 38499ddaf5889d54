"""RewardBench (Lambert et al. 2024): does a model prefer the better of two answers?

23 subsets in four sections. A section's score is the mean accuracy of its subsets, weighted by Allen AI's constants
(the row counts, except that the 447 rows of math-prm weigh 984, as much as the six code subsets together); the
overall score is the plain mean of the sections.

Published figures differ in two conventions; `results.json` has both. The paper (May 2024) may carry XSTest's weights as
they were until September 2024: 154 and 250 swapped. A tie counts 0 in Allen AI's runner and in our headline figures,
and one half with the paper's authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlhflow_utils.data.reading import Candidate, Root, SourceError
from rlhflow_utils.data.sources import read
from rlhflow_utils.evaluation.reward_models import Method, score_pairs
from rlhflow_utils.evaluation.statistics import Estimate, accuracy, weighted_mean
from rlhflow_utils.guide.settings import ModelSettings, RewardBenchSettings
from rlhflow_utils.guide.stage import Metric, Rows, Summary, stage, write_json
from rlhflow_utils.models.forward import Model
from rlhflow_utils.models.reward_model import count_unscored

Row = Mapping[str, Any]
Scores = dict[str, Estimate | None]
_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SECTIONS: dict[str, dict[str, int]] = _DATA["sections"]  # section -> subset -> weight
WEIGHTS = {subset: weight for subsets in SECTIONS.values() for subset, weight in subsets.items()}
WEIGHTS_MAY_2024 = {**WEIGHTS, **_DATA["may_2024"]}


@stage
def evaluate_rewardbench(
    judge: Model, method: Method, settings: RewardBenchSettings, root: Root, batch_tokens: int, model: ModelSettings,
    confidence: float, output: int | str | None = None, actors: int | None = None, *, into: Path,
) -> Summary:  # fmt: skip
    """One model's scores: `results.json` (`summarise`) and `pairs.jsonl`, a row of `judge_rows` a line."""
    rows, without_pair = load_benchmark(settings, root)
    pairs = judge_rows(rows, method, judge, batch_tokens, model, output, actors, into / "shards")
    dropped = count_unscored(judge, model, [row["prompt"] for row in rows], {*pairs.index}, method == "bt")
    counts = Rows(len(rows) + without_pair, len(pairs), {"no_pair": without_pair, **dropped})
    pairs.to_json(into / "pairs.jsonl", orient="records", lines=True, double_precision=15)
    results = {"method": method, **summarise(pairs, confidence)}
    write_json(into / "results.json", results)
    metrics: dict[str, Metric] = {}
    for section, found in results["sections"].items():
        metrics |= Estimate(**found).metrics(section) if found else {section: None}
    return Summary({"pairs": counts}, metrics)


def load_benchmark(settings: RewardBenchSettings, root: Root) -> tuple[list[Row], int]:
    """The benchmark's pairs (`prompt` is messages, the answers are texts), and how many native rows hold none.

    SourceError where something else than a text stands for an answer (RewardBench 2 has lists of answers).
    """
    rows: list[Row] = []
    without_pair = 0
    for source in settings.sources:
        for each in read(source, root, Candidate):
            sides = {"chosen": each.chosen, "rejected": each.rejected}
            if each.evidence is not None or None in sides.values():
                without_pair += 1
                continue
            for field, text in sides.items():
                if not isinstance(text, str):
                    raise SourceError(
                        f"source {source.name!r}: row {each.row_id}: field {field!r} must be a string, found "
                        f"{type(text).__name__}; rewardbench.sources wants one, rewardbench.rewardbench_2 lists"
                    )
            rows.append({"row_id": each.row_id, "subset": each.subset, "prompt": each.prompt, **sides})
    return rows, without_pair


def judge_rows(
    rows: Sequence[Row], method: Method, judge: Model, batch_tokens: int, model: ModelSettings | None = None,
    output: int | str | None = None, actors: int | None = None, folder: Path | None = None,
) -> pd.DataFrame:  # fmt: skip
    """`score_pairs` of each row that the judge can read, behind `row_id`, `subset` and `prompt_length`.

    The last is in characters, of all turns; the index is the row's place.
    """
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    table = pd.DataFrame(rows, columns=["row_id", "subset"])
    table["prompt_length"] = [sum(len(turn["content"]) for turn in prompt) for prompt, _, _ in texts]
    said = score_pairs(judge, method, texts, batch_tokens, model, output, actors, folder)
    return table.join(said, how="inner")


def summarise(pairs: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """Sections and subsets of one model, under both conventions of ties and both weightings."""
    strict, half = (subset_accuracies(pairs, tie, confidence) for tie in (0.0, 0.5))
    tables: dict[str, Mapping[str, Estimate | None]] = {
        "sections": section_scores(strict), "sections_ties_half": section_scores(half),
        "sections_weights_may_2024": section_scores(strict, WEIGHTS_MAY_2024), "subsets": strict,
    }  # fmt: skip
    return {
        "n": len(pairs), "ties": int((pairs["outcome"] == 0.5).sum()), "confidence": confidence,
        **{name: {key: found and asdict(found) for key, found in table.items()} for name, table in tables.items()},
        "missing_subsets": {name: left for name, each in SECTIONS.items() if (left := sorted({*each} - {*strict}))},
    }  # fmt: skip


def subset_accuracies(pairs: pd.DataFrame, tie: float, confidence: float) -> dict[str, Estimate]:
    """Accuracy of each subset with Wilson's interval; `tie` is what a tie counts, 0 (Allen AI) or 0.5 (the authors)."""
    correct = pairs["outcome"].replace(0.5, tie).groupby(pairs["subset"], sort=False)
    return {str(subset): accuracy(values, confidence) for subset, values in correct}


def section_scores(accuracies: Mapping[str, Estimate], weights: Mapping[str, int] = WEIGHTS) -> Scores:
    """Scores of the four sections, each over its subsets present (None: no rows), and `overall`, their plain mean.

    A subset that is not RewardBench's, or nothing at all, is a ValueError.
    """
    unknown = sorted(set(accuracies) - set(WEIGHTS))
    if unknown or not accuracies:
        raise ValueError(f"RewardBench subsets {unknown or 'are absent'}: the known ones are {', '.join(WEIGHTS)}")
    scores: Scores = {}
    for section, subsets in SECTIONS.items():
        present = [subset for subset in subsets if subset in accuracies]
        parts = [accuracies[subset] for subset in present]
        scores[section] = weighted_mean(parts, [weights[subset] for subset in present]) if parts else None
    found = [each for each in scores.values() if each is not None]
    return {**scores, "overall": weighted_mean(found, [1] * len(found))}
