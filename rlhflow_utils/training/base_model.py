"""The tiny base model: a byte-level BPE tokenizer and a Llama of about one million parameters, built from nothing.

From chapter 00 on the result is just a Hugging Face folder, like any other model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
INITIALIZER_RANGE = 0.06
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template.

    Nothing is ever unknown (all 256 bytes are in the vocabulary), every digit is a token of its own, and a word may
    merge with the space before it. The end-of-turn token is EOS; padding is a token of its own.

    Args:
        texts: Text to learn merges from.
        vocab_size: Tokens in all, special tokens and bytes included.

    Raises:
        ValueError: ``vocab_size`` leaves no room for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, BOS, END, *ROLES]
    if vocab_size < 256 + len(special):
        raise ValueError(f"base_model: vocab_size {vocab_size} is below 256 bytes + {len(special)} special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    hidden_size: int,
    num_hidden_layers: int,
    intermediate_size: int,
    num_attention_heads: int,
    max_position_embeddings: int,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> LlamaForCausalLM:
    """Build a Llama with random float32 weights; the input and output embeddings are one matrix.

    Args:
        hidden_size: Width of the residual stream.
        num_hidden_layers: Number of blocks.
        intermediate_size: Width of the MLP.
        num_attention_heads: Attention heads; as many key-value heads.
        max_position_embeddings: Longest sequence in tokens.
        tokenizer: Gives the vocabulary size and the ids of BOS, EOS and padding.
        seed: Seed of the weights; the global torch generator is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        intermediate_size=intermediate_size,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        # transformers' 0.02 suits a width of thousands; at width 128 it leaves the blocks almost silent, and the same
        # loss then takes about twice the tokens.
        initializer_range=INITIALIZER_RANGE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, as in torch.optim.Muon


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1 (between about 0.7 and 1.2).

    Args:
        matrices: shape (n, rows, columns).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the hidden matrices and AdamW for embeddings, norms and heads, as one optimiser with one schedule."""

    def __init__(
        self, model: torch.nn.Module, muon_lr: float, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        """Split the parameters of a model.

        Args:
            model: embeddings and heads are told by the names `embed`, `lm_head` and `score`.
            muon_lr: learning rate of the hidden matrices; an update has about this spectral norm.
            lr: AdamW's learning rate for the other parameters.
            betas: AdamW's decay rates.
            weight_decay: decoupled; of the hidden matrices and the embeddings, not of the norms.
        """
        hidden: list[Tensor] = []
        tables: list[Tensor] = []
        vectors: list[Tensor] = []
        for name, parameter in model.named_parameters():
            outer = any(part in name for part in ("embed", "lm_head", "score"))
            (vectors if parameter.ndim < 2 else tables if outer else hidden).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": hidden, "lr": muon_lr, "weight_decay": weight_decay, "muon": True},
            {"params": tables, "lr": lr, "weight_decay": weight_decay, "muon": False},
            {"params": vectors, "lr": lr, "weight_decay": 0.0, "muon": False},
        ]
        super().__init__(groups, {"betas": betas, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon: a closure is not supported")
        for group in self.param_groups:
            with_grad = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in with_grad:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(with_grad, group["lr"])
            else:
                self._adam(with_grad, group)

    def _muon(self, parameters: list[Tensor], lr: float) -> None:
        same_shape = defaultdict(list)
        for parameter in parameters:
            same_shape[tuple(parameter.shape)].append(parameter)
        for (rows, columns), group in same_shape.items():
            updates = torch.stack([self._nesterov(parameter) for parameter in group])
            scale = lr * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(group, orthogonalise(updates), strict=True):
                parameter.add_(update, alpha=-scale)

    def _nesterov(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MOMENTUM)  # type: ignore[union-attr]

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - beta1)
            state["square"].lerp_(parameter.grad**2, 1 - beta2)  # type: ignore[operator]
            size = group["lr"] / (1 - beta1 ** state["step"])
            root = (state["square"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
            parameter.addcdiv_(state["mean"], root, value=-size)
