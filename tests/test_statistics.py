"""Statistics against values worked out by hand or by another route, and coverage checked by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from rlhflow_utils.evaluation import statistics as st


def test_wilson_interval_of_eight_in_ten() -> None:
    # Textbook value: 8 of 10 at 95 % gives 0.4902 .. 0.9433.
    low, high = st.wilson_interval(0.8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    other = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((other.low, other.high), abs=1e-9)


def test_wilson_interval_at_the_edge_is_not_empty() -> None:
    low, high = st.wilson_interval(1.0, 20)
    assert high == 1.0
    assert low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)  # n / (n + z^2)


def test_accuracy_carries_count_and_interval() -> None:
    estimate = st.accuracy([1, 1, 1, 0])
    assert (estimate.value, estimate.n) == (0.75, 4)
    assert (estimate.ci_low, estimate.ci_high) == st.wilson_interval(0.75, 4)
    assert st.Estimate(0.6, 0.5, 0.7, 9).metrics("a.b") == {"a.b": 0.6, "a.b_ci_low": 0.5, "a.b_ci_high": 0.7}


def test_weighted_mean_by_hand() -> None:
    parts = [st.Estimate(0.5, 0.2, 0.9, 10), st.Estimate(1.0, 0.8, 1.0, 30)]
    combined = st.weighted_mean(parts, [1, 3])
    assert combined.value == pytest.approx(0.875)
    # below: hypot(0.25 * 0.3, 0.75 * 0.2) = hypot(0.075, 0.15); above: hypot(0.25 * 0.4, 0) = 0.1
    assert combined.ci_low == pytest.approx(0.875 - math.sqrt(0.075**2 + 0.15**2))
    assert combined.ci_high == pytest.approx(0.975)
    assert combined.n == 40
    with pytest.raises(ValueError, match="one weight"):
        st.weighted_mean(parts, [1])


def test_bootstrap_is_seeded_and_brackets_the_mean() -> None:
    outcomes = [1.0] * 60 + [0.5] * 20 + [0.0] * 20
    first = st.bootstrap_mean(outcomes, samples=500, confidence=0.95, seed=3)
    assert first == st.bootstrap_mean(outcomes, samples=500, confidence=0.95, seed=3)
    assert first != st.bootstrap_mean(outcomes, samples=500, confidence=0.95, seed=4)
    assert first.value == pytest.approx(0.7)
    # Normal theory: standard error = std / sqrt(n) = 0.4 / 10, so about 0.7 -/+ 0.078.
    assert (first.ci_low, first.ci_high) == pytest.approx((0.7 - 0.078, 0.7 + 0.078), abs=0.02)


@pytest.mark.parametrize("n", [2, 81, 560])
def test_bootstrap_equals_a_plain_loop(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    rng = np.random.default_rng(7)
    means = [values[rng.integers(0, n, n)].mean() for _ in range(300)]
    found = st.bootstrap_mean(values, 300, 0.9, seed=7)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.percentile(means, [5, 95])), abs=1e-15)


def test_bootstrap_of_equal_values_has_no_width() -> None:
    assert st.bootstrap_mean([1.0, 1.0], 50, 0.9, 0) == st.Estimate(1.0, 1.0, 1.0, 2)
    assert st.bootstrap_mean([0.5], 50, 0.9, 0) == st.Estimate(0.5, 0.5, 0.5, 1)
    with pytest.raises(ValueError, match="non-empty"):
        st.bootstrap_mean([], 50, 0.9, 0)
    with pytest.raises(ValueError, match="finite"):
        st.bootstrap_mean([1.0, float("nan")], 50, 0.9, 0)


def test_a_weighted_bootstrap_draws_a_prompt_with_its_weight() -> None:
    values, weights = [1.0, 0.0, 0.5], [1, 3, 2]
    found = st.bootstrap_mean(values, 300, 0.9, 7, weights)
    assert found.value == pytest.approx(2 / 6)
    draws = np.random.default_rng(7).integers(0, 3, (300, 3))
    means = [np.average(np.array(values)[draw], weights=np.array(weights)[draw]) for draw in draws]
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.percentile(means, [5, 95])))


def test_paired_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 10, 200)  # how hard the prompts are: common to both policies
    a, b = easy + 1 + rng.normal(0, 0.1, 200), easy
    paired = st.paired_difference(a, b, 300, 0.95, 0)
    assert paired.value == pytest.approx(1.0, abs=0.05)
    assert paired.ci_high - paired.ci_low < 0.05  # unpaired it would be about 4
    assert st.paired_difference([*a, None, 5.0], [*b, 1.0, None], 300, 0.95, 0) == paired  # no verdict on either side
    with pytest.raises(ValueError, match="finite"):
        st.paired_difference([1.0, float("nan")], [1.0, 1.0], 10, 0.9, 0)
    with pytest.raises(ValueError, match="pair them by prompt"):
        st.paired_difference([1.0], [1.0, 2.0], 10, 0.9, 0)


@pytest.mark.parametrize("kind", ["wilson", "bootstrap", "paired", "section", "length_controlled"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: str) -> None:
    rng = np.random.default_rng(7)
    repeats, covered = 250, 0
    for repeat in range(repeats):
        if kind == "wilson":
            estimate, truth = st.accuracy(rng.random(60) < 0.8), 0.8
        elif kind == "bootstrap":
            outcomes = rng.choice([1.0, 0.5, 0.0], size=120, p=[0.5, 0.2, 0.3])
            estimate, truth = st.bootstrap_mean(outcomes, 200, 0.95, repeat), 0.6
        elif kind == "paired":
            hard = rng.normal(0, 3, 120)  # common to both policies
            ours, theirs = hard + rng.normal(0.3, 1, 120), hard + rng.normal(0, 1, 120)
            estimate, truth = st.paired_difference(ours, theirs, 200, 0.95, repeat), 0.3
        elif kind == "length_controlled":
            difference = rng.normal(20, 50, 200)
            log_odds = math.log(0.6 / 0.4) + 0.8 * np.tanh(difference / difference.std())
            wins = rng.random(200) < 1 / (1 + np.exp(-log_odds))
            result = st.length_adjusted_win_rate(wins, 100 + difference, np.full(200, 100.0), 0.95)
            estimate, truth = result.win_rate, 0.6
        else:
            subsets = [(0.95, 40, 40), (0.7, 60, 120), (0.5, 25, 25)]  # accuracy, rows, weight
            parts = [st.accuracy(rng.random(n) < p) for p, n, _ in subsets]
            estimate = st.weighted_mean(parts, [weight for _, _, weight in subsets])
            truth = (0.95 * 40 + 0.7 * 120 + 0.5 * 25) / 185
        covered += estimate.ci_low <= truth <= estimate.ci_high
    assert 0.92 <= covered / repeats <= 0.985


def test_pearson_per_prompt_by_hand_and_undefined_rows() -> None:
    lengths = [[1, 2, 3, 4], [4, 3, 2, 1], [5, 5, 5, 5], [1, 2, 3, 4], [1, 2, 3, 6]]
    rewards = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4], [0.3, 0.3, 0.3, 0.3], [0, 1, 0, 1]]
    correlation = st.pearson_per_prompt(lengths, rewards)
    assert correlation[:2] == pytest.approx([1.0, -1.0])
    assert np.isnan(correlation[2:4]).all()
    # x - mean = (-2, -1, 0, 3), y - mean = (-.5, .5, -.5, .5): 2 / sqrt(14 * 1)
    assert correlation[4] == pytest.approx(2 / math.sqrt(14))
    estimate, undefined = st.mean_pearson(correlation, 100, 0.95, 0)
    assert undefined == 2
    assert estimate.value == pytest.approx(2 / math.sqrt(14) / 3)
    assert estimate.n == 3
    with pytest.raises(ValueError, match="no correlation is defined"):
        st.mean_pearson([np.nan], 10, 0.9, 0)
    with pytest.raises(ValueError, match="shape"):
        st.pearson_per_prompt([1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"prompt 1: .*nan.* must be finite"):
        st.pearson_per_prompt([[1, 2], [1, 2]], [[1, 2], [1, np.nan]])


def test_pearson_of_nearly_equal_large_rewards_is_not_called_constant() -> None:
    correlation = st.pearson_per_prompt([[1, 2, 3]], [[1e6, 1e6 + 0.25, 1e6 + 0.5]])
    assert correlation == pytest.approx([1.0])


def test_length_control_finds_a_planted_truth() -> None:
    """Equal length wins 60 %, every bit of length helps: the raw rate is too high, the controlled one is right."""
    rng = np.random.default_rng(1)
    n = 6000
    difference = rng.normal(80, 60, n)
    log_odds = math.log(0.6 / 0.4) + 1.5 * np.tanh(difference / difference.std())
    outcomes = (rng.random(n) < 1 / (1 + np.exp(-log_odds))).astype(float)
    reference = np.full(n, 300.0)
    result = st.length_adjusted_win_rate(outcomes, reference + difference, reference, confidence=0.95)
    assert outcomes.mean() > 0.75
    assert result.win_rate.value == pytest.approx(0.6, abs=0.03)
    assert result.win_rate.ci_low < 0.6 < result.win_rate.ci_high
    assert result.length_effect == pytest.approx(1.5, abs=0.15)


@pytest.mark.parametrize(("truth", "bias"), [(0.05, 0.012), (0.1, 0.023), (0.2, 0.043), (0.5, 0.077), (0.8, 0.060)])
def test_bias_of_knowing_length_alone_on_a_planted_truth(truth: float, bias: float) -> None:
    """None where prompts are equally hard or length does not go with difficulty; else about what is written here.

    The truth is the form of AlpacaEval-2: ``logit p = quality + 1.5 difficulty + tanh(d / std d)``, with exact
    probabilities as outcomes. A policy that writes shorter answers to the prompts where it does badly (correlation 0.3)
    gets too high a rate, one that writes longer ones there too low a rate.
    """
    rng, n = np.random.default_rng(3), 20_000
    difficulty, other = rng.normal(0, 1, (2, n))

    def estimate(weight: float, correlation: float) -> float:
        difference = correlation * difficulty + math.sqrt(1 - correlation**2) * other - 1
        quality = optimize.brentq(lambda q: special.expit(q + weight * difficulty).mean() - truth, -9, 9)
        outcomes = special.expit(quality + weight * difficulty + np.tanh(difference / difference.std()))
        result = st.length_adjusted_win_rate(outcomes, 1000 + 100 * difference, np.full(n, 1000.0), confidence=0.95)
        return result.win_rate.value

    assert estimate(0, 0) == pytest.approx(truth, abs=0.0005)
    assert estimate(1.5, 0) == pytest.approx(truth, abs=0.01)
    assert estimate(1.5, 0.3) - truth == pytest.approx(bias, abs=0.01)
    assert estimate(1.5, -0.3) < truth - bias / 2


def test_length_control_without_length_differences_is_the_plain_rate() -> None:
    outcomes = [1.0] * 70 + [0.5] * 10 + [0.0] * 20
    same = [50.0] * 100
    result = st.length_adjusted_win_rate(outcomes, same, same, confidence=0.95)
    assert result.win_rate.value == pytest.approx(0.75, abs=0.002)  # the ridge pulls by a hair
    assert result.length_effect == pytest.approx(0.0)


def test_length_control_survives_a_policy_that_always_wins() -> None:
    result = st.length_adjusted_win_rate([1.0] * 20, range(20), [0.0] * 20, confidence=0.95)
    assert 0.9 < result.win_rate.value < 1.0


def test_best_of_n_bound() -> None:
    assert st.bon_kl(1) == 0.0
    assert st.bon_kl(2) == pytest.approx(math.log(2) - 0.5)
    assert st.bon_kl(8) == pytest.approx(1.2044, abs=1e-4)


def test_calibration_bins_by_hand() -> None:
    table = st.calibration([0.1, 0.1, 0.9, 1.0], [0, 1, 1, 1], bins=2)
    assert table["predicted"] == pytest.approx([0.1, 0.95])
    assert table["observed"] == [0.5, 1.0]
    assert table["count"] == [2, 2]
