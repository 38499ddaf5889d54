"""Rendering and tokenising, with a tokenizer built here and templates of three families."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rlhflow_utils.models import chat
from rlhflow_utils.training.pretraining import train_tokenizer

PROMPT = [{"role": "user", "content": "Add 83 and 10."}]
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|assistant|>' }}"
    "\n{{ m['content'] }}<|system|>{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_BOS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["Add 83 and 10.", "so 93. the red cat sat on the mat"] * 20, 320)


def test_prompt_and_response_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (
        chat.render(PROMPT, tokenizer, add_generation_prompt=True)
        == "<|bos|><|user|>Add 83 and 10.<|end|><|assistant|>"
    )
    ids = chat.encode_conversation(PROMPT, "so 93.", tokenizer)
    assert tokenizer.decode(ids) == "<|bos|><|user|>Add 83 and 10.<|end|><|assistant|>so 93.<|end|>"
    assert ids.count(tokenizer.bos_token_id) == 1
    assert chat.stop_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_end_of_turn_is_the_templates_own(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = LLAMA3  # ends a turn with a token that is not EOS, as Llama-3 does
    end = tokenizer.convert_tokens_to_ids("<|system|>")
    assert chat.stop_token_ids(tokenizer) == [end, tokenizer.eos_token_id]
    assert chat.encode_response(PROMPT, "so 93.", tokenizer)[-1] == end


def test_template_without_bos_and_with_a_newline_after_the_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = NO_BOS
    ids = chat.encode_conversation(PROMPT, "so 93.", tokenizer)
    assert tokenizer.bos_token_id not in ids
    assert ids[-1] == tokenizer.eos_token_id, "the newline after the end of the turn is not part of the response"


def test_text_that_holds_a_special_token_keeps_its_own_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """The released scorer removed the BOS string anywhere in the content."""
    messages = [{"role": "user", "content": "What does <s> mean?"}]
    assert "What does <s> mean?" in tokenizer.decode(chat.encode_prompt(messages, tokenizer))


def test_response_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("so 93.", " leading space", "two\nlines", "naïve — “quotes” 🙂", "a  b"):
        assert chat.decode_response(chat.encode_response(PROMPT, text, tokenizer), tokenizer) == text


def test_tokenizers_that_would_break_a_stage_are_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="padding token must exist and differ from EOS"):
        chat.check_tokenizer(tokenizer, "m")
    tokenizer.pad_token = "<|pad|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(ValueError, match=r"writes BOS twice at the start; set model\.chat_template"):
        chat.check_tokenizer(tokenizer, "m")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat.check_tokenizer(tokenizer, "m")
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}x{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(ValueError, match="prefix of the conversation"):
        chat.check_tokenizer(tokenizer, "m")


def test_a_template_that_writes_no_end_of_turn_is_named(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    chat.check_tokenizer(tokenizer, "m")
    assert "no end of turn" not in caplog.text
    tokenizer.chat_template = "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}\n\n{% endfor %}" \
                              "{% if add_generation_prompt %}### assistant\n{% endif %}"  # fmt: skip
    chat.check_tokenizer(tokenizer, "m")
    assert f"m: the chat template writes no end of turn; {tokenizer.eos_token} is put behind each answer" in caplog.text
    assert chat.encode_response(PROMPT, "Yes.", tokenizer)[-1] == tokenizer.eos_token_id


def test_prompt_key_is_blind_to_case_and_spacing_and_nothing_else() -> None:
    one = chat.prompt_key([{"role": "user", "content": "Add  83\nand 10."}])
    assert one == chat.prompt_key([{"role": "user", "content": "add 83 and 10."}])
    assert one != chat.prompt_key([{"role": "system", "content": "add 83 and 10."}])
    assert one != chat.prompt_key([{"role": "user", "content": "add 83 and 11."}])
    assert len(one) == 16
