"""Effects and verdicts: from what each arm measured under each seed to `holds`, `does not hold` or neither.

Pure functions. The unit of inference is the seed: an effect is the difference of two arms under the same seed (same
world, same base, SFT and reward models), and its interval is Student's t over the seeds. With one or two seeds that
interval is absent or useless; then the interval covers the choice of prompts alone, and is marked so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhflow_utils.claims.designs import Claim, Measure, Part
from rlhflow_utils.evaluation.statistics import ENOUGH_SEEDS, Estimate, paired_difference, t_interval, weighted_mean
from rlhflow_utils.guide.provenance import PROJECT
from rlhflow_utils.guide.settings import EvaluationSettings
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.guide.tables import MISSING as MISSING_CELL
from rlhflow_utils.guide.tables import cell

if TYPE_CHECKING:
    from rlhflow_utils.guide.stage import Stage

Verdict = Literal["holds", "does not hold", "inconclusive", "not testable here"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "inconclusive"
UNTESTABLE: Verdict = "not testable here"
OVER_SEEDS, OVER_PROMPTS = "t over seeds", "over prompts, not over seeds"
BOOTSTRAP_SEED = 0


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


CLAIMS = PROJECT / "results" / "claims"
DEVELOPMENT = "development.json"
MISSING = "No claim has been measured yet: `make claims` writes results/claims/."
READING = (
    "The comparison shown is the one nearest to failing. Win rates and accuracies are shares (0.1: ten points); d "
    "compares correlations, g characters or shares, l gold rewards, bon nats."
)
Record = dict[str, Any]


def claim_record(
    claim: Claim,
    seeds: Mapping[str, Measures],
    variants: Mapping[str, Mapping[str, Measures]],
    settings: EvaluationSettings,
    command: str,
) -> Record:
    """A claim's result as JSON.

    Args:
        claim: the design.
        seeds: seed -> arm -> metric -> measure, under the profile's own annotators.
        variants: setting of the annotators -> seed -> arm -> metric -> measure.
        settings: draws and confidence.
        command: that measures this claim again.
    """
    effects, precondition = _effects(claim, seeds, settings)
    verdict = claim_verdict(effects, precondition)
    deciding = precondition if precondition and verdict == UNTESTABLE else deciding_effect(effects)
    elsewhere = {name: _variant(claim, measured, settings) for name, measured in variants.items() if measured}
    return {
        "claim": claim.identifier, "title": claim.title, "section": claim.section, "hypothesis": claim.hypothesis,
        "design": claim.design, "control": claim.control, "paper": claim.paper, "family": claim.family,
        "arms": {arm: {seed: _values(measured[arm]) for seed, measured in seeds.items()} for arm in claim.arms},
        "part": deciding.part.name, "effect": deciding.estimate.value, "ci_low": deciding.estimate.ci_low,
        "ci_high": deciding.estimate.ci_high, "interval": deciding.interval, "confidence": settings.confidence,
        "seeds": len(seeds), "verdict": verdict, "parts": [plain(effect) for effect in effects],
        "precondition": plain(precondition) if precondition else None, "variants": elsewhere,
        "robust": all(other["verdict"] == HOLDS for other in elsewhere.values())
        if elsewhere and verdict == HOLDS
        else None,
        "command": command,
    }  # fmt: skip


def write_records(records: Mapping[str, Record], folder: Path, aside: Path) -> None:
    """Write each claim's file; where `folder` has one of more runs on our seeds, it stays and ours goes to `aside`.

    Where both are one folder, what stands there is replaced.
    """
    for identifier, record in records.items():
        file = folder / f"{identifier}.json"
        present = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        known = _runs(present) if present and folder != aside and _seeds(record) <= _seeds(present) else 0
        if known > _runs(record):
            print(
                f"claim {identifier}: {known} runs stand in {folder.name}/, not replaced by {_runs(record)}", flush=True
            )
        write_json((aside if known > _runs(record) else folder) / f"{identifier}.json", record)


def read_records(folder: Path = CLAIMS) -> dict[str, Record]:
    """The measured claims, in the report's order: letters, then the checks. Empty where nothing has been measured."""
    files = [file for file in folder.glob("*.json") if file.name != DEVELOPMENT]
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {record["claim"]: record for record in sorted(records, key=lambda r: (len(r["claim"]) > 1, r["claim"]))}


def collect_records(stage: Stage) -> None:
    """Stage: the records of `inputs["records"]` as this run saw them, so that its chapters follow when they change."""
    records = read_records(stage.inputs["records"])
    write_records(records, stage.out / "records", stage.out / "records")
    stage.metric("11.claims.measured", len(records))
    for name, record in records.items():
        stage.metric(f"11.claims.{name}.effect", record["effect"])
        stage.metric(f"11.claims.{name}.verdict", record["verdict"])


def claims_table(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row for each claim: claim, paper, ours, interval, verdict. The effect is that of the deciding comparison."""
    return [
        {
            "claim": f"**{record['claim']}** {record['title']}",
            "paper": record["paper"],
            "ours (the comparison that decides)": f"{record['part']}: {signed(record['effect'])}",
            "95 % interval": signed_interval(record),
            "seeds": record["seeds"],
            "verdict": verdict_text(record),
        }
        for record in records.values()
    ]


def verdict_text(record: Record) -> str:
    """The verdict, with what limits it: another setting of the annotators, or an interval over prompts alone."""
    text = str(record["verdict"])
    holding = [name for name, other in record["variants"].items() if other["verdict"] == HOLDS]
    if len(holding) != (len(record["variants"]) if text == HOLDS else 0):
        text += f" (with other annotators holds in {len(holding)} of {len(record['variants'])})"
    return text + ("" if record["interval"] == OVER_SEEDS else ", prompts only")


def parts_table(record: Record) -> list[dict[str, Any]]:
    """Every comparison of a claim, with its interval and its verdict; first what it presupposes."""
    return [
        {
            "comparison": ("presupposed: " if part is record["precondition"] else "") + part["part"],
            "effect": signed(part["effect"]),
            "95 % interval": signed_interval(part) if part["metric"] != "best_iteration" else MISSING_CELL,
            "by seed": ", ".join(signed(value) for value in part["per_seed"].values()),
            "verdict": part["verdict"] or "(shown only)",
        }
        for part in [*([record["precondition"]] if record["precondition"] else []), *record["parts"]]
    ]


def variants_table(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The verdicts of the claims that were measured under other annotators, setting by setting."""
    return [
        {"claim": f"**{record['claim']}** {record['title']}", "the profile's annotators": _short(record),
         **{name: _short(other) for name, other in record["variants"].items()}}
        for record in records.values()
        if record["variants"]
    ]  # fmt: skip


def _short(record: Mapping[str, Any]) -> str:
    """Verdict, deciding comparison and what the interval covers, for one cell."""
    covers = "" if record["interval"] == OVER_SEEDS else ", over prompts"
    effect = f"{record['part']} {signed(record['effect'])} ({signed_interval(record)})"
    return f"{record['verdict']}: {effect}; seeds: {record['seeds']}{covers}"


def _runs(record: Mapping[str, Any]) -> int:
    """Seeds behind a record, with those of other annotators."""
    return int(record["seeds"]) + sum(int(other["seeds"]) for other in record["variants"].values())


def _seeds(record: Mapping[str, Any]) -> set[str]:
    return {seed for arm in record["arms"].values() for seed in arm}


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value >= 0 else "−") + cell(abs(float(value)))


def told(part: Mapping[str, Any], by_seed: bool = True) -> str:
    """A comparison in words: its effect, its interval, and in how many worlds it is above zero."""
    above = sum(value > 0 for value in part["per_seed"].values())
    worlds = f"; above zero in {above} of {len(part['per_seed'])} worlds" if by_seed else ""
    return f"{signed(part['effect'])} ({signed_interval(part)}{worlds})"


def signed_interval(part: Mapping[str, Any]) -> str:
    """The interval of a difference, of a record or of one of its comparisons."""
    return f"{signed(part['ci_low'])} … {signed(part['ci_high'])}"


def _effects(
    claim: Claim, seeds: Mapping[str, Measures], settings: EvaluationSettings
) -> tuple[list[Effect], Effect | None]:
    options = (seeds, settings.bootstrap_samples, settings.confidence)
    precondition = part_effect(claim.precondition, *options) if claim.precondition else None
    return [part_effect(part, *options) for part in claim.parts], precondition


def _variant(claim: Claim, seeds: Mapping[str, Measures], settings: EvaluationSettings) -> Record:
    effects, precondition = _effects(claim, seeds, settings)
    verdict = claim_verdict(effects, precondition)
    deciding = precondition if precondition and verdict == UNTESTABLE else deciding_effect(effects)
    return {
        "verdict": verdict, "part": deciding.part.name, "effect": deciding.estimate.value,
        "ci_low": deciding.estimate.ci_low, "ci_high": deciding.estimate.ci_high, "interval": deciding.interval,
        "seeds": len(seeds), "parts": [plain(effect) for effect in effects],
        "precondition": plain(precondition) if precondition else None,
    }  # fmt: skip


def _values(measures: Mapping[str, Any]) -> dict[str, float]:
    return {metric: round(measure.value, 5) for metric, measure in measures.items()}
