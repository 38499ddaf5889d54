# %% [markdown]
# # 08 · Pair building
#
# **The claim.** Algorithm 1 lets two policies answer each prompt: a *main agent*, the best policy for the data so far, and
# an *enhancer*, which explores where the main agent is unsure. In practice both come from one policy: of eight answers
# the reward model's best and worst are taken, best-of-8 and worst-of-8, which makes their difference, and so the
# exploration, as large as possible (paper 3.3). Pairs of identical answers say nothing and are dropped. A length penalty (eq. 8) can keep the policy from
# learning that longer is better.
#
# **You need** chapter 07.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import inspect
from dataclasses import asdict

from datasets import load_from_disk
from IPython.display import Markdown, display

from rlhflow_utils.evaluation import statistics
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.online import pair_building
from rlhflow_utils.online.iterative_dpo import Setting, build_pairs_for_iteration, score_for_iteration
from rlhflow_utils.simulator.gold import World

run = open_run("08_pair_building", PROFILE, RUN_DIR, SEED, OVERRIDES)
data, sft = run.folder("01_preference_data"), run.folder("02_sft")
setting = Setting(sft, run.folder(f"03_bt_{run.profile.data.main_mixture}"), data)
responses = run.folder("07_iter1_responses")

# %% [markdown]
# ## The idea
#
# Rank the answers by the penalised reward (eq. 8), with $|a|$ in characters:
#
# $$\tilde r(x, a) = r(x, a) - \lambda |a|.$$
#
# By hand: three answers with rewards 2.0, 1.9 and −1.0 and lengths 400, 100 and 50. Without a penalty the first is best;
# with λ = 0.001 the second is.

# %%
rewards, lengths = [2.0, 1.9, -1.0], [400, 100, 50]
for penalty in (0.0, 0.001):
    penalised = [reward - penalty * length for reward, length in zip(rewards, lengths, strict=True)]
    print(f"lambda = {penalty}: {[round(value, 3) for value in penalised]} -> best is answer {penalised.index(max(penalised)) + 1}")

# %% [markdown]
# ## The code

# %%
print(inspect.getsource(pair_building.build_pair))

# %% [markdown]
# ## The full run: scores
#
# The reward model scores every answer. Conversations are sorted by length and batched by tokens; none is cut.

# %%
scores = score_for_iteration(run, setting, 1, responses)
rows = load_from_disk(str(scores.path / "data"))
penalty = run.profile.pair_building.length_penalty
if run.profile.world:
    row = rows[0]
    penalised = pair_building.penalised_rewards(row["rewards"], row["responses"], penalty)
    print(f"{row['prompt'][-1]['content']}   (r - {penalty} |a|, then r)")
    for value, reward, text in sorted(zip(penalised, row["rewards"], row["responses"], strict=True), reverse=True):
        print(f"  {value:+.2f}  {reward:+.2f}  {text}")

# %% [markdown]
# ## The full run: pairs

# %%
pairs = build_pairs_for_iteration(run, setting, 1, scores)
print(pairs.rows["prompts"])

# %% [markdown]
# A rule is worth what it adds to chance. Beside best-against-worst stand its rivals on the same scores: best against a
# random other answer, and two answers at random.

# %%
rivals = {
    strategy: build_pairs_for_iteration(
        run.with_overrides({"pair_building.strategy": strategy}), setting, 1, scores, name=f"08_iter1_pairs_{strategy}"
    )
    for strategy in ("best_vs_random", "random")
}
built = {run.profile.pair_building.strategy: pairs, **rivals}
sets = {strategy: load_from_disk(str(folder.path / "data")) for strategy, folder in built.items()}

# %% [markdown]
# ## Results

# %%
table = []
for strategy, folder in built.items():
    kept, account = sets[strategy], folder.rows["prompts"]
    gaps = [row["chosen_score"] - row["rejected_score"] for row in kept]
    change = [len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"]) for row in kept]
    table.append(
        {"strategy": strategy, "pairs": len(kept), "dropped": str(account["dropped"]),
         "mean gap, raw": sum(gaps) / len(gaps), "mean gap, penalised": folder.metrics[f"08.{folder.path.name[3:]}.mean_penalised_margin"],
         "mean length change (characters)": sum(change) / len(change)}
    )  # fmt: skip
display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# What is the ranking worth in truth? Where the gold reward is known: the average answer, the ones that best against worst
# chose and rejected (by the penalised reward), the one that the raw reward puts first, and the best that a perfect judge
# would find.

# %%
if run.profile.world:
    gold = World(run.profile.world)
    truth = [[gold.reward(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in rows]
    first = [values[rewards.index(max(rewards))] for values, rewards in zip(truth, rows["rewards"], strict=True)]
    kept = sets[run.profile.pair_building.strategy]
    sides = {side: [gold.reward(row["prompt"][-1]["content"], row[side][0]["content"]) for row in kept] for side in ("chosen", "rejected")}
    picks = {"all answers": [sum(values) / len(values) for values in truth], "chosen": sides["chosen"],
             "rejected": sides["rejected"], "first by raw reward": first,
             "a perfect judge's first": [max(values) for values in truth]}  # fmt: skip
    spread = (run.profile.evaluation.bootstrap_samples, run.profile.evaluation.confidence, SEED)
    means = {name: statistics.bootstrap_mean(values, *spread) for name, values in picks.items()}
    table = [{"answer": name, "mean gold reward": mean.value, "95 % interval": tables.interval(asdict(mean)), "n": mean.n} for name, mean in means.items()]
    display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# The gaps of the raw reward. With a length penalty some are negative: there the shorter answer was chosen although the RM
# liked the longer one better.

# %%
plotting.reward_gap_histogram(
    {name: [row["chosen_score"] - row["rejected_score"] for row in kept] for name, kept in sets.items()},
    caption=tables.world_caption(run.profile),
)

# %%
plotting.pair_length_change(
    {name: [len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"]) for row in kept] for name, kept in sets.items()},
    caption=tables.world_caption(run.profile),
)

# %% [markdown]
# ## Checks

# %%
for strategy, folder in built.items():
    account = folder.rows["prompts"]
    assert account["rows_in"] == account["rows_out"] + sum(account["dropped"].values()), "every prompt is accounted for"
    assert all(row["chosen"] != row["rejected"] for row in sets[strategy]), "no pair of identical answers"
assert all(row["chosen_penalised"] >= row["rejected_penalised"] for row in sets[run.profile.pair_building.strategy])
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The released script picks pairs by the penalised reward and then orders them by the raw one: the penalty is undone.
#   Here the penalised order stands.
# * Its `random` strategies are not random. Here they are, with a seed per prompt.
# * Ties and identical pairs are counted by reason; there they vanish.
# * An answer that ran into the token limit gets no end-of-turn token: the policy did not end it.
#
# ## Summary and exercises
#
# One pair for each prompt: the best and the worst of n answers by the penalised reward, unless they tie or are the same
# text. On `tiny` the chosen answers are better than the average one, and not as good as a perfect judge's.
#
# 1. Set `pair_building.length_penalty` to 0.01. Predict the mean length change.
# 2. Which share of prompts would be dropped with n = 2? Derive it from the rows above, then set
#    `generation.responses` to 2.
# 3. Why is best against worst a larger step away from π₀ than best against random?
#
# **Next:** [09 · Iterative DPO](09_iterative_dpo.ipynb)

# %%
print(tables.run_line(run))
run.finish()
