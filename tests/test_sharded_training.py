"""FSDP2 over two processes on a CPU, by accelerate's own fields: the losses, models and resumed runs of one process."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import FSDP, MODEL_SETTINGS, SIZES, build_tiny_model, losses, make_job, weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhflow_utils.guide.run import stream_command
from rlhflow_utils.guide.stage import PROJECT, write_json
from rlhflow_utils.models.chat import load_tokenizer
from rlhflow_utils.training.launch import launch_command, run_training
from rlhflow_utils.training.pretraining import build_model
from rlhflow_utils.training.trainers import TrainingJob, last_checkpoint, train

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
SIX_STEPS = {"per_device_train_batch_size": 2, "count": 20, "num_train_epochs": 2, "save_steps": 2}  # 8, 8 and 4 rows


def build_untied_model(folder: Path, tied: Path) -> Path:
    """Like LLaMA-3: input and output embeddings are two matrices."""
    tokenizer = load_tokenizer(tied)
    sizes = {**SIZES, "max_position_embeddings": 256, "initializer_range": 0.06, "tie_word_embeddings": False}
    build_model(tokenizer, seed=0, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def jobs(folder: Path, **changes: Any) -> dict[str, TrainingJob]:
    """A small job of each kind; `changes` are fields of TRL's for the last one."""
    tied = build_tiny_model(folder.parent / "tied")
    untied = build_untied_model(folder.parent / "untied", tied)
    found = {
        kind: make_job(kind, start, folder / kind, **SIX_STEPS)
        for kind, start in (("sft", tied), ("reward", tied), ("dpo", untied))
    }
    found["lora"] = make_job("dpo", untied, folder / "lora", peft=LORA, **SIX_STEPS)
    half = {"model_settings": MODEL_SETTINGS.model_copy(update={"dtype": "bfloat16"})}
    found["bfloat16"] = make_job("dpo", untied, folder / "bfloat16", peft=LORA, **SIX_STEPS).model_copy(update=half)
    changes |= {"precompute_ref_log_probs": True, **SIX_STEPS}
    found["precomputed"] = make_job("dpo", tied, folder / "precomputed", **changes)
    return found


def assert_as_one_process(name: str, one: dict[str, Any], folders: tuple[Path, Path]) -> None:
    log = json.loads((folders[1] / "log.json").read_text(encoding="utf-8"))
    assert (log["processes"], one["processes"]) == (2, 1)
    assert log["steps"] == one["steps"] == 6
    assert losses(log) == pytest.approx(losses(one), abs=1e-4), name
    assert max(losses(one)) - min(losses(one)) > 1e-3
    a, b = (weights(folder / "model") for folder in folders)
    assert a.keys() == b.keys()
    assert {weight.dtype for weight in b.values()} == {torch.float32}
    for each, weight in a.items():
        assert torch.allclose(weight, b[each], atol=1e-4), (name, each)
    auto = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    _, report = auto.from_pretrained(folders[1] / "model", output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert not (folders[1] / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_sharded_processes_train_and_resume_as_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process alone reads weights. The last job loses a process half-way."""
    one = {name: train(job) for name, job in jobs(tmp_path / "one").items()}
    two, files = jobs(tmp_path / "two", fsdp=True, fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"}), []
    for name, job in two.items():
        files.append(tmp_path / "two" / name / "job.json")
        write_json(files[-1], job.model_dump(mode="json"))
    command = launch_command(files[0], FSDP)[:-3]
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # a script has its own folder in its path alone
    script = Path(__file__).with_name("killed_training.py")
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        stream_command([*command, str(script), *map(str, files)])
    found = re.findall(r"new models: (\d+)", capfd.readouterr().out)
    assert found == ["1", "1"], "the reference is gone before the training begins"
    rounded = losses(json.loads((tmp_path / "two" / "bfloat16" / "log.json").read_text(encoding="utf-8")))
    assert rounded[0] == pytest.approx(math.log(2), abs=1e-6), "log-probabilities in bfloat16 gave 0.6914"
    assert rounded == pytest.approx(losses(one["bfloat16"]), abs=1e-3)
    for name in ("sft", "reward", "dpo", "lora"):
        assert_as_one_process(name, one[name], (tmp_path / "one" / name, tmp_path / "two" / name))

    newest = last_checkpoint(tmp_path / "two" / "precomputed" / "checkpoints")
    assert newest is not None
    left = newest.path
    shards = sorted(file.relative_to(left).as_posix() for file in left.rglob("*.distcp"))
    parts = ("optimizer_0", "pytorch_model_fsdp_0")
    assert (left.name, shards) == ("checkpoint-2", [f"{part}/__{rank}_0.distcp" for part in parts for rank in (0, 1)])
    run_training(two["precomputed"], {"num_processes": 2, "use_cpu": True})  # sharded by the trainer's own fields
    printed = capfd.readouterr().out
    assert "step     3/6" in printed
    assert "step     1/6" not in printed
    name = "precomputed"
    assert_as_one_process(name, one[name], (tmp_path / "one" / name, tmp_path / "two" / name))
