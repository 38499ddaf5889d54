"""Every prompt and response is rendered and tokenised here: in training, generation, scoring and evaluation alike.

They therefore agree on three things: exactly one BOS where the chat template has one; the same end-of-turn token in
training, stopping and scoring; a padding token that is not the end-of-turn token (transformers pools a reward model's
score at the last token that is not padding).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rlhflow_utils.models.forward import Model, hub_arguments, model_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhflow_utils.guide.settings import ModelSettings

Message = dict[str, str]
IGNORED = -100  # label of tokens outside the loss
PROBE: list[Message] = [{"role": "user", "content": "Hello."}]


def load_tokenizer(model: Model, settings: ModelSettings | None = None) -> PreTrainedTokenizerBase:
    """A model's checked tokenizer; `chat_template` and `pad_token` of the settings replace its own."""
    from transformers import AutoTokenizer

    path = model_path(model)
    tokenizer = AutoTokenizer.from_pretrained(path, **hub_arguments(model, settings))
    if settings and settings.chat_template:
        tokenizer.chat_template = settings.chat_template
    if settings and settings.pad_token:
        tokenizer.pad_token = settings.pad_token
    check_tokenizer(tokenizer, path)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ValueError, naming the fix, where a tokenizer would break a later stage."""
    if not tokenizer.chat_template:
        raise ValueError(f"{name}: the tokenizer has no chat template; set model.chat_template to a Jinja template")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"{name}: the padding token must exist and differ from EOS ({tokenizer.eos_token!r}); "
            "set model.pad_token to an unused token of the vocabulary"
        )
    ids = encode_prompt(PROBE, tokenizer)
    if tokenizer.bos_token_id is not None and ids.count(tokenizer.bos_token_id) > 1:
        raise ValueError(f"{name}: the chat template writes BOS {ids.count(tokenizer.bos_token_id)} times, not once")
    encode_response(PROBE, "Hello.", tokenizer)


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """The conversation as the text the model sees, special tokens included."""
    keywords = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    return str(tokenizer.apply_chat_template(list(messages), **keywords))


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, up to and including the generation prompt."""
    return _encode(render(messages, tokenizer, add_generation_prompt=True), tokenizer)


def encode_response(prompt: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that follow `encode_prompt(prompt)`: the response and its end-of-turn token.

    The response is tokenised on its own: no merge reaches across the border, as when a model generates it.
    """
    start = render(prompt, tokenizer, add_generation_prompt=True)
    whole = render([*prompt, {"role": "assistant", "content": response}], tokenizer)
    if not whole.startswith(start):
        raise ValueError(
            f"{tokenizer.name_or_path}: the chat template does not render a prompt as a prefix of the conversation; "
            "set model.chat_template to one that does"
        )
    ids = _encode(whole[len(start) :].rstrip("\n"), tokenizer)
    if not ids or ids[-1] not in stop_token_ids(tokenizer):
        ids.append(stop_token_ids(tokenizer)[0])
    return ids


def encode_conversation(prompt: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`encode_prompt` followed by `encode_response`."""
    return encode_prompt(prompt, tokenizer) + encode_response(prompt, response, tokenizer)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the template's end of turn (Llama-3: ``<|eot_id|>``), then EOS where it differs."""
    return list(_stop_token_ids(tokenizer, str(tokenizer.chat_template)))


@lru_cache(maxsize=16)  # asked for every response; rendering costs more than encoding a short response
def _stop_token_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    whole = render([*PROBE, {"role": "assistant", "content": "Hello."}], tokenizer).rstrip("\n")
    last, eos = _encode(whole, tokenizer)[-1], int(tokenizer.eos_token_id)
    return tuple(dict.fromkeys([last if last in tokenizer.all_special_ids else eos, eos]))


def decode_response(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of generated ids, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def prompt_key(messages: Sequence[Message]) -> str:
    """A stable 16-digit hash of a prompt, blind to case and spacing; splits and deduplication go by it."""
    normal = [[m["role"], " ".join(m["content"].split()).casefold()] for m in messages]
    return hashlib.sha256(json.dumps(normal, ensure_ascii=False).encode()).hexdigest()[:16]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # The template has written BOS already: adding special tokens again would double it.
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
