"""Effects and verdicts against numbers worked out by hand; complete and fair designs; the committed records."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhflow_utils.claims.designs import (
    DESIGNS,
    Claim,
    Comparison,
    Designs,
    load_designs,
    seed_profile,
    with_annotators,
)
from rlhflow_utils.claims.run import plan, profile_arguments
from rlhflow_utils.claims.tables import claim_curves, claim_forest, claim_sizes, comparisons_table, variants_table
from rlhflow_utils.claims.verdicts import (
    OVER_PROMPTS,
    OVER_SEEDS,
    RESULTS,
    Effect,
    Measure,
    claim_record,
    claim_verdict,
    claims_table,
    comparison_verdict,
    measure_effect,
    read_records,
    seed_difference,
    signed,
    verdict_text,
    weakest_effect,
)
from rlhflow_utils.evaluation.statistics import Estimate, t_interval
from rlhflow_utils.guide.profile import ConfigError, load_profile, variant
from rlhflow_utils.guide.stage import PROJECT


@pytest.fixture(scope="module")
def designs() -> Designs:
    return load_designs()


def _compare(**changes: Any) -> Comparison:
    return Comparison(**{"name": "a − b", "metric": "m", "better": "a", "worse": "b", **changes})


def _measure(value: float, half: float = 0.0, units: tuple[float, ...] | None = None) -> Measure:
    return Measure(value, value - half, value + half, 100, units)


def _effect(verdict: str, low: float = 0.1, high: float = 0.3, kind: str = "greater") -> Effect:
    comparison = _compare(name=f"{verdict} {low}", kind=kind)
    return Effect(comparison, Estimate((low + high) / 2, low, high, 3), OVER_SEEDS, verdict, {})


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


def test_three_seeds_are_paired_seed_by_seed() -> None:
    """The variants vary by 0.2 between seeds, their difference by nothing: the interval has no width."""
    seeds = {str(s): {"a": {"m": _measure(v + 0.1)}, "b": {"m": _measure(v)}} for s, v in enumerate((0.4, 0.5, 0.6))}
    effect = measure_effect(_compare(), seeds, 100, 0.95)
    assert effect.estimate.value == pytest.approx(0.1)
    assert effect.estimate.ci_high - effect.estimate.ci_low == pytest.approx(0, abs=1e-9)
    assert (effect.interval, effect.verdict) == (OVER_SEEDS, "supported")
    assert effect.per_seed == pytest.approx({"0": 0.1, "1": 0.1, "2": 0.1})


def test_one_or_two_seeds_give_an_interval_over_prompts() -> None:
    """Two seeds with half-widths 0.03 and 0.04 in `a` alone: their mean has √(0.03² + 0.04²) / 2 = 0.025."""
    seeds = {"1": {"a": {"m": _measure(0.6, 0.03)}}, "2": {"a": {"m": _measure(0.8, 0.04)}}}
    effect = measure_effect(_compare(worse=None, against=0.5), seeds, 100, 0.95)
    assert effect.interval == OVER_PROMPTS
    assert effect.estimate.value == pytest.approx(0.2)
    assert (effect.estimate.ci_low, effect.estimate.ci_high) == (pytest.approx(0.175), pytest.approx(0.225))


def test_two_seeds_must_agree_where_the_interval_covers_prompts_only() -> None:
    def measured(difference: float) -> dict[str, dict[str, Measure]]:
        return {"a": {"m": _measure(0.5 + difference, 0.01)}, "b": {"m": _measure(0.5, 0.01)}}

    agreeing = measure_effect(_compare(), {"10": measured(-0.3), "11": measured(-0.1)}, 10, 0.95)
    split = measure_effect(_compare(), {"10": measured(-0.4), "11": measured(0.05)}, 10, 0.95)
    assert (agreeing.verdict, split.verdict) == ("not supported", "inconclusive")
    assert split.estimate.ci_high < 0


def test_prompts_are_resampled_in_pairs_where_both_variants_have_them() -> None:
    a, b = _measure(0.75, 0.2, (1.0, 1.0, 0.5, 0.5)), _measure(0.25, 0.2, (0.5, 0.5, 0.0, 0.0))
    difference = seed_difference(_compare(), {"a": {"m": a}, "b": {"m": b}}, 200, 0.95)
    assert difference == Estimate(0.5, 0.5, 0.5, 4)


def test_independent_intervals_are_squared_and_added() -> None:
    found = {"a": {"m": _measure(0.9, 0.03)}, "b": {"y": _measure(0.5, 0.04)}}
    difference = seed_difference(_compare(other_metric="y"), found, 10, 0.95)
    assert difference.value == pytest.approx(0.4)
    assert (difference.ci_low, difference.ci_high) == (pytest.approx(0.35), pytest.approx(0.45))


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


def test_a_claim_is_supported_when_all_its_comparisons_are() -> None:
    good, bad, unclear = _effect("supported"), _effect("not supported", -0.3, -0.1), _effect("inconclusive", -0.1, 0.1)
    shown = _effect("inconclusive", -0.9, -0.5, "descriptive")
    assert claim_verdict([good, good, shown]) == "supported"
    assert claim_verdict([good, unclear]) == "inconclusive"
    assert claim_verdict([good, unclear, bad]) == "not supported"
    assert claim_verdict([good], precondition=unclear) == "not testable here"
    assert claim_verdict([bad], precondition=good) == "not supported"


def test_the_weakest_comparison_is_the_one_furthest_from_being_supported() -> None:
    good, close = _effect("supported", 0.2, 0.3), _effect("supported", 0.01, 0.3)
    unclear, shown = _effect("inconclusive", -0.1, 0.1), _effect("inconclusive", -0.9, -0.5, "descriptive")
    assert weakest_effect([good, close, shown]) is close
    assert weakest_effect([good, unclear, close]) is unclear


# --- designs ------------------------------------------------------------------------------------------------------


def test_every_claim_is_designed(designs: Designs) -> None:
    assert [name for name in designs.claims if len(name) == 1] == list("abcdefghijklmno")
    assert {name for name, claim in designs.claims.items() if claim.all_seeds} == {*"abcdefgh", "reference"}
    assert {name for name, claim in designs.claims.items() if claim.other_annotators} == set("abcde")
    for name, claim in designs.claims.items():
        assert any(part.kind != "descriptive" for part in claim.comparisons), name
        assert all(part.margin > 0 for part in claim.comparisons if part.kind in ("no_worse", "near_equal")), name
        for part in claim.comparisons:  # both policies of a comparison have trained equally long
            steps = {each.split("@")[1] for each in (part.metric, part.other_metric) if each and "@" in each}
            assert len(steps) < 2 or part.better == part.worse, f"{name}: {part.name}"


def test_every_variant_changes_the_profile_or_the_loop_and_is_valid(designs: Designs) -> None:
    tiny = load_profile("tiny")
    for name, each in designs.variants.items():
        own = each.kind != "loop" or each.restart or each.mixture or each.share < 1
        assert own or variant(tiny, each.overrides) != tiny or name in ("main", "penalty"), f"{name} changes nothing"
    for factors in designs.annotators.values():
        assert with_annotators(tiny, factors) != tiny


def test_a_selection_rule_has_a_random_control(designs: Designs) -> None:
    assert "random" in designs.claims["j"].variants
    assert "random_no_penalty" in designs.claims["k"].variants
    assert "random_no_penalty" in designs.claims["m"].variants


def test_claims_share_the_first_seeds(designs: Designs) -> None:
    first, every = designs.settings.first_seed, designs.chosen(None)
    jobs = plan(designs, every, None)
    assert list(jobs) == [first + index for index in range(5)]
    assert [len(job[""]) for job in jobs.values()] == [17, 17, 17, 9, 9]
    assert [sorted(job) for job in jobs.values()] == [["", "longer", "noisier"]] * 2 + [[""]] * 3
    assert jobs[first]["noisier"] == list("abcde")
    assert plan(designs, every, 1) == {first: {"": every}}, "one seed is a first look, without other annotators"


def test_a_seed_changes_rows_and_training(designs: Designs) -> None:
    profile = seed_profile(designs, "tiny", {"dpo.trainer.beta": 0.2}, 12)
    assert profile.world is not None
    assert (profile.seed, profile.world.seed, profile.dpo.trainer["beta"]) == (12, 0, 0.2), "one truth for all seeds"
    assert profile.preference_model.trainer["num_train_epochs"] == 1, "the claims' own change"


def test_a_record_of_a_changed_profile_says_how_to_get_it() -> None:
    assert profile_arguments("tiny", {}) == ""
    changed = profile_arguments("my world.yaml", {"dpo.trainer.beta": 0.2, "generation.temperatures": [1.0]})
    assert shlex.split(changed) == [
        "--profile", "my world.yaml", "--set", "dpo.trainer.beta=0.2", "--set", "generation.temperatures=[1.0]",
    ]  # fmt: skip


def test_mistakes_are_one_line(designs: Designs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no claim q; known: a, b"):
        designs.chosen(["a", "q"])
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
        annotators = {name: {"verdict": each} for name, each in others.items()}
        return verdict_text({"verdict": verdict, "interval": interval, "annotators": annotators})

    assert text("supported") == text("supported", noisier="supported") == "supported"
    assert text("supported", OVER_PROMPTS) == "supported, prompts only"
    mixed = {"noisier": "supported", "longer": "inconclusive"}
    assert text("supported", **mixed) == "supported (with other annotators supported in 1 of 2)"
    assert text("not supported", **mixed) == "not supported (with other annotators supported in 1 of 2)"


def test_an_untestable_claim_shows_what_it_presupposes(designs: Designs) -> None:
    """A prompted judge no better than chance: the effect shown is its own, not some comparison with it."""
    claim: Claim = designs.claims["a"]
    sections = ("chat", "chat_hard", "safety", "reasoning", "overall")
    chance = {section: _measure(0.5, 0.05) for section in sections}
    seeds = {"10": dict.fromkeys(claim.variants, chance)}
    record = claim_record(claim, seeds, {}, load_profile("tiny").evaluation)
    assert (record["verdict"], record["comparison"]) == ("not testable here", "prompting − coin")
    assert comparisons_table(record)[0]["comparison"] == "presupposed: prompting − coin"
    assert record["variants"]["bt"]["10"]["chat"] == 0.5


def test_no_results_are_no_error(tmp_path: Path) -> None:
    assert claims_table(read_records(tmp_path)) == []


def test_committed_records_follow_from_their_seeds(designs: Designs) -> None:
    """Every effect is the mean of its seeds, inside its interval; what was compared is what the variants measured."""
    records = read_records()
    assert set(designs.claims) <= set(records)
    for record in records.values():
        seeds = {str(designs.settings.first_seed + index) for index in range(record["seeds"])}
        assert record["verdict"] in ("supported", "not supported", "inconclusive", "not testable here")
        assert record["ci_low"] <= record["effect"] <= record["ci_high"]
        assert all(set(each) == seeds for each in record["variants"].values()), "all claims have the same worlds"
        for part in record["comparisons"]:
            assert part["effect"] == pytest.approx(sum(part["per_seed"].values()) / len(seeds))
            assert part["metric"] in record["variants"][part["better"]]["30"]


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
    assert {"percentage points", "characters", "correlation of length and reward", "gold reward"} <= units
    left, right = claim_curves(records["l"], {"main": "with", "no_penalty": "without"}).axes
    assert (list(left.get_xticks()), list(right.get_xticks())) == ([1, 2, 3], [0, 1, 2, 3])
    assert "change of the gold reward" in right.get_ylabel()
    [axes] = claim_sizes(records["sizes"], {"bt_share0_125": 0.125, "bt": 1.0}).axes
    assert list(axes.get_xticks()) == [12.5, 100]
