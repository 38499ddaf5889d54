"""Figures of the claims (chapters 11 and 12), drawn from `results/claims/*.json`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhflow_utils.plotting.style import BLUE, CYCLE, DARK, GREEN, GREY, ORANGE, RED, error_bar, finish, new_figure

Record = Mapping[str, Any]
LEGEND = (
    "Bars: 95 % intervals of the differences; ticks: seeds; ×: the margin of “no worse” and “near equal”.\n"
    "Green: holds. Red: does not. Orange: open. Grey: shown only."
)
COLOURS = {"holds": GREEN, "does not hold": RED, "inconclusive": ORANGE, None: GREY}


def claim_forest(records: Sequence[Record], caption: str = "") -> Figure:
    """Every comparison of some claims: the mean over seeds with its interval, each seed as a small mark.

    One panel per claim, since their units differ; the colour is the comparison's verdict, grey where it has no say.

    Args:
        records: of `results/claims/`.
        caption: line below the figure.
    """
    blocks = [block for record in records for block in _by_unit(record)]
    heights = [len(block["parts"]) + 1.6 for block in blocks]
    figure, panels = new_figure(len(blocks), height=0.6 + 0.3 * sum(heights), gridspec_kw={"height_ratios": heights})
    for axes, block in zip(panels, blocks, strict=True):
        _forest_panel(axes, block)
    holds = sum(record["verdict"] == "holds" for record in records)
    title = f"{holds} of {len(records)} claims of this family hold"
    return finish(figure, title, f"{LEGEND}\n{caption}")


def _by_unit(record: Record) -> list[Record]:
    """A claim's comparisons, those in other units apart: on one axis they would hide the others."""
    units: dict[str, list[Any]] = {}
    for part in record["parts"]:
        unit = {"length@": "characters", "proxy_g": "proxy reward", "best_it": "iterations"}.get(part["metric"][:7], "")
        units.setdefault(unit, []).append(part)
    return [{**record, "parts": parts, "unit": unit} for unit, parts in units.items()]


def _forest_panel(axes: Axes, record: Record) -> None:
    axes.axvline(0, color=DARK, lw=1)
    for place, part in enumerate(record["parts"]):
        colour = COLOURS[part["verdict"]]
        sides_of_bar = error_bar({**part, "value": part["effect"]})
        axes.errorbar(part["effect"], place, xerr=sides_of_bar, color=colour, marker="o", capsize=3, lw=1.8)
        seeds = list(part["per_seed"].values())
        axes.plot(seeds, [place + 0.22] * len(seeds), ls="none", marker="|", ms=5, color=GREY)
        if part["kind"] in ("no_worse", "near_equal"):
            sides = [-part["margin"]] if part["kind"] == "no_worse" else [-part["margin"], part["margin"]]
            axes.plot(sides, [place] * len(sides), ls="none", marker="x", ms=5, color=DARK)
    axes.set_yticks(range(len(record["parts"])), [part["part"] for part in record["parts"]])
    axes.set_ylim(len(record["parts"]) - 0.4, -0.6)
    axes.grid(axis="x")
    unit = f", in {record['unit']}" if record["unit"] else ""
    title = f"{record['claim']} · {record['title']}: {record['verdict']} (seeds: {record['seeds']}){unit}"
    axes.set_title(textwrap.fill(title, 80), loc="left")


def claim_curves(record: Record, arms: Mapping[str, str], caption: str = "") -> Figure:
    """How proxy and gold reward change over the iterations, arm by arm; thin lines are seeds, thick ones their mean.

    A reward model's zero is arbitrary, so the proxy starts from iteration 1; the gold reward starts from SFT.

    Args:
        record: of claim l.
        arms: arm -> its name in the legend.
        caption: line below the figure.
    """
    figure, panels = new_figure(columns=2, height=3.2)
    labels = {"proxy": "proxy reward since iteration 1", "gold": "gold reward since SFT"}
    for axes, (metric, label_y) in zip(panels, labels.items(), strict=True):
        for colour, (arm, label) in zip(CYCLE, arms.items(), strict=False):
            seeds = [_curve(values, metric) for values in record["arms"][arm].values()]
            steps = list(range(1, len(seeds[0]) + 1))
            if metric == "gold":
                seeds = [[sft["gold"], *c] for sft, c in zip(record["arms"]["sft"].values(), seeds, strict=True)]
                steps = [0, *steps]
            seeds = [[value - curve[0] for value in curve] for curve in seeds]
            for curve in seeds:
                axes.plot(steps, curve, color=colour, lw=0.7, alpha=0.5)
            mean = [sum(values) / len(values) for values in zip(*seeds, strict=True)]
            axes.plot(steps, mean, color=colour, lw=2.2, marker="o", label=label)
        axes.set_xticks(steps)
        axes.set(xlabel="iteration", ylabel=label_y)
        axes.grid(axis="y")
    panels[1].legend()
    return finish(figure, f"{record['title']}: {record['verdict']}", f"Thin: seeds; thick: their mean.\n{caption}")


def _curve(values: Mapping[str, float], metric: str) -> list[float]:
    """The metric's values at iterations 1, 2, ..."""
    steps = sorted(int(key.partition("@")[2]) for key in values if key.startswith(f"{metric}@"))
    return [values[f"{metric}@{step}"] for step in steps]


def claim_sizes(record: Record, shares: Mapping[str, float], caption: str = "") -> Figure:
    """RM accuracy on clean held-out pairs against the share of the mixture that trained it, seed by seed.

    Args:
        record: of the check `sizes`.
        shares: arm -> share of the main mixture.
        caption: line below the figure.
    """
    figure, [axes] = new_figure(height=2.8)
    arms = sorted(shares, key=lambda arm: shares[arm])
    seeds = list(record["arms"][arms[0]])
    curves = [[100 * record["arms"][arm][seed]["accuracy"] for arm in arms] for seed in seeds]
    x = [100 * shares[arm] for arm in arms]
    for curve in curves:
        axes.plot(x, curve, color=BLUE, lw=0.7, alpha=0.5)
    mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
    axes.plot(x, mean, color=BLUE, lw=2.2, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.grid()
    axes.set(xlabel="share of the mixture's pairs (%)", ylabel="accuracy, clean labels (%)")
    return finish(figure, f"From {x[0]:g} % to all pairs: accuracy {mean[0]:.1f} to {mean[-1]:.1f} %", caption)
