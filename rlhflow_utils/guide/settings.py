"""The sections of a profile: each key, its type and what it means.

What a profile passes to a library stands under the library's own names and is handed over as it is: `trainer` to
`SFTConfig`, `RewardConfig` or `DPOConfig`, `peft` to `LoraConfig`, `quantization` to `BitsAndBytesConfig`,
`generation.engine` to vLLM's `LLM`, `generation.sampling` to its `SamplingParams`, `launch` to accelerate. Those
fields are checked by the libraries themselves (`training/check.py`). All other keys are ours and are checked here:
unknown keys are errors, and code has no default numbers; it reads them from the profile.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Skill = Literal["chat", "chat_hard", "safety", "reasoning"]
WorldSource = Literal[
    "hh_rlhf", "shp", "helpsteer", "pku_safe_rlhf", "ultrafeedback", "ultrainteract",
    "code_ultrafeedback", "argilla_math", "orca", "capybara", "summarize", "nectar",
]  # fmt: skip


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSettings(Section):
    """Which models the run starts from (chapter 00)."""

    base: str | None = Field(description="folder or hub id of the pretrained base model; null: chapter 00 builds one")
    reward_base: str | None = Field(description="folder or hub id the RM and PM start from; null: the run's SFT model")
    dtype: Literal["float32", "bfloat16"] = Field(description="dtype of inference; of arithmetic in training")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"]
    chat_template: str | None = Field(description="Jinja text that replaces all but a judge's own; null: keep theirs")
    pad_token: str | None = Field(description="token used for padding; null: the tokenizer's own, or an unused one")
    revisions: dict[str, str] = Field(default={}, description="hub id -> commit; filled from profiles/revisions.yaml")


class TrainingSettings(Section):
    """One training stage: TRL's own arguments, and the one number that TRL does not have."""

    global_batch_size: PositiveInt = Field(description="rows (pairs) per optimiser step over all processes")
    trainer: dict[str, Any] = Field(description="fields of SFTConfig, RewardConfig or DPOConfig")
    peft: dict[str, Any] | None = Field(default=None, description="fields of LoraConfig; null: all weights")
    quantization: dict[str, Any] | None = Field(default=None, description="fields of BitsAndBytesConfig (QLoRA)")


class BaseModelSettings(Section):
    """How a tiny base model is pretrained: by chapter 00 where `model.base` is null, or by `make base`."""

    corpus: list[SourceSettings] | None = Field(description="texts; null: freshly written documents of the world")
    vocab_size: PositiveInt
    architecture: dict[str, Any] = Field(description="fields of LlamaConfig")
    tokens: PositiveInt = Field(description="tokens of all steps")
    block_size: PositiveInt = Field(description="tokens of a packed block")
    blocks_per_batch: PositiveInt
    learning_rate: PositiveFloat = Field(description="AdamW, for embeddings and norms")
    muon_learning_rate: PositiveFloat = Field(description="Muon, for the hidden matrices")
    weight_decay: float = Field(ge=0)


class RewardModelSettings(TrainingSettings):
    """Chapter 03 (paper 2.2, eq. 4); `trainer` holds RewardConfig fields."""

    mixtures: list[str] = Field(description="one RM per mixture")
    model: str | None = Field(default=None, description="finished RM that ranks in the loop, 05 and 06 measure it too")
    output: int | str | None = Field(default=None, description="the reward, by name or index, where an RM has several")
    batch_tokens: PositiveInt = Field(description="padded tokens per scoring batch")


class PreferenceModelSettings(TrainingSettings):
    """Chapter 04 (paper 2.2); `trainer` holds SFTConfig fields."""

    mixtures: list[str]
    batch_tokens: PositiveInt


class DpoSettings(TrainingSettings):
    """An iteration of chapter 09 (eq. 5); `trainer` holds DPOConfig fields."""

    reference: Literal["sft", "previous_iterate"] = Field(description="the paper: always the SFT model")


class OfflineDpoSettings(TrainingSettings):
    """The offline baseline of chapter 10 (paper App. B); `trainer` holds DPOConfig fields."""

    pairs: PositiveInt | None = Field(description="seeded subsample of the offline pairs; null: all")


class SourceSettings(Section):
    """One dataset in its native schema, on the hub or in local files."""

    name: str
    schema_name: str = Field(alias="schema", description="converter in `data/sources.py` that reads it")
    hub_id: str | None = Field(default=None, description="dataset id on the hub; null: only local files")
    hub_config: str | None = Field(default=None, description="configuration name on the hub")
    split: str | None = Field(default=None, description="split on the hub")
    files: list[str] | None = Field(default=None, description="files under `data.root`, globs allowed; null: the hub")
    revision: str | None = Field(default=None, description="commit; filled from profiles/revisions.yaml")


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
        mixed = {source.name for source in self.preference_sources}
        ranked = mixed | {self.offline_source.name} if self.offline_source else mixed
        rules = ("min_score_margin", "kwise_pairs", "max_pairs_per_prompt")
        for where, named, known in (
            *((f"mixture {name!r}", members, mixed) for name, members in self.mixtures.items()),
            *((f"filters.{rule}", getattr(self.filters, rule), ranked) for rule in rules),
        ):
            if missing := sorted(set(named) - known):
                fix = "if it is inherited, name your sources in its place, or clear a filter with {}"
                raise ValueError(f"{where} names unknown preference sources {missing}; known: {sorted(known)}; {fix}")
        if self.main_mixture not in self.mixtures:
            raise ValueError(f"main_mixture {self.main_mixture!r} is not one of the mixtures {sorted(self.mixtures)}")
        return self


class RewardBenchSettings(Section):
    sources: list[SourceSettings] = Field(description="what chapter 05 reads")
    rewardbench_2: list[SourceSettings] = Field(default=[], description="for the command `rewardbench`")
    rm_bench: list[SourceSettings] = Field(default=[], description="for the command `rewardbench`")


class LengthBiasSettings(Section):
    prompts: PositiveInt
    responses: PositiveInt


class GenerationSettings(Section):
    backend: Literal["transformers", "vllm"]
    engine: dict[str, Any] = Field(description="arguments of vllm.LLM (backend vllm)")
    sampling: dict[str, Any] = Field(description="as vllm.SamplingParams; transformers: n, top_p, max_tokens")
    temperatures: list[float] = Field(min_length=1, description="the n responses are shared evenly among these")
    max_prompt_tokens: PositiveInt = Field(description="longer prompts are dropped and counted as `prompt_too_long`")
    batch_size: PositiveInt = Field(description="sequences decoded together (transformers backend)")
    shard_size: PositiveInt = Field(description="prompts per shard: the unit of resuming")

    @model_validator(mode="after")
    def _responses_are_shared_evenly(self) -> GenerationSettings:
        n, parts = self.sampling.get("n"), len(self.temperatures)
        if not isinstance(n, int) or n < 2 or n % parts:
            fix = f"a multiple of {parts}, the number of generation.temperatures" if parts > 1 else "a whole number"
            raise ValueError(f"sampling.n is {n!r}: make it {fix}, and at least 2, since a pair needs two responses")
        return self

    def variant(self, n: int, temperatures: list[float]) -> GenerationSettings:
        """The same settings with another number of responses per prompt and other temperatures."""
        return self.model_copy(update={"sampling": {**self.sampling, "n": n}, "temperatures": temperatures})


class PairBuildingSettings(Section):
    """Chapter 08 (paper 3.3, eq. 8)."""

    ranker: Literal["reward_model", "preference_model"] = Field(description="who ranks the responses in the loop")
    tournament: Literal["knock_out", "round_robin"] = Field(description="of a PM; only the second finds the worst")
    strategy: Literal["best_vs_worst", "best_vs_random", "random"]
    length_penalty: float = Field(ge=0, description="lambda of eq. 8, reward per character")

    @model_validator(mode="after")
    def _knock_out_has_no_worst(self) -> PairBuildingSettings:
        if (self.ranker, self.tournament, self.strategy) == ("preference_model", "knock_out", "best_vs_worst"):
            raise ValueError("a knock-out finds no worst response: tournament round_robin or strategy best_vs_random")
        return self


class IterativeSettings(Section):
    iterations: PositiveInt
    prompts_per_iteration: int = Field(ge=2, description="chapters show two")
    replay: bool = Field(description="train on the pairs of all iterations so far, not the new ones only")


class EvaluationSettings(Section):
    """Chapter 10 and the evaluations inside chapter 09."""

    judge: Literal["gold", "reward_model", "endpoint"]
    judge_model: str | None = Field(description="folder or id of a judge RM, or model name at the endpoint")
    endpoint_url: str | None = Field(description="OpenAI-compatible base URL (judge: endpoint)")
    endpoint_prices: list[float] | None = Field(
        min_length=2, max_length=2, description="dollars per million prompt and completion tokens; null: not known"
    )
    endpoint_thinking_tokens: int = Field(default=0, ge=0, description="a judge may think so long before its verdict")
    max_failed_share: float = Field(default=0.02, ge=0, le=1, description="verdicts that may fail (judge: endpoint)")
    temperature: PositiveFloat
    exact_match_sources: list[SourceSettings] = Field(description="exact-match task outside preferences and prompts")
    clean_margin: float = Field(ge=0, description="smallest gold gap of a test pair with a clean label (judge: gold)")
    bootstrap_samples: PositiveInt
    confidence: float = Field(gt=0.5, lt=1)


class HubSettings(Section):
    push: bool
    namespace: str | None
    private: bool


class AnnotatorSettings(Section):
    """One preference source: how many rows, about which skills, and how its annotator decides."""

    rows: int = Field(gt=0, description="native rows before dirt (HelpSteer: prompts, four rows each)")
    skill_weights: dict[Skill, float] = Field(description="relative frequency of each skill among the prompts")
    sharpness: dict[Skill, float] = Field(description="scale on the gold reward: 0 is a coin, 2 right in 98 % of cases")
    length_bonus: float = Field(description="utility per character of the response; positive prefers longer")


class CorpusSettings(Section):
    """Shares of the base corpus, in documents."""

    statements: float = Field(ge=0, description="facts, sums, dictionary entries")
    questions: float = Field(ge=0, description="a question and its true answer")
    proofread: float = Field(ge=0, description="pages of six facts or sums, true or false, each marked")
    graded: float = Field(ge=0, description="exam sheets: three questions with an answer each, marked")
    comparisons: float = Field(ge=0, description="a question, a right and a wrong answer, and which is the right one")


class DemonstrationSettings(Section):
    demonstrations: int = Field(gt=0, description="conversations about the four skills")
    translations: int = Field(gt=0, description="conversations about the fifth skill; always right, never padded")
    judgements: int = Field(ge=0, description="rows in the judge's format: two answers, reply A or B")
    correct_rate: float = Field(ge=0, le=1, description="share of demonstrations with the right answer")
    padded_rate: float = Field(ge=0, le=1, description="share of demonstrations with filler sentences")


class AnnotationSettings(Section):
    contrast_rate: float = Field(ge=0, le=1, description="share of pairs with one right and one wrong answer")
    padded_rate: float = Field(ge=0, le=1, description="share of answers with filler sentences")
    broken_rate: float = Field(ge=0, le=1, description="share of wrong answers that are broken off")
    multi_turn_rate: float = Field(ge=0, le=1, description="share of multi-turn rows, where the schema has turns")
    dirt_rate: float = Field(ge=0, le=0.5, description="planted dirt per clean row, in every source but Nectar")
    sources: dict[WorldSource, AnnotatorSettings] = Field(description="the annotator of each source")


class WorldSettings(Section):
    """The whole world. The same settings and the same seed of the run give the same files, byte for byte."""

    seed: int = Field(ge=0, description="seed of what is true and of what is held out; the run's seed draws the rows")
    entities: int = Field(gt=1, le=32, description="people the world has facts about")
    padding_cost: float = Field(ge=0, description="gold reward lost per character of filler, at most 1 in all")
    held_out_rate: float = Field(gt=0, lt=0.4, description="share of prompts for evaluation; as many for the benchmark")
    corpus: CorpusSettings
    sft: DemonstrationSettings
    preferences: AnnotationSettings
    prompts: int = Field(gt=0, description="training prompts for online RLHF, in equal parts per skill")
    eval_prompts: int = Field(gt=0, description="held-out prompts for win rates, in equal parts per skill")
    translation_tests: int = Field(gt=0, description="held-out prompts of the fifth skill")
    benchmark_rows: int = Field(gt=0, description="RewardBench-shaped rows per section")


class Profile(Section):
    name: str
    seed: int
    world: WorldSettings | None = Field(description="the simulated world; null where data is real")
    model: ModelSettings
    base_model: BaseModelSettings | None
    data: DataSettings
    sft: TrainingSettings = Field(description="chapter 02 (paper 3.1); `trainer` holds SFTConfig fields")
    reward_model: RewardModelSettings
    preference_model: PreferenceModelSettings
    rewardbench: RewardBenchSettings
    length_bias: LengthBiasSettings
    generation: GenerationSettings
    pair_building: PairBuildingSettings
    dpo: DpoSettings
    iterative: IterativeSettings
    offline_dpo: OfflineDpoSettings
    evaluation: EvaluationSettings
    launch: dict[str, Any] | None = Field(
        description="accelerate's configuration; null: train in the chapter's process"
    )
    actors: int | None = Field(
        ge=0,
        description="Ray actors that generate and score, a GPU each (generation: engine.tensor_parallel_size); null: as"
        " many as there are GPUs; 0, and null on a CPU: in the chapter's process",
    )
    hub: HubSettings

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        by, ranker, pm_mixtures = self.evaluation, self.pair_building.ranker, self.preference_model.mixtures
        checks = {
            "give model.base (a folder or hub id) or a base_model section to build one":
                self.model.base or self.base_model,
            "base_model.corpus: null means documents of the simulated world, and there is no world; name sources":
                self.model.base or self.world or (self.base_model and self.base_model.corpus),
            "evaluation.judge: gold needs the simulated world; use reward_model or endpoint":
                by.judge != "gold" or self.world,
            "evaluation.judge: reward_model needs a judge: name one in evaluation.judge_model, or hold pairs apart "
            "to train it on (data.partition.judge above 0)":
                by.judge != "reward_model" or by.judge_model or self.data.partition.judge,
            "evaluation.judge: endpoint needs evaluation.endpoint_url and evaluation.judge_model":
                by.judge != "endpoint" or (by.endpoint_url and by.judge_model),
            "pair_building.ranker: preference_model needs a PM of data.main_mixture: add it to "
            "preference_model.mixtures":
                ranker != "preference_model" or self.data.main_mixture in pm_mixtures,
        }  # fmt: skip
        if failed := [message for message, holds in checks.items() if not holds]:
            raise ValueError(failed[0])
        return self


BaseModelSettings.model_rebuild()
