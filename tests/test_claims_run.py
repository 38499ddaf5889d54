"""A shortened real run of five claims in a very small world: equal budgets, shared work, nothing run twice."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhflow_utils.claims.designs import DESIGNS, load_designs, seed_profile
from rlhflow_utils.claims.run import run_claims, run_seeds
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import PROJECT, Artifact, read_artifact
from rlhflow_utils.simulator.gold import World

pytestmark = pytest.mark.slow
STEPS = 3
SMALL: dict[str, Any] = {
    "world.entities": 4,
    "world.corpus": {"statements": 40, "questions": 40, "proofread": 20, "graded": 20, "comparisons": 20},
    "world.sft.demonstrations": 120,
    "world.sft.translations": 30,
    "world.sft.judgements": 30,
    "world.prompts": 64,
    "world.eval_prompts": 24,
    "world.translation_tests": 6,
    "world.benchmark_rows": 24,
    "model.base": None,
    "base_model.architecture.hidden_size": 32,
    "base_model.architecture.num_hidden_layers": 1,
    "base_model.architecture.intermediate_size": 64,
    "base_model.architecture.num_attention_heads": 2,
    "base_model.vocab_size": 400,
    "base_model.tokens": 20_000,
    "generation.sampling": {"n": 4, "top_p": 1.0, "max_tokens": 12},
    "iterative.prompts_per_iteration": 16,
    "data.evaluation_prompts": 24,
    "length_bias": {"prompts": 12, "responses": 4},
    "evaluation.bootstrap_samples": 100,
    **{f"world.preferences.sources.{name}.rows": 20 for name in load_profile("tiny").world.preferences.sources},  # type: ignore[union-attr]
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished measurement of five claims, e with other annotators, too, by two iterations of three updates each."""
    folder = tmp_path_factory.mktemp("claims")
    raw = yaml.safe_load(
        DESIGNS.read_text(encoding="utf-8").replace("@3", "@2").replace("iterations: 3", "iterations: 2")
    )
    raw["settings"] |= {"seeds": 1, "fewer_seeds": 1, "annotator_seeds": 1, "max_steps": STEPS, "overrides": {}}
    raw["annotators"] = {"noisier": raw["annotators"]["noisier"]}
    (folder / "designs.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    _run(folder)
    return folder


def _run(folder: Path) -> None:
    run_dir, designs = os.path.relpath(folder / "runs", PROJECT), folder / "designs.yaml"
    run_claims("tiny", only=["e", "i", "m", "n", "sizes"], overrides=SMALL, run_dir=run_dir, designs_file=designs)


def _stages(finished: Path, name: str) -> Iterator[Artifact]:
    for folder in sorted((finished / "runs" / "seed30").glob(f"{name}-*")):
        found = read_artifact(folder)
        assert found is not None
        yield found


def test_each_claim_has_its_record(finished: Path) -> None:
    files = (finished / "runs" / "results").glob("*.json")
    records = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    assert set(records) == {"e", "i", "m", "n", "sizes"}
    e = records["e"]
    assert (e["claim"], e["seeds"], e["interval"]) == ("e", 1, "over prompts, not over seeds")
    assert set(e["variants"]) == {"main", "offline", "no_penalty", "sft"}
    assert {"win_rate@1", "win_rate@2", "reward@2", "proxy_reward@2", "exact_match@2"} <= set(
        e["variants"]["main"]["30"]
    )
    assert {"python", "versions", "commit", "dirty"} == set(e["provenance"])
    assert (set(e["annotators"]), records["n"]["annotators"]) == ({"noisier"}, {})
    shown = e["variants"]["no_penalty"]["30"]["win_rate@2"] - e["variants"]["offline"]["30"]["win_rate"]
    assert e["comparisons"][0]["effect"] == pytest.approx(shown, abs=1e-4)


def test_every_variant_trains_for_equally_many_updates(finished: Path) -> None:
    """Whatever pairs an iteration finds; a restart trains longer with every set of pairs: its claim is about that."""
    records = {
        name: json.loads((finished / f"runs/results/{name}.json").read_text(encoding="utf-8")) for name in "eimn"
    }
    variants = {name: values["30"] for record in records.values() for name, values in record["variants"].items()}
    updates = {name: values.get("updates") for name, values in variants.items()}
    del updates["bt"], updates["pm"]
    two = dict.fromkeys(("main", "no_penalty", "replay", "offline"), 2.0 * STEPS)
    one = dict.fromkeys(("pm_tournament", "pm_round_robin", "random_no_penalty"), 1.0 * STEPS)
    assert updates == {**two, **one, "restart": 3.0 * STEPS, "sft": None}
    steps = Counter(each.metrics["steps"] for each in _stages(finished, "train_dpo"))
    assert set(steps) == {STEPS, 2 * STEPS}
    assert [each.metrics["steps"] for each in _stages(finished, "train_offline_dpo")] == [2 * STEPS] * 2


def test_offline_pairs_are_of_all_skills_alike(finished: Path) -> None:
    """32 pairs, for two iterations of 16 prompts, from 20 rows of a source that leans to chat."""
    world = World(seed_profile(load_designs(finished / "designs.yaml"), "tiny", SMALL, 30).world)  # type: ignore[arg-type]
    for balanced in _stages(finished, "balance_skills"):
        rows = balanced.dataset("offline")
        skills = Counter(world.skill_of(prompt[-1]["content"]) for prompt in rows["prompt"])
        assert skills == {"chat": 8, "chat_hard": 8, "safety": 8, "reasoning": 8}
        assert balanced.metrics["repeated"] == 32 - len(set(rows["row_id"])) > 0


def test_equal_work_is_shared(finished: Path) -> None:
    """Base and SFT model see no annotator; iteration 1 of main, replay and restart is one training."""
    assert len(list(_stages(finished, "build_world"))) == 2, "the profile's annotators and noisier ones"
    assert len(list(_stages(finished, "train_base_model"))) == len(list(_stages(finished, "train_sft"))) == 1
    assert len(list(_stages(finished, "train_reward_model"))) == 2 + 3, "and three shares of the mixture"
    # main and no_penalty in both worlds, two iterations each; the second one of replay and of restart; three of claim m
    trained = list(_stages(finished, "train_dpo"))
    assert sorted(len(each.manifest["inputs"]["pairs"]) for each in trained) == [1] * (8 + 3) + [2, 2]


def test_judges_are_measured(finished: Path) -> None:
    measured = json.loads((finished / "runs/results/m.json").read_text(encoding="utf-8"))["variants"]
    sections = {"chat", "chat_hard", "safety", "reasoning", "overall", "accuracy"}
    costs = {"pairs", "updates", "tokens"}
    assert set(measured["pm"]["30"]) == sections | costs
    assert set(measured["bt"]["30"]) == sections | costs | {"mean_pearson"}
    sizes = json.loads((finished / "runs/results/sizes.json").read_text(encoding="utf-8"))["variants"]
    pairs = [sizes[name]["30"]["pairs"] for name in ("bt_share0_125", "bt_share0_25", "bt_share0_5", "bt")]
    assert pairs == sorted(set(pairs)), "each share is larger than the one before"


def test_nothing_runs_twice_and_a_lost_stage_is_made_again(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (finished / "runs/results/e.json").read_text(encoding="utf-8")
    lost = next(_stages(finished, "evaluate_policy")).path
    shutil.rmtree(lost)
    capfd.readouterr()
    _run(finished)
    assert [line for line in capfd.readouterr().out.splitlines() if ": running" in line] == [f"▸ {lost.name}: running"]
    assert (finished / "runs/results/e.json").read_text(encoding="utf-8") == before


def test_a_seed_that_fails_does_not_stop_the_others(finished: Path) -> None:
    """A file stands where the folder of seed 31 should be; seed 30 is finished already."""
    (finished / "runs" / "seed31").write_text("in the way", encoding="utf-8")
    designs = load_designs(finished / "designs.yaml")
    profiles = {seed: seed_profile(designs, "tiny", SMALL, seed) for seed in (31, 30)}
    jobs = {seed: {"": ["n"]} for seed in profiles}
    measured, failed = run_seeds(designs, profiles, jobs, finished / "runs", workers=2)
    assert set(measured) == {30}
    assert len(failed) == 1
    assert failed[0].startswith("seed 31: ")
