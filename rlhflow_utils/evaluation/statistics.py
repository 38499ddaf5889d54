"""Rates, intervals, correlations and divergences: the arithmetic behind every number of the guide."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

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


def wilson_interval(rate: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion over n trials; unlike rate ± 2 SE it is sensible at 0 and 1.

    For whole counts it is scipy's `binomtest(k, n).proportion_ci(method="wilson")`; here a tie may count one half.
    """
    if not 0 <= rate <= 1 or n <= 0:
        raise ValueError(f"Wilson interval of rate {rate} over {n} trials: the rate must be in [0, 1], trials above 0")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Rounding must not put the observed rate outside its own interval.
    return max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate))


def accuracy(correct: ArrayLike, confidence: float = 0.95, what: str = "accuracy") -> Estimate:
    """Mean of results in {0, 0.5, 1} with Wilson's interval; an error names `what`."""
    values = _vector(correct, what)
    rate = float(values.mean())
    return Estimate(rate, *wilson_interval(rate, len(values), confidence), n=len(values))


def weighted_mean(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Weighted mean of independent estimates; its lower limit is ``mean - sqrt(sum (w (value - ci_low))^2)``.

    The upper one is alike (Newcombe 1998; Zou and Donner 2008).
    """
    if not parts or len(parts) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"weighted mean of {len(parts)} estimates, {len(weights)} weights: give one weight >= 0 each")
    share = np.asarray(weights, dtype=float) / sum(weights)
    value = float(share @ [part.value for part in parts])
    below = math.hypot(*share * [part.value - part.ci_low for part in parts])
    above = math.hypot(*share * [part.ci_high - part.value for part in parts])
    return Estimate(value, value - below, value + above, sum(part.n for part in parts))


def bootstrap_mean(
    values: ArrayLike, samples: int, confidence: float, seed: int, weights: ArrayLike | None = None
) -> Estimate:
    """Mean of one number per prompt with a percentile bootstrap interval: prompts are drawn with replacement.

    `weights` are one per prompt, drawn with it; None: equal. If all values are equal the interval has zero width; use
    `wilson_interval` for small samples.
    """
    vector = _vector(values, "bootstrap")
    data = vector, np.ones_like(vector) if weights is None else _vector(weights, "bootstrap weights")

    def mean(values: Floats, weights: Floats, axis: int = -1) -> Any:
        return (values * weights).sum(axis) / weights.sum(axis)

    value = float(mean(*data))
    if len(vector) == 1:
        return Estimate(value, value, value, 1)
    options = {"n_resamples": samples, "confidence_level": confidence, "method": "percentile", "batch": 100}
    interval = stats.bootstrap(data, mean, paired=True, rng=seed, **options).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), len(vector))


def paired_difference(a: Iterable[Any], b: Iterable[Any], samples: int, confidence: float, seed: int) -> Estimate:
    """Mean of ``a - b`` with its bootstrap interval; both hold one number per prompt, in the same prompt order.

    Prompts without a number (None: no verdict) on either side are left out.
    """
    first, second = list(a), list(b)
    if len(first) != len(second):
        raise ValueError(f"paired difference of {len(first)} and {len(second)} values: pair them by prompt first")
    differences = [x - y for x, y in zip(first, second, strict=True) if x is not None and y is not None]
    return bootstrap_mean(differences, samples, confidence, seed)


def t_interval(values: Sequence[float], confidence: float) -> Estimate:
    """Mean of independent values (at least two seeds) with Student's t interval."""
    if len(values) < 2:
        raise ValueError(f"t interval of {len(values)} value(s): at least two seeds are needed")
    vector = _vector(values, "t interval")
    mean, half = float(vector.mean()), float(stats.t.ppf(0.5 + confidence / 2, len(vector) - 1) * stats.sem(vector))
    return Estimate(mean, mean - half, mean + half, len(vector))


def pearson_per_prompt(lengths: ArrayLike, rewards: ArrayLike) -> Floats:
    """Correlation of length and reward over the K responses of each prompt (paper 2.3, Fig. 5).

    `lengths` and `rewards` have the shape (prompts, K), the result (prompts,); nan where all K of either are equal.
    """
    x, y = np.asarray(lengths, dtype=float), np.asarray(rewards, dtype=float)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"lengths {x.shape} and rewards {y.shape} must both have the shape (prompts, responses)")
    if len(broken := np.flatnonzero(~np.isfinite(x + y).all(axis=1))):
        raise ValueError(f"prompt {broken[0]}: its lengths {x[broken[0]]} and rewards {y[broken[0]]} must be finite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant rows
        return np.asarray(stats.pearsonr(x, y, axis=1).statistic)


def mean_pearson(correlations: ArrayLike, samples: int, confidence: float, seed: int) -> tuple[Estimate, int]:
    """Mean over the prompts whose correlation is defined, and how many are not."""
    values = np.asarray(correlations, dtype=float)
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        raise ValueError(f"all {len(values)} prompts have constant lengths or rewards: no correlation is defined")
    return bootstrap_mean(defined, samples, confidence, seed), len(values) - len(defined)


class LengthAdjusted(NamedTuple):
    win_rate: Estimate  # at equal length
    length_effect: float  # log-odds at the largest length difference


def length_adjusted_win_rate(
    outcomes: ArrayLike, lengths: ArrayLike, reference_lengths: ArrayLike, confidence: float
) -> LengthAdjusted:
    """What the win rate would be if both answers were equally long (AlpacaEval-2's form, Dubois et al. 2024).

    A logistic regression explains each outcome by ``logit P(win) = theta + phi * tanh(d / std(d))``, where d is the
    length difference (policy minus reference). The length-adjusted win rate sets d = 0: ``sigmoid(theta)``.
    AlpacaEval-2's third term, the difficulty of each of its 805 instructions, needs many models and is left out, as are
    its gamed baselines: this is another estimate, for any prompts (the official: `chat_benchmarks.length_controlled`).
    Where a policy writes shorter answers to the prompts on which it does badly, it is too high.
    The interval comes from theta's robust ("sandwich") standard error, on the logit scale. `outcomes` are 1, 0.5 or 0
    from the policy's side; the three lists have the same prompt order.
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
    return LengthAdjusted(Estimate(value, low, high, len(y)), float(weights[1]))


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


def bon_kl(n: int) -> float:
    """Upper bound on KL(best-of-n policy || policy): ``log n - (n - 1) / n``, in nats (paper 3.3)."""
    return math.log(n) - (n - 1) / n


def calibration(probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10) -> Mapping[str, list[float]]:
    """Predicted against observed frequency of "the first answer is preferred" in equal-width bins, without empty ones.

    The lists are `predicted` (mean of the bin), `observed`, `ci_low`, `ci_high` (Wilson, 95 %) and `count`.
    """
    p, y = _vector(probabilities, "calibration"), _vector(outcomes, "calibration")
    index = np.minimum((p * bins).astype(int), bins - 1)
    rows = [(float(p[index == each].mean()), *astuple(accuracy(y[index == each]))) for each in np.unique(index)]
    names = ("predicted", "observed", "ci_low", "ci_high", "count")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _vector(values: ArrayLike, what: str) -> Floats:
    vector = np.asarray(values, dtype=float)
    if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
        raise ValueError(f"{what}: expected a non-empty list of finite numbers, got shape {vector.shape}")
    return vector
