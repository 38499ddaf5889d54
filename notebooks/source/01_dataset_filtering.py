# %% [markdown]
# # 01 · Dataset filtering
#
# **The claim.** Ten open preference sets, filtered and mixed, are enough to train judges that stand in for human feedback
# (paper 2.1, Table 1). Filtering takes out about ten per cent: meaningless samples, empty rounds, labels that other fields
# contradict, small score margins.
#
# Not every rule of the authors can be established from the paper and their dataset cards, so each rule here says whether
# it is *sourced* or *reconstructed*, and every row that goes is counted under its reason.
#
# **You need** chapter 00.

# %% tags=["parameters"]
PROFILE = "tiny"
RUN_DIR = "runs/tiny"
SEED = 0
OVERRIDES = {}

# %%
import inspect
import json
from collections import Counter
from pathlib import Path

from datasets import load_from_disk
from IPython.display import Markdown, display

from rlhflow_utils.data import filters, sources
from rlhflow_utils.data import overview as source_statistics
from rlhflow_utils.data.cards import load_facts
from rlhflow_utils.data.command import funnel_rows
from rlhflow_utils.data.filters import HeldOut
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.guide import figures as plotting
from rlhflow_utils.guide import tables
from rlhflow_utils.guide.run import base_model, local_files
from rlhflow_utils.guide.stage import StageFolder, open_run
from rlhflow_utils.models import chat

# %%
run = open_run("01_dataset_filtering", PROFILE, RUN_DIR, SEED, OVERRIDES)
settings, caption = run.profile.data, tables.world_caption(run.profile)

# %% [markdown]
# ## The idea
#
# A preference row is a prompt $x$, an answer $a_w$ that an annotator chose and an answer $a_l$ that was rejected. Each
# source stores that in its own way. A *converter* turns native rows into one standard form and decides nothing. *Rules*
# then decide, in a fixed order; the first that fails gives the reason. So for every source
#
# $$\text{rows in} = \text{rows kept} + \sum_{\text{reason}} \text{rows dropped}.$$
#
# By hand: five rows, of which one has an empty answer and one is a tie and has an empty answer too.

# %%
rows_in, dropped = 5, {"empty_turn": 2, "tie": 0}
print(f"{rows_in} in, {rows_in - sum(dropped.values())} kept, {dropped}: the first rule that fails takes the row")

# %% [markdown]
# ## The code
#
# Two native rows of the first source, and what its converter makes of them. (Real rows can hold offensive text: they are
# printed from the simulated world only.)

# %%
inputs = local_files(run)
root = inputs["root"].path if isinstance(inputs.get("root"), StageFolder) else inputs.get("root")
source = settings.preference_sources[0]
native = [row for _, row in zip(range(2), sources.native_rows(source, root), strict=False)]
for row_id, row in native:
    converted = sources.convert(source, row_id, row)[0]
    print(source.name, row_id, sorted(row), "->", len(converted.prompt), "turn(s) of context, chosen and rejected")
    if run.profile.world:
        print(json.dumps(row, ensure_ascii=False), "\n", converted, "\n")

# %% [markdown]
# A rule is a small function with its provenance in its docstring.

# %%
print(inspect.getsource(filters.contradicted_label))
print(inspect.getsource(filters.small_margin))
print("in this order:", ", ".join(filters.RULES))

# %% [markdown]
# Then, where a tokenizer counts, `too_long`; and the rules that remember earlier pairs: `duplicate_pair`,
# `swapped_duplicate` (the same pair with the opposite label) and `too_many_pairs` of one prompt.
#

# %% [markdown]
# A test question that was trained on measures memory. A training prompt goes when it opens like an evaluation prompt, or
# when the word n-grams that both share cover enough of the evaluation prompt. By hand, with n = 4 and one half: of the
# ten words of the question below, the third prompt repeats five in a row, the fourth three.

# %%
by_hand = HeldOut(settings.decontamination.model_copy(update={"ngram": 4, "min_overlap": 0.5}))
by_hand.add([("question", [{"role": "user", "content": "How many legs has a spider with one leg missing?"}])])
for text in ("how many legs has a spider with ONE leg missing?", "Say: how many legs has a spider with one leg missing",
             "How many legs has a beetle?", "Has a spider eyes?"):  # fmt: skip
    print(by_hand.reason("by hand", "example", "0", [{"role": "user", "content": text}]) or "kept", "|", text)
for match in by_hand.matches:
    print(f"{match.overlap:.0%} of the {match.evaluation_id}: {match.shared!r}")

# %% [markdown]
# ## The full run
#
# Convert, filter, split *by prompt* (so that no prompt crosses from training to test), take prompts of the evaluation set
# out of training, and mix. The same without a notebook: `python -m rlhflow_utils data --profile tiny`.

# %%
data = run.stage(
    "01_preference_data", build_preference_data, reads=("data", "model"), inputs={**inputs, **base_model(run)}
)

# %% [markdown]
# ## Results
#
# The funnel: every pair is kept, or dropped under one reason; what is kept is for testing or for training. A row with four
# scored answers gives six pairs; HelpSteer spreads a prompt over four rows, which are joined first and count as one.

# %%
funnel = data.read_json("funnel.json")
display(Markdown(tables.markdown_table(funnel_rows(funnel["pairs"]), caption=caption)))
for part in ("sft", "prompts", "evaluation_prompts", "nectar", "mixtures"):
    for name, row in funnel[part].items():
        print(f"{name}: {row['rows_in']:,} rows in, {row['rows_out']:,} kept, dropped {row['dropped'] or 0}")

# %%
plotting.funnel(funnel["pairs"], caption=caption)

# %% [markdown]
# Which training prompts repeated an evaluation prompt, and in which words? (The prompts of the simulated world come from
# few templates and share most of their words, so there a prompt counts as repeated only when it is repeated whole.)

# %%
matches = data.read_json("decontamination.json")
print(f"{len(matches)} training rows repeat an evaluation prompt")
for match in matches[:8]:
    print(f"{match['source']} {match['row_id']}: {match['reason']}, {match['overlap']:.0%} of {match['evaluation_id']}")
    print("   ", match["shared"][:100])

# %% [markdown]
# Table 1, the paper's line and ours for every source, and why they differ. (A source without a paper's line is not in
# that table.)

# %%
rows = data.read_json("table1.json")
origin = "world" if run.profile.world else "files" if root else "hub"
known = {name: facts.get("difference", "") for name, facts in load_facts()["sources"].items()}
lines = source_statistics.side_by_side(rows)
if origin == "world":
    simulated = {"completion": "simulated", "annotator": "simulated"}
    lines = [{**line, **simulated} if line[""] == "ours" else line for line in lines]
display(Markdown(tables.markdown_table(lines, caption=caption)))
print("\n".join(source_statistics.explain_table1(rows, origin, known)))

# %% [markdown]
# A reward model learns what chosen answers have in common, and length is the easiest thing to have in common. Lengths of
# the two sides, by source, in the main mixture:

# %%
mixtures = {name: load_from_disk(str(data.path / name)) for name in settings.mixtures}
lengths, whole = {}, {}
for name, pairs in mixtures.items():
    for row in pairs:
        sides = {side: len(row[side][-1]["content"]) for side in ("chosen", "rejected")}
        groups = [whole.setdefault(f"all of {name}", {"chosen": [], "rejected": []})]
        if name == settings.main_mixture:
            groups.append(lengths.setdefault(row["source"], {"chosen": [], "rejected": []}))
        for group in groups:
            for side, length in sides.items():
                group[side].append(length)
plotting.length_distributions(lengths, unit="characters", caption=caption)

# %% [markdown]
# Length and label: how often the chosen answer is the longer one. Far from 50 %, length alone predicts the label, because
# the annotator likes length, or because better answers happen to be longer or shorter here. Either way a reward model can
# learn the shortcut.

# %%
plotting.length_agreement({**lengths, **whole}, caption=caption)

# %% [markdown]
# mix1 and mix2 differ in what they know (reasoning, safety) and in what they like (length).

# %%
plotting.mixture_composition({name: row["sources"] for name, row in funnel["mixtures"].items()}, caption=caption)

# %% [markdown]
# A prompt map, in the manner of the paper's Fig. 7 (which maps the prompts for generation, embedded with
# nomic-embed-text-v1.5 on Nomic Atlas). Here the embedding is latent semantic analysis (TF-IDF, leading singular vectors),
# which needs no hub: prompts near each other share words. A source that lies alone differs in wording, not always in
# content: a template is enough.

# %%
plotting.prompt_map(data.read_json("prompt_map.json"), caption=caption)

# %% [markdown]
# ## Checks

# %%
for name, row in funnel["pairs"].items():
    assert row["rows_in"] == row["rows_out"] + sum(row["dropped"].values()), f"{name}: rows are lost"
test = {chat.prompt_key(row["prompt"]) for row in load_from_disk(str(data.path / "test"))}
held_out = {chat.prompt_key(row["prompt"]) for row in load_from_disk(str(data.path / "evaluation_prompts"))}
for name in settings.mixtures:
    training = {chat.prompt_key(row["prompt"]) for row in load_from_disk(str(data.path / name))}
    assert not training & test, "no prompt of the test pairs is in a mixture"
    assert not training & held_out, "no evaluation prompt is in a mixture"
prompts = {chat.prompt_key(row["prompt"]) for row in load_from_disk(str(data.path / "prompts"))}
assert not prompts & held_out, "no evaluation prompt is among the prompts for generation"
assert not {chat.prompt_key(row["messages"][:-1]) for row in load_from_disk(str(data.path / "sft"))} & held_out
print("all checks hold")

# %% [markdown]
# In the simulated world dirt was planted, row by row, and written down. The filters must find exactly that.

# %%
if run.profile.world:
    planted = Counter()
    for entry in json.loads((root / "planted_dirt.json").read_text(encoding="utf-8")):
        planted[entry["source"], entry["reason"]] += entry["pairs"]
    files = {source.name: Path(source.files[0]).stem for source in settings.preference_sources}
    found = {(files[name], reason): n for name, row in funnel["pairs"].items() for reason, n in row["dropped"].items() if n}
    assert found == {place: n for place, n in planted.items() if place[0] in files.values()}
    print(f"{sum(found.values())} pairs planted as dirt, and dropped for the reason they were planted for; no other was dropped")

# %% [markdown]
# ## Where we differ
#
# * Several of the authors' rules could not be established (PKU-SafeRLHF, UltraInteract, HelpSteer's 37,131 pairs): the simplest rule that
#   fits is reconstructed and marked so in its data card (`data_cards/`).
# * CodeUltraFeedback's ratings are strings, and the authors' card compares them as strings; here they are numbers.
# * The paper reports no held-out pairs and no split by prompt; both are added.
#
# ## Summary and exercises
#
# Every row is accounted for. mix2 adds safety and reasoning to what mix1 knows, and its labels lean less to length.
#
# 1. Set `data.filters.min_score_ratio` to 3.0. Which source shrinks, and by how much? The last check then stops the guide;
#    the funnel stands above it in the run folder's `notebooks/01_dataset_filtering.ipynb`. Why is it right to fail?
# 2. `01_preference_data/dropped.jsonl` in the run folder names the rows dropped as `contradicted_label`: `shp:215` is line
#    215, counted from 0, of `00_world/sources/shp.jsonl`. Look one up for two sources. Which field contradicted which?
# 3. Raise `world.preferences.dirt_rate` to 0.3. Which relation between the funnel's columns must still hold?
#
# **Next:** [02 · Supervised fine-tuning](02_supervised_finetuning.ipynb)

# %%
print(tables.run_line(run))
run.finish()
