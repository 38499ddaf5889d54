"""Every prompt and response is rendered and tokenised here: in training, generation, scoring and evaluation alike.

They therefore agree on: one BOS at the start where the chat template has one; the same end-of-turn token in training,
stopping and scoring; a padding token that no conversation holds (transformers pools a reward model's score at the last
token that is not padding); text that spells a special token stays text; a system turn that the template does not take
opens the first user turn.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlhflow_utils.models.forward import Model, hub_arguments, model_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhflow_utils.guide.settings import ModelSettings

Message = dict[str, str]
IGNORED = -100  # label of tokens outside the loss
PROBE: list[Message] = [{"role": "user", "content": "Hello."}]
ANSWER: Message = {"role": "assistant", "content": "Hello."}
SYSTEM: Message = {"role": "system", "content": "Be brief."}
CUT = "\ufdd0"  # in a rendered text: the tokens on both sides are apart (a code point that Unicode keeps from texts)
# Soft hyphen, marks of width zero (U+200B to U+200D, U+2060, U+FEFF, ...) and of direction: str.strip() leaves them.
INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_say_once = lru_cache(logging.getLogger(__name__).warning)


class TemplateRefusal(ValueError):
    """A chat template does not take the turns of a conversation (`raise_exception` in its Jinja)."""


def load_tokenizer(
    model: Model, settings: ModelSettings | None = None, own_template: bool = False
) -> PreTrainedTokenizerBase:
    """A model's checked tokenizer. Settings replace its chat template (`own_template`: if absent) and padding token."""
    from transformers import AutoTokenizer

    path = model_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **hub_arguments(model, settings))
    except (OSError, ValueError) as error:
        if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "tokenizer_config.json")):
            raise ValueError(f"{path}: no tokenizer in this folder; tokenizer.save_pretrained puts it there") from error
        raise
    if settings and settings.chat_template and not (own_template and tokenizer.chat_template):
        tokenizer.chat_template = settings.chat_template
    pad_token, known = settings.pad_token if settings else None, tokenizer.get_vocab()
    if pad_token and not own_template and pad_token not in known:
        raise ValueError(f"{path}: model.pad_token {pad_token!r} is not in the tokenizer's vocabulary")
    if pad_token in known:
        tokenizer.pad_token = pad_token
    elif tokenizer.chat_template and tokenizer.pad_token_id in (None, *stop_token_ids(tokenizer)):
        tokenizer.pad_token = unused_token(tokenizer)
        if tokenizer.pad_token:
            _say_once(f"{path}: padding is {tokenizer.pad_token}, since no token is set apart for it (model.pad_token)")
    check_tokenizer(tokenizer, path)
    return tokenizer


def unused_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token that no conversation holds: the template does not write it, and texts cannot."""
    template, unknown = str(tokenizer.chat_template), tokenizer.unk_token
    written = template + render([SYSTEM, *PROBE, ANSWER, *PROBE], tokenizer, add_generation_prompt=True)
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    free = [t for t in special if t not in (tokenizer.bos_token, tokenizer.eos_token, unknown) and t not in written]
    if unknown != tokenizer.eos_token and unknown not in tokenizer.tokenize("\x01 \U0010fffd"):
        free.append(str(unknown))  # Llama-2: nothing is unknown, since single bytes are in the vocabulary
    return next((token for token in free if "pad" in token.lower()), free[0] if free else None)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ValueError, naming the fix, where a tokenizer would break a later stage."""
    if not tokenizer.chat_template:
        raise ValueError(f"{name}: the tokenizer has no chat template; set model.chat_template to a Jinja template")
    if tokenizer.pad_token_id in (None, *stop_token_ids(tokenizer)):
        raise ValueError(
            f"{name}: the padding token must exist and differ from EOS and the end of turn, but is "
            f"{tokenizer.pad_token!r}; set model.pad_token to an unused token of the vocabulary"
        )
    if encode_prompt(PROBE, tokenizer)[:2] == [tokenizer.bos_token_id] * 2:
        raise ValueError(f"{name}: the chat template writes BOS twice at the start; set model.chat_template to another")
    end = encode_response(PROBE, "Hello.", tokenizer)[-1]
    if end not in encode_rendered(PROBE, "Hello.", tokenizer)[-2:]:  # a line break may follow
        _say_once(f"{name}: the chat template writes no end of turn; {tokenizer.decode(end)} is put behind each answer")
    if not _takes_system_turn(tokenizer, str(tokenizer.chat_template)):
        _say_once(f"{name}: model.chat_template takes no system turn; its text opens the first user turn")


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """The conversation as the text the model sees, special tokens included."""
    if messages and messages[0]["role"] == "system" and not _takes_system_turn(tokenizer, str(tokenizer.chat_template)):
        texts = [message["content"] for message in messages[:2]]
        messages = [{"role": "user", "content": "\n\n".join(texts)}, *messages[2:]]
    return _apply_template(messages, tokenizer, add_generation_prompt)


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, up to and including the generation prompt."""
    return _encode(render(_cut_special(messages, tokenizer), tokenizer, add_generation_prompt=True), tokenizer)


def encode_turn(
    prompt: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """`encode_prompt(prompt)`, and the token ids that follow it: the response and its end-of-turn token.

    They are the rendering's ids, unless a merge reaches across the border: then the response is tokenised on its own,
    as when a model generates it.
    """
    conversation = _cut_special([*prompt, {"role": "assistant", "content": response}], tokenizer)
    start = render(conversation[:-1], tokenizer, add_generation_prompt=True)
    whole = render(conversation, tokenizer)
    if not whole.startswith(start):
        raise ValueError(
            f"{tokenizer.name_or_path}: the chat template does not render a prompt as a prefix of the conversation; "
            "set model.chat_template to one that does"
        )
    stops, text = stop_token_ids(tokenizer), whole[len(start) :].rstrip()
    if not text.endswith(tuple(tokenizer.convert_ids_to_tokens(stops))):
        text = whole[len(start) :].rstrip("\n")
    before, ids = _encode(start, tokenizer), _encode(start + text, tokenizer)
    ids = ids[len(before) :] if ids[: len(before)] == before else _encode_inside(text, tokenizer)
    if not ids or ids[-1] not in stops:
        ids.append(stops[0])
    return before, ids


def encode_response(prompt: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The second part of `encode_turn`."""
    return encode_turn(prompt, response, tokenizer)[1]


def encode_conversation(prompt: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Both parts of `encode_turn` in one list."""
    before, ids = encode_turn(prompt, response, tokenizer)
    return before + ids


def encode_rendered(prompt: Sequence[Message], response: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A conversation to the end of what the template writes, which may go on behind the end of turn."""
    messages = _cut_special([*prompt, {"role": "assistant", "content": response}], tokenizer)
    return _encode(render(messages, tokenizer), tokenizer)


def accepted(encode: Callable[..., Any], *arguments: Any) -> Any:
    """What `encode` gives, or None where the template refuses the turns: such a row is `refused_by_template`."""
    try:
        return encode(*arguments)
    except TemplateRefusal as error:
        _say_once(f"dropped: {error}")
        return None


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a response: the template's end of turn (Llama-3: ``<|eot_id|>``), then EOS where it differs."""
    return list(_stop_token_ids(tokenizer, str(tokenizer.chat_template)))


@lru_cache(maxsize=16)  # asked for every response; rendering costs more than encoding a short response
def _stop_token_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    whole = render([*PROBE, ANSWER], tokenizer).rstrip()
    eos = int(tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id)  # BERT has no EOS
    last = _encode(whole, tokenizer)[-1]
    # Not `all_special_ids`: Llama-3's <|eot_id|> has no name there.
    return tuple(dict.fromkeys([last if last in tokenizer.added_tokens_decoder else eos, eos]))


@lru_cache(maxsize=16)
def _takes_system_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a system turn is neither refused nor left out, and stays where it is once an answer follows."""
    try:
        start = _apply_template([SYSTEM, *PROBE], tokenizer, add_generation_prompt=True)
        return SYSTEM["content"] in start and _apply_template([SYSTEM, *PROBE, ANSWER], tokenizer).startswith(start)
    except ValueError:
        return False


def decode_response(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of generated ids, without special tokens."""
    ids = [token for token in ids if token not in stop_token_ids(tokenizer)]  # which need not be marked as special
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def normal_text(text: str) -> str:
    """A text as texts are compared: blind to Unicode's forms (NFKC), invisible marks, case and spacing."""
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.casefold().split())


def prompt_key(messages: Sequence[Message]) -> str:
    """A stable 16-digit hash of a prompt's roles and `normal_text`s; splits and deduplication go by it."""
    normal = [[m["role"], normal_text(m["content"])] for m in messages]
    return hashlib.sha256(json.dumps(normal, ensure_ascii=False).encode()).hexdigest()[:16]


def _apply_template(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False
) -> str:
    from jinja2 import TemplateError

    keywords = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return str(tokenizer.apply_chat_template(list(messages), **keywords))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        what = f"{tokenizer.name_or_path}: the chat template refuses the turns [{roles}]: {error}"
        raise TemplateRefusal(f"{what}; set model.chat_template to one that takes them") from error


def _cut_special(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The messages with a `CUT` after the first letter of what spells a special token: a text cannot end its turn."""
    special = special_tokens(tokenizer)
    return [
        {**m, "content": special.sub(lambda found: found[0][0] + CUT + found[0][1:], m["content"])} for m in messages
    ]


@lru_cache(maxsize=16)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What finds the spelling of a special token, or of one that ends a turn, in a text."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= {*tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer))}
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    first, *rest = text.split(CUT)
    # The template has written BOS already: adding special tokens again would double it.
    ids = [int(i) for i in tokenizer(first, add_special_tokens=False)["input_ids"]]
    for part in rest:
        ids += _encode_inside(part, tokenizer)
    return ids


def _encode_inside(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that does not begin a sequence: without the space that SentencePiece puts before a sequence."""
    line, ids = _encode("\n", tokenizer), _encode("\n" + text, tokenizer)
    return ids[len(line) :] if ids[: len(line)] == line else _encode(text, tokenizer)
