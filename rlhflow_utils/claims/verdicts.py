"""From what each variant measured under each seed to a verdict; and the records of it in `results/claims/`.

The unit of inference is the seed: an effect is the difference of two variants under the same seed (same world, same
base, SFT and reward models), and its interval is Student's t over the seeds. Below three seeds that interval says
nothing; then the interval covers the choice of prompts alone, and is marked so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhflow_utils.claims.designs import Claim, Comparison
from rlhflow_utils.evaluation.statistics import ENOUGH_SEEDS, Estimate, paired_difference, t_interval, weighted_mean
from rlhflow_utils.guide.settings import EvaluationSettings
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import cell

RESULTS = PROJECT / "results" / "claims"
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
UNTESTABLE = "not testable here"  # the precondition is not supported
OVER_SEEDS, OVER_PROMPTS = "t over seeds", "over prompts, not over seeds"
Record = dict[str, Any]


@dataclass(frozen=True)
class Measure(Estimate):
    """One number of one variant under one seed, with its interval over prompts.

    `units` is one number per prompt in a fixed order, for paired comparisons; None where there are none.
    """

    units: tuple[float, ...] | None = None


Measures = Mapping[str, Mapping[str, Measure]]  # variant -> metric -> measure
Seeds = Mapping[str, Measures]


@dataclass(frozen=True)
class Effect:
    comparison: Comparison
    estimate: Estimate
    interval: str
    verdict: str
    per_seed: dict[str, float]

    def to_dict(self) -> Record:
        """The effect as JSON; a descriptive comparison has no verdict."""
        estimate, verdict = self.estimate, None if self.comparison.kind == "descriptive" else self.verdict
        stated = self.comparison.model_dump(include={"metric", "better", "worse", "kind", "margin"})
        found = {"effect": estimate.value, "ci_low": estimate.ci_low, "ci_high": estimate.ci_high}
        return {"comparison": self.comparison.name, **stated, **found, "per_seed": self.per_seed, "verdict": verdict}


def measure_effect(comparison: Comparison, seeds: Seeds, samples: int, confidence: float) -> Effect:
    differences = {seed: seed_difference(comparison, found, samples, confidence) for seed, found in seeds.items()}
    per_seed = {seed: difference.value for seed, difference in differences.items()}
    if len(per_seed) >= ENOUGH_SEEDS:
        estimate = t_interval(list(per_seed.values()), confidence)
        return Effect(comparison, estimate, OVER_SEEDS, comparison_verdict(comparison, estimate), per_seed)
    estimate = weighted_mean(list(differences.values()), [1] * len(differences))
    verdict = comparison_verdict(comparison, estimate)
    # The interval covers prompts only, so require all seeds to agree.
    alone = {comparison_verdict(comparison, Estimate(value, value, value, 1)) for value in per_seed.values()}
    return Effect(comparison, estimate, OVER_PROMPTS, verdict if alone == {verdict} else INCONCLUSIVE, per_seed)


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


def comparison_verdict(comparison: Comparison, estimate: Estimate) -> str:
    """What an effect's interval says about one comparison."""
    low, high, margin = estimate.ci_low, estimate.ci_high, comparison.margin
    if comparison.kind == "descriptive":
        return INCONCLUSIVE
    if comparison.kind == "near_equal":
        outside = high <= -margin or low >= margin
        return SUPPORTED if -margin < low and high < margin else NOT_SUPPORTED if outside else INCONCLUSIVE
    threshold = -margin if comparison.kind == "no_worse" else 0.0
    return SUPPORTED if low > threshold else NOT_SUPPORTED if high <= threshold else INCONCLUSIVE


def claim_verdict(effects: Sequence[Effect], precondition: Effect | None = None) -> str:
    """All comparisons must be supported, and one that is not decides; without its precondition nothing is testable."""
    if precondition is not None and precondition.verdict != SUPPORTED:
        return UNTESTABLE
    verdicts = [effect.verdict for effect in effects if effect.comparison.kind != "descriptive"]
    if NOT_SUPPORTED in verdicts:
        return NOT_SUPPORTED
    return SUPPORTED if verdicts and set(verdicts) == {SUPPORTED} else INCONCLUSIVE


def weakest_effect(effects: Sequence[Effect]) -> Effect:
    """The comparison on which the verdict hangs: of those that count, the one furthest from being supported."""
    order = [NOT_SUPPORTED, INCONCLUSIVE, SUPPORTED]

    def slack(effect: Effect) -> tuple[int, float]:
        """Worst verdict first; then the distance of the interval from its threshold, in widths of the interval."""
        low, high, margin = effect.estimate.ci_low, effect.estimate.ci_high, effect.comparison.margin
        distance = min(low, -high) + margin if effect.comparison.kind == "near_equal" else low + margin
        return order.index(effect.verdict), distance / max(high - low, 1e-12)

    return min([effect for effect in effects if effect.comparison.kind != "descriptive"], key=slack)


def claim_record(claim: Claim, seeds: Seeds, annotators: Mapping[str, Seeds], settings: EvaluationSettings) -> Record:
    """A claim's result as JSON, with what its variants measured; `annotators` holds the seeds with other ones."""
    stated = claim.model_dump(include={"title", "section", "hypothesis", "design", "control", "paper"})
    variants = {variant: {seed: {metric: round(each.value, 5) for metric, each in found[variant].items()}
                          for seed, found in seeds.items()} for variant in claim.variants}  # fmt: skip
    result, confidence = _result(claim, seeds, settings), settings.confidence
    elsewhere = {key: _result(claim, found, settings) for key, found in annotators.items() if found}
    return {**stated, "variants": variants, "confidence": confidence, **result, "annotators": elsewhere}


def _result(claim: Claim, seeds: Seeds, settings: EvaluationSettings) -> Record:
    """The verdict, the comparison that decides it, and all comparisons."""
    options = (seeds, settings.bootstrap_samples, settings.confidence)
    effects = [measure_effect(comparison, *options) for comparison in claim.comparisons]
    precondition = measure_effect(claim.precondition, *options) if claim.precondition else None
    verdict = claim_verdict(effects, precondition)
    deciding = precondition if precondition and verdict == UNTESTABLE else weakest_effect(effects)
    return {
        "verdict": verdict, "comparison": deciding.comparison.name, "effect": deciding.estimate.value,
        "ci_low": deciding.estimate.ci_low, "ci_high": deciding.estimate.ci_high, "interval": deciding.interval,
        "seeds": len(seeds), "comparisons": [effect.to_dict() for effect in effects],
        "precondition": precondition.to_dict() if precondition else None,
    }  # fmt: skip


def read_records(folder: Path = RESULTS) -> dict[str, Record]:
    """The measured claims: first those with a letter. Empty where nothing has been measured."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    return {record["claim"]: record for record in sorted(records, key=lambda r: (len(r["claim"]) > 1, r["claim"]))}


def signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + cell(abs(float(value)))


def signed_interval(record: Mapping[str, Any]) -> str:
    """The interval of a difference: of a record, or of one of its comparisons."""
    return f"{signed(record['ci_low'])} … {signed(record['ci_high'])}"


def verdict_text(record: Record) -> str:
    """The verdict, with what limits it: other annotators, or an interval over prompts alone."""
    text, others = str(record["verdict"]), record["annotators"].values()
    agreeing = sum(other["verdict"] == SUPPORTED for other in others)
    if agreeing != (len(others) if text == SUPPORTED else 0):
        text += f" (with other annotators supported in {agreeing} of {len(others)})"
    return text + ("" if record["interval"] == OVER_SEEDS else ", prompts only")


def claims_table(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row for each claim; the effect is that of the comparison that decides."""
    return [{
        "claim": f"**{name}** {record['title']}", "paper": record["paper"],
        "ours (the comparison that decides)": f"{record['comparison']}: {signed(record['effect'])}",
        "95 % interval": signed_interval(record), "seeds": record["seeds"], "verdict": verdict_text(record),
    } for name, record in records.items()]  # fmt: skip
