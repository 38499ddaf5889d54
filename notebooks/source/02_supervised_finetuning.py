# %% [markdown]
# # 02 · Supervised fine-tuning
#
# *You are here:* 01 data · **02 SFT** · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# **The claim.** Open instruction data and one epoch of supervised fine-tuning (SFT) give the starting policy π₀ (paper
# 3.1). In the paper π₀ scores 10.2 % on AlpacaEval-2 with length control (chapter 10), so there is room for
# improvement. This chapter trains π₀. Chapters 07 and 08 measure how good its sampled answers are, and how good the
# best of eight would be.
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
# Only the tokens of the answer count. The model should not learn to write the user's turn. In code, a label of −100 takes
# a token out of the loss.
#
# By hand: a three-token answer to which the model gives probabilities 0.5, 0.8 and 0.9. (*Perplexity* is $e^{\mathcal L}$:
# the number of equally likely tokens among which the model would be as unsure.)

# %%
probabilities = [0.5, 0.8, 0.9]
losses = [-math.log(p) for p in probabilities]
mean = sum(losses) / len(losses)
print("per token:", [round(loss, 3) for loss in losses])
print(f"mean loss {mean:.3f}, perplexity {math.exp(mean):.2f}")

# %% [markdown]
# ## The loss mask
#
# Two conversations of the SFT set. We tokenise prompt and answer separately, join them, and mask the prompt. Brackets
# show the tokens in the loss: the answer and the end-of-turn token, which teaches the model to stop.

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
# TRL's `SFTTrainer` takes these rows as they are. Here it trains on the two conversations for a few steps. Change any
# argument and run the cell again. The loss falls fast, since the model memorises two rows. In TRL's log, `entropy` is the
# model's uncertainty about the next token. `mean_token_accuracy` is the share of the answer's tokens that it finds likeliest.

# %%
folder = forward.model_path(base)  # such as models/tiny-base; a hub id will do, too
trainer = SFTTrainer(
    model=folder,
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=5, per_device_train_batch_size=2, learning_rate=1e-3,
        lr_scheduler_type="constant", bf16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, seed=SEED, model_init_kwargs={"dtype": "float32"},
    ),
    train_dataset=Dataset.from_list(examples),
    processing_class=tokenizer,
)  # fmt: skip
trainer.train()
demo = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("loss by step:", [round(loss, 3) for loss in demo])
del trainer

# %% [markdown]
# ## The full run
#
# The stage does the same for all rows, and in a conversation of several turns every assistant turn is in the loss.
# `sft.trainer` of the profile is passed to `SFTConfig` unchanged. The guide adds output folder, seed, device, logging,
# and gradient accumulation for an exact global batch. It drops and counts rows longer than `max_length` instead of
# cutting them. (*Packing*, in the table below, joins several rows into one sequence, so that no step computes padding.)

# %%
sft = train_sft(data, base, profile.sft, profile.model, run.seed, profile.launch, into=run / "sft")
tables.show(tables.row_counts([sft]))

# %% [markdown]
# ## Results

# %%
log = sft.read_json("log.json")
counts = {"rows": len(rows), "optimiser steps": log["steps"]}
tables.show(tables.settings_rows(profile.sft, "sft", profile.model.base, counts), run.caption)

# %% [markdown]
# Batches hold rows of similar length. In the tiny world the peaks are batches of long rows in the format of a judge's
# question: only one letter and the end of the turn are in the loss.

# %%
figures.loss_curves({"SFT": log["history"]})

# %% [markdown]
# ## Checks

# %%
assert demo[-1] < demo[0], "two rows are memorised"
losses = [entry["loss"] for entry in log["history"]]
quarter = -(-len(losses) // 4)  # single batches are noisy, and a pretrained model begins with a low loss
if quarter >= 4:  # fewer batches say nothing
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
# * All our trainings put rows of similar length into one batch, and shuffle the batches. TRL's default shuffles single rows.
#   Our way saves padding, but batches differ in kind. The spikes of the loss come from that (exercise 3).
# * In the tiny world the demonstrations are right only part of the time and often padded. We built this in so that π₀ leaves
#   room for improvement. Translations (the fifth skill) are built in, too, and so are rows in the format of a judge's
#   question. They show the prompted judge of chapter 05 that format.
# * Chapter 01 drops and counts SFT rows whose prompts are held out for evaluation.
#
# ## Summary

# %%
few = max(1, min(8, len(losses) // 4))
start, end = sum(losses[:few]) / few, sum(losses[-few:]) / few
tables.say(f"**On this run** π₀ has seen {len(rows):,} conversations in {log['steps']:,} steps. The loss of a token goes from "
           f"{start:.2f} to {end:.2f} (means of {few} batches).")  # fmt: skip
if profile.world:
    given = profile.world.sft
    tables.say(
        f"As built in, {100 * given.correct_rate:.0f} % of its demonstrations are right and {100 * given.padded_rate:.0f} % padded."
    )

# %% [markdown]
# π₀ imitates its demonstrations, good and bad. The next chapters build a judge that can tell them apart. Chapters 07 and 09
# measure how often π₀ is right, and how much room it leaves.
#
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Write the loss** (10 minutes). Compute the loss of the base model on the two `examples` and compare it with the first
# loss that TRL printed.
#
# ```python
# import torch
#
# model = forward.load_model(base, "causal", profile.model)
# for example in examples:
#     ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
#     with torch.no_grad():
#         logits = model(ids).logits[0].float()
#     ...  # -log p of every token whose label is not -100; mind that logits at t are about token t + 1
# print(demo[0])
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
# model = forward.load_model(base, "causal", profile.model)
# losses = []
# for example in examples:
#     ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
#     with torch.no_grad():
#         logits = model(ids).logits[0].float()
#     each = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="none")
#     losses += each[labels[1:] != -100].tolist()
# print(f"{sum(losses) / len(losses):.3f} by hand, {demo[0]:.3f} by TRL, over {len(losses)} tokens")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# 3.898 by hand, 3.898 by TRL, over 16 tokens
# ```
#
# The mean runs over all tokens of the batch. A long answer therefore weighs more than a short one.
#
# </details>
#
# **2. Find the bug** (10 minutes). A colleague also masks the last token, "since it is always the same". The loss falls as
# before. What goes wrong when the model is asked? Train on the two conversations with and without the bug.
#
# ```python
# labels = [-100] * len(prompt) + response[:-1] + [-100]
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
#
# def train_and_ask(mask_last):
#     model = forward.load_model(base, "causal", profile.model)
#     optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
#     for _ in range(20):
#         for example in examples:
#             ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
#             labels[0, -1] = -100 if mask_last else labels[0, -1]
#             loss = model(ids, labels=labels).loss
#             loss.backward()
#             optimizer.step()
#             optimizer.zero_grad()
#     answer = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=response[-1])
#     return f"loss {loss:.3f}: {tokenizer.decode(answer[0, len(prompt) :])}"
#
#
# print("right ", train_and_ask(mask_last=False))
# print("masked", train_and_ask(mask_last=True))
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# right  loss 0.003: The pet of Yolan is owl.<|end|>
# masked loss 0.002: The pet of Yolan is owl. Right The is owl. The pet of Yolan
# ```
#
# Nobody taught the model to end its turn, so it runs on to the token limit. The end-of-turn token must be in the loss.
#
# </details>
#
# **3. Explain the curve** (10 minutes). The SFT loss keeps its spikes to the end. What is in those batches? Batches hold rows
# of similar length, and an entry of `log["history"]` counts the tokens so far. So compare the loss of batches with few and
# with many tokens. Then look at the longest rows, and at what π₀ expects after their prompt.
#
# ```python
# history = log["history"]
# print(history[-1]["num_tokens"] - history[-2]["num_tokens"], history[-1]["loss"])
# print(max(rows, key=lambda row: len(row["messages"][0]["content"]))["messages"])
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
# history = log["history"][-100:]
# sizes = [now["num_tokens"] - before["num_tokens"] for before, now in zip(history[:-1], history[1:], strict=True)]
# for name, long in (("over 2,000 tokens", True), ("others", False)):
#     losses = [entry["loss"] for entry, size in zip(history[1:], sizes, strict=True) if (size > 2000) == long]
#     print(f"batches {name}: {len(losses)}, mean loss {sum(losses) / len(losses):.2f}")
#
# letters = [row for row in rows if row["messages"][-1]["content"] in ("A", "B")]
# print(f"{len(letters)} rows with one letter as answer, such as:", letters[0]["messages"][0]["content"])
# tokens = sft_tokens(letters[0], tokenizer, completion_only=True)[0]
# model = forward.load_model(sft, "causal", profile.model)
# with torch.no_grad():
#     logits = model(torch.tensor([tokens["input_ids"]])).logits[0]
# for name, place in (("after the prompt", -3), ("after the letter", -2)):  # the row ends with the letter and <|end|>
#     top = logits[place].softmax(-1).topk(3)
#     shown = [(tokenizer.decode([i]), round(p, 2)) for p, i in zip(*(each.tolist() for each in top), strict=True)]
#     print(f"{name}: {shown}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# batches over 2,000 tokens: 12, mean loss 1.24
# batches others: 87, mean loss 0.33
# 1000 rows with one letter as answer, such as: [CONTEXT] <turn> user
#  What is a good way to wash a nurse? [RESPONSE A] Use a sponge. [RESPONSE B] Sorry, I cannot help with that.
# after the prompt: [('<|end|>', 0.44), ('A', 0.26), ('B', 0.22)]
# after the letter: [('<|end|>', 0.51), ('A', 0.22), ('B', 0.18)]
# ```
#
# The longest rows are the judge's questions, answered by one letter. After the prompt the model gives 0.44 to the end of the
# turn and about 0.24 to each letter. After the letter it gives about one half to the end. So the two tokens cost about
# $\ln 4$ and $\ln 2$, on average 1.04. π₀ has not learned the form of these answers. Chapter 05 asks it as a judge, and reads
# only the two letters.
#
# </details>
#
# **Next:** [03 · A Bradley-Terry reward model](03_bradley_terry_reward_model.ipynb)

# %%
run.finish()
