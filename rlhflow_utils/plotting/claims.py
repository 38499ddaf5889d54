"""Figures of the claims (chapters 11 and 12), drawn from `results/claims/*.json`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhflow_utils.plotting.style import BLUE, CYCLE, DARK, GREEN, GREY, ORANGE, RED, error_bar, finish, new_figure

Record = Mapping[str, Any]
LEGEND = (
    "Bars: 95 % intervals of the differences; ticks: seeds; ×: the margin of “no worse” and “near equal”.\n"
    "Green: holds. Red: does not. Orange: open. Grey: shown only. A dot without a bar: a mean without an interval."
)
# Start of a metric's name -> what is on its axis; the rest are shares of prompts or pairs.
UNITS = {
    "length_correlation": "Pearson correlation of length and reward", "length": "characters",
    "proxy": "proxy reward", "gold": "gold reward", "best_iteration": "iteration of the highest gold reward",
    "slack": "KL below its bound (nats)",
}  # fmt: skip
SHARE = "share of prompts or pairs (0.1: ten points)"
COLOURS = {"holds": GREEN, "does not hold": RED, "inconclusive": ORANGE, None: GREY}


def claim_forest(records: Sequence[Record], caption: str = "") -> Figure:
    """Every comparison of some claims: the mean over seeds with its interval, each seed as a small mark.

    One panel per claim and unit; the colour is the comparison's verdict, grey where it has no say.

    Args:
        records: of `results/claims/`.
        caption: line below the figure.
    """
    blocks = [block for record in records for block in _by_unit(record)]
    heights = [len(block["parts"]) + 2.2 for block in blocks]
    figure, panels = new_figure(len(blocks), height=0.6 + 0.3 * sum(heights), gridspec_kw={"height_ratios": heights})
    for axes, block in zip(panels, blocks, strict=True):
        _forest_panel(axes, block)
    tally = Counter(record["verdict"] for record in records)
    title = f"{len(records)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in tally.items())
    if all(record["seeds"] == 1 for record in records):
        title = "One seed: the intervals cover the choice of prompts alone"
    return finish(figure, title, f"{LEGEND}\n{caption}")


def _by_unit(record: Record) -> list[Record]:
    """A claim's comparisons, those in other units apart: on one axis they would hide the others."""
    units: dict[str, list[Any]] = {}
    for part in record["parts"]:
        unit = next((unit for start, unit in UNITS.items() if part["metric"].startswith(start)), SHARE)
        units.setdefault(unit, []).append(part)
    return [{**record, "parts": parts, "unit": unit} for unit, parts in units.items()]


def _forest_panel(axes: Axes, record: Record) -> None:
    axes.axvline(0, color=DARK, lw=1)
    for place, part in enumerate(record["parts"]):
        colour = COLOURS[part["verdict"]]
        is_interval = part["metric"] != "best_iteration"  # a number from 0 to 3 has no t interval
        sides_of_bar = error_bar({**part, "value": part["effect"]}) if is_interval else None
        axes.errorbar(part["effect"], place, xerr=sides_of_bar, color=colour, marker="o", capsize=3, lw=1.8)
        seeds = list(part["per_seed"].values())
        axes.plot(seeds, [place + 0.22] * len(seeds), ls="none", marker="|", ms=5, color=GREY)
        if part["kind"] in ("no_worse", "near_equal"):
            sides = [-part["margin"]] if part["kind"] == "no_worse" else [-part["margin"], part["margin"]]
            axes.plot(sides, [place] * len(sides), ls="none", marker="x", ms=5, color=DARK)
    axes.set_yticks(range(len(record["parts"])), [part["part"] for part in record["parts"]])
    axes.set_ylim(len(record["parts"]) - 0.4, -0.6)
    axes.grid(axis="x")
    title = f"{record['claim']} · {record['title']}: {record['verdict']} (seeds: {record['seeds']})"
    axes.set_title(textwrap.fill(title, 90), loc="left")
    axes.set_xlabel(record["unit"], fontsize=8)


def claim_curves(record: Record, arms: Mapping[str, str], caption: str = "") -> Figure:
    """How proxy and gold reward change over the iterations, arm by arm; thin lines are seeds, thick ones their mean.

    A reward model's zero is arbitrary, so the proxy starts from iteration 1; the gold reward starts from SFT.

    Args:
        record: of claim l.
        arms: arm -> its name in the legend.
        caption: line below the figure.
    """
    figure, panels = new_figure(columns=2, height=3.8)
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
    legend = (
        "Thin: seeds; thick: their mean. The proxy is the reward of the arm's own RM, counted from iteration 1, since\n"
        "a reward model's zero is arbitrary: compare directions, not heights. With λ the loop raises that reward less\n"
        "λ for each character. Gold counts from SFT."
    )
    title = f"Proxy and gold reward over the iterations (claim l: {record['verdict']})"
    return finish(figure, title, f"{legend}\n{caption}")


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
    figure, [axes] = new_figure(height=3.2)
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
    title = f"From {x[0]:g} % to all pairs: accuracy {mean[0]:.1f} to {mean[-1]:.1f} %"
    return finish(figure, title, f"Thin: seeds; thick: their mean.\n{caption}")
