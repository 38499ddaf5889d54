"""Effects and verdicts against numbers worked out by hand; complete and fair designs; the committed records."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlhflow_utils.claims.designs import (
    DESIGNS,
    OVER_PROMPTS,
    OVER_SEEDS,
    Claim,
    Comparison,
    Designs,
    Measure,
    claim_record,
    comparison_verdict,
    load_designs,
    measure_effect,
    seed_difference,
    seed_profile,
    smallest_detectable_effect,
)
from rlhflow_utils.claims.run import plan, profile_arguments
from rlhflow_utils.claims.tables import (
    RESULTS,
    claim_curves,
    claim_forest,
    claim_sizes,
    claims_table,
    read_records,
    variants_table,
    verdict_text,
)
from rlhflow_utils.evaluation.statistics import Estimate, t_interval
from rlhflow_utils.guide.profile import ConfigError, load_profile, variant
from rlhflow_utils.guide.stage import PROJECT
from rlhflow_utils.guide.tables import signed


@pytest.fixture(scope="module")
def designs() -> Designs:
    return load_designs()


def _compare(**changes: Any) -> Comparison:
    return Comparison(**{"name": "a − b", "metric": "m", "better": "a", "worse": "b", **changes})


def _measure(value: float, half: float = 0.0, units: tuple[float, ...] | None = None) -> Measure:
    return Measure(value, value - half, value + half, 100, units)


# --- intervals ----------------------------------------------------------------------------------------------------


def test_t_interval_by_hand() -> None:
    """2, 4, 6: mean 4, standard deviation 2, t(0.975, 2) = 4.3027 (tables), so 4 ± 4.3027 · 2 / √3."""
    result = t_interval([2.0, 4.0, 6.0], 0.95)
    assert (result.value, result.n) == (4.0, 3)
    assert result.ci_high - 4 == pytest.approx(4.3027 * 2 / math.sqrt(3), abs=1e-4)
    assert result.ci_low == pytest.approx(8 - result.ci_high)


def test_t_interval_of_one_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        t_interval([1.0], 0.95)


def test_smallest_detectable_effect_by_hand() -> None:
    """Standard deviation 2 over n = 3: (t(0.975, 2) + t(0.8, 2)) · 2 / √3 = (4.3027 + 1.0607) · 1.1547 (tables)."""
    assert smallest_detectable_effect([2.0, 4.0, 6.0], 0.95) == pytest.approx(5.3634 * 2 / math.sqrt(3), abs=1e-3)
    eight = [1.0, -1.0] * 4  # standard deviation √(8/7); t(0.975, 7) = 2.3646, t(0.8, 7) = 0.8960
    assert smallest_detectable_effect(eight, 0.95) == pytest.approx(3.2606 * math.sqrt(8 / 7 / 8), abs=1e-3)


def test_a_true_effect_of_that_size_is_found_in_four_of_five_repetitions() -> None:
    """Eight seeds around the effect that their spread of 1 can detect: about 80 % of the t intervals exclude zero."""
    rng = np.random.default_rng(0)
    effect = (2.3646 + 0.8960) / math.sqrt(8)
    draws = rng.normal(effect, 1, (2000, 8))
    found = [t_interval(list(values), 0.95).ci_low > 0 for values in draws]
    assert 0.74 < sum(found) / 2000 < 0.84


def test_three_seeds_are_paired_seed_by_seed() -> None:
    """The variants vary by 0.2 between seeds, their difference by nothing: the interval has no width."""
    seeds = {str(s): {"a": {"m": _measure(v + 0.1)}, "b": {"m": _measure(v)}} for s, v in enumerate((0.4, 0.5, 0.6))}
    effect = measure_effect(_compare(), seeds, 100, 0.95)
    assert effect["effect"] == pytest.approx(0.1)
    assert effect["ci_high"] - effect["ci_low"] == pytest.approx(0, abs=1e-9)
    assert effect["verdict"] == "supported"
    assert effect["smallest_detectable_effect"] is None, "no spread to go by"
    assert effect["per_seed"] == pytest.approx({"0": 0.1, "1": 0.1, "2": 0.1})


def test_one_or_two_seeds_give_an_interval_over_prompts() -> None:
    """Two seeds with half-widths 0.03 and 0.04 in `a` alone: their mean has √(0.03² + 0.04²) / 2 = 0.025."""
    seeds = {"1": {"a": {"m": _measure(0.6, 0.03)}}, "2": {"a": {"m": _measure(0.8, 0.04)}}}
    effect = measure_effect(_compare(worse=None, against=0.5), seeds, 100, 0.95)
    assert effect["smallest_detectable_effect"] is None
    assert effect["effect"] == pytest.approx(0.2)
    assert (effect["ci_low"], effect["ci_high"]) == (pytest.approx(0.175), pytest.approx(0.225))


def test_two_seeds_must_agree_where_the_interval_covers_prompts_only() -> None:
    def measured(difference: float) -> dict[str, dict[str, Measure]]:
        return {"a": {"m": _measure(0.5 + difference, 0.01)}, "b": {"m": _measure(0.5, 0.01)}}

    agreeing = measure_effect(_compare(), {"10": measured(-0.3), "11": measured(-0.1)}, 10, 0.95)
    split = measure_effect(_compare(), {"10": measured(-0.4), "11": measured(0.05)}, 10, 0.95)
    assert (agreeing["verdict"], split["verdict"]) == ("not supported", "inconclusive")
    assert split["ci_high"] < 0


def test_prompts_are_resampled_in_pairs_where_both_variants_have_them() -> None:
    a, b = _measure(0.75, 0.2, (1.0, 1.0, 0.5, 0.5)), _measure(0.25, 0.2, (0.5, 0.5, 0.0, 0.0))
    difference = seed_difference(_compare(), {"a": {"m": a}, "b": {"m": b}}, 200, 0.95)
    assert difference == Estimate(0.5, 0.5, 0.5, 4)


def test_independent_intervals_are_squared_and_added() -> None:
    found = {"a": {"m": _measure(0.9, 0.03)}, "b": {"y": _measure(0.5, 0.04)}}
    difference = seed_difference(_compare(other_metric="y"), found, 10, 0.95)
    assert difference.value == pytest.approx(0.4)
    assert (difference.ci_low, difference.ci_high) == (pytest.approx(0.35), pytest.approx(0.45))
    skewed = {"a": {"m": Measure(0.9, 0.87, 0.95, 100)}, "b": {"y": Measure(0.5, 0.46, 0.62, 100)}}
    difference = seed_difference(_compare(other_metric="y"), skewed, 10, 0.95)
    assert difference.ci_low == pytest.approx(0.4 - math.hypot(0.03, 0.12))
    assert difference.ci_high == pytest.approx(0.4 + math.hypot(0.05, 0.04))


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high", "verdict"),
    [
        ("greater", 0.01, 0.2, "supported"),
        ("greater", -0.01, 0.2, "inconclusive"),
        ("greater", -0.2, 0.0, "not supported"),
        ("no_worse", -0.04, 0.2, "supported"),
        ("no_worse", -0.06, 0.2, "inconclusive"),
        ("no_worse", -0.2, -0.06, "not supported"),
        ("near_equal", -0.04, 0.04, "supported"),
        ("near_equal", 0.01, 0.06, "inconclusive"),
        ("near_equal", 0.06, 0.2, "not supported"),
        ("near_equal", -0.2, -0.06, "not supported"),
        ("near_equal", -0.2, 0.2, "inconclusive"),
    ],
)
def test_verdict_of_one_comparison(kind: str, low: float, high: float, verdict: str) -> None:
    comparison = _compare(kind=kind, margin=0.0 if kind == "greater" else 0.05)
    assert comparison_verdict(comparison, Estimate((low + high) / 2, low, high, 5)) == verdict


def test_the_verdict_is_that_of_the_comparison_that_decides() -> None:
    """By hand, over three seeds: `a` is above 0.5 by 0.1, 0.2 and 0.3: 0.2 ± 4.3027 · 0.1 / √3, −0.048 … 0.448.

    `b` is above `a` by 0.1 in every seed, and `c` below: neither of them changes the verdict.
    """
    measures = [{"a": 0.6, "b": 0.7, "c": 0.1}, {"a": 0.7, "b": 0.8, "c": 0.2}, {"a": 0.8, "b": 0.9, "c": 0.3}]
    seeds = {
        str(seed): {name: {"m": _measure(value)} for name, value in found.items()}
        for seed, found in enumerate(measures)
    }
    comparisons: list[dict[str, Any]] = [
        {"name": "c − a", "metric": "m", "better": "c", "worse": "a"},
        {"name": "a − half", "metric": "m", "better": "a", "against": 0.5},
        {"name": "b − a", "metric": "m", "better": "b", "worse": "a"},
    ]
    verdicts = {}
    for deciding in comparisons:
        parts = [{**part, "decides": part is deciding} for part in comparisons]
        stated = dict.fromkeys(("title", "section", "hypothesis", "design", "control"), "")
        claim = Claim.model_validate({**stated, "variants": ["a", "b", "c"], "comparisons": parts})
        record = claim_record(claim, seeds, {}, load_profile("tiny").evaluation)
        verdicts[record["deciding"]] = record["verdict"]
        assert [part["verdict"] for part in record["comparisons"]] == ["not supported", "inconclusive", "supported"]
        if record["deciding"] == "a − half":
            assert record["ci_low"] == pytest.approx(0.2 - 0.2484, abs=1e-4)
            assert record["smallest_detectable_effect"] == pytest.approx(5.3634 * 0.1 / math.sqrt(3), abs=1e-4)
            assert (record["seeds"], record["interval"]) == (3, OVER_SEEDS)
            two = claim_record(claim, {seed: seeds[seed] for seed in "01"}, {}, load_profile("tiny").evaluation)
            assert (two["seeds"], two["interval"]) == (2, OVER_PROMPTS)
    assert verdicts == {"c − a": "not supported", "a − half": "inconclusive", "b − a": "supported"}


# --- designs ------------------------------------------------------------------------------------------------------


def test_every_claim_is_designed(designs: Designs) -> None:
    assert [name for name in designs.claims if len(name) == 1] == list("abcdefghijklmnopq")
    assert {name for name, claim in designs.claims.items() if claim.all_seeds} == {*"abcdefgh"}
    assert {name for name, claim in designs.claims.items() if claim.other_worlds} == set("abcd")
    for name, claim in designs.claims.items():
        assert all(part.margin > 0 for part in claim.comparisons if part.kind in ("no_worse", "near_equal")), name
        assert len({part.name for part in claim.comparisons}) == len(claim.comparisons), name
        for part in claim.comparisons:  # both policies of a comparison have trained equally long
            sides = ((part.metric, part.better), (part.other_metric or part.metric, part.worse))
            steps = {int(metric.split("@")[1]) * designs.variants[variant].at_once
                     for metric, variant in sides if variant and "@" in metric}  # fmt: skip
            assert len(steps) < 2 or part.better == part.worse, f"{name}: {part.name}"


def test_every_metric_is_one_that_its_variant_measures(designs: Designs) -> None:
    """A loop's metrics end in an iteration that it has; the names are those that the smoke run of the claims finds."""
    policy = {
        "win_rate",
        "length_adjusted_win_rate",
        "accuracy",
        "reasoning_accuracy",
        "mean_length",
        "reward",
        "proxy_reward",
        "kl",
    }
    sections = {"chat", "chat_hard", "safety", "reasoning", "overall", "safety_and_reasoning"}
    measured = {
        "prompting": sections, "pm": sections | {"accuracy"}, "bt": sections | {"accuracy", "mean_pearson"},
        "best_of_n": policy, "sft": policy | {"exact_match"}, "offline": policy | {"exact_match"},
    }  # fmt: skip
    for name, claim in designs.claims.items():
        for part in claim.comparisons:
            for variant_name, metric in ((part.better, part.metric), (part.worse, part.other_metric or part.metric)):
                if variant_name:
                    design = designs.variants[variant_name]
                    steps = range(1, design.iterations + 1)
                    loop = {f"{each}@{step}" for each in policy | {"exact_match"} for step in steps}
                    assert metric in measured.get(design.kind, loop), f"{name}: {part.name}: {metric}"


@pytest.mark.parametrize(("marks", "named"), [([], r"\[\]"), ([0, 1], "mix1 − mix2, equal size"), ([2], "mix1 alone")])
def test_exactly_one_comparison_decides(tmp_path: Path, marks: list[int], named: str) -> None:
    """Not none, not two, and not one that is only shown."""
    raw = yaml.safe_load(DESIGNS.read_text(encoding="utf-8"))
    for place, part in enumerate(raw["claims"]["d"]["comparisons"]):
        part["decides"] = place in marks
    assert raw["claims"]["d"]["comparisons"][2]["kind"] == "descriptive"
    (tmp_path / "designs.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"claim d: .*{named}.* must stand at exactly one comparison"):
        load_designs(tmp_path / "designs.yaml")


def test_every_variant_changes_the_profile_or_the_loop_and_is_valid(designs: Designs) -> None:
    tiny = load_profile("tiny")
    for name, each in designs.variants.items():
        own = each.kind != "loop" or each.restart or each.mixture or each.share < 1 or each.verifier or each.at_once > 1
        assert own or variant(tiny, each.overrides) != tiny or name in ("main", "penalty"), f"{name} changes nothing"
    for overrides in designs.worlds.values():
        other = variant(tiny, overrides)
        assert (other.world, other.model.base) != (tiny.world, tiny.model.base)


def test_a_selection_rule_has_a_random_control(designs: Designs) -> None:
    assert "random" in designs.claims["j"].variants
    assert "random_no_penalty" in designs.claims["k"].variants
    assert "random_no_penalty" in designs.claims["m"].variants
    assert "random_no_penalty" in designs.claims["q"].variants


def test_claims_share_the_first_seeds(designs: Designs) -> None:
    first, every = designs.settings.first_seed, designs.chosen(None)
    assert first >= 100, "lower seeds served the guide, development and older records"
    jobs = plan(designs, every, None)
    assert list(jobs) == [first + index for index in range(8)]
    assert [len(job[""]) for job in jobs.values()] == [19] * 5 + [8] * 3
    assert [sorted(job) for job in jobs.values()] == [["", "world1", "world2"]] * 2 + [[""]] * 6
    assert jobs[first]["world1"] == list("abcd")
    assert [list(jobs[first + index])[1] for index in (0, 1)] == ["world1", "world2"], "each makes a base for both"
    assert plan(designs, every, 1) == {first: {"": every}}, "one seed is a first look, without other worlds"


def test_a_seed_changes_rows_and_training(designs: Designs) -> None:
    profile = seed_profile(designs, "tiny", {"dpo.trainer.beta": 0.2}, 12)
    assert profile.world is not None
    assert (profile.seed, profile.world.seed, profile.dpo.trainer["beta"]) == (12, 0, 0.2), "one truth for all seeds"
    assert profile.data.filters.kwise_pairs == {"Nectar": "best_vs_worst"}, "the claims' own change"
    assert profile.preference_model.trainer["num_train_epochs"] == 1, "as many updates as the BT model has"
    assert profile.data.evaluation_prompts >= 1000


def test_a_record_of_a_changed_profile_says_how_to_get_it() -> None:
    assert profile_arguments("tiny", {}) == ""
    changed = profile_arguments("my world.yaml", {"dpo.trainer.beta": 0.2, "generation.temperatures": [1.0]})
    assert shlex.split(changed) == [
        "--profile", "my world.yaml", "--set", "dpo.trainer.beta=0.2", "--set", "generation.temperatures=[1.0]",
    ]  # fmt: skip


def test_mistakes_are_one_line(designs: Designs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no claim z; known: a, b"):
        designs.chosen(["a", "z"])
    with pytest.raises(ConfigError, match="profile slices: claims are about the true reward"):
        seed_profile(designs, "slices", {}, 30)
    raw = yaml.safe_load(DESIGNS.read_text(encoding="utf-8"))
    raw["claims"]["n"]["comparisons"][0]["worse"] = "mian"
    (tmp_path / "designs.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^designs.yaml: : Value error, claim n: \['mian'\] must be among"):
        load_designs(tmp_path / "designs.yaml")


# --- records ------------------------------------------------------------------------------------------------------


def test_the_verdict_says_what_limits_it() -> None:
    def text(verdict: str, interval: str = OVER_SEEDS, **others: str) -> str:
        worlds = {name: {"verdict": each} for name, each in others.items()}
        return verdict_text({"verdict": verdict, "interval": interval, "worlds": worlds})

    assert text("supported") == text("supported", world1="supported") == "supported"
    assert text("supported", OVER_PROMPTS) == "supported, prompts only"
    mixed = {"world1": "supported", "world2": "inconclusive"}
    assert text("supported", **mixed) == "supported (in other worlds: supported, inconclusive)"
    assert text("not supported", **mixed) == "not supported (in other worlds: supported, inconclusive)"


def test_no_results_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhflow_utils.claims.tables.RESULTS", tmp_path)
    assert claims_table(read_records()) == []


def test_committed_records_follow_from_their_seeds() -> None:
    """Every effect is the mean of its seeds, inside its interval; what was compared is what the variants measured."""
    records = read_records()
    assert set("abcdefgh") <= set(records)
    for record in records.values():
        assert record["verdict"] in ("supported", "not supported", "inconclusive")
        assert record["ci_low"] <= record["effect"] <= record["ci_high"]
        [deciding] = [part for part in record["comparisons"] if part["comparison"] == record["deciding"]]
        assert (deciding["effect"], deciding["ci_low"]) == (record["effect"], record["ci_low"])
        seeds = set(deciding["per_seed"])
        assert len(seeds) == record["seeds"]
        assert all(set(each) == seeds for each in record["variants"].values()), "all variants have the same seeds"
        for part in record["comparisons"]:
            assert part["effect"] == pytest.approx(sum(part["per_seed"].values()) / len(seeds))
            assert all(part["metric"] in found for found in record["variants"][part["better"]].values())


def test_committed_records_say_where_they_come_from_and_name_no_machine() -> None:
    for file in RESULTS.glob("*.json"):
        assert str(PROJECT) not in file.read_text(encoding="utf-8")
    for record in read_records().values():
        assert record["command"].startswith("python -m rlhflow_utils claims --only ")
        assert len(record["provenance"]["commit"]) == 40
    assert (signed(0.25), signed(-0.25)) == ("+0.250", "−0.250")


def test_tables_and_figures_take_the_committed_records(designs: Designs) -> None:
    records = read_records()
    rows = {row["variant"]: row for row in variants_table(designs, records)}
    assert (rows["main"]["updates"], rows["offline"]["updates"], rows["prompting"]["updates"]) == (189, 189, None)
    units = {axes.get_xlabel() for axes in claim_forest(records).axes}
    assert {"percentage points", "correlation of length and reward", "gold reward"} <= units
    verdicts = Counter(record["verdict"] for record in records.values())
    words = ("supported", "not supported", "inconclusive")
    assert repr(claim_forest(records)) == f"Of {len(records)} claims, " + ", ".join(f"{verdicts[w]} {w}" for w in words)
    handles, labels = claim_forest(records).axes[0].get_legend_handles_labels()
    assert len({handle.get_marker() for handle in handles}) == len(labels) == 3, "verdicts differ in print in grey, too"
    left, right = claim_curves(records["l"], {"main": "with", "no_penalty": "without"}).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("change of the proxy reward", "change of the gold reward")
    [axes] = claim_sizes(records["sizes"], {"bt_share0_125": 0.125, "bt": 1.0}).axes
    assert list(axes.get_xticks()) == [12.5, 100]
    assert re.match(r"Mean accuracy of the RM: [\d.]+ % with 12.5 %, [\d.]+ % with 100 %", repr(axes.figure))


def test_curves_are_drawn_by_kl() -> None:
    """Two seeds, two iterations: the mean line goes through the means of KL and of the changes."""
    metrics = ("reward@1", "reward@2", "proxy_reward@1", "proxy_reward@2", "kl@1", "kl@2")
    values = {"100": (0.2, 0.3, 1.0, 3.0, 2.0, 5.0), "101": (0.4, 0.1, 2.0, 3.0, 4.0, 7.0)}
    seeds = {seed: dict(zip(metrics, row, strict=True)) for seed, row in values.items()}
    record = {"variants": {"sft": {"100": {"reward": 0.1}, "101": {"reward": 0.2}}, "main": seeds}}
    figure = claim_curves(record, {"main": "the recipe"})
    assert repr(figure) == (
        "From iteration 1 to 2 the mean proxy reward rises in 1 and the mean gold reward rises in 0 of 1 variants"
    )
    proxy, gold = figure.axes
    assert gold.get_xlabel() == "KL from π₀ (nats)"
    assert gold.lines[-1].get_xydata() == pytest.approx(np.array([[0, 0], [3, 0.15], [6, 0.05]]))
    assert proxy.lines[-1].get_xydata() == pytest.approx(np.array([[3, 0], [6, 1.5]]))
