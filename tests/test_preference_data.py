"""Chapter 01's stage: planted dirt and real traps found exactly, splits that do not cross, counts that add up."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from rlhflow_utils.data.filters import opening_key
from rlhflow_utils.data.mixtures import (
    PARTITIONS,
    Funnel,
    Measuring,
    build_preference_data,
    filter_source,
    partition_of,
    subsample,
)
from rlhflow_utils.data.overview import PAPER_TABLE1, table1, word_lengths
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.settings import DataSettings, PartitionSettings
from rlhflow_utils.guide.stage import Sections, Stage
from rlhflow_utils.models.chat import prompt_key
from rlhflow_utils.simulator.world import write_world
from rlhflow_utils.training.base_model import train_tokenizer

SMALL_WORLD: dict[str, Any] = {
    "world.corpus": {"statements": 10, "questions": 10, "proofread": 10, "graded": 10, "comparisons": 10},
    "world.sft.demonstrations": 60, "world.sft.translations": 20, "world.sft.judgements": 10,
    "world.preferences.dirt_rate": 0.3, "world.prompts": 120, "world.eval_prompts": 80,
    "world.translation_tests": 10, "world.benchmark_rows": 10, "data.evaluation_prompts": 60,
    **{f"world.preferences.sources.{name}.rows": 60 for name in
       ("hh_rlhf", "shp", "helpsteer", "pku_safe_rlhf", "ultrafeedback", "ultrainteract", "code_ultrafeedback",
        "argilla_math", "orca", "capybara", "summarize", "nectar")},
}  # fmt: skip


def run_stage(profile: Any, out: Path, seed: int = 5, **inputs: Path) -> Stage:
    out.mkdir(parents=True, exist_ok=True)
    stage = Stage("01_preference_data", profile, inputs, out, seed)
    build_preference_data(stage)
    return stage


def sections(profile: Profile) -> Sections:
    return Sections(profile, ["data", "model"], "01_preference_data")


def read_json(stage: Stage, name: str) -> Any:
    return json.loads((stage.out / name).read_text(encoding="utf-8"))


def read_dropped(stage: Stage, flow: str = "pairs") -> list[dict[str, str]]:
    with (stage.out / "dropped.jsonl").open(encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if row["flow"] == flow]


def load(stage: Stage, name: str) -> Dataset:
    return load_from_disk(str(stage.out / name))


def openings(stage: Stage, *names: str) -> set[str]:
    rows = [row for name in names for row in load(stage, name)]
    return {opening_key(row["messages"] if "messages" in row else row["prompt"]) for row in rows}


# --- the simulated world ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Profile:
    return load_profile("tiny", SMALL_WORLD)


@pytest.fixture(scope="module")
def world(tiny: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert tiny.world is not None
    write_world(tiny.world, folder)
    return folder


@pytest.fixture(scope="module")
def built(tiny: Profile, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return run_stage(sections(tiny), tmp_path_factory.mktemp("data"), root=world)


def stems(settings: DataSettings) -> dict[str, str]:
    return {source.name: Path((source.files or [""])[0]).stem for source in settings.preference_sources}


def test_the_funnel_is_the_planted_dirt(tiny: Profile, world: Path, built: Stage) -> None:
    planted: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in json.loads((world / "planted_dirt.json").read_text(encoding="utf-8")):
        planted[entry["source"]][entry["reason"]] += entry["pairs"]
    funnel = read_json(built, "funnel.json")["pairs"]
    found = {stem: funnel[name]["dropped"] for name, stem in stems(tiny.data).items()}
    assert found == {stem: dict(planted[stem]) for stem in found}
    assert sum(len(reasons) for reasons in found.values()) > 60  # every source has several kinds of dirt


def test_every_dropped_row_is_a_planted_one(tiny: Profile, world: Path, built: Stage) -> None:
    entries = json.loads((world / "planted_dirt.json").read_text(encoding="utf-8"))
    planted = {(f"{entry['source']}:{entry['row']}", entry["reason"]) for entry in entries}
    assert {(row["row_id"].split("#")[0], row["reason"]) for row in read_dropped(built)} == planted


def test_standard_rows(built: Stage) -> None:
    for name in ("mix1", "mix2", "test", "nectar"):
        rows = load(built, name)
        assert set(rows.column_names) == {
            "prompt", "chosen", "rejected", "chosen_score", "rejected_score", "source", "row_id"
        }  # fmt: skip
        assert len(rows) > 0
        for row in rows:
            assert row["prompt"][-1]["role"] == "user"
            assert [turn["role"] for turn in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
            assert row["chosen"] != row["rejected"]
    assert Counter(load(built, "nectar")["source"]) == {"Nectar": 60}  # one pair a prompt


def test_mixtures_hold_their_sources_and_nothing_else(tiny: Profile, built: Stage) -> None:
    for mixture, members in tiny.data.mixtures.items():
        assert set(load(built, mixture)["source"]) == set(members)
    assert {"Summarization"} == set(load(built, "mix1")["source"]) - set(load(built, "mix2")["source"])


def test_no_prompt_crosses(built: Stage) -> None:
    assert not openings(built, "mix1", "mix2") & openings(built, "test")
    assert not openings(built, "mix1", "mix2", "sft", "prompts", "nectar") & openings(built, "evaluation_prompts")
    ids = load(built, "prompts")["prompt_id"]
    assert len(set(ids)) == len(ids) == 120
    assert all(prompt_key(row["prompt"]) == row["prompt_id"] for row in load(built, "prompts"))
    assert len(load(built, "evaluation_prompts")) == 60


def test_rows_are_accounted_for_from_file_to_folder(built: Stage) -> None:
    funnel = read_json(built, "funnel.json")
    for source, row in funnel["pairs"].items():
        account = built.rows[f"pairs {source}"]
        assert account["rows_in"] == row["rows_in"] == row["rows_out"] + sum(row["dropped"].values())
        assert row["rows_out"] == sum(row["partitions"].values())
    listed = Counter((row["source"], row["reason"]) for row in read_dropped(built))
    assert listed == {(s, reason): n for s, row in funnel["pairs"].items() for reason, n in row["dropped"].items()}
    assert len(load(built, "test")) == built.metrics["01.pairs.test"]
    assert len(load(built, "mix2")) == built.metrics["01.mix2.pairs"] == funnel["mixtures"]["mix2"]["rows_out"]
    assert len(load(built, "sft")) == built.metrics["01.sft.rows_out"]
    assert not (built.out / "work").exists()
    assert not (built.out / "judge").exists()  # its share is 0


def test_length_agreement_of_a_mixture(built: Stage) -> None:
    rows = load(built, "mix1")
    longer = [len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows]
    assert built.metrics["01.mix1.length_agreement"] == pytest.approx(sum(longer) / len(longer), abs=1e-4)


def test_the_same_seed_gives_the_same_rows_and_another_seed_the_same_splits(
    tiny: Profile, world: Path, built: Stage, tmp_path: Path
) -> None:
    again = run_stage(sections(tiny), tmp_path / "again", root=world)
    other = run_stage(sections(tiny), tmp_path / "other", seed=6, root=world)
    for name in ("mix1", "test", "evaluation_prompts", "nectar", "sft"):
        assert load(again, name).to_list() == load(built, name).to_list()
    assert load(other, "test").to_list() == load(built, "test").to_list()
    assert load(other, "evaluation_prompts")["prompt_id"] != load(built, "evaluation_prompts")["prompt_id"]


def test_a_killed_stage_starts_anew(tiny: Profile, world: Path, built: Stage, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "pairs-0.arrow").write_bytes(b"half a file")
    (tmp_path / "mix1").mkdir()
    (tmp_path / "mix1" / "data-00003-of-00009.arrow").write_bytes(b"stale")
    again = run_stage(sections(tiny), tmp_path, root=world)
    assert load(again, "mix1").to_list() == load(built, "mix1").to_list()
    assert not (tmp_path / "mix1" / "data-00003-of-00009.arrow").exists()


def test_workers_change_nothing(tiny: Profile, world: Path, tmp_path: Path) -> None:
    source = tiny.data.preference_sources[4]
    results = []
    for workers in (1, 2):
        funnel = Funnel()
        pairs = filter_source(
            source, world, tiny.data.filters, Measuring(None), tmp_path / f"{workers}.arrow", funnel, workers
        )
        results.append((pairs.load().to_list(), funnel, pairs.lengths, pairs.examples))
    assert results[0] == results[1]


def test_long_pairs_are_dropped_by_the_base_models_tokenizer(tiny: Profile, world: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["What is the pet of Zorn?"] * 10, vocab_size=270)
    tokenizer.save_pretrained(tmp_path / "base" / "model")
    short = load_profile("tiny", {**SMALL_WORLD, "data.filters.max_tokens": 60})
    stage = run_stage(sections(short), tmp_path / "out", root=world, base=tmp_path / "base")
    assert {row["unit"] for row in read_json(stage, "table1.json")} == {"tokens"}

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    kept = load(stage, "mix1")
    for row in kept:
        prompt = tokens("\n".join(turn["content"] for turn in row["prompt"]))
        assert prompt + max(tokens(row[side][0]["content"]) for side in ("chosen", "rejected")) <= 60
    dropped = Counter(row["reason"] for row in read_dropped(stage))
    assert dropped["too_long"] > 0
    assert len(kept) > 0


# --- small sources written by hand --------------------------------------------------------------------------------


def written(folder: Path, name: str, schema: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"name": name, "schema": schema, "hub_id": None, "hub_config": None, "revision": None, "split": None,
            "files": [f"{name}.jsonl"]}  # fmt: skip


def data_settings(folder: Path, pairs: list[dict[str, Any]], **changes: Any) -> Any:
    content = {
        "root": str(folder), "preference_sources": [written(folder, "pairs", "rlhflow_standard", pairs)],
        "sft_sources": [], "prompt_sources": [], "evaluation_prompt_sources": [], "offline_source": None,
        "mixtures": {"mix": ["pairs"]}, "max_pairs_per_mixture": None, "main_mixture": "mix",
        "filters": {"min_score_margin": {}, "min_score_ratio": 2.0, "kwise_pairs": {}, "max_pairs_per_prompt": {},
                    "min_response_characters": 1, "max_tokens": 100},
        "partition": {"test": 0.0, "sft": 0.0, "prompts": 0.0, "judge": 0.0}, "evaluation_prompts": 2, "workers": 1,
        "decontamination": {"ngram": 6, "min_overlap": 0.5, "sources": []},
        **changes,
    }  # fmt: skip
    data = DataSettings.model_validate(content)
    return sections(load_profile("tiny").model_copy(update={"data": data}))


def standard(*prompt: str, chosen: str = "good", rejected: str = "poor") -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(prompt)]
    answers = [[*turns, {"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"chosen": answers[0], "rejected": answers[1], "chosen_score": None, "rejected_score": None}


def test_evaluation_prompts_leave_everything_that_trains(tmp_path: Path) -> None:
    pairs = [standard("held out"), standard("Held  OUT", "yes", "go on"), standard("free")]
    reply = {"role": "assistant", "content": "a"}
    sft = [{"messages": [{"role": "user", "content": text}, reply]} for text in ("held out", "free")]
    prompts = [{"instruction": text} for text in ("held out", "free", "free", "", "other")]
    profile = data_settings(
        tmp_path, pairs, sft_sources=[written(tmp_path, "sft", "sft_messages", sft)],
        prompt_sources=[written(tmp_path, "prompts", "instructions", prompts)],
        evaluation_prompt_sources=[written(tmp_path, "held", "instructions", [{"instruction": "held out"}])],
    )  # fmt: skip
    stage = run_stage(profile, tmp_path / "out")
    assert load(stage, "mix")["row_id"] == ["pairs:2"]
    assert load(stage, "sft")["row_id"] == ["sft:1"]
    assert [row["prompt"][0]["content"] for row in load(stage, "prompts")] == ["free", "other"]
    funnel = read_json(stage, "funnel.json")
    assert funnel["pairs"]["pairs"]["dropped"] == {"evaluation_overlap": 2}
    assert funnel["sft"]["sft"]["dropped"] == {"evaluation_overlap": 1}
    assert funnel["prompts"]["prompts"]["dropped"] == {"evaluation_overlap": 1, "repeated_prompt": 1, "empty_turn": 1}


def test_partitions_feed_sft_and_prompts_and_evaluation_is_split_off(tmp_path: Path) -> None:
    pairs = [standard(f"question {i}", chosen=f"a{i % 2}") for i in range(400)]
    pairs += [standard(f"question {i}", chosen=f"a{i % 2}", rejected="other") for i in range(400)]
    shares = {"test": 0.2, "sft": 0.2, "prompts": 0.2, "judge": 0.2}
    stage = run_stage(data_settings(tmp_path, pairs, partition=shares, evaluation_prompts=20), tmp_path / "out")
    names = ["mix", "test", "judge", "sft", "prompts", "evaluation_prompts"]
    sets = {name: openings(stage, name) for name in names}
    assert sum(len(held) for held in sets.values()) == len(set().union(*sets.values())) == 400
    assert len(sets["evaluation_prompts"]) == 20 == len(load(stage, "evaluation_prompts"))
    funnel = read_json(stage, "funnel.json")
    places = funnel["pairs"]["pairs"]["partitions"]
    assert sum(places.values()) == 800
    assert all(100 < n < 220 for n in places.values())
    assert funnel["sft"]["pairs"]["dropped"] == {"repeated_answer": places["sft"] // 2}
    lost = funnel["prompts"]["pairs"]["dropped"]
    assert lost == {"repeated_prompt": places["prompts"] // 2, "used_for_evaluation": 20}
    row = load(stage, "sft")[0]
    assert row["messages"][-1]["content"] == f"a{int(row['messages'][0]['content'].split()[1]) % 2}"


def test_mixture_subsample_is_seeded_and_counted(tmp_path: Path) -> None:
    pairs = [standard(f"question {i}") for i in range(50)]
    prompts = [written(tmp_path, "prompts", "instructions", [{"instruction": str(i)} for i in range(5)])]
    profile = data_settings(tmp_path, pairs, max_pairs_per_mixture=20, prompt_sources=prompts)
    first, again, other = (run_stage(profile, tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2)))
    assert len(load(first, "mix")) == 20
    assert load(first, "mix")["row_id"] == load(again, "mix")["row_id"] != load(other, "mix")["row_id"]
    assert first.rows["mixture mix"] == {"rows_in": 50, "rows_out": 20, "dropped": {"subsample": 30}}


def test_nothing_left_is_an_error_that_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts is empty.*data\.partition\.prompts"):
        run_stage(data_settings(tmp_path, [standard("a")]), tmp_path / "no prompts")
    prompts = [written(tmp_path, "prompts", "instructions", [{"instruction": str(i)} for i in range(5)])]
    with pytest.raises(ValueError, match="mixture 'mix' is empty"):
        run_stage(
            data_settings(tmp_path, [standard("a", chosen="poor")], prompt_sources=prompts), tmp_path / "no pairs"
        )


def test_subsample_keeps_order_within_each_source() -> None:
    drawn = subsample({"a": list(range(100)), "b": list(range(50))}, 60, seed=1)
    assert sum(map(len, drawn.values())) == 60
    assert all(held == sorted(set(held)) for held in drawn.values())
    assert 25 < len(drawn["a"]) < 55


def test_partition_shares() -> None:
    shares = PartitionSettings(test=0.1, sft=0.2, prompts=0.3, judge=0.0)
    counts = Counter(partition_of(prompt_key([{"role": "user", "content": str(i)}]), shares) for i in range(20000))
    assert set(counts) <= set(PARTITIONS)
    assert counts["judge"] == 0
    for name, share in (("test", 0.1), ("sft", 0.2), ("prompts", 0.3), ("train", 0.4)):
        assert counts[name] / 20000 == pytest.approx(share, abs=0.015)
    assert partition_of("0" * 16, shares) == "test"
    assert partition_of("f" * 16, shares) == "train"


# --- Table 1 ------------------------------------------------------------------------------------------------------


def test_table1_by_hand() -> None:
    def row(source: str, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
        turns = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        question = [{"role": "user", "content": prompt}]
        return {"prompt": question, "chosen": turns[0], "rejected": turns[1], "source": source}

    rows = [row("SHP", "one two", "a b c", "d"), row("SHP", "One  two", "a", "b c d e"), row("Own", "x", "aa", "bb")]
    shp, own = table1(rows, word_lengths, "words")
    assert shp["paper"]["pairs"] == 93301
    assert shp["paper"]["chosen_length"] == 173.6
    del shp["paper"]
    assert shp == {
        "source": "SHP", "unit": "words", "prompts": 1, "prompt_length": 2.0, "chosen_length": 2.0,
        "rejected_length": 2.5, "completion": "Human", "annotator": "Human", "pairs": 2, "length_agreement": 0.5,
        "tokenizer": None,
    }  # fmt: skip
    assert own["paper"] is None
    assert own["length_agreement"] == 0.0
    assert own["annotator"] is None


def test_papers_table1_adds_up_to_mix2() -> None:
    assert sum(row[6] for row in PAPER_TABLE1.values()) == 848_965


# --- real rows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slices(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    profile = load_profile("slices")
    return run_stage(sections(profile), tmp_path_factory.mktemp("slices"), root=data_root)


def dropped_rows(stage: Stage, source: str, reason: str) -> set[int]:
    """Indices in the source's first file (of UltraFeedback: the training file)."""
    ids = [row["row_id"] for row in read_dropped(stage) if (row["source"], row["reason"]) == (source, reason)]
    return {int(re.split("[:#]", i)[1]) for i in ids if not i.startswith("eval_clean")}


TRAPS: list[tuple[str, str, set[int]]] = [
    ("HH-RLHF", "empty_turn", {86, 516, 925, 1103}),
    ("HH-RLHF", "broken_alternation", {667, 763, 1319, 1849, 1254, 1688, 1952, 2036, 1950}),  # also unequal contexts
    ("HH-RLHF", "role_tag_in_turn", {29, 105, 140, 146}),
    ("UltraFeedback", "identical_responses", {306, 655, 910, 997}),
    ("UltraFeedback", "tie", {2, 5, 15, 22}),
    ("UltraFeedback", "empty_turn", {478, 833}),
    ("UltraFeedback", "zero_width", {33}),
    ("UltraFeedback", "role_tag_in_turn", {105, 460, 808, 849, 963}),
    ("UltraFeedback", "meaningless", {147}),
    ("LLaMA-Factory", "duplicate_pair", {157, 248, 230, 186, 275}),
    ("PandaLM", "non_string_content", {157, 158, 159, 164, 161, 162}),
    ("PandaLM", "empty_turn", {18, 19, 25, 301, 303, 305}),
    ("PandaLM", "tie", {91, 93, 94}),
    ("PandaLM", "duplicate_pair", {2, 3, 70, 72, 84, 580}),  # straight, with sides exchanged, with other votes
]


@pytest.mark.parametrize(("source", "reason", "rows"), TRAPS)
def test_indexed_traps_of_the_real_rows(slices: Stage, source: str, reason: str, rows: set[int]) -> None:
    assert rows <= dropped_rows(slices, source, reason)


def test_real_rows_dropped_by_count(slices: Stage) -> None:
    funnel = read_json(slices, "funnel.json")["pairs"]
    assert dropped_rows(slices, "HH-RLHF", "empty_turn") == {86, 516, 925, 1103}
    assert funnel["UltraFeedback"]["dropped"]["identical_responses"] == 5
    assert funnel["LLaMA-Factory"]["dropped"] == {"duplicate_pair": 5}
    assert funnel["PandaLM"]["dropped"]["non_string_content"] == 6
    assert funnel["PandaLM"]["dropped"]["empty_turn"] == 54
    assert funnel["FineGrainedRLHF"]["rows_in"] == 3000
    assert funnel["FineGrainedRLHF"]["dropped"]["tie"] == 384


def test_what_looks_odd_but_is_sound_stays(slices: Stage) -> None:
    gone = {(row["source"], row["row_id"]) for row in read_dropped(slices)}
    for row in (11, 198, 281, 286, 13, 28, 84, 111, 117):  # "yes", "Four", "63", a form feed; firsts of duplicates
        assert ("LLaMA-Factory", f"dpo_en_demo:{row}") not in gone
    assert ("UltraFeedback", "train_clean:24") not in gone  # "No" is an answer
    assert ("HH-RLHF", "harmless-base.test:863") not in gone  # 18 human turns


def test_real_prompts_do_not_cross(slices: Stage) -> None:
    names = ["mix2", "test", "judge", "sft", "prompts", "evaluation_prompts"]
    sets = [openings(slices, name) for name in names]
    kto = {opening_key(row["messages"]) for row in load(slices, "sft") if row["source"] == "LLaMA-Factory KTO"}
    sets[3] -= kto  # a source of its own, whose prompts the partition does not govern
    assert sum(map(len, sets)) == len(set().union(*sets))
    ids = {name: {(row["source"], row["row_id"]) for row in load(slices, name)} for name in ("mix2", "test", "judge")}
    for twins in ((250, 1483), (1262, 1452)):  # one prompt, two pairs: both in one split, or both elsewhere
        rows = {("HH-RLHF", f"harmless-base.test:{i}") for i in twins}
        assert all(rows <= held or not rows & held for held in ids.values())
