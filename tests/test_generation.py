"""Generation: shards, seeds, stopping, sampling, log-probabilities."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MODEL, POSITIONS, artifact, flip_a_bit, prompts, save_policy, settings

from rlhflow_utils.guide.stage import file_digest, relative, seed_for
from rlhflow_utils.models.chat import encode_prompt, load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import length_batches, load_model
from rlhflow_utils.online.engines import (
    Request,
    choose_tokens,
    open_sampler,
    sample_responses,
    sampling_arguments,
    vllm_arguments,
)
from rlhflow_utils.online.generation import (
    Prompts,
    generate,
    generate_responses,
    response_temperatures,
)

SEED = 7


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def finished(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A whole run over 10 prompts: shards of 4, 4 and 2."""
    out = tmp_path_factory.mktemp("finished")
    data, _ = generate(policy, prompts(10), settings(), MODEL, out, SEED)
    return out, data.to_list()


def test_no_prompt_is_lost_and_order_is_kept(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rows = finished
    assert [row["prompt_id"] for row in rows] == [f"p{index}" for index in range(10)]
    files = sorted(out.glob("shards-*/*"))
    assert [file.name for file in files] == [f"0000{i}.{file_digest(file)[:16]}.arrow" for i, file in enumerate(files)]
    assert len(files) == 3
    assert all(len(row["responses"]) == 4 and row["temperatures"] == [1.0, 1.0, 0.7, 0.7] for row in rows)


def test_a_resumed_run_makes_only_what_is_missing_and_ends_in_the_same_state(
    policy: Path, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out = tmp_path / "resumed"
    shutil.copytree(finished[0], out)
    shutil.rmtree(out / "data")
    first, *others = sorted(out.glob("shards-*/*"))
    for each in others:
        each.unlink()
    (first.parent / "00002.tmp").write_bytes(b"cut off by the kill")
    before = first.stat().st_mtime_ns
    data, _ = generate(policy, prompts(10), settings(), MODEL, out, SEED)
    assert data.to_list() == finished[1]
    assert first.stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", [flip_a_bit, lambda file: os.truncate(file, 100)], ids=["flipped", "truncated"])
def test_a_damaged_shard_is_named_and_made_anew_once_it_is_deleted(
    harm: Callable[[Path], None], policy: Path, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "out")
    [damaged] = (tmp_path / "out").glob("shards-*/00001.*.arrow")
    harm(damaged)
    line = f"{relative(damaged)} is damaged: delete it and run again to remake it"
    with pytest.raises(ValueError, match=re.escape(line) + "$"):
        generate(policy, prompts(10), settings(), MODEL, tmp_path / "out", SEED)
    damaged.unlink()
    data, _ = generate(policy, prompts(10), settings(), MODEL, tmp_path / "out", SEED)
    assert data.to_list() == finished[1]


def test_shards_of_another_request_are_not_reused(
    policy: Path, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "other")
    reused, _ = generate(policy, prompts(10), settings(), MODEL, tmp_path / "other", SEED + 1)
    fresh, _ = generate(policy, prompts(10), settings(), MODEL, tmp_path / "fresh", SEED + 1)
    assert reused.to_list() == fresh.to_list() != finished[1]
    again, _ = generate(policy, prompts(10), settings(), MODEL, tmp_path / "other", SEED)
    assert again.to_list() == finished[1]


def test_a_model_trained_anew_and_an_edited_prompt_are_answered_anew(policy: Path, tmp_path: Path) -> None:
    """Folder, prompt ids and seed stay the same."""
    model, rows, greedy = tmp_path / "model", prompts(3), settings().variant(1, [0.0])

    def answers() -> list[list[str]]:
        return generate(model, rows, greedy, MODEL, tmp_path / "out", SEED)[0]["responses"][:]

    shutil.copytree(policy, model)
    first = answers()
    shutil.rmtree(model)
    save_policy(model, seed=1)
    second = answers()
    assert all(old != new for old, new in zip(first, second, strict=True))
    rows[1]["prompt"][0]["content"] = "three and two and one please"
    assert [old == new for old, new in zip(second, answers(), strict=True)] == [True, False, True]
    shutil.rmtree(model)
    shutil.copytree(policy, model)
    rows[1] = prompts(3)[1]
    assert answers() == first


def test_batch_and_shard_size_do_not_change_the_sampled_responses(
    policy: Path, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    data, _ = generate(policy, prompts(10), settings(batch_size=64, shard_size=10), MODEL, tmp_path, SEED)
    assert data.to_list() == finished[1]


def test_prompts_have_exactly_one_bos(policy: Path) -> None:
    tokenizer = load_tokenizer(policy)
    prompt_ids = [encode_prompt(row["prompt"], tokenizer) for row in prompts(5)]
    assert [ids.count(tokenizer.bos_token_id) for ids in prompt_ids] == [1] * 5
    assert all(ids[0] == tokenizer.bos_token_id for ids in prompt_ids)


def test_long_prompts_are_dropped_and_counted(policy: Path, tmp_path: Path) -> None:
    rows = prompts(5)
    rows[2]["prompt"][0]["content"] = "sky " * 120
    data, dropped = generate(policy, rows, settings(max_tokens=2), MODEL, tmp_path, SEED)
    assert data["prompt_id"] == ["p0", "p1", "p3", "p4"]
    assert dropped == {"prompt_too_long": 1, "refused_by_template": 0}
    with pytest.raises(ValueError, match=r"no prompt is left; dropped {'prompt_too_long': 1, .*max_prompt_tokens"):
        generate(policy, [rows[2]], settings(max_tokens=2), MODEL, tmp_path, SEED)


def test_prompts_that_the_template_refuses_are_dropped_and_counted(policy: Path, tmp_path: Path) -> None:
    rows = prompts(3)
    rows[1]["prompt"] *= 2  # two user turns in a row
    refusing = "{% if messages[1:] and messages[1].role == 'user' %}{{ raise_exception('must alternate') }}{% endif %}"
    template = str(load_tokenizer(policy).chat_template)
    model = MODEL.model_copy(update={"chat_template": refusing + template})
    data, dropped = generate(policy, rows, settings(max_tokens=2), model, tmp_path, SEED)
    assert data["prompt_id"] == ["p0", "p2"]
    assert dropped == {"prompt_too_long": 0, "refused_by_template": 1}


def test_stop_token_ends_a_response_and_stays_out_of_its_text(
    policy: Path, finished: tuple[Path, list[dict[str, Any]]]
) -> None:
    tokenizer = load_tokenizer(policy)
    stops = set(stop_token_ids(tokenizer))
    seen = set()
    for row in finished[1]:
        columns = zip(row["responses"], row["response_ids"], row["finish_reasons"], row["lengths"], strict=True)
        for text, ids, reason, length in columns:
            seen.add(reason)
            assert not stops & set(ids[:-1])
            assert (ids[-1] in stops) == (reason == "stop")
            assert reason == "stop" or len(ids) == 20
            assert not any(token in text for token in tokenizer.all_special_tokens)
            assert length == len(text)
    assert seen == {"stop", "length"}


def test_greedy_is_transformers_greedy_for_batches_of_one_and_of_eight(policy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(policy, "causal", MODEL), load_tokenizer(policy)
    expected = []
    for row in prompts(8):
        ids = torch.tensor([encode_prompt(row["prompt"], tokenizer)])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20,
                eos_token_id=stop_token_ids(tokenizer), pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        expected.append([out[0, ids.shape[1] :].tolist()])
    for batch in (1, 8):
        greedy = settings(batch_size=batch, shard_size=8).variant(1, [0.0])
        data, _ = generate(policy, prompts(8), greedy, MODEL, tmp_path / str(batch), SEED)
        assert data["response_ids"] == expected


def test_first_tokens_follow_the_models_distribution(policy: Path) -> None:
    model, tokenizer = load_model(policy, "causal", MODEL), load_tokenizer(policy)
    ids = encode_prompt(prompts(1)[0]["prompt"], tokenizer)
    with torch.inference_mode():
        expected = torch.softmax(model(torch.tensor([ids])).logits[0, -1] / 0.7, -1)
    n = 4000
    [responses] = sample_responses(model, Request([ids], [SEED], [0.7] * n), stop_token_ids(tokenizer), 1)
    counts = torch.bincount(torch.tensor([response[0] for response in responses]), minlength=len(expected))
    likely = expected > 0.02
    assert likely.sum() >= 3
    error = (counts / n - expected).abs()[likely]
    assert bool((error < 4 * (expected * (1 - expected) / n).sqrt()[likely]).all())


def test_tokens_are_chosen_by_inverting_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(7, -1)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 0.999999, 0.9])
    temperature = torch.tensor([1.0, 1, 1, 1, 1, 1, 0])
    assert choose_tokens(logits, temperature, uniforms, 1.0).tolist() == [0, 0, 1, 1, 2, 2, 0]
    # top_p 0.6 keeps 0.5 and 0.3: the border is 0.5 / 0.8 = 0.625
    uniforms = torch.tensor([0.0, 0.62, 0.63, 0.99, 0.5, 0.6, 0.9])
    assert choose_tokens(logits, temperature, uniforms, 0.6).tolist() == [0, 0, 1, 1, 0, 0, 0]
    # temperature 0.5 squares the odds: 0.25, 0.09, 0.04 of 0.38, borders at 0.658 and 0.895
    halved = choose_tokens(logits[:4], torch.full([4], 0.5), torch.tensor([0.65, 0.66, 0.89, 0.90]), 1.0)
    assert halved.tolist() == [0, 1, 1, 2]


def test_responses_are_shared_evenly_among_temperatures() -> None:
    assert response_temperatures([1.0, 0.7], 8) == [1.0] * 4 + [0.7] * 4
    with pytest.raises(ValueError, match=r"3 responses cannot be shared evenly among the temperatures \[1.0, 0.7\]"):
        response_temperatures([1.0, 0.7], 3)
    with pytest.raises(ValueError, match="multiple of 2"):
        response_temperatures([1.0, 0.7], 0)


def test_random_numbers_depend_on_seed_and_prompt_alone(policy: Path) -> None:
    """Two prompts of the same text have other ids, so other answers; one prompt has the same in any company."""
    tokenizer = load_tokenizer(policy)
    ids = encode_prompt(prompts(1)[0]["prompt"], tokenizer)
    with open_sampler(policy, settings(), MODEL) as sampler:
        a, b = seed_for(SEED, "p0"), seed_for(SEED, "p1")
        [first], [second] = sampler(Request([ids], [a], [1.0] * 4)), sampler(Request([ids], [b], [1.0] * 4))
        assert sampler(Request([ids, ids], [b, a], [1.0] * 4)) == [second, first]
    assert first != second


def test_length_batches_cover_every_row_within_the_budget() -> None:
    lengths = [5, 9, 2, 7, 30, 2]
    batches = length_batches(lengths, 18)
    assert batches == [[4], [1, 3], [0, 2, 5]]
    assert length_batches([], 18) == []


def test_settings_that_cannot_work_are_one_line_errors(policy: Path) -> None:
    with (
        pytest.raises(ValueError, match=f"100 . sampling.max_tokens 100 is 200, but the model has {POSITIONS} positio"),
        open_sampler(policy, settings(max_tokens=100), MODEL),
    ):
        pass
    unknown = settings().model_copy(update={"sampling": {"n": 4, "max_tokens": 20, "top_k": 50, "min_p": 0.1}})
    with (
        pytest.raises(ValueError, match="transformers backend knows n, top_p, max_tokens, not min_p, top_k; remove"),
        open_sampler(policy, unknown, MODEL),
    ):
        pass


def test_engine_and_sampling_arguments_are_handed_over_as_they_are(policy: Path) -> None:
    values = settings(backend="vllm", engine={"max_num_seqs": 7, "dtype": "bfloat16"})
    values = values.model_copy(update={"sampling": {**values.sampling, "min_p": 0.1}})
    engine = vllm_arguments(policy, values, MODEL)
    assert (engine["model"], engine["max_num_seqs"], engine["max_model_len"]) == (str(policy), 7, 120)
    assert engine["dtype"] == "bfloat16", "the profile's engine arguments stand over those of the run"
    assert sampling_arguments(values, 0.7, [5]) == {
        "n": 1, "temperature": 0.7, "top_p": 1.0, "max_tokens": 20, "min_p": 0.1, "stop_token_ids": [5],
        "detokenize": False,
    }  # fmt: skip


def test_stage_takes_its_share_of_the_prompts_and_accounts_for_it(policy: Path, tmp_path: Path) -> None:
    rows = prompts(9)
    rows[4]["prompt"][0]["content"] = "sky " * 120
    data = artifact(tmp_path / "data", "prompts", rows)
    responses = generate_responses(
        policy, Prompts(data, start=3, count=4), settings(max_tokens=3), MODEL, SEED, None, into=tmp_path / "responses"
    )
    dropped = {"prompt_too_long": 1, "refused_by_template": 0}
    assert responses.rows["prompts"] == {"rows_in": 4, "rows_out": 3, "dropped": dropped}
    assert list(responses.dataset()["prompt_id"]) == ["p3", "p5", "p6"]
    assert responses.metrics["responses"] == 12
    assert responses.metrics["tokens"] == sum(len(ids) for row in responses.dataset()["response_ids"] for ids in row)
    with pytest.raises(ValueError, match="prompts 8 to 10 are wanted, prompts has 9"):
        Prompts(data, start=8, count=2).rows()
