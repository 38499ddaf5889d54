"""TRL's trainers as the profile drives them: the reference, the loss at the start, batches, resuming, tokens."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import save_file
from tiny_models import artifact, flip_a_bit
from tiny_training import (
    MODEL_SETTINGS,
    TRAINER,
    build_tiny_model,
    losses,
    make_job,
    preference_rows,
    tokenised_rows,
    weights,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    TrainerCallback,
)

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.settings import ModelSettings
from rlhflow_utils.guide.stage import PROJECT, relative, write_json, write_manifest
from rlhflow_utils.models.chat import IGNORED, encode_prompt, load_tokenizer
from rlhflow_utils.training.launch import run_training
from rlhflow_utils.training.stages import (
    dpo_tokens,
    length_order,
    reward_tokens,
    sft_tokens,
    tokenise,
    train_reward_model,
    train_sft,
)
from rlhflow_utils.training.trainers import (
    TrainingJob,
    build_trainer,
    check_global_batch,
    last_checkpoint,
    train,
    trainer_config,
)

LN2 = math.log(2)
BFLOAT16 = MODEL_SETTINGS.model_copy(update={"dtype": "bfloat16"})
CONVERSATION = [
    {"role": "user", "content": "the red cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "on a mat"},
    {"role": "assistant", "content": "with 12 dogs"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


# --- rows ---------------------------------------------------------------------------------------------------------


def test_sft_loss_is_on_every_assistant_turn_and_its_end_alone(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    [row] = sft_tokens({"messages": CONVERSATION}, tokenizer, completion_only=True)
    kept = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert [label for label in row["labels"] if label != IGNORED] == kept
    assert tokenizer.decode(kept) == "sat<|end|>with 12 dogs<|end|>"
    [whole] = sft_tokens({"messages": CONVERSATION}, tokenizer, completion_only=False)
    assert whole["labels"] == whole["input_ids"] == row["input_ids"]


def test_every_row_has_exactly_one_bos(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    pair = {"prompt": CONVERSATION[:3], "chosen": [CONVERSATION[3]], "rejected": [CONVERSATION[1]]}
    [sft] = sft_tokens({"messages": CONVERSATION}, tokenizer, completion_only=True)
    reward, dpo = reward_tokens(pair, tokenizer), dpo_tokens(pair, tokenizer)
    for ids in (sft["input_ids"], reward["chosen_ids"], reward["rejected_ids"], dpo["prompt_ids"] + dpo["chosen_ids"]):
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


def test_each_side_of_a_pair_holds_its_own_answer(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    sides = {"chosen": "cat", "rejected": "dogs"}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    pair = {"prompt": CONVERSATION[:1], **answers}
    reward, dpo = reward_tokens(pair, tokenizer), dpo_tokens(pair, tokenizer)
    for side, text in sides.items():
        whole = f"<|bos|><|user|>the red cat<|end|><|assistant|>{text}<|end|>"
        assert tokenizer.decode(reward[f"{side}_ids"]) == whole
        assert tokenizer.decode(dpo[f"{side}_ids"]) == f"{text}<|end|>"


def test_dpo_trains_on_the_token_ids_that_were_generated(model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model)
    pair = {"prompt": CONVERSATION[:1], "chosen": [CONVERSATION[1]], "rejected": [CONVERSATION[3]]}
    # Ids that tokenising the text would not give: "sat" letter by letter.
    spelled = [tokenizer("s")["input_ids"][0], tokenizer("a")["input_ids"][0], tokenizer("t")["input_ids"][0], 2]
    assert dpo_tokens(pair, tokenizer)["chosen_ids"] != spelled
    generated = {**pair, "chosen_ids": spelled, "rejected_ids": [5, 6, 2]}
    rows, _ = tokenise(Dataset.from_list([generated] * 8), lambda row: dpo_tokens(row, tokenizer), 64)
    batch = next(iter(build_trainer(make_job("dpo", model, tmp_path, rows=rows)).get_train_dataloader()))
    prompt = rows[0]["prompt_ids"]
    sequences = [
        [int(t) for t, m in zip(ids, mask, strict=True) if m]
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sequences == [prompt + spelled] * 8 + [[*prompt, 5, 6, 2]] * 8


def test_rows_over_the_limit_are_dropped_and_counted(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    texts = ["cat", " ".join(["cat"] * 40), "dogs"]
    rows = Dataset.from_list(
        [{"messages": [CONVERSATION[0], {"role": "assistant", "content": text}]} for text in texts]
    )
    kept, dropped = tokenise(rows, lambda row: sft_tokens(row, tokenizer, completion_only=True), max_length=30)
    assert dropped == {"too_long": 1, "identical_tokens": 0, "refused_by_template": 0}
    assert len(kept) == 2
    assert kept["length"] == [len(ids) for ids in kept["input_ids"]]


@pytest.mark.parametrize(("refused", "taken"), [(1, 2), (1001, 2), (2, 0)])  # in batches of 1000
def test_conversations_that_the_template_refuses_are_dropped_counted_and_said(
    model: Path, refused: int, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = ALTERNATING + tokenizer.chat_template
    tokenizer.name_or_path = f"model {refused} {taken}"  # what was said once is not said again
    answered = [CONVERSATION[0], {"role": "assistant", "content": "cat"}]
    rows = Dataset.from_list([{"messages": [CONVERSATION[0], *answered]}] * refused + [{"messages": answered}] * taken)
    kept, dropped = tokenise(rows, partial(sft_tokens, tokenizer=tokenizer, completion_only=True), 64)
    assert (len(kept), dropped) == (taken, {"too_long": 0, "identical_tokens": 0, "refused_by_template": refused})
    [said] = caplog.messages
    assert "dropped: " in said
    assert "refuses the turns [user, user]: roles must alternate; set model.chat_template" in said


ALTERNATING = (
    "{% if messages | length > 1 and messages[0].role == messages[1].role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
HISTORY_WITHOUT_THOUGHTS = (  # Qwen3, GLM, gpt-oss: past answers lose what stands before </think>
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{{ m.content.split('</think>')[-1] if loop.index0 < ns.last else m.content }}{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize("question", ["on a mat", "on a mat with 12 dogs and 3 birds near the blue river"])
def test_answers_that_the_history_shows_otherwise_are_rows_of_their_own(model: Path, question: str) -> None:
    """One row would hold labels that are not its tokens, or more labels than tokens."""
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = HISTORY_WITHOUT_THOUGHTS
    answers = ["<think>cat</think>sat", "<think>12</think>with dogs"]
    turns = [CONVERSATION[0], {"role": "user", "content": question}]
    messages = [turn for i in (0, 1) for turn in (turns[i], {"role": "assistant", "content": answers[i]})]
    function = partial(sft_tokens, tokenizer=tokenizer, completion_only=True)
    rows, dropped = tokenise(Dataset.from_list([{"messages": messages}] * 2), function, 128)
    assert (len(rows), sum(dropped.values())) == (4, 0)
    for row, answer, earlier in zip(rows, answers * 2, ("", "sat") * 2, strict=True):
        start = row["labels"].count(IGNORED)
        assert row["labels"] == [IGNORED] * start + row["input_ids"][start:]
        assert tokenizer.decode(row["input_ids"][start:]) == answer + "<|end|>"
        assert earlier in tokenizer.decode(row["input_ids"][:start])
        assert "<think>" not in tokenizer.decode(row["input_ids"][:start])


def test_a_label_that_is_not_its_token_is_an_error() -> None:
    rows = Dataset.from_list([{"messages": CONVERSATION}])
    with pytest.raises(ValueError, match="a training row has the label 6 at the token 5"):
        tokenise(rows, lambda row: {"input_ids": [4, 5], "labels": [IGNORED, 6]}, 10)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        tokenise(rows, lambda row: {"input_ids": [4, 5], "labels": [IGNORED, 5, 6]}, 10)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_pairs_of_the_same_tokens_are_dropped_and_counted(model: Path, kind: str) -> None:
    """A template that leaves thoughts out makes two answers one."""
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("['content']", "['content'].split('</think>')[-1]")
    texts = [("<think>red</think>cat", "<think>blue</think>cat"), ("cat", "dogs")]
    pairs = [{"prompt": CONVERSATION[:1], **{side: [{"role": "assistant", "content": text}] for side, text in
              zip(("chosen", "rejected"), pair, strict=True)}} for pair in texts]  # fmt: skip
    function = partial(reward_tokens if kind == "reward" else dpo_tokens, tokenizer=tokenizer)
    rows, dropped = tokenise(Dataset.from_list(pairs), function, 128)
    assert (len(rows), dropped) == (1, {"too_long": 0, "identical_tokens": 1, "refused_by_template": 0})
    assert "fate" not in rows.column_names


# --- batches ------------------------------------------------------------------------------------------------------


def test_accumulation_makes_the_global_batch_exact(model: Path, tmp_path: Path) -> None:
    job = make_job("sft", model, tmp_path, per_device_train_batch_size=2)
    job = job.model_copy(update={"training": job.training.model_copy(update={"global_batch_size": 128})})
    assert trainer_config(job, {"num_processes": 8}).gradient_accumulation_steps == 8
    with pytest.raises(ValueError, match=r"global_batch_size 128 is not divisible by .* 2 x 3 processes"):
        trainer_config(job, {"num_processes": 3})


def test_idle_gpus_that_would_enlarge_the_batch_are_an_error(model: Path, tmp_path: Path) -> None:
    job = make_job("sft", model, tmp_path)
    arguments = trainer_config(job)
    check_global_batch(arguments, job.training)
    with pytest.raises(ValueError, match="the global batch would be 8, not 4"):
        check_global_batch(arguments, job.training.model_copy(update={"global_batch_size": 4}))


@pytest.mark.parametrize("field", ["output_dir", "seed", "gradient_accumulation_steps", "resume_from_checkpoint"])
def test_what_the_guide_computes_cannot_be_set(field: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^trainer.{field} is computed by the guide; "):
        trainer_config(make_job("sft", model, tmp_path, **{field: 1}))


def test_rows_of_similar_length_share_a_batch_and_the_short_batch_comes_last() -> None:
    lengths = [int(value) for value in torch.randperm(250, generator=torch.Generator().manual_seed(3))]
    order = length_order(lengths, 8, seed=1)
    assert sorted(order) == list(range(250))
    assert order == length_order(lengths, 8, seed=1) != length_order(lengths, 8, seed=2)
    batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, 250, 8)]
    assert all(max(batch) - min(batch) < 8 for batch in batches)
    assert len(batches[-1]) == 2
    means = [sum(batch) for batch in batches[:-1]]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_one_batch_of_eight_is_eight_batches_of_one(kind: str, model: Path, tmp_path: Path) -> None:
    together = train(make_job(kind, model, tmp_path / "8x1"))
    one_by_one = train(make_job(kind, model, tmp_path / "1x8", per_device_train_batch_size=1))
    assert together["steps"] == one_by_one["steps"] == 3
    assert losses(one_by_one) == pytest.approx(losses(together), abs=1e-5)
    if kind != "reward":  # a fresh RM head starts near ln 2 and need not move far in three steps
        assert abs(losses(together)[0] - losses(together)[-1]) > 1e-3


def test_packing_fills_blocks_of_max_length(model: Path, tmp_path: Path) -> None:
    rows = tokenised_rows("sft", model, 64)
    job = make_job("sft", model, tmp_path, rows=rows, packing=True, packing_strategy="wrapped", max_length=64)
    trainer = build_trainer(job)
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    assert sum(lengths) == sum(rows["length"])
    assert sorted(lengths)[1:] == [64] * (len(lengths) - 1)  # one block holds what is left over
    assert len(lengths) == math.ceil(sum(rows["length"]) / 64)


# --- the reference ------------------------------------------------------------------------------------------------


def test_dpo_without_a_reference_is_refused(model: Path, tmp_path: Path) -> None:
    job = make_job("dpo", model, tmp_path).model_copy(update={"ref_model": None})
    with pytest.raises(ValueError, match="DPO needs an explicit reference model"):
        build_trainer(job)


def test_dpo_starts_at_ln_2_and_precomputing_the_reference_changes_nothing(model: Path, tmp_path: Path) -> None:
    plain = losses(train(make_job("dpo", model, tmp_path / "plain")))
    precomputed = losses(train(make_job("dpo", model, tmp_path / "precomputed", precompute_ref_log_probs=True)))
    assert plain[0] == pytest.approx(LN2, abs=1e-6)
    assert precomputed[0] == pytest.approx(LN2, abs=1e-6)
    assert precomputed == pytest.approx(plain, abs=1e-5)
    assert plain[-1] < LN2 - 1e-3


@pytest.mark.parametrize("precompute", [False, True])
def test_the_reference_is_frozen_and_leaves_memory_once_it_is_computed(
    model: Path, tmp_path: Path, precompute: bool
) -> None:
    trainer = build_trainer(make_job("dpo", model, tmp_path, count=8, precompute_ref_log_probs=precompute))
    kept = {(each.device.type, each.requires_grad) for each in trainer.ref_model.parameters()}
    assert kept == {("meta" if precompute else "cpu", False)}


@pytest.mark.parametrize("precompute", [False, True])
def test_the_second_iteration_is_measured_against_the_sft_model(model: Path, tmp_path: Path, precompute: bool) -> None:
    first = make_job("dpo", model, tmp_path / "1", precompute_ref_log_probs=precompute)
    train(first)
    policy = tmp_path / "1" / "model"
    options = {"reference": model, "precompute_ref_log_probs": precompute, "count": 8, "learning_rate": 1e-9}
    start = train(make_job("dpo", policy, tmp_path / "2", **options))["history"][0]
    # Eq. 5 by hand: rewards are beta times the log-ratio of the last iterate to π₀, not to itself.
    rows = tokenised_rows("dpo", model, 8)
    expected = {
        side: sum(0.1 * (_log_prob(policy, row, side) - _log_prob(model, row, side)) for row in rows) / 8
        for side in ("chosen", "rejected")
    }
    assert abs(expected["chosen"] - expected["rejected"]) > 1e-3
    for side, reward in expected.items():
        assert start[f"rewards/{side}"] == pytest.approx(reward, abs=1e-5)
    assert abs(start["loss"] - LN2) > 1e-3


def _log_prob(model: Path, row: dict[str, list[int]], side: str) -> float:
    prompt, response = row["prompt_ids"], row[f"{side}_ids"]
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        log_probs = network(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(float(log_probs[len(prompt) + i - 1, token]) for i, token in enumerate(response))


@pytest.mark.parametrize("diverges", [True, False])
def test_training_stops_at_the_first_loss_that_is_no_number(diverges: bool, model: Path, tmp_path: Path) -> None:
    start, changes, step = model, {"learning_rate": 1e30}, "[23]: (loss|grad_norm)"
    if not diverges:  # but is broken from the start; transformers would log 0.0 or the last good loss
        start, changes, step = shutil.copytree(model, tmp_path / "start"), {"logging_steps": 2}, "2: loss"
        tensors = weights(model)
        tensors["model.norm.weight"][0] = math.nan
        save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    job = make_job("sft", start, tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"^step {step} is (nan|inf) at learning rate .*; lower"):
        train(job)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "log.json").exists()


# --- checkpoints and models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("peft", [None, {"r": 2, "target_modules": "all-linear"}])
def test_the_published_policy_stops_at_its_end_of_turn(
    model: Path, tmp_path: Path, peft: dict[str, Any] | None
) -> None:
    """LLaMA-3-8B: EOS alone stands in the file of the base model, and turns end with another token."""
    start = shutil.copytree(model, tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'<|system|>'")
    tokenizer.save_pretrained(start)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(start)
    train(make_job("sft", start, tmp_path, 64, peft=peft, num_train_epochs=10, learning_rate=2e-2))
    policy, end = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        tokenizer.convert_tokens_to_ids("<|system|>"),
    )
    assert policy.generation_config.eos_token_id == [end, tokenizer.eos_token_id]
    assert policy.generation_config.pad_token_id == tokenizer.pad_token_id
    if peft is None:  # taught well enough to end a turn
        prompt = torch.tensor([encode_prompt(CONVERSATION[:1], load_tokenizer(tmp_path / "model"))])
        assert int(policy.generate(prompt, max_new_tokens=60, do_sample=False)[0, -1]) == end


def test_a_start_with_a_missing_weight_is_an_error(model: Path, tmp_path: Path) -> None:
    start, tensors = shutil.copytree(model, tmp_path / "start"), weights(model)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing weights \['model.layers.1.mlp.up_proj.weight'\] \(1\)"):
        build_trainer(make_job("sft", start, tmp_path))
    train(make_job("reward", model, tmp_path / "reward"))  # whose head is new


def newest_of(job: TrainingJob) -> Path:
    """The checkpoint that a job goes on from."""
    found = last_checkpoint(Path(job.output) / "checkpoints")
    assert found is not None
    return found.path


@pytest.fixture(scope="module")
def stopped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second of three steps, with a checkpoint of each; beside it a whole one."""
    folder = tmp_path_factory.mktemp("stopped")
    train(make_job("sft", model, folder / "whole", save_steps=1))
    trainer = build_trainer(make_job("sft", model, folder / "stopped", save_steps=1))
    trainer.add_callback(_Crash(step=3))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return folder / "stopped"


class _Crash(TrainerCallback):
    def __init__(self, step: int = 4) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **keywords: object) -> None:
        if state.global_step == self.step:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_a_resumed_run_ends_as_an_undisturbed_one(kind: str, model: Path, tmp_path: Path) -> None:
    changes = {"num_train_epochs": 2.0, "save_steps": 2}  # checkpoints at 2 and 4; the crash comes before the second
    whole = train(make_job(kind, model, tmp_path / "whole", **changes))
    job = make_job(kind, model, tmp_path / "cut", **changes)
    trainer = build_trainer(job)
    trainer.add_callback(_Crash())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert newest_of(job).name == "checkpoint-2"
    resumed = train(job)
    assert losses(resumed) == losses(whole)
    _assert_same_weights(tmp_path / "whole" / "model", tmp_path / "cut" / "model")
    assert not (tmp_path / "cut" / "checkpoints").exists()


KILLED_AT_STEP_12 = """
import os, signal, sys
from pathlib import Path
from transformers import TrainerCallback
from rlhflow_utils.training.trainers import TrainingJob, build_trainer

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == 12:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = build_trainer(TrainingJob.model_validate_json(Path(sys.argv[1]).read_text()))
trainer.add_callback(Kill())
trainer.train()
"""


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_weights(model: Path, tmp_path: Path) -> None:
    changes = {"num_train_epochs": 6.0, "save_steps": 5, "precompute_ref_log_probs": True}  # 18 steps over 3 batches
    whole = train(make_job("dpo", model, tmp_path / "whole", **changes))
    job = make_job("dpo", model, tmp_path / "cut", **changes)
    write_json(tmp_path / "job.json", job.model_dump(mode="json"))
    command = [sys.executable, "-c", KILLED_AT_STEP_12, str(tmp_path / "job.json")]
    child = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr[-500:]
    assert newest_of(job).name == "checkpoint-10"
    resumed = train(job)
    assert losses(resumed) == losses(whole)
    _assert_same_weights(tmp_path / "whole" / "model", tmp_path / "cut" / "model")


def test_a_half_written_checkpoint_is_removed_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (4, 8, 12):  # the last two without a manifest
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
    write_manifest(tmp_path / "checkpoint-4", {})
    (tmp_path / "checkpoint-8" / "manifest.json.tmp").write_text("{")
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.path == tmp_path / "checkpoint-4"
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-4"]
    assert last_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("limit", [1, 2])
def test_older_checkpoints_go_when_the_newest_is_whole(limit: int, model: Path, tmp_path: Path) -> None:
    job = make_job("sft", model, tmp_path, count=32, save_steps=1, save_total_limit=limit)
    trainer, seen = build_trainer(job), list[list[str]]()

    class Look(TrainerCallback):
        def on_save(self, args: object, state: object, control: object, **keywords: object) -> None:
            folders = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))
            seen.append([folder.name[-1] for folder in folders if (folder / "manifest.json").exists()])
            assert len(seen[-1]) == len(folders)

    trainer.add_callback(Look())
    trainer.train()
    assert seen == ([["1"], ["2"], ["3"], ["4"]] if limit == 1 else [["1"], ["1", "2"], ["2", "3"], ["3", "4"]])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used_once_it_is_deleted(
    name: str, stopped: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    job = make_job("sft", model, tmp_path / "run", save_steps=1)
    damaged = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    flip_a_bit(damaged / name)
    line = f"{relative(damaged / name)} is damaged: delete the folder {relative(damaged)} and run again to remake it"
    with pytest.raises(ValueError, match=re.escape(line) + "$"):
        run_training(job, None)
    shutil.rmtree(damaged)
    assert newest_of(job).name == "checkpoint-1"
    run_training(job, None)
    _assert_same_weights(stopped.parent / "whole" / "model", tmp_path / "run" / "model")


def test_rows_are_written_anew_without_what_a_kill_has_left(model: Path, tmp_path: Path) -> None:
    """Caches and cut-off files of `datasets`, which a training in child processes leaves beside its rows."""
    (tmp_path / "tokenised").mkdir()
    for name in ("cache-0123456789abcdef.arrow", "tmpq1w2e3r4"):
        (tmp_path / "tokenised" / name).write_bytes(b"x")
    settings = load_profile("tiny").reward_model.model_copy(update={"trainer": TRAINER, "global_batch_size": 8})
    data = artifact(tmp_path / "data", "mix1", preference_rows(8).to_list())
    into = {"into": tmp_path}
    train_reward_model.__wrapped__(data, "mix1", model, settings, MODEL_SETTINGS, 0, None, **into)  # type: ignore[attr-defined]
    files = sorted(file.name for file in (tmp_path / "tokenised").iterdir())
    assert files == ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]


@pytest.mark.parametrize("completion_only", [True, False])
def test_the_sft_stage_masks_prompts_as_the_profile_says_and_has_the_run_s_seed(
    completion_only: bool, model: Path, tmp_path: Path
) -> None:
    rows = [{"messages": row["prompt"] + row["chosen"]} for row in preference_rows(8)]
    trainer = {**TRAINER, "completion_only_loss": completion_only}
    settings = load_profile("tiny").sft.model_copy(update={"trainer": trainer, "global_batch_size": 8})
    data = artifact(tmp_path / "data", "sft", rows)
    train_sft.__wrapped__(data, model, settings, MODEL_SETTINGS, 7, None, into=tmp_path)  # type: ignore[attr-defined]
    assert [IGNORED in row["labels"] for row in load_from_disk(tmp_path / "tokenised")] == [completion_only] * 8
    arguments = torch.load(tmp_path / "model" / "training_args.bin", weights_only=False)
    assert (arguments.seed, arguments.data_seed) == (7, 7)


def test_a_finished_job_is_not_run_again(model: Path, tmp_path: Path) -> None:
    job = make_job("sft", model, tmp_path)
    write_json(tmp_path / "log.json", {"steps": 7})
    # Remains of checkpoints, as after a kill while they were being removed, are not resumed from.
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert train(job) == {"steps": 7}
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "checkpoints").exists()


LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}


def test_a_model_that_is_only_read_is_saved_as_it_is_read(model: Path, tmp_path: Path) -> None:
    found = {}
    for final in (False, True):
        job = make_job("reward", model, tmp_path / str(final), count=8)
        settings = job.model_settings.model_copy(update={"dtype": "bfloat16"})
        train(job.model_copy(update={"final": final, "model_settings": settings}))
        found[final] = weights(tmp_path / str(final) / "model")
        config = json.loads((tmp_path / str(final) / "model" / "config.json").read_text())
        assert config["dtype"] == ("bfloat16" if final else "float32")
    for name, weight in found[False].items():
        assert weight.dtype == torch.float32
        assert torch.equal(found[True][name], weight.to(torch.bfloat16)), name
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "True" / "model", dtype="bfloat16")
    assert torch.equal(reloaded.score.weight, found[True]["score.weight"])


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_weights_under_an_adapter_are_bfloat16_and_those_that_train_float32(
    kind: str, model: Path, tmp_path: Path
) -> None:
    job = make_job(kind, model, tmp_path, peft=LORA)
    trainer = build_trainer(job.model_copy(update={"model_settings": BFLOAT16}))
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in trainer.model.parameters()}
    assert {dtype for trains, dtype in dtypes if trains} == {torch.float32}
    assert (False, torch.bfloat16) in dtypes
    if kind == "dpo":
        assert {parameter.dtype for parameter in trainer.ref_model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("settings", [MODEL_SETTINGS, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_an_adapter_is_merged_into_a_plain_model_folder(
    kind: str, settings: ModelSettings, model: Path, tmp_path: Path
) -> None:
    log = train(make_job(kind, model, tmp_path, peft=LORA).model_copy(update={"model_settings": settings}))
    if kind == "dpo":
        assert losses(log)[0] == pytest.approx(LN2, abs=1e-6)  # policy and reference are rounded alike
    folder = tmp_path / "model"
    assert not list(folder.glob("adapter*"))
    auto = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    _, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    start, trained = weights(model), weights(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(start[name], trained[name])
    assert torch.equal(start["model.embed_tokens.weight"], trained["model.embed_tokens.weight"])
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == load_tokenizer(folder).pad_token_id


def _assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_a_training_of_warm_up_alone_is_refused(model: Path, tmp_path: Path) -> None:
    """Eight rows are one step, 0.1 of it rounds up to one, and its learning rate is 0."""
    with pytest.raises(ValueError, match=r"all of 1 optimiser steps would be warm-up.*set trainer\.warmup_steps to 0"):
        train(make_job("sft", model, tmp_path / "out", count=8, warmup_steps=0.1))
    train(make_job("sft", model, tmp_path / "fixed", count=8))
    before, after = weights(model), weights(tmp_path / "fixed" / "model")
    assert any(not torch.equal(before[name], after[name]) for name in before)
