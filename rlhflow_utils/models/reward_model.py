"""Scoring with a Bradley-Terry reward model (paper 2.2, eq. 4).

Differences from the released code (`get_rewards.py`): responses are scored in batches of similar length instead of one
by one; nothing is truncated; text is never searched for a BOS string to cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.guide.stage import Artifact, Summary, stage
from rlhflow_utils.models.chat import Message, accepted, encode_conversation, encode_rendered, load_tokenizer
from rlhflow_utils.models.forward import Model, count_too_long, in_batches, in_shards, load_model, pad, reward_rows

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from rlhflow_utils.guide.settings import ModelSettings, RewardModelSettings

Conversation = tuple[Sequence[Message], str]  # prompt messages, response text


@stage
def score_responses(
    reward_model: Model, responses: Artifact, settings: RewardModelSettings, model: ModelSettings,
    actors: int | None = None, keep: bool = False, *, into: Path,
) -> Summary:  # fmt: skip
    """A reward for every response: the rows of `responses` with the column `rewards`; `keep` as in `reward_rows`."""

    def load() -> Callable[[list[dict[str, Any]]], list[list[float | None]]]:
        scorer = load_scorer(reward_model, settings.batch_tokens, model, settings.output)

        def compute(rows: list[dict[str, Any]]) -> list[list[float | None]]:
            flat = iter(scorer((row["prompt"], text) for row in rows for text in row["responses"]))
            return [[next(flat) for _ in row["responses"]] for row in rows]

        return compute

    return reward_rows(responses, load, into, actors, keep, partial(count_unscored, reward_model, model))


def count_unscored(
    model: Model, settings: ModelSettings, prompts: Sequence[Sequence[Message]], scored: set[int], by_rm: bool = True
) -> dict[str, int]:
    """Rows by reason that have no score: their places are not in `scored`. Only an RM reads turns as they are."""
    without = [prompt for place, prompt in enumerate(prompts) if place not in scored]
    tokenizer = load_tokenizer(model, settings, own_template=True) if without and by_rm else None
    refused = sum(accepted(encode_rendered, prompt, "", tokenizer) is None for prompt in without if tokenizer)
    return count_too_long(len(prompts), len(scored), refused)


def score(
    model: Model, conversations: Sequence[Conversation], batch_tokens: int, settings: ModelSettings | None = None,
    output: int | str | None = None, actors: int | None = None, folder: Path | None = None,
) -> list[float | None]:  # fmt: skip
    """The reward of every conversation, in the given order, by `load_scorer`; for the rest see `in_shards`."""
    return in_shards(conversations, partial(load_scorer, model, batch_tokens, settings, output), actors, folder)


def load_scorer(
    model: Model, batch_tokens: int, settings: ModelSettings | None = None, output: int | str | None = None
) -> Callable[[Iterable[Conversation]], list[float | None]]:
    """The reward r(x, a) of every conversation, in the given order; None: too long for the model, or refused by it.

    It does not depend on `batch_tokens`, the padded tokens of a forward pass. An RM's own chat template goes first. For
    one trained here, conversations end with the end-of-turn token, where training pooled the score: also where the
    token limit cut the response off. Any other reads all that its template writes. `output`: which of several it is.
    """
    network, tokenizer = load_model(model, "reward", settings), load_tokenizer(model, settings, own_template=True)
    network.config.pad_token_id = tokenizer.pad_token_id  # the score is pooled at the last token that is not padding
    place, ours = find_output(network.config, output), getattr(network.config, "scored_at_end_of_turn", False)
    encode = encode_conversation if ours else encode_rendered

    def forward(sequences: list[Sequence[int]]) -> torch.Tensor:
        ids, mask = pad(sequences, network.config.pad_token_id, "right", network.device)
        logits: torch.Tensor = network(input_ids=ids, attention_mask=mask).logits
        return logits[:, place]

    def scorer(conversations: Iterable[Conversation]) -> list[float | None]:
        pairs = list(conversations)
        sequences = [accepted(encode, prompt, response, tokenizer) for prompt, response in pairs]
        return in_batches(network, sequences, batch_tokens, forward, "conversation", [prompt for prompt, _ in pairs])

    return scorer


def find_output(config: PretrainedConfig, output: int | str | None) -> int:
    """Which output of a sequence classifier is the reward: its only one, or the one with this index or name."""
    names = [str(config.id2label[place]) for place in range(config.num_labels)]
    place = 0 if len(names) == 1 else names.index(str(output)) if output in names else output
    if not isinstance(place, int) or place not in range(len(names)):
        raise ValueError(
            f"{config.name_or_path} has the outputs {', '.join(names)}, reward_model.output is {output!r}: set it to "
            "the name, or the index from 0, of the one that is the reward"
        )
    return place
