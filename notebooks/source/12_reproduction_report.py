# %% [markdown]
# # 12 · The reproduction report
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · **12 report**
#
# One page: what this run measured, the paper's number beside ours, and the verdict on each claim over several seeds.
# This chapter computes nothing. It reads the finished stages of chapters 00–11 and the records in `results/claims/`.
#
# **You need** chapters 00–11.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
from IPython.display import Markdown, display

from rlhflow_utils.claims.tables import claims_table, read_records
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.guide.stage import read_json

run = open_run("12_reproduction_report", PROFILE, RUN_DIR, SEED, OVERRIDES)
last, judge, main = run.profile.iterative.iterations, run.profile.evaluation.judge, run.profile.data.main_mixture
iterations = [f"iter{k}" for k in range(1, last + 1)]

# %% [markdown]
# ## The result
#
# The figure shows two shares after each iteration of Algorithm 1: right answers to held-out prompts, and wins against
# the SFT model at equal lengths (the length-adjusted win rate of chapter 10). For the win rate, one half is no
# progress.

# %%
results = {name: run[f"{name}_evaluation"].read_json("results.json") for name in ("sft", "offline_dpo", *iterations)}
estimates = {name: result["estimates"] for name, result in results.items()}
figures.progress_over_iterations(
    estimates["sft"], [estimates[name] for name in iterations], judge, {"offline DPO": estimates["offline_dpo"]},
    run.caption,
)  # fmt: skip

# %%
def percent(policy: str, metric: str) -> str:
    return f"{100 * estimates[policy][metric]['value']:.0f} %"


right = f"Right answers: {percent('sft', 'accuracy')} after SFT, {percent('offline_dpo', 'accuracy')} after offline DPO, " \
        f"{percent(iterations[-1], 'accuracy')} after iteration {last}. " if "accuracy" in estimates["sft"] else ""
display(Markdown(
    f"{right}Length-adjusted win rate against SFT: {percent('offline_dpo', 'length_adjusted_win_rate')} for offline DPO, "
    f"{percent(iterations[-1], 'length_adjusted_win_rate')} for iteration {last} (plain: {percent(iterations[-1], 'win_rate')}, "
    f"with answers of {estimates[iterations[-1]]['mean_length']['value']:.0f} characters for "
    f"{estimates['sft']['mean_length']['value']:.0f}). This is one seed. The claims below are measured over several."
))  # fmt: skip

# %% [markdown]
# ## The policies
#
# The paper's column uses another judge (GPT-4) and another opponent. Compare the order of its rows, not the values.

# %%
skills = [f"{name}_exact_match" for name in ("sft", "offline_dpo", "iterative_dpo", "unpenalised")]
skills = [name for name in skills if name in run]
shown = [*results, *([f"unpenalised{last}"] if f"unpenalised{last}_evaluation" in run else [])]
policies = [run[f"{name}_evaluation"] for name in shown] + [run[name] for name in skills]
policies += [run[f"{name}_kl"] for name in shown if f"{name}_kl" in run]
tables.show(tables.policy_rows(tables.metrics_of(policies), judge), run.caption)

# %% [markdown]
# Three held-out prompts, and what the SFT model and the last policy answer. The number in brackets is the reward of the
# model that trained the policy.

# %%
before, after = (list(run[f"{name}_answers_scored"].dataset()) for name in ("sft", iterations[-1]))
if run.profile.world:  # real prompts can be harmful text
    tables.show(
        [
            {"prompt": old["prompt"][-1]["content"][:200]}
            | {name: f"{row['responses'][0][:200]} ({row['rewards'][0]:+.2f})" for name, row in (("SFT", old), ("DPO", new))}
            for old, new in list(zip(before, after, strict=True))[:: max(1, len(before) // 3)][:3]
        ]
    )  # fmt: skip

# %% [markdown]
# ## The judges
#
# RewardBench by section, accuracy on held-out pairs, and how far the reward follows the length of an answer (Fig. 5).
# Stars in the figure are the authors' LLaMA-3-8B.

# %%
stages = [f"rewardbench_{name}" for name in ("prompting", "bt", "pm", "bt_mix1")]
stages += [f"bt_{name}_test" for name in run.profile.reward_model.mixtures]
stages += [f"pm_{name}_test" for name in run.profile.preference_model.mixtures]
stages += [f"length_bias_{name}" for name in run.profile.reward_model.mixtures]
judges = [run[name] for name in stages if name in run]
tables.show(tables.judge_rows(tables.metrics_of(judges), main), run.caption)

# %%
sections = {name: run[f"rewardbench_{name}"].read_json("results.json")["sections"] for name in ("prompting", "bt", "pm")}
figures.rewardbench_sections(sections, tables.REWARDBENCH)

# %% [markdown]
# ## The paper's claims, over seeds
#
# The table shows the one comparison that decides each verdict, the smallest effect that it could detect, and how many of the
# claim's other comparisons are supported. Chapter 11 has the designs, the controls and all comparisons.

# %%
records = read_records()
tables.show(claims_table(records), "Measured on seeds that serve no other purpose, in the world of this guide; results/claims/.")

# %% [markdown]
# ## A real model on real rows
#
# The published run of the profile `smollm2`: SmolLM2-135M-Instruct and a few hundred real preference pairs, on a CPU.
# *The longer answer* is the baseline that picks the longer of two answers. The judge of the policies is an RM of as few
# pairs, held apart.
#
# So few pairs and so small a model show that the chapters work on real weights and rows, and hardly more. The RM is just
# above chance on held-out pairs. It does not carry over to RewardBench, whose real subsets are other questions; those of *chat*
# are not among the rows at hand. Against the model as it came, the last iteration wins more often, but not at equal lengths:
# its answers are shorter. Some of them refuse a harmless question, which this RM rewards (last table). So weak an RM should not
# be followed further.

# %%
if (published := tables.RESULTS / "smollm2" / "summary.json").is_file():
    real = read_json(published)
    facts, measured = real["provenance"], real["summary"]
    baseline = {"judge": "the longer answer", "held-out pairs": tables.with_interval(real["longer_wins"])}
    given = " ".join(f"{key}={value}" for key, value in real["overrides"].items())
    ran = ", ".join(chapter[:2] for chapter in real["chapters"])
    columns = {"plain win rate": "win_rate", "length-adjusted win rate": "length_adjusted_win_rate"}
    said = f"Profile smollm2 (SET=\"{given}\"), commit {facts['commit'][:7]}; chapters {ran}."
    tables.show([*tables.judge_rows(measured, facts["mixture"]), baseline], said)
    tables.show(tables.policy_rows(measured, facts["judge"]), said)
    against = [
        {"policy": tables.policy_name(name)} | {column: tables.with_interval(rates[key]) for column, key in columns.items()}
        for name, rates in real["against_start"].items()
    ]
    tables.show(against, "The same judge: each policy against the model as it came.")
    rates = [tables.estimate(measured, f"iter{k}_evaluation.proxy_win_rate_vs_sft") for k in range(1, 4)]
    rates = [tables.with_interval(rate) for rate in rates]
    tables.say(
        f"By the RM that trained it the policy's win rate against SFT is {rates[0]}, {rates[1]} and {rates[2]} after the three "
        f"iterations, on {measured['iter1_answers.responses']} held-out prompts. The chapters took "
        f"{measured['wall_seconds.total'] / 60:.0f} minutes on one core, beside other work."
    )
    tables.show(real["answers"], "Greedy answers to prompts of our own; in brackets the reward of the RM.")

# %% [markdown]
# ## Other instruction sets and threads
#
# The same profile and seed with other instruction sets, numbers of threads and another Python (`make machines`), on one kind of
# CPU. Machines round differently, and training amplifies the difference. We accept a difference up to the band.

# %%
machines = tables.RESULTS / run.profile.name / "machines.json"
if machines.is_file():
    tables.show(tables.machine_rows(read_json(machines)["runs"]), run.caption)

# %% [markdown]
# ## The rows
#
# Where the rows of every stage went. *in* = *out* + *dropped* in each line.

# %%
counted = ["preference_data", "test_pairs", *[f"{name}_{step}" for name in iterations for step in ("responses", "pairs")]]
tables.show(tables.row_counts(run[name] for name in counted))

# %% [markdown]
# ## Time and provenance

# %%
seconds = tables.chapter_seconds(run.folder)
device = run["sft"].manifest["device"]
tables.show([{"chapter": name, "seconds": round(value)} for name, value in seconds.items()], f"On {device}.")

# %%
changed = ", ".join(f"{key} = {value}" for key, value in OVERRIDES.items()) or "none"
tables.show(tables.provenance_rows([*policies, *judges]), f"Profile {PROFILE}, seed {SEED}; settings changed by SET: {changed}.")

# %% [markdown]
# ## What a number here means
#
# In the `tiny` profile the world is simulated and the model has under one million parameters. The numbers show that the
# pipeline runs end to end and which of the paper's effects appear in that world. They do not say how large an effect is
# for LLaMA-3-8B. One run is one seed; the intervals cover the choice of prompts, not of seeds.
#
# With a GPU, run `make check PROFILE=gemma-2b` and then `make guide PROFILE=gemma-2b EXTRAS=dev,gpu`. This page then shows a
# real model. Right answers, the true reward and the untouched skill exist in the simulated world only.
#
# ## Exercises
#
# **1. Explain the table** (10 minutes). Does iteration 3 improve on iteration 2? Give the difference in length-adjusted win
# rate on this run. Set it beside three spreads: the interval over prompts, the band over machines, and the interval over
# seeds (claim f).
#
# ```python
# rate = "length_adjusted_win_rate"
# print(estimates["iter3"][rate], estimates["iter2"][rate])
# print([part["comparison"] for part in records["f"]["comparisons"]])
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# from rlhflow_utils.evaluation.statistics import paired_difference
#
# rate = "length_adjusted_win_rate"
# gain = estimates["iter3"][rate]["value"] - estimates["iter2"][rate]["value"]
# half = max((estimates[name][rate]["ci_high"] - estimates[name][rate]["ci_low"]) / 2 for name in ("iter2", "iter3"))
# ours, before = ([float(each) for each in results[name]["prompts"]["right"]] for name in ("iter3", "iter2"))
# right = paired_difference(ours, before, 1000, 0.95, SEED)
# seeds = next(part for part in records["f"]["comparisons"] if part["comparison"] == "iteration 3 − iteration 2")
# print(f"this run: {gain:+.3f}, and each of the two has an interval of ± {half:.3f} over prompts")
# print(f"right answers, prompt by prompt: {right.value:+.3f} ({right.ci_low:+.3f} … {right.ci_high:+.3f})")
# print(f"over seeds: {seeds['effect']:+.3f} ({seeds['ci_low']:+.3f} … {seeds['ci_high']:+.3f}), {seeds['verdict']}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# this run: +0.011, and each of the two has an interval of ± 0.021 over prompts
# right answers, prompt by prompt: +0.015 (+0.002 … +0.028)
# over seeds: +0.013 (-0.001 … +0.027), inconclusive
# ```
#
# The gain in win rate is smaller than the intervals of both policies and than the band over machines (0.040). Over
# seeds, its interval includes zero. The gain in right answers, prompt by prompt, is above zero on this run, but one run
# is one seed. So this page does not show that the third iteration helps.
#
# </details>

# %%
run.finish()
