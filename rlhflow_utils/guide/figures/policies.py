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

Numbers = Sequence[Sequence[float]]  # one list per prompt, one number per response


def response_lengths(lengths: Numbers, temperatures: Numbers, unit: str = "characters", caption: str = "") -> Figure:
    """Lengths of sampled responses, by sampling temperature."""
    values, drawn_at = np.concatenate(lengths).astype(float), np.concatenate(temperatures)
    parts = {temperature: values[drawn_at == temperature] for temperature in np.unique(drawn_at)}
    groups = {f"T = {t:g}: median {np.median(part):.0f}, {len(part)} responses": part for t, part in parts.items()}
    label = f"length of the response ({unit}); dashed: median"
    figure = style.overlaid(groups, bins=50, xlabel=label, ylabel="responses")
    return finish(figure, f"Half of the {len(values)} responses have at most {np.median(values):.0f} {unit}", caption)


def reward_gap_histogram(gaps: Mapping[str, ArrayLike], caption: str = "") -> Figure:
    """Reward gap between chosen and rejected of the built pairs: pairing rule -> gap of each pair."""
    arrays = {name.replace("_", " "): np.asarray(values, dtype=float) for name, values in gaps.items()}
    medians = {name: float(np.median(values)) for name, values in arrays.items()}
    labels = {f"{name}: median {medians[name]:.2f}, {len(values)} pairs": values for name, values in arrays.items()}
    label = "raw reward(chosen) − raw reward(rejected); dashed: median"
    figure = style.overlaid(labels, bins=45, xlabel=label, ylabel="pairs")
    first = next(iter(arrays))
    return finish(figure, f"{first}: half of the pairs differ by {medians[first]:.2f} or more in raw reward", caption)


def pair_length_change(changes: Mapping[str, ArrayLike], unit: str = "characters", caption: str = "") -> Figure:
    """Length of chosen minus length of rejected: right of zero, DPO is shown that longer is better. One panel each."""
    arrays = {name.replace("_", " "): np.asarray(values, dtype=float) for name, values in changes.items()}
    figure, panels = new_figure(len(arrays), height=1.0 + 1.4 * len(arrays), sharey=True, sharex=True)
    edges = np.array(style.edges_through_zero(np.concatenate(list(arrays.values()))))
    edges = edges - (edges[1] - edges[0]) / 2  # equal lengths get a bar of their own, around zero
    for axes, (name, values) in zip(panels, arrays.items(), strict=True):
        signs = {"shorter": values[values < 0], "equal": values[values == 0], "longer": values[values > 0]}
        labels = [f"{sign} {100 * len(part) / len(values):.0f} %" for sign, part in signs.items()]
        axes.hist(list(signs.values()), edges.tolist(), stacked=True, color=[BLUE, GREY, ORANGE], label=labels)
        axes.axvline(values.mean(), color=DARK, lw=1.4, ls="--")
        axes.set(title=f"{name}: mean {values.mean():+.1f}", ylabel="pairs")
        style.legend_right(axes)
    panels[-1].set_xlabel(f"length(chosen) − length(rejected) ({unit})")
    first, values = next(iter(arrays.items()))
    longer = f"longer in {100 * np.mean(values > 0):.0f} % of the pairs"
    return finish(figure, f"{first}: the chosen answer is {longer}", caption)


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
    metrics = {metric: label for metric, label in known.items() if metric in sft}
    figure, panels = new_figure(columns=len(metrics), height=3.2)
    steps = list(range(len(iterations) + 1))
    for axes, (metric, label) in zip(panels, metrics.items(), strict=True):
        rates = [style.percent(row[metric]) for row in (sft, *iterations)]
        style.band(axes, steps, rates, BLUE, "iterative DPO; band: 95 % interval")
        for index, (name, row) in enumerate((others or {}).items()):
            place, shown, colour = (
                steps[-1] + 0.35 * (index + 1),
                style.percent(row[metric]),
                style.colour_of(name, index + 1),
            )
            axes.errorbar(
                place,
                shown["value"],
                style.error_bar(shown),
                label=name,
                color=colour,
                marker="s",
                capsize=3,
                ls="none",
            )
        axes.set_xticks(steps, ["SFT", *map(str, steps[1:])])
        axes.margins(y=0.15)
        style.dress(
            axes, "y", half="y" if metric == "length_adjusted_win_rate" else "", xlabel="iteration", ylabel=label
        )
    panels[-1].legend(loc="lower right")
    ends = [f"{100 * row['value']:.0f} %" for metric in metrics for row in (sft[metric], iterations[-1][metric])]
    title = f"Length-controlled, iteration {steps[-1]} wins {ends[-1]} against SFT"
    if "accuracy" in metrics:
        title = f"Right answers: {ends[0]} after SFT, {ends[1]} after iteration {steps[-1]}"
    return finish(figure, f"{title} (n = {iterations[-1]['length_adjusted_win_rate']['n']})", caption)


def proxy_against_gold(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], judge: str = "gold", caption: str = ""
) -> Figure:
    """Rewards by KL from π₀: run -> `kl` (nats), `proxy` (the RM) and `gold` (the judge), π₀ to the last iteration.

    Where the first rises while the second stalls or falls, the reward model is being over-optimised.
    """
    figure, panels = new_figure(columns=2, height=3.6)
    kinds = {"proxy": "reward of the RM", "gold": f"reward of the {judge} judge"}
    for axes, (kind, name) in zip(panels, kinds.items(), strict=True):
        for colour, (label, points) in zip((BLUE, ORANGE), runs.items(), strict=False):
            kl, values = [point["kl"] for point in points], [point[kind]["value"] for point in points]
            bars = np.hstack([style.error_bar(point[kind]) for point in points])
            axes.errorbar(kl, values, bars, color=colour, marker="o", capsize=3, label=label)
            for step, place in enumerate(zip(kl, values, strict=True)):
                style.note(axes, str(step), *place, (4, 4))
        axes.margins(0.12)
        style.dress(axes, "both", xlabel="KL from π₀ (nats)", ylabel=name)
    panels[0].legend()
    label, points = list(runs.items())[-1]
    rises = [points[-1][kind]["value"] - points[1][kind]["value"] for kind in kinds]
    title = f"{label.capitalize()}, iteration 1 to {len(points) - 1}: RM {rises[0]:+.2f}, {judge} judge {rises[1]:+.2f}"
    return finish(
        figure,
        title,
        f"Means over prompts, bars: 95 % intervals. Numbers at the points: iterations; 0 is π₀.\n{caption}",
    )


def policy_bars(table: Mapping[str, Mapping[str, Estimate | None]], caption: str = "") -> Figure:
    """One panel per metric (with its unit), one bar per policy; None where it was not measured."""
    policies = list(dict.fromkeys(policy for row in table.values() for policy in row))
    figure, panels = new_figure(columns=len(table), height=1.5 + 0.38 * len(policies), sharey=True)
    for axes, (metric, row) in zip(panels, table.items(), strict=True):
        for place, policy in enumerate(policies):
            if score := row.get(policy):
                style.lying_bars(axes, [place], [score], style.colour_of(policy, place), height=0.65)
                style.note(axes, f"{score['value']:.3g}", max(score["ci_high"], 0.0), place, (3, 0), va="center")
            else:
                axes.text(0, place, " not measured", va="center", fontsize=8, color=GREY)
        axes.grid(axis="x")
        axes.margins(x=0.35)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(textwrap.fill(metric, 22), loc="left")
    panels[0].set_yticks(range(len(policies)), policies)
    panels[0].invert_yaxis()
    metric, row = next(iter(table.items()))
    best, score = max(((policy, s) for policy, s in row.items() if s), key=lambda item: float(item[1]["value"]))
    return finish(figure, f"Highest {metric}: {best}, {score['value']:.3g}", caption)


def quality_against_length(points: Mapping[str, Mapping[str, Estimate]], caption: str = "") -> Figure:
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
    label = "mean response length (characters)"
    style.dress(axes, "both", xlabel=label, ylabel=f"{name_of} (%)")
    best = max(points, key=lambda name: float(points[name][metric]["value"]))
    wins, characters = 100 * points[best][metric]["value"], points[best]["mean_length"]["value"]
    title = f"{best}: {wins:.1f} % {name_of}, with {characters:.0f} characters per answer"
    return finish(figure, title, caption)
