"""What a profile needs on a machine: memory on each GPU, hours and disk of every stage, before anything is run.

It follows TRL 1.16 under the guide's settings: float32 weights, gradients and two Adam moments (16 bytes a trained
parameter: ZeRO, arXiv 1910.02054, section 3.1), over all GPUs by FSDP or whole on each; bfloat16 arithmetic by autocast;
sdpa or FlashAttention; logits in tiles, never those of a whole vocabulary. Rows are as long as `max_length`. machines.yaml
has what is assumed. Not modelled: DeepSpeed, mixtures of experts, eager attention. A `model` is a Llama-like one's config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.data.overview import PAPER_TABLE1
from rlhflow_utils.guide.profile import ConfigError, Profile, nearest, variant
from rlhflow_utils.guide.settings import TrainingSettings
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import markdown_table
from rlhflow_utils.training.base_model import llama_config
from rlhflow_utils.training.trainers import KINDS, section_job, trainer_config

TABLE = yaml.safe_load((Path(__file__).parent / "machines.yaml").read_text(encoding="utf-8"))
ASSUMED, ANSWER = TABLE["assumed"], TABLE["assumed"]["responses"]
GIB, GB, HOUR = 2**30, 1e9, 3600
TILE = (4096, 32768)  # tokens and words of a tile of logits: TRL's TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE
HELD = ("weights", "gradients", "optimiser", "reference", "gathered", "inputs", "layer", "logits", "KV cache", "peak")
Memory = dict[str, float]  # what of HELD -> bytes on each GPU
Machine = Mapping[
    str, Any
]  # a line of machines.yaml; how many there are; and of each the usable `room`, operations an hour


def machine_of(text: str, nodes: int) -> Machine:
    """The machine of a name such as ``8xH100-80``; ConfigError for a GPU that machines.yaml does not have."""
    count, _, name = text.rpartition("x")
    if name not in TABLE["gpus"] or not (count or "1").isdecimal():
        known = ", ".join(TABLE["gpus"])
        raise ConfigError(f"machine {text!r}: write 8xH100-80, with one of {known}{nearest(name, TABLE['gpus'])}")
    gpu, each = TABLE["gpus"][name], int(count or 1)
    memory, speed = gpu["memory_gib"] * GIB, gpu["tflops"] * 1e12 * ASSUMED["efficiency"] * HOUR
    found = {
        "name": f"{nodes} x {each} x {name}",
        "gpus": each * nodes,
        "nodes": nodes,
        "memory": memory,
        "speed": speed,
    }
    return {**gpu, **found, "room": memory * ASSUMED["usable"]}


def model_of(name: str | None, profile: Profile) -> Any:
    """The config of a model: of a folder, of machines.yaml, of the hub, or (None) of the one that chapter 00 builds."""
    from transformers import AutoConfig

    if name is None and profile.base_model:
        return llama_config(profile.base_model.architecture, profile.base_model.vocab_size)
    if name in TABLE["architectures"]:
        return AutoConfig.for_model(**TABLE["architectures"][name])
    folder = PROJECT / str(name)
    return AutoConfig.from_pretrained(folder if folder.is_dir() else name).get_text_config()


def matrices(model: Any) -> list[tuple[int, int]]:
    """The two sizes of a layer's matrices: query, key, value and output, gate, up and down."""
    hidden, head = model.hidden_size, getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    query, key = (hidden, head * model.num_attention_heads), (hidden, head * model.num_key_value_heads)
    return [query, key, key, query, *[(hidden, model.intermediate_size)] * 3]


def layer_parameters(model: Any) -> int:
    """Parameters of one layer."""
    return sum(n * m for n, m in matrices(model)) + 2 * int(model.hidden_size)


def parameters(model: Any, reward: bool = False) -> int:
    """All parameters; a reward model has a vector in place of an output matrix of its own."""
    words = model.vocab_size * (1 if reward or model.tie_word_embeddings else 2)
    return int(model.num_hidden_layers * layer_parameters(model) + model.hidden_size * (words + (2 if reward else 1)))


def training_memory(
    model: Any, kind: str, config: Any, settings: TrainingSettings, shards: int = 1, triton: bool = True
) -> Memory:
    """Bytes on each GPU in training; ``peak`` counts the larger of ``layer`` and ``logits``.

    `config` is TRL's, `shards` the GPUs that FSDP spreads the states over. ``inputs`` is what the backward pass waits for:
    the input of each layer, or without gradient checkpointing all activations; ``layer`` what computing one layer again,
    and its gradients, take. Without `triton` (on a CPU) a tile of logits is copied seven times.
    """
    hidden, layers, words, mlp = model.hidden_size, model.num_hidden_layers, model.vocab_size, model.intermediate_size
    (_, query), (_, key), *_ = sizes = matrices(model)
    width, full, again = 2 if config.bf16 else 4, settings.peft is None, config.gradient_checkpointing
    rows = config.per_device_train_batch_size * (1 if kind == "sft" else 2)
    tokens, padded = rows * config.max_length, not getattr(config, "packing", False)
    whole = parameters(model, kind == "reward")
    adapter = (settings.peft or {}).get("r", 8) * layers * sum(n + m for n, m in sizes)  # on every matrix of the layers
    trained, weights = whole if full else adapter, 4.0 * whole
    if settings.quantization:  # half a byte, and a float32 scale for each 64 (QLoRA, arXiv 2305.14314, section 3)
        weights -= (4 - 0.5 - 4 / 64) * layers * sum(n * m for n, m in sizes)
    # Of a token in a layer: float32 inputs and results of two norms (inputs alone where they are frozen), what five
    # matrices read (a copy each under autocast), query, key, value and result, the MLP's gate, its activation, up, product.
    saved = (16 if full else 8) * hidden + (10 if width == 2 else 8) * hidden
    saved += 2 * width * (query + (query if padded else key)) + 4 * width * mlp
    copies = 2.0 * layer_parameters(model) if width == 2 else 0.0  # a layer's weights in bfloat16
    layer = tokens * 2 * mlp * (width if full else 4) + padded * rows * config.max_length**2 * (1 + width)
    layer += (tokens * saved + copies) if again else 0
    tile = 0.0 if kind == "reward" else min(tokens, TILE[0]) * TILE[1] * width
    logits = tile and tile + 4 * tokens * hidden + full * 4 * words * hidden
    logits += 0 if triton or not tile else 7 * 4 * min(tokens, TILE[0]) * min(words, TILE[1])
    cached = (
        2.0 * whole if full and width == 2 and shards == 1 else 0.0
    )  # autocast's copies, until the forward pass ends
    before = kind == "dpo" and config.precompute_ref_log_probs  # the reference is done, and gone, before training
    states = {
        "weights": (weights + (0 if full else 4 * trained)) / shards,
        "gradients": 4 * trained / shards,
        "optimiser": (2 if "8bit" in str(config.optim) else 8) * trained / shards,
        "reference": weights / shards if kind == "dpo" and not before else 0.0,
        "gathered": 0.0 if shards == 1 else 2.0 * (words * hidden + 2 * layer_parameters(model)),
        "inputs": layers * (tokens * (4 * hidden if again else saved) + (0 if again else copies)),
    }  # fmt: skip
    peak = max(sum(states.values()) + max(layer, logits, cached + tile), before * (2 * weights / shards + layer))
    return {**states, "layer": layer, "logits": logits, "peak": peak}


def fitting(profile: Profile, section: str, model: Any, room: float) -> tuple[Memory, dict[str, Any] | None]:
    """Memory of a training as the profile has it, and what to set so that it fits into `room` bytes (None: not known)."""
    launch, first, fields = profile.launch or {}, Memory(), Memory()
    changes: dict[str, Any] = {}
    shards = launch.get("num_processes", 1) if launch.get("distributed_type") == "FSDP" else 1
    for name, value in [("", None), *TABLE["remedies"]]:
        if name in fields and (not fields[name] or (type(fields[name]) is int and fields[name] > value)):
            changes[f"{section}.{'' if name in TrainingSettings.model_fields else 'trainer.'}{name}"] = value
        changed = variant(profile, changes)
        settings, config = getattr(changed, section), trainer_config(section_job(changed, section), launch)
        memory = training_memory(model, KINDS[section], config, settings, shards)
        first, fields = first or memory, fields or {**vars(config), **settings.model_dump()}
        if memory["peak"] <= room:
            return first, changes
    return first, None


def training_tokens(profile: Profile, section: str) -> float:
    """Tokens of one epoch, over all trainings of a section; NaN where a source's size is not known."""
    settings, data = getattr(profile, section), profile.data
    sources = PAPER_TABLE1 | ASSUMED["sources"] | {"": {"pairs": profile.iterative.prompts_per_iteration, **ANSWER}}
    groups = {
        "sft": [[source.name for source in data.sft_sources]], "dpo": [[""]] * profile.iterative.iterations,
        "offline_dpo": [[data.offline_source.name]] if data.offline_source else [],
    }.get(section) or [data.mixtures[mixture] for mixture in settings.mixtures]  # fmt: skip
    if not sources.keys() >= {name for names in groups for name in names}:
        return math.nan
    tokens, prompts = 0.0, 1 if KINDS[section] == "sft" else 2  # a prompt is read once with both answers, or with each
    for rows in ([sources[name] for name in names] for names in groups):
        most = getattr(settings, "pairs", None) or data.max_pairs_per_mixture or math.inf
        lengths = [row["chosen_length"] + row["rejected_length"] + prompts * row["prompt_length"] for row in rows]
        share = min(1.0, most / sum(row["pairs"] for row in rows))
        tokens += share * sum(row["pairs"] * length for row, length in zip(rows, lengths, strict=True))
    return tokens


def training_hours(profile: Profile, section: str, model: Any, machine: Machine) -> float:
    """Hours of all trainings of a section: 2 operations a parameter and token forward, 4 backward, or 2 with frozen weights.

    Source: Kaplan et al., arXiv 2001.08361, section 2.1, with its attention where blocks are packed.
    """
    settings, launch, kind = getattr(profile, section), profile.launch or {}, KINDS[section]
    config: Any = trainer_config(section_job(profile, section), launch)
    layers, attention = model.num_hidden_layers, matrices(model)[0][1] * config.max_length
    forward = 2 * (layers * layer_parameters(model) + (0 if kind == "reward" else model.vocab_size * model.hidden_size))
    forward += 2 * layers * attention if getattr(config, "packing", False) else 0
    passes = (2 if settings.peft else 3) + bool(config.gradient_checkpointing) + (kind == "dpo")  # its reference
    operations = training_tokens(profile, section) * float(config.num_train_epochs) * passes * forward
    return float(operations / machine["speed"] / launch.get("num_processes", 1))


def generation(profile: Profile, model: Any, machine: Machine) -> tuple[Memory, float]:
    """vLLM's bytes on each GPU, and hours of all iterations, with an engine on every `tensor_parallel_size` GPUs.

    A decoding step reads the weights and the caches of its sequences, and costs 2 operations a parameter and sequence: the
    slower of both counts. The peak is infinite where one longest sequence, or the engine, has no room.
    """
    engine, sampling = profile.generation.engine, profile.generation.sampling
    parallel, width = engine.get("tensor_parallel_size", 1), 2 if profile.model.dtype == "bfloat16" else 4
    weights = width * parameters(model) / parallel
    token = 2 * width * matrices(model)[1][1] * model.num_hidden_layers / parallel  # keys and values
    cache = engine.get("gpu_memory_utilization", 0.9) * machine["memory"] - weights
    fits = cache > token * (profile.generation.max_prompt_tokens + sampling["max_tokens"])
    prompt, response = ANSWER["prompt_length"], ANSWER["chosen_length"]
    at_once = max(1.0, min(engine.get("max_num_seqs", machine["sequences"]), cache / (token * (prompt + response))))
    reading = (weights + at_once * token * (prompt + response / 2)) / (machine["bandwidth"] * GB * ASSUMED["bandwidth"])
    step = max(reading / HOUR, at_once * 2 * parameters(model) / parallel / machine["speed"])
    steps = profile.iterative.iterations * profile.iterative.prompts_per_iteration * sampling["n"] * response / at_once
    peak = weights + cache if fits and parallel * machine["nodes"] <= machine["gpus"] else math.inf
    return {"weights": weights, "KV cache": cache, "peak": peak}, steps * step * parallel / machine["gpus"]


def storage(profile: Profile, model: Any, start: Any, machine: Machine) -> dict[str, float]:
    """Bytes of disk, and of the memory of each machine, where every process loads its own float32 copy of the weights."""
    last, limit = 2 if profile.model.dtype == "bfloat16" else 4, profile.sft.trainer.get("save_total_limit", 2)
    chain = 4 * parameters(model) * (1 + profile.iterative.iterations)  # float32: a training goes on from them
    judged = len(profile.reward_model.mixtures) * parameters(start, True) + parameters(start) + parameters(model)
    return {
        "downloads": 2.0 * (parameters(model) + parameters(start)), "trained models": chain + last * judged,
        # One more than the limit while it is written; an adapter's are small.
        "checkpoints of a training": (0 if profile.sft.peft else 12.0) * parameters(model) * (limit + 1),
        "memory of a machine": 8.0 * parameters(model) * machine["gpus"] / machine["nodes"],
    }  # fmt: skip


def capacity_plan(profile: Profile, machine: Machine) -> list[str]:
    """Lines for the terminal: every stage's memory and hours, what would make it fit, the dearest stage, and storage."""
    if profile.launch:
        kind = "MULTI_GPU" if machine["gpus"] > 1 else "NO"
        kind = profile.launch["distributed_type"] if profile.launch.get("distributed_type", "NO") != "NO" else kind
        counts = {"num_processes": machine["gpus"], "num_machines": machine["nodes"], "distributed_type": kind}
        profile = variant(profile, {f"launch.{key}": value for key, value in counts.items()})
    model = model_of(profile.model.base, profile)
    start = model_of(profile.model.reward_base or profile.model.base, profile)
    stages: dict[str, tuple[Memory, float, str]] = {}
    for section in (each for each in KINDS if each != "offline_dpo" or profile.data.offline_source):
        its = start if section in ("reward_model", "preference_model") else model
        memory, changes = fitting(profile, section, its, machine["room"])
        fits = "no" if changes is None else ", ".join(f"{key}={value}" for key, value in changes.items()) or "yes"
        stages[section] = memory, training_hours(profile, section, its, machine), fits
    writing, hours = generation(profile, model, machine)
    stages["generation"] = writing, hours, "yes" if writing["peak"] < math.inf else "another tensor_parallel_size"
    pairs = profile.iterative.iterations * profile.iterative.prompts_per_iteration * profile.generation.sampling["n"]
    read = pairs * (ANSWER["prompt_length"] + ANSWER["chosen_length"]) * 2 * parameters(start, True)
    stages["scoring"] = {"weights": 2.0 * parameters(start, True)}, read / machine["speed"] / machine["gpus"], "yes"
    table = [
        {
            "stage": stage,
            **{name: memory.get(name, 0) / GIB or None for name in HELD},
            "hours": hours,
            "fits, or set": fits,
        }
        for stage, (memory, hours, fits) in stages.items()
    ]
    known = {stage: hours for stage, (_, hours, _) in stages.items() if not math.isnan(hours)}
    dearest, total = max(known, key=lambda stage: known[stage]), sum(known.values())
    return [
        f"capacity   {machine['name']}: GiB on each GPU, {machine['room'] / GIB:.1f} of {machine['memory_gib']} are usable",
        markdown_table(table),
        f"{total:.0f} hours ({total * machine['gpus']:.0f} GPU hours) at {ASSUMED['efficiency']:.0%} of the peak, with the "
        f"paper's numbers of rows; the dearest: {dearest}, {known[dearest]:.0f} hours",
        *(f"{name}: {size / GB:.0f} GB" for name, size in storage(profile, model, start, machine).items()),
    ]
