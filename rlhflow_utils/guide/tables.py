"""Markdown tables of results: paper / ours / n / interval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhflow_utils.evaluation.statistics import ENOUGH_SEEDS, t_interval
from rlhflow_utils.guide.profile import Profile
from rlhflow_utils.guide.provenance import PROJECT, provenance
from rlhflow_utils.guide.stage import Run

# Table 1: prompts, mean lengths of prompt, preferred and rejected answer (tokens of an unnamed tokenizer), pairs.
# It stands in `source_statistics.py`, beside the code that measures ours.

# RewardBench, LLaMA-3-8B (README of RLHFlow/RLHF-Reward-Modeling): per cent. Prompting is below both in every section
# (paper 2.3); its own numbers could not be established.
REWARDBENCH: dict[str, dict[str, float | None]] = {
    "bt": {"chat": 99.4, "chat_hard": 65.1, "safety": 87.8, "reasoning": 86.4},
    "pm": {"chat": 98.3, "chat_hard": 65.8, "safety": 89.7, "reasoning": 94.7},
    "prompting": {"chat": None, "chat_hard": None, "safety": None, "reasoning": None},
}

# Figure 5: mean over prompts of the Pearson correlation between length and reward.
LENGTH_BIAS = {"UltraRM-13B": 0.19, "BT RM, mix2": 0.06}

# Table 4: length-controlled AlpacaEval-2 (%), MT-Bench (1-10), Arena-Hard (%).
CHAT_BENCHMARKS = {
    "SFT": (10.2, 7.69, 5.6),
    "offline DPO": (22.5, 8.17, 22.4),
    "iterative DPO": (37.2, 8.46, 29.1),
    "LLaMA-3-8B-it": (22.9, 8.16, 20.6),
}

ACADEMIC_TASKS = ("gsm8k", "mmlu", "humaneval", "truthfulqa", "arc", "mbpp")
# Table 5: GSM-8K 8-shot, MMLU 5, HumanEval 0, TruthfulQA 0, ARC 25, MBPP 0 (%).
ACADEMIC = {
    "SFT": (74.2, 64.7, 65.2, 53.4, 61.4, 62.3),
    "offline DPO": (79.8, 64.5, 63.4, 61.8, 65.2, 60.3),
    "iterative DPO": (80.7, 65.3, 64.6, 60.4, 64.3, 60.8),
    "LLaMA-3-8B-it": (79.6, 66.0, 61.6, 43.9, 59.5, 61.1),
}

# Table 6: LC AlpacaEval-2, Arena-Hard, mean length (no unit is named), of the three ablation rows.
ABLATIONS = {
    "ours": (37.2, 29.1, 656),
    "concise (lambda = 0.001)": (41.9, 22.1, 382),
    "with UltraRM-13B": (20.7, 24.3, 745),
}
# The academic columns of Table 6. TruthfulQA of "ours" is 60.4 in Table 5 and 62.2 here: the paper contradicts itself.
ABLATIONS_ACADEMIC = {
    "ours": (80.7, 65.3, 64.6, 62.2, 64.3, 60.8),
    "concise (lambda = 0.001)": (78.8, 65.5, 66.5, 60.4, 65.1, 62.4),
    "with UltraRM-13B": (78.9, 64.9, 63.7, 59.9, 63.6, 60.8),
}


COSINE = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.03}
# The paper's LLaMA-3-8B recipe, with what its released scripts add (max_length of RM and DPO, weight_decay, beta).
PAPER: dict[str, dict[str, Any]] = {
    "base": {},
    "sft": {**COSINE, "learning_rate": 2e-5, "num_train_epochs": 1.0, "global_batch_size": 32, "max_length": 8192,
            "packing": True},
    "reward": {**COSINE, "learning_rate": 2e-6, "num_train_epochs": 1.0, "global_batch_size": 512, "max_length": 4096,
               "weight_decay": 0.001},
    "preference": {**COSINE, "learning_rate": 5e-6, "num_train_epochs": 1.0, "global_batch_size": 128,
                   "max_length": 3072, "packing": True},
    "dpo": {**COSINE, "learning_rate": 5e-7, "num_train_epochs": 2.0, "global_batch_size": 128, "max_length": 2048,
            "beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0, "reference": "sft", "iterations": 3,
            "prompts_per_iteration": 20000},
    "offline_dpo": {"learning_rate": 5e-7, "num_train_epochs": 1.0, "global_batch_size": 128,
                    "lr_scheduler_type": "cosine"},
}  # fmt: skip
PAPER_GEMMA = {"reward": {"learning_rate": 1e-5, "global_batch_size": 256}, "preference": {"learning_rate": 1e-5}}
PAPER_GENERATION = {"responses": 8, "temperatures": [1.0, 0.7], "top_p": 1.0, "max_new_tokens": 2048,
                    "max_prompt_tokens": 1000}  # fmt: skip

# Shapes from each model's config.json, for machines that cannot reach the hub.
LLAMA_3_8B = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
              "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
              "max_position_embeddings": 8192, "tie_word_embeddings": False}  # fmt: skip
GEMMA_2B = {"model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384,
            "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
            "max_position_embeddings": 8192, "tie_word_embeddings": True}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B": LLAMA_3_8B, "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3_8B,
    "google/gemma-2b": GEMMA_2B, "google/gemma-2b-it": GEMMA_2B,
}  # fmt: skip
GATED = ("meta-llama/", "google/gemma")


def paper_settings(recipe: str, model: str | None) -> dict[str, Any]:
    """The paper's settings of a recipe (a key of `PAPER`): LLaMA-3-8B's, with Gemma's own where the model is one."""
    gemma = PAPER_GEMMA.get(recipe, {}) if "gemma" in (model or "") else {}
    return {**PAPER[recipe], **gemma}


MISSING = "–"


def markdown_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """A Markdown table whose columns are the keys of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join([":---", *["---:"] * (len(columns) - 1)]) + " |"]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + (f"\n\n*{caption}*" if caption else "")


def cell(value: Any) -> str:
    """One cell: a dash for what is missing; a float with three decimals below 1, two below 10, else one."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def interval(estimate: Mapping[str, Any] | None) -> str:
    """The confidence interval of an estimate (keys `ci_low` and `ci_high`), or a dash."""
    if not estimate:
        return MISSING
    return f"{cell(float(estimate['ci_low']))} … {cell(float(estimate['ci_high']))}"


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """An estimate and its interval in one cell, or a dash."""
    return f"{cell(float(estimate['value']))} ({interval(estimate)})" if estimate else MISSING


def world_caption(profile: Profile) -> str:
    """What kind of number stands in a table or figure of this run, and the command that makes it."""
    command = f"make guide PROFILE={profile.name}"
    if profile.world is not None:
        where = f"Profile {profile.name}: measured in the simulated world."
        return f"{where} Evidence about the method there, not about LLaMA-3. {command}"
    return f"Profile {profile.name}, judge: {profile.evaluation.judge}. {command}"


def run_line(run: Run) -> str:
    """Where a chapter's numbers come from: profile, seed, commit, device, main versions, and what its stages took.

    The stages of a run that was repeated keep the time and the commit of the run that made them.
    """
    manifests = [run.folder(name).manifest for name in sorted(run.used)]
    own = [manifest for manifest in manifests if manifest["chapter"] == run.chapter]
    facts = own or manifests or [provenance()]
    commits = sorted({f"{str(m['commit'])[:7]}{' + local changes' if m['dirty'] else ''}" for m in facts})
    versions = facts[0]["versions"]
    packages = [f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions]
    seconds = sum(manifest["wall_seconds"] for manifest in own)
    parts = [f"profile {run.profile.name}, seed {run.profile.seed}", f"commit {', '.join(commits)}", facts[0]["device"]]
    return "; ".join([*parts, *packages, f"stages made in this chapter: {len(own)}, in {seconds:.0f} s"])


Rows = list[dict[str, Any]]


def headline_rows(run: Run) -> Rows:
    """One row per claim that the run can speak to: the paper's figure and ours, with interval and n."""
    main = run.profile.data.main_mixture
    rows = [
        _row("BT RM, accuracy on held-out pairs", None, _results(run, f"03_bt_{main}_test")["accuracy"]),
        _row("PM, accuracy on held-out pairs", None, _results(run, f"04_pm_{main}_test")["accuracy"]),
    ]
    for label, stated in REWARDBENCH.items():
        sections = _results(run, f"05_rewardbench_{label}")["sections"]
        for section in ("chat", "chat_hard", "safety", "reasoning"):
            printed = stated[section]
            rows.append(_row(f"RewardBench {section}, {label}", printed / 100 if printed else None, sections[section]))
    for mixture in run.profile.reward_model.mixtures:
        printed = {"mix1": LENGTH_BIAS["UltraRM-13B"], "mix2": LENGTH_BIAS["BT RM, mix2"]}.get(mixture)
        rows.append(_row(f"length bias, RM of {mixture}", printed, _results(run, f"06_length_bias_{mixture}")["mean"]))
    stages: dict[str, str] = {"SFT": "10_sft_evaluation", "offline DPO": "10_offline_dpo_evaluation"}
    stages["iterative DPO"] = "10_iterative_dpo_evaluation"
    for name, stage in stages.items():
        estimates = _results(run, stage)["estimates"]
        printed_text = f"{CHAT_BENCHMARKS[name][0]} % (LC AlpacaEval-2)"
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


NOT_RUN = "not run here"
POLICIES = {"SFT": "sft", "offline DPO": "offline_dpo", "iterative DPO": "iterative_dpo"}
# Row of the paper's Table 6 -> the claim (chapter 11), its arm that changes the same thing here, and that arm in words.
ABLATION_ARMS = {
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
    for label, stated in REWARDBENCH.items():
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
        for (benchmark, (column, _, scale)), printed in zip(CHAT.items(), CHAT_BENCHMARKS[name], strict=True):
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
        for task, printed in zip(ACADEMIC_TASKS, ACADEMIC[name], strict=True):
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
    for name, (alpaca, arena, length) in ABLATIONS.items():
        claim, arm, words = ABLATION_ARMS[name]
        record = records.get(claim, {})
        rates = _over_seeds(record, arm, "lc_win_rate", f"{words}; gold judge, LC win rate against SFT")
        lengths = _over_seeds(record, arm, "length", f"{words}; characters (the paper names no unit)")
        lines += _estimate_lines({"row": name, "column": "LC AlpacaEval-2 (%)"}, alpaca, rates)
        lines += _estimate_lines({"row": name, "column": "Arena-Hard (%)"}, arena, {})
        lines += _estimate_lines({"row": name, "column": "length"}, length, lengths, scale=1.0)
        for task, printed in zip(ACADEMIC_TASKS, ABLATIONS_ACADEMIC[name], strict=True):
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
