"""The tiny base model: tokenizer, chat template, weights, pretraining."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import flip_a_bit
from transformers import PreTrainedTokenizerFast

from rlhflow_utils.evaluation.base_model import check_base_model, make_base_model
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import relative
from rlhflow_utils.training import pretraining
from rlhflow_utils.training.pretraining import build_model, train_tokenizer

TEXTS = ["What is 37+45?\n37+45=82, so 82.", "The pet of Zorn is cat. The pet of Mira is dog."] * 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 320)


def test_digits_are_single_tokens_and_words_take_their_space(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("The pet of 3745") == ["The", "Ġpet", "Ġof", "Ġ", "3", "7", "4", "5"]


@pytest.mark.parametrize("text", ["plain", "née Ünïcode 漢", " leading\n\ttabs  two  spaces", "", "\u200b0123456789"])
def test_nothing_is_unknown(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    for token in ("<|system|>", "<|user|>", "<|assistant|>"):
        assert tokenizer.tokenize(token) == [token]
    assert tokenizer("cat")["input_ids"] == tokenizer("cat", add_special_tokens=False)["input_ids"]


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    prompt = "<|bos|><|system|>Be brief.<|end|><|user|>Hi.<|end|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == prompt
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt + "<|assistant|>"
    )


def test_tokenizer_is_deterministic_and_survives_saving(tokenizer: PreTrainedTokenizerFast, tmp_path) -> None:
    again = train_tokenizer(iter(TEXTS), 320)
    assert again.get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded("The pet 42")["input_ids"] == tokenizer("The pet 42")["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template


def test_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 200"):
        train_tokenizer(TEXTS, 200)


def test_model_is_tied_float32_and_seeded(tokenizer: PreTrainedTokenizerFast) -> None:
    def build(seed: int):
        return build_model(
            tokenizer, seed, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
            max_position_embeddings=128,
        )  # fmt: skip

    state = torch.get_rng_state()
    first, second, other = build(0), build(0), build(1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = first.model.layers[1].mlp.up_proj.weight
    assert torch.equal(weights, second.model.layers[1].mlp.up_proj.weight)
    assert not torch.equal(weights, other.model.layers[1].mlp.up_proj.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert weights.dtype == torch.float32
    assert first.config.pad_token_id == tokenizer.pad_token_id
    # Embeddings, per block four attention and three MLP matrices and two norms, and the last norm.
    assert sum(p.numel() for p in first.parameters()) == len(tokenizer) * 32 + 2 * (4 * 32**2 + 3 * 32 * 64 + 64) + 32


def test_a_skipped_stage_imports_nothing_heavy() -> None:
    code = (
        "import sys, rlhflow_utils.training.stages; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- pretraining ----------------------------------------------------------------------------------------------------

SMALL = {
    "base_model.vocab_size": 400, "base_model.tokens": 30_000, "base_model.blocks_per_batch": 2,
    "base_model.block_size": 64, "base_model.architecture": {
        "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2,
        "max_position_embeddings": 512, "initializer_range": 0.06,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("tiny", SMALL)


def test_a_stopped_pretraining_goes_on_as_if_it_had_not_been(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert profile.base_model is not None
    monkeypatch.setattr(pretraining, "STEPS_PER_CHECKPOINT", 100)
    documents = pretraining.documents_of(None, profile.world)
    undisturbed = pretraining.pretrain(documents, profile.base_model, 0, tmp_path / "whole")
    assert undisturbed["history"][-1]["loss"] < undisturbed["history"][0]["loss"] - 1
    step = pretraining._train_step

    def killed(model: Any, optimizer: Any, ids: Any) -> float:
        calls.append(1)
        if len(calls) == 150:
            raise KeyboardInterrupt
        return step(model, optimizer, ids)

    calls: list[int] = []
    monkeypatch.setattr(pretraining, "_train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(documents, profile.base_model, 0, tmp_path / "stopped")
    [checkpoint] = (tmp_path / "stopped").glob("checkpoint*")
    shutil.copytree(tmp_path / "stopped", tmp_path / "damaged")
    damaged = tmp_path / "damaged" / checkpoint.name
    flip_a_bit(damaged)
    with pytest.raises(ValueError, match=re.escape(f"{relative(damaged)} is damaged: delete it and run again")):
        pretraining.pretrain(documents, profile.base_model, 0, tmp_path / "damaged")
    resumed = pretraining.pretrain(documents, profile.base_model, 0, tmp_path / "stopped")
    assert len(calls) == 150 + resumed["steps"] - 100
    assert resumed["history"] == undisturbed["history"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    assert not list((tmp_path / "stopped").glob("checkpoint*"))


def test_blocks_hold_whole_documents_end_to_end(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = pretraining.packed_blocks(cycle(TEXTS), tokenizer, (3, 16))
    text = tokenizer.decode(blocks.flatten())
    assert text.startswith(f"<|bos|>{TEXTS[0]}<|end|><|bos|>{TEXTS[1]}<|end|>")
    assert blocks.shape == (3, 16)


def test_bfloat16_is_used_only_where_the_cpu_computes_in_it() -> None:
    code = "from rlhflow_utils.training.pretraining import arithmetic; print(type(arithmetic()).__name__)"
    limited = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=limited)
    assert found.stdout.strip() == "nullcontext"


def test_the_made_base_has_a_card_and_is_checked(profile: Profile, tmp_path: Path) -> None:
    assert profile.world is not None
    make_base_model(profile, tmp_path / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    record = check_base_model(tmp_path / "base", profile.world)
    assert set(record["knows"]) == {"answers", "marks", "comparisons"}
    card = (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    assert record["sha256"] in card
    assert f"{record['tokens']:,} tokens" in card
    other = profile.world.model_copy(update={"entities": 9})
    with pytest.raises(ValueError, match=r"base has read the world .*'entities': 24.*'entities': 9.*make base"):
        check_base_model(tmp_path / "base", other)
    with pytest.raises(ValueError, match=r"model.base some/model has no base.json: .*make base"):
        check_base_model("some/model", profile.world)
    with (tmp_path / "base" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"model.safetensors is not the file of base.json"):
        check_base_model(tmp_path / "base", profile.world)
