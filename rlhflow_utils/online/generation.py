"""Responses of a policy: n per prompt, through transformers or vLLM, in shards that survive a kill (paper 3.3).

Differences from the released code (`gen_hf2.py`): the last, smaller shard is kept; prompts go in as token ids, so BOS
is written once; random numbers depend on the run's seed and the prompt, so a resumed run repeats itself; prompts that
are too long are counted. How the paper's two temperatures combine is not said; here the n responses are shared evenly.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhflow_utils.guide.child_process import end_with_parent, run_module
from rlhflow_utils.guide.provenance import quiet_libraries
from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings, Section
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.models.chat import decode_response, encode_prompt, load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import check_lengths, length_batches, load_model, pad
from rlhflow_utils.online.engines import Engine, open_engine

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from rlhflow_utils.guide.stage import Stage

SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "source": pa.string(),
        "responses": pa.list_(pa.string()),
        "response_ids": pa.list_(pa.list_(pa.int64())),
        "finish_reasons": pa.list_(pa.string()),
        "temperatures": pa.list_(pa.float64()),
        "lengths": pa.list_(pa.int64()),
    }
)


def shard_folder(out: Path, request: list[Any]) -> Path:
    """``out/shards``, emptied where it holds the shards of another request (model, settings, seed or prompts)."""
    fingerprint = hashlib.sha256(repr(request).encode()).hexdigest()
    folder = out / "shards"
    record = folder / "request.txt"
    if folder.exists() and (not record.exists() or record.read_text(encoding="utf-8") != fingerprint):
        print(f"{folder.parent.name}: its shards belong to another request; removed", flush=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(fingerprint, encoding="utf-8")
    return folder


def shard_file(folder: Path, index: int) -> Path:
    """Where a shard is, or will be."""
    return folder / f"{index:05d}.parquet"


def response_row(
    row: Mapping[str, Any],
    ids: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """A row of `SCHEMA` from a prompt row and the token ids of its responses.

    `response_ids` stay exactly as generated, with the end-of-turn token only where the policy wrote one; `lengths` are
    characters of the text.
    """
    stops = set(stop_token_ids(tokenizer))
    texts = [decode_response(response, tokenizer) for response in ids]
    return {
        "prompt_id": row["prompt_id"],
        "prompt": row["prompt"],
        "source": row.get("source") or "",
        "responses": texts,
        "response_ids": ids,
        "finish_reasons": ["stop" if response and response[-1] in stops else "length" for response in ids],
        "temperatures": list(temperatures),
        "lengths": [len(text) for text in texts],
    }


def write_shard(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows so that the file is whole or absent."""
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
    os.replace(temporary, path)


def collect_shards(folder: Path, shards: int, out: Path) -> Dataset:
    """All shards as one dataset, also saved as ``out/data``."""
    from datasets import Dataset

    tables = [pq.read_table(shard_file(folder, index)) for index in range(shards)]
    data = Dataset(pa.concat_tables([SCHEMA.empty_table(), *tables]))
    data.save_to_disk(str(out / "data"))
    return data


Row = Mapping[str, Any]
Dropped = dict[str, int]


class GenerationJob(Section):
    """One generation run, complete and serialisable."""

    model: str
    prompts: str
    out: str
    seed: int
    settings: GenerationSettings
    model_settings: ModelSettings
    responses: int
    temperatures: list[float]


def generate(
    model: str | Path,
    prompts: Iterable[Row],
    settings: GenerationSettings,
    model_settings: ModelSettings,
    out: Path,
    seed: int,
    responses: int | None = None,
    temperatures: Sequence[float] | None = None,
    engine: Engine | None = None,
) -> tuple[Dataset, Dropped]:
    """Sample responses to every prompt, shard by shard.

    Finished shards under ``out/shards`` are not made again; those of another request are removed first.

    Args:
        model: Hugging Face folder or id of the policy.
        prompts: rows with `prompt_id`, `prompt` (messages) and optionally `source`.
        settings: the profile's `generation` section.
        model_settings: the profile's `model` section.
        out: folder for the shards and for ``data``, the whole dataset.
        seed: with the prompt's id, it fixes the random numbers of the prompt's responses.
        responses: replaces `settings.responses`.
        temperatures: replaces `settings.temperatures`; 0 is greedy.
        engine: one that is already running on `model`; it is left open.

    Returns:
        Rows `prompt_id, prompt, source, responses, response_ids, finish_reasons, temperatures, lengths` (characters) in
        the order of the prompts, and the number of prompts dropped, by reason.

    Raises:
        ValueError: the responses cannot be shared evenly among the temperatures.
    """
    each = response_temperatures(temperatures or settings.temperatures, responses or settings.responses)
    tokenizer = load_tokenizer(model, model_settings)
    kept, dropped = drop_long_prompts(prompts, tokenizer, settings.max_prompt_tokens)
    folder = shard_folder(out, [str(model), settings.model_dump(), each, seed, [row["prompt_id"] for row in kept]])
    shards = [kept[start : start + settings.shard_size] for start in range(0, len(kept), settings.shard_size)]
    missing = [index for index in range(len(shards)) if not shard_file(folder, index).exists()]
    if missing and engine:
        _write_shards(engine, shards, missing, each, seed, folder, tokenizer)
    elif missing:
        with closing(open_engine(model, settings, model_settings)) as own:
            _write_shards(own, shards, missing, each, seed, folder, tokenizer)
    return collect_shards(folder, len(shards), out), dropped


def run_generation(job: GenerationJob, in_process: bool) -> tuple[Dataset, Dropped]:
    """Run a job here, or in a child process whose memory is free again afterwards."""
    if not in_process:
        job_file = Path(job.out) / "generation_job.json"
        write_json(job_file, job.model_dump(mode="json"))
        run_module("rlhflow_utils.online.generation", str(job_file))
    return _run_job(job)


def response_temperatures(temperatures: Sequence[float], responses: int) -> list[float]:
    """The temperature of each response: n shared evenly, as in ``[1.0, 1.0, 0.7, 0.7]``.

    Raises:
        ValueError: n is not a multiple of the number of temperatures.
    """
    share, rest = divmod(responses, len(temperatures))
    if rest or not share:
        raise ValueError(
            f"generation: {responses} responses cannot be shared evenly among the temperatures {list(temperatures)}; "
            f"make generation.responses a multiple of {len(temperatures)}"
        )
    return [temperature for temperature in temperatures for _ in range(share)]


def drop_long_prompts(
    prompts: Iterable[Row], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> tuple[list[dict[str, Any]], Dropped]:
    """Rows with their token ids under `prompt_ids`, without prompts over the limit (counted as `prompt_too_long`)."""
    rows = [{**row, "prompt_ids": encode_prompt(row["prompt"], tokenizer)} for row in prompts]
    kept = [row for row in rows if len(row["prompt_ids"]) <= max_prompt_tokens]
    return kept, {"prompt_too_long": len(rows) - len(kept)}


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Seed of one prompt's random numbers, whatever shard, batch or order it is in."""
    return int(hashlib.sha256(f"{seed}:{prompt_id}".encode()).hexdigest()[:8], 16) % 2**30


def response_log_probs(
    model: str | Path,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    batch_tokens: int,
    model_settings: ModelSettings | None = None,
) -> list[list[float]]:
    """Log-probability (natural, temperature 1) of every response token given the prompt and the tokens before it.

    Args:
        model: Hugging Face folder or id.
        prompt_ids: token ids, one list per row, none empty.
        response_ids: token ids that follow.
        batch_tokens: padded tokens per forward pass.
        model_settings: the profile's `model` section; None takes the checkpoint's dtype.
    """
    import torch

    network = load_model(model, "causal", model_settings)
    whole = [[*prompt, *response] for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    lengths = [len(ids) for ids in whole]
    check_lengths(lengths, network, "row")
    log_probs: list[list[float]] = [[] for _ in whole]
    for batch in length_batches(lengths, batch_tokens):
        with torch.inference_mode():
            ids, mask = pad([whole[index] for index in batch], 0, "right", network.device)
            logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            picked = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        for index, row in zip(batch, picked.tolist(), strict=True):
            log_probs[index] = row[len(prompt_ids[index]) - 1 : lengths[index] - 1]
    return log_probs


def _write_shards(
    engine: Engine,
    shards: Sequence[Sequence[Row]],
    missing: Sequence[int],
    temperatures: Sequence[float],
    seed: int,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for index in missing:
        started = time.time()
        shard = shards[index]
        seeds = [prompt_seed(seed, row["prompt_id"]) for row in shard]
        sampled = engine.respond([row["prompt_ids"] for row in shard], seeds, temperatures)
        rows = [response_row(row, ids, temperatures, tokenizer) for row, ids in zip(shard, sampled, strict=True)]
        write_shard(rows, shard_file(folder, index))
        speed = sum(len(ids) for row in sampled for ids in row) / (time.time() - started)
        print(f"generation: shard {index + 1} of {len(shards)}, {speed:,.0f} tokens/s", flush=True)


# --- the stage ----------------------------------------------------------------------------------------------------


def generate_responses(
    stage: Stage,
    subset: str,
    start: int = 0,
    count: int | None = None,
    responses: int | None = None,
    temperatures: list[float] | None = None,
    for_evaluation: bool = False,
) -> None:
    """Stage: responses of ``inputs["model"]`` to a range of the prompts in ``inputs["data"]/<subset>``.

    Reads `generation`, `model`, `launch` and, for evaluation, `evaluation`. Writes ``data``.

    Args:
        stage: the stage.
        subset: `prompts` or `evaluation_prompts`.
        start: first prompt.
        count: number of prompts; None: all from `start` on.
        responses: replaces `generation.responses`.
        temperatures: replaces `generation.temperatures`.
        for_evaluation: one response per prompt, at `evaluation.temperature`.
    """
    if for_evaluation:
        responses, temperatures = 1, [stage.profile.evaluation.temperature]
    settings: GenerationSettings = stage.profile.generation
    prompts = _select_prompts(stage.inputs["data"] / subset, start, count)
    chosen = stage.out / "prompts"
    prompts.save_to_disk(str(chosen))
    job = GenerationJob(
        model=str(_model_folder(stage.inputs["model"])), prompts=str(chosen), out=str(stage.out), seed=stage.seed,
        settings=settings, model_settings=stage.profile.model, responses=responses or settings.responses,
        temperatures=temperatures or settings.temperatures,
    )  # fmt: skip
    started = time.time()
    data, dropped = run_generation(job, in_process=_in_process(settings, stage.profile.launch.num_processes))
    stage.account("prompts", len(prompts), len(data), dropped)
    _report(stage, data, time.time() - started)


def _select_prompts(folder: Path, start: int, count: int | None) -> Dataset:
    from datasets import load_from_disk

    prompts = load_from_disk(str(folder))
    end = len(prompts) if count is None else start + count
    if not start < end <= len(prompts):
        raise ValueError(
            f"prompts {start} to {end} are wanted, {folder.name} has {len(prompts)}; "
            "lower iterative.prompts_per_iteration or add prompt sources"
        )
    return prompts.select(range(start, end))


def _model_folder(stage_folder: Path) -> Path:
    """A stage keeps its model under `model`; a folder from outside, or a hub id, is the model."""
    return stage_folder / "model" if (stage_folder / "model").is_dir() else stage_folder


def _in_process(settings: GenerationSettings, num_processes: int) -> bool:
    """On a GPU, an engine and a trainer never share a process; and vLLM's engine dies best with its process."""
    import torch

    return settings.backend == "transformers" and num_processes == 0 and not torch.cuda.is_available()


def _report(stage: Stage, data: Dataset, seconds: float) -> None:
    if not len(data):
        raise ValueError(f"stage {stage.name}: no prompt is within generation.max_prompt_tokens; raise it")
    reasons = [reason for reasons in data["finish_reasons"] for reason in reasons]
    lengths = [length for lengths in data["lengths"] for length in lengths]
    tokens = sum(len(ids) for row in data["response_ids"] for ids in row)
    prefix = f"{stage.name[:2]}.{stage.name[3:]}"
    stage.metric(f"{prefix}.responses", len(reasons))
    stage.metric(f"{prefix}.mean_length", sum(lengths) / len(lengths))
    stage.metric(f"{prefix}.truncated_share", reasons.count("length") / len(reasons))
    stage.metric(f"{prefix}.tokens", tokens)
    stage.metric(f"{prefix}.generation_seconds", round(seconds, 1))


def _run_job(job: GenerationJob) -> tuple[Dataset, Dropped]:
    from datasets import load_from_disk

    return generate(
        job.model, load_from_disk(job.prompts), job.settings, job.model_settings, Path(job.out), job.seed,
        job.responses, job.temperatures,
    )  # fmt: skip


if __name__ == "__main__":
    end_with_parent()
    quiet_libraries()
    _run_job(GenerationJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
