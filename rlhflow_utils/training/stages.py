"""The training stages: which rows, which start, which settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhflow_utils.data.reading import Root
from rlhflow_utils.data.sources import load_texts
from rlhflow_utils.guide import settings as sections
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage, write_json
from rlhflow_utils.models.chat import IGNORED, accepted, encode_conversation, encode_prompt, encode_turn, load_tokenizer
from rlhflow_utils.models.forward import Model, model_path
from rlhflow_utils.models.preference_model import training_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Launch = dict[str, Any] | None
Tokens = Callable[..., dict[str, Any] | list[dict[str, Any]]]  # of a row
GROUP = 50  # batches sorted by length together: enough for little padding, few enough to stay random


@stage
def train_base_model(
    settings: sections.BaseModelSettings, world: sections.WorldSettings | None, root: Root, seed: int, *, into: Path
) -> Summary:
    """Chapter 00: tokenizer and tiny Llama, pretrained on documents of the world or on texts of a corpus."""
    from rlhflow_utils.training.pretraining import documents_of, pretrain

    texts = load_texts(settings.corpus, root) if settings.corpus else None
    log = pretrain(documents_of(texts, world), settings, seed, into)
    write_json(into / "log.json", log)
    rows = {"texts": Rows(len(texts), len(texts))} if texts else {}
    return Summary(rows, {"last_loss": log["history"][-1]["loss"], "training_seconds": log["seconds"]})


@stage
def train_sft(
    data: Artifact, base: Model, settings: sections.TrainingSettings,
    model: sections.ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 02: the SFT model π₀ (paper 3.1)."""
    tokens = partial(sft_tokens, completion_only=bool(settings.trainer.get("completion_only_loss")))
    return _train("sft", base, data.dataset("sft"), tokens, seed, settings, model, launch, into)


@stage
def train_reward_model(
    data: Artifact, mixture: str, start: Model, settings: sections.RewardModelSettings,
    model: sections.ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 03: a Bradley-Terry reward model on one mixture (paper 2.2, eq. 4)."""
    return _train(
        "reward", start, data.dataset(mixture), reward_tokens, seed, settings, model, launch, into, final=True
    )


@stage
def train_preference_model(
    data: Artifact, mixture: str, start: Model, settings: sections.PreferenceModelSettings,
    model: sections.ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 04: the pairwise preference model on one mixture, as instruction following (paper 2.2)."""
    tokens = partial(training_tokens, seed=seed)
    return _train("sft", start, data.dataset(mixture), tokens, seed, settings, model, launch, into, final=True)


@stage
def train_dpo(
    policy: Model, reference: Model, pairs: Sequence[Artifact], settings: sections.DpoSettings,
    model: sections.ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 09: one iteration of DPO (eq. 5) from `policy`, measured against `reference`, on all of `pairs`."""
    from datasets import concatenate_datasets

    rows, pi_0 = concatenate_datasets([each.dataset() for each in pairs]), model_path(reference)
    return _train("dpo", policy, rows, dpo_tokens, seed, settings, model, launch, into, ref_model=pi_0)


@stage
def train_offline_dpo(
    data: Artifact, subset: str, sft: Model, settings: sections.OfflineDpoSettings,
    model: sections.ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 10: vanilla DPO on pairs of other models (paper App. B: Nectar), from π₀ with π₀ as reference."""
    rows = data.dataset(subset)
    kept = rows.shuffle(seed=seed).select(range(min(settings.pairs, len(rows)))) if settings.pairs else rows
    pi_0 = model_path(sft)
    trained = _train("dpo", sft, kept, dpo_tokens, seed, settings, model, launch, into, ref_model=pi_0, final=True)
    counted = Rows(len(rows), len(kept), {"subsample": len(rows) - len(kept)})
    return Summary({"offline_pairs": counted, **trained.rows}, trained.metrics)


def _train(
    kind: Literal["sft", "reward", "dpo"], start: Model, rows: Dataset, tokens: Tokens, seed: int,
    settings: sections.TrainingSettings, model: sections.ModelSettings, launch: Launch, into: Path, **more: Any,
) -> Summary:  # fmt: skip
    """Tokenise, count what is dropped, train, and report the run."""
    from rlhflow_utils.training.launch import run_training
    from rlhflow_utils.training.trainers import TrainingJob, trainer_config

    job = TrainingJob(
        kind=kind, model=model_path(start), dataset=str(into / "tokenised"), output=str(into), seed=seed,
        training=settings, model_settings=model, **more,
    )  # fmt: skip
    config: Any = trainer_config(job, launch)
    kept, dropped = tokenise(rows, partial(tokens, tokenizer=load_tokenizer(start, model)), config.max_length)
    name, made = into.name.split("@")[0], len(kept) + sum(dropped.values())
    if not len(kept):
        raise ValueError(
            f"{name}: no row is left; dropped {dropped} (trainer.max_length is {config.max_length} tokens)"
        )
    if made > len(rows):
        print(
            f"{name}: {made} rows of {len(rows)} conversations, as the template shows past turns otherwise", flush=True
        )
    if config.train_sampling_strategy == "sequential":
        kept = kept.select(length_order(kept["length"][:], settings.global_batch_size, seed))
    shutil.rmtree(job.dataset, ignore_errors=True)  # with what a kill has left of caches
    kept.save_to_disk(job.dataset)
    log = run_training(job, launch)
    losses = [entry["loss"] for entry in log["history"]]
    metrics = {"first_loss": losses[0], "last_loss": losses[-1], "training_seconds": log["seconds"]}
    return Summary({"training_rows": Rows(made, len(kept), dropped)}, {**metrics, "steps": log["steps"]})


# --- rows -----------------------------------------------------------------------------------------------------------


def sft_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, completion_only: bool) -> list[dict[str, Any]]:
    """SFT rows: a conversation under `messages`, the loss on every assistant turn or on everything.

    Mostly one row. Where the template shows an answer otherwise once the conversation goes on (Qwen3 leaves its
    thoughts out), every assistant turn is a row of its own, after the history as the model then sees it.
    """
    messages = row["messages"]
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [encode_turn(messages[:place], messages[place]["content"], tokenizer) for place in places]
    last = turns[-1][0] + turns[-1][1]
    whole = all(last[: len(prompt) + len(response)] == prompt + response for prompt, response in turns)
    rows = []
    for group in [turns] if whole else [[turn] for turn in turns]:
        ids = group[-1][0] + group[-1][1]
        labels = [IGNORED] * len(ids)
        for prompt, response in group:
            labels[len(prompt) : len(prompt) + len(response)] = response
        rows.append({"input_ids": ids, "labels": labels if completion_only else ids})
    return rows


def reward_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """BT row: the two whole conversations (eq. 4 compares r(x, a_w) with r(x, a_l))."""
    return {
        f"{side}_ids": encode_conversation(row["prompt"], row[side][-1]["content"], tokenizer)
        for side in ("chosen", "rejected")
    }


def dpo_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """DPO row (eq. 5). Token ids that a policy generated are used as they are, text is tokenised."""
    out = {"prompt_ids": encode_prompt(row["prompt"], tokenizer)}
    for side in ("chosen", "rejected"):
        ids = row.get(f"{side}_ids")
        out[f"{side}_ids"] = ids or encode_turn(row["prompt"], row[side][-1]["content"], tokenizer)[1]
    return out


def tokenise(rows: Dataset, function: Tokens, max_length: int | None) -> tuple[Dataset, dict[str, int]]:
    """Rows of a row function with their `length` (tokens of the longest sequence), and how many are dropped, by reason.

    A pair of the same tokens teaches nothing: `identical_tokens`. `refused_by_template` counts whole conversations.
    """
    refused: list[None] = []

    def with_fate(tokens: dict[str, Any]) -> dict[str, Any]:
        sides = [tokens[name] for name in ("input_ids", "chosen_ids", "rejected_ids") if name in tokens]
        length = len(tokens.get("prompt_ids", [])) + max(map(len, sides))
        for token, label in zip(tokens.get("input_ids", []), tokens.get("labels", []), strict=True):
            if label not in (IGNORED, token):
                raise ValueError(f"a training row has the label {label} at the token {token}; they must be equal")
        same = tokens.get("identical", False) or (len(sides) == 2 and sides[0] == sides[1])
        fate = "identical_tokens" if same else "too_long" if max_length and length > max_length else "kept"
        return {**tokens, "length": length, "fate": fate}

    def tokenised(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        made = [accepted(function, dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
        refused.extend(one for one in made if one is None)
        flat = [with_fate(each) for one in made if one for each in (one if isinstance(one, list) else [one])]
        return {name: [each[name] for each in flat] for name in (flat[0] if flat else ["fate"])}

    mapped = rows.map(tokenised, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)
    fates = mapped["fate"][:] if len(mapped) else []
    kept = mapped.select([place for place, fate in enumerate(fates) if fate == "kept"])
    counts = {reason: fates.count(reason) for reason in ("too_long", "identical_tokens")}
    dropped = {**counts, "refused_by_template": len(refused)}
    return kept.select_columns([name for name in kept.column_names if name not in ("fate", "identical")]), dropped


def length_order(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """Row numbers such that each batch holds rows of similar length, in random order; a short batch comes last.

    transformers' own grouping runs from long to short rows again and again. Where length goes with content, training
    then sees one kind of text after the other and forgets in between.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    groups = [rows[start : start + batch_size * GROUP] for start in range(0, len(rows), batch_size * GROUP)]
    rows = [row for group in groups for row in sorted(group, key=lambda row: lengths[row])]
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    full = len(rows) // batch_size  # the short batch, if any, is the last one
    order = [*torch.randperm(full, generator=generator).tolist(), *range(full, len(batches))]
    return [row for index in order for row in batches[index]]
