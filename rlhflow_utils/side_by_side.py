"""The paper's Tables 2, 4, 5 and 6 beside what was measured here, read from `results/`.

A published reference run leaves ``results/<profile>/summary.json``, and the academic suite may leave
``results/<profile>/academic_<policy>.json`` (policy: sft, offline_dpo, iterative_dpo). Every cell of the paper's tables
that this project means to reproduce gets a line; where nothing was measured it says so.

Scales differ: in the simulated world a policy is judged by the gold reward against SFT, the paper's by GPT-4 against
GPT-4. `setting` says what kind of number ours is. What can be compared is the order of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhflow_utils import paper
from rlhflow_utils.manifest import PROJECT
from rlhflow_utils.tables import interval

NOT_RUN = "not run here"
POLICIES = {"SFT": "sft", "offline DPO": "offline_dpo", "iterative DPO": "iterative_dpo"}
# Row of the paper's Table 6 -> the stage prefix that changes the same thing in a run of ours.
ABLATIONS = {
    "ours": "11.no_length_penalty",
    "concise (lambda = 0.001)": "09.iter1",
    "with UltraRM-13B": "11.mix1_rm",
}
Line = dict[str, Any]
Results = Mapping[str, dict[str, Any]]


def read_results(folder: Path = PROJECT / "results") -> dict[str, dict[str, Any]]:
    """Profile -> its summary's metrics, with the academic results of each policy under ``academic``."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/summary.json")):
        found[file.parent.name] = dict(json.loads(file.read_text(encoding="utf-8"))["summary"])
    for file in sorted(folder.glob("*/academic_*.json")):
        policy = file.stem.removeprefix("academic_")
        tasks = json.loads(file.read_text(encoding="utf-8"))["tasks"]
        found.setdefault(file.parent.name, {}).setdefault("academic", {})[policy] = tasks
    return found


def table_2(results: Results) -> list[Line]:
    """RewardBench by section, per cent: prompting, BT and PM."""
    lines = []
    for label, stated in paper.REWARDBENCH.items():
        for section in ("chat", "chat_hard", "safety", "reasoning"):
            keys = {profile: f"05.rewardbench.{label}.{section}" for profile in results}
            settings = {profile: f"{profile}: {_rewardbench_setting(profile)}" for profile in results}
            lines += _lines({"judge": label, "section": section}, stated[section], results, keys, settings)
    return lines


def table_4(results: Results) -> list[Line]:
    """Chat benchmarks of the three policies; `proxy RM` is the training reward model's view of the same answers."""
    lines = []
    for name, key in POLICIES.items():
        for column, benchmark in enumerate(("LC AlpacaEval-2 (%)", "MT-Bench (1-10)", "Arena-Hard (%)")):
            keys, settings = {}, {}
            if column == 0:
                keys = {
                    profile: _judged(summary, f"10.{key}", "lc_win_rate_vs_sft") for profile, summary in results.items()
                }
                settings = {
                    profile: f"{profile}: {_judge(keys[profile])} judge, LC win rate against SFT" for profile in results
                }
            head = {"policy": name, "benchmark": benchmark}
            found = _lines(head, paper.CHAT_BENCHMARKS[name][column], results, keys, settings)
            lines += [{**line, "proxy RM": _proxy(line, results, key, column)} for line in found]
    return lines


def table_5(results: Results) -> list[Line]:
    """The academic suite, per cent, and below it the untouched skill that stands for it in the simulated world."""
    lines = []
    for name, key in POLICIES.items():
        for column, task in enumerate(paper.ACADEMIC_TASKS):
            head = {"policy": name, "task": task}
            estimates = {
                f"{profile}: lm-eval, {found['shots']} shots, n = {found['n']}": found
                for profile, summary in results.items()
                if (found := summary.get("academic", {}).get(key, {}).get(task))
            }
            lines += _estimate_lines(head, paper.ACADEMIC[name][column], estimates)
        keys = {profile: f"10.{key}.exact_match" for profile in results}
        settings = {profile: f"{profile}: a skill absent from preferences and prompts" for profile in results}
        lines += _lines({"policy": name, "task": "untouched skill"}, None, results, keys, settings)
    return lines


def table_6(results: Results) -> list[Line]:
    """The ablations: length penalty, and a reward model that likes length.

    In the simulated world each arm is one iteration; the main recipe carries the length penalty, and the RM of mix1
    stands for UltraRM-13B.
    """
    lines = []
    for name, (alpaca, arena, length) in paper.ABLATIONS.items():
        arm = ABLATIONS[name]
        keys = {profile: _judged(summary, arm, "lc_win_rate_vs_sft") for profile, summary in results.items()}
        settings = {
            profile: f"{profile}: {arm[3:]}, {_judge(keys[profile])} judge, LC win rate against SFT"
            for profile in results
        }
        lines += _lines({"row": name, "column": "LC AlpacaEval-2 (%)"}, alpaca, results, keys, settings)
        lines += _lines({"row": name, "column": "Arena-Hard (%)"}, arena, results, {}, {})
        keys = {profile: f"{arm}.mean_length" for profile in results}
        settings = {profile: f"{profile}: {arm[3:]}, characters (paper: tokens)" for profile in results}
        lines += _lines({"row": name, "column": "length"}, length, results, keys, settings, scale=1.0)
        for task, printed in zip(paper.ACADEMIC_TASKS, paper.ABLATIONS_ACADEMIC[name], strict=True):
            lines += _lines({"row": name, "column": task}, printed, results, {}, {})
    return lines


# --- parts --------------------------------------------------------------------------------------------------------


def _lines(
    head: Line,
    printed: float | None,
    results: Results,
    keys: Mapping[str, str | None],
    settings: Mapping[str, str],
    scale: float = 100.0,
) -> list[Line]:
    """One line per profile that measured the key; one that says so where none did."""
    estimates = {}
    for profile, key in keys.items():
        if key is not None and results[profile].get(key) is not None:
            estimates[settings[profile]] = _estimate(results[profile], key)
    return _estimate_lines(head, printed, estimates, scale)


def _estimate_lines(
    head: Line, printed: float | None, estimates: Mapping[str, Mapping[str, Any]], scale: float = 100.0
) -> list[Line]:
    if not estimates:
        return [{**head, "paper": printed, "ours": NOT_RUN, "setting": None, "95 % interval": None}]
    return [
        {
            **head,
            "paper": printed,
            "ours": scale * found["value"],
            "setting": setting,
            "95 % interval": interval({key: scale * found[key] for key in ("ci_low", "ci_high")})
            if "ci_low" in found
            else None,
        }
        for setting, found in estimates.items()
    ]


def _estimate(summary: Mapping[str, Any], key: str) -> dict[str, float]:
    names = {"value": key, "ci_low": f"{key}_ci_low", "ci_high": f"{key}_ci_high"}
    return {name: float(summary[full]) for name, full in names.items() if summary.get(full) is not None}


def _judged(summary: Mapping[str, Any], prefix: str, metric: str) -> str | None:
    """The key of a judged metric: its name carries the judge's."""
    names = [f"{prefix}.{judge}_{metric}" for judge in ("gold", "reward_model", "endpoint")]
    return next((name for name in names if summary.get(name) is not None), None)


def _judge(key: str | None) -> str:
    return "no" if key is None else key.split(".")[2].removesuffix("_lc_win_rate_vs_sft").replace("_", " ")


def _proxy(line: Line, results: Results, key: str, column: int) -> float | None:
    """The proxy RM's win rate of the same policy against SFT, in the profile of the line."""
    if column or line["setting"] is None:
        return None
    value = results[line["setting"].split(":")[0]].get(f"10.{key}.proxy_win_rate_vs_sft")
    return None if value is None else 100 * float(value)


def _rewardbench_setting(profile: str) -> str:
    return {
        "tiny": "pairs of the simulated world",
        "slices": "RewardBench's LLMBar, HumanEvalPack and XSTest pairs",
    }.get(profile, "RewardBench")
