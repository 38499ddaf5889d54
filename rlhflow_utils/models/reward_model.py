"""Scoring with a Bradley-Terry reward model (paper 2.2, eq. 4); it is trained in `training.py`.

Differences from the released code (`get_rewards.py`): responses are scored in batches of similar length instead of one
by one; nothing is truncated; text is never searched for a BOS string to cut out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.models.chat import Message, encode_conversation, load_tokenizer
from rlhflow_utils.models.forward import check_lengths, length_batches, load_model, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhflow_utils.guide.settings import ModelSettings
    from rlhflow_utils.guide.stage import Stage

Conversation = tuple[Sequence[Message], str]  # prompt messages, response text
PROMPTS_PER_SHARD = 1024  # the unit of resuming in `score_responses`


def score(
    model: str | Path,
    conversations: Iterable[Conversation],
    batch_tokens: int,
    model_settings: ModelSettings | None = None,
) -> list[float]:
    """The reward r(x, a) of every conversation, in the given order.

    Args:
        model: folder or id of a sequence classifier with one output.
        conversations: (prompt messages, response text).
        batch_tokens: padded tokens per forward pass; rewards do not depend on it.
        model_settings: the profile's `model` section; None takes the checkpoint's dtype.

    Raises:
        ValueError: a conversation is longer than the model's positions (nothing is truncated), or the model has no
            trained score head.
    """
    network, tokenizer = load_reward_model(model, model_settings)
    return score_loaded(network, tokenizer, conversations, batch_tokens)


def load_reward_model(
    model: str | Path, settings: ModelSettings | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer; the model pools its score at the rightmost token that is not padding."""
    network, tokenizer = load_model(model, "reward", settings), load_tokenizer(model, settings)
    network.config.pad_token_id = tokenizer.pad_token_id
    return network, tokenizer


def score_loaded(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    batch_tokens: int,
) -> list[float]:
    """`score` with a model that is loaded already.

    Every conversation ends with the end-of-turn token, where training pooled the score: also one whose response was
    cut off by the token limit.
    """
    import torch

    sequences = [encode_conversation(prompt, response, tokenizer) for prompt, response in conversations]
    lengths = [len(ids) for ids in sequences]
    check_lengths(lengths, network, "conversation")
    rewards = [0.0] * len(sequences)
    for batch in length_batches(lengths, batch_tokens):
        with torch.inference_mode():
            ids, mask = pad([sequences[i] for i in batch], int(tokenizer.pad_token_id), "right", network.device)
            values = network(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        for index, value in zip(batch, values, strict=True):
            rewards[index] = value
    return rewards


# --- the stage ----------------------------------------------------------------------------------------------------


def score_responses(stage: Stage) -> None:
    """Stage: a reward for every response.

    Reads `reward_model` and `model`. Inputs: `model` (the RM) and `responses` (rows of `generation.generate`). Writes
    ``data``: the same rows with the column `rewards`.
    """
    from datasets import load_from_disk

    rows = load_from_disk(str(stage.inputs["responses"] / "data"))
    folder = stage.inputs["model"]
    model = folder / "model" if (folder / "model").is_dir() else folder
    rewards = _score_in_shards(rows, model, stage)
    rows.add_column("rewards", rewards).save_to_disk(str(stage.out / "data"))
    stage.account("prompts", len(rows), len(rewards), {})
    prefix = f"{stage.name[:2]}.{stage.name[3:]}"
    stage.metric(f"{prefix}.mean_reward", _mean([_mean(group) for group in rewards]))
    stage.metric(f"{prefix}.mean_best_reward", _mean([max(group) for group in rewards]))


def _score_in_shards(rows: Any, model: Path, stage: Stage) -> list[list[float]]:
    from rlhflow_utils.guide.stage import write_json

    loaded = None
    rewards: list[list[float]] = []
    for start in range(0, len(rows), PROMPTS_PER_SHARD):
        shard = rows.select(range(start, min(start + PROMPTS_PER_SHARD, len(rows))))
        file = stage.out / "shards" / f"{start // PROMPTS_PER_SHARD:05d}.json"
        if not file.exists():
            loaded = loaded or load_reward_model(model, stage.profile.model)
            write_json(file, _score_rows(list(shard), loaded, stage.profile.reward_model.batch_tokens))
        rewards += _read_shard(file)
    return rewards


def _score_rows(
    rows: Sequence[Mapping[str, Any]], loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], batch_tokens: int
) -> list[list[float]]:
    conversations: list[Conversation] = [(row["prompt"], text) for row in rows for text in row["responses"]]
    flat = iter(score_loaded(*loaded, conversations, batch_tokens))
    return [[next(flat) for _ in row["responses"]] for row in rows]


def _read_shard(file: Path) -> list[list[float]]:
    import json

    rewards: list[list[float]] = json.loads(file.read_text(encoding="utf-8"))
    return rewards


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
