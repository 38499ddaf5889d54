"""Figures about the data, about training, and about reward and preference models (chapters 00 to 06)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike

from rlhflow_utils.guide.figures import style
from rlhflow_utils.guide.figures.style import CHOSEN, DARK, GREY, REJECTED, Estimate, finish, new_figure
from rlhflow_utils.guide.tables import signed

Lengths = Mapping[str, Mapping[str, Sequence[float]]]  # source -> `chosen` and `rejected`, one length per pair
Histories = Mapping[str, Sequence[Mapping[str, Any]]]  # name of a training -> its log entries
Scores = Mapping[str, Mapping[str, Estimate | None]]  # model -> section -> accuracy
Printed = Mapping[str, Mapping[str, float | None]]  # the same, in per cent, as the paper has it
SECTION_NAMES = {part: part.title().replace("_", "-") for part in ("chat", "chat_hard", "safety", "reasoning")}
METHOD_NAMES = {"bt": "BT", "pm": "PM", "bt_mix1": "BT, mix1", "pm_mix1": "PM, mix1", "bt_public": "BT, public"}


def funnel(counts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Why pairs of each source were dropped, in per cent: source -> `rows_in` and `dropped` (reason -> pairs)."""
    pairs = pd.Series({source: max(row["rows_in"], 1) for source, row in counts.items()})
    table = pd.DataFrame([row["dropped"] for row in counts.values()], list(counts)).fillna(0)
    shares = 100 * table.loc[:, table.any()].div(pairs, axis=0).sort_index(axis=1)
    lost = shares.sum(axis=1)
    figure, [axes] = new_figure(height=1.6 + 0.27 * len(shares))
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.5 * shares.to_numpy().max(initial=1), ec="white", lw=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column + 0.5, row + 0.5, f"{share:.1f}" if share else "", ha="center", va="center", fontsize=8)
    labels = [f"{source}: {share:.1f} % of {n}" for source, share, n in zip(counts, lost, pairs, strict=True)]
    axes.set_yticks(np.arange(len(shares)) + 0.5, labels)
    axes.set_xticks(np.arange(shares.shape[1]) + 0.5, shares.columns.str.replace("_", " "), rotation=35, ha="left")
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    axes.set(xlabel="dropped for this reason (% of the source's pairs)")
    axes.invert_yaxis()
    dropped = f"{100 * table.to_numpy().sum() / pairs.sum():.1f} % of {style.short_count(pairs.sum())} pairs"
    return finish(figure, f"Filtering drops {dropped}, and of one source at most {lost.max():.1f} % ({lost.idxmax()})")


def mixture_composition(mixtures: Mapping[str, Mapping[str, int]]) -> Figure:
    """Which sources each mixture is made of, a panel for each mixture: mixture -> source -> pairs."""
    table = pd.DataFrame(list(mixtures.values()), list(mixtures)).fillna(0).T
    figure, panels = new_figure(columns=len(mixtures), height=1.3 + 0.2 * len(table), sharex=True, sharey=True)
    for index, (axes, (name, pairs)) in enumerate(zip(panels, table.items(), strict=True)):
        shares = 100 * pairs / pairs.sum()
        bars = axes.barh(table.index, shares, color=style.colour_of(str(name), index))
        axes.bar_label(bars, [f"{share:.0f} %" if share else "–" for share in shares], padding=3, fontsize=8)
        axes.set_title(f"{name}: {style.short_count(pairs.sum())} pairs, {(pairs > 0).sum()} sources", loc="left")
        style.dress(axes, "x", xlabel="share of the pairs (%)")
        axes.tick_params(axis="y", length=0)
    panels[0].margins(x=0.12)
    panels[0].invert_yaxis()
    shared = (table > 0).all(axis=1).sum()
    return finish(figure, f"{shared} of {len(table)} sources are in every mixture")


def length_agreement(lengths: Lengths, mixtures: Lengths) -> Figure:
    """How often the chosen answer is the longer one, by source and by mixture; equal lengths count one half."""
    rows = {**lengths, **{f"all of {name}": sides for name, sides in mixtures.items()}}
    outcomes = {name: 50 + 50 * np.sign(np.subtract(row["chosen"], row["rejected"])) for name, row in rows.items()}
    shares = {name: float(outcome.mean()) for name, outcome in outcomes.items()}
    names = sorted(rows, key=lambda name: (name not in lengths, -shares[name]))
    errors = [1.96 * outcomes[name].std() / np.sqrt(len(outcomes[name])) for name in names]
    figure, [axes] = new_figure(height=0.9 + 0.25 * len(rows))
    values, places = [shares[name] for name in names], np.arange(len(names))
    axes.errorbar(values, places, xerr=errors, color=CHOSEN, fmt="o", capsize=3)
    axes.axhline(len(lengths) - 0.5, color=GREY, lw=0.8)
    axes.set_yticks(places, [f"{name} ({len(outcomes[name]):,} pairs)" for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MultipleLocator(5))
    label = "chosen answer has more characters (%); equal lengths: one half; whiskers: 95 %"
    style.dress(axes, "x", half="x", xlabel=label)
    listed = " and ".join(f"{shares[f'all of {name}']:.0f} % of {name}" for name in mixtures)
    return finish(figure, f"The chosen answer is the longer one in {listed}")


def prompt_map(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Prompts in a plane (paper, Fig. 7), a panel for each source: rows with `source`, `x` and `y`."""
    places = np.array([[point["x"], point["y"]] for point in points])
    sources = pd.Series([point["source"] for point in points])
    distances = ((places[:, None] - places) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    own = 100 * (sources.to_numpy()[distances.argmin(axis=1)] == sources).groupby(sources, sort=False).mean()
    figure, panels = new_figure(-(-len(own) // 4), 4, 0.9 + 1.4 * -(-len(own) // 4), sharex=True, sharey=True)
    for axes, (source, share) in zip(panels, own.items(), strict=False):
        axes.plot(*places[sources != source].T, ".", ms=2, color="#dddddd")
        axes.plot(*places[sources == source].T, ".", ms=3, color=CHOSEN)
        axes.set_title(f"{source}: {share:.0f} %", loc="left")
        axes.set(xticks=[], yticks=[])
    for axes in panels[len(own) :]:
        axes.remove()
    note = "Blue: the source's prompts; grey: all others. Per cent: prompts whose nearest one has the same source."
    ends = f"most in {own.idxmax()} ({own.max():.0f} %), fewest in {own.idxmin()} ({own.min():.0f} %)"
    return finish(figure, f"Nearest prompts of the same source: {ends}", note)


def loss_curves(histories: Histories, baseline: float | None = None, baseline_label: str = "") -> Figure:
    """Training loss and its running median; `baseline`: a loss to mark, such as ln 2, where BT and DPO begin."""
    figure, [axes] = new_figure(height=3.0)
    ends, falling = [], 0
    for index, (name, history) in enumerate(histories.items()):
        losses = pd.Series({entry["step"]: entry["loss"] for entry in history if "loss" in entry})
        window = max(1, min(8, len(losses) // 4), len(losses) // 25)
        medians = losses.rolling(window, center=True).median().dropna()  # single batches can be far off
        axes.plot(losses, color=style.colour_of(name, index), lw=0.8, alpha=0.4)
        axes.plot(medians, color=style.colour_of(name, index), lw=1.8, label=name)
        ends.append(f"{medians.iloc[-1]:.2f} ({name})")
        falling += bool(medians.iloc[-1] < medians.iloc[0])
    if baseline is not None:
        axes.axhline(baseline, color=GREY, lw=1, ls="--", label=baseline_label or f"{baseline:.3f}")
    style.dress(axes, "y", xlabel="optimiser step; thick: running median", ylabel="loss (nats)")
    style.legend_above(axes)
    verdict = {len(ends): "falls", 0: "does not fall"}.get(falling, f"falls in {falling} of {len(ends)} runs")
    return finish(figure, f"The training loss {verdict}; at the end {', '.join(ends)} nats")


def reward_histogram(chosen: ArrayLike, rejected: ArrayLike, skills: Sequence[str | None]) -> Figure:
    """Rewards of the chosen and the rejected answer of each pair, and the margin between the two, by skill."""
    pairs = pd.DataFrame({"chosen": chosen, "rejected": rejected, "skill": skills}).fillna({"skill": "all"})
    pairs["margin"] = pairs["chosen"] - pairs["rejected"]
    groups = {SECTION_NAMES.get(str(skill), str(skill)): part for skill, part in pairs.groupby("skill")}
    shares = {name: 100 * float((part["margin"] > 0).mean()) for name, part in groups.items()}
    figure, panels = new_figure(len(groups), 2, 0.9 + 1.05 * len(groups), sharex="col")
    bins = np.histogram_bin_edges(pairs[["chosen", "rejected"]], bins=40).tolist()
    edges = style.edges_through_zero(pairs["margin"].to_numpy())
    for left, right, (name, part) in zip(panels[::2], panels[1::2], groups.items(), strict=True):
        for side, colour in (("chosen", CHOSEN), ("rejected", REJECTED)):
            left.hist(part[side], bins, color=colour, alpha=0.6, label=side)
        left.set(ylabel=f"{name}\n{len(part)} pairs")
        signs = [part["margin"][part["margin"] <= 0], part["margin"][part["margin"] > 0]]
        right.hist(signs, edges, stacked=True, color=[REJECTED, CHOSEN], alpha=0.8)
        right.axvline(0, color=DARK, lw=1)
        right.set_title(f"chosen higher in {shares[name]:.1f} %", loc="left")
    style.legend_above(panels[0])
    panels[-2].set(xlabel="reward")
    panels[-1].set(xlabel="reward(chosen) − reward(rejected)")
    weakest, all_pairs = min(shares, key=lambda name: shares[name]), 100 * (pairs["margin"] > 0).mean()
    least = f", least often in {weakest} ({shares[weakest]:.1f} %)" if len(shares) > 1 else ""
    return finish(figure, f"The chosen answer scores higher in {all_pairs:.1f} % of {len(pairs)} pairs{least}")


def calibration_curves(tables: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Predicted against observed preference: model -> `predicted`, `observed`, `ci_low`, `ci_high`, `count` of bins."""
    figure, [axes, below] = new_figure(rows=2, height=4.4, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfectly calibrated")
    found = []
    for index, (name, table) in enumerate(tables.items()):
        keys = ("predicted", "observed", "ci_low", "ci_high")
        predicted, observed, low, high = (np.asarray(table[key]) for key in keys)
        look = {**style.look_of(name, index), "ms": 5}
        axes.errorbar(predicted, observed, [observed - low, high - observed], lw=1.4, capsize=2, label=name, **look)
        below.plot(predicted, table["count"], lw=1.2, **look)
        beyond = np.average((observed - predicted) * np.sign(predicted - 0.5), weights=table["count"])
        found.append(f"{name} is {'under' if beyond > 0 else 'over'}-confident by {100 * abs(beyond):.1f}")
    style.dress(axes, "both", ylabel="observed frequency; bars: 95 %", xlim=(0, 1), ylim=(-0.03, 1.03))
    axes.legend(loc="upper left")
    label = "predicted P(first answer preferred); every pair in both orders"
    style.dress(below, "y", xlabel=label, ylabel="pairs", ylim=(0, None))
    return finish(figure, f"On average {'; '.join(found)} points")


def rewardbench_sections(results: Scores, paper: Printed | None = None) -> Figure:
    """Section scores of several models, and the paper's as stars: model -> section -> score, None without rows."""
    figure = _accuracies(results, {**SECTION_NAMES, "overall": "Overall"}, paper or {})
    overall = {METHOD_NAMES.get(name, name): row["overall"]["value"] for name, row in results.items() if row["overall"]}
    ranked = sorted(overall, key=lambda name: -overall[name])
    listed = "; ".join(f"{name} {100 * overall[name]:.0f} %" for name in ranked)
    chance = _where(results, SECTION_NAMES, lambda score: score["ci_low"] <= 0.5 <= score["ci_high"])
    return finish(figure, f"RewardBench overall: {listed}. At chance: {chance or 'no judge in any section'}")


def rewardbench_subsets(results: Scores) -> Figure:
    """Accuracy by subset: model -> subset -> estimate."""
    subsets = {name: f"{name} ({score['n']})" for row in results.values() for name, score in row.items() if score}
    below = _where(results, {name: name for name in subsets}, lambda score: score["ci_high"] < 0.5)
    return finish(_accuracies(results, subsets, {}), f"Worse than a coin flip: {below or 'no judge in any subset'}")


def _where(results: Scores, parts: Mapping[str, str], is_so: Callable[[Estimate], bool]) -> str:
    """In which parts something is true of each judge: ``PM in Chat, Safety; BT in Chat``, or nothing."""
    found = []
    for name, row in results.items():
        labels = ", ".join(label for part, label in parts.items() if (score := row.get(part)) and is_so(score))
        found += [f"{METHOD_NAMES.get(name, name)} in {labels}"] if labels else []
    return "; ".join(found)


def _accuracies(results: Scores, parts: Mapping[str, str], paper: Printed) -> Figure:
    """A line for each part (key -> label), on it a mark for each model; stars: what the paper states."""
    figure, [axes] = new_figure(height=1.2 + 0.08 * len(parts) * (1 + len(results)))
    star: dict[str, Any] = {"color": "white", "markeredgecolor": DARK, "ms": 8, "ls": "none", "zorder": 5}
    for index, (name, row) in enumerate(results.items()):
        shift, label = 0.8 * ((index + 0.5) / len(results) - 0.5), METHOD_NAMES.get(name, name)
        look = {**style.look_of(label, index), "ms": 4.5}
        axes.plot([], [], ls="none", label=label, **look)
        for at, part in enumerate(parts):
            if score := row.get(part):
                rate = style.percent(score)
                axes.errorbar(rate["value"], at + shift, xerr=style.error_bar(rate), lw=1, capsize=2, **look)
            if stated := paper.get(name, {}).get(part):
                axes.plot(stated, at + shift, "*", **star)
    for at, part in enumerate(parts):
        axes.axhline(at + 0.5, color="#e4e4e4", lw=0.8)
        if not any(row.get(part) for row in results.values()):
            axes.text(1, at, "no rows", va="center", fontsize=8, color=GREY)
    if paper:
        axes.plot([], [], "*", label="the authors (LLaMA-3-8B)", **star)
    axes.set_yticks(range(len(parts)), list(parts.values()))
    label = "accuracy (%), whiskers: 95 %; dashed: coin flip"
    style.dress(axes, "x", half="x", xlim=(0, 104), ylim=(len(parts) - 0.5, -0.5), xlabel=label)
    style.legend_above(axes)
    return figure


def length_bias(studies: Mapping[str, Mapping[str, Any]]) -> Figure:
    """How far reward follows length, in the form of the paper's Fig. 5, one column per reward model.

    Above: the distribution over prompts of the Pearson correlation between length and reward. Below: one row per
    prompt, its responses from shortest to longest, coloured by reward (standardised within the prompt); rows sorted
    by correlation. A model that prefers length is dark blue on the left and yellow on the right. `studies`: model ->
    `lengths`, `rewards` (prompts x responses), `correlations` (per prompt, nan allowed) and their `mean` (estimate).
    """
    figure, axes = new_figure(rows=2, columns=len(studies), height=5.6, height_ratios=[1, 2], sharey="row")
    found = []
    for column, (name, study) in enumerate(studies.items()):
        correlation, mean = np.asarray(study["correlations"], dtype=float), study["mean"]
        defined = correlation[~np.isnan(correlation)]
        top, bottom = axes[column], axes[len(studies) + column]
        top.hist(defined, np.linspace(-1, 1, 41).tolist(), color=style.colour_of(name, column), alpha=0.8)
        top.axvline(0, color=GREY, lw=1)
        top.axvline(mean["value"], color=DARK, lw=1.4, ls="--")
        top.set(title=f"{name}: mean {signed(mean['value'])}, {len(defined)} prompts", xlim=(-1, 1))
        top.set(xlabel="Pearson r (length in characters, reward)", ylabel="" if column else "prompts")
        by_length = np.argsort(np.asarray(study["lengths"]), axis=1, kind="stable")
        rewards = np.take_along_axis(np.asarray(study["rewards"], dtype=float), by_length, axis=1)
        rewards = rewards[~np.isnan(correlation)][np.argsort(-defined)]
        grid = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, keepdims=True)
        image = bottom.imshow(grid, aspect="auto", cmap="cividis", vmin=-2, vmax=2, interpolation="nearest")
        bottom.set(xlabel="responses, shortest → longest", xticks=[], ylabel="" if column else "prompts, sorted by r")
        word = "rises" if mean["ci_low"] > 0 else "falls" if mean["ci_high"] < 0 else "has no trend"
        found.append(f"{word} for {name} (r {signed(mean['value'])})")
    figure.colorbar(image, ax=axes[len(studies) :], label="reward, standardised per prompt", shrink=0.9)
    return finish(figure, f"With length the reward {', '.join(found)}")
