"""The training stages: which rows, which start, which settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhflow_utils.data.reading import Root, folder_of
from rlhflow_utils.data.sources import load_texts
from rlhflow_utils.guide.settings import (
    BaseModelSettings,
    DpoSettings,
    ModelSettings,
    OfflineDpoSettings,
    PreferenceModelSettings,
    RewardModelSettings,
    SftSettings,
    TrainingSettings,
)
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage
from rlhflow_utils.models.chat import IGNORED, encode_conversation, encode_prompt, encode_response, load_tokenizer
from rlhflow_utils.models.forward import Model, model_path
from rlhflow_utils.models.preference_model import training_tokens
from rlhflow_utils.training.base_model import build_model, train_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Launch = dict[str, Any] | None
Tokenise = Callable[[dict[str, Any]], dict[str, Any]]
GROUP = 50  # batches sorted by length together: enough for little padding, few enough to stay random


@stage
def train_base_model(
    settings: BaseModelSettings, root: Root, model: ModelSettings, seed: int, launch: Launch, *, into: Path
) -> Summary:
    """Chapter 00: tokenizer and tiny Llama, trained on the settings' corpus."""
    texts = load_texts(settings.corpus, folder_of(root))
    start = into / "initial"
    if not (start / "config.json").exists():
        tokenizer = train_tokenizer(texts, settings.vocab_size)
        tokenizer.save_pretrained(start)
        build_model(tokenizer, seed, **settings.architecture).save_pretrained(start)
    rows = text_rows(texts, load_tokenizer(start))
    muon = settings.muon_learning_rate
    return _train("sft", start, rows, dict, settings, model, seed, launch, into, muon_learning_rate=muon)


@stage
def train_sft(
    data: Artifact, base: Model, settings: SftSettings, model: ModelSettings, seed: int, launch: Launch, *, into: Path
) -> Summary:
    """Chapter 02: the SFT model π₀ (paper 3.1)."""
    completion_only = bool(settings.trainer.get("completion_only_loss"))
    tokens = partial(sft_tokens, tokenizer=load_tokenizer(base, model), completion_only=completion_only)
    return _train("sft", base, data.dataset("sft"), tokens, settings, model, seed, launch, into)


@stage
def train_reward_model(
    data: Artifact, mixture: str, start: Model, settings: RewardModelSettings,
    model: ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 03: a Bradley-Terry reward model on one mixture (paper 2.2, eq. 4)."""
    tokens = partial(reward_tokens, tokenizer=load_tokenizer(start, model))
    return _train("reward", start, data.dataset(mixture), tokens, settings, model, seed, launch, into)


@stage
def train_preference_model(
    data: Artifact, mixture: str, start: Model, settings: PreferenceModelSettings,
    model: ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 04: the pairwise preference model on one mixture, as instruction following (paper 2.2)."""
    tokens = partial(training_tokens, tokenizer=load_tokenizer(start, model), seed=seed)
    return _train("sft", start, data.dataset(mixture), tokens, settings, model, seed, launch, into)


@stage
def train_dpo(
    policy: Model, reference: Model, pairs: Sequence[Artifact], settings: DpoSettings,
    model: ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 09: one iteration of DPO (eq. 5) from `policy`, measured against `reference`, on all of `pairs`."""
    from datasets import concatenate_datasets

    rows = concatenate_datasets([each.dataset() for each in pairs])
    tokens = partial(dpo_tokens, tokenizer=load_tokenizer(policy, model))
    return _train("dpo", policy, rows, tokens, settings, model, seed, launch, into, ref_model=model_path(reference))


@stage
def train_offline_dpo(
    data: Artifact, sft: Model, settings: OfflineDpoSettings,
    model: ModelSettings, seed: int, launch: Launch, *, into: Path,
) -> Summary:  # fmt: skip
    """Chapter 10: vanilla DPO on pairs of other models (paper App. B: Nectar), from π₀ with π₀ as reference."""
    rows = data.dataset("offline")
    kept = rows.shuffle(seed=seed).select(range(min(settings.pairs, len(rows)))) if settings.pairs else rows
    tokens = partial(dpo_tokens, tokenizer=load_tokenizer(sft, model))
    trained = _train("dpo", sft, kept, tokens, settings, model, seed, launch, into, ref_model=model_path(sft))
    counted = Rows(len(rows), len(kept), {"subsample": len(rows) - len(kept)})
    return Summary({"offline_pairs": counted, **trained.rows}, trained.metrics)


def _train(
    kind: Literal["sft", "reward", "dpo"], start: Model, rows: Dataset, tokens: Tokenise, training: TrainingSettings,
    model: ModelSettings, seed: int, launch: Launch, into: Path, **more: Any
) -> Summary:  # fmt: skip
    """Tokenise, count what is dropped, train, and report the run."""
    from rlhflow_utils.training.trainers import TrainingJob, run_training, trainer_config

    job = TrainingJob(
        kind=kind, model=model_path(start), dataset=str(into / "tokenised"), output=str(into), seed=seed,
        training=training, model_settings=model, **more,
    )  # fmt: skip
    config: Any = trainer_config(job, max(1, launch.get("num_processes", 1)) if launch else 1)
    kept, dropped = tokenise(rows, tokens, config.max_length)
    if not len(kept):
        name = into.name.split("@")[0]
        raise ValueError(f"{name}: none of {len(rows)} rows fits into trainer.max_length {config.max_length} tokens")
    if config.train_sampling_strategy == "sequential":
        kept = kept.select(length_order(kept["length"][:], training.global_batch_size, seed))
    kept.save_to_disk(job.dataset)
    log = run_training(job, launch)
    history = log["history"]
    metrics = {"first_loss": history[0]["loss"], "last_loss": history[-1]["loss"], "steps": log["steps"]}
    counted = {"training_rows": Rows(len(rows), len(kept), dropped)}
    return Summary(counted, {**metrics, "training_seconds": log["seconds"]})


# --- rows -----------------------------------------------------------------------------------------------------------


def text_rows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Language-modelling rows (`input_ids`, `labels`) from plain text: BOS where the tokenizer has one, text, EOS."""
    from datasets import Dataset

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ids = [[*start, *row, tokenizer.eos_token_id] for row in encoded]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def sft_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, completion_only: bool) -> dict[str, Any]:
    """SFT row: a conversation under `messages`, the loss on every assistant turn or on everything."""
    messages = row["messages"]
    if not completion_only:
        whole = encode_conversation(messages[:-1], messages[-1]["content"], tokenizer)
        return {"input_ids": whole, "labels": whole}
    ids: list[int] = []
    labels: list[int] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(messages[:index], tokenizer)
        response = encode_response(messages[:index], message["content"], tokenizer)
        labels = labels + [IGNORED] * (len(prompt) - len(labels)) + response
        ids = prompt + response
    return {"input_ids": ids, "labels": labels}


def reward_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """BT row: the two whole conversations (eq. 4 compares r(x, a_w) with r(x, a_l))."""
    prompt = encode_prompt(row["prompt"], tokenizer)
    return {
        f"{side}_ids": prompt + encode_response(row["prompt"], row[side][-1]["content"], tokenizer)
        for side in ("chosen", "rejected")
    }


def dpo_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """DPO row (eq. 5). Token ids that a policy generated are used as they are, text is tokenised."""
    out = {"prompt_ids": encode_prompt(row["prompt"], tokenizer)}
    for side in ("chosen", "rejected"):
        ids = row.get(f"{side}_ids")
        out[f"{side}_ids"] = ids or encode_response(row["prompt"], row[side][-1]["content"], tokenizer)
    return out


def tokenise(rows: Dataset, function: Tokenise, max_length: int | None) -> tuple[Dataset, dict[str, int]]:
    """Apply a row function and drop what is longer than `max_length` tokens (None: nothing).

    Returns:
        The tokenised rows with a `length` column (tokens of a row's longest sequence), and the count under `too_long`.
    """

    def with_length(row: dict[str, Any]) -> dict[str, Any]:
        tokens = function(row)
        sides = [tokens[name] for name in ("input_ids", "chosen_ids", "rejected_ids") if name in tokens]
        return {**tokens, "length": len(tokens.get("prompt_ids", [])) + max(map(len, sides))}

    mapped = rows.map(with_length, remove_columns=rows.column_names, load_from_cache_file=False)
    kept = mapped.select([i for i, length in enumerate(mapped["length"][:]) if not max_length or length <= max_length])
    return kept, {"too_long": len(mapped) - len(kept)}


def length_order(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """Row numbers such that each batch holds rows of similar length, in random order; a short batch comes last.

    transformers' own grouping runs from long to short rows again and again. Where length goes with content (a
    statement, an exam sheet), training then sees one kind of text after the other and forgets in between.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(rows), batch_size * GROUP):
        group = sorted(rows[start : start + batch_size * GROUP], key=lambda row: lengths[row])
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    full = len(rows) // batch_size  # the short batch, if any, is the last one
    order = [*torch.randperm(full, generator=generator).tolist(), *range(full, len(batches))]
    return [row for index in order for row in batches[index]]
