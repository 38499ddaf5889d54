"""Figures about pairs, policies and the whole run (chapters 08 to 12)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from rlhflow_utils.guide.figures.style import (
    BLUE,
    CYCLE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    Estimate,
    edges_through_zero,
    error_bar,
    finish,
    legend_right,
    new_figure,
    percent,
)


def response_lengths(
    lengths: Sequence[Sequence[float]],
    temperatures: Sequence[Sequence[float]],
    unit: str = "characters",
    caption: str = "",
) -> Figure:
    """Lengths of sampled responses, by sampling temperature.

    Args:
        lengths: one list per prompt, one length per response.
        temperatures: the temperature each of them was sampled at, in the same form.
        unit: of the lengths.
        caption: line below the figure.
    """
    values = np.array([length for row in lengths for length in row], dtype=float)
    drawn_at = np.array([temperature for row in temperatures for temperature in row], dtype=float)
    figure, [axes] = new_figure(height=2.9)
    edges = np.histogram_bin_edges(values, bins=50).tolist()
    for colour, temperature in zip(CYCLE, sorted(set(drawn_at.tolist())), strict=False):
        part = values[drawn_at == temperature]
        label = f"T = {temperature:g}: median {np.median(part):.0f}, {len(part)} responses"
        axes.hist(part, edges, color=colour, alpha=0.2)
        axes.hist(part, edges, histtype="step", color=colour, lw=1.6, label=label)
    axes.grid(axis="y")
    axes.set(xlabel=f"length of the response ({unit})", ylabel="responses")
    axes.legend()
    return finish(figure, f"Half of the {len(values)} responses have at most {np.median(values):.0f} {unit}", caption)


def reward_gap_histogram(gaps: Mapping[str, ArrayLike], caption: str = "") -> Figure:
    """Reward gap between chosen and rejected of the built pairs, for one or several pairing rules.

    Args:
        gaps: rule (for example best_vs_worst, random) -> gap of each pair.
        caption: line below the figure.
    """
    figure, [axes] = new_figure(height=2.9)
    arrays = {name: np.asarray(values, dtype=float) for name, values in gaps.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=45).tolist()
    for index, (name, values) in enumerate(arrays.items()):
        label = f"{name.replace('_', ' ')}: median {np.median(values):.2f}, {len(values)} pairs"
        axes.hist(values, edges, color=CYCLE[index], alpha=0.2)
        axes.hist(values, edges, histtype="step", color=CYCLE[index], lw=1.6, label=label)
        axes.axvline(np.median(values), color=CYCLE[index], lw=1.4, ls="--")
    axes.grid(axis="y")
    axes.set(xlabel="raw reward(chosen) − raw reward(rejected); dashed: median", ylabel="pairs")
    axes.legend()
    first, values = next(iter(arrays.items()))
    title = f"{first.replace('_', ' ')}: half of the pairs differ by {np.median(values):.2f} or more in raw reward"
    return finish(figure, title, caption)


def pair_length_change(changes: Mapping[str, ArrayLike], unit: str = "characters", caption: str = "") -> Figure:
    """Length of chosen minus length of rejected: right of zero, DPO is shown that longer is better.

    Args:
        changes: panel (for example lambda = 0 and the penalised rule) -> difference of each pair.
        unit: of the lengths.
        caption: line below the figure.
    """
    arrays = {name: np.asarray(values, dtype=float) for name, values in changes.items()}
    figure, panels = new_figure(len(arrays), height=1.0 + 1.4 * len(arrays), sharey=True, sharex=True)
    edges = edges_through_zero(np.concatenate(list(arrays.values())))
    half = (edges[1] - edges[0]) / 2
    edges = [edge - half for edge in edges]  # equal lengths get a bar of their own, around zero
    for axes, (name, values) in zip(panels, arrays.items(), strict=True):
        signs = {"shorter": values[values < 0], "equal": values[values == 0], "longer": values[values > 0]}
        labels = [f"{sign} {100 * len(part) / len(values):.0f} %" for sign, part in signs.items()]
        axes.hist(list(signs.values()), edges, stacked=True, color=[BLUE, GREY, ORANGE], label=labels)
        axes.axvline(values.mean(), color=DARK, lw=1.4, ls="--")
        axes.set(title=f"{name.replace('_', ' ')}: mean {values.mean():+.1f}", ylabel="pairs")
        legend_right(axes)
    panels[-1].set_xlabel(f"length(chosen) − length(rejected) ({unit})")
    first, values = next(iter(arrays.items()))
    share = 100 * np.mean(values > 0)
    title = f"{first.replace('_', ' ')}: the chosen answer is longer in {share:.0f} % of the pairs"
    return finish(figure, title, caption)


def win_rate_over_iterations(
    iterations: Sequence[Estimate],
    judge: str = "gold",
    others: Mapping[str, Estimate] | None = None,
    caption: str = "",
) -> Figure:
    """Win rate against SFT after each iteration, with its confidence band.

    Args:
        iterations: one estimate per iteration, the first of them for iteration 1.
        judge: who judged.
        others: further policies (offline DPO) -> estimate, drawn as marks beside the line.
        caption: line below the figure.
    """
    figure, [axes] = new_figure(height=3.2)
    steps = list(range(len(iterations) + 1))
    start = {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5}  # SFT against itself: a tie on every prompt
    curves = {key: [100 * row[key] for row in [start, *iterations]] for key in ("value", "ci_low", "ci_high")}
    axes.fill_between(
        steps, curves["ci_low"], curves["ci_high"], color=BLUE, alpha=0.2, label="95 % interval, over prompts"
    )
    axes.plot(steps, curves["value"], color=BLUE, marker="o", lw=2, label="iterative DPO")
    for step, value, high in zip(steps[1:], curves["value"][1:], curves["ci_high"][1:], strict=True):
        axes.annotate(f"{value:.1f}", (step, high), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    for index, (name, row) in enumerate((others or {}).items()):
        shown = percent(row)
        look: dict[str, Any] = {"color": CYCLE[index + 1], "marker": "s", "capsize": 3, "ls": "none"}
        axes.errorbar(steps[-1] + 0.35 * (index + 1), shown["value"], error_bar(shown), label=name, **look)
    axes.axhline(50, color=GREY, lw=1, ls="--")
    axes.set_xticks(steps, ["SFT", *[f"iteration {step}" for step in steps[1:]]])
    axes.grid(axis="y")
    axes.margins(y=0.15)
    axes.set(ylabel=f"win rate against SFT (%)\njudge: {judge.replace('_', ' ')}")
    axes.legend(loc="upper left")
    last = curves["value"][-1]
    title = f"After iteration {steps[-1]} the policy wins {last:.1f} % against SFT (n = {iterations[-1]['n']})"
    return finish(figure, title, caption)


def proxy_against_gold(
    labels: Sequence[str], proxy: Sequence[Estimate], gold: Sequence[Estimate], caption: str = ""
) -> Figure:
    """Proxy reward (what training optimises) and gold reward (what is wanted), policy by policy.

    Where the first rises while the second stalls or falls, the reward model is being over-optimised.

    Args:
        labels: SFT, iteration 1, ...
        proxy: mean of what ranks the training pairs, r − λ|a|, of each policy.
        gold: the judge's mean reward of each policy.
        caption: line below the figure.
    """
    figure, [top, bottom] = new_figure(rows=2, height=4.2, sharex=True)
    steps = range(len(labels))
    for axes, rows, colour, name in (
        (top, proxy, ORANGE, "proxy reward, r − λ|a|"),
        (bottom, gold, GREEN, "gold reward"),
    ):
        values = [row["value"] for row in rows]
        axes.fill_between(steps, [r["ci_low"] for r in rows], [r["ci_high"] for r in rows], color=colour, alpha=0.2)
        axes.plot(steps, values, color=colour, marker="o", lw=2)
        for step, value in zip(steps, values, strict=True):
            axes.annotate(f"{value:.2f}", (step, value), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.grid(axis="y")
        axes.margins(y=0.3)
        axes.set_ylabel(f"{name}\n(mean; band: 95 %)")
    bottom.set_xticks(steps, list(labels))
    taken = [rows[-1]["value"] - rows[-2]["value"] for rows in (proxy, gold)]
    title = f"From {labels[-2]} to {labels[-1]}: proxy reward {taken[0]:+.2f}, gold reward {taken[1]:+.2f}"
    return finish(figure, title, caption)


def policy_bars(table: Mapping[str, Mapping[str, Estimate | None]], caption: str = "") -> Figure:
    """One panel per metric, one bar per policy.

    Args:
        table: metric (with its unit) -> policy -> estimate, or None where it was not measured.
        caption: line below the figure.
    """
    policies = list(dict.fromkeys(policy for row in table.values() for policy in row))
    figure, panels = new_figure(columns=len(table), height=1.5 + 0.38 * len(policies), sharey=True)
    for axes, (metric, row) in zip(panels, table.items(), strict=True):
        for place, policy in enumerate(policies):
            score = row.get(policy)
            if score is None:
                axes.text(0, place, " not measured", va="center", fontsize=8, color=GREY)
                continue
            axes.barh(place, score["value"], color=CYCLE[place % len(CYCLE)], height=0.65, alpha=0.85)
            axes.errorbar(score["value"], place, xerr=error_bar(score), color=DARK, lw=1, capsize=2)
            end = max(score["ci_high"], 0.0)
            text = f"{score['value']:.3g}"
            axes.annotate(text, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.grid(axis="x")
        axes.margins(x=0.35)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(textwrap.fill(metric, 22), loc="left")
    panels[0].set_yticks(range(len(policies)), policies)
    panels[0].invert_yaxis()
    metric, row = next(iter(table.items()))
    best, score = max(((policy, s) for policy, s in row.items() if s), key=lambda item: float(item[1]["value"]))
    return finish(figure, f"Highest {metric}: {best}, {score['value']:.3g}", caption)


def win_rate_against_length(points: Mapping[str, Mapping[str, Any]], caption: str = "") -> Figure:
    """Win rate over mean response length: does a policy win by being right or by being long?

    Args:
        points: policy -> `win_rate` (estimate) and `mean_length` (estimate, characters).
        caption: line below the figure.
    """
    figure, [axes] = new_figure(height=3.2)
    for index, (name, point) in enumerate(points.items()):
        rate, length = percent(point["win_rate"]), point["mean_length"]
        look: dict[str, Any] = {"marker": "o", "ms": 6, "capsize": 2, "color": CYCLE[index % len(CYCLE)], "ls": "none"}
        axes.errorbar(length["value"], rate["value"], error_bar(rate), error_bar(length), **look)
        axes.annotate(name, (length["value"], rate["value"]), (7, 5), textcoords="offset points", fontsize=8)
    axes.axhline(50, color=GREY, lw=1, ls="--")
    axes.grid()
    axes.margins(x=0.2, y=0.15)
    axes.set(xlabel="mean response length (characters)", ylabel="win rate against SFT (%)")
    best = max(points, key=lambda name: float(points[name]["win_rate"]["value"]))
    wins, characters = percent(points[best]["win_rate"])["value"], points[best]["mean_length"]["value"]
    title = f"Highest win rate: {best}, {wins:.1f} % with {characters:.0f} characters per answer"
    return finish(figure, title, caption)


def chapter_times(seconds: Mapping[str, float], caption: str = "") -> Figure:
    """Wall time of each chapter.

    Args:
        seconds: chapter -> wall seconds.
        caption: line below the figure (the machine).
    """
    figure, [axes] = new_figure(height=1.2 + 0.26 * len(seconds))
    bars = axes.barh(list(seconds), list(seconds.values()), color=BLUE, height=0.7)
    axes.bar_label(bars, [f"{value:.0f} s" for value in seconds.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.margins(x=0.1)
    axes.set(xlabel="wall time (s)")
    total = sum(seconds.values())
    slowest = max(seconds, key=lambda name: seconds[name])
    share = 100 * seconds[slowest] / max(total, 1e-9)
    span = f"Chapters {min(seconds)[:2]} to {max(seconds)[:2]} took {total / 60:.1f} minutes"
    return finish(figure, f"{span}; {slowest} took {share:.0f} % of them", caption)
