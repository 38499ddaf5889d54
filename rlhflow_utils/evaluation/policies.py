"""How good is a policy? Its answers to held-out prompts against the SFT model's, prompt by prompt.

Both policies answered the same prompts, so every comparison is a paired one: what is resampled for an interval are
prompts, with both answers. The judge comes from the profile and gives the metrics their prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhflow_utils.evaluation.judges import GoldJudge, Judge, ScoringJudge, build_judge, compare_rewards, judge_pairs
from rlhflow_utils.evaluation.statistics import (
    Estimate,
    accuracy,
    bootstrap_mean,
    length_controlled_win_rate,
    outcome_counts,
)
from rlhflow_utils.models.chat import prompt_key

if TYPE_CHECKING:
    from rlhflow_utils.guide.settings import EvaluationSettings
    from rlhflow_utils.guide.stage import Stage

Row = Mapping[str, Any]


def compare_policies(
    policy: Sequence[Row], reference: Sequence[Row], judge: Judge, settings: EvaluationSettings, seed: int
) -> dict[str, Any]:
    """Judge a policy against a reference on the same prompts.

    Args:
        policy: one row per prompt: `prompt_id`, `prompt` (messages), `responses` (one), `finish_reasons`, and
            optionally `rewards` (the proxy RM's).
        reference: the same prompts answered by the reference policy, in any order.
        judge: who decides.
        settings: the profile's `evaluation` section: bootstrap draws and confidence.
        seed: of the bootstrap.

    Returns:
        JSON values. `estimates` maps a metric's name to its value and interval (`win_rate`, the length-controlled
        `lc_win_rate`, `reward` where the judge scores, `right_share` where it knows right from wrong, `proxy_reward`
        and `proxy_win_rate` where rows carry the training RM's rewards, `mean_length` in characters,
        `truncated_share`); `counts` has wins, ties and losses;
        `judge_counts` what an endpoint reported; `skills` the breakdown by skill (gold judge only); `prompts` the
        arrays behind it all, one entry per prompt.
    """
    rows = _pair_up(policy, reference)
    prompts = [row["prompt"] for row, _ in rows]
    ours, theirs = [row["responses"][0] for row, _ in rows], [row["responses"][0] for _, row in rows]
    arrays: dict[str, list[Any]] = {"prompt_id": [row["prompt_id"] for row, _ in rows]}
    if isinstance(judge, ScoringJudge):
        arrays["reward"], arrays["reference_reward"] = judge.rewards(prompts, ours), judge.rewards(prompts, theirs)
        arrays["outcome"] = compare_rewards(arrays["reward"], arrays["reference_reward"])
    else:
        arrays["outcome"] = judge_pairs(prompts, ours, theirs, judge)
    arrays["length"], arrays["reference_length"] = [len(text) for text in ours], [len(text) for text in theirs]
    arrays["truncated"] = [float(row["finish_reasons"][0] == "length") for row, _ in rows]
    if rows[0][0].get("rewards"):
        arrays["proxy_reward"] = [float(row["rewards"][0]) for row, _ in rows]
        if rows[0][1].get("rewards"):
            theirs_by_proxy = [float(row["rewards"][0]) for _, row in rows]
            arrays["proxy_outcome"] = compare_rewards(arrays["proxy_reward"], theirs_by_proxy)
    if isinstance(judge, GoldJudge):
        asked = [prompt[-1]["content"] for prompt in prompts]
        arrays["skill"] = [judge.world.skill_of(question) for question in asked]
        arrays["right"] = [float(judge.world.is_correct(*pair)) for pair in zip(asked, ours, strict=True)]
    return {
        "judge": judge.name,
        "n": len(rows),
        "confidence": settings.confidence,
        "estimates": {name: asdict(value) for name, value in _estimates(arrays, settings, seed).items()},
        "counts": outcome_counts(arrays["outcome"]),
        "judge_counts": dict(getattr(judge, "counts", {})),
        "skills": _by_skill(arrays, settings, seed) if "skill" in arrays else None,
        "prompts": arrays,
    }


def exact_match(responses: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 where a response is the answer, but for space at its ends; else 0."""
    return [float(response.strip() == answer.strip()) for response, answer in zip(responses, answers, strict=True)]


# --- stages -------------------------------------------------------------------------------------------------------


def evaluate_policy(stage: Stage, key: str) -> None:
    """Stage: win rate of a policy against SFT, with everything behind it.

    Reads the sections `evaluation`, `world` and `reward_model`. Inputs: `policy` and `reference`, stages with the
    responses to the same held-out prompts in `data` (one each; both may be the SFT model's, then all are ties), and
    `judge_model` where the judge is a reward model of this run. Writes `results.json`. Metrics, for key ``10.sft`` and
    the gold judge: ``10.sft.gold_win_rate_vs_sft`` (with ``_ci_low``, ``_ci_high``), ``10.sft.gold_reward``,
    ``10.sft.mean_length`` and so on.
    """
    from rlhflow_utils.guide.stage import write_json

    policy, reference = _load(stage.inputs["policy"]), _load(stage.inputs["reference"])
    judge = _stage_judge(stage)
    results = compare_policies(policy, reference, judge, stage.profile.evaluation, stage.seed)
    stage.account("judged prompts", len(policy), results["n"])
    write_json(stage.out / "results.json", {"key": key, **results})
    names = {
        "win_rate": f"{judge.name}_win_rate_vs_sft",
        "lc_win_rate": f"{judge.name}_lc_win_rate_vs_sft",
        "reward": f"{judge.name}_reward",
        "proxy_win_rate": "proxy_win_rate_vs_sft",
    }
    for name, estimate in results["estimates"].items():
        for metric, value in Estimate(**estimate).metrics(f"{key}.{names.get(name, name)}").items():
            stage.metric(metric, value)
    for name, count in results["judge_counts"].items():
        stage.metric(f"{key}.{judge.name}_{name}", count)


def evaluate_exact_match(stage: Stage, key: str) -> None:
    """Stage: share of exactly right answers on the skill that no preference and no RL prompt touches.

    Reads the section `evaluation`. Inputs: `policy`, a stage with one response per prompt in `data`, and `root`, the
    folder of local files (absent where the hub is read). Prompts without a response are dropped and counted. Writes
    `results.json`; the metric is ``<key>.exact_match`` with its Wilson interval.
    """
    from rlhflow_utils.data.sources import read_prompts
    from rlhflow_utils.guide.stage import write_json

    root = stage.inputs.get("root")
    tests = [test for source in stage.profile.evaluation.translation_sources for test in read_prompts(source, root)]
    responses = {prompt_key(row["prompt"]): row["responses"][0] for row in _load(stage.inputs["policy"])}
    answered = [test for test in tests if prompt_key(test.prompt) in responses]
    stage.account("exact match", len(tests), len(answered), {"no_response": len(tests) - len(answered)})
    given = [responses[prompt_key(test.prompt)] for test in answered]
    correct = exact_match(given, [str(test.answer) for test in answered])
    estimate = accuracy(correct, stage.profile.evaluation.confidence)
    prompts = {"row_id": [test.row_id for test in answered], "correct": correct, "response": given}
    write_json(stage.out / "results.json", {"key": key, "exact_match": asdict(estimate), "prompts": prompts})
    for metric, value in estimate.metrics(f"{key}.exact_match").items():
        stage.metric(metric, value)


def write_exact_match_prompts(stage: Stage) -> None:
    """Stage: the prompts of the exact-match task, as `generation.generate_responses` wants them.

    Reads the section `evaluation`; input `root` as above. Writes ``exact_match``, a Dataset of distinct prompts.
    """
    from datasets import Dataset

    from rlhflow_utils.data.sources import read_prompts

    sources = stage.profile.evaluation.translation_sources
    tests = [test for source in sources for test in read_prompts(source, stage.inputs.get("root"))]
    distinct = {prompt_key(test.prompt): test.prompt for test in tests}
    stage.account("prompts", len(tests), len(distinct), {"repeated_prompt": len(tests) - len(distinct)})
    rows = [{"prompt_id": key, "prompt": prompt, "source": "exact_match"} for key, prompt in distinct.items()]
    Dataset.from_list(rows).save_to_disk(str(stage.out / "exact_match"))


# --- parts --------------------------------------------------------------------------------------------------------


def _estimates(arrays: Mapping[str, list[Any]], settings: EvaluationSettings, seed: int) -> dict[str, Estimate]:
    options: dict[str, Any] = {"samples": settings.bootstrap_samples, "confidence": settings.confidence, "seed": seed}
    estimates = {
        "win_rate": bootstrap_mean(arrays["outcome"], **options),
        "lc_win_rate": length_controlled_win_rate(
            arrays["outcome"], arrays["length"], arrays["reference_length"], settings.confidence
        ).win_rate,
        "mean_length": bootstrap_mean(arrays["length"], **options),
        "truncated_share": accuracy(arrays["truncated"], settings.confidence),
    }
    for name, array in {"reward": "reward", "proxy_reward": "proxy_reward", "proxy_win_rate": "proxy_outcome"}.items():
        if array in arrays:
            estimates[name] = bootstrap_mean(arrays[array], **options)
    if "right" in arrays:
        estimates["right_share"] = accuracy(arrays["right"], settings.confidence)
    return estimates


def _by_skill(arrays: Mapping[str, list[Any]], settings: EvaluationSettings, seed: int) -> dict[str, dict[str, Any]]:
    """Win rate and gold reward of each skill of the tiny world."""
    skills = np.asarray(arrays["skill"])
    options: dict[str, Any] = {"samples": settings.bootstrap_samples, "confidence": settings.confidence, "seed": seed}
    return {
        str(skill): {
            "win_rate": asdict(bootstrap_mean(np.asarray(arrays["outcome"])[skills == skill], **options)),
            "reward": asdict(bootstrap_mean(np.asarray(arrays["reward"])[skills == skill], **options)),
        }
        for skill in np.unique(skills)
    }


def _pair_up(policy: Sequence[Row], reference: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of the two policies that answer the same prompt, in the policy's order.

    Raises:
        ValueError: the two do not answer the same prompts, or a row has not exactly one response.
    """
    others = {row["prompt_id"]: row for row in reference}
    mine = {row["prompt_id"] for row in policy}
    if not policy or mine != set(others) or len(mine) != len(policy):
        odd = sorted(mine ^ set(others))[:3]
        raise ValueError(
            f"the policy answers {len(policy)} prompts and the reference {len(reference)}, and they are not the same "
            f"(for example {odd}): generate both from the same evaluation prompts"
        )
    for row in [*policy, *reference]:
        if len(row["responses"]) != 1:
            raise ValueError(f"prompt {row['prompt_id']}: {len(row['responses'])} responses; evaluation wants one")
    return [(row, others[row["prompt_id"]]) for row in policy]


def _stage_judge(stage: Stage) -> Judge:
    own = stage.inputs.get("judge_model")
    return build_judge(
        stage.profile.evaluation,
        stage.profile.world,
        own / "model" if own else None,
        stage.profile.reward_model.batch_tokens,
        # Beside the stages, not in this one's folder: a stage that runs again asks nothing that was asked before.
        cache_file=stage.inputs["policy"].parent / "judge_cache.jsonl",
    )


def _load(folder: Path) -> list[Row]:
    from datasets import Dataset

    return list(Dataset.load_from_disk(str(folder / "data")))
