# %% [markdown]
# # 07 · Generation
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · **07
# generation** · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# **The claim.** Online RLHF learns from the policy's *own* answers. The paper samples n = 8 responses per prompt from
# the current policy, and the reward model ranks them (3.3). Temperatures are 1.0 and 0.7, without top-k or top-p: no
# token is excluded for being unlikely.
#
# After this chapter you can sample n answers per prompt with vLLM or transformers, repeatably. Chapters 07 and 08 carry
# out iteration 1 step by step. Chapter 09 reuses their results and continues with iterations 2 and 3.
#
# **You need** chapters 00–03.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import importlib.util

import torch

from rlhflow_utils.evaluation.statistics import bon_kl
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.models import chat, forward
from rlhflow_utils.online.generation import generate_responses, prompts_of_iteration

run = open_run("07_generation", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile, data, sft = run.profile, run["preference_data"], run["sft"]

# %% [markdown]
# ## The idea
#
# A *policy* is a language model seen as a distribution over answers. *Temperature* $T$ reshapes the distribution of each
# next token $y_t$, with $z$ the model's logits:
#
# $$\pi_T(y_t \mid \cdot) \propto \exp\big(z_{y_t} / T\big).$$
#
# $T = 1$ samples from the model as it is. $T < 1$ makes likely tokens likelier, and $T \to 0$ always takes the
# likeliest. To sample, draw a number $u$ between 0 and 1 and take the first token at which the summed probabilities
# exceed $u$. By hand, for three tokens with logits 2, 1 and 0, and u = 0.8:

# %%
logits, u = torch.tensor([2.0, 1.0, 0.0]), 0.8
for temperature in (1.0, 0.7, 0.1):
    probabilities = torch.softmax(logits / temperature, dim=-1)
    token = int(torch.searchsorted(probabilities.cumsum(-1), u))
    print(f"T = {temperature}: probabilities {[round(p, 3) for p in probabilities.tolist()]}, token {token + 1}")

# %% [markdown]
# Keeping the best of n answers is itself a better policy, *best-of-n*. It stays close to the policy that it samples
# from. Closeness is measured by the Kullback-Leibler (KL) divergence
# $\mathrm{KL}(\pi' \,\|\, \pi) = \mathbb E_{a \sim \pi'} \log \frac{\pi'(a \mid x)}{\pi(a \mid x)}$. It is the mean
# log-ratio of the two probabilities over answers of $\pi'$, in *nats* (natural logarithm). For best-of-n it is at most
# $\log n - \frac{n-1}{n}$ (paper 3.3):

# %%
tables.show([{"n": n, "KL at most (nats)": bon_kl(n)} for n in (1, 2, 4, 8, 16)])

# %% [markdown]
# ## The code
#
# Eight answers to two prompts, with the library itself: vLLM where the profile's `generation.backend` asks for it, plain
# transformers otherwise. Three details matter:
#
# * we pass token ids, not text, so the BOS token is not added twice;
# * generation stops at the end-of-turn token that the model saw in training;
# * transformers cuts to the 50 likeliest tokens unless `top_k=0` is given.
#
# Edit the arguments and run the cell again.

# %%
path, tokenizer = forward.model_path(sft), chat.load_tokenizer(sft, profile.model)
prompts = prompts_of_iteration(data, 1, profile.iterative)
two = [row["prompt"] for row in prompts.rows().select(range(2))]
ids = [chat.encode_prompt(prompt, tokenizer) for prompt in two]
stops, limit = chat.stop_token_ids(tokenizer), profile.generation.sampling["max_tokens"]

# %%
if profile.generation.backend == "vllm" and importlib.util.find_spec("vllm"):
    from vllm import LLM, SamplingParams

    longest = profile.generation.max_prompt_tokens + limit
    llm = LLM(
        model=path, dtype=profile.model.dtype, max_model_len=longest, enforce_eager=True, gpu_memory_utilization=0.5
    )
    params = SamplingParams(n=8, temperature=1.0, top_p=1.0, max_tokens=limit, seed=SEED, stop_token_ids=stops)
    outputs = llm.generate([{"prompt_token_ids": each} for each in ids], params, use_tqdm=False)
    answers = [[response.text for response in output.outputs] for output in outputs]
    llm.llm_engine.engine_core.shutdown()  # frees its memory; vLLM 0.32 has no public call for this
else:
    torch.manual_seed(SEED)
    model = forward.load_model(path, "causal", profile.model)
    sampled = [
        model.generate(
            torch.tensor([each], device=model.device), attention_mask=torch.ones(1, len(each), device=model.device),
            do_sample=True, num_return_sequences=8, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=limit,
            eos_token_id=stops, pad_token_id=tokenizer.pad_token_id,
        )[:, len(each) :]
        for each in ids
    ]  # fmt: skip
    answers = [[chat.decode_response(row.tolist(), tokenizer) for row in rows] for rows in sampled]
    del model, sampled  # their memory is needed below
    torch.cuda.empty_cache()

# %% [markdown]
# Real prompts can be harmful text, so answers are printed for the simulated world only.

# %%
assert [len(group) for group in answers] == [8, 8]
if profile.world:
    tables.show(
        [{"answer": place + 1, **{two[k][-1]["content"]: answers[k][place] for k in (0, 1)}} for place in range(8)]
    )

# %% [markdown]
# ## The full run
#
# `generate_responses` makes this call for all prompts of the iteration and adds what a long run needs:
#
# * Prompts over `generation.max_prompt_tokens` are dropped and counted.
# * The n responses are shared evenly among the temperatures.
# * Finished shards are kept, so a run that was killed goes on from there.
# * Each prompt has random numbers of its own, drawn from the run's seed and the prompt's id. Batches, shards and
#   restarts do not change an answer. vLLM takes a seed per prompt. `generate` of transformers uses one random stream for
#   a whole batch. Our own sampling loop replaces it (`online/engines.py`), so that an answer does not depend on its
#   batch. It follows the rule that you computed by hand above.

# %%
responses = generate_responses(
    sft, prompts, profile.generation, profile.model, run.seed, profile.actors, into=run / "iter1_responses"
)
tables.show(tables.row_counts([responses]))

# %% [markdown]
# ## Results
#
# The settings and the paper's. The last row says how many different answers the reward model can choose from.

# %%
rows = responses.dataset()
distinct = [len(set(row["responses"])) for row in rows]
measured = {
    "mean length (characters)": f"{responses.metrics['mean_length']:.1f}",
    "cut off by the token limit": f"{100 * responses.metrics['truncation_rate']:.1f} %",
    "different answers per prompt": f"{sum(distinct) / len(distinct):.2f}",
}
base = profile.model.base
settings = tables.settings_rows(profile.iterative, "iterative", base)
settings += tables.settings_rows(profile.generation, "generation", base, measured)
tables.show(settings, run.caption)

# %% [markdown]
# A lower temperature gives likelier answers. Whether they are also shorter shows here:

# %%
figures.response_lengths(rows["lengths"], rows["temperatures"])

# %% [markdown]
# In the tiny world the true reward of every answer is known. Ranking can teach correctness only where a prompt has both
# right and wrong answers. (Pairs of two right answers teach length: chapter 08.)

# %%
if profile.world:
    from rlhflow_utils.simulator.gold import World

    world = World(profile.world)
    right = [[world.is_correct(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in rows]
    shares = {"all right": [all(each) for each in right], "all wrong": [not any(each) for each in right]}
    shares["some right, some wrong"] = [any(each) and not all(each) for each in right]
    tables.show([{"answers to a prompt": name, "share of prompts": sum(each) / len(each)} for name, each in shares.items()],
                run.caption)  # fmt: skip

# %% [markdown]
# ## Checks

# %%
assert all(len(row["responses"]) == profile.generation.sampling["n"] for row in rows), "n responses for every prompt"
counts = responses.rows["prompts"]
assert counts["rows_in"] == counts["rows_out"] + sum(counts["dropped"].values()), "no prompt is lost"
for row in rows.select(range(min(50, len(rows)))):
    for response, reason in zip(row["response_ids"], row["finish_reasons"], strict=True):
        assert (response[-1] in stops) == (reason == "stop"), "only a finished response ends with an end-of-turn token"
    if tokenizer.bos_token_id is not None:
        assert tokenizer.bos_token_id not in chat.encode_prompt(row["prompt"], tokenizer)[1:2], "one BOS"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * The paper does not say how it combines its two temperatures (its scripts use 1.0). Here each gives half of the
#   responses: reconstructed.
# * The released script loses the remainder when it divides the prompts among GPUs. It also tokenises a rendered text
#   that already holds BOS, so the model sees BOS twice. Tests make sure that neither happens here.
# * We keep the token ids that the policy sampled and train on them. Tokenising the text again can give other ids.
#
# ## Summary
#

# %%
from statistics import median

lengths = {temperature: [] for temperature in profile.generation.temperatures}
for row in rows:
    for length, temperature in zip(row["lengths"], row["temperatures"], strict=True):
        lengths[temperature].append(length)
medians = ", ".join(f"{median(each):.0f} at T = {temperature:g}" for temperature, each in lengths.items())
summary = f"The {profile.generation.sampling['n']} answers to a prompt have {sum(distinct) / len(distinct):.1f} different texts. "
summary += f"Their median length in characters is {medians}. "
if profile.world:
    mixed = shares["some right, some wrong"]
    summary += f"{100 * sum(mixed) / len(mixed):.0f} % of the prompts have right and wrong answers: there a ranking can teach. "
tables.say(f"{summary}Over seeds: claim p in chapter 11 measures what best-of-n gains, and how far it moves.")

# %% [markdown]
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Predict** (10 minutes). Sample eight answers to the same prompts at T = 0.3. Predict three numbers: different
# answers per prompt, the share of right answers, and the share of prompts with both kinds. Which of them should a loop
# that learns from pairs look at?
#
# ```python
# cold = generate_responses(
#     sft, prompts, profile.generation.variant(8, [0.3]), profile.model, run.seed, profile.actors, into=run / "exercise_cold"
# )
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# cold = generate_responses(
#     sft, prompts, profile.generation.variant(8, [0.3]), profile.model, run.seed, profile.actors, into=run / "exercise_cold"
# )
# for name, sampled in (("1.0 / 0.7", rows), ("0.3", cold.dataset())):
#     different = [len(set(row["responses"])) for row in sampled]
#     marks = [[world.is_correct(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in sampled]
#     mixed = [any(each) and not all(each) for each in marks]
#     print(f"T = {name}: {sum(different) / len(rows):.2f} different answers, {sum(map(sum, marks)) / len(rows) / 8:.0%} right, "
#           f"both kinds on {sum(mixed) / len(rows):.0%} of the prompts")
# ```
#
# On `tiny`, seed 0, it prints, after its progress:
#
# ```text
# T = 1.0 / 0.7: 4.09 different answers, 68% right, both kinds on 93% of the prompts
# T = 0.3: 1.20 different answers, 94% right, both kinds on 18% of the prompts
# ```
#
# Cold answers are better and nearly all the same. A pair needs two different answers, and teaches most if one is right and
# one wrong. So at T = 0.3 most prompts would teach little. The loop needs the spread that T = 1 gives. Of the three numbers,
# watch the last.
#
# </details>
#
# **2. Write the estimator** (10 minutes). How much does best-of-n gain under a perfect judge? From the eight answers to
# a prompt, estimate the gold reward of the best of n, for n = 1, 2, 4 and 8. Print the KL bound beside it.
#
# ```python
# truth = [[world.reward(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in rows]
# for n in (1, 2, 4, 8):
#     print(n, bon_kl(n), ...)
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# from itertools import combinations
#
# truth = [[world.reward(row["prompt"][-1]["content"], text) for text in row["responses"]] for row in rows]
# for n in (1, 2, 4, 8):
#     best = [max(few) for each in truth for few in combinations(each, n)]  # every choice of n of the eight
#     print(f"n = {n}: gold reward {sum(best) / len(best):.3f}, KL at most {bon_kl(n):.2f} nats")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# n = 1: gold reward 0.348, KL at most 0.00 nats
# n = 2: gold reward 0.767, KL at most 0.19 nats
# n = 4: gold reward 0.964, KL at most 0.64 nats
# n = 8: gold reward 1.000, KL at most 1.20 nats
# ```
#
# The first doubling gains most. With eight answers a perfect judge finds a right one for every one of the 500 prompts. A
# learned judge gains less: chapter 08 measures how much.
#
# </details>
#
# **Next:** [08 · Pair building](08_pair_building.ipynb)

# %%
run.finish()
