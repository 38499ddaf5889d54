"""What surprised us, each sentence with the comparison it rests on, and what is built in to the world (chapter 11)."""

from __future__ import annotations

from collections.abc import Mapping

from rlhflow_utils.claims.records import MISSING, Record, told
from rlhflow_utils.simulator.settings import WorldSettings
from rlhflow_utils.tables import markdown_table

# Name in the text below -> claim and comparison.
COMPARISONS = {
    "loop_sft": ("e", "iterative DPO − SFT"),
    "characters": ("e", "characters, iterative DPO − SFT"),
    "lambda_loop": ("e", "with λ: iterative − offline DPO"),
    "lambda_right": ("e", "with λ: right answers, iterative − offline DPO"),
    "lambda_lc": ("e", "with λ: LC win rate, iterative − offline DPO"),
    "lambda_characters": ("e", "with λ: characters, iterative DPO − SFT"),
    "offline": ("e", "offline DPO − SFT"),
    "offline_right": ("e", "right answers, offline DPO − SFT"),
    "offline_characters": ("e", "characters, offline DPO − SFT"),
    "first": ("f", "iteration 1 − SFT"),
    "second": ("f", "iteration 2 − iteration 1"),
    "lambda_first": ("f", "with λ: iteration 1 − SFT"),
    "proxy": ("l", "proxy gain, good RM"),
    "gold": ("l", "gold gain, good RM"),
    "gold_weak": ("l", "gold gain, weak RM"),
    "correlation": ("d", "mix2 alone"),
    "equal_length": ("d", "mix1 − mix2, equal size"),
    "all_safety": ("c", "mix2 − mix1, safety"),
    "equal_safety": ("c", "mix2, equal size − mix1, safety"),
    "equal_reasoning": ("c", "mix2, equal size − mix1, reasoning"),
    "best_worst": ("j", "best-worst − random"),
    "best_worst_raw": ("k", "RM of all pairs − random pairs"),
    "better_mixture": ("k", "RM of mix2 − of mix1"),
    "more_pairs": ("k", "RM of all pairs − of few"),
    "more_pairs_accuracy": ("k", "the RMs' accuracy, all pairs − few"),
    "restart": ("i", "last iterate − restart"),
    "replay": ("n", "replay − new only"),
    "reference": ("reference", "fixed − moving"),
    "pm": ("b", "PM − BT, held-out pairs"),
    "pm_ranks": ("m", "tournament − random"),
    "prompted": ("a", "prompting − coin, chat_hard"),
    "pm_prompted": ("a", "PM − prompting, chat_hard"),
    "bt_coin": ("b", "BT − coin, reasoning"),
    "pm_coin": ("b", "PM − coin, reasoning"),
    "tax": ("h", "iterative DPO − SFT"),
    "tax_offline": ("h", "offline DPO − SFT"),
}
TEXT = """
* **The loop adds filler, the penalty takes it out (e, f, g).** Without λ, the setting of the paper's 37.2, the loop
  gains nothing over SFT that shows: iteration 1 less SFT is {first}, the last iteration less SFT {loop_sft}; its
  answers change by {characters} characters. With λ, iteration 1 less SFT is {lambda_first}, and the answers change by
  {lambda_characters} characters. With λ, iterative less offline DPO is {lambda_loop} by win rate, but {lambda_lc}
  at equal lengths and {lambda_right} in right answers.{lambda_right_elsewhere} So what λ surely buys is brevity. (An
  interval that includes zero proves no equality.)
* **Offline DPO is right more often than SFT, and yet does not win (e).** Right answers, offline DPO less SFT:
  {offline_right}. But its answers grow (characters: {offline_characters}), a phrase too many loses a comparison between
  two right answers, and so its win rate less one half is {offline}. Which of the two one reads decides the second half
  of the claim.
* **The proxy rises, the truth does not follow (f, l).** Without λ the reward that the loop is trained on goes on
  rising from iteration 1 to the last ({proxy}), while the win rate of iteration 2 less that of iteration 1 is {second}.
  Gold reward from SFT to the last iteration: {gold} with the RM of all pairs, {gold_weak} with one of few. Yet on SFT's
  answers the RM's correlation with length is {correlation}: an average over SFT's answers does not show what a policy
  finds when it searches.
* **Which pair is chosen matters little (j, k).** Best against worst, less two random answers in the order of the same
  RM: {best_worst} with λ, {best_worst_raw} without. One reading: the rule that follows the RM furthest follows it into
  its errors, too.
* **Other choices inside the loop hardly show (i, n, reference).** The last iterate less a restart, which trains on
  all pairs so far: {restart}. Replay of all pairs less new ones only: {replay}. π₀ as fixed reference less the last
  iterate as reference: {reference}.
* **A better RM gives a better policy, where the RMs do differ (k).** The RM of mix2 less that of mix1, after one
  iteration: {better_mixture}. All pairs less few, after the last: {more_pairs}; but these two RMs themselves differ in
  accuracy by {more_pairs_accuracy}.
* **What mix2 changes is in its sources, not in its size (c, d).** An RM of as many pairs as mix1 has is better in
  safety, {equal_safety}; with all of mix2 worlds differ more: {all_safety}. In reasoning it stays open at equal size:
  {equal_reasoning}. It leans less to length (mix1 less mix2): {equal_length}.
* **The PM is behind at this budget (a, b, m).** It sees each pair once, as the BT model does, and all it is told of a
  pair is one token: held-out accuracy, PM less BT, {pm}. Its pairs are no better than random ones: {pm_ranks}. The
  prompted model, which has read graded exam sheets but no preference, is better than a coin in chat-hard ({prompted}),
  where the PM less it is {pm_prompted}. In reasoning neither trained judge is told from a coin: BT {bt_coin}, PM
  {pm_coin}.
* **A tax falls on offline DPO (h).** The untouched skill, offline DPO less SFT: {tax_offline}; iterative DPO less
  SFT: {tax}.
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
        numbers[f"{key}_elsewhere"] = (
            f" The same with other annotators, over prompts: {', '.join(others)}." if others else ""
        )
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
