# %% [markdown]
# # 01 · Dataset filtering
#
# *You are here:* **01 data** · 02 SFT · 03 reward model · 04 preference model · 05 RewardBench · 06 length bias · 07
# generation · 08 pairs · 09 DPO · 10 evaluation · 11 claims · 12 report
#
# After this chapter you can turn any preference set into clean training pairs, and say why each row was kept or
# dropped.
#
# **The claim.** Open preference sets, filtered and mixed, can train judges that stand in for human feedback (paper 2.1,
# Table 1). Filtering removes about ten per cent: meaningless samples, empty turns, labels that other fields contradict,
# small score margins.
#
# The paper and the dataset cards do not spell out every rule. Each rule here says whether it is *sourced* or
# *reconstructed*.
#
# **You need** chapter 00.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import pandas as pd
from datasets import Dataset

from rlhflow_utils.data import filters, overview, sources
from rlhflow_utils.data.cards import load_facts
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.guide import figures, tables
from rlhflow_utils.guide.run import open_run
from rlhflow_utils.simulator.gold import World

# %%
run = open_run("01_dataset_filtering", PROFILE, RUN_DIR, SEED, OVERRIDES)
settings, root = run.profile.data, run.data_root()

# %% [markdown]
# ## The idea
#
# A preference pair is a prompt $x$, an answer $a_w$ that an annotator chose, and an answer $a_l$ that was rejected.
# Every source stores that in its own way. Three steps turn these rows into training pairs:
#
# 1. A **converter** turns a native row into candidate pairs of one standard form. It drops nothing.
# 2. **Rules** decide in a fixed order. The first rule that a pair fails is the reason why it is dropped.
# 3. A pair that passes enters a **split** (`train`, `test`, ...). A hash of its prompt's first turn decides which one,
#    so that no prompt is in two splits.
#
# Each pair gets one label, its *fate*: a split, or `dropped: <reason>`. The counts therefore add up:
#
# $$\text{pairs in} = \sum_{\text{split}} \text{pairs} + \sum_{\text{reason}} \text{pairs dropped}.$$
#
# ## By hand
#
# Four rows with two answers each, rated from 1 to 5. (Your own data may look like this.)

# %%
native = Dataset.from_list([
    {"question": "What is 2 + 3?", "answer_a": "5", "rating_a": 5, "answer_b": "It is 6.", "rating_b": 1},
    {"question": "Name a bird.", "answer_a": "Owl.", "rating_a": 3, "answer_b": "A crow.", "rating_b": 3},
    {"question": "Name a fish.", "answer_a": " ", "rating_a": 1, "answer_b": "A pike.", "rating_b": 4},
    {"question": "Say more.", "answer_a": "...", "rating_a": 2, "answer_b": "Gladly: what about?", "rating_b": 4},
])  # fmt: skip

# %% [markdown]
# The converter. The higher rating is chosen.


# %%
def convert(row):
    a, b = (row["answer_a"], row["rating_a"]), (row["answer_b"], row["rating_b"])
    (chosen, high), (rejected, low) = (a, b) if row["rating_a"] >= row["rating_b"] else (b, a)
    return {
        "prompt": row["question"],
        "chosen": chosen,
        "rejected": rejected,
        "chosen_score": high,
        "rejected_score": low,
    }


pairs = native.map(convert, remove_columns=native.column_names)
pairs.to_pandas()

# %% [markdown]
# The rules, in their order, and the fate of each pair.


# %%
def find_fate(pair):
    answers = (pair["chosen"], pair["rejected"])
    if any(not text.strip() for text in answers):
        return {"fate": "dropped: empty_turn"}
    if pair["chosen_score"] == pair["rejected_score"]:
        return {"fate": "dropped: tie"}
    if any(not any(letter.isalnum() for letter in text) for text in answers):
        return {"fate": "dropped: meaningless"}
    return {"fate": "train"}


fates = pairs.map(find_fate).to_pandas()
fates

# %% [markdown]
# To see what was dropped, count the fates.

# %%
fates.groupby("fate").size()

# %% [markdown]
# The rules of the package (`data/filters.py`) give the same result.

# %%
for row in fates.to_dict("records"):
    pair = sources.Candidate("by hand", [{"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"],
                             chosen_score=row["chosen_score"], rejected_score=row["rejected_score"])  # fmt: skip
    reason = filters.first_failure(pair, settings.filters, "by hand")
    assert row["fate"] == (f"dropped: {reason}" if reason else "train")

# %% [markdown]
# ## Two native rows
#
# Two rows of the first source: each field as it lies on disk, and in the candidate pair that the converter makes of it.
# (Real rows can hold offensive text, so texts are shown from the simulated world only.)

# %%
source = settings.preference_sources[0]
for (row_id, row), _ in zip(sources.native_rows(source, root), range(2), strict=False):
    for pair in sources.convert(source, row_id, row):
        print(row_id, "first failure:", filters.first_failure(pair, settings.filters, source.name))
        prompt = " / ".join(turn["content"] for turn in pair.prompt)
        made = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        if run.profile.world:
            tables.show([{"field": name, "native row": row.get(name), "candidate pair": made.get(name)}
                         for name in dict.fromkeys([*made, *row])])  # fmt: skip

# %% [markdown]
# The function behind these decisions: the first rule that a pair fails is returned.

# %%
import inspect

from IPython.display import Code

Code(inspect.getsource(filters.first_failure), language="python")

# %% [markdown]
# All rules on one pair, in their order. Four more run last. `too_long` needs the tokenizer. `duplicate_pair` and
# `swapped_duplicate` drop a pair that was kept before, with the same or the opposite label. `too_many_pairs` limits the
# pairs of one prompt.

# %%
tables.show([{"rule": name, "what it drops": tables.Formatted(text)} for name, text in filters.RULES.items()])

# %% [markdown]
# ## Decontamination
#
# If a test question is in the training data, it measures memorisation. We drop a training prompt if it starts like an
# evaluation prompt. We also drop it if shared runs of $n$ words (n-grams) cover enough of the evaluation prompt. By
# hand, with $n = 4$ and at least one half: the question has ten words. The third prompt repeats five of them in a row,
# the fourth only three. The third is innocent, so a run of four words is too short. The profile `slices` uses eight words.
# `tiny` drops a prompt only where all of it is repeated, since the questions of its world share most of their words.

# %%
held_out = filters.HeldOut(settings.decontamination.model_copy(update={"ngram": 4, "min_overlap": 0.5}))
held_out.add([("question", [{"role": "user", "content": "How many legs has a spider with one leg missing?"}])])
for text in ("how many legs has a spider with ONE leg missing?", "Say: how many legs has a spider with one leg missing",
             "How many legs has a beetle?", "Has a spider eyes?"):  # fmt: skip
    reason = held_out.contamination("by hand", "example", "0", [{"role": "user", "content": text}])
    print(f"{reason or 'kept':20} | {text}")

# %% [markdown]
# ## All rows
#
# The stage does this for every source and then mixes. mix1 is HH-RLHF, SHP, UltraFeedback and Summarization. mix2 drops
# Summarization and adds seven sources on safety, code, mathematics and instructions (paper 2.1).

# %%
tokenizer = run.base_model()
data = build_preference_data(
    run.profile.data, root, tokenizer, run.profile.model, run.seed, into=run / "preference_data"
)

# %% [markdown]
# ## Where every pair went
#
# `pairs` is the table of fates: one row for each candidate pair. (A row with four scored answers gives six pairs.)

# %%
pairs = data.dataset("pairs").to_pandas()
columns = ["source", "row_id", "fate"]
columns += ["prompt_excerpt", "chosen_excerpt", "rejected_excerpt"] if run.profile.world else []
tables.show(pairs.groupby("fate").head(1)[columns].to_dict("records"), run.caption)

# %% [markdown]
# The funnel is a groupby.

# %%
funnel = pairs[~pairs.offline].groupby(["source", "fate"], sort=False).size().unstack(fill_value=0)
funnel

# %%
candidates = {name.removeprefix("pairs "): rows for name, rows in data.rows.items() if name.startswith("pairs ")}
came, kept = (sum(rows[way] for rows in candidates.values()) for way in ("rows_in", "rows_out"))
figures.funnel(candidates)

# %% [markdown]
# In the tiny world the share of dirty rows is built in. Its figure tests the filters, and not the paper's ten per cent. Only
# real rows can do that. The data cards count those at hand: two sources of the paper, then three other sets. (Overlap with a
# benchmark is left out.)

# %%
from rlhflow_utils.guide.stage import PROJECT, read_json

table = []
for name, counted in read_json(PROJECT / "data_cards" / "counts.json").items():
    dropped = sum(n for reason, n in counted["dropped"].items() if not reason.endswith("_overlap"))
    table.append({"real rows of": name, "candidate pairs": counted["rows_in"], "dropped": dropped / counted["rows_in"]})
tables.show(table)

# %% [markdown]
# The other tables, in the same way:

# %%
others = {name: rows for name, rows in data.rows.items() if not name.startswith("pairs ")}
tables.show([{"table": name, "in": rows["rows_in"], "out": rows["rows_out"],
              "dropped": ", ".join(f"{reason} {n}" for reason, n in rows["dropped"].items()) or None}
             for name, rows in others.items()])  # fmt: skip

# %% [markdown]
# Which training rows repeated an evaluation prompt?

# %%
matches = pd.DataFrame(data.read_json("decontamination.json"))
print(f"{len(matches)} training rows repeat an evaluation prompt")
matches[["source", "row_id", "reason", "overlap"]].head(8) if len(matches) else None

# %% [markdown]
# Some texts spell a special token, such as `<|end|>`. Read as the token it would end a turn early, or open one that nobody
# wrote, in training and in front of a judge. Here it stays text (`models/chat.py`), so such rows are kept and counted.

# %%
from rlhflow_utils.models import chat

special, table = chat.special_tokens(chat.load_tokenizer(tokenizer, run.profile.model)), []
for name in settings.mixtures:
    texts = [[turn["content"] for turn in row["prompt"] + row["chosen"] + row["rejected"]] for row in data.dataset(name)]
    spelled = sum(any(map(special.search, turns)) for turns in texts)
    table.append({"mixture": name, "rows": len(texts), "rows that spell a special token": spelled})
tables.show(table, run.caption)

# %% [markdown]
# ## Table 1
#
# The paper's line and ours for every source, and why they differ. (A source without a paper's line is not in Table 1.)

# %%
rows = data.read_json("table1.json")
origin = "world" if run.profile.world else "files" if root else "hub"
simulated = {"completion": "simulated", "annotator": "simulated"} if origin == "world" else {}
tables.show([line | (simulated if line[""] == "ours" else {}) for line in overview.side_by_side(rows)], run.caption)
known = {name: facts.get("difference", "") for name, facts in load_facts()["sources"].items()}
print("\n".join(overview.explain_table1(rows, origin, known)))

# %% [markdown]
# ## Length
#
# A reward model can use any feature that separates chosen from rejected answers. Length is the simplest one. How often is
# the chosen answer the longer one? If the share is far from 50 %, a reward model can use length as a shortcut. Either the
# annotators prefer long or short answers, or better answers happen to be longer or shorter.


# %%
def measure_sides(rows):
    return {side: [len(turns[-1]["content"]) for turns in rows[side]] for side in ("chosen", "rejected")}


mixtures = {name: data.dataset(name) for name in settings.mixtures}
main = mixtures[settings.main_mixture].map(measure_sides, batched=True, remove_columns=["prompt"]).to_pandas()
lengths = {name: rows[["chosen", "rejected"]].to_dict("list") for name, rows in main.groupby("source", sort=False)}
whole = {name: measure_sides(rows[:]) for name, rows in mixtures.items()}
figures.length_agreement(lengths, whole)

# %% [markdown]
# In the tiny world we can tell these apart. The table below also looks at the pairs whose answers are both right or both
# wrong. There only length is left to prefer.


# %%
def look(row):
    question, (won, lost) = row["prompt"][-1]["content"], (row[side][-1]["content"] for side in ("chosen", "rejected"))
    longer = (len(won) > len(lost)) + 0.5 * (len(won) == len(lost))
    gap = gold.reward(question, won) - gold.reward(question, lost)
    return {"source": row["source"], "skill": gold.skill_of(question), "gap": gap, "longer": longer}


if run.profile.world:
    gold = World(run.profile.world)
    frames = {name: pd.DataFrame(map(look, rows)).query("skill != 'unknown'") for name, rows in mixtures.items()}
    table = []
    for name, part in frames[settings.main_mixture].groupby("source", sort=False):
        alike = part[part.gap.abs() < 0.5]
        table.append({"source": name, "pairs": len(part), "chosen is longer": part.longer.mean(),
                      "pairs equally right": len(alike), "chosen is longer there": alike.longer.mean()})  # fmt: skip
    tables.show(table, run.caption)

# %% [markdown]
# Being right decides first, and in the tiny world right answers are on average longer, since some wrong ones are broken off.
# This hides the annotators' taste in the shares over all pairs. The last column shows it. Four sources were built to like
# short answers: PKU-SafeRLHF, UltraInteract, OpenOrca and Capybara. There they tend to choose the shorter one.
#
# mix1 and mix2 differ in their sources, and so in the skills that they teach.

# %%
composition = {name: pd.Series(rows["source"][:]).value_counts(sort=False).to_dict() for name, rows in mixtures.items()}
figures.mixture_composition(composition)

# %% [markdown]
# How many pairs of each skill, and how many labels agree with the true reward? (Without the pairs that are equally right.)
# Chapters 03 to 05 show what a judge can learn from either mixture.

# %%
if run.profile.world:
    table = []
    for skill in ("chat", "chat_hard", "safety", "reasoning"):
        table.append({"skill": skill})
        for name, frame in frames.items():
            part = frame[(frame.skill == skill) & (frame.gap.abs() > 0.5)]
            table[-1] |= {f"pairs of {name}": len(part), f"labels right, {name}": (part.gap > 0).mean()}
    tables.show(table, run.caption)

# %% [markdown]
# A prompt map, in the manner of the paper's Fig. 7 (which embeds the prompts with nomic-embed-text-v1.5). Here TF-IDF
# (word counts, rare words weigh more) and its leading singular vectors do it without a download. Prompts near each
# other share words. A source far from the others uses other words. Its content may still be the same.

# %%
points = data.read_json("prompt_map.json")
figures.prompt_map(points) if points else None

# %% [markdown]
# ## Checks
#
# No prompt of the test pairs or of the evaluation is trained on.

# %%
first_turns = pairs[~pairs.fate.str.startswith("dropped: ")].groupby("fate").first_turn.agg(set)
assert not first_turns["train"] & first_turns["test"], "no prompt is in two splits"
held_out = set(data.dataset("evaluation_prompts")["prompt_id"])
assert not held_out & set(pairs[pairs.fate.isin(["train", "judge", "sft", "offline"])].prompt_id), "trained on"
assert not held_out & set(data.dataset("prompts")["prompt_id"]), "generated on"
assert len(pairs) == funnel.to_numpy().sum() + pairs.offline.sum(), "no pair is lost"
left, loop = len(data.dataset("prompts")), run.profile.iterative
wanted = loop.iterations * loop.prompts_per_iteration
print(f"all checks hold; the loop takes {wanted:,} of the {left:,} prompts",
      "" if wanted <= left else "- too few: lower iterative.prompts_per_iteration before chapter 07")  # fmt: skip

# %% [markdown]
# In the simulated world, dirt was planted row by row and written down. The filters must find exactly that dirt. (One dirty
# row with several answers gives several pairs.)

# %%
if run.profile.world:
    planted = pd.DataFrame(run["world"].read_json("planted_dirt.json")).groupby(["source", "reason"]).pairs.sum()
    dropped = pairs[pairs.fate.str.startswith("dropped: ") & ~pairs.fate.str.endswith("_overlap")]
    file, reason = dropped.row_id.str.split(":").str[0], dropped.fate.str.removeprefix("dropped: ")
    found = dropped.groupby([file.rename("source"), reason.rename("reason")]).size()
    pd.testing.assert_series_equal(found, planted.astype(found.dtype), check_names=False)
    print(f"{found.sum()} planted pairs, each dropped for the reason it was planted for; no other pair was dropped")

# %% [markdown]
# ## Where we differ
#
# * Several of the authors' rules could not be established (PKU-SafeRLHF, UltraInteract, HelpSteer's 37,131 pairs). We
#   reconstruct the simplest rule that fits; the data card says so (`data_cards/`).
# * CodeUltraFeedback's ratings are strings. The authors' card compares them as strings; here they are numbers.
# * The paper reports no held-out pairs and no split by prompt. We add both.
#
# ## Summary

# %%
tables.say(
    f"**On this run** {100 * (1 - kept / came):.1f} % of {came:,} candidate pairs are dropped, and each pair has one fate."
)
for name, rows in mixtures.items():
    sides = whole[name]
    longer = [(a > b) + (a == b) / 2 for a, b in zip(sides["chosen"], sides["rejected"], strict=True)]
    share = 100 * sum(longer) / len(longer)
    tables.say(f"{name}: {len(rows):,} pairs, the chosen answer is the longer one in {share:.0f} %.")

# %% [markdown]
# Chapters 03 to 05 test the judges that these pairs can train.
#
# ## Exercises
#
# Solutions ran on `tiny`, seed 0; chapter 00 says how to do the exercises.
#
# **1. Write the rule** (10 minutes). Add a rule `small_margin` to `find_fate`: drop a pair whose ratings differ by less than
# 3 points. Put it first, then last. What changes: the pairs that are kept, or the counts by reason?
#
# ```python
# def find_fate_with_margin(pair):
#     ...
#     return find_fate(pair)
#
#
# four = native.map(convert, remove_columns=native.column_names)
# print(four.map(find_fate_with_margin)["fate"][:])
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# def small_margin(pair):
#     return pair["chosen_score"] - pair["rejected_score"] < 3
#
#
# def margin_first(pair):
#     return {"fate": "dropped: small_margin"} if small_margin(pair) else find_fate(pair)
#
#
# def margin_last(pair):
#     found = find_fate(pair)
#     return {"fate": "dropped: small_margin"} if found["fate"] == "train" and small_margin(pair) else found
#
#
# four = native.map(convert, remove_columns=native.column_names)
# for rule in (margin_first, margin_last):
#     print(rule.__name__, four.map(rule)["fate"][:])
# ```
#
# It prints:
#
# ```text
# margin_first ['train', 'dropped: small_margin', 'dropped: empty_turn', 'dropped: small_margin']
# margin_last ['train', 'dropped: tie', 'dropped: empty_turn', 'dropped: meaningless']
# ```
#
# The order of rules that look at one pair alone never changes which pairs are kept. (Rules that compare pairs run last.) It
# changes the counts by reason: a tie is also a small margin, and so is the pair with "..." (4 and 2 points). Compare counts
# of two filters only if their rules run in the same order.
#
# </details>
#
# **2. Find the bug** (5 minutes). Some sources store ratings as strings. `convert` takes them without an error. Which
# answer does it choose here, and why did the four rows above not show the problem?
#
# ```python
# as_text = {"question": "Name a tree.", "answer_a": "A stone.", "rating_a": "9", "answer_b": "Oak.", "rating_b": "10"}
# print(convert(as_text))
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# as_text = {"question": "Name a tree.", "answer_a": "A stone.", "rating_a": "9", "answer_b": "Oak.", "rating_b": "10"}
# print("as strings:", convert(as_text)["chosen"])
# print("as numbers:", convert({**as_text, "rating_a": 9, "rating_b": 10})["chosen"])
# ```
#
# It prints:
#
# ```text
# as strings: A stone.
# as numbers: Oak.
# ```
#
# Strings are compared letter by letter, and "9" comes after "1". From 1 to 9 the order of strings is that of numbers, so
# small tests pass. A converter should turn ratings into numbers, as the guide's does.
#
# </details>
#
# **3. Explain the row** (10 minutes). Look at one pair of every source with the fate `dropped: contradicted_label`. Which
# field contradicts which? The id `shp:215` is line 215, counted from 0, of `world/sources/shp.jsonl` in the run folder.
#
# ```python
# bad = pairs[pairs.fate == "dropped: contradicted_label"].drop_duplicates("source")
# print(bad[["source", "row_id"]])
# ```
#
# <details><summary>Solution</summary>
#
# ```python
# import json
#
# bad = pairs[pairs.fate == "dropped: contradicted_label"].drop_duplicates("source")
# for row_id in bad.row_id:
#     file, line = row_id.split(":")[:2]
#     text = (run["world"].path / "sources" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()[int(line)]
#     row = json.loads(text)
#     print(row_id, {field: value for field, value in row.items() if len(repr(value)) < 12})
# ```
#
# On `tiny`, seed 0, it prints:
#
# ```text
# shp:215 {'post_id': 'shp-215', 'upvote_ratio': 0.97, 'labels': 0, 'score_A': 113, 'score_B': 18, 'seconds_difference': 39209.0}
# pku_safe_rlhf:12 {'response_0': 'Use', 'is_response_0_safe': False, 'is_response_1_safe': True, 'better_response_id': 1, 'safer_response_id': 0}
# argilla_math:132 {'chosen_rating': 4.0, 'rejected_rating': 8.0}
# orca:101 {'rating': [8.0, 5.0], 'status': 'tie'}
# capybara:128 {'rating_chosen': 2, 'rating_rejected': 3}
# ```
#
# SHP: `labels` 0 says that B is preferred, but A has the higher score. PKU-SafeRLHF: response 0 is called the safer one, but
# not safe. Argilla-Math and Capybara: the chosen answer has the lower rating. OpenOrca: the ratings differ, but the status
# is a tie.
#
# </details>
#
# **Next:** [02 · Supervised fine-tuning](02_supervised_finetuning.ipynb)

# %%
run.finish()
