"""`python -m rlhflow_utils check`: every argument of a profile, built for real without weights, data or a GPU.

For each training stage: TRL's own argument object, the model on the meta device (shapes without memory), the global
batch, steps, tokens and memory, and the settings beside the paper's; then vLLM's arguments and what the machine lacks.
"""

from __future__ import annotations

import importlib.util
import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rlhflow_utils.data.overview import PAPER_TABLE1
from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile
from rlhflow_utils.guide.provenance import PROJECT, quiet_libraries
from rlhflow_utils.guide.settings import TrainingSettings
from rlhflow_utils.guide.tables import ARCHITECTURES, GATED, PAPER_GENERATION, paper_settings
from rlhflow_utils.training.trainers import (
    DpoObjective,
    TrainingJob,
    accumulation_steps,
    lora_config,
    optimiser_steps,
    training_arguments,
)

if TYPE_CHECKING:
    from transformers import TrainingArguments

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


@dataclass(frozen=True)
class ModelSize:
    """A model as a stage trains it."""

    parameters: int
    trainable: int
    positions: int


def check_profile(name: str, overrides: Mapping[str, Any] | None = None) -> None:
    """Build and print every argument of a profile.

    Args:
        name: a profile's name or file.
        overrides: dotted profile keys -> values.

    Raises:
        ConfigError: an argument cannot be built; the message is one line with the stage and the fix.
    """
    quiet_libraries()
    profile = load_profile(name, dict(overrides or {}))
    print(f"Profile {profile.name}: the arguments of every stage, built without weights or data\n")
    for stage in planned_stages(profile):
        _print_or_explain(stage.name, lambda stage=stage: training_lines(stage, profile))
    _print_or_explain("generation", lambda: generation_lines(profile))
    _print_or_explain("launch", lambda: launch_lines(profile))
    lacks = machine_lacks(profile)
    print("What this machine lacks")
    print("\n".join(f"  - {line}" for line in lacks) or "  nothing")


def _print_or_explain(where: str, lines: Any) -> None:
    try:
        print("\n".join(lines()) + "\n", flush=True)
    except ConfigError:
        raise
    except ValueError as error:
        message = " ".join(str(error).split())
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from error


# --- training -----------------------------------------------------------------------------------------------------


def training_lines(stage: PlannedStage, profile: Profile) -> list[str]:
    """The printed block of one stage.

    Raises:
        ValueError: the arguments cannot be built, or rows may be longer than the model's positions.
    """
    processes = max(1, profile.launch.num_processes)
    arguments = training_arguments(stage.job(profile), processes)
    size = model_size(stage, profile)
    settings = stage.settings
    if settings.max_length > size.positions:
        raise ValueError(f"max_length {settings.max_length} exceeds the model's {size.positions} positions; lower it")
    accumulated = accumulation_steps(settings, processes)
    memory = memory_bytes(stage, size, sharded_over(profile)) / 2**20
    amount = f"{memory / 1024:.1f} GiB" if memory > 1024 else f"{memory:.0f} MiB"
    held = "weights, gradients, Adam" + (", reference" if stage.objective else "")
    trained = "" if size.trainable == size.parameters else f", {size.trainable:,} of them trained (LoRA)"
    return [
        f"{stage.name}   {type(arguments).__name__}; starts from {stage.start}",
        *comparison_table(_ours(stage, arguments), paper_settings(stage.recipe, stage.model)),
        f"  global batch     {settings.global_batch_size} = {settings.per_device_train_batch_size} per device "
        f"x {accumulated} accumulated x {processes} process{'es' if processes > 1 else ''}",
        f"  steps            {_steps_text(stage)}",
        f"  parameters       {size.parameters:,}{trained}",
        f"  memory           {amount} per process ({held}; activations come on top)",
    ]


def _ours(stage: PlannedStage, arguments: TrainingArguments) -> dict[str, Any]:
    """What TRL's object holds, under the names of the paper's table."""
    objective = stage.objective.model_dump() if stage.objective else {}
    same_name = ("learning_rate", "num_train_epochs", "weight_decay", "max_length")
    return {
        **stage.extra,
        **objective,
        **{name: getattr(arguments, name) for name in same_name},
        "global_batch_size": stage.settings.global_batch_size,
        "lr_scheduler_type": str(arguments.lr_scheduler_type.value),
        "warmup_ratio": arguments.warmup_steps,
        "packing": stage.packing,
    }


def comparison_table(ours: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """Setting, our value, the paper's value, and whether they differ."""
    if not paper:
        return ["  not in the paper"]
    lines = [f"  {'':24s}{'ours':>16s}{'paper':>16s}"]
    for name in sorted(paper):
        mark = "" if ours[name] == paper[name] else "   deviation"
        lines.append(f"  {name:24s}{_short(ours[name]):>16s}{_short(paper[name]):>16s}{mark}")
    return lines


def _steps_text(stage: PlannedStage) -> str:
    steps, tokens = stage.steps(), stage.tokens()
    if steps is None:
        return stage.size.note
    if stage.size.rows is None:
        return f"{steps:,}, as max_steps says ({stage.size.note})"
    blocks = f" in {stage.samples():,} blocks" if stage.packing else ""
    limit = "at most " if stage.objective else ""
    seen = f", {limit}{tokens / 1e6:,.0f} M tokens" if tokens else ""
    return f"{steps:,} for {stage.size.rows:,} rows{blocks}{seen} ({stage.size.note})"


def model_size(stage: PlannedStage, profile: Profile) -> ModelSize:
    """Count a stage's parameters on the meta device, adapters included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config, _ = architecture(stage.model, profile)
    job = stage.job(profile)
    with torch.device("meta"):
        if job.kind == "reward":
            config.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
        parameters = sum(p.numel() for p in model.parameters())
        adapter = lora_config(job)
        if adapter:
            from peft import get_peft_model

            model = get_peft_model(model, adapter)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ModelSize(parameters, trainable, int(config.max_position_embeddings))


def architecture(model: str | None, profile: Profile) -> tuple[Any, str | None]:
    """A model's configuration, and a sentence where it could not be read and stands in a table instead.

    Args:
        model: hub id or folder; None: the base model of the profile's `base_model` section.
        profile: the profile.

    Raises:
        ConfigError: the model is neither reachable nor one whose shape is known.
    """
    from transformers import AutoConfig

    if model is None:
        assert profile.base_model is not None  # a profile without model.base has this section
        names = {
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "max_position_embeddings",
        }  # fmt: skip
        shape = profile.base_model.model_dump(include=names)
        return AutoConfig.for_model("llama", **shape, tie_word_embeddings=True), None
    local = Path(model).exists() or not _hub_reachable()
    revision = None if Path(model).exists() else profile.model.revision
    try:
        return AutoConfig.from_pretrained(
            model, revision=revision, local_files_only=local, trust_remote_code=False
        ), None
    except (OSError, ValueError) as error:
        if model not in ARCHITECTURES:
            reason = str(error).splitlines()[0][:120]
            raise ConfigError(f"model {model}: no config.json ({reason}); give a folder or go online") from error
    return AutoConfig.for_model(**ARCHITECTURES[model]), f"hub: {model} is not reachable; its shape comes from a table"


@cache
def _hub_reachable() -> bool:
    """One short attempt: transformers would try again for half a minute at every file."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=5).close()
    except urllib.error.HTTPError:
        return True  # it answers
    except OSError:
        return False
    return True


def memory_bytes(stage: PlannedStage, size: ModelSize, shards: int) -> float:
    """Bytes per GPU for weights, gradients, Adam's moments and a reference model: float32, or 4 bit where frozen."""
    lora = stage.settings.lora
    frozen = 0.5 if lora and lora.load_in_4bit else 4.0
    policy = 16.0 * size.trainable + (frozen * size.parameters if lora else 0.0)
    reference = frozen * size.parameters if stage.objective else 0.0
    return (policy + reference) / shards


def sharded_over(profile: Profile) -> int:
    """Processes that share one copy of the weights: all of them under FSDP, else each holds its own."""
    if not profile.launch.accelerate_config:
        return 1
    file = PROJECT / profile.launch.accelerate_config
    if not file.is_file():
        raise ConfigError(f"launch.accelerate_config: no file {profile.launch.accelerate_config}; correct its path")
    kind = yaml.safe_load(file.read_text(encoding="utf-8"))["distributed_type"]
    return profile.launch.num_processes if kind == "FSDP" else 1


# --- generation, launch, machine ----------------------------------------------------------------------------------


def generation_lines(profile: Profile) -> list[str]:
    """The generation settings beside the paper's, and vLLM's engine and sampling arguments.

    Raises:
        ValueError: the responses cannot be shared among the temperatures, or prompt and response exceed the model.
    """
    from rlhflow_utils.online.engines import vllm_arguments
    from rlhflow_utils.online.generation import response_temperatures

    settings = profile.generation
    each = response_temperatures(settings.temperatures, settings.responses)
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    positions = architecture(profile.model.base, profile)[0].max_position_embeddings
    if longest > positions:
        raise ValueError(
            f"prompt and response may take {longest} tokens, the model has {positions} positions; lower it"
        )
    lines = [f"generation   {settings.backend}", *comparison_table(settings.model_dump(), PAPER_GENERATION)]
    if settings.backend == "vllm":
        engine = vllm_arguments(profile.model.base or "02_sft/model", settings, profile.model)
        lines += ["  vllm.LLM", *(f"    {name}: {value}" for name, value in engine.items())]
        lines += [f"  SamplingParams   {text}" for text in _sampling(profile, each)]
    return lines


def _sampling(profile: Profile, each: Sequence[float]) -> list[str]:
    """One request per temperature, as real `SamplingParams` where vLLM is installed."""
    from rlhflow_utils.online.engines import sampling_arguments

    requests = sampling_arguments(profile.generation, each)
    if importlib.util.find_spec("vllm") is not None:
        from vllm.sampling_params import SamplingParams

        built = [SamplingParams(**request) for request in requests]
        requests = [{name: getattr(one, name) for name in requests[0]} for one in built]
    return [", ".join(f"{name}={value}" for name, value in request.items()) for request in requests]


def launch_lines(profile: Profile) -> list[str]:
    """How training starts; accelerate itself reads its file."""
    launch = profile.launch
    if launch.num_processes == 0:
        return ["launch   training runs in the chapter's process"]
    lines = [f"launch   accelerate launch, processes: {launch.num_processes}"]
    if launch.accelerate_config:
        from accelerate.commands.config.config_args import load_config_from_file

        loaded = load_config_from_file(str(PROJECT / launch.accelerate_config))
        lines.append(f"  {launch.accelerate_config}: {loaded.distributed_type.value}, {loaded.mixed_precision}")
        lines += [f"    {name}: {value}" for name, value in loaded.fsdp_config.items()]
    return lines


def machine_lacks(profile: Profile) -> list[str]:
    """What the profile needs and this machine has not, one line each."""
    import torch
    from huggingface_hub import get_token

    launch, judge, found = profile.launch, profile.evaluation, torch.cuda.device_count()
    needed = 0 if launch.use_cpu else max(1, launch.num_processes, profile.generation.tensor_parallel_size)
    lacks = [f"GPU: {needed} needed, {found} found; TRL's arguments hold use_cpu=True here"] if needed > found else []
    ids = dict.fromkeys(name for name in (profile.model.base, profile.model.reward_base) if name)
    lacks += [sentence for name in ids if (sentence := architecture(name, profile)[1])]
    if any(name.startswith(GATED) for name in ids) and not get_token():
        lacks.append("hub token: the models are gated; ask for access on their pages, then `hf auth login`")
    lacks += [
        f"package {package}: pip install -e .[gpu]"
        for package, wanted in _packages(profile).items()
        if wanted and importlib.util.find_spec(package) is None
    ]
    if judge.judge == "endpoint" and not os.environ.get("OPENAI_API_KEY"):
        lacks.append(f"OPENAI_API_KEY: {judge.judge_model} at {judge.endpoint_url} is the judge")
    return lacks


def _packages(profile: Profile) -> dict[str, bool]:
    adapters = [stage.settings.lora for stage in planned_stages(profile) if stage.settings.lora]
    return {
        "vllm": profile.generation.backend == "vllm",
        "bitsandbytes": any(adapter.load_in_4bit for adapter in adapters),
        "flash_attn": profile.model.attention == "flash_attention_2",
        "wandb": "wandb" in profile.report_to,
    }


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
