"""TRL's SFT, reward and DPO trainers on tokenised rows.

A `TrainingJob` is everything that a training run needs, as JSON: the same job runs in one process or in many, which
launch.py starts, with the same losses. `<section>.trainer` of the profile goes to `SFTConfig`, `RewardConfig` or
`DPOConfig` as it is.

Differences from the released code: weights that train are float32 and arithmetic is bfloat16 (autocast) where
`model.dtype` says so, since at a learning rate of 5e-7 an update of a bfloat16 weight rounds to nothing (so policies
are saved in float32, RMs and PMs in bfloat16); weights frozen under an adapter have `model.dtype`; the reference model
is always given, since TRL would load the policy's own start, from the second iteration on the last iterate and not π₀
(paper 3.3).
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import convert_to_fp32, fsdp2_prepare_model
from datasets import load_from_disk
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlhflow_utils.guide.run import end_with_parent, quiet_libraries
from rlhflow_utils.guide.settings import ModelSettings, Profile, Section, TrainingSettings
from rlhflow_utils.guide.stage import Artifact, read_artifact, write_json, write_manifest
from rlhflow_utils.models.chat import load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import check_weights, hub_arguments

CONFIGS: dict[str, Any] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}
KINDS: dict[str, Literal["sft", "reward", "dpo"]] = {  # section of a profile -> which of them
    "sft": "sft", "reward_model": "reward", "preference_model": "sft", "dpo": "dpo", "offline_dpo": "dpo",
}  # fmt: skip
COMPUTED = {  # fields of `trainer` that follow from other settings
    "output_dir": "set RUN_DIR", "seed": "set the profile's seed", "data_seed": "set the profile's seed",
    "gradient_accumulation_steps": "set global_batch_size beside trainer",
    "resume_from_checkpoint": "leave it out, a stage resumes from its own checkpoints",
}  # fmt: skip


class TokenisedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """`DPOTrainer` on token ids: TRL's own would tokenise again, and the policy's own ids must be kept.

    Under FSDP2 the reference model is sharded as the policy is, layer by layer, from the weights of the first process.
    TRL would gather all of it at once, and take the empty weights of the other processes for its own.
    """

    def __init__(self, *arguments: Any, ref_model: transformers.PreTrainedModel, **keywords: Any) -> None:
        self.ref_model = ref_model
        super().__init__(*arguments, ref_model=ref_model, **keywords)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.accelerator.is_fsdp2:
            keep_float32(self.accelerator)
            fsdp2_prepare_model(self.accelerator, self.ref_model)
            self.ref_model.register_state_dict_post_hook(own_shards)

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        return dataset


def keep_float32(accelerator: Accelerator) -> None:
    """Let FSDP2 compute in bfloat16, but return log-probabilities and rewards as they are, in float32.

    accelerate would round these too: the log-probability of an answer, near -300, to a multiple of 2.
    """
    if accelerator.is_fsdp2 and (policy := accelerator.state.fsdp_plugin.mixed_precision_policy):
        accelerator.state.fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def own_shards(module: Any, state: dict[str, Any], *_: Any) -> None:
    """Leave this process' shards in a state dict: TRL hashes the reference model, and no DTensor can be hashed."""
    state.update({name: each.to_local() for name, each in state.items() if isinstance(each, DTensor)})


class TrainingJob(Section):
    """One training run, complete and serialisable. `ref_model` is π₀ of DPO; all but `seed` are paths or settings."""

    kind: Literal["sft", "reward", "dpo"]
    model: str
    ref_model: str | None = None
    dataset: str
    output: str
    final: bool = False  # no training goes on from it: saved as `model.dtype` says, which is how it is always read
    seed: int
    training: TrainingSettings
    model_settings: ModelSettings


def train(job: TrainingJob) -> dict[str, Any]:
    """Run one job here, from its last checkpoint if it has one; a job whose log is there is finished and is not run.

    Writes `<output>/model` (weights, config, tokenizer) and `<output>/log.json`; removes the checkpoints at the end.
    """
    log_file, checkpoints = Path(job.output) / "log.json", Path(job.output) / "checkpoints"
    if log_file.exists():
        shutil.rmtree(checkpoints, ignore_errors=True)  # what a kill has left of them
        return dict(json.loads(log_file.read_text(encoding="utf-8")))
    trainer, started = build_trainer(job), time.time()
    if newest := last_checkpoint(checkpoints):
        print(f"  goes on from step {newest.path.name.rpartition('-')[2]}", flush=True)
    trainer.train(resume_from_checkpoint=str(newest.path) if newest else None)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]  # one entry a step, as TRL logged it
    log = {
        "history": history, "steps": trainer.state.global_step, "processes": trainer.args.world_size,
        "tokens": max((int(entry.get("num_tokens", 0)) for entry in history), default=0),
        "seconds": round(time.time() - started, 1), "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }  # fmt: skip
    save_model(trainer, job)
    if trainer.is_world_process_zero():
        if job.final and job.model_settings.dtype == "bfloat16":
            round_weights(Path(job.output) / "model")
        write_json(log_file, log)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return log


def last_checkpoint(folder: Path) -> Artifact | None:
    """The newest whole checkpoint. One cut off while it was written is removed: its manifest comes last."""
    while folder.is_dir() and (newest := get_last_checkpoint(str(folder))):
        if found := read_artifact(Path(newest)):
            return found
        shutil.rmtree(newest, ignore_errors=True)  # every process of a launch tries it
    return None


def build_trainer(job: TrainingJob) -> transformers.Trainer:
    """The TRL trainer of a job. ValueError: DPO without a reference, or a batch that this machine would change."""
    transformers.set_seed(job.seed)  # before the model: the score head of a fresh RM is random
    arguments = trainer_config(job)
    checkpoints, arguments.save_total_limit = FinishedCheckpoints(arguments.save_total_limit), None
    check_global_batch(arguments, job.training)
    sharded = arguments.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if sharded and arguments.distributed_state.distributed_type == DistributedType.MULTI_CPU:
        arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU  # or accelerate would leave FSDP out
    frozen = bool(job.training.peft or job.training.quantization)
    model, more = load_model(job.model, job, frozen), {}
    if job.kind == "dpo":
        if job.ref_model is None:
            raise ValueError("DPO needs an explicit reference model (π₀): TRL would take the policy's own start")
        more["ref_model"] = load_model(job.ref_model, job, frozen).requires_grad_(False)  # or autocast keeps a copy
    trainers: dict[str, Any] = {"sft": SFTTrainer, "reward": RewardTrainer, "dpo": TokenisedDPOTrainer}
    trainer: transformers.Trainer = trainers[job.kind](
        model, args=arguments, train_dataset=load_from_disk(job.dataset), peft_config=lora_config(job),
        processing_class=load_tokenizer(job.model, job.model_settings),
        callbacks=[StepLines(), StopAtNaN(), checkpoints], **more,
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    keep_float32(trainer.accelerator)
    if job.kind == "dpo" and arguments.precompute_ref_log_probs and not trainer.is_deepspeed_enabled:
        # It is done; TRL, accelerate and FSDP would keep it in memory, beside the optimiser.
        trainer.ref_model = None if trainer.is_fsdp_enabled else trainer.ref_model.to("meta")
        more.clear()
        gc.collect()
    return trainer


def trainer_config(job: TrainingJob, launch: Mapping[str, Any] | None = None) -> transformers.TrainingArguments:
    """TRL's arguments of a job: the few values that the guide must set, and `trainer` of the profile over them.

    The processes of `launch`, or else those that run now, share the global batch.
    """
    given, whole, cuda = job.training.trainer, job.training.global_batch_size, torch.cuda.is_available()
    for name in given.keys() & COMPUTED.keys():
        raise ValueError(f"trainer.{name} is computed by the guide; {COMPUTED[name]}")
    config = CONFIGS[job.kind]
    device_batch = given.get("per_device_train_batch_size", config.per_device_train_batch_size)
    running = os.environ.get("WORLD_SIZE", "1")  # set by accelerate launch
    processes = max(1, int((launch or {}).get("num_processes", running)))
    if whole % (device_batch * processes):
        raise ValueError(
            f"global_batch_size {whole} is not divisible by per_device_train_batch_size {device_batch} x {processes} "
            "processes; change one of them"
        )
    ours = {
        "output_dir": str(Path(job.output) / "checkpoints"), "seed": job.seed, "data_seed": job.seed,
        "gradient_accumulation_steps": whole // (device_batch * processes),
        "bf16": job.model_settings.dtype == "bfloat16",
        "use_cpu": not cuda,  # transformers refuses bf16 without a GPU unless the CPU is asked for
        "dataloader_pin_memory": cuda, "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
        "logging_nan_inf_filter": False,  # transformers would log the last good loss, or 0
        "save_strategy": "steps", "save_total_limit": 2,
        "remove_unused_columns": False,  # the collators pick their fields
    }  # fmt: skip
    return config(**{**ours, **given})


def section_job(profile: Profile, section: str) -> TrainingJob:
    """A job of a profile's section without model or data: enough to build its arguments."""
    return TrainingJob(
        kind=KINDS[section], model="", dataset="", output="", seed=profile.seed, training=getattr(profile, section),
        model_settings=profile.model,
    )  # fmt: skip


def check_global_batch(arguments: transformers.TrainingArguments, training: TrainingSettings) -> None:
    """Raise ValueError where transformers would train on another batch, as it does with idle GPUs in one process."""
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if batch != training.global_batch_size:
        raise ValueError(
            f"the global batch would be {batch}, not {training.global_batch_size}: {arguments.n_gpu} GPUs in each of "
            f"{arguments.world_size} processes; set launch.num_processes to the number of GPUs"
        )


class StepLines(transformers.TrainerCallback):
    """Progress as a few plain lines, which a committed notebook shows as they were."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.started = time.time()
        if 0 < state.max_steps <= args.get_warmup_steps(state.max_steps):  # 0.03 of one step is one
            raise ValueError(
                f"all of {state.max_steps} optimiser steps would be warm-up, from learning rate 0: lower "
                "global_batch_size, raise trainer.num_train_epochs, or set trainer.warmup_steps to 0"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **keywords: Any) -> None:
        step, last = state.global_step, state.max_steps
        due = step % max(1, last // 5) == 0 or step in (1, last)
        if logs and "loss" in logs and due and state.is_world_process_zero:
            loss, seconds = float(logs["loss"]), time.time() - self.started
            print(f"  step {step:5d}/{last}  loss {loss:.4f}  {seconds:5.0f} s", flush=True)


class FinishedCheckpoints(transformers.TrainerCallback):
    """Writes a checkpoint's manifest once all processes have written; only then older ones go, to leave `limit`."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}", {})
            rotate_checkpoints(args.output_dir, self.limit)


class StopAtNaN(transformers.TrainerCallback):
    """Ends a training that has diverged: every weight would be NaN from here on."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **keywords: Any) -> None:
        for name in ("loss",) if args.fp16 else ("loss", "grad_norm"):  # fp16 skips a step whose gradient overflows
            if logs and not math.isfinite(logs.get(name, 0.0)):
                raise ValueError(
                    f"step {state.global_step}: {name} is {logs[name]} at learning rate {logs['learning_rate']:.3g}; "
                    "lower trainer.learning_rate, or look for broken weights in the model that it starts from"
                )


def load_model(path: str, job: TrainingJob, frozen: bool) -> transformers.PreTrainedModel:
    """A causal LM, or for a reward model a sequence classifier with one output (its head fresh or loaded).

    Weights are float32; `frozen` ones, to which an adapter is added, as `model.dtype` and `quantization` say.
    """
    keywords = hub_arguments(path, job.model_settings)
    keywords |= {"dtype": torch.float32, "attn_implementation": job.model_settings.attn_implementation}
    if frozen:
        keywords["dtype"] = job.model_settings.dtype
    if frozen and job.training.quantization:
        keywords["quantization_config"] = transformers.BitsAndBytesConfig(**job.training.quantization)
    auto = transformers.AutoModelForCausalLM
    if job.kind == "reward":
        auto, keywords["num_labels"] = transformers.AutoModelForSequenceClassification, 1
    model, found = auto.from_pretrained(path, output_loading_info=True, **keywords)
    check_weights(path, found, ("score.weight", "lm_head.weight") if job.kind == "reward" else ())
    tokenizer = load_tokenizer(path, job.model_settings)
    model.config.pad_token_id = tokenizer.pad_token_id
    if job.kind == "reward":
        model.config.scored_at_end_of_turn = True  # for `load_scorer`: other RMs read to the end of their template
        model.register_forward_hook(lambda _model, _inputs, output: convert_to_fp32(output))  # FSDP alone would not
        if frozen:
            model.score.to(torch.float32)  # trains beside the adapter
    else:  # saved with the model: whoever generates with it stops where training did
        model.generation_config.eos_token_id = stop_token_ids(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def lora_config(job: TrainingJob) -> Any:
    """The peft configuration of a job, or None where all weights are trained."""
    if job.training.peft is None:
        return None
    ours: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if job.kind == "reward":  # its score head is new: an adapter alone would leave it random
        ours = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    return LoraConfig(**{**ours, **job.training.peft})


def save_model(trainer: transformers.Trainer, job: TrainingJob) -> None:
    """Write `<output>/model`; an adapter is merged first, so that a model is always a plain folder."""
    target, adapter = Path(job.output) / "model", Path(job.output) / "adapter"
    model, whole = trainer.accelerator.unwrap_model(trainer.model), None
    if trainer.is_fsdp_enabled:  # gathered by all processes together, whatever `fsdp_state_dict_type` is
        whole = trainer.accelerator.get_state_dict(trainer.model)
    elif job.training.peft is None:
        trainer.save_model(str(target))  # with the tokenizer; by all processes together
        return
    if not trainer.is_world_process_zero():
        return
    if whole and job.training.peft is None:
        single = {name: each for name, each in whole.items() if name not in model.all_tied_weights_keys}
        model.save_pretrained(target, state_dict=single)
    else:
        if whole or job.training.quantization or job.model_settings.dtype != "float32":
            # Rounding once more would lose the update: merge into the weights as they were before.
            model.save_pretrained(adapter, state_dict=whole)
            model = PeftModel.from_pretrained(load_model(job.model, job, frozen=False), adapter)
        model.merge_and_unload().save_pretrained(target)
    trainer.processing_class.save_pretrained(target)


def round_weights(folder: Path) -> None:
    """Rewrite a saved model's float32 weights in bfloat16, file by file."""
    for file in folder.glob("*.safetensors"):
        rounded = {name: weight.to(torch.bfloat16) for name, weight in load_file(file).items()}
        save_file(rounded, file.with_suffix(".tmp"), metadata={"format": "pt"})
        file.with_suffix(".tmp").replace(file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", {**config, "dtype": "bfloat16"})


if __name__ == "__main__":
    end_with_parent()
    quiet_libraries()
    for job_file in sys.argv[1:]:
        train(TrainingJob.model_validate_json(Path(job_file).read_text(encoding="utf-8")))
