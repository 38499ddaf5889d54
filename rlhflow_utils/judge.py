"""Who prefers what: the simulated world's gold program, a reward model, or an LLM behind an endpoint.

The profile chooses (`evaluation.judge`), and metric names carry the judge's name (`gold_win_rate_vs_sft`). The first
two judges score each response alone and compare the scores; equal scores are a tie. The third reads both responses,
in both orders, since LLM judges favour a position: a win counts only where the two orders agree, else it is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from rlhflow_utils.endpoint_judge import EndpointJudge, Prompts

if TYPE_CHECKING:
    from rlhflow_utils.settings import EvaluationSettings
    from rlhflow_utils.simulator.settings import WorldSettings


class Judge(Protocol):
    """Anything that can say which of two responses is better."""

    name: str  # prefix of its metrics: gold, reward_model or endpoint

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """1 where a is better, 0.5 for a tie, 0 where b is better."""
        ...


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """A judge that scores each response by itself."""

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        """One score for each response; higher is better."""
        ...


class GoldJudge:
    """The world's exact reward program: the truth, in the tiny profile."""

    name = "gold"

    def __init__(self, world_settings: WorldSettings) -> None:
        from rlhflow_utils.simulator import World

        self.world = World(world_settings)

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        """Gold reward of each response to its prompt's last user turn."""
        pairs = zip(prompts, responses, strict=True)
        return [float(self.world.reward(prompt[-1]["content"], response)) for prompt, response in pairs]

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """Compare gold rewards."""
        return compare_rewards(self.rewards(prompts, responses_a), self.rewards(prompts, responses_b))


class RewardModelJudge:
    """A Bradley-Terry reward model; to be fair, one that trained no policy."""

    name = "reward_model"

    def __init__(self, model_folder: Path | str, batch_tokens: int) -> None:
        self.model_folder = str(model_folder)
        self.batch_tokens = batch_tokens

    def rewards(self, prompts: Prompts, responses: Sequence[str]) -> list[float]:
        """The model's scalar score of each response."""
        from rlhflow_utils import reward_model

        conversations = list(zip(prompts, responses, strict=True))
        return [float(value) for value in reward_model.score(self.model_folder, conversations, self.batch_tokens)]

    def outcomes(self, prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """Compare the model's scores."""
        return compare_rewards(self.rewards(prompts, responses_a), self.rewards(prompts, responses_b))


def build_judge(
    evaluation: EvaluationSettings,
    world: WorldSettings | None,
    model_folder: Path | str | None,
    batch_tokens: int,
    cache_file: Path | None = None,
) -> Judge:
    """The judge that the profile asks for.

    Args:
        evaluation: the profile's `evaluation` section.
        world: the profile's `world` section (gold judge only).
        model_folder: the run's own judge RM; used where `evaluation.judge_model` is null.
        batch_tokens: padded tokens per scoring batch of an RM.
        cache_file: JSON lines file for an endpoint's verdicts; None keeps them in memory only.

    Raises:
        ValueError: the profile lacks what its judge needs.
    """
    if evaluation.judge == "gold":
        if world is None:
            raise ValueError("evaluation.judge: gold needs the simulated world; use reward_model or endpoint")
        return GoldJudge(world)
    if evaluation.judge == "reward_model":
        folder = evaluation.judge_model or model_folder
        if folder is None:
            raise ValueError("evaluation.judge: reward_model needs evaluation.judge_model (a folder or hub id)")
        return RewardModelJudge(folder, batch_tokens)
    if not evaluation.endpoint_url or not evaluation.judge_model:
        raise ValueError("evaluation.judge: endpoint needs evaluation.endpoint_url and evaluation.judge_model")
    return EndpointJudge(evaluation.endpoint_url, evaluation.judge_model, cache_file, prices=evaluation.endpoint_prices)


def judge_pairs(prompts: Prompts, responses_a: Sequence[str], responses_b: Sequence[str], judge: Judge) -> list[float]:
    """Outcome of each comparison from a's side: 1 (win), 0.5 (tie) or 0 (loss).

    Identical responses are a tie by definition and are not put before the judge.
    """
    if not len(prompts) == len(responses_a) == len(responses_b):
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses_a)} and {len(responses_b)} responses: give one of each per prompt"
        )
    rows = [row for row in range(len(prompts)) if responses_a[row] != responses_b[row]]
    judged = judge.outcomes(
        [prompts[row] for row in rows], [responses_a[row] for row in rows], [responses_b[row] for row in rows]
    )
    outcomes = [0.5] * len(prompts)
    for row, outcome in zip(rows, judged, strict=True):
        outcomes[row] = outcome
    return outcomes


def compare_rewards(rewards_a: Sequence[float], rewards_b: Sequence[float]) -> list[float]:
    """1, 0.5 or 0 for a: higher, equal or lower reward than b."""
    return [0.5 if a == b else float(a > b) for a, b in zip(rewards_a, rewards_b, strict=True)]


class CleanPairs(NamedTuple):
    """Held-out pairs with clean labels, how many were dropped and why, and how many changed sides."""

    rows: list[dict[str, Any]]
    dropped: dict[str, int]
    flipped: int


def clean_pairs(rows: Sequence[Mapping[str, Any]], judge: Judge | None) -> CleanPairs:
    """Relabel held-out pairs by the gold reward; with any other judge, or none, the pairs stay as annotated.

    Annotators err, so accuracy against their labels has a ceiling below 1. Where the truth is known, models are
    measured against it: `chosen` becomes the response with the higher gold reward (scores move with the responses),
    and pairs of equal gold reward, which have no right answer, are dropped and counted.
    """
    if judge is None or judge.name != "gold":
        return CleanPairs([dict(row) for row in rows], {}, 0)
    outcomes = judge.outcomes(
        [row["prompt"] for row in rows],
        [row["chosen"][0]["content"] for row in rows],
        [row["rejected"][0]["content"] for row in rows],
    )
    kept = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome != 0.5]
    clean = [dict(row) if outcome == 1 else _swapped(row) for row, outcome in kept]
    return CleanPairs(clean, {"gold_tie": len(rows) - len(kept)}, sum(outcome == 0 for _, outcome in kept))


def _swapped(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "chosen": row["rejected"],
        "rejected": row["chosen"],
        "chosen_score": row.get("rejected_score"),
        "rejected_score": row.get("chosen_score"),
    }
