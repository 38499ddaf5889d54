"""Rates, intervals, correlations and divergences: the arithmetic behind every number of the guide.

Only numpy and scipy. Nothing here knows about models or plots. Every estimate carries its interval and the number of
independent units behind it (prompts or pairs). Where two policies answer the same prompts, the difference is taken
per prompt before anything is resampled: that is what makes the comparison a paired one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]

ENOUGH_SEEDS = 3  # for a t interval that says anything: with two its factor is 12.7


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval; `n` counts the independent units (prompts, pairs) behind it."""

    value: float
    ci_low: float
    ci_high: float
    n: int

    def metrics(self, key: str) -> dict[str, float]:
        """``{key: value, key_ci_low: ..., key_ci_high: ...}``, the form of the run's summary."""
        return {key: self.value, f"{key}_ci_low": self.ci_low, f"{key}_ci_high": self.ci_high}


# --- rates --------------------------------------------------------------------------------------------------------


def win_rate(wins: float, ties: float, losses: float) -> float:
    """Share of comparisons won, a tie counting one half.

    Raises:
        ValueError: no comparisons, or a negative count.
    """
    total = wins + ties + losses
    if min(wins, ties, losses) < 0 or total == 0:
        raise ValueError(f"win rate of {wins} wins, {ties} ties, {losses} losses: give counts >= 0, not all zero")
    return (wins + 0.5 * ties) / total


def outcome_counts(outcomes: Sequence[float]) -> dict[str, int]:
    """Count wins (1), ties (0.5) and losses (0).

    Raises:
        ValueError: an outcome that is none of the three.
    """
    names = {1.0: "wins", 0.5: "ties", 0.0: "losses"}
    counts = {"wins": 0, "ties": 0, "losses": 0}
    for row, outcome in enumerate(outcomes):
        if outcome not in names:
            raise ValueError(f"outcome {outcome!r} at position {row}: expected 1 (win), 0.5 (tie) or 0 (loss)")
        counts[names[outcome]] += 1
    return counts


def wilson_interval(rate: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); unlike rate ± 2 SE it stays sensible at 0 and 1.

    Args:
        rate: observed proportion, in [0, 1].
        n: trials; may be an effective number and so need not be whole.
        confidence: coverage aimed at.
    """
    if not 0 <= rate <= 1 or n <= 0:
        raise ValueError(f"Wilson interval of rate {rate} over {n} trials: the rate must be in [0, 1], trials above 0")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Rounding must not put the observed rate outside its own interval.
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def accuracy(correct: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of 0/1 verdicts with Wilson's interval.

    A tie may be given as 0.5. It varies less than a 0/1 verdict, so the interval is then a little too wide, not too
    narrow.
    """
    values = _vector(correct, "accuracy")
    rate = float(values.mean())
    return Estimate(rate, *wilson_interval(rate, len(values), confidence), n=len(values))


def weighted_mean(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Weighted mean of independent estimates, their intervals combined by squaring and adding.

    The lower limit is ``mean - sqrt(sum (w (value - ci_low))^2)`` and the upper one alike (Newcombe 1998; Zou and
    Donner 2008). Used for RewardBench's sections, whose weights are not the row counts.
    """
    if not parts or len(parts) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"weighted mean of {len(parts)} estimates, {len(weights)} weights: give one weight >= 0 each")
    share = np.asarray(weights, dtype=float) / sum(weights)
    value = float(share @ [part.value for part in parts])
    below = math.hypot(*share * [part.value - part.ci_low for part in parts])
    above = math.hypot(*share * [part.ci_high - part.value for part in parts])
    return Estimate(value, value - below, value + above, sum(part.n for part in parts))


# --- the bootstrap ------------------------------------------------------------------------------------------------


def bootstrap_mean(values: ArrayLike, samples: int, confidence: float, seed: int) -> Estimate:
    """Mean over prompts with a percentile bootstrap interval (prompts drawn with replacement).

    For outcomes in {1, 0.5, 0} this is the win rate with its interval. If all values are equal the interval has no
    width, whatever n is: with few prompts, or rates near 0 or 1, prefer `wilson_interval`.

    Args:
        values: one number per prompt.
        samples: bootstrap draws.
        confidence: coverage aimed at, for example 0.95.
        seed: of the draws; the same seed gives the same interval.
    """
    vector = _vector(values, "bootstrap")
    rng = np.random.default_rng(seed)
    n = len(vector)
    means = np.array([vector[rng.integers(0, n, n)].mean() for _ in range(samples)])
    return Estimate(float(vector.mean()), *_percentiles(means, confidence), n=n)


def paired_difference(a: ArrayLike, b: ArrayLike, samples: int, confidence: float, seed: int) -> Estimate:
    """Mean of ``a - b`` over the same prompts, with its bootstrap interval.

    Args:
        a: one number per prompt for the first policy (an outcome, a reward, a length).
        b: the same prompts, in the same order, for the second policy.
        samples: bootstrap draws.
        confidence: coverage aimed at.
        seed: of the draws.
    """
    first, second = _vector(a, "paired difference"), _vector(b, "paired difference")
    if len(first) != len(second):
        raise ValueError(f"paired difference of {len(first)} and {len(second)} values: pair them by prompt first")
    return bootstrap_mean(first - second, samples, confidence, seed)


# --- length -------------------------------------------------------------------------------------------------------


def pearson_per_prompt(lengths: ArrayLike, rewards: ArrayLike) -> Floats:
    """Correlation of length and reward over the K responses of each prompt (paper 2.3, Fig. 5).

    Args:
        lengths: shape (prompts, K), characters or tokens.
        rewards: shape (prompts, K).

    Returns:
        Shape (prompts,); nan where all K lengths or all K rewards are equal: no correlation is defined there.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(rewards, dtype=float)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"lengths {x.shape} and rewards {y.shape} must both have the shape (prompts, responses)")
    constant = (np.ptp(x, axis=1) == 0) | (np.ptp(y, axis=1) == 0)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.where(constant, np.nan, correlation)


def mean_pearson(correlations: ArrayLike, samples: int, confidence: float, seed: int) -> tuple[Estimate, int]:
    """Mean over the prompts whose correlation is defined, and how many are not.

    Raises:
        ValueError: no prompt has a defined correlation.
    """
    values = np.asarray(correlations, dtype=float)
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        raise ValueError(f"all {len(values)} prompts have constant lengths or rewards: no correlation is defined")
    return bootstrap_mean(defined, samples, confidence, seed), len(values) - len(defined)


@dataclass(frozen=True)
class LengthControlled:
    """Win rate at equal length, and the fitted effect of length (log-odds at the largest length difference)."""

    win_rate: Estimate
    length_effect: float


def length_controlled_win_rate(
    outcomes: ArrayLike, lengths: ArrayLike, reference_lengths: ArrayLike, confidence: float
) -> LengthControlled:
    """What the win rate would be if both answers were equally long (AlpacaEval-2's form, Dubois et al. 2024).

    A logistic regression explains each outcome by ``logit P(win) = theta + phi * tanh(d / std(d))``, where d is the
    length difference (policy minus reference) and tanh keeps a few huge differences from ruling the fit. The
    length-controlled win rate sets d = 0, which leaves ``sigmoid(theta)``. AlpacaEval-2 has a third term, the
    difficulty of each of its 805 instructions, estimated over all models of its leaderboard. With a single policy and
    other prompts that term cannot be told apart from noise, so it is left out here.

    The interval comes from theta's robust ("sandwich") standard error, which also fits outcomes of one half; it is
    symmetric on the logit scale and so stays within 0 and 1.

    Args:
        outcomes: 1, 0.5 or 0 for each prompt, from the policy's side.
        lengths: the policy's response lengths, in prompt order.
        reference_lengths: the reference's, in the same order and unit.
        confidence: coverage aimed at.
    """
    y = _vector(outcomes, "length control")
    difference = _vector(lengths, "length control") - _vector(reference_lengths, "length control")
    if len(y) != len(difference):
        raise ValueError(f"{len(y)} outcomes but {len(difference)} length differences: give one per prompt")
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    weights, covariance = _fit_logistic(np.column_stack([np.ones_like(x), x]), y)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(covariance[0, 0])
    value, low, high = (float(special.expit(weights[0] + shift)) for shift in (0.0, -half, half))
    return LengthControlled(Estimate(value, low, high, len(y)), float(weights[1]))


def _fit_logistic(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coefficients and their robust covariance; a weak ridge keeps them finite when all outcomes agree."""
    ridge = 0.1  # a tenth of one observation

    def loss(weights: Floats) -> tuple[float, Floats]:
        logit = x @ weights
        value = np.logaddexp(0, logit).sum() - y @ logit + ridge * (weights @ weights) / 2
        return float(value), x.T @ (special.expit(logit) - y) + ridge * weights

    weights = optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS").x
    p = special.expit(x @ weights)
    bread = np.linalg.inv((x.T * (p * (1 - p))) @ x + ridge * np.eye(x.shape[1]))
    return weights, bread @ ((x.T * (y - p) ** 2) @ x) @ bread


# --- divergence ---------------------------------------------------------------------------------------------------


def bon_kl(n: int) -> float:
    """Upper bound on KL(best-of-n policy || policy): ``log n - (n - 1) / n``, in nats (paper 3.2)."""
    if n < 1:
        raise ValueError(f"best-of-{n}: n must be at least 1")
    return math.log(n) - (n - 1) / n


# --- calibration --------------------------------------------------------------------------------------------------


def calibration(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> Mapping[str, list[float]]:
    """Predicted against observed frequency in equal-width bins; empty bins are left out.

    Args:
        probabilities: predicted P(first answer preferred), in [0, 1].
        outcomes: 1 where it was preferred, else 0.
        bins: number of equal-width bins.

    Returns:
        Lists `predicted` (mean of the bin), `observed`, `ci_low`, `ci_high` (Wilson, 95 %) and `count`.
    """
    p, y = _vector(probabilities, "calibration"), _vector(outcomes, "calibration")
    index = np.minimum((p * bins).astype(int), bins - 1)
    table: dict[str, list[float]] = {"predicted": [], "observed": [], "ci_low": [], "ci_high": [], "count": []}
    for one in np.unique(index):
        inside = accuracy(y[index == one])
        row = (float(p[index == one].mean()), inside.value, inside.ci_low, inside.ci_high, inside.n)
        for name, value in zip(table, row, strict=True):
            table[name].append(value)
    return table


def expected_calibration_error(table: Mapping[str, Sequence[float]]) -> float:
    """Mean gap between predicted and observed frequency over `calibration`'s bins, weighted by their counts."""
    gaps = np.abs(np.asarray(table["predicted"]) - np.asarray(table["observed"]))
    return float(np.average(gaps, weights=table["count"]))


def _vector(values: ArrayLike, what: str) -> Floats:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"{what}: expected a non-empty list of finite numbers, got shape {vector.shape}")
    return vector


def _percentiles(draws: ArrayLike, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.asarray(draws, dtype=float), [tail, 100 - tail])
    return float(low), float(high)


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
