"""How often do the RM and the PM prefer the better answer of a held-out pair, and does the RM follow length?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhflow_utils.evaluation.judges import compare_rewards
from rlhflow_utils.evaluation.statistics import accuracy, calibration, mean_pearson, pearson_per_prompt
from rlhflow_utils.guide import settings as sections
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage, write_json
from rlhflow_utils.models.forward import Model
from rlhflow_utils.models.preference_model import preference_probability
from rlhflow_utils.models.reward_model import score
from rlhflow_utils.simulator.gold import World

Row = Mapping[str, Any]
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


@stage
def evaluate_reward_model(
    reward_model: Model, pairs: Artifact, settings: sections.RewardModelSettings, model: sections.ModelSettings,
    confidence: float, *, into: Path,
) -> Summary:  # fmt: skip
    """Accuracy of an RM on pairs."""
    rows = list(pairs.dataset())
    conversations = [(row["prompt"], row[side][-1]["content"]) for row in rows for side in ("chosen", "rejected")]
    scores = score(reward_model, conversations, settings.batch_tokens, model)
    chosen, rejected = scores[0::2], scores[1::2]
    probabilities = [float(1 / (1 + np.exp(b - a))) for a, b in zip(chosen, rejected, strict=True)]
    return _report(rows, probabilities, confidence, into, chosen_rewards=chosen, rejected_rewards=rejected)


@stage
def evaluate_preference_model(
    preference_model: Model, pairs: Artifact, settings: sections.PreferenceModelSettings, model: sections.ModelSettings,
    confidence: float, *, into: Path,
) -> Summary:  # fmt: skip
    """Accuracy of a PM on pairs, both orders averaged."""
    rows = list(pairs.dataset())
    comparisons = [(row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows]
    probabilities = preference_probability(preference_model, comparisons, settings.batch_tokens, model)
    return _report(rows, probabilities, confidence, into)


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


def _report(
    rows: Sequence[Row], probabilities: Sequence[float], confidence: float, into: Path, **rewards: list[float]
) -> Summary:
    """Write `results.json` from each pair's P(chosen is preferred)."""
    correct = compare_rewards(probabilities, [0.5] * len(rows))
    overall = accuracy(correct, confidence)
    names = np.array([row["skill"] or "" for row in rows])
    skills = {name: accuracy(np.array(correct)[names == name], confidence) for name in sorted({*names} - {""})}
    # Every pair enters once as (chosen, rejected) and once the other way round: the table is symmetric.
    both = [*probabilities, *(1 - p for p in probabilities)]
    table = calibration(both, [1] * len(rows) + [0] * len(rows))
    gaps = np.subtract(table["predicted"], table["observed"])
    lengths = ([len(row[side][-1]["content"]) for row in rows] for side in ("chosen", "rejected"))
    results = {
        "accuracy": asdict(overall), "longer_wins": asdict(accuracy(compare_rewards(*lengths), confidence)),
        "ties": correct.count(0.5), "skills": {skill: asdict(estimate) for skill, estimate in skills.items()},
        "calibration": table, "calibration_error": float(np.average(np.abs(gaps), weights=table["count"])), **rewards,
    }  # fmt: skip
    write_json(into / "results.json", results)
    by_name = {f"accuracy_{skill}": estimate.value for skill, estimate in skills.items()}
    return Summary({"pairs": Rows(len(rows), len(rows))}, {**overall.metrics("accuracy"), **by_name})
