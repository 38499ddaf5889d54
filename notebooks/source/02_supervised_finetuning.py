# %% [markdown]
# # 02 · Supervised fine-tuning
#
# *You are here:* 01 data · **02 SFT** · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# **The claim.** Open instruction data and one epoch of supervised fine-tuning (SFT) give the starting policy π₀
# (paper 3.1). In the paper it scores 10.2 % on AlpacaEval-2 with length control (chapter 10): a start with much room above.
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
import math
import tempfile

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.models import chat, forward
from rlhflow_utils.training.stages import sft_tokens, train_sft

run = open_run("02_supervised_finetuning", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile, data, base = run.profile, run["preference_data"], run.base_model()

# %% [markdown]
# ## The idea
#
# A conversation is a prompt $x$ and an answer $y$. SFT raises the probability of the demonstrated answer, token by token:
#
# $$\mathcal L = -\frac{1}{|y|}\sum_{t} \log \pi(y_t \mid x, y_{<t}).$$
#
# The mean runs over the answer's tokens alone: the model should not learn to write the user's part. In code, a label of
# −100 takes a token out of the loss.
#
# By hand: a three-token answer to which the model gives probabilities 0.5, 0.8 and 0.9.

# %%
probabilities = [0.5, 0.8, 0.9]
losses = [-math.log(p) for p in probabilities]
mean = sum(losses) / len(losses)
print("per token:", [round(loss, 3) for loss in losses])
print(f"mean loss {mean:.3f}, perplexity {math.exp(mean):.2f}")

# %% [markdown]
# ## The loss mask
#
# Two conversations of the SFT set. We tokenise the prompt and the answer apart, put them together, and mask the prompt.
# Tokens in the loss are shown in brackets: the answer, and the token that ends the turn, which is how the model learns to
# stop.

# %%
tokenizer = chat.load_tokenizer(base, profile.model)
rows = data.dataset("sft")
examples = []
for row in rows.select(range(2)):
    *context, answer = row["messages"]
    text = tokenizer.apply_chat_template(context, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    response = chat.encode_response(context, answer["content"], tokenizer)
    examples.append({"input_ids": prompt + response, "labels": [-100] * len(prompt) + response})
    shown = [tokenizer.decode([i]) if label == -100 else f"[{tokenizer.decode([i])}]"
             for i, label in zip(*examples[-1].values(), strict=True)]  # fmt: skip
    print("".join(shown) if profile.world else f"{len(shown)} tokens", "\n")

# %% [markdown]
# ## Training, in plain TRL
#
# TRL's `SFTTrainer` takes these rows as they are. Here it trains on the two conversations for a few steps, in a temporary
# folder: change any argument and run the cell again. The loss falls fast, since the model memorises two rows.

# %%
with tempfile.TemporaryDirectory() as folder:
    config = SFTConfig(
        output_dir=folder, max_steps=5, per_device_train_batch_size=2, learning_rate=1e-3, lr_scheduler_type="constant",
        bf16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, seed=SEED, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = SFTTrainer(
        model=forward.model_path(base),
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )
    trainer.train()
demo = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("loss by step:", [round(loss, 3) for loss in demo])
del trainer

# %% [markdown]
# ## The full run
#
# The stage does the same for all rows, and in a conversation of several turns every assistant turn is in the loss.
# `sft.trainer` of the profile goes to `SFTConfig` as it is; the guide adds what a run needs (output folder, seed, device,
# logging, and gradient accumulation for an exact global batch). It drops and counts rows longer than
# `max_length` instead of cutting them.

# %%
print(profile.sft.trainer)
sft = train_sft(data, base, profile.sft, profile.model, run.seed, profile.launch, into=run / "sft")
print(sft.rows)

# %% [markdown]
# ## Results

# %%
log = sft.read_json("log.json")
ours, paper = {**profile.sft.trainer, **profile.sft.model_dump()}, tables.paper_settings("sft", profile.model.base)
table = [{"setting": name, "paper": str(paper[name]), "ours": str(ours.get(name))} for name in paper]
table += [
    {"setting": "rows", "paper": None, "ours": f"{len(rows):,}"},
    {"setting": "optimiser steps", "paper": None, "ours": f"{log['steps']:,}"},
    {"setting": "loss of the last batch", "paper": None, "ours": f"{log['history'][-1]['loss']:.3f}"},
]
tables.show(table, run.caption)

# %%
figures.loss_curves({"SFT": log["history"]}, caption=run.caption)

# %% [markdown]
# ## Checks

# %%
assert demo[-1] < demo[0], "two rows are memorised"
losses = [entry["loss"] for entry in log["history"]]
quarter = -(-len(losses) // 4)  # single batches are noisy, and a pretrained model begins with a low loss
assert sum(losses[-quarter:]) < 1.1 * sum(losses[:quarter]), "the loss has not risen"
packaged = [sft_tokens(row, tokenizer, completion_only=True)[0] for row in rows.select(range(2))]
assert len(rows[0]["messages"]) > 2 or packaged[0] == examples[0], "the stage uses the mask that we built by hand"
assert all(row["labels"][-1] in chat.stop_token_ids(tokenizer) for row in packaged), "the end of the turn is learnt"
evaluation = {chat.prompt_key(row["prompt"]) for row in data.dataset("evaluation_prompts")}
assert not evaluation & {chat.prompt_key(row["messages"][:-1]) for row in rows}, "no held-out prompt was trained on"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper packs samples into blocks of 8192 tokens (its script: 4096). `sft.trainer.packing` does the same; with short
#   rows it saves nothing.
# * In the tiny world the demonstrations are right only part of the time and often padded. This is **built in**, so that π₀
#   can be improved, like every real SFT model. Two more things are built in: translations (the fifth skill), and rows in
#   the format of a judge's question, so that the prompted judge of chapter 05 knows that format.
# * SFT rows whose prompts are held out for evaluation are taken out in chapter 01, and counted there.
#
# ## Summary and exercises
#
# π₀ imitates its demonstrations, good and bad. The next chapters build a judge that can tell them apart.
#
# 1. Set `sft.trainer.completion_only_loss` to false. Does the loss rise or fall at first, and why does the number mislead?
# 2. Double `sft.trainer.learning_rate`. Predict the shape of the curve.
# 3. Raise `world.sft.correct_rate` to 0.95 and run on to chapter 09. What is left for RLHF to do?
#
# **Next:** [03 · A Bradley-Terry reward model](03_bradley_terry_reward_model.ipynb)

# %%
run.finish()
