"""Figures about the data, about training, and about reward and preference models (chapters 00 to 06)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rlhflow_utils.guide.figures import style
from rlhflow_utils.guide.figures.style import CHOSEN, CYCLE, DARK, GREY, REJECTED, Estimate, finish, new_figure

Lengths = Mapping[str, Mapping[str, Sequence[float]]]  # source -> `chosen` and `rejected`, one length per pair
Histories = Mapping[str, Sequence[Mapping[str, Any]]]  # name of a training -> its log entries
Scores = Mapping[str, Mapping[str, Estimate | None]]  # model -> section -> accuracy
Printed = Mapping[str, Mapping[str, float | None]]  # the same, in per cent, as the paper has it
PARTS = ("chat", "chat_hard", "safety", "reasoning", "overall")
SECTION_NAMES = {part: part.title().replace("_", "-") for part in PARTS}
METHOD_NAMES = {"bt": "BT", "pm": "PM", "bt_mix1": "BT, mix1", "pm_mix1": "PM, mix1", "bt_public": "BT, public"}


def funnel(counts: Mapping[str, Mapping[str, Any]], caption: str = "") -> Figure:
    """Where each source's pairs went: source -> `rows_in`, `rows_out` and `dropped` (reason -> pairs)."""
    fates = [{"kept": row["rows_out"], **row["dropped"]} for row in counts.values()]
    table = pd.DataFrame(fates, list(counts)).fillna(0)
    reasons = table.columns[table.any()].difference(["kept"])
    figure, axes = style.stacked(table[["kept", *reasons]], 1.3 + 0.3 * max(len(table), 0.6 * len(reasons)), "reason")
    for index, row in enumerate(counts.values()):
        text = f"{style.short_count(row['rows_in'])} → {style.short_count(row['rows_out'])}"
        axes.text(1.5, index, text, va="center", fontsize=8, color=DARK)
    axes.set(xlabel="pairs of the source (%); numbers: pairs in → pairs kept")
    total = table.to_numpy().sum()
    lost = 100 * (1 - table["kept"].sum() / max(total, 1))
    return finish(figure, f"Filtering drops {lost:.1f} % of {style.short_count(total)} pairs", caption)


def length_distributions(lengths: Lengths, unit: str = "tokens", caption: str = "") -> Figure:
    """Lengths of chosen and rejected answers of each source: quartiles, 5 % to 95 %, and the mean (dot)."""
    figure, [axes] = new_figure(height=1.3 + 0.42 * len(lengths))
    for shift, side, colour in ((-0.19, "chosen", CHOSEN), (0.19, "rejected", REJECTED)):
        axes.boxplot(
            [row[side] for row in lengths.values()], positions=np.arange(len(lengths)) + shift, widths=0.32,
            orientation="horizontal", whis=(5, 95), showfliers=False, showmeans=True, patch_artist=True, label=side,
            manage_ticks=False, boxprops={"facecolor": colour, "alpha": 0.55}, medianprops={"color": "black"},
            meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4},
        )  # fmt: skip
    axes.set_yticks(range(len(lengths)), list(lengths))
    axes.invert_yaxis()
    style.dress(axes, "x", xlabel=f"length of the answer ({unit}); box: quartiles, whiskers: 5 to 95 %, dot: mean")
    style.legend_right(axes)
    longer = sum(np.mean(row["chosen"]) > np.mean(row["rejected"]) for row in lengths.values())
    return finish(figure, f"Chosen answers are longer on average in {longer} of {len(lengths)} sources", caption)


def mixture_composition(mixtures: Mapping[str, Mapping[str, int]], caption: str = "") -> Figure:
    """Which sources each mixture is made of: mixture -> source -> pairs."""
    labels = [f"{name}\n{style.short_count(sum(rows.values()))} pairs" for name, rows in mixtures.items()]
    table = pd.DataFrame(list(mixtures.values()), labels).fillna(0)
    figure, axes = style.stacked(table, max(1.2 + 0.5 * len(mixtures), 0.9 + 0.18 * table.shape[1]))
    for bars in axes.containers:
        texts = [f"{width:.0f} %" if (width := bar.get_width()) >= 6 else "" for bar in bars]
        axes.bar_label(bars, texts, label_type="center", fontsize=8)  # type: ignore[arg-type]
    axes.set(xlabel="share of the pairs (%)")
    names = " and ".join(f"{name} from {sum(n > 0 for n in rows.values())}" for name, rows in mixtures.items())
    return finish(figure, f"What the mixtures are made of: {names} sources", caption)


def length_agreement(lengths: Lengths, caption: str = "") -> Figure:
    """How often the chosen answer is the longer one (characters), by source; equal lengths count one half."""
    gaps = {source: np.subtract(sides["chosen"], sides["rejected"]) for source, sides in lengths.items()}
    outcomes = {source: 50 + 50 * np.sign(gap) for source, gap in gaps.items()}
    sources = sorted(outcomes, key=lambda source: float(outcomes[source].mean()))
    shares = np.array([outcomes[source].mean() for source in sources])
    errors = np.array([1.96 * outcomes[source].std() / np.sqrt(len(outcomes[source])) for source in sources])
    figure, [axes] = new_figure(height=1.2 + 0.3 * len(sources))
    colours = [CHOSEN if share >= 50 else REJECTED for share in shares]
    axes.barh(sources, shares - 50, left=50, color=colours, alpha=0.75)
    axes.errorbar(shares, sources, xerr=errors, fmt="none", ecolor=DARK, capsize=2, lw=1)
    axes.axvline(50, color=DARK, lw=1)
    style.dress(axes, "x", xlim=(0, 100), xlabel="chosen answer has more characters (%), equal: ½; whiskers: 95 %")
    axes.tick_params(axis="y", length=0)
    longer, shorter = int((shares - errors > 50).sum()), int((shares + errors < 50).sum())
    title = f"Labels lean to the longer answer in {longer} of {len(sources)} bars, to the shorter in {shorter}"
    return finish(figure, title, caption)


def prompt_map(points: Sequence[Mapping[str, Any]], caption: str = "") -> Figure:
    """Prompts in a plane, coloured by source (paper, Fig. 7): rows with `source`, `x` and `y`."""
    sources = list(dict.fromkeys(point["source"] for point in points))
    figure, [axes] = new_figure(height=4.6)
    for index, source in enumerate(sources):
        place = np.array([[point["x"], point["y"]] for point in points if point["source"] == source])
        marker, colour = "o" if index < len(CYCLE) else "^", CYCLE[index % len(CYCLE)]
        axes.scatter(place[:, 0], place[:, 1], s=9, alpha=0.55, color=colour, marker=marker, lw=0, label=source)
    axes.set(xticks=[], yticks=[], xlabel="first axis", ylabel="second axis")
    for handle in filter(None, style.legend_right(axes, markerscale=2).legend_handles):
        handle.set_alpha(1)  # opaque, or a swatch has another colour than its points
    title = f"{style.short_count(len(points))} prompts of {len(sources)} sources, by the words they share"
    return finish(figure, title, caption)


def loss_curves(
    histories: Histories, baseline: float | None = None, baseline_label: str = "", caption: str = ""
) -> Figure:
    """Training loss and its running mean; `baseline`: a loss to mark, such as ln 2, where BT and DPO begin."""
    figure, [axes] = new_figure(height=3.0)
    falling = True
    for index, (name, history) in enumerate(histories.items()):
        entries, colour = [entry for entry in history if "loss" in entry], style.colour_of(name, index)
        steps, losses = [entry["step"] for entry in entries], [entry["loss"] for entry in entries]
        window = max(1, len(losses) // 25)
        means = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps, losses, color=colour, lw=0.8, alpha=0.3)
        axes.plot(steps[window - 1 :], means, color=colour, lw=1.8, label=f"{name}: mean at the end {means[-1]:.3f}")
        falling = falling and bool(means[-1] < means[0])
    if baseline is not None:
        axes.axhline(baseline, color=GREY, lw=1, ls="--", label=baseline_label or f"{baseline:.3f}")
    style.dress(axes, "y", xlabel="optimiser step", ylabel="loss (nats)")
    axes.legend(title="thick: running mean, 4 % of the steps")
    return finish(figure, f"The training loss {'falls' if falling else 'does not fall in every run'}", caption)


def reward_histogram(chosen: ArrayLike, rejected: ArrayLike, caption: str = "") -> Figure:
    """Rewards of the chosen and the rejected answer of each pair, and the margin between the two."""
    better, worse = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    figure, [left, right] = new_figure(columns=2, height=2.9)
    bins = np.histogram_bin_edges(np.concatenate([better, worse]), bins=40).tolist()
    left.hist(better, bins, color=CHOSEN, alpha=0.6, label=f"chosen (mean {better.mean():.2f})")
    left.hist(worse, bins, color=REJECTED, alpha=0.6, label=f"rejected (mean {worse.mean():.2f})")
    left.set(xlabel="reward", ylabel="answers")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)
    margin = better - worse
    signs = [margin[margin <= 0], margin[margin > 0]]
    right.hist(signs, style.edges_through_zero(margin), stacked=True, color=[REJECTED, CHOSEN], alpha=0.8)
    right.axvline(0, color=DARK, lw=1)
    right.set(xlabel="reward(chosen) − reward(rejected)", ylabel="pairs")
    share = 100 * np.mean(margin > 0)
    return finish(figure, f"The chosen answer scores higher in {share:.1f} % of {len(margin)} pairs", caption)


def calibration_curves(tables: Mapping[str, Mapping[str, Sequence[float]]], caption: str = "") -> Figure:
    """Predicted against observed preference: model -> `predicted`, `observed`, `ci_low`, `ci_high`, `count` of bins."""
    figure, [axes, below] = new_figure(rows=2, height=4.4, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfectly calibrated")
    errors = []
    for index, (name, table) in enumerate(tables.items()):
        keys = ("predicted", "observed", "ci_low", "ci_high")
        predicted, observed, low, high = (np.asarray(table[key]) for key in keys)
        look: dict[str, Any] = {"color": style.colour_of(name.lower(), index), "marker": "osD^v"[index % 5], "ms": 5}
        axes.errorbar(predicted, observed, [observed - low, high - observed], lw=1.4, capsize=2, label=name, **look)
        below.plot(predicted, table["count"], lw=1.2, **look)
        errors.append(f"{name} {np.average(np.abs(predicted - observed), weights=table['count']):.3f}")
    style.dress(axes, "both", ylabel="observed frequency; bars: 95 %", xlim=(0, 1), ylim=(-0.03, 1.03))
    axes.legend(loc="upper left")
    style.dress(below, "y", xlabel="predicted P(first answer preferred)", ylabel="pairs, both orders", ylim=(0, None))
    return finish(figure, f"Calibration: mean gap between prediction and outcome {', '.join(errors)}", caption)


def rewardbench_bars(results: Scores, paper: Printed | None = None, caption: str = "") -> Figure:
    """Section scores of several models, and the paper's as diamonds: model -> section -> score, None without rows."""
    figure = _accuracy_bars(results, SECTION_NAMES, paper or {})
    overall = {METHOD_NAMES.get(name, name): score for name, row in results.items() if (score := row.get("overall"))}
    listed = ", ".join(f"{name} {100 * score['value']:.1f} %" for name, score in overall.items())
    return finish(figure, f"RewardBench overall: {listed}", caption)


def rewardbench_subsets(results: Scores, caption: str = "") -> Figure:
    """Accuracy by subset: model -> subset -> estimate."""
    subsets = {subset: subset for row in results.values() for subset in row}
    return finish(_accuracy_bars(results, subsets, {}), "RewardBench by subset", caption)


def _accuracy_bars(results: Scores, parts: Mapping[str, str], paper: Printed) -> Figure:
    """A group of bars for each part (key -> label), a bar for each model; diamonds: what the paper states."""
    figure, [axes] = new_figure(height=1.4 + 0.08 * len(parts) * (1 + len(results)))
    thickness = 0.8 / len(results)
    diamond: dict[str, Any] = {"color": "white", "markeredgecolor": DARK, "ms": 5.5, "ls": "none", "zorder": 5}
    for index, (name, row) in enumerate(results.items()):
        places = {part: at + (index - (len(results) - 1) / 2) * thickness for at, part in enumerate(parts)}
        shown = {places[part]: style.percent(score) for part in parts if (score := row.get(part))}
        label, colour = METHOD_NAMES.get(name, name), style.colour_of(name, index)
        style.lying_bars(axes, list(shown), list(shown.values()), colour, height=0.92 * thickness, label=label)
        for place in set(places.values()) - set(shown):
            axes.text(1, place, "no rows", va="center", fontsize=8, color=GREY)
        stated = {places[part]: value for part, value in paper.get(name, {}).items() if value is not None}
        axes.plot(list(stated.values()), list(stated), "D", **diamond)
    if paper:
        axes.plot([], [], "D", label="the authors (LLaMA-3-8B)", **diamond)
    axes.set_yticks(range(len(parts)), list(parts.values()))
    label = "accuracy (%), whiskers: 95 %; dashed: coin flip"
    style.dress(axes, "x", half="x", xlim=(0, 104), ylim=(len(parts) - 0.4, -0.6), xlabel=label)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(results) + 1)
    return figure


def length_bias(studies: Mapping[str, Mapping[str, Any]], unit: str = "characters", caption: str = "") -> Figure:
    """How far reward follows length, in the form of the paper's Fig. 5, one column per reward model.

    Above: the distribution over prompts of the Pearson correlation between length and reward. Below: one row per
    prompt, its responses from shortest to longest, coloured by reward (standardised within the prompt); rows sorted
    by correlation. A model that prefers length is blue on the left and red on the right.
    `studies`: model -> `lengths` and `rewards` (prompts x responses) and `correlations` (per prompt, nan allowed).
    """
    figure, axes = new_figure(rows=2, columns=len(studies), height=5.6, height_ratios=[1, 2], sharey="row")
    titles = []
    for column, (name, study) in enumerate(studies.items()):
        correlation = np.asarray(study["correlations"], dtype=float)
        defined = correlation[~np.isnan(correlation)]
        top, bottom = axes[column], axes[len(studies) + column]
        top.hist(defined, np.linspace(-1, 1, 41).tolist(), color=style.colour_of(name, column), alpha=0.8)
        top.axvline(0, color=GREY, lw=1)
        top.axvline(defined.mean(), color=DARK, lw=1.4, ls="--")
        top.set(title=f"{name}: mean {defined.mean():+.2f} over {len(defined)} prompts", xlim=(-1, 1))
        top.set(xlabel=f"Pearson r (length in {unit}, reward)", ylabel="" if column else "prompts")
        by_length = np.argsort(np.asarray(study["lengths"]), axis=1, kind="stable")
        rewards = np.take_along_axis(np.asarray(study["rewards"], dtype=float), by_length, axis=1)
        rewards = rewards[~np.isnan(correlation)][np.argsort(-defined)]
        grid = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, keepdims=True)
        image = bottom.imshow(grid, aspect="auto", cmap="RdBu_r", vmin=-2, vmax=2, interpolation="nearest")
        bottom.set(xlabel="responses, shortest → longest", xticks=[], ylabel="" if column else "prompts, sorted by r")
        titles.append(f"{defined.mean():+.2f} ({name})")
    figure.colorbar(image, ax=axes[len(studies) :], label="reward, standardised per prompt", shrink=0.9)
    return finish(figure, f"Correlation of length and reward: {' and '.join(titles)}", caption)
