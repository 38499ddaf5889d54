"""A shortened real run of two claims in a very small world: every kind of stage, equal budgets, nothing run twice."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from rlhflow_utils.claims.run import run_claims, seed_profile
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.provenance import PROJECT
from rlhflow_utils.simulator.gold import World

pytestmark = pytest.mark.slow
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
    "base_model.hidden_size": 32,
    "base_model.num_hidden_layers": 1,
    "base_model.intermediate_size": 64,
    "base_model.num_attention_heads": 2,
    "base_model.vocab_size": 400,
    "generation.max_new_tokens": 12,
    "generation.responses": 4,
    "iterative.iterations": 2,
    "iterative.prompts_per_iteration": 16,
    "data.evaluation_prompts": 24,
    "length_bias.prompts": 12,
    "length_bias.responses": 4,
    "evaluation.bootstrap_samples": 100,
    "claims.overrides": {},
    "claims.updates": 3,
    "claims.variants": [{"name": "noisier", "sharpness": 0.5, "length_bonus": 1.0}],
    "claims.seeds": 1,
    "claims.fewer_seeds": 1,
    "claims.variant_seeds": 1,
    **{f"world.preferences.sources.{name}.rows": 20 for name in load_profile("tiny").world.preferences.sources},  # type: ignore[union-attr]
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    _run(folder)
    return folder


def _run(folder: Path) -> None:
    run_dir = os.path.relpath(folder / "runs", PROJECT)
    run_claims("tiny", only=["e", "i", "n"], overrides=SMALL, run_dir=run_dir, results=folder / "results")


def _manifest(finished: Path, stage: str, seed: str = "seed30") -> dict[str, Any]:
    return dict(json.loads((finished / "runs" / seed / stage / "manifest.json").read_text(encoding="utf-8")))


def _log(finished: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((finished / "runs" / "seed30" / stage / "log.json").read_text(encoding="utf-8")))


def test_each_claim_has_its_record(finished: Path) -> None:
    records = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (finished / "results").glob("*.json")
    }
    assert set(records) == {"e", "i", "n"}
    e = records["e"]
    assert (e["claim"], e["seeds"], e["interval"]) == ("e", 1, "over prompts, not over seeds")
    assert set(e["arms"]) == {"main", "offline", "no_penalty", "sft"}
    assert set(e["arms"]["main"]) == {"30"}
    assert {"win_rate@1", "win_rate@2", "gold@2", "proxy@2", "exact_match"} <= set(e["arms"]["main"]["30"])
    assert e["arms"]["main"]["30"]["updates"] > 0
    assert set(e["provenance"]) == {"python", "versions", "commit", "dirty"}
    assert set(e["variants"]) == {"noisier"}
    assert records["n"]["variants"] == {}
    shown = e["arms"]["no_penalty"]["30"]["win_rate@2"] - e["arms"]["offline"]["30"]["win_rate"]
    assert e["parts"][0]["effect"] == pytest.approx(shown, abs=1e-4)


def test_every_arm_trains_for_equally_many_updates(finished: Path) -> None:
    """Whatever pairs an iteration finds: as many optimiser steps in each, and offline DPO as many as all together."""
    arms = [f"{arm}_iter{iteration}_dpo" for arm in ("11_no_penalty", "09") for iteration in (1, 2)]
    steps = {name: _log(finished, name)["steps"] for name in (*arms, "11_replay_iter2_dpo", "10_offline_dpo")}
    assert steps.pop("10_offline_dpo") == 2 * SMALL["claims.updates"]
    assert _log(finished, "11_restart_iter2_dpo")["steps"] == 2 * SMALL["claims.updates"], "two sets of pairs"
    assert set(steps.values()) == {SMALL["claims.updates"]}


def test_offline_pairs_are_of_all_skills_alike(finished: Path) -> None:
    """32 pairs, for two iterations of 16 prompts, from 20 rows of a source that leans to chat."""
    world = World(seed_profile("tiny", SMALL, 30).world)  # type: ignore[arg-type]
    rows = load_from_disk(str(finished / "runs" / "seed30" / "10_offline_pairs" / "nectar"))
    skills = Counter(world.skill_of(prompt[-1]["content"]) for prompt in rows["prompt"])
    assert skills == {"chat": 8, "chat_hard": 8, "safety": 8, "reasoning": 8}
    manifest = _manifest(finished, "10_offline_pairs")
    assert manifest["metrics"]["10.offline.repeated"] == 32 - len(set(rows["row_id"])) > 0
    assert _manifest(finished, "10_offline_dpo")["rows"]["training_rows"]["rows_in"] == 32


def test_replay_takes_all_pairs(finished: Path) -> None:
    replay = _manifest(finished, "11_replay_iter2_dpo")
    assert set(replay["inputs"]) == {"policy", "sft", "pairs0", "pairs1"}
    assert replay["inputs"]["policy"] == "stage:09_iter1_dpo", "iteration 1 is shared"
    assert replay["inputs"]["pairs1"] == "stage:09_iter2_pairs", "and with it the pairs of iteration 2"


def test_other_annotators_share_base_and_sft(finished: Path) -> None:
    for stage in ("00_base_model", "02_sft"):
        assert _manifest(finished, stage)["key"] == _manifest(finished, stage, "seed30-noisier")["key"]
    assert _manifest(finished, "03_bt_mix2")["key"] != _manifest(finished, "03_bt_mix2", "seed30-noisier")["key"]


def test_a_seed_that_fails_does_not_stop_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two workers, and a file where seed 31's folder should be: it is told at once, seed 30's record is written."""
    (tmp_path / "seed31").write_text("in the way", encoding="utf-8")
    changed = {**SMALL, "claims.seeds": 2, "claims.fewer_seeds": 2}
    with pytest.raises(RuntimeError, match=r"^seed 31: .*seed31.* run the command again"):
        run_claims("tiny", only=["sizes"], overrides=changed, run_dir=os.path.relpath(tmp_path, PROJECT),
                   results=tmp_path / "results", workers=2)  # fmt: skip
    told = capfd.readouterr().out
    assert told.index("failed, the others go on: seed 31") < told.index("seed 30 measured after")
    assert set(json.loads((tmp_path / "results" / "sizes.json").read_text(encoding="utf-8"))["arms"]["bt"]) == {"30"}


def test_nothing_runs_twice_and_a_lost_stage_is_made_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "results" / "e.json").read_text(encoding="utf-8")
    _run(finished)
    assert ": running" not in capsys.readouterr().out
    shutil.rmtree(finished / "runs" / "seed30" / "11_replay_iter2_evaluation")
    _run(finished)
    ran = [line for line in capsys.readouterr().out.splitlines() if ": running" in line]
    assert ran == ["▸ 11_replay_iter2_evaluation: running"]
    assert (finished / "results" / "e.json").read_text(encoding="utf-8") == before
