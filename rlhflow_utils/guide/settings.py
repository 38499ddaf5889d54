"""The sections of a profile: each key, its type and what it means.

Strict: no unknown keys, no silent conversion, no defaults. Who needs a number asks the profile for it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSettings(Section):
    """Which models the run starts from (chapter 00)."""

    base: str | None = Field(description="folder or hub id of the pretrained base model; null: chapter 00 builds one")
    reward_base: str | None = Field(description="folder or hub id the RM and PM start from; null: the run's SFT model")
    revision: str | None = Field(description="hub revision of `base` and `reward_base`; null: the default branch")
    dtype: Literal["float32", "bfloat16"] = Field(description="dtype of weights in training and inference")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(description="attn_implementation")
    chat_template: str | None = Field(description="Jinja text that replaces the tokenizer's template; null: keep it")
    pad_token: str | None = Field(description="token used for padding where the tokenizer has none; null: it has one")


class LoraSettings(Section):
    """LoRA / QLoRA adapters (peft)."""

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float
    target_modules: str | list[str]
    load_in_4bit: bool = Field(description="QLoRA: quantise the frozen weights to 4 bit (needs bitsandbytes and a GPU)")


class TrainingSettings(Section):
    """One training stage, in TRL's vocabulary."""

    learning_rate: PositiveFloat
    num_train_epochs: PositiveFloat
    max_steps: PositiveInt | None = Field(description="optimiser steps, whatever the rows; null: the epochs decide")
    global_batch_size: PositiveInt = Field(description="samples (pairs) per optimiser step over all processes")
    per_device_train_batch_size: PositiveInt
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    adam_beta2: float = Field(gt=0, lt=1, description="AdamW's second-moment decay; 0.999 is the usual default")
    muon_learning_rate: PositiveFloat | None = Field(description="Muon for the hidden matrices; null: AdamW for all")
    max_length: PositiveInt = Field(description="tokens; longer rows are dropped and counted, never truncated")
    group_by_length: bool = Field(description="batch rows of similar length together")
    gradient_checkpointing: bool
    save_steps: PositiveInt = Field(description="a checkpoint every so many optimiser steps")
    lora: LoraSettings | None


class BaseModelSettings(Section):
    """The tiny base model of chapter 00 (only where `model.base` is null)."""

    corpus: list[SourceSettings] = Field(description="texts the base model is trained on")
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    max_position_embeddings: PositiveInt
    packing: bool
    training: TrainingSettings


class SourceSettings(Section):
    """One dataset in its native schema, on the hub or in local files."""

    name: str
    schema_name: str = Field(alias="schema", description="converter of `rlhflow_utils.sources` that reads it")
    hub_id: str | None = Field(description="dataset id on the hub; null where it exists only as local files")
    hub_config: str | None = Field(description="configuration name on the hub")
    revision: str | None = Field(description="commit on the hub; null: unknown, warned about")
    split: str | None = Field(description="split on the hub")
    files: list[str] | None = Field(description="files under `data.root`, globs allowed; null: load from the hub")


class FilterSettings(Section):
    """Numbers of the filter rules (paper 2.1 and the dataset cards)."""

    min_score_margin: dict[str, float] = Field(description="source name -> smallest chosen-rejected score gap kept")
    min_score_ratio: float = Field(description="SHP: keep pairs whose score ratio is strictly above this")
    kwise_pairs: dict[str, Literal["all_pairs", "best_vs_random", "best_vs_worst"]] = Field(
        description="source name -> which pairs a row of several scored answers gives; absent: all pairs"
    )
    max_pairs_per_prompt: dict[str, PositiveInt] = Field(description="source name -> most pairs kept per prompt")
    min_response_characters: PositiveInt = Field(description="shorter answers count as meaningless")
    max_tokens: PositiveInt = Field(description="prompt + answer, longer pairs are dropped")


class PartitionSettings(Section):
    """Shares of the preference sources' prompts, assigned by a hash of the prompt; the rest trains RM and PM."""

    test: float = Field(ge=0, lt=1, description="held-out pairs (RM and PM accuracy)")
    sft: float = Field(ge=0, lt=1, description="chosen answers become SFT rows")
    prompts: float = Field(ge=0, lt=1, description="prompts for generation")
    judge: float = Field(ge=0, lt=1, description="pairs for a judge RM held apart from the one that trains")


class DecontaminationSettings(Section):
    """How prompts that train are compared with evaluation prompts (not in the paper)."""

    ngram: PositiveInt = Field(description="words of an n-gram; shorter evaluation prompts must be repeated whole")
    min_overlap: float = Field(gt=0, le=1, description="share of an evaluation prompt's words in shared n-grams")
    sources: list[SourceSettings] = Field(description="benchmarks held out besides the run's evaluation prompts")


class DataSettings(Section):
    """Everything chapter 01 loads, filters, mixes and splits."""

    root: str | None = Field(description="folder of local files; null: the run's own simulated world, or the hub")
    preference_sources: list[SourceSettings]
    sft_sources: list[SourceSettings]
    prompt_sources: list[SourceSettings]
    evaluation_prompt_sources: list[SourceSettings] = Field(description="held-out prompts; empty: split off prompts")
    offline_source: SourceSettings | None = Field(description="ranked answers for offline DPO (Nectar)")
    mixtures: dict[str, list[str]] = Field(description="mixture name -> preference source names")
    max_pairs_per_mixture: PositiveInt | None = Field(description="seeded subsample of each mixture; null: all")
    main_mixture: str = Field(description="the mixture whose RM drives iterative DPO")
    filters: FilterSettings
    partition: PartitionSettings
    evaluation_prompts: PositiveInt
    decontamination: DecontaminationSettings
    workers: PositiveInt = Field(description="processes for converting and filtering")

    @model_validator(mode="after")
    def _names_exist(self) -> DataSettings:
        known = {source.name for source in self.preference_sources}
        for mixture, members in self.mixtures.items():
            missing = sorted(set(members) - known)
            if missing:
                raise ValueError(
                    f"mixture {mixture!r} names unknown preference sources {missing}; known: {sorted(known)}"
                )
        known |= {self.offline_source.name} if self.offline_source else set()
        for rule in ("min_score_margin", "kwise_pairs", "max_pairs_per_prompt"):
            missing = sorted(set(getattr(self.filters, rule)) - known)
            if missing:
                raise ValueError(f"filters.{rule} names unknown preference sources {missing}; known: {sorted(known)}")
        if self.main_mixture not in self.mixtures:
            raise ValueError(f"main_mixture {self.main_mixture!r} is not one of the mixtures {sorted(self.mixtures)}")
        return self


class SftSettings(Section):
    """Chapter 02 (paper 3.1)."""

    packing: bool = Field(description="fill blocks of max_length tokens ('wrapped': the paper's way)")
    completion_only_loss: bool
    training: TrainingSettings


class RewardModelSettings(Section):
    """Chapter 03 (paper 2.2, eq. 4)."""

    mixtures: list[str] = Field(description="one RM per mixture")
    batch_tokens: PositiveInt = Field(description="padded tokens per scoring batch")
    training: TrainingSettings


class PreferenceModelSettings(Section):
    """Chapter 04 (paper 2.2)."""

    mixtures: list[str]
    packing: bool
    batch_tokens: PositiveInt
    training: TrainingSettings


class RewardBenchSettings(Section):
    """Chapter 05."""

    sources: list[SourceSettings]


class LengthBiasSettings(Section):
    """Chapter 06 (paper 2.3, Fig. 5)."""

    prompts: PositiveInt
    responses: PositiveInt


class GenerationSettings(Section):
    """Chapter 07 (paper 3.3)."""

    backend: Literal["transformers", "vllm"]
    responses: PositiveInt = Field(description="n, responses per prompt")
    temperatures: list[PositiveFloat] = Field(description="the n responses are shared evenly among these")
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: PositiveInt
    max_prompt_tokens: PositiveInt = Field(description="longer prompts are dropped and counted as `prompt_too_long`")
    batch_size: PositiveInt = Field(description="sequences decoded together (transformers backend)")
    shard_size: PositiveInt = Field(description="prompts per shard: the unit of resuming")
    vllm_memory: PositiveFloat = Field(description="vLLM gpu_memory_utilization; on CPU: GiB of KV cache")
    tensor_parallel_size: PositiveInt


class PairBuildingSettings(Section):
    """Chapter 08 (paper 3.3, eq. 8)."""

    strategy: Literal["best_vs_worst", "best_vs_random", "random"]
    length_penalty: float = Field(ge=0, description="lambda of eq. 8, reward per character")


class DpoSettings(Section):
    """The DPO objective (eq. 5) and how an iteration of chapter 09 trains."""

    beta: PositiveFloat
    loss_type: Literal["sigmoid", "hinge", "ipo"]
    label_smoothing: float = Field(ge=0, lt=0.5)
    precompute_ref_log_probs: bool
    reference: Literal["sft", "previous_iterate"] = Field(description="the paper: always the SFT model")
    training: TrainingSettings


class IterativeSettings(Section):
    """The loop of chapter 09 (Algorithm 1)."""

    iterations: PositiveInt
    prompts_per_iteration: PositiveInt
    replay: bool = Field(description="train on the pairs of all iterations so far, not the new ones only")


class OfflineDpoSettings(Section):
    """The offline baseline of chapter 10 (paper App. B); the objective is that of `dpo`."""

    pairs: PositiveInt | None = Field(description="seeded subsample of the offline pairs; null: all")
    training: TrainingSettings


class EvaluationSettings(Section):
    """Chapter 10 and the evaluations inside chapter 09."""

    judge: Literal["gold", "reward_model", "endpoint"]
    judge_model: str | None = Field(description="folder or id of a judge RM, or model name at the endpoint")
    endpoint_url: str | None = Field(description="OpenAI-compatible base URL (judge: endpoint)")
    endpoint_prices: list[float] | None = Field(
        min_length=2, max_length=2, description="dollars per million prompt and completion tokens; null: not known"
    )
    temperature: PositiveFloat
    translation_sources: list[SourceSettings] = Field(description="exact-match task outside preferences and prompts")
    clean_margin: float = Field(ge=0, description="smallest gold gap of a test pair with a clean label (judge: gold)")
    bootstrap_samples: PositiveInt
    confidence: float = Field(gt=0.5, lt=1)


class LossChoice(Section):
    """A DPO loss of claim o: its β, and the candidates it was chosen from on the development seed."""

    candidates: list[PositiveFloat] = Field(description="values of beta tried by `claims --development`")
    beta: PositiveFloat = Field(description="the one chosen, before any test seed was run")


class WorldVariant(Section):
    """Another setting of the annotators, under which claims a-e are measured again."""

    name: str
    sharpness: PositiveFloat = Field(description="factor on every annotator's sharpness; below 1: noisier labels")
    length_bonus: float = Field(description="factor on every annotator's taste for length")


class ClaimMargins(Section):
    """Differences that do not count: for the claims that say `no worse` or `near equal`."""

    accuracy: PositiveFloat
    win_rate: PositiveFloat
    exact_match: PositiveFloat


class ClaimsSettings(Section):
    """`make claims` and chapter 11: the paper's claims over seeds (simulated world only)."""

    first_seed: PositiveInt = Field(
        description="of the test seeds; seed 0 is the guide's, `development_seed` the choices'"
    )
    seeds: PositiveInt = Field(description="test seeds of claims a-h and the reference check")
    fewer_seeds: PositiveInt = Field(description="test seeds of the other claims")
    variant_seeds: PositiveInt = Field(description="test seeds under each of `variants`; needs at least as many seeds")
    development_seed: PositiveInt = Field(description="hyper-parameters are chosen here, never on a test seed")
    overrides: dict[str, Any] = Field(description="what the claims change against this profile: dotted key -> value")
    variants: list[WorldVariant]
    length_penalty: PositiveFloat = Field(description="lambda of the penalised arm (claim g)")
    updates: PositiveInt = Field(description="optimiser steps of DPO in each iteration, equal in all arms")
    low_beta: PositiveFloat = Field(description="beta of the weakly held policies (claim l)")
    rm_shares: list[PositiveFloat] = Field(description="shares of the main mixture, for RM accuracy against size")
    weak_share: PositiveFloat = Field(description="the one of `rm_shares` whose RM is the weak one (claims k, l)")
    single_temperature: PositiveFloat = Field(description="of the arm that samples at one temperature (claim j)")
    losses: dict[Literal["sigmoid", "ipo", "hinge"], LossChoice]
    bon_prompts: PositiveInt = Field(description="prompts of the best-of-n check")
    bon_responses: PositiveInt = Field(description="responses to each, from which pi and best-of-n are estimated")
    bon_n: list[PositiveInt]
    margins: ClaimMargins

    @model_validator(mode="after")
    def _consistent(self) -> ClaimsSettings:
        if self.weak_share not in self.rm_shares:
            raise ValueError(f"claims.weak_share {self.weak_share} must be one of claims.rm_shares {self.rm_shares}")
        if self.first_seed <= self.development_seed < self.first_seed + self.seeds:
            raise ValueError("claims.development_seed must not be one of the test seeds: raise claims.first_seed")
        if not self.variant_seeds <= self.fewer_seeds <= self.seeds:
            raise ValueError("claims: variant_seeds <= fewer_seeds <= seeds is needed, since all share the first seeds")
        return self


class LaunchSettings(Section):
    """Where heavy stages run (the second seam)."""

    num_processes: int = Field(ge=0, description="0: in the chapter's process; N: accelerate launch with N processes")
    accelerate_config: str | None = Field(description="accelerate YAML (DeepSpeed, FSDP, many nodes); null: none")
    use_cpu: bool


class HubSettings(Section):
    """Pushing trained models."""

    push: bool
    namespace: str | None
    private: bool


Skill = Literal["chat", "chat_hard", "safety", "reasoning"]
SourceName = Literal[
    "hh_rlhf", "shp", "helpsteer", "pku_safe_rlhf", "ultrafeedback", "ultrainteract",
    "code_ultrafeedback", "argilla_math", "orca", "capybara", "summarize", "nectar",
]  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AnnotatorSettings(_Strict):
    """One preference source: how many rows, about which skills, and how its annotator decides."""

    rows: int = Field(gt=0, description="native rows before dirt (HelpSteer: prompts, four rows each)")
    skill_weights: dict[Skill, float] = Field(description="relative frequency of each skill among the prompts")
    sharpness: dict[Skill, float] = Field(
        description="Bradley-Terry scale on the gold reward, per skill: 0 is a coin, 2 is right 98 % of the time "
        "when one answer is correct and the other is not"
    )
    length_bonus: float = Field(description="utility per character of the response; positive prefers longer")


class CorpusSettings(_Strict):
    """Documents of the base corpus, by kind."""

    statements: int = Field(ge=0, description="documents that state facts, sums, dictionary entries")
    questions: int = Field(ge=0, description="documents with a question and its true answer")
    proofread: int = Field(ge=0, description="pages of six facts or sums, true or false, each marked right or wrong")
    graded: int = Field(ge=0, description="exam sheets: three questions with an answer each, marked right or wrong")
    comparisons: int = Field(ge=0, description="a question, a right and a wrong answer, and which of them is better")


class DemonstrationSettings(_Strict):
    """The SFT set."""

    demonstrations: int = Field(gt=0, description="conversations about the four skills")
    translations: int = Field(gt=0, description="conversations about the fifth skill; always right, never padded")
    judgements: int = Field(ge=0, description="rows in the judge's format: two answers, reply A or B")
    correct_rate: float = Field(ge=0, le=1, description="share of demonstrations with the right answer")
    padded_rate: float = Field(ge=0, le=1, description="share of demonstrations with filler sentences")


class PreferenceSettings(_Strict):
    """What the preference sources have in common."""

    contrast_rate: float = Field(ge=0, le=1, description="share of pairs with one right and one wrong answer")
    padded_rate: float = Field(ge=0, le=1, description="share of answers with filler sentences")
    broken_rate: float = Field(ge=0, le=1, description="share of wrong answers that are broken off")
    multi_turn_rate: float = Field(ge=0, le=1, description="share of multi-turn rows, where the schema has turns")
    dirt_rate: float = Field(ge=0, le=0.5, description="planted dirt per clean row, in every source but Nectar")
    sources: dict[SourceName, AnnotatorSettings] = Field(description="the annotator of each source")


class WorldSettings(_Strict):
    """The whole world. The same settings give the same files, byte for byte."""

    seed: int = Field(ge=0, description="seed of the facts, the dictionary and every file")
    entities: int = Field(gt=1, le=32, description="people the world has facts about")
    padding_cost: float = Field(ge=0, description="gold reward lost per character of filler")
    held_out_rate: float = Field(gt=0, lt=0.4, description="share of prompt contents kept for evaluation, and as "
                                 "large a share for the benchmark")  # fmt: skip
    corpus: CorpusSettings = Field(description="the base model's corpus")
    sft: DemonstrationSettings = Field(description="the SFT set")
    preferences: PreferenceSettings = Field(description="the preference sources")
    prompts: int = Field(gt=0, description="training prompts for online RLHF, in equal parts per skill")
    eval_prompts: int = Field(gt=0, description="held-out prompts for win rates, in equal parts per skill")
    translation_tests: int = Field(gt=0, description="held-out prompts of the fifth skill")
    benchmark_rows: int = Field(gt=0, description="RewardBench-shaped rows per section")
