"""Effects and verdicts against numbers worked out by hand; complete and fair designs; the committed records."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from rlhflow_utils.claims.designs import Arm, build_arms, build_claims, same_as_main, wanted_arms
from rlhflow_utils.claims.pipeline import best_of_n_kl, gain, knock_out, section_units
from rlhflow_utils.claims.run import choose_claims, plan_jobs, profile_arguments, seed_profile
from rlhflow_utils.claims.tables import COMPARISONS, TEXT, budgets, built_in, discussion
from rlhflow_utils.claims.verdicts import (
    CLAIMS,
    DEVELOPMENT,
    MISSING,
    OVER_PROMPTS,
    OVER_SEEDS,
    Effect,
    Measure,
    Part,
    claim_record,
    claim_verdict,
    claims_table,
    deciding_effect,
    part_effect,
    part_verdict,
    parts_table,
    read_records,
    seed_difference,
    signed,
    t_interval,
    verdict_text,
    write_records,
)
from rlhflow_utils.evaluation.statistics import Estimate, bon_kl
from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile
from rlhflow_utils.guide.provenance import PROJECT

LETTERS = list("abcdefghijklmno")


@pytest.fixture(scope="module")
def tiny() -> Profile:
    return load_profile("tiny")


def _measure(value: float, half: float = 0.0, units: tuple[float, ...] | None = None) -> Measure:
    return Measure(value, value - half, value + half, 100, units)


def _effect(verdict: Any, low: float = 0.1, high: float = 0.3, kind: Any = "greater") -> Effect:
    part = Part(f"{verdict} {low}", "m", "a", "b", kind)
    return Effect(part, Estimate((low + high) / 2, low, high, 3), OVER_SEEDS, verdict, {})


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
    """The arms vary by 0.2 between seeds, their difference by nothing: the interval has no width."""
    seeds = {str(s): {"a": {"m": _measure(v + 0.1)}, "b": {"m": _measure(v)}} for s, v in enumerate((0.4, 0.5, 0.6))}
    effect = part_effect(Part("a − b", "m", "a", "b"), seeds, 100, 0.95)
    assert effect.estimate.value == pytest.approx(0.1)
    assert effect.estimate.ci_high - effect.estimate.ci_low == pytest.approx(0, abs=1e-9)
    assert (effect.interval, effect.verdict) == (OVER_SEEDS, "holds")
    assert effect.per_seed == pytest.approx({"0": 0.1, "1": 0.1, "2": 0.1})


def test_one_or_two_seeds_give_an_interval_over_prompts() -> None:
    """Two seeds with half-widths 0.03 and 0.04 in `a` alone: their mean has √(0.03² + 0.04²) / 2 = 0.025."""
    seeds = {"1": {"a": {"m": _measure(0.6, 0.03)}}, "2": {"a": {"m": _measure(0.8, 0.04)}}}
    effect = part_effect(Part("a", "m", "a", None, against=0.5), seeds, 100, 0.95)
    assert effect.interval == OVER_PROMPTS
    assert effect.estimate.value == pytest.approx(0.2)
    assert effect.estimate.ci_low == pytest.approx(0.175)
    assert effect.estimate.ci_high == pytest.approx(0.225)


def test_prompts_are_resampled_in_pairs_where_both_arms_have_them() -> None:
    a, b = _measure(0.75, 0.2, (1.0, 1.0, 0.5, 0.5)), _measure(0.25, 0.2, (0.5, 0.5, 0.0, 0.0))
    assert seed_difference(Part("", "m", "a", "b"), {"a": {"m": a}, "b": {"m": b}}, 200, 0.95) == Estimate(
        0.5, 0.5, 0.5, 4
    )


def test_independent_intervals_are_squared_and_added() -> None:
    arms = {"a": {"x": _measure(0.9, 0.03)}, "b": {"y": _measure(0.5, 0.04)}}
    difference = seed_difference(Part("", "x", "a", "b", other_metric="y"), arms, 10, 0.95)
    assert difference.value == pytest.approx(0.4)
    assert (difference.ci_low, difference.ci_high) == (pytest.approx(0.35), pytest.approx(0.45))


def test_gain_by_hand() -> None:
    """Differences 1, 0, 1, 0: mean 0.5, sd 0.57735, half-width 1.96 · 0.57735 / 2."""
    moved = gain(_measure(0.0, units=(0.0, 0.0, 0.0, 0.0)), _measure(0.5, units=(1.0, 0.0, 1.0, 0.0)))
    assert moved.value == 0.5
    assert moved.ci_high - 0.5 == pytest.approx(1.96 * 0.57735 / 2, abs=1e-4)


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high", "verdict"),
    [
        ("greater", 0.01, 0.2, "holds"),
        ("greater", -0.01, 0.2, "inconclusive"),
        ("greater", -0.2, 0.0, "does not hold"),
        ("no_worse", -0.04, 0.2, "holds"),
        ("no_worse", -0.06, 0.2, "inconclusive"),
        ("no_worse", -0.2, -0.06, "does not hold"),
        ("near_equal", -0.04, 0.04, "holds"),
        ("near_equal", 0.01, 0.06, "inconclusive"),
        ("near_equal", 0.06, 0.2, "does not hold"),
        ("near_equal", -0.2, -0.06, "does not hold"),
        ("near_equal", -0.2, 0.2, "inconclusive"),
    ],
)
def test_verdict_of_one_comparison(kind: Any, low: float, high: float, verdict: str) -> None:
    margin = 0.0 if kind == "greater" else 0.05
    assert part_verdict(Part("", "m", "a", "b", kind, margin), Estimate((low + high) / 2, low, high, 5)) == verdict


def test_a_claim_holds_when_all_its_parts_do() -> None:
    holds, fails, unclear = _effect("holds"), _effect("does not hold", -0.3, -0.1), _effect("inconclusive", -0.1, 0.1)
    shown = _effect("inconclusive", -0.9, -0.5, "measured")
    assert claim_verdict([holds, holds, shown]) == "holds"
    assert claim_verdict([holds, unclear]) == "inconclusive"
    assert claim_verdict([holds, unclear, fails]) == "does not hold"
    assert claim_verdict([holds], precondition=unclear) == "not testable here"
    assert claim_verdict([fails], precondition=holds) == "does not hold"


def test_the_deciding_part_is_the_one_furthest_from_holding() -> None:
    holds, close = _effect("holds", 0.2, 0.3), _effect("holds", 0.01, 0.3)
    unclear, shown = _effect("inconclusive", -0.1, 0.1), _effect("inconclusive", -0.9, -0.5, "measured")
    assert deciding_effect([holds, close, shown]) is close
    assert deciding_effect([holds, unclear, close]) is unclear


# --- stages -------------------------------------------------------------------------------------------------------


def test_best_of_two_by_hand() -> None:
    """Two answers of 1/2 each: the better is best of two with 3/4, so 3/4 log 3/2 + 1/4 log 1/2."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert best_of_n_kl(["good", "bad"], [1.0, 0.0], 2) == pytest.approx(expected)
    assert best_of_n_kl(["good", "bad", "good", "bad"], [1.0, 0.0, 1.0, 0.0], 2) == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_best_of_n_reaches_its_bound_where_all_answers_differ(n: int) -> None:
    """With very many distinct answers the bound is nearly tight; with equal rewards there is no choice and no KL."""
    texts = [str(i) for i in range(4000)]
    assert best_of_n_kl(texts, [float(i) for i in range(4000)], n) == pytest.approx(bon_kl(n), abs=0.01)
    assert best_of_n_kl(texts, [float(i) for i in range(4000)], n) <= bon_kl(n)
    assert best_of_n_kl(texts, [0.0] * 4000, n) == pytest.approx(0, abs=1e-9)


def test_knock_out_finds_best_and_worst() -> None:
    """A judge that prefers the longer answer: three of them, so one goes through unmatched."""
    ranks = knock_out(lambda rows: [float(len(a) > len(b)) for _, a, b in rows], [[]], [["bb", "a", "cccc"]])
    assert ranks == [[0.0, -1.0, 1.0]]


# --- designs ------------------------------------------------------------------------------------------------------


def test_every_claim_is_designed(tiny: Profile) -> None:
    claims = build_claims(tiny)
    assert [name for name in claims if len(name) == 1] == LETTERS
    assert {"reference", "bon", "sizes"} <= set(claims)
    full = {name for name, claim in claims.items() if claim.all_seeds}
    assert full == {"a", "b", "c", "d", "e", "f", "g", "h", "reference"}
    assert {name for name, claim in claims.items() if claim.in_variants} == set("abcde")
    for claim in claims.values():
        used = {arm for part in claim.parts for arm in (part.better, part.worse) if arm}
        assert used <= set(claim.arms), claim.identifier
        assert claim.hypothesis.endswith(".")
        assert claim.control
        assert any(part.kind != "measured" for part in claim.parts)


def test_every_arm_changes_the_profile_or_the_loop(tiny: Profile) -> None:
    arms = build_arms(tiny)
    for arm in arms.values():
        changed = load_profile("tiny", dict(arm.overrides)) != tiny
        own = arm.ranker != "bt" or arm.restart or arm.two_checkpoints
        assert changed or own or arm.name in ("main", "penalty"), f"{arm.name} changes nothing"
    assert same_as_main(Arm("x", "", 1, {"dpo.beta": tiny.dpo.beta}), tiny)
    assert not same_as_main(Arm("x", "", 1, {"dpo.beta": tiny.dpo.beta * 2}), tiny)


def test_a_selection_rule_has_a_random_control(tiny: Profile) -> None:
    claims = build_claims(tiny)
    assert "random" in claims["j"].arms
    assert "random_no_penalty" in claims["k"].arms
    assert "random_no_penalty" in claims["m"].arms


def test_jobs_share_the_first_seeds(tiny: Profile) -> None:
    assert tiny.claims is not None
    first, profile = tiny.claims.first_seed, seed_profile("tiny", {}, None)
    jobs = plan_jobs("tiny", profile, build_claims(profile), None, {}, "runs/x")
    assert [job.seed for job in jobs] == [first + i for i in (0, 1, 2, 3, 4, 0, 1)], "every seed, then the variants"
    assert [len(job.claims) for job in jobs] == [18, 18, 18, 9, 9, 0, 0]
    assert [job.variant_claims for job in jobs] == [()] * 5 + [tuple("abcde")] * 2
    alone = plan_jobs("tiny", profile, build_claims(profile), 1, {}, "runs/x")
    assert [(job.seed, job.variant_claims) for job in alone] == [(first, ())]
    assert plan_jobs("tiny", profile, choose_claims(profile, ["i"]), None, {}, "runs/x")[-1].seed == first + 2


def test_a_record_of_a_changed_profile_says_how_to_get_it() -> None:
    assert profile_arguments("tiny", {}) == ""
    changed = profile_arguments("my world.yaml", {"dpo.beta": 0.2, "generation.temperatures": [1.0]})
    assert shlex.split(changed) == [
        "--profile", "my world.yaml", "--set", "dpo.beta=0.2", "--set", "generation.temperatures=[1.0]",
    ]  # fmt: skip


def test_a_seed_changes_world_and_training() -> None:
    profile = seed_profile("tiny", {}, 12)
    assert profile.world is not None
    assert (profile.seed, profile.world.seed) == (12, 12)


def test_mistakes_are_one_line(tiny: Profile) -> None:
    with pytest.raises(ConfigError, match="no claim q; known: a, b"):
        choose_claims(tiny, ["a", "q"])
    with pytest.raises(ConfigError, match="has no section `claims`"):
        seed_profile("slices", {}, None)
    with pytest.raises(ConfigError, match="must not be one of the test seeds"):
        load_profile("tiny", {"claims.development_seed": 31})


# --- records ------------------------------------------------------------------------------------------------------


def _record(**changes: Any) -> dict[str, Any]:
    return {"verdict": "holds", "interval": OVER_SEEDS, "variants": {}, **changes}


def test_the_verdict_says_what_limits_it() -> None:
    assert verdict_text(_record()) == "holds"
    assert verdict_text(_record(interval=OVER_PROMPTS)) == "holds, prompts only"
    others = {"noisier": {"verdict": "holds"}, "longer": {"verdict": "inconclusive"}}
    assert verdict_text(_record(variants=others)) == "holds (with other annotators holds in 1 of 2)"
    elsewhere = _record(verdict="does not hold", variants=others)
    assert verdict_text(elsewhere) == "does not hold (with other annotators holds in 1 of 2)"
    assert verdict_text(_record(variants={name: {"verdict": "holds"} for name in others})) == "holds"


def test_an_untestable_claim_shows_what_it_presupposes(tiny: Profile) -> None:
    """A prompted judge that is a coin: the effect shown is its own, not some comparison with it."""
    claim = build_claims(tiny)["a"]
    coin = {
        section: Measure(0.5, 0.45, 0.55, 100) for section in ("chat", "chat_hard", "safety", "reasoning", "overall")
    }
    record = claim_record(claim, {"10": dict.fromkeys(claim.arms, coin)}, {}, tiny.evaluation, "make claims")
    assert (record["verdict"], record["part"]) == ("not testable here", "prompting − coin")
    assert parts_table(record)[0]["comparison"] == "presupposed: prompting − coin"


def test_records_of_more_runs_stay(tmp_path: Any) -> None:
    whole = {"seeds": 2, "arms": {"bt": {"30": {}, "31": {}}}, "variants": {"noisier": {"seeds": 2}}}
    write_records({"a": whole}, tmp_path / "kept", tmp_path / "aside")
    write_records({"a": {**whole, "variants": {}}}, tmp_path / "kept", tmp_path / "aside")
    assert json.loads((tmp_path / "kept/a.json").read_text()) == whole
    assert (tmp_path / "aside/a.json").is_file()
    other = {"seeds": 1, "arms": {"bt": {"40": {}}}, "variants": {}}
    write_records({"a": other}, tmp_path / "kept", tmp_path / "aside")
    assert json.loads((tmp_path / "kept/a.json").read_text()) == other, "of other seeds: another measurement"
    write_records({"a": whole}, tmp_path / "aside", tmp_path / "aside")
    write_records({"a": {**whole, "seeds": 1}}, tmp_path / "aside", tmp_path / "aside")
    assert json.loads((tmp_path / "aside/a.json").read_text())["seeds"] == 1, (
        "a folder of one's own: the last run counts"
    )
    assert (signed(0.25), signed(-0.25)) == ("+0.250", "−0.250")


def test_no_results_are_no_error(tmp_path: Any) -> None:
    assert read_records(tmp_path) == {}
    assert claims_table({}) == []


def test_committed_records_have_the_form_and_follow_from_their_seeds(tiny: Profile) -> None:
    """Every effect is the mean of its seeds, inside its interval; every verdict is one of the four."""
    assert tiny.claims is not None
    designs = build_claims(seed_profile("tiny", {}, None))
    for name, record in read_records().items():
        assert record["claim"] == name
        assert (record["design"], record["control"]) == (designs[name].design, designs[name].control)
        assert [part["part"] for part in record["parts"]] == [part.name for part in designs[name].parts]
        seeds = {str(tiny.claims.first_seed + index) for index in range(record["seeds"])}
        assert record["verdict"] in ("holds", "does not hold", "inconclusive", "not testable here")
        assert record["ci_low"] <= record["effect"] <= record["ci_high"]
        assert record["command"].startswith("python -m rlhflow_utils claims --only ")
        assert set(record["arms"]) == set(designs[name].arms)
        for arm in record["arms"].values():
            assert set(arm) == seeds, "all claims were measured on the same worlds"
        for part in record["parts"]:
            values = list(part["per_seed"].values())
            assert part["effect"] == pytest.approx(sum(values) / len(values))


def test_committed_records_name_no_machine() -> None:
    for file in CLAIMS.glob("*.json"):
        assert str(PROJECT) not in file.read_text(encoding="utf-8")


def test_the_profile_has_the_betas_that_the_development_seed_chose(tiny: Profile) -> None:
    file = CLAIMS / DEVELOPMENT
    if not file.is_file():
        pytest.skip("results/claims/development.json is not there: python -m rlhflow_utils claims --development")
    chosen = json.loads(file.read_text(encoding="utf-8"))
    assert tiny.claims is not None
    assert chosen["seed"] == tiny.claims.development_seed
    assert {loss: f"{choice.beta:g}" for loss, choice in tiny.claims.losses.items()} == chosen["best"]


def test_arms_are_wanted_once(tiny: Profile) -> None:
    claims = build_claims(tiny)
    arms = wanted_arms([claims["a"], claims["b"], claims["c"]])
    assert arms == ["prompting", "bt", "pm", "bt_mix1", "bt_share0_5"]


def test_the_discussion_rests_on_comparisons_that_exist(tiny: Profile) -> None:
    claims = build_claims(tiny)
    for claim, name in COMPARISONS.values():
        assert name in [part.name for part in claims[claim].parts]
    named = {name.removesuffix("_elsewhere") for _, name, *_ in Formatter().parse(TEXT) if name}
    assert named == set(COMPARISONS), "each is told"
    assert "(not measured)" not in discussion(read_records())
    assert discussion({}) == MISSING
    alone = discussion({name: record for name, record in read_records().items() if name == "e"})
    assert "(not measured)" in alone


def test_two_worlds_that_disagree_decide_nothing() -> None:
    """An interval over prompts is no interval over worlds: a verdict from it needs the worlds to agree."""
    part = Part("a − b", "m", "a", "b")

    def measured(difference: float) -> dict[str, dict[str, Measure]]:
        value = 0.5 + difference
        return {"a": {"m": Measure(value, value - 0.01, value + 0.01, 100)}, "b": {"m": Measure(0.5, 0.49, 0.51, 100)}}

    agreeing = part_effect(part, {"10": measured(-0.3), "11": measured(-0.1)}, 10, 0.95)
    split = part_effect(part, {"10": measured(-0.4), "11": measured(0.05)}, 10, 0.95)
    assert (agreeing.verdict, split.verdict) == ("does not hold", "inconclusive")
    assert split.estimate.ci_high < 0


def test_section_units_have_the_weighted_score_as_their_mean(tmp_path: Path) -> None:
    outcomes = {"alpacaeval-easy": [1, 0.5], "alpacaeval-length": [1], "math-prm": [0, 1]}
    rows = [{"subset": subset, "outcome": outcome} for subset, values in outcomes.items() for outcome in values]
    file = tmp_path / "verdicts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    units = section_units(file)
    assert [len(units[section]) for section in ("chat", "chat_hard", "safety", "reasoning")] == [3, 0, 0, 2]
    assert sum(units["chat"]) / 3 == pytest.approx((100 * 0.5 + 95 * 1) / 195)  # a tie counts as wrong
    assert units["reasoning"] == [0, 1]


def test_budgets_are_means_over_the_seeds_of_the_fullest_record() -> None:
    few = {"arms": {"main": {"10": {"pairs": 8, "updates": 2, "tokens": 100}}, "sft": {"10": {"gold": 0.1}}}}
    many = {
        "arms": {
            "main": {"10": {"pairs": 8, "updates": 2, "tokens": 100}, "11": {"pairs": 10, "updates": 3, "tokens": 90}}
        }
    }
    assert budgets({"a": few, "b": many}) == [{"arm": "main", "pairs": 9, "updates": 2, "tokens": 95, "seeds": 2}]


def test_what_is_built_in_is_read_from_the_profile(tiny: Profile) -> None:
    assert tiny.world is not None
    text = built_in(tiny.world)
    assert f"less {tiny.world.padding_cost:g} for each character" in text
    assert all(f"| {name} |" in text for name in tiny.world.preferences.sources)
