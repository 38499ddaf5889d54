"""Figures of the claims (chapters 11 and 12), drawn from `results/claims/*.json`."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhflow_utils.claims.designs import Claim, build_claims, share_name, wanted_arms
from rlhflow_utils.claims.pipeline import measure_arm
from rlhflow_utils.claims.verdicts import (
    CLAIMS,
    DEVELOPMENT,
    FAILS,
    HOLDS,
    MISSING,
    UNTESTABLE,
    Record,
    claim_record,
    parts_table,
    signed,
    told,
)
from rlhflow_utils.guide.figures.style import BLUE, CYCLE, DARK, GREEN, GREY, ORANGE, RED, error_bar, finish, new_figure
from rlhflow_utils.guide.profile import Profile
from rlhflow_utils.guide.settings import WorldSettings
from rlhflow_utils.guide.stage import Run
from rlhflow_utils.guide.tables import markdown_table, with_interval

# Name in the text below -> claim and comparison.
COMPARISONS = {
    "loop_sft": ("e", "iterative DPO − SFT"),
    "characters": ("e", "characters, iterative DPO − SFT"),
    "lambda_loop": ("e", "with λ: iterative − offline DPO"),
    "lambda_right": ("e", "with λ: right answers, iterative − offline DPO"),
    "lambda_lc": ("e", "with λ: LC win rate, iterative − offline DPO"),
    "lambda_characters": ("e", "with λ: characters, iterative DPO − SFT"),
    "offline": ("e", "offline DPO − SFT"),
    "offline_right": ("e", "right answers, offline DPO − SFT"),
    "offline_characters": ("e", "characters, offline DPO − SFT"),
    "first": ("f", "iteration 1 − SFT"),
    "second": ("f", "iteration 2 − iteration 1"),
    "lambda_first": ("f", "with λ: iteration 1 − SFT"),
    "proxy": ("l", "proxy gain, good RM"),
    "gold": ("l", "gold gain, good RM"),
    "gold_weak": ("l", "gold gain, weak RM"),
    "correlation": ("d", "mix2 alone"),
    "equal_length": ("d", "mix1 − mix2, equal size"),
    "all_safety": ("c", "mix2 − mix1, safety"),
    "equal_safety": ("c", "mix2, equal size − mix1, safety"),
    "equal_reasoning": ("c", "mix2, equal size − mix1, reasoning"),
    "best_worst": ("j", "best-worst − random"),
    "best_worst_raw": ("k", "RM of all pairs − random pairs"),
    "better_mixture": ("k", "RM of mix2 − of mix1"),
    "more_pairs": ("k", "RM of all pairs − of few"),
    "more_pairs_accuracy": ("k", "the RMs' accuracy, all pairs − few"),
    "restart": ("i", "last iterate − restart"),
    "replay": ("n", "replay − new only"),
    "reference": ("reference", "fixed − moving"),
    "pm": ("b", "PM − BT, held-out pairs"),
    "pm_ranks": ("m", "tournament − random"),
    "prompted": ("a", "prompting − coin, chat_hard"),
    "pm_prompted": ("a", "PM − prompting, chat_hard"),
    "bt_coin": ("b", "BT − coin, reasoning"),
    "pm_coin": ("b", "PM − coin, reasoning"),
    "tax": ("h", "iterative DPO − SFT"),
    "tax_offline": ("h", "offline DPO − SFT"),
}
TEXT = """
* **The loop adds filler, the penalty takes it out (e, f, g).** Without λ, the setting of the paper's 37.2, the loop
  gains nothing over SFT that shows: iteration 1 less SFT is {first}, the last iteration less SFT {loop_sft}; its
  answers change by {characters} characters. With λ, iteration 1 less SFT is {lambda_first}, and the answers change by
  {lambda_characters} characters. With λ, iterative less offline DPO is {lambda_loop} by win rate, but {lambda_lc}
  at equal lengths and {lambda_right} in right answers.{lambda_right_elsewhere} So what λ surely buys is brevity. (An
  interval that includes zero proves no equality.)
* **Offline DPO is right more often than SFT, and yet does not win (e).** Right answers, offline DPO less SFT:
  {offline_right}. But its answers grow (characters: {offline_characters}), a phrase too many loses a comparison between
  two right answers, and so its win rate less one half is {offline}. Which of the two one reads decides the second half
  of the claim.
* **The proxy rises, the truth does not follow (f, l).** Without λ the reward that the loop is trained on goes on
  rising from iteration 1 to the last ({proxy}), while the win rate of iteration 2 less that of iteration 1 is {second}.
  Gold reward from SFT to the last iteration: {gold} with the RM of all pairs, {gold_weak} with one of few. Yet on SFT's
  answers the RM's correlation with length is {correlation}: an average over SFT's answers does not show what a policy
  finds when it searches.
* **Which pair is chosen matters little (j, k).** Best against worst, less two random answers in the order of the same
  RM: {best_worst} with λ, {best_worst_raw} without. One reading: the rule that follows the RM furthest follows it into
  its errors, too.
* **Other choices inside the loop hardly show (i, n, reference).** The last iterate less a restart, which trains on
  all pairs so far: {restart}. Replay of all pairs less new ones only: {replay}. π₀ as fixed reference less the last
  iterate as reference: {reference}.
* **A better RM gives a better policy, where the RMs do differ (k).** The RM of mix2 less that of mix1, after one
  iteration: {better_mixture}. All pairs less few, after the last: {more_pairs}; but these two RMs themselves differ in
  accuracy by {more_pairs_accuracy}.
* **What mix2 changes is in its sources, not in its size (c, d).** An RM of as many pairs as mix1 has is better in
  safety, {equal_safety}; with all of mix2 worlds differ more: {all_safety}. In reasoning it stays open at equal size:
  {equal_reasoning}. It leans less to length (mix1 less mix2): {equal_length}.
* **The PM is behind at this budget (a, b, m).** It sees each pair once, as the BT model does, and all it is told of a
  pair is one token: held-out accuracy, PM less BT, {pm}. Its pairs are no better than random ones: {pm_ranks}. The
  prompted model, which has read graded exam sheets but no preference, is better than a coin in chat-hard ({prompted}),
  where the PM less it is {pm_prompted}. In reasoning neither trained judge is told from a coin: BT {bt_coin}, PM
  {pm_coin}.
* **A tax falls on offline DPO (h).** The untouched skill, offline DPO less SFT: {tax_offline}; iterative DPO less
  SFT: {tax}.
* **Worlds differ more than arms.** A seed draws facts, annotators and a base model, and base models of this size
  learn the skills unevenly. So few draws decide large effects only: *inconclusive* means "not enough worlds" more
  often than "no effect". The *no worse* claims (h, i, m, o) are hard to confirm.
"""
BUILT_IN = """
* **The gold reward**: +1 for a right answer, −1 for a wrong one, less {world.padding_cost:g} for each character of
  filler. So of two right answers the one without filler wins: a phrase decides a comparison as surely as a wrong sum.
* **The annotators** see the gold reward times their sharpness, plus their taste for each character, plus noise (below).
  mix1's sources lean long; of them only UltraFeedback has reasoning and only HH-RLHF safety, both labelled with little
  sharpness. mix2 adds sources that hold nothing else and label it sharply, and four that lean short. So the labels
  build claims c and d in; what the models make of them is measured.
* **The answers they compare**: one right and one wrong in {pairs.contrast_rate:.0%} of the pairs; filler in
  {pairs.padded_rate:.0%} of the answers; {pairs.broken_rate:.0%} of the wrong ones are broken off, as sampled ones can
  be; dirt in {pairs.dirt_rate:.0%} of the rows.
* **The demonstrations**: right in {sft.correct_rate:.0%}, padded in {sft.padded_rate:.0%}; besides them
  {sft.translations:,} translations, the fifth skill, which no preference touches, and {sft.judgements:,} rows in the
  judge's form.
* **The base corpus**: {corpus.statements:,} statements, {corpus.questions:,} questions with their answers,
  {corpus.proofread:,} proofread pages, {corpus.graded:,} graded exam sheets, without which no judge could check a sum,
  and {corpus.comparisons:,} comparisons.
"""


def discussion(records: Mapping[str, Record]) -> str:
    """The discussion in Markdown, its numbers read from the records."""
    if not records:
        return MISSING
    numbers = {}
    for key, (claim, name) in COMPARISONS.items():
        record = records.get(claim, {"parts": [], "variants": {}})
        found = [part for part in record["parts"] if part["part"] == name]
        numbers[key] = told(found[0]) if found else "(not measured)"
        others = [
            f"{setting} {told(part, by_seed=False)}"
            for setting, other in record["variants"].items()
            for part in other["parts"]
            if part["part"] == name
        ]
        numbers[f"{key}_elsewhere"] = (
            f" The same with other annotators, over prompts: {', '.join(others)}." if others else ""
        )
    return TEXT.format(**numbers)


def built_in(world: WorldSettings) -> str:
    """What finding it proves only that the pipeline can: a plain list, read from the profile."""
    sources = [
        {"source": name, "native rows": source.rows, "reward per character": f"{source.length_bonus:+g}",
         "sharpness": ", ".join(f"{skill} {value:g}" for skill, value in source.sharpness.items()),
         "share of prompts": ", ".join(f"{skill} {value:g}" for skill, value in source.skill_weights.items())}
        for name, source in world.preferences.sources.items()
    ]  # fmt: skip
    text = BUILT_IN.format(world=world, pairs=world.preferences, sft=world.sft, corpus=world.corpus)
    return f"{text}\n{markdown_table(sources)}"


CAPTION = "Simulated world, model of under one million parameters. Evidence about the method there, not about LLaMA-3."
CURVES = {
    "main": "the recipe (with λ)", "no_penalty": "without λ", "weak_rm": "without λ, RM of few pairs",
    "low_beta": "without λ, low β",
}  # fmt: skip
FAMILIES = ("judges", "length", "policies", "loop", "rankers", "checks")


def claims_of_run(run: Run, identifiers: Sequence[str]) -> dict[str, Record]:
    """The deciding comparisons of some claims on the guide's own run: one seed, so intervals over prompts.

    Raises:
        FileNotFoundError: a stage of an arm is missing; the message names its chapter.
    """
    claims = build_claims(run.profile)
    chosen = [_deciding(claims[name]) for name in identifiers]
    measures = {str(run.profile.seed): {arm: measure_arm(run, arm) for arm in wanted_arms(chosen)}}
    command = "make guide"
    return {c.identifier: claim_record(c, measures, {}, run.profile.evaluation, command) for c in chosen}


def _deciding(claim: Claim) -> Claim:
    """A claim without the comparisons that are only shown, and those with RMs of a share: the guide trains none."""
    decisive = [part for part in claim.parts if part.kind != "measured"]
    parts = tuple(part for part in decisive if "share" not in f"{part.better} {part.worse}")
    wanted = {arm for part in (*parts, claim.precondition) if part for arm in (part.better, part.worse)}
    return replace(claim, parts=parts, arms=tuple(arm for arm in claim.arms if arm in wanted))


def family(records: Mapping[str, Record], name: str) -> list[Record]:
    """The claims that one figure shows."""
    return [record for record in records.values() if record["family"] == name]


def family_text(records: Sequence[Record]) -> str:
    """Hypothesis, design, control and verdict of each claim, its comparisons, and the command that measures it."""
    blocks = []
    for record in records:
        stated = f" The paper: {record['paper']}." if record["paper"] else ""
        blocks.append(
            f"**{record['claim']} · {record['title']}** ({record['section']}): **{record['verdict']}**, "
            f"seeds: {record['seeds']}, interval {record['interval']}.\n\n{record['hypothesis']}{stated} "
            f"*Design:* {record['design']} *Control:* {record['control']}\n\n"
            f"{markdown_table(parts_table(record))}\n\n`{record['command']}`"
        )
    return "\n\n".join(blocks)


def show_family(records: Mapping[str, Record], name: str) -> Any:
    """A notebook cell's output: the family's text, then its figure; says so where nothing has been measured."""
    from IPython.display import Markdown, display

    chosen = family(records, name)
    if not chosen:
        return Markdown(MISSING)
    display(Markdown(family_text(chosen)))
    return show_forest(chosen)


def show_forest(records: Sequence[Record], deciding: bool = False) -> Any:
    """The comparisons of some claims over seeds, all or those that decide, with the command that measures them."""

    if deciding:
        records = [{**r, "parts": [part for part in r["parts"] if part["kind"] != "measured"]} for r in records]
    return claim_forest(records, caption=_caption(records))


def show_curves(records: Mapping[str, Record]) -> Any:
    """Claim l: proxy and gold reward over the iterations."""

    return claim_curves(records["l"], CURVES, caption=_caption([records["l"]])) if "l" in records else None


def show_sizes(records: Mapping[str, Record], profile: Profile) -> Any:
    """RM accuracy against training size."""

    if "sizes" not in records or profile.claims is None:
        return None
    shares = {share_name(share): share for share in profile.claims.rm_shares} | {"bt": 1.0}
    known = {arm: share for arm, share in shares.items() if arm in records["sizes"]["arms"]}
    return claim_sizes(records["sizes"], known, caption=_caption([records["sizes"]]))


def budgets(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """What each reward model, PM and policy was trained on, over all its iterations; means over seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for record in records.values():
        for arm, seeds in record["arms"].items():
            known = [seed for seed in seeds.values() if "updates" in seed]
            if known and len(known) > rows.get(arm, {"seeds": 0})["seeds"]:
                means = {key: sum(seed[key] for seed in known) / len(known) for key in ("pairs", "updates", "tokens")}
                rows[arm] = {"arm": arm, **{key: round(mean) for key, mean in means.items()}, "seeds": len(known)}
    return [row for arm, row in rows.items() if f"bt_{arm}" not in rows]  # an RM of a share goes by two names


def ranking_costs(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Claim m: forward passes for each prompt, and what they buy; means over seeds."""
    rows = []
    for arm in ("no_penalty", "pm_tournament", "pm_round_robin") if "m" in records else ():
        seeds = list(records["m"]["arms"][arm].values())
        mean = {key: sum(seed[key] for seed in seeds) / len(seeds) for key in ("passes", "win_rate@1")}
        label = {"no_penalty": "BT RM"}.get(arm, arm.replace("pm_", "PM, ").replace("_", " "))
        against = [part for part in records["m"]["parts"] if (part["better"], part["worse"]) == (arm, "no_penalty")]
        rows.append({"ranked by": label, "forward passes for a prompt": int(mean["passes"]),
                     "win rate vs SFT": mean["win_rate@1"],
                     "difference to the BT RM": told(against[0], by_seed=False) if against else None})  # fmt: skip
    return rows


def development_rows(folder: Path = CLAIMS) -> list[dict[str, Any]]:
    """How the β of each loss was chosen: win rate on the development seed by β; empty where it was not measured."""
    if not (folder / DEVELOPMENT).is_file():
        return []
    chosen = json.loads((folder / DEVELOPMENT).read_text(encoding="utf-8"))
    return [
        {"loss": loss, "β": beta, "win rate vs SFT": with_interval(rate), "chosen": "✓" if beta == best else None}
        for loss, best in chosen["best"].items()
        for beta, rate in chosen["win_rate"][loss].items()
    ]


def surprises(records: Mapping[str, Record]) -> str:
    """A paragraph, written from the records: what held, what did not, and what hung on the annotators."""
    if not records:
        return MISSING
    counts = Counter(record["verdict"] for record in records.values())
    tally = ", ".join(f"{count} × *{verdict}*" for verdict, count in counts.most_common())
    text = f"{len(records)} claims and checks: {tally}."
    for record in records.values():
        if record["verdict"] in (FAILS, UNTESTABLE):
            text += (f" **{record['claim']}** ({record['title']}): *{record['verdict']}*; {record['part']} "
                     f"{signed(record['effect'])} ({signed(record['ci_low'])} … "
                     f"{signed(record['ci_high'])}).")  # fmt: skip
    fragile = [r["claim"] for r in records.values() if r["verdict"] == HOLDS and r["robust"] is False]
    if fragile:
        text += f" Not under every setting of the annotators: {', '.join(fragile)}."
    return text


def _caption(records: Sequence[Record]) -> str:
    return f"{CAPTION}\n{command_of(records)}"


def command_of(records: Sequence[Record]) -> str:
    """The command that measures some claims again."""
    only = ",".join(record["claim"] for record in records)
    return f"python -m rlhflow_utils claims --only {only} --seeds {max(record['seeds'] for record in records)}"


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
