"""The records of the claims in `results/claims/`: their tables and figures (chapters 10 to 12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlhflow_utils.claims.designs import OVER_SEEDS, SUPPORTED, Designs, Record
from rlhflow_utils.evaluation.statistics import ENOUGH_SEEDS, t_interval
from rlhflow_utils.guide.figures import style
from rlhflow_utils.guide.figures.style import BLUE, DARK, GREEN, GREY, ORANGE, RED, finish, new_figure
from rlhflow_utils.guide.stage import PROJECT, read_json
from rlhflow_utils.guide.tables import ABLATIONS, OURS, Formatted, beside, paper_lc, show, signed, with_interval

RESULTS = PROJECT / "results" / "claims"
# Start of a metric's name -> its unit, and how it is scaled; all other metrics are shares of prompts or pairs.
UNITS = {
    "mean_pearson": ("correlation of length and reward", 1), "mean_length": ("characters", 1),
    "proxy_reward": ("proxy reward", 1), "reward": ("gold reward", 1), "kl": ("KL from π₀ (nats)", 1),
    "": ("percentage points", 100),
}  # fmt: skip
LOOKS: dict[str, dict[str, Any]] = {
    "supported": {"color": GREEN, "marker": "o"}, "not supported": {"color": RED, "marker": "s"},
    "inconclusive": {"color": ORANGE, "marker": "D", "mfc": "white"},
}  # fmt: skip
SHOWN = "Thin lines: seeds; thick line: their mean."


def read_records() -> dict[str, Record]:
    """The measured claims: first those with a letter. Empty where nothing has been measured."""
    records = [read_json(file) for file in RESULTS.glob("*.json")]
    return {record["claim"]: record for record in sorted(records, key=lambda r: (len(r["claim"]) > 1, r["claim"]))}


def signed_interval(record: Mapping[str, Any]) -> str:
    """The interval of a difference: of a record, or of one of its comparisons."""
    return f"{signed(record['ci_low'])} … {signed(record['ci_high'])}"


def verdict_text(record: Record) -> str:
    """The verdict, with what limits it: other worlds, or an interval over prompts alone."""
    text, others = str(record["verdict"]), [other["verdict"] for other in record["worlds"].values()]
    if set(others) - {text}:
        text += f" (in other worlds: {', '.join(dict.fromkeys(others))})"
    return text + ("" if record["interval"] == OVER_SEEDS else ", prompts only")


def others_supported(record: Record) -> str | None:
    """How many of a claim's other comparisons are supported, of those that have a verdict."""
    others = [part["verdict"] for part in record["comparisons"] if part["comparison"] != record["deciding"]]
    judged = [verdict for verdict in others if verdict]
    return f"{judged.count(SUPPORTED)} of {len(judged)}" if judged else None


def claims_table(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """One row for each claim; the effect is that of the comparison that decides."""
    return [{
        "claim": Formatted(f"**{name}** {record['title']}"), "paper": record["paper"],
        "ours (the comparison that decides)": f"{record['deciding']}: {signed(record['effect'])}",
        "95 % interval": signed_interval(record), "detectable effect": record["smallest_detectable_effect"],
        "seeds": record["seeds"], "verdict": verdict_text(record), "others supported": others_supported(record),
    } for name, record in records.items()]  # fmt: skip


def comparisons_table(record: Record) -> list[dict[str, Any]]:
    """Every comparison of a claim, with its interval and its own verdict; the one that decides is bold."""
    return [{
        "comparison": Formatted(f"**{name}**") if (name := part["comparison"]) == record["deciding"] else name,
        "difference": signed(part["effect"]), "95 % interval": signed_interval(part),
        "detectable effect": part["smallest_detectable_effect"],
        "by seed": ", ".join(signed(value) for value in part["per_seed"].values()),
        "verdict": part["verdict"] or "(shown only)",
    } for part in record["comparisons"]]  # fmt: skip


def show_claims(records: Mapping[str, Record]) -> None:
    """Display hypothesis, design, control, verdict and all comparisons of the claims, with what measured them."""
    from IPython.display import Markdown, display

    for record in records.values():
        stated = f" The paper: {record['paper']}." if record["paper"] else ""
        display(Markdown(
            f"**{record['claim']} · {record['title']}** ({record['section']}): **{record['verdict']}**. "
            f"{record['hypothesis']}{stated} *Design:* {record['design']} *Control:* {record['control']}"
        ))  # fmt: skip
        measured = f"{record['seeds']} seeds, `{record['command']}`, commit {record['provenance']['commit'][:7]}"
        show(comparisons_table(record), f"Interval: {record['interval']}. {measured}.")


def worlds_table(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The verdicts of the claims that were measured in other worlds, too, with the comparison that decides."""

    def short(record: Mapping[str, Any]) -> str:
        part = next(part for part in record["comparisons"] if part["comparison"] == record["deciding"])
        seeds = [signed(value) for value in part["per_seed"].values()]
        spread = signed_interval(record) if len(seeds) >= ENOUGH_SEEDS else f"seeds {', '.join(seeds)}"
        return f"{record['verdict']}: {record['deciding']} {signed(record['effect'])} ({spread})"

    rows = {name: {"the profile's": each, **each["worlds"]} for name, each in records.items() if each["worlds"]}
    return [{"claim": name, **{key: short(each) for key, each in row.items()}} for name, row in rows.items()]


def policies_table(record: Record) -> list[dict[str, Any]]:
    """SFT, offline DPO and the iterations of claim e: means over seeds with Student's t interval."""
    variants, papers = record["variants"], paper_lc(is_penalised=True)
    last = max(int(key.partition("@")[2]) for key in next(iter(variants["main"].values())) if "@" in key)
    rows = {"SFT": ("sft", "", "sft"), "offline DPO": ("offline", "", "offline_dpo")}
    rows |= {f"iteration {k}": ("main", f"@{k}", "iterative_dpo" if k == last else "") for k in range(1, last + 1)}
    rows[f"iteration {last}, no length penalty"] = ("no_penalty", f"@{last}", "unpenalised")

    def over_seeds(variant: str, metric: str) -> str:
        values = [seed[metric] for seed in variants[variant].values()]
        return with_interval(asdict(t_interval(values, record["confidence"])))

    return [{
        "policy": label, "right answers (95 % interval)": over_seeds(variant, f"accuracy{step}"),
        "length-adjusted win rate vs SFT": over_seeds(variant, f"length_adjusted_win_rate{step}"),
        "length (characters)": over_seeds(variant, f"mean_length{step}"),
        "plain win rate vs SFT": over_seeds(variant, f"win_rate{step}"),
        "paper: LC AlpacaEval-2 (%)": papers.get(kind),
    } for label, (variant, step, kind) in rows.items()]  # fmt: skip


def table_6(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The paper's ablations: length penalty, and an RM that prefers length (mix1's for UltraRM). Means over seeds."""

    def measured(row: str, column: str) -> dict[str, dict[str, float]]:
        claim, variant, words = OURS["variants"][row]
        metric, unit = OURS["measures"].get(column, ("", ""))
        seeds = records.get(claim, {}).get("variants", {}).get(variant, {})
        steps = [int(key.partition("@")[2]) for row in seeds.values() for key in row if key.startswith(f"{metric}@")]
        if not steps:
            return {}
        found = t_interval([row[f"{metric}@{max(steps)}"] for row in seeds.values()], records[claim]["confidence"])
        return {f"tiny, iteration {max(steps)}, {len(seeds)} seed(s): {words}; {unit}": asdict(found)}

    return beside("row", "column", ABLATIONS, measured)


def variants_table(designs: Designs, records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Every variant in words, and what it was trained on in all its iterations together (means over seeds)."""
    rows = []
    for name, variant in designs.variants.items():
        found = [record["variants"][name] for record in records.values() if name in record["variants"]]
        seeds = list(max(found, key=len, default={}).values())
        costs = {cost: [seed[cost] for seed in seeds if cost in seed] for cost in ("pairs", "updates", "tokens")}
        means = {cost: round(float(np.mean(values))) if values else None for cost, values in costs.items()}
        rows.append({"variant": name, "what": variant.what, "iterations": variant.iterations, **means})
    return rows


def claim_forest(records: Mapping[str, Record]) -> Figure:
    """The comparison that decides each claim: mean over seeds with its interval, a panel for each unit."""
    panels: dict[tuple[str, int], dict[str, Any]] = {}
    for name, record in records.items():
        part = next(part for part in record["comparisons"] if part["comparison"] == record["deciding"])
        unit = next(found for start, found in UNITS.items() if part["metric"].startswith(start))
        panels.setdefault(unit, {})[f"{name} · {part['comparison']}"] = part
    heights = [len(rows) + 2 for rows in panels.values()]
    figure, axes = new_figure(len(panels), height=1.1 + 0.3 * sum(heights), gridspec_kw={"height_ratios": heights})
    for panel, ((label, scale), rows) in zip(axes, panels.items(), strict=True):
        panel.axvline(0, color=DARK, lw=1)
        for place, part in enumerate(rows.values()):
            value, low, high = (scale * part[key] for key in ("effect", "ci_low", "ci_high"))
            bar = style.error_bar({"value": value, "ci_low": low, "ci_high": high})
            seeds = scale * np.array(list(part["per_seed"].values()))
            panel.plot(seeds, np.full(len(seeds), place + 0.3), ls="none", marker="|", ms=5, color=GREY)
            margins = scale * part["margin"] * np.array({"no_worse": [-1], "near_equal": [-1, 1]}.get(part["kind"], []))
            panel.vlines(margins, place - 0.4, place + 0.4, color=DARK, ls=":")
            panel.errorbar(value, place, xerr=bar, capsize=3, **LOOKS[part["verdict"]])
        panel.set_yticks(range(len(rows)), list(rows))
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.grid(axis="x")
        panel.set_xlabel(label)
    for verdict, look in LOOKS.items():
        axes[0].plot([], [], ls="none", label=verdict, **look)
    style.legend_above(axes[0])
    counts = [f"{sum(each['verdict'] == verdict for each in records.values())} {verdict}" for verdict in LOOKS]
    note = "Bars: 95 % intervals of the differences; ticks: seeds; dotted: the margin of “no worse” and “near equal”."
    return finish(figure, f"Of {len(records)} claims, {', '.join(counts)}", note)


def claim_curves(record: Record, variants: Mapping[str, str]) -> Figure:
    """Proxy and gold reward by KL from π₀, as changes since the first point; variant -> its name in the legend.

    An RM's zero is arbitrary, so the proxy starts from iteration 1; the gold reward starts from SFT, where KL is 0.
    """
    figure, panels = new_figure(columns=2, height=3.9)
    rising = {}
    for axes, metric, label in zip(panels, ("proxy_reward", "reward"), ("proxy reward", "gold reward"), strict=True):
        rising[label] = 0
        for index, (variant, name) in enumerate(variants.items()):
            found = record["variants"][variant]
            steps = sorted(int(key.split("@")[1]) for key in next(iter(found.values())) if key.startswith(f"{metric}@"))
            curves = np.array([[seed[f"{metric}@{step}"] for step in steps] for seed in found.values()])
            places = np.array([[seed[f"kl@{step}"] for step in steps] for seed in found.values()])
            rising[label] += bool(curves[:, -1].mean() > curves[:, 0].mean())
            if metric == "reward":
                curves = np.column_stack([[record["variants"]["sft"][seed][metric] for seed in found], curves])
                places = np.column_stack([np.zeros(len(found)), places])
            _curves(axes, places, curves - curves[:, :1], name, style.look_of(name, index))
        axes.set(xlabel="KL from π₀ (nats)", ylabel=f"change of the {label}")
    style.legend_above(panels[0], ncols=2)
    note = "The zero of a reward model is arbitrary: compare directions, not heights, on the left. Points: iterations."
    counts = " and ".join(f"the mean {label} rises in {count}" for label, count in rising.items())
    title = f"From iteration {steps[0]} to {steps[-1]} {counts} of {len(variants)} variants"
    return finish(figure, title, f"{SHOWN}\n{note}")


def claim_sizes(record: Record, shares: Mapping[str, float]) -> Figure:
    """RM accuracy on clean held-out pairs against the share of the mixture that trained it (rising)."""
    figure, [axes] = new_figure(height=3.2)
    curves = [[100 * seed["accuracy"] for seed in record["variants"][variant].values()] for variant in shares]
    steps = [100 * share for share in shares.values()]
    _curves(axes, np.tile(steps, (len(curves[0]), 1)), np.array(curves).T, "", {"color": BLUE, "marker": "o"})
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [f"{value:g}" for value in steps])
    axes.set(xlabel="share of the mixture's pairs (%)", ylabel="accuracy, clean labels (%)")
    ends = [f"{np.mean(curves[place]):.1f} % with {steps[place]:g} %" for place in (0, -1)]
    return finish(figure, f"Mean accuracy of the RM: {ends[0]}, {ends[1]} of the pairs", SHOWN)


def _curves(axes: Any, places: Any, curves: Any, name: str, look: Mapping[str, Any]) -> None:
    """Each seed (a row of both) as a thin line, their mean as a thick one."""
    axes.plot(places.T, curves.T, color=look["color"], lw=0.7, alpha=0.5)
    axes.plot(places.mean(axis=0), curves.mean(axis=0), lw=2.2, label=name, **look)
    axes.grid(axis="y")
