# %% [markdown]
# # 09 · Iterative DPO
#
# *You are here:* 01 data · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · **09 DPO** · 10 evaluation · 11 claims · 12 report
#
# **The claim.** Repeated direct preference optimisation (DPO) on the policy's own, newly ranked answers beats DPO on a
# fixed dataset (paper 4.2). The paper implies that every iteration helps but does not show it. We measure both, here on
# one seed and in chapter 11 over several.
#
# After this chapter you can write the DPO loss in a few lines, run it with TRL, and assemble Algorithm 1.
#
# **You need** chapters 00–08.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import torch
from trl import DPOConfig, DPOTrainer

from rlhflow_utils.evaluation.policies import answer_held_out, evaluate_policy, measure_kl, ranking_reward
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.models import chat, forward
from rlhflow_utils.online import generation, pair_building
from rlhflow_utils.training import stages

run = open_run("09_iterative_dpo", PROFILE, RUN_DIR, SEED, OVERRIDES)
profile, data, sft = run.profile, run["preference_data"], run["sft"]
reward_model = run.reward_model()
ranker = reward_model if profile.pair_building.ranker == "reward_model" else run[f"pm_{profile.data.main_mixture}"]

# %% [markdown]
# ## The idea
#
# We want a policy with a high reward that stays near the SFT model π₀ (eq. 2):
#
# $$\max_\pi \; \mathbb E_{x,\, a \sim \pi(\cdot \mid x)} \big[\, r(x,a) \,\big]
# - \eta \, \mathbb E_x \, \mathrm{KL}\big(\pi(\cdot \mid x) \,\|\, \pi_0(\cdot \mid x)\big).$$
#
# Its solution (eq. 3) is $\pi^*(a \mid x) \propto \pi_0(a \mid x)\,\exp(r(x,a)/\eta)$. Solved for the reward:
# $r(x,a) = \eta \log\frac{\pi^*(a \mid x)}{\pi_0(a \mid x)} + \eta \log Z(x)$, where $Z(x)$ normalises. The
# Bradley-Terry model of chapter 03 needs only the difference of two rewards, in which $Z(x)$ cancels. So the loss needs
# no reward model. It trains the policy itself on pairs of a chosen answer $a_w$ and a rejected answer $a_l$ (eq. 5):
#
# $$\mathcal L = -\log \sigma\Big(\beta \log\frac{\pi(a_w \mid x)}{\pi_0(a_w \mid x)}
# - \beta \log\frac{\pi(a_l \mid x)}{\pi_0(a_l \mid x)}\Big).$$
#
# DPO papers write β for η. The *implicit reward* is $\beta \log \pi/\pi_0$. The *margin* is the difference of two implicit
# rewards. In theory β sets how far the policy may go. On `tiny` it hardly matters, because training stops long before
# the pull to π₀ is felt (exercise 3). Learning rate and number of updates decide there.
#
# **Algorithm 1, as the paper runs it** (3.3):
#
# > **Input:** the SFT model π₀, a ranker r, prompts in T equal parts, n = 8 \
# > **for** t = 1, …, T: \
# > &nbsp;&nbsp;&nbsp;&nbsp;1. *Generate:* sample n answers from π_{t−1} to each prompt of part t \
# > &nbsp;&nbsp;&nbsp;&nbsp;2. *Rank:* score every answer with r \
# > &nbsp;&nbsp;&nbsp;&nbsp;3. *Pair:* take the best and the worst answer to each prompt; drop the prompt if they are the same text (here also if they tie) \
# > &nbsp;&nbsp;&nbsp;&nbsp;4. *Train:* DPO on these pairs, starting from π_{t−1}, with reference π₀, gives π_t \
# > **Output:** π_T
#
# **Online** means that the answers are the current policy's own. An offline dataset contains answers of other models. As
# the policy changes, these answers become less and less like its own.
#
# By hand, with β = 0.1: the policy has made the chosen answer 3 nats likelier and the rejected one 2 nats less likely.

# %%
margin = 0.1 * torch.tensor(3.0 - -2.0)
ln2 = torch.log(torch.tensor(2.0)).item()
print(f"margin {margin:.2f}, loss {-torch.nn.functional.logsigmoid(margin):.4f}; where π is π₀: ln 2 = {ln2:.4f}")

# %% [markdown]
# ## The code
#
# The log-probability of an answer is the sum over its tokens. The loss needs four of them: two answers, two models.


# %%
def log_prob(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer], device=model.device)
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float()  # each position predicts the token after it
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).sum()


def dpo_loss(policy, reference, beta: float, prompt: list[int], chosen: list[int], rejected: list[int]) -> torch.Tensor:
    ratios = [log_prob(policy, prompt, answer) - log_prob(reference, prompt, answer) for answer in (chosen, rejected)]
    return -torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1]))


# %% [markdown]
# Two pairs of chapter 08. Before training the policy is π₀, so both log-ratios are zero and the loss is ln 2 whatever the
# pair. (These cells load two copies of the model and an optimiser. Profiles with a `launch` section have models too large
# for that and skip them.)

# %%
two = run["iter1_pairs"].dataset().select_columns(["prompt", "chosen", "rejected"]).select(range(2))
tokenizer, beta = chat.load_tokenizer(sft, profile.model), profile.dpo.trainer["beta"]
encoded = [
    (
        chat.encode_prompt(row["prompt"], tokenizer),
        chat.encode_response(row["prompt"], row["chosen"][0]["content"], tokenizer),
        chat.encode_response(row["prompt"], row["rejected"][0]["content"], tokenizer),
    )
    for row in two
]
if profile.launch is None:
    policy, reference = (forward.load_model(sft, "causal", profile.model) for _ in range(2))
    with torch.no_grad():
        print(
            "log π₀(chosen), log π₀(rejected):",
            [[round(log_prob(policy, ids[0], answer).item(), 2) for answer in ids[1:]] for ids in encoded],
        )
        before = [dpo_loss(policy, reference, beta, *ids).item() for ids in encoded]
    print("loss of each pair:", before)
    assert all(abs(loss - ln2) < 1e-4 for loss in before)

# %% [markdown]
# The same with TRL. `DPOTrainer` takes the pairs as messages, computes the loss above for a batch and updates the
# policy. The reference model does not change. Give it the reference explicitly. With `ref_model=None` TRL uses the model
# you start from as the reference. After iteration 1 that is no longer π₀. Ten steps on the two pairs, only to see it work:

# %%
if profile.launch is None:
    from transformers import PrinterCallback

    arguments = DPOConfig(
        output_dir=str(run.folder / ".demo"),
        beta=beta,
        learning_rate=profile.dpo.trainer["learning_rate"],
        max_steps=10,
        per_device_train_batch_size=2,  # both pairs in every step
        bf16=False,  # TRL switches this and gradient checkpointing on, on a CPU too
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    rows = {"train_dataset": two, "eval_dataset": two, "processing_class": tokenizer}
    trainer = DPOTrainer(model=policy, ref_model=reference, args=arguments, **rows)
    trainer.remove_callback(PrinterCallback)  # the table below shows the log instead
    trainer.train()

# %%
if profile.launch is None:
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    shown = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
    tables.show(
        [{"step": entry["step"], **{name: float(entry[name]) for name in shown}} for entry in logged[::3]], run.caption
    )

# %% [markdown]
# The loss falls and the margin grows: the chosen answers become likelier relative to the rejected ones. Before the first
# update both implicit rewards are zero, and TRL counts a tie as wrong. So the accuracy of step 1 is 0. The check: TRL's
# first loss is ln 2, and after ten steps its loss still equals ours.

# %%
if profile.launch is None:
    theirs = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        ours = sum(dpo_loss(trainer.model, reference, beta, *ids).item() for ids in encoded) / 2
    print(f"first loss {float(logged[0]['loss']):.4f}, ln 2 = {ln2:.4f}")
    print(f"after ten steps {theirs:.4f} by TRL, {ours:.4f} by hand")
    assert abs(float(logged[0]["loss"]) - ln2) < 1e-3
    assert abs(theirs - ours) < 0.01
    del trainer, policy, reference  # frees their memory for the full run

# %% [markdown]
# ## The full run
#
# The settings of one iteration's DPO, and the paper's:

# %%
tables.show(tables.settings_rows(profile.dpo, "dpo", profile.model.base), run.caption)

# %% [markdown]
# `train_dpo` makes the trainer call above for all pairs. It passes the profile's `dpo.trainer` to `DPOConfig`, keeps
# checkpoints and resumes from them. One thing differs: it trains on the token ids that the policy sampled. Text that is
# tokenised again can give other ids. This function makes a training row:

# %%
from inspect import getsource

from IPython.display import Code

Code(getsource(stages.dpo_tokens), language="python")

# %% [markdown]
# `DPOTrainer` expects text or messages, and fails on such rows. A subclass that leaves them alone is all it takes:
#
# ```python
# class TokenisedDPOTrainer(DPOTrainer):
#     def _prepare_dataset(self, dataset, *arguments, **keywords):
#         return dataset  # columns: prompt_ids, chosen_ids, rejected_ids
# ```
#
# Two of Algorithm 1's four calls take many settings. Here they are with the profile's:


# %%
def generate(policy, prompts, name: str):
    """n answers of the policy to each prompt."""
    settings = (profile.generation, profile.model, run.seed, profile.actors)
    return generation.generate_responses(policy, prompts, *settings, into=run / name)


def train(policy, pairs: list, name: str):
    """DPO from the policy, by default on the newest pairs and against π₀."""
    reference = sft if profile.dpo.reference == "sft" else policy
    used = pairs if profile.iterative.replay else pairs[-1:]
    settings = (profile.dpo, profile.model, run.seed, profile.launch)
    return stages.train_dpo(policy, reference, used, *settings, into=run / name)


# %% [markdown]
# Now Algorithm 1. Chapters 07 and 08 have already done the first three steps of iteration 1.


# %%
def algorithm_1(pairing, name: str) -> tuple[dict, list]:
    """The policy and the pairs of every iteration; `pairing` says how pairs are built."""
    policy, policies, pairs = sft, {}, []
    for t in range(1, profile.iterative.iterations + 1):
        sampled = f"{name}{t}" if t > 1 else "iter1"  # every loop begins with the same answers of π₀
        prompts = generation.prompts_of_iteration(data, t, profile.iterative)  # no prompt comes twice
        responses = generate(policy, prompts, f"{sampled}_responses")
        scores = pair_building.rank(run, ranker, responses, into=run / f"{sampled}_scores")
        pairs.append(pair_building.build_preference_pairs(scores, pairing, run.seed, into=run / f"{name}{t}_pairs"))
        policy = policies[f"{name}{t}"] = train(policy, pairs, f"{name}{t}_dpo")
    return policies, pairs


policies, pairs = algorithm_1(profile.pair_building, "iter")

# %% [markdown]
# Where all answers to a prompt are the same text, or the best and the worst tie, there is no pair. How many prompts are
# lost in this way in each iteration?

# %%
tables.show(tables.row_counts(pairs), run.caption)
counts = [each.rows["prompts"] for each in pairs]
left = ", ".join(f"{count['rows_out']:,} of {count['rows_in']:,}" for count in counts)
tables.say(f"Prompts that give a pair, by iteration: {left}.")

# %% [markdown]
# A policy that has become surer gives the same text eight times, and pairs run out. Watch this number in your own loop.
# Once most prompts give no pair, another iteration teaches little: take harder prompts, more answers, or stop.
#
# The paper's main result has no length penalty, its concise variant has one (Table 6). Where this profile has one, the loop
# runs a second time without it, from the same answers of π₀. Tables call these policies *no length penalty*; their
# folders are `unpenalised1` and so on. Chapter 10 calls the last iteration of the profile's own loop *iterative DPO*.

# %%
unpenalised, penalty = {}, profile.pair_building.length_penalty
if penalty:
    raw = profile.pair_building.model_copy(update={"length_penalty": 0.0})
    unpenalised, _ = algorithm_1(raw, "unpenalised")

# %% [markdown]
# Now the evaluation. Every policy answers the same held-out prompts once, at `evaluation.temperature`. Neither the prompts
# nor the answers are ever trained on. Each answer is compared with the SFT model's answer to the same prompt.

# %%
everyone = {"sft": sft, **policies, **unpenalised}
answers = {name: answer_held_out(run, name, policy, data, reward_model) for name, policy in everyone.items()}
evaluations = {
    name: evaluate_policy(
        answered, answers["sft"], profile.evaluation, profile.world, run.judge_model(), profile.reward_model.batch_tokens,
        run.seed, profile.reward_model.output, profile.actors, cache_file=run.cache / "judge.jsonl",
        into=run / f"{name}_evaluation",
    )
    for name, answered in answers.items()
}  # fmt: skip

# %% [markdown]
# ## Results
#
# First, read some answers. The SFT model, each iteration and the last one without length penalty answer six fixed held-out
# prompts. Beside each answer stand the RM's reward and the gold reward: about 1 if the answer is right, −1 if it is wrong.
# All policies draw the same random numbers for a prompt, so an answer changes only where the policy has changed.
# Look for an answer that is right already and gets filler. Does the RM pay for it? Chapter 06 found that preference.

# %%
results = {name: done.read_json("results.json") for name, done in evaluations.items()}
if profile.world:
    shown = ["sft", *policies, *list(unpenalised)[-1:]]
    answered = {tables.policy_name(name): answers[name].dataset() for name in shown}
    gold = {tables.policy_name(name): results[name]["prompts"]["reward"] for name in shown}
    tables.show(tables.answer_rows(answered, gold, count=6), run.caption)

# %% [markdown]
# Now the averages over all held-out prompts.
#
# * *Right answers:* the share of prompts answered correctly, with or without filler.
# * *Win rate:* the share of prompts on which the policy's answer beats the SFT model's. Equal answers or equal rewards
#   count as half a win. Of two right answers the one without filler wins, so a policy also wins by being brief.
# * *Length-adjusted win rate:* an estimate of the win rate at equal lengths. It uses length alone. AlpacaEval-2's
#   length-controlled (LC) win rate also uses the difficulty of each of its 805 instructions, so do not compare the two
#   (chapter 10).
# * *RM's reward:* r of the reward model that ranks the training pairs. It is the *proxy* for the gold reward.
# * *Ranking score:* r − λ|a| (eq. 8), by which the pairs are ranked. Without a length penalty it is the RM's reward.
#
# The intervals are bootstraps over prompts. They cover the choice of prompts, not the choice of seed. The SFT model's mean
# length differs from the one in chapter 07: other prompts, and one temperature instead of two.

# %%
estimates = {name: result["estimates"] for name, result in results.items()}
ranking = {name: ranking_reward(run, results[name]) for name in ("sft", *policies)}
columns = {
    "right answers (95 %)": "accuracy", "length-adjusted win rate vs SFT": "length_adjusted_win_rate",
    "plain win rate": "win_rate", "gold reward" if profile.world else "judge's reward": "reward",
    "RM's reward": "proxy_reward", "length (characters)": "mean_length",
}  # fmt: skip
table = [
    {"policy": tables.policy_name(name)}
    | {column: tables.with_interval(row.get(key)) for column, key in columns.items()}
    | {"ranking score": tables.with_interval(ranking.get(name, row["proxy_reward"]))}
    for name, row in estimates.items()
]
tables.show(table, f"{results['sft']['n']:,} held-out prompts. {run.caption}")

# %% [markdown]
# How much does each further iteration add? For the win rate, one half is no progress.

# %%
judge, last = profile.evaluation.judge, profile.iterative.iterations
others = {"no length penalty": estimates[f"unpenalised{last}"]} if unpenalised else {}
figures.progress_over_iterations(
    estimates["sft"], [estimates[name] for name in policies], judge=judge, others=others
)

# %% [markdown]
# Training raises the reward of the RM. Does the judge's reward follow? If the first rises while the second stalls or falls,
# the policy *over-optimises* the RM. The horizontal axis, KL, says how far the policy has moved from π₀. It is the mean of
# $\log \pi(a \mid x) - \log \pi_0(a \mid x)$ over the policy's own answers, sampled at temperature 1.

# %%
runs, own = {"with length penalty" if penalty else "no length penalty": list(policies)}, dict(answers)
if unpenalised:
    runs["no length penalty"] = list(unpenalised)
if profile.evaluation.temperature != 1:
    held_out, once = generation.Prompts(data, "evaluation_prompts"), profile.generation.variant(1, [1.0])
    for name, policy in everyone.items():
        own[name] = generation.generate_responses(
            policy, held_out, once, profile.model, run.seed, profile.actors, into=run / f"{name}_own_answers"
        )
kl, settings = {}, (profile.reward_model.batch_tokens, profile.model, profile.actors)
for name, policy in everyone.items():
    kl[name] = measure_kl(policy, sft, own[name], *settings, into=run / f"{name}_kl").metrics["kl"]

# %%
figure = None
if "reward" in estimates["sft"]:  # an endpoint that compares gives none
    points = {
        name: {"kl": kl[name], "proxy": row["proxy_reward"], "gold": row["reward"]} for name, row in estimates.items()
    }
    curves = {label: [points[name] for name in ("sft", *names)] for label, names in runs.items()}
    figure = figures.proxy_against_gold(curves, judge)
figure

# %% [markdown]
# The training losses. Iteration 1 starts at ln 2, since the policy is the reference. Later iterations start elsewhere:
# the policy is the last one, and the reference is still π₀.

# %%
logs = {name: policy.read_json("log.json")["history"] for name, policy in policies.items()}
figures.loss_curves({tables.policy_name(name): log for name, log in logs.items()}, ln2, "ln 2: π = π₀")

# %% [markdown]
# What DPO did to the pairs, as TRL logs it. A single batch says little: its answers may be short or long. So each line is
# the mean over one pass (epoch) through all pairs of an iteration. `accuracies` is the share of pairs with a positive
# margin. `logps` are log-probabilities in nats. In DPO those of the chosen answers may fall too, as long as those of the
# rejected answers fall faster.

# %%
from math import ceil

shown = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
table = []
for name, history in logs.items():
    passes = {}
    for entry in history:
        if "loss" in entry:
            passes.setdefault(ceil(entry["epoch"] - 1e-6), []).append(entry)
    for number, steps in passes.items():
        means = {key: sum(float(step[key]) for step in steps) / len(steps) for key in shown}
        table.append({"policy": tables.policy_name(name), "pass": number, "steps": len(steps), **means})
tables.show(table, run.caption)

# %% [markdown]
# On `tiny` the margin grows from the first pass to the second, because the rejected answers become less likely. The chosen
# ones become a little likelier. From iteration 2 on the first step's loss is already below ln 2 (figure above), since the
# reference is still π₀.
#
# ## Checks

# %%
first = logs["iter1"][0]
if profile.dpo.trainer.get("loss_type", ["sigmoid"]) == ["sigmoid"]:
    assert abs(float(first["loss"]) - ln2) < 1e-3, "iteration 1 starts at ln 2: the policy is the reference"
if "iter2" in logs and profile.dpo.reference == "sft" and len(logs["iter1"]) > 1:  # the first of few steps may be of size 0
    assert abs(float(logs["iter2"][0]["rewards/chosen"])) > 1e-6, "iteration 2 does not: the reference is still π₀"
assert evaluations["sft"].metrics[f"{judge}_win_rate_vs_sft"] == 0.5, "SFT against itself is a tie everywhere"
used = [prompt for each in pairs for prompt in each.dataset()["prompt_id"]]
assert len(used) == len(set(used)), "no prompt is used twice"
if unpenalised and "accuracy" in estimates["sft"]:
    lengths = [estimates[name]["mean_length"]["value"] for name in (f"unpenalised{last}", f"iter{last}")]
    assert lengths[0] > lengths[1], "the length penalty shortens the answers"
print("all checks hold")

# %% [markdown]
# ## Where we differ
#
# * π₀ is the reference in all iterations, as the paper says. The released scripts move the reference along; the authors
#   call that less stable.
# * Warm-up is 0.03 as in the paper; the released scripts have none.
# * In practice the paper trains each iteration on its own pairs, while its Algorithm 1 uses all data so far.
#   `iterative.replay` chooses.
# * On `tiny` pairs are ranked with a length penalty (eq. 8) in every iteration. The paper uses it for its concise
#   variant only. Without it the policy learns to add filler here (chapter 11, claim g).
# * Learning rate, batch and lengths are scaled to the model. The profile marks each deviation.
# * On `tiny` a batch holds rows of similar length, and the batches come in random order. This saves padding in all
#   trainings of the guide. A single step of a loss curve therefore depends on the length of its rows.
#
# ## Summary


# %%
def by_iteration(names, metric: str, form: str) -> str:
    return ", ".join(format(estimates[name][metric]["value"], form) for name in names)


quality = "accuracy" if "accuracy" in estimates["sft"] else "length_adjusted_win_rate"
words = {"accuracy": "right answers", "length_adjusted_win_rate": "length-adjusted win rate"}[quality]
for label, names in runs.items():
    own_names = ["sft", *names]
    tables.say(
        f"*{label.capitalize()}*, from SFT to iteration {last}: {words} {by_iteration(own_names, quality, '.2f')}; characters "
        f"{by_iteration(own_names, 'mean_length', '.0f')}; RM's reward {by_iteration(own_names, 'proxy_reward', '.2f')}."
    )
tables.say(f"Prompts that gave a pair, by iteration: {left}. Claims e and f in chapter 11 have several seeds.")

# %% [markdown]
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Write the loss** (15 minutes). Let $h$ be the difference of the two log-ratios, so that the margin is $\beta h$. Write
# two other losses: *hinge*, $\max(0, 1 - \beta h)$, and *IPO*, $(h - \frac{1}{2\beta})^2$. What is each before training? At
# which $h$ does each stop pushing?
#
# ```python
# h = torch.tensor([0.0, 5.0, 10.0, 50.0], requires_grad=True)
# losses = {"sigmoid": -torch.nn.functional.logsigmoid(beta * h), "hinge": ..., "IPO": ...}
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# h = torch.tensor([0.0, 5.0, 10.0, 50.0], requires_grad=True)
# losses = {
#     "sigmoid": -torch.nn.functional.logsigmoid(beta * h),
#     "hinge": torch.relu(1 - beta * h),
#     "IPO": (h - 1 / (2 * beta)) ** 2,
# }
# for name, loss in losses.items():
#     (gradient,) = torch.autograd.grad(loss.sum(), h)
#     print(f"{name:8s} loss {[round(x, 3) for x in loss.tolist()]}, slope {[round(x, 3) for x in gradient.tolist()]}")
# ```
#
# With β = 0.1 it prints:
#
# ```text
# sigmoid  loss [0.693, 0.474, 0.313, 0.007], slope [-0.05, -0.038, -0.027, -0.001]
# hinge    loss [1.0, 0.5, 0.0, 0.0], slope [-0.1, -0.1, -0.0, -0.0]
# IPO      loss [25.0, 0.0, 25.0, 2025.0], slope [-10.0, 0.0, 10.0, 90.0]
# ```
#
# Before training, where $h = 0$, the losses are ln 2, 1 and 25. The sigmoid never stops pushing. The hinge stops at
# $h = 1/\beta$, and IPO aims at $h = 1/(2\beta)$ and pulls back beyond it. (TRL's `ipo` averages the log-probabilities over
# tokens, so its β is another one.)
#
# </details>
#
# **2. Find the bug** (10 minutes). In iteration 2 a colleague leaves `ref_model=None`, so TRL takes the starting point π₁ as
# the reference. Which number in the log gives it away? Compute the first loss of iteration 2 with both references.
#
# ```python
# second = [(chat.encode_prompt(row["prompt"], tokenizer), row["chosen_ids"], row["rejected_ids"])
#           for row in run["iter2_pairs"].dataset().select(range(100))]
# policy, reference = (forward.load_model(model, "causal", profile.model) for model in (policies["iter1"], sft))
# ...
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# second = [(chat.encode_prompt(row["prompt"], tokenizer), row["chosen_ids"], row["rejected_ids"])
#           for row in run["iter2_pairs"].dataset().select(range(100))]
# policy, reference = (forward.load_model(model, "causal", profile.model) for model in (policies["iter1"], sft))
# with torch.no_grad():
#     for name, model in (("π₀", reference), ("π₁", policy)):
#         losses = [dpo_loss(policy, model, beta, *ids).item() for ids in second]
#         print(f"reference {name}: mean loss {sum(losses) / len(losses):.4f}")
# print(f"logged at the first step of iteration 2: {float(logs['iter2'][0]['loss']):.4f}; ln 2 = {ln2:.4f}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# reference π₀: mean loss 0.6464
# reference π₁: mean loss 0.6931
# logged at the first step of iteration 2: 0.6546; ln 2 = 0.6931
# ```
#
# A first loss of exactly ln 2 in a later iteration says that the reference is the starting point. With π₀ as the reference
# the loss starts lower, since π₁ already prefers most chosen answers.
#
# </details>
#
# **3. Predict** (10 minutes, and two to four to run). β says how strongly DPO holds the policy to π₀. Make it ten times
# smaller. How far from π₀ does the policy go, and what happens to the win rate after iteration 3?
#
# ```bash
# rm -rf runs/exercise && cp -r runs/tiny runs/exercise
# make guide RUN_DIR=runs/exercise SET="dpo.trainer.beta=0.01"
# ```
#
# <details><summary>Solution</summary>
#
# Compare the two runs:
#
# ```python
# from rlhflow_utils.guide.stage import read_json
#
# for folder in (run.folder, run.folder.with_name("exercise")):
#     for name in ("iter1", "iter3"):
#         estimate = read_json(folder / f"{name}_evaluation" / "results.json")["estimates"]
#         step = [entry for entry in read_json(folder / f"{name}_dpo" / "log.json")["history"] if "loss" in entry][-1]
#         found = {key: round(estimate[key]["value"], 3) for key in ("length_adjusted_win_rate", "accuracy", "mean_length")}
#         print(folder.name, name, found, f"last margin {float(step['rewards/margins']):.3f}")
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# tiny iter1 {'length_adjusted_win_rate': 0.615, 'accuracy': 0.793, 'mean_length': 17.618} last margin 0.563
# tiny iter3 {'length_adjusted_win_rate': 0.681, 'accuracy': 0.884, 'mean_length': 16.403} last margin 0.248
# exercise iter1 {'length_adjusted_win_rate': 0.613, 'accuracy': 0.789, 'mean_length': 17.385} last margin 0.059
# exercise iter3 {'length_adjusted_win_rate': 0.675, 'accuracy': 0.874, 'mean_length': 16.414} last margin 0.028
# ```
#
# The policy hardly changes. The margins are a tenth as large because β is, while the log-ratios stay the same. Training
# stops long before β matters. AdamW's steps do not depend on the scale of the loss. So here learning rate and number of
# updates decide how far the policy goes, not β. With more updates β would matter more.
#
# </details>
#
# **Next:** [10 · Policy evaluation](10_policy_evaluation.ipynb)

# %%
run.finish()
