"""The tiny base model: a byte-level BPE tokenizer and a Llama of about one million parameters, built from nothing.

From chapter 00 on the result is just a Hugging Face folder, like any other model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template; `vocab_size` includes special tokens and bytes.

    Nothing is ever unknown (all 256 bytes are in the vocabulary), every digit is a token of its own, and a word may
    merge with the space before it. The end-of-turn token is EOS; padding is a token of its own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BOS, END, *ROLES]
    if vocab_size < 256 + len(special):
        raise ValueError(f"base_model: vocab_size {vocab_size} is below 256 bytes + {len(special)} special tokens")
    tokenizer = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.ByteLevel()
    more: Any = {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, **more)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=END, chat_template=CHAT_TEMPLATE,
        additional_special_tokens=list(ROLES), clean_up_tokenization_spaces=False,
    )  # fmt: skip


def llama_config(architecture: Mapping[str, Any], vocab_size: int, **special_ids: int | None) -> LlamaConfig:
    """The model's configuration: input and output embeddings are one matrix, and `architecture` says the rest."""
    from transformers import LlamaConfig

    ours = {"vocab_size": vocab_size, "tie_word_embeddings": True, "dtype": "float32", **special_ids}
    return LlamaConfig(**{**ours, **architecture})


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, **architecture: Any) -> LlamaForCausalLM:
    """A Llama with random float32 weights drawn by `seed`, without touching torch's global random numbers."""
    import torch
    from transformers import LlamaForCausalLM

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama_config(architecture, len(tokenizer), **ids))
