"""What all arms of one seed share: world, data, base, SFT, reward models, PM, and their tests. One folder a seed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhflow_utils.claims.arms import claims_settings
from rlhflow_utils.claims.stages import measure_best_of_n, share_name, write_shares
from rlhflow_utils.config import Profile
from rlhflow_utils.generation import generate_responses
from rlhflow_utils.iterative_dpo import GENERATION, SCORING, Setting, evaluate, evaluation_responses
from rlhflow_utils.length_bias import measure_length_bias
from rlhflow_utils.manifest import Run, StageFolder
from rlhflow_utils.model_evaluation import (
    evaluate_preference_model,
    evaluate_reward_model,
    write_clean_test_pairs,
)
from rlhflow_utils.policy_evaluation import evaluate_exact_match, write_exact_match_prompts
from rlhflow_utils.preference_data import build_preference_data
from rlhflow_utils.reward_model import score_responses
from rlhflow_utils.rewardbench import evaluate_rewardbench
from rlhflow_utils.settings import WorldVariant
from rlhflow_utils.simulator.stage import build_world
from rlhflow_utils.training_stages import train_base_model, train_preference_model, train_reward_model, train_sft

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
