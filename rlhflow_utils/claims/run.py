"""`python -m rlhflow_utils claims`: every seed in turn, or several at once; then the verdicts."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rlhflow_utils.claims.designs import DESIGNS, Designs, Measure, claim_record, load_designs, seed_profile
from rlhflow_utils.claims.pipeline import measure, prepare
from rlhflow_utils.claims.tables import RESULTS, claims_table, policies_table, read_records
from rlhflow_utils.guide.profile import variant
from rlhflow_utils.guide.publishing import replace_block
from rlhflow_utils.guide.run import Run, locked, quiet_libraries
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import PROJECT, provenance, write_json
from rlhflow_utils.guide.tables import markdown_table

Jobs = dict[str, list[str]]  # world ("": the profile's own) -> claims to measure
Measured = dict[str, dict[str, dict[str, Measure]]]  # world -> variant -> metric -> measure


def run_claims(
    profile_name: str = "tiny", seeds: int | None = None, only: list[str] | None = None,
    overrides: Mapping[str, Any] | None = None, run_dir: str = "runs/claims", workers: int = 1,
    designs_file: Path = DESIGNS,
) -> None:  # fmt: skip
    """Measure claims (None: all) over seeds, `workers` at once, and write one JSON file for each.

    The files go to `results/claims/` and into the README, but to ``<run_dir>/results`` where the profile or the designs
    were changed, fewer `seeds` than the designs have were asked for, or some seeds failed (a RuntimeError at the end).
    """
    quiet_libraries()
    designs, changed, folder = load_designs(designs_file), dict(overrides or {}), PROJECT / run_dir
    names, arguments = designs.chosen(only), profile_arguments(profile_name, changed)
    arguments += f" --seeds {seeds}" if seeds else ""
    origin = {key: value for key, value in provenance().items() if key != "device"}
    jobs = plan(designs, names, seeds)
    profiles = {seed: seed_profile(designs, profile_name, changed, seed) for seed in jobs}
    measured, failed = run_seeds(designs, profiles, jobs, folder, workers)
    is_aside = bool(arguments or failed) or designs_file != DESIGNS
    settings = profiles[designs.settings.first_seed].evaluation
    for name in names:
        found = {world: {str(seed): measured[seed][world] for seed in sorted(measured)
                         if name in jobs[seed].get(world, [])}
                 for world in ("", *designs.worlds)}  # fmt: skip
        if own := found.pop(""):
            command = f"python -m rlhflow_utils claims --only {name}{arguments}"
            record = {"claim": name, **claim_record(designs.claims[name], own, found, settings)}
            file = (folder / "results" if is_aside else RESULTS) / f"{name}.json"
            write_json(file, {**record, "command": command, "provenance": origin})
    if failed:
        raise RuntimeError(f"{'; '.join(failed)}. Mend it and run the command again: finished stages are kept")
    if not is_aside:
        replace_block("claims", claims_block())
        replace_block("policies", policies_block())


def plan(designs: Designs, names: Sequence[str], limit: int | None) -> dict[int, Jobs]:
    """Which seed measures which claims; all claims share the first seeds."""
    settings, jobs = designs.settings, dict[int, Jobs]()
    for name in names:
        claim = designs.claims[name]
        count = settings.seeds if claim.all_seeds else settings.fewer_seeds
        for index in range(min(count, limit or count)):
            others = claim.other_worlds and limit != 1 and index < settings.world_seeds
            worlds = [*designs.worlds][:: -1 if index % 2 else 1]  # two seeds side by side begin with two bases
            for world in ("", *(worlds if others else ())):
                jobs.setdefault(settings.first_seed + index, {}).setdefault(world, []).append(name)
    return jobs


def run_seed(designs: Designs, profile: Profile, jobs: Jobs, folder: Path) -> Measured:
    """What the variants of the claims measured in each world."""
    quiet_libraries()
    measured: Measured = {}
    with locked(folder):
        for world, names in jobs.items():
            changed = variant(profile, designs.worlds[world]) if world else profile
            seed = prepare(Run("11_ablations", changed, folder, by_key=True), designs.settings)
            variants = dict.fromkeys(each for name in names for each in designs.claims[name].variants)
            measured[world] = {each: measure(seed, designs.variants[each]) for each in variants}
    return measured


def profile_arguments(profile_name: str, overrides: Mapping[str, Any]) -> str:
    """What a record's command needs beside claim and seeds; empty for the profile as it is committed."""
    named = "" if profile_name == "tiny" else f" --profile {shlex.quote(profile_name)}"
    values = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items())
    return named + "".join(f" --set {shlex.quote(value)}" for value in values)


def run_seeds(
    designs: Designs, profiles: Mapping[int, Profile], jobs: Mapping[int, Jobs], folder: Path, workers: int
) -> tuple[dict[int, Measured], list[str]]:
    """What each seed measured, and which seeds failed; one that fails does not stop the others."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))  # for the children's torch
    started, measured, failed = time.time(), dict[int, Measured](), list[str]()
    print(f"Claims: seeds {', '.join(map(str, jobs))}", flush=True)
    # Ctrl-C reaches the workers, too: they end without a word, and the command says it once.
    quietly = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=signal.signal, initargs=quietly) as pool:
        running = {pool.submit(run_seed, designs, profiles[seed], each, folder / f"seed{seed}"): seed
                   for seed, each in jobs.items()}  # fmt: skip
        for future in as_completed(running):
            seed = running[future]
            if error := future.exception():
                failed.append(f"seed {seed}: {error}")
            else:
                measured[seed] = future.result()
            print(failed[-1] if error else f"seed {seed} measured after {time.time() - started:.0f} s", flush=True)
    return measured, failed


def policies_block() -> str:
    """The README's first table: the policies over seeds, from claim e."""
    record = read_records()["e"]
    text = f"Means over {record['seeds']} seeds of the simulated world, with 95 % intervals over seeds.\n"
    return f"{markdown_table(policies_table(record))}\n\n{text}"


def claims_block() -> str:
    """The README's table: the paper's own claims about judges and policies (a to h)."""
    records = read_records()
    shown = {name: record for name, record in records.items() if name in "abcdefgh"}
    text = (
        "Win rates and accuracies are shares (0.1: ten percentage points); d compares correlations. Chapter 11 has "
        f"these and {len(records) - len(shown)} more, with every comparison and the commit that each was measured at."
    )
    return f"{markdown_table(claims_table(shown))}\n\n{text}\n"
