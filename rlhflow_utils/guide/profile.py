"""Reading a profile: one strict YAML file with every number of a run.

A profile is read once, validated here and never changed. `extends: <profile>` lets it hold only what differs from
another one. Values can be overridden by dotted path (``dpo.trainer.beta=0.2``): that is what ``OVERRIDES`` of the
notebooks and ``--set`` of the command line do. Commits of hub repositories stand in ``profiles/revisions.yaml``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlhflow_utils.guide.settings import Profile as Profile
from rlhflow_utils.guide.stage import PROJECT

PROFILES = PROJECT / "profiles"
REVISIONS = PROFILES / "revisions.yaml"
Raw = dict[str, Any]


class ConfigError(ValueError):
    """A profile or an override is wrong; the message is one line and names the key and the fix."""


def load_profile(name_or_path: str, overrides: Mapping[str, Any] | None = None, seed: int | None = None) -> Profile:
    """Read and validate a profile: a name in ``profiles/`` or a YAML file, with overrides (dotted key -> value)."""
    path = profile_path(name_or_path)
    return validate(read_raw(path), path.name, {**(overrides or {}), **({} if seed is None else {"seed": seed})})


def read_raw(path: Path, extended_by: tuple[Path, ...] = ()) -> Raw:
    """A profile file as a mapping, laid over the one that it extends."""
    if path in extended_by:
        raise ConfigError(f"{path.name}: `extends` runs in a circle")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name}: a profile is a mapping of sections, found {type(raw).__name__}")
    raw = {key: value for key, value in raw.items() if not str(key).startswith("x-")}  # anchors for YAML's own use
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    near = path.parent / parent
    return merge(read_raw(near if near.is_file() else profile_path(parent), (*extended_by, path)), raw)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Raw:
    """Mappings are merged key by key; anything else is replaced, lists too, and an empty mapping clears."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and value and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(raw: Raw, origin: str, overrides: Mapping[str, Any] | None = None) -> Profile:
    """A `Profile` of a raw mapping, with the overrides and the pinned revisions in it; `origin` names it in errors."""
    for key, value in (overrides or {}).items():
        set_dotted(raw, key, value, origin)
    pinned = read_revisions()
    for source in hub_sources(raw):
        source["revision"] = pinned.get(source["hub_id"])
    if isinstance(model := raw.get("model"), dict):
        ranker, judge = (raw[key] if isinstance(raw.get(key), dict) else {} for key in ("reward_model", "evaluation"))
        named = (model.get("base"), model.get("reward_base"), ranker.get("model"), judge.get("judge_model"))
        model["revisions"] = {each: pinned[each] for each in named if each in pinned}
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
        sections = {item["loc"][0] for item in errors if item["loc"]}
        near = [key for key in overrides or () if key.split(".")[0] in sections]
        where = f"{origin} with the override of {', '.join(near)}" if near else origin
        raise ConfigError(f"{where}: {'; '.join(map(_explain, errors))}") from error


def variant(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """The profile with some values changed: dotted key -> value."""
    return validate(profile.model_dump(by_alias=True), profile.name, overrides)


def read_revisions() -> dict[str, str]:
    """Hub id -> commit; written by the command `pin`."""
    return (yaml.safe_load(REVISIONS.read_text(encoding="utf-8")) or {}) if REVISIONS.is_file() else {}


def hub_sources(raw: Any) -> Iterator[Raw]:
    """Every mapping in a raw profile that names a dataset on the hub (`hub_id`)."""
    if isinstance(raw, dict) and raw.get("hub_id"):
        yield raw
    for each in raw.values() if isinstance(raw, dict) else raw if isinstance(raw, list) else ():
        yield from hub_sources(each)


def hub_ids(profile: Profile) -> set[str]:
    """Ids of all dataset repositories that a profile names."""
    return {source["hub_id"] for source in hub_sources(profile.model_dump(by_alias=True))}


def set_dotted(raw: Raw, key: str, value: Any, origin: str) -> None:
    """Set ``raw["a"]["b"]`` for key ``a.b``. Whether the names exist is for the validation to say."""
    *parents, last = key.split(".")
    for depth, part in enumerate(parents, 1):
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise ConfigError(f"{origin}: {key!r} in an override: {'.'.join(parents[:depth])} is no section")
    raw[last] = value


def parse_override(text: str) -> tuple[str, Any]:
    """``sft.trainer.max_length=64`` -> key and value; values are YAML, and ``5e-7`` is the number it looks like."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {text!r}: expected KEY=VALUE, for example dpo.trainer.beta=0.2")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if parsed == value.strip():  # not quoted
        with suppress(ValueError):  # a plain string stays one
            parsed = float(parsed)
    return key, parsed


def profile_path(name_or_path: str) -> Path:
    """The file of a profile, by its name in ``profiles/`` or its path."""
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = PROFILES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in PROFILES.glob("*.yaml") if each != REVISIONS))
        raise ConfigError(f"no profile {name_or_path!r}; known profiles: {known}; or give the path of a .yaml file")
    return path


def nearest(name: str, known: Any) -> str:
    """``; did you mean …?`` for a mistyped name, or nothing."""
    close = difflib.get_close_matches(name, [str(each) for each in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "profile"
    if item["type"] == "extra_forbidden":
        *section, name = item["loc"]
        known = _known_keys(tuple(section))
        stand = {"trainer": "TRL's own arguments stand", "sampling": "vLLM's n, top_p and max_tokens stand"}
        hints = [f"; {said} under {'.'.join(map(str, section))}.{key}" for key, said in stand.items() if key in known]
        return f"unknown key {where!r}{nearest(str(name), known) or ''.join(hints)}"
    if item["type"] == "missing":
        return f"missing key {where!r}"
    if item["type"] == "value_error":  # our own checks: they say what was found
        message = str(item["msg"]).removeprefix("Value error, ")
        return f"{where}: {message}" if item["loc"] else message
    hint = ""
    if isinstance(item["input"], str) and item["type"].startswith(("float", "int")):
        hint = " (YAML reads 5e-7 as text: write 5.0e-7)"
    return f"{where}: {item['msg']}, got {item['input']!r}{hint}"[:300]


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Keys of the section at a location of the profile."""
    section: Any = Profile
    for part in location:
        found = section.model_fields.get(part) if isinstance(part, str) and hasattr(section, "model_fields") else None
        kinds = [found.annotation, *getattr(found.annotation, "__args__", ())] if found else [section]
        section = next((kind for kind in kinds if hasattr(kind, "model_fields")), section)
    return [found.alias or name for name, found in section.model_fields.items()]
