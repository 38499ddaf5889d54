"""What a profile needs on a machine: memory on each GPU, hours and disk of every stage, before anything is run.

It follows TRL 1.16 under the guide's settings: float32 weights, gradients and two Adam moments (16 bytes a trained
parameter: ZeRO, arXiv 1910.02054, section 3.1), over all GPUs by FSDP or whole on each; bfloat16 by autocast; sdpa or
FlashAttention; logits in tiles; rows as long as `max_length`. machines.yaml has what is assumed. Not modelled:
DeepSpeed, mixtures of experts, eager attention. A `model` is the config of a Llama-like one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.guide.profile import ConfigError, Profile, nearest, variant
from rlhflow_utils.guide.settings import TrainingSettings
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import markdown_table
from rlhflow_utils.training.pretraining import llama_config
from rlhflow_utils.training.trainers import KINDS, section_job, trainer_config

TABLE = yaml.safe_load((Path(__file__).parent / "machines.yaml").read_text(encoding="utf-8"))
ASSUMED, GIB, GB = TABLE["assumed"], 2**30, 1e9
PROMPT, RESPONSE = (ASSUMED["rows"]["responses"][name] for name in ("prompt_length", "chosen_length"))
TILE = (4096, 32768)  # tokens and words of a tile of logits: TRL's TOKEN_CHUNK_SIZE and _CHUNKED_LOGPROB_CHUNK_SIZE
HELD = ("weights", "gradients", "optimiser", "reference", "gathered", "inputs", "layer", "logits", "KV cache", "peak")
Memory = dict[str, float]  # what of HELD -> bytes on each GPU
Machine = Mapping[str, Any]  # a line of machines.yaml; how many there are; usable `room` and operations an hour of each


def machine_of(text: str, nodes: int) -> Machine:
    """The machine of a name such as ``8xH100-80``; ConfigError for a GPU that machines.yaml does not have."""
    count, _, name = text.rpartition("x")
    if name not in TABLE["gpus"] or not (count or "1").isdecimal():
        known = ", ".join(TABLE["gpus"])
        raise ConfigError(f"machine {text!r}: write 8xH100-80, with one of {known}{nearest(name, TABLE['gpus'])}")
    gpu, gpus = TABLE["gpus"][name], int(count or 1) * nodes
    room, speed = gpu["memory_gib"] * GIB * ASSUMED["usable"], gpu["tflops"] * 1e12 * ASSUMED["efficiency"] * 3600
    found = {"name": f"{nodes} x {count or 1} x {name}", "gpus": gpus, "nodes": nodes, "room": room, "speed": speed}
    return {**gpu, **found}


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


def parameters(model: Any, reward: bool = False) -> int:
    """All parameters; a reward model has a vector in place of an output matrix of its own."""
    words = model.vocab_size * (1 if reward or model.tie_word_embeddings else 2) + (2 if reward else 1)
    layer = sum(n * m for n, m in matrices(model)) + 2 * model.hidden_size
    return int(model.num_hidden_layers * layer + model.hidden_size * words)


def training_memory(
    model: Any, kind: str, config: Any, settings: TrainingSettings, shards: int = 1, triton: bool = True
) -> Memory:
    """Bytes on each GPU in training; ``peak`` counts the larger of ``layer`` and ``logits``.

    `config` is TRL's, `shards` the GPUs that FSDP spreads the states over. ``inputs`` is what the backward pass waits
    for: the input of each layer, or without gradient checkpointing all activations; ``layer`` what computing one layer
    again, and its gradients, take. Without `triton` (on a CPU) a tile of logits is copied seven times.
    """
    hidden, layers, words, mlp = model.hidden_size, model.num_hidden_layers, model.vocab_size, model.intermediate_size
    (_, query), (_, key), *_ = sizes = matrices(model)
    width, full, again = 2 if config.bf16 else 4, settings.peft is None, config.gradient_checkpointing
    rows = config.per_device_train_batch_size * (1 if kind == "sft" else 2)
    tokens, padded = rows * config.max_length, not getattr(config, "packing", False)
    whole, body = parameters(model, kind == "reward"), sum(n * m for n, m in sizes)
    weights, trained = (4.0 if full else width) * whole, whole
    if settings.peft is not None:  # an adapter on every matrix of the layers; what it leaves frozen has `model.dtype`
        trained = settings.peft.get("r", 8) * layers * sum(n + m for n, m in sizes)
    if settings.quantization:  # half a byte, and a float32 scale for each 64 (QLoRA, arXiv 2305.14314, section 3)
        weights -= (width - 0.5 - 4 / 64) * layers * body
    # Of a token in a layer: float32 inputs and results of two norms (inputs alone if frozen), what five matrices read
    # (a copy each under autocast), query, key, value and result, the MLP's gate, its activation, up and their product.
    saved = (16 if full else 8) * hidden + (10 if width == 2 else 8) * hidden
    saved += 2 * width * (query + (query if padded else key)) + 4 * width * mlp
    copies = 2.0 * body if full and width == 2 else 0.0  # a layer's weights in bfloat16
    layer = tokens * 2 * mlp * (width if full else 4) + padded * rows * config.max_length**2 * (1 + width)
    layer += (tokens * saved + copies) if again else 0
    tile = 0.0 if kind == "reward" else min(tokens, TILE[0]) * TILE[1] * width
    logits = tile and tile + 4 * tokens * hidden + full * 4 * words * hidden
    logits += 0 if triton or not tile else 7 * 4 * min(tokens, TILE[0]) * min(words, TILE[1])
    # Autocast's copies, until the pass forward ends.
    cached = 2.0 * whole if full and width == 2 and shards == 1 else 0.0
    before = kind == "dpo" and config.precompute_ref_log_probs  # a reference that is gone when training begins
    states = {
        "weights": (weights + (0 if full else 4 * trained)) / shards, "gradients": 4 * trained / shards,
        "optimiser": (2 if "8bit" in str(config.optim) else 8) * trained / shards,
        "reference": weights / shards if kind == "dpo" and not before else 0.0,
        "gathered": 0.0 if shards == 1 else 2.0 * (words * hidden + 2 * body),
        "inputs": layers * (tokens * (4 * hidden if again else saved) + (0 if again else copies)),
    }  # fmt: skip
    peak = max(sum(states.values()) + max(layer, logits, cached + tile), before * (2 * weights / shards + layer))
    return {**states, "layer": layer, "logits": logits, "peak": peak}


def fitting(profile: Profile, section: str, model: Any, room: float) -> tuple[Memory, dict[str, Any] | None]:
    """Memory of a training as the profile has it, and what to set so that it fits into `room` bytes (None: unknown)."""
    launch, first, fields, changes = profile.launch or {}, Memory(), Memory(), dict[str, Any]()
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


def training_hours(profile: Profile, section: str, model: Any, machine: Machine) -> float | None:
    """Hours of all trainings of a section, with the paper's numbers of rows; None for a mixture that is not its.

    Operations a parameter and token: 2 forward, 4 backward, 2 with frozen weights (Kaplan et al., arXiv 2001.08361).
    """
    settings, launch, kind, loop = getattr(profile, section), profile.launch or {}, KINDS[section], profile.iterative
    config: Any = trainer_config(section_job(profile, section), launch)
    named = {"sft": ["sft"], "dpo": ["responses"] * loop.iterations, "offline_dpo": ["offline"]}
    tokens, prompts = 0.0, 1 if kind == "sft" else 2  # a PM reads both answers to a prompt at once
    for name in named.get(section) or settings.mixtures:
        if (row := ASSUMED["rows"].get(name)) is None:
            return None
        limit = getattr(settings, "pairs", None) if section in named else profile.data.max_pairs_per_mixture
        length = prompts * row["prompt_length"] + row["chosen_length"] + row["rejected_length"]
        tokens += min(row.get("pairs", loop.prompts_per_iteration), limit or math.inf) * length
    body = model.num_hidden_layers * sum(n * m for n, m in matrices(model))
    forward = 2 * (body + (0 if kind == "reward" else model.vocab_size * model.hidden_size))
    passes = (2 if settings.peft else 3) + bool(config.gradient_checkpointing) + (kind == "dpo")  # its reference
    operations = tokens * float(config.num_train_epochs) * passes * forward
    return float(operations / machine["speed"] / launch.get("num_processes", 1))


def generation(profile: Profile, model: Any, machine: Machine) -> tuple[Memory, float]:
    """vLLM's bytes on each GPU, and hours of all iterations, with an engine on every `tensor_parallel_size` GPUs.

    A decoding step reads the weights and the caches of its sequences, and costs 2 operations a parameter and sequence:
    the slower of both counts. The peak is infinite where the engine, or one longest sequence, has no room.
    """
    engine, sampling = profile.generation.engine, profile.generation.sampling
    parallel, width = engine.get("tensor_parallel_size", 1), 2 if profile.model.dtype == "bfloat16" else 4
    weights = width * parameters(model) / parallel
    token = 2 * width * matrices(model)[1][1] * model.num_hidden_layers / parallel  # keys and values
    cache = engine.get("gpu_memory_utilization", 0.9) * machine["memory_gib"] * GIB - weights
    fits = cache > token * (profile.generation.max_prompt_tokens + sampling["max_tokens"])
    at_once = max(1.0, min(engine.get("max_num_seqs", machine["sequences"]), cache / (token * (PROMPT + RESPONSE))))
    reading = (weights + at_once * token * (PROMPT + RESPONSE / 2)) / (machine["bandwidth"] * GB * ASSUMED["bandwidth"])
    step = max(reading / 3600, at_once * 2 * parameters(model) / parallel / machine["speed"])
    steps = profile.iterative.iterations * profile.iterative.prompts_per_iteration * sampling["n"] * RESPONSE / at_once
    peak = weights + cache if fits and parallel * machine["nodes"] <= machine["gpus"] else math.inf
    return {"weights": weights, "KV cache": cache, "peak": peak}, steps * step * parallel / machine["gpus"]


def capacity_plan(profile: Profile, machine: Machine) -> list[str]:
    """Lines for the terminal: every stage's memory and hours, what would make it fit, the dearest stage, and disk."""
    if profile.launch:
        kind = profile.launch.get("distributed_type", "NO")
        kind = "MULTI_GPU" if kind == "NO" and machine["gpus"] > 1 else kind
        counts = {"num_processes": machine["gpus"], "num_machines": machine["nodes"], "distributed_type": kind}
        profile = variant(profile, {f"launch.{key}": value for key, value in counts.items()})
    model = model_of(profile.model.base, profile)
    start = model_of(profile.model.reward_base or profile.model.base, profile)
    judge, loop, stages = parameters(start, True), profile.iterative, list[tuple[str, Memory, float | None, str]]()
    for section in (each for each in KINDS if each != "offline_dpo" or profile.data.offline_source):
        its = start if section in ("reward_model", "preference_model") else model
        memory, changes = fitting(profile, section, its, machine["room"])
        fits = "no" if changes is None else ", ".join(f"{key}={value}" for key, value in changes.items()) or "yes"
        stages.append((section, memory, training_hours(profile, section, its, machine), fits))
    memory, writing = generation(profile, model, machine)
    stages.append(("generation", memory, writing, "yes" if memory["peak"] < math.inf else "tensor_parallel_size"))
    read = loop.iterations * loop.prompts_per_iteration * profile.generation.sampling["n"] * (PROMPT + RESPONSE)
    stages.append(("scoring", {"weights": 2.0 * judge}, read * 2 * judge / machine["speed"] / machine["gpus"], "yes"))
    held = [{name: memory.get(name, 0) / GIB or None for name in HELD} for _, memory, _, _ in stages]
    table = [
        {"stage": stage, **its, "hours": hours, "fits, or set": fits}
        for (stage, _, hours, fits), its in zip(stages, held, strict=True)
    ]
    # Float32 where a training goes on from a model. One checkpoint more than the limit, while it is written.
    policy, last = parameters(model) / GB, 2 if profile.model.dtype == "bfloat16" else 4
    judges = judge / GB * (len(profile.reward_model.mixtures) + len(profile.preference_model.mixtures))
    kept = 4 * policy * (1 + loop.iterations) + last * (policy + judges)
    checkpoints = (0 if profile.sft.peft else 12) * policy * (profile.sft.trainer.get("save_total_limit", 2) + 1)
    once = ((profile.launch or {}).get("fsdp_config") or {}).get("fsdp_cpu_ram_efficient_loading")
    loaded, by = (1, "once") if once else (machine["gpus"] / machine["nodes"], "for each process")
    total, dearest = sum(hours or 0 for _, _, hours, _ in stages), max(stages, key=lambda stage: stage[2] or 0)
    return [
        f"capacity   {machine['name']}: GiB on each GPU, {machine['room'] / GIB:.1f} of {machine['memory_gib']} usable",
        markdown_table(table),
        f"{total:.0f} hours ({total * machine['gpus']:.0f} GPU hours) at {ASSUMED['efficiency']:.0%} of peak, with the "
        f"paper's numbers of rows; the dearest: {dearest[0]}, {dearest[2]:.0f} hours",
        f"disk: {kept:.0f} GB of models, {checkpoints:.0f} GB of checkpoints while one trains, and the downloads",
        f"memory of each machine: {8 * policy * loaded:.0f} GB, float32 weights {by}, in DPO twice",
    ]
