"""The committed profiles: the paper's values written out by hand, and a dry run that builds every argument."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_training import build_tiny_model

from rlhflow_utils import __main__ as command_line
from rlhflow_utils.data.sources import CONVERTERS
from rlhflow_utils.guide.profile import PROFILES_FOLDER, Profile, load_profile, parse_override, validate_profile
from rlhflow_utils.guide.provenance import PROJECT
from rlhflow_utils.training.check import (
    ModelSize,
    PlannedStage,
    check_profile,
    memory_bytes,
    mixture_size,
    model_size,
    planned_stages,
)
from rlhflow_utils.training.trainers import training_arguments

PROFILES = sorted(path.stem for path in PROFILES_FOLDER.glob("*.yaml"))


def _stages(profile: Profile) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in planned_stages(profile)}


@pytest.fixture(scope="module")
def llama() -> Profile:
    return load_profile("llama3-8b")


@pytest.fixture(scope="module")
def gemma() -> Profile:
    return load_profile("gemma-2b")


# --- the paper's numbers ------------------------------------------------------------------------------------------


def test_llama3_8b_is_the_papers_recipe(llama: Profile) -> None:
    def values(training: Any) -> tuple[Any, ...]:
        return (
            training.learning_rate, training.num_train_epochs, training.global_batch_size, training.max_length,
            training.lr_scheduler_type, training.warmup_ratio, training.lora,
        )  # fmt: skip

    assert values(llama.sft.training) == (2e-5, 1.0, 32, 8192, "cosine", 0.03, None)
    assert values(llama.reward_model.training) == (2e-6, 1.0, 512, 4096, "cosine", 0.03, None)
    assert values(llama.preference_model.training) == (5e-6, 1.0, 128, 3072, "cosine", 0.03, None)
    assert values(llama.dpo.training) == (5e-7, 2.0, 128, 2048, "cosine", 0.03, None)
    assert values(llama.offline_dpo.training) == (5e-7, 1.0, 128, 2048, "cosine", 0.03, None)
    assert llama.reward_model.training.weight_decay == 0.001
    assert llama.sft.packing
    assert llama.preference_model.packing
    assert (llama.dpo.beta, llama.dpo.loss_type, llama.dpo.label_smoothing, llama.dpo.reference) == (
        0.1,
        "sigmoid",
        0.0,
        "sft",
    )
    assert (llama.iterative.iterations, llama.iterative.prompts_per_iteration, llama.iterative.replay) == (
        3,
        20000,
        False,
    )
    assert (llama.generation.responses, llama.generation.temperatures) == (8, [1.0, 0.7])
    assert (llama.generation.top_p, llama.generation.max_new_tokens, llama.generation.max_prompt_tokens) == (
        1.0,
        2048,
        1000,
    )
    assert (llama.pair_building.strategy, llama.pair_building.length_penalty) == ("best_vs_worst", 0.0)
    assert (llama.length_bias.prompts, llama.length_bias.responses) == (2000, 8)
    assert (llama.model.base, llama.model.reward_base) == (
        "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct",
    )  # fmt: skip


def test_gemma_2b_takes_the_papers_batches(gemma: Profile) -> None:
    assert gemma.reward_model.training.global_batch_size == 256
    assert gemma.preference_model.training.global_batch_size == 128
    assert gemma.model.reward_base == "google/gemma-2b-it"
    assert gemma.sft.training.lora is not None


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-2b", "tiny"])
def test_the_mixtures_are_the_papers(name: str) -> None:
    data = load_profile(name).data
    assert data.mixtures["mix1"] == ["HH-RLHF", "SHP", "UltraFeedback", "Summarization"]
    assert sorted(data.mixtures["mix2"]) == [
        "Argilla-Math", "Capybara", "CodeUltraFeedback", "HH-RLHF", "HelpSteer", "OpenOrca", "PKU-SafeRLHF", "SHP",
        "UltraFeedback", "UltraInteract",
    ]  # fmt: skip
    assert (data.filters.min_score_ratio, data.filters.max_pairs_per_prompt) == (2.0, {"SHP": 5})


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-2b"])
def test_hub_recipes_load_from_the_hub(name: str) -> None:
    data = load_profile(name).data
    sources = [*data.preference_sources, *data.sft_sources, *data.prompt_sources, data.offline_source]
    assert all(source is not None and source.hub_id for source in sources)


@pytest.mark.parametrize("name", PROFILES)
def test_every_source_has_a_converter(name: str) -> None:
    raw = yaml.safe_load((PROFILES_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    schemas = re.findall(r"'schema': '(\w+)'", str(raw))
    assert schemas
    assert set(schemas) <= set(CONVERTERS)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_survives_its_own_dump(name: str) -> None:
    profile = load_profile(name)
    assert validate_profile(profile.model_dump(by_alias=True), name) == profile


# --- comments -----------------------------------------------------------------------------------------------------

PAPER_WORDS = (
    "paper",
    "deviation",
    "reconstructed",
    "not stated",
    "Online-RLHF",
    "RLHF-Reward-Modeling",
    "eq.",
    "bradley",
)
RECIPE_KEYS = ("learning_rate", "num_train_epochs", "global_batch_size", "max_length", "warmup_ratio", "weight_decay",
               "lr_scheduler_type", "beta", "responses", "temperatures", "max_new_tokens", "prompts_per_iteration",
               "iterations", "strategy", "loss_type")  # fmt: skip


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-2b"])
def test_every_number_of_the_recipe_says_where_it_comes_from(name: str) -> None:
    lines = (PROFILES_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    bare = [
        f"{number}: {line.strip()}"
        for number, line in enumerate(lines, start=1)
        if (match := re.match(r"\s+(\w+): ", line))
        and match[1] in RECIPE_KEYS
        and not any(word in line.partition("#")[2] for word in PAPER_WORDS)
    ]
    assert not bare


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-2b"])
def test_what_differs_from_the_paper_is_marked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_profile(name)
    differing = set(re.findall(r"^  (\w+) .*   deviation$", capsys.readouterr().out, re.MULTILINE))
    marked = set(
        re.findall(
            r"^\s+(\w+): [^#\n]*#.*deviation",
            (PROFILES_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    assert differing <= marked
    assert differing == (set() if name == "llama3-8b" else {"learning_rate", "max_length"})


# --- templates ----------------------------------------------------------------------------------------------------

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello. "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye."},
]


def _render(profile: Profile, folder: Path, messages: list[dict[str, str]]) -> str:
    from rlhflow_utils.models.chat import load_tokenizer, render

    tokenizer = load_tokenizer(build_tiny_model(folder))
    tokenizer.chat_template = profile.model.chat_template
    return render(messages, tokenizer, add_generation_prompt=True).replace(str(tokenizer.bos_token), "<bos>")


def test_llama_turns(llama: Profile, tmp_path: Path) -> None:
    assert _render(llama, tmp_path, CONVERSATION) == (
        "<bos><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_gemma_turns_with_and_without_a_system_message(gemma: Profile, tmp_path: Path) -> None:
    rest = (
        "Hello.<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n"
    )
    assert _render(gemma, tmp_path, CONVERSATION) == "<bos><start_of_turn>user\nBe brief.\n\n" + rest
    assert _render(gemma, tmp_path, CONVERSATION[1:]) == "<bos><start_of_turn>user\n" + rest


# --- the dry run --------------------------------------------------------------------------------------------------


def test_stages_of_llama3_8b(llama: Profile) -> None:
    assert list(_stages(llama)) == [
        "02_sft", "03_bt_mix1", "03_bt_mix2", "04_pm_mix2", "09_iter1_dpo", "09_iter2_dpo", "09_iter3_dpo",
        "10_offline_dpo",
    ]  # fmt: skip


def test_steps_and_tokens_by_hand(llama: Profile) -> None:
    stages = _stages(llama)
    # mix2 is all of Table 1: 848,965 pairs, of which 99 % train.
    assert stages["03_bt_mix2"].size.rows == 840475
    assert stages["03_bt_mix2"].steps() == 1642  # 840,475 / 512, rounded up
    assert stages["03_bt_mix1"].size.rows == 543234  # 99 % of 115,396 + 93,301 + 340,025
    assert "without Summarization" in stages["03_bt_mix1"].size.note
    assert stages["09_iter1_dpo"].steps() == 314  # two epochs of 20,000 / 128 = 156.25, rounded up
    assert stages["02_sft"].steps() is None
    limited = replace(stages["02_sft"], settings=stages["02_sft"].settings.model_copy(update={"max_steps": 50}))
    assert limited.steps() == 50, "whatever the number of rows"
    packed = stages["04_pm_mix2"]
    packed = replace(packed, settings=packed.settings.model_copy(update={"max_steps": 10}))
    assert packed.tokens() == 10 * 128 * 3072, "blocks of max_length"
    # The RM reads the prompt twice, the PM once: the difference is the mean prompt.
    twice, once = (mixture_size(llama, "mix2", n).row_tokens for n in (2, 1))
    assert twice is not None
    assert once is not None
    assert twice - once == pytest.approx(250.2, abs=0.1)  # 212.4 M prompt tokens in 848,965 pairs
    assert stages["04_pm_mix2"].samples() == pytest.approx(840475 * once / 3072, abs=1)


def test_trls_arguments_of_llama3_8b(llama: Profile) -> None:
    stages = _stages(llama)
    reward = training_arguments(stages["03_bt_mix2"].job(llama), num_processes=8)
    assert type(reward).__name__ == "RewardConfig"
    assert (reward.learning_rate, reward.weight_decay, reward.max_length, reward.warmup_steps) == (
        2e-6,
        0.001,
        4096,
        0.03,
    )
    assert reward.per_device_train_batch_size * reward.gradient_accumulation_steps * 8 == 512
    assert reward.bf16
    dpo = training_arguments(stages["09_iter2_dpo"].job(llama), num_processes=8)
    assert type(dpo).__name__ == "DPOConfig"
    assert (dpo.beta, dpo.loss_type, dpo.learning_rate, dpo.num_train_epochs) == (0.1, ["sigmoid"], 5e-7, 2.0)
    sft = training_arguments(stages["02_sft"].job(llama), num_processes=8)
    assert (sft.packing, sft.packing_strategy, sft.max_length) == (True, "wrapped", 8192)


def test_parameters_are_those_of_the_published_models(llama: Profile, gemma: Profile) -> None:
    size = model_size(_stages(llama)["02_sft"], llama)
    assert size == ModelSize(8_030_261_248, 8_030_261_248, 8192)
    # The RM has one output in place of the vocabulary's 128,256.
    assert model_size(_stages(llama)["03_bt_mix2"], llama).parameters == 8_030_261_248 - (128_256 - 1) * 4096
    adapted = model_size(_stages(gemma)["09_iter1_dpo"], gemma)
    assert adapted.parameters == 2_506_172_416
    # Rank 64 in seven matrices of 18 layers; Gemma-2B: 2048 wide, 8 heads of 256, one key-value head, 16384 in the MLP.
    per_layer = 64 * ((2048 + 2048) + (2048 + 256) * 2 + (2048 + 2048) + (2048 + 16384) * 3)
    assert adapted.trainable == 18 * per_layer


def test_memory_by_hand(llama: Profile, gemma: Profile) -> None:
    size = ModelSize(1000, 1000, 8192)
    assert memory_bytes(_stages(llama)["02_sft"], size, 8) == 16 * 1000 / 8
    assert memory_bytes(_stages(llama)["09_iter1_dpo"], size, 8) == (16 + 4) * 1000 / 8
    adapted = ModelSize(1000, 10, 8192)
    assert memory_bytes(_stages(gemma)["09_iter1_dpo"], adapted, 1) == 4 * 1000 + 16 * 10 + 4 * 1000


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_passes_the_check(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["check", "--profile", name]) == 0
    output = capsys.readouterr().out
    assert "What this machine lacks" in output
    for stage in _stages(load_profile(name)):
        assert f"\n{stage}   " in output


def test_the_check_tells_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    check_profile("llama3-8b")
    lacks = capsys.readouterr().out.partition("What this machine lacks\n")[2]
    assert "OPENAI_API_KEY: gpt-4-1106-preview at https://api.openai.com/v1 is the judge" in lacks
    check_profile("tiny")
    assert capsys.readouterr().out.endswith("What this machine lacks\n  nothing\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "dpo.training.per_device_train_batch_size=3",
            "error: 09_iter1_dpo: global_batch_size 128 is not divisible by",
        ),
        ("sft.training.max_length=9000", "error: 02_sft: max_length 9000 exceeds the model's 8192 positions; lower it"),
        ("generation.max_new_tokens=8000", "error: generation: prompt and response may take 9000 tokens"),
        ("generation.responses=7", "error: generation: 7 responses cannot be shared evenly"),
        (
            "launch.accelerate_config=nowhere.yaml",
            "error: launch.accelerate_config: no file nowhere.yaml; correct its path",
        ),
        ("model.base=some/unknown-model", "error: model some/unknown-model: no config.json"),
        ("dpo.betta=1", "error: llama3-8b.yaml: unknown key 'dpo.betta'"),
    ],
)
def test_a_wrong_number_is_one_line(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parse_override(override)
    assert command_line.main(["check", "--profile", "llama3-8b", "--set", override]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_a_folder_of_ones_own_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_tiny_model(tmp_path)
    for key in ("model.base", "model.reward_base"):
        assert parse_override(f"{key}={tmp_path}") == (key, str(tmp_path))
    lengths = {
        f"{name}.training.max_length": 128 for name in ("sft", "reward_model", "preference_model", "dpo", "offline_dpo")
    }
    small = {"generation.max_new_tokens": 64, "generation.max_prompt_tokens": 64}
    check_profile("gemma-2b", {"model.base": str(tmp_path), "model.reward_base": str(tmp_path), **lengths, **small})
    assert f"starts from {tmp_path}" in capsys.readouterr().out


def test_the_profiles_hold_no_path_of_this_machine() -> None:
    for file in [*PROFILES_FOLDER.rglob("*.yaml")]:
        text = file.read_text(encoding="utf-8")
        assert str(PROJECT) not in text
        assert not re.search(r"(?<![\w:/])/(home|tmp|root|mnt|data)/", text)
