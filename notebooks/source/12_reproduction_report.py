# %% [markdown]
# # 12 · The reproduction report
#
# Everything on one page: the paper's claims over several seeds, then the results of this run, the paper's number beside
# ours, and what kind of number ours is. This chapter computes nothing: it reads `results/claims/` and the finished stages
# of chapters 00–11.
#
# **You need** chapters 00–11.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
from IPython.display import Markdown, display

from rlhflow_utils.claims import tables as claims
from rlhflow_utils.claims.run import DEFAULT_PROFILE, seed_profile
from rlhflow_utils.claims.tables import built_in, discussion
from rlhflow_utils.claims.verdicts import MISSING, READING, claims_table, read_records, variants_table
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide import tables as paper
from rlhflow_utils.guide import tables as report
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.online.iterative_dpo import ranking_reward

run = open_run("12_reproduction_report", PROFILE, RUN_DIR, SEED, OVERRIDES)
caption = tables.world_caption(run.profile)
last, judge, main = run.profile.iterative.iterations, run.profile.evaluation.judge, run.profile.data.main_mixture
display(Markdown(f"*{caption}*"))

# %% [markdown]
# ## The paper's claims
#
# Each verdict hangs on the comparison that is shown; chapter 11 has the others, the designs and the controls.

# %%
records = read_records(run.folder("11_claims").path / "records")
display(Markdown(tables.markdown_table(claims_table(records), caption=f"{claims.CAPTION} {READING}") if records else MISSING))

# %%
display(Markdown(claims.surprises(records)))

# %% [markdown]
# **What surprised us.** An interval in brackets is over seeds unless it says otherwise.

# %%
display(Markdown(discussion(records)))

# %% [markdown]
# With other annotators:

# %%
varied = variants_table(records)
display(Markdown(tables.markdown_table(varied, caption=claims.CAPTION) if varied else MISSING))

# %% [markdown]
# One figure for each family of claims, with the comparisons that decide; chapter 11 has those that are only shown, too.

# %%
for name in claims.FAMILIES if records else []:
    chosen = claims.family(records, name)
    if chosen:
        display(claims.show_forest(chosen, deciding=True))

# %%
claims.show_curves(records)

# %%
claims.show_sizes(records, run.profile)

# %% [markdown]
# What is built in to the claims' worlds:

# %%
if records:
    display(Markdown(built_in(seed_profile(DEFAULT_PROFILE, {}, None).world)))

# %% [markdown]
# ## This run: the result in one figure

# %%
iterations = [run.folder(f"09_iter{k}_evaluation").read_json("results.json")["estimates"] for k in range(1, last + 1)]
offline = run.folder("10_offline_dpo_evaluation").read_json("results.json")["estimates"]
plotting.win_rate_over_iterations(
    [row["win_rate"] for row in iterations], judge=judge, others={"offline DPO": offline["win_rate"]}, caption=caption
)

# %% [markdown]
# ## Paper and ours, side by side
#
# Where scales differ (another judge, another opponent), the *order* of rows is what can be compared.

# %%
display(Markdown(tables.markdown_table(report.headline_rows(run), caption=caption)))

# %% [markdown]
# ## Data: what came in, what was dropped, why

# %%
data = run.folder("01_preference_data")
funnel = data.read_json("funnel.json")
plotting.funnel(funnel["pairs"], caption=caption)

# %% [markdown]
# ## Reward models

# %%
labels = ["prompting", "bt", "pm"]
benchmarks = {label: run.folder(f"05_rewardbench_{label}").read_json("results.json")["sections"] for label in labels}
plotting.rewardbench_bars(benchmarks, paper.REWARDBENCH, caption=caption)

# %% [markdown]
# ## Policies: proxy and judge

# %%
policies = {"SFT": run.folder("10_sft_evaluation").read_json("results.json")}
policies |= {f"iteration {k}": run.folder(f"09_iter{k}_evaluation").read_json("results.json") for k in range(1, last + 1)}
figure = None
if all("reward" in row["estimates"] for row in policies.values()):
    figure = plotting.proxy_against_gold(
        list(policies), [ranking_reward(run, row) for row in policies.values()],
        [row["estimates"]["reward"] for row in policies.values()], caption=caption,
    )  # fmt: skip
figure

# %% [markdown]
# ## Where the time went

# %%
seconds = report.chapter_seconds(run)
plotting.chapter_times(seconds, caption=f"{run.folder('02_sft').manifest['device']}") if seconds else None

# %% [markdown]
# ## Provenance

# %%
display(Markdown(tables.markdown_table(report.provenance_rows(run))))

# %% [markdown]
# ## What a number here means
#
# The tiny world is a closed world with a model of under one million parameters. Its numbers are evidence about the
# *method*: that each step does what it should, and that the effects which the paper describes can arise from the causes
# that it names. They say nothing about how large an effect is for LLaMA-3-8B. One run is one seed.

# %%
print(tables.run_line(run))
run.finish()
