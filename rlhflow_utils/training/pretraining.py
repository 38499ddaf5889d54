"""The tiny base model: a byte-level BPE tokenizer and a Llama of about one million parameters, from nothing.

It is pretrained in one lean loop over packed blocks, resumable, in bfloat16 where the CPU has it. From chapter 00 on it
is just a Hugging Face folder, like any other model.

The rest of the guide trains with TRL. This loop is our own, since a model of under one million parameters spends more
time in a trainer's bookkeeping than in its matrices, and since it reads documents that are written while it trains.
"""

from __future__ import annotations

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhflow_utils.guide.settings import BaseModelSettings, WorldSettings
from rlhflow_utils.guide.stage import seal, sealed
from rlhflow_utils.simulator.corpus import write_documents
from rlhflow_utils.simulator.gold import World

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Documents = Callable[[random.Random], Iterator[str]]  # endless, drawn by these random numbers
TOKENIZER_DOCUMENTS = 20_000
MOMENTUM = 0.95  # of Muon
WARMUP = 0.02  # share of all steps; over the second half the learning rate falls to zero
STEPS_PER_CHECKPOINT = 500  # a multiple of the next
STEPS_PER_LOG = 20


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template; `vocab_size` includes special tokens and bytes.

    Nothing is ever unknown (all 256 bytes are in the vocabulary), every digit is a token of its own, and a word may
    merge with the space before it. The end-of-turn token is EOS; padding is a token of its own.
    """
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
    ours = {"vocab_size": vocab_size, "tie_word_embeddings": True, "dtype": "float32", **special_ids}
    return LlamaConfig(**{**ours, **architecture})


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, **architecture: Any) -> LlamaForCausalLM:
    """A Llama with random float32 weights drawn by `seed`, without touching torch's global random numbers."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama_config(architecture, len(tokenizer), **ids))


def pretrain(documents: Documents, settings: BaseModelSettings, seed: int, into: Path) -> dict[str, Any]:
    """Train a tokenizer and a Llama on `settings.tokens` tokens; write ``<into>/model`` and return the log.

    Step k reads documents drawn by (seed, k) alone, so that a run that was stopped goes on as if it had not been. Each
    step's last document is cut where its last block is full.
    """
    checkpoint = into / "checkpoint.pt"
    whole = sealed(checkpoint)
    into.mkdir(parents=True, exist_ok=True)
    first_texts = islice(documents(random.Random(f"{seed}:tokenizer")), TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer(first_texts, settings.vocab_size)
    model = build_model(tokenizer, seed, **settings.architecture)
    optimizer = Muon(
        model, settings.muon_learning_rate, lr=settings.learning_rate, betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    rates = [group["lr"] for group in optimizer.param_groups]
    shape = (settings.blocks_per_batch, settings.block_size)
    steps = max(1, settings.tokens // (shape[0] * shape[1]))
    first, history, seconds = 0, list[dict[str, float]](), 0.0
    state = torch.load(whole, weights_only=True) if whole else {}
    if state.get("settings") == settings.model_dump():  # else of another training: begin anew
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, history, seconds = state["step"], state["history"], state["seconds"]
    losses, started = list[float](), time.time()
    for step in range(first, steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step / steps)
        ids = packed_blocks(documents(random.Random(f"{seed}:{step}")), tokenizer, shape)
        losses.append(_train_step(model, optimizer, ids))
        if (step + 1) % STEPS_PER_LOG == 0 or step + 1 == steps:
            history.append({"step": step + 1, "loss": fmean(losses)})
            losses = []
            if not math.isfinite(history[-1]["loss"]):
                raise ValueError(f"base_model: no finite loss at step {step + 1}; lower the learning rates")
        if (step + 1) % STEPS_PER_CHECKPOINT == 0:
            spent = seconds + time.time() - started
            print(f"  step {step + 1:5d}/{steps}  loss {history[-1]['loss']:.4f}  {spent:5.0f} s", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            state |= {"settings": settings.model_dump(), "history": history, "seconds": spent}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            seal(checkpoint.with_suffix(".tmp"), checkpoint)
    model.save_pretrained(into / "model")
    tokenizer.save_pretrained(into / "model")
    for left in into.glob("checkpoint.*"):
        left.unlink()
    return {
        "history": history, "steps": steps, "tokens": steps * shape[0] * shape[1],
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": round(seconds + time.time() - started, 1),
    }  # fmt: skip


def _train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> float:
    with arithmetic():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.item())


def tokens_in(minutes: float, documents: Documents, settings: BaseModelSettings) -> int:
    """Tokens that this machine reads in so many minutes, from the time of a few steps."""
    batch = settings.blocks_per_batch * settings.block_size
    with TemporaryDirectory() as folder:
        log = pretrain(documents, settings.model_copy(update={"tokens": 20 * batch}), 0, Path(folder))
    return max(batch, int(minutes * 60 * log["tokens"] / log["seconds"]))


def documents_of(texts: list[str] | None, world: WorldSettings | None) -> Documents:
    """Texts in random order again and again, or freshly written documents of the world."""
    if texts is None:
        assert world is not None, "the profile's validation"
        return partial(write_documents, World(world))
    return lambda rng: iter(lambda: rng.choice(texts), None)


def schedule(progress: float) -> float:
    """Factor on the learning rate at a share of all steps: warm-up, constant, and linear to zero from the middle."""
    return min(1.0, (progress + 1e-3) / WARMUP, 2 * (1 - progress))


def packed_blocks(documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, shape: tuple[int, int]) -> Tensor:
    """Token ids ``[blocks, block_size]``: documents end to end, each as BOS, text, EOS."""
    wanted, ids = shape[0] * shape[1], list[int]()
    while len(ids) < wanted:
        for text in tokenizer(list(islice(documents, 64)), add_special_tokens=False)["input_ids"]:
            ids += [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]
    return torch.tensor(ids[:wanted]).view(shape)


def arithmetic() -> Any:
    """bfloat16 autocast where the CPU computes in it and may (ATEN_CPU_CAPABILITY), else float32: 60 times faster."""
    native = torch.cpu._is_avx512_bf16_supported() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.autocast("cpu", torch.bfloat16) if native else nullcontext()


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values of [n, rows, columns] near 1: torch.optim.Muon's iteration, in float32 for the CPU."""
    a, b, c = 3.4445, -4.7750, 2.0315  # of the quintic Newton-Schulz iteration
    tall = matrices.size(-2) > matrices.size(-1)
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the hidden matrices and AdamW for embeddings, norms and heads, as one optimiser with one schedule."""

    def __init__(self, model: torch.nn.Module, muon_lr: float, **adamw: Any) -> None:
        """Split a model's parameters: `embed` and `lm_head` in a name mean AdamW; norms are not decayed."""
        groups: list[dict[str, Any]] = [{"lr": muon_lr}, {}, {"weight_decay": 0.0}]
        hidden, tables, vectors = (group.setdefault("params", []) for group in groups)
        for name, parameter in model.named_parameters():
            outer = "embed" in name or "lm_head" in name
            (vectors if parameter.ndim < 2 else tables if outer else hidden).append(parameter)
        super().__init__(groups, **adamw)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        hidden = self.param_groups[0]
        gradients = {parameter: parameter.grad for parameter in hidden["params"] if parameter.grad is not None}
        for parameter in gradients:
            parameter.grad = None  # AdamW's step leaves out what has no gradient
        super().step(closure)
        same_shape = defaultdict(list)
        for parameter, gradient in gradients.items():
            parameter.grad, state = gradient, self.state[parameter]
            if not state:  # AdamW's loading looks for a step in every state
                state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(parameter))
            state["momentum"].lerp_(gradient, 1 - MOMENTUM)
            same_shape[tuple(parameter.shape)].append((parameter, gradient.lerp(state["momentum"], MOMENTUM)))
        for (rows, columns), pairs in same_shape.items():
            scale = hidden["lr"] * max(1.0, rows / columns) ** 0.5
            updates = orthogonalise(torch.stack([update for _, update in pairs]))
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - hidden["lr"] * hidden["weight_decay"]).add_(update, alpha=-scale)
