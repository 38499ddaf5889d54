"""The paper's Tables 2, 4, 5 and 6 beside what was measured here, read from `results/`.

A published reference run leaves ``results/<profile>/summary.json``. The commands `academic` and `chat` write one JSON
per policy (sft, offline_dpo, iterative_dpo), which belongs beside it as ``academic_<policy>.json`` and
``<benchmark>_<policy>.json`` (benchmark: alpaca_eval, mt_bench, arena_hard). Every cell of the paper's tables that
this project means to reproduce gets a line; where nothing was measured it says so.

Scales differ: in the simulated world a policy is judged by the gold reward against SFT, the paper's by GPT-4 against
GPT-4. `setting` says what kind of number ours is. What can be compared is the order of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhflow_utils import paper
from rlhflow_utils.claims.effects import ENOUGH_SEEDS, t_interval
from rlhflow_utils.provenance import PROJECT
from rlhflow_utils.tables import interval

NOT_RUN = "not run here"
POLICIES = {"SFT": "sft", "offline DPO": "offline_dpo", "iterative DPO": "iterative_dpo"}
# Row of the paper's Table 6 -> the claim (chapter 11), its arm that changes the same thing here, and that arm in words.
ABLATIONS = {
    "ours": ("g", "no_penalty", "no λ"),
    "concise (lambda = 0.001)": ("g", "penalty", "λ of this world"),
    "with UltraRM-13B": ("k", "mix1_rm", "RM of mix1 in its place, no λ"),
}
# Benchmark -> its column in Table 4, the key of its score in the results of `chat`, and the scale of the column.
CHAT = {
    "alpaca_eval": ("LC AlpacaEval-2 (%)", "lc_win_rate", 100.0),
    "mt_bench": ("MT-Bench (1-10)", "score", 1.0),
    "arena_hard": ("Arena-Hard (%)", "score", 100.0),
}
JUDGES = {"gold": "gold judge", "reward_model": "reward model as judge", "endpoint": "LLM judge"}
Line = dict[str, Any]
Results = Mapping[str, dict[str, Any]]
Estimates = Mapping[str, Mapping[str, float]]  # setting -> value, ci_low, ci_high


def read_results(folder: Path = PROJECT / "results") -> dict[str, dict[str, Any]]:
    """Profile -> its summary's metrics, with the results of each policy under ``academic`` and under each benchmark."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/summary.json")):
        found[file.parent.name] = dict(json.loads(file.read_text(encoding="utf-8"))["summary"])
    for kind in ("academic", *CHAT):
        for file in sorted(folder.glob(f"*/{kind}_*.json")):
            content = json.loads(file.read_text(encoding="utf-8"))
            policy = file.stem.removeprefix(f"{kind}_")
            found.setdefault(file.parent.name, {}).setdefault(kind, {})[policy] = content
    return found


def table_2(results: Results) -> list[Line]:
    """RewardBench by section, per cent: prompting, BT and PM."""
    lines = []
    for label, stated in paper.REWARDBENCH.items():
        for section, printed in stated.items():
            estimates = {
                f"{profile}: {_rewardbench_setting(profile)}": found
                for profile, summary in results.items()
                if (found := _estimate(summary, f"05.rewardbench.{label}.{section}"))
            }
            lines += _estimate_lines({"judge": label, "section": section}, printed, estimates)
    return lines


def table_4(results: Results) -> list[Line]:
    """Chat benchmarks of the three policies; beside them the training reward model's plain win rate, same answers."""
    lines = []
    for name, policy in POLICIES.items():
        for (benchmark, (column, _, scale)), printed in zip(CHAT.items(), paper.CHAT_BENCHMARKS[name], strict=True):
            estimates = _benchmark_scores(results, benchmark, policy)
            if benchmark == "alpaca_eval":
                estimates |= _against_sft(results, f"10.{policy}")
            for line in _estimate_lines({"policy": name, "benchmark": column}, printed, estimates, scale):
                proxy = estimates.get(line["setting"], {}).get("proxy")
                lines.append({**line, "plain win rate by the training RM": None if proxy is None else 100 * proxy})
    return lines


def table_5(results: Results) -> list[Line]:
    """The academic suite, per cent, and below it the untouched skill that stands for it in the simulated world."""
    lines = []
    for name, policy in POLICIES.items():
        for task, printed in zip(paper.ACADEMIC_TASKS, paper.ACADEMIC[name], strict=True):
            estimates = {
                f"{profile}: lm-eval, {found['shots']} shots, n = {found['n']}": found
                for profile, summary in results.items()
                if (found := summary.get("academic", {}).get(policy, {}).get("tasks", {}).get(task))
            }
            lines += _estimate_lines({"policy": name, "task": task}, printed, estimates)
        skill = {
            f"{profile}: a skill absent from preferences and prompts": found
            for profile, summary in results.items()
            if (found := _estimate(summary, f"10.{policy}.exact_match"))
        }
        lines += _estimate_lines({"policy": name, "task": "untouched skill"}, None, skill)
    return lines


def table_6(records: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """The ablations: length penalty, and a reward model that likes length. The RM of mix1 stands for UltraRM-13B.

    Args:
        records: the claims' records, as from `claims.records.read_records`.
    """
    lines = []
    for name, (alpaca, arena, length) in paper.ABLATIONS.items():
        claim, arm, words = ABLATIONS[name]
        record = records.get(claim, {})
        rates = _over_seeds(record, arm, "lc_win_rate", f"{words}; gold judge, LC win rate against SFT")
        lengths = _over_seeds(record, arm, "length", f"{words}; characters (the paper names no unit)")
        lines += _estimate_lines({"row": name, "column": "LC AlpacaEval-2 (%)"}, alpaca, rates)
        lines += _estimate_lines({"row": name, "column": "Arena-Hard (%)"}, arena, {})
        lines += _estimate_lines({"row": name, "column": "length"}, length, lengths, scale=1.0)
        for task, printed in zip(paper.ACADEMIC_TASKS, paper.ABLATIONS_ACADEMIC[name], strict=True):
            lines += _estimate_lines({"row": name, "column": task}, printed, {})
    return lines


# --- parts --------------------------------------------------------------------------------------------------------


def _estimate_lines(head: Line, printed: float | None, estimates: Estimates, scale: float = 100.0) -> list[Line]:
    """One line per setting in which it was measured; one that says so where there is none."""
    if not estimates:
        return [{**head, "paper": printed, "ours": NOT_RUN, "setting": None, "95 % interval": None}]
    lines = []
    for setting, found in estimates.items():
        limits = {key: scale * found[key] for key in ("ci_low", "ci_high") if key in found}
        ours = {"paper": printed, "ours": scale * found["value"], "setting": setting}
        lines.append({**head, **ours, "95 % interval": interval(limits) if limits else None})
    return lines


def _estimate(summary: Mapping[str, Any], key: str) -> dict[str, float]:
    """A metric of a summary with its interval, where it has one; empty where it was not measured."""
    names = {"value": key, "ci_low": f"{key}_ci_low", "ci_high": f"{key}_ci_high"}
    return {name: float(summary[full]) for name, full in names.items() if summary.get(full) is not None}


def _benchmark_scores(results: Results, benchmark: str, policy: str) -> dict[str, dict[str, float]]:
    """What the command `chat` measured, by setting."""
    scores = {}
    for profile, summary in results.items():
        found = summary.get(benchmark, {}).get(policy)
        if found:
            score = found[CHAT[benchmark][1]]
            scores[f"{profile}: {benchmark}, judge {found['judge']}, n = {score['n']}"] = score
    return scores


def _against_sft(results: Results, prefix: str) -> dict[str, dict[str, float]]:
    """Length-controlled win rate against SFT, by setting, with the proxy RM's win rate of the same answers."""
    rates = {}
    for profile, summary in results.items():
        for judge, words in JUDGES.items():
            found = _estimate(summary, f"{prefix}.{judge}_lc_win_rate_vs_sft")
            if found:
                proxy = _estimate(summary, f"{prefix}.proxy_win_rate_vs_sft")
                rates[f"{profile}: {prefix[3:]}, {words}, LC win rate against SFT"] = found | (
                    {"proxy": proxy["value"]} if proxy else {}
                )
    return rates


def _over_seeds(record: Mapping[str, Any], arm: str, metric: str, words: str) -> Estimates:
    """An arm's measure after its last iteration: mean over seeds, with Student's t interval where they are enough."""
    seeds: Mapping[str, Mapping[str, float]] = record.get("arms", {}).get(arm, {})
    iterations = [key for measures in seeds.values() for key in measures if key.startswith(f"{metric}@")]
    if not iterations:
        return {}
    last = max(iterations, key=lambda key: int(key.partition("@")[2]))
    values = [measures[last] for measures in seeds.values()]
    found = {"value": fmean(values)}
    if len(values) >= ENOUGH_SEEDS:
        estimate = t_interval(values, record["confidence"])
        found |= {"ci_low": estimate.ci_low, "ci_high": estimate.ci_high}
    return {f"tiny, iteration {last.partition('@')[2]}, {len(values)} seed(s): {words}": found}


def _rewardbench_setting(profile: str) -> str:
    return {
        "tiny": "pairs of the simulated world",
        "slices": "RewardBench's LLMBar, HumanEvalPack and XSTest pairs",
    }.get(profile, "RewardBench")
