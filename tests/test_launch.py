"""The second seam: training in two processes through `accelerate launch` gives the losses of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest
import torch
from tiny_training import build_tiny_model, losses, make_job, weights

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import stream_command
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.training.launch import launch_command, release_memory, run_training

KINDS = ("sft", "reward", "dpo")
TWO = {"num_processes": 2, "use_cpu": True}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "start")
    changes = {"per_device_train_batch_size": 2, "count": 20}  # the last batch is smaller: 8, 8 and 4 rows
    one = {kind: run_training(make_job(kind, model, tmp_path / f"{kind}1", **changes), None) for kind in KINDS}
    files = []
    for kind in KINDS:
        files.append(tmp_path / f"{kind}2" / "job.json")
        write_json(files[-1], make_job(kind, model, tmp_path / f"{kind}2", **changes).model_dump(mode="json"))
    # One launch runs all three jobs; run_training would start it three times.
    stream_command([*launch_command(files[0], TWO), *map(str, files[1:])])
    for kind in KINDS:
        two = json.loads((tmp_path / f"{kind}2" / "log.json").read_text())
        assert (two["processes"], one[kind]["processes"]) == (2, 1)
        assert two["steps"] == one[kind]["steps"] == 3
        assert losses(two) == pytest.approx(losses(one[kind]), abs=1e-5), kind
        a, b = weights(tmp_path / f"{kind}1" / "model"), weights(tmp_path / f"{kind}2" / "model")
        assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a), kind


def test_processes_that_do_not_start_are_an_error(tmp_path: Path) -> None:
    job = make_job("sft", build_tiny_model(tmp_path / "start"), tmp_path / "out", count=8)
    with pytest.raises(
        ValueError, match=r"1 processes trained, launch.num_processes is 2: set launch.distributed_type"
    ):
        run_training(job, {**TWO, "distributed_type": "MULTI_CPU"})


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own habit")
def test_freed_memory_goes_back_to_the_system() -> None:
    process = psutil.Process()
    held = [torch.ones(16_384) for _ in range(6_000)]  # 64 KiB each: glibc has no mapping of its own for so little
    full = process.memory_info().rss
    del held[:-1]  # the last one stands in the way of giving back the rest
    release_memory()
    assert full - process.memory_info().rss > 200 * 2**20


def test_a_killed_process_is_named_with_the_way_on() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(RuntimeError, match=r"^job.json ended with exit code -9, killed, often for want of memory; run"):
        stream_command([sys.executable, "-c", kill, "job.json"])


def test_accelerate_reads_the_profiles_configuration(tmp_path: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = launch_command(tmp_path / "job.json", load_profile("llama3-8b").launch or {})
    assert command[-3:] == ["-m", "rlhflow_utils.training.trainers", str(tmp_path / "job.json")]
    arguments = launch_command_parser().parse_args(command[3:])  # after: python -c LAUNCHER
    arguments, _, precision_from_file = _validate_launch_command(arguments)
    assert arguments.use_fsdp
    assert arguments.num_processes == 8
    assert str(arguments.fsdp_version) == "2"
    assert str(arguments.fsdp_cpu_ram_efficient_loading).lower() == "true"
    assert precision_from_file
    assert arguments.mixed_precision == "bf16"
