"""A process of a launch: trains its jobs one after the other, and kills the second process in the last one."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any
from weakref import WeakSet

from transformers import LlamaForCausalLM, TrainerCallback

from rlhflow_utils.training.trainers import TrainingJob, build_trainer, train


class Kill(TrainerCallback):
    """After the first checkpoint, and with none since."""

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if state.global_step == args.save_steps + 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def models() -> list[LlamaForCausalLM]:
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, LlamaForCausalLM)]


if __name__ == "__main__":
    *jobs, last = (TrainingJob.model_validate_json(Path(file).read_text(encoding="utf-8")) for file in sys.argv[1:])
    for job in jobs:
        train(job)
    before = WeakSet(models())
    trainer = build_trainer(last)
    new = [each for each in models() if each not in before]
    print(f"new models: {len(new)}\n", end="", flush=True)  # in one piece, as two processes write
    trainer.add_callback(Kill())
    trainer.train()
