"""From what each variant measured under each seed to a verdict; and the records of it in `results/claims/`.

The unit of inference is the seed: an effect is the difference of two variants under the same seed (same rows, same
SFT and reward models), and its interval is Student's t over the seeds. Below three seeds that interval says
nothing; then the interval covers the choice of prompts alone, and is marked so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from rlhflow_utils.claims.designs import Claim, Comparison
from rlhflow_utils.evaluation.statistics import ENOUGH_SEEDS, Estimate, paired_difference, t_interval, weighted_mean
from rlhflow_utils.guide.settings import EvaluationSettings
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import Formatted, signed

RESULTS = PROJECT / "results" / "claims"
SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
POWER = 0.8  # of the smallest detectable effect
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
    smallest_detectable: float | None  # None: too few seeds to tell

    def to_dict(self) -> Record:
        """The effect as JSON; a descriptive comparison has no verdict."""
        estimate, verdict = self.estimate, None if self.comparison.kind == "descriptive" else self.verdict
        stated = self.comparison.model_dump(include={"metric", "better", "worse", "kind", "margin"})
        return {
            "comparison": self.comparison.name, **stated, "effect": estimate.value, "ci_low": estimate.ci_low,
            "ci_high": estimate.ci_high, "smallest_detectable_effect": self.smallest_detectable,
            "per_seed": self.per_seed, "verdict": verdict,
        }  # fmt: skip


def measure_effect(comparison: Comparison, seeds: Seeds, samples: int, confidence: float) -> Effect:
    differences = {seed: seed_difference(comparison, found, samples, confidence) for seed, found in seeds.items()}
    per_seed = {seed: difference.value for seed, difference in differences.items()}
    if len(per_seed) >= ENOUGH_SEEDS:
        estimate = t_interval(list(per_seed.values()), confidence)
        detectable = smallest_detectable_effect(list(per_seed.values()), confidence)
        return Effect(comparison, estimate, OVER_SEEDS, comparison_verdict(comparison, estimate), per_seed, detectable)
    estimate = weighted_mean(list(differences.values()), [1] * len(differences))
    verdict = comparison_verdict(comparison, estimate)
    # The interval covers prompts only, so require all seeds to agree.
    alone = {comparison_verdict(comparison, Estimate(value, value, value, 1)) for value in per_seed.values()}
    return Effect(comparison, estimate, OVER_PROMPTS, verdict if alone == {verdict} else INCONCLUSIVE, per_seed, None)


def smallest_detectable_effect(values: Sequence[float], confidence: float) -> float | None:
    """The true effect whose t interval would lie above zero in 80 % of repetitions, at the spread of these seeds.

    ``(t_{1 - alpha/2, n - 1} + t_{0.8, n - 1}) s / sqrt(n)``; None where all seeds are equal.
    """
    quantiles = stats.t.ppf([0.5 + confidence / 2, POWER], len(values) - 1)
    return float(quantiles.sum() * stats.sem(values)) or None


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
    effects = {comparison.name: measure_effect(comparison, *options) for comparison in claim.comparisons}
    deciding = effects[claim.deciding.name]
    return {
        "verdict": deciding.verdict, "deciding": claim.deciding.name, "effect": deciding.estimate.value,
        "ci_low": deciding.estimate.ci_low, "ci_high": deciding.estimate.ci_high, "interval": deciding.interval,
        "smallest_detectable_effect": deciding.smallest_detectable, "seeds": len(seeds),
        "comparisons": [effect.to_dict() for effect in effects.values()],
    }  # fmt: skip


def read_records(folder: Path = RESULTS) -> dict[str, Record]:
    """The measured claims: first those with a letter. Empty where nothing has been measured."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    return {record["claim"]: record for record in sorted(records, key=lambda r: (len(r["claim"]) > 1, r["claim"]))}


def signed_interval(record: Mapping[str, Any]) -> str:
    """The interval of a difference: of a record, or of one of its comparisons."""
    return f"{signed(record['ci_low'])} … {signed(record['ci_high'])}"


def verdict_text(record: Record) -> str:
    """The verdict, with what limits it: other worlds, or an interval over prompts alone."""
    text, others = str(record["verdict"]), [other["verdict"] for other in record["worlds"].values()]
    if set(others) - {text}:
        text += f" (in other worlds: {', '.join(dict.fromkeys(others))})"
    return text + ("" if record["interval"] == OVER_SEEDS else ", prompts only")


def others_supported(record: Record) -> str | None:
    """How many of a claim's other comparisons are supported, of those that have a verdict."""
    others = [part["verdict"] for part in record["comparisons"] if part["comparison"] != record["deciding"]]
    judged = [verdict for verdict in others if verdict]
    return f"{judged.count(SUPPORTED)} of {len(judged)}" if judged else None


def claims_table(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row for each claim; the effect is that of the comparison that decides."""
    return [{
        "claim": Formatted(f"**{name}** {record['title']}"), "paper": record["paper"],
        "ours (the comparison that decides)": f"{record['deciding']}: {signed(record['effect'])}",
        "95 % interval": signed_interval(record), "detectable effect": record["smallest_detectable_effect"],
        "seeds": record["seeds"], "verdict": verdict_text(record), "others supported": others_supported(record),
    } for name, record in records.items()]  # fmt: skip
