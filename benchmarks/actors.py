"""Answers scored a second by one Ray actor and by two, on this machine: medians of runs that take turns.

    python benchmarks/actors.py [--answers 8192] [--repeats 3]

The reward model is the shipped base with a random head; each actor has one thread. The clock starts when every actor
has loaded its model and scored its first shard. The rewards of all runs are compared with those of this process.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from contextlib import nullcontext

from rlhflow_utils.guide.run import quiet_libraries
from rlhflow_utils.guide.spread import shards_of, spread
from rlhflow_utils.models.reward_model import Conversation, load_scorer

SHARD, BATCH_TOKENS = 256, 2048


def save_reward_model(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    base = PROJECT / "models" / "tiny-base"
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def measure(folder: Path, conversations: list[Conversation], actors: int) -> tuple[float, list[float]]:
    """Answers a second, and all rewards."""
    shards = [conversations[part.start : part.stop] for part in shards_of(len(conversations), SHARD)]
    start = partial(_open, folder)
    found, times = {}, []
    for place, rewards in spread(range(len(shards)), shards.__getitem__, start, actors):
        found[place] = rewards
        times.append(time.perf_counter())
    first = max(1, actors)
    speed = SHARD * (len(times) - first) / (times[-1] - times[first - 1])
    return speed, [reward for place in sorted(found) for reward in found[place]]


def _open(folder: Path) -> nullcontext:
    return nullcontext(load_scorer(folder, BATCH_TOKENS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    quiet_libraries()
    draw = random.Random(0)
    words = "what is the colour of the sky and who lives in the red house by the sea".split()
    texts = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(options.answers)]
    conversations = [([{"role": "user", "content": text[:40]}], text) for text in texts]
    with tempfile.TemporaryDirectory() as temporary:
        save_reward_model(Path(temporary))
        _, expected = measure(Path(temporary), conversations, 0)
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.repeats):
            for actors, found in speeds.items():
                speed, rewards = measure(Path(temporary), conversations, actors)
                assert max(abs(a - b) for a, b in zip(rewards, expected, strict=True)) < 1e-6
                found.append(speed)
                print(f"{actors} actors: {speed:,.0f} answers/s", flush=True)
    one, two = median(speeds[1]), median(speeds[2])
    print(f"medians: {one:,.0f} answers/s with one actor, {two:,.0f} with two: {two / one:.2f} times")


if __name__ == "__main__":
    main()
