"""Peak memory of real training steps beside what `training/capacity.py` plans, at three model sizes, on a CPU.

Each case builds a Llama of random weights and takes two optimiser steps of two batches each with the package's own
trainer. Memory is what PyTorch's allocator handed out, as its profiler records it, and the bytes of the parameters: the
counterpart of `torch.cuda.max_memory_allocated`. It does not depend on the machine. ::

    python benchmarks/capacity.py

Writes `results/capacity.json`, which `tests/test_capacity.py` compares with the formulas (5 minutes, 2 GB).
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PATHS = [str(PROJECT), str(PROJECT / "benchmarks")]
RESULT = PROJECT / "results" / "capacity.json"
SIZES = {  # parameters: hidden size, layers, heads, key-value heads, MLP, words
    "5M": (256, 4, 4, 2, 704, 4096), "7M": (256, 4, 4, 2, 704, 8192), "8M": (256, 8, 4, 2, 704, 4096),
    "22M": (512, 6, 8, 4, 1408, 4096), "63M": (768, 8, 12, 4, 2048, 8192),
}  # fmt: skip
CASES: list[dict[str, Any]] = [
    {"kind": "reward", "size": "5M", "batch": 2, "length": 512, "dtype": "float32"},
    {"kind": "reward", "size": "5M", "batch": 2, "length": 512, "dtype": "float32", "padded": True},
    {
        "kind": "reward",
        "size": "5M",
        "batch": 2,
        "length": 512,
        "dtype": "bfloat16",
        "padded": True,
        "checkpointing": False,
    },
    {"kind": "reward", "size": "8M", "batch": 2, "length": 256, "dtype": "bfloat16"},
    {"kind": "reward", "size": "8M", "batch": 2, "length": 256, "dtype": "bfloat16", "checkpointing": False},
    {"kind": "reward", "size": "8M", "batch": 2, "length": 256, "dtype": "bfloat16", "lora": 8},
    {"kind": "reward", "size": "8M", "batch": 2, "length": 256, "dtype": "float32", "lora": 8, "checkpointing": False},
    {"kind": "reward", "size": "63M", "batch": 1, "length": 256, "dtype": "bfloat16"},
    {"kind": "sft", "size": "5M", "batch": 2, "length": 256, "dtype": "bfloat16", "lora": 8},
    {"kind": "sft", "size": "7M", "batch": 2, "length": 512, "dtype": "float32"},
    {"kind": "sft", "size": "22M", "batch": 2, "length": 256, "dtype": "bfloat16"},
    {"kind": "sft", "size": "22M", "batch": 2, "length": 256, "dtype": "float32", "checkpointing": False},
    {"kind": "sft", "size": "63M", "batch": 1, "length": 256, "dtype": "bfloat16"},
    {"kind": "dpo", "size": "5M", "batch": 1, "length": 512, "dtype": "float32"},
    {"kind": "dpo", "size": "5M", "batch": 2, "length": 256, "dtype": "bfloat16", "checkpointing": False},
    {"kind": "dpo", "size": "5M", "batch": 2, "length": 256, "dtype": "bfloat16", "lora": 8},
    {"kind": "dpo", "size": "22M", "batch": 1, "length": 256, "dtype": "bfloat16"},
    {"kind": "dpo", "size": "63M", "batch": 1, "length": 256, "dtype": "float32"},
]


def model_of(case: dict[str, Any], **ids: int) -> Any:
    """The config of a case's Llama; its output matrix is one of its own."""
    from rlhflow_utils.training.pretraining import llama_config

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    *sizes, words = SIZES[case["size"]]
    return llama_config({**dict(zip(names, sizes, strict=True)), "tie_word_embeddings": False}, words, **ids)


def job_of(case: dict[str, Any], folder: Path) -> Any:
    """The job of a case, with two optimiser steps of two batches."""
    from rlhflow_utils.guide.settings import ModelSettings, TrainingSettings
    from rlhflow_utils.training.trainers import TrainingJob

    trainer = {
        "per_device_train_batch_size": case["batch"], "max_length": case["length"], "num_train_epochs": 1,
        "gradient_checkpointing": case.get("checkpointing", True), "save_strategy": "no",
    }  # fmt: skip
    peft = {"r": case["lora"], "target_modules": "all-linear"} if "lora" in case else None
    nothing = dict.fromkeys(("base", "reward_base", "chat_template", "pad_token"))
    start = str(folder / "start")
    return TrainingJob(
        kind=case["kind"], model=start, ref_model=start if case["kind"] == "dpo" else None,
        dataset=str(folder / "rows"), output=str(folder / "out"), seed=0,
        training=TrainingSettings(global_batch_size=2 * case["batch"], trainer=trainer, peft=peft),
        model_settings=ModelSettings(dtype=case["dtype"], attn_implementation="sdpa", **nothing),
    )  # fmt: skip


def prepare(case: dict[str, Any], folder: Path) -> None:
    """A model of random weights, and rows of random tokens that fill `max_length`."""
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    from rlhflow_utils.training.pretraining import train_tokenizer

    draw, length, words = random.Random(0), case["length"], SIZES[case["size"]][-1]
    tokenizer = train_tokenizer(["a b c"], 280)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    LlamaForCausalLM(model_of(case, **ids)).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")

    def tokens(count: int) -> list[int]:
        return [draw.randrange(10, words) for _ in range(count)]

    def row() -> dict[str, list[int]]:
        if case["kind"] == "sft":
            text = tokens(length)
            return {"input_ids": text, "labels": text}
        prompt = {} if case["kind"] == "reward" else {"prompt_ids": tokens(length // 4)}
        answer = length - len(prompt.get("prompt_ids", []))
        return {**prompt, "chosen_ids": tokens(answer), "rejected_ids": tokens(answer - 9 * case.get("padded", False))}

    Dataset.from_list([row() for _ in range(4 * case["batch"])]).save_to_disk(str(folder / "rows"))


def measured(case: dict[str, Any]) -> int:
    """Bytes at the peak of a training: parameters of the policy and of a reference, and what steps allocate."""
    import torch

    from rlhflow_utils.training.trainers import build_trainer

    with tempfile.TemporaryDirectory() as folder:
        prepare(case, Path(folder))
        trainer = build_trainer(job_of(case, Path(folder)))
        models = [trainer.model, *filter(None, [getattr(trainer, "ref_model", None)])]
        held = [each for model in models for each in model.parameters() if each.device.type != "meta"]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.train()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = sum(each.numel() * each.element_size() for each in held)
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def planned(case: dict[str, Any]) -> float:
    """Bytes that the plan has for a case, on a machine without Triton."""
    from rlhflow_utils.training.capacity import training_memory
    from rlhflow_utils.training.trainers import trainer_config

    job = job_of(case, Path())
    config: Any = trainer_config(job)
    config.packing = not case.get("padded", False)  # rows of equal length need no mask either
    return training_memory(model_of(case), case["kind"], config, job.training, triton=False)["peak"]


def main() -> None:
    """Measure every case in a process of its own."""
    found = []
    for case in CASES:
        code = f"import sys; sys.path[:0] = {PATHS}; import capacity; print('measured', capacity.measured({case}))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found.append({**case, "measured": int(re.findall(r"measured (\d+)", run.stdout)[0])})
        print(f"{found[-1]['measured'] / 1e6:8.1f} MB  {case}", flush=True)
        RESULT.write_text("[\n" + ",\n".join(f" {json.dumps(each)}" for each in found) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
