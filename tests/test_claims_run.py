"""A shortened real run of some claims in a very small world: equal budgets, shared work, nothing run twice."""

from __future__ import annotations

import json
import math
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
from rlhflow_utils.guide.stage import PROJECT, Artifact, read_artifact
from rlhflow_utils.simulator.gold import World

pytestmark = pytest.mark.slow
STEPS = 3
MEASURED = ["b", "e", "i", "m", "p", "q", "sizes"]
SHRUNK = str(PROJECT / "tests" / "fixtures" / "shrunk.yaml")
SMALL: dict[str, Any] = {
    "world.sft.demonstrations": 120,
    "world.sft.translations": 30,
    "world.sft.judgements": 30,
    "world.prompts": 64,
    "world.eval_prompts": 24,
    "iterative.prompts_per_iteration": 16,
    "data.evaluation_prompts": 24,
    "length_bias": {"prompts": 12, "responses": 4},
    "preference_model.trainer.num_train_epochs": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished measurement of some claims, b in another world, too, by two iterations of three updates each.

    No answer of these models is right: a checker alone would find no pair, so it works beside the RM only.
    """
    folder = tmp_path_factory.mktemp("claims")
    text = DESIGNS.read_text(encoding="utf-8").replace("@3", "@2")
    raw = yaml.safe_load(text.replace("iterations: 3", "iterations: 2").replace("at_once: 3", "at_once: 2"))
    raw["settings"] |= {"seeds": 1, "fewer_seeds": 1, "world_seeds": 1, "max_steps": STEPS, "overrides": {}}
    raw["worlds"] = {"world1": {"world.seed": 1}}
    q = raw["claims"]["q"]
    q["variants"].remove("verifier")
    q["comparisons"] = [part for part in q["comparisons"] if "verifier" not in (part["better"], part.get("worse"))]
    (folder / "designs.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    _run(folder)
    return folder


def _run(folder: Path) -> None:
    run_dir, designs = os.path.relpath(folder / "runs", PROJECT), folder / "designs.yaml"
    run_claims(SHRUNK, only=MEASURED, overrides=SMALL, run_dir=run_dir, designs_file=designs)


def _stages(finished: Path, name: str) -> Iterator[Artifact]:
    for folder in sorted((finished / "runs" / "seed100").glob(f"{name}-*")):
        found = read_artifact(folder)
        assert found is not None
        yield found


def test_each_claim_has_its_record(finished: Path) -> None:
    files = (finished / "runs" / "results").glob("*.json")
    records = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    assert set(records) == set(MEASURED)
    e = records["e"]
    assert (e["claim"], e["seeds"], e["interval"]) == ("e", 1, "over prompts, not over seeds")
    assert set(e["variants"]) == {"main", "offline", "no_penalty", "sft"}
    metrics = {"win_rate", "length_adjusted_win_rate", "accuracy", "reasoning_accuracy", "reward", "proxy_reward", "kl"}
    assert {f"{metric}@{step}" for metric in metrics | {"exact_match"} for step in (1, 2)} <= set(
        e["variants"]["main"]["100"]
    )
    assert {"python", "versions", "commit", "dirty"} == set(e["provenance"])
    assert (set(records["b"]["worlds"]), e["worlds"]) == ({"world1"}, {})
    shown = e["variants"]["main"]["100"]["length_adjusted_win_rate@2"] - 0.5
    assert e["comparisons"][0]["effect"] == e["effect"] == pytest.approx(shown, abs=1e-4)
    assert (e["deciding"], e["smallest_detectable_effect"]) == ("length-adjusted win rate, iterative DPO − SFT", None)
    assert e["verdict"] == e["comparisons"][0]["verdict"]


def test_every_variant_trains_for_equally_many_updates(finished: Path) -> None:
    """Whatever pairs an iteration finds; a restart trains longer with every set of pairs: its claim is about that."""
    records = {
        name: json.loads((finished / f"runs/results/{name}.json").read_text(encoding="utf-8")) for name in "eimpq"
    }
    variants = {name: values["100"] for record in records.values() for name, values in record["variants"].items()}
    updates = {name: values.get("updates") for name, values in variants.items()}
    del updates["bt"], updates["pm"]
    two = dict.fromkeys(("main", "no_penalty", "offline", "one_round"), 2.0 * STEPS)
    one = dict.fromkeys(("pm_tournament", "pm_round_robin", "random_no_penalty", "verifier_and_rm"), 1.0 * STEPS)
    assert updates == {**two, **one, "restart": 3.0 * STEPS, "sft": None, "best_of_n": None}
    steps = Counter(each.metrics["steps"] for each in _stages(finished, "train_dpo"))
    assert set(steps) == {STEPS, 2 * STEPS}
    assert [each.metrics["steps"] for each in _stages(finished, "train_offline_dpo")] == [2 * STEPS]


def test_held_out_prompts_are_answered_several_times(finished: Path) -> None:
    """24 prompts, two answers to each; of best-of-n four to each, of which one is kept; π₀ has no KL from π₀."""
    held_out = [each for each in _stages(finished, "generate_responses") if each.rows["prompts"]["rows_in"] == 24]
    counts = Counter(len(each.dataset()[0]["responses"]) for each in held_out)
    assert set(counts) == {2, 4}
    assert counts[4] == 1
    for picked in _stages(finished, "pick_answers"):
        assert {len(row["responses"]) for row in picked.dataset()} == {1}
    p = json.loads((finished / "runs/results/p.json").read_text(encoding="utf-8"))["variants"]
    assert p["sft"]["100"]["kl"] == 0.0
    assert p["main"]["100"]["kl@2"] != 0.0
    assert p["best_of_n"]["100"]["kl"] == pytest.approx(math.log(4) - 3 / 4, abs=1e-5)
    assert p["best_of_n"]["100"]["proxy_reward"] - 0.03 * p["best_of_n"]["100"]["mean_length"] > (
        p["sft"]["100"]["proxy_reward"] - 0.03 * p["sft"]["100"]["mean_length"]
    ), "the best of four by the penalised reward is better than one"


def test_a_round_at_once_has_the_prompts_of_all_iterations(finished: Path) -> None:
    prompts = {each.rows["prompts"]["rows_in"] for each in _stages(finished, "build_preference_pairs")}
    assert prompts == {16, 32}


def test_offline_pairs_are_of_all_skills_alike(finished: Path) -> None:
    """32 pairs, for two iterations of 16 prompts, from 20 rows of a source that leans to chat."""
    world = World(seed_profile(load_designs(finished / "designs.yaml"), SHRUNK, SMALL, 100).world)  # type: ignore[arg-type]
    for balanced in _stages(finished, "balance_skills"):
        rows = balanced.dataset("offline")
        skills = Counter(world.skill_of(prompt[-1]["content"]) for prompt in rows["prompt"])
        assert skills == {"chat": 8, "chat_hard": 8, "safety": 8, "reasoning": 8}
        assert balanced.metrics["repeated"] == 32 - len(set(rows["row_id"])) > 0


def test_equal_work_is_shared(finished: Path) -> None:
    """Iteration 1 of main and restart is one training; another world has a base model of its own."""
    for name in ("build_world", "train_sft", "train_preference_model"):
        assert len(list(_stages(finished, name))) == 2, name
    assert len(list((finished / "runs" / "bases").glob("train_base_model-*"))) == 2, "for the seeds of each world"
    assert len(list(_stages(finished, "train_reward_model"))) == 2 + 3, "and three shares of the mixture"
    # main and no_penalty, two iterations each; three of claim m; one of q with the RM and the checker; one round at
    # once; the second iteration of restart, on the pairs of both
    trained = list(_stages(finished, "train_dpo"))
    assert sorted(len(each.manifest["inputs"]["pairs"]) for each in trained) == [1] * (4 + 3 + 1 + 1) + [2]


def test_judges_are_measured(finished: Path) -> None:
    measured = json.loads((finished / "runs/results/m.json").read_text(encoding="utf-8"))["variants"]
    sections = {"chat", "chat_hard", "safety", "reasoning", "overall", "safety_and_reasoning", "accuracy"}
    costs = {"pairs", "updates", "tokens"}
    assert set(measured["pm"]["100"]) == sections | costs
    assert set(measured["bt"]["100"]) == sections | costs | {"mean_pearson"}
    bt = measured["bt"]["100"]
    assert bt["safety_and_reasoning"] == pytest.approx((bt["safety"] + bt["reasoning"]) / 2, abs=1e-4)
    sizes = json.loads((finished / "runs/results/sizes.json").read_text(encoding="utf-8"))["variants"]
    pairs = [sizes[name]["100"]["pairs"] for name in ("bt_share0_125", "bt_share0_25", "bt_share0_5", "bt")]
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
    """A file stands where the folder of seed 101 should be; seed 100 is finished already."""
    (finished / "runs" / "seed101").write_text("in the way", encoding="utf-8")
    designs = load_designs(finished / "designs.yaml")
    profiles = {seed: seed_profile(designs, SHRUNK, SMALL, seed) for seed in (101, 100)}
    jobs = {seed: {"": ["i"]} for seed in profiles}
    measured, failed = run_seeds(designs, profiles, jobs, finished / "runs", workers=2)
    assert set(measured) == {100}
    assert len(failed) == 1
    assert failed[0].startswith("seed 101: ")
