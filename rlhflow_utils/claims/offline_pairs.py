"""Offline DPO's pairs in equal parts per skill, as the prompts of the loop are (claim e)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhflow_utils.manifest import Stage


def balance_skills(stage: Stage, subset: str, pairs: int) -> None:
    """Stage: `pairs` rows of a set, as many of each skill, drawn at random. Input `data`; reads `world`.

    A skill that has too few rows gives some of them more than once; the metric `10.offline.repeated` counts those.

    Raises:
        ValueError: a skill has no row, or a prompt is none of this world's.
    """
    from datasets import load_from_disk

    from rlhflow_utils.simulator.corpus import PREFERENCE_SKILLS
    from rlhflow_utils.simulator.gold import World

    rows = load_from_disk(str(stage.inputs["data"] / subset)).shuffle(seed=stage.seed)
    world = World(stage.profile.world)
    by_skill: dict[str, list[int]] = {}
    for index, prompt in enumerate(rows["prompt"]):
        by_skill.setdefault(world.skill_of(prompt[-1]["content"]), []).append(index)
    if set(by_skill) != set(PREFERENCE_SKILLS):
        wanted = ", ".join(PREFERENCE_SKILLS)
        raise ValueError(f"stage {stage.name}: {subset} holds {sorted(by_skill)}; rows of each of {wanted} are needed")
    share, rest = divmod(pairs, len(by_skill))
    drawn = [
        places[number % len(places)]
        for order, (_, places) in enumerate(sorted(by_skill.items()))
        for number in range(share + (order < rest))
    ]
    distinct = len(set(drawn))
    stage.account("offline_pairs", len(rows), distinct, {"beyond_the_skills_share": len(rows) - distinct})
    stage.metric("10.offline.repeated", len(drawn) - distinct)
    rows.select(drawn).save_to_disk(str(stage.out / subset))
