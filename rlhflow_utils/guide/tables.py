"""Tables of results: Markdown, the paper's numbers and recipe, and ours beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.guide.settings import Section
from rlhflow_utils.guide.stage import PROJECT, Artifact, read_json

RESULTS = PROJECT / "results"
MISSING = "–"
NOT_RUN = "not run here"
MARKUP = re.compile(r"[&<>|`*$~\[\]\\]|(?<!\w)_|_(?!\w)|:(?=//)|@|\bw(?=ww\.)")  # not shown as it is in Markdown
POLICIES = {"SFT": "sft", "offline DPO": "offline_dpo", "iterative DPO": "iterative_dpo"}
Row = dict[str, Any]
Summary = Mapping[str, Any]  # `<folder>.<metric>` -> value, as in summary.json
Estimates = Mapping[str, Mapping[str, float]]  # setting -> value, ci_low, ci_high
Printed = Mapping[str, Mapping[str, float | None]]  # row -> column -> what the paper states

# The paper: its results and its recipe (paper.yaml says where each number stands).
PAPER_FILE = Path(__file__).with_name("paper.yaml")
PAPER = yaml.safe_load(PAPER_FILE.read_text(encoding="utf-8"))
REWARDBENCH: Printed = PAPER["rewardbench"]  # method -> section -> per cent
LENGTH_BIAS: dict[str, float] = PAPER["length_bias"]
CHAT_BENCHMARKS: dict[str, list[float]] = PAPER["chat_benchmarks"]  # policy -> LC AlpacaEval-2, MT-Bench, Arena-Hard
ACADEMIC: Printed = PAPER["academic"]  # policy -> task -> per cent
ABLATIONS: Printed = PAPER["ablations"]  # row of Table 6 -> column -> value
OURS = PAPER["ours"]  # where our numbers beside these stand
BANDS: dict[str, float] = {name: group["band"] for group in PAPER["headlines"] for name in group["metrics"]}


def paper_settings(section: str, model: str | None) -> dict[str, Any]:
    """The paper's settings of a profile's section: LLaMA-3-8B's, with Gemma's own where the model is one."""
    gemma = PAPER["recipe_gemma"].get(section, {}) if "gemma" in (model or "") else {}
    return {**PAPER["recipe"].get(section, {}), **gemma}


def comparison_table(ours: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal: setting, our value, the paper's value, and whether they differ."""
    lines = [f"  {'':24s}{'ours':>16s}{'paper':>16s}"] if paper else ["  not in the paper"]
    for name in sorted(paper):
        mark = "" if ours.get(name) == paper[name] else "   deviation"
        lines.append(f"  {name:24s}{_short(ours.get(name)):>16s}{_short(paper[name]):>16s}{mark}")
    return lines


def settings_rows(section: Section, name: str, base: str | None, also: Mapping[str, Any] | None = None) -> list[Row]:
    """A section of a profile beside the paper's recipe: setting, paper, ours; `also`: what the run itself counted."""
    ours, paper = section.model_dump(), paper_settings(name, base)
    ours |= {**ours.get("trainer", {}), **ours.get("sampling", {})}
    rows = [
        {"setting": name, "paper": _short(stated), "ours": _short(ours.get(name))} for name, stated in paper.items()
    ]
    return [*rows, *({"setting": name, "paper": None, "ours": value} for name, value in (also or {}).items())]


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else text


def say(text: str) -> None:
    """Display a paragraph of Markdown in a notebook: a chapter's result, with numbers of this run."""
    from IPython.display import Markdown, display

    display(Markdown(text))


class Formatted(str):
    """A cell that is Markdown already, its bars escaped. Any other text, as of rows and answers, is shown as it is."""


def show(rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
    """Display a table in a notebook."""
    say(markdown_table(rows, caption))


def markdown_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """A Markdown table whose columns are the keys of the first row; columns of words are set left, others right."""
    if not rows:
        return "*no rows*"
    columns = list(rows[0])
    words = [column == columns[0] or any(_is_word(row.get(column)) for row in rows) for column in columns]
    lines = [[*map(_one_cell, columns)], *([_one_cell(row.get(column)) for column in columns] for row in rows)]
    lines.insert(1, [":---" if word else "---:" for word in words])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + (f"\n\n*{caption}*" if caption else "")


def answer_rows(answered: Mapping[str, Any], gold: Mapping[str, Sequence[float]], count: int) -> list[dict[str, Any]]:
    """The answers of every policy to the same `count` held-out prompts, evenly spaced, with their rewards.

    `answered` has each policy's dataset (columns prompt, responses, rewards), `gold` its true rewards by prompt.
    """
    first, rows = next(iter(answered)), []
    total = len(answered[first])
    for place in range(0, total, -(-total // count)):
        for policy, data in answered.items():
            row = data[place]
            question, answer = row["prompt"][-1]["content"], row["responses"][0]
            rows.append(
                {"prompt": question if policy == first else "", "policy": policy, "answer": answer,
                 RM_REWARD: row["rewards"][0], GOLD_REWARD: gold[policy][place], "characters": len(answer)}
            )  # fmt: skip
    return rows


def answers_beside(answered: Mapping[str, Any], gold: Mapping[str, Sequence[float]], count: int) -> list[Row]:
    """As `answer_rows`, with a row for each prompt: answers and, in brackets, the RM's and the true reward."""
    rows: list[Row] = []
    for each in answer_rows(answered, gold, count):
        if each["prompt"]:
            rows.append({"prompt": each["prompt"]})
        rows[-1][each["policy"]] = f"{each['answer']} ({cell(each[RM_REWARD])}, {cell(each[GOLD_REWARD])})"
    return rows


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and not re.match(rf"[+−-]?\d|{MISSING}$", value)


def _one_cell(value: Any) -> str:
    """A value as Markdown that can neither break the table nor run in a page: a line break would end the row."""
    text = " ".join(cell(value).splitlines())
    return text if isinstance(value, Formatted) else MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def cell(value: Any) -> str:
    """One cell: a dash for what is missing; a float with three decimals below 1, two below 10, else one."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + cell(abs(float(value)))


def interval(estimate: Mapping[str, Any] | None) -> str:
    """The confidence interval of an estimate (keys `ci_low` and `ci_high`), or a dash."""
    if not estimate or "ci_low" not in estimate:
        return MISSING
    return f"{cell(float(estimate['ci_low']))} … {cell(float(estimate['ci_high']))}"


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """An estimate and its interval in one cell, or a dash."""
    between = f" ({interval(estimate)})" if estimate and "ci_low" in estimate else ""
    return cell(float(estimate["value"])) + between if estimate else MISSING


# --- a run's results (chapter 12 and the README) --------------------------------------------------------------------


def metrics_of(artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """`<folder>.<metric>` -> value of finished stages."""
    return {f"{each.path.name}.{name}": value for each in artifacts for name, value in each.metrics.items()}


def estimate(summary: Summary, key: str) -> dict[str, float]:
    """A metric with its interval, where it has one; empty where it was not measured."""
    names = {"value": key, "ci_low": f"{key}_ci_low", "ci_high": f"{key}_ci_high"}
    return {name: float(summary[full]) for name, full in names.items() if summary.get(full) is not None}


def iterations(summary: Summary) -> list[int]:
    """Numbers of the iterations that were evaluated."""
    return sorted({int(found[1]) for key in summary if (found := re.match(r"iter(\d+)_evaluation\.", key))})


def evaluation_of(summary: Summary, policy: str) -> str:
    """Folder of the evaluation of `sft`, `offline_dpo`, or `iterative_dpo`: that of the last iteration.

    The paper's iterative DPO has no length penalty, so where a run has both it is the last one without.
    """
    numbers = iterations(summary)
    if policy != "iterative_dpo" or not numbers:
        return f"{policy}_evaluation"
    without = f"unpenalised{numbers[-1]}_evaluation"
    return without if f"{without}.mean_length" in summary else f"iter{numbers[-1]}_evaluation"


def policy_name(folder: str) -> str:
    """A policy in words: `sft`, `offline_dpo`, `iterative_dpo`, `iter2`, `unpenalised` or `unpenalised2`."""
    words = {key: name for name, key in POLICIES.items()} | {"unpenalised": "no length penalty"}
    kind, number = re.fullmatch(r"(.*?)(\d*)", folder).groups()  # type: ignore[union-attr]
    step = f"iteration {number}" if number else ""
    return ", ".join(filter(None, [step, words.get(kind, "" if kind == "iter" else folder)]))


def paper_lc(is_penalised: bool) -> dict[str, float | None]:
    """The paper's LC AlpacaEval-2 (%) of each policy; `is_penalised`: iterative DPO has a length penalty (Table 6)."""
    printed: dict[str, float | None] = {name: CHAT_BENCHMARKS[label][0] for label, name in POLICIES.items()}
    if is_penalised:
        printed["unpenalised"] = printed["iterative_dpo"]
        printed["iterative_dpo"] = ABLATIONS["concise (lambda = 0.001)"]["LC AlpacaEval-2 (%)"]
    return printed


def policy_rows(summary: Summary, judge: str) -> list[Row]:
    """SFT, offline DPO and every iteration: right answers, win rates against SFT, length, the untouched skill."""
    numbers = iterations(summary)
    names: dict[str, str | None] = {"sft": "sft", "offline_dpo": "offline_dpo"}
    names |= {f"iter{k}": "iterative_dpo" if k == numbers[-1] else None for k in numbers}
    without = evaluation_of(summary, "iterative_dpo").removesuffix("_evaluation")
    if is_penalised := without not in names and bool(numbers):
        names[without] = "unpenalised"
    papers, rows = paper_lc(is_penalised), []
    for policy, kind in names.items():
        place = f"{policy}_evaluation"
        rows.append({
            "policy": policy_name(policy),
            "right answers (95 % interval)": with_interval(estimate(summary, f"{place}.accuracy")),
            "length-adjusted win rate vs SFT": with_interval(
                estimate(summary, f"{place}.{judge}_length_adjusted_win_rate_vs_sft")
            ),
            "length (characters)": summary.get(f"{place}.mean_length"),
            "plain win rate vs SFT": with_interval(estimate(summary, f"{place}.{judge}_win_rate_vs_sft")),
            "KL from π₀ (nats)": summary.get(f"{policy}_kl.kl"),
            "exact match, untouched skill": with_interval(estimate(summary, f"{kind}_exact_match.exact_match")),
            "paper: LC AlpacaEval-2 (%)": papers.get(kind) if kind else None,
        })  # fmt: skip
    return rows


def judge_rows(summary: Summary, main_mixture: str) -> list[Row]:
    """Prompting, BT and PM: RewardBench by section, accuracy on held-out pairs, and how far reward follows length."""
    rows = []
    for label, benchmark, test, bias in (
        ("prompting", "prompting", "", ""),
        (f"BT, {main_mixture}", "bt", f"bt_{main_mixture}_test", f"length_bias_{main_mixture}"),
        ("BT, mix1", "bt_mix1", "bt_mix1_test", "length_bias_mix1"),
        (f"PM, {main_mixture}", "pm", f"pm_{main_mixture}_test", ""),
    ):
        parts = {part: f"rewardbench_{benchmark}.{part}" for part in (*REWARDBENCH["bt"], "overall")}
        parts |= {"held-out pairs": f"{test}.accuracy", "correlation of length and reward": f"{bias}.mean_pearson"}
        rows.append({"judge": label, **{name: with_interval(estimate(summary, key)) for name, key in parts.items()}})
    return rows


def machine_rows(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The table of `results/tiny/machines.json`: headline numbers by machine, and their spread beside the band."""
    rows = []
    for name, band in BANDS.items():
        values = {run["name"]: run["metrics"][name] for run in runs}
        rows.append({"metric": name, **values, "spread": max(values.values()) - min(values.values()), "band": band})
    return rows


def provenance_rows(artifacts: Sequence[Artifact]) -> list[Row]:
    """Commit, device and versions of finished stages; more than one value means a mixed run."""
    facts: dict[str, set[str]] = {}
    for found in (each.manifest for each in artifacts):
        commit = f"{found['commit']}{' + local changes' if found['dirty'] else ''}"
        said = {"commit": commit, "device": found["device"], "Python": found["python"], **found["versions"]}
        for name, value in said.items():
            facts.setdefault(name, set()).add(value)
    return [{"": name, "value": ", ".join(sorted(values))} for name, values in facts.items()]


def row_counts(stages: Iterable[Artifact]) -> list[Row]:
    """Where the rows of some stages went: in = out + dropped on every line."""
    return [
        {"stage": stage.path.name, "rows": kind, "in": rows["rows_in"], "out": rows["rows_out"],
         "dropped": ", ".join(f"{reason} {n:,}" for reason, n in rows["dropped"].items() if n) or None}
        for stage in stages for kind, rows in stage.rows.items()
    ]  # fmt: skip


def chapter_records(folder: Path) -> list[dict[str, Any]]:
    """What a run's finished chapters have recorded."""
    return [read_json(file) for file in sorted((folder / "chapters").glob("*.json"))]


def chapter_seconds(folder: Path) -> dict[str, float]:
    """Wall seconds of a run's finished chapters; empty when chapters were run by hand."""
    records = chapter_records(folder)
    return {record["chapter"]: record["wall_seconds"] for record in records if "wall_seconds" in record}


# --- the paper's tables beside ours (chapter 10) ---------------------------------------------------------------------

RM_REWARD, GOLD_REWARD = "RM's reward", "gold reward"
UNTOUCHED = "untouched skill"  # the line below the academic suite that stands for it in the simulated world
UNPENALISED = "unpenalised_exact_match.exact_match"
NOT_PER_CENT = ("MT-Bench (1-10)", "length")


def read_results(folder: Path = RESULTS) -> dict[str, Row]:
    """Profile -> its summary, with the results of each policy under `academic` and under each chat benchmark."""
    found = {file.parent.name: read_json(file)["summary"] for file in sorted(folder.glob("*/summary.json"))}
    for kind in ("academic", *(benchmark for benchmark, _ in OURS["chat"].values())):
        for file in sorted(folder.glob(f"*/{kind}_*.json")):
            policies = found.setdefault(file.parent.name, {}).setdefault(kind, {})
            policies[file.stem.removeprefix(f"{kind}_")] = read_json(file)
    return found


def table_2(results: Mapping[str, Summary]) -> list[Row]:
    """RewardBench by section, per cent: prompting, BT and PM."""

    def measured(judge: str, section: str) -> Estimates:
        return {name: estimate(summary, f"rewardbench_{judge}.{section}") for name, summary in results.items()}

    return beside("judge", "section", REWARDBENCH, measured)


def table_4(results: Mapping[str, Summary]) -> list[Row]:
    """Chat benchmarks of the three policies, and their win rates against SFT."""

    def measured(name: str, column: str) -> Estimates:
        policy, (benchmark, score), found = POLICIES[name], OURS["chat"][column], dict[str, Any]()
        for profile, summary in results.items():
            # Of some questions alone AlpacaEval-2 has no length-controlled win rate.
            if score in (scored := summary.get(benchmark, {}).get(policy, {})):
                setting = f"{profile}: {benchmark}, judge {scored['judge']}, n = {scored[score]['n']}"
                found[setting] = scored[score]
            # SFT against itself is 50 % by definition.
            for rate, words in OURS["win_rates"].items() if benchmark == "alpaca_eval" and policy != "sft" else ():
                ours = evaluation_of(summary, policy)
                setting = f"{profile}: {policy_name(ours.removesuffix('_evaluation'))}, {words}"
                found[setting] = estimate(summary, f"{ours}.{rate}")
        return found

    printed = {name: dict(zip(OURS["chat"], CHAT_BENCHMARKS[name], strict=True)) for name in POLICIES}
    return beside("policy", "benchmark", printed, measured)


def table_5(results: Mapping[str, Summary]) -> list[Row]:
    """The academic suite, per cent, and below it the untouched skill that stands for it in the simulated world."""

    def measured(name: str, task: str) -> Estimates:
        policy, found = POLICIES[name], dict[str, Any]()
        for profile, summary in results.items():
            if task == UNTOUCHED:
                # Of iterative DPO like Table 4: without a length penalty where a run has that, too.
                kind = policy if name != "iterative DPO" or UNPENALISED not in summary else "unpenalised"
                skill = estimate(summary, f"{kind}_exact_match.exact_match")
                found[f"{profile}: {policy_name(kind)}, a skill absent from preferences and prompts"] = skill
            elif one := summary.get("academic", {}).get(policy, {}).get("tasks", {}).get(task):
                found[f"{profile}: lm-eval, {one['shots']} shots, n = {one['n']}"] = one
        return found

    return beside("policy", "task", {name: {**ACADEMIC[name], UNTOUCHED: None} for name in POLICIES}, measured)


def beside(rows: str, columns: str, paper: Printed, measured: Callable[[str, str], Estimates]) -> list[Row]:
    """A table of the paper with ours: for each cell, a line per setting in which it was measured, or "not run here"."""
    lines = []
    for row, column, printed in ((row, *each) for row, cells in paper.items() for each in cells.items()):
        scale = 1.0 if column in NOT_PER_CENT else 100.0
        found = {setting: one for setting, one in measured(row, column).items() if one}
        for setting, one in found.items() or [(None, {})]:
            ours = {key: scale * one[key] for key in ("value", "ci_low", "ci_high") if key in one}
            lines.append({
                rows: row, columns: column, "paper": printed, "ours": ours.get("value", NOT_RUN), "setting": setting,
                "95 % interval": interval(ours) if "ci_low" in ours else None,
            })  # fmt: skip
    return lines
