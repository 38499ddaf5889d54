"""Preference pairs from n scored responses: best against worst, or its rivals (paper 3.3, eq. 8).

Differences from the released code (`run_dpo.py`): a pair stays in the order of the penalised reward that chose it; the
strategies named random are random; identical responses and ties are dropped and counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rlhflow_utils.guide.stage import Stage

Strategy = Literal["best_vs_worst", "best_vs_random", "random"]
Row = Mapping[str, Any]


def penalised_rewards(rewards: Sequence[float], responses: Sequence[str], length_penalty: float) -> list[float]:
    """Eq. 8: the reward less `length_penalty` for every character of the response."""
    return [reward - length_penalty * len(text) for reward, text in zip(rewards, responses, strict=True)]


def build_pair(row: Row, strategy: Strategy, length_penalty: float, seed: int) -> dict[str, Any] | str:
    """One preference pair from the responses to one prompt.

    Args:
        row: `prompt_id`, `prompt`, `responses`, `response_ids`, `rewards` and optionally `source`.
        strategy: `best_vs_worst` (the paper's), `best_vs_random` (the best and another text at random) or `random` (two
            texts that differ, at random, in the order of their penalised rewards).
        length_penalty: lambda of eq. 8, reward per character.
        seed: with the prompt's id, it fixes the random choices.

    Returns:
        A pair, or the reason why there is none: `identical_responses` or `tie`. The response ids are as generated: a
        response that was cut off gets no end-of-turn token.

    Raises:
        ValueError: fewer than two responses, or not one reward for each.
    """
    _check(row)
    rewards = penalised_rewards(row["rewards"], row["responses"], length_penalty)
    if len(set(row["responses"])) == 1:
        return "identical_responses"
    if min(rewards) == max(rewards):
        return "tie"
    a, b = _select(row["responses"], rewards, strategy, random.Random(f"{seed}:{row['prompt_id']}"))
    if row["responses"][a] == row["responses"][b]:
        return "identical_responses"
    if rewards[a] == rewards[b]:
        return "tie"
    chosen, rejected = (a, b) if rewards[a] > rewards[b] else (b, a)
    return _pair(row, rewards, chosen, rejected)


def build_pairs(
    rows: Iterable[Row], strategy: Strategy, length_penalty: float, seed: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """`build_pair` for every prompt: the pairs, and the number of prompts without one, by reason."""
    pairs: list[dict[str, Any]] = []
    dropped = Counter({"identical_responses": 0, "tie": 0})
    for row in rows:
        result = build_pair(row, strategy, length_penalty, seed)
        if isinstance(result, str):
            dropped[result] += 1
        else:
            pairs.append(result)
    return pairs, dict(dropped)


def build_preference_pairs(stage: Stage) -> None:
    """Stage: pairs from the scored responses in ``inputs["scores"]``. Reads `pair_building`; writes ``data``.

    Raises:
        ValueError: no prompt gave a pair.
    """
    from datasets import Dataset, load_from_disk

    rows = load_from_disk(str(stage.inputs["scores"] / "data"))
    settings = stage.profile.pair_building
    pairs, dropped = build_pairs(rows, settings.strategy, settings.length_penalty, stage.seed)
    stage.account("prompts", len(rows), len(pairs), dropped)
    if not pairs:
        raise ValueError(f"stage {stage.name}: none of {len(rows)} prompts gave a pair: {dropped}")
    Dataset.from_list(pairs).save_to_disk(str(stage.out / "data"))
    prefix = f"{stage.name[:2]}.{stage.name[3:]}"
    for name, value in pair_statistics(pairs).items():
        stage.metric(f"{prefix}.{name}", value)


def pair_statistics(pairs: Sequence[Row]) -> dict[str, float]:
    """Means over pairs: lengths in characters, and chosen-minus-rejected margins of the raw and penalised reward."""
    n = len(pairs)
    return {
        "pairs": n,
        "mean_chosen_length": sum(len(pair["chosen"][0]["content"]) for pair in pairs) / n,
        "mean_rejected_length": sum(len(pair["rejected"][0]["content"]) for pair in pairs) / n,
        "mean_margin": sum(pair["chosen_score"] - pair["rejected_score"] for pair in pairs) / n,
        "mean_penalised_margin": sum(pair["chosen_penalised"] - pair["rejected_penalised"] for pair in pairs) / n,
    }


def _check(row: Row) -> None:
    counts = {name: len(row[name]) for name in ("responses", "response_ids", "rewards")}
    if len(set(counts.values())) > 1:
        raise ValueError(f"prompt {row['prompt_id']}: {counts} must be equally many; score the same K as was generated")
    if counts["responses"] < 2:
        raise ValueError(f"prompt {row['prompt_id']}: a pair needs two responses; raise generation.responses to 2")


def _select(
    responses: Sequence[str], rewards: Sequence[float], strategy: Strategy, rng: random.Random
) -> tuple[int, int]:
    """Two responses; of equal rewards the earlier one counts as best and as worst.

    A random partner is drawn among the other texts, so that no strategy loses more prompts than another.
    """
    indices = range(len(rewards))
    best = max(indices, key=rewards.__getitem__)
    if strategy == "best_vs_worst":
        return best, min(indices, key=rewards.__getitem__)
    first = best if strategy == "best_vs_random" else rng.choice(indices)
    return first, rng.choice([index for index in indices if responses[index] != responses[first]])


def _pair(row: Row, penalised: Sequence[float], chosen: int, rejected: int) -> dict[str, Any]:
    pair: dict[str, Any] = {"prompt_id": row["prompt_id"], "prompt": row["prompt"]}
    for side, index in (("chosen", chosen), ("rejected", rejected)):
        pair[side] = [{"role": "assistant", "content": row["responses"][index]}]
        pair[f"{side}_ids"] = list(row["response_ids"][index])
        pair[f"{side}_score"] = row["rewards"][index]
        pair[f"{side}_penalised"] = penalised[index]
    return {**pair, "source": row.get("source") or "", "row_id": row["prompt_id"]}
