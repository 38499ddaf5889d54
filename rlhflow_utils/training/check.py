"""`python -m rlhflow_utils check`: every argument of a profile, built by its own library without weights or data."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile, nearest
from rlhflow_utils.guide.run import MADE_BY, quiet_libraries
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import comparison_table, paper_settings
from rlhflow_utils.models.chat import load_tokenizer, stop_token_ids
from rlhflow_utils.training.capacity import capacity_plan, machine_of
from rlhflow_utils.training.launch import launch_config
from rlhflow_utils.training.pretraining import llama_config
from rlhflow_utils.training.trainers import CONFIGS, KINDS, lora_config, section_job, trainer_config

SMOOTHED = {"aot", "aot_unpaired", "exo_pair", "robust"}  # the losses in which TRL 1.16 reads label_smoothing


def check_profile(
    name: str, overrides: Mapping[str, Any] | None = None, machine: str | None = None, nodes: int = 1
) -> None:
    """Build every argument of a profile and print it beside the paper's; a mistake is a one-line ConfigError.

    With a machine (``8xH100-80``), also what every stage needs on it.
    """
    quiet_libraries()
    profile, planned = load_profile(name, overrides), machine_of(machine, nodes) if machine else None
    print(f"Profile {profile.name}: the arguments of every stage, built without weights or data\n")
    for section, config in check_configs(profile).items():
        settings = getattr(profile, section)
        model = profile.model.reward_base if section in ("reward_model", "preference_model") else profile.model.base
        resolved = {**vars(config), **settings.model_dump(), "lr_scheduler_type": str(config.lr_scheduler_type.value)}
        start = "a model of this run" if section.endswith("dpo") or not model else model
        print(f"{section}   {type(config).__name__}; starts from {start}")
        print(*comparison_table(resolved, paper_settings(section, model)), sep="\n")
        device, accumulated = config.per_device_train_batch_size, config.gradient_accumulation_steps
        print(f"  global batch   {settings.global_batch_size} = {device} per device x {accumulated} accumulated x "
              f"{settings.global_batch_size // (device * accumulated)} processes")  # fmt: skip
        further = [key for key in ("peft", "quantization") if resolved[key]]
        print(*(f"  {key}: {resolved[key]}" for key in (*settings.trainer, *further)), "", sep="\n")
    for section in ("iterative", "generation"):
        ours = getattr(profile, section).model_dump()
        print(section, *comparison_table({**ours, **ours.get("sampling", {})}, paper_settings(section, None)), sep="\n")
        print(*(f"  {key}: {value}" for key, value in ours.items() if isinstance(value, dict)), "", sep="\n")
    launch = profile.launch or {"null": "in this process"}
    print("launch", *(f"  {key}: {value}" for key, value in launch.items()), sep="\n")
    print("", *check_models(profile), sep="\n")
    if planned:
        print("", *capacity_plan(profile, planned), sep="\n")


def check_models(profile: Profile) -> Iterator[str]:
    """A line on each base model of a profile; ConfigError where a folder's tokenizer or chat template will not do."""
    from transformers import AutoConfig

    for name in filter(None, dict.fromkeys((profile.model.base, profile.model.reward_base))):
        if not (folder := PROJECT / name).is_dir():
            made = f"`{MADE_BY[name]}` writes it" if name in MADE_BY else "a run looks for it on the hub"
            yield f"model {name}: no folder here; {made}"
            continue
        with _one_line(f"model {name}"):
            tokenizer, config = load_tokenizer(folder, profile.model), AutoConfig.from_pretrained(folder)
            size = config.get_text_config().vocab_size
            for role, token in (("padding", tokenizer.pad_token_id), ("end of turn", stop_token_ids(tokenizer)[0])):
                if token >= size:
                    raise ValueError(f"its {role} token has id {token}, but the model has {size} embeddings: "
                                     "resize them, or set model.pad_token to another token")  # fmt: skip
            if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
                raise ValueError("the folder has no weights (*.safetensors)")
        yield f"model {name}: {', '.join(config.architectures or [])}; its tokenizer and chat template will do"


def check_configs(profile: Profile) -> dict[str, Any]:
    """TRL's built arguments by section. ConfigError: what any library does not know or take, in one line."""
    from accelerate.commands.config.config_args import ClusterConfig
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, LlamaConfig

    built, main, known = {}, profile.data.main_mixture, sorted(profile.data.mixtures)
    for section in ("reward_model", "preference_model"):
        named = getattr(profile, section).mixtures
        if unknown := sorted({*named} - {*known}):
            raise ConfigError(f"{section}.mixtures: {unknown} is not among data.mixtures {known}; name some of these")
        if section == "reward_model" and main not in named:
            raise ConfigError(f"{section}.mixtures: add data.main_mixture {main!r}, whose RM ranks in the loop")
    for section, kind in KINDS.items():
        settings = getattr(profile, section)
        if section == "offline_dpo" and profile.data.offline_source is None:
            continue
        job = section_job(profile, section)
        check_fields(f"{section}.trainer", CONFIGS[kind], settings.trainer)
        check_fields(f"{section}.peft", LoraConfig, settings.peft or {})
        check_fields(f"{section}.quantization", BitsAndBytesConfig, settings.quantization or {}, names_only=True)
        with _one_line(section):
            built[section] = trainer_config(job, profile.launch)
            lora_config(job)
        losses = getattr(built[section], "loss_type", ())
        if getattr(built[section], "label_smoothing", 0) and not SMOOTHED.intersection(losses):
            fix = f"set loss_type to one of {sorted(SMOOTHED)}"
            raise ConfigError(f"{section}.trainer.label_smoothing: TRL's loss {losses} does not read it; {fix}")
    if profile.base_model:
        check_fields("base_model.architecture", LlamaConfig, profile.base_model.architecture, names_only=True)
        with _one_line("base_model.architecture"):
            llama_config(profile.base_model.architecture, profile.base_model.vocab_size)
    if profile.launch is not None:
        check_fields("launch", ClusterConfig, profile.launch)
        with _one_line("launch"):
            ClusterConfig(**ClusterConfig.process_config(launch_config(profile.launch)))
    generation = profile.generation
    if generation.backend == "transformers":
        for name in generation.sampling.keys() - {"n", "top_p", "max_tokens"}:
            fix = "it has n, top_p and max_tokens"
            raise ConfigError(f"generation.sampling: the transformers backend has no field {name!r}; {fix}")
    elif importlib.util.find_spec("vllm"):
        from vllm import EngineArgs, SamplingParams

        check_fields("generation.engine", EngineArgs, generation.engine)
        check_fields("generation.sampling", SamplingParams, generation.sampling)
    return built


def check_fields(where: str, config: type, given: Mapping[str, Any], names_only: bool = False) -> None:
    """A one-line ConfigError where a class has no such field, or declares another type for it and does not check it."""
    names = list(inspect.signature(config).parameters)
    for name, value in given.items():
        if name not in names:
            raise ConfigError(f"{where}: {config.__name__} has no field {name!r}{nearest(name, names)}")
        if not names_only and not _fits(value, config, name):
            hint = " (YAML reads 5e-7 as text: write 5.0e-7)" if isinstance(value, str) else ""
            raise ConfigError(f"{where}.{name}: {config.__name__} does not take {value!r}{hint}")


def _fits(value: Any, config: type, name: str) -> bool:
    """Whether a value is strictly of a field's declared type, as JSON; one item stands for a list of one."""
    owner = next(each for each in config.__mro__ if name in inspect.get_annotations(each))
    declared = inspect.get_annotations(owner)[name]
    try:
        declared = eval(declared, vars(sys.modules[owner.__module__])) if isinstance(declared, str) else declared
        adapter = TypeAdapter(declared, config=ConfigDict(arbitrary_types_allowed=True))
    except (NameError, TypeError, PydanticUserError):  # names what only type checkers import; has its own configuration
        return True
    for candidate in (value, [value]):
        with suppress(ValidationError):
            adapter.validate_json(json.dumps(candidate), strict=True)
            return True
    return False


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """What a library says against its arguments, in one line that names the section."""
    try:
        yield
    except Exception as error:  # whatever a library raises
        raise ConfigError(f"{where}: {' '.join(str(error).split())[:300]}") from error
