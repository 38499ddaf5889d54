"""The stages that only the claims need: shares of a mixture, merged responses, the PM as ranker, best-of-n's KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhflow_utils.manifest import write_json
from rlhflow_utils.preference_model import Compare, load_compare, round_robin, tournament
from rlhflow_utils.statistics import bon_kl

if TYPE_CHECKING:
    from rlhflow_utils.manifest import Stage

LISTS = ("responses", "response_ids", "finish_reasons", "temperatures", "lengths")


def share_name(share: float) -> str:
    """Folder of a share of the main mixture, and name of the RM that it trains."""
    return "share" + f"{share:g}".replace(".", "_")


def write_shares(stage: Stage, subset: str, shares: list[float]) -> None:
    """Stage: nested random shares of a mixture. Input `data` (chapter 01); writes one folder for each share."""
    from datasets import load_from_disk

    rows = load_from_disk(str(stage.inputs["data"] / subset)).shuffle(seed=stage.seed)
    for share in shares:
        kept = rows.select(range(max(1, round(share * len(rows)))))
        stage.account(share_name(share), len(rows), len(kept), {"beyond_the_share": len(rows) - len(kept)})
        kept.save_to_disk(str(stage.out / share_name(share)))


def merge_responses(stage: Stage) -> None:
    """Stage: the responses of two policies to the same prompts as one set. Inputs `first` and `second`.

    Raises:
        ValueError: the two did not answer the same prompts.
    """
    from datasets import Dataset, load_from_disk

    first, second = (list(load_from_disk(str(stage.inputs[name] / "data"))) for name in ("first", "second"))
    if [row["prompt_id"] for row in first] != [row["prompt_id"] for row in second]:
        raise ValueError(f"stage {stage.name}: the two policies did not answer the same prompts in the same order")
    merged = [{**a, **{name: [*a[name], *b[name]] for name in LISTS}} for a, b in zip(first, second, strict=True)]
    Dataset.from_list(merged).save_to_disk(str(stage.out / "data"))
    stage.account("prompts", len(first), len(merged))


def rank_with_preference_model(stage: Stage, method: str) -> None:
    """Stage: a PM's ranking as `rewards`, for `pair_building`. Inputs `model` (the PM) and `responses`.

    Reads `preference_model` and `model`. `round_robin`: mean P(better) over the others, n (n - 1) / 2 comparisons.
    `tournament`: 1 for the winner, -1 for the winner of the reversed tournament, 0 else; 2 (n - 1) comparisons. Each
    comparison asks both orders, so it takes two forward passes; the metric `passes` counts them for each prompt.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(stage.inputs["responses"] / "data"))
    compare = load_compare(
        stage.inputs["model"] / "model", stage.profile.preference_model.batch_tokens, stage.profile.model
    )
    prompts, responses = list(rows["prompt"]), list(rows["responses"])
    n = len(responses[0])
    if method == "round_robin":
        rewards, comparisons = round_robin(compare, prompts, responses), n * (n - 1) // 2
    else:
        rewards, comparisons = knock_out(compare, prompts, responses), 2 * (n - 1)
    rows.add_column("rewards", rewards).save_to_disk(str(stage.out / "data"))
    stage.account("prompts", len(rows), len(rewards))
    stage.metric(f"11.{stage.name[3:]}.passes", 2 * comparisons)


def knock_out(compare: Compare, prompts: Sequence[Any], responses: Sequence[Sequence[str]]) -> list[list[float]]:
    """1 for the best by knock-out, -1 for the worst by knock-out, 0 for the rest."""
    best = tournament(compare, prompts, responses)
    worst = tournament(lambda comparisons: [1 - p for p in compare(comparisons)], prompts, responses)
    return [
        [float(index == high) - float(index == low) for index in range(len(group))]
        for group, high, low in zip(responses, best, worst, strict=True)
    ]


def measure_best_of_n(stage: Stage, n: list[int]) -> None:
    """Stage: KL(best-of-n ‖ π) of every prompt, with the scored responses of `scores` standing for π."""
    from datasets import load_from_disk

    rows = load_from_disk(str(stage.inputs["scores"] / "data"))
    found = {str(k): [best_of_n_kl(row["responses"], row["rewards"], k) for row in rows] for k in n}
    for k in n:
        stage.metric(f"11.bon.kl_{k}", float(np.mean(found[str(k)])))
        stage.metric(f"11.bon.bound_{k}", bon_kl(k))
    stage.account("prompts", len(rows), len(rows))
    write_json(stage.out / "results.json", {"kl": found, "bound": {str(k): bon_kl(k) for k in n}})


def best_of_n_kl(responses: Sequence[str], rewards: Sequence[float], n: int) -> float:
    """KL in nats between best-of-n and the policy it samples from, both over the distinct responses given.

    The policy is taken to be uniform over the given samples. Of n draws the best is the one with the highest reward;
    with F the distribution of rewards, a reward r is best with probability F(r)^n - F(r-)^n, shared among the responses
    that have it in proportion to their own probability.
    """
    total = len(responses)
    probability: dict[str, float] = {}
    for text in responses:
        probability[text] = probability.get(text, 0.0) + 1 / total
    reward = dict(zip(responses, rewards, strict=True))
    divergence = below = 0.0
    for level in sorted(set(reward.values())):
        mass = sum(p for text, p in probability.items() if reward[text] == level)
        best = (below + mass) ** n - below**n
        divergence += best * float(np.log(best / mass)) if best > 0 else 0.0
        below += mass
    return divergence
