"""How often do the RM and the PM prefer the better answer of a held-out pair?

Beside each model stands the rule "the longer answer wins": an accuracy is worth what it adds to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhflow_utils.evaluation.judges import GoldJudge, build_judge, clean_pairs
from rlhflow_utils.evaluation.statistics import accuracy, calibration, mean_pearson, pearson_per_prompt
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.models import preference_model, reward_model

if TYPE_CHECKING:
    from rlhflow_utils.guide.stage import Stage


def measure_length_bias(stage: Stage, label: str) -> None:
    """Stage: Pearson correlation of length and reward over the responses of each prompt, and its mean over prompts.

    Input `scores`: scored responses. A prompt whose responses all have the same length or reward has no correlation; it
    is counted under `undefined`. Metric: ``06.length_bias.mean_pearson.<label>``.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(stage.inputs["scores"] / "data"))
    lengths, rewards = np.array(rows["lengths"], dtype=float), np.array(rows["rewards"], dtype=float)
    correlations = pearson_per_prompt(lengths, rewards)
    settings = stage.profile.evaluation
    estimate, undefined = mean_pearson(correlations, settings.bootstrap_samples, settings.confidence, stage.seed)
    stage.account("prompts", len(rows), len(rows) - undefined, {"undefined": undefined})
    for metric, value in estimate.metrics(f"06.length_bias.mean_pearson.{label}").items():
        stage.metric(metric, round(value, 4))
    shown = [None if np.isnan(value) else float(value) for value in correlations]
    write_json(
        stage.out / "results.json",
        {"mean": asdict(estimate), "correlations": shown, "lengths": lengths.tolist(), "rewards": rewards.tolist()},
    )


def write_clean_test_pairs(stage: Stage) -> None:
    """Stage: held-out pairs, relabelled by the gold reward where there is one (`judge.clean_pairs`).

    A clean label needs a clear truth. Pairs whose gold rewards differ by less than `evaluation.clean_margin` (both
    answers right, or both wrong) are left out as ``small_gold_gap``; prompts that the gold program cannot read as
    ``no_gold``. Without a simulated world the pairs stay as annotated. Input `data` (chapter 01); writes `data`
    with the standard columns and `skill` (null without a simulated world).
    """
    from datasets import Dataset, load_from_disk

    rows = list(load_from_disk(str(stage.inputs["data"] / "test")))
    settings = stage.profile.evaluation
    if settings.judge == "gold":
        judge = build_judge(settings, stage.profile.world, None, stage.profile.reward_model.batch_tokens)
        assert isinstance(judge, GoldJudge)
        kept, dropped, flipped = _decisive(rows, judge, settings.clean_margin)
    else:
        kept, dropped, flipped = [{**row, "skill": None} for row in rows], dict[str, int](), 0
    stage.account("test pairs", len(rows), len(kept), dropped)
    stage.metric("03.test.pairs", len(kept))
    stage.metric("03.test.label_noise", round(flipped / max(1, len(kept)), 4))
    Dataset.from_list(kept).save_to_disk(str(stage.out / "data"))


def _decisive(
    rows: Sequence[dict[str, Any]], judge: GoldJudge, margin: float
) -> tuple[list[dict[str, Any]], dict[str, int], int]:
    """Pairs with a clear truth, the better answer first; what was dropped; how many labels were wrong."""
    kept, dropped, flipped = [], {"no_gold": 0, "small_gold_gap": 0}, 0
    for row in rows:
        skill = judge.world.skill_of(row["prompt"][-1]["content"])
        pair = [row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
        better, worse = judge.rewards([row["prompt"]] * 2, pair)
        if skill == "unknown":
            dropped["no_gold"] += 1
        elif abs(better - worse) < margin:
            dropped["small_gold_gap"] += 1
        else:
            wrong = better < worse
            kept += [{**clean, "skill": skill} for clean in clean_pairs([row], judge).rows]
            flipped += wrong
    return kept, dropped, flipped


def evaluate_reward_model(stage: Stage, key: str) -> None:
    """Stage: accuracy of an RM on held-out pairs. Inputs: `model`, `pairs`. Metric: ``<key>.accuracy``."""
    rows = _load(stage.inputs["pairs"])
    conversations = [(row["prompt"], row[side][-1]["content"]) for row in rows for side in ("chosen", "rejected")]
    scores = reward_model.score(stage.inputs["model"] / "model", conversations, stage.profile.reward_model.batch_tokens)
    chosen, rejected = scores[0::2], scores[1::2]
    probabilities = [float(1 / (1 + np.exp(b - a))) for a, b in zip(chosen, rejected, strict=True)]
    _report(stage, key, rows, probabilities, {"chosen_rewards": chosen, "rejected_rewards": rejected})


def evaluate_preference_model(stage: Stage, key: str) -> None:
    """Stage: accuracy of a PM on held-out pairs, both orders averaged. Inputs: `model`, `pairs`."""
    rows = _load(stage.inputs["pairs"])
    comparisons = [(row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows]
    probabilities = preference_model.preference_probability(
        stage.inputs["model"] / "model", comparisons, stage.profile.preference_model.batch_tokens
    )
    _report(stage, key, rows, [float(p) for p in probabilities], {})


def _report(
    stage: Stage, key: str, rows: Sequence[dict[str, Any]], probabilities: Sequence[float], extra: dict[str, Any]
) -> None:
    confidence = stage.profile.evaluation.confidence
    correct = [1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0 for p in probabilities]
    estimate = accuracy(correct, confidence)
    skills = sorted({row["skill"] for row in rows if row["skill"]})
    results = {
        "accuracy": asdict(estimate),
        "longer_wins": asdict(accuracy([_longer_wins(row) for row in rows], confidence)),
        "ties": sum(p == 0.5 for p in probabilities),
        "skills": {
            skill: asdict(
                accuracy([c for c, row in zip(correct, rows, strict=True) if row["skill"] == skill], confidence)
            )
            for skill in skills
        },
        # Every pair enters once as (chosen, rejected) and once the other way round: the table is symmetric.
        "calibration": dict(
            calibration([*probabilities, *(1 - p for p in probabilities)], [1] * len(rows) + [0] * len(rows))
        ),
        **extra,
    }
    write_json(stage.out / "results.json", results)
    stage.account("pairs", len(rows), len(rows))
    for metric, value in estimate.metrics(f"{key}.accuracy").items():
        stage.metric(metric, round(value, 4))
    for skill, skill_result in results["skills"].items():  # type: ignore[attr-defined]
        stage.metric(f"{key}.accuracy.{skill}", round(skill_result["value"], 4))


def _longer_wins(row: dict[str, Any]) -> float:
    chosen, rejected = len(row["chosen"][-1]["content"]), len(row["rejected"][-1]["content"])
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _load(folder: Path) -> list[dict[str, Any]]:
    from datasets import load_from_disk

    return list(load_from_disk(str(folder / "data")))
