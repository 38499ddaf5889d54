"""Runs one arm under one seed: the stages it has in common with others are found by name and key, and shared."""

from __future__ import annotations

from dataclasses import replace

from rlhflow_utils.claims.arms import MAIN, Arm, build_arms, claims_settings, same_as_main
from rlhflow_utils.claims.offline_pairs import balance_skills
from rlhflow_utils.claims.seed_run import TRAINING, SeedRun, reward_model_name
from rlhflow_utils.claims.stages import merge_responses, rank_with_preference_model
from rlhflow_utils.generation import generate_responses
from rlhflow_utils.iterative_dpo import (
    GENERATION,
    Setting,
    build_pairs_for_iteration,
    evaluate,
    generate_for_iteration,
    score_for_iteration,
    stage_name,
    train_iteration,
)
from rlhflow_utils.manifest import Run, StageFolder
from rlhflow_utils.training_stages import train_offline_dpo


def prepare(seed: SeedRun, name: str) -> None:
    """Run everything that the arm's measures need; what is finished and current is skipped."""
    if name in seed.done:
        return
    if name in ("prompting", "bt", "pm", "bt_mix1") or name.startswith("bt_share"):
        seed.test_judge(name)
        if name == "bt":
            seed.test_reward_model(seed.main)
        if name == "pm":
            seed.test_preference_model()
    elif name == "sft":
        seed.test_sft()
    elif name == "bon":
        seed.test_best_of_n()
    elif name.startswith("share"):
        seed.test_shares()
    elif name == "offline":
        _run_offline(seed)
    else:
        run_arm(seed, build_arms(seed.profile)[name])
    seed.done.add(name)


def run_arm(seed: SeedRun, arm: Arm) -> None:
    """Run an arm's iterations and evaluate its policies on the held-out prompts."""
    if arm.evaluate_all:
        prepare(seed, "sft")  # iteration 0 of its curve
    if arm.name != MAIN:
        prepare(seed, MAIN)
    if arm.name != MAIN and same_as_main(arm, seed.profile):
        return
    changed = seed.run.with_overrides(arm.overrides)
    own = replace(seed.setting, arm="" if arm.name == MAIN else arm.name)
    own = replace(own, reward_model=seed.reward_model(reward_model_name(seed, arm.ranker)))
    policies, pairs = [seed.sft], list[StageFolder]()
    for iteration in range(1, arm.iterations + 1):
        if iteration < arm.first:
            policy, built = (seed.run.folder(stage_name(seed.setting, iteration, step)) for step in ("dpo", "pairs"))
        else:
            built = _build_pairs(seed, changed, own, arm, iteration, policies)
            policy = _train(seed, changed, own, arm, iteration, policies[-1], [*pairs, built])
        policies, pairs = [*policies, policy], [*pairs, built]
        if iteration in arm.evaluated():
            _evaluate(seed, own, arm, iteration, policy)
    if arm.exact_match:
        seed.exact_match("iterative_dpo" if arm.name == MAIN else arm.name, policies[-1])


def arm_stage(arm: str, iteration: int, step: str) -> str:
    """Folder of an arm's step; the main recipe's are those of chapters 07 to 09."""
    return f"09_iter{iteration}_{step}" if arm == MAIN else f"11_{arm}_iter{iteration}_{step}"


def _build_pairs(
    seed: SeedRun, changed: Run, own: Setting, arm: Arm, iteration: int, policies: list[StageFolder]
) -> StageFolder:
    """Responses, scores and pairs of one iteration, shared with the main recipe where nothing differs until then."""
    if 1 < iteration == arm.first and not arm.two_checkpoints:
        return seed.run.folder(stage_name(seed.setting, iteration, "pairs"))
    shares_responses = iteration == 1 and changed.profile.generation == seed.profile.generation and arm.name != MAIN
    if shares_responses:
        responses = seed.run.folder(stage_name(seed.setting, 1, "responses"))
    elif arm.two_checkpoints:
        responses = _two_checkpoints(seed, own, iteration, policies)
    else:
        responses = generate_for_iteration(changed, own, iteration, policies[-1])
    if arm.ranker in ("pm_tournament", "pm_round_robin"):
        scores = _rank_with_pm(seed, own, arm, iteration, responses)
    elif shares_responses and arm.ranker == "bt":
        scores = seed.run.folder(stage_name(seed.setting, 1, "scores"))
    else:
        scores = score_for_iteration(changed, own, iteration, responses)
    return build_pairs_for_iteration(changed, own, iteration, scores)


def _rank_with_pm(seed: SeedRun, own: Setting, arm: Arm, iteration: int, responses: StageFolder) -> StageFolder:
    return seed.run.stage(
        stage_name(own, iteration, "scores"), rank_with_preference_model, reads=("preference_model", "model"),
        inputs={"model": seed.preference_model, "responses": responses}, method=arm.ranker.removeprefix("pm_"),
    )  # fmt: skip


def _two_checkpoints(seed: SeedRun, own: Setting, iteration: int, policies: list[StageFolder]) -> StageFolder:
    """Half of the responses from the last iterate, half from the one before: as many as one policy gives alone."""
    count = seed.profile.iterative.prompts_per_iteration
    halves = {}
    for name, policy in (("first", policies[-1]), ("second", policies[-2])):
        halves[name] = seed.run.stage(
            stage_name(own, iteration, f"responses_{name}"), generate_responses, reads=GENERATION,
            inputs={"model": policy, "data": seed.data}, subset="prompts", start=(iteration - 1) * count, count=count,
            responses=seed.profile.generation.responses // 2,
        )  # fmt: skip
    return seed.run.stage(stage_name(own, iteration, "responses"), merge_responses, inputs=halves)


def _train(
    seed: SeedRun, changed: Run, own: Setting, arm: Arm, iteration: int, policy: StageFolder, pairs: list[StageFolder]
) -> StageFolder:
    """One iteration's DPO, with equal updates in all arms; those of `restart` grow with its sets of pairs."""
    steps = claims_settings(seed.profile).updates * (len(pairs) if arm.restart else 1)
    changed = changed.with_overrides({"dpo.training.max_steps": steps})
    return train_iteration(changed, own, iteration, seed.sft if arm.restart else policy, pairs)


def _evaluate(seed: SeedRun, own: Setting, arm: Arm, iteration: int, policy: StageFolder) -> None:
    # Always with the profile's own sampling, whatever the arm changes about training.
    name = arm_stage(arm.name, iteration, "evaluation")
    evaluate(seed.run, own, name, f"{name[:2]}.{name[3:].removesuffix('_evaluation')}", policy, seed.reference)


def _run_offline(seed: SeedRun) -> None:
    """Offline DPO on as many pairs as all iterations have prompts, skill by skill, with as many updates."""
    pairs = seed.last * seed.profile.iterative.prompts_per_iteration
    balanced = seed.run.stage(
        "10_offline_pairs", balance_skills, reads=("world",), inputs={"data": seed.data}, subset="nectar", pairs=pairs
    )
    training = seed.profile.dpo.training.model_dump() | {"max_steps": seed.last * claims_settings(seed.profile).updates}
    changed = seed.run.with_overrides({"offline_dpo.pairs": None, "offline_dpo.training": training})
    policy = changed.stage(
        "10_offline_dpo", train_offline_dpo, reads=("dpo", "offline_dpo", *TRAINING),
        inputs={"data": balanced, "sft": seed.sft}, subset="nectar",
    )  # fmt: skip
    evaluate(seed.run, seed.setting, "10_offline_dpo_evaluation", "10.offline_dpo", policy, seed.reference)
    seed.exact_match("offline_dpo", policy)
