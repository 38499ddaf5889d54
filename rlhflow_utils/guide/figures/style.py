"""The common look: sizes for a notebook's width, colours that colour-blind readers can tell apart, few lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhflow_utils.guide.tables import cell

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, YELLOW, BROWN, GREY, DARK = "#56B4E9", "#D55E00", "#F0E442", "#8C564B", "#999999", "#333333"
CYCLE = [BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BROWN]
CHOSEN, REJECTED = BLUE, ORANGE
# The same judge or policy has the same colour in every figure; any other name takes the next colour of the cycle.
METHOD_COLOURS = {
    "BT": BLUE, "PM": ORANGE, "PM, mix2": ORANGE, "prompting": GREY, "BT, mix1": PINK, "PM, mix1": BROWN, "mix2": BLUE,
    "mix1": PINK, "BT, public": SKY, "public": SKY, "SFT": GREY, "offline DPO": ORANGE, "iterative DPO": BLUE,
    "no length penalty": RED,
}  # fmt: skip
WIDTH = 8.0  # inches; a notebook's column
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#666666", "axes.axisbelow": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "savefig.facecolor": "white",
}  # fmt: skip

Estimate = Mapping[str, Any]  # {"value", "ci_low", "ci_high", "n"}, as results.json has it


class Picture(Figure):
    """A figure whose text form, which a notebook keeps beside the image, is its title."""

    def __repr__(self) -> str:
        return " ".join(self.get_suptitle().split())


def new_figure(rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of notebook width, closed for pyplot (a notebook shows it once, as the cell's value), and its axes."""
    plt.rcParams.update(STYLE)
    options |= {"figsize": (WIDTH, height), "layout": "constrained", "squeeze": False, "FigureClass": Picture}
    figure, axes = plt.subplots(rows, columns, **options)
    plt.close(figure)
    return figure, list(axes.ravel())


def finish(figure: Figure, title: str, note: str = "") -> Figure:
    """Put the title (what is seen) above and a note below, small."""
    figure.suptitle(textwrap.fill(title, 85, break_on_hyphens=False), x=0.01, ha="left", fontsize=11, fontweight="bold")
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#666666")
    return figure


def colour_of(name: str, index: int) -> str:
    """Colour of a judge or a policy; of any other name, the index-th of the cycle."""
    return METHOD_COLOURS.get(name, CYCLE[index % len(CYCLE)])


def look_of(name: str, index: int) -> dict[str, Any]:
    """The same colour, and a marker for readers who print in grey."""
    return {"color": colour_of(name, index), "marker": "osD^v"[index % 5]}


def cumulative(groups: Mapping[str, np.ndarray], **labels: Any) -> Figure:
    """Share of the values up to each value, a line for each group; dashed: one half, where the medians are."""
    figure, [axes] = new_figure(height=2.9)
    for index, (label, values) in enumerate(groups.items()):
        shares = 100 * np.arange(1, len(values) + 1) / len(values)
        look: dict[str, Any] = {"color": CYCLE[index % len(CYCLE)], "ls": ("-", "--", ":")[index % 3], "lw": 1.8}
        axes.plot(np.sort(values), shares, drawstyle="steps-post", label=label, **look)
    dress(axes, "both", half="y", **labels)
    legend_above(axes)
    return figure


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


def plain(value: float) -> str:
    """A number as a table's cell shows it, with a minus and no hyphen."""
    return cell(float(value)).replace("-", "−")


def legend_above(axes: Axes, ncols: int = 9) -> None:
    """A legend above the axes, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=ncols)
