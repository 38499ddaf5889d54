"""The stages that only the claims have.

They are apart from the pipeline, so that an edit of `designs.yaml` leaves finished stages as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhflow_utils.guide.settings import WorldSettings
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage
from rlhflow_utils.online.pair_building import penalised_rewards
from rlhflow_utils.simulator.corpus import PREFERENCE_SKILLS
from rlhflow_utils.simulator.gold import World

PER_RESPONSE = ("responses", "response_ids", "finish_reasons", "temperatures", "lengths", "rewards")


@stage
def take_share(data: Artifact, mixture: str, share: float, seed: int, *, into: Path) -> Summary:
    """A random share of a mixture, under its name; smaller shares are parts of larger ones."""
    rows = data.dataset(mixture).shuffle(seed=seed)
    kept = rows.select(range(max(1, round(share * len(rows)))))
    kept.save_to_disk(str(into / mixture))
    return Summary({mixture: Rows(len(rows), len(kept), {"beyond_the_share": len(rows) - len(kept)})})


@stage
def balance_skills(data: Artifact, world: WorldSettings, pairs: int, seed: int, *, into: Path) -> Summary:
    """`pairs` rows of the offline pairs, as many of each skill, drawn at random.

    A skill that has too few rows gives some of them more than once; the metric `repeated` counts those.
    """
    rows, truth = data.dataset("offline").shuffle(seed=seed), World(world)
    by_skill: dict[str, list[int]] = {}
    for index, prompt in enumerate(rows["prompt"]):
        by_skill.setdefault(truth.skill_of(prompt[-1]["content"]), []).append(index)
    if set(by_skill) != set(PREFERENCE_SKILLS):
        raise ValueError(f"offline pairs are about {sorted(by_skill)}; {sorted(PREFERENCE_SKILLS)} are needed")
    share, rest = divmod(pairs, len(by_skill))
    drawn = [places[number % len(places)] for order, (_, places) in enumerate(sorted(by_skill.items()))
             for number in range(share + (order < rest))]  # fmt: skip
    rows.select(drawn).save_to_disk(str(into / "offline"))
    distinct = len(set(drawn))
    counts = Rows(len(rows), distinct, {"beyond_the_skills_share": len(rows) - distinct})
    return Summary({"offline_pairs": counts}, {"repeated": len(drawn) - distinct})


@stage
def pick_answers(scored: Artifact, sample: int, best_of: int, length_penalty: float, *, into: Path) -> Summary:
    """One answer to each prompt: of the sample's own `best_of` answers that with the best penalised reward (eq. 8)."""
    rows, group = scored.dataset(), range(sample * best_of, (sample + 1) * best_of)

    def pick(row: dict[str, Any]) -> dict[str, Any]:
        best = max(group, key=penalised_rewards(row["rewards"], row["responses"], length_penalty).__getitem__)
        return {name: [row[name][best]] for name in PER_RESPONSE}

    rows.map(pick).save_to_disk(str(into / "data"))
    return Summary({"prompts": Rows(len(rows), len(rows))})


@stage
def verify(scores: Artifact, world: WorldSettings, alone: bool, *, into: Path) -> Summary:
    """The scored responses, but with the reward of an exact checker on reasoning prompts: 1 if right, 0 if wrong.

    Other prompts keep their rewards; where the checker is `alone` they are dropped.
    """
    truth, rows = World(world), scores.dataset()

    def is_reasoning(row: dict[str, Any]) -> bool:
        return truth.skill_of(row["prompt"][-1]["content"]) == "reasoning"

    def check(row: dict[str, Any]) -> dict[str, Any]:
        question = row["prompt"][-1]["content"]
        right = [float(truth.is_correct(question, response)) for response in row["responses"]]
        return {"rewards": right if is_reasoning(row) else row["rewards"]}

    kept = rows.filter(is_reasoning) if alone else rows
    kept.map(check).save_to_disk(str(into / "data"))
    return Summary({"prompts": Rows(len(rows), len(kept), {"other_skill": len(rows) - len(kept)})})
