"""What surprised us, each sentence with the comparison it rests on, and what is built in to the world (chapter 11)."""

from __future__ import annotations

from collections.abc import Mapping

from rlhflow_utils.claims.records import MISSING, Record, told
from rlhflow_utils.simulator.settings import WorldSettings
from rlhflow_utils.tables import markdown_table

# Name in the text below -> claim and comparison.
COMPARISONS = {
    "loop": ("e", "iterative − offline DPO"),
    "loop_right": ("e", "right answers, iterative − offline DPO"),
    "loop_lc": ("e", "LC win rate, iterative − offline DPO"),
    "characters": ("e", "characters, iterative DPO − SFT"),
    "lambda_loop": ("e", "with λ: iterative − offline DPO"),
    "lambda_right": ("e", "with λ: right answers, iterative − offline DPO"),
    "lambda_lc": ("e", "with λ: LC win rate, iterative − offline DPO"),
    "lambda_characters": ("e", "with λ: characters, iterative DPO − SFT"),
    "offline": ("e", "offline DPO − SFT"),
    "offline_right": ("e", "right answers, offline DPO − SFT"),
    "offline_characters": ("e", "characters, offline DPO − SFT"),
    "second": ("f", "iteration 2 − iteration 1"),
    "proxy": ("l", "proxy gain, good RM"),
    "gold": ("l", "gold gain, good RM"),
    "gold_weak": ("l", "gold gain, weak RM"),
    "gold_lambda": ("l", "gold gain, with λ"),
    "correlation": ("d", "mix2 alone"),
    "equal_length": ("d", "mix1 − mix2, equal size"),
    "equal_safety": ("c", "mix2, equal size − mix1, safety"),
    "equal_reasoning": ("c", "mix2, equal size − mix1, reasoning"),
    "best_worst": ("j", "best-worst − random"),
    "best_worst_raw": ("k", "RM of all pairs − random pairs"),
    "pm": ("b", "PM − BT, held-out pairs"),
    "bt_coin": ("b", "BT − coin, reasoning"),
    "pm_coin": ("b", "PM − coin, reasoning"),
    "tax": ("h", "iterative DPO − SFT"),
    "tax_offline": ("h", "offline DPO − SFT"),
}
TEXT = """
* **The loop adds filler, the penalty takes it out (e, g).** Without λ, the setting of the paper's 37.2, iterative
  less offline DPO is {loop} by win rate, which counts filler; in right answers it is {loop_right}, at equal lengths
  {loop_lc}. Against SFT its answers change by {characters} characters, with λ by {lambda_characters}. With λ,
  iterative less offline DPO is {lambda_loop} by win rate, {lambda_right} in right answers and {lambda_lc} at equal
  lengths. So what λ surely buys is brevity. That either loop is right more often than offline DPO does not show; an
  interval that includes zero proves no equality.{lambda_right_elsewhere}
* **Offline DPO is right more often, and longer (e).** Right answers, offline DPO less SFT: {offline_right}. Its
  answers grow, too (characters: {offline_characters}), and filler loses comparisons, so the win rate shows little of
  it: {offline}.
* **Without λ the loop goes down after its first iteration (f, l).** Without λ, iteration 2 less iteration 1 is
  {second}, while the reward that it is trained on goes on rising ({proxy}). Gold reward from SFT to the last
  iteration: {gold} with the RM of all pairs, {gold_weak} with one of few pairs, {gold_lambda} with λ. The RM's
  correlation with length on SFT's answers is {correlation}: what an average over SFT's answers shows is not what a
  policy finds when it searches.
* **Which pair is chosen matters little (j, k).** Best against worst, less two random answers in the order of the
  same RM: {best_worst} with λ; {best_worst_raw} without. Every rule draws two texts that differ: one that may draw
  the same text twice loses pairs, and then budgets are compared and not rules.
* **mix2's gain in safety is in its sources, not in its size (c).** An RM of as many pairs as mix1 has shows it,
  too: {equal_safety}. Its gain in reasoning does not show at equal size: {equal_reasoning}. For length (d) it is
  {equal_length}.
* **The PM is uneven at this budget (b, m).** Held-out accuracy, PM less BT: {pm}. All it is told of a pair is one
  token; in some worlds it catches on and in others hardly, and it ranks accordingly. Both claims speak about this
  budget, not about PMs. In reasoning neither judge is far from a coin: BT {bt_coin}, PM {pm_coin}.
* **A tax, if any, falls on offline DPO (h).** The untouched skill, offline DPO less SFT: {tax_offline}; iterative
  DPO less SFT: {tax}. Each world tests it on few items, and where SFT itself has hardly learnt it there is nothing
  to lose.
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
        numbers[f"{key}_elsewhere"] = f" With other annotators, over prompts: {', '.join(others)}." if others else ""
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
