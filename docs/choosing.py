"""Write the measured tables of choosing.md, from the committed results. ::

    python docs/choosing.py            # all but the table of λ
    python docs/choosing.py runs/tiny  # and that, from the scores of a finished run
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.publishing import replace_block
from rlhflow_utils.guide.stage import PROJECT, read_json
from rlhflow_utils.guide.tables import markdown_table
from rlhflow_utils.simulator.gold import World

PAGE = Path(__file__).with_suffix(".md")
RESULTS = PROJECT / "results"
PENALTIES = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
KL_BINS = [0, 1, 2, 4, 8, 20, float("inf")]  # nats


def claim(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """``{variant: {seed: {metric: value}}}`` of a claim's record."""
    variants: dict[str, dict[str, dict[str, float]]] = read_json(RESULTS / "claims" / f"{name}.json")["variants"]
    return variants


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def penalty_table(run: Path) -> str:
    """Best-versus-worst pairs of iteration 1 under each λ: lengths, rewards and, by the world's check, who is right."""
    from datasets import load_from_disk

    world = World(load_profile("tiny").world)
    scored = [row for row in load_from_disk(str(run / "iter1_scores" / "data")) if len(set(row["responses"])) > 1]
    rewards = np.array([row["rewards"] for row in scored])
    lengths = np.array([[len(text) for text in row["responses"]] for row in scored])
    right = np.array([
        [world.is_correct(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in scored
    ])  # fmt: skip
    spread, rows, prompts = (rewards.std(1).mean(), lengths.std(1).mean()), [], np.arange(len(scored))
    for penalty in PENALTIES:
        ranked = rewards - penalty * lengths
        best, worst = (prompts, ranked.argmax(1)), (prompts, ranked.argmin(1))
        rows.append({
            "λ": str(penalty), "λ × lengths / rewards": f"{penalty * spread[1] / spread[0]:.2f}",
            "characters chosen": f"{lengths[best].mean():.1f}", "characters rejected": f"{lengths[worst].mean():.1f}",
            "reward gap": f"{(rewards[best] - rewards[worst]).mean():.2f}",
            "right chosen, wrong rejected (%)": percent((right[best] & ~right[worst]).mean()),
            "wrong chosen, right rejected (%)": percent((~right[best] & right[worst]).mean()),
        })  # fmt: skip
    text = (
        f"{len(scored)} prompts; the spread over a prompt's answers is {spread[0]:.2f} in reward and "
        f"{spread[1]:.1f} characters in length (mean standard deviation). The ratio is {spread[0] / spread[1]:.3f}."
    )
    return f"{text}\n\n{markdown_table(rows)}"


def beta_table() -> str:
    """The sweep over β on the development seed (`claims_beta.json`)."""
    swept = read_json(RESULTS / "claims_beta.json")["length_adjusted_win_rate"]
    betas = sorted({beta for rates in swept.values() for beta in rates}, key=float)
    rows = []
    for loss, rates in swept.items():
        found = {b: rates[b] for b in betas if b in rates}
        cells = {
            b: f"{percent(e['value'])} ({percent(e['ci_low'])} to {percent(e['ci_high'])})" for b, e in found.items()
        }  # fmt: skip
        rows.append({"loss": loss, **{f"β = {beta}": cells.get(beta, "–") for beta in betas}})
    parts = read_json(RESULTS / "claims" / "l.json")["comparisons"]
    low = next(part for part in parts if part["worse"] == "low_beta" and part["kind"] == "greater")
    effect, *bounds = (f"{low[name]:+.2f}" for name in ("effect", "ci_low", "ci_high"))
    text = (
        "Claim l: true reward after three iterations without the penalty, β = 0.1 minus β = 0.03: "
        f"{effect} ({' to '.join(bounds)}; {len(low['per_seed'])} seeds)."
    )
    return f"{markdown_table(rows)}\n\n{text}"


def iterations_table() -> str:
    """Means over the seeds of claim e, iteration by iteration, with and without the length penalty."""
    variants, rows = claim("e"), []
    for variant, label in (("main", "with the penalty"), ("no_penalty", "without it")):
        seeds = list(variants[variant].values())
        for k in (1, 2, 3):
            mean = {name: fmean(seed[f"{name}@{k}"] for seed in seeds) for name in
                    ("kl", "mean_length", "accuracy", "length_adjusted_win_rate", "exact_match")}  # fmt: skip
            rows.append({
                "": f"{label}, iteration {k}", "KL (nats)": f"{mean['kl']:.1f}",
                "characters": f"{mean['mean_length']:.0f}", "right answers (%)": percent(mean["accuracy"]),
                "length-adjusted win rate (%)": percent(mean["length_adjusted_win_rate"]),
                "untouched skill (%)": percent(mean["exact_match"]),
            })  # fmt: skip
    sft = list(variants["sft"].values())
    start = [fmean(seed[name] for seed in sft) for name in ("mean_length", "accuracy", "exact_match")]
    text = (f"Means over {len(sft)} seeds. SFT: {start[0]:.0f} characters, {percent(start[1])} % right, "
            f"{percent(start[2])} % of the untouched skill.")  # fmt: skip
    return f"{text}\n\n{markdown_table(rows)}"


def pairs_table() -> str:
    """What pair building counted in the published run, seed 0."""
    summary, rows = read_json(RESULTS / "tiny" / "summary.json")["summary"], []
    prompts = load_profile("tiny").iterative.prompts_per_iteration
    for k in (1, 2, 3):
        row: dict[str, Any] = {"iteration": k}
        for folder, label in ((f"iter{k}", "with the penalty"), (f"unpenalised{k}", "without it")):
            pairs = {name: summary[f"{folder}_pairs.{name}"] for name in
                     ("pairs", "mean_margin", "mean_chosen_length", "mean_rejected_length")}  # fmt: skip
            row[f"{label}: dropped (%)"] = percent(1 - pairs["pairs"] / prompts)
            row[f"{label}: margin"] = f"{pairs['mean_margin']:.2f}"
            lengths = f"{pairs['mean_chosen_length']:.0f}, {pairs['mean_rejected_length']:.0f}"
            row[f"{label}: characters chosen, rejected"] = lengths
        rows.append(row)
    return markdown_table(rows)


def policies() -> Iterator[tuple[str, int, dict[str, float], dict[str, float]]]:
    """Every policy of all claims, once: seed, iteration (0: no loop), metrics, and those of the iteration before."""
    seen, names = set(), ("kl", "accuracy", "exact_match", "mean_length")
    for file in sorted((RESULTS / "claims").glob("*.json")):
        for variant, seeds in claim(file.stem).items():
            for seed, metrics in seeds.items():
                before: dict[str, float] = {}
                for k in (0, 1, 2, 3):
                    keys = [f"{name}@{k}" if k else name for name in names]
                    if variant == "sft" or not metrics.keys() >= set(keys):
                        continue
                    now = {name: metrics[key] for name, key in zip(names, keys, strict=True)}
                    if (seed, *now.values()) not in seen:
                        seen.add((seed, *now.values()))
                        yield seed, k, now, before
                    before = now


def share(found: Sequence[bool]) -> str:
    return f"{sum(found)} of {len(found)}"


def kl_table() -> str:
    """Every policy of the claims by its KL from π₀, against SFT of its seed; and what a step of KL went with."""
    sft, found, rows = claim("e")["sft"], list(policies()), []
    for low, high in pairwise(KL_BINS):
        here = [(seed, now) for seed, _, now, _ in found if low <= now["kl"] < high]
        if not here:
            continue
        rows.append({
            "KL from π₀ (nats)": f"{low} to {high}" if high < float("inf") else f"over {low}", "policies": len(here),
            "fewer right answers than SFT": share([now["accuracy"] < sft[seed]["accuracy"] for seed, now in here]),
            "lost some of the untouched skill": share(
                [now["exact_match"] < sft[seed]["exact_match"] for seed, now in here]
            ),
            "right answers (%)": percent(fmean(now["accuracy"] for _, now in here)),
            "length, of SFT's": f"{fmean(now['mean_length'] / sft[seed]['mean_length'] for seed, now in here):.1f}",
        })  # fmt: skip
    steps = [(now["kl"] - before["kl"], now["accuracy"] < before["accuracy"]) for _, _, now, before in found if before]
    small, large = ([worse for step, worse in steps if (step > 2) is big] for big in (False, True))
    text = (f"An iteration that raised KL by more than 2 nats ended with fewer right answers in {share(large)} cases, "
            f"any other iteration after the first in {share(small)}.")  # fmt: skip
    return f"{markdown_table(rows)}\n\n{text}"


def learning_rate_text() -> str:
    """Claim p: one round with the updates of three iterations at the learning rate of one."""
    record = claim("p")
    once, loop = list(record["one_round"].values()), list(record["main"].values())
    right, kl = ([seed[name] for seed in once] for name in ("accuracy@1", "kl@1"))
    return (
        f"One round of {once[0]['updates']:.0f} updates from π₀ at that rate ended at {min(kl):.0f} to {max(kl):.0f} "
        f"nats on {len(once)} seeds, with {percent(min(right))} to {percent(max(right))} % right answers. Three "
        "iterations with as many updates together ended at "
        f"{percent(fmean(seed['accuracy@3'] for seed in loop))} % (claim p)."
    )


def blocks() -> dict[str, str]:
    """The measured parts of the page by name."""
    return {
        "beta": beta_table(), "iterations": iterations_table(), "pairs": pairs_table(), "kl": kl_table(),
        "learning-rate": learning_rate_text(),
    }  # fmt: skip


if __name__ == "__main__":
    measured = {"penalty": penalty_table(Path(sys.argv[1]))} if len(sys.argv) > 1 else {}
    for name, text in (measured | blocks()).items():
        replace_block(name, f"{text}\n", PAGE)
