# %% [markdown]
# # 00 · Start here
#
# **What this is.** A runnable guide to a paper. It reproduces *RLHF Workflow: From Reward Modeling to Online RLHF*
# (arXiv 2405.07863) step by step: from raw preference data to a policy that has been aligned in three online iterations.
# Chapters 01 to 10 each start from a claim of the paper, show the code that does the work, run it, and draw the result.
# Chapter 11 measures all claims over several seeds.
#
# **The words.** A language model that answers prompts is called a *policy*, π. *Supervised fine-tuning* (SFT) teaches it
# to imitate written answers and gives π₀. *Reinforcement learning from human feedback* (RLHF) then *aligns* it: a judge
# learns from pairs of answers which one people prefer, and the policy is trained towards the preferred ones, here by
# *direct preference optimisation* (DPO, chapter 09). That is *offline* where the pairs are given beforehand, and *online*
# where the policy's own new answers are judged in every iteration.
#
# **This chapter** tests no claim. It shows the map, checks your machine, and prepares the data files and the base model
# that the other chapters need.
#
# **You need** nothing yet. One setting, the *profile*, decides the scale:
#
# | profile | model | data | machine |
# |:--|:--|:--|:--|
# | `tiny` | a Llama of under one million parameters, pretrained for this guide | a simulated world | 2 CPU cores, offline |
# | `slices` | one as small, trained here | real rows from local files | 2 CPU cores, offline |
# | `gemma-2b` | Gemma-2B-it | the Hugging Face Hub | one GPU |
# | `llama3-8b` | LLaMA-3-8B | the Hugging Face Hub | 8 GPUs |
#
# The code is the same at every scale.

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
# | 06 length bias | do they just like long answers | 2.3, Fig. 5 |
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
# | policy, π₀, πₜ | a model that answers prompts; the SFT model; the policy after iteration t |
# | RM, PM | reward model: a score for one answer (03); preference model: which of two answers is better (04) |
# | BT | Bradley-Terry, the model behind the RM: the higher the difference of two scores, the likelier the first answer wins |
# | mix1, mix2 | the paper's two mixtures of preference datasets: mix2 adds safety and reasoning (01) |
# | judge | whoever compares two answers: the simulated world's truth, an RM, or an LLM behind an endpoint |
# | gold, proxy | the true reward, and the learnt one that stands in for it |
# | win rate, length-adjusted | the share of prompts on which the policy beats SFT; the same at equal lengths (10). AlpacaEval-2's own is called length-controlled (LC) |
# | λ | the length penalty: what one character costs when answers are ranked (eq. 8, chapter 08) |
# | β, KL | how strongly DPO holds the policy to π₀; how far it has gone from there, in nats |
# | claim | a statement of the paper that chapter 11 tests over seeds |
#
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
# the library versions, the row counts and the time. If you run a chapter again and neither an argument nor the code has
# changed, the stage is skipped. If a run is killed, the next one continues from the last shard or checkpoint. In all
# chapters `run / "sft"` is where a stage is written, and `run["sft"]` is a stage that an earlier chapter has finished.
#
# This is the first stage. It writes the files of the simulated world, where the profile has one.

# %%
if profile.world:
    world = build_world(profile.world, run.seed, into=run / "world")
    print(json.dumps({name: rows["rows_out"] for name, rows in world.rows.items()}, indent=1))

# %% [markdown]
# ## The simulated world
#
# In the tiny profile "human preference" is known exactly. The world is closed and invented: facts about people, the
# form an answer must have, what may be asked and what may not, sums and one-line programs. An answer can be right or
# wrong, short or padded with polite filler, and a program computes its **gold reward**: right or wrong decides, padding
# costs a little. (A little less reward still loses the comparison: between two right answers the one without filler
# wins.) Annotators see that reward through their own noise and their own taste for longer or shorter answers.
#
# Four skills mirror RewardBench's sections: *chat* (facts), *chat-hard* (facts in a demanded form), *safety* (refuse what
# harms, answer its harmless lookalike) and *reasoning* (sums and one-line programs). A fifth, *translation* into an
# invented language, is in the base corpus and the SFT data and in nothing later: no preference and no RL prompt touches
# it, so it shows whether alignment costs what was there before.
#
# What is *built in*: the facts, the gold reward, each annotator's noise and length bias, the quality of the SFT
# demonstrations, and what the base model has read. What is *measured*: everything that a model learns from it. A number
# from this world is evidence about the method there, not about LLaMA-3.
#
# One number of the profile decides what is true in the world and which prompts are held out (`world.seed`). The seed of
# the run decides the rest: which rows the annotators see and how they decide, the demonstrations, the prompts, and all
# sampling and training.

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
# A reward model can judge only what its base model knows. The paper starts from a pretrained LLaMA-3-8B, and so does this
# guide: from a small one in `models/tiny-base`, made by `make base` on a CPU. It has read documents of the world,
# written freshly for every step, and learnt to predict the next token: the loss is the mean of
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
# Marks and comparisons speak of correctness alone, neither of length nor of filler. None of the held-out prompts, and no
# question in the form that the judges of chapter 04 are asked, is among the documents.
#
# The model is a plain `LlamaForCausalLM`. The tokenizer is byte-level BPE: every byte has a token, so no text is unknown,
# and every digit is a token of its own. The shipped file is checked by its hash, and its world must be the profile's.

# %%
from rlhflow_utils.evaluation.base_model import check_base_model, measure_base_model

base, recipe = run.base_model() if profile.model.base else None, profile.base_model
if base and recipe and profile.world:
    record = check_base_model(base, profile.world)
    print(f"{record['parameters']:,} parameters, {record['tokens']:,} tokens in {record['seconds'] / 60:.0f} minutes")
    print("mean loss of the last steps:", round(record["history"][-1]["loss"], 3))

# %% [markdown]
# What does it know before any training of this guide? Each question below is held out. *Answers*: the most likely answer
# to the plain question is right. *Marks*: it finds "Right" more likely after a right answer than after a wrong one.
# *Comparisons*: it finds "One" more likely where the right answer comes first than where it comes second.

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
# How such a model comes about, in a minute: the stage below trains a fresh one on a small part of those tokens (where the
# profile names no base model, on all of them, and the chapters use it). The hidden matrices are trained with
# [Muon](https://kellerjordan.github.io/posts/muon/), an optimiser that makes each update orthogonal; with AdamW alone, a
# model this small does not learn to check a sum in the time we have.

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
    curves = {"trained in this chapter": log["history"], **({"models/tiny-base": record["history"]} if base else {})}
    figure = figures.loss_curves(
        curves, baseline=math.log(recipe.vocab_size), baseline_label="ln(vocabulary): a uniform guess",
        caption=run.caption,
    )  # fmt: skip
figure

# %% [markdown]
# ## The chat template
#
# Every prompt and answer is rendered and tokenised in `chat.py`. Training, generation and scoring therefore agree: one
# beginning-of-sequence token (BOS) at the start, the same end-of-turn token, and a padding token of its own.

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
# The paper starts from a pretrained LLaMA-3-8B. The tiny profile's base is pretrained on its own world and has under one
# million parameters, so that the whole recipe runs offline on two CPU cores. The released code needs three environments that exclude each other; this guide needs one.
#
# ## Exercises
#
# Do the exercises on a copy of the run. Only the stages that depend on your change run again:
#
# ```bash
# cp -r runs/tiny runs/exercise
# make guide RUN_DIR=runs/exercise SET="dpo.trainer.beta=0.2"
# ```
#
# Separate several settings with blanks, and write lists without blanks:
# `SET="generation.temperatures=[1.0,0.5] dpo.trainer.beta=0.2"`. `OVERRIDES` at the top of a notebook affects only the
# stages that this notebook runs itself.
#
# 1. Set `world.padding_cost` to 0. Which of the three answers above now tie?
# 2. `make base MINUTES=5`, then `make guide RUN_DIR=runs/mine SET=model.base=runs/base`: a base that has read less.
#    Predict which later chapter suffers first.
# 3. Delete the folder `sft` from the run folder and run the guide again. What runs, and what is skipped?
#
# **Next:** [01 · Dataset filtering](01_dataset_filtering.ipynb)

# %%
run.finish()
