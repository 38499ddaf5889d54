"""The common look: sizes for a notebook's width, colours that colour-blind readers can tell apart, few lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BROWN, GREY, DARK = "#56B4E9", "#D55E00", "#F0E442", "#8C564B", "#999999", "#333333"
CYCLE = [BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BROWN]
CHOSEN, REJECTED = BLUE, ORANGE
WIDTH = 8.0  # inches; a notebook's column

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "savefig.facecolor": "white",
}

Estimate = Mapping[str, Any]  # {"value", "ci_low", "ci_high", "n"}, as results.json has it


def new_figure(rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of notebook width and its axes as a flat list (by rows).

    The figure is closed for pyplot at once: a notebook then shows it once, as the cell's value, and nothing piles up.
    """
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


def error_bar(estimate: Estimate) -> list[list[float]]:
    """matplotlib's form of an interval: distances below and above the value."""
    return [
        [max(0.0, estimate["value"] - estimate["ci_low"])],
        [max(0.0, estimate["ci_high"] - estimate["value"])],
    ]  # rounding


def percent(estimate: Estimate) -> dict[str, float]:
    """The same estimate in percent."""
    return {key: 100 * estimate[key] for key in ("value", "ci_low", "ci_high")}


def edges_through_zero(values: np.ndarray) -> list[float]:
    """Histogram edges with zero among them, so that no bar holds both signs; whole steps for whole numbers."""
    step = max((values.max() - values.min()) / 40, 1e-9)
    if (values == np.round(values)).all():
        step = math.ceil(step)
    return [step * k for k in range(math.floor(values.min() / step), math.ceil(values.max() / step) + 2)]


def readable(count: float) -> str:
    """1234567 as ``1.2M``, 12345 as ``12.3k``, 999 as ``999``."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(count) >= limit:
            return f"{count / (1e6 if unit == 'M' else 1e3):.1f}{unit}"
    return f"{count:.0f}"


def fill(index: int) -> dict[str, Any]:
    """Colour of the index-th of many categories; beyond eight the colours repeat, hatched."""
    return {"color": CYCLE[index % len(CYCLE)], "hatch": "////" if index >= len(CYCLE) else None, "edgecolor": "white"}


def legend_right(axes: Axes, **options: Any) -> Legend:
    """A legend beside the axes, where it covers nothing."""
    return axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **options)
