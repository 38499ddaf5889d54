"""Rows to token ids, for each of the training objectives.

TRL would tokenise by itself; doing it here, through `chat.py`, keeps one tokenisation for training, generation and
scoring, and lets every dropped row be counted: TRL drops rows over `max_length` with no more than a progress bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from rlhflow_utils.chat import IGNORED, encode_conversation, encode_prompt, encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenise = Callable[[dict[str, Any]], dict[str, Any]]


def text_rows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Language-modelling rows (`input_ids`, `labels`) from plain text: BOS where the tokenizer has one, text, EOS."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ids = [[*start, *row, tokenizer.eos_token_id] for row in encoded]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def sft_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, completion_only: bool) -> dict[str, Any]:
    """SFT row: a conversation under `messages`, the loss on every assistant turn or on everything."""
    messages = row["messages"]
    if not completion_only:
        whole = encode_conversation(messages[:-1], messages[-1]["content"], tokenizer)
        return {"input_ids": whole, "labels": whole}
    ids: list[int] = []
    labels: list[int] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(messages[:index], tokenizer)
        response = encode_response(messages[:index], message["content"], tokenizer)
        labels = labels + [IGNORED] * (len(prompt) - len(labels)) + response
        ids = prompt + response
    return {"input_ids": ids, "labels": labels}


def reward_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """BT row: the two whole conversations (eq. 4 compares r(x, a_w) with r(x, a_l))."""
    prompt = encode_prompt(row["prompt"], tokenizer)
    return {
        f"{side}_ids": prompt + encode_response(row["prompt"], row[side][-1]["content"], tokenizer)
        for side in ("chosen", "rejected")
    }


def dpo_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """DPO row (eq. 5). Token ids that a policy generated are used as they are, text is tokenised."""
    out = {"prompt_ids": encode_prompt(row["prompt"], tokenizer)}
    for side in ("chosen", "rejected"):
        ids = row.get(f"{side}_ids")
        out[f"{side}_ids"] = ids or encode_response(row["prompt"], row[side][-1]["content"], tokenizer)
    return out


def row_length(row: dict[str, Any]) -> int:
    """Tokens of the longest sequence that a row holds."""
    if "input_ids" in row:
        return len(row["input_ids"])
    prompt = len(row.get("prompt_ids", []))
    return prompt + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def tokenise(rows: Dataset, function: Tokenise, max_length: int) -> tuple[Dataset, dict[str, int]]:
    """Apply a row function and drop what is longer than `max_length` tokens.

    Returns:
        The tokenised rows with a `length` column (tokens), and the count dropped under `too_long`.
    """

    def with_length(row: dict[str, Any]) -> dict[str, Any]:
        tokens = function(row)
        return {**tokens, "length": row_length(tokens)}

    mapped = rows.map(with_length, remove_columns=rows.column_names, load_from_cache_file=False)
    kept = mapped.select([i for i, length in enumerate(mapped["length"][:]) if length <= max_length])
    return kept, {"too_long": len(mapped) - len(kept)}
