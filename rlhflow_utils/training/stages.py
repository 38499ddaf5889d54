"""The training stages of the chapters: which rows, which start, which settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset, concatenate_datasets, load_from_disk

from rlhflow_utils.data.sources import load_texts
from rlhflow_utils.guide.settings import DpoSettings, TrainingSettings
from rlhflow_utils.guide.stage import Stage
from rlhflow_utils.models.chat import IGNORED, encode_conversation, encode_prompt, encode_response, load_tokenizer
from rlhflow_utils.models.preference_model import training_tokens
from rlhflow_utils.training.base_model import build_model, train_tokenizer
from rlhflow_utils.training.trainers import DpoObjective, TrainingJob, run_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenise = Callable[[dict[str, Any]], dict[str, Any]]


def text_rows(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Language-modelling rows (`input_ids`, `labels`) from plain text: BOS where the tokenizer has one, text, EOS."""
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


def row_length(row: dict[str, Any]) -> int:
    """Tokens of the longest sequence that a row holds."""
    if "input_ids" in row:
        return len(row["input_ids"])
    prompt = len(row.get("prompt_ids", []))
    return prompt + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def tokenise(rows: Dataset, function: Tokenise, max_length: int) -> tuple[Dataset, dict[str, int]]:
    """Apply a row function and drop what is longer than `max_length` tokens.

    Returns:
        The tokenised rows with a `length` column (tokens), and the count dropped under `too_long`.
    """

    def with_length(row: dict[str, Any]) -> dict[str, Any]:
        tokens = function(row)
        return {**tokens, "length": row_length(tokens)}

    mapped = rows.map(with_length, remove_columns=rows.column_names, load_from_cache_file=False)
    kept = mapped.select([i for i, length in enumerate(mapped["length"][:]) if length <= max_length])
    return kept, {"too_long": len(mapped) - len(kept)}


Kind = Literal["sft", "reward", "dpo"]


def train_base_model(stage: Stage) -> None:
    """Chapter 00: tokenizer and tiny Llama, trained on `base_model.corpus`."""
    settings = stage.profile.base_model
    texts = load_texts(settings.corpus, stage.inputs.get("root"))
    start = stage.out / "initial"
    if not (start / "config.json").exists():
        tokenizer = train_tokenizer(texts, settings.vocab_size)
        tokenizer.save_pretrained(start)
        build_model(
            hidden_size=settings.hidden_size,
            num_hidden_layers=settings.num_hidden_layers,
            intermediate_size=settings.intermediate_size,
            num_attention_heads=settings.num_attention_heads,
            max_position_embeddings=settings.max_position_embeddings,
            tokenizer=tokenizer,
            seed=stage.seed,
        ).save_pretrained(start)
    tokenizer = load_tokenizer(start)
    rows = text_rows(texts, tokenizer)
    _train(stage, "sft", str(start), rows, settings.training, packing=settings.packing, tokens=lambda row: row)


def train_sft(stage: Stage) -> None:
    """Chapter 02: the SFT model π₀ (paper 3.1)."""
    settings = stage.profile.sft
    start = stage.profile.model.base or str(stage.inputs["base"] / "model")
    tokenizer = load_tokenizer(start, stage.profile.model)
    tokens = partial(sft_tokens, tokenizer=tokenizer, completion_only=settings.completion_only_loss)
    rows = load_from_disk(str(stage.inputs["data"] / "sft"))
    _train(stage, "sft", start, rows, settings.training, packing=settings.packing, tokens=tokens)


def train_reward_model(stage: Stage, subset: str) -> None:
    """Chapter 03: a Bradley-Terry reward model on one mixture (paper 2.2, eq. 4)."""
    start = _preference_start(stage)
    tokens = partial(reward_tokens, tokenizer=load_tokenizer(start, stage.profile.model))
    rows = load_from_disk(str(stage.inputs["data"] / subset))
    _train(stage, "reward", start, rows, stage.profile.reward_model.training, tokens=tokens)


def train_preference_model(stage: Stage, subset: str) -> None:
    """Chapter 04: the pairwise preference model on one mixture, as instruction following (paper 2.2)."""
    settings = stage.profile.preference_model
    start = _preference_start(stage)
    tokens = partial(training_tokens, tokenizer=load_tokenizer(start, stage.profile.model), seed=stage.seed)
    rows = load_from_disk(str(stage.inputs["data"] / subset))
    _train(stage, "sft", start, rows, settings.training, packing=settings.packing, tokens=tokens)


def train_dpo(stage: Stage) -> None:
    """Chapter 09: one iteration of DPO (eq. 5) from `inputs["policy"]`, against the reference π₀ in `inputs["sft"]`.

    Inputs whose names begin with `pairs` hold the pairs: the new ones, and with `iterative.replay` those of all so far.
    """
    settings: DpoSettings = stage.profile.dpo
    names = sorted(name for name in stage.inputs if name.startswith("pairs"))
    rows = concatenate_datasets([load_from_disk(str(stage.inputs[name] / "data")) for name in names])
    reference = "sft" if settings.reference == "sft" else "policy"
    _train_dpo(stage, rows, reference, settings.training)


def train_offline_dpo(stage: Stage, subset: str) -> None:
    """Chapter 10: vanilla DPO on pairs of other models (paper App. B: Nectar), from π₀ with π₀ as reference."""
    settings = stage.profile.offline_dpo
    rows = load_from_disk(str(stage.inputs["data"] / subset))
    if settings.pairs is not None and settings.pairs < len(rows):
        kept = rows.shuffle(seed=stage.seed).select(range(settings.pairs))
        stage.account("offline_pairs", len(rows), len(kept), {"subsample": len(rows) - len(kept)})
        rows = kept
    _train_dpo(stage, rows, "sft", settings.training)


def _train_dpo(stage: Stage, rows: Dataset, reference: str, training: TrainingSettings) -> None:
    settings: DpoSettings = stage.profile.dpo
    start = str(stage.inputs.get("policy", stage.inputs["sft"]) / "model")
    objective = DpoObjective(
        beta=settings.beta,
        loss_type=settings.loss_type,
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=settings.precompute_ref_log_probs,
    )
    tokens = partial(dpo_tokens, tokenizer=load_tokenizer(start, stage.profile.model))
    ref_model = str(stage.inputs[reference] / "model")
    _train(stage, "dpo", start, rows, training, tokens=tokens, ref_model=ref_model, dpo=objective)


def _train(
    stage: Stage,
    kind: Kind,
    start: str,
    rows: Dataset,
    settings: TrainingSettings,
    tokens: Callable[[dict[str, Any]], dict[str, Any]],
    packing: bool = False,
    ref_model: str | None = None,
    dpo: DpoObjective | None = None,
) -> None:
    """Tokenise, count what is dropped, train, and report the run."""
    kept, dropped = tokenise(rows, tokens, settings.max_length)
    stage.account("training_rows", len(rows), len(kept), dropped)
    if not len(kept):
        raise ValueError(f"stage {stage.name}: no row fits into max_length {settings.max_length} tokens; raise it")
    tokenised = stage.out / "tokenised"
    kept.save_to_disk(str(tokenised))
    job = TrainingJob(
        kind=kind, model=start, ref_model=ref_model, dataset=str(tokenised), output=str(stage.out), seed=stage.seed,
        settings=settings, model_settings=stage.profile.model, packing=packing, dpo=dpo,
        report_to=list(stage.profile.report_to),
    )  # fmt: skip
    log = run_training(job, stage.profile.launch)
    prefix = f"{stage.name[:2]}.{stage.name[3:]}"
    stage.metric(f"{prefix}.first_loss", log["history"][0]["loss"])
    stage.metric(f"{prefix}.last_loss", log["history"][-1]["loss"])
    stage.metric(f"{prefix}.steps", log["steps"])
    stage.metric(f"{prefix}.training_seconds", log["seconds"])


def _preference_start(stage: Stage) -> str:
    """RM and PM start from the instruct model (paper 2.2, footnote), or else from the run's own SFT model."""
    base: str | None = stage.profile.model.reward_base
    return base or str(Path(stage.inputs["sft"]) / "model")
