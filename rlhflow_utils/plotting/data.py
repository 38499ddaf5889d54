"""Figures about the preference data (chapter 01)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlhflow_utils.plotting.style import (
    CHOSEN,
    CYCLE,
    DARK,
    REJECTED,
    fill,
    finish,
    legend_right,
    new_figure,
    readable,
)


def funnel(counts: Mapping[str, Mapping[str, Any]], caption: str = "") -> Figure:
    """Where each source's pairs went: kept, or dropped and why, in percent of the source.

    Args:
        counts: source -> `rows_in`, `rows_out` and `dropped` (reason -> pairs), as a stage accounts for them.
        caption: line below the figure.
    """
    sources = list(counts)
    reasons = sorted({reason for row in counts.values() for reason, n in row["dropped"].items() if n})
    total_in = sum(row["rows_in"] for row in counts.values())
    total_out = sum(row["rows_out"] for row in counts.values())
    figure, [axes] = new_figure(height=1.3 + 0.3 * max(len(sources), 0.6 * len(reasons)))
    left = np.zeros(len(sources))
    for position, reason in enumerate(["kept", *reasons]):
        rows = [row["rows_out"] if reason == "kept" else row["dropped"].get(reason, 0) for row in counts.values()]
        share = np.array([100 * n / max(row["rows_in"], 1) for n, row in zip(rows, counts.values(), strict=True)])
        look = {"color": "#cfd8dc"} if reason == "kept" else fill(position - 1)
        axes.barh(sources, share, left=left, label=reason.replace("_", " "), lw=0.5, **look)
        left += share
    for index, row in enumerate(counts.values()):
        text = f"{readable(row['rows_in'])} → {readable(row['rows_out'])}"
        axes.text(1.5, index, text, va="center", fontsize=8, color=DARK)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="pairs of the source (%); numbers: pairs in → pairs kept")
    axes.tick_params(axis="y", length=0)
    legend_right(axes, title="reason")
    lost = 100 * (1 - total_out / max(total_in, 1))
    return finish(figure, f"Filtering drops {lost:.1f} % of {readable(total_in)} pairs", caption)


def length_distributions(
    lengths: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "tokens", caption: str = ""
) -> Figure:
    """Lengths of chosen and rejected answers of each source: quartiles, 5 % to 95 %, and the mean (dot).

    Args:
        lengths: source -> `chosen` and `rejected`, one length per pair.
        unit: of the lengths.
        caption: line below the figure.
    """
    sources = list(lengths)
    figure, [axes] = new_figure(height=1.3 + 0.42 * len(sources))
    for shift, side, colour in ((-0.19, "chosen", CHOSEN), (0.19, "rejected", REJECTED)):
        axes.boxplot(
            [lengths[source][side] for source in sources],
            positions=[index + shift for index in range(len(sources))],
            widths=0.32, orientation="horizontal", whis=(5, 95), showfliers=False, showmeans=True,
            patch_artist=True, label=side, manage_ticks=False,
            boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.55}, medianprops={"color": "black"},
            whiskerprops={"color": colour}, capprops={"color": colour},
            meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4},
        )  # fmt: skip
    longer = sum(np.mean(row["chosen"]) > np.mean(row["rejected"]) for row in lengths.values())
    axes.set_yticks(range(len(sources)), sources)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set(xlabel=f"length of the answer ({unit}); box: quartiles, whiskers: 5 to 95 %, dot: mean")
    legend_right(axes)
    return finish(figure, f"Chosen answers are longer on average in {longer} of {len(sources)} sources", caption)


def mixture_composition(mixtures: Mapping[str, Mapping[str, int]], caption: str = "") -> Figure:
    """Which sources each mixture is made of.

    Args:
        mixtures: mixture -> source -> pairs.
        caption: line below the figure.
    """
    sources = list(dict.fromkeys(source for rows in mixtures.values() for source in rows))
    figure, [axes] = new_figure(height=max(1.2 + 0.5 * len(mixtures), 0.9 + 0.18 * len(sources)))
    left = np.zeros(len(mixtures))
    totals = np.array([max(sum(rows.values()), 1) for rows in mixtures.values()])
    labels = [f"{name}\n{readable(total)} pairs" for name, total in zip(mixtures, totals, strict=True)]
    for index, source in enumerate(sources):
        share = 100 * np.array([rows.get(source, 0) for rows in mixtures.values()]) / totals
        axes.barh(labels, share, left=left, label=source, lw=0.8, **fill(index))
        for row in np.flatnonzero(share >= 6):
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.2}
            middle = left[row] + share[row] / 2
            axes.text(middle, row, f"{share[row]:.0f} %", ha="center", va="center", fontsize=8, bbox=box)
        left += share
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 100), xlabel="share of the pairs (%)")
    legend_right(axes)
    names = " and ".join(f"{name} from {sum(n > 0 for n in rows.values())}" for name, rows in mixtures.items())
    return finish(figure, f"What the mixtures are made of: {names} sources", caption)


def length_agreement(lengths: Mapping[str, Mapping[str, Sequence[float]]], caption: str = "") -> Figure:
    """How often the chosen answer is the longer one, by source; two answers of one length count one half.

    Args:
        lengths: source -> `chosen` and `rejected`, one length in characters per pair.
        caption: line below the figure.
    """
    outcomes = {}
    for source, sides in lengths.items():
        chosen, rejected = np.asarray(sides["chosen"]), np.asarray(sides["rejected"])
        outcomes[source] = 100 * ((chosen > rejected) + 0.5 * (chosen == rejected))
    sources = sorted(outcomes, key=lambda source: float(outcomes[source].mean()))
    shares = np.array([outcomes[source].mean() for source in sources])
    errors = np.array([1.96 * outcomes[source].std() / np.sqrt(len(outcomes[source])) for source in sources])
    figure, [axes] = new_figure(height=1.2 + 0.3 * len(sources))
    colours = [CHOSEN if share >= 50 else REJECTED for share in shares]
    axes.barh(sources, shares - 50, left=50, color=colours, alpha=0.75)
    axes.errorbar(shares, sources, xerr=errors, fmt="none", ecolor=DARK, capsize=2, lw=1)
    axes.axvline(50, color=DARK, lw=1)
    axes.set(xlim=(0, 100), xlabel="chosen answer has more characters (%), equal: ½; whiskers: 95 %")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    longer, shorter = int((shares - errors > 50).sum()), int((shares + errors < 50).sum())
    title = f"Labels lean to the longer answer in {longer} of {len(sources)} bars, to the shorter in {shorter}"
    return finish(figure, title, caption)


def prompt_map(points: Sequence[Mapping[str, Any]], caption: str = "") -> Figure:
    """Prompts in a plane, coloured by source (paper, Fig. 7).

    Args:
        points: rows with `source`, `x` and `y`, as `prompt_map.prompt_map` gives them.
        caption: line below the figure.
    """
    sources = list(dict.fromkeys(point["source"] for point in points))
    figure, [axes] = new_figure(height=4.6)
    for index, source in enumerate(sources):
        place = np.array([[point["x"], point["y"]] for point in points if point["source"] == source])
        marker = "o" if index < len(CYCLE) else "^"
        colour = CYCLE[index % len(CYCLE)]
        axes.scatter(place[:, 0], place[:, 1], s=9, alpha=0.55, color=colour, marker=marker, lw=0, label=source)
    axes.set(xticks=[], yticks=[], xlabel="first axis", ylabel="second axis")
    for handle in legend_right(axes, markerscale=2).legend_handles:
        if handle is not None:
            handle.set_alpha(1)  # opaque, or a swatch has another colour than its points
    return finish(
        figure, f"{readable(len(points))} prompts of {len(sources)} sources, by the words they share", caption
    )
