"""Tiny real models for the tests: random weights, a byte-level tokenizer, saved as Hugging Face folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings
from rlhflow_utils.guide.stage import Artifact, read_json, seal, write_json
from rlhflow_utils.models.forward import Model
from rlhflow_utils.models.reward_model import Conversation, load_scorer
from rlhflow_utils.training.pretraining import train_tokenizer

POSITIONS = 192
WORDS = "what is the colour of the sky tell me about red green blue one two three and a short poem please"
MODEL = ModelSettings(
    base=None, reward_base=None, dtype="float32", attn_implementation="sdpa", chat_template=None, pad_token=None
)


def save_policy(folder: Path, seed: int = 0) -> Path:
    """A causal LM of two layers whose distributions are far from uniform (head size 32: vLLM on CPU takes no less)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer([WORDS] * 4, vocab_size=320)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, intermediate_size=64, num_attention_heads=2,
        max_position_embeddings=POSITIONS, tie_word_embeddings=True, initializer_range=0.06, dtype="float32",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
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


def score(
    model: Model, conversations: Iterable[Conversation], batch_tokens: int, settings: ModelSettings | None = None
) -> list[float]:
    """Rewards of conversations that all fit into the model."""
    rewards = load_scorer(model, batch_tokens, settings)(conversations)
    assert None not in rewards
    return [float(reward) for reward in rewards if reward is not None]


def settings(**changes: Any) -> GenerationSettings:
    """Generation settings for the tiny policy; sampling arguments go into `sampling`."""
    sampling = {"n": 4, "top_p": 1.0, "max_tokens": 20} | {
        name: changes.pop(name) for name in ("n", "top_p", "max_tokens") if name in changes
    }
    values: dict[str, Any] = {
        "backend": "transformers", "engine": {"gpu_memory_utilization": 1.0}, "sampling": sampling,
        "temperatures": [1.0, 0.7], "max_prompt_tokens": 100, "batch_size": 16, "shard_size": 4,
    }  # fmt: skip
    return GenerationSettings(**{**values, **changes})


def artifact(folder: Path, name: str = "data", rows: list[dict[str, Any]] | None = None, key: str = "k") -> Artifact:
    """A finished stage of these rows, as a later stage sees it."""
    from datasets import Dataset

    if rows is not None:
        Dataset.from_list(rows).save_to_disk(str(folder / name))
    return Artifact(folder, {"key": key, "metrics": {}, "rows": {}, "contents": {}})


def flip_a_bit(file: Path) -> None:
    """Damage a file in its middle; size and time of change stay, as where a disk goes bad."""
    content, before = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off_copy(done: Artifact, folder: Path) -> list[Any]:
    """Leave in `folder` what a kill leaves of a stage, the first of its two shards, and return what it holds.

    Its rows are turned round: whoever makes them anew gets others.
    """
    shards = folder / ".partial" / f"{done.path.name}@{done.key}" / "shards"
    first, last = sorted(shutil.copytree(done.path / "shards", shards).iterdir())
    turned = read_json(first)[::-1]
    write_json(shards / "00000.tmp", turned)
    seal(shards / "00000.tmp", shards / "00000.json")
    last.unlink()
    return list(turned)


def prompts(count: int) -> list[dict[str, Any]]:
    """Prompt rows of one to six words, all different."""
    words = WORDS.split()
    texts = [" ".join(words[index % 7 : index % 7 + 1 + index % 6]) + f" {index}" for index in range(count)]
    return [
        {"prompt_id": f"p{index}", "prompt": [{"role": "user", "content": text}], "source": "test"}
        for index, text in enumerate(texts)
    ]
