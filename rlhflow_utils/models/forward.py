"""Forward passes over many sequences of unequal length: loading, batching by length, padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rlhflow_utils.guide.settings import ModelSettings

Kind = Literal["causal", "reward"]


def load_model(model: str | Path, kind: Kind, settings: ModelSettings | None = None) -> PreTrainedModel:
    """A model ready for inference, on the GPU where there is one.

    Args:
        model: Hugging Face folder or id.
        kind: ``causal`` for a language model, ``reward`` for a sequence classifier with one output.
        settings: the profile's `model` section (dtype, attention, revision); None takes what the checkpoint says.

    Raises:
        ValueError: ``reward``, but the checkpoint is no sequence classifier: its score head would be random.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    revision = settings.revision if settings and not Path(model).exists() else None
    keywords: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    if kind == "reward":
        _check_reward_model(AutoConfig.from_pretrained(str(model), **keywords), str(model))
    keywords["dtype"] = settings.dtype if settings else "auto"
    if settings:
        keywords["attn_implementation"] = settings.attention
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    loaded: PreTrainedModel = auto.from_pretrained(str(model), **keywords)
    return loaded.to(_device()).eval()  # type: ignore[arg-type]


def check_lengths(lengths: Sequence[int], model: PreTrainedModel, what: str) -> None:
    """Nothing is truncated: raise ValueError where a sequence (lengths in tokens) exceeds the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and lengths and max(lengths) > limit:
        worst = max(range(len(lengths)), key=lengths.__getitem__)
        raise ValueError(
            f"{what} {worst} has {lengths[worst]} tokens, {model.config.name_or_path} takes {limit}; "
            "drop longer rows first (nothing is truncated here)"
        )


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group indices of similar length so that rows x longest row stays within `batch_tokens`.

    The longest sequences come first: what does not fit into memory fails at once. A sequence longer than the budget
    is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both ``[rows, longest]`` and int64."""
    import torch

    width = max(len(ids) for ids in sequences)
    rows, masks = [], []
    for ids in sequences:
        filler = [pad_id] * (width - len(ids))
        rows.append([*filler, *ids] if side == "left" else [*ids, *filler])
        mask = [0] * len(filler)
        masks.append([*mask, *[1] * len(ids)] if side == "left" else [*[1] * len(ids), *mask])
    return torch.tensor(rows, device=device), torch.tensor(masks, device=device)


def next_token_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_id: int) -> Any:
    """Logits after the last token of each sequence, ``[rows, vocabulary]``, in the model's dtype.

    Padded on the right, which a causal model does not see from the tokens before: no mask is needed, and attention
    takes its fast causal path. Logits are computed at last positions alone.
    """
    import torch

    ids, mask = pad(sequences, pad_id, "right", model.device)
    ends, row_end = (mask.sum(-1) - 1).unique(return_inverse=True)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=ends).logits
    return logits[torch.arange(len(sequences), device=logits.device), row_end]


def last_token_logits(model: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor, cache: Any = None) -> Any:
    """Logits after the last token of left-padded rows, ``[rows, vocabulary]``, in the model's dtype."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
    output = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _check_reward_model(config: Any, name: str) -> None:
    architectures = config.architectures or []
    if not any("SequenceClassification" in architecture for architecture in architectures):
        raise ValueError(f"{name} is no reward model (architectures: {architectures}); give a sequence classifier")
    if config.num_labels != 1:
        raise ValueError(f"{name} has {config.num_labels} outputs; a Bradley-Terry reward model has one")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
