"""Work over Ray actors on two nodes: the rows of one process, also where an actor or a node is lost half-way."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from lost_actors import actors, one_is_killed, two_nodes
from tiny_models import MODEL, artifact, prompts, save_policy, save_reward_model, settings
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhflow_utils.evaluation.rewardbench import judge_rows
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.spread import spread
from rlhflow_utils.guide.stage import PROJECT, Artifact
from rlhflow_utils.models import forward
from rlhflow_utils.models.preference_model import rank_responses
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online import generation
from rlhflow_utils.online.generation import Prompts, generate_responses, prompts_of_iteration
from rlhflow_utils.online.pair_building import build_preference_pairs, rank
from rlhflow_utils.training.stages import train_dpo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHRUNK = {
    "generation.max_prompt_tokens": 100,
    "generation.sampling.max_tokens": 32,
    "generation.sampling.n": 4,
    "generation.shard_size": 8,
    "iterative.prompts_per_iteration": 32,
    "dpo.trainer.num_train_epochs": 1,
    "pair_building.length_penalty": 0.0,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("models")
    save_policy(folder / "sft/model")
    save_policy(folder / "pm/model", seed=2)
    save_reward_model(folder / "bt/model", folder / "sft/model")
    return {name: artifact(folder / name, key=name) for name in ("sft", "pm", "bt")}


def test_a_lost_node_costs_its_shard(cluster: Any) -> None:
    """A GPU is gone for good: the shard that its actor had waits until another actor is through."""
    node = cluster.add_node(num_gpus=1)
    head, lost = cluster.head_node.node_id, node.node_id

    @contextmanager
    def start() -> Iterator[Callable[[int], tuple[str, int]]]:
        import ray

        def compute(shard: int) -> tuple[str, int]:
            time.sleep(0.3)
            return ray.get_runtime_context().get_node_id(), shard * shard

        yield compute

    work = spread(range(60), lambda place: place + 10, start, None)
    found = [next(work)]
    while len(actors()) < 3:  # as many as GPUs; on a busy machine the first is at work before the last has started
        found.append(next(work))
    before = len(found)
    cluster.remove_node(node, allow_graceful=False)
    found += work
    assert sorted((place, square) for place, (_, square) in found) == [(i, (i + 10) ** 2) for i in range(60)]
    assert head in {each for _, (each, _) in found}
    late = [each for _, (each, _) in found[before:]]
    assert late.count(lost) <= 2, "no more than what it had done already"
    assert not actors()


def test_what_an_actor_raises_is_raised_here(cluster: Any) -> None:
    @contextmanager
    def start() -> Iterator[Callable[[int], float]]:
        yield lambda shard: 1 / shard

    with pytest.raises(ZeroDivisionError, match=r"^division by zero$"):
        list(spread([0], int, start, 1))
    with pytest.raises(ValueError, match=r"^actors: 1 with 2 GPUs each do not fit into 2 GPUs on 2 machines; lower"):
        list(spread([0], int, start, None, 2))
    with pytest.raises(RuntimeError, match=r"^an actor was lost 4 times, mostly for want of memory: lower"):
        list(spread([9], int, lambda: nullcontext(os._exit), 1))
    assert list(spread([], int, start, 5)) == []


def test_chapters_07_to_09_give_the_same_rows_on_two_nodes(
    cluster: Any, models: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In iteration 1 generation and scoring lose an actor each."""
    monkeypatch.setattr(forward, "ROWS_PER_SHARD", 8)
    data = artifact(tmp_path / "data", "prompts", prompts(64))
    runs = [
        Run("09_iterative_dpo", load_profile("tiny", {**SHRUNK, "actors": count}), tmp_path / str(count))
        for count in (0, 2)
    ]
    for run in runs:
        profile, policy = run.profile, models["sft"]
        for k in (1, 2):
            lose = profile.actors and k == 1
            asked = prompts_of_iteration(data, k, profile.iterative)
            with one_is_killed(generation, monkeypatch) if lose else nullcontext():
                responses = generate_responses(
                    policy, asked, profile.generation, profile.model, 0, profile.actors, into=run / f"{k}_responses"
                )
            assert not actors(), "before the next child begins"
            with one_is_killed(forward, monkeypatch) if lose else nullcontext():
                scores = rank(run, models["bt"], responses, into=run / f"{k}_scores")
            assert not actors()
            pairs = build_preference_pairs(scores, profile.pair_building, 0, into=run / f"{k}_pairs")
            policy = train_dpo(
                policy, models["sft"], [pairs], profile.dpo, profile.model, 0, None, into=run / f"{k}_dpo"
            )
    for k in (1, 2):
        one, two = ({name: run[f"{k}_{name}"] for name in ("responses", "scores", "pairs")} for run in runs)
        assert two["responses"].dataset().to_list() == one["responses"].dataset().to_list()
        flat = [[value for group in run["scores"].dataset()["rewards"] for value in group] for run in (one, two)]
        assert flat[1] == pytest.approx(flat[0], abs=1e-6)
        ids = [[(row["chosen_ids"], row["rejected_ids"]) for row in run["pairs"].dataset()] for run in (one, two)]
        assert ids[0] == ids[1] != []
        assert one["responses"].key == two["responses"].key or k == 2, "the key does not know who computes"


def test_preference_model_and_rewardbench_give_the_same_numbers(
    cluster: Any, models: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tournament loses an actor. No model is ever in this process."""
    monkeypatch.setattr(forward, "ROWS_PER_SHARD", 4)
    tiny, texts = load_profile("tiny").preference_model, ["red", "blue sky", "a green poem please", "one"]
    responses = artifact(tmp_path / "responses", rows=[{**row, "responses": texts} for row in prompts(24)])
    benchmark = [
        {"row_id": i, "subset": "alpacaeval-easy", "prompt": row["prompt"], "chosen": "red", "rejected": "blue"}
        for i, row in enumerate(prompts(12))
    ]

    def results(count: int) -> tuple[list[list[float]], list[float]]:
        with one_is_killed(forward, monkeypatch) if count else nullcontext():
            ranked = rank_responses(
                models["pm"], responses, tiny, "round_robin", MODEL, count, into=tmp_path / f"ranked{count}"
            )
        judged = judge_rows(benchmark, "pm", models["pm"], 500, MODEL, count)
        return list(ranked.dataset()["rewards"]), judged["chosen"].tolist()

    here = results(0)
    with modules_run() as seen:
        there = results(2)
    assert not seen
    ranks = [[value for group in found[0] for value in group] for found in (here, there)]
    assert ranks[1] == pytest.approx(ranks[0], abs=1e-6)
    assert there[1] == pytest.approx(here[1], abs=1e-6)
    assert len(set(here[1])) > 6


@contextmanager
def modules_run() -> Iterator[list[weakref.ref[torch.nn.Module]]]:
    """Every network, and every layer of one, that computes in this process."""
    seen: list[weakref.ref[torch.nn.Module]] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: seen.append(weakref.ref(module)))
    try:
        yield seen
    finally:
        hook.remove()


def test_after_a_stage_this_process_holds_no_model(tmp_path: Path) -> None:
    """Generation and scoring in the process itself, again and again with a model of 64 MiB."""
    tokenizer = AutoTokenizer.from_pretrained(save_policy(tmp_path / "small"))
    config = AutoConfig.from_pretrained(
        tmp_path / "small", hidden_size=512, num_hidden_layers=4, intermediate_size=2048
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    save_reward_model(tmp_path / "bt", tmp_path / "policy")
    data = artifact(tmp_path / "data", "prompts", prompts(2))
    rm, memory = load_profile("tiny").reward_model, []
    gc.collect()
    with modules_run() as seen:
        for seed in range(4):
            responses = generate_responses(
                tmp_path / "policy", Prompts(data), settings(max_tokens=2), MODEL, seed, 0, into=tmp_path / f"r{seed}"
            )
            score_responses(tmp_path / "bt", responses, rm, MODEL, 0, into=tmp_path / f"s{seed}")
            memory.append(psutil.Process().memory_info().rss / 2**20)
            assert len(seen) > 100
            gc.collect()
            assert not [each for each in seen if each() is not None]
    assert memory[-1] - memory[0] < 32, memory


PARENT = """
import sys, time
from contextlib import nullcontext
from rlhflow_utils.guide.spread import spread
for _ in spread(range(4), int, lambda: nullcontext(time.sleep), 2):
    print("working", flush=True)
"""


def test_actors_and_ray_end_with_a_killed_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of its own, as without a cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=PROJECT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "working\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len([each for each in children if "ray::_Actor" in " ".join(each.cmdline())]) == 2
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([each for each in children if "Agent" not in each.name()], timeout=20)
    assert not alive, "Ray's two agents first try for a minute to report the end"
