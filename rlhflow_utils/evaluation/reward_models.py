"""How often do the RM and the PM prefer the better answer of a held-out pair, and does the RM follow length?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from rlhflow_utils.evaluation.judges import compare_rewards
from rlhflow_utils.evaluation.statistics import accuracy, calibration, mean_pearson, pearson_per_prompt
from rlhflow_utils.guide import settings as sections
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage, write_json
from rlhflow_utils.models.chat import Message
from rlhflow_utils.models.forward import Model
from rlhflow_utils.models.preference_model import preference_probability
from rlhflow_utils.models.reward_model import count_unscored, score
from rlhflow_utils.simulator.gold import World

Method = Literal["bt", "pm", "prompting"]
Row = Mapping[str, Any]
Pair = tuple[Sequence[Message], str, str]  # prompt, chosen, rejected
OTHER_SIDE = {"chosen": "rejected", "rejected": "chosen", "chosen_score": "rejected_score",
              "rejected_score": "chosen_score"}  # fmt: skip


@stage
def write_clean_test_pairs(
    data: Artifact, evaluation: sections.EvaluationSettings, world: sections.WorldSettings | None, *, into: Path
) -> Summary:
    """The held-out pairs of chapter 01, relabelled where the truth is known; `skill` is null where it is not."""
    from datasets import Dataset

    rows = list(data.dataset("test"))
    kept, dropped, wrong = [{**row, "skill": None} for row in rows], dict[str, int](), 0
    if evaluation.judge == "gold" and world:
        kept, dropped, wrong = relabel_by_gold(rows, World(world), evaluation.clean_margin)
    Dataset.from_list(kept).save_to_disk(str(into / "data"))
    metrics = {"pairs": len(kept), "label_noise": round(wrong / max(1, len(kept)), 4)}
    return Summary({"pairs": Rows(len(rows), len(kept), dropped)}, metrics)


def relabel_by_gold(
    rows: Sequence[Row], world: World, margin: float
) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """Pairs with the truly better answer first and their `skill`; rows dropped by reason; how many labels were wrong.

    Annotators err, so accuracy against their labels has a ceiling below 1. Pairs whose gold rewards differ by less than
    `margin` (both answers right, or both wrong) have no clear truth: ``small_gold_gap``. Scores move with the answers.
    """
    kept, dropped, wrong = [], {"no_gold": 0, "small_gold_gap": 0}, 0
    for row in rows:
        question = row["prompt"][-1]["content"]
        chosen, rejected = (world.reward(question, row[side][-1]["content"]) for side in ("chosen", "rejected"))
        gap, skill = chosen - rejected, world.skill_of(question)
        if skill == "unknown":
            dropped["no_gold"] += 1
        elif gap == 0 or abs(gap) < margin:
            dropped["small_gold_gap"] += 1
        else:
            wrong += gap < 0
            turned = {name: row.get(other) for name, other in OTHER_SIDE.items() if gap < 0}
            kept.append({**row, **turned, "skill": skill})
    return kept, dropped, wrong


def score_pairs(
    judge: Model, method: Method, pairs: Sequence[Pair], batch_tokens: int, model: sections.ModelSettings | None = None,
    output: int | str | None = None, actors: int | None = None, folder: Path | None = None,
) -> pd.DataFrame:  # fmt: skip
    """What a judge says about each pair that it can read (others are too long for it, or refused), by the pair's place.

    `chosen` and `rejected` are a number for each answer. `bt` scores each alone. `pm` and `prompting` read both, in
    both orders: P(chosen is preferred), and its complement, from the next-token probabilities of A and B of a trained
    PM, or of a model without preference labels. `outcome` is 1 where chosen is preferred, 0.5 for a tie, else 0.
    `folder` keeps finished shards.
    """
    if method == "bt":
        each = {(id(prompt), answer): (prompt, answer) for prompt, *answers in pairs for answer in answers}
        scored = score(judge, list(each.values()), batch_tokens, model, output, actors, folder)
        rewards = dict(zip(each, scored, strict=True))
        sides = [[rewards[id(prompt), both[side]] for prompt, *both in pairs] for side in (0, 1)]
    else:
        probabilities = preference_probability(judge, pairs, batch_tokens, model, actors, folder)
        sides = [probabilities, [None if p is None else 1.0 - p for p in probabilities]]
    columns = {"chosen": sides[0], "rejected": sides[1], "outcome": compare_rewards(*sides)}
    return pd.DataFrame(columns, dtype=float).dropna()


@stage
def evaluate_judge(
    judge: Model, method: Method, pairs: Artifact,
    settings: sections.RewardModelSettings | sections.PreferenceModelSettings, model: sections.ModelSettings,
    confidence: float, actors: int | None = None, *, into: Path,
) -> Summary:  # fmt: skip
    """Accuracy of an RM (`bt`) or a PM (`pm`, both orders averaged) on pairs; more of it in `results.json`."""
    output = settings.output if isinstance(settings, sections.RewardModelSettings) else None
    rows = list(pairs.dataset())
    texts = [(row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows]
    table = score_pairs(judge, method, texts, settings.batch_tokens, model, output, actors, into / "shards")
    dropped = count_unscored(judge, model, [row["prompt"] for row in rows], {*table.index}, method == "bt")
    counts = Rows(len(rows), len(table), dropped)
    longer = compare_rewards(*([len(text[side]) for text in texts] for side in (1, 2)))
    table = table.join(pd.DataFrame({"skill": [row["skill"] for row in rows], "longer": longer}))
    overall = accuracy(table["outcome"], confidence)
    skills = {str(skill): accuracy(part["outcome"], confidence) for skill, part in table.groupby("skill")}
    chosen, rejected = table["chosen"], table["rejected"]
    probabilities = special.expit(chosen - rejected) if method == "bt" else chosen
    # Every pair enters once as (chosen, rejected) and once the other way round: the table is symmetric.
    bins = calibration([*probabilities, *(1 - probabilities)], [1] * len(table) + [0] * len(table))
    gaps = np.abs(np.subtract(bins["predicted"], bins["observed"]))
    longer_wins = accuracy(table["longer"], confidence)
    results = {
        "accuracy": asdict(overall), "longer_wins": asdict(longer_wins),
        "ties": int((table["outcome"] == 0.5).sum()), "skills": {name: asdict(each) for name, each in skills.items()},
        "calibration": bins, "calibration_error": float(np.average(gaps, weights=bins["count"])),
    }  # fmt: skip
    if method == "bt":
        results |= {"chosen_rewards": chosen.tolist(), "rejected_rewards": rejected.tolist()}
    write_json(into / "results.json", results)
    by_name = {f"accuracy_{skill}": estimate.value for skill, estimate in skills.items()}
    return Summary({"pairs": counts}, {**overall.metrics("accuracy"), **longer_wins.metrics("longer_wins"), **by_name})


@stage
def measure_length_bias(scores: Artifact, evaluation: sections.EvaluationSettings, seed: int, *, into: Path) -> Summary:
    """Pearson correlation of length and reward over the responses of each prompt, and its mean over prompts.

    A prompt whose responses all have the same length or reward has no correlation; it is counted as `undefined`.
    """
    rows = scores.dataset()
    lengths, rewards = np.array(rows["lengths"][:], dtype=float), np.array(rows["rewards"][:], dtype=float)
    correlations = pearson_per_prompt(lengths, rewards)
    estimate, undefined = mean_pearson(correlations, evaluation.bootstrap_samples, evaluation.confidence, seed)
    shown = [None if np.isnan(value) else float(value) for value in correlations]
    table = {"lengths": lengths.tolist(), "rewards": rewards.tolist()}
    write_json(into / "results.json", {"mean": asdict(estimate), "correlations": shown, **table})
    prompts = Rows(len(rows), len(rows) - undefined, {"undefined": undefined})
    return Summary({"prompts": prompts}, estimate.metrics("mean_pearson"))
