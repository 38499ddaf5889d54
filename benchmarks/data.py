"""Rows per second and peak memory of chapter 01's filtering, against a plain chain of `datasets` map and filter.

Both sides read the same 100,000 hh-rlhf-like rows (invented dialogues with planted dirt) from one JSON-lines file and
must leave the same rows in the same order, and the same count for every reason. Each side runs in a process of its own,
on one core, in turns. ::

    python benchmarks/data.py [--rows 100000] [--rounds 3]

The plain side is written the way the released scripts are: row by row, one `filter` per rule (its count is the number
of rows before minus after). `plain, one filter` has all rules in a single filter, which gives no counts by reason.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhflow_utils.guide.settings import FilterSettings, SourceSettings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.plain_filters import run_plain

WORDS = (
    "the of and to in is that it for you as with on be at this have from or one had by word but not what all were when "
    "we there can an your which their said if do will each about how up out them then she many some so these would "
    "other into has more her two like him see time could no make than first been its who now people my made over did"
).split()
SIDES = ("ours", "plain", "plain, one filter")


# --- the rows -----------------------------------------------------------------------------------------------------


def sentence(rng: random.Random, mean: int) -> str:
    """Invented text of about `mean` words."""
    words = rng.choices(WORDS, k=max(3, round(rng.gauss(mean, mean / 3))))
    return " ".join(words).capitalize() + rng.choice([".", "?", "!", "…", ".\n\nAnd so on."])


def dialogue(turns: list[str]) -> str:
    """Anthropic/hh-rlhf's single string."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


def native_row(rng: random.Random) -> dict[str, str]:
    """Two dialogues that share all but the last answer, 4 % of them spoiled in one of eight ways."""
    context = [sentence(rng, 20 if i % 2 == 0 else 45) for i in range(rng.choice((1, 1, 3, 3, 5)))]
    chosen, rejected = sentence(rng, 45), sentence(rng, 45)
    other = list(context)
    if rng.random() < 0.04:
        kind = rng.randrange(8)
        if kind == 0:
            chosen = ""
        elif kind == 1:
            rejected = "\u200b"
        elif kind == 2:
            context = [*context, "One moment."]
            other = list(context)
        elif kind == 3:
            other = [*other[:-1], other[-1] + " quickly"]
        elif kind == 4:
            rejected += "\nHuman: thanks" if rng.random() < 0.5 else "  Assistant: and more"
        elif kind == 5:
            rejected = f"{chosen} "
        elif kind == 6:
            rejected = "Ye"
        else:
            chosen = "..."
    return {"chosen": dialogue([*context, chosen]), "rejected": dialogue([*other, rejected])}


def write_rows(path: Path, count: int) -> None:
    """`count` rows; one in a hundred repeats an earlier one, half of these with the sides exchanged."""
    rng, recent = random.Random(0), list[dict[str, str]]()
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = native_row(rng)
            if recent and rng.random() < 0.01:
                old = rng.choice(recent)
                row = old if rng.random() < 0.5 else {"chosen": old["rejected"], "rejected": old["chosen"]}
            recent = [*recent[-199:], row]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- ours ---------------------------------------------------------------------------------------------------------


def our_settings(file: Path) -> tuple[SourceSettings, FilterSettings]:
    """The source and the rules' numbers, as the profiles have them."""
    from rlhflow_utils.guide.settings import FilterSettings, SourceSettings

    source = SourceSettings.model_validate(
        {"name": "HH-RLHF", "schema": "hh_rlhf", "hub_id": None, "hub_config": None, "revision": None, "split": None,
         "files": [file.name]}
    )  # fmt: skip
    return source, FilterSettings(
        min_score_margin={}, min_score_ratio=2.0, kwise_pairs={}, max_pairs_per_prompt={}, min_response_characters=3,
        max_tokens=4096,
    )  # fmt: skip


def run_ours(file: Path, out: Path) -> tuple[int, dict[str, int], Path]:
    """The package's table of candidate pairs, then its kept rows."""
    from rlhflow_utils.data.mixtures import PAIRS, STANDARD, TURNS, candidates, write_table
    from rlhflow_utils.guide.profile import load_profile

    source, settings = our_settings(file)
    tiny = load_profile("tiny")
    data = tiny.data.model_copy(update={"preference_sources": [source], "offline_source": None, "filters": settings})
    columns = {**PAIRS, "prompt": TURNS, "chosen": TURNS, "rejected": TURNS}
    pairs = write_table(candidates(data, file.parent, None, tiny.model), columns, out / "pairs")
    fates = pairs.select_columns("fate").to_pandas().fate
    kept = fates[~fates.str.startswith("dropped: ")].index.tolist()
    pairs.select_columns(list(STANDARD)).select(kept).save_to_disk(out / "kept")
    counts = fates.drop(kept).str.removeprefix("dropped: ").value_counts()
    return len(kept), {str(reason): int(n) for reason, n in counts.items()}, out / "kept"


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(side: str, file: Path, out: Path) -> None:
    """Run one side in this process and write what it took to `out/report.json`."""
    import datasets

    datasets.disable_progress_bars()
    import rlhflow_utils.data.mixtures  # imports are not part of the comparison  # noqa: F401

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    kept, counts, path = run_ours(file, out) if side == "ours" else run_plain(file, out, side != "plain")
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = {reason: number for reason, number in counts.items() if number}
    report = {"kept": kept, "counts": counts, "seconds": seconds, "cpu": cpu, "peak": peak / 1024, "idle": idle / 1024,
              "path": str(path)}  # fmt: skip
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


def run_side(side: str, file: Path, out: Path) -> dict[str, Any]:
    """One side in a fresh process, held to one core."""
    out.mkdir()
    one_core = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(out), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--side", side, "--file", str(file), "--out", str(out)]
    core = min(os.sched_getaffinity(0))
    subprocess.run(command, check=True, env=os.environ | one_core, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def same_rows(first: str, second: str) -> bool:
    """Whether two saved datasets hold the same rows in the same order."""
    import datasets

    tables = [datasets.load_from_disk(path).data.table.combine_chunks() for path in (first, second)]
    return bool(tables[0].cast(tables[1].schema).equals(tables[1]))


def compare(folder: Path, rows: int, rounds: int) -> None:
    """Run the sides in turns, check that they agree, and print what each took."""
    file = folder / "rows.jsonl"
    write_rows(file, rows)
    print(f"{rows:,} rows, {file.stat().st_size / 1e6:.0f} MB; one core; {rounds} rounds in turns", flush=True)
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES:
            out = folder / f"{side.replace(' ', '_')}-{number}"
            reports[side].append(report := run_side(side, file, out))
            print(f"round {number + 1}, {side}: {rows / report['seconds']:,.0f} rows/s", flush=True)
        ours, *others = (reports[side][-1] for side in SIDES)
        assert all(same_rows(ours["path"], other["path"]) for other in others), "the kept rows differ"
        assert ours["counts"] == others[0]["counts"], (ours["counts"], others[0]["counts"])
        for side in SIDES:
            shutil.rmtree(folder / f"{side.replace(' ', '_')}-{number}")
    print(f"equal output: {ours['kept']:,} rows kept, dropped {ours['counts']}")
    print_summary(reports, rows)


def print_summary(reports: dict[str, list[dict[str, Any]]], rows: int) -> None:
    """Medians over the rounds; the last line is the ratio of rows per second.

    Seconds are the process's own (user and system): both sides have one thread, and neighbours on a shared machine do
    not count. The wall clock is printed beside them.
    """
    cpu, wall = (
        {side: statistics.median(r[clock] for r in found) for side, found in reports.items()}
        for clock in ("cpu", "seconds")
    )
    for side, found in reports.items():
        peak, idle = (max(r[key] for r in found) for key in ("peak", "idle"))
        print(
            f"{side}: {rows / cpu[side]:,.0f} rows/s of processor time, {rows / wall[side]:,.0f} by the wall clock; "
            f"peak memory {peak:.0f} MiB ({idle:.0f} MiB after imports)"
        )
    fused = SIDES[2]
    by_clock = [wall[side] / wall["ours"] for side in ("plain", fused)]
    print(f"ratio to plain with one filter: {cpu[fused] / cpu['ours']:.2f} ({by_clock[1]:.2f} by the wall clock)")
    print(f"ratio to plain by the wall clock: {by_clock[0]:.2f}")
    print(f"ratio to plain, rows per second of one core: {cpu['plain'] / cpu['ours']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options.side, options.file, options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.rows, options.rounds)


if __name__ == "__main__":
    main()
