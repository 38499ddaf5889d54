"""A tiny real model, rows and jobs for the tests of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from datasets import Dataset

from rlhflow_utils.guide.settings import ModelSettings, TrainingSettings
from rlhflow_utils.models.chat import load_tokenizer
from rlhflow_utils.training.pretraining import build_model, train_tokenizer
from rlhflow_utils.training.stages import dpo_tokens, length_order, reward_tokens, sft_tokens, tokenise
from rlhflow_utils.training.trainers import TrainingJob

WORDS = "the red cat sat on a mat with 12 dogs and 3 birds near blue river stone".split()
MODEL_SETTINGS = ModelSettings(
    base=None, reward_base=None, dtype="float32", attn_implementation="sdpa", chat_template=None, pad_token=None
)
TRAINER = {
    "learning_rate": 5e-3, "num_train_epochs": 1, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine",
    "warmup_steps": 0, "max_length": 128, "train_sampling_strategy": "sequential", "gradient_checkpointing": False,
    "save_steps": 100,
}  # fmt: skip
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2}

# An accelerate configuration: FSDP2 over two processes on CPUs; the first alone reads weights.
FSDP = {
    "num_processes": 2, "distributed_type": "FSDP", "use_cpu": True, "mixed_precision": "no",
    "fsdp_config": {
        "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT", "fsdp_offload_params": False,
        "fsdp_activation_checkpointing": False, "fsdp_cpu_ram_efficient_loading": True,
    },
}  # fmt: skip


def build_tiny_model(folder: Path) -> Path:
    """A Llama of two narrow layers with a tokenizer of 300 tokens."""
    draw = random.Random(0)
    tokenizer = train_tokenizer([" ".join(draw.choices(WORDS, k=20)) for _ in range(100)], 300)
    model = build_model(tokenizer, seed=0, **SIZES, max_position_embeddings=256, initializer_range=0.06)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def preference_rows(count: int) -> Dataset:
    """Standard preference rows of random words."""
    draw = random.Random(1)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": text(3, 10)}],
                "chosen": [{"role": "assistant", "content": text(2, 8)}],
                "rejected": [{"role": "assistant", "content": text(2, 8)}],
            }
            for _ in range(count)
        ]
    )


def tokenised_rows(kind: str, model: Path, count: int) -> Dataset:
    """Rows as a stage hands them to a trainer."""
    tokenizer = load_tokenizer(model)
    rows = preference_rows(count)
    if kind == "sft":
        rows = rows.map(lambda row: {"messages": row["prompt"] + row["chosen"]}, remove_columns=rows.column_names)
    functions = {
        "sft": lambda row: sft_tokens(row, tokenizer, completion_only=True),
        "reward": lambda row: reward_tokens(row, tokenizer),
        "dpo": lambda row: dpo_tokens(row, tokenizer),
    }
    kept = tokenise(rows, functions[kind], TRAINER["max_length"])[0]
    return kept.select(length_order(kept["length"][:], 8, seed=1))


def make_job(
    kind: Any,
    model: Path,
    out: Path,
    count: int = 24,
    reference: Path | None = None,
    rows: Dataset | None = None,
    peft: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainingJob:
    """A training job; `changes` replace fields of TRL's arguments."""
    data = rows if rows is not None else tokenised_rows(kind, model, count)
    data.save_to_disk(str(out / "tokenised"))
    training = TrainingSettings(global_batch_size=8, trainer={**TRAINER, **changes}, peft=peft)
    return TrainingJob(
        kind=kind, model=str(model), ref_model=str(reference or model) if kind == "dpo" else None,
        dataset=str(out / "tokenised"), output=str(out), seed=1, training=training, model_settings=MODEL_SETTINGS,
    )  # fmt: skip


def losses(log: dict[str, Any]) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in log["history"]]


def weights(model: Path) -> dict[str, Any]:
    """Tensors of a saved model, by name."""
    from safetensors.torch import load_file

    return dict(load_file(model / "model.safetensors"))
