# %% [markdown]
# # 06 · Length bias
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · **06 length bias** · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# **The claim.** Reward models prefer long answers, and how much depends on their data. Over the answers to one prompt,
# length and reward correlate with 0.19 on average for UltraRM-13B. For the paper's BT model on mix2 it is 0.06 (paper
# 2.3, Fig. 5). The paper suggests a part of the reason: mix2 adds Capybara, OpenOrca and UltraInteract, whose preferred
# answers are shorter. Here the RM of mix1 takes UltraRM's place, because its data resembles mix1.
#
# After this chapter you can measure how far a reward follows length, and tell what the usual mean hides.
#
# **You need** chapters 00–03.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
from dataclasses import asdict

from scipy import stats

from rlhflow_utils.evaluation import reward_models, statistics
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import Prompts, generate_responses
from rlhflow_utils.simulator.gold import World

run = open_run("06_length_bias", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile, data, sft = run.profile, run["preference_data"], run["sft"]

# %% [markdown]
# ## The idea
#
# For one prompt with K answers of lengths $\ell_k$ and rewards $r_k$, take Pearson's correlation; then average over
# prompts. We compute it within each prompt, so that differences between topics do not matter.
#
# By hand, four answers of which the longest has the highest reward:

# %%
lengths, rewards = [10, 20, 30, 40], [0.1, 0.3, 0.2, 0.6]
mean_length, mean_reward = sum(lengths) / 4, sum(rewards) / 4
covariance = sum((length - mean_length) * (r - mean_reward) for length, r in zip(lengths, rewards, strict=True))
spread = sum((length - mean_length) ** 2 for length in lengths) * sum((r - mean_reward) ** 2 for r in rewards)
print(f"by hand {covariance / spread**0.5:.4f}, scipy {stats.pearsonr(lengths, rewards).statistic:.4f}")

# %% [markdown]
# ## The code
#
# `pearson_per_prompt` calls scipy's `pearsonr` for all prompts at once. If all K answers have the same length or the
# same reward, no correlation is defined. Such prompts are counted and excluded from the mean.

# %%
two_prompts = statistics.pearson_per_prompt([lengths, [10, 10, 10, 10]], [rewards, rewards])
print("two prompts, the second with answers of equal length:", two_prompts)

# %% [markdown]
# ## The full run
#
# The SFT model answers each prompt several times; chapter 07 explains how. Then every RM scores the same answers.

# %%
sampling = profile.generation.variant(profile.length_bias.responses, profile.generation.temperatures)
responses = generate_responses(
    sft, Prompts(data, count=profile.length_bias.prompts), sampling, profile.model, run.seed, profile.actors,
    into=run / "length_bias_responses",
)  # fmt: skip
print(f"{responses.rows['prompts']['rows_out']} prompts, {profile.length_bias.responses} answers each")

# %%
judges = {mixture: run[f"bt_{mixture}"] for mixture in profile.reward_model.mixtures}
scores, studies = {}, {}
if profile.reward_model.model:
    judges["public"] = run.reward_model()
for mixture, judge in judges.items():
    scores[mixture] = score_responses(
        judge, responses, profile.reward_model, profile.model, profile.actors,
        into=run / f"length_bias_scores_{mixture}",
    )  # fmt: skip
    studies[mixture] = reward_models.measure_length_bias(
        scores[mixture], profile.evaluation, run.seed, into=run / f"length_bias_{mixture}"
    )

# %% [markdown]
# ## Results
#
# A perfect reward model would not have zero correlation in the tiny world. Filler lowers the gold reward there, so the
# true correlation is below zero (last row).

# %%
results = {mixture: done.read_json("results.json") for mixture, done in studies.items()}
means = {mixture: result["mean"] for mixture, result in results.items()}
spread = (profile.evaluation.bootstrap_samples, profile.evaluation.confidence, run.seed)
if profile.world:
    gold, answers = World(profile.world), responses.dataset()
    answered = [(row["prompt"][-1]["content"], row["responses"]) for row in answers]
    sizes = [[len(text) for text in texts] for _, texts in answered]
    truth = [[gold.reward(question, text) for text in texts] for question, texts in answered]
    means["gold"] = asdict(statistics.mean_pearson(statistics.pearson_per_prompt(sizes, truth), *spread)[0])
models = {"mix1": "UltraRM-13B", "mix2": "BT RM, mix2"}
table = [
    {"reward": name, "mean Pearson r (95 %)": tables.with_interval(mean), "prompts": mean["n"],
     "paper": tables.LENGTH_BIAS.get(models.get(name, "")), "the paper's model": models.get(name)}
    for name, mean in means.items()
]  # fmt: skip
tables.show(table, run.caption)

# %% [markdown]
# Both RMs scored the same answers, so we also compare them prompt by prompt.

# %%
if len(profile.reward_model.mixtures) > 1:
    first, second = profile.reward_model.mixtures[:2]
    pairs = zip(results[first]["correlations"], results[second]["correlations"], strict=True)
    defined = [pair for pair in pairs if None not in pair]
    gap = asdict(statistics.paired_difference(*zip(*defined, strict=True), *spread))
    tables.say(f"{first} − {second}: {tables.with_interval(gap)}, n = {gap['n']} prompts.")

# %% [markdown]
# Each row of the heatmap is one prompt, its answers sorted from shortest to longest. A model that prefers length is dark
# on the left and yellow on the right. A mean near zero can hide strong correlations of both signs.

# %%
studied = {}
for name, result in results.items():
    studied[name] = {**result, "correlations": [float("nan") if r is None else r for r in result["correlations"]]}
figures.length_bias(studied)

# %% [markdown]
# **Among right answers.** The mean over all answers mixes two things. A wrong answer has a low reward, and here wrong
# answers happen to be longer. That hides what a reward makes of length itself. So we take the *right* answers to each
# prompt, where it has three or more. They differ in their filler, and hardly in anything else.


# %%
def among_right(rewards) -> statistics.Estimate:
    """Mean correlation over the right answers to each prompt; `sizes`, `rewards` and `right` have one row a prompt."""
    each = []
    for lengths, values, marks in zip(sizes, rewards, right, strict=True):
        kept = [place for place, mark in enumerate(marks) if mark]
        if len(kept) > 2:
            each.extend(statistics.pearson_per_prompt([[lengths[k] for k in kept]], [[values[k] for k in kept]]))
    return statistics.mean_pearson(each, *spread)[0]


if profile.world:
    right = [[gold.is_correct(question, text) for text in texts] for question, texts in answered]
    rewards = {mixture: scored.dataset()["rewards"] for mixture, scored in scores.items()} | {"gold": truth}
    right_only = {name: asdict(among_right(values)) for name, values in rewards.items()}
    table = [
        {"reward": name, "r, all answers": means[name]["value"], "r, right answers (95 %)": tables.with_interval(found),
         "prompts": found["n"]}
        for name, found in right_only.items()
    ]  # fmt: skip
    tables.show(table, run.caption)

# %% [markdown]
# The true reward falls by the same amount with every character of filler, so its correlation is −1. A reward model with
# a positive value pays for filler, even if its mean over all answers is near zero. A policy that is trained on this
# reward will find out: chapter 09 shows how its answers grow without a length penalty.
#
# Where does the preference come from? Labels show it in pairs of two right answers, where length can decide. These are
# the sources of the main mixture. Compare them with one another, and with the last row:

# %%
if profile.world:
    longer = {}
    for row in data.dataset(profile.data.main_mixture):
        question, *texts = (row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))
        if len(texts[0]) != len(texts[1]) and all(gold.is_correct(question, text) for text in texts):
            longer.setdefault(row["source"], []).append(float(len(texts[0]) > len(texts[1])))
    longer["all sources"] = [mark for marks in longer.values() for mark in marks]
    table = [
        {"source": name, "pairs of two right answers": len(marks),
         "the longer one is chosen (95 %)": tables.with_interval(asdict(statistics.accuracy(marks)))}
        for name, marks in longer.items()
    ]  # fmt: skip
    tables.show(table, run.caption)

# %% [markdown]
# The sources disagree about length, and one RM is trained on all of them. Over all sources these labels are neutral, so they
# do not explain a mean preference of the RM. Over all pairs the chosen answer is a little longer, mostly since right answers
# are (chapter 01).
#
# ## Checks

# %%
for mixture, done in studies.items():
    defined = [r for r in results[mixture]["correlations"] if r is not None]
    assert len(defined) == done.rows["prompts"]["rows_out"], "undefined prompts are counted"
    assert all(-1.0001 <= r <= 1.0001 for r in defined), "a correlation"
    assert abs(sum(defined) / len(defined) - results[mixture]["mean"]["value"]) < 1e-6, "the mean of what is drawn"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper compares its model with UltraRM-13B, which has another base model. Here the two RMs differ only in their data:
#   in its sources (the paper's explanation) and in its size. Claim d in chapter 11 holds the size equal, too.
# * **Built in** to the tiny world: the annotators' preference for length, positive in mix1's sources, negative in four of
#   mix2's. Over all pairs of a source, chapter 01 finds no clear lean to the shorter answer. In most pairs one answer is right,
#   which decides, and the right one is a little longer. The preference shows in pairs of two right answers (last table).
#   **Measured**: how much of it the RMs learn.
#
# ## Summary

# %%
followed = ", ".join(f"{mixture} {means[mixture]['value']:+.2f}" for mixture in results)
summary = f"Correlation of length and reward over all answers to a prompt, by RM: {followed}."
if profile.world:
    kept = ", ".join(f"{name} {found['value']:+.2f}" for name, found in right_only.items())
    summary += f" Over right answers alone: {kept}. Compare equally good answers before you call an RM unbiased."
tables.say(f"{summary} This is one seed; claim d in chapter 11 has several.")

# %% [markdown]
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Find the bug** (10 minutes). A colleague computes one correlation over all answers to all prompts and reports that the
# RM of mix1 hardly follows length. Do the same. Why does the number mislead?
#
# ```python
# scored = run["length_bias_scores_mix1"].dataset()
# lengths = [len(text) for row in scored["responses"] for text in row]
# print(stats.pearsonr(lengths, [reward for row in scored["rewards"] for reward in row]).statistic)
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# for mixture, result in results.items():
#     scored = run[f"length_bias_scores_{mixture}"].dataset()
#     lengths = [len(text) for row in scored["responses"] for text in row]
#     pooled = stats.pearsonr(lengths, [reward for row in scored["rewards"] for reward in row]).statistic
#     print(f"{mixture}: over all answers {pooled:+.3f}, within prompts {result['mean']['value']:+.3f}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# mix1: over all answers +0.068, within prompts +0.417
# mix2: over all answers -0.019, within prompts -0.017
# ```
#
# A reward has no meaning across prompts: the Bradley-Terry model fixes only differences between answers to *one* prompt.
# Over all answers, differences between prompts hide the preference of the RM of mix1. Only within a prompt does length
# decide between answers.
#
# </details>
#
# **2. Write the estimator** (10 minutes). How much reward does one more character earn from each RM, among right answers?
# Fit one slope over all prompts, to lengths and rewards from which the prompt's own mean has been taken. Chapter 08 needs
# the number: a length penalty must outweigh it.
#
# ```python
# for name, values in rewards.items():
#     x, y = [], []  # length − mean length of the prompt's right answers, reward − their mean reward
#     ...
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# for name, values in rewards.items():
#     x, y = [], []
#     for lengths, marked, each in zip(sizes, right, values, strict=True):
#         kept = [k for k, mark in enumerate(marked) if mark]
#         x += [lengths[k] - sum(lengths[j] for j in kept) / len(kept) for k in kept]
#         y += [each[k] - sum(each[j] for j in kept) / len(kept) for k in kept]
#     print(f"{name}: {sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x):+.4f} a character")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# mix1: +0.0164 a character
# mix2: +0.0029 a character
# gold: -0.0020 a character
# ```
#
# The gold slope is the price of filler in this world, `padding_cost`. The RM of mix1 pays about eight times that price, the
# RM of mix2 a little more than the price. Small as that is, DPO follows it: only the order of two rewards counts.
#
# </details>
#
# **3. Your own text** (10 minutes). Score texts of your own: a right answer, the same with filler, a wrong one, the same with
# filler. (The job of Zorn is tailor in this world.) Does filler help a wrong answer, too? Do the two RMs agree?
#
# ```python
# from rlhflow_utils.models.reward_model import load_scorer
#
# prompt = [{"role": "user", "content": "Hello. Tell me the job of Zorn."}]
# texts = ["The job of Zorn is tailor.", ...]
# score = load_scorer(judges["mix2"], profile.reward_model.batch_tokens)
# print(score([(prompt, text) for text in texts]))
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# from rlhflow_utils.models.reward_model import load_scorer
#
# prompt = [{"role": "user", "content": "Hello. Tell me the job of Zorn."}]
# filler = " I hope this helps. Let me know if you need more. Feel free to ask again. Have a nice day."
# texts = [text + more for text in ("The job of Zorn is tailor.", "The job of Zorn is poet.") for more in ("", filler)]
# for name, judge in judges.items():
#     score = load_scorer(judge, profile.reward_model.batch_tokens)
#     print(name, [round(reward, 2) for reward in score([(prompt, text) for text in texts])])
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# mix1 [1.09, 1.75, -2.18, -1.05]
# mix2 [1.9, 2.01, -1.34, -0.69]
# ```
#
# Filler raises all four rewards, also those of the RM of mix2, whose mean correlation is near zero. Being right still counts
# for far more than filler.
#
# </details>
#
# **Next:** [07 · Generation](07_generation.ipynb)

# %%
run.finish()
