"""What chapters 11 and 12 show of the claims: tables and figures from `results/claims/`, each with its command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhflow_utils.claims.designs import Claim, build_claims, wanted_arms
from rlhflow_utils.claims.effects import FAILS, HOLDS, UNTESTABLE
from rlhflow_utils.claims.measures import measure_arm
from rlhflow_utils.claims.records import (
    CLAIMS,
    DEVELOPMENT,
    MISSING,
    Record,
    claim_record,
    parts_table,
    signed,
    told,
)
from rlhflow_utils.claims.stages import share_name
from rlhflow_utils.config import Profile
from rlhflow_utils.manifest import Run
from rlhflow_utils.tables import markdown_table, with_interval

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
    from rlhflow_utils import plotting

    if deciding:
        records = [{**r, "parts": [part for part in r["parts"] if part["kind"] != "measured"]} for r in records]
    return plotting.claim_forest(records, caption=_caption(records))


def show_curves(records: Mapping[str, Record]) -> Any:
    """Claim l: proxy and gold reward over the iterations."""
    from rlhflow_utils import plotting

    return plotting.claim_curves(records["l"], CURVES, caption=_caption([records["l"]])) if "l" in records else None


def show_sizes(records: Mapping[str, Record], profile: Profile) -> Any:
    """RM accuracy against training size."""
    from rlhflow_utils import plotting

    if "sizes" not in records or profile.claims is None:
        return None
    shares = {share_name(share): share for share in profile.claims.rm_shares} | {"bt": 1.0}
    known = {arm: share for arm, share in shares.items() if arm in records["sizes"]["arms"]}
    return plotting.claim_sizes(records["sizes"], known, caption=_caption([records["sizes"]]))


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
