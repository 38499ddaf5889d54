"""Algorithm 1 in practice (paper 3.3): generate, rank, pair, train; and again from the new policy.

Chapters 07 and 08 run the first iteration step by step, and chapter 09 spells the loop out. `run_iteration` is the same
four calls under the same folder names, for the claims of chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhflow_utils.models.preference_model import rank_responses
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import Prompts, generate_responses
from rlhflow_utils.online.pair_building import build_preference_pairs
from rlhflow_utils.training.stages import train_dpo

if TYPE_CHECKING:
    from rlhflow_utils.guide.run import Run
    from rlhflow_utils.guide.settings import IterativeSettings
    from rlhflow_utils.guide.stage import Artifact
    from rlhflow_utils.models.forward import Model


def prompts_of_iteration(data: Artifact, iteration: int, settings: IterativeSettings) -> Prompts:
    """The prompts of an iteration (counted from 1): no prompt comes twice."""
    count = settings.prompts_per_iteration
    return Prompts(data, "prompts", (iteration - 1) * count, count)


def rank(run: Run, ranker: Model, responses: Artifact, *, into: Path) -> Artifact:
    """A number for every response, from the kind of model that `pair_building.ranker` names; `ranker` is that model."""
    profile = run.profile
    if profile.pair_building.ranker == "reward_model":
        return score_responses(ranker, responses, profile.reward_model, profile.model, into=into)
    tournament = profile.pair_building.tournament
    return rank_responses(ranker, responses, profile.preference_model, tournament, profile.model, into=into)


def run_iteration(
    run: Run, iteration: int, policy: Model, sft: Model, ranker: Model, data: Artifact, earlier: Sequence[Artifact]
) -> tuple[Artifact, list[Artifact]]:
    """One iteration of Algorithm 1: from π_{t-1} and the pairs of earlier iterations to π_t and all pairs so far."""
    profile, name = run.profile, f"iter{iteration}"
    responses = generate_responses(
        policy, prompts_of_iteration(data, iteration, profile.iterative), profile.generation, profile.model, run.seed,
        profile.launch, into=run / f"{name}_responses",
    )  # fmt: skip
    scores = rank(run, ranker, responses, into=run / f"{name}_scores")
    pairs = [*earlier, build_preference_pairs(scores, profile.pair_building, run.seed, into=run / f"{name}_pairs")]
    trained = train_dpo(
        policy, sft if profile.dpo.reference == "sft" else policy, pairs if profile.iterative.replay else pairs[-1:],
        profile.dpo, profile.model, run.seed, profile.launch, into=run / f"{name}_dpo",
    )  # fmt: skip
    return trained, pairs
