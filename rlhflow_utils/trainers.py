"""TRL's trainers, with two changes each that TRL has no argument for.

1. A row order that a resumed run repeats: transformers' length-grouped sampler draws from torch's global generator,
   whose state after a resume differs from an undisturbed run.
2. DPO takes rows that are tokenised already, as TRL's SFT and reward trainers do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import DPOTrainer, RewardTrainer, SFTTrainer


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
