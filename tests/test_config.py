"""The strict profile: each mistake is one line with the key and the fix."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile, parse_override, set_dotted
from rlhflow_utils.guide.provenance import PROJECT


def _raw() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((PROJECT / "profiles" / "tiny.yaml").read_text(encoding="utf-8"))
    return raw


def _load(raw: dict[str, Any], folder: Path) -> Profile:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_profile(str(file))


def _error(raw: dict[str, Any], folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(raw, folder)
    return str(caught.value)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    raw = _raw()
    raw["dpo"]["betta"] = 0.1
    assert _error(raw, tmp_path) == "mine.yaml: unknown key 'dpo.betta'; remove it or correct its name"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    raw = _raw()
    del raw["dpo"]["training"]["learning_rate"]
    assert _error(raw, tmp_path) == "mine.yaml: missing key 'dpo.training.learning_rate'"


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    raw = _raw()
    raw["generation"]["responses"] = 8.0
    message = _error(raw, tmp_path)
    assert message == "mine.yaml: generation.responses: Input should be a valid integer, got 8.0"


def test_5e_7_in_yaml_is_text_and_the_message_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    raw = _raw()
    raw["dpo"]["beta"] = "5e-7"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert "beta: 5e-7\n" in file.read_text(encoding="utf-8"), "without quotes"
    with pytest.raises(ConfigError) as caught:
        load_profile(str(file))
    expected = "dpo.beta: Input should be a valid number, got '5e-7' (YAML reads 5e-7 as text: write 5.0e-7)"
    assert str(caught.value) == f"mine.yaml: {expected}"


def test_all_mistakes_are_told_at_once_on_one_line(tmp_path: Path) -> None:
    raw = _raw()
    raw["seed"] = "0"
    del raw["hub"]["push"]
    message = _error(raw, tmp_path)
    assert "seed: Input should be a valid integer" in message
    assert "missing key 'hub.push'" in message
    assert "\n" not in message


def test_a_mixture_of_unknown_sources_is_an_error(tmp_path: Path) -> None:
    raw = _raw()
    raw["data"]["mixtures"]["mix1"] = ["HH-RLHF", "HelpStar"]
    assert "mixture 'mix1' names unknown preference sources ['HelpStar']; known: ['Argilla-Math'" in _error(
        raw, tmp_path
    )


def test_sections_must_fit_together(tmp_path: Path) -> None:
    raw = _raw()
    raw["model"]["base"] = "some/model"
    assert "give either model.base (a folder or hub id) or a base_model section" in _error(raw, tmp_path)
    raw = _raw()
    raw["world"] = None
    assert "evaluation.judge: gold needs the simulated world" in _error(raw, tmp_path)
    raw = _raw()
    raw["evaluation"]["judge"] = "endpoint"
    assert "evaluation.judge: endpoint needs evaluation.endpoint_url" in _error(raw, tmp_path)
    raw["evaluation"]["judge"] = "reward_model"
    message = _error(raw, tmp_path)
    assert "evaluation.judge: reward_model needs a judge: name one in evaluation.judge_model" in message
    assert message.endswith("(data.partition.judge above 0)"), "the whole profile is not printed"


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'tinny'; known profiles: .*gemma-2b.*llama3-8b.*tiny"):
        load_profile("tinny")


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: [1\nb: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_profile(str(file))
    assert str(caught.value).startswith("mine.yaml: not valid YAML: ")
    assert "\n" not in str(caught.value)
    file.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml: a profile is a mapping of sections, found list"):
        load_profile(str(file))


def test_overrides_and_seed_are_applied_before_validation() -> None:
    profile = load_profile("tiny", {"dpo.beta": 0.5, "generation.temperatures": [1.0]}, seed=7)
    assert (profile.dpo.beta, profile.generation.temperatures, profile.seed) == (0.5, [1.0], 7)
    with pytest.raises(ConfigError, match=r"dpo.beta: Input should be greater than 0, got -1.0"):
        load_profile("tiny", {"dpo.beta": -1.0})


@pytest.mark.parametrize("key", ["dpo.betta", "dpo.beta.x", "nothing", "dpo.training.lora.rank"])
def test_an_override_of_an_unknown_key_is_an_error(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("tiny", {key: 1})
    expected = f"tiny.yaml: unknown key '{key}' in an override; keys are dotted paths such as dpo.beta"
    assert str(caught.value) == expected


def test_set_dotted_changes_one_leaf() -> None:
    raw = {"a": {"b": 1, "c": 2}}
    set_dotted(raw, "a.b", 3)
    assert raw == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dpo.beta=0.2", ("dpo.beta", 0.2)),
        ("dpo.training.learning_rate=5e-7", ("dpo.training.learning_rate", 5e-7)),
        ("generation.temperatures=[1.0, 0.7]", ("generation.temperatures", [1.0, 0.7])),
        ("model.base=../models/mine", ("model.base", "../models/mine")),
        ("model.base=null", ("model.base", None)),
        ("hub.push=true", ("hub.push", True)),
        (
            "evaluation.endpoint_url=http://localhost:8000/v1?a=b",
            ("evaluation.endpoint_url", "http://localhost:8000/v1?a=b"),
        ),
    ],
)
def test_overrides_on_the_command_line_are_yaml(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["dpo.beta", "=3"])
def test_an_override_without_key_or_value_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected KEY=VALUE, for example dpo.beta=0.2"):
        parse_override(text)


def test_a_profile_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_profile("tiny").dpo.beta = 1.0  # type: ignore[misc]


# --- no key without a reader --------------------------------------------------------------------------------------

DRY = {
    "dry_run.py",
    "training_plan.py",
    "config.py",
    "settings.py",
}  # what only checks or declares a key does not use it


def _sections(section: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    seen.add(section)
    for info in section.model_fields.values():
        for kind in _classes(info.annotation):
            if kind not in seen:
                _sections(kind, seen)
    return seen


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _classes(part)]


def _attributes_read() -> set[str]:
    files = [*(PROJECT / "rlhflow_utils").rglob("*.py"), *(PROJECT / "notebooks" / "source").glob("*.py")]
    return {
        node.attr
        for file in files
        if file.name not in DRY
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_key_of_a_profile_is_read_by_some_code() -> None:
    read = _attributes_read()
    dead = [
        f"{section.__name__}.{name}"
        for section in sorted(_sections(Profile, set()), key=lambda kind: kind.__name__)
        for name in section.model_fields
        if name not in read
    ]
    assert not dead, f"nothing reads {dead}: use these keys or remove them"
