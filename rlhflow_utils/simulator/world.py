"""The simulated world as a stage."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rlhflow_utils.guide.settings import WorldSettings
from rlhflow_utils.guide.stage import Rows, Summary, stage
from rlhflow_utils.simulator import corpus
from rlhflow_utils.simulator.dirt import plant_dirt
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.native_rows import Row, UsedPairs, build_rows


@stage
def build_world(settings: WorldSettings, seed: int, *, into: Path) -> Summary:
    """Write every file of the simulated world (chapter 00), the same bytes for the same settings and seed.

    `settings.seed` decides what is true and what is held out, `seed` which rows are drawn.

    Held out: ``eval_prompts``, ``translation_test``, ``rewardbench``; ``planted_dirt`` is what the filters must find.
    """
    world = World(settings)
    files = {
        "sft.jsonl": corpus.write_sft(world, seed),
        "prompts.jsonl": corpus.write_prompts(world, seed, "train", settings.prompts),
        "eval_prompts.jsonl": corpus.write_prompts(world, seed, "eval", settings.eval_prompts),
        "translation_test.jsonl": corpus.write_translation_test(world, seed),
        "rewardbench.jsonl": corpus.write_benchmark(world, seed),
    }
    record: list[Row] = []
    used: UsedPairs = set()
    for source, annotator in settings.preferences.sources.items():
        rng = random.Random(f"{seed}:dirt:{source}")
        clean = build_rows(world, seed, source, annotator, used)
        rows, planted = plant_dirt(source, clean, settings.preferences.dirt_rate, rng)
        files["nectar.jsonl" if source == "nectar" else f"sources/{source}.jsonl"] = rows
        record += planted
    (into / "sources").mkdir(exist_ok=True)
    for name, rows in files.items():
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (into / name).write_text(text, encoding="utf-8")
    (into / "planted_dirt.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    counts = {name: len(rows) for name, rows in files.items()} | {"planted_dirt.json": len(record)}
    return Summary({name: Rows(rows, rows) for name, rows in counts.items()})
