"""Reference results: what a run leaves in `results/`, and the part of the README that is read from there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rlhflow_utils.manifest import write_json
from rlhflow_utils.provenance import PROJECT
from rlhflow_utils.tables import markdown_table, with_interval

RESULTS = PROJECT / "results"
README = PROJECT / "README.md"
BLOCK = re.compile(r"(<!-- results:begin -->\n).*?(<!-- results:end -->)", re.DOTALL)
CLAIMS_BLOCK = re.compile(r"(<!-- claims:begin -->\n).*?(<!-- claims:end -->)", re.DOTALL)
CLAIMS_SHOWN = "abcdefgh"  # of the README; chapter 12 has all
POLICIES = {"sft": "SFT (π₀)", "offline_dpo": "offline DPO", "iterative_dpo": "iterative DPO"}
PAPER_LC = {"sft": "10.2", "offline_dpo": "22.5", "iterative_dpo": "37.2"}


def publish_results(run_dir: str) -> Path:
    """Copy a run's summary, with its provenance and the headline figure, to `results/<profile>/`.

    Raises:
        RuntimeError: the run is not finished.
    """
    from rlhflow_utils import plotting

    folder = PROJECT / run_dir
    summary_file, last = folder / "summary.json", folder / "chapters" / "12_reproduction_report.json"
    if not (summary_file.is_file() and last.is_file()):
        raise RuntimeError(f"{run_dir} is not a finished run: run the guide first")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    manifest = json.loads((folder / "02_sft" / "manifest.json").read_text(encoding="utf-8"))
    kept = ("profile", "python", "versions", "commit", "dirty", "device")
    record = {"provenance": {key: manifest[key] for key in kept}, "summary": summary}
    target = RESULTS / str(manifest["profile"])
    write_json(target / "summary.json", record)
    if manifest["profile"] == "tiny":
        n = summary["01.evaluation_prompts.rows_out"]
        figure = plotting.win_rate_over_iterations(
            [{**estimate(summary, f"09.iter{k}.gold_win_rate_vs_sft"), "n": n} for k in iterations(summary)],
            others={"offline DPO": estimate(summary, "10.offline_dpo.gold_win_rate_vs_sft")},
            caption="Simulated world, model of under one million parameters, one seed. "
            "Evidence about the method, not about LLaMA-3.",
        )
        figure.savefig(target / "win_rate.png", dpi=110)
        update_readme()
    return target


def readme_block(summary: dict[str, Any]) -> str:
    """The README's results: three policies, then the judges."""
    rows = [
        {
            "policy": name,
            "win rate vs SFT (95 % interval)": with_interval(estimate(summary, f"10.{key}.gold_win_rate_vs_sft")),
            "LC win rate": with_interval(estimate(summary, f"10.{key}.gold_lc_win_rate_vs_sft")),
            "right answers": with_interval(estimate(summary, f"10.{key}.right_share")),
            "length (characters)": summary[f"10.{key}.mean_length"],
            "exact match, untouched skill": with_interval(estimate(summary, f"10.{key}.exact_match")),
            "paper: LC AlpacaEval-2 (%)": PAPER_LC[key],
        }
        for key, name in POLICIES.items()
    ]
    loop = ", ".join(
        f"iteration {k}: {with_interval(estimate(summary, f'09.iter{k}.gold_win_rate_vs_sft'))}"
        for k in iterations(summary)[:-1]
    )
    sections = ("chat", "chat_hard", "safety", "reasoning", "overall")
    judges = [
        {"judge": label, **{s: with_interval(estimate(summary, f"05.rewardbench.{key}.{s}")) for s in sections}}
        for key, label in {"prompting": "prompting", "bt": "BT", "pm": "PM"}.items()
    ]
    bias = ", ".join(
        f"{m}: {summary[f'06.length_bias.mean_pearson.{m}']:+.3f} "
        f"({_interval(estimate(summary, f'06.length_bias.mean_pearson.{m}'))})"
        for m in ("mix1", "mix2")
    )
    minutes = summary["wall_seconds.total"] / 60
    return (
        f"{markdown_table(rows)}\n\nThe win rate on the way there, after {loop}.\n\n{markdown_table(judges)}\n\n"
        f"Held-out accuracy on clean labels: BT {with_interval(estimate(summary, '03.bt.accuracy'))}, "
        f"PM {with_interval(estimate(summary, '04.pm.accuracy'))}. "
        f"Correlation of length and reward (Fig. 5), RM of {bias}. The run took {minutes:.1f} minutes.\n"
    )


def claims_block() -> str:
    """The README's claims: the head of chapter 12's table, from `results/claims/`."""
    from rlhflow_utils.claims.records import MISSING, READING, claims_table, read_records

    records = read_records()
    shown = {name: record for name, record in records.items() if name in CLAIMS_SHOWN}
    if not shown:
        return f"{MISSING}\n"
    rest = len(records) - len(shown)
    return (
        f"{markdown_table(claims_table(shown))}\n\n{READING} Chapter 12 has these and {rest} more, with every "
        "comparison.\n"
    )


def update_readme() -> None:
    """Rewrite the README's blocks from `results/tiny/summary.json` and `results/claims/`."""
    summary = json.loads((RESULTS / "tiny" / "summary.json").read_text(encoding="utf-8"))["summary"]
    text = README.read_text(encoding="utf-8")
    text = BLOCK.sub(lambda match: match[1] + readme_block(summary) + match[2], text)
    text = CLAIMS_BLOCK.sub(lambda match: match[1] + claims_block() + match[2], text)
    README.write_text(text, encoding="utf-8")


def iterations(summary: dict[str, Any]) -> list[int]:
    """Numbers of the iterations that a summary holds."""
    return sorted(int(key[7]) for key in summary if re.fullmatch(r"09\.iter\d\.gold_win_rate_vs_sft", key))


def estimate(summary: dict[str, Any], key: str) -> dict[str, float]:
    """A metric of a summary with its interval."""
    return {"value": summary[key], "ci_low": summary[f"{key}_ci_low"], "ci_high": summary[f"{key}_ci_high"]}


def _interval(value: dict[str, float]) -> str:
    return f"{value['ci_low']:.3f} … {value['ci_high']:.3f}"
