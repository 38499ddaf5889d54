# %% [markdown]
# # 11 · The claims, measured
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · **11 claims** · 12 report
#
# Every chapter so far ran once, with one seed. After this one you can say which of the paper's claims hold in a world
# where the true reward is known, how sure that is, and how to test a claim of your own.
#
# Each claim has a design, a control and a verdict: *supported*, *not supported* or *inconclusive*. The runs take hours
# (`make claims`, resumable); their results lie in `results/claims/`, and this chapter reads them. Each record names the
# commit that it was measured at. The discussion below was written for the records of commit 3dcf924: they are of an earlier
# tiny world, whose base model had read a seventh of the text and could hardly check an answer. Chapters 00 to 10 show the
# present one, and do not agree with all that is said here; `make claims` measures the claims again.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
from scipy import stats

from rlhflow_utils.claims import tables as claims
from rlhflow_utils.claims.designs import Comparison, load_designs
from rlhflow_utils.claims.verdicts import claims_table, comparison_verdict, read_records, smallest_detectable_effect
from rlhflow_utils.evaluation.statistics import Estimate
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.run import open_run

run = open_run("11_ablations", PROFILE, RUN_DIR, SEED, OVERRIDES)
designs, records = load_designs(), read_records()

# %% [markdown]
# ## The picture to remember
#
# Look at the orange line, the loop without a length penalty, in both panels: left the reward that it is trained on (the
# proxy, counted from iteration 1), right the true reward (counted from SFT). The axis below is how far the policy has moved
# from π₀: the KL divergence of a whole answer (records from before it was measured are drawn by iteration).

# %%
variants = {
    "main": "with the length penalty",
    "no_penalty": "without it",
    "weak_rm": "without it, RM of few pairs",
    "low_beta": "without it, low β",
}
claims.claim_curves(records["l"], variants)

# %% [markdown]
# Without the penalty the proxy goes on rising, while the mean true reward ends below SFT's: over-optimisation. With the
# penalty the true reward ends above SFT's. The thin lines show how much worlds differ.
#
# ## The idea
#
# A seed draws everything but the world's truth and its base model: demonstrations, annotators' errors, prompts, samples, and
# all that is trained on them. Two *variants* that are compared share everything except the factor under test and its
# consequences. So we take the difference seed by seed. The interval over $k$ seeds is Student's $t$:
#
# $$\bar d \pm t_{0.975,\,k-1}\, s_d / \sqrt{k}.$$
#
# By hand: on three seeds a variant wins 2, 4 and 6 points more. The mean is 4, $s_d = 2$, $t_{0.975,2} = 4.303$, so the
# interval is $4 \pm 4.97$. All three seeds agree, and yet the interval includes zero: three seeds are few.

# %%
print("{:.2f} … {:.2f}".format(*stats.t.interval(0.95, df=2, loc=4, scale=stats.sem([2, 4, 6]))))

# %% [markdown]
# The same for a claim of the paper: is iterative DPO better than offline DPO, by true win rate against SFT?

# %%
rates = {name: list(records["e"]["variants"][name].values()) for name in ("no_penalty", "offline")}
differences = [ours["win_rate@3"] - theirs["win_rate"] for ours, theirs in zip(*rates.values(), strict=True)]
low, high = stats.t.interval(
    0.95, df=len(differences) - 1, loc=sum(differences) / len(differences), scale=stats.sem(differences)
)
print("by seed:", [round(each, 3) for each in differences], f"interval: {low:+.3f} … {high:+.3f}")

# %% [markdown]
# How large must an effect be, to be seen? At this spread over seeds, the *smallest detectable effect* is the true effect
# whose interval would lie above zero in 80 % of repetitions:
# $(t_{0.975,\,k-1} + t_{0.8,\,k-1})\, s_d / \sqrt{k}$. By hand, for the three seeds above: $(4.303 + 1.061) \cdot 1.155 = 6.19$.

# %%
print(f"{smallest_detectable_effect([2, 4, 6], confidence=0.95):.2f}")

# %% [markdown]
# An interval becomes a verdict by this rule. *No worse* and *near equal* need a margin that is set before the run.


# %%
def verdict(kind: str, low: float, high: float, margin: float) -> str:
    if kind == "near_equal":
        outside = high <= -margin or low >= margin
        return "supported" if -margin < low and high < margin else "not supported" if outside else "inconclusive"
    threshold = -margin if kind == "no_worse" else 0.0  # else "greater"
    return "supported" if low > threshold else "not supported" if high <= threshold else "inconclusive"


for kind, start, end, margin in (
    ("greater", 0.01, 0.09, 0.0), ("greater", -0.01, 0.09, 0.0), ("no_worse", -0.04, 0.09, 0.05),
    ("near_equal", -0.04, 0.03, 0.05), ("near_equal", 0.06, 0.09, 0.05),
):  # fmt: skip
    print(f"{kind}, margin {margin}: {start:+.2f} … {end:+.2f} is {verdict(kind, start, end, margin)}")
    comparison = Comparison(name=kind, metric="win_rate", better="a", kind=kind, margin=margin)
    assert verdict(kind, start, end, margin) == comparison_verdict(comparison, Estimate(0.0, start, end, 5))

# %% [markdown]
# Each claim has one comparison that decides, written into `claims/designs.yaml` before the seeds were run; its verdict is the
# claim's. All others are shown beside it, and nothing corrects for their number. (In records from before that rule, marked
# by a dash under *detectable effect*, the comparison furthest from being supported decided.) *Inconclusive* most often means
# that there are too few seeds, not that there is no effect: compare the effect with the one that could be detected.
#
# ## The verdicts

# %%
tables.show(
    claims_table(records),
    "Win rates and accuracies are shares. Simulated worlds: evidence about the method, not about LLaMA-3.",
)

# %%
claims.claim_forest(records)

# %% [markdown]
# ## What we learn
#
# Each finding names the claims whose tables, at the end of this chapter, hold its numbers.
#
# * **Without a length penalty the loop gains nothing over SFT (e, f, l).** The proxy goes on rising while win rate and true
#   reward do not follow.
# * **The penalty makes answers shorter (g).** With it, iterative DPO beats offline DPO in plain win rate because its answers
#   are shorter. We see no advantage in right answers or in the length-adjusted win rate (e).
# * **Offline DPO is right more often than SFT, but does not win more often (e).** Its answers are longer, and filler loses a
#   comparison between two right answers. The verdict depends on the metric.
# * **A better RM gives a better policy where the RMs differ enough (k).** We see no effect of which two
#   responses become a pair (j).
# * **Mix2 helps through its sources, not its size (c, d).** At equal size its RM is better in safety and follows length
#   less. Reasoning stays open.
# * **The PM is behind the BT model with one pass over the pairs (b, m).** We cannot tell its pairs from random ones.
# * **Restart, replay, the loss and the reference make no difference that we can see (i, n, o, reference).**
# * **Worlds differ more than variants.** Base models of this size learn the skills unevenly; only large effects show.
#
# ### Other worlds
#
# A finding may depend on the one world, and on its one base model. So the claims about judges are measured again in the
# `worlds` of `claims/designs.yaml` (older records: with other annotators). Two seeds each: these intervals cover the choice
# of prompts only.

# %%
tables.show(claims.worlds_table(records))

# %% [markdown]
# ## What is built in, and what was known before
#
# Some effects are built into the world, so finding them only shows that the pipeline can detect them: the annotators of mix1
# prefer long answers and label reasoning and safety carelessly; mix2 adds sources with clean labels there. *Measured* is
# whether the models pick it up, how far a policy follows, and what each choice costs.

# %%
world = run.profile.world
sources = world.preferences.sources if world else {}
tables.show(
    [
        {"source": name, "rows": each.rows, "reward per character": each.length_bonus, "sharpness": str(each.sharpness)}
        for name, each in sources.items()
    ]
)

# %% [markdown]
# The length penalty and DPO's learning rate were chosen on worlds 1 and 2, the β of each loss on world 1. The worlds shown
# here were drawn after all designs were fixed, and measured once. One exception: offline DPO was trained again on as many
# pairs of each skill, before any result was read. This changed one verdict: with the first pairs (commit e3272a8) offline DPO
# lost to SFT.
#
# ## The variants
#
# Policies are compared after equally many iterations, prompts and optimiser steps. In claims k, l and m `no_penalty` appears
# under the name of its reward model ("RM of all pairs", "good RM", "BT"). Pairs, updates and tokens are sums over iterations.

# %%
tables.show(claims.variants_table(designs, records))

# %%
claims.claim_sizes(records["sizes"], {"bt_share0_125": 0.125, "bt_share0_25": 0.25, "bt_share0_5": 0.5, "bt": 1.0})

# %% [markdown]
# ## Every comparison

# %%
claims.show_claims(records, list(records))

# %% [markdown]
# ## Checks

# %%
compared = {(part["metric"], part["better"], part["worse"]): part for part in records["e"]["comparisons"]}
part = compared["win_rate@3", "no_penalty", "offline"]
assert abs(low - part["ci_low"]) < 1e-4, "scipy's interval, from the variants' own numbers, is the record's"
assert abs(high - part["ci_high"]) < 1e-4, "scipy's interval, from the variants' own numbers, is the record's"
for record in records.values():
    assert record["ci_low"] <= record["effect"] <= record["ci_high"], "an interval around its effect"
    assert all(len(each["per_seed"]) == record["seeds"] for each in record["comparisons"]), (
        "every comparison on every seed"
    )
    assert str(SEED) not in next(iter(record["variants"].values())), "a test seed is not the guide's own"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * UltraRM-13B is not run; the RM of mix1, and one of few pairs, take its place.
# * The length penalty is scaled to this world. β is the paper's, except in `low_beta` and in claim o.
# * Offline DPO makes two passes over its pairs (one in the paper), to have as many updates as all iterations together.
# * Many comparisons are ties between short answers; each counts one half.
#
# ## Exercises
#
# 1. Which verdicts would change if every margin were doubled? Work it out from the tables.
# 2. `make claims SEEDS=1 ONLY=f` writes `runs/claims/results/f.json` and leaves the committed record alone. Its interval
#    covers prompts only. For which step is it narrower than the one over seeds? What does each cover?
# 3. Add a world to `claims/designs.yaml` in which the sources of mix1 prefer short answers, such as
#    `world.preferences.sources.hh_rlhf.length_bonus: -0.03`. Predict claim d first, then run `make claims SEEDS=2 ONLY=d`.
#
# **Next:** [12 · The reproduction report](12_reproduction_report.ipynb)

# %%
run.finish()
