"""Effects and verdicts: from what each arm measured under each seed to `holds`, `does not hold` or neither.

Pure functions. The unit of inference is the seed: an effect is the difference of two arms under the same seed (same
world, same base, SFT and reward models), and its interval is Student's t over the seeds. With one or two seeds that
interval is absent or useless; then the interval covers the choice of prompts alone, and is marked so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from rlhflow_utils.statistics import Estimate, paired_difference, weighted_mean

Kind = Literal["greater", "no_worse", "near_equal", "measured"]
Verdict = Literal["holds", "does not hold", "inconclusive", "not testable here"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "inconclusive"
UNTESTABLE: Verdict = "not testable here"
OVER_SEEDS, OVER_PROMPTS = "t over seeds", "over prompts, not over seeds"
ENOUGH_SEEDS = 3  # for a t interval that says anything: with two its factor is 12.7
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Measure:
    """One number of one arm under one seed.

    Attributes:
        value: the number.
        ci_low: of its interval over prompts; equal to `value` where there is none.
        ci_high: likewise.
        n: prompts or pairs behind it.
        units: one number per prompt in a fixed order, for paired comparisons; None where the value is no mean of such.
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    units: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: `better` less `worse` in `metric`.

    Attributes:
        name: what is compared, in words.
        metric: key of both arms' measures.
        better: arm of which the claim says more.
        worse: the other arm; None: the number `against`.
        kind: `greater`: above zero; `no_worse`: above -margin; `near_equal`: within the margin on both sides;
            `measured`: shown, without a say in the verdict.
        margin: the difference that does not count.
        against: the number that stands in for `worse`.
        other_metric: metric of `worse`, where it differs.
    """

    name: str
    metric: str
    better: str
    worse: str | None
    kind: Kind = "greater"
    margin: float = 0.0
    against: float = 0.0
    other_metric: str | None = None


@dataclass(frozen=True)
class Effect:
    """A part's result over the seeds."""

    part: Part
    estimate: Estimate
    interval: str
    verdict: Verdict
    per_seed: dict[str, float]


Measures = Mapping[str, Mapping[str, Measure]]  # arm -> metric -> measure


def part_effect(part: Part, seeds: Mapping[str, Measures], samples: int, confidence: float) -> Effect:
    """The effect of one part over the seeds.

    Args:
        part: what is compared.
        seeds: seed -> arm -> metric -> measure.
        samples: bootstrap draws, where only prompts can be resampled.
        confidence: coverage aimed at.
    """
    differences = {seed: seed_difference(part, arms, samples, confidence) for seed, arms in seeds.items()}
    per_seed = {seed: difference.value for seed, difference in differences.items()}
    if len(per_seed) >= ENOUGH_SEEDS:
        estimate, interval = t_interval(list(per_seed.values()), confidence), OVER_SEEDS
    else:
        estimate = weighted_mean(list(differences.values()), [1] * len(differences))
        interval = OVER_PROMPTS
    verdict = part_verdict(part, estimate)
    alone = {part_verdict(part, Estimate(value, value, value, 1)) for value in per_seed.values()}
    if interval == OVER_PROMPTS and alone != {verdict}:
        verdict = OPEN  # an interval over prompts says nothing of worlds: these must at least agree
    return Effect(part, estimate, interval, verdict, per_seed)


def seed_difference(part: Part, arms: Measures, samples: int, confidence: float) -> Estimate:
    """The difference under one seed, with its interval over prompts.

    Where both arms have one number per prompt, the prompts are resampled with both answers. Elsewhere the two intervals
    are combined by squaring and adding (Zou and Donner 2008), as for independent estimates.
    """
    a = arms[part.better][part.metric]
    if part.worse is None:
        return Estimate(a.value - part.against, a.ci_low - part.against, a.ci_high - part.against, a.n)
    b = arms[part.worse][part.other_metric or part.metric]
    if a.units is not None and b.units is not None and len(a.units) == len(b.units):
        return paired_difference(a.units, b.units, samples, confidence, BOOTSTRAP_SEED)
    below = math.hypot(a.value - a.ci_low, b.ci_high - b.value)
    above = math.hypot(a.ci_high - a.value, b.value - b.ci_low)
    value = a.value - b.value
    return Estimate(value, value - below, value + above, min(a.n, b.n))


def t_interval(values: Sequence[float], confidence: float) -> Estimate:
    """Mean of independent values with Student's t interval.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"t interval of {len(values)} value(s): at least two seeds are needed")
    vector = np.asarray(values, dtype=float)
    n, mean = len(vector), float(vector.mean())
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * float(vector.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def part_verdict(part: Part, estimate: Estimate) -> Verdict:
    """What an effect's interval says about one part."""
    low, high, margin = estimate.ci_low, estimate.ci_high, part.margin
    if part.kind == "measured":
        return OPEN
    if part.kind == "greater":
        return HOLDS if low > 0 else FAILS if high <= 0 else OPEN
    if part.kind == "no_worse":
        return HOLDS if low > -margin else FAILS if high <= -margin else OPEN
    inside, outside = -margin < low and high < margin, high <= -margin or low >= margin
    return HOLDS if inside else FAILS if outside else OPEN


def claim_verdict(effects: Sequence[Effect], precondition: Effect | None = None) -> Verdict:
    """All parts must hold; one that fails decides; a precondition that does not hold makes the claim untestable."""
    if precondition is not None and precondition.verdict != HOLDS:
        return UNTESTABLE
    verdicts = [effect.verdict for effect in effects if effect.part.kind != "measured"]
    if FAILS in verdicts:
        return FAILS
    return HOLDS if verdicts and all(verdict == HOLDS for verdict in verdicts) else OPEN


def deciding_effect(effects: Sequence[Effect]) -> Effect:
    """The part on which the verdict hangs: of those that count, the one furthest from holding."""
    counted = [effect for effect in effects if effect.part.kind != "measured"] or list(effects)
    return min(counted, key=_slack)


def _slack(effect: Effect) -> tuple[int, float]:
    """Failed parts first, then open ones; among equals by the distance of the interval from its threshold."""
    order = {FAILS: 0, OPEN: 1, HOLDS: 2, UNTESTABLE: 0}[effect.verdict]
    estimate, margin = effect.estimate, effect.part.margin
    width = max(estimate.ci_high - estimate.ci_low, 1e-12)  # parts have different units: in widths of the interval
    slack = estimate.ci_low + margin
    if effect.part.kind == "near_equal":
        slack = min(slack, margin - estimate.ci_high)
    return order, slack / width


def plain(effect: Effect) -> dict[str, Any]:
    """An effect as JSON."""
    part, estimate = effect.part, effect.estimate
    return {
        "part": part.name, "metric": part.metric, "better": part.better, "worse": part.worse, "kind": part.kind,
        "margin": part.margin, "effect": estimate.value, "ci_low": estimate.ci_low, "ci_high": estimate.ci_high,
        "per_seed": effect.per_seed, "verdict": None if part.kind == "measured" else effect.verdict,
    }  # fmt: skip
