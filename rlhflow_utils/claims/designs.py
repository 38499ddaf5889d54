"""What the claims compare (`designs.yaml`), and from what each variant measured under each seed to a verdict.

The unit of inference is the seed: an effect is the difference of two variants under the same seed (same rows, same
SFT and reward models), and its interval is Student's t over the seeds. Below three seeds that interval says
nothing; then the interval covers the choice of prompts alone, and is marked so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator
from scipy import stats

from rlhflow_utils.evaluation.statistics import ENOUGH_SEEDS, Estimate, paired_difference, t_interval, weighted_mean
from rlhflow_utils.guide.profile import ConfigError, load_profile, variant
from rlhflow_utils.guide.settings import EvaluationSettings, Profile, Section

DESIGNS = Path(__file__).with_name("designs.yaml")
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
POWER = 0.8  # of the smallest detectable effect
OVER_SEEDS, OVER_PROMPTS = "t over seeds", "over prompts, not over seeds"
Record = dict[str, Any]


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


# --- verdicts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure(Estimate):
    """One number of one variant under one seed, with its interval over prompts.

    `units` is one number per prompt in a fixed order, for paired comparisons; None where there are none.
    """

    units: tuple[float, ...] | None = None


Measures = Mapping[str, Mapping[str, Measure]]  # variant -> metric -> measure
Seeds = Mapping[str, Measures]


def measure_effect(comparison: Comparison, seeds: Seeds, samples: int, confidence: float) -> Record:
    """What one comparison has found, as JSON."""
    differences = [seed_difference(comparison, found, samples, confidence) for found in seeds.values()]
    values, detectable = [difference.value for difference in differences], None
    if len(seeds) >= ENOUGH_SEEDS:
        estimate, detectable = t_interval(values, confidence), smallest_detectable_effect(values, confidence)
        verdict = comparison_verdict(comparison, estimate)
    else:  # the interval covers prompts only, so all seeds must agree with it
        estimate = weighted_mean(differences, [1] * len(differences))
        each = (estimate, *(Estimate(value, value, value, 1) for value in values))
        verdict, *others = {comparison_verdict(comparison, one) for one in each}
        verdict = INCONCLUSIVE if others else verdict
    stated = comparison.model_dump(include={"metric", "better", "worse", "kind", "margin"})
    return {
        "comparison": comparison.name, **stated, "effect": estimate.value, "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high, "smallest_detectable_effect": detectable,
        "per_seed": dict(zip(seeds, values, strict=True)), "verdict": verdict,
    }  # fmt: skip


def smallest_detectable_effect(values: Sequence[float], confidence: float) -> float | None:
    """The true effect whose t interval would lie above zero in 80 % of repetitions, at the spread of these seeds.

    ``(t_{1 - alpha/2, n - 1} + t_{0.8, n - 1}) s / sqrt(n)``; None where all seeds are equal.
    """
    quantiles = stats.t.ppf([0.5 + confidence / 2, POWER], len(values) - 1)
    found = float(quantiles.sum() * stats.sem(values))
    return found if found > 1e-9 else None


def seed_difference(comparison: Comparison, found: Measures, samples: int, confidence: float) -> Estimate:
    """The difference under one seed, with its interval over prompts.

    Where both variants have one number per prompt, prompts are resampled with both answers. Elsewhere the two intervals
    are combined by squaring and adding (Zou and Donner 2008), as for independent estimates.
    """
    a, against = found[comparison.better][comparison.metric], comparison.against
    if comparison.worse is None:
        return Estimate(a.value - against, a.ci_low - against, a.ci_high - against, a.n)
    b = found[comparison.worse][comparison.other_metric or comparison.metric]
    if a.units is not None and b.units is not None and len(a.units) == len(b.units):
        return paired_difference(a.units, b.units, samples, confidence, seed=0)
    below = math.hypot(a.value - a.ci_low, b.ci_high - b.value)
    above, value = math.hypot(a.ci_high - a.value, b.value - b.ci_low), a.value - b.value
    return Estimate(value, value - below, value + above, min(a.n, b.n))


def comparison_verdict(comparison: Comparison, estimate: Estimate) -> str | None:
    """What an effect's interval says about one comparison; a descriptive one has no verdict."""
    low, high, margin = estimate.ci_low, estimate.ci_high, comparison.margin
    if comparison.kind == "descriptive":
        return None
    if comparison.kind == "near_equal":
        outside = high <= -margin or low >= margin
        return SUPPORTED if -margin < low and high < margin else NOT_SUPPORTED if outside else INCONCLUSIVE
    threshold = -margin if comparison.kind == "no_worse" else 0.0
    return SUPPORTED if low > threshold else NOT_SUPPORTED if high <= threshold else INCONCLUSIVE


def claim_record(claim: Claim, seeds: Seeds, worlds: Mapping[str, Seeds], settings: EvaluationSettings) -> Record:
    """A claim's result as JSON, with what its variants measured; `worlds` holds the seeds of other worlds."""
    stated = claim.model_dump(include={"title", "section", "hypothesis", "design", "control", "paper"})
    variants = {variant: {seed: {metric: round(each.value, 5) for metric, each in found[variant].items()}
                          for seed, found in seeds.items()} for variant in claim.variants}  # fmt: skip
    result, confidence = _result(claim, seeds, settings), settings.confidence
    elsewhere = {key: _result(claim, found, settings) for key, found in worlds.items() if found}
    return {**stated, "variants": variants, "confidence": confidence, **result, "worlds": elsewhere}


def _result(claim: Claim, seeds: Seeds, settings: EvaluationSettings) -> Record:
    """All comparisons, and the verdict: that of the comparison that decides."""
    options = (seeds, settings.bootstrap_samples, settings.confidence)
    parts = {comparison.name: measure_effect(comparison, *options) for comparison in claim.comparisons}
    deciding = parts[claim.deciding.name]
    shared = ("verdict", "effect", "ci_low", "ci_high", "smallest_detectable_effect")
    return {
        "deciding": claim.deciding.name, **{key: deciding[key] for key in shared}, "seeds": len(seeds),
        "interval": OVER_SEEDS if len(seeds) >= ENOUGH_SEEDS else OVER_PROMPTS, "comparisons": list(parts.values()),
    }  # fmt: skip
