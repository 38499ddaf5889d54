"""`python -m rlhflow_utils check`: every argument of a profile, built by its own library without weights or data."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, Literal

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile, nearest
from rlhflow_utils.guide.run import quiet_libraries
from rlhflow_utils.guide.settings import TrainingSettings
from rlhflow_utils.guide.tables import comparison_table, paper_settings
from rlhflow_utils.training.base_model import llama_config
from rlhflow_utils.training.trainers import TrainingJob, config_class, lora_config, trainer_config

KINDS: dict[str, Literal["sft", "reward", "dpo"]] = {
    "base_model": "sft", "sft": "sft", "reward_model": "reward", "preference_model": "sft", "dpo": "dpo",
    "offline_dpo": "dpo",
}  # fmt: skip
TRANSFORMERS_SAMPLING = ("n", "top_p", "max_tokens")


def check_profile(name: str, overrides: Mapping[str, Any] | None = None) -> None:
    """Build every argument of a profile and print it beside the paper's; a mistake is a one-line ConfigError."""
    quiet_libraries()
    profile = load_profile(name, overrides)
    processes = _processes(profile)
    print(f"Profile {profile.name}: the arguments of every stage, built without weights or data\n")
    for section, config in check_configs(profile).items():
        settings: TrainingSettings = getattr(profile, section)
        model = profile.model.reward_base if section in ("reward_model", "preference_model") else profile.model.base
        resolved = {**vars(config), **settings.model_dump(), "lr_scheduler_type": str(config.lr_scheduler_type.value)}
        print(f"{section}   {type(config).__name__}; starts from {model or 'a model of this run'}")
        print("\n".join(comparison_table(resolved, paper_settings(section, model))))
        print(f"  global batch   {settings.global_batch_size} = {config.per_device_train_batch_size} per device x "
              f"{config.gradient_accumulation_steps} accumulated x {processes} processes")  # fmt: skip
        for key in settings.trainer:
            print(f"  {key}: {resolved[key]}")
        print(*(f"  {key}: {value}" for key, value in settings if key in ("peft", "quantization") and value), sep="\n")
    for section in ("iterative", "generation"):
        ours = getattr(profile, section).model_dump()
        print(section, *comparison_table({**ours, **ours.get("sampling", {})}, paper_settings(section, None)), sep="\n")
        print("\n".join(f"  {key}: {value}" for key, value in ours.items() if isinstance(value, dict)) + "\n")
    launch = profile.launch or {"null": "in this process"}
    print("launch", *(f"  {key}: {value}" for key, value in launch.items()), sep="\n")


def check_configs(profile: Profile) -> dict[str, Any]:
    """TRL's built arguments by section. The other libraries' arguments are checked on the way.

    Raises:
        ConfigError: a field is unknown or mistyped, or a library refuses the values; one line with the section.
    """
    from accelerate.commands.config.config_args import ClusterConfig
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, LlamaConfig

    built = {}
    for section, kind in KINDS.items():
        settings: TrainingSettings | None = getattr(profile, section)
        if settings is None or (section == "offline_dpo" and profile.data.offline_source is None):
            continue
        job = TrainingJob(
            kind=kind, model="model", ref_model="sft", dataset="tokenised", output=f"runs/{profile.name}/{section}",
            seed=profile.seed, training=settings, model_settings=profile.model,
        )  # fmt: skip
        check_fields(f"{section}.trainer", config_class(kind), settings.trainer)
        check_fields(f"{section}.peft", LoraConfig, settings.peft or {})
        known = {name.removeprefix("_") for name in vars(BitsAndBytesConfig())}
        _check_names(f"{section}.quantization", "BitsAndBytesConfig", settings.quantization or {}, known)
        with _one_line(section):
            built[section] = trainer_config(job, _processes(profile))
            lora_config(job)
    if profile.base_model:
        check_fields("base_model.architecture", LlamaConfig, profile.base_model.architecture)
        with _one_line("base_model.architecture"):
            llama_config(profile.base_model.architecture, profile.base_model.vocab_size)
    if profile.launch is not None:
        check_fields("launch", ClusterConfig, profile.launch)
        with _one_line("launch"):
            ClusterConfig(**ClusterConfig.process_config({**profile.launch}))
    _check_generation(profile)
    return built


def _check_generation(profile: Profile) -> None:
    generation = profile.generation
    if generation.backend == "transformers":
        _check_names("generation.sampling", "the transformers backend", generation.sampling, TRANSFORMERS_SAMPLING)
    elif importlib.util.find_spec("vllm"):
        from vllm import EngineArgs, SamplingParams

        check_fields("generation.engine", EngineArgs, generation.engine)
        check_fields("generation.sampling", SamplingParams, generation.sampling)


def check_fields(where: str, config: type, given: Mapping[str, Any]) -> None:
    """Raise a one-line ConfigError where a class has no such field, or declares another type for it."""
    names = getattr(config, "__struct_fields__", None) or [each.name for each in dataclasses.fields(config)]
    _check_names(where, config.__name__, given, names)
    for name, value in given.items():
        if not _fits(value, _declared(config, name)):
            hint = " (YAML reads 5e-7 as text: write 5.0e-7)" if isinstance(value, str) else ""
            raise ConfigError(f"{where}.{name}: {config.__name__} does not take {value!r}{hint}")


def _check_names(where: str, owner: str, given: Iterable[str], names: Iterable[str]) -> None:
    names = list(names)
    for name in given:
        if name not in names:
            raise ConfigError(f"{where}: {owner} has no field {name!r}{nearest(name, names)}")


def _declared(config: type, name: str) -> Any:
    """The declared type of a field; Any where it names what only type checkers import."""
    for each in config.__mro__:
        if (declared := inspect.get_annotations(each).get(name)) is not None:
            try:
                return eval(declared, vars(sys.modules[each.__module__])) if isinstance(declared, str) else declared
            except (NameError, TypeError):
                break
    return Any


def _fits(value: Any, declared: Any) -> bool:
    """Strictly of the declared type; or the value of an enum; or one item where a list is declared."""
    try:
        adapter = TypeAdapter(declared, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type with a configuration of its own
        return True
    for candidate, strict in ((value, True), ([value], True), (value, False)):
        with suppress(ValidationError):
            found = adapter.validate_python(candidate, strict=strict)
            if strict or isinstance(found, Enum):
                return True
    return False


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """What a library says against its arguments, in one line that names the section."""
    try:
        yield
    except Exception as error:  # whatever a library raises
        raise ConfigError(f"{where}: {' '.join(str(error).split())[:300]}") from error


def _processes(profile: Profile) -> int:
    return max(1, int((profile.launch or {}).get("num_processes", 1)))
