"""The strict profile: each mistake is one line with the key and the fix."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from rlhflow_utils.guide import profile as reading
from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile, parse_override, read_raw, variant
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.models.forward import hub_arguments

TINY = PROJECT / "profiles" / "tiny.yaml"
PM_RANKS = {"pair_building.ranker": "preference_model"}


def _raw() -> dict[str, Any]:
    return read_raw(TINY)


def _write(raw: dict[str, Any], folder: Path, name: str = "mine.yaml") -> str:
    file = folder / name
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(file)


def _error(raw: dict[str, Any], folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_profile(_write(raw, folder))
    return str(caught.value)


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_an_unknown_key_names_the_nearest_right_one(tmp_path: Path) -> None:
    raw = _raw()
    raw["dpo"]["referense"] = "sft"
    assert _error(raw, tmp_path) == "mine.yaml: unknown key 'dpo.referense'; did you mean 'reference'?"
    raw = _raw()
    raw["dpo"]["beta"] = 0.1
    expected = "mine.yaml: unknown key 'dpo.beta'; TRL's own arguments stand under dpo.trainer"
    assert _error(raw, tmp_path) == expected


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    raw = _raw()
    del raw["dpo"]["global_batch_size"]
    assert _error(raw, tmp_path) == "mine.yaml: missing key 'dpo.global_batch_size'"


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    raw = _raw()
    raw["generation"]["batch_size"] = 8.0
    assert _error(raw, tmp_path) == "mine.yaml: generation.batch_size: Input should be a valid integer, got 8.0"


def test_5e_7_in_yaml_is_text_and_the_message_says_so(tmp_path: Path) -> None:
    raw = _raw()
    raw["pair_building"]["length_penalty"] = "5e-7"
    assert "length_penalty: 5e-7\n" in Path(_write(raw, tmp_path)).read_text(encoding="utf-8"), "without quotes"
    expected = "Input should be a valid number, got '5e-7' (YAML reads 5e-7 as text: write 5.0e-7)"
    assert _error(raw, tmp_path) == f"mine.yaml: pair_building.length_penalty: {expected}"


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
    expected = "mixture 'mix1' names unknown preference sources ['HelpStar']; known: ['Argilla-Math'"
    message = _error(raw, tmp_path)
    assert expected in message
    assert message.endswith("if it is inherited, name your sources in its place, or clear a filter with {}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"base_model": None, "model.base": None}, "give model.base (a folder or hub id) or a base_model section"),
        ({"world": None}, "evaluation.judge: gold needs the simulated world"),
        ({"evaluation.judge": "endpoint"}, "evaluation.judge: endpoint needs evaluation.endpoint_url"),
        ({"evaluation.judge": "reward_model"}, "evaluation.judge: reward_model needs a judge: name one in"),
        ({"generation.sampling.n": 3}, "sampling.n is 3: make it a multiple of 2, the number of generation.t"),
        ({"generation.sampling.n": 0}, "sampling.n is 0: make it a multiple of 2"),
        ({"generation.sampling.n": "four"}, "sampling.n is 'four': make it a multiple of 2"),
        ({"generation.sampling.n": 1, "generation.temperatures": [1.0]}, "at least 2, since a pair needs two"),
        ({**PM_RANKS, "pair_building.tournament": "knock_out"}, "a knock-out finds no worst response"),
        ({**PM_RANKS, "preference_model.mixtures": ["mix1"]}, "preference_model needs a PM of data.main_mixture"),
    ],
)  # fmt: skip
def test_sections_must_fit_together(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("tiny", overrides)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300, "the whole profile is not printed"


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"no profile 'tinny'; known profiles: gemma-2b, llama3-8b, slices, smollm2, tiny;"
    ):
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


def test_a_profile_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_profile("tiny").dpo.reference = "previous_iterate"  # type: ignore[misc]


# --- extends ------------------------------------------------------------------------------------------------------


def test_a_profile_holds_only_what_differs(tmp_path: Path) -> None:
    child = {
        "extends": "tiny",
        "name": "mine",
        "dpo": {"trainer": {"beta": 0.3}},
        "generation": {"temperatures": [1.0]},
    }
    profile, tiny = load_profile(_write(child, tmp_path)), load_profile("tiny")
    assert profile.dpo.trainer == {**tiny.dpo.trainer, "beta": 0.3}
    assert profile.generation.temperatures == [1.0], "a list is replaced, not joined"
    assert profile.sft == tiny.sft


def test_an_empty_mapping_clears(tmp_path: Path) -> None:
    assert load_profile("tiny").data.filters.kwise_pairs
    child = {"extends": "tiny", "data": {"filters": {"kwise_pairs": {}}}}
    assert load_profile(_write(child, tmp_path)).data.filters.kwise_pairs == {}


def test_a_neighbour_can_be_extended_and_a_circle_is_an_error(tmp_path: Path) -> None:
    _write({"extends": "tiny", "seed": 5}, tmp_path, "near.yaml")
    assert load_profile(_write({"extends": "near.yaml", "name": "far"}, tmp_path)).seed == 5
    _write({"extends": "mine.yaml"}, tmp_path, "near.yaml")
    assert _error({"extends": "near.yaml"}, tmp_path) == "mine.yaml: `extends` runs in a circle"


# --- overrides ----------------------------------------------------------------------------------------------------


def test_overrides_and_seed_are_applied_before_validation() -> None:
    profile = load_profile("tiny", {"dpo.trainer.beta": 0.5, "generation.temperatures": [1.0]}, seed=7)
    assert (profile.dpo.trainer["beta"], profile.generation.temperatures, profile.seed) == (0.5, [1.0], 7)
    with pytest.raises(ConfigError, match=r"evaluation.confidence: Input should be less than 1, got 2.0"):
        load_profile("tiny", {"evaluation.confidence": 2.0})
    assert variant(profile, {"dpo.trainer.beta": 0.6}).dpo.trainer["beta"] == 0.6
    assert profile.dpo.trainer["beta"] == 0.5, "a variant is another profile"


def test_an_override_opens_an_empty_section() -> None:
    assert load_profile("tiny", {"sft.peft.r": 8}).sft.peft == {"r": 8}
    assert load_profile("tiny", {"launch.num_processes": 2}).launch == {"num_processes": 2}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("dpo.trainr.beta", "unknown key 'dpo.trainr'; did you mean 'trainer'?"),
        ("nothing.beta", "unknown key 'nothing'"),
        ("dpo.trainer.beta.x", "'dpo.trainer.beta.x' in an override: dpo.trainer.beta is no section"),
        ("dpo.betta", "unknown key 'dpo.betta'; TRL's own arguments stand under dpo.trainer"),
        ("generation.n", "unknown key 'generation.n'; vLLM's n, top_p and max_tokens stand under generation.sampling"),
    ],
)
def test_an_override_of_an_unknown_key_is_an_error(key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("tiny", {key: 1})
    where = "tiny.yaml" if "in an override" in expected else f"tiny.yaml with the override of {key}"
    assert str(caught.value) == f"{where}: {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dpo.trainer.beta=0.2", ("dpo.trainer.beta", 0.2)),
        ("dpo.trainer.learning_rate=5e-7", ("dpo.trainer.learning_rate", 5e-7)),
        ("generation.temperatures=[1.0, 0.7]", ("generation.temperatures", [1.0, 0.7])),
        ("model.base=../models/mine", ("model.base", "../models/mine")),
        ("model.base=null", ("model.base", None)),
        ("hub.push=true", ("hub.push", True)),
        ("evaluation.endpoint_url=http://h:8000/v1?a=b", ("evaluation.endpoint_url", "http://h:8000/v1?a=b")),
    ],
)
def test_overrides_on_the_command_line_are_yaml(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["dpo.trainer.beta", "=3"])
def test_an_override_without_key_or_value_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected KEY=VALUE, for example dpo.trainer.beta=0.2"):
        parse_override(text)


# --- revisions ----------------------------------------------------------------------------------------------------


def test_pinned_revisions_reach_sources_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "revisions.yaml"
    gemma = load_profile("gemma-2b")
    hub_id = next(source.hub_id for source in gemma.data.preference_sources if source.hub_id)
    lock.write_text(yaml.safe_dump({hub_id: "abc", gemma.model.base: "def", "someone/else": "xyz"}), encoding="utf-8")
    monkeypatch.setattr(reading, "REVISIONS", lock)
    pinned = load_profile("gemma-2b")
    assert {s.revision for s in pinned.data.preference_sources if s.hub_id == hub_id} == {"abc"}
    assert pinned.model.revisions[str(gemma.model.base)] == "def"
    assert "someone/else" not in pinned.model.revisions
    assert hub_id in set(reading.hub_ids(pinned))


def test_a_judge_of_the_hub_is_pinned_also_where_it_is_loaded_without_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "revisions.yaml"
    lock.write_text(yaml.safe_dump({"someone/judge": "abc"}), encoding="utf-8")
    monkeypatch.setattr(reading, "REVISIONS", lock)
    judged = load_profile("tiny", {"evaluation.judge": "reward_model", "evaluation.judge_model": "someone/judge"})
    assert judged.model.revisions == {"someone/judge": "abc"}  # so the keys of stages change with the pin
    for settings in (judged.model, None):
        assert hub_arguments("someone/judge", settings)["revision"] == "abc"
    assert hub_arguments("someone/else", None)["revision"] is None


# --- no key without a reader --------------------------------------------------------------------------------------

DRY = {"check.py", "settings.py", "profile.py"}  # what only checks or declares a key does not use it


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


def test_every_key_of_a_profile_is_read_by_some_code() -> None:
    files = [*(PROJECT / "rlhflow_utils").rglob("*.py"), *(PROJECT / "notebooks" / "source").glob("*.py")]
    read = {
        node.attr
        for file in files
        if file.name not in DRY
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    dead = [
        f"{section.__name__}.{name}"
        for section in sorted(_sections(Profile, set()), key=lambda kind: kind.__name__)
        for name in section.model_fields
        if name not in read
    ]
    assert not dead, f"nothing reads {dead}: use these keys or remove them"


def test_the_profile_in_docs_own_data_is_one(tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "own_data.md").read_text(encoding="utf-8")
    file = tmp_path / "my.yaml"
    file.write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    profile = load_profile(str(file))
    assert profile.name == "my"
    assert {source.name for source in profile.data.preference_sources} == {"strings", "messages"}
