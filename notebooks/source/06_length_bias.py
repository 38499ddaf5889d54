# %% [markdown]
# # 06 · Length bias
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · **06 length bias** · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# **The claim.** Reward models prefer long answers, and how much depends on their data. Over the answers to one prompt,
# length and reward correlate with 0.19 on average for UltraRM-13B. For the paper's BT model on mix2 it is 0.06 (paper
# 2.3, Fig. 5). The paper attributes this to Capybara, OpenOrca and UltraInteract, which mix2 adds and whose preferred
# answers are shorter. Here the RM of mix1 takes UltraRM's place, because its data resembles mix1.
#
# **You need** chapters 00–03.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
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
print(responses.rows)

# %%
judges, studies = {mixture: run[f"bt_{mixture}"] for mixture in profile.reward_model.mixtures}, {}
if profile.reward_model.model:
    judges["public"] = run.reward_model()
for mixture, judge in judges.items():
    scores = score_responses(
        judge, responses, profile.reward_model, profile.model, profile.actors,
        into=run / f"length_bias_scores_{mixture}",
    )  # fmt: skip
    studies[mixture] = reward_models.measure_length_bias(
        scores, profile.evaluation, run.seed, into=run / f"length_bias_{mixture}"
    )

# %% [markdown]
# ## Results

# %%
results = {mixture: done.read_json("results.json") for mixture, done in studies.items()}
models = {"mix1": "UltraRM-13B", "mix2": "BT RM, mix2"}
table = []
for mixture, result in results.items():
    name = models.get(mixture, "")
    table.append(
        {"RM": mixture, "mean Pearson r": result["mean"]["value"], "95 % interval": tables.interval(result["mean"]),
         "prompts": result["mean"]["n"], "paper": tables.LENGTH_BIAS.get(name), "the paper's model": name}
    )  # fmt: skip
tables.show(table, run.caption)

# %% [markdown]
# Both RMs scored the same answers, so we also compare them prompt by prompt. Zero is not the target everywhere: in the tiny
# world filler lowers the gold reward, so the true correlation is negative. It is the last line below.

# %%
spread = (profile.evaluation.bootstrap_samples, profile.evaluation.confidence, run.seed)
if len(profile.reward_model.mixtures) > 1:
    first, second = profile.reward_model.mixtures[:2]
    pairs = zip(results[first]["correlations"], results[second]["correlations"], strict=True)
    defined = [pair for pair in pairs if None not in pair]
    gap = statistics.paired_difference(*zip(*defined, strict=True), *spread)
    print(f"{first} − {second}: {gap.value:+.3f} ({gap.ci_low:+.3f} … {gap.ci_high:+.3f}), n = {gap.n}")
if profile.world:
    gold, answers = World(profile.world), responses.dataset()
    truth = [[gold.reward(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in answers]
    sizes = [[len(text) for text in row["responses"]] for row in answers]
    r, _ = statistics.mean_pearson(statistics.pearson_per_prompt(sizes, truth), *spread)
    print(f"gold reward: mean Pearson r {r.value:+.3f} ({r.ci_low:+.3f} … {r.ci_high:+.3f}), n = {r.n}")

# %% [markdown]
# Each row of the heatmap is one prompt, its answers sorted from shortest to longest. A model that prefers length is dark
# on the left and yellow on the right. A mean near zero can result from strong positive and strong negative correlations.

# %%
studied = {}
for name, result in results.items():
    studied[name] = {**result, "correlations": [float("nan") if r is None else r for r in result["correlations"]]}
figures.length_bias(studied)

# %% [markdown]
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
#   mix2's. Chapter 01 shows whether their *labels* favour shorter answers. **Measured**: how much of it the RMs pick up.
#
# ## Summary
#
# **Claim on this run**: the first table, and the paired difference below it. **Over worlds**: claim d in chapter 11. The
# policy of chapter 09 will exploit whatever length preference its reward model has.
#
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
# **2. Predict** (5 minutes). Which sign has the *gold* reward's correlation for prompts whose answers are all right? How
# large is it? Use `gold.is_correct`.
#
# ```python
# right = [[gold.is_correct(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in answers]
# ...
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# right = [[gold.is_correct(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in answers]
# groups = {"all right": [all(each) for each in right], "some wrong": [not all(each) for each in right]}
# for name, group in groups.items():
#     kept = [place for place, is_in in enumerate(group) if is_in]
#     each = statistics.pearson_per_prompt([sizes[k] for k in kept], [truth[k] for k in kept])
#     defined = [r for r in each if r == r]  # nan: all answers have the same length or the same reward
#     print(f"{name}: {len(kept)} prompts, {len(defined)} of them defined, mean {sum(defined) / len(defined):+.3f}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# all right: 15 prompts, 9 of them defined, mean -1.000
# some wrong: 185 prompts, 181 of them defined, mean -0.107
# ```
#
# Among right answers the gold reward falls by the same amount with every character of filler, so the correlation is exactly
# −1. Where some answers are wrong, being right decides and length says little.
#
# </details>
#
# **Next:** [07 · Generation](07_generation.ipynb)

# %%
run.finish()
