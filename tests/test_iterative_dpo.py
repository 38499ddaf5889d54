"""One iteration of Algorithm 1 on tiny real models: which prompts, who ranks, what is trained against what."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_models import artifact, prompts, save_policy, save_reward_model, score

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.stage import Artifact
from rlhflow_utils.models.preference_model import preference_probability
from rlhflow_utils.online.generation import generate_responses, prompts_of_iteration
from rlhflow_utils.online.pair_building import build_preference_pairs, rank
from rlhflow_utils.training.stages import train_dpo

SMALL = {
    "generation.max_prompt_tokens": 100,
    "generation.sampling.max_tokens": 12,
    "generation.sampling.n": 4,
    "iterative.prompts_per_iteration": 4,
    "dpo.trainer.num_train_epochs": 1,
    "dpo.trainer.warmup_steps": 0,
    "pair_building.length_penalty": 0.0,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """SFT model, a later policy, RM and PM, as the stages that would have trained them."""
    folder = tmp_path_factory.mktemp("models")
    save_policy(folder / "sft/model")
    save_policy(folder / "iter1_dpo/model", seed=1)
    save_policy(folder / "pm_mix2/model", seed=2)
    save_reward_model(folder / "bt_mix2/model", folder / "sft/model")
    return {name: artifact(folder / name, key=name) for name in ("sft", "iter1_dpo", "pm_mix2", "bt_mix2")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact(tmp_path_factory.mktemp("run") / "preference_data", "prompts", prompts(12), "data")


def open_small(folder: Path, **overrides: Any) -> Run:
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return Run("09_iterative_dpo", load_profile("tiny", {**SMALL, **changes}), folder)


def iterate(run: Run, k: int, policy: Artifact, models: dict[str, Artifact], data: Artifact) -> Artifact:
    """Iteration k with the calls of chapter 09."""
    profile, prompts_k = run.profile, prompts_of_iteration(data, k, run.profile.iterative)
    responses = generate_responses(
        policy, prompts_k, profile.generation, profile.model, run.seed, None, into=run / f"iter{k}_responses"
    )
    scores = rank(run, models["bt_mix2"], responses, into=run / f"iter{k}_scores")
    build_preference_pairs(scores, profile.pair_building, run.seed, into=run / f"iter{k}_pairs")
    pairs = [run[f"iter{i}_pairs"] for i in (range(1, k + 1) if profile.iterative.replay else [k])]
    reference = models["sft"] if profile.dpo.reference == "sft" else policy
    return train_dpo(policy, reference, pairs, profile.dpo, profile.model, run.seed, None, into=run / f"iter{k}_dpo")


def test_no_prompt_is_used_in_two_iterations(data: Artifact) -> None:
    settings = load_profile("tiny", SMALL).iterative
    shares = [list(prompts_of_iteration(data, k, settings).rows()["prompt_id"]) for k in (1, 2, 3)]
    assert [len(share) for share in shares] == [4, 4, 4]
    assert len({name for share in shares for name in share}) == 12


@pytest.mark.parametrize("ranker", ["reward_model", "preference_model"])
def test_the_profile_says_who_ranks(models: dict[str, Artifact], data: Artifact, tmp_path: Path, ranker: str) -> None:
    run = open_small(tmp_path, pair_building__ranker=ranker)
    profile, model = run.profile, models["bt_mix2" if ranker == "reward_model" else "pm_mix2"]
    responses = generate_responses(
        models["sft"], prompts_of_iteration(data, 1, profile.iterative), profile.generation, profile.model, run.seed,
        None, into=run / "iter1_responses",
    )  # fmt: skip
    scores = rank(run, model, responses, into=run / "iter1_scores")
    pairs = build_preference_pairs(scores, profile.pair_building, run.seed, into=run / "iter1_pairs")
    assert len(pairs.dataset()) > 0
    for pair in pairs.dataset():
        both = [pair[side][0]["content"] for side in ("chosen", "rejected")]
        if ranker == "reward_model":
            found = score(model, [(pair["prompt"], text) for text in both], 500)
            assert found == pytest.approx([pair["chosen_score"], pair["rejected_score"]], abs=1e-5)
        else:
            [row] = [row for row in scores.dataset() if row["prompt_id"] == pair["prompt_id"]]
            others = list(row["responses"])
            others.remove(both[0])
            beats = preference_probability(model, [(pair["prompt"], both[0], text) for text in others], 500)
            assert pair["chosen_score"] == pytest.approx(sum(beats) / 3, abs=1e-5) == max(row["rewards"])


@pytest.mark.parametrize("reference", ["sft", "previous_iterate"])
def test_an_iteration_goes_on_from_the_last_policy_against_its_reference(
    models: dict[str, Artifact], data: Artifact, tmp_path: Path, reference: str
) -> None:
    run = open_small(tmp_path, dpo__reference=reference)
    policy = iterate(run, 2, models["iter1_dpo"], models, data)
    assert run["iter2_responses"].manifest["arguments"]["policy"] == {"artifact": "iter1_dpo"}
    assert list(run["iter2_responses"].dataset()["prompt_id"]) == ["p4", "p5", "p6", "p7"]
    assert run["iter2_scores"].manifest["inputs"]["reward_model"] == ["bt_mix2"]
    inputs = policy.manifest["inputs"]
    assert (policy.path.name, inputs["policy"], inputs["pairs"]) == ("iter2_dpo", ["iter1_dpo"], ["iter2_pairs"])
    assert inputs["reference"] == ["sft" if reference == "sft" else "iter1_dpo"]
    starts_at_ln2 = abs(policy.metrics["first_loss"] - math.log(2)) < 1e-3
    assert starts_at_ln2 == (reference == "previous_iterate"), "only then is the start its own reference"
    assert iterate(run, 2, models["iter1_dpo"], models, data).key == policy.key, "found again"


def test_replay_trains_on_all_pairs_so_far(models: dict[str, Artifact], data: Artifact, tmp_path: Path) -> None:
    run = open_small(tmp_path, iterative__replay=True)
    policy = iterate(run, 2, iterate(run, 1, models["sft"], models, data), models, data)
    assert policy.manifest["inputs"]["pairs"] == ["iter1_pairs", "iter2_pairs"]
    pairs = sum(len(run[f"iter{k}_pairs"].dataset()) for k in (1, 2))
    assert policy.rows["training_rows"]["rows_in"] == pairs > len(run["iter2_pairs"].dataset())
