"""`make check MACHINE=…`: the plan's memory against real training steps and published figures, and what it prints."""

from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from benchmark_scripts import benchmark_script
from transformers import AutoConfig, LlamaConfig

from rlhflow_utils import __main__ as command_line
from rlhflow_utils.guide.profile import load_profile, variant
from rlhflow_utils.guide.settings import TrainingSettings
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.training import capacity
from rlhflow_utils.training.capacity import GIB, TABLE, capacity_plan, fitting, machine_of, training_memory
from rlhflow_utils.training.trainers import section_job, trainer_config

RECORDED = json.loads((PROJECT / "results" / "capacity.json").read_text(encoding="utf-8"))
LLAMA2_7B = LlamaConfig(intermediate_size=11008)  # the class's defaults are those of LLaMA-7B


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return benchmark_script("capacity")


def _model(name: str) -> Any:
    return AutoConfig.for_model(**TABLE["architectures"][name])


def _memory(model: Any, shards: int = 1, length: int = 1024, **more: Any) -> dict[str, float]:
    """An SFT in bfloat16 with one row on each GPU."""
    config = SimpleNamespace(
        bf16=True, per_device_train_batch_size=1, max_length=length, packing=True, gradient_checkpointing=True,
        optim="adamw_torch",
    )  # fmt: skip
    return training_memory(model, "sft", config, TrainingSettings(global_batch_size=8, trainer={}, **more), shards)


# --- memory: real steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: "-".join(str(value) for value in case.values()))
def test_the_plan_is_within_15_per_cent_of_recorded_steps(case: dict[str, Any], benchmark: ModuleType) -> None:
    assert benchmark.planned(case) == pytest.approx(case["measured"], rel=0.15)


def test_every_case_is_recorded_for_three_sizes(benchmark: ModuleType) -> None:
    assert [{name: value for name, value in case.items() if name != "measured"} for case in RECORDED] == benchmark.CASES
    for kind in ("sft", "reward", "dpo"):
        sizes = {case["size"] for case in RECORDED if case["kind"] == kind}
        assert len(sizes) >= 3, kind


def test_a_step_that_is_measured_here_is_what_was_recorded(benchmark: ModuleType) -> None:
    case = {"kind": "reward", "size": "5M", "batch": 1, "length": 64, "dtype": "float32"}
    assert benchmark.planned(case) == pytest.approx(benchmark.measured(case), rel=0.15)


# --- memory: published figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE["architectures"])
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = _model(name)
    config.num_labels = 1
    with torch.device("meta"):
        whole, judge = (
            sum(each.numel() for each in auto.from_config(config).parameters())
            for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification)
        )
    # Total parameters on the models' pages on the hub.
    published = 2_506_172_416 if "gemma" in name else 8_030_261_248
    assert whole == published == capacity.parameters(config)
    assert judge == capacity.parameters(config, reward=True)


def test_states_are_the_zero_papers_16_bytes_a_parameter() -> None:
    """ZeRO (arXiv 1910.02054), Figure 1 and Table 1: 120 GB for 7.5 B parameters, 1.9 GB on each of 64 GPUs."""
    count = capacity.parameters(LLAMA2_7B)
    assert count == 6_738_415_616
    for shards, published in ((1, 120e9), (64, 1.9e9)):
        memory = _memory(LLAMA2_7B, shards)
        states = memory["weights"] + memory["gradients"] + memory["optimiser"]
        assert states / count == pytest.approx(published / 7.5e9, rel=0.02)


def test_all_weights_and_qlora_of_a_7b_are_llama_factorys() -> None:
    """LLaMA-Factory's README, "Hardware Requirement" (its estimates): 7B, 32 bits 120 GB; QLoRA with 4 bits 6 GB.

    Its LoRA (16 GB) keeps the frozen weights in 16 bits, here they are float32.
    """
    assert _memory(LLAMA2_7B)["peak"] == pytest.approx(120e9, rel=0.15)
    four = {"peft": {"r": 8, "target_modules": "all-linear"}, "quantization": {"load_in_4bit": True}}
    assert _memory(LLAMA2_7B, **four)["peak"] == pytest.approx(6e9, rel=0.15)


def test_what_fsdp_spreads_of_an_8b_is_what_torchtitan_measured() -> None:
    """torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, Tables 1 and 3: 82.4 GiB on 8 GPUs, 67.0 on 128."""
    llama = _model("meta-llama/Meta-Llama-3-8B")
    saved = _memory(llama, 8)["peak"] - _memory(llama, 128)["peak"]
    assert saved / GIB == pytest.approx(82.4 - 67.0, rel=0.15)


def test_logits_do_not_grow_with_the_vocabulary() -> None:
    """16,384 tokens of Gemma: all its logits would be 16 GB in float32."""
    gemma = _model("google/gemma-2b-it")
    assert _memory(gemma, length=16384, peft={"r": 8, "target_modules": "all-linear"})["logits"] < 0.5 * GIB


# --- what fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "machine", "nodes"),
    [("gemma-2b", "L4-24", 1), ("gemma-2b", "RTX4090-24", 1), ("gemma-2b", "L40S-48", 1), ("gemma-2b", "A100-80", 1),
     ("llama3-8b", "8xA100-80", 1), ("llama3-8b", "8xH100-80", 1), ("llama3-8b", "8xH100-80", 2)],
)  # fmt: skip
def test_the_profiles_fit_the_machines_they_name(name: str, machine: str, nodes: int) -> None:
    lines = capacity_plan(load_profile(name), machine_of(machine, nodes))
    rows = [line.strip("| ").split(" | ") for line in lines[1].splitlines()[2:]]
    assert len(rows) == 7
    assert {row[0]: row[-1] for row in rows} == dict.fromkeys((row[0] for row in rows), "yes")
    room = machine_of(machine, nodes)["room"] / GIB
    assert all(float(row[-3]) <= room for row in rows if row[0] not in ("generation", "scoring"))


def test_what_the_plan_proposes_makes_it_fit() -> None:
    given = {"launch.num_processes": 1, "dpo.trainer.precompute_ref_log_probs": False}
    profile, room = load_profile("llama3-8b", given), machine_of("A6000-48", 1)["room"]
    llama = _model("meta-llama/Meta-Llama-3-8B")
    memory, changes = fitting(profile, "sft", llama, room)
    assert memory["peak"] > room
    assert changes == {"sft.peft": {"r": 64, "lora_alpha": 128, "target_modules": "all-linear"}}
    assert fitting(variant(profile, changes), "sft", llama, room)[1] == {}
    _, changes = fitting(profile, "dpo", llama, room)
    assert list(changes or {}) == [
        "dpo.trainer.per_device_train_batch_size", "dpo.trainer.precompute_ref_log_probs", "dpo.peft",
    ]  # fmt: skip
    assert fitting(variant(profile, changes or {}), "dpo", llama, room)[1] == {}
    assert fitting(profile, "dpo", llama, 2 * GIB)[1] is None


def test_hours_follow_the_machine_and_unknown_sources_have_none() -> None:
    profile, llama = load_profile("llama3-8b"), _model("meta-llama/Meta-Llama-3-8B")
    one, two = (machine_of("8xH100-80", nodes) for nodes in (1, 2))
    # 20,000 prompts of 160 tokens with two answers of 280 each, two epochs, three iterations; forward, backward (twice
    # that), forward again for the checkpoints, and the reference: 5 x 2 operations for each of 7.5 B parameters.
    tokens = 3 * 2 * 20_000 * (2 * 160 + 2 * 280)
    hours = capacity.training_hours(profile, "dpo", llama, one)
    assert hours == pytest.approx(tokens * 5 * 2 * 7.505e9 / (8 * 989e12 * 0.35) / 3600, rel=0.01)
    ten = load_profile("llama3-8b", {"data.max_pairs_per_mixture": 10_000})
    less, all_pairs = (capacity.training_hours(each, "preference_model", llama, one) for each in (ten, profile))
    assert all_pairs == pytest.approx((less or 0) * 848_965 / 10_000)
    assert len({capacity.training_hours(each, "sft", llama, one) for each in (ten, profile)}) == 1, "of mixtures alone"
    assert capacity.generation(profile, llama, two)[1] == pytest.approx(capacity.generation(profile, llama, one)[1] / 2)
    own = {"data.mixtures": {"mine": ["SHP"]}, "data.main_mixture": "mine", "preference_model.mixtures": ["mine"]}
    assert capacity.training_hours(load_profile("llama3-8b", own), "preference_model", llama, one) is None


# --- the command ----------------------------------------------------------------------------------------------------


def test_check_prints_the_plan_of_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["check", "--profile", "tiny", "--machine", "8xH100-80", "--nodes", "2"]) == 0
    plan = capsys.readouterr().out.partition("\ncapacity   2 x 8 x H100-80: ")[2]
    for text in (
        "| sft |",
        "| generation |",
        "GPU hours",
        "the dearest: ",
        "GB of checkpoints",
        "memory of each machine",
    ):
        assert text in plan
    assert command_line.main(["check", "--profile", "tiny", "--machine", "8xH100-81"]) == 1
    assert "write 8xH100-80, with one of A100-40" in capsys.readouterr().err


def test_the_mixtures_rows_are_those_of_table_1() -> None:
    from rlhflow_utils.data.overview import PAPER_TABLE1

    sources, whole = PAPER_TABLE1.values(), TABLE["assumed"]["rows"]["mix2"]
    assert whole["pairs"] == sum(row["pairs"] for row in sources)
    for name in ("prompt_length", "chosen_length", "rejected_length"):
        assert whole[name] == pytest.approx(sum(row["pairs"] * row[name] for row in sources) / whole["pairs"], abs=0.1)


def test_the_plan_of_an_8b_model_is_what_a_gpu_measured() -> None:
    """LoRA SFT in blocks of 4,096 tokens on an H200 (benchmarks/gpu.py)."""
    measured = json.loads((PROJECT / "results" / "gpu" / "nvidia-h200.json").read_text(encoding="utf-8"))["cases"]
    profile = load_profile("gemma-2b", {"launch": None, "sft.trainer.max_length": 4096})
    config = trainer_config(section_job(profile, "sft"))
    plan = training_memory(_model("meta-llama/Meta-Llama-3-8B"), "sft", config, profile.sft)
    assert plan["peak"] / GIB == pytest.approx(measured["sft_lora"]["peak_allocated_gib"], rel=0.15)
