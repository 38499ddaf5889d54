# %% [markdown]
# # 04 · A pairwise preference model
#
# *You are here:* 01 data · 02 SFT · 03 reward model · **04 preference model** · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# **The claim.** A preference model (PM) reads the prompt and *both* answers and says which is better. Trained as plain
# next-token prediction, it matches the BT reward model on chat and beats it on reasoning (paper 2.2–2.3). A wrong answer
# can look right on its own; a direct comparison can reveal the error. This chapter trains a PM with TRL's `SFTTrainer`.
#
# **You need** chapters 00–03.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import math

import torch
from transformers import AutoModelForCausalLM

from rlhflow_utils.evaluation.reward_models import evaluate_judge
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.models import chat, forward, preference_model
from rlhflow_utils.training.stages import train_preference_model

run = open_run("04_pairwise_preference_model", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile, data, test, start = run.profile, run["preference_data"], run["test_pairs"], run.preference_start()
main = profile.data.main_mixture

# %% [markdown]
# ## The idea
#
# A pair becomes an instruction with a one-token answer (paper 2.2):
#
# `[CONTEXT] {x} [RESPONSE A] {a¹} [RESPONSE B] {a²}` → `A` if the first answer is preferred, else `B`.
#
# During training we randomise the order, so that position carries no information. At inference we read the model's
# *logits*, its scores for the next token before the softmax. $P(a^1 \succ a^2)$ is the softmax over the two logits of A and
# B. We remove the remaining position bias by asking in both orders and averaging:
#
# $$P(a^1 \succ a^2) = \tfrac12\big(P(A \mid a^1, a^2) + 1 - P(A \mid a^2, a^1)\big).$$
#
# By hand: a model says A with probability 0.9 if the better answer stands first. It still says A with 0.6 if that
# answer stands second: it favours A. Averaged over both orders, its preference for the better answer is:

# %%
first, second = 0.9, 0.6
print(f"P = {0.5 * (first + 1 - second):.2f}")

# %% [markdown]
# ## The code
#
# A preference pair becomes a question and its answer. The question is one user turn, the answer is one letter. A coin for
# each row decides where the chosen answer stands. It is a hash of the seed and the row's id, so it falls the same way in
# every run.

# %%
import hashlib


def as_question(row):
    chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
    context = "\n\n".join(f"<turn> {turn['role']}\n {turn['content']}" for turn in row["prompt"])
    coin = hashlib.sha256(f"{SEED}:{row['source']}:{row['row_id']}".encode()).digest()[0] % 2
    a, b = (rejected, chosen) if coin else (chosen, rejected)
    question = f"[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b}"
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": "AB"[coin]}],
    }


pairs = data.dataset(main)
short = sorted(range(len(pairs))[:20], key=lambda place: len(str(pairs[place])))[:4]  # quick on any model
four = pairs.select(short)
questions = four.map(as_question, remove_columns=four.column_names)
for row in questions if profile.world else []:
    print(row["prompt"][0]["content"], "→", row["completion"][0]["content"], "\n")

# %% [markdown]
# So training a PM is supervised fine-tuning, as in chapter 02, on other rows. `completion_only_loss` leaves the question out
# of the loss. Here we train on the four questions for a few steps. Edit any argument and run the cell again.

# %%
import tempfile

from trl import SFTConfig, SFTTrainer

tokenizer = chat.load_tokenizer(start, profile.model)
folder = forward.model_path(start)  # such as runs/tiny/sft/model; a hub id will do, too
trainer = SFTTrainer(
    model=folder,
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(),
        model_init_kwargs={"dtype": profile.model.dtype},  # such as "float32"
        completion_only_loss=True,
        learning_rate=5e-5,  # the paper: 5e-6, for eight billion parameters
        lr_scheduler_type="constant",
        max_steps=3,
        per_device_train_batch_size=4,  # all four questions in every step
        max_length=None,
        bf16=False, gradient_checkpointing=False,  # TRL switches both on, on a CPU too
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, seed=SEED,
    ),
    train_dataset=questions,
    processing_class=tokenizer,
)  # fmt: skip

# %% [markdown]
# Are these the rows of the full run? The stage below writes token ids itself, with the same coin. Its labels mark the tokens
# in the loss: the letter, and the end of the turn. (Some templates write a line break after the end of the turn. TRL keeps
# it, the stage does not. Others write no end of turn. The stage adds it, TRL does not.)

# %%
written = chat.stop_token_ids(tokenizer)[0] in trainer.train_dataset[0]["input_ids"]  # the template ends its turns
for row, by_trl in zip(four, trainer.train_dataset, strict=True):
    ours = preference_model.training_tokens(row, tokenizer, seed=SEED)
    in_loss = [token for token in ours["labels"] if token != chat.IGNORED]
    same = len(ours["labels"]) - (not written)
    for column in ("input_ids", "labels"):
        assert by_trl[column][:same] == ours[column][:same], f"TRL and the stage have the same {column}"
print("the same tokens and labels, by TRL and by the stage")
print("in the loss of the last row:", [tokenizer.decode([token]) for token in in_loss])

# %% [markdown]
# Now train. TRL prints one line a step. `mean_token_accuracy` is the share of tokens in the loss that the model finds
# likeliest. `entropy` is the model's uncertainty about the next token. On `tiny` the loss hardly falls in three steps: the
# learning rate is a quarter of chapter 03's, and to compare two answers is harder to learn than to score one. The curve of
# the full run shows how long it takes.

# %%
trainer.train()
del trainer  # frees its memory for the full run
torch.cuda.empty_cache()

# %% [markdown]
# ## The full run
#
# `train_preference_model` makes the same trainer call for all pairs, with the profile's `preference_model.trainer` as its
# `SFTConfig`.

# %%
models = {
    mixture: train_preference_model(
        data, mixture, start, profile.preference_model, profile.model, run.seed, profile.launch,
        into=run / f"pm_{mixture}",
    )
    for mixture in profile.preference_model.mixtures
}  # fmt: skip
logs = {f"PM, {mixture}": model.read_json("log.json") for mixture, model in models.items()}
counts = {f"optimiser steps of {name}": log["steps"] for name, log in logs.items()}
counts |= {"pairs": len(pairs)}
tables.show(tables.settings_rows(profile.preference_model, "preference_model", profile.model.base, counts), run.caption)

# %% [markdown]
# Now ask the trained PM about one pair, with transformers alone. Render the question, take the logits after the last
# token, and compare the two letters. The chosen answer is clearly better here, so a good PM prefers A in the first
# order and B in the second.

# %%
pair = test.dataset()[0]
prompt, chosen, rejected = pair["prompt"], pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]
network = AutoModelForCausalLM.from_pretrained(forward.model_path(models[main]), dtype="float32")
letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "AB"]
in_this_order = []
for a, b in ((chosen, rejected), (rejected, chosen)):
    question = preference_model.format_comparison(prompt, a, b)
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        logits = network(input_ids=ids).logits[0, -1, letters]
    in_this_order.append(logits.softmax(-1)[0].item())
    print(question[0]["content"] if profile.world else f"{ids.shape[1]} tokens")
    print(f"logit of A {logits[0]:.2f}, of B {logits[1]:.2f}: P(A) = {in_this_order[-1]:.3f}\n")
by_hand = 0.5 * (in_this_order[0] + 1 - in_this_order[1])
print(f"both orders averaged: P(chosen is preferred) = {by_hand:.3f}")
del network

# %% [markdown]
# The same for all held-out pairs, in batches:

# %%
tests = {
    mixture: evaluate_judge(
        model, "pm", test, profile.preference_model, profile.model, profile.evaluation.confidence, profile.actors,
        into=run / f"pm_{mixture}_test",
    )
    for mixture, model in models.items()
}  # fmt: skip

# %% [markdown]
# ## Results
#
# The same held-out pairs as in chapter 03, with the BT reward model of the main mixture in the first row.

# %%
bt = run[f"bt_{main}_test"]
results = {"BT": bt.read_json("results.json")}
results |= {f"PM, {mixture}": done.read_json("results.json") for mixture, done in tests.items()}
rows = []
for name, result in results.items():
    skills = {f"{skill}, n = {part['n']}": tables.with_interval(part) for skill, part in result["skills"].items()}
    overall, n = tables.with_interval(result["accuracy"]), result["accuracy"]["n"]
    rows.append({"model": name, "pairs": n, "accuracy (95 % interval)": overall, **skills})
tables.show(rows, run.caption)

# %% [markdown]
# Overlapping intervals do not prove equality. Both models judge the same pairs, so a paired comparison is sharper. Claim b
# in chapter 11 makes it, over seeds.
#
# Now the training loss. It is the mean over two tokens, the letter and the end of the turn. The second is soon certain, so
# a coin flip on the letter costs $\tfrac12 \ln 2$. Look for a plateau at that line: there the model has learned the form of
# the answer, and not yet how to compare.

# %%
logs = {name: log["history"] for name, log in logs.items()}
coin = math.log(2) / 2
figures.loss_curves(logs, baseline=coin, baseline_label="½ ln 2: a coin flip on the letter")

# %% [markdown]
# Are the probabilities right (*calibrated*)? As in chapter 03, the models learned from noisy labels and are compared with
# clean ones. So even a perfect copy of the annotators would give an S-shaped curve around the diagonal.

# %%
figures.calibration_curves({name: result["calibration"] for name, result in results.items()})

# %% [markdown]
# ## Checks
#
# Both orders are asked, so swapping the answers must turn $P$ into $1 - P$.

# %%
both = [(prompt, chosen, rejected), (prompt, rejected, chosen)]
forward_p, backward_p = preference_model.preference_probability(models[main], both, 4096, profile.model)
assert math.isclose(forward_p, 1 - backward_p, abs_tol=1e-5), "antisymmetric"
rounding = 1e-4 if profile.model.dtype == "float32" else 0.05
assert math.isclose(forward_p, by_hand, abs_tol=rounding), "the package computes what the cell above does"
assert len(in_loss) == 2, "the letter and the end of the turn are in the loss, nothing else"
drawn = [preference_model.chosen_first(SEED, row["row_id"]) for row in pairs]
assert abs(sum(drawn) / len(drawn) - 0.5) < 2.5 / math.sqrt(len(drawn)), "a fair coin, within five standard deviations"
print(f"P = {forward_p:.3f} and {backward_p:.3f}; all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper packs PM samples into blocks of 3072 tokens; `preference_model.trainer.packing` does the same.
# * The base model of `tiny` has read comparisons of two answers, worded differently from this question. Its SFT model
#   has seen a thousand in this form. For LLaMA-3-8B-Instruct the number is unknown.
# * The released data script draws the order unseeded under many workers, so no two runs agree. Here it is a hash of the
#   row's id.
# * The released evaluation reads the logits at a position that depends on the chat template's version. Here it is the
#   position after the generation prompt, and both label tokens are checked to be single tokens.
# * The demonstration lets TRL apply the chat template. The stage writes token ids itself (`chat.py`) and puts rows of similar
#   length into one batch (chapter 02).
#
# ## Summary

# %%
pm, skills = results[f"PM, {main}"], results["BT"]["skills"]
gaps = {skill: pm["skills"][skill]["value"] - part["value"] for skill, part in skills.items()}
tables.say(
    f"**On this run** the PM is right on {100 * pm['accuracy']['value']:.1f} % of the held-out pairs, the BT model on "
    f"{100 * results['BT']['accuracy']['value']:.1f} %. **Over seeds**: claim b in chapter 11."
)
if gaps:
    tables.say(
        "PM − BT by skill, in points: " + ", ".join(f"{skill} {100 * gap:+.1f}" for skill, gap in gaps.items()) + "."
    )

# %% [markdown]
# Fine-tuned to answer A or B, a language model can compare two answers. Asked in both orders, its two answers agree:
# $P(a^1 \succ a^2) = 1 - P(a^2 \succ a^1)$. Unlike the BT model, it may still prefer $a$ to $b$, $b$ to $c$, and $c$ to $a$.
#
# In the tiny world these pairs mostly repeat questions of the training data. Chapter 05 asks both judges new questions.
# Compare their results in safety there.
#
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Count the bias** (10 minutes). Ask the PM about 100 test pairs in each *single* order. How often does it prefer the
# chosen answer when that stands first, when it stands second, and on average over both orders? Then ask the SFT model,
# which saw no annotator's preference. Look at its result by skill, too.
#
# ```python
# hundred = [(row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"])
#            for row in test.dataset().select(range(100))]
#
#
# def probability_of_a(network, prompt, a, b):
#     question = preference_model.format_comparison(prompt, a, b)
#     ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
#     with torch.no_grad():
#         return network(input_ids=ids).logits[0, -1, letters].softmax(-1)[0].item()
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# hundred = [(row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"])
#            for row in test.dataset().select(range(100))]
#
#
# def probability_of_a(network, prompt, a, b):
#     question = preference_model.format_comparison(prompt, a, b)
#     ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=False)
#     with torch.no_grad():
#         return network(input_ids=ids).logits[0, -1, letters].softmax(-1)[0].item()
#
#
# for name, folder in (("PM", models[main]), ("SFT model", run["sft"])):
#     network = AutoModelForCausalLM.from_pretrained(forward.model_path(folder), dtype="float32")
#     first = [probability_of_a(network, prompt, w, l) for prompt, w, l in hundred]
#     second = [1 - probability_of_a(network, prompt, l, w) for prompt, w, l in hundred]
#     both = [(p + q) / 2 for p, q in zip(first, second, strict=True)]
#     counts = [sum(p > 0.5 for p in each) for each in (first, second, both)]
#     print(f"{name}: chosen first {counts[0]}, chosen second {counts[1]}, both orders {counts[2]} of 100")
#     by_skill = {}
#     for skill, p in zip(test.dataset()["skill"], both, strict=False):
#         by_skill.setdefault(skill, []).append(p > 0.5)
#     print("  both orders, by skill:", {skill: f"{sum(right)} of {len(right)}" for skill, right in by_skill.items()})
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# PM: chosen first 100, chosen second 98, both orders 98 of 100
#   both orders, by skill: {'chat': '46 of 46', 'safety': '29 of 29', 'chat_hard': '23 of 25'}
# SFT model: chosen first 100, chosen second 0, both orders 50 of 100
#   both orders, by skill: {'chat': '33 of 46', 'safety': '9 of 29', 'chat_hard': '8 of 25'}
# ```
#
# The gap between the two orders is the *position bias*. The PM has little of it, since training randomised the order. The
# SFT model always says A. Asked in one order it would look perfect or useless, depending on where the chosen answer stands.
# Averaged over both orders it is at chance over all. By skill it is not: most chat pairs are right, and most safety and
# chat_hard pairs are wrong. A mean over skills can hide two opposite leanings.
#
# </details>
#
# **2. Find the bug** (5 minutes). Run exercise 1 first: this one uses its `hundred` and `probability_of_a`. A colleague
# averages both orders like this. No pair is ever decided with confidence. Why, and which check of this chapter would have
# failed?
#
# ```python
# def preference(network, prompt, a, b):
#     return 0.5 * (probability_of_a(network, prompt, a, b) + probability_of_a(network, prompt, b, a))
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# def preference(network, prompt, a, b):
#     return 0.5 * (probability_of_a(network, prompt, a, b) + probability_of_a(network, prompt, b, a))
#
#
# network = AutoModelForCausalLM.from_pretrained(forward.model_path(models[main]), dtype="float32")
# prompt, w, l = hundred[0]
# print(f"P(w over l) = {preference(network, prompt, w, l):.3f}, P(l over w) = {preference(network, prompt, l, w):.3f}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# P(w over l) = 0.501, P(l over w) = 0.501
# ```
#
# In the second order A is the *other* answer, so its probability must be taken from 1. Without that the preference is the
# same whichever answer is asked about, and a good PM gives about one half. The check that $P$ turns into $1 - P$ fails.
#
# </details>
#
# **3. Predict** (10 minutes, of which two run). Train a PM on mix1, too. Which skill loses most? The table of skills in
# chapter 01 shows which pairs mix1 lacks.
#
# ```python
# pm_mix1 = train_preference_model(
#     data, "mix1", start, profile.preference_model, profile.model, run.seed, profile.launch, into=run / "exercise_pm"
# )
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# pm_mix1 = train_preference_model(
#     data, "mix1", start, profile.preference_model, profile.model, run.seed, profile.launch, into=run / "exercise_pm"
# )
# done = evaluate_judge(
#     pm_mix1, "pm", test, profile.preference_model, profile.model, profile.evaluation.confidence,
#     into=run / "exercise_pm_test",
# )
# results["PM, mix1"] = done.read_json("results.json")
# for name in (f"PM, {main}", "PM, mix1"):
#     print(name, {skill: round(part["value"], 3) for skill, part in results[name]["skills"].items()})
# ```
#
# On `tiny`, seed 0, it prints, after its progress:
#
# ```text
# PM, mix2 {'chat': 1.0, 'chat_hard': 0.982, 'reasoning': 0.924, 'safety': 1.0}
# PM, mix1 {'chat': 1.0, 'chat_hard': 0.943, 'reasoning': 0.606, 'safety': 0.917}
# ```
#
# Reasoning loses most, and chat hardly anything. Of mix1's sources only UltraFeedback has
# reasoning pairs, few of them and carelessly labelled. No judge can learn a skill that its data lack.
#
# </details>
#
# **Next:** [05 · RewardBench](05_rewardbench_evaluation.ipynb)

# %%
run.finish()
