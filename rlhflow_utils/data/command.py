"""Chapter 01 without a notebook: build a profile's preference data, print the funnel and Table 1 beside the paper's.

One line each::

    python -m rlhflow_utils data --profile llama3-8b                         # the hub's raw sources, our filters
    python -m rlhflow_utils data --profile llama3-8b --published standard    # the authors' filtered sets, counted alike
    python -m rlhflow_utils data --profile slices --data-root folder
    python -m rlhflow_utils data --profile tiny
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhflow_utils.data.cards import load_facts
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.data.overview import explain_table1, side_by_side
from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile, validate_profile
from rlhflow_utils.guide.provenance import quiet_libraries
from rlhflow_utils.guide.stage import Sections, Stage, stage_seed
from rlhflow_utils.guide.tables import markdown_table
from rlhflow_utils.simulator.world import write_world

STAGE = "01_preference_data"


def run_data(name: str, out: str | None, overrides: Mapping[str, Any], published: str | None) -> Path:
    """Build and print; returns the folder that holds the data.

    Args:
        name: profile.
        out: folder to write into; None: ``runs/<profile>-data``.
        overrides: dotted profile keys -> values.
        published: ``standard`` or ``700k`` to read the authors' published sets instead of the raw sources.

    Raises:
        ConfigError: the profile is wrong, or local rows are needed and `data.root` is not set.
        ValueError: a source cannot be read.
    """
    quiet_libraries()
    profile = load_profile(name, dict(overrides))
    if published is not None:
        profile = with_published_sets(profile, published)
    folder = Path(out or f"runs/{profile.name}-data")
    folder.mkdir(parents=True, exist_ok=True)
    inputs = _local_rows(profile, folder)
    seed = stage_seed(profile.seed, STAGE)
    build_preference_data(Stage(STAGE, Sections(profile, ["data", "model"], STAGE), inputs, folder, seed))
    print_tables(folder, _origin(profile, inputs))
    return folder


def _local_rows(profile: Profile, folder: Path) -> dict[str, Path]:
    if profile.data.root:
        return {"root": Path(profile.data.root)}
    if profile.world is not None:
        world = folder / "world"
        world.mkdir(exist_ok=True)
        write_world(profile.world, world)
        return {"root": world}
    if all(source.hub_id is None for source in profile.data.preference_sources):
        raise ConfigError(f"profile {profile.name} reads local rows: give their folder with --data-root")
    return {}


def _origin(profile: Profile, inputs: Mapping[str, Path]) -> str:
    if not inputs:
        return "hub"
    return "files" if profile.data.root else "world"


def with_published_sets(profile: Profile, which: str) -> Profile:
    """The profile with its preference sources replaced by the authors' published sets.

    They are the reference for our filters: same names, so that Table 1 sets ours beside theirs.

    Args:
        profile: the profile to change.
        which: ``standard``: RLHFlow's ``*-standard`` sets; ``700k``: ``hendrydong/preference_700K``.
    """
    facts = load_facts()
    if which == "700k":
        sets = {"preference_700K": facts["published"]["preference_700K"]["sets"][0]}
    else:
        sets = {name: fact["standard"] for name, fact in facts["sources"].items() if fact.get("standard")}
    sources = [
        {"name": name, "schema": "rlhflow_standard", "hub_id": found["hub_id"], "revision": found["revision"],
         "hub_config": None, "split": "train",
         "files": [f"{found['hub_id'].partition('/')[2]}/*"] if profile.data.root else None}
        for name, found in sets.items()
    ]  # fmt: skip
    filters = profile.data.filters.model_copy(update={"min_score_margin": {}, "max_pairs_per_prompt": {}})
    changes = {
        "preference_sources": sources, "mixtures": {which: list(sets)}, "main_mixture": which,
        "filters": filters.model_dump(),
    }  # fmt: skip
    raw = profile.model_dump(by_alias=True)
    raw["data"] |= changes
    return validate_profile(raw, f"{profile.name}, published sets")


def print_tables(folder: Path, origin: str) -> None:
    """The funnel by source and Table 1, from a finished folder."""
    funnel = json.loads((folder / "funnel.json").read_text(encoding="utf-8"))
    rows = json.loads((folder / "table1.json").read_text(encoding="utf-8"))
    facts = load_facts()["sources"]
    print("\n" + markdown_table(funnel_rows(funnel["pairs"])))
    print("\n" + markdown_table(side_by_side(rows)) + "\n")
    print("\n".join(explain_table1(rows, origin, {name: fact.get("difference", "") for name, fact in facts.items()})))
    print(f"\nwritten to {folder}; every dropped row with its reason is in dropped.jsonl")


def funnel_rows(pairs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a source: native rows, candidate pairs, kept and for what, dropped and why."""
    return [
        {"source": name, "native rows": row["native_rows"], "pairs in": row["rows_in"], "kept": row["rows_out"],
         "for testing": row["partitions"]["test"], "for training": row["partitions"]["train"],
         "dropped": sum(row["dropped"].values()),
         "reasons": ", ".join(f"{reason} {n}" for reason, n in sorted(row["dropped"].items()) if n)}
        for name, row in pairs.items()
    ]  # fmt: skip
