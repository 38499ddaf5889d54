"""What chapter 12 tabulates, read from the finished stages of a run."""

from __future__ import annotations

import json
from typing import Any

from rlhflow_utils import paper
from rlhflow_utils.manifest import Run
from rlhflow_utils.tables import cell

Rows = list[dict[str, Any]]


def headline_rows(run: Run) -> Rows:
    """One row per claim that the run can speak to: the paper's figure and ours, with interval and n."""
    main = run.profile.data.main_mixture
    rows = [
        _row("BT RM, accuracy on held-out pairs", None, _results(run, f"03_bt_{main}_test")["accuracy"]),
        _row("PM, accuracy on held-out pairs", None, _results(run, f"04_pm_{main}_test")["accuracy"]),
    ]
    for label, stated in paper.REWARDBENCH.items():
        sections = _results(run, f"05_rewardbench_{label}")["sections"]
        for section in ("chat", "chat_hard", "safety", "reasoning"):
            printed = stated[section]
            rows.append(_row(f"RewardBench {section}, {label}", printed / 100 if printed else None, sections[section]))
    for mixture in run.profile.reward_model.mixtures:
        printed = {"mix1": paper.LENGTH_BIAS["UltraRM-13B"], "mix2": paper.LENGTH_BIAS["BT RM, mix2"]}.get(mixture)
        rows.append(_row(f"length bias, RM of {mixture}", printed, _results(run, f"06_length_bias_{mixture}")["mean"]))
    stages: dict[str, str] = {"SFT": "10_sft_evaluation", "offline DPO": "10_offline_dpo_evaluation"}
    stages["iterative DPO"] = "10_iterative_dpo_evaluation"
    for name, stage in stages.items():
        estimates = _results(run, stage)["estimates"]
        printed_text = f"{paper.CHAT_BENCHMARKS[name][0]} % (LC AlpacaEval-2)"
        rows.append(_row(f"{name}, win rate against SFT", None, estimates["win_rate"]))
        rows.append(_row(f"{name}, LC win rate against SFT", printed_text, estimates["lc_win_rate"]))
    return rows


def provenance_rows(run: Run) -> Rows:
    """Commit, device, versions and seed of the stages that this chapter read; more than one value means a mixed run."""
    manifests = [run.folder(name).manifest for name in sorted(run.used)]
    facts = {
        "profile": {m["profile"] for m in manifests},
        "run seed": {str(run.profile.seed)},
        "commit": {f"{m['commit']}{' + local changes' if m['dirty'] else ''}" for m in manifests},
        "device": {m["device"] for m in manifests},
        "Python": {m["python"] for m in manifests},
        **{
            package: {m["versions"][package] for m in manifests if package in m["versions"]}
            for package in manifests[0]["versions"]
        },
    }
    return [{"": name, "value": ", ".join(sorted(values))} for name, values in facts.items()]


def chapter_seconds(run: Run) -> dict[str, float]:
    """Wall seconds of the chapters before this one, from their records; empty when chapters were run by hand."""
    files = sorted((run.run_dir / "chapters").glob("*.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {record["chapter"]: record["wall_seconds"] for record in records if record["chapter"] < run.chapter}


def _row(what: str, printed: float | str | None, estimate: dict[str, Any] | None) -> dict[str, Any]:
    if estimate is None:
        return {"result": what, "paper": printed, "ours": "no rows here", "95 % interval": None, "n": None}
    between = f"{cell(float(estimate['ci_low']))} … {cell(float(estimate['ci_high']))}"
    ours = float(estimate["value"])
    return {"result": what, "paper": printed, "ours": ours, "95 % interval": between, "n": estimate["n"]}


def _results(run: Run, stage: str) -> dict[str, Any]:
    return dict(run.folder(stage).read_json("results.json"))
