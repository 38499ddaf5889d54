"""Algorithm 1 in practice (paper 3.3): generate, score, pair, train; and again from the new policy.

Every step is a stage of its own, so an interrupted iteration goes on where it stopped, and chapters 07 and 08 can
teach the first iteration step by step: the stages they leave are the ones this module finds and reuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhflow_utils.evaluation.policies import evaluate_policy
from rlhflow_utils.evaluation.statistics import bootstrap_mean
from rlhflow_utils.guide.stage import Run, StageFolder
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import generate_responses
from rlhflow_utils.online.pair_building import build_preference_pairs
from rlhflow_utils.training.stages import train_dpo

GENERATION = ("generation", "model", "launch")
SCORING = ("reward_model", "model")


@dataclass(frozen=True)
class Setting:
    """What stays fixed over the iterations.

    Attributes:
        sft: π₀, where the loop starts and what eq. 5 compares with.
        reward_model: the RM that ranks (BT, main mixture).
        data: prompts and held-out prompts (chapter 01).
        judge_model: the RM that judges, where `evaluation.judge` is reward_model; else None.
        arm: name of a claim's arm (chapter 11); empty for the main run.
    """

    sft: StageFolder
    reward_model: StageFolder
    data: StageFolder
    judge_model: StageFolder | None = None
    arm: str = ""


def stage_name(setting: Setting, iteration: int, step: str) -> str:
    """Folder of a step. Those of the main run's iteration 1 belong to the chapters that teach them."""
    if setting.arm:
        return f"11_{setting.arm}_iter{iteration}_{step}"
    chapter = {"responses": "07", "scores": "08", "pairs": "08"}.get(step, "09") if iteration == 1 else "09"
    return f"{chapter}_iter{iteration}_{step}"


def generate_for_iteration(run: Run, setting: Setting, iteration: int, policy: StageFolder) -> StageFolder:
    """n responses of the current policy to this iteration's share of the prompts: never the same prompt twice."""
    count = run.profile.iterative.prompts_per_iteration
    return run.stage(
        stage_name(setting, iteration, "responses"), generate_responses, reads=GENERATION,
        inputs={"model": policy, "data": setting.data}, subset="prompts", start=(iteration - 1) * count, count=count,
    )  # fmt: skip


def score_for_iteration(run: Run, setting: Setting, iteration: int, responses: StageFolder) -> StageFolder:
    """A reward for every response."""
    return run.stage(
        stage_name(setting, iteration, "scores"), score_responses, reads=SCORING,
        inputs={"model": setting.reward_model, "responses": responses},
    )  # fmt: skip


def build_pairs_for_iteration(
    run: Run, setting: Setting, iteration: int, scores: StageFolder, name: str | None = None
) -> StageFolder:
    """Best against worst of n (or the profile's other strategy), identical pairs dropped; `name`: of another folder."""
    return run.stage(
        name or stage_name(setting, iteration, "pairs"),
        build_preference_pairs,
        reads=("pair_building",),
        inputs={"scores": scores},
    )


def train_iteration(
    run: Run, setting: Setting, iteration: int, policy: StageFolder, pairs: list[StageFolder]
) -> StageFolder:
    """DPO from the last iterate with π₀ as reference, on the newest pairs or on all so far (`iterative.replay`)."""
    chosen = pairs if run.profile.iterative.replay else pairs[-1:]
    inputs = {f"pairs{index}": folder for index, folder in enumerate(chosen)}
    return run.stage(
        stage_name(setting, iteration, "dpo"), train_dpo, reads=("dpo", "model", "launch", "report_to"),
        inputs={"policy": policy, "sft": setting.sft, **inputs},
    )  # fmt: skip


def run_iteration(
    run: Run, setting: Setting, iteration: int, policy: StageFolder, earlier: list[StageFolder]
) -> tuple[StageFolder, list[StageFolder]]:
    """One iteration of Algorithm 1.

    Args:
        run: the chapter's run.
        setting: models and data that stay fixed.
        iteration: counts from 1.
        policy: π_{t-1}.
        earlier: pairs of the iterations before.

    Returns:
        π_t and the pairs of all iterations so far.
    """
    responses = generate_for_iteration(run, setting, iteration, policy)
    scores = score_for_iteration(run, setting, iteration, responses)
    pairs = [*earlier, build_pairs_for_iteration(run, setting, iteration, scores)]
    return train_iteration(run, setting, iteration, policy, pairs), pairs


def evaluation_responses(run: Run, setting: Setting, name: str, policy: StageFolder) -> StageFolder:
    """One response to each held-out prompt, with the proxy RM's reward beside it."""
    responses = run.stage(
        f"{name}_responses", generate_responses, reads=(*GENERATION, "evaluation"),
        inputs={"model": policy, "data": setting.data}, subset="evaluation_prompts", for_evaluation=True,
    )  # fmt: skip
    return run.stage(
        f"{name}_scores", score_responses, reads=SCORING,
        inputs={"model": setting.reward_model, "responses": responses},
    )  # fmt: skip


def evaluate(
    run: Run,
    setting: Setting,
    name: str,
    key: str,
    policy: StageFolder,
    reference: StageFolder,
    is_answered: bool = False,
) -> StageFolder:
    """Judge a policy's held-out responses against the SFT model's.

    Args:
        run: the chapter's run.
        setting: models and data that stay fixed.
        name: stage folder.
        key: of the metrics.
        policy: a trained model; or, with `is_answered`, its responses from `evaluation_responses`.
        reference: the SFT model's responses from `evaluation_responses`.
        is_answered: `policy` holds responses.
    """
    answers = policy if is_answered else evaluation_responses(run, setting, name, policy)
    judge = {"judge_model": setting.judge_model} if setting.judge_model else {}
    return run.stage(
        name, evaluate_policy, reads=("evaluation", "world", "reward_model"),
        inputs={"policy": answers, "reference": reference, **judge}, key=key,
    )  # fmt: skip


def ranking_reward(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over prompts of what ranks the training pairs, r − λ|a| (eq. 8), with its interval.

    Args:
        run: its profile holds λ (0: the RM's reward alone).
        results: an evaluation's `results.json`.
    """
    prompts, settings = results["prompts"], run.profile.evaluation
    penalised = np.array(prompts["proxy_reward"]) - run.profile.pair_building.length_penalty * np.array(
        prompts["length"]
    )
    return asdict(bootstrap_mean(penalised, settings.bootstrap_samples, settings.confidence, run.profile.seed))
