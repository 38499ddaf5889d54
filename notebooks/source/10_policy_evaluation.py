# %% [markdown]
# # 10 · Policy evaluation
#
# **The claim.** Iterative DPO beats offline DPO, and offline DPO beats SFT, on chat benchmarks (37.2, 22.5 and 10.2 on
# length-controlled AlpacaEval-2; paper Table 4), and academic scores do not suffer (Table 5): there is little *alignment
# tax*.
#
# **You need** chapters 00–09.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import inspect

from IPython.display import Markdown, display

from rlhflow_utils.claims.verdicts import read_records
from rlhflow_utils.data import cards as hub
from rlhflow_utils.evaluation import policies as policy_evaluation
from rlhflow_utils.evaluation import statistics
from rlhflow_utils.evaluation.policies import evaluate_exact_match, write_exact_match_prompts
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide import tables as paper
from rlhflow_utils.guide import tables as side_by_side
from rlhflow_utils.guide.run import judge_model, local_files
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.online.generation import generate_responses
from rlhflow_utils.online.iterative_dpo import Setting, evaluate
from rlhflow_utils.training.stages import train_offline_dpo

run = open_run("10_policy_evaluation", PROFILE, RUN_DIR, SEED, OVERRIDES)
data, sft = run.folder("01_preference_data"), run.folder("02_sft")
setting = Setting(sft, run.folder(f"03_bt_{run.profile.data.main_mixture}"), data, **judge_model(run))
last = run.profile.iterative.iterations
final, reference = run.folder(f"09_iter{last}_dpo"), run.folder("09_sft_evaluation_scores")

# %% [markdown]
# ## The idea
#
# A judge compares a policy's answer with the SFT model's, prompt by prompt. With $w$ wins, $t$ ties and $l$ losses the
# win rate is $(w + t/2) / (w + t + l)$. Judges like long answers too, so AlpacaEval-2 asks what the win rate *would* be
# at equal length: a logistic regression of the outcome on the length difference, read at zero.
#
# By hand: 50 wins, 20 ties, 30 losses.

# %%
rate = statistics.win_rate(50, 20, 30)
low, high = statistics.wilson_interval(rate, 100)
print(f"win rate {rate:.2f}, 95 % interval {low:.3f} to {high:.3f}")

# %% [markdown]
# ## The code

# %%
print(inspect.getsource(policy_evaluation.exact_match))
print(inspect.getsource(statistics.length_controlled_win_rate))

# %% [markdown]
# ## The full run
#
# The offline baseline first: vanilla DPO on ranked answers of *other* models (paper App. B: Nectar), from π₀, with the same
# objective. Without such a set the main mixture's pairs serve.

# %%
subset = "nectar" if run.profile.data.offline_source else run.profile.data.main_mixture
offline = run.stage(
    "10_offline_dpo", train_offline_dpo, reads=("dpo", "offline_dpo", "model", "launch", "report_to"),
    inputs={"data": data, "sft": sft}, subset=subset,
)  # fmt: skip
policies = {"sft": sft, "offline_dpo": offline, "iterative_dpo": final}

# %%
evaluations = {
    "sft": evaluate(run, setting, "10_sft_evaluation", "10.sft", reference, reference, is_answered=True),
    "offline_dpo": evaluate(run, setting, "10_offline_dpo_evaluation", "10.offline_dpo", offline, reference),
    "iterative_dpo": evaluate(
        run, setting, "10_iterative_dpo_evaluation", "10.iterative_dpo",
        run.folder(f"09_iter{last}_evaluation_scores"), reference, is_answered=True,
    ),
}  # fmt: skip

# %% [markdown]
# **The alignment tax.** A skill that no preference and no RL prompt ever touched: in the tiny world, translation. Greedy
# answers, exact match.

# %%
taxes = {}
if run.profile.evaluation.translation_sources:
    prompts = run.stage(
        "10_exact_match_prompts", write_exact_match_prompts, reads=("evaluation",), inputs=local_files(run)
    )
    for name, policy in policies.items():
        answers = run.stage(
            f"10_{name}_exact_match_responses", generate_responses, reads=("generation", "model", "launch"),
            inputs={"model": policy, "data": prompts}, subset="exact_match", responses=1, temperatures=[0.0],
        )  # fmt: skip
        taxes[name] = run.stage(
            f"10_{name}_exact_match", evaluate_exact_match, reads=("evaluation",),
            inputs={"policy": answers, **local_files(run)}, key=f"10.{name}",
        )  # fmt: skip

# %% [markdown]
# ## Results

# %%
results = {name: folder.read_json("results.json") for name, folder in evaluations.items()}
matches = {name: folder.read_json("results.json")["exact_match"] for name, folder in taxes.items()}
stated = {"sft": "SFT", "offline_dpo": "offline DPO", "iterative_dpo": "iterative DPO"}
table = []
for name, result in results.items():
    row = result["estimates"]
    table.append(
        {"policy": name, "n": row["win_rate"]["n"], "win rate vs SFT (95 %)": tables.with_interval(row["win_rate"]),
         "length-controlled": tables.with_interval(row["lc_win_rate"]), "right answers": tables.with_interval(row.get("right_share")),
         "length (characters)": row["mean_length"]["value"], "exact match": tables.with_interval(matches.get(name)),
         "its n": matches.get(name, {}).get("n"), "paper: LC AlpacaEval-2 (%)": paper.CHAT_BENCHMARKS[stated[name]][0]}
    )  # fmt: skip
display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# The last column is another measurement on another scale (GPT-4 judges LLaMA-3-8B against GPT-4-Preview). What can be
# compared is the *order* of the three. And one more thing differs: the paper's 37.2 is without a length penalty, ours is
# with one (`pair_building.length_penalty`). Claims e and g of chapter 11 take the two apart, at equal numbers of updates.
#
# The win rate counts an answer without filler above the same answer with filler. *Right answers* counts what is right;
# *length-controlled* asks what the win rate would be at equal lengths. *Exact match* is the untouched skill, on few items:
# claim h of chapter 11 shows how far it varies from world to world.
#
# Both DPO policies answered the same prompts and are judged against the same SFT answers, so they are compared prompt by
# prompt: what makes a prompt easy or hard for both cancels, and the interval of their difference is narrower than the two
# rows above suggest. (A difference to SFT would repeat the first table: SFT scores one half on every prompt.)

# %%
settings, outcomes = run.profile.evaluation, {name: result["prompts"]["outcome"] for name, result in results.items()}
options = (settings.bootstrap_samples, settings.confidence, SEED)
gain = statistics.paired_difference(outcomes["iterative_dpo"], outcomes["offline_dpo"], *options)
print(f"win rate, iterative − offline DPO: {gain.value:+.3f} ({gain.ci_low:+.3f} … {gain.ci_high:+.3f}), n = {gain.n}")

# %%
rows = {name: result["estimates"] for name, result in results.items()}
bars = {
    "win rate against SFT": {name: row["win_rate"] for name, row in rows.items()},
    "mean length (characters)": {name: row["mean_length"] for name, row in rows.items()},
}
if all("reward" in row for row in rows.values()):
    bars["judge's reward"] = {name: row["reward"] for name, row in rows.items()}
if matches:
    bars["exact match on the untouched skill"] = matches
plotting.policy_bars(bars, caption=tables.world_caption(run.profile))

# %%
plotting.win_rate_against_length(rows, caption=tables.world_caption(run.profile))

# %% [markdown]
# **The judge and the proxy.** The reward model that trained the policy looks at the same answers, without the length
# penalty. Where it is more pleased than the judge, the policy has learned what the RM likes and the judge does not:
# over-optimisation.

# %%
if all("proxy_win_rate" in row for row in rows.values()):
    table = [
        {"policy": name, "win rate, judge": row["win_rate"]["value"], "95 % interval": tables.interval(row["win_rate"]),
         "win rate, proxy RM": row["proxy_win_rate"]["value"], "interval (proxy)": tables.interval(row["proxy_win_rate"])}
        for name, row in rows.items()
    ]  # fmt: skip
    display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# Chapter 09 draws the mean rewards over the iterations, there with the penalty that ranks the pairs.
#
# Which skills gain? (Gold judge only.) A win rate above one half beside a reward or a share of right answers that does not
# rise means shorter answers, not better ones.

# %%
if results["iterative_dpo"]["skills"]:
    prompts = {name: results[name]["prompts"] for name in ("sft", "iterative_dpo")}
    table = []
    for skill, part in results["iterative_dpo"]["skills"].items():
        right = {
            name: [value for value, of in zip(answers["right"], answers["skill"], strict=True) if of == skill]
            for name, answers in prompts.items()
        }
        table.append(
            {"skill": skill, "win rate vs SFT": tables.with_interval(part["win_rate"]),
             "reward, SFT": results["sft"]["skills"][skill]["reward"]["value"], "reward, iterative DPO": part["reward"]["value"],
             "right, SFT": sum(right["sft"]) / len(right["sft"]),
             "right, iterative DPO": sum(right["iterative_dpo"]) / len(right["iterative_dpo"])}
        )  # fmt: skip
    display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# ## The paper's tables beside ours
#
# Read from `results/`, where reference runs of all profiles are kept (this run is among them once it is published). Every
# cell of the paper that this guide means to reproduce has a line; *not run here* means what it says. The scales differ, as
# the column *setting* tells: what can be compared is the order of the rows.
#
# **Table 2**, RewardBench (%):

# %%
published = side_by_side.read_results()
display(Markdown(tables.markdown_table(side_by_side.table_2(published))))

# %% [markdown]
# **Table 4**, chat benchmarks. `python -m rlhflow_utils chat --benchmark mt_bench --profile ... --model ... --questions ...
# --out ...` runs each of the three against any OpenAI-compatible judge.

# %%
display(Markdown(tables.markdown_table(side_by_side.table_4(published))))

# %% [markdown]
# **Table 5**, the academic suite (%): `python -m rlhflow_utils academic --profile ... --model ... --out ...` runs it through
# lm-eval.

# %%
display(Markdown(tables.markdown_table(side_by_side.table_5(published))))

# %% [markdown]
# **Table 6**, from the claims of chapter 11 (`make claims`). The rows bear the paper's names: our *ours* is the loop without
# λ, our *concise* has a λ that is scaled to this world. UltraRM-13B is not run: the RM of mix1 stands in its place,
# without λ, for one iteration. Compare that row with claim k, not with the rows above it.

# %%
display(Markdown(tables.markdown_table(side_by_side.table_6(read_records()))))

# %% [markdown]
# ## Publishing
#
# With `hub.push: true` the final policy is pushed with a card that carries these numbers.

# %%
name, base = f"rlhf-workflow-{run.profile.name}", run.profile.model.base or "the base model of chapter 00"
card = hub.model_card(name, base, final, evaluations["iterative_dpo"].metrics, tables.world_caption(run.profile))
if run.profile.hub.push:
    print(hub.push_model(final, name, card, run.profile.hub))
else:
    print(card[:600], "…\n\n(hub.push is false: nothing was pushed)")

# %% [markdown]
# ## Checks

# %%
judge = run.profile.evaluation.judge
assert evaluations["sft"].metrics[f"10.sft.{judge}_win_rate_vs_sft"] == 0.5, "SFT against itself"
counts = results["iterative_dpo"]["counts"]
assert sum(counts.values()) == results["iterative_dpo"]["n"], "every prompt is a win, a tie or a loss"
identifiers = [result["prompts"]["prompt_id"] for result in results.values()]
assert all(ids == identifiers[0] for ids in identifiers), "all policies answered the same prompts, in the same order"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper's judges are GPT-4 on three benchmarks. In the tiny world the judge is the gold reward, which the paper
#   could not have; `evaluation.judge: endpoint` asks any OpenAI-compatible model instead.
# * Offline DPO trains for one epoch on its own pairs here, iterative DPO for two on those of three iterations: fewer
#   updates. Claim e compares them at equal ones.
# * The tiny model cannot sit the academic suite of Table 5. Its place is taken by one untouched skill.
#
# ## Summary and exercises
#
# On `tiny` (one seed) the paper's order holds by win rate. Iterative DPO leads offline DPO with much shorter answers; in
# right answers and at equal lengths the two are close. The untouched skill shows no loss, on few items.
#
# 1. Evaluate at `evaluation.temperature` 0.3. Who gains more, SFT or the aligned policy? Why?
# 2. Train the offline baseline for two epochs. Does it catch up?
# 3. Run with `data.partition.judge=0.2`, which holds pairs apart, and note the win rate. Then add
#    `evaluation.judge=reward_model`: an RM of those pairs judges the same policy. Is it kinder than the truth, and than the
#    proxy?
#
# **Next:** [11 · The claims, measured](11_ablations.ipynb)

# %%
print(tables.run_line(run))
run.finish()
