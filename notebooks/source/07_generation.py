# %% [markdown]
# # 07 · Generation
#
# **The claim.** Online RLHF learns from the policy's *own* answers. The paper samples n = 8 responses per prompt from
# the current policy, at temperatures 1.0 and 0.7, without top-k or top-p, and lets the reward model rank them (3.3).
# Best-of-n is already a better policy, and not far from the one it samples from:
# $\mathrm{KL}(\pi_{\mathrm{BoN}} \,\|\, \pi) \le \log n - \frac{n-1}{n}$.
#
# Chapters 07 and 08 *are* iteration 1, taught slowly. Chapter 09 reuses their results and runs on.
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

from rlhflow_utils.evaluation import statistics
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.stage import open_run
from rlhflow_utils.models import chat
from rlhflow_utils.online import engines as decoding
from rlhflow_utils.online import generation
from rlhflow_utils.online.iterative_dpo import Setting, generate_for_iteration

run = open_run("07_generation", PROFILE, RUN_DIR, SEED, OVERRIDES)
data, sft = run.folder("01_preference_data"), run.folder("02_sft")
setting = Setting(sft, run.folder(f"03_bt_{run.profile.data.main_mixture}"), data)

# %% [markdown]
# ## The idea
#
# A policy is a distribution over answers. Temperature $T$ reshapes each step of it:
#
# $$\pi_T(y_t \mid \cdot) \propto \exp\big(z_{y_t} / T\big).$$
#
# $T = 1$ samples what the model believes; $T < 1$ sharpens it; $T \to 0$ is greedy. By hand, three tokens with logits
# 2, 1 and 0:

# %%
for temperature in (1.0, 0.7, 0.1):
    weights = [math.exp(logit / temperature) for logit in (2.0, 1.0, 0.0)]
    print(f"T = {temperature}: " + "  ".join(f"{weight / sum(weights):.3f}" for weight in weights))

# %% [markdown]
# How far may best-of-n be from the policy it samples from? In nats:

# %%
for n in (1, 2, 4, 8, 16):
    print(f"n = {n:2d}: KL <= {statistics.bon_kl(n):.3f}")

# %% [markdown]
# ## The code
#
# Two backends stand behind one function, `generate`: transformers and vLLM. The prompt goes in as token ids, so BOS is
# there once. The model stops at the end-of-turn token that it learnt in training. Every prompt has random numbers of its
# own, from the run's seed and the prompt's id, so a run that was killed repeats itself.

# %%
print(inspect.getsource(decoding.choose_tokens))

# %% [markdown]
# Prompts over the limit are dropped and counted; the n responses are shared evenly among the temperatures.

# %%
print(inspect.getsource(generation.drop_long_prompts))
print(generation.response_temperatures(run.profile.generation.temperatures, run.profile.generation.responses))

# %% [markdown]
# ## The full run

# %%
responses = generate_for_iteration(run, setting, 1, sft)
print(responses.rows)

# %% [markdown]
# Two prompts with all their answers. Some are right, some are not: that spread is what the reward model will use.

# %%
rows = load_from_disk(str(responses.path / "data"))
if run.profile.world:  # real prompts can be harmful text: they are not printed
    for row in rows.select(range(2)):
        print(row["prompt"][-1]["content"])
        for text, temperature, reason in zip(row["responses"], row["temperatures"], row["finish_reasons"], strict=True):
            print(f"  T={temperature}  [{reason}]  {text}")

# %% [markdown]
# ## Results

# %%
lengths = [length for row in rows for length in row["lengths"]]
finished = [reason for row in rows for reason in row["finish_reasons"]]
distinct = [len(set(row["responses"])) for row in rows]
table = [
    {"": "prompts", "paper": "20,000", "ours": f"{len(rows):,}"},
    {"": "responses per prompt", "paper": "8", "ours": str(run.profile.generation.responses)},
    {"": "temperatures", "paper": "1.0 / 0.7", "ours": " / ".join(map(str, run.profile.generation.temperatures))},
    {"": "new tokens at most", "paper": "2048", "ours": str(run.profile.generation.max_new_tokens)},
    {"": "mean length (characters)", "paper": None, "ours": f"{sum(lengths) / len(lengths):.1f}"},
    {"": "stopped by themselves", "paper": None, "ours": f"{finished.count('stop') / len(finished):.1%}"},
    {"": "distinct answers per prompt", "paper": None, "ours": f"{sum(distinct) / len(distinct):.2f}"},
]
display(Markdown(tables.markdown_table(table, caption=tables.world_caption(run.profile))))

# %%
plotting.response_lengths(rows["lengths"], rows["temperatures"], caption=tables.world_caption(run.profile))

# %% [markdown]
# ## Checks

# %%
accounted = responses.rows["prompts"]
assert accounted["rows_in"] == accounted["rows_out"] + sum(accounted["dropped"].values()), "no prompt is lost"
assert all(len(row["responses"]) == run.profile.generation.responses for row in rows), "n responses for every prompt"
tokenizer = chat.load_tokenizer(sft.path / "model", run.profile.model)
stops = set(chat.stop_token_ids(tokenizer))
for row in rows.select(range(min(50, len(rows)))):
    for ids, reason in zip(row["response_ids"], row["finish_reasons"], strict=True):
        assert (ids[-1] in stops) == (reason == "stop"), "only a finished response ends with an end-of-turn token"
    if tokenizer.bos_token_id is not None:
        assert chat.encode_prompt(row["prompt"], tokenizer).count(tokenizer.bos_token_id) == 1, "one BOS before it"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * How the paper combines its two temperatures is not said (its scripts use 1.0). Here each gives half of the responses:
#   reconstructed.
# * The released script drops the remainder when it shards prompts over GPUs, and tokenises a rendered text that already
#   holds BOS, so that BOS is there twice. Tests keep both from coming back.
# * The token ids that the policy sampled are kept and trained on. Text that is tokenised again can differ.
#
# ## Summary and exercises
#
# We have n answers per prompt, all from the policy itself.
#
# 1. Set `generation.temperatures` to [0.3]. Predict the number of distinct answers per prompt.
# 2. Set `generation.responses` to 6 and `generation.temperatures` to [1.0,0.7,0.4,0.1]. Read the error.
# 3. With vLLM installed, set `generation.backend` to vllm. Which numbers change, and by how much?
#
# **Next:** [08 · Pair building](08_pair_building.ipynb)

# %%
print(tables.run_line(run))
run.finish()
