"""The README shows what `results/` holds, and nothing typed by hand."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rlhflow_utils.claims.tables import read_records
from rlhflow_utils.guide.publishing import README, block_of, readme_block
from rlhflow_utils.guide.stage import PROJECT, read_json
from rlhflow_utils.guide.tables import (
    BANDS,
    RESULTS,
    Formatted,
    cell,
    interval,
    iterations,
    machine_rows,
    markdown_table,
    policy_rows,
    with_interval,
)  # fmt: skip


def _shown(name: str) -> str:
    match = block_of(name).search(README.read_text(encoding="utf-8"))
    assert match is not None
    return match[2]


def test_readme_block_is_the_one_that_results_give() -> None:
    files = [json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.glob("*/summary.json")]
    [record] = [each for each in files if each["provenance"].get("judge") == "gold"]
    assert _shown("results") == readme_block(record)


def test_readme_shows_the_claims_that_results_hold() -> None:
    from rlhflow_utils.claims.run import claims_block, policies_block

    assert _shown("claims") == claims_block()
    assert _shown("policies") == policies_block()


def _estimate(key: str, value: float) -> dict[str, float]:
    return {key: value, f"{key}_ci_low": value - 0.1, f"{key}_ci_high": value + 0.1}


def _cells(lines: list[str]) -> dict[str, list[str]]:
    """The rows of Markdown tables, by their first cell."""
    split = [[part.strip() for part in line.split("|")[1:-1]] for line in lines if "|" in line]
    return {first: rest for first, *rest in split}


def test_the_block_by_hand() -> None:
    summary: dict[str, Any] = {
        **_estimate("sft_evaluation.gold_win_rate_vs_sft", 0.5),
        **_estimate("iter1_evaluation.gold_win_rate_vs_sft", 0.6),
        **_estimate("iter2_evaluation.gold_win_rate_vs_sft", 0.7),
        **_estimate("iter2_evaluation.accuracy", 0.62),
        "iter2_evaluation.mean_length": 16.8,
        "iter2_kl.kl": 0.312,
        **_estimate("iterative_dpo_exact_match.exact_match", 0.88),
        **_estimate("bt_mix2_test.accuracy", 0.8),
        **_estimate("rewardbench_bt.chat", 0.9),
        "wall_seconds.total": 630.0,
    }
    assert iterations(summary) == [1, 2]
    answers = [{"prompt": "2 + 2?", "SFT": "4 | four (0.500, 1.00)"}]
    record = {"summary": summary, "provenance": {"judge": "gold", "mixture": "mix2"}}
    record |= {"answers": answers, "changed_answers": 9, "seed": 4}
    lines = readme_block(record).splitlines()
    rows = _cells([*lines, *markdown_table(policy_rows(summary, "gold")).splitlines()])
    assert lines[0].startswith("One run, seed 4. 1 of the 9 held-out prompts")
    assert rows["iteration 1"] == ["–", "–", "–", "0.600 (0.500 … 0.700)", "–", "–", "–"]
    last = ["0.620 (0.520 … 0.720)", "–", "16.8", "0.700 (0.600 … 0.800)", "0.312", "0.880 (0.780 … 0.980)", "37.2"]
    assert rows["iteration 2"] == last, "the last iteration is the paper's iterative DPO"
    assert rows["SFT"][-1] == "10.2"
    assert rows["BT, mix2"][0] == "0.900 (0.800 … 1.00)"
    assert rows["BT, mix2"][5] == "0.800 (0.700 … 0.900)"
    assert rows["2 + 2?"] == ["4 &#124; four (0.500, 1.00)"], "a bar in an answer does not end its cell"
    assert lines[-1] == "The run took 10.5 minutes."


def test_the_papers_iterative_dpo_stands_beside_the_run_without_length_penalty() -> None:
    summary: dict[str, Any] = {"iter2_evaluation.mean_length": 16.8, "unpenalised2_evaluation.mean_length": 40.0}
    rows = _cells(markdown_table(policy_rows(summary, "gold")).splitlines())
    assert (rows["iteration 2"][-1], rows["iteration 2, no length penalty"][-1]) == ("41.9", "37.2")


def test_readme_shows_the_two_commands_and_links_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    first_screen = "\n".join(text.splitlines()[:20])
    assert "make guide" in first_screen
    assert "make test" in first_screen
    for target in [part.split(")")[0] for part in text.split("](")[1:]]:
        if not target.startswith("http"):
            assert (PROJECT / target).exists(), f"README links to {target}"


def test_markdown_table_by_hand() -> None:
    rows = [
        {"policy": "SFT", "rate": 0.5, "verdict": "–", "n": 1200},
        {"policy": "DPO", "rate": None, "verdict": "holds", "n": 3},
    ]
    head = "| policy | rate | verdict | n |\n| :--- | ---: | :--- | ---: |\n"
    assert markdown_table(rows, "note") == f"{head}| SFT | 0.500 | – | 1,200 |\n| DPO | – | holds | 3 |\n\n*note*"
    assert markdown_table([]) == "*no rows*"


def test_bars_and_line_breaks_do_not_break_a_table() -> None:
    name = "proxy, r − λ|a|"
    table = markdown_table([{name: "one\ntwo|three"}, {name: Formatted("**two**\u2028three")}])
    assert table == "| proxy, r − λ&#124;a&#124; |\n| :--- |\n| one two&#124;three |\n| **two** three |"


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.12345, "0.123"), (123.456, "123.5"), (True, "True"), (5, "5")]
)
def test_cells(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_the_spread_over_machines_stands_beside_the_band() -> None:
    runs = [{"name": name, "metrics": dict.fromkeys(BANDS, value)} for name, value in (("a", 0.5), ("b", 0.75))]
    first = machine_rows(runs)[0]
    assert first == {"metric": next(iter(BANDS)), "a": 0.5, "b": 0.75, "spread": pytest.approx(0.25), "band": 0.02}


def test_the_published_run_has_every_headline() -> None:
    published = json.loads((PROJECT / "results" / "tiny" / "summary.json").read_text(encoding="utf-8"))["summary"]
    assert set(BANDS) <= set(published)


def test_interval() -> None:
    assert interval({"ci_low": 0.1, "ci_high": 0.25}) == "0.100 … 0.250"
    assert interval(None) == with_interval({}) == "–"
    assert with_interval({"value": 0.5}) == "0.500"


def test_the_prose_of_readme_and_chapter_11_agrees_with_the_records() -> None:
    """The findings in words, built from the numbers of `results/`."""
    records = read_records()
    parts = {(name, part["comparison"]): part for name, record in records.items() for part in record["comparisons"]}

    def points(claim: str, comparison: str, key: str = "effect") -> str:
        return f"{100 * parts[claim, comparison][key]:.0f}".replace("-", "−")

    rate, right = "length-adjusted win rate, ", "right answers, "
    online, offline = f"{rate}iterative DPO − SFT", f"{rate}iterative − offline DPO"
    low, high = (points("e", f"without λ: {offline}", key) for key in ("ci_low", "ci_high"))
    worse = points("e", f"without λ: {offline}").removeprefix("−")
    readme, chapter = (" ".join(file.read_text(encoding="utf-8").replace("\n# ", "\n").split())
                       for file in (README, PROJECT / "notebooks" / "source" / "11_ablations.py"))  # fmt: skip
    assert f"beat SFT by {points('e', online)} points of length-adjusted win rate" in readme
    least, most = (points("e", offline, key) for key in ("ci_low", "ci_high"))
    assert f"offline DPO by {points('e', offline)} ({least} to {most})." in readme
    assert f"they end {worse} points below offline DPO ({low} to {high})" in readme
    assert f"beat SFT by {points('e', online)} points of length-adjusted win rate and " \
           f"{points('e', f'{right}iterative DPO − SFT')} points of right answers, and offline DPO by " \
           f"{points('e', offline)} and {points('e', f'{right}iterative − offline DPO')}." in chapter  # fmt: skip
    assert f"end {worse} points below it at equal lengths ({low} to {high})" in chapter
    assert f"by {points('g', f'{rate}with − without')} points of length-adjusted win rate" in chapter
    assert f"A knock-out loses {points('m', 'tournament − BT')[1:]} points" in chapter
    assert f"ordered by the same RM, by {points('j', 'best-worst − random')} points" in chapter
    assert f"by {points('q', 'right in reasoning, checker − RM')} points, and makes the whole worse" in chapter
    replay = [points("n", "replay − new only", key) for key in ("effect", "ci_low", "ci_high")]
    assert f"worse by {replay[0][1:]} points on average ({replay[1]} to +{replay[2]})" in chapter
    taxed = [value for value in parts["h", "without λ: iterative DPO − SFT"]["per_seed"].values() if value < 0]
    assert (len(taxed), round(-100 * max(taxed)), round(-100 * min(taxed))) == (5, 10, 90)
    assert "five of eight seeds lose 10 to 90 points" in chapter
    assert (
        f"the policy loses {points('f', f'without λ: {rate}iteration 3 − iteration 1').removeprefix('−')} points"
        in chapter
    )
    bounds = [points("p", "iterative − best-of-n", key) for key in ("ci_low", "ci_high")]
    assert f"{bounds[0]} to +{bounds[1]} points at equal lengths, and 0 to " in chapter
    most = points("p", "right answers, iterative − best-of-n", "ci_low").removeprefix("−")
    assert f"and 0 to {most} points of right answers in favour of best-of-8" in chapter
    assert 100 * parts["sizes", "all pairs − 0.125 of them"]["ci_high"] < 1.55
    assert "within 1.5 points of the full one" in chapter
    assert (
        max(
            abs(100 * parts["o", f"sigmoid − {loss}"][key])
            for loss in ("ipo", "hinge")
            for key in ("ci_low", "ci_high")
        )
        < 0.5
    )
    fixed, restart = parts["reference", "fixed − moving"], parts["i", "last iterate − restart"]
    assert f"costs {100 * fixed['ci_low']:.1f} to +{100 * fixed['ci_high']:.1f} points".replace("-", "−") in chapter
    assert f"gains {-100 * restart['ci_high']:.1f} to +{-100 * restart['ci_low']:.1f} (i)".replace("-", "−") in chapter
    assert f"offline DPO loses {-100 * parts['h', 'offline DPO − SFT']['effect']:.0f} on average" in chapter


def test_the_readme_s_minutes_and_cool_shares_are_the_published_run_s() -> None:
    readme = " ".join(README.read_text(encoding="utf-8").split())
    minutes = read_json(RESULTS / "tiny" / "summary.json")["summary"]["wall_seconds.total"] / 60
    assert f"then runs the guide: {minutes:.0f} minutes on two CPU cores" in readme
    [shown] = re.findall(
        r"At T = 0\.3:\* ([^*]*)\.", (PROJECT / "notebooks" / "10_policy_evaluation.ipynb").read_text()
    )
    shares = dict(re.findall(r"(\w[\w ]*?) (\d+) %", shown))
    assert f"SFT is right on {shares['SFT']} %, iterative DPO on {shares['iterative DPO']} %" in readme
