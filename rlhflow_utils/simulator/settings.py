"""Every number of the tiny world: its size, its annotators, its dirt. The values live in the profile's YAML."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
