"""The pairwise preference model (paper 2.2, after SLiC-HF): which of two responses is better, as one next token.

The question is an ordinary user turn, ``[CONTEXT] {x} [RESPONSE A] {a1} [RESPONSE B] {a2}``; the answer is the token
``A`` or ``B``. Training puts the two responses in a random order; at inference both orders are asked and averaged.

Differences from the released code: the random order is a hash of the row, the same for any number of workers; the two
logits are read right after the generation prompt, wherever the template puts it; comparisons run in batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.guide.stage import Artifact, Summary, stage
from rlhflow_utils.models.chat import IGNORED, Message, encode_prompt, encode_turn, load_tokenizer
from rlhflow_utils.models.forward import Model, in_batches, in_shards, load_model, next_token_logits, reward_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from rlhflow_utils.guide.settings import ModelSettings, PreferenceModelSettings

Comparison = tuple[Sequence[Message], str, str]  # prompt messages, response a, response b
Compare = Callable[[Sequence[Comparison]], Sequence[float | None]]  # P(a is better); None: too long for the model
Prompts = Sequence[Sequence[Message]]


def format_comparison(prompt: Sequence[Message], response_a: str, response_b: str) -> list[Message]:
    """The question as a conversation of one user turn; the context's turns are written out as plain text."""
    context = "\n\n".join(f"<turn> {message['role']}\n {message['content']}" for message in prompt)
    return [{"role": "user", "content": f"[CONTEXT] {context} [RESPONSE A] {response_a} [RESPONSE B] {response_b}"}]


def answer_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What an answer opens with (Qwen3: an empty thought; mostly nothing), and the ids of ``A`` and ``B`` after it."""
    question = format_comparison([{"role": "user", "content": "Hello."}], "Hi.", "Go.")
    a, b = (encode_turn(question, label, tokenizer)[1] for label in "AB")
    places = [place for place, (one, other) in enumerate(zip(a, b, strict=False)) if one != other]
    if len(a) != len(b) or len(places) != 1:
        raise ValueError(
            f"{tokenizer.name_or_path}: the answers 'A' and 'B' must differ in one token, but are {a} and {b}; set "
            "model.chat_template to one that writes an answer as it is"
        )
    return a[: places[0]], [a[places[0]], b[places[0]]]


def training_tokens(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> dict[str, Any]:
    """A standard preference row as question and answer, with the loss on the answer and the end of turn alone.

    The seed, `row_id` and `source` decide whether the chosen response stands at A. `identical`: the question reads
    the same in both orders.
    """
    chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
    first = chosen_first(seed, f"{row['source']}:{row['row_id']}")
    orders = [(chosen, rejected), (rejected, chosen)]
    question, swapped = [format_comparison(row["prompt"], *order) for order in (orders if first else orders[::-1])]
    prompt, answer = encode_turn(question, "A" if first else "B", tokenizer)
    identical = prompt == encode_prompt(swapped, tokenizer)
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer, "identical": identical}


def chosen_first(seed: int, row_id: str) -> bool:
    """A fair coin for one row, the same in every process and every order of rows."""
    return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[0] % 2 == 0


def preference_probability(
    model: Model, comparisons: Iterable[Comparison], batch_tokens: int, settings: ModelSettings | None = None,
    actors: int | None = None, folder: Path | None = None,
) -> list[float | None]:  # fmt: skip
    """P(a ≻ b | x) of every comparison; see `load_compare`, for `actors` and `folder` `in_shards`."""
    return in_shards(list(comparisons), partial(load_compare, model, batch_tokens, settings), actors, folder)


def load_compare(model: Model, batch_tokens: int, settings: ModelSettings | None = None) -> Compare:
    """`preference_probability` with the model loaded once: a trained PM, or an instruct model that is only prompted.

    Both orders are averaged, (p(a, b) + 1 - p(b, a)) / 2, so that P(a ≻ b) + P(b ≻ a) = 1. None: one is too long.
    """
    network, tokenizer = load_model(model, "causal", settings), load_tokenizer(model, settings, own_template=True)
    opening, labels = answer_ids(tokenizer)

    def forward(sequences: list[Sequence[int]]) -> torch.Tensor:
        """P(A) against B, right after the generation prompt and what every answer opens with."""
        logits = next_token_logits(network, sequences, int(tokenizer.pad_token_id))
        return logits[:, labels].softmax(-1)[:, 0]

    def compare(comparisons: Sequence[Comparison]) -> list[float | None]:
        both = [order for x, a, b in comparisons for order in (format_comparison(x, a, b), format_comparison(x, b, a))]
        questions = [encode_prompt(question, tokenizer) + opening for question in both]
        prompts = [x for x, _, _ in comparisons for _ in range(2)]
        p = in_batches(network, questions, batch_tokens, forward, "comparison", prompts)
        # Exactly 0.5 where both orders agree.
        return [None if a is None or b is None else 0.5 + (a - b) / 2 for a, b in zip(p[::2], p[1::2], strict=True)]

    return compare


@stage
def rank_responses(
    preference_model: Model, responses: Artifact, settings: PreferenceModelSettings, tournament: str,
    model: ModelSettings, actors: int | None = None, *, into: Path,
) -> Summary:  # fmt: skip
    """Rank the responses to each prompt: the rows of `responses` with the column `rewards`.

    ``round_robin`` gives a response its mean P(better) over the others; ``knock_out`` gives 1.0 to the winner and 0.0
    to the others.
    """

    def load() -> Callable[[list[dict[str, Any]]], list[list[float | None]]]:
        compare = load_compare(preference_model, settings.batch_tokens, model)

        def compute(rows: list[dict[str, Any]]) -> list[list[float | None]]:
            prompts, texts = [row["prompt"] for row in rows], [row["responses"] for row in rows]
            if tournament == "round_robin":
                return round_robin(compare, prompts, texts)
            winners = zip(knock_out(compare, prompts, texts), texts, strict=True)
            places = ((winner, range(len(group))) for winner, group in winners)
            return [[None if winner is None else float(place == winner) for place in every] for winner, every in places]

        return compute

    return reward_rows(responses, load, into, actors)


def knock_out(compare: Compare, prompts: Prompts, responses: Sequence[Sequence[str]]) -> list[int | None]:
    """Index of the best of n responses, per prompt: n - 1 comparisons (paper 2.2), one batch per round.

    A tied match is won by the earlier response; the last of an odd round goes through unmatched. None: one is too long.
    """
    left, undecided = [list(range(len(group))) for group in responses], set[int]()
    while any(len(indices) > 1 for indices in left):
        matches = [
            (row, a, b) for row, indices in enumerate(left) for a, b in zip(indices[0::2], indices[1::2], strict=False)
        ]
        p = compare([(prompts[row], responses[row][a], responses[row][b]) for row, a, b in matches])
        winners: list[list[int]] = [[] for _ in left]
        for (row, a, b), value in zip(matches, p, strict=True):
            winners[row].append(a if value is None or value >= 0.5 else b)
            undecided |= {row} if value is None else set()
        left = [winners[row] + ([indices[-1]] if len(indices) % 2 else []) for row, indices in enumerate(left)]
    return [None if row in undecided else indices[0] for row, indices in enumerate(left)]


def round_robin(compare: Compare, prompts: Prompts, responses: Sequence[Sequence[str]]) -> list[list[float | None]]:
    """Each response's mean P(better) over the others, per prompt (n (n - 1) / 2 comparisons); None: one is too long."""
    matches = [
        (row, a, b) for row, group in enumerate(responses) for a in range(len(group)) for b in range(a + 1, len(group))
    ]
    p = compare([(prompts[row], responses[row][a], responses[row][b]) for row, a, b in matches])
    scores = [[0.0] * len(group) for group in responses]
    for (row, a, b), value in zip(matches, p, strict=True):
        scores[row][a] += math.nan if value is None else value
        scores[row][b] += math.nan if value is None else 1 - value
    return [[None if math.isnan(score) else score / max(1, len(group) - 1) for score in group] for group in scores]
