"""The academic suite: lm-eval's own tasks on local files, scored as recorded; a smoke run through the command."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import WORDS

from rlhflow_utils.__main__ import main
from rlhflow_utils.data.reading import SourceError
from rlhflow_utils.evaluation import academic
from rlhflow_utils.training.pretraining import build_model, train_tokenizer

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained causal LM with room for 25 shots."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([WORDS] * 4, vocab_size=320)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2}
    build_model(**sizes, max_position_embeddings=4096, tokenizer=tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _task(name: str, root: Path) -> Any:
    """lm-eval's task as the suite runs it."""
    from lm_eval.api.task import ConfigurableTask

    [config], absent = academic.task_configs(root, [name])
    assert absent == {}
    return ConfigurableTask(config=config)


def _scores(task: Any, docs: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """What lm-eval makes of one response per row: its filters, then its metric."""
    from lm_eval.api.instance import Instance

    task._instances = [Instance("generate_until", doc, (), index) for index, doc in enumerate(docs)]
    for instance, response in zip(task._instances, responses, strict=True):
        instance.resps = [response]
    task.apply_filters()
    samples = [
        {"filter": name, **task.process_results(doc, [instance.filtered_resps[name]])}
        for doc, instance in zip(docs, task._instances, strict=True)
        for name in instance.filtered_resps
    ]
    return academic.scores_by_task({task.config.task: samples})[task.config.task]


def test_gsm8k_agrees_with_the_recorded_verdicts(data_root: Path) -> None:
    """All 1319 rows for all four models, with the set's `####` for the recording's `A:`; accuracies as recorded."""
    lines = (data_root / "gsm8k/example_model_solutions.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    task = _task("gsm8k", data_root)
    docs = list(task.test_docs())
    assert len(rows) == len(docs) == 1319
    accuracies = {}
    for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
        right = _scores(task, docs, [row[name]["solution"].replace("\nA: ", "\n#### ") for row in rows])
        assert [value == 1.0 for value in right] == [row[name]["is_correct"] for row in rows]
        accuracies[name] = round(100 * sum(right) / len(right), 2)
    assert list(accuracies.values()) == [21.68, 39.04, 34.72, 56.25]


GSM8K = [
    ("so #### 18", 1), ("so #### 18 apples", 1), ("so #### 18%", 1), ("#### 18\nA: 3", 1), ("#### 18.", 1),
    ("#### 18\n\nProblem: next\n#### 7", 1), ("#### 7\n\nProblem: next\n#### 18", 0), ("#### 17 apples", 0),
    ("no number", 0), ("$18", 0), ("A: 18", 0), ("####18", 0), ("#### $18", 0), ("#### -18", 0), ("#### 1,8", 1),
    ("#### **18**", 0), ("#### 18.00", 0), ("####  18", 0), ("#### eighteen #### 18", 1), ("", 0),
]  # fmt: skip


def _strict_match(completion: str, gold: str) -> float:
    """lm-eval's strict filter and exact match, written again without it or regular expressions."""
    number = ""
    for start in range(len(completion)):
        rest = completion[start:].removeprefix("#### ")
        if completion.startswith("#### ", start) and not number:
            sign = "-" if rest.startswith("-") else ""
            digits = ""
            for character in rest.removeprefix("-"):
                if character not in "0123456789.,":
                    break
                digits += character
            number = sign + digits if digits else ""
    return float(number.replace(",", "").removesuffix(".") == gold)


def test_gsm8k_takes_what_follows_the_first_mark(data_root: Path) -> None:
    """By hand, and 200 random completions against the rule written again."""
    task = _task("gsm8k", data_root)
    doc = {"question": "q", "answer": "16 - 3 + 5 = 18\n#### 18"}
    assert _scores(task, [doc] * len(GSM8K), [text for text, _ in GSM8K]) == [right for _, right in GSM8K]
    rng, pieces = (
        random.Random(0),
        ["#### ", "####", "18", "1,8", "7", "-", "$", "%", ".", ",", " ", "\n", "apples", "A: "],
    )
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 9))) for _ in range(200)]
    texts += [f"#### {text}" for text in texts]
    expected = [_strict_match(text, "18") for text in texts]
    assert 20 < sum(expected) < 300
    assert _scores(task, [doc] * len(texts), texts) == expected
    assert [_strict_match(text, "18") for text, _ in GSM8K] == [right for _, right in GSM8K]


@pytest.mark.parametrize(
    ("name", "file", "content", "problem"),
    [
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            '{"question": "q", "answer": null}',
            "row 1 .*'answer' must be a str, found NoneType",
        ),
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            '{"question": ["q"], "answer": "#### 1"}',
            "row 1 .*'question' must be a str, found list",
        ),
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "q"}', "row 1 .*'answer' is missing"),
        ("mmlu", "mmlu/anatomy_test.csv", "q,1,2,3,4,A\nq,1,2,3,4,E\n", "row 2 .*'answer' must be one of .*'E'"),
        ("mmlu", "mmlu/anatomy_test.csv", "q,1,2,3,4,A\nq,1,,3,4,A\n", "row 2 .*'B' is empty"),
        (
            "mmlu",
            "mmlu/anatomy_test.csv",
            "q,1,2,3,4,A\nq,1,2,3,A\n",
            "breaks after 1 rows: a line has more or fewer fields",
        ),
        (
            "humaneval",
            "humaneval/HumanEval.jsonl.gz",
            '{"prompt": "p", "test": null, "entry_point": "f"}',
            "'test' must be a str",
        ),
        (
            "mbpp",
            "mbpp/mbpp.jsonl",
            '{"task_id": 11, "text": "t", "code": "c", "test_list": null}',
            "'test_list' is empty",
        ),
        (
            "arc",
            "arc/ARC-Challenge-test.jsonl",
            '{"question": "q", "choices": "A", "answerKey": "A"}',
            "'choices.text' is missing",
        ),
    ],
)
def test_a_row_that_is_not_the_set_s_is_named(tmp_path: Path, name: str, file: str, content: str, problem: str) -> None:
    (tmp_path / file).parent.mkdir()
    opened = gzip.open if file.endswith(".gz") else open
    with opened(tmp_path / file, "wt", encoding="utf-8") as handle:
        handle.write(content)
    with pytest.raises(SourceError, match=f"{file}: .*{problem}") as caught:
        academic._datasets(name, {"test": tmp_path / file})
    assert "\n" not in str(caught.value)


def test_marks_and_blank_lines_of_editors_change_no_row(data_root: Path, tmp_path: Path) -> None:
    for name, file in {"mmlu": "mmlu/anatomy_dev.csv", "gsm8k": "gsm8k/test.jsonl", "mbpp": "mbpp/mbpp.jsonl"}.items():
        (tmp_path / file).parent.mkdir()
        content = (data_root / file).read_bytes()
        (tmp_path / file).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\n\n", 3) + b"\n\n")
        ours, theirs = (academic._datasets(name, {"test": root / file})["test"] for root in (tmp_path, data_root))
        assert list(ours) == list(theirs)
        assert len(ours) > 4


def test_truthfulqa_is_a_share_of_probability(data_root: Path) -> None:
    row = academic.truthfulqa_row(
        {"Question": "q", "Best Answer": "a", "Correct Answers": "a; b;", "Incorrect Answers": "b; c; c"}
    )
    assert row["mc2_targets"] == {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}
    task = _task("truthfulqa", data_root)
    assert task.doc_to_text(row).endswith("Barcelona, Spain.\n\nQ: q\nA:")
    assert task.doc_to_choice(row) == ["a", "b", "c"]
    # 1, 2 and 1 parts: 3 of 4 are the true answers'.
    results = [(-1.0, False), (-1.0 + 0.6931471805599453, False), (-1.0, False)]
    assert task.process_results(row, results)["acc"] == pytest.approx(0.75)


def test_local_rows_have_the_sets_sizes_and_the_papers_shots(data_root: Path) -> None:
    configs, absent = academic.task_configs(data_root)
    sizes = {c["task"]: len(c["custom_dataset"]()[c.get("test_split") or c["validation_split"]]) for c in configs}
    mmlu = {name: size for name, size in sizes.items() if name.startswith("mmlu_")}
    assert (len(mmlu), sum(mmlu.values()), mmlu["mmlu_high_school_european_history"]) == (11, 1699, 165)
    others = {name: size for name, size in sizes.items() if name not in mmlu}
    assert others == {"gsm8k": 1319, "humaneval": 164, "truthfulqa": 817, "mbpp": 500}
    assert list(absent) == ["arc"]
    [mbpp] = [config for config in configs if config["task"] == "mbpp"]
    assert mbpp["custom_dataset"]()["test"]["task_id"][:] == list(range(11, 511))
    shots = {c["task"]: c["num_fewshot"] for c in configs if c["task"] not in mmlu or c["task"] == "mmlu_anatomy"}
    assert shots == {"gsm8k": 8, "mmlu_anatomy": 5, "humaneval": 0, "truthfulqa": 0, "mbpp": 0}


def test_without_local_files_the_rows_come_from_the_hub() -> None:
    configs, absent = academic.task_configs(None)
    assert absent == {}
    found = {c["task"]: (c["dataset_path"], c.get("dataset_name")) for c in configs}
    assert len(found) == 5 + 57
    assert found["arc"] == ("allenai/ai2_arc", "ARC-Challenge")
    assert found["mmlu_anatomy"] == ("cais/mmlu", "anatomy")
    assert not any("custom_dataset" in c or c.get("unsafe_code") for c in configs)


def test_arc_has_25_shots(tmp_path: Path) -> None:
    """From a local copy in the hub's schema."""
    rows = [
        {"question": f"q{i}", "choices": {"label": ["A", "B"], "text": ["no", "yes"]}, "answerKey": "B"}
        for i in range(30)
    ]
    (tmp_path / "arc").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"arc/ARC-Challenge-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = _task("arc", tmp_path)
    context = task.fewshot_context(task.test_docs()[29], task.config.num_fewshot)
    assert context.count("Answer: yes") == 25
    assert context.endswith("Question: q29\nAnswer:")


@pytest.mark.slow
def test_one_command_runs_the_whole_suite(model: Path, data_root: Path, tmp_path: Path) -> None:
    """A smoke run offline: every task with local files gives a score, ARC is named as absent."""
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


def test_reference_code_passes_in_the_sandbox(data_root: Path) -> None:
    humaneval, mbpp = _task("humaneval", data_root), _task("mbpp", data_root)
    doc = humaneval.test_docs()[0]
    assert _scores(humaneval, [doc] * 2, [doc["canonical_solution"], "    return None"]) == [1.0, 0.0]
    assert _scores(humaneval, [doc], ["    open('/tmp/outside', 'w')"]) == [0.0]
    docs = [row for row in mbpp.test_docs() if row["task_id"] in (11, 12, 367)]
    # As in lm-eval: task 367's tests use variables of a setup that it does not run.
    assert _scores(mbpp, docs, [row["code"] for row in docs]) == [1.0, 1.0, 0.0]


def test_scores_of_subjects_are_put_together() -> None:
    samples = {"mmlu_a": [{"acc": 1.0}], "mmlu_b": [{"acc": 0.0}] * 3, "arc": [{"acc": 0.0, "acc_norm": 1.0}]}
    assert academic.scores_by_task(samples) == {"mmlu": [1.0, 0.0, 0.0, 0.0], "arc": [1.0]}


def test_a_folder_without_the_sets_is_one_clear_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["academic", "--profile", "slices", "--model", str(model), "--data-root", str(tmp_path)]
    assert main([*arguments, "--out", str(tmp_path / "o.json")]) == 1
    assert "set DATA_ROOT to a folder that has them" in capsys.readouterr().err
