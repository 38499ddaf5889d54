# %% [markdown]
# # 10 · Policy evaluation
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · **10 evaluation** · 11 claims · 12 report
#
# **The claim.** On chat benchmarks iterative DPO beats offline DPO, and offline DPO beats SFT. On length-controlled
# AlpacaEval-2 they score 37.2, 22.5 and 10.2 (paper Table 4). Academic scores do not suffer (Table 5): there is little
# *alignment tax*, the loss of abilities that the model had before.
#
# After this chapter you can compare policies prompt by prompt and at equal lengths, and see what alignment costs.
#
# **You need** chapters 00–09.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
from dataclasses import asdict

from rlhflow_utils.claims.tables import read_records, table_6
from rlhflow_utils.data import cards
from rlhflow_utils.evaluation import policies, statistics
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.online.generation import Prompts, generate_responses
from rlhflow_utils.training.stages import train_offline_dpo

run = open_run("10_policy_evaluation", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile, data, sft = run.profile, run["preference_data"], run["sft"]
last = f"iter{profile.iterative.iterations}"
proxy, reference = run.reward_model(), run["sft_answers_scored"]

# %% [markdown]
# ## The idea
#
# A judge compares a policy's answer with the SFT model's, prompt by prompt. With $w$ wins, $t$ ties and $l$ losses the
# win rate is $(w + t/2) / (w + t + l)$.
#
# By hand: 50 wins, 20 ties, 30 losses.

# %%
rate = (50 + 20 / 2) / (50 + 20 + 30)
low, high = statistics.wilson_interval(rate, 100)
print(f"win rate {rate:.2f}, 95 % interval {low:.3f} to {high:.3f}")

# %% [markdown]
# ## The code
#
# Judges often prefer long answers. The *length-controlled* (LC) win rate of AlpacaEval-2 asks what the win rate would
# be at equal length. With d the length difference (policy minus reference), a regularised logistic regression explains
# each outcome by $\tanh(d / \mathrm{std}(d))$. Dividing by the standard deviation puts lengths on one scale, and tanh
# keeps a few very long answers from dominating. The prediction at d = 0 is the answer.
#
# The official model also uses the difficulty of each of its 805 instructions and is regularised by baselines that game
# length; `chat --benchmark alpaca_eval` computes it. On other prompts, as here, length alone remains. We call that
# estimate the *length-adjusted* win rate. With scikit-learn, on 100 comparisons of which the policy wins 60, most of them
# where its answer is the longer one:

# %%
import numpy as np
from sklearn.linear_model import LogisticRegression

lengths = np.array([140] * 70 + [60] * 30)  # the policy's; the reference always writes 100 characters
outcomes = np.array([1] * 55 + [0] * 15 + [1] * 5 + [0] * 25)
difference = lengths - 100
x = np.tanh(difference / difference.std())
fitted = LogisticRegression(C=10).fit(x[:, None], outcomes)  # C = 1 / ridge
controlled = statistics.length_adjusted_win_rate(outcomes, lengths, [100] * 100, 0.95).win_rate
print(f"plain win rate {sum(outcomes) / 100:.3f}")
print(f"at equal length {fitted.predict_proba([[0.0]])[0, 1]:.3f} with scikit-learn, {controlled.value:.3f} here")
print(f"95 % interval {controlled.ci_low:.3f} to {controlled.ci_high:.3f}")

# %% [markdown]
# ## The full run
#
# The offline baseline first: DPO on ranked answers of *other* models (paper App. B: Nectar), from π₀, with the same loss.

# %%
subset = "offline" if profile.data.offline_source else profile.data.main_mixture
offline = train_offline_dpo(
    data, subset, sft, profile.offline_dpo, profile.model, run.seed, profile.launch, into=run / "offline_dpo"
)
trained = {"sft": sft, "offline_dpo": offline, "iterative_dpo": run[f"{last}_dpo"]}
updates = sum(run[f"iter{k}_dpo"].metrics["steps"] for k in range(1, profile.iterative.iterations + 1))
tables.say(f"Updates: offline DPO {offline.metrics['steps']}, iterative DPO {updates} in all iterations.")

# %% [markdown]
# Its answers to the held-out prompts are judged against those of SFT, as chapter 09 did for every iteration.

# %%
answers = policies.answer_held_out(run, "offline_dpo", offline, data, proxy)
evaluation = policies.evaluate_policy(
    answers, reference, profile.evaluation, profile.world, run.judge_model(), profile.reward_model.batch_tokens, run.seed,
    profile.reward_model.output, profile.actors, cache_file=run.cache / "judge.jsonl",
    into=run / "offline_dpo_evaluation",
)  # fmt: skip
evaluations = {"sft": run["sft_evaluation"], "offline_dpo": evaluation, "iterative_dpo": run[f"{last}_evaluation"]}
last_unpenalised = f"unpenalised{profile.iterative.iterations}"
if profile.pair_building.length_penalty:
    evaluations["unpenalised"] = run[f"{last_unpenalised}_evaluation"]

# %% [markdown]
# **The alignment tax.** We test a skill that no preference and no RL prompt touched, in the tiny world translation.
# Answers are greedy (T = 0) and must match exactly. The paper's main policy has no length penalty, so we test that one, too.

# %%
taxes, tested = {}, dict(trained)
if "unpenalised" in evaluations:
    tested["unpenalised"] = run[f"{last_unpenalised}_dpo"]
if profile.evaluation.exact_match_sources:
    tests = policies.write_exact_match_prompts(profile.evaluation, run.data_root(), into=run / "exact_match_prompts")
    greedy = profile.generation.variant(1, [0.0])
    for name, policy in tested.items():
        given = generate_responses(
            policy, Prompts(tests, "exact_match"), greedy, profile.model, run.seed, profile.actors,
            into=run / f"{name}_exact_match_answers",
        )  # fmt: skip
        taxes[name] = policies.evaluate_exact_match(
            given, profile.evaluation, run.data_root(), into=run / f"{name}_exact_match"
        )

# %% [markdown]
# ## Results
#
# *Iterative DPO* is the last iteration of chapter 09, and *no length penalty* the same iteration without the penalty. The
# columns answer different questions. *Right answers* is the share of correct answers. *Length-adjusted win rate* estimates
# the win rate against SFT at equal lengths. *Plain win rate* also rewards brevity, since the briefer of two right answers
# wins. *Exact match* is the untouched skill, on few items.
#
# The last column is another measurement on another scale (GPT-4 judges LLaMA-3-8B against GPT-4-Preview): compare the
# *order* of the rows. The paper's 37.2 has no length penalty, its 41.9 has one (Table 6). We show each beside our row of
# the same kind.

# %%
results = {name: done.read_json("results.json") for name, done in evaluations.items()}
estimates = {name: result["estimates"] for name, result in results.items()}
matches = {name: done.read_json("results.json")["exact_match"] for name, done in taxes.items()}
papers = tables.paper_lc(is_penalised="unpenalised" in evaluations)
columns = {
    "right answers (95 %)": "accuracy", "length-adjusted win rate vs SFT": "length_adjusted_win_rate",
    "plain win rate": "win_rate", "length (characters)": "mean_length",
}  # fmt: skip
table = [
    {"policy": tables.policy_name(name)}
    | {column: tables.with_interval(row.get(key)) for column, key in columns.items()}
    | {"exact match": tables.with_interval(matches.get(name)), "paper: LC AlpacaEval-2 (%)": papers[name]}
    for name, row in estimates.items()
]
items = f", exact match on {matches['sft']['n']} items" if matches else ""
tables.show(table, f"{results['sft']['n']:,} held-out prompts{items}. {run.caption}")

# %% [markdown]
# All policies answered the same prompts and are judged against the same SFT answers, so we compare them prompt by prompt.
# What makes a prompt hard for both cancels. So the interval of a difference is narrower than two rows above suggest.
#
# Offline DPO has no length penalty. So the like-for-like comparison is the last column, the loop without the penalty. It
# is also the paper's. Right answers and the win rate at equal lengths come first; the plain win rate also rewards brevity.
#
# The length-adjusted win rate is no mean over prompts. For its interval we draw the prompts with replacement, and fit the
# regressions to every draw.


# %%
def at_equal_lengths(name: str, rows) -> float:
    prompts = results[name]["prompts"]
    columns = (np.array(prompts[key])[rows].astype(float) for key in ("outcome", "length", "reference_length"))
    return statistics.length_adjusted_win_rate(*columns, profile.evaluation.confidence).win_rate.value


options = (profile.evaluation.bootstrap_samples, profile.evaluation.confidence, run.seed)
outcomes = {name: result["prompts"]["outcome"] for name, result in results.items()}
judged = [place for place, row in enumerate(zip(*outcomes.values(), strict=True)) if None not in row]
draws = np.random.default_rng(run.seed).choice(judged, (profile.evaluation.bootstrap_samples // 10, len(judged)))
rates = {name: [at_equal_lengths(name, rows) for rows in (judged, *draws)] for name in results if name != "sft"}

# %%
tail, gains = (1 - profile.evaluation.confidence) / 2, {}
for name in [name for name in rates if name != "offline_dpo"]:
    found = {}
    if profile.world:
        right = (map(float, results[each]["prompts"]["right"]) for each in (name, "offline_dpo"))
        found["right answers"] = asdict(statistics.paired_difference(*right, *options))
    value, *drawn = np.subtract(rates[name], rates["offline_dpo"]).tolist()
    low, high = np.quantile(drawn, [tail, 1 - tail])
    found["length-adjusted win rate"] = {"value": value, "ci_low": low, "ci_high": high}
    plain = statistics.paired_difference(outcomes[name], outcomes["offline_dpo"], *options)
    gains[name] = {**found, "plain win rate": asdict(plain)}
table = [
    {"difference to offline DPO (95 %)": metric}
    | {tables.policy_name(name): tables.with_interval(found[metric]) for name, found in gains.items()}
    for metric in gains["iterative_dpo"]
]
tables.show(table, run.caption)

# %% [markdown]
# What did alignment cost? The untouched skill, item by item against SFT:

# %%
if matches:
    correct = {name: done.read_json("results.json")["prompts"]["correct"] for name, done in taxes.items()}
    table = [
        {"policy": tables.policy_name(name), "exact match": matches[name]["value"],
         "difference to SFT (95 %)": tables.with_interval(
             asdict(statistics.paired_difference(marks, correct["sft"], *options)))}
        for name, marks in correct.items() if name != "sft"
    ]  # fmt: skip
    tables.show(table, f"{matches['sft']['n']} items, SFT {100 * matches['sft']['value']:.1f} %. {run.caption}")

# %% [markdown]
# On `tiny`, seed 0, alignment has a cost: the skill suffers with and without the penalty. Claim h in chapter 11 has other
# seeds, none of which loses an item with the penalty.
#
# Read some answers. The same prompts for all policies:

# %%
held_out = {"sft": reference, "offline_dpo": answers, "iterative_dpo": run[f"{last}_answers_scored"]}
if "unpenalised" in evaluations:
    held_out["unpenalised"] = run[f"{last_unpenalised}_answers_scored"]
if profile.world:
    answered = {tables.policy_name(name): done.dataset() for name, done in held_out.items()}
    truth = {tables.policy_name(name): results[name]["prompts"]["reward"] for name in held_out}
    tables.show(tables.answer_rows(answered, truth, count=6), run.caption)

# %% [markdown]
# How much depends on the price of filler? Of two right answers the shorter one wins, however little filler costs. If
# filler is free they tie. We judge the same answers under three prices:

# %%
if profile.world:
    from rlhflow_utils.evaluation.judges import compare_rewards
    from rlhflow_utils.simulator.gold import World

    questions = [row["prompt"][-1]["content"] for row in reference.dataset()]
    texts = {name: [row["responses"][0] for row in done.dataset()] for name, done in held_out.items()}
    lengths = {name: [len(text) for text in each] for name, each in texts.items()}
    table = []
    for price in (0.0, profile.world.padding_cost, 10 * profile.world.padding_cost):
        priced = World(profile.world.model_copy(update={"padding_cost": price}))
        rewards = {name: list(map(priced.reward, questions, each)) for name, each in texts.items()}
        for name in ("offline_dpo", "iterative_dpo"):
            outcome = compare_rewards(rewards[name], rewards["sft"])
            equal = statistics.length_adjusted_win_rate(outcome, lengths[name], lengths["sft"], options[1])
            plain = statistics.bootstrap_mean(outcome, *options)
            table.append(
                {"policy": tables.policy_name(name), "price of a character": price,
                 "length-adjusted win rate (95 %)": tables.with_interval(asdict(equal.win_rate)),
                 "plain win rate (95 %)": tables.with_interval(asdict(plain))}
            )  # fmt: skip
    tables.show(table, run.caption)

# %% [markdown]
# The plain win rate depends on whether filler costs anything. Between two right answers of equal length the price
# cannot matter. The length-adjusted win rate still moves a little: it is an estimate, and some reward for brevity remains in
# it.
#
# How much depends on the temperature? All answers above were sampled at `evaluation.temperature`. At a lower one a policy
# gives its likeliest answers.

# %%
if profile.world:
    gold, cool = World(profile.world), profile.generation.variant(1, [0.3])
    shares = {}
    for name, policy in trained.items():
        given = generate_responses(
            policy, Prompts(data, "evaluation_prompts"), cool, profile.model, run.seed, profile.actors,
            into=run / f"{name}_cool_answers",
        )  # fmt: skip
        marks = [gold.is_correct(row["prompt"][-1]["content"], row["responses"][0]) for row in given.dataset()]
        shares[name] = asdict(statistics.accuracy([float(mark) for mark in marks], profile.evaluation.confidence))
    warm = f"right answers at T = {profile.evaluation.temperature:g} (95 %)"
    table = [
        {"policy": tables.policy_name(name), warm: tables.with_interval(estimates[name]["accuracy"]),
         "at T = 0.3 (95 %)": tables.with_interval(share)}
        for name, share in shares.items()
    ]  # fmt: skip
    tables.show(table, run.caption)

# %% [markdown]
# On `tiny` SFT itself is right on most prompts at T = 0.3. So most of DPO's gain at T = 1 is a sharper distribution: the
# policy prefers what it already knew. Only the smaller gain at T = 0.3 can be new.

# %%
named = {tables.policy_name(name): row for name, row in estimates.items()}
bars = {
    "right answers (%)": {name: row.get("accuracy") for name, row in named.items()},
    "length-adjusted win rate against SFT (%)": {name: row["length_adjusted_win_rate"] for name, row in named.items()},
    "mean length (characters)": {name: row["mean_length"] for name, row in named.items()},
    "judge's reward": {name: row.get("reward") for name, row in named.items()},
    "exact match, untouched skill (%)": {tables.policy_name(name): found for name, found in matches.items()},
}
figures.policy_bars({metric: found for metric, found in bars.items() if any(found.values())})

# %%
figures.quality_against_length(named)

# %% [markdown]
# **The judge and the proxy.** The proxy is the RM that ranked the training pairs. Over-optimisation would show as a win
# rate that rises under the RM while it falls under the judge. A difference alone does not show it. The two also differ in
# the price of filler. This table takes the RM's reward without the length penalty, so filler costs nothing there.

# %%
table = []
for name, row in estimates.items():
    by_judge, by_rm = tables.with_interval(row["win_rate"]), tables.with_interval(row["proxy_win_rate"])
    table.append({"policy": tables.policy_name(name), "win rate, judge (95 %)": by_judge, "win rate, RM (95 %)": by_rm})
tables.show(table, run.caption)

# %% [markdown]
# On `tiny` only the policy without the length penalty wins by the RM and loses by the judge. Offline DPO never saw this RM.
# It still does better under the RM, which does not charge for its longer answers.
#
# Which skills gain? (Gold judge only.)

# %%
before, after = results["sft"]["skills"], results["iterative_dpo"]["skills"]
table = []
for skill, part in after.items():
    table.append(
        {"skill": skill, "length-adjusted win rate vs SFT": tables.with_interval(part["length_adjusted_win_rate"]),
         "right, SFT (95 %)": tables.with_interval(before[skill]["accuracy"]),
         "right, iterative DPO (95 %)": tables.with_interval(part["accuracy"])}
    )  # fmt: skip
if table:
    tables.show(table, run.caption)

# %% [markdown]
# ## The paper's tables beside ours
#
# Read from `results/`, where reference runs of all profiles are kept; this run is among them once it is published. The
# tables list every number of the paper that the guide can reproduce. Benchmarks that need a GPU and have not been run yet
# say *not run here*. Scales differ, as the column *setting* says: compare the order of the rows.
#
# **Table 2**, RewardBench (%):

# %%
published = tables.read_results()
tables.show(tables.table_2(published))

# %% [markdown]
# **Table 4**, chat benchmarks. `python -m rlhflow_utils chat --benchmark mt_bench --profile ... --model ... --questions ...
# --out ...` runs each of the three against any OpenAI-compatible judge.

# %%
tables.show(tables.table_4(published))

# %% [markdown]
# **Table 5**, the academic suite (%): `python -m rlhflow_utils academic --profile ... --model ... --out ...` runs it through
# lm-eval.

# %%
tables.show(tables.table_5(published))

# %% [markdown]
# **Table 6**, from the claims of chapter 11 (`make claims`). The rows have the paper's names. *Ours* is the loop
# without the length penalty, *concise* has a penalty scaled to this world. UltraRM-13B is not run: the RM of mix1 takes
# its place, without the penalty, for one iteration. Compare that row with claim k, not with the rows above it.

# %%
tables.show(table_6(read_records()))

# %% [markdown]
# ## Publishing
#
# With `hub.push: true` the final policy is pushed with a card that carries these numbers.

# %%
name, base = f"rlhf-workflow-{profile.name}", profile.model.base or "the base model of chapter 00"
card = cards.model_card(name, base, trained["iterative_dpo"], evaluations["iterative_dpo"].metrics, run.caption)
if profile.hub.push:
    print(cards.push_model(trained["iterative_dpo"], name, card, profile.hub))
else:
    print(card[:600], "…\n\n(hub.push is false: nothing was pushed)")

# %% [markdown]
# ## Checks

# %%
judge = profile.evaluation.judge
assert abs(fitted.predict_proba([[0.0]])[0, 1] - controlled.value) < 0.005, "scikit-learn's fit is near ours"
assert evaluations["sft"].metrics[f"{judge}_win_rate_vs_sft"] == 0.5, "SFT against itself"
counts = results["iterative_dpo"]["counts"]
assert sum(counts.values()) == results["iterative_dpo"]["n"], "every prompt is a win, a tie or a loss"
identifiers = [result["prompts"]["prompt_id"] for result in results.values()]
assert all(ids == identifiers[0] for ids in identifiers), "all policies answered the same prompts, in the same order"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper's judges are GPT-4 on three benchmarks. In the tiny world the judge is the gold reward, which the paper
#   could not have. `evaluation.judge: endpoint` asks any OpenAI-compatible model instead.
# * Offline DPO makes one pass over its own pairs, the best answer against a random one. Iterative DPO makes two passes
#   over its pairs in each iteration. So it has more updates (printed above) and other prompts, and on `tiny` the penalty.
# * Claim e in chapter 11 has another offline DPO: two passes, best against worst, as many prompts of each skill, and as
#   many updates as the iterations together. So its numbers differ from those here.
# * AlpacaEval-2's regression has a third term, the difficulty of each of its 805 prompts. It needs the answers of many
#   models, so we leave it out.
# * The tiny model cannot sit the academic suite of Table 5. One untouched skill takes its place.
#
# ## Summary


# %%
def told(found) -> str:
    return ", ".join(f"{tables.policy_name(name)} {100 * each['value']:.0f} %" for name, each in found.items() if each)


summary = {
    "Right answers": {name: row.get("accuracy") for name, row in estimates.items()},
    "At T = 0.3": shares if profile.world else {},
    "Length-adjusted win rate": {name: row["length_adjusted_win_rate"] for name, row in estimates.items()},
    "Untouched skill": matches,
}
tables.say(" ".join(f"*{what}:* {words}." for what, found in summary.items() if (words := told(found))))
apart = {name: tables.with_interval(found["length-adjusted win rate"]) for name, found in gains.items()}
differences = ", ".join(f"{tables.policy_name(name)} {words}" for name, words in apart.items())
tables.say(
    f"At equal lengths, against offline DPO: {differences}. This is one seed. Chapter 11 has several, for the order of the "
    "policies (claim e), the penalty (g) and the untouched skill (h)."
)

# %% [markdown]
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Write the test** (10 minutes). How much does pairing gain? Compare iterative and offline DPO in *right answers* prompt
# by prompt, as above, and then as if the two had answered different prompts. Which interval is narrower?
#
# ```python
# right = {name: [float(each) for each in result["prompts"]["right"]] for name, result in results.items()}
# ...  # statistics.paired_difference(ours, theirs, *options)
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# right = {name: [float(each) for each in result["prompts"]["right"]] for name, result in results.items()}
# paired = statistics.paired_difference(right["iterative_dpo"], right["offline_dpo"], *options)
# ours, theirs = (statistics.bootstrap_mean(right[name], *options) for name in ("iterative_dpo", "offline_dpo"))
# half = ((ours.ci_high - ours.ci_low) ** 2 + (theirs.ci_high - theirs.ci_low) ** 2) ** 0.5 / 2
# print(f"paired   {paired.value:+.3f} ({paired.ci_low:+.3f} … {paired.ci_high:+.3f})")
# print(f"unpaired {ours.value - theirs.value:+.3f} ({paired.value - half:+.3f} … {paired.value + half:+.3f})")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# paired   +0.129 (+0.104 … +0.153)
# unpaired +0.129 (+0.096 … +0.162)
# ```
#
# Both exclude zero, and the paired one is narrower: what makes a prompt hard for both policies cancels. Both cover the
# choice of prompts only. Claim e in chapter 11 covers the choice of seed.
#
# </details>
#
# **2. Explain the gap** (10 minutes). Offline DPO's length-adjusted win rate is far above its plain one. Split its outcomes
# by whether its answer is shorter than SFT's, as long, or longer. Which group explains the gap?
#
# ```python
# prompts = results["offline_dpo"]["prompts"]
# print(prompts["outcome"][:5], prompts["length"][:5], prompts["reference_length"][:5])
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# for policy in ("offline_dpo", "iterative_dpo"):
#     prompts = results[policy]["prompts"]
#     groups = {"shorter": [], "as long": [], "longer": []}
#     for outcome, ours, theirs in zip(prompts["outcome"], prompts["length"], prompts["reference_length"], strict=True):
#         groups["shorter" if ours < theirs else "longer" if ours > theirs else "as long"].append(outcome)
#     print(policy, {name: f"{len(each)} prompts, {sum(each) / len(each):.2f}" for name, each in groups.items()})
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# offline_dpo {'shorter': '153 prompts, 0.91', 'as long': '503 prompts, 0.55', 'longer': '344 prompts, 0.27'}
# iterative_dpo {'shorter': '414 prompts, 0.93', 'as long': '521 prompts, 0.60', 'longer': '65 prompts, 0.86'}
# ```
#
# A third of offline DPO's answers are longer than SFT's, and those win only a quarter of their comparisons: of two
# right answers the padded one loses. The regression takes this loss out. The answers of iterative DPO are mostly
# shorter or as long, so for it the regression takes out a gain.
#
# </details>
#
# **Next:** [11 · The claims, measured](11_ablations.ipynb)

# %%
run.finish()
