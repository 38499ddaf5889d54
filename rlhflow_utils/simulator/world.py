"""The simulated world as a stage."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rlhflow_utils.guide.settings import WorldSettings
from rlhflow_utils.guide.stage import Stage
from rlhflow_utils.simulator.corpus import (
    write_benchmark,
    write_corpus,
    write_eval_prompts,
    write_prompts,
    write_sft,
    write_translation_test,
)
from rlhflow_utils.simulator.dirt import as_json, plant_dirt
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.native_rows import Row, SourceBuilder


def write_world(settings: WorldSettings, out: Path) -> dict[str, int]:
    """Write the world's files. The same settings give the same bytes.

    Files: ``corpus.jsonl`` (base corpus), ``sft.jsonl``, ``sources/<source>.jsonl`` and ``nectar.jsonl`` (preferences
    in native schemas), ``planted_dirt.json`` (what the filters must find), ``prompts.jsonl`` (online RLHF),
    and, held out, ``eval_prompts.jsonl``, ``translation_test.jsonl`` and ``rewardbench.jsonl``.

    Args:
        settings: The profile's world.
        out: Folder to write to; created where absent.

    Returns:
        Rows of each file, by path relative to ``out``.
    """
    world = World(settings)
    files: dict[str, list[Row]] = {
        "corpus.jsonl": write_corpus(world),
        "sft.jsonl": write_sft(world),
        "prompts.jsonl": write_prompts(world),
        "eval_prompts.jsonl": write_eval_prompts(world),
        "translation_test.jsonl": write_translation_test(world),
        "rewardbench.jsonl": write_benchmark(world),
    }
    builder = SourceBuilder(world)
    record: list[Row] = []
    for source in settings.preferences.sources:
        rng = random.Random(f"{settings.seed}:dirt:{source}")
        rows, planted = plant_dirt(source, builder.build(source), settings.preferences.dirt_rate, rng)
        files["nectar.jsonl" if source == "nectar" else f"sources/{source}.jsonl"] = rows
        record += as_json(planted)
    for name, rows in files.items():
        _write_lines(rows, out / name)
    (out / "planted_dirt.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()} | {"planted_dirt.json": len(record)}


def _write_lines(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def build_world(stage: Stage) -> None:
    """Chapter 00: write every file of the simulated world; each file's rows are accounted for."""
    for name, rows in write_world(stage.profile.world, stage.out).items():
        stage.account(name, rows, rows)
