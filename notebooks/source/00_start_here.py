# %% [markdown]
# # 00 · Start here
#
# **What this is.** A runnable guide to a paper. It reproduces *RLHF Workflow: From Reward Modeling to Online RLHF*
# (arXiv 2405.07863) step by step. It begins with raw preference data and ends with a policy that three online
# iterations have aligned. Chapters 01 to 10 each state a claim of the paper, show the code, and run it. Each ends with the
# result of this run. Chapter 11 measures those that have a letter below over several seeds.
#
# **The words.** A language model that answers prompts is called a *policy*, π. *Supervised fine-tuning* (SFT) teaches
# it to imitate written answers and gives π₀. *Reinforcement learning from human feedback* (RLHF) then *aligns* it. A
# judge learns from pairs of answers which one people prefer. The policy is trained towards the preferred ones, here by
# *direct preference optimisation* (DPO, chapter 09). RLHF is *offline* if the pairs are given beforehand. It is
# *online* if every iteration judges new answers of the policy itself.
#
# **This chapter** tests no claim. It shows the map, checks your machine, and prepares the data files and the base model
# that the other chapters need.
#
# **You need** nothing yet. One setting, the *profile*, decides the scale:
#
# | profile | model | data | machine |
# |:--|:--|:--|:--|
# | `tiny` | a Llama of under one million parameters, pretrained for this guide | a simulated world | 2 CPU cores, offline |
# | `slices` | a model of the same size, trained in this chapter | real rows from local files | 2 CPU cores, offline |
# | `smollm2` | SmolLM2-135M-Instruct | as `slices`, short rows | 2 CPU cores |
# | `gemma-2b` | Gemma-2B-it | the Hugging Face Hub | one GPU |
# | `llama3-8b` | LLaMA-3-8B | the Hugging Face Hub | 8 GPUs |
#
# The code is the same at every scale. `docs/scale.md` says what has been measured on GPUs.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import json
import math

from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.guide.stage import provenance
from rlhflow_utils.models import chat
from rlhflow_utils.simulator.world import build_world
from rlhflow_utils.training.stages import train_base_model

run = open_run("00_start_here", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile = run.profile

# %% [markdown]
# ## The map
#
# ![The pipeline: preference data, SFT, reward and preference models with their benchmarks, the loop of generation, ranking,
# pairs and DPO, then evaluation, claims and report](../docs/pipeline.svg)
#
# | chapter | what happens | paper |
# |:--|:--|:--|
# | 01 dataset filtering | raw preference rows become clean, mixed, split data | 2.1, Table 1 |
# | 02 supervised fine-tuning | the starting policy π₀ | 3.1 |
# | 03 Bradley-Terry reward model | one scalar per answer | 2.2, eq. 4 |
# | 04 pairwise preference model | which of two answers is better | 2.2 |
# | 05 RewardBench | how good are these judges | 2.3, Table 2 |
# | 06 length bias | do reward models prefer long answers | 2.3, Fig. 5 |
# | 07 generation | eight answers per prompt | 3.3 |
# | 08 pair building | best against worst | 3.3, eq. 8 |
# | 09 iterative DPO | Algorithm 1, three iterations | 3.2–3.3, eq. 5 |
# | 10 policy evaluation | SFT, offline DPO, iterative DPO | 4.2, Tables 4–5 |
# | 11 the claims, measured | every claim over seeds, with a verdict | 2.3–4.2, Table 6 |
# | 12 reproduction report | all results on one page | |
#
# ## The words, once more
#
# | word | meaning |
# |:--|:--|
# | stage, key | a step whose result is kept in a folder; the fingerprint of its arguments and code, by which it is found again |
# | shard, checkpoint | a finished part of a stage's rows; a saved state of a training |
# | policy, π₀, πₜ | a model that answers prompts; the SFT model; the policy after iteration t |
# | RM, PM | reward model: a score for one answer (03); preference model: which of two answers is better (04) |
# | BT | Bradley-Terry, the model behind the RM: the higher the difference of two scores, the likelier the first answer wins |
# | mix1, mix2 | the paper's two mixtures of preference datasets: mix2 adds safety and reasoning (01) |
# | judge | whoever says which of two answers is better. Chapters 03 to 06 test judges: RM, PM, and the SFT model when it is asked (*prompted*). From chapter 09 on one judge compares the policies: the world's program, an RM, or an LLM behind an endpoint |
# | gold, proxy | the true reward, which a program computes; the RM's reward, which stands in for it |
# | chosen, rejected, margin | the two answers of a pair; the difference of their scores (RM: of rewards; DPO: of implicit rewards, 09) |
# | filler | polite phrases around an answer that add length and no content |
# | win rate, length-adjusted | the share of prompts on which the policy beats SFT; an estimate of it at equal lengths (10). AlpacaEval-2's own is called length-controlled (LC) |
# | 95 % interval | the range of values that fit the data: over prompts or pairs in chapters 03 to 10, over seeds in chapter 11 |
# | λ | the length penalty: what one character costs when answers are ranked (eq. 8, chapter 08) |
# | β, KL | how strongly DPO holds the policy to π₀; how far it has gone from there, in nats (units of the natural logarithm) |
# | claim | a statement of the paper that chapter 11 tests over seeds |
#
# The paper's claims have letters, which later chapters use. Chapter 11 tests them, with further questions from i on.

# %%
from rlhflow_utils.claims.designs import load_designs

claims = [(letter, claim) for letter, claim in load_designs().claims.items() if letter in "abcdefgh"]
tables.show([{"claim": letter, "in short": claim.title, "paper": claim.section} for letter, claim in claims])

# %% [markdown]
# ## Your machine

# %%
facts = provenance()
print("Python", facts["python"], "on", facts["device"])
for package, version in facts["versions"].items():
    print(f"  {package} {version}")

# %% [markdown]
# ## How a run is kept
#
# Every expensive step is a *stage*: a function that you call like any other. Everything that the step depends on is an
# argument, and `into` names the folder of its result. The folder holds a `manifest.json` with the arguments, the seed,
# the library versions, the row counts and the time. It also holds the stage's *key*, a fingerprint of its arguments and
# its code. If you run a chapter again and the key is the same, the stage is skipped. Change one argument, and this stage
# runs again with all that use its result. If a run is killed, the next one continues from the last *shard* (a finished part
# of the rows) or checkpoint. In all chapters `run / "sft"` is the folder that a stage writes, and `run["sft"]` is a stage of
# an earlier chapter.
#
# This is the first stage. It writes the files of the simulated world, where the profile has one. The numbers are rows.
# (`planted_dirt.json` names the dirty rows; one of them can give several pairs in chapter 01.)

# %%
if profile.world:
    world = build_world(profile.world, run.seed, into=run / "world")
    print(json.dumps({name: rows["rows_out"] for name, rows in world.rows.items()}, indent=1))

# %% [markdown]
# ## The simulated world
#
# In the tiny profile we know the true preference, because we invented the world. It contains facts about people,
# prescribed forms of answer, allowed and forbidden requests, sums, and one-line programs. An answer can be right or
# wrong, and short or padded with polite filler. A program computes its **gold reward**: right or wrong decides, and
# filler costs a little. Between two right answers the one without filler therefore wins. Annotators see that reward
# with noise. Some also like longer answers, others shorter ones.
#
# Four skills mirror the sections of the benchmark RewardBench (chapter 05): *chat* (facts), *chat-hard* (facts in a
# prescribed form), *safety* (refuse harmful requests, answer harmless ones that look alike) and *reasoning* (sums and
# programs). A fifth, *translation* into an invented language, is in the base corpus and the SFT data only. No
# preference and no RL prompt touches it, so it measures what alignment forgets.
#
# We built in: the facts, the gold reward, the annotators' noise and length bias, the quality of the demonstrations, and the
# base model's corpus. Everything else is measured. A number from this world is evidence about the method there, not about
# LLaMA-3.
#
# One number of the profile, `world.seed`, decides what is true in the world and which prompts are held out. The seed of
# the run decides the rest: the annotators' rows and labels, the demonstrations, the prompts, all sampling and all
# training.

# %%
if profile.world:
    for line in (world.path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:6]:
        print(json.loads(line)["context_messages"][-1]["content"])

# %%
if profile.world:
    from rlhflow_utils.simulator.gold import World

    gold = World(profile.world)
    for answer in ("3+4=7, so 7.", "Sure! 3+4=7, so 7. I hope this helps.", "3+4=8, so 8."):
        print(f"{gold.reward('Add 3+4.', answer):+.2f}  {answer}")

# %% [markdown]
# ## The base model
#
# A reward model can judge only what its base model knows. The paper starts from a pretrained LLaMA-3-8B. The tiny
# profile starts from the small model in `models/tiny-base`, which `make base` pretrains on a CPU. It learned to predict
# the next token of documents about the world, which are written anew for every step. The loss is the mean of
# $-\log p(y_t \mid y_{<t})$ over the tokens $y_t$. There are five kinds of documents. Here is one of each:

# %%
if profile.world:
    import random

    from rlhflow_utils.simulator import corpus

    rng = random.Random(SEED)
    for kind in type(profile.world.corpus).model_fields:
        only = {name: float(name == kind) for name in type(profile.world.corpus).model_fields}
        world_of_one = World(profile.world.model_copy(update={"corpus": profile.world.corpus.model_copy(update=only)}))
        print(f"[{kind}]", next(corpus.write_documents(world_of_one, rng)), sep="\n", end="\n\n")

# %% [markdown]
# Marks and comparisons are about correctness alone, not about length or filler. The documents contain no held-out
# prompt, and no question in the form that chapter 04 asks its judges.
#
# The model is a plain `LlamaForCausalLM`. The tokenizer is byte-level BPE (byte pair encoding). Every byte has a token,
# so any text can be encoded, and every digit is a token of its own. The cell below checks the shipped file's hash and
# that its world is the profile's.

# %%
from rlhflow_utils.evaluation.base_model import check_base_model, measure_base_model

base, recipe = run.base_model() if profile.model.base else None, profile.base_model
if base and recipe and profile.world:
    record = check_base_model(base, profile.world)
    print(f"{record['parameters']:,} parameters, {record['tokens']:,} tokens in {record['seconds'] / 60:.0f} minutes")

# %% [markdown]
# What does it know before any training of this guide? Each question below is held out. *Answers*: the most likely answer
# to the plain question is right. *Marks*: it finds "Right" more likely after a right answer than after a wrong one.
# *Comparisons*: the probability of "One" is higher where the right answer comes first.

# %%
if base and recipe and profile.world:
    known = measure_base_model(
        base, profile.world, profile.generation, profile.model, run.seed, into=run / "base_knowledge"
    )
    knows = known.read_json("results.json")
    tables.show(
        [{"skill": skill, **{test: of.get(skill) for test, of in knows.items()}} for skill in knows["answers"]],
        run.caption,
    )

# %% [markdown]
# The stage below shows how such a model is made: it trains a new one on a small part of those tokens. If the profile
# names no base model, the stage uses all tokens, and the chapters use its model. The hidden matrices are trained with
# [Muon](https://kellerjordan.github.io/posts/muon/), an optimiser that makes each update orthogonal. With AdamW alone,
# a model this small did not learn to check sums in the time we have.

# %%
trained = None
if recipe:
    settings = recipe.model_copy(update={"tokens": 200_000}) if base else recipe
    trained = train_base_model(
        settings, profile.world, run.data_root(), run.seed, into=run / ("base_model_demo" if base else "base_model")
    )
    log = trained.read_json("log.json")
    print(f"{log['parameters']:,} parameters, {log['tokens']:,} tokens, {log['seconds']:.0f} s")

# %%
figure = None
if trained:
    curves = {"this chapter": log["history"], **({"models/tiny-base": record["history"]} if base else {})}
    figure = figures.loss_curves(
        curves, baseline=math.log(recipe.vocab_size), baseline_label="ln(vocabulary): a uniform guess"
    )
figure

# %% [markdown]
# ## The chat template
#
# Every prompt and answer is rendered and tokenised in `chat.py`. Training, generation and scoring therefore agree.
# There is one beginning-of-sequence token (BOS) at the start, the same end-of-turn token everywhere, and a separate
# padding token.

# %%
tokenizer = chat.load_tokenizer(run.base_model(), profile.model)
example = [{"role": "user", "content": "Add 4+2."}]
print(chat.render([*example, {"role": "assistant", "content": "4+2=6, so 6."}], tokenizer))
print("prompt  ", chat.encode_prompt(example, tokenizer))
print("response", chat.encode_response(example, "4+2=6, so 6.", tokenizer))

# %% [markdown]
# ## Checks

# %%
ids = chat.encode_conversation(example, "4+2=6, so 6.", tokenizer)
assert tokenizer.bos_token_id not in ids[1:2], "BOS stands once at the start, if at all"
assert ids[-1] in chat.stop_token_ids(tokenizer), "a response ends with the end-of-turn token"
assert tokenizer.pad_token_id != tokenizer.eos_token_id, "padding is not the end of a turn"
assert chat.decode_response(chat.encode_response(example, "4+2=6, so 6.", tokenizer), tokenizer) == "4+2=6, so 6."
print("all checks hold")

# %% [markdown]
# For your own data, model, logging or cluster, write a profile of your own: see *Bring your own* in the README.
#
# ## Where we differ
#
# The paper starts from a pretrained LLaMA-3-8B. The tiny profile's base is pretrained on its own world. It has under
# one million parameters, so that the whole recipe runs offline on two CPU cores. The released code needs three
# incompatible environments; this guide needs one.
#
# ## Exercises
#
# Type the code of an exercise into a new cell at the end of the chapter: everything above is in scope. The minutes are an
# estimate of your time. We state the run time where it exceeds a few seconds. Solutions ran on `tiny`, seed 0. On another
# machine numbers may differ by the bands of [chapter 12](12_reproduction_report.ipynb), with another seed by more (chapter
# 11).
#
# An exercise that changes a setting works on a copy of the run. Only the stages that depend on the change run again. The
# first command removes the copy of an earlier exercise:
#
# ```bash
# rm -rf runs/exercise
# cp -r runs/tiny runs/exercise
# make guide RUN_DIR=runs/exercise SET="dpo.trainer.beta=0.2"
# ```
#
# Separate several settings with blanks, and write lists without blanks: `SET="generation.temperatures=[1.0,0.5] seed=1"`.
# `OVERRIDES` at the top of a notebook affects only the stages that this notebook runs itself.
#
# **1. Predict** (5 minutes). Let filler cost nothing. Which of the three answers above tie, and what does that mean for a
# comparison of two answers?
#
# ```python
# free = World(profile.world.model_copy(update={"padding_cost": 0.0}))
# print(free.reward("Add 3+4.", "3+4=7, so 7."))
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# free = World(profile.world.model_copy(update={"padding_cost": 0.0}))
# for answer in ("3+4=7, so 7.", "Sure! 3+4=7, so 7. I hope this helps.", "3+4=8, so 8."):
#     print(f"{free.reward('Add 3+4.', answer):+.2f}  {answer}")
# ```
#
# It prints:
#
# ```text
# +1.00  3+4=7, so 7.
# +1.00  Sure! 3+4=7, so 7. I hope this helps.
# -1.00  3+4=8, so 8.
# ```
#
# The two right answers tie. A tie counts as half a win for each, so a brief answer no longer beats a padded one. Chapter 10
# judges the same answers under three prices of filler.
#
# </details>
#
# **2. Write the loss** (10 minutes). Compute the loss of the base model on one line of its corpus, token by token.
# Compare the mean with that of transformers. Which tokens can the model not know?
#
# ```python
# import torch
#
# from rlhflow_utils.models import forward
#
# model = forward.load_model(run.base_model(), "causal", profile.model)
# ids = torch.tensor([tokenizer("3+4=7, so 7.")["input_ids"]])
# with torch.no_grad():
#     output = model(ids, labels=ids)
# logits = output.logits[0]  # row t says what comes after token t
# ...  # the loss of each token after the first, then the mean
# print(f"transformers: {output.loss:.3f}")
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# import torch
#
# from rlhflow_utils.models import forward
#
# model = forward.load_model(run.base_model(), "causal", profile.model)
# ids = torch.tensor([tokenizer("3+4=7, so 7.")["input_ids"]])
# with torch.no_grad():
#     output = model(ids, labels=ids)
# log_probs = output.logits[0, :-1].log_softmax(-1)
# losses = -log_probs.gather(-1, ids[0, 1:, None])[:, 0]
# for token, loss in zip(ids[0, 1:], losses, strict=True):
#     print(f"{loss:6.3f}  {tokenizer.decode([token])!r}")
# print(f"mean {losses.mean():.3f}, transformers {output.loss:.3f}, a uniform guess {math.log(recipe.vocab_size):.3f}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
#  1.255  '+'
#  1.750  '4'
#  0.052  '='
#  0.485  '7'
#  0.039  ','
#  0.000  ' so'
#  0.000  ' '
#  0.001  '7'
#  0.000  '.'
# mean 0.398, transformers 0.398, a uniform guess 6.931
# ```
#
# The sign and the second number are free, so no model can know them. Most of the loss is there. The tokens after the result
# can be read off the text before them, so they cost almost nothing.
#
# </details>
#
# **3. Find the bug** (5 minutes). A colleague tokenises conversations like this, and training runs without an error. What
# is wrong?
#
# ```python
# def encode(messages):
#     text = chat.render(messages, tokenizer)
#     return [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
#
#
# turns = [*example, {"role": "assistant", "content": "4+2=6, so 6."}]
# print(encode(turns))
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# def encode(messages):
#     text = chat.render(messages, tokenizer)
#     return [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
#
#
# turns = [*example, {"role": "assistant", "content": "4+2=6, so 6."}]
# print("theirs:", tokenizer.decode(encode(turns)))
# print("ours:  ", tokenizer.decode(chat.encode_conversation(example, "4+2=6, so 6.", tokenizer)))
# ```
#
# It prints:
#
# ```text
# theirs: <|bos|><|bos|><|user|>Add 4+2.<|end|><|assistant|>4+2=6, so 6.<|end|>
# ours:   <|bos|><|user|>Add 4+2.<|end|><|assistant|>4+2=6, so 6.<|end|>
# ```
#
# The template has already written BOS, so the model sees it twice. Nothing fails, since every list of ids is valid input.
# The released generation script does the same: it tokenises a rendered text with a tokenizer that adds a BOS of its own.
#
# </details>
#
# **Next:** [01 · Dataset filtering](01_dataset_filtering.ipynb)

# %%
run.finish()
