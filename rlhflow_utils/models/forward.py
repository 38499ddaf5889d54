"""Forward passes over many sequences of unequal length: loading, batching by length, padding."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhflow_utils.guide.stage import Artifact, Rows, Summary, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rlhflow_utils.guide.settings import ModelSettings

Model = Artifact | Path | str  # a stage that trained one, a local folder, a hub id
ROWS_PER_SHARD = 1024  # the unit of resuming in `reward_rows`


def model_path(model: Model) -> str:
    """What `from_pretrained` takes: a stage keeps its model in its folder ``model``."""
    return str(model.path / "model" if isinstance(model, Artifact) else model)


def hub_arguments(model: Model, settings: ModelSettings | None) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the pinned commit of a hub id, and no code from the hub."""
    return {"revision": settings.revisions.get(model_path(model)) if settings else None, "trust_remote_code": False}


def load_model(model: Model, kind: Literal["causal", "reward"], settings: ModelSettings | None = None) -> Any:
    """A model ready for inference, on the GPU where there is one.

    Args:
        model: the model.
        kind: ``causal`` for a language model, ``reward`` for a sequence classifier with one output.
        settings: the profile's `model` section; None takes the checkpoint's dtype.

    Raises:
        ValueError: ``reward``, but the checkpoint is no sequence classifier: its score head would be random.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    path, keywords = model_path(model), hub_arguments(model, settings)
    if kind == "reward":
        _check_reward_model(AutoConfig.from_pretrained(path, **keywords), path)
    keywords["dtype"] = settings.dtype if settings else "auto"
    if settings:
        keywords["attn_implementation"] = settings.attn_implementation
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    return auto.from_pretrained(path, **keywords).to("cuda" if torch.cuda.is_available() else "cpu").eval()


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
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
    padded = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return padded.to(device), mask.to(device)


def next_token_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_id: int) -> Any:
    """Logits after the last token of each sequence, ``[rows, vocabulary]``, in the model's dtype.

    Right padding needs no mask, since causal attention never looks ahead, and attention takes its fast causal path.
    Logits are computed at last positions alone: `unique` finds the positions where any row ends.
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


def reward_rows(
    responses: Artifact, compute: Callable[[Sequence[dict[str, Any]]], list[list[float]]], into: Path
) -> Summary:
    """Write the rows of `responses` with the column `rewards`, as ``data``; what scoring and ranking stages return.

    Args:
        responses: from `generate_responses`.
        compute: rows -> one number per response, per row. It is called for one shard of rows at a time; a stage that
            was killed goes on from the shards it has finished.
        into: the stage's working folder.
    """
    rows, rewards = responses.dataset(), []
    for start in range(0, len(rows), ROWS_PER_SHARD):
        file = into / "shards" / f"{start // ROWS_PER_SHARD:05d}.json"
        if not file.exists():
            write_json(file, compute(list(rows.select(range(start, min(start + ROWS_PER_SHARD, len(rows)))))))
        rewards += json.loads(file.read_text(encoding="utf-8"))
    rows.add_column("rewards", rewards).save_to_disk(str(into / "data"))
    metrics = {
        "mean_reward": sum(sum(group) / len(group) for group in rewards) / len(rewards),
        "mean_best_reward": sum(max(group) for group in rewards) / len(rewards),
    }
    return Summary(rows={"prompts": Rows(len(rows), len(rewards))}, metrics=metrics)


def _check_reward_model(config: Any, name: str) -> None:
    architectures = config.architectures or []
    if not any("SequenceClassification" in architecture for architecture in architectures):
        raise ValueError(f"{name} is no reward model (architectures: {architectures}); give a sequence classifier")
    if config.num_labels != 1:
        raise ValueError(f"{name} has {config.num_labels} outputs; a Bradley-Terry reward model has one")
