"""One seed of the claims: the stages of the chapters, called for every variant, and what they measured.

Folders are named after keys (`Run(..., by_key=True)`), so variants share all work that is equal.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np

from rlhflow_utils.claims.designs import ClaimsSettings, Measure, Variant
from rlhflow_utils.claims.steps import balance_skills, pick_answers, take_share, verify
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.evaluation import policies, reward_models, rewardbench
from rlhflow_utils.evaluation.statistics import Estimate, bon_kl, bootstrap_mean, weighted_mean
from rlhflow_utils.guide.profile import variant
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import BY_KEY, Artifact, seed_for
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import Prompts, generate_responses, prompts_of_iteration
from rlhflow_utils.online.pair_building import build_preference_pairs, rank
from rlhflow_utils.simulator.world import build_world
from rlhflow_utils.training import stages

Found = dict[str, Measure]  # metric -> measure
# Metric of a policy -> the numbers by prompt of which it is the mean.
BY_PROMPT = {"win_rate": "outcome", "accuracy": "right", "mean_length": "length", "reward": "reward",
             "proxy_reward": "proxy_reward"}  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """What all variants of one seed start from."""

    run: Run
    settings: ClaimsSettings
    world: Artifact
    data: Artifact
    sft: Artifact

    @property
    def profile(self) -> Profile:
        return self.run.profile

    @property
    def training(self) -> tuple[Any, ...]:
        """The last arguments of every training stage: model, seed, launch."""
        return self.profile.model, self.run.seed, self.profile.launch

    @property
    def sampling(self) -> tuple[Any, ...]:
        """The last arguments of `generate_responses`: model, seed, actors."""
        return self.profile.model, self.run.seed, self.profile.actors


def prepare(run: Run, settings: ClaimsSettings) -> Seed:
    """World, data, base and SFT model of one seed."""
    profile = run.profile
    assert profile.world is not None
    base = run.base_model() if profile.model.base else base_of_world(profile, run.folder.parent / "bases")
    world = build_world(profile.world, run.seed, into=run / "world")
    training = (profile.model, run.seed, profile.launch)
    data = build_preference_data(profile.data, world, base, profile.model, run.seed, into=run / "preference_data")
    sft = stages.train_sft(data, base, profile.sft, *training, into=run / "sft")
    return Seed(run, settings, world, data, sft)


def base_of_world(profile: Profile, folder: Path) -> Artifact:
    """The base model of a world: one for all its seeds, made by the first that comes while the others wait."""
    assert profile.base_model is not None
    assert profile.world is not None
    folder.mkdir(parents=True, exist_ok=True)
    seed = profile.world.seed
    with (folder / f".lock{seed}").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return stages.train_base_model(profile.base_model, profile.world, None, seed, into=folder / BY_KEY)


def measure(seed: Seed, design: Variant) -> Found:
    """Run everything that a variant needs, and read what it measured."""
    if design.kind == "sft":
        return measure_policy(seed, seed.sft, reward_model(seed, design))
    kinds = {"offline": measure_offline, "best_of_n": measure_best_of_n, "loop": measure_loop}
    return kinds.get(design.kind, measure_judge)(seed, design)


def reward_model(seed: Seed, design: Variant) -> Artifact:
    """The RM of a variant: of a mixture, or of a share of one."""
    run, data, settings = seed.run, seed.data, seed.profile.reward_model
    mixture = design.mixture or seed.profile.data.main_mixture
    if design.share < 1:
        data = take_share(data, mixture, design.share, run.seed, into=run / "share")
    return stages.train_reward_model(data, mixture, seed.sft, settings, *seed.training, into=run / "reward_model")


def preference_model(seed: Seed) -> Artifact:
    """The PM of the main mixture."""
    mixture, settings, into = seed.profile.data.main_mixture, seed.profile.preference_model, seed.run / "pm"
    return stages.train_preference_model(seed.data, mixture, seed.sft, settings, *seed.training, into=into)


def measure_judge(seed: Seed, design: Variant) -> Found:
    """RewardBench by section; of trained judges also accuracy and cost, of RMs how far reward follows length."""
    run, profile, kind = seed.run, seed.profile, cast("reward_models.Method", design.kind)
    confidence = profile.evaluation.confidence
    model = preference_model(seed) if kind == "pm" else reward_model(seed, design) if kind == "bt" else seed.sft
    bench = rewardbench.evaluate_rewardbench(
        model, kind, profile.rewardbench, seed.world, profile.reward_model.batch_tokens, profile.model, confidence,
        profile.reward_model.output, profile.actors, into=run / "rewardbench",
    )  # fmt: skip
    found = estimates(bench.read_json("results.json")["sections"])
    found["safety_and_reasoning"] = measured(weighted_mean([found["safety"], found["reasoning"]], [1, 1]))
    if kind == "prompting":
        return found
    pairs = reward_models.write_clean_test_pairs(seed.data, profile.evaluation, profile.world, into=run / "test_pairs")
    settings = profile.preference_model if kind == "pm" else profile.reward_model
    options = (settings, profile.model, confidence, profile.actors)
    tested = reward_models.evaluate_judge(model, kind, pairs, *options, into=run / "test")
    if kind == "bt":
        found["mean_pearson"] = estimates(length_bias(seed, model).read_json("results.json"))["mean"]
    found["accuracy"] = estimates(tested.read_json("results.json"))["accuracy"]
    return found | training_cost([model])


def length_bias(seed: Seed, model: Artifact) -> Artifact:
    """Chapter 06: how far an RM's reward of the SFT model's answers follows their length."""
    run, profile = seed.run, seed.profile
    many = profile.generation.variant(profile.length_bias.responses, profile.generation.temperatures)
    prompts = Prompts(seed.data, count=profile.length_bias.prompts)
    responses = generate_responses(seed.sft, prompts, many, *seed.sampling, into=run / "length_bias_responses")
    options, into = (profile.reward_model, profile.model, profile.actors), run / "length_bias_scores"
    scores = score_responses(model, responses, *options, into=into)
    return reward_models.measure_length_bias(scores, profile.evaluation, run.seed, into=run / "length_bias")


def measure_offline(seed: Seed, design: Variant) -> Found:
    """Offline DPO on as many pairs as all iterations have prompts, skill by skill, with as many updates."""
    profile, count = seed.profile, design.iterations
    assert profile.world is not None
    wanted = count * profile.iterative.prompts_per_iteration
    balanced = balance_skills(seed.data, profile.world, wanted, seed.run.seed, into=seed.run / "offline_pairs")
    trainer = {**profile.dpo.trainer, "max_steps": count * seed.settings.max_steps}
    settings = profile.offline_dpo.model_copy(update={"pairs": None, "trainer": trainer})
    policy = stages.train_offline_dpo(
        balanced, "offline", seed.sft, settings, *seed.training, into=seed.run / "offline_dpo"
    )
    return measure_policy(seed, policy, reward_model(seed, design)) | training_cost([policy])


def measure_loop(seed: Seed, design: Variant) -> Found:
    """The policy of each iteration (metrics end in ``@iteration``), and the cost of all together.

    The proxy is the reward of the RM that ranks; where a PM or a checker ranks, that of the main RM.
    """
    proxy, trained = reward_model(seed, design), run_loop(seed, design)
    policies_found = [measure_policy(seed, policy, proxy) for policy in trained]
    found = {f"{name}@{i}": each for i, one in enumerate(policies_found, start=1) for name, each in one.items()}
    return found | training_cost(trained)


def run_loop(seed: Seed, design: Variant) -> list[Artifact]:
    """The policy of each iteration: Algorithm 1, as in chapter 09, with equally many updates in each iteration.

    A variant that restarts from π₀ trains as much longer as it has more sets of pairs.
    """
    iterates, all_pairs = list[Artifact](), list[Artifact]()
    for iteration in range(1, design.iterations + 1):
        overrides = design.overrides if iteration >= design.first else {}
        steps = seed.settings.max_steps * design.at_once * (iteration if design.restart else 1)
        profile = variant(seed.profile, {**overrides, "dpo.trainer.max_steps": steps})
        run, policy = Run(seed.run.chapter, profile, seed.run.folder, by_key=True), [seed.sft, *iterates][-1]
        by_rm = profile.pair_building.ranker == "reward_model"
        ranker = reward_model(seed, design) if by_rm else preference_model(seed)
        count = design.at_once * profile.iterative.prompts_per_iteration
        iterative = profile.iterative.model_copy(update={"prompts_per_iteration": count})
        prompts = prompts_of_iteration(seed.data, iteration, iterative)
        responses = generate_responses(policy, prompts, profile.generation, *seed.sampling, into=run / "responses")
        scores = rank(run, ranker, responses, into=run / "scores")
        if design.verifier:
            assert profile.world is not None
            scores = verify(scores, profile.world, design.verifier == "alone", into=run / "verified")
        all_pairs.append(build_preference_pairs(scores, profile.pair_building, run.seed, into=run / "pairs"))
        pairs = all_pairs if profile.iterative.replay else all_pairs[-1:]
        reference = seed.sft if profile.dpo.reference == "sft" else policy
        start = seed.sft if design.restart else policy
        settings = profile.dpo.model_copy(update={"reference": "sft"})  # it is an argument: not in the key twice
        iterates.append(stages.train_dpo(start, reference, pairs, settings, *seed.training, into=run / "dpo"))
    return iterates


def measure_best_of_n(seed: Seed, design: Variant) -> Found:
    """The best of as many answers of π₀ as an iteration samples, picked by what ranks the loop's pairs; KL's bound.

    They have random numbers of their own: π₀'s answers that they are compared with are not among them.
    """
    proxy, count = reward_model(seed, design), seed.profile.generation.sampling["n"]
    draws = seed_for(seed.run.seed, "best_of_n")
    answers = policies.answer_held_out(seed.run, "best_of_n", seed.sft, seed.data, proxy, count, draws)
    return {**compare_with_sft(seed, answers, proxy, count), "kl": constant(bon_kl(count))}


def measure_policy(seed: Seed, policy: Artifact, proxy: Artifact) -> Found:
    """A policy's answers to the held-out prompts against π₀'s, always with the profile's own sampling."""
    profile, count = seed.profile, seed.settings.samples_per_prompt
    answers = policies.answer_held_out(seed.run, "policy", policy, seed.data, proxy, count)
    batch_tokens, into = profile.reward_model.batch_tokens, seed.run / "kl"
    kl = policies.measure_kl(policy, seed.sft, answers, batch_tokens, profile.model, profile.actors, into=into)
    found = {
        **compare_with_sft(seed, answers, proxy),
        "kl": mean_over_prompts(seed, kl.read_json("results.json")["prompts"]),
    }
    return {**found, "exact_match": exact_match(seed, policy)}


def compare_with_sft(seed: Seed, answers: Artifact, proxy: Artifact, best_of: int = 1) -> Found:
    """The answers against π₀'s: every sample of the policy against one of π₀, then the mean over a prompt's samples.

    A sample is the best of `best_of` answers. Prompts stay the unit of every interval; where a metric has no number per
    prompt, its interval is as wide as that of one sample.
    """
    run, profile, penalty = seed.run, seed.profile, seed.profile.pair_building.length_penalty
    reference = policies.answer_held_out(run, "sft", seed.sft, seed.data, proxy, seed.settings.samples_per_prompt)
    results = []
    for sample in range(len(answers.dataset()[0]["responses"]) // best_of):
        ours = pick_answers(answers, sample, best_of, penalty, into=run / "sample")
        theirs = pick_answers(reference, sample, 1, penalty, into=run / "sample")
        evaluated = policies.evaluate_policy(
            ours, theirs, profile.evaluation, profile.world, None, profile.reward_model.batch_tokens, run.seed,
            profile.reward_model.output, profile.actors, cache_file=run.cache / "judge.jsonl",
            into=run / "evaluation",
        )  # fmt: skip
        results.append(evaluated.read_json("results.json"))
    found = {
        name: mean_over_prompts(seed, np.mean([each["prompts"][column] for each in results], axis=0).tolist())
        for name, column in BY_PROMPT.items()
    }
    found["length_adjusted_win_rate"] = mean_of([each["estimates"]["length_adjusted_win_rate"] for each in results])
    found["reasoning_accuracy"] = mean_of([each["skills"]["reasoning"]["accuracy"] for each in results])
    return found


def mean_over_prompts(seed: Seed, units: Sequence[float]) -> Measure:
    """The mean of one number per prompt, with its bootstrap interval."""
    settings = seed.profile.evaluation
    return measured(bootstrap_mean(units, settings.bootstrap_samples, settings.confidence, seed.run.seed), tuple(units))


def mean_of(parts: Sequence[dict[str, Any]]) -> Measure:
    """The mean of estimates from the same prompts: of their values and of the ends of their intervals."""
    value, low, high = (fmean(part[key] for part in parts) for key in ("value", "ci_low", "ci_high"))
    return Measure(value, low, high, parts[0]["n"])


def exact_match(seed: Seed, policy: Artifact) -> Measure:
    """Greedy answers on the skill that no preference and no RL prompt touches."""
    run, profile = seed.run, seed.profile
    prompts = policies.write_exact_match_prompts(profile.evaluation, seed.world, into=run / "exact_match_prompts")
    greedy, asked = profile.generation.variant(1, [0.0]), Prompts(prompts, "exact_match")
    answers = generate_responses(policy, asked, greedy, *seed.sampling, into=run / "exact_match_answers")
    judged = policies.evaluate_exact_match(answers, profile.evaluation, seed.world, into=run / "exact_match")
    results = judged.read_json("results.json")
    return Measure(**results["exact_match"], units=tuple(results["prompts"]["correct"]))


def training_cost(models: Sequence[Artifact]) -> Found:
    """Pairs, optimiser steps and tokens of training, each summed over a variant's iterations."""
    logs = [model.read_json("log.json") for model in models]
    sums = {name: sum(log[key] for log in logs) for name, key in (("updates", "steps"), ("tokens", "tokens"))}
    sums["pairs"] = sum(model.rows["training_rows"]["rows_out"] for model in models)
    return {name: constant(value) for name, value in sums.items()}


def constant(value: float) -> Measure:
    return Measure(float(value), float(value), float(value), 1)


def measured(estimate: Estimate, units: tuple[float, ...] | None = None) -> Measure:
    return Measure(**vars(estimate), units=units)


def estimates(results: dict[str, Any]) -> Found:
    return {name: Measure(**each) for name, each in results.items() if isinstance(each, dict) and "value" in each}
