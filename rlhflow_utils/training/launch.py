"""Where the processes of a training run: here, by `accelerate launch` on one machine, by Ray Train on several.

All run `trainers.train`. `launch` of a profile is an accelerate configuration, which reaches the processes as the same
environment variables either way. On several machines Ray Train takes the cluster of RAY_ADDRESS, as `spread` does.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.guide.run import quiet_libraries, stream_command
from rlhflow_utils.guide.spread import RESTARTS, connect
from rlhflow_utils.guide.stage import check_contents, write_json
from rlhflow_utils.training.trainers import TrainingJob, last_checkpoint, train

# `accelerate launch`, but killed with its parent, so that it cannot write into a resumed run.
LAUNCHER = (
    "from rlhflow_utils.guide.run import end_with_parent; end_with_parent(); "
    "from accelerate.commands.launch import main; main()"
)


def run_training(job: TrainingJob, launch: Mapping[str, Any] | None) -> dict[str, Any]:
    """Train, in this process or in others, and return the training log (also `<output>/log.json`)."""
    if not (Path(job.output) / "log.json").exists() and (newest := last_checkpoint(Path(job.output) / "checkpoints")):
        check_contents(newest.path, tuple(newest.manifest["contents"].items()))  # here, and not in every process
    if launch is not None:
        job_file = Path(job.output) / "job.json"
        write_json(job_file, job.model_dump(mode="json"))
        if launch.get("num_machines", 1) > 1:
            train_on_cluster(job, launch_config(launch))
        else:
            stream_command(launch_command(job_file, launch))
    release_memory()
    log = train(job)  # after others: reads their log
    release_memory()
    wanted = 1 if launch is None else launch.get("num_processes", 1)
    if log["processes"] != wanted:  # accelerate starts a single one for distributed_type MULTI_CPU, without a word
        raise ValueError(
            f"{log['processes']} processes trained, launch.num_processes is {wanted}: set launch.distributed_type to "
            "MULTI_GPU (also with use_cpu: true) or FSDP"
        )
    return log


def release_memory() -> None:
    """Give freed memory back to the system: of a training on a CPU, glibc would keep gigabytes."""
    gc.collect()
    with suppress(AttributeError):  # macOS has no malloc_trim, and needs none
        ctypes.CDLL(None).malloc_trim(0)


def launch_config(launch: Mapping[str, Any]) -> dict[str, Any]:
    """An accelerate configuration: `launch`, and where it says nothing, one machine and plain data parallelism."""
    several = launch.get("num_processes", 1) > 1
    return {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU" if several else "NO",
        "mixed_precision": "no", "use_cpu": False, "num_machines": 1, "machine_rank": 0,
        "main_process_port": 0, **launch,  # a free port: two runs on one machine must not meet
    }  # fmt: skip


def launch_command(job_file: Path, launch: Mapping[str, Any]) -> list[str]:
    """The `accelerate launch` command line of a job; the profile's `launch` is written to a file beside the job."""
    file = job_file.with_name("launch.yaml")
    file.write_text(yaml.safe_dump(launch_config(launch)), encoding="utf-8")
    command = [sys.executable, "-c", LAUNCHER, "--config_file", str(file)]
    return [*command, "-m", "rlhflow_utils.training.trainers", str(job_file)]


def train_on_cluster(job: TrainingJob, config: Mapping[str, Any]) -> None:
    """Train in a Ray Train worker for each process. Where one is lost, all start again from the last checkpoint."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    folder, machines = Path(job.output) / "ray", connect()
    count, on_gpu, placement = config["num_processes"], not config["use_cpu"], "SPREAD" if config["use_cpu"] else "PACK"
    if len(machines) < config["num_machines"] or (on_gpu and sum(machines) < count):
        raise ValueError(
            f"launch: {count} processes on {config['num_machines']} machines do not fit into the Ray cluster of "
            f"{len(machines)} machines with {sum(machines)} GPUs; `ray start` on more and set RAY_ADDRESS=auto"
        )
    environment = launch_environment(Path(job.output) / "job.json", config)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    trainer = TorchTrainer(
        _worker, train_loop_config=job.model_dump(mode="json"),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=on_gpu, placement_strategy=placement),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo"),
        run_config=RunConfig(
            name="training", storage_path=str(folder), failure_config=FailureConfig(max_failures=RESTARTS),
            worker_runtime_env={"env_vars": environment},
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise next(iter(error.worker_failures.values())) from error
    shutil.rmtree(folder)


def launch_environment(job_file: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The variables that `accelerate launch` would set for a job; Ray adds where the processes find each other."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    if config["distributed_type"] == "DEEPSPEED":
        raise ValueError("launch: on several machines set distributed_type: MULTI_GPU, and DeepSpeed in each trainer")
    command = launch_command(job_file, {**config, "num_machines": 1})
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command[3:]))
    return {name: value for name, value in prepare_multi_gpu_env(arguments).items() if os.environ.get(name) != value}


def _worker(job: dict[str, Any]) -> None:
    quiet_libraries()
    train(TrainingJob.model_validate(job))
