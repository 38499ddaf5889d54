"""Loading models, and forward passes over many sequences of unequal length."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from rlhflow_utils.guide.spread import R, Start, T, shards_of, spread
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, read_json, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rlhflow_utils.guide.settings import ModelSettings
    from rlhflow_utils.models.chat import Message

Model = Artifact | Path | str  # a stage that trained one, a local folder, a hub id
TokenIds = Sequence[int]
ROWS_PER_SHARD = 1024  # what an actor gets at a time; in `reward_rows` also the unit of resuming
SCORE_HEADS = r"^(v_head|value_head|classifier|regression_layer)\.weight$"  # other names of `score.weight`


def model_path(model: Model) -> str:
    """What `from_pretrained` takes: a stage keeps its model in its folder ``model``."""
    return str(model.path / "model" if isinstance(model, Artifact) else model)


def hub_arguments(model: Model, settings: ModelSettings | None) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the pinned commit of a hub id, and no code from the hub."""
    return {"revision": settings.revisions.get(model_path(model)) if settings else None, "trust_remote_code": False}


def load_model(model: Model, kind: Literal["causal", "reward"], settings: ModelSettings | None = None) -> Any:
    """A model ready for inference, on the GPU where there is one; without settings in the checkpoint's dtype.

    A ``reward`` model must be a sequence classifier; its score head may have another usual name.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    path, keywords = model_path(model), hub_arguments(model, settings)
    if kind == "reward":
        config = AutoConfig.from_pretrained(path, **keywords)
        if config.num_labels != 1 or not any("SequenceClassification" in name for name in config.architectures or []):
            raise ValueError(
                f"{path} is no reward model (architectures: {config.architectures}, outputs: {config.num_labels}); "
                "give a sequence classifier with one output"
            )
        keywords["key_mapping"] = {SCORE_HEADS: "score.weight"}
    if settings:
        keywords |= {"dtype": settings.dtype, "attn_implementation": settings.attn_implementation}
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    loaded, found = auto.from_pretrained(path, output_loading_info=True, **keywords)
    check_weights(path, found)
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def check_weights(path: str, found: Mapping[str, Any], expected: Collection[str] = ()) -> None:
    """ValueError for a weight that the files lack (transformers draws it at random) or that the model has no place for.

    `found` is the loading information of `from_pretrained`; the names in `expected` may differ.
    """
    missing, unexpected = (sorted({*found[kind]} - {*expected}) for kind in ("missing_keys", "unexpected_keys"))
    if missing or unexpected:
        raise ValueError(
            f"{path}: missing weights {missing[:3]} ({len(missing)}), unexpected weights {unexpected[:3]} "
            f"({len(unexpected)}); give a checkpoint that fits its config.json"
        )


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group indices of similar length so that rows x longest row stays within `batch_tokens`, or one row exceeds it.

    The longest sequences come first: what does not fit into memory fails at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def in_batches(
    model: PreTrainedModel, sequences: Sequence[TokenIds], batch_tokens: int,
    forward: Callable[[list[TokenIds]], torch.Tensor], what: str, prompts: Sequence[Sequence[Message]],
) -> list[float]:  # fmt: skip
    """`forward` of every sequence, a finite number each, in batches of similar length.

    Errors call a sequence `what` and name it by its prompt.
    """
    import torch

    lengths = [len(ids) for ids in sequences]
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and lengths and max(lengths) > limit:
        raise ValueError(
            f"{what} {lengths.index(max(lengths))} has {max(lengths)} tokens, {model.config.name_or_path} takes "
            f"{limit}; drop longer rows first (nothing is truncated here)"
        )
    values = [0.0] * len(sequences)
    for batch in length_batches(lengths, batch_tokens):
        with torch.inference_mode():
            found = forward([sequences[index] for index in batch]).tolist()
        for index, value in zip(batch, found, strict=True):
            values[index] = value
    check_finite(values, (f"{what} {i}, prompt {prompt[-1]['content'][:60]!r}" for i, prompt in enumerate(prompts)))
    return values


def check_finite(values: Iterable[float], names: Iterable[str]) -> None:
    """ValueError where a number is NaN or infinite; the names say whose it is."""
    for value, name in zip(values, names, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"{name}: the score is {value}, which says nothing; look for broken weights, or for overflow in half "
                "precision (model.dtype: float32)"
            )


def pad(
    sequences: Sequence[TokenIds], pad_id: int, side: Literal["left", "right"], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both ``[rows, longest]`` and int64."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
    padded = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return padded.to(device), mask.to(device)


def next_token_logits(model: PreTrainedModel, sequences: Sequence[TokenIds], pad_id: int) -> torch.Tensor:
    """Logits after the last token of each sequence, ``[rows, vocabulary]``, in the model's dtype.

    Right padding needs no mask, since causal attention never looks ahead, and attention takes its fast causal path.
    Logits are computed only at positions where a row ends.
    """
    import torch

    ids, mask = pad(sequences, pad_id, "right", model.device)
    ends, row_end = (mask.sum(-1) - 1).unique(return_inverse=True)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=ends).logits
    return logits[torch.arange(len(sequences), device=logits.device), row_end]


def in_shards(rows: Sequence[T], start: Start[Sequence[T], Sequence[R]], actors: int | None) -> list[R]:
    """The result of every row, in order; `start` yields the function of a shard (see `spread`)."""
    shards = [rows[part.start : part.stop] for part in shards_of(len(rows), ROWS_PER_SHARD)]
    found = dict(spread(range(len(shards)), shards.__getitem__, start, actors))
    return [result for place in sorted(found) for result in found[place]]


def reward_rows(
    responses: Artifact, start: Start[list[dict[str, Any]], list[list[float]]], into: Path, actors: int | None
) -> Summary:
    """Write ``data``, the rows of `responses` with the column `rewards`, for a stage that scores or ranks.

    `start` yields the function from rows to a number for each response of each row. It gets one shard at a time: the
    unit of resuming.
    """
    rows = responses.dataset()
    shards = shards_of(len(rows), ROWS_PER_SHARD)
    files = [into / "shards" / f"{place:05d}.json" for place in range(len(shards))]
    missing = [place for place, file in enumerate(files) if not file.exists()]

    def asked(place: int) -> list[dict[str, Any]]:
        return list(rows.select_columns(["prompt", "responses"]).select(shards[place]))

    for place, found in spread(missing, asked, start, actors):
        write_json(files[place], found)
    rewards: list[list[float]] = [group for file in files for group in read_json(file)]
    groups = list(zip(rows["prompt_id"], rewards, strict=True))
    names = (f"prompt {prompt_id}, response {place}" for prompt_id, group in groups for place in range(len(group)))
    check_finite(chain.from_iterable(rewards), names)
    rows.add_column("rewards", rewards).save_to_disk(str(into / "data"))
    means = {"mean_reward": fmean(map(fmean, rewards)), "mean_best_reward": fmean(map(max, rewards))}
    return Summary(rows={"prompts": Rows(len(rows), len(rewards))}, metrics=means)
