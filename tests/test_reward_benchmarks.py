"""RewardBench 2 and RM-Bench: by hand, against the authors' own code, and as a stage and a command on tiny models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_models import WORDS, cut_off_copy, save_policy, save_reward_model

from rlhflow_utils.__main__ import main
from rlhflow_utils.data.reading import Candidate, Prompt, SourceError
from rlhflow_utils.data.sources import convert, read
from rlhflow_utils.evaluation import rewardbench as rb
from rlhflow_utils.guide.profile import Profile, load_profile
from rlhflow_utils.guide.settings import SourceSettings
from rlhflow_utils.guide.stage import read_json
from rlhflow_utils.models import forward

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "fixtures" / "reward_benchmarks.json").read_text(encoding="utf-8")
)
EVALUATION = load_profile("tiny", {"evaluation.bootstrap_samples": 100}).evaluation
USER = [{"role": "user", "content": "what is the colour of the sky"}]


# --- by hand ------------------------------------------------------------------------------------------------------


def test_the_right_answer_must_be_first_and_shares_a_first_place() -> None:
    assert rb.best_of_value([2.0, 1.0, 0.0, 1.0]) == 1
    assert rb.best_of_value([2.0, 2.0, 0.0, 1.0]) == 0.5
    assert rb.best_of_value([0.5] * 4) == 0.25
    assert rb.best_of_value([1.0, 2.0, 0.0, 0.0]) == 0


def test_ties_want_right_answers_near_each_other_and_far_from_wrong_ones() -> None:
    """Two right answers 1 apart; the gaps to the wrong ones decide. tanh(3 - 1) = 0.9640."""
    near = rb.ties_value(([9.0], [5.0, 1.0]), ([9.0, 8.0], [5.0, 0.0]))  # gaps 4 and 3, spread 1
    assert near == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.00964, abs=1e-5)
    # The reference's gap of 0.5 is right, but smaller than the spread: tanh(0.5 - 1) = -0.4621.
    assert rb.ties_value(([5.5], [5.0]), ([9.0, 8.0], [5.0])) == pytest.approx(0.3 + 0.3 + 0.2 - 0.004621, abs=1e-6)
    # A wrong answer above the worst right one: tanh(-1 - 1).
    assert rb.ties_value(([9.0], [5.0]), ([9.0, 8.0], [9.0])) == pytest.approx(0.3 - 0.00964, abs=1e-5)
    assert rb.ties_value(([1.0], [1.0]), ([1.0, 1.0], [1.0])) == 0.0  # all the same: 0 / 0
    assert rb.ties_value(([2.0], [1.0]), ([2.0, 2.0], [1.0])) == pytest.approx(1.01)  # a spread of 0


def test_levels_of_rm_bench_by_hand() -> None:
    """Right styles in rows, wrong styles in columns; safety pools its two parts."""
    follows_style = [1.0, 0, 0, 1, 1, 0, 1, 1, 0]  # easy 3/3, normal 2/3, hard 0/3
    never, always = [0.0] * 9, [1.0] * 9
    said = {"a": ("chat", follows_style), "b": ("chat", always), "c": ("safety", never), "d": ("safety", always),
            "e": ("safety", always)}  # fmt: skip
    found = rb.summarise_lists(_table({key: (*value, 3) for key, value in said.items()}), "rm_bench", EVALUATION, 0)
    values = {name: score["value"] for name, score in found["sections"].items()}
    assert values == pytest.approx({
        "chat": (5 / 9 + 1) / 2, "safety": 2 / 3, "overall": ((5 / 9 + 1) / 2 + 2 / 3) / 2,
        "easy": (1 + 2 / 3) / 2, "normal": ((2 / 3 + 1) / 2 + 2 / 3) / 2, "hard": (1 / 2 + 2 / 3) / 2,
    })  # fmt: skip
    assert found["missing_domains"] == ["code", "math"]
    assert found["sections"]["safety"]["n"] == 3


def _table(rows: dict[str, tuple[str, list[float], int]]) -> pd.DataFrame:
    """Row id -> domain, what the judge said, right answers."""
    parts = [list(part) for part in zip(*rows.values(), strict=True)]
    return pd.DataFrame({"row_id": list(rows), "domain": parts[0], "right": parts[2], "said": parts[1]})


# --- against the authors' code (benchmarks/reward_benchmarks_reference.py) ----------------------------------------


def test_rewardbench_2_equals_the_authors_code() -> None:
    assert [rb.best_of_value(scores) for scores in REFERENCE["four"]] == REFERENCE["best_of_four"]
    assert {0, 0.5, 1} <= set(REFERENCE["best_of_four"])
    rows = {row["id"]: ("Ties", row["scores"], row["num_correct"]) for row in REFERENCE["ties"]}
    rows |= {f"f{place}": ("Focus", scores, 1) for place, scores in enumerate(REFERENCE["four"])}
    found = rb.summarise_lists(_table(rows), "rewardbench_2", EVALUATION, 0)
    focus = sum(REFERENCE["best_of_four"]) / len(REFERENCE["four"])
    values = {name: score["value"] for name, score in found["sections"].items()}
    ties = REFERENCE["ties_score"]
    assert values == pytest.approx({"Ties": ties, "Focus": focus, "overall": (ties + focus) / 2}, abs=1e-12)
    assert (found["sections"]["Ties"]["n"], found["no_partner"]) == (30, 0)
    del rows["ref:3"]
    assert rb.summarise_lists(_table(rows), "rewardbench_2", EVALUATION, 0)["no_partner"] == 1


def test_rm_bench_equals_the_authors_code() -> None:
    rows = {
        str(place): (row["domain"].partition("-")[0],
                     [float(a > b) for a in row["score_chosen"] for b in row["score_rejected"]], 3)
        for place, row in enumerate(REFERENCE["styles"])
    }  # fmt: skip
    theirs = {name.removesuffix("_acc").replace("total_avg", "overall"): value
              for name, value in REFERENCE["accuracies"].items()}  # fmt: skip
    found = rb.summarise_lists(_table(rows), "rm_bench", EVALUATION, 0)
    assert {name: score["value"] for name, score in found["sections"].items()} == pytest.approx(theirs, abs=1e-12)


# --- judges that compare ------------------------------------------------------------------------------------------


def _prefers_longer(comparisons: Any) -> list[float | None]:
    """P(a) is 1, 0.5 or 0 by length; one text is too long for it."""
    return [None if "too long" in (a, b) else (len(a) > len(b)) / 2 + (len(a) >= len(b)) / 2 for _, a, b in comparisons]


def test_a_comparing_judge_holds_a_knock_out_and_in_ties_a_round_robin() -> None:
    rows = [
        Candidate("0", USER, ["long"], ["a", "bb", "ccc"], subset="Math"),
        Candidate("tied:1", USER, ["dddd", "eeee"], ["f", "gg"], subset="Ties"),
        Candidate("2", USER, ["same"], ["a", "bb", "SAME"], subset="Math"),  # a tied match is lost
        Candidate("3", USER, ["a"], ["too long", "bb", "ccc"], subset="Math"),
        Candidate("ref:1", USER, ["dddd"], ["too long", "gg"], subset="Ties"),
    ]
    won, ties, tied, *too_long = rb.rank_answers(rows, _prefers_longer)
    assert won == [1, 0, 0, 0]
    assert ties == [5 / 6, 5 / 6, 0, 1 / 3]
    assert tied == [0, 0, 0, 1]
    assert all(None in each for each in too_long)


# --- the stage and the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Profile]:
    """A folder with models of 192 positions and rows in the native schemas, one a benchmark too long; and a profile."""
    folder, words = tmp_path_factory.mktemp("world"), WORDS.split()
    save_policy(folder / "causal")
    save_reward_model(folder / "reward", folder / "causal")

    def texts(seed: int, count: int) -> list[str]:
        return [" ".join(words[(seed + 3 * place) % 11 :][: 2 + (seed + place) % 4]) for place in range(count)]

    four = [{"id": str(i), "subset": domain, "prompt": "what is red", "chosen": texts(i, 1),
             "rejected": texts(i + 5, 3)} for i, domain in enumerate(rb.DOMAINS["rewardbench_2"][:5] * 2)]  # fmt: skip
    ties = [{"id": f"{kind}:{i}", "subset": "Ties", "prompt": "name a colour", "rejected": texts(i + 2, 3),
             "chosen": texts(i, 1 if kind == "ref" else 2)} for i in range(3) for kind in ("ref", "tied")]  # fmt: skip
    styles = [{"id": i, "domain": domain, "prompt": "what is red", "chosen": texts(i, 3), "rejected": texts(i + 4, 3)}
              for i, domain in enumerate(("chat", "code", "math", "safety-refuse", "safety-response") * 2)]  # fmt: skip
    four.append({**four[0], "rejected": ["blue", "sky " * 200, "red"]})
    styles.append({**styles[0], "chosen": ["sky " * 200, "blue", "red"]})
    for name, rows in {"reward-bench-2/test.jsonl": [*four, *ties], "rm-bench/total_dataset.json": styles}.items():
        (folder / name).parent.mkdir()
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    small = {"evaluation.bootstrap_samples": 50, "reward_model.batch_tokens": 500, "preference_model.batch_tokens": 500}
    return folder, load_profile("slices", small)


@pytest.mark.parametrize("benchmark", ["rewardbench_2", "rm_bench"])
@pytest.mark.parametrize(("method", "model"), [("bt", "reward"), ("pm", "causal"), ("prompting", "causal")])
def test_every_kind_of_judge_meets_every_row_that_fits(
    world: tuple[Path, Profile], tmp_path: Path, benchmark: str, method: rb.Method, model: str
) -> None:
    folder, profile = world
    done = rb.run_benchmark(benchmark, folder / model, method, profile, folder, tmp_path / "out")
    rows = {"rewardbench_2": 17, "rm_bench": 11}[benchmark]
    dropped = {"too_long_for_model": 1, "no_partner": 0}
    assert done.rows["rows"] == {"rows_in": rows, "rows_out": rows - 1, "dropped": dropped}
    results = done.read_json("results.json")
    assert (results["benchmark"], results["method"], results["missing_domains"]) == (benchmark, method, [])
    lines = [json.loads(line) for line in (done.path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == rows - 1
    sections = {name: score["value"] for name, score in results["sections"].items()}
    assert set(sections) == {*rb.DOMAINS[benchmark], "overall", *(rb.LEVELS if benchmark == "rm_bench" else [])}
    domain = rb.DOMAINS[benchmark][0]
    said = [line["said"] for line in lines if line["domain"] == domain]
    value = rb.best_of_value if benchmark == "rewardbench_2" else lambda wins: sum(wins) / 9
    assert sections[domain] == pytest.approx(sum(map(value, said)) / len(said))
    assert done.metrics["overall"] == sections["overall"]


@pytest.mark.parametrize(
    ("benchmark", "method", "model", "rows"),
    [("rewardbench_2", "bt", "reward", 40), ("rewardbench_2", "pm", "causal", 10), ("rm_bench", "bt", "reward", 40),
     ("rm_bench", "pm", "causal", 60)],
)  # fmt: skip
def test_a_killed_benchmark_goes_on_from_its_finished_shards(
    world: tuple[Path, Profile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    benchmark: str, method: rb.Method, model: str, rows: int,
) -> None:  # fmt: skip
    folder, profile = world
    monkeypatch.setattr(forward, "ROWS_PER_SHARD", rows)  # answers, rows, answers and pairs: two shards of each
    whole = rb.run_benchmark(benchmark, folder / model, method, profile, folder, tmp_path / "whole" / "out")
    turned = cut_off_copy(whole, tmp_path / "cut")
    cut = rb.run_benchmark(benchmark, folder / model, method, profile, folder, tmp_path / "cut" / "out")
    first, second = (read_json(file) for file in sorted((cut.path / "shards").iterdir()))
    assert first == turned
    assert second == read_json(sorted((whole.path / "shards").iterdir())[1])


def test_rm_bench_is_read_from_files_of_one_domain(
    world: tuple[Path, Profile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As THU-KEG/RM-Bench has them: without `domain`, with other fields."""
    folder, profile = world
    rows = json.loads((folder / "rm-bench/total_dataset.json").read_text())
    for domain in ("chat", "code", "math", "safety-refuse", "safety-response"):
        some = [{name: value for name, value in row.items() if name != "domain"} | {"subset": "xstest"}
                for row in rows if row["domain"] == domain]  # fmt: skip
        (tmp_path / f"{domain}_filtered.json").write_text(json.dumps(some))
    whole = rb.run_benchmark("rm_bench", folder / "reward", "bt", profile, folder, tmp_path / "whole")
    wanted = whole.read_json("results.json")["sections"]
    arguments = ["rewardbench", "--profile", "slices", "--data-root", str(tmp_path), "--benchmark", "rm_bench"]
    arguments += ["--model", str(folder / "reward"), "--set", "evaluation.bootstrap_samples=50", "--out"]
    for files, domains in (("*_filtered.json", rb.DOMAINS["rm_bench"]), ("safety-refuse_filtered.json", ("safety",))):
        out = tmp_path / domains[0]
        source = f"rewardbench.rm_bench=[{{name: RM-Bench, schema: rm_bench, files: ['{files}']}}]"
        assert main([*arguments, str(out), "--set", source]) == 0
        found = json.loads((out / "results.json").read_text())
        assert set(found["sections"]) == {*domains, "overall", *rb.LEVELS}
        printed = capsys.readouterr().out
        assert ("no rows of chat, code, math: overall is the mean of the other domains" in printed) == (
            found["missing_domains"] == ["chat", "code", "math"]
        )
        if len(domains) == 4:
            values = {name: score["value"] for name, score in found["sections"].items()}
            assert values == pytest.approx({name: score["value"] for name, score in wanted.items()})
    (tmp_path / "other.json").write_text(json.dumps(some))
    assert main([*arguments, str(tmp_path / "other"), "--set", source.replace("safety-refuse_filtered", "other")]) == 1
    assert "row other:0: field 'domain' is missing" in capsys.readouterr().err


def test_the_numbers_are_those_of_each_answer_alone(world: tuple[Path, Profile], tmp_path: Path) -> None:
    from rlhflow_utils.models.preference_model import preference_probability
    from rlhflow_utils.models.reward_model import load_scorer

    folder, profile = world
    row = json.loads((folder / "rm-bench/total_dataset.json").read_text())[1]
    prompt = [{"role": "user", "content": row["prompt"]}]
    pairs = [(prompt, a, b) for a in row["chosen"] for b in row["rejected"]]
    for method, model in (("bt", "reward"), ("pm", "causal")):
        if method == "bt":
            scores = load_scorer(folder / model, 100)([(prompt, text) for text in row["chosen"] + row["rejected"]])
            wanted = [float(a > b) for a in scores[:3] for b in scores[3:]]  # type: ignore[operator]
        else:
            wanted = [float(p > 0.5) for p in preference_probability(folder / model, pairs, 100)]  # type: ignore[operator]
        done = rb.run_benchmark("rm_bench", folder / model, method, profile, folder, tmp_path / method)  # type: ignore[arg-type]
        lines = [json.loads(line) for line in (done.path / "rows.jsonl").read_text().splitlines()]
        assert lines[1]["said"] == wanted
        assert 0 < sum(sum(line["said"]) for line in lines) < 90


def test_the_command_prints_the_scores(
    world: tuple[Path, Profile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = world
    arguments = ["rewardbench", "--profile", "slices", "--data-root", str(folder), "--out", str(tmp_path / "out")]
    arguments += ["--model", str(folder / "reward"), "--set", "evaluation.bootstrap_samples=50"]
    assert main([*arguments, "--benchmark", "rm_bench"]) == 0
    printed = capsys.readouterr().out
    score = json.loads((tmp_path / "out" / "results.json").read_text())["sections"]["hard"]
    assert f"hard: {score['value']:.3f} ({score['ci_low']:.3f} … {score['ci_high']:.3f}), n = 10" in printed
    assert "'too_long_for_model': 1" in printed
    (folder / "llmbar").mkdir()
    rows = [{"input": "what is red", "output_1": "red", "output_2": "the sky", "label": 1}] * 3
    (folder / "llmbar/natural.json").write_text(json.dumps(rows))
    source = "rewardbench.sources=[{name: LLMBar, schema: llmbar, files: [llmbar/natural.json]}]"
    assert main([*arguments, "--benchmark", "rewardbench", "--set", source]) == 0
    assert "overall: " in capsys.readouterr().out
    assert main([*arguments[:1], "--profile", "tiny", *arguments[3:], "--benchmark", "rm_bench"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: rewardbench.rm_bench wants lists of answers in the domains chat, code, math, safety,"
    )
    assert "found no rows (profile llama3-8b has them)" in line


@pytest.mark.parametrize(
    ("schema", "change", "message"),
    [
        ("reward_bench_2", {"chosen": ["a", "b"]}, "'chosen' must be a list of 1 strings, found ['a', 'b']"),
        ("reward_bench_2", {"rejected": []}, "'rejected' must be a list of one or more strings, found []"),
        ("reward_bench_2", {"rejected": ["a", None]}, "'rejected' must be a list of one or more strings"),
        ("reward_bench_2", {"subset": "Ties"}, "'id' of a row of Ties must be ref:number or tied:number, found '1'"),
        ("rm_bench", {"chosen": ["a", "b"]}, "'chosen' must be a list of 3 strings, found ['a', 'b']"),
        ("rm_bench", {"domain": None}, "'domain' must be a str, found NoneType"),
    ],
)
def test_a_malformed_row_is_one_line(schema: str, change: dict[str, Any], message: str) -> None:
    good = {"id": "1", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math", "domain": "math"}
    good |= {"chosen": ["a", "b", "c"]} if schema == "rm_bench" else {}
    source = SourceSettings(name="S", schema=schema)
    assert convert(source, "f:0", good)
    with pytest.raises(SourceError, match=r"^source 'S', schema \w+, row f:0: field " + re.escape(message)):
        convert(source, "f:0", {**good, **change})


def test_rows_of_another_benchmark_are_refused(world: tuple[Path, Profile], tmp_path: Path) -> None:
    folder, profile = world
    for rows in (profile.rewardbench.rm_bench, [SourceSettings(name="S", schema="reward_bench", files=["v1.jsonl"])]):
        (folder / "v1.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "Math"}\n')
        settings = profile.rewardbench.model_copy(update={"rewardbench_2": rows})
        with pytest.raises(SourceError, match=r"rewardbench.rewardbench_2 wants lists of answers in the domains"):
            rb.run_benchmark(
                "rewardbench_2", folder / "reward", "bt", profile.model_copy(update={"rewardbench": settings}), folder,
                tmp_path / "out",
            )  # fmt: skip


def test_their_prompts_can_be_held_out(world: tuple[Path, Profile]) -> None:
    folder, profile = world
    [source] = profile.rewardbench.rm_bench
    assert {prompt.prompt[0]["content"] for prompt in read(source, folder, Prompt)} == {"what is red"}
