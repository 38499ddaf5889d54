"""Scoring with a Bradley-Terry reward model (paper 2.2, eq. 4).

Differences from the released code (`get_rewards.py`): responses are scored in batches of similar length instead of one
by one; nothing is truncated; text is never searched for a BOS string to cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.guide.stage import Artifact, Summary, stage
from rlhflow_utils.models.chat import Message, encode_conversation, load_tokenizer
from rlhflow_utils.models.forward import Model, TokenIds, in_batches, in_shards, load_model, pad, reward_rows

if TYPE_CHECKING:
    import torch

    from rlhflow_utils.guide.settings import ModelSettings, RewardModelSettings

Conversation = tuple[Sequence[Message], str]  # prompt messages, response text


@stage
def score_responses(
    reward_model: Model, responses: Artifact, settings: RewardModelSettings, model: ModelSettings,
    actors: int | None = None, *, into: Path,
) -> Summary:  # fmt: skip
    """A reward for every response: the rows of `responses` with the column `rewards`."""

    def start() -> nullcontext[Callable[[list[dict[str, Any]]], list[list[float]]]]:
        scorer = load_scorer(reward_model, settings.batch_tokens, model)

        def compute(rows: list[dict[str, Any]]) -> list[list[float]]:
            flat = iter(scorer((row["prompt"], text) for row in rows for text in row["responses"]))
            return [[next(flat) for _ in row["responses"]] for row in rows]

        return nullcontext(compute)

    return reward_rows(responses, start, into, actors)


def score(
    model: Model, conversations: Iterable[Conversation], batch_tokens: int, settings: ModelSettings | None = None,
    actors: int | None = None,
) -> list[float]:  # fmt: skip
    """The reward r(x, a) of every conversation, in the given order; see `load_scorer`."""
    return in_shards(list(conversations), lambda: nullcontext(load_scorer(model, batch_tokens, settings)), actors)


def load_scorer(
    model: Model, batch_tokens: int, settings: ModelSettings | None = None
) -> Callable[[Iterable[Conversation]], list[float]]:
    """`score` with the model loaded once; rewards do not depend on `batch_tokens`, the padded tokens of a forward pass.

    Every conversation ends with the end-of-turn token, where training pooled the score: also one whose response was
    cut off by the token limit.
    """
    network, tokenizer = load_model(model, "reward", settings), load_tokenizer(model, settings)
    network.config.pad_token_id = tokenizer.pad_token_id  # the score is pooled at the last token that is not padding

    def forward(sequences: list[TokenIds]) -> torch.Tensor:
        ids, mask = pad(sequences, network.config.pad_token_id, "right", network.device)
        logits: torch.Tensor = network(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float()

    def scorer(conversations: Iterable[Conversation]) -> list[float]:
        pairs = list(conversations)
        sequences = [encode_conversation(prompt, response, tokenizer) for prompt, response in pairs]
        return in_batches(network, sequences, batch_tokens, forward, "conversation", [prompt for prompt, _ in pairs])

    return scorer
