"""What 100,000 prompts with eight answers each cost beside their model: planning, shards and collecting."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MODEL, artifact, save_policy, settings

from rlhflow_utils.models.forward import reward_rows
from rlhflow_utils.online import generation
from rlhflow_utils.online.generation import Prompts, generate_responses

TOKENS, TEXT = list(range(32)), "x" * 100
MOST = 100_000
Rows = Sequence[Mapping[str, Any]]


@contextmanager
def made_up(*_: Any) -> Iterator[Callable[[Rows], list[dict[str, Any]]]]:
    """In place of a model: eight answers of 32 tokens."""
    answer = {
        "source": "", "responses": [TEXT] * 8, "response_ids": [TOKENS] * 8, "finish_reasons": ["stop"] * 8,
        "temperatures": [1.0] * 8, "lengths": [100] * 8,
    }  # fmt: skip
    yield lambda rows: [{"prompt_id": row["prompt_id"], "prompt": row["prompt"], **answer} for row in rows]


@contextmanager
def anonymous_memory() -> Iterator[list[int]]:
    """MiB of this process' own memory, sampled all the while; pages of files that are only mapped do not count."""
    samples, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            samples.append(int(status.partition("RssAnon:")[2].split()[0]) // 1024)

    thread = threading.Thread(target=sample)
    thread.start()
    time.sleep(0.05)
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def cost(count: int, policy: Path, folder: Path) -> tuple[float, int]:
    """Seconds of the processor, and the MiB by which memory rose at most."""
    text = [{"role": "user", "content": "what is the colour of the sky"}]
    artifact(folder / "data", "prompts", [{"prompt_id": f"p{i}", "prompt": text, "source": ""} for i in range(count)])
    data = artifact(folder / "data", key=str(count))
    with anonymous_memory() as samples:
        before, started = samples[-1], time.process_time()
        asked = settings(shard_size=500, n=8)
        responses = generate_responses(policy, Prompts(data), asked, MODEL, 0, into=folder / "responses")
        summary = reward_rows(responses, lambda: lambda rows: [[0.5] * 8 for _ in rows], folder, None)
        seconds = time.process_time() - started
    assert summary.rows["prompts"].rows_out == count
    assert responses.metrics["tokens"] == count * 8 * 32
    return seconds, max(samples) - before


@pytest.mark.slow
def test_cost_grows_with_the_prompts_and_memory_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "open_policy", made_up)
    policy = save_policy(tmp_path / "policy")
    cost(1000, policy, tmp_path / "warm")
    few, many = (cost(count, policy, tmp_path / str(count)) for count in (1000, MOST))
    exponent = math.log(many[0] / few[0]) / math.log(MOST / 1000)
    assert exponent <= 1.05
    assert many[1] < 100, "MiB; the token ids alone are 195 MiB, in Python's lists 1,600"
