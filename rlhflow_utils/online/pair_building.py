"""Who ranks n responses, and the preference pair they give: best against worst, or its rivals (paper 3.3, eq. 8).

Differences from the released code (`run_dpo.py`): a pair keeps the order of the penalised reward that chose it; the
strategies named random are random; identical responses and ties are dropped and counted.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage
from rlhflow_utils.models.forward import Model, check_finite
from rlhflow_utils.models.preference_model import rank_responses
from rlhflow_utils.models.reward_model import score_responses

if TYPE_CHECKING:
    from rlhflow_utils.guide.run import Run
    from rlhflow_utils.guide.settings import PairBuildingSettings

Strategy = Literal["best_vs_worst", "best_vs_random", "random"]
Row = Mapping[str, Any]


def rank(run: Run, ranker: Model, responses: Artifact, *, into: Path) -> Artifact:
    """A number for every response, from the kind of model that `pair_building.ranker` names; `ranker` is that model."""
    profile = run.profile
    if profile.pair_building.ranker == "reward_model":
        return score_responses(ranker, responses, profile.reward_model, profile.model, profile.actors, into=into)
    tournament, here = profile.pair_building.tournament, (profile.model, profile.actors)
    return rank_responses(ranker, responses, profile.preference_model, tournament, *here, into=into)


@stage
def build_preference_pairs(scores: Artifact, settings: PairBuildingSettings, seed: int, *, into: Path) -> Summary:
    """One pair for every prompt of `scores`, as ``data``; metrics are means over pairs, lengths in characters."""
    from datasets import Dataset

    rows = scores.dataset()
    results = [build_pair(row, settings.strategy, settings.length_penalty, seed) for row in rows]
    pairs = [result for result in results if not isinstance(result, str)]
    dropped = {reason: results.count(reason) for reason in ("identical_responses", "tie")}
    if not pairs:
        raise ValueError(f"none of {len(rows)} prompts gave a pair: {dropped}; raise generation.sampling.n")
    Dataset.from_list(pairs).save_to_disk(str(into / "data"))
    means = {
        "mean_chosen_length": fmean(len(pair["chosen"][0]["content"]) for pair in pairs),
        "mean_rejected_length": fmean(len(pair["rejected"][0]["content"]) for pair in pairs),
        "mean_margin": fmean(pair["chosen_score"] - pair["rejected_score"] for pair in pairs),
        "mean_penalised_margin": fmean(pair["chosen_penalised"] - pair["rejected_penalised"] for pair in pairs),
    }
    return Summary({"prompts": Rows(len(rows), len(pairs), dropped)}, {"pairs": len(pairs), **means})


def penalised_rewards(rewards: Sequence[float], responses: Sequence[str], length_penalty: float) -> list[float]:
    """Eq. 8: the reward minus `length_penalty` for every character of the response."""
    return [reward - length_penalty * len(text) for reward, text in zip(rewards, responses, strict=True)]


def build_pair(row: Row, strategy: Strategy, length_penalty: float, seed: int) -> dict[str, Any] | str:
    """One preference pair from the responses to one prompt, or why there is none: `identical_responses` or `tie`.

    Strategies: `best_vs_worst` (the paper's), `best_vs_random` (the best and another text at random), `random` (two
    texts that differ, at random, in the order of their penalised rewards); the seed and the prompt's id fix the choice.
    The response ids are as generated: a response that was cut off gets no end-of-turn token.
    """
    counts = {name: len(row[name]) for name in ("responses", "response_ids", "rewards")}
    if len(set(counts.values())) > 1:
        raise ValueError(f"prompt {row['prompt_id']}: {counts} must be equally many; score the same K as was generated")
    if counts["responses"] < 2:
        raise ValueError(f"prompt {row['prompt_id']}: a pair needs two responses; raise generation.sampling.n to 2")
    check_finite(row["rewards"], (f"prompt {row['prompt_id']}, response {i}" for i in range(counts["rewards"])))
    rewards, texts = penalised_rewards(row["rewards"], row["responses"], length_penalty), row["responses"]
    if len(set(texts)) == 1:
        return "identical_responses"
    a, b = _select(texts, rewards, strategy, random.Random(f"{seed}:{row['prompt_id']}"))
    if rewards[a] == rewards[b]:
        return "tie"
    if texts[a] == texts[b]:
        return "identical_responses"
    pair = {key: row[key] for key in ("prompt_id", "prompt")}
    for side, index in zip(("chosen", "rejected"), (a, b) if rewards[a] > rewards[b] else (b, a), strict=True):
        pair[side] = [{"role": "assistant", "content": texts[index]}]
        pair[f"{side}_ids"] = list(row["response_ids"][index])
        pair[f"{side}_score"] = row["rewards"][index]
        pair[f"{side}_penalised"] = rewards[index]
    return {**pair, "source": row.get("source") or "", "row_id": row["prompt_id"]}


def _select(
    responses: Sequence[str], rewards: Sequence[float], strategy: Strategy, rng: random.Random
) -> tuple[int, int]:
    """Two responses; ties go to the one generated first.

    A random partner is drawn among the other texts, so that no strategy loses more prompts than another.
    """
    indices = range(len(rewards))
    best = max(indices, key=rewards.__getitem__)
    if strategy == "best_vs_worst":
        return best, min(indices, key=rewards.__getitem__)
    first = best if strategy == "best_vs_random" else rng.choice(indices)
    return first, rng.choice([index for index in indices if responses[index] != responses[first]])
