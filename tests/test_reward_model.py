"""Scoring with a reward model: pooling, batching, order, accuracy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODEL, POSITIONS, WORDS, artifact, prompts, save_policy, save_reward_model, score

from rlhflow_utils.guide.settings import RewardModelSettings
from rlhflow_utils.guide.stage import seal
from rlhflow_utils.models import forward
from rlhflow_utils.models.chat import encode_conversation, load_tokenizer
from rlhflow_utils.models.reward_model import Conversation, load_scorer, score_responses

RESPONSES = [" ".join(WORDS.split()[:count]) for count in (1, 9, 3, 14, 0, 6)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def model(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward"), policy)


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return [(row["prompt"], response) for row in prompts(4) for response in RESPONSES]


def test_the_head_of_a_bfloat16_model_computes_in_float32(
    model: Path, policy: Path, conversations: list[Conversation]
) -> None:
    settings = MODEL.model_copy(update={"dtype": "bfloat16"})
    rewards = torch.tensor(score(model, conversations, 4096, settings))
    network, tokenizer = forward.load_model(policy, "causal", settings), load_tokenizer(policy)
    sequences = [encode_conversation(*conversation, tokenizer) for conversation in conversations]
    logits = forward.next_token_logits(network, sequences, int(tokenizer.pad_token_id))
    assert network.get_input_embeddings().weight.dtype == torch.bfloat16
    assert torch.allclose(rewards, torch.tensor(score(model, conversations, 4096)), atol=0.5)
    for numbers in (rewards, logits):  # bfloat16 has steps of 1/128 of a number, and answers that differ would tie
        assert (numbers != numbers.bfloat16()).float().mean() > 0.9


def test_reward_is_the_score_head_at_the_end_of_turn_of_each_row_alone(
    model: Path, conversations: list[Conversation]
) -> None:
    network, tokenizer = forward.load_model(model, "reward"), load_tokenizer(model)
    expected = []
    for prompt, response in conversations:
        ids = encode_conversation(prompt, response, tokenizer)
        assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
        with torch.inference_mode():
            hidden = network.model(torch.tensor([ids])).last_hidden_state[0, -1]
            expected.append(float(network.score(hidden)))
    assert max(expected) - min(expected) > 0.1  # the rewards differ, so a wrong order would show
    for batch_tokens in (1, 100, 10_000):
        assert score(model, conversations, batch_tokens) == pytest.approx(expected, abs=1e-5)


def test_nothing_is_truncated_and_what_is_too_long_has_no_reward(model: Path) -> None:
    prompt = prompts(1)[0]["prompt"]
    tokenizer = load_tokenizer(model)
    fits = max(n for n in range(250) if len(encode_conversation(prompt, "sky " * n, tokenizer)) <= POSITIONS)
    found = load_scorer(model, 500)([(prompt, "sky"), (prompt, "sky " * (fits + 1)), (prompt, "sky " * fits)])
    assert found[1] is None
    assert [found[0], found[2]] == pytest.approx(score(model, [(prompt, "sky"), (prompt, "sky " * fits)], 500))


def test_a_model_without_score_head_is_refused(policy: Path) -> None:
    with pytest.raises(ValueError, match="is no reward model"):
        score(policy, [(prompts(1)[0]["prompt"], "sky")], 500)


def test_a_head_of_another_name_is_found_and_a_missing_one_is_an_error(model: Path, tmp_path: Path) -> None:
    """transformers would only warn, and draw the head at random."""
    conversation = [(prompts(1)[0]["prompt"], "sky")]
    expected = score(model, conversation, 500)
    tensors = load_file(model / "model.safetensors")
    head = tensors.pop("score.weight")
    for name in (
        "v_head.weight",
        "value_head.weight",
        "classifier.weight",
        "regression_layer.weight",
        "ranker.weight",
        "",
    ):
        folder = shutil.copytree(model, tmp_path / f"head-{name}")
        more = {name: head} if name else {}
        save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
        if name in ("ranker.weight", ""):
            unexpected = re.escape(f"missing weights ['score.weight'] (1), unexpected weights {sorted(more)}")
            with pytest.raises(ValueError, match=unexpected):
                score(folder, conversation, 500)
        else:
            assert score(folder, conversation, 500) == expected


def test_stage_adds_rewards_in_order_and_resumes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "ROWS_PER_SHARD", 2)
    rows = [{**row, "responses": RESPONSES[:4]} for row in prompts(5)]
    responses = artifact(tmp_path / "responses", rows=rows)
    settings = RewardModelSettings(mixtures=["mix1"], batch_tokens=300, global_batch_size=1, trainer={})
    scores = score_responses(model, responses, settings, MODEL, into=tmp_path / "scores")
    rewards = list(scores.dataset()["rewards"])
    expected = score(model, [(row["prompt"], text) for row in rows for text in row["responses"]], 300)
    assert [value for group in rewards for value in group] == pytest.approx(expected, abs=1e-5)
    assert scores.rows["prompts"] == {"rows_in": 5, "rows_out": 5, "dropped": {}}
    assert scores.metrics["mean_reward"] == pytest.approx(sum(expected) / 20, abs=1e-5)
    assert scores.metrics["mean_best_reward"] == pytest.approx(sum(map(max, rewards)) / 5)
    # Killed after two shards, of which the second is marked: both are taken as they are, the third is made.
    killed = tmp_path / "killed/.partial" / f"scores@{scores.key}/shards"
    shutil.copytree(tmp_path / "scores/shards", killed)
    for place in ("00001", "00002"):
        next(killed.glob(f"{place}.*")).unlink()
    (killed / "marked.tmp").write_text("[[1, 2, 3, 4], [5, 6, 7, 8]]", encoding="utf-8")
    seal(killed / "marked.tmp", killed / "00001.json")
    resumed = score_responses(model, responses, settings, MODEL, into=tmp_path / "killed/scores")
    assert list(resumed.dataset()["rewards"]) == [*rewards[:2], [1, 2, 3, 4], [5, 6, 7, 8], rewards[4]]


def test_tokenizer_survives_the_round_trip(policy: Path, model: Path) -> None:
    conversation = prompts(1)[0]["prompt"], "blue"
    assert encode_conversation(*conversation, load_tokenizer(model)) == encode_conversation(
        *conversation, load_tokenizer(policy)
    )
