"""Responses of a policy: n per prompt, through transformers or vLLM, in shards that survive a kill (paper 3.3).

Differences from the released code (`gen_hf2.py`): the last, smaller shard is kept; prompts go in as token ids, so BOS
is written once; random numbers depend on the run's seed and the prompt, so a resumed run repeats itself; prompts that
are too long are counted. How the paper's two temperatures combine is not said; here the n responses are shared evenly.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.guide.run import end_with_parent, quiet_libraries, run_module
from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings, Section
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, describe, hash_value, seed_for, stage, write_json
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
                "lower iterative.prompts_per_iteration or add prompt sources"
            )
        return rows.select(range(self.start, end))


class GenerationJob(Section):
    """The arguments of `generate`, serialisable: what the child process reads."""

    model: str
    prompts: str
    settings: GenerationSettings
    model_settings: ModelSettings
    out: str
    seed: int

    def run(self) -> tuple[Dataset, Dropped]:
        """`generate`, here."""
        from datasets import load_from_disk

        prompts = load_from_disk(self.prompts)
        return generate(self.model, prompts, self.settings, self.model_settings, Path(self.out), self.seed)


@stage
def generate_responses(
    policy: Model, prompts: Prompts, settings: GenerationSettings, model: ModelSettings, seed: int,
    launch: dict[str, Any] | None, *, into: Path,
) -> Summary:  # fmt: skip
    """Sample n responses to every prompt; ``data`` has the rows of `generate`.

    The random numbers are a function of the seed and the prompt alone: all policies that answer a prompt meet the same
    numbers, so their answers differ only by what they learnt.
    """
    import torch

    started, rows, folder = time.time(), prompts.rows(), into / "prompts"
    rows.save_to_disk(str(folder))
    job = GenerationJob(
        model=model_path(policy), prompts=str(folder), out=str(into), seed=seed, settings=settings, model_settings=model
    )
    # On a GPU, an engine and a trainer never share a process; and vLLM's engine dies best with its process.
    if settings.backend == "vllm" or launch is not None or torch.cuda.is_available():
        write_json(into / "job.json", job.model_dump(mode="json"))
        run_module("rlhflow_utils.online.generation", str(into / "job.json"))
    data, dropped = job.run()  # after a child process: reads its shards
    reasons = [reason for reasons in data["finish_reasons"] for reason in reasons]
    metrics = {
        "responses": len(reasons),
        "mean_length": sum(length for lengths in data["lengths"] for length in lengths) / len(reasons),
        "truncation_rate": reasons.count("length") / len(reasons),
        "tokens": sum(len(ids) for row in data["response_ids"] for ids in row),
        "generation_seconds": round(time.time() - started, 1),
    }
    return Summary(rows={"prompts": Rows(len(rows), len(data), dropped)}, metrics=metrics)


def generate(
    model: Model, prompts: Iterable[Row], settings: GenerationSettings, model_settings: ModelSettings,
    out: Path, seed: int,
) -> tuple[Dataset, Dropped]:  # fmt: skip
    """Sample responses to every prompt, shard by shard; finished shards in `out` of the same request are kept.

    Prompts have `prompt_id`, `prompt` (messages) and optionally `source`; the seed and the id fix the random numbers.
    Returns rows `prompt_id, prompt, source, responses, response_ids, finish_reasons, temperatures, lengths` (in
    characters) in the order of the prompts, also written to ``data``, and how many were dropped, by reason.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    from rlhflow_utils.online.engines import open_sampler

    tokenizer, path = load_tokenizer(model, model_settings), Path(model_path(model))
    kept, dropped = drop_prompts(prompts, tokenizer, settings.max_prompt_tokens)
    if not kept:
        raise ValueError(f"no prompt is left; dropped {dropped} (raise generation.max_prompt_tokens)")
    # Shards of another request are never mistaken for ours: the folder's name says what was asked, of which weights.
    asked = [path if path.exists() else str(path), settings, model_settings, seed, kept]
    folder = out / f"shards-{hash_value(describe(asked))}"
    folder.mkdir(parents=True, exist_ok=True)
    shards = [kept[start : start + settings.shard_size] for start in range(0, len(kept), settings.shard_size)]
    files = [folder / f"{index:05d}.parquet" for index in range(len(shards))]
    if missing := [index for index, file in enumerate(files) if not file.exists()]:
        with open_sampler(model, settings, model_settings) as sampler:
            for index in missing:
                started = time.time()
                rows = respond(sampler, shards[index], settings, seed, tokenizer)
                pq.write_table(pa.Table.from_pylist(rows), files[index].with_suffix(".tmp"))
                os.replace(files[index].with_suffix(".tmp"), files[index])
                speed = sum(len(ids) for row in rows for ids in row["response_ids"]) / (time.time() - started)
                print(f"generation: shard {index + 1} of {len(shards)}, {speed:,.0f} tokens/s", flush=True)
    data = Dataset(pa.concat_tables([pq.read_table(file) for file in files]))
    data.save_to_disk(str(out / "data"))
    return data, dropped


def respond(
    sampler: Sampler, rows: Sequence[Row], settings: GenerationSettings, seed: int, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The rows of `generate`, from rows of `drop_prompts`.

    `response_ids` stay exactly as sampled, with an end-of-turn token only where the policy wrote one.
    """
    from rlhflow_utils.online.engines import Request

    temperatures = response_temperatures(settings.temperatures, settings.sampling["n"])
    seeds = [seed_for(seed, row["prompt_id"]) for row in rows]
    sampled = sampler(Request([row["prompt_ids"] for row in rows], seeds, temperatures))
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
            f"make generation.sampling.n a multiple of {len(temperatures)}"
        )
    return [temperature for temperature in temperatures for _ in range(share)]


def drop_prompts(
    prompts: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> tuple[list[dict[str, Any]], Dropped]:
    """Rows with their token ids under `prompt_ids`, and how many were dropped: over the limit, or refused."""
    rows = [{**row, "prompt_ids": accepted(encode_prompt, row["prompt"], tokenizer)} for row in prompts]
    taken = [row for row in rows if row["prompt_ids"] is not None]
    kept = [row for row in taken if len(row["prompt_ids"]) <= max_prompt_tokens]
    return kept, {"prompt_too_long": len(taken) - len(kept), "refused_by_template": len(rows) - len(taken)}


if __name__ == "__main__":
    end_with_parent()
    quiet_libraries()
    GenerationJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")).run()
