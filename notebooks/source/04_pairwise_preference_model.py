# %% [markdown]
# # 04 · A pairwise preference model
#
# **The claim.** A preference model (PM) reads the prompt and *both* answers and says which is better. Trained as plain
# next-token prediction, it matches the BT reward model on chat and beats it on reasoning (paper 2.2–2.3): an answer alone
# may look right; beside another one, its error shows.
#
# **You need** chapters 00–03.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import inspect
import math

from datasets import load_from_disk
from IPython.display import Markdown, display

from rlhflow_utils.evaluation.reward_models import evaluate_preference_model
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.models import chat, preference_model
from rlhflow_utils.training.stages import train_preference_model

run = open_run("04_pairwise_preference_model", PROFILE, RUN_DIR, SEED, OVERRIDES)
data, sft, test = run.folder("01_preference_data"), run.folder("02_sft"), run.folder("03_test_pairs")

# %% [markdown]
# ## The idea
#
# A pair becomes an instruction with a one-token answer (paper 2.2):
#
# `[CONTEXT] {x} [RESPONSE A] {a¹} [RESPONSE B] {a²}` → `A` if the first answer is preferred, else `B`.
#
# Which answer stands first is drawn at random in training, so that position says nothing. At inference
# $P(a^1 \succ a^2)$ is the probability of the token A against B. What bias for position is left is taken out by asking
# twice:
#
# $$P(a^1 \succ a^2) = \tfrac12\big(P(A \mid a^1, a^2) + 1 - P(A \mid a^2, a^1)\big).$$
#
# By hand: a model that says A with 0.9 when the better answer stands first, and still says A with 0.6 when it stands
# second, leans to A. Averaged, it prefers the better answer with

# %%
first, second = 0.9, 0.6
print(f"P = {0.5 * (first + 1 - second):.2f}")

# %% [markdown]
# ## The code

# %%
print(inspect.getsource(preference_model.format_comparison))

# %%
tokenizer = chat.load_tokenizer(sft.path / "model", run.profile.model)
rows = load_from_disk(str(data.path / run.profile.data.main_mixture))
for row in rows.select(range(2)):
    tokens = preference_model.training_tokens(row, tokenizer, seed=SEED)
    in_loss = [i for i in tokens["labels"] if i != chat.IGNORED]
    print(tokenizer.decode(tokens["input_ids"]))
    print("in the loss:", [tokenizer.decode([i]) for i in in_loss], "\n")

# %% [markdown]
# ## The full run

# %%
models = {
    mixture: run.stage(
        f"04_pm_{mixture}", train_preference_model, reads=("preference_model", "model", "launch", "report_to"),
        inputs={"data": data, "sft": sft}, subset=mixture,
    )
    for mixture in run.profile.preference_model.mixtures
}  # fmt: skip

# %%
tests = {
    mixture: run.stage(
        f"04_pm_{mixture}_test", evaluate_preference_model, reads=("preference_model", "model", "evaluation", "world"),
        inputs={"model": model, "pairs": test}, key="04.pm" if mixture == run.profile.data.main_mixture else f"04.pm_{mixture}",
    )
    for mixture, model in models.items()
}  # fmt: skip

# %% [markdown]
# ## Results
#
# The same held-out pairs as in chapter 03, with the BT reward model beside the PM.

# %%
main = run.profile.data.main_mixture
results = {
    "BT": run.folder(f"03_bt_{main}_test").read_json("results.json"),
    **{f"PM, {mixture}": folder.read_json("results.json") for mixture, folder in tests.items()},
}
table = [
    {"model": name, "n": result["accuracy"]["n"], "accuracy (95 % interval)": tables.with_interval(result["accuracy"]),
     **{f"{skill}, n = {part['n']}": tables.with_interval(part) for skill, part in result["skills"].items()}}
    for name, result in results.items()
]  # fmt: skip
display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %% [markdown]
# Two intervals that overlap do not settle an order: both models judge the same pairs, and a paired comparison is sharper.
# Claim b in chapter 11 makes it, over seeds.
#
# The loss is the mean over two tokens, the letter and the end of the turn. The second is soon certain, so a coin flip on
# the letter costs $\tfrac12 \ln 2$.

# %%
logs = {f"PM, {mixture}": model.read_json("log.json")["history"] for mixture, model in models.items()}
plotting.loss_curves(
    logs, baseline=math.log(2) / 2, baseline_label="½ ln 2: a coin flip on the letter", caption=tables.world_caption(run.profile)
)

# %% [markdown]
# A probability should mean what it says: of the pairs to which a model gives 0.8, 80 % should be preferred. Mind by whom.
# The models learnt from annotators who err, and these pairs carry clean labels. A model that had the annotators exactly
# right would look too modest here: the curve would be an S around the diagonal.

# %%
plotting.calibration_curves({name: result["calibration"] for name, result in results.items()}, caption=tables.world_caption(run.profile))

# %% [markdown]
# ## Checks
#
# Both orders are asked, so swapping the answers must turn $P$ into $1 - P$ exactly.

# %%
pair = load_from_disk(str(test.path / "data"))[0]
prompt, a, b = pair["prompt"], pair["chosen"][0]["content"], pair["rejected"][0]["content"]
folder = models[main].path / "model"
forward, backward = preference_model.preference_probability(folder, [(prompt, a, b), (prompt, b, a)], 4096)
assert math.isclose(forward, 1 - backward, abs_tol=1e-5), "antisymmetric"
assert len(in_loss) == 2, "the label and the end of the turn are in the loss, nothing else"
drawn = [preference_model.chosen_first(SEED, row["row_id"]) for row in rows]
assert 0.4 < sum(drawn) / len(drawn) < 0.6, "the order is random"
print(f"P = {forward:.3f} and {backward:.3f}; all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper packs PM samples into blocks of 3072 tokens; `preference_model.packing` does the same.
# * Two epochs on `tiny`, one in the paper: to compare two answers takes this model longer than to score one. Its base and
#   SFT model have also seen the form of the question, with letters for right and wrong.
# * The released data script draws the order unseeded under many workers, so no two runs agree. Here it is a hash of the
#   row's id.
# * The released evaluation reads the logits at a position that depends on the chat template's version. Here it is the
#   position after the generation prompt, and both label tokens are checked to be single tokens.
#
# ## Summary and exercises
#
# A language model becomes a judge of pairs by learning one letter. Asked in both orders it is antisymmetric; unlike the
# BT model it need not be transitive.
#
# 1. Ask in one order only, once with the chosen answer always first, once always second (`inference.load_model`,
#    `preference_model.probability_of_a`). What is the gap between the two accuracies called?
# 2. Train a PM on mix1, too: `SET="preference_model.mixtures=[mix1,mix2]"`. Which skill loses most?
# 3. Ranking n answers with a PM takes n − 1 comparisons in a tournament. What can go wrong that cannot with a scalar?
#
# **Next:** [05 · RewardBench](05_rewardbench_evaluation.ipynb)

# %%
print(tables.run_line(run))
run.finish()
