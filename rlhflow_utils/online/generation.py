"""Responses of a policy: n per prompt, through transformers or vLLM, in shards that survive a kill (paper 3.3).

Differences from the released code (`gen_hf2.py`): the last, smaller shard is kept; prompts go in as token ids, so BOS
is written once; random numbers depend on the run's seed and the prompt, so a resumed run repeats itself; prompts that
are too long are counted. How the paper's two temperatures combine is not said; here the n responses are shared evenly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.guide.settings import GenerationSettings, IterativeSettings, ModelSettings
from rlhflow_utils.guide.spread import shards_of, spread
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, describe, hash_value, seal, sealed, seed_for, stage
from rlhflow_utils.models.chat import accepted, decode_response, encode_prompt, load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import Model, model_path

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from rlhflow_utils.online.engines import Sampler

Row = Mapping[str, Any]
Dropped = dict[str, int]


@dataclass(frozen=True)
class Prompts:
    """A range of the prompts that chapter 01 wrote: `count` of them from `start` on (None: all)."""

    data: Artifact
    split: str = "prompts"
    start: int = 0
    count: int | None = None

    def rows(self) -> Dataset:
        """The prompt rows; ValueError where there are fewer."""
        rows: Dataset = self.data.dataset(self.split)
        end = len(rows) if self.count is None else self.start + self.count
        if not self.start < end <= len(rows):
            raise ValueError(
                f"prompts {self.start} to {end} are wanted, {self.split} has {len(rows)}; "
                "add prompt sources, or ask for fewer (iterative.prompts_per_iteration, length_bias.prompts)"
            )
        return rows.select(range(self.start, end))


def prompts_of_iteration(data: Artifact, iteration: int, settings: IterativeSettings) -> Prompts:
    """The prompts of an iteration (counted from 1): no prompt comes twice."""
    count = settings.prompts_per_iteration
    return Prompts(data, "prompts", (iteration - 1) * count, count)


@stage
def generate_responses(
    policy: Model, prompts: Prompts, settings: GenerationSettings, model: ModelSettings, seed: int,
    actors: int | None = None, *, into: Path,
) -> Summary:  # fmt: skip
    """Sample n responses to every prompt; ``data`` has the rows of `generate`.

    The random numbers are a function of the seed and the prompt alone: all policies that answer a prompt meet the same
    numbers, so their answers differ only by what they learnt.
    """
    import pyarrow.compute as pc

    started, rows = time.time(), prompts.rows()
    data, dropped = generate(policy, rows, settings, model, into, seed, actors)
    columns = ("finish_reasons", "lengths", "response_ids")
    reasons, lengths, ids = (pc.list_flatten(data.data.column(name)) for name in columns)
    metrics = {
        "responses": len(reasons),
        "mean_length": pc.mean(lengths).as_py(),
        "truncation_rate": pc.mean(pc.equal(reasons, "length")).as_py(),
        "tokens": pc.sum(pc.list_value_length(ids)).as_py(),
        "generation_seconds": round(time.time() - started, 1),
    }
    return Summary(rows={"prompts": Rows(len(rows), len(data), dropped)}, metrics=metrics)


def generate(
    model: Model, prompts: Dataset | Iterable[Row], settings: GenerationSettings, model_settings: ModelSettings,
    out: Path, seed: int, actors: int | None = None,
) -> tuple[Dataset, Dropped]:  # fmt: skip
    """Sample responses to every prompt, shard by shard; finished shards in `out` of the same request are kept.

    Prompts have `prompt_id`, `prompt` (messages) and optionally `source`; the seed and the id fix the random numbers.
    Returns rows `prompt_id, prompt, source, responses, response_ids, finish_reasons, temperatures, lengths` (in
    characters) in the order of the prompts, also written to ``data``, and how many were dropped, by reason. Prompts and
    responses stay on disk, but for the shards that are worked on.
    """
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    tokenizer, path = load_tokenizer(model, model_settings), Path(model_path(model))
    rows = prompts if isinstance(prompts, Dataset) else Dataset.from_list(list(prompts))
    kept, dropped = drop_prompts(rows, tokenizer, settings.max_prompt_tokens)
    if not len(kept):
        raise ValueError(f"no prompt is left; dropped {dropped} (raise generation.max_prompt_tokens)")
    # Shards of another request are never mistaken for ours: the folder's name says what was asked, of which weights.
    asked = [path if path.exists() else str(path), settings, model_settings, seed]
    folder = out / f"shards-{hash_value([describe(asked), *map(hash_value, kept)])}"
    folder.mkdir(parents=True, exist_ok=True)
    shards = shards_of(len(kept), settings.shard_size)
    files = [folder / f"{index:05d}.arrow" for index in range(len(shards))]
    missing = [index for index, file in enumerate(files) if not sealed(file)]
    started, tokens = time.time(), 0
    start = partial(open_policy, model, settings, model_settings, seed)
    gpus = settings.engine.get("tensor_parallel_size", 1) if settings.backend == "vllm" else 1
    for index, found in spread(missing, lambda index: list(kept.select(shards[index])), start, actors, gpus):
        table, unfinished = pa.Table.from_pylist(found), files[index].with_suffix(".tmp")
        with pa.ipc.new_stream(str(unfinished), table.schema) as writer:
            writer.write_table(table)
        seal(unfinished, files[index])
        tokens += sum(len(ids) for row in found for ids in row["response_ids"])
        speed = tokens / (time.time() - started)
        print(f"generation: shard {index + 1} of {len(shards)}, {speed:,.0f} tokens/s", flush=True)
    data = concatenate_datasets([Dataset.from_file(str(sealed(file))) for file in files])
    data.save_to_disk(str(out / "data"))
    return data, dropped


@contextmanager
def open_policy(
    model: Model, settings: GenerationSettings, model_settings: ModelSettings, seed: int
) -> Iterator[Callable[[Sequence[Row]], list[dict[str, Any]]]]:
    """`respond` with a model in memory."""
    from rlhflow_utils.online.engines import open_sampler

    tokenizer = load_tokenizer(model, model_settings)
    with open_sampler(model, settings, model_settings) as sampler:
        yield partial(respond, sampler, settings=settings, seed=seed, tokenizer=tokenizer)


def respond(
    sampler: Sampler, rows: Sequence[Row], settings: GenerationSettings, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The rows of `generate`, from prompts.

    `response_ids` stay exactly as sampled, with an end-of-turn token only where the policy wrote one.
    """
    from rlhflow_utils.online.engines import Request

    temperatures = response_temperatures(settings.temperatures, settings.sampling["n"])
    seeds = [seed_for(seed, row["prompt_id"]) for row in rows]
    sampled = sampler(Request([encode_prompt(row["prompt"], tokenizer) for row in rows], seeds, temperatures))
    stops = set(stop_token_ids(tokenizer))
    return [
        {
            "prompt_id": row["prompt_id"], "prompt": row["prompt"], "source": row.get("source") or "",
            "responses": (texts := [decode_response(ids, tokenizer) for ids in responses]),
            "response_ids": responses,
            "finish_reasons": ["stop" if ids and ids[-1] in stops else "length" for ids in responses],
            "temperatures": temperatures, "lengths": [len(text) for text in texts],
        }
        for row, responses in zip(rows, sampled, strict=True)
    ]  # fmt: skip


def response_temperatures(temperatures: Sequence[float], n: int) -> list[float]:
    """The temperature of each response: n shared evenly, as in ``[1.0, 1.0, 0.7, 0.7]``, or a ValueError."""
    share, rest = divmod(n, len(temperatures))
    if rest or not share:
        raise ValueError(
            f"generation: {n} responses cannot be shared evenly among the temperatures {list(temperatures)}; "
            f"make it a multiple of {len(temperatures)} (generation.sampling.n; in chapter 06 length_bias.responses)"
        )
    return [temperature for temperature in temperatures for _ in range(share)]


def drop_prompts(
    prompts: Dataset, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> tuple[Dataset, Dropped]:
    """The prompts that can be answered, and how many were dropped: over the limit, or refused by the chat template."""
    encoded = (accepted(encode_prompt, row["prompt"], tokenizer) for row in prompts)
    lengths = [ids and len(ids) for ids in encoded]
    kept = [place for place, length in enumerate(lengths) if length and length <= max_prompt_tokens]
    refused = lengths.count(None)
    dropped = {"prompt_too_long": len(prompts) - len(kept) - refused, "refused_by_template": refused}
    return prompts.select(kept), dropped
