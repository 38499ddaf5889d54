# %% [markdown]
# # 02 · Supervised fine-tuning
#
# **The claim.** Open instruction data and one epoch of supervised fine-tuning (SFT) give the starting policy π₀
# (paper 3.1). In the paper it scores 10.2 on length-controlled AlpacaEval-2: a decent start with much room above it.
# This chapter trains π₀. How good its sampled answers are, and how good the best of eight would be, is measured in
# chapters 07 and 08.
#
# **You need** chapters 00 and 01.

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

from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.run import base_model
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.models import chat
from rlhflow_utils.training import stages as training_data
from rlhflow_utils.training.stages import train_sft

run = open_run("02_supervised_finetuning", PROFILE, RUN_DIR, SEED, OVERRIDES)
data = run.folder("01_preference_data")

# %% [markdown]
# ## The idea
#
# A conversation is a prompt $x$ and an answer $y$. SFT raises the probability of the demonstrated answer, token by token:
#
# $$\mathcal L = -\frac{1}{|y|}\sum_{t} \log \pi(y_t \mid x, y_{<t}).$$
#
# The mean runs over the answers' tokens alone: nobody wants to learn to write the user's part. In code, a label of −100 takes a
# token out of the loss.
#
# By hand: a three-token answer to which the model gives probabilities 0.5, 0.8 and 0.9.

# %%
probabilities = [0.5, 0.8, 0.9]
print("per token:", [round(-math.log(p), 3) for p in probabilities])
print(f"mean loss {-sum(math.log(p) for p in probabilities) / 3:.3f}, perplexity {math.exp(-sum(math.log(p) for p in probabilities) / 3):.2f}")

# %% [markdown]
# ## The code

# %%
print(inspect.getsource(training_data.sft_tokens))

# %% [markdown]
# Two rows of the SFT set. Tokens in the loss stand in brackets: the answer and the token that ends the turn, which is how the model
# learns to stop.

# %%
start = str(run.folder("00_base_model").path / "model") if run.profile.model.base is None else run.profile.model.base
tokenizer = chat.load_tokenizer(start, run.profile.model)
rows = load_from_disk(str(data.path / "sft"))
for row in rows.select(range(2)):
    tokens = training_data.sft_tokens(row, tokenizer, completion_only=True)
    shown = [
        f"[{tokenizer.decode([i])}]" if label != chat.IGNORED else tokenizer.decode([i])
        for i, label in zip(tokens["input_ids"], tokens["labels"], strict=True)
    ]
    print("".join(shown), "\n")

# %% [markdown]
# ## The full run
#
# TRL's `SFTTrainer` does the training. Rows longer than `max_length` are dropped and counted, not cut.

# %%
sft = run.stage(
    "02_sft", train_sft, reads=("sft", "model", "launch", "report_to"), inputs={"data": data, **base_model(run)}
)
print(sft.rows)

# %% [markdown]
# ## Results

# %%
log = sft.read_json("log.json")
settings = run.profile.sft.training
table = [
    {"": "learning rate", "paper": "2e-5", "ours": f"{settings.learning_rate:g}"},
    {"": "epochs", "paper": "1", "ours": f"{settings.num_train_epochs:g}"},
    {"": "global batch", "paper": "32", "ours": str(settings.global_batch_size)},
    {"": "block or longest row (tokens)", "paper": "8192, packed", "ours": str(settings.max_length)},
    {"": "rows", "paper": None, "ours": f"{len(rows):,}"},
    {"": "optimiser steps", "paper": None, "ours": f"{log['steps']:,}"},
    {"": "loss of the last batch", "paper": None, "ours": f"{log['history'][-1]['loss']:.3f}"},
]
display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %%
plotting.loss_curves({"SFT": log["history"]}, caption=tables.world_caption(run.profile))

# %% [markdown]
# ## Checks

# %%
assert log["history"][-1]["loss"] < log["history"][0]["loss"], "the loss fell"
assert all(label in (chat.IGNORED, i) for i, label in zip(tokens["input_ids"], tokens["labels"], strict=True))
assert tokens["labels"][-1] in chat.stop_token_ids(tokenizer), "the end of the turn is learnt"
evaluation = {chat.prompt_key(row["prompt"]) for row in load_from_disk(str(data.path / "evaluation_prompts"))}
assert not evaluation & {chat.prompt_key(row["messages"][:-1]) for row in rows}, "no held-out prompt was trained on"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper packs samples into blocks of 8192 tokens (its script: 4096). `sft.packing` does the same; with short rows
#   it saves nothing.
# * The tiny world's demonstrations are right only part of the time and often padded: **built in**, so that there is room
#   above π₀, as there is above every real SFT model. Built in, too: translations (the fifth skill), and rows in the form
#   in which judges will be asked, so that the prompted judge of chapter 05 knows the form of the question.
# * SFT rows whose prompts are held out for evaluation are taken out in chapter 01, and counted there.
#
# ## Summary and exercises
#
# π₀ imitates its demonstrations, good and bad. The next chapters build a judge that can tell them apart.
#
# 1. Set `sft.completion_only_loss` to false. Does the loss rise or fall at first, and why does the number mislead?
# 2. Double `sft.training.learning_rate`. Predict the shape of the curve.
# 3. Raise `world.sft.correct_rate` to 0.95 and run on to chapter 09. What is left for RLHF to do?
#
# **Next:** [03 · A Bradley-Terry reward model](03_bradley_terry_reward_model.ipynb)

# %%
print(tables.run_line(run))
run.finish()
