"""What the claims compare: reads and checks `designs.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from rlhflow_utils.guide.profile import ConfigError, load_profile, variant
from rlhflow_utils.guide.settings import Profile, Section

DESIGNS = Path(__file__).with_name("designs.yaml")


class Comparison(Section):
    """`better` minus `worse` in one metric; the metrics of a loop's policies end in ``@iteration``."""

    name: str
    metric: str
    better: str = Field(description="the variant of which the claim says more")
    worse: str | None = Field(default=None, description="the other variant; null: the number `against`")
    against: float = 0.0
    other_metric: str | None = Field(default=None, description="metric of `worse`, where it differs")
    # above zero; above -margin; within the margin on both sides; shown without a verdict of its own
    kind: Literal["greater", "no_worse", "near_equal", "descriptive"] = "greater"
    margin: float = Field(default=0.0, ge=0, description="the difference that does not count")
    decides: bool = Field(default=False, description="the verdict of the claim is that of this comparison")


class Claim(Section):
    """A claim: it is supported if the one comparison that decides is; all others are shown beside it."""

    title: str
    section: str = Field(description="of the paper; `beyond` where the paper leaves it open")
    hypothesis: str
    design: str = Field(description="what is compared, and what is held equal")
    control: str = Field(description="what guards the comparison")
    paper: str | None = Field(default=None, description="the paper's own figures, where it has them")
    variants: list[str] = Field(description="variants whose measures the record keeps")
    comparisons: list[Comparison]
    all_seeds: bool = Field(default=False, description="measured on all seeds, not on `fewer_seeds`")
    other_worlds: bool = Field(default=False, description="measured again in the other worlds")

    @property
    def deciding(self) -> Comparison:
        return next(part for part in self.comparisons if part.decides)


class Variant(Section):
    """One judge or one policy: the profile's recipe with something changed."""

    what: str = Field(description="it in words")
    kind: Literal["loop", "bt", "pm", "prompting", "sft", "offline", "best_of_n"] = "loop"
    mixture: str | None = Field(default=None, description="that trains the RM; null: the main mixture")
    share: float = Field(default=1.0, gt=0, le=1, description="share of the mixture that trains the RM")
    iterations: PositiveInt = 1
    overrides: dict[str, Any] = Field(default={}, description="dotted profile keys -> values")
    first: PositiveInt = Field(default=1, description="the overrides count from this iteration on")
    restart: bool = Field(default=False, description="every iteration trains from the SFT model, and as much longer")
    at_once: PositiveInt = Field(default=1, description="an iteration has the prompts and updates of so many")
    verifier: Literal["alone", "with_rm"] | None = Field(
        default=None, description="an exact checker ranks reasoning answers; the RM ranks the others, or nobody does"
    )


class ClaimsSettings(Section):
    """Seeds, and what all claims change against the profile."""

    first_seed: PositiveInt
    seeds: PositiveInt = Field(description="seeds of the claims with `all_seeds`")
    fewer_seeds: PositiveInt = Field(description="seeds of the other claims")
    world_seeds: PositiveInt = Field(description="seeds of each of the other worlds")
    samples_per_prompt: PositiveInt = Field(description="answers of a policy to each held-out prompt")
    max_steps: PositiveInt = Field(description="optimiser steps of DPO in each iteration, equal in all variants")
    overrides: dict[str, Any] = Field(description="dotted profile keys -> values")


class Designs(Section):
    settings: ClaimsSettings
    worlds: dict[str, dict[str, Any]]  # name -> dotted profile keys -> values
    variants: dict[str, Variant]
    claims: dict[str, Claim]

    @model_validator(mode="after")
    def _claims_are_whole(self) -> Designs:
        for name, claim in self.claims.items():
            deciding = [part.name for part in claim.comparisons if part.decides]
            if len(deciding) != 1 or claim.deciding.kind == "descriptive":
                raise ValueError(
                    f"claim {name}: {deciding} decide; `decides: true` must stand at exactly one comparison, of a kind "
                    "that is not descriptive"
                )
            used = {each for part in claim.comparisons for each in (part.better, part.worse) if each}
            if missing := sorted((set(claim.variants) - set(self.variants)) | (used - set(claim.variants))):
                raise ValueError(f"claim {name}: {missing} must be among its own variants and those of the file")
        return self

    def chosen(self, only: list[str] | None) -> list[str]:
        """The wanted claims (None: all), in the file's order; ConfigError where one does not exist."""
        if unknown := sorted(set(only or []) - set(self.claims)):
            raise ConfigError(f"no claim {', '.join(unknown)}; known: {', '.join(self.claims)}")
        return [name for name in self.claims if only is None or name in only]


def load_designs(path: Path = DESIGNS) -> Designs:
    """Read and check a file of designs; ConfigError where something in it is wrong."""
    try:
        return Designs.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        found = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{path.name}: {'; '.join(found)}") from error


def seed_profile(designs: Designs, profile_name: str, overrides: dict[str, Any], seed: int) -> Profile:
    """The profile of one seed; `overrides` go on top of the claims' own."""
    profile = load_profile(profile_name, seed=seed)
    if profile.world is None or profile.evaluation.judge != "gold":
        raise ConfigError(
            f"profile {profile.name}: claims are about the true reward; they need a world and evaluation.judge: gold"
        )
    return variant(profile, {**designs.settings.overrides, **overrides})
