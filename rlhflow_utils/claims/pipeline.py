"""What all arms of one seed share: world, data, base, SFT, reward models, PM, and their tests. One folder a seed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhflow_utils.claims.designs import (
    MAIN,
    SECTIONS,
    Arm,
    Measure,
    build_arms,
    claims_settings,
    same_as_main,
    share_name,
)
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.evaluation import rewardbench
from rlhflow_utils.evaluation.policies import evaluate_exact_match, write_exact_match_prompts
from rlhflow_utils.evaluation.reward_models import (
    evaluate_preference_model,
    evaluate_reward_model,
    measure_length_bias,
    write_clean_test_pairs,
)
from rlhflow_utils.evaluation.rewardbench import evaluate_rewardbench
from rlhflow_utils.evaluation.statistics import bon_kl
from rlhflow_utils.guide.profile import Profile
from rlhflow_utils.guide.settings import WorldVariant
from rlhflow_utils.guide.stage import Run, StageFolder, write_json
from rlhflow_utils.models.preference_model import Compare, load_compare, round_robin, tournament
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import generate_responses
from rlhflow_utils.online.iterative_dpo import (
    GENERATION,
    SCORING,
    Setting,
    build_pairs_for_iteration,
    evaluate,
    evaluation_responses,
    generate_for_iteration,
    score_for_iteration,
    stage_name,
    train_iteration,
)
from rlhflow_utils.simulator.world import build_world
from rlhflow_utils.training.stages import (
    train_base_model,
    train_offline_dpo,
    train_preference_model,
    train_reward_model,
    train_sft,
)

if TYPE_CHECKING:
    from rlhflow_utils.guide.stage import Stage


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


LISTS = ("responses", "response_ids", "finish_reasons", "temperatures", "lengths")


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


TRAINING = ("model", "launch", "report_to")
CHAPTER = "11_ablations"


def variant_overrides(profile: Profile, variant: WorldVariant) -> dict[str, Any]:
    """The world's annotators with their sharpness and their taste for length multiplied."""
    assert profile.world is not None
    changed: dict[str, Any] = {}
    for name, annotator in profile.world.preferences.sources.items():
        key = f"world.preferences.sources.{name}"
        changed[f"{key}.sharpness"] = {skill: value * variant.sharpness for skill, value in annotator.sharpness.items()}
        changed[f"{key}.length_bonus"] = annotator.length_bonus * variant.length_bonus
    return changed


class SeedRun:
    """The shared stages of one seed, run when they are first asked for.

    Args:
        profile: with the seed, `world.seed` and the claims' own overrides in place.
        run_dir: a folder of its own.
        models_from: the run of the same seed whose base and SFT model serve here, too: annotators touch neither.
    """

    def __init__(self, profile: Profile, run_dir: Path, models_from: SeedRun | None = None) -> None:
        self.run = Run(CHAPTER, profile, run_dir)
        self.profile, self.claims, self.models_from = profile, claims_settings(profile), models_from
        self.main, self.last = profile.data.main_mixture, profile.iterative.iterations
        self.done: set[str] = set()  # arms that ran in this process

    @cached_property
    def world(self) -> StageFolder:
        return self.run.stage("00_world", build_world, reads=("world",))

    @cached_property
    def base(self) -> StageFolder:
        if self.models_from:
            return self._adopt(self.models_from.base, "corpus.jsonl")
        return self.run.stage(
            "00_base_model", train_base_model, reads=("base_model", *TRAINING), inputs={"root": self.world}
        )

    @cached_property
    def data(self) -> StageFolder:
        return self.run.stage(
            "01_preference_data", build_preference_data, reads=("data", "model"),
            inputs={"root": self.world, "base": self.base},
        )  # fmt: skip

    @cached_property
    def sft(self) -> StageFolder:
        if self.models_from:
            return self._adopt(self.models_from.sft, "sft.jsonl")
        return self.run.stage(
            "02_sft", train_sft, reads=("sft", *TRAINING), inputs={"data": self.data, "base": self.base}
        )

    def reward_model(self, name: str) -> StageFolder:
        """A BT reward model: of a mixture, or of a share of the main one."""
        data = self.data if name in self.profile.data.mixtures else self.shares
        return self.run.stage(
            f"03_bt_{name}", train_reward_model, reads=("reward_model", *TRAINING),
            inputs={"data": data, "sft": self.sft}, subset=name,
        )  # fmt: skip

    @cached_property
    def shares(self) -> StageFolder:
        shares = sorted(self.claims.rm_shares)
        return self.run.stage("03_shares", write_shares, inputs={"data": self.data}, subset=self.main, shares=shares)

    @cached_property
    def preference_model(self) -> StageFolder:
        return self.run.stage(
            f"04_pm_{self.main}", train_preference_model, reads=("preference_model", *TRAINING),
            inputs={"data": self.data, "sft": self.sft}, subset=self.main,
        )  # fmt: skip

    @cached_property
    def setting(self) -> Setting:
        """The main recipe's models and data."""
        return Setting(self.sft, self.reward_model(self.main), self.data)

    @cached_property
    def reference(self) -> StageFolder:
        """The SFT model's answers to the held-out prompts."""
        return evaluation_responses(self.run, self.setting, "09_sft_evaluation", self.sft)

    @cached_property
    def test_pairs(self) -> StageFolder:
        reads = ("reward_model", "model", "evaluation", "world")
        return self.run.stage("03_test_pairs", write_clean_test_pairs, reads=reads, inputs={"data": self.data})

    def test_reward_model(self, name: str) -> None:
        """Accuracy on clean held-out pairs."""
        self.run.stage(
            f"03_bt_{name}_test", evaluate_reward_model, reads=("reward_model", "model", "evaluation", "world"),
            inputs={"model": self.reward_model(name), "pairs": self.test_pairs}, key=f"03.bt_{name}",
        )  # fmt: skip

    def test_preference_model(self) -> None:
        """The PM's accuracy on the same pairs."""
        self.run.stage(
            f"04_pm_{self.main}_test", evaluate_preference_model,
            reads=("preference_model", "model", "evaluation", "world"),
            inputs={"model": self.preference_model, "pairs": self.test_pairs}, key="04.pm",
        )  # fmt: skip

    def test_judge(self, label: str) -> None:
        """RewardBench, and for a reward model its correlation with length."""
        models = {"prompting": "prompting", "pm": "pm"}
        method = models.get(label, "bt")
        mixture = self.main if label == "bt" else label.removeprefix("bt_")
        model = self.sft if method == "prompting" else self.preference_model if method == "pm" else None
        self.run.stage(
            f"05_rewardbench_{label}", evaluate_rewardbench,
            reads=("rewardbench", "reward_model", "preference_model", "evaluation"),
            inputs={"model": model or self.reward_model(mixture), "root": self.world}, method=method, label=label,
        )  # fmt: skip
        if method == "bt":
            self.test_length_bias(mixture)

    def test_length_bias(self, mixture: str) -> None:
        """Chapter 06: mean Pearson correlation of length and reward."""
        settings = self.profile.length_bias
        responses = self.run.stage(
            "06_sft_responses", generate_responses, reads=GENERATION, inputs={"model": self.sft, "data": self.data},
            subset="prompts", count=settings.prompts, responses=settings.responses,
        )  # fmt: skip
        scores = self.run.stage(
            f"06_scores_{mixture}", score_responses, reads=SCORING,
            inputs={"model": self.reward_model(mixture), "responses": responses},
        )  # fmt: skip
        self.run.stage(
            f"06_length_bias_{mixture}", measure_length_bias, reads=("evaluation",), inputs={"scores": scores},
            label=mixture,
        )  # fmt: skip

    def test_sft(self) -> None:
        """The SFT model against itself, and its exact match."""
        evaluate(
            self.run, self.setting, "09_sft_evaluation", "09.sft", self.reference, self.reference, is_answered=True
        )
        self.exact_match("sft", self.sft)

    def exact_match(self, name: str, policy: StageFolder) -> None:
        """Chapter 10: greedy answers on the untouched skill."""
        root = {"root": self.world}
        prompts = self.run.stage(
            "10_exact_match_prompts", write_exact_match_prompts, reads=("evaluation",), inputs=root
        )
        answers = self.run.stage(
            f"10_{name}_exact_match_responses", generate_responses, reads=GENERATION,
            inputs={"model": policy, "data": prompts}, subset="exact_match", responses=1, temperatures=[0.0],
        )  # fmt: skip
        self.run.stage(
            f"10_{name}_exact_match", evaluate_exact_match, reads=("evaluation",), inputs={"policy": answers, **root},
            key=f"10.{name}",
        )  # fmt: skip

    def test_best_of_n(self) -> None:
        """KL of best-of-n under the main RM."""
        responses = self.run.stage(
            "11_bon_responses", generate_responses, reads=GENERATION, inputs={"model": self.sft, "data": self.data},
            subset="prompts", count=self.claims.bon_prompts, responses=self.claims.bon_responses, temperatures=[1.0],
        )  # fmt: skip
        scores = self.run.stage(
            "11_bon_scores", score_responses, reads=SCORING,
            inputs={"model": self.setting.reward_model, "responses": responses},
        )  # fmt: skip
        self.run.stage("11_bon", measure_best_of_n, inputs={"scores": scores}, n=list(self.claims.bon_n))

    def test_shares(self) -> None:
        """RM accuracy against training size."""
        for share in self.claims.rm_shares:
            self.test_reward_model(share_name(share))

    def _adopt(self, folder: StageFolder, file: str) -> StageFolder:
        """Take over a finished model of the other run; its data must be the same, byte for byte.

        Raises:
            RuntimeError: the two worlds differ in what the model was trained on.
        """
        assert self.models_from is not None
        theirs = self.models_from.world.path / file
        if (self.world.path / file).read_bytes() != theirs.read_bytes():
            raise RuntimeError(f"{file} differs between two settings of the annotators: they must not share a model")
        target = self.run.run_dir / folder.path.name
        if not target.exists() or self.run.folder(target.name).manifest["key"] != folder.manifest["key"]:
            shutil.rmtree(target, ignore_errors=True)
            temporary = target.with_name(target.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(folder.path, temporary)
            temporary.rename(target)
        return self.run.folder(target.name)


def reward_model_name(seed: SeedRun, ranker: str) -> str:
    """Which RM an arm's ranker is; the PM's arms report the main RM's reward as their proxy."""
    names: Mapping[str, str] = {"bt_mix1": "mix1", "bt_weak": share_name(seed.claims.weak_share)}
    return names.get(ranker, seed.main)


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


POLICY_METRICS = {
    "win_rate": ("win_rate", "outcome"),
    "lc_win_rate": ("lc_win_rate", None),
    "right": ("right_share", "right"),
    "length": ("mean_length", "length"),
    "gold": ("reward", "reward"),
    "proxy": ("proxy_reward", "proxy_reward"),
}  # our name -> key of the estimate, and of the numbers by prompt


def measure_arm(run: Run, name: str) -> dict[str, Measure]:
    """Everything an arm measured under one seed, by metric; policies' metrics end in ``@iteration``.

    Raises:
        FileNotFoundError: a stage of the arm is missing.
    """
    if name in ("prompting", "bt", "pm", "bt_mix1") or name.startswith("bt_share"):
        return measure_judge(run, name)
    if name.startswith("share"):
        accuracy = {"accuracy": _measure(_results(run, f"03_bt_{name}_test")["accuracy"])}
        return accuracy | _training_cost(run, [f"03_bt_{name}"])
    if name == "bon":
        return read_best_of_n(_results(run, "11_bon"))
    if name == "sft":
        return _policy(run, "09_sft_evaluation", "") | _exact_match(run, "sft")
    if name == "offline":
        policy = _policy(run, "10_offline_dpo_evaluation", "") | _exact_match(run, "offline_dpo")
        return policy | _training_cost(run, ["10_offline_dpo"])
    return measure_loop(run, build_arms(run.profile)[name])


def measure_judge(run: Run, label: str) -> dict[str, Measure]:
    """RewardBench by section; of trained judges also their cost and accuracy, of RMs the correlation with length."""
    stage = f"05_rewardbench_{label}"
    sections, units = _results(run, stage)["sections"], section_units(run.folder(stage).path / "verdicts.jsonl")
    found = {section: _measure(sections[section], units[section]) for section in SECTIONS if sections[section]}
    found["overall"] = _measure(sections["overall"])
    main = run.profile.data.main_mixture
    if label.startswith("bt"):
        mixture = main if label == "bt" else label.removeprefix("bt_")
        found["length_correlation"] = _measure(_results(run, f"06_length_bias_{mixture}")["mean"])
        found |= _training_cost(run, [f"03_bt_{mixture}"])
    if label == "bt":
        found["accuracy"] = _measure(_results(run, f"03_bt_{main}_test")["accuracy"])
    if label == "pm":
        found["accuracy"] = _measure(_results(run, f"04_pm_{main}_test")["accuracy"])
        found |= _training_cost(run, [f"04_pm_{main}"])
    return found


def measure_loop(run: Run, arm: Arm) -> dict[str, Measure]:
    """A policy arm: its evaluated iterations, how far its rewards moved, which gold was best, and what it cost.

    Gold moves from SFT on, the proxy from iteration 1: an arm's RM may not have scored SFT's answers.
    """
    stages = MAIN if same_as_main(arm, run.profile) else arm.name
    found: dict[str, Measure] = {}
    for iteration in arm.evaluated():
        found |= _policy(run, arm_stage(stages, iteration, "evaluation"), f"@{iteration}")
    if arm.evaluate_all and arm.iterations > 1:
        start, last = _policy(run, "09_sft_evaluation", "")["gold"], arm.iterations
        found["gold_gain"] = gain(start, found[f"gold@{last}"])
        found["proxy_gain"] = gain(found["proxy@1"], found[f"proxy@{last}"])
        gold = [start, *(found[f"gold@{k}"] for k in arm.evaluated())]
        found["best_iteration"] = _exact(float(np.argmax([measure.value for measure in gold])))
    if arm.exact_match:
        found |= _exact_match(run, "iterative_dpo" if stages == MAIN else arm.name)
    if arm.ranker.startswith("pm") or arm.name == "no_penalty":
        found |= _ranking_cost(run, arm)
    trained = [
        arm_stage(MAIN if iteration < arm.first else stages, iteration, "dpo")
        for iteration in range(1, arm.iterations + 1)
    ]
    return found | _training_cost(run, trained)


def section_units(verdicts: Path) -> dict[str, list[float]]:
    """RewardBench section -> one number per pair, in the file's order, whose plain mean is the section's score.

    A pair counts 1 where chosen is preferred, else 0 (a tie, too), times its subset's share of the section's weight
    over its share of the section's pairs. So two judges of the same pairs can be compared pair by pair.

    Args:
        verdicts: a stage's ``verdicts.jsonl``.
    """
    rows = [json.loads(line) for line in verdicts.read_text(encoding="utf-8").splitlines()]
    sizes = Counter(row["subset"] for row in rows)
    units = {}
    for section, weights in rewardbench.SECTIONS.items():
        mine = [row for row in rows if row["subset"] in weights]
        total = sum(weight for subset, weight in weights.items() if sizes[subset])
        scale = {
            subset: weight * len(mine) / (total * sizes[subset]) for subset, weight in weights.items() if sizes[subset]
        }
        units[section] = [float(row["outcome"] == 1) * scale[row["subset"]] for row in mine]
    return units


def gain(first: Measure, last: Measure) -> Measure:
    """How far a mean over prompts moved; the interval is normal, over the prompts' own differences.

    Raises:
        ValueError: the two do not have one number for each of the same prompts.
    """
    if first.units is None or last.units is None or len(first.units) != len(last.units):
        raise ValueError("a gain needs one number per prompt from both, in the same order")
    units = np.asarray(last.units) - np.asarray(first.units)
    half = 1.96 * float(units.std(ddof=1)) / len(units) ** 0.5
    value = float(units.mean())
    return Measure(value, value - half, value + half, len(units), tuple(units.tolist()))


def read_best_of_n(results: Mapping[str, Any]) -> dict[str, Measure]:
    """KL of best-of-n by n, and its distance from the bound; the mean over prompts."""
    found = {}
    for n, values in results["kl"].items():
        bound = results["bound"][n]
        found[f"kl_{n}"] = _mean(values)
        found[f"slack_{n}"] = _mean([bound - value for value in values])
    return found


def _policy(run: Run, stage: str, suffix: str) -> dict[str, Measure]:
    results = _results(run, stage)
    found = {}
    for name, (key, by_prompt) in POLICY_METRICS.items():
        estimate = results["estimates"].get(key)
        if estimate is not None:
            found[name + suffix] = _measure(estimate, results["prompts"][by_prompt] if by_prompt else None)
    return found


def _exact_match(run: Run, name: str) -> dict[str, Measure]:
    results = _results(run, f"10_{name}_exact_match")
    return {"exact_match": _measure(results["exact_match"], results["prompts"]["correct"])}


def _training_cost(run: Run, stages: Sequence[str]) -> dict[str, Measure]:
    """Pairs, optimiser steps and tokens of training, each summed over an arm's iterations."""
    folders = [run.folder(stage) for stage in stages]
    logs = [folder.read_json("log.json") for folder in folders]
    return {
        "pairs": _exact(float(sum(folder.rows["training_rows"]["rows_out"] for folder in folders))),
        "updates": _exact(float(sum(log["steps"] for log in logs))),
        "tokens": _exact(float(sum(log["tokens"] for log in logs))),
    }


def _ranking_cost(run: Run, arm: Arm) -> dict[str, Measure]:
    """Forward passes for each prompt of iteration 1, and the seconds the ranking took."""
    if not arm.ranker.startswith("pm"):
        seconds = float(run.folder("08_iter1_scores").manifest["wall_seconds"])
        return {"passes": _exact(run.profile.generation.responses), "ranking_seconds": _exact(seconds)}
    folder = run.folder(f"11_{arm.name}_iter1_scores")
    passes = float(folder.metrics[f"11.{arm.name}_iter1_scores.passes"] or 0)
    return {"passes": _exact(passes), "ranking_seconds": _exact(float(folder.manifest["wall_seconds"]))}


def _results(run: Run, stage: str) -> dict[str, Any]:
    return dict(run.folder(stage).read_json("results.json"))


def _measure(estimate: Mapping[str, Any], units: Sequence[float] | None = None) -> Measure:
    by_prompt = None if units is None else tuple(float(value) for value in units)
    return Measure(estimate["value"], estimate["ci_low"], estimate["ci_high"], estimate["n"], by_prompt)


def _exact(value: float) -> Measure:
    return Measure(value, value, value, 1)


def _mean(values: Sequence[float]) -> Measure:
    vector = np.asarray(values, dtype=float)
    half = 1.96 * float(vector.std(ddof=1)) / len(vector) ** 0.5
    return Measure(
        float(vector.mean()),
        float(vector.mean()) - half,
        float(vector.mean()) + half,
        len(vector),
        tuple(vector.tolist()),
    )
