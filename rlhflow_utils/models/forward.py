"""Loading models, and forward passes over many sequences of unequal length."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

from rlhflow_utils.guide.profile import read_revisions
from rlhflow_utils.guide.spread import R, T, shards_of, spread
from rlhflow_utils.guide.stage import Artifact, Metric, Rows, Summary, read_json, seal, sealed, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rlhflow_utils.guide.settings import ModelSettings
    from rlhflow_utils.models.chat import Message

Load = Callable[[], Callable[[T], R]]  # reads a model into memory; what it gives computes the result of a shard
Model = Artifact | Path | str  # a stage that trained one, a local folder, a hub id
TokenIds = Sequence[int]
ROWS_PER_SHARD = 1024  # what an actor gets at a time; in `reward_rows` also the unit of resuming
SCORE_HEADS = r"^(v_head|value_head|classifier|regression_layer)\.weight$"  # other names of a decoder's `score.weight`


def model_path(model: Model) -> str:
    """What `from_pretrained` takes: a stage keeps its model in its folder ``model``."""
    return str(model.path / "model" if isinstance(model, Artifact) else model)


def hub_arguments(model: Model, settings: ModelSettings | None) -> dict[str, Any]:
    """Arguments of every `from_pretrained`: the pinned commit of a hub id, and no code from the hub."""
    revisions = settings.revisions if settings else read_revisions()
    return {"revision": revisions.get(model_path(model)), "trust_remote_code": False}


def load_model(model: Model, kind: Literal["causal", "reward"], settings: ModelSettings | None = None) -> Any:
    """A model ready for inference, on the GPU where there is one; without settings in the checkpoint's dtype.

    A ``reward`` model must be a sequence classifier; a decoder's score head may have another usual name. The head
    computes in float32: bfloat16 knows logits near 30 in steps of 0.25 only, and answers would tie that are not equal.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    path, keywords = model_path(model), hub_arguments(model, settings)
    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    if settings:
        keywords |= {"dtype": settings.dtype, "attn_implementation": settings.attn_implementation}
    if kind == "reward":
        config = AutoConfig.from_pretrained(path, **hub_arguments(model, settings))
        names = config.architectures
        if not any("SequenceClassification" in name for name in names or []):
            raise ValueError(f"{path} is no reward model (architectures: {names}); give a sequence classifier")
        with torch.device("meta"):
            empty = auto.from_config(config)
        keywords["key_mapping"] = {SCORE_HEADS: "score.weight"} if hasattr(empty, "score") else None
        if not empty._supports_sdpa:  # DeBERTa: an attention of its own
            keywords["attn_implementation"] = None
    loaded, found = auto.from_pretrained(path, output_loading_info=True, **keywords)
    check_weights(path, found)
    linear = [module for module in loaded.modules() if isinstance(module, torch.nn.Linear)]
    head = loaded.get_output_embeddings() if kind == "causal" else linear[-1]
    for name, weights in list(head.named_parameters()):  # a copy, where the embedding shares them
        setattr(head, name, torch.nn.Parameter(weights.float(), requires_grad=False))
    head.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def check_weights(path: str, found: Mapping[str, Any], expected: Collection[str] = ()) -> None:
    """ValueError for a weight that the files lack (transformers draws it at random) or that the model has no place for.

    `found` is the loading information of `from_pretrained`; the names in `expected` may differ.
    """
    missing, unexpected = (sorted({*found[kind]} - {*expected}) for kind in ("missing_keys", "unexpected_keys"))
    if missing or unexpected:
        raise ValueError(
            f"{path}: missing weights {missing[:3]} ({len(missing)}), unexpected weights {unexpected[:3]} "
            f"({len(unexpected)}); give a checkpoint that fits its config.json"
        )


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group indices of similar length so that rows x longest row stays within `batch_tokens`, or one row exceeds it.

    The longest sequences come first: what does not fit into memory fails at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def in_batches(
    model: PreTrainedModel, sequences: Sequence[TokenIds | None], batch_tokens: int,
    forward: Callable[[list[TokenIds]], torch.Tensor], what: str, prompts: Sequence[Sequence[Message]],
) -> list[float | None]:  # fmt: skip
    """`forward` of every sequence, a finite number each, in batches of similar length.

    None: more tokens than the model has positions, or None. Errors call a sequence `what` and name it by its prompt.
    """
    import torch

    limit = getattr(model.config, "max_position_embeddings", None) or math.inf
    fitting = [(index, ids) for index, ids in enumerate(sequences) if ids and len(ids) <= limit]
    values: list[float | None] = [None] * len(sequences)
    for batch in length_batches([len(ids) for _, ids in fitting], batch_tokens):
        indices, some = zip(*(fitting[place] for place in batch), strict=True)
        with torch.inference_mode():
            found = forward(list(some)).tolist()
        for index, value in zip(indices, found, strict=True):
            values[index] = value
    check_finite(values, (f"{what} {i}, prompt {prompt[-1]['content'][:60]!r}" for i, prompt in enumerate(prompts)))
    return values


def check_finite(values: Iterable[float | None], names: Iterable[str]) -> None:
    """ValueError where a number is NaN or infinite (None: there is none); the names say whose it is."""
    for value, name in zip(values, names, strict=True):
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"{name}: the score is {value}, which says nothing; look for broken weights, or for overflow in half "
                "precision (model.dtype: float32)"
            )


def pad(
    sequences: Sequence[TokenIds], pad_id: int, side: Literal["left", "right"], device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both ``[rows, longest]`` and int64."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
    padded = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return padded.to(device), mask.to(device)


def next_token_logits(model: PreTrainedModel, sequences: Sequence[TokenIds], pad_id: int) -> torch.Tensor:
    """Logits after the last token of each sequence, ``[rows, vocabulary]``, in float32.

    Right padding needs no mask, since causal attention never looks ahead, and attention takes its fast causal path.
    Logits are computed only at positions where a row ends.
    """
    import torch

    ids, mask = pad(sequences, pad_id, "right", model.device)
    ends, row_end = (mask.sum(-1) - 1).unique(return_inverse=True)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=ends).logits
    return logits[torch.arange(len(sequences), device=logits.device), row_end]


def in_shards(
    rows: Sequence[T], load: Load[list[T], Sequence[R]], actors: int | None, folder: Path | None = None
) -> list[R]:
    """The result of every row, in order; `load` gives the function of a shard (see `spread`).

    Results are JSON. Finished shards are kept in `folder`, which must be of these rows and this model alone.
    """
    shards = shards_of(len(rows), ROWS_PER_SHARD)
    with nullcontext(folder) if folder else TemporaryDirectory() as place:
        files = [Path(place) / f"{index:05d}.json" for index in range(len(shards))]
        missing = [index for index, file in enumerate(files) if not sealed(file)]
        done = spread(missing, lambda index: [rows[row] for row in shards[index]], lambda: nullcontext(load()), actors)
        for index, found in done:
            write_json(files[index].with_suffix(".tmp"), found)
            seal(files[index].with_suffix(".tmp"), files[index])
        return [result for file in files for result in read_json(cast(Path, sealed(file)))]


def reward_rows(
    responses: Artifact, load: Load[list[dict[str, Any]], list[list[float | None]]], into: Path, actors: int | None,
    keep: bool = False, count: Callable[[Sequence[Any], set[int]], dict[str, int]] | None = None,
) -> Summary:  # fmt: skip
    """Write ``data``, the rows of `responses` with the column `rewards`, for a stage that scores or ranks.

    `load` gives the function from rows to a number for each response of each row. It gets one shard at a time: the
    unit of resuming. Rows with a response that has none (None) are dropped and counted, by `count` where not all of
    them are too long for the model; `keep` keeps them, with null there.
    """
    rows = responses.dataset()
    rewards = in_shards(rows.select_columns(["prompt", "responses"]), load, actors, into / "shards")
    groups = list(zip(rows["prompt_id"], rewards, strict=True))
    names = (f"prompt {prompt_id}, response {place}" for prompt_id, group in groups for place in range(len(group)))
    check_finite(chain.from_iterable(rewards), names)
    whole = [place for place, group in enumerate(rewards) if None not in group]
    dropped = count(rows["prompt"], {*whole}) if count else count_too_long(len(rows), len(whole))
    fit = cast("list[list[float]]", [rewards[i] for i in whole])
    means: dict[str, Metric] = {"mean_reward": fmean(map(fmean, fit)), "mean_best_reward": fmean(map(max, fit))}
    if keep:
        rows.add_column("rewards", rewards).save_to_disk(str(into / "data"))
        return Summary({"prompts": Rows(len(rows), len(rows))}, {**means, **dropped})
    rows.select(whole).add_column("rewards", fit).save_to_disk(str(into / "data"))
    return Summary({"prompts": Rows(len(rows), len(fit), dropped)}, means)


def count_too_long(rows: int, fitting: int, refused: int = 0) -> dict[str, int]:
    """Rows dropped by reason: more tokens than a model has positions, or refused by its template. ValueError: all."""
    if not fitting:
        fix = "(max_position_embeddings in its config) and is taken by its chat template"
        raise ValueError(f"none of {rows} rows fits into the model's positions {fix}")
    counts = {"too_long_for_model": rows - fitting - refused, "refused_by_template": refused}
    return {reason: count for reason, count in counts.items() if count}
