"""Reads what the arms measured back from their stage folders: of a claims run, or of the guide's own run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhflow_utils import rewardbench
from rlhflow_utils.claims.arm_runs import arm_stage
from rlhflow_utils.claims.arms import MAIN, Arm, build_arms, same_as_main
from rlhflow_utils.claims.designs import SECTIONS
from rlhflow_utils.claims.effects import Measure
from rlhflow_utils.manifest import Run

POLICY_METRICS = {
    "win_rate": ("win_rate", "outcome"),
    "lc_win_rate": ("lc_win_rate", None),
    "right": ("right_share", "right"),
    "length": ("mean_length", "length"),
    "gold": ("reward", "reward"),
    "proxy": ("proxy_reward", "proxy_reward"),
}  # our name -> key of the estimate, and of the numbers by prompt


def measure_arm(run: Run, name: str) -> dict[str, Measure]:
    """Everything an arm measured under one seed, by metric; policies' metrics end in ``@iteration``.

    Raises:
        FileNotFoundError: a stage of the arm is missing.
    """
    if name in ("prompting", "bt", "pm", "bt_mix1") or name.startswith("bt_share"):
        return measure_judge(run, name)
    if name.startswith("share"):
        accuracy = {"accuracy": _measure(_results(run, f"03_bt_{name}_test")["accuracy"])}
        return accuracy | _training_cost(run, [f"03_bt_{name}"])
    if name == "bon":
        return measure_best_of_n(_results(run, "11_bon"))
    if name == "sft":
        return _policy(run, "09_sft_evaluation", "") | _exact_match(run, "sft")
    if name == "offline":
        policy = _policy(run, "10_offline_dpo_evaluation", "") | _exact_match(run, "offline_dpo")
        return policy | _training_cost(run, ["10_offline_dpo"])
    return measure_loop(run, build_arms(run.profile)[name])


def measure_judge(run: Run, label: str) -> dict[str, Measure]:
    """RewardBench by section; of trained judges also their cost and accuracy, of RMs the correlation with length."""
    stage = f"05_rewardbench_{label}"
    sections, units = _results(run, stage)["sections"], section_units(run.folder(stage).path / "verdicts.jsonl")
    found = {section: _measure(sections[section], units[section]) for section in SECTIONS if sections[section]}
    found["overall"] = _measure(sections["overall"])
    main = run.profile.data.main_mixture
    if label.startswith("bt"):
        mixture = main if label == "bt" else label.removeprefix("bt_")
        found["length_correlation"] = _measure(_results(run, f"06_length_bias_{mixture}")["mean"])
        found |= _training_cost(run, [f"03_bt_{mixture}"])
    if label == "bt":
        found["accuracy"] = _measure(_results(run, f"03_bt_{main}_test")["accuracy"])
    if label == "pm":
        found["accuracy"] = _measure(_results(run, f"04_pm_{main}_test")["accuracy"])
        found |= _training_cost(run, [f"04_pm_{main}"])
    return found


def measure_loop(run: Run, arm: Arm) -> dict[str, Measure]:
    """A policy arm: its evaluated iterations, how far its rewards moved, which gold was best, and what it cost.

    Gold moves from SFT on, the proxy from iteration 1: an arm's RM may not have scored SFT's answers.
    """
    stages = MAIN if same_as_main(arm, run.profile) else arm.name
    found: dict[str, Measure] = {}
    for iteration in arm.evaluated():
        found |= _policy(run, arm_stage(stages, iteration, "evaluation"), f"@{iteration}")
    if arm.evaluate_all and arm.iterations > 1:
        start, last = _policy(run, "09_sft_evaluation", "")["gold"], arm.iterations
        found["gold_gain"] = gain(start, found[f"gold@{last}"])
        found["proxy_gain"] = gain(found["proxy@1"], found[f"proxy@{last}"])
        gold = [start, *(found[f"gold@{k}"] for k in arm.evaluated())]
        found["best_iteration"] = _exact(float(np.argmax([measure.value for measure in gold])))
    if arm.exact_match:
        found |= _exact_match(run, "iterative_dpo" if stages == MAIN else arm.name)
    if arm.ranker.startswith("pm") or arm.name == "no_penalty":
        found |= _ranking_cost(run, arm)
    trained = [
        arm_stage(MAIN if iteration < arm.first else stages, iteration, "dpo")
        for iteration in range(1, arm.iterations + 1)
    ]
    return found | _training_cost(run, trained)


def section_units(verdicts: Path) -> dict[str, list[float]]:
    """RewardBench section -> one number per pair, in the file's order, whose plain mean is the section's score.

    A pair counts 1 where chosen is preferred, else 0 (a tie, too), times its subset's share of the section's weight
    over its share of the section's pairs. So two judges of the same pairs can be compared pair by pair.

    Args:
        verdicts: a stage's ``verdicts.jsonl``.
    """
    rows = [json.loads(line) for line in verdicts.read_text(encoding="utf-8").splitlines()]
    sizes = Counter(row["subset"] for row in rows)
    units = {}
    for section, weights in rewardbench.SECTIONS.items():
        mine = [row for row in rows if row["subset"] in weights]
        total = sum(weight for subset, weight in weights.items() if sizes[subset])
        scale = {
            subset: weight * len(mine) / (total * sizes[subset]) for subset, weight in weights.items() if sizes[subset]
        }
        units[section] = [float(row["outcome"] == 1) * scale[row["subset"]] for row in mine]
    return units


def gain(first: Measure, last: Measure) -> Measure:
    """How far a mean over prompts moved; the interval is normal, over the prompts' own differences.

    Raises:
        ValueError: the two do not have one number for each of the same prompts.
    """
    if first.units is None or last.units is None or len(first.units) != len(last.units):
        raise ValueError("a gain needs one number per prompt from both, in the same order")
    units = np.asarray(last.units) - np.asarray(first.units)
    half = 1.96 * float(units.std(ddof=1)) / len(units) ** 0.5
    value = float(units.mean())
    return Measure(value, value - half, value + half, len(units), tuple(units.tolist()))


def measure_best_of_n(results: Mapping[str, Any]) -> dict[str, Measure]:
    """KL of best-of-n by n, and its distance from the bound; the mean over prompts."""
    found = {}
    for n, values in results["kl"].items():
        bound = results["bound"][n]
        found[f"kl_{n}"] = _mean(values)
        found[f"slack_{n}"] = _mean([bound - value for value in values])
    return found


def _policy(run: Run, stage: str, suffix: str) -> dict[str, Measure]:
    results = _results(run, stage)
    found = {}
    for name, (key, by_prompt) in POLICY_METRICS.items():
        estimate = results["estimates"].get(key)
        if estimate is not None:
            found[name + suffix] = _measure(estimate, results["prompts"][by_prompt] if by_prompt else None)
    return found


def _exact_match(run: Run, name: str) -> dict[str, Measure]:
    results = _results(run, f"10_{name}_exact_match")
    return {"exact_match": _measure(results["exact_match"], results["prompts"]["correct"])}


def _training_cost(run: Run, stages: Sequence[str]) -> dict[str, Measure]:
    """Pairs, optimiser steps and tokens of training, each summed over an arm's iterations."""
    folders = [run.folder(stage) for stage in stages]
    logs = [folder.read_json("log.json") for folder in folders]
    return {
        "pairs": _exact(float(sum(folder.rows["training_rows"]["rows_out"] for folder in folders))),
        "updates": _exact(float(sum(log["steps"] for log in logs))),
        "tokens": _exact(float(sum(log["tokens"] for log in logs))),
    }


def _ranking_cost(run: Run, arm: Arm) -> dict[str, Measure]:
    """Forward passes for each prompt of iteration 1, and the seconds the ranking took."""
    if not arm.ranker.startswith("pm"):
        seconds = float(run.folder("08_iter1_scores").manifest["wall_seconds"])
        return {"passes": _exact(run.profile.generation.responses), "ranking_seconds": _exact(seconds)}
    folder = run.folder(f"11_{arm.name}_iter1_scores")
    passes = float(folder.metrics[f"11.{arm.name}_iter1_scores.passes"] or 0)
    return {"passes": _exact(passes), "ranking_seconds": _exact(float(folder.manifest["wall_seconds"]))}


def _results(run: Run, stage: str) -> dict[str, Any]:
    return dict(run.folder(stage).read_json("results.json"))


def _measure(estimate: Mapping[str, Any], units: Sequence[float] | None = None) -> Measure:
    by_prompt = None if units is None else tuple(float(value) for value in units)
    return Measure(estimate["value"], estimate["ci_low"], estimate["ci_high"], estimate["n"], by_prompt)


def _exact(value: float) -> Measure:
    return Measure(value, value, value, 1)


def _mean(values: Sequence[float]) -> Measure:
    vector = np.asarray(values, dtype=float)
    half = 1.96 * float(vector.std(ddof=1)) / len(vector) ** 0.5
    return Measure(
        float(vector.mean()),
        float(vector.mean()) - half,
        float(vector.mean()) + half,
        len(vector),
        tuple(vector.tolist()),
    )
