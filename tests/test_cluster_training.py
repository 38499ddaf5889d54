"""Training on a Ray cluster of two nodes, by `launch` alone: the losses and the model of one process."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from lost_actors import actors, two_nodes
from tiny_training import FSDP, build_tiny_model, losses, make_job, weights

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.training import launch
from rlhflow_utils.training.launch import LAUNCHER, launch_command, launch_config, launch_environment, run_training
from rlhflow_utils.training.trainers import train

TWO_MACHINES = {**FSDP, "num_machines": 2}
STEPS = {"per_device_train_batch_size": 2, "count": 20, "num_train_epochs": 10, "save_steps": 5}  # 30 steps


@pytest.fixture
def cluster() -> Iterator[Any]:
    with two_nodes() as cluster:
        yield cluster


def kill_one(checkpoints: Path, killed: list[psutil.Process]) -> None:
    """Kill one of the processes that train once there is a checkpoint, of which the manifest is written last."""
    while not (checkpoints / "checkpoint-5" / "manifest.json").exists():
        time.sleep(0.02)
    killed.extend(actors(name="RayTrainWorker")[-1:])
    killed[0].kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_train_as_one_process_also_where_one_is_lost(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DPO, whose reference model is sharded and sent over the nodes too."""
    start = build_tiny_model(tmp_path / "start")
    one = train(make_job("dpo", start, tmp_path / "one", **STEPS))
    job, killed = make_job("dpo", start, tmp_path / "two", **STEPS), list[psutil.Process]()
    with pytest.raises(
        ValueError, match=r"^launch: 2 processes on 3 machines do not fit into the Ray cluster of 2 mach"
    ):
        run_training(job, {**TWO_MACHINES, "num_machines": 3})
    Thread(target=kill_one, args=(tmp_path / "two" / "checkpoints", killed), daemon=True).start()
    log = run_training(job, TWO_MACHINES)
    assert len(killed) == 1
    assert (log["processes"], log["steps"], one["steps"]) == (2, 30, 30)
    assert losses(log) == pytest.approx(losses(one), abs=1e-4)
    a, b = weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model")
    assert a.keys() == b.keys()
    for name, weight in a.items():
        assert torch.allclose(weight, b[name], atol=1e-4), name
    assert not actors(name="RayTrainWorker")
    files = Path(cluster.head_node.get_session_dir_path(), "logs").glob("worker-*.out")
    steps = [line.split()[1] for file in files for line in file.read_text().splitlines() if line.startswith("  step")]
    assert steps.count("1/30") == steps.count("30/30") == 1, "it went on from the checkpoint"
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "job.json", "launch.yaml", "log.json", "model", "tokenised",
    }  # fmt: skip
    monkeypatch.setattr(launch, "RESTARTS", 0)
    with pytest.raises(ValueError, match=r"^step [23]: (loss|grad_norm) is (nan|inf) at learning rate .*; lower"):
        run_training(make_job("sft", start, tmp_path / "diverges", **{**STEPS, "learning_rate": 1e30}), TWO_MACHINES)


PRINT = "import json, os; print('environment', json.dumps(dict(os.environ)))"


def test_processes_get_the_variables_of_accelerate_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = {**(load_profile("llama3-8b").launch or {}), "num_processes": 1}
    (tmp_path / "show.py").write_text(PRINT)
    command = launch_command(tmp_path / "job.json", given)
    shown = subprocess.run([*command[:-3], str(tmp_path / "show.py")], capture_output=True, text=True, cwd=PROJECT)
    theirs = json.loads(shown.stdout.partition("environment ")[2])
    ours = launch_environment(tmp_path / "job.json", launch_config({**given, "num_machines": 2}))
    prefixes = ("ACCELERATE_", "FSDP_")
    assert LAUNCHER in command
    assert ours == {name: value for name, value in theirs.items() if name.startswith(prefixes)}
    assert (ours["ACCELERATE_USE_FSDP"], ours["FSDP_VERSION"]) == ("true", "2")
    with pytest.raises(ValueError, match=r"^launch: on several machines set distributed_type: MULTI_GPU"):
        launch_environment(tmp_path / "job.json", {**launch_config(given), "distributed_type": "DEEPSPEED"})
