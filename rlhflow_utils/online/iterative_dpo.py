"""What chapter 09 needs besides the stages of Algorithm 1 (paper 3.3): each iteration's prompts, and who ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhflow_utils.models.preference_model import rank_responses
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import Prompts

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
        return score_responses(ranker, responses, profile.reward_model, profile.model, profile.actors, into=into)
    tournament, here = profile.pair_building.tournament, (profile.model, profile.actors)
    return rank_responses(ranker, responses, profile.preference_model, tournament, *here, into=into)
