"""Scoring with a Bradley-Terry reward model (paper 2.2, eq. 4).

Differences from the released code (`get_rewards.py`): responses are scored in batches of similar length instead of one
by one; nothing is truncated; text is never searched for a BOS string to cut out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.guide.stage import Artifact, Summary, stage
from rlhflow_utils.models.chat import Message, encode_conversation, load_tokenizer
from rlhflow_utils.models.forward import Model, check_lengths, length_batches, load_model, pad, reward_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rlhflow_utils.guide.settings import ModelSettings, RewardModelSettings

Conversation = tuple[Sequence[Message], str]  # prompt messages, response text


@stage
def score_responses(
    reward_model: Model, responses: Artifact, settings: RewardModelSettings, model: ModelSettings, *, into: Path
) -> Summary:
    """A reward for every response: the rows of `responses` with the column `rewards`."""
    loaded = cache(partial(load_reward_model, reward_model, model))

    def compute(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
        conversations = [(row["prompt"], text) for row in rows for text in row["responses"]]
        flat = iter(score_loaded(*loaded(), conversations, settings.batch_tokens))
        return [[next(flat) for _ in row["responses"]] for row in rows]

    return reward_rows(responses, compute, into)


def score(
    model: Model, conversations: Iterable[Conversation], batch_tokens: int, settings: ModelSettings | None = None
) -> list[float]:
    """The reward r(x, a) of every conversation, in the given order.

    Args:
        model: a sequence classifier with one output.
        conversations: (prompt messages, response text).
        batch_tokens: padded tokens per forward pass; rewards do not depend on it.
        settings: the profile's `model` section; None takes the checkpoint's dtype.

    Raises:
        ValueError: a conversation is longer than the model's positions (nothing is truncated), or the model has no
            trained score head.
    """
    return score_loaded(*load_reward_model(model, settings), conversations, batch_tokens)


def load_reward_model(
    model: Model, settings: ModelSettings | None = None
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
