"""The academic suite: answers extracted as recorded, rows as published, a smoke run through lm-eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import WORDS

from rlhflow_utils.__main__ import main
from rlhflow_utils.evaluation import academic
from rlhflow_utils.evaluation import academic as academic_tasks
from rlhflow_utils.training.base_model import build_model, train_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained causal LM with room for 25 shots."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([WORDS] * 4, vocab_size=320)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2}
    build_model(**sizes, max_position_embeddings=4096, tokenizer=tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_extracted_answers_agree_with_the_recorded_verdicts(data_root: Path) -> None:
    """All 1319 rows for all four models; accuracies as recorded."""
    lines = (data_root / "gsm8k/example_model_solutions.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    assert len(rows) == 1319
    accuracies = {}
    for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        right = [academic_tasks.score_gsm8k({"answer": r["ground_truth"]}, [r[name]["solution"]])["acc"] for r in rows]
        assert [value == 1.0 for value in right] == [r[name]["is_correct"] for r in rows]
        accuracies[name] = round(100 * sum(right) / len(right), 2)
    assert list(accuracies.values()) == [21.68, 39.04, 34.72, 56.25]
    test = [json.loads(line) for line in (data_root / "gsm8k/test.jsonl").read_text().split("\n") if line]
    gold = [academic_tasks.extract_gsm8k(row["answer"]) for row in test]
    assert gold == [academic_tasks.extract_gsm8k(row["ground_truth"]) for row in rows]
    assert (gold[146], gold[201]) == ("2125", "114200")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so 9 * 2 = <<9*2=18>>18\n#### 18", "18"),
        ("text\nA: $1,234.50", "1234.50"),
        ("#### 5\nQuestion asked again? #### 6", "6"),
        ("It costs $3 and then 1,250 dollars.", "1250"),
        ("#### -4.", "-4"),
        ("no number", None),
        ("####", None),
        ("", None),
    ],
)
def test_extract_gsm8k(solution: str, answer: str | None) -> None:
    assert academic_tasks.extract_gsm8k(solution) == answer
    assert academic_tasks.score_gsm8k({"answer": "#### 18"}, [solution]) == {"acc": float(answer == "18")}


def test_truthfulqa_is_a_share_of_probability() -> None:
    row = academic_tasks._truthfulqa_row(
        {"Question": "q", "Best Answer": "a", "Correct Answers": "a; b;", "Incorrect Answers": "b; c; c"}
    )
    assert row["mc2_targets"] == {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}
    # exp(-1000), twice that and the same again: 3 of 4, with no underflow.
    results = [(-1000.0, False), (-1000.0 + 0.6931471805599453, False), (-1000.0, False)]
    assert academic_tasks.score_truthfulqa(row, results)["acc"] == pytest.approx(0.75)


def test_local_rows_have_the_sets_sizes(data_root: Path) -> None:
    configs, absent = academic_tasks.task_configs(data_root)
    sizes = {c["task"]: len(c["custom_dataset"]()[c["test_split"]]) for c in configs}
    mmlu = {name: size for name, size in sizes.items() if name.startswith("mmlu_")}
    assert (len(mmlu), sum(mmlu.values()), mmlu["mmlu_high_school_european_history"]) == (11, 1699, 165)
    others = {name: size for name, size in sizes.items() if name not in mmlu}
    assert others == {"gsm8k": 1319, "humaneval": 164, "truthfulqa": 817, "mbpp": 500}
    assert list(absent) == ["arc"]
    shots = {c["task"]: c["num_fewshot"] for c in configs}
    assert (shots["gsm8k"], shots["mmlu_anatomy"], shots["humaneval"], shots["truthfulqa"], shots["mbpp"]) == (
        8,
        5,
        0,
        0,
        0,
    )


def test_arc_is_configured_with_25_shots(tmp_path: Path) -> None:
    """From the hub, or from a local copy in the hub's schema."""
    pytest.importorskip("lm_eval")
    [hub], absent = academic_tasks.task_configs(None, ["arc"])
    assert (hub["dataset_path"], hub["dataset_name"], hub["num_fewshot"]) == ("allenai/ai2_arc", "ARC-Challenge", 25)
    assert absent == {}
    rows = [
        {"question": f"q{i}", "choices": {"label": ["A", "B"], "text": ["no", "yes"]}, "answerKey": "B"}
        for i in range(30)
    ]
    (tmp_path / "arc").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"arc/ARC-Challenge-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from lm_eval.api.task import ConfigurableTask

    [local], _ = academic_tasks.task_configs(tmp_path, ["arc"])
    task = ConfigurableTask(config=local)
    context = task.fewshot_context(task.test_docs()[29], 25)
    assert context.count("Answer: yes") == 25
    assert context.endswith("Question: q29\nAnswer:")


@pytest.mark.slow
def test_one_command_runs_the_whole_suite(model: Path, data_root: Path, tmp_path: Path) -> None:
    """A smoke run offline: every task with local files gives a score, ARC is named as absent."""
    pytest.importorskip("lm_eval")
    out = tmp_path / "academic.json"
    arguments = ["academic", "--profile", "slices", "--model", str(model), "--data-root", str(data_root)]
    assert main([*arguments, "--limit", "1", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert {name: task["n"] for name, task in results["tasks"].items()} == {
        "gsm8k": 1, "mmlu": 11, "humaneval": 1, "truthfulqa": 1, "mbpp": 1,
    }  # fmt: skip
    assert list(results["absent"]) == ["arc"]
    assert results["limit"] == 1
    assert all(0 <= t["ci_low"] <= t["value"] <= t["ci_high"] <= 1 for t in results["tasks"].values())
    assert results["tasks"]["humaneval"]["value"] == 0.0  # an untrained model writes no programs


def test_reference_code_passes_through_the_scorers(data_root: Path) -> None:
    configs, _ = academic_tasks.task_configs(data_root, ["humaneval", "mbpp"])
    rows = {c["task"]: c["custom_dataset"]()["test"] for c in configs}
    humaneval, mbpp = rows["humaneval"][0], [row for row in rows["mbpp"] if row["task_id"] in (11, 367)]
    assert academic_tasks.score_humaneval(humaneval, [humaneval["canonical_solution"]]) == {"pass@1": 1.0}
    assert academic_tasks.score_humaneval(humaneval, ["    return None"]) == {"pass@1": 0.0}
    assert [academic_tasks.score_mbpp(row, [row["code"]])["pass@1"] for row in mbpp] == [1.0, 1.0]


def test_scores_of_subjects_are_put_together() -> None:
    samples = {"mmlu_a": [{"acc": 1.0}], "mmlu_b": [{"acc": 0.0}] * 3, "arc": [{"acc": 0.0, "acc_norm": 1.0}]}
    assert academic.scores_by_task(samples) == {"mmlu": [1.0, 0.0, 0.0, 0.0], "arc": [1.0]}


def test_a_folder_without_the_sets_is_one_clear_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    arguments = ["academic", "--profile", "slices", "--model", str(model), "--data-root", str(tmp_path)]
    assert main([*arguments, "--out", str(tmp_path / "o.json")]) == 1
    assert "set DATA_ROOT to a folder that has them" in capsys.readouterr().err
