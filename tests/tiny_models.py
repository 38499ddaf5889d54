"""Tiny real models for the tests: random weights, a byte-level tokenizer, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings
from rlhflow_utils.training.base_model import build_model, train_tokenizer

POSITIONS = 192
WORDS = "what is the colour of the sky tell me about red green blue one two three and a short poem please"
MODEL = ModelSettings(
    base=None,
    reward_base=None,
    revision=None,
    dtype="float32",
    attention="sdpa",
    chat_template=None,
    pad_token=None,
)


def save_policy(folder: Path, seed: int = 0) -> Path:
    """A causal LM of two layers whose distributions are far from uniform (head size 32: vLLM on CPU takes no less)."""
    import torch

    tokenizer = train_tokenizer([WORDS] * 4, vocab_size=320)
    model = build_model(
        hidden_size=64,
        num_hidden_layers=2,
        intermediate_size=64,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        tokenizer=tokenizer,
        seed=seed,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
        # End of turn comes up now and then: some responses stop and some run into the limit.
        model.get_input_embeddings().weight[tokenizer.eos_token_id].mul_(2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, policy: Path, seed: int = 0) -> Path:
    """A sequence classifier on the policy's weights, with a random score head that spreads the rewards."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    with torch.no_grad():
        model.score.weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def settings(**changes: Any) -> GenerationSettings:
    """Generation settings for the tiny policy."""
    values: dict[str, Any] = {
        "backend": "transformers",
        "responses": 4,
        "temperatures": [1.0, 0.7],
        "top_p": 1.0,
        "max_new_tokens": 20,
        "max_prompt_tokens": 100,
        "batch_size": 16,
        "shard_size": 4,
        "vllm_memory": 1.0,
        "tensor_parallel_size": 1,
    }
    return GenerationSettings(**{**values, **changes})


def prompts(count: int) -> list[dict[str, Any]]:
    """Prompt rows of one to six words, all different."""
    words = WORDS.split()
    texts = [" ".join(words[index % 7 : index % 7 + 1 + index % 6]) + f" {index}" for index in range(count)]
    return [
        {"prompt_id": f"p{index}", "prompt": [{"role": "user", "content": text}], "source": "test"}
        for index, text in enumerate(texts)
    ]
