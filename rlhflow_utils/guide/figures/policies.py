"""Figures about pairs, policies and the whole run (chapters 07 to 12)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rlhflow_utils.guide.figures import style
from rlhflow_utils.guide.figures.style import BLUE, DARK, GREY, ORANGE, Estimate, finish, new_figure
from rlhflow_utils.guide.tables import signed

Numbers = Sequence[Sequence[float]]  # one list per prompt, one number per response


def response_lengths(lengths: Numbers, temperatures: Numbers) -> Figure:
    """Lengths of sampled responses, by sampling temperature."""
    values, drawn_at = np.concatenate(lengths).astype(float), np.concatenate(temperatures)
    groups = {f"T = {t:g}": values[drawn_at == t] for t in np.unique(drawn_at)}
    figure = style.cumulative(groups, xlabel="length (characters)", ylabel="responses up to this length (%)")
    medians = ", ".join(f"{np.median(part):.0f} at {name}" for name, part in groups.items())
    return finish(figure, f"Median length in characters: {medians} ({len(values)} responses)")


def reward_gaps(gaps: Mapping[str, ArrayLike]) -> Figure:
    """Reward gap between chosen and rejected of the built pairs: pairing rule -> gap of each pair."""
    arrays = {name.replace("_", " "): np.asarray(values, dtype=float) for name, values in gaps.items()}
    label = "raw reward(chosen) − raw reward(rejected)"
    figure = style.cumulative(arrays, xlabel=label, ylabel="pairs up to this gap (%)")
    medians = ", ".join(f"{name} {style.plain(np.median(values))}" for name, values in arrays.items())
    return finish(figure, f"Median gap in raw reward: {medians}")


def pair_length_change(changes: Mapping[str, ArrayLike]) -> Figure:
    """Length of chosen minus length of rejected: right of zero, DPO is shown that longer is better. One panel each."""
    arrays = {name.replace("_", " "): np.asarray(values, dtype=float) for name, values in changes.items()}
    figure, panels = new_figure(len(arrays), height=0.8 + 1.3 * len(arrays), sharey=True, sharex=True)
    edges = np.array(style.edges_through_zero(np.concatenate(list(arrays.values()))))
    edges = edges - (edges[1] - edges[0]) / 2  # equal lengths get a bar of their own, around zero
    for axes, (name, values) in zip(panels, arrays.items(), strict=True):
        signs = {"shorter": values[values < 0], "equal": values[values == 0], "longer": values[values > 0]}
        shares = [f"{sign} {100 * len(part) / len(values):.0f} %" for sign, part in signs.items()]
        axes.hist(list(signs.values()), edges.tolist(), stacked=True, color=[BLUE, "#d9d9d9", ORANGE])
        axes.axvline(values.mean(), color=DARK, lw=1.4, ls="--")
        axes.set_title(f"{name}: {', '.join(shares)}; mean {signed(values.mean())} (dashed)", loc="left")
        axes.set(ylabel="pairs")
    panels[-1].set_xlabel("length(chosen) − length(rejected) (characters)")
    first, values = next(iter(arrays.items()))
    shorter, longer = (f"in {100 * np.mean(part):.0f} %" for part in (values < 0, values > 0))
    return finish(figure, f"{first}: the chosen answer is shorter {shorter} of the pairs, longer {longer}")


def progress_over_iterations(
    sft: Mapping[str, Estimate], iterations: Sequence[Mapping[str, Estimate]], judge: str = "gold",
    others: Mapping[str, Mapping[str, Estimate]] | None = None, caption: str = "",
) -> Figure:  # fmt: skip
    """Right answers (where the judge knows them) and length-adjusted win rate against SFT, after each iteration.

    All arguments hold a policy's `estimates`; `others` are marks beside the line.
    """
    known = {
        "accuracy": "right answers (%)",
        "length_adjusted_win_rate": f"length-adjusted win rate\nagainst SFT (%), judge: {judge}",
    }
    metrics, marks = {metric: label for metric, label in known.items() if metric in sft}, others or {}
    figure, panels = new_figure(columns=len(metrics), height=3.2)
    last = len(iterations)
    names = ["SFT", *map(str, range(1, last + 1)), *(textwrap.fill(name, 9) for name in marks)]
    for axes, (metric, label) in zip(panels, metrics.items(), strict=True):
        rates = [style.percent(row[metric]) for row in (sft, *iterations, *marks.values())]
        line, steps = rates[: last + 1], range(last + 1)
        low, high = ([rate[key] for rate in line] for key in ("ci_low", "ci_high"))
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.2)
        axes.plot(steps, [rate["value"] for rate in line], color=BLUE, marker="o", lw=2)
        for place, name in enumerate(marks, last + 1):
            bar, colour = style.error_bar(rates[place]), style.colour_of(name, place)
            axes.errorbar(place, rates[place]["value"], bar, color=colour, marker="s", capsize=3, ls="none")
        for place, rate in enumerate(rates):
            style.note(axes, f"{rate['value']:.1f}", place, rate["ci_high"], (0, 4), ha="center" if place else "right")
        axes.set_xticks(range(len(names)), names)
        axes.margins(x=0.12, y=0.15)
        half = "y" if metric == "length_adjusted_win_rate" else ""
        style.dress(axes, "y", half, xlabel="iteration; band and bars: 95 %", ylabel=label)
    ends = [f"{100 * row['value']:.0f} %" for metric in metrics for row in (sft[metric], iterations[-1][metric])]
    title = f"Length-adjusted, iteration {last} wins {ends[-1]} against SFT"
    if "accuracy" in metrics:
        title = f"Right answers: {ends[0]} after SFT, {ends[1]} after iteration {last}"
    n = iterations[-1]["length_adjusted_win_rate"]["n"]
    return finish(figure, f"{title} (one seed, {n} prompts)", caption)


def proxy_against_gold(runs: Mapping[str, Sequence[Mapping[str, Any]]], judge: str = "gold") -> Figure:
    """Rewards by KL from π₀: run -> `kl` (nats), `proxy` (the RM) and `gold` (the judge), π₀ to the last iteration.

    Where the first rises while the second stalls or falls, the reward model is being over-optimised.
    """
    figure, panels = new_figure(columns=2, height=3.6)
    kinds = {"proxy": "reward of the RM", "gold": f"reward of the {judge} judge"}
    for axes, (kind, name) in zip(panels, kinds.items(), strict=True):
        for index, (label, points) in enumerate(runs.items()):
            kl, values = [point["kl"] for point in points], [point[kind]["value"] for point in points]
            bars = np.hstack([style.error_bar(point[kind]) for point in points])
            axes.errorbar(kl, values, bars, capsize=3, label=label, **style.look_of(label, index))
            style.note(axes, str(len(points) - 1), kl[-1], values[-1], (6, 2))
        axes.margins(0.12)
        style.dress(axes, "both", xlabel="KL from π₀ (nats)", ylabel=name)
    style.legend_above(panels[0])
    label, points = list(runs.items())[-1]
    start = min(1, len(points) - 2)
    rises = {name: points[-1][kind]["value"] - points[start][kind]["value"] for kind, name in kinds.items()}
    said = " and ".join(f"the {name} {'rises' if by > 0 else 'falls'} by {abs(by):.2f}" for name, by in rises.items())
    title = f"{label.capitalize()}: from iteration {start} to {len(points) - 1}, {said}"
    note = "Means over prompts, bars: 95 % intervals. Points: π₀ (KL 0) and each iteration; the last has its number."
    return finish(figure, title, note)


def policy_bars(table: Mapping[str, Mapping[str, Estimate | None]]) -> Figure:
    """One panel per metric, one bar per policy; None where it was not measured. Shares where the metric is in (%)."""
    policies = list(dict.fromkeys(policy for row in table.values() for policy in row))
    figure, panels = new_figure(columns=len(table), height=1.5 + 0.38 * len(policies), sharey=True)
    for axes, (metric, row) in zip(panels, table.items(), strict=True):
        for place, policy in enumerate(policies):
            if score := row.get(policy):
                score = style.percent(score) if "(%)" in metric else score
                axes.barh(place, score["value"], color=style.colour_of(policy, place), height=0.65)
                axes.errorbar(score["value"], place, xerr=style.error_bar(score), color=DARK, lw=1, capsize=2)
                style.note(axes, style.plain(score["value"]), max(score["ci_high"], 0.0), place, (3, 0), va="center")
            else:
                axes.text(0, place, " not measured", va="center", fontsize=8, color=GREY)
        axes.grid(axis="x")
        axes.margins(x=0.45)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(textwrap.fill(metric, 17), loc="left")
    panels[0].set_yticks(range(len(policies)), policies)
    panels[0].invert_yaxis()
    metric, row = next(iter(table.items()))
    best, _ = max(((policy, s) for policy, s in row.items() if s), key=lambda item: float(item[1]["value"]))
    return finish(figure, f"Highest in {metric}: {best}")


def quality_against_length(points: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Right answers, or else length-adjusted win rate, over mean response length: policy -> estimates."""
    figure, [axes] = new_figure(height=3.2)
    metric = "accuracy" if all("accuracy" in point for point in points.values()) else "length_adjusted_win_rate"
    name_of = {"accuracy": "right answers", "length_adjusted_win_rate": "length-adjusted win rate against SFT"}[metric]
    for index, (name, point) in enumerate(points.items()):
        rate, length = style.percent(point[metric]), point["mean_length"]
        bars, colour = (style.error_bar(rate), style.error_bar(length)), style.colour_of(name, index)
        axes.errorbar(length["value"], rate["value"], *bars, marker="o", ms=6, capsize=2, color=colour, ls="none")
        style.note(axes, name, length["value"], rate["value"], (7, 5))
    axes.margins(x=0.2, y=0.15)
    label = "mean response length (characters); bars: 95 %"
    style.dress(axes, "both", xlabel=label, ylabel=f"{name_of} (%)")
    best = max(points, key=lambda name: float(points[name][metric]["value"]))
    wins, characters = 100 * points[best][metric]["value"], points[best]["mean_length"]["value"]
    return finish(figure, f"{best}: highest {name_of}, {wins:.1f} %, with {characters:.0f} characters per answer")
