"""TRL's SFT, reward and DPO trainers, built from the profile and run here or through `accelerate launch`.

TRL is imported here and in `trainers.py` alone. A `TrainingJob` is everything that a training run needs, as JSON: the
same job runs in the chapter's process (`launch.num_processes: 0`) or in N child processes
(`accelerate launch -m rlhflow_utils.training.trainers job.json`), with the same losses.

Deviations from the released code:
- the weights are float32 and the arithmetic bfloat16 (autocast) where `model.dtype` says so: at a learning rate of 5e-7
  an update of a bfloat16 weight rounds to nothing;
- the reference model is always passed explicitly. TRL would otherwise load the policy's own start, which from the
  second iteration on is the previous iterate and not π₀ (paper 3.3).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from rlhflow_utils.guide.child_process import end_with_parent, stream_command
from rlhflow_utils.guide.provenance import PROJECT, quiet_libraries
from rlhflow_utils.guide.settings import LaunchSettings, ModelSettings, Section, TrainingSettings
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.models.chat import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments


class SeededLengthSampler(Sampler[int]):
    """Batches of rows of similar length, in random order; the order depends on the seed and the epoch alone.

    transformers' own `LengthGroupedSampler` runs from long to short rows again and again. Where length goes with
    content (a statement, an exam sheet), training then sees one kind of text after the other and forgets in between.
    """

    GROUP = 50  # batches sorted together: enough for little padding, few enough to stay random

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        self.batch_size = batch_size
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the start of an epoch, resumed or not."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        span = self.batch_size * self.GROUP
        batches: list[list[int]] = []
        for start in range(0, len(rows), span):
            group = sorted(rows[start : start + span], key=lambda row: self.lengths[row])
            batches += [group[i : i + self.batch_size] for i in range(0, len(group), self.batch_size)]
        short = [batch for batch in batches if len(batch) < self.batch_size]  # at most one; it must come last
        full = [batch for batch in batches if len(batch) == self.batch_size]
        order = torch.randperm(len(full), generator=generator).tolist()
        return iter([row for batch in [*(full[i] for i in order), *short] for row in batch])


class RepeatableOrder:
    """Mixin: length-grouped sampling through `SeededLengthSampler`."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[attr-defined]
        arguments = self.args  # type: ignore[attr-defined]
        if arguments.train_sampling_strategy != "group_by_length" or "length" not in dataset.column_names:
            # Packed blocks have no length column: they are all equally long.
            arguments.train_sampling_strategy = "random"
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        return SeededLengthSampler(batch, dataset["length"][:], arguments.seed)


class TokenisedSFTTrainer(RepeatableOrder, SFTTrainer):
    """`SFTTrainer` on rows of `input_ids` and `labels`."""


class TokenisedRewardTrainer(RepeatableOrder, RewardTrainer):
    """`RewardTrainer` on rows of `chosen_ids` and `rejected_ids`."""


class TokenisedDPOTrainer(RepeatableOrder, DPOTrainer):
    """`DPOTrainer` on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        return dataset


class StepLines(TrainerCallback):
    """Progress as a few plain lines, which a committed notebook shows as they were."""

    LINES = 5

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.started = time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **keywords: Any) -> None:
        every = max(1, state.max_steps // self.LINES)
        due = state.global_step % every == 0 or state.global_step in (1, state.max_steps)
        if logs and "loss" in logs and due and state.is_world_process_zero:
            seconds = time.time() - self.started
            print(
                f"  step {state.global_step:5d}/{state.max_steps}  loss {float(logs['loss']):.4f}  {seconds:5.0f} s",
                flush=True,
            )


TRAINERS = {"sft": TokenisedSFTTrainer, "reward": TokenisedRewardTrainer, "dpo": TokenisedDPOTrainer}


CHECKPOINTS_KEPT = 2
# `accelerate launch`, but ended when its parent is killed: an orphan would write into a resumed run.
LAUNCHER = (
    "from rlhflow_utils.guide.child_process import end_with_parent; end_with_parent(); "
    "from accelerate.commands.launch import main; main()"
)


class DpoObjective(Section):
    """What eq. 5 needs beside the common training settings."""

    beta: float
    loss_type: str
    label_smoothing: float
    precompute_ref_log_probs: bool


class TrainingJob(Section):
    """One training run, complete and serialisable."""

    kind: Literal["sft", "reward", "dpo"]
    model: str
    ref_model: str | None
    dataset: str
    output: str
    seed: int
    settings: TrainingSettings
    model_settings: ModelSettings
    packing: bool
    dpo: DpoObjective | None
    report_to: list[str]


def run_training(job: TrainingJob, launch: LaunchSettings) -> dict[str, Any]:
    """Train, in this process or in children, and return the training log (also `<output>/log.json`)."""
    if launch.num_processes == 0:
        return train(job)
    job_file = Path(job.output) / "job.json"
    write_json(job_file, job.model_dump(by_alias=True, mode="json"))
    stream_command(launch_command(job_file, launch))
    log: dict[str, Any] = json.loads((Path(job.output) / "log.json").read_text(encoding="utf-8"))
    return log


def train(job: TrainingJob) -> dict[str, Any]:
    """Run one job in this process; with a checkpoint under its output it goes on from there.

    Writes `<output>/model` (weights, config, tokenizer) and `<output>/log.json`; removes the checkpoints at the end.
    A job whose log is there is finished: it is not run again.
    """
    log_file = Path(job.output) / "log.json"
    if log_file.exists():
        finished: dict[str, Any] = json.loads(log_file.read_text(encoding="utf-8"))
        return finished
    trainer = build_trainer(job)
    checkpoint = last_checkpoint(Path(job.output) / "checkpoints")
    started = time.time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    log = training_log(trainer, time.time() - started)
    save_model(trainer, job)
    if trainer.is_world_process_zero():
        write_json(log_file, log)
        shutil.rmtree(Path(job.output) / "checkpoints", ignore_errors=True)
    return log


def build_trainer(job: TrainingJob) -> Trainer:
    """The TRL trainer of a job: model, reference, arguments, tokenised rows in a resumable order."""
    from datasets import load_from_disk
    from transformers import PrinterCallback, set_seed

    set_seed(job.seed)  # before the model: the score head of a fresh RM is random
    arguments = training_arguments(job)
    _check_global_batch(arguments, job.settings)
    keywords: dict[str, Any] = {
        "model": load_model(job.model, job),
        "args": arguments,
        "train_dataset": load_from_disk(job.dataset),
        "processing_class": load_tokenizer(job.model, job.model_settings),
        "peft_config": lora_config(job),
    }
    if job.kind == "dpo":
        if job.ref_model is None:
            raise ValueError("DPO needs an explicit reference model (π₀): TRL would take the policy's own start")
        keywords["ref_model"] = load_model(job.ref_model, job)
    if job.settings.muon_learning_rate is not None:
        keywords["optimizers"] = (_muon(keywords["model"], arguments, job.settings.muon_learning_rate), None)
    trainer: Any = TRAINERS[job.kind](**keywords, callbacks=[StepLines()])
    trainer.remove_callback(PrinterCallback)
    built: Trainer = trainer
    return built


def training_arguments(job: TrainingJob, num_processes: int | None = None) -> TrainingArguments:
    """The exact TRL arguments of a job.

    Args:
        job: the run.
        num_processes: processes that share the global batch; None: as many as run now.

    Raises:
        ValueError: the global batch is not divisible among processes and per-device batches.
    """
    from trl import DPOConfig, RewardConfig, SFTConfig

    settings = job.settings
    common: dict[str, Any] = {
        "output_dir": str(Path(job.output) / "checkpoints"),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.num_train_epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, num_processes or _world_size()),
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_ratio,  # below 1: a share of all steps
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "max_length": settings.max_length,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": job.model_settings.dtype == "bfloat16",
        "use_cpu": not _cuda(),  # transformers refuses bf16 without a GPU unless the CPU is asked for
        "train_sampling_strategy": "group_by_length" if settings.group_by_length else "random",
        "remove_unused_columns": False,  # the length column must reach the sampler; the collators pick their fields
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": CHECKPOINTS_KEPT,
        "logging_steps": 1,
        "report_to": job.report_to or "none",
        "disable_tqdm": True,
        "seed": job.seed,
        "data_seed": job.seed,
        "dataloader_pin_memory": _cuda(),
    }
    if job.kind == "sft":
        # 'wrapped' cuts one long stream into blocks, as the paper's packing does; 'bfd' would switch padding-free
        # attention on, where without FlashAttention samples of one block see each other anyway.
        return SFTConfig(**common, packing=job.packing, packing_strategy="wrapped", shuffle_dataset=job.packing)
    if job.kind == "reward":
        return RewardConfig(**common)
    assert job.dpo is not None
    return DPOConfig(**common, **{**job.dpo.model_dump(), "loss_type": [job.dpo.loss_type]})


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Micro-batches per optimiser step, so that the global batch is exact."""
    together = settings.per_device_train_batch_size * num_processes
    if settings.global_batch_size % together:
        raise ValueError(
            f"global_batch_size {settings.global_batch_size} is not divisible by per_device_train_batch_size "
            f"{settings.per_device_train_batch_size} x {num_processes} processes; change one of them"
        )
    return settings.global_batch_size // together


def optimiser_steps(rows: int, settings: TrainingSettings) -> int:
    """Optimiser steps of a run over `rows` rows: the last, smaller batch of an epoch counts as a step."""
    if settings.max_steps is not None:
        return settings.max_steps
    return math.ceil(math.ceil(rows / settings.global_batch_size) * settings.num_train_epochs)


def load_model(path: str, job: TrainingJob, quantise: bool = True) -> PreTrainedModel:
    """A causal LM, or for a reward model a sequence classifier with one output (its head fresh or loaded)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    local = Path(path).exists()
    keywords: dict[str, Any] = {
        "dtype": torch.float32,
        "attn_implementation": job.model_settings.attention,
        "revision": None if local else job.model_settings.revision,
        "trust_remote_code": False,
    }
    if quantise and job.settings.lora and job.settings.lora.load_in_4bit:
        keywords["quantization_config"] = _four_bit()
    if job.kind == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **keywords)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, **keywords)
    model.config.pad_token_id = load_tokenizer(path, job.model_settings).pad_token_id
    return model


def lora_config(job: TrainingJob) -> Any:
    """The peft configuration of a job, or None for full fine-tuning."""
    lora = job.settings.lora
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="SEQ_CLS" if job.kind == "reward" else "CAUSAL_LM",
        modules_to_save=["score"] if job.kind == "reward" else None,
    )


def save_model(trainer: Trainer, job: TrainingJob) -> None:
    """Write `<output>/model`; an adapter is merged first, so that a model is always a plain folder."""
    target = Path(job.output) / "model"
    if job.settings.lora and trainer.is_world_process_zero():
        _merged_model(trainer, job).save_pretrained(target)
    elif not job.settings.lora:
        trainer.save_model(str(target))
    if trainer.is_world_process_zero():
        trainer.processing_class.save_pretrained(target)


def _merged_model(trainer: Trainer, job: TrainingJob) -> PreTrainedModel:
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    if job.settings.lora and job.settings.lora.load_in_4bit:
        from peft import PeftModel

        # Rounding to 4 bit again would lose the update: merge into the weights as they were before quantisation.
        adapter = Path(job.output) / "adapter"
        adapted.save_pretrained(adapter)
        adapted = PeftModel.from_pretrained(load_model(job.model, job, quantise=False), adapter)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def training_log(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Loss curve and cost: one entry a step, as TRL logged it."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    tokens = max((int(entry.get("num_tokens", 0)) for entry in history), default=0)
    return {
        "history": history,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. One cut off while it was written is removed: its state file comes last."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append(checkpoint)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(checkpoint, ignore_errors=True)  # every process of a launch tries it
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def launch_command(job_file: Path, launch: LaunchSettings) -> list[str]:
    """The `accelerate launch` command line of a job."""
    command = [sys.executable, "-c", LAUNCHER, "--num_processes", str(launch.num_processes)]
    if launch.accelerate_config:
        command += ["--config_file", str(PROJECT / launch.accelerate_config)]
    else:
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", str(_free_port())]
    if launch.use_cpu:
        command.append("--cpu")
    return [*command, "-m", "rlhflow_utils.training.trainers", str(job_file)]


def _muon(model: PreTrainedModel, arguments: TrainingArguments, muon_lr: float) -> Any:
    from rlhflow_utils.training.base_model import Muon

    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return Muon(model, muon_lr, arguments.learning_rate, betas, arguments.weight_decay)


def _four_bit() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch


def _check_global_batch(arguments: TrainingArguments, settings: TrainingSettings) -> None:
    """Raise ValueError where transformers would train on another batch, as it does with idle GPUs in one process."""
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if batch != settings.global_batch_size:
        raise ValueError(
            f"the global batch would be {batch}, not {settings.global_batch_size}: {arguments.n_gpu} GPUs in each of "
            f"{arguments.world_size} processes; set launch.num_processes to the number of GPUs"
        )


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    end_with_parent()
    quiet_libraries()
    for job_file in sys.argv[1:]:
        train(TrainingJob.model_validate_json(Path(job_file).read_text(encoding="utf-8")))
