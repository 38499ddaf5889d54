"""The academic suite (paper Tables 3 and 5): what alignment costs in knowledge, reasoning and code.

lm-eval runs it; one command per profile::

    python -m rlhflow_utils academic --profile gemma-2b --model runs/gemma-2b/09_iter3_dpo/model --out academic.json

A profile with `data.root` reads the sets from there, any other from the hub. A set that is not there is named in the
results as absent; nothing is put in its place.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhflow_utils.evaluation.sandbox import run_program
from rlhflow_utils.evaluation.statistics import Estimate, accuracy, wilson_interval

Row = dict[str, Any]
Splits = dict[str, list[Row]]
Config = dict[str, Any]

SHOTS = {"gsm8k": 8, "mmlu": 5, "humaneval": 0, "truthfulqa": 0, "arc": 25, "mbpp": 0}  # paper, Table 3
CODE_SECONDS = 15.0  # the slowest reference solution (MBPP 123) takes about 6
MEAN = {"aggregation": "mean", "higher_is_better": True}
MARKED = re.compile(r"(?:####|^\s*A:)\s*(.*)$", re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def task_configs(root: Path | None, names: Sequence[str] = tuple(SHOTS)) -> tuple[list[Config], dict[str, str]]:
    """lm-eval configurations of the suite, and why a task is not among them.

    Args:
        root: folder of local files; None reads every set from the hub.
        names: tasks of `SHOTS`.

    Returns:
        Configurations (MMLU is one per subject), and task -> reason for those whose files are not there.
    """
    builders: dict[str, Callable[[Path | None], list[Config]]] = {
        "gsm8k": _gsm8k, "mmlu": _mmlu, "humaneval": _humaneval, "truthfulqa": _truthfulqa, "arc": _arc, "mbpp": _mbpp,
    }  # fmt: skip
    configs: list[Config] = []
    absent = {}
    for name in names:
        try:
            configs += builders[name](root)
        except FileNotFoundError as error:
            absent[name] = f"no local files: {error}"
    return configs, absent


# --- the tasks ----------------------------------------------------------------------------------------------------


def _gsm8k(root: Path | None) -> list[Config]:
    local = None
    if root:
        local = {
            "train": _json_lines(root, "gsm8k/train_first2000.jsonl"),
            "test": _json_lines(root, "gsm8k/test.jsonl"),
        }
    return [
        {
            **_task("gsm8k", local, "openai/gsm8k", "main"),
            "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": 512},
            "process_results": score_gsm8k,
            "metric_list": [{"metric": "acc", **MEAN}],
        }
    ]


def _mmlu(root: Path | None) -> list[Config]:
    """One task per subject; with local files only those that have a test split."""
    subjects = local_subjects(root) if root else ["all"]
    configs = []
    for subject in subjects:
        local = None
        if root:
            local = {split: _mmlu_rows(root / "mmlu" / f"{subject}_{split}.csv") for split in ("dev", "test")}
        topic = f" about {subject.replace('_', ' ')}" if root else ""
        configs.append(
            {
                **_task(f"mmlu_{subject}", local, "cais/mmlu", subject, shots=SHOTS["mmlu"]),
                "fewshot_split": "dev",
                "fewshot_config": {"sampler": "first_n"},
                "description": f"The following are multiple choice questions (with answers){topic}.\n\n",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
                "D. {{choices[3]}}\nAnswer:",
                "doc_to_choice": ["A", "B", "C", "D"],
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", **MEAN}],
            }
        )
    return configs


def _humaneval(root: Path | None) -> list[Config]:
    local = {"test": _json_lines(root, "humaneval/HumanEval.jsonl.gz")} if root else None
    return [
        {
            **_task("humaneval", local, "openai/openai_humaneval", None),
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{canonical_solution}}",
            "target_delimiter": "",
            "generation_kwargs": {
                "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], "do_sample": False, "max_gen_toks": 1024,
            },
            "process_results": score_humaneval,
            "metric_list": [{"metric": "pass@1", **MEAN}],
        }
    ]  # fmt: skip


def _truthfulqa(root: Path | None) -> list[Config]:
    local = {"validation": _truthfulqa_rows(root / "truthfulqa" / "TruthfulQA.csv")} if root else None
    return [
        {
            **_task("truthfulqa", local, "truthfulqa/truthful_qa", "multiple_choice", split="validation"),
            "output_type": "multiple_choice",
            "doc_to_text": _package_prompt("truthfulqa/truthfulqa_mc1.yaml"),
            "doc_to_target": 0,
            "doc_to_choice": "{{mc2_targets.choices}}",
            "process_results": score_truthfulqa,
            "metric_list": [{"metric": "acc", **MEAN}],
        }
    ]


def _arc(root: Path | None) -> list[Config]:
    """ARC-Challenge; the set may not be passed on, so a machine without the hub brings its own copy."""
    local = None
    if root:
        local = {split: _json_lines(root, f"arc/ARC-Challenge-{split}.jsonl") for split in ("train", "test")}
    return [
        {
            **_task("arc", local, "allenai/ai2_arc", "ARC-Challenge"),
            "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "{{choices.label.index(answerKey)}}",
            "doc_to_choice": "{{choices.text}}",
            "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_norm", **MEAN}],
        }
    ]


def _mbpp(root: Path | None) -> list[Config]:
    """Tasks 11 to 510, the test split."""
    local = None
    if root:
        local = {"test": [row for row in _json_lines(root, "mbpp/mbpp.jsonl") if 11 <= row["task_id"] <= 510]}
    return [
        {
            **_task("mbpp", local, "google-research-datasets/mbpp", "full"),
            "doc_to_text": "You are an expert Python programmer, and here is your task: {{text}} Your code should pass "
            "these tests:\n\n{{test_list | join('\n')}}\n[BEGIN]\n",
            "doc_to_target": "{{code}}",
            "target_delimiter": "",
            "generation_kwargs": {"until": ["[DONE]"], "do_sample": False, "max_gen_toks": 512},
            "process_results": score_mbpp,
            "metric_list": [{"metric": "pass@1", **MEAN}],
        }
    ]


def _task(
    name: str, local: Splits | None, hub_id: str, hub_config: str | None, split: str = "test", shots: int | None = None
) -> Config:
    """What all tasks share: name, rows, shots."""
    source: Config = {"dataset_path": hub_id, "dataset_name": hub_config}
    if local is not None:
        source = {"custom_dataset": partial(_datasets, local)}
    return {"task": name, "test_split": split, "num_fewshot": SHOTS[name] if shots is None else shots, **source}


def _datasets(splits: Splits, **_: Any) -> Any:
    """Rows as lm-eval wants them; it passes on model arguments that no set here needs."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})


# --- scoring ------------------------------------------------------------------------------------------------------


def extract_gsm8k(solution: str) -> str | None:
    """The final answer of a solution, without thousands commas and dollar signs; None where there is none.

    It is what follows the last ``####`` (the set's gold answers) or a line's ``A:`` (the recorded model solutions); a
    solution without either gives the last number in its last line.
    """
    marked = MARKED.findall(solution)
    if marked:
        answer = str(marked[-1])
    else:
        lines = [line for line in solution.split("\n") if line.strip()]
        numbers = NUMBER.findall(lines[-1]) if lines else []
        answer = numbers[-1] if numbers else ""
    return answer.replace(",", "").replace("$", "").strip().removesuffix(".") or None


def score_gsm8k(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """1 where the extracted answer is the gold one."""
    found = extract_gsm8k(results[0])
    return {"acc": float(found is not None and found == extract_gsm8k(doc["answer"]))}


def score_humaneval(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """1 where prompt and completion pass the task's tests, in the sandbox."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass@1": float(run_program(program, timeout=CODE_SECONDS).passed)}


def score_mbpp(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """1 where the completion passes the task's tests, in the sandbox."""
    # The two tasks with a setup build their inputs from classes that the solution defines.
    program = "\n".join([results[0].replace("\r\n", "\n"), doc["test_setup_code"], *doc["test_list"]])
    return {"pass@1": float(run_program(program, timeout=CODE_SECONDS).passed)}


def score_truthfulqa(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """MC2: the probability mass of the true answers among all given ones."""
    log_probs = np.array([log_prob for log_prob, _ in results])
    mass = np.exp(log_probs - log_probs.max())
    labels = np.array(doc["mc2_targets"]["labels"])
    return {"acc": float(mass[labels == 1].sum() / mass.sum())}


# --- local files --------------------------------------------------------------------------------------------------


def local_subjects(root: Path) -> list[str]:
    """MMLU subjects with both splits."""
    found = sorted(file.name.removesuffix("_test.csv") for file in (root / "mmlu").glob("*_test.csv"))
    subjects = [name for name in found if (root / "mmlu" / f"{name}_dev.csv").is_file()]
    if not subjects:
        raise FileNotFoundError("mmlu/*_test.csv beside mmlu/*_dev.csv")
    return subjects


def _json_lines(root: Path, name: str) -> list[Row]:
    path = root / name
    if not path.is_file():
        raise FileNotFoundError(name)
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.decode("utf-8").split("\n") if line.strip()]


def _csv_rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent.name}/{path.name}")
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.reader(handle))


def _mmlu_rows(path: Path) -> list[Row]:
    """The files have no header: question, four choices, the right one's letter."""
    return [
        {"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5].strip())} for row in _csv_rows(path)
    ]


def _truthfulqa_rows(path: Path) -> list[Row]:
    """MC2 targets from the lists; an answer in both lists (there are two) counts as true."""
    header, *lines = _csv_rows(path)
    return [_truthfulqa_row(dict(zip(header, line, strict=True))) for line in lines]


def _truthfulqa_row(row: Mapping[str, str]) -> Row:
    right = dict.fromkeys([row["Best Answer"].strip(), *_answers(row["Correct Answers"])])
    wrong = [answer for answer in dict.fromkeys(_answers(row["Incorrect Answers"])) if answer not in right]
    labels = [1] * len(right) + [0] * len(wrong)
    return {"question": row["Question"], "mc2_targets": {"choices": [*right, *wrong], "labels": labels}}


def _answers(text: str) -> list[str]:
    return [answer.strip() for answer in text.split(";") if answer.strip()]


def _package_prompt(name: str) -> str:
    """The prompt of one of lm-eval's own task files."""
    import lm_eval
    import yaml

    text = (Path(str(lm_eval.__file__)).parent / "tasks" / name).read_text(encoding="utf-8")
    return str(yaml.load(text, Loader=yaml.BaseLoader)["doc_to_text"])


METRICS = {"humaneval": "pass@1", "mbpp": "pass@1", "arc": "acc_norm"}  # acc for all others


def evaluate_academic(
    model: str | Path,
    root: Path | None,
    *,
    names: Sequence[str] = tuple(SHOTS),
    limit: int | None = None,
    batch_size: int = 8,
    dtype: str = "float32",
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Run the suite on a model.

    Args:
        model: Hugging Face folder or id of a causal LM.
        root: folder of local files, or None for the hub.
        names: tasks of `academic_tasks.SHOTS`.
        limit: rows per task (per subject for MMLU), for a smoke run; None: all.
        batch_size: sequences at a time.
        dtype: of the weights.
        confidence: coverage of the intervals.
        seed: of lm-eval.

    Returns:
        `tasks`: name -> estimate and `shots`; `absent`: name -> reason; `limit`; `lm_eval`, the package's version.

    Raises:
        FileNotFoundError: none of the tasks' files are there.
    """
    import lm_eval
    import torch

    configs, absent = task_configs(root, names)
    if not configs:
        raise FileNotFoundError(f"no files of {', '.join(names)} in data.root; set DATA_ROOT to a folder that has them")
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": dtype, "trust_remote_code": False},
        tasks=configs,
        limit=limit,
        batch_size=batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        bootstrap_iters=0,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert found is not None  # it is on the first process alone, and there is one
    values = scores_by_task(found["samples"])
    tasks = {
        name: {**asdict(_estimate(name, parts, confidence)), "shots": SHOTS[name]} for name, parts in values.items()
    }
    return {"tasks": tasks, "absent": absent, "limit": limit, "lm_eval": lm_eval.__version__}


def scores_by_task(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Score of every row under the suite's task names: MMLU's subjects are put together, so each row counts once."""
    values: dict[str, list[float]] = {}
    for task, rows in samples.items():
        name = "mmlu" if task.startswith("mmlu") else task
        values.setdefault(name, []).extend(float(row[METRICS.get(name, "acc")]) for row in rows)
    return values


def _estimate(name: str, values: Sequence[float], confidence: float) -> Estimate:
    """Wilson's interval for right or wrong; for TruthfulQA's shares it is on the safe side."""
    if any(math.isnan(value) for value in values):
        raise ValueError(f"{name}: lm-eval returned a score that is not a number")
    if all(value in (0.0, 1.0) for value in values):
        return accuracy(values, confidence)
    mean = sum(values) / len(values)
    return Estimate(mean, *wilson_interval(mean, len(values), confidence), n=len(values))
