# %% [markdown]
# # 06 · Length bias
#
# **The claim.** Reward models like long answers, and how much depends on their data: over the answers to one prompt,
# length and reward correlate with 0.19 on average for UltraRM-13B and with 0.06 for the paper's BT model on mix2
# (paper 2.3, Fig. 5). The paper suspects Capybara, OpenOrca and UltraInteract, which mix2 adds and whose preferred answers
# are the shorter ones. Here the mix1 model stands in UltraRM's place: its data resembles mix1.
#
# **You need** chapters 00–03.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import inspect

from datasets import load_from_disk
from IPython.display import Markdown, display

from rlhflow_utils.evaluation import statistics
from rlhflow_utils.evaluation.reward_models import measure_length_bias
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide import tables as paper
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import generate_responses
from rlhflow_utils.simulator.gold import World

run = open_run("06_length_bias", PROFILE, RUN_DIR, SEED, OVERRIDES)
data, sft = run.folder("01_preference_data"), run.folder("02_sft")

# %% [markdown]
# ## The idea
#
# For one prompt with K answers of lengths $\ell_k$ and rewards $r_k$, take Pearson's correlation; then average over
# prompts. Within a prompt, so that long-winded *topics* do not count, only long-winded *answers*.
#
# By hand, four answers:

# %%
lengths, rewards = [[10, 20, 30, 40]], [[0.1, 0.3, 0.2, 0.6]]
print(f"Pearson r = {statistics.pearson_per_prompt(lengths, rewards)[0]:.3f}")
print("all equally long:", statistics.pearson_per_prompt([[10, 10, 10, 10]], rewards)[0], "(undefined, and counted)")

# %% [markdown]
# ## The code

# %%
print(inspect.getsource(statistics.pearson_per_prompt))

# %% [markdown]
# ## The full run
#
# Eight answers of the SFT model to each prompt, in one call; chapter 07 opens it. Then every RM scores the same answers.

# %%
responses = run.stage(
    "06_sft_responses", generate_responses, reads=("generation", "model", "launch"),
    inputs={"model": sft, "data": data}, subset="prompts", count=run.profile.length_bias.prompts,
    responses=run.profile.length_bias.responses,
)  # fmt: skip
print(responses.rows)

# %%
studies = {}
for mixture in run.profile.reward_model.mixtures:
    scores = run.stage(
        f"06_scores_{mixture}", score_responses, reads=("reward_model", "model"),
        inputs={"model": run.folder(f"03_bt_{mixture}"), "responses": responses},
    )  # fmt: skip
    studies[mixture] = run.stage(
        f"06_length_bias_{mixture}", measure_length_bias, reads=("evaluation",), inputs={"scores": scores}, label=mixture
    )

# %% [markdown]
# ## Results

# %%
results = {mixture: folder.read_json("results.json") for mixture, folder in studies.items()}
stated = {"mix1": ("UltraRM-13B", paper.LENGTH_BIAS["UltraRM-13B"]), "mix2": ("BT RM, mix2", paper.LENGTH_BIAS["BT RM, mix2"])}
table = [
    {"RM": mixture, "mean Pearson r": result["mean"]["value"], "95 % interval": tables.interval(result["mean"]),
     "prompts": result["mean"]["n"], "paper": stated.get(mixture, (None, None))[1], "paper's model": stated.get(mixture, (None, None))[0]}
    for mixture, result in results.items()
]  # fmt: skip
display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# All judges saw the same answers, so they are compared prompt by prompt. And zero is not always the yardstick: where
# padding costs gold reward, as in the tiny world, the truth itself goes against length.

# %%
spread = (run.profile.evaluation.bootstrap_samples, run.profile.evaluation.confidence, SEED)
if len(results) > 1:
    first, second = list(results)[:2]
    both = [pair for pair in zip(results[first]["correlations"], results[second]["correlations"], strict=True) if None not in pair]
    difference = statistics.paired_difference(*zip(*both, strict=True), *spread)
    print(f"{first} − {second}: {difference.value:+.3f} ({difference.ci_low:+.3f} … {difference.ci_high:+.3f}), n = {difference.n}")
if run.profile.world:
    gold, answers = World(run.profile.world), load_from_disk(str(responses.path / "data"))
    truth = [[gold.reward(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in answers]
    sizes = [[len(text) for text in row["responses"]] for row in answers]
    of_gold, undefined = statistics.mean_pearson(statistics.pearson_per_prompt(sizes, truth), *spread)
    print(f"gold reward: mean Pearson r {of_gold.value:+.3f} ({of_gold.ci_low:+.3f} … {of_gold.ci_high:+.3f}), n = {of_gold.n}")

# %% [markdown]
# Below, one row is one prompt, its answers from shortest to longest. A model that likes length is blue on the left and red
# on the right. A mean near zero can hide rows of both kinds.

# %%
plotting.length_bias(
    {name: {**result, "correlations": [float("nan") if r is None else r for r in result["correlations"]]}
     for name, result in results.items()},
    caption=tables.world_caption(run.profile),
)  # fmt: skip

# %% [markdown]
# ## Checks

# %%
for mixture, folder in studies.items():
    account = folder.rows["prompts"]
    assert account["rows_in"] == account["rows_out"] + sum(account["dropped"].values()), "undefined prompts are counted"
    defined = [r for r in results[mixture]["correlations"] if r is not None]
    assert all(-1.0001 <= r <= 1.0001 for r in defined), "a correlation"
    assert abs(sum(defined) / len(defined) - results[mixture]["mean"]["value"]) < 1e-6, "the mean of what is drawn"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper compares its model with UltraRM-13B, which has another base model; here the two RMs differ in their data
#   alone: in its sources, which the paper suspects, and in its size. Claim d in chapter 11 holds the size equal, too.
# * **Built in** to the tiny world: the annotators' taste for length, positive in mix1's sources, negative in four of
#   mix2's. Whether their *labels* then lean short is in chapter 01. **Measured**: how much of it the RMs pick up.
#
# ## Summary and exercises
#
# Two RMs that saw the same answers differ in how far they follow length, and their data is the reason. The loop of chapter
# 09 will climb whatever slope the RM has.
#
# 1. Set every `length_bonus` of the world's sources to 0. What correlation is left, and why?
# 2. Compute the correlation over all answers at once. Why does it mislead?
# 3. Which sign has the *gold* reward's correlation for prompts where all answers are right?
#
# **Next:** [07 · Generation](07_generation.ipynb)

# %%
print(tables.run_line(run))
run.finish()
