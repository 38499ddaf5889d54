"""Pinning: every hub id of a profile gets the commit that its default branch has today.

A revision is never invented. Where a profile has ``revision: null``, loading warns and reads the default branch; this
writes the commit into the file, so that later runs read the same rows and weights. Only the `null` is replaced:
comments and layout stay. ::

    python -m rlhflow_utils pin                       # every profile, and the published sets named in data_cards/
    python -m rlhflow_utils pin --profile llama3-8b
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhflow_utils.config import PROFILES_FOLDER, load_profile, profile_path

Kind = Literal["dataset", "model"]
FACTS = PROFILES_FOLDER.parent / "data_cards" / "facts.yaml"


@dataclass(frozen=True, order=True)
class Repository:
    """A repository on the hub."""

    kind: Kind
    hub_id: str


@dataclass(frozen=True)
class OpenRevision:
    """A ``revision: null`` in a file: whose it is, and the characters that hold the null."""

    repository: Repository
    start: int
    end: int


def open_revisions(text: str) -> list[OpenRevision]:
    """Every unpinned revision of a profile, in the order of the file.

    Datasets are mappings with `hub_id` and `revision`; the model is the one with `base` and `revision` (chapter 00's
    `model` section). `reward_base` shares the revision of `base` only where both are one repository, and is left open
    otherwise.
    """
    found: list[OpenRevision] = []
    for mapping in _mappings(yaml.compose(text)):
        fields = {key.value: value for key, value in mapping.value if isinstance(key, yaml.ScalarNode)}
        revision, repository = fields.get("revision"), _repository(fields)
        if revision is not None and repository is not None and revision.tag == "tag:yaml.org,2002:null":
            found.append(OpenRevision(repository, revision.start_mark.index, revision.end_mark.index))
    return found


def _mappings(node: yaml.Node | None) -> Iterable[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _mappings(item)


def _repository(fields: Mapping[str, yaml.Node]) -> Repository | None:
    base, reward_base = _text(fields.get("base")), _text(fields.get("reward_base"))
    if base is not None and base.count("/") == 1 and not Path(base).is_dir() and reward_base in (None, base):
        return Repository("model", base)
    hub_id = _text(fields.get("hub_id"))
    return Repository("dataset", hub_id) if hub_id is not None else None


def _text(node: yaml.Node | None) -> str | None:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
    return node.value if isinstance(node, yaml.ScalarNode) and is_text else None


def pin_text(text: str, revisions: Mapping[Repository, str]) -> str:
    """The profile's text with the given commits in place of its nulls; revisions that are set stay as they are."""
    for place in reversed(open_revisions(text)):
        commit = revisions.get(place.repository)
        if commit is not None:
            text = text[: place.start] + commit + text[place.end :]
    return text


def resolve(repositories: Iterable[Repository]) -> dict[Repository, str]:
    """Ask the hub for the commit of each repository's default branch.

    Raises:
        RuntimeError: the hub cannot be reached, or a repository is missing or gated; the message names it.
    """
    from huggingface_hub import HfApi

    from rlhflow_utils.hub import hub_errors

    api, found = HfApi(), dict[Repository, str]()
    for repository in repositories:
        ask: Any = api.dataset_info if repository.kind == "dataset" else api.model_info
        try:
            found[repository] = str(ask(repository.hub_id).sha)
        except hub_errors() as error:
            reason = " ".join(str(error).split())[:160]
            raise RuntimeError(
                f"cannot resolve the {repository.kind} {repository.hub_id} ({type(error).__name__}: {reason}); "
                "nothing was written: go online (unset HF_HUB_OFFLINE), and log in where it is gated"
            ) from error
    return found


def pin_files(paths: Sequence[Path]) -> int:
    """Resolve every open revision of some YAML files and write the commits into them; returns how many repositories.

    All are resolved before anything is written, so that the files are pinned together or not at all.

    Raises:
        RuntimeError: a repository cannot be resolved.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    places = [place.repository for text in texts.values() for place in open_revisions(text)]
    revisions = resolve(dict.fromkeys(places))
    for path, text in texts.items():
        path.write_text(pin_text(text, revisions), encoding="utf-8")
        left = [line for line in (_shared_revision(text),) if line]
        print(f"{path.name}: {len(open_revisions(text))} revisions pinned", *left, sep="; ")
    for repository, commit in revisions.items():
        print(f"  {repository.kind} {repository.hub_id}: {commit}")
    return len(revisions)


def _shared_revision(text: str) -> str | None:
    model = (yaml.safe_load(text) or {}).get("model")
    if not model or model["revision"] is not None or model["base"] in (None, model["reward_base"]):
        return None
    return "model.revision stays open: base and reward_base are two repositories and share this one key"


def pin(names: Sequence[str]) -> int:
    """Pin the named profiles; without names, every profile and the published sets of ``data_cards/facts.yaml``.

    Raises:
        ConfigError: a profile is not valid.
        RuntimeError: a repository cannot be resolved.
    """
    paths = [profile_path(name) for name in names] or [*sorted(PROFILES_FOLDER.glob("*.yaml")), FACTS]
    for path in paths:
        if path != FACTS:
            load_profile(str(path))
    return pin_files(paths)
