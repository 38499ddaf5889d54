"""The common look: sizes for a notebook's width, colours that colour-blind readers can tell apart, few lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BROWN, GREY, DARK = "#56B4E9", "#D55E00", "#F0E442", "#8C564B", "#999999", "#333333"
CYCLE = [BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BROWN]
CHOSEN, REJECTED = BLUE, ORANGE
# The same judge or policy has the same colour in every figure; any other name takes the next colour of the cycle.
METHOD_COLOURS = {
    "bt": BLUE, "pm": ORANGE, "prompting": GREY, "bt_mix1": PINK, "pm_mix1": BROWN, "mix2": BLUE, "mix1": PINK,
    "SFT": GREY, "offline DPO": ORANGE, "iterative DPO": BLUE, "no length penalty": RED,
}  # fmt: skip
WIDTH = 8.0  # inches; a notebook's column
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666", "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "savefig.facecolor": "white",
}  # fmt: skip

Estimate = Mapping[str, Any]  # {"value", "ci_low", "ci_high", "n"}, as results.json has it


def new_figure(rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of notebook width, closed for pyplot (a notebook shows it once, as the cell's value), and its axes."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options)
    plt.close(figure)
    return figure, list(axes.ravel())


def finish(figure: Figure, title: str, caption: str) -> Figure:
    """Put the title (what is seen) above and the caption (where it comes from) below."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    if caption:
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="#666666")
    return figure


def colour_of(name: str, index: int) -> str:
    """Colour of a judge or a policy; of any other name, the index-th of the cycle."""
    return METHOD_COLOURS.get(name, CYCLE[index % len(CYCLE)])


def overlaid(groups: Mapping[str, np.ndarray], bins: int, **labels: Any) -> Figure:
    """Histograms over each other, each an outline, lightly filled; dashed: medians. Group -> values."""
    figure, [axes] = new_figure(height=2.9)
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=bins).tolist()
    for colour, (label, values) in zip(CYCLE, groups.items(), strict=False):
        axes.hist(values, edges, color=colour, alpha=0.2)
        axes.hist(values, edges, histtype="step", color=colour, lw=1.6, label=label)
        axes.axvline(np.median(values), color=colour, lw=1.4, ls="--")
    axes.set(**labels)
    axes.legend()
    return figure


def stacked(counts: pd.DataFrame, height: float, title: str | None = None) -> tuple[Figure, Axes]:
    """Bars of 100 %, one per row: the shares of its columns. `kept` is grey; beyond eight, colours repeat, hatched."""
    figure, [axes] = new_figure(height=height)
    shares, left = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0), np.zeros(len(counts))
    for index, (name, share) in enumerate(shares.items(), -("kept" in shares)):  # `kept` is the first
        coloured = {"color": CYCLE[index % len(CYCLE)], "hatch": "////" if index >= len(CYCLE) else None}
        look: dict[str, Any] = {"color": "#cfd8dc"} if name == "kept" else {**coloured, "edgecolor": "white"}
        axes.barh(list(counts.index), share, left=left, label=str(name).replace("_", " "), lw=0.6, **look)
        left += share
    axes.invert_yaxis()
    axes.set(xlim=(0, 100))
    axes.tick_params(axis="y", length=0)
    legend_right(axes, title=title)
    return figure, axes


def band(axes: Axes, steps: Any, rows: Sequence[Estimate], colour: str, label: str = "", decimals: int = 1) -> None:
    """A line of estimates with its confidence band and the value above each point."""
    values, low, high = ([row[key] for row in rows] for key in ("value", "ci_low", "ci_high"))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2)
    axes.plot(steps, values, color=colour, marker="o", lw=2, label=label)
    for step, value, top in zip(steps, values, high, strict=True):
        note(axes, f"{value:.{decimals}f}", step, top, (0, 4), ha="center")


def note(axes: Axes, text: str, x: float, y: float, shift: tuple[float, float], **options: Any) -> None:
    """A small text beside a point, shifted by so many points."""
    axes.annotate(text, (x, y), shift, textcoords="offset points", fontsize=8, **options)


def error_bar(estimate: Estimate) -> list[list[float]]:
    """matplotlib's form of an interval: distances below and above the value, never negative by rounding."""
    value, low, high = estimate["value"], estimate["ci_low"], estimate["ci_high"]
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def percent(estimate: Estimate) -> dict[str, float]:
    """The same estimate in percent."""
    return {key: 100 * estimate[key] for key in ("value", "ci_low", "ci_high")}


def edges_through_zero(values: np.ndarray) -> list[float]:
    """Histogram edges with zero among them, so that no bar holds both signs; whole steps for whole numbers."""
    step = max((values.max() - values.min()) / 40, 1e-9)
    step = math.ceil(step) if (values == np.round(values)).all() else step
    return [step * k for k in range(math.floor(values.min() / step), math.ceil(values.max() / step) + 2)]


def short_count(count: float) -> str:
    """1234567 as ``1.2M``, 12345 as ``12.3k``, 999 as ``999``."""
    size = abs(count)
    return f"{count:.0f}" if size < 1e4 else f"{count / 1e3:.1f}k" if size < 1e6 else f"{count / 1e6:.1f}M"


def dress(axes: Axes, grid: Literal["x", "y", "both"] | None = None, half: str = "", **labels: Any) -> None:
    """Grid lines, a dashed line at 50 % (`half`: across "x" or "y"), and labels and limits."""
    if grid:
        axes.grid(axis=grid)
    if half:
        (axes.axvline if half == "x" else axes.axhline)(50, color=GREY, lw=1, ls="--")
    axes.set(**labels)


def lying_bars(axes: Axes, places: Sequence[float], rows: Sequence[Estimate], colour: str, **options: Any) -> None:
    """Horizontal bars of estimates with their intervals."""
    values = [row["value"] for row in rows]
    axes.barh(places, values, color=colour, **options)
    axes.errorbar(values, places, xerr=np.hstack([error_bar(r) for r in rows]), color=DARK, lw=1, capsize=2, ls="none")


def legend_right(axes: Axes, **options: Any) -> Legend:
    """A legend beside the axes, where it covers nothing."""
    return axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **options)
