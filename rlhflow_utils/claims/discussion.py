"""What surprised us (chapter 11): sentences of ours, each with the comparison of `results/claims/` that it rests on."""

from __future__ import annotations

from collections.abc import Mapping

from rlhflow_utils.claims.records import MISSING, Record, told

# Name in the text below -> claim and comparison.
COMPARISONS = {
    "loop": ("e", "iterative − offline DPO"),
    "loop_right": ("e", "right answers, iterative − offline DPO"),
    "loop_lc": ("e", "LC win rate, iterative − offline DPO"),
    "offline": ("e", "offline DPO − SFT"),
    "offline_right": ("e", "right answers, offline DPO − SFT"),
    "raw": ("e", "without λ: iterative DPO − SFT"),
    "raw_right": ("e", "without λ: right answers, iterative DPO − SFT"),
    "raw_gold": ("e", "without λ: gold reward, iterative DPO − SFT"),
    "correlation": ("d", "mix2 alone"),
    "equal_length": ("d", "mix1 − mix2, equal size"),
    "equal_safety": ("c", "mix2, equal size − mix1, safety"),
    "best_worst": ("j", "best-worst − random"),
    "best_worst_raw": ("k", "RM of all pairs − random pairs"),
    "pm": ("b", "PM − BT, held-out pairs"),
}
TEXT = """
* **Shorter, and not seen to be right more often (e).** By win rate, iterative less offline DPO is {loop}. In right
  answers it is {loop_right}; at equal lengths {loop_lc}. An interval that includes zero proves no equality; but
  what the loop surely adds here, beyond what offline pairs teach, is to leave out filler. {loop_right_elsewhere}
* **Offline DPO is right more often, and longer (e).** Right answers, offline DPO less SFT: {offline_right}. Its
  answers grow, too, and filler loses comparisons, so the win rate shows little of it: {offline}.
* **Without λ the answers fill up (e, f, l).** λ = 0 is the setting of the paper's 37.2. By win rate, which counts
  filler, the last iterate less SFT is then {raw}, while the reward that it is trained on goes on rising. Right
  answers: {raw_right}; gold reward: {raw_gold}. Filler is nearly everywhere; over-optimisation in the strict sense,
  a gold reward that falls, only in some worlds. The RM's correlation with length on SFT's answers is {correlation}:
  what an average over SFT's answers shows is not what a policy finds when it searches.
* **Which pair is chosen matters little (j, k).** Best against worst, less two random answers in the order of the
  same RM: {best_worst} with λ; {best_worst_raw} without. Every rule draws two texts that differ: one that may draw
  the same text twice loses pairs, and then budgets are compared and not rules.
* **mix2's gain in safety is in its sources, not in its size (c).** An RM of as many pairs as mix1 has shows it,
  too: {equal_safety}. The same holds for length (d): {equal_length}.
* **The PM is uneven at this budget (b, m).** Held-out accuracy, PM less BT: {pm}. All it is told of a pair is one
  token; in some worlds it catches on and in others hardly, and it ranks accordingly. Both claims speak about this
  budget, not about PMs.
* **Worlds differ more than arms.** A seed draws facts, annotators and a base model, and base models of this size
  learn the skills unevenly. So few draws decide large effects only: *inconclusive* means "not enough worlds" more
  often than "no effect". The *no worse* claims (h, i, m, o) are hard to confirm; h rests on few items, too.
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
        numbers[f"{key}_elsewhere"] = f"With other annotators, over prompts: {', '.join(others)}." if others else ""
    return TEXT.format(**numbers)
