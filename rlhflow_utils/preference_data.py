"""Chapter 01: native rows become preference pairs, split by prompt and mixed; SFT rows and prompts beside them.

The paper's mixtures are built from filtered sources (2.1). Added here, and stated nowhere in the paper: held-out pairs,
and that no prompt crosses from one split into another. A pair's split is a hash of its first user turn, so that it is
the same in every run, for every seed, and for every source in which the prompt occurs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhflow_utils.decontamination import HeldOut
from rlhflow_utils.funnel import Funnel
from rlhflow_utils.manifest import write_json
from rlhflow_utils.pair_table import Measuring, SourcePairs, filter_source
from rlhflow_utils.prompt_data import (
    PromptTable,
    choose_evaluation,
    drop_overlap,
    keep_chosen,
    prompts_of_pairs,
    prompts_of_sources,
    seeded_order,
    write_prompts,
    write_sft,
)
from rlhflow_utils.prompt_map import prompt_map
from rlhflow_utils.source_statistics import table1_of

if TYPE_CHECKING:
    from datasets import Dataset

    from rlhflow_utils.manifest import Stage
    from rlhflow_utils.settings import DataSettings, PartitionSettings

MAP_PROMPTS = 1500  # points of the prompt map
PARTITIONS = ("test", "sft", "prompts", "judge", "train")
TRAINS = ("sft", "judge", "train")  # partitions whose texts enter a loss: evaluation prompts must not be among them


def partition_of(opening: str, shares: PartitionSettings) -> str:
    """Partition of a pair, from `filters.opening_key` of its prompt (16 hex digits, taken as a number in [0, 1))."""
    position = int(opening, 16) / 16 ** len(opening)
    edge = 0.0
    for name in PARTITIONS[:-1]:
        edge += float(getattr(shares, name))
        if position < edge:
            return name
    return "train"


@dataclass
class Splits:
    """Which pairs of each source go where: source name -> partition -> ascending positions in its file."""

    sources: list[SourcePairs]
    positions: dict[str, dict[str, list[int]]]

    def dataset(self, partition: str, names: Iterable[str] | None = None) -> Dataset:
        """Standard rows of one partition, over all sources or the named ones."""
        return _join(self.sources, {name: self.positions[name][partition] for name in names or self.positions})


def _join(sources: Sequence[SourcePairs], positions: dict[str, list[int]]) -> Dataset:
    import datasets

    parts = [source.load().select(positions[source.name]) for source in sources if source.name in positions]
    return datasets.concatenate_datasets(parts)


def split_pairs(sources: Sequence[SourcePairs], shares: PartitionSettings) -> Splits:
    """Assign every kept pair to a partition."""
    positions: dict[str, dict[str, list[int]]] = {}
    for source in sources:
        places: dict[str, list[int]] = {name: [] for name in PARTITIONS}
        for i, opening in enumerate(source.openings):
            places[partition_of(opening, shares)].append(i)
        positions[source.name] = places
    return Splits(list(sources), positions)


def decontaminate(splits: Splits, held_out: HeldOut, funnel: Funnel) -> None:
    """Take pairs that repeat an evaluation prompt out of what trains, and count every pair of `splits`."""
    for source in splits.sources:
        places = splits.positions[source.name]
        for name in PARTITIONS:
            if name in TRAINS:
                places[name] = keep_apart(source, places[name], held_out, funnel, "pairs")
            funnel.keep(source.name, len(places[name]))


def keep_apart(
    source: SourcePairs, positions: Sequence[int], held_out: HeldOut, funnel: Funnel, flow: str
) -> list[int]:
    """Those positions of a source whose prompts repeat no evaluation prompt; the others are dropped and counted."""
    if not positions:
        return []
    kept = []
    for i, row in zip(positions, source.load().select_columns("prompt").select(positions), strict=True):
        reason = held_out.reason(flow, source.name, source.row_ids[i], row["prompt"])
        if reason is None:
            kept.append(i)
        else:
            funnel.drop(source.name, source.row_ids[i], reason)
    return kept


def build_preference_data(stage: Stage) -> None:
    """Stage: everything that chapter 01 leaves for the others.

    Reads profile sections `data` and `model`; inputs `root` (folder of the source files; else `data.root`, else the
    hub) and `base` (a stage with `model/`, whose tokenizer measures lengths; else the one of `model.base`; else lengths
    are words and `max_tokens` is not enforced). Writes a Dataset per mixture, `test`, `judge` (where its share is above
    0), `sft`, `prompts`, `evaluation_prompts`, `nectar` (where there is an offline source), and `funnel.json`,
    `table1.json`, `decontamination.json`, `prompt_map.json`, `dropped.jsonl`, `examples.json`.

    Raises:
        ValueError: a source cannot be read, or a mixture or the prompts come out empty.
    """
    settings = stage.profile.data
    root = stage.inputs.get("root") or (Path(settings.root) if settings.root else None)
    work = stage.out / "work"
    shutil.rmtree(work, ignore_errors=True)  # this stage starts anew after a kill: it takes seconds to minutes
    work.mkdir(parents=True)
    flows = {name: Funnel() for name in ("pairs", "prompts", "evaluation_prompts", "sft", "nectar")}
    measuring = _measuring(stage)
    sources = _filter_all(settings, root, measuring, work, flows["pairs"])
    splits = split_pairs(sources, settings.partition)
    held_out = _write_prompt_sets(stage, settings, root, splits, work, flows)
    decontaminate(splits, held_out, flows["pairs"])
    for name in ("test", "judge"):
        if name == "test" or settings.partition.judge > 0:
            _save(stage, name, splits.dataset(name))
    sft = write_sft(settings.sft_sources, root, splits.dataset("sft"), held_out, work / "sft.arrow", flows["sft"])
    _save(stage, "sft", sft)
    mixtures = _write_mixtures(stage, settings, splits)
    _write_nectar(stage, measuring, root, work, held_out, flows["nectar"])
    write_json(stage.out / "decontamination.json", held_out.to_json())
    write_json(stage.out / "prompt_map.json", _prompt_map(splits, stage.seed))
    _report(stage, sources, splits, flows, mixtures, measuring)
    shutil.rmtree(work)


def _measuring(stage: Stage) -> Measuring:
    if "base" in stage.inputs:
        folder = stage.inputs["base"]
        path = str(folder / "model" if (folder / "model").is_dir() else folder)
        return Measuring(path, stage.profile.model, "this run's base model")
    return Measuring(stage.profile.model.base, stage.profile.model, stage.profile.model.base)


def _filter_all(
    settings: DataSettings, root: Path | None, measuring: Measuring, work: Path, funnel: Funnel
) -> list[SourcePairs]:
    found = []
    for number, source in enumerate(settings.preference_sources):
        path = work / f"pairs-{number}.arrow"
        found.append(filter_source(source, root, settings.filters, measuring, path, funnel, settings.workers))
        lost = sum(funnel.dropped.get(source.name, Counter()).values())
        print(f"{source.name}: {funnel.rows_in[source.name]} pairs, {lost} dropped", flush=True)
    return found


def _write_prompt_sets(
    stage: Stage, settings: DataSettings, root: Path | None, splits: Splits, work: Path, flows: dict[str, Funnel]
) -> HeldOut:
    """Write `prompts` and `evaluation_prompts`; return what is held out."""

    def all_prompts() -> Any:
        yield from prompts_of_sources(settings.prompt_sources, root)
        yield from prompts_of_pairs(splits.dataset("prompts"))

    table = write_prompts(all_prompts(), work / "prompts.arrow", flows["prompts"])
    evaluation, is_separate = table, bool(settings.evaluation_prompt_sources)
    if is_separate:
        held = prompts_of_sources(settings.evaluation_prompt_sources, root)
        evaluation = write_prompts(held, work / "evaluation.arrow", flows["evaluation_prompts"])
    chosen = choose_evaluation(evaluation, settings.evaluation_prompts, stage.seed)
    if is_separate:
        keep_chosen(evaluation, chosen, flows["evaluation_prompts"])
    held_out = _held_out(settings, root, evaluation, chosen)
    kept = drop_overlap(table, () if is_separate else chosen, held_out, flows["prompts"])
    _save_prompts(stage, "prompts", table, kept)
    _save_prompts(stage, "evaluation_prompts", evaluation, chosen)
    return held_out


def _held_out(settings: DataSettings, root: Path | None, evaluation: PromptTable, chosen: list[int]) -> HeldOut:
    """The run's evaluation prompts and the benchmarks of `data.decontamination.sources`."""
    held_out = HeldOut(settings.decontamination)
    if chosen:
        rows = evaluation.load().select(chosen)
        held_out.add((f"evaluation_prompts:{i}", row["prompt"]) for i, row in enumerate(rows))
    benchmarks = prompts_of_sources(settings.decontamination.sources, root)
    held_out.add((f"{name}:{prompt.row_id}", prompt.prompt) for name, prompt in benchmarks)
    return held_out


def _save_prompts(stage: Stage, name: str, table: PromptTable, positions: list[int]) -> None:
    if not positions:
        raise ValueError(
            f"{name} is empty: {len(table.openings)} prompts were read; raise data.partition.prompts, "
            "add prompt_sources, or lower data.evaluation_prompts"
        )
    _save(stage, name, table.load().select(positions))


def _write_mixtures(stage: Stage, settings: DataSettings, splits: Splits) -> dict[str, Any]:
    counts = {}
    for number, (mixture, members) in enumerate(settings.mixtures.items()):
        positions = {name: splits.positions[name]["train"] for name in members}
        total = sum(len(held) for held in positions.values())
        if settings.max_pairs_per_mixture is not None and total > settings.max_pairs_per_mixture:
            positions = subsample(positions, settings.max_pairs_per_mixture, stage.seed + number)
        kept = sum(len(held) for held in positions.values())
        if not kept:
            raise ValueError(f"mixture {mixture!r} is empty: no pair of {members} is left to train on; see funnel.json")
        dropped = {"subsample": total - kept} if total > kept else {}
        stage.account(f"mixture {mixture}", total, kept, dropped)
        _save(stage, mixture, _join(splits.sources, positions))
        by_source = {name: len(held) for name, held in positions.items()}
        counts[mixture] = {"rows_in": total, "dropped": dropped, "rows_out": kept, "sources": by_source}
        stage.metric(f"01.{mixture}.pairs", kept)
        stage.metric(f"01.{mixture}.length_agreement", _agreement(splits.sources, positions))
    return counts


def subsample(positions: dict[str, list[int]], count: int, seed: int) -> dict[str, list[int]]:
    """A uniform draw of `count` positions over all sources, ascending within each."""
    flat = [(name, i) for name, held in positions.items() for i in held]
    picked = np.random.default_rng(seed).choice(len(flat), size=count, replace=False)
    drawn: dict[str, list[int]] = {name: [] for name in positions}
    for index in sorted(picked):
        name, i = flat[index]
        drawn[name].append(i)
    return drawn


def _agreement(sources: Sequence[SourcePairs], positions: dict[str, list[int]]) -> float:
    longer = [s.chosen_is_longer[i] for s in sources if s.name in positions for i in positions[s.name]]
    return round(sum(longer) / len(longer), 4)


def _write_nectar(
    stage: Stage, measuring: Measuring, root: Path | None, work: Path, held_out: HeldOut, funnel: Funnel
) -> None:
    settings = stage.profile.data
    source = settings.offline_source
    if source is None:
        return
    path = work / "nectar.arrow"
    pairs = filter_source(source, root, settings.filters, measuring, path, funnel, settings.workers)
    kept = keep_apart(pairs, range(len(pairs.openings)), held_out, funnel, "nectar")
    funnel.keep(source.name, len(kept))
    _save(stage, "nectar", pairs.load().select(kept))


def _prompt_map(splits: Splits, seed: int) -> list[dict[str, Any]]:
    """Fig. 7 over at most `MAP_PROMPTS` prompts, as many from each source, each opening once."""
    prompts: list[tuple[str, str]] = []
    for source in splits.sources:
        held = list({source.openings[i]: i for i in reversed(splits.positions[source.name]["train"])}.values())
        drawn = sorted(seeded_order([source.row_ids[i] for i in held], seed)[: MAP_PROMPTS // len(splits.sources)])
        if drawn:
            rows = source.load().select_columns("prompt").select([held[i] for i in drawn])
            prompts += [(source.name, row["prompt"][-1]["content"]) for row in rows]
    try:
        return prompt_map(prompts, seed)
    except ValueError:
        return []  # a handful of hand-written prompts: nothing to draw


def _report(
    stage: Stage,
    sources: list[SourcePairs],
    splits: Splits,
    flows: dict[str, Funnel],
    mixtures: dict[str, Any],
    measuring: Measuring,
) -> None:
    """Check that every flow adds up, and write the counts."""
    for flow, funnel in flows.items():
        funnel.check()
        for name, row in funnel.to_json().items():
            stage.account(f"{flow} {name}", row["rows_in"], row["rows_out"], row["dropped"])
    pairs = flows["pairs"].to_json()
    for source in sources:
        places = splits.positions[source.name]
        pairs.setdefault(source.name, {"rows_in": 0, "dropped": {}, "rows_out": 0})
        pairs[source.name] |= {
            "native_rows": source.native_rows, "partitions": {name: len(held) for name, held in places.items()}
        }  # fmt: skip
    counts = {name: funnel.to_json() for name, funnel in flows.items()} | {"pairs": pairs, "mixtures": mixtures}
    write_json(stage.out / "funnel.json", counts)
    table = table1_of({s.name: s.lengths for s in sources}, measuring.unit, measuring.name)
    write_json(stage.out / "table1.json", table)
    write_json(stage.out / "examples.json", {source.name: source.examples for source in sources})
    _write_dropped(stage.out / "dropped.jsonl", flows)
    for flow, funnel in flows.items():
        prefix = "01" if flow == "pairs" else f"01.{flow}"
        stage.metric(f"{prefix}.rows_in", funnel.rows_in.total())
        stage.metric(f"{prefix}.rows_out", funnel.rows_out.total())
    for name in PARTITIONS:
        stage.metric(f"01.pairs.{name}", sum(len(places[name]) for places in splits.positions.values()))


def _write_dropped(path: Path, flows: dict[str, Funnel]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for flow, funnel in flows.items():
            for source, row_id, reason in funnel.dropped_rows:
                line = {"flow": flow, "source": source, "row_id": row_id, "reason": reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def _save(stage: Stage, name: str, dataset: Dataset) -> None:
    folder = stage.out / name
    shutil.rmtree(folder, ignore_errors=True)
    dataset.save_to_disk(str(folder))
