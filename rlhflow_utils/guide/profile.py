"""The profile: every number of a run, in one strict YAML file.

A profile is read once, validated here and never mutated. Unknown keys and wrong types are errors, there are no
defaults in code, and every key is read by some stage (a test says so). Values can be overridden by dotted path
(``dpo.beta=0.2``), which is what the ``OVERRIDES`` parameter of the notebooks and ``--set`` of the runner do.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rlhflow_utils.guide.settings import (
    BaseModelSettings,
    ClaimsSettings,
    DataSettings,
    DpoSettings,
    EvaluationSettings,
    GenerationSettings,
    HubSettings,
    IterativeSettings,
    LaunchSettings,
    LengthBiasSettings,
    ModelSettings,
    OfflineDpoSettings,
    PairBuildingSettings,
    PreferenceModelSettings,
    RewardBenchSettings,
    RewardModelSettings,
    Section,
    SftSettings,
    WorldSettings,
)

PROFILES_FOLDER = Path(__file__).resolve().parents[2] / "profiles"


class Profile(Section):
    """A whole run."""

    name: str
    seed: int
    world: WorldSettings | None = Field(description="the simulated world; null where data is real")
    model: ModelSettings
    base_model: BaseModelSettings | None
    data: DataSettings
    sft: SftSettings
    reward_model: RewardModelSettings
    preference_model: PreferenceModelSettings
    rewardbench: RewardBenchSettings
    length_bias: LengthBiasSettings
    generation: GenerationSettings
    pair_building: PairBuildingSettings
    dpo: DpoSettings
    iterative: IterativeSettings
    offline_dpo: OfflineDpoSettings
    evaluation: EvaluationSettings
    claims: ClaimsSettings | None = Field(description="null where there is no simulated world")
    launch: LaunchSettings
    report_to: list[Literal["tensorboard", "wandb"]]
    hub: HubSettings

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if (self.model.base is None) != (self.base_model is not None):
            raise ValueError(
                "give either model.base (a folder or hub id) or a base_model section to build one, not both"
            )
        if self.evaluation.judge == "gold" and self.world is None:
            raise ValueError("evaluation.judge: gold needs the simulated world; use reward_model or endpoint")
        judge = self.evaluation
        if judge.judge == "reward_model" and not (judge.judge_model or self.data.partition.judge):
            raise ValueError(
                "evaluation.judge: reward_model needs a judge: name one in evaluation.judge_model, or hold pairs apart "
                "to train it on (data.partition.judge above 0)"
            )
        if self.evaluation.judge == "endpoint" and not self.evaluation.endpoint_url:
            raise ValueError("evaluation.judge: endpoint needs evaluation.endpoint_url")
        return self


class ConfigError(ValueError):
    """A profile or an override is wrong; the message is one line and names the key and the fix."""


def load_profile(name_or_path: str, overrides: dict[str, Any] | None = None, seed: int | None = None) -> Profile:
    """Read and validate a profile.

    Args:
        name_or_path: a name in ``profiles/`` (``tiny``) or the path of a YAML file.
        overrides: dotted key -> value, applied before validation.
        seed: replaces the profile's seed where given.

    Raises:
        ConfigError: the file is missing or malformed, a key is unknown, or a value has the wrong type.
    """
    path = profile_path(name_or_path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: a profile is a mapping of sections, found {type(raw).__name__}")
    for key, value in (overrides or {}).items():
        set_dotted(raw, key, value, path.name)
    if seed is not None:
        raw["seed"] = seed
    return validate_profile(raw, path.name)


def validate_profile(raw: dict[str, Any], origin: str) -> Profile:
    """Turn a raw mapping into a `Profile`; `origin` names it in errors."""
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(item) for item in error.errors())) from error


def set_dotted(raw: dict[str, Any], key: str, value: Any, origin: str = "profile") -> None:
    """Set ``raw["a"]["b"]`` for key ``a.b``; the key must exist already.

    Raises:
        ConfigError: no such key.
    """
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        raise ConfigError(f"{origin}: unknown key {key!r} in an override; keys are dotted paths such as dpo.beta")
    node[last] = value


def parse_override(text: str) -> tuple[str, Any]:
    """``dpo.beta=0.2`` -> ``("dpo.beta", 0.2)``; values are YAML, and ``5e-7`` is read as the number it looks like."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {text!r}: expected KEY=VALUE, for example dpo.beta=0.2")
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        with suppress(ValueError):  # a plain string stays one
            parsed = float(parsed)
    return key, parsed


def profile_path(name_or_path: str) -> Path:
    """The file of a profile, by its name in ``profiles/`` or its path.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = PROFILES_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES_FOLDER.glob("*.yaml")))
        raise ConfigError(f"no profile {name_or_path!r}; known profiles: {known}; or give the path of a .yaml file")
    return path


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "profile"
    if item["type"] == "extra_forbidden":
        return f"unknown key {where!r}; remove it or correct its name"
    if item["type"] == "missing":
        return f"missing key {where!r}"
    if item["type"] == "value_error":  # our own checks: they say what was found
        message = str(item["msg"]).removeprefix("Value error, ")
        return f"{where}: {message}" if item["loc"] else message
    hint = ""
    if isinstance(item["input"], str) and item["type"].startswith(("float", "int")):
        hint = " (YAML reads 5e-7 as text: write 5.0e-7)"
    return f"{where}: {item['msg']}, got {item['input']!r}{hint}"[:300]


BaseModelSettings.model_rebuild()
