"""Which training stages a profile leads to, and how much data each will see; nothing is loaded or run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhflow_utils.config import Profile
from rlhflow_utils.settings import TrainingSettings
from rlhflow_utils.source_statistics import PAPER_TABLE1
from rlhflow_utils.training import DpoObjective, TrainingJob, optimiser_steps

ONE_PAIR_A_PROMPT = "at most: one pair a prompt, identical and over-long ones are dropped"
KINDS: dict[str, Literal["sft", "reward", "dpo"]] = {
    "base": "sft", "sft": "sft", "preference": "sft", "reward": "reward", "dpo": "dpo", "offline_dpo": "dpo"
}  # fmt: skip


@dataclass(frozen=True)
class DataSize:
    """How much a stage trains on.

    Attributes:
        rows: pairs or conversations; None: not known before the data is counted.
        row_tokens: mean tokens of a row, over both sequences of a pair; None: not known.
        note: where the numbers come from, or why there are none.
    """

    rows: int | None
    row_tokens: float | None
    note: str


@dataclass(frozen=True)
class PlannedStage:
    """One training stage before it runs.

    Attributes:
        name: its folder.
        recipe: a key of `paper_recipe.PAPER`.
        model: hub id or folder of the architecture; None: the base model that chapter 00 builds.
        start: what it starts from, in words.
        settings: the profile's training section of the stage.
        size: its data.
        packing: whether rows fill blocks of `max_length`.
        objective: eq. 5's settings, for DPO.
        extra: settings beside `settings` that the paper gives, too.
    """

    name: str
    recipe: str
    model: str | None
    start: str
    settings: TrainingSettings
    size: DataSize
    packing: bool = False
    objective: DpoObjective | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def job(self, profile: Profile) -> TrainingJob:
        """The job that the stage would run, with stand-ins for its folders."""
        return TrainingJob(
            kind=KINDS[self.recipe], model=self.model or "model", ref_model="02_sft/model" if self.objective else None,
            dataset="tokenised", output=f"runs/{profile.name}/{self.name}", seed=profile.seed, settings=self.settings,
            model_settings=profile.model, packing=self.packing, dpo=self.objective, report_to=list(profile.report_to),
        )  # fmt: skip

    def samples(self) -> int | None:
        """What the global batch counts: rows, or packed blocks."""
        rows, tokens = self.size.rows, self.size.row_tokens
        if not self.packing or rows is None:
            return rows
        return math.ceil(rows * tokens / self.settings.max_length) if tokens else None

    def steps(self) -> int | None:
        """Optimiser steps of the whole run: `max_steps`, or those of all epochs."""
        samples = self.samples()
        if samples is None:
            return self.settings.max_steps
        return optimiser_steps(samples, self.settings)

    def tokens(self) -> float | None:
        """Tokens seen in the whole run; for DPO pairs, whose lengths nobody knows yet, the most they can be."""
        if self.size.rows is None:
            return None
        each = self.size.row_tokens or (2 * self.settings.max_length if self.objective else None)
        if self.settings.max_steps is not None:
            each = self.settings.max_length if self.packing else each
            return each and self.settings.max_steps * self.settings.global_batch_size * each
        return each and self.size.rows * each * self.settings.num_train_epochs


def planned_stages(profile: Profile) -> Iterator[PlannedStage]:
    """The training stages of a profile, in the order of the chapters."""
    base, preference_base = profile.model.base, profile.model.reward_base
    counted = DataSize(None, None, "counted in chapter 01")
    if profile.base_model:
        tiny = profile.base_model
        yield PlannedStage("00_base_model", "base", None, "random weights", tiny.training, counted, tiny.packing)
    sft, start = profile.sft, base or "the base model"
    size = counted if _local(profile) else DataSize(None, None, "the paper does not state the size of its SFT set")
    yield PlannedStage("02_sft", "sft", base, start, sft.training, size, sft.packing)
    model, start = preference_base or base, preference_base or "the SFT model"
    for mixture in profile.reward_model.mixtures:
        size = mixture_size(profile, mixture, conversations=2)
        yield PlannedStage(f"03_bt_{mixture}", "reward", model, start, profile.reward_model.training, size)
    pm = profile.preference_model
    for mixture in pm.mixtures:
        size = mixture_size(profile, mixture, conversations=1)
        yield PlannedStage(f"04_pm_{mixture}", "preference", model, start, pm.training, size, pm.packing)
    yield from _planned_dpo(profile)


def _planned_dpo(profile: Profile) -> Iterator[PlannedStage]:
    dpo, loop, offline = profile.dpo, profile.iterative, profile.offline_dpo
    objective = DpoObjective(**{name: getattr(dpo, name) for name in DpoObjective.model_fields})
    extra = {**loop.model_dump(), "reference": dpo.reference}
    for iteration in range(1, loop.iterations + 1):
        start = "the last iterate" if iteration > 1 else "the SFT model"
        size = DataSize(loop.prompts_per_iteration * (iteration if loop.replay else 1), None, ONE_PAIR_A_PROMPT)
        yield PlannedStage(
            f"09_iter{iteration}_dpo", "dpo", profile.model.base, start, dpo.training, size, False, objective, extra
        )
    if profile.data.offline_source:
        source = profile.data.offline_source.name
        size = DataSize(
            offline.pairs, None, "offline_dpo.pairs" if offline.pairs else f"{source}: counted in chapter 01"
        )
        start = "the SFT model"
        yield PlannedStage(
            "10_offline_dpo", "offline_dpo", profile.model.base, start, offline.training, size, False, objective
        )


def mixture_size(profile: Profile, mixture: str, conversations: int) -> DataSize:
    """Training pairs of a mixture by the paper's Table 1, where the profile reads the hub.

    Args:
        profile: the profile.
        mixture: name of the mixture.
        conversations: how often a row holds the prompt: 2 for the RM, 1 for the PM.
    """
    members = profile.data.mixtures[mixture]
    known = [PAPER_TABLE1[name] for name in members if name in PAPER_TABLE1]
    if _local(profile) or not known:
        return DataSize(None, None, "counted in chapter 01")
    pairs = sum(row[6] for row in known)
    tokens = sum(row[6] * (conversations * row[1] + row[2] + row[3]) for row in known) / pairs
    split = profile.data.partition
    rows = math.floor(pairs * (1 - split.test - split.sft - split.prompts - split.judge))
    missing = [name for name in members if name not in PAPER_TABLE1]
    without = f"; without {', '.join(missing)}, which is not in it" if missing else ""
    note = f"Table 1 less the held-out pairs; it does not name the tokenizer of its lengths{without}"
    return DataSize(min(rows, profile.data.max_pairs_per_mixture or rows), tokens, note)


def _local(profile: Profile) -> bool:
    """Whether the pairs come from a world or from files, and not from the hub's sets that Table 1 counts."""
    data = profile.data
    return profile.world is not None or data.root is not None or not all(s.hub_id for s in data.preference_sources)
