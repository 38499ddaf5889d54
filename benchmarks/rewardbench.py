"""Speed on RewardBench's rows: our scoring against the `rewardbench` package, the PM against a loop of single pairs.

    python benchmarks/rewardbench.py --data-root FOLDER [--env .rewardbench_env] [--pairs 200]

Same rows, same model, same machine, one thread each; both sides do the same work (tokenising and forward passes;
loading is left out), and their results are compared. What counts is CPU seconds, so that other work on the machine does
not. The BT model meets the package on RewardBench's real rows, the PM a loop of single pairs on the profile `tiny`'s.
The last line holds the two ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
PROJECT = Path(__file__).resolve().parent.parent
# This script is named like the package it measures.
sys.path[0] = str(PROJECT)


def _reference_module() -> Any:
    path = Path(__file__).with_name("rewardbench_reference.py")
    spec = importlib.util.spec_from_file_location("rewardbench_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def against_the_package(reference: Any, python: Path, rows: list[Any], repeats: int) -> float:
    """The package's seconds over ours for the BT model; the best of several runs on both sides."""
    from rlhflow_utils.models import reward_model

    model = reference.FIXTURE / "model"
    found = [reference.run_package(python, model, rows) for _ in range(repeats)]
    theirs = min(run["seconds"] for run in found)
    score = reward_model.load_scorer(model, 16_384)
    sides = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    seconds, scores = _best(lambda: score(sides), repeats)
    expected = [score for pair in zip(found[0]["chosen"], found[0]["rejected"], strict=True) for score in pair]
    worst = max(abs(a - b) for a, b in zip(scores, expected, strict=True))
    assert worst < 1e-4, f"scores differ by {worst}"
    print(f"BT, {len(rows)} pairs: rewardbench 0.1.4 {theirs:.2f} s, here {seconds:.2f} s; scores agree to {worst:.1e}")
    return theirs / seconds


def against_single_pairs(rows: list[Any], repeats: int) -> float:
    """Seconds of a loop that asks the PM pair by pair over those of one batched call."""
    from rlhflow_utils.models.preference_model import load_compare
    from rlhflow_utils.training.pretraining import build_model, train_tokenizer

    texts = [text for row in rows for text in (row["prompt"][0]["content"], row["chosen"], row["rejected"])]
    tokenizer = train_tokenizer(texts, vocab_size=1000)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2}
    comparisons = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        build_model(**sizes, max_position_embeddings=16_384, tokenizer=tokenizer, seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        batched, one_by_one = load_compare(folder, 8192), load_compare(folder, 1)
        seconds, together = _best(lambda: batched(comparisons), repeats)
        single, alone = _best(lambda: [one_by_one([one])[0] for one in comparisons], repeats)
    worst = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    assert worst < 1e-5, f"probabilities differ by {worst}"
    print(f"PM, {len(rows)} pairs: one at a time {single:.2f} s, batched {seconds:.2f} s; they agree to {worst:.1e}")
    return single / seconds


def world_rows() -> list[Any]:
    """The simulated world's RewardBench: the pairs that chapter 05 judges on `tiny`."""
    from rlhflow_utils.guide.profile import load_profile
    from rlhflow_utils.simulator.corpus import write_benchmark
    from rlhflow_utils.simulator.gold import World

    rows = write_benchmark(World(load_profile("tiny").world))
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


def _best(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of several runs, and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with llmbar/, humanevalpack/ and xstest/")
    parser.add_argument("--env", type=Path, default=PROJECT / ".rewardbench_env", help="where the package lives")
    parser.add_argument("--pairs", type=int, default=200, help="pairs, spread evenly over all rows")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; the fastest counts")
    options = parser.parse_args()
    reference = _reference_module()
    rows = reference.load_rows(options.data_root.resolve())
    rows = rows[:: max(1, len(rows) // options.pairs)]
    bt = against_the_package(reference, reference.build_environment(options.env), rows, options.repeats)
    print("LLMBar's long rows, where one thread is busy with arithmetic and batching wins less:")
    against_single_pairs([row for row in rows if row["subset"].startswith("llmbar")], options.repeats)
    print("The rows of chapter 05 on the profile tiny:")
    pm = against_single_pairs(world_rows(), options.repeats)
    print(f"speed: BT {bt:.2f} times rewardbench 0.1.4, PM {pm:.2f} times one pair at a time")


if __name__ == "__main__":
    main()
