"""The committed profiles: the paper's values or marks that say otherwise, and arguments that the libraries accept."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tiny_training import build_tiny_model
from transformers import AutoTokenizer

from rlhflow_utils import __main__ as command_line
from rlhflow_utils.data.sources import CONVERTERS
from rlhflow_utils.guide.profile import PROFILES, REVISIONS, ConfigError, Profile, load_profile, validate
from rlhflow_utils.guide.settings import SourceSettings
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import PAPER, paper_settings
from rlhflow_utils.training.check import check_configs, check_profile
from rlhflow_utils.training.trainers import TrainingJob, lora_config, trainer_config

NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml") if path != REVISIONS)


@pytest.fixture(scope="module")
def llama() -> Profile:
    return load_profile("llama3-8b")


# --- the paper's numbers ------------------------------------------------------------------------------------------


def _marked(name: str, section: str) -> set[str]:
    """Keys of a section whose line says `deviation` or `reconstructed`."""
    text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    block = re.search(rf"^{section}:.*\n(?:[ ].*\n|\n)*", text, re.MULTILINE)
    lines = [line for line in (block[0] if block else "").splitlines() if re.search("deviation|reconstructed", line)]
    return {key for line in lines for key in re.findall(r"(\w+):", line.partition("#")[0])}


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-2b", "tiny"])
def test_each_value_is_the_papers_or_marked(name: str) -> None:
    profile = load_profile(name)
    for section in PAPER["recipe"]:
        given = getattr(profile, section).model_dump()
        ours = {**given, **given.get("trainer", {}), **given.get("sampling", {})}
        differing = {key for key, value in paper_settings(section, name).items() if ours.get(key) != value}
        missing = differing - _marked(name, section) - (_marked(name, "dpo") if section == "offline_dpo" else set())
        assert not missing, f"{name}.yaml, {section}: {sorted(missing)} differ from the paper and are not marked"
        if name == "llama3-8b":
            assert not differing, section


@pytest.mark.parametrize("name", ["llama3-8b", "gemma-2b", "tiny"])
def test_the_mixtures_are_the_papers(name: str) -> None:
    data = load_profile(name).data
    assert data.mixtures["mix1"] == ["HH-RLHF", "SHP", "UltraFeedback", "Summarization"]
    assert sorted(data.mixtures["mix2"]) == [
        "Argilla-Math", "Capybara", "CodeUltraFeedback", "HH-RLHF", "HelpSteer", "OpenOrca", "PKU-SafeRLHF", "SHP",
        "UltraFeedback", "UltraInteract",
    ]  # fmt: skip
    assert (data.filters.min_score_ratio, data.filters.max_pairs_per_prompt) == (2.0, {"SHP": 5})


# --- sources and paths --------------------------------------------------------------------------------------------


def _sources(value: Any) -> list[SourceSettings]:
    if isinstance(value, SourceSettings):
        return [value]
    items = [each for _, each in value] if isinstance(value, BaseModel) else value if isinstance(value, list) else []
    return [source for each in items for source in _sources(each)]


@pytest.mark.parametrize("name", NAMES)
def test_every_source_has_a_converter(name: str) -> None:
    schemas = {source.schema_name for source in _sources(load_profile(name))}
    assert schemas
    assert schemas <= set(CONVERTERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_survives_its_own_dump(name: str) -> None:
    profile = load_profile(name)
    assert validate(profile.model_dump(by_alias=True), name) == profile


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_holds_no_path_of_this_machine(name: str) -> None:
    text = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    assert str(PROJECT) not in text
    assert not re.search(r"(?<![\w:/])/(home|tmp|root|mnt|data)/", text)


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


def test_gemma_turns_with_and_without_a_system_message(tmp_path: Path) -> None:
    gemma = load_profile("gemma-2b")
    rest = (
        "Hello.<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n"
    )
    assert _render(gemma, tmp_path, CONVERSATION) == "<bos><start_of_turn>user\nBe brief.\n\n" + rest
    assert _render(gemma, tmp_path, CONVERSATION[1:]) == "<bos><start_of_turn>user\n" + rest


# --- the libraries' own arguments ---------------------------------------------------------------------------------


def test_fields_that_no_line_of_ours_names_reach_trl_and_peft() -> None:
    trainer = {
        "use_liger_kernel": True, "loss_type": "nca_pair", "ld_alpha": 0.5, "torch_compile": True,
        "adam_epsilon": 1e-6, "max_grad_norm": 0.3, "neftune_noise_alpha": 5.0, "pad_to_multiple_of": 64,
        "sync_ref_model": True, "average_tokens_across_devices": False,
    }  # fmt: skip
    source = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "rlhflow_utils").rglob("*.py"))
    named = {name for name in (*trainer, "use_rslora", "deepspeed") if re.search(rf"\b{name}\b", source)}
    assert named == {"loss_type"}, "this one only where `check` looks whether it reads label_smoothing"
    overrides: dict[str, Any] = {f"dpo.trainer.{name}": value for name, value in trainer.items()}
    profile = load_profile("gemma-2b", {**overrides, "dpo.peft.use_rslora": True})
    job = TrainingJob(
        kind="dpo", model="m", ref_model="m", dataset="d", output="o", seed=0, training=profile.dpo,
        model_settings=profile.model,
    )  # fmt: skip
    config = trainer_config(job)
    for name, value in trainer.items():
        assert getattr(config, name) in (value, [value]), name
    assert lora_config(job).use_rslora
    # A child process reads the same job.
    assert TrainingJob.model_validate_json(job.model_dump_json()).training.trainer == profile.dpo.trainer


def test_deepspeed_is_handed_on(llama: Profile) -> None:
    """Without the package, transformers itself says that it is missing: the field has reached it."""
    zero = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}
    profile = load_profile("llama3-8b", {"sft.trainer.deepspeed": zero})
    if importlib.util.find_spec("deepspeed"):
        assert check_configs(profile)["sft"].deepspeed == zero
        return
    with pytest.raises(ConfigError, match=r"^sft: .*deepspeed"):
        check_configs(profile)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_passes_the_check(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_profile(name)
    output = capsys.readouterr().out
    for section in ("sft", "reward_model", "preference_model", "dpo", "generation", "launch"):
        assert re.search(rf"^{section}\b", output, re.MULTILINE), section


def test_the_check_opens_the_folder_of_a_base_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_profile("tiny")
    output = capsys.readouterr().out
    assert "\nmodel models/tiny-base: LlamaForCausalLM; its tokenizer and chat template will do\n" in output
    assert re.findall(r"^(\w+)   .* starts from models/tiny-base$", output, re.MULTILINE) == ["sft"]
    check_profile("tiny", {"model.base": "owner/name"})
    assert "\nmodel owner/name: no folder here; a run looks for it on the hub\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"^model {re.escape(str(tmp_path))}: .+"):
        check_profile("tiny", {"model.base": str(tmp_path)})


def test_the_check_finds_what_would_break_a_stage_of_a_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A padding token without an embedding, no weights, no tokenizer: as folders of one's own are found."""
    folder = tmp_path / "mine"
    shutil.copytree(PROJECT / "models" / "tiny-base", folder)
    mine = {"model.base": str(folder)}
    check_profile("tiny", mine)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    size = len(tokenizer) - 1
    said = f"its padding token has id {size}, but the model has {size} embeddings: resize them, or set model.pad_token"
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_profile("tiny", mine)
    shutil.copytree(PROJECT / "models" / "tiny-base", folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="the folder has no weights"):
        check_profile("tiny", mine)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer in this folder; tokenizer\.save_pretrained puts it there"):
        check_profile("tiny", mine)
    capsys.readouterr()


def test_the_check_compares_with_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    check_profile("llama3-8b", {"dpo.trainer.beta": 0.2})
    output = capsys.readouterr().out
    assert re.findall(r"^  (\w+) .*   deviation$", output, re.MULTILINE) == ["beta"]
    assert "global batch   512 = 4 per device x 16 accumulated x 8 processes" in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dpo.trainer.betta=1", "dpo.trainer: DPOConfig has no field 'betta'; did you mean 'beta'?"),
        ("dpo.trainer.learning_rate=fast", "dpo.trainer.learning_rate: DPOConfig does not take 'fast'"),
        ("sft.trainer.max_length=long", "sft.trainer.max_length: SFTConfig does not take 'long'"),
        ("sft.trainer.seed=1", "sft: trainer.seed is computed by the guide; set the profile's seed"),
        ("sft.peft.rank=8", "sft.peft: LoraConfig has no field 'rank'"),
        ("sft.quantization.load_in_4_bit=true", "sft.quantization: BitsAndBytesConfig has no field 'load_in_4_bit'"),
        ("launch.num_proceses=4", "launch: ClusterConfig has no field 'num_proceses'; did you mean 'num_processes'?"),
        ("launch.distributed_type=FSPD", "launch.distributed_type: ClusterConfig does not take 'FSPD'"),
        ("dpo.trainer.label_smoothing=0.1", "dpo.trainer.label_smoothing: TRL's loss ['sigmoid'] does not read it"),
        ("reward_model.mixtures=[mix3]", "reward_model.mixtures: ['mix3'] is not among data.mixtures ['mix1', 'mix2']"),
        ("reward_model.mixtures=[mix1]", "reward_model.mixtures: add data.main_mixture 'mix2', whose RM ranks"),
        ("dpo.trainer.per_device_train_batch_size=3", "dpo: global_batch_size 128 is not divisible by"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_line(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["check", "--profile", "llama3-8b", "--set", override]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_vllm_names_are_checked_where_vllm_is_installed() -> None:
    pytest.importorskip("vllm")
    for key, message in {
        "generation.engine.gpu_memory_utilisation": "EngineArgs has no field 'gpu_memory_utilisation'; did you mean",
        "generation.sampling.topp": "SamplingParams has no field 'topp'; did you mean 'top_p'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            check_configs(load_profile("llama3-8b", {key: 0.5}))


def test_the_base_models_architecture_and_the_transformers_sampler_are_checked() -> None:
    for key, message in {
        "base_model.architecture.hidden_sizes": "LlamaConfig has no field 'hidden_sizes'; did you mean 'hidden_size'",
        "generation.sampling.top_k": "generation.sampling: the transformers backend has no field 'top_k'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            check_configs(load_profile("tiny", {key: 5}))
