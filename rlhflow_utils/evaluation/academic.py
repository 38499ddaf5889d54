"""The academic suite (paper Tables 3 and 5): what alignment costs in knowledge, reasoning and code.

The tasks, prompts and metrics are lm-eval's own, read from its task files; ours are the shots (paper, Table 3), the
local files, and the sandbox in which HumanEval and MBPP run what the model wrote. One command per profile::

    python -m rlhflow_utils academic --profile gemma-2b --model runs/gemma-2b/iter3_dpo/model --out academic.json

A profile with `data.root` reads the sets from there, any other from the hub. A set that is not there is named in the
results as absent; nothing is put in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.data.reading import FieldError, get, get_label, read_rows
from rlhflow_utils.evaluation.sandbox import run_program
from rlhflow_utils.evaluation.statistics import accuracy
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import PROJECT

Row = dict[str, Any]  # of a set, and a task of lm-eval
SUITE: dict[str, Row] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
KINDS = {"text": str, "list": list, "number": int}
GSM8K_FILTER = "strict-match"  # lm-eval's headline: the number after the first `####`, as in the shots
CODE_SECONDS = 15.0  # the slowest reference solution (MBPP 123) takes about 6
MBPP_TEST = range(11, 511)  # task ids of the test split; the file holds all splits


def task_configs(root: Path | None, names: Sequence[str] = tuple(SUITE)) -> tuple[list[Row], dict[str, str]]:
    """lm-eval configurations of the suite (MMLU has one per subject), and why a task is not among them.

    `root` is a folder of local files; None reads every set from the hub.
    """
    configs: list[Row] = []
    absent = {}
    for name in names:
        try:
            configs += [_config(name, subject, root) for subject in (_subjects(root) if name == "mmlu" else [""])]
        except FileNotFoundError as error:
            absent[name] = f"no local files: {error}"
    return configs, absent


def _config(name: str, subject: str, root: Path | None) -> Row:
    """lm-eval's task, with our shots, our rows and our way to run code."""
    from lm_eval.tasks._yaml_loader import load_yaml

    suite = SUITE[name]
    is_code = suite["metric"] == "pass_at_1"  # lm-eval's functions run it in this process, so they are not loaded
    config: Row = load_yaml(_task_folder() / suite["task_file"].format(subject=subject), resolve_func=not is_code)
    config |= {"task": f"{name}_{subject}" if subject else name, "num_fewshot": suite["shots"]}
    if is_code:
        metric = {"metric": pass_at_1, "aggregation": "mean", "higher_is_better": True}
        config |= {"metric_list": [metric], "unsafe_code": False, "fewshot_config": None}
    if name == "humaneval":
        config["filter_list"] = [{"name": "program", "filter": [{"function": "custom", "filter_fn": whole_programs}]}]
    if root:
        files = {split: root / file.format(subject=subject) for split, file in suite["files"].items()}
        if missing := [file for file in files.values() if not file.is_file()]:
            raise FileNotFoundError(str(missing[0].relative_to(root)))
        config["custom_dataset"] = partial(_datasets, name, files)
    return config


def _task_folder() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _subjects(root: Path | None) -> list[str]:
    """MMLU's subjects; with local files those that have both splits."""
    known = sorted(file.stem.removeprefix("mmlu_") for file in (_task_folder() / "mmlu/default").glob("mmlu_*.yaml"))
    files = SUITE["mmlu"]["files"].values()
    found = [name for name in known if not root or all((root / file.format(subject=name)).is_file() for file in files)]
    if not found:
        raise FileNotFoundError("mmlu/*_test.csv beside mmlu/*_dev.csv")
    return found


def pass_at_1(references: Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
    """1 where the one program passes the one reference's tests, as lm-eval's `code_eval`, but in the sandbox."""
    program = predictions[0] if isinstance(predictions[0], str) else predictions[0][0]
    # MBPP's own solutions have Windows line ends.
    return float(run_program(program.replace("\r\n", "\n"), references[0], timeout=CODE_SECONDS).passed)


def whole_programs(responses: Sequence[Sequence[str]], docs: Sequence[Row]) -> list[list[str]]:
    """HumanEval's prompts, each with its completions; lm-eval's `build_predictions`."""
    return [[doc["prompt"] + each for each in row] for row, doc in zip(responses, docs, strict=True)]


def _datasets(name: str, files: Mapping[str, Path], **_: Any) -> Any:
    """Rows in the hub's schema; lm-eval passes the task's metadata, which no set here needs."""
    from datasets import Dataset, DatasetDict

    splits = {split: read_rows(file, partial(_row, name), SUITE[name].get("columns")) for split, file in files.items()}
    if name == "mbpp":
        splits["test"] = [row for row in splits["test"] if row["task_id"] in MBPP_TEST]
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def _row(name: str, native: Row) -> Row:
    """A row of a local file in the hub's schema; FieldError where a field that the task reads is wrong or empty."""
    for field, kind in SUITE[name]["fields"].items():
        if not get(native, field, KINDS[kind]) and kind != "number":
            raise FieldError(f"field {field!r} is empty")
    if name == "mmlu":
        answer = get_label({"answer": native["answer"].strip()}, "answer", "ABCD")
        choices = [native[letter] for letter in "ABCD"]
        return {"question": native["question"], "choices": choices, "answer": "ABCD".index(answer)}
    return truthfulqa_row(native) if name == "truthfulqa" else native


def truthfulqa_row(row: Mapping[str, str]) -> Row:
    """MC2 targets from the lists; an answer in both lists (there are two) counts as true."""
    true, false = ([each.strip() for each in row[f"{kind} Answers"].split(";")] for kind in ("Correct", "Incorrect"))
    right = dict.fromkeys(filter(None, [row["Best Answer"].strip(), *true]))
    wrong = [answer for answer in dict.fromkeys(filter(None, false)) if answer not in right]
    labels = [1] * len(right) + [0] * len(wrong)
    return {"question": row["Question"], "mc2_targets": {"choices": [*right, *wrong], "labels": labels}}


def evaluate_academic(model: str | Path, profile: Profile, limit: int | None) -> dict[str, Any]:
    """Run the suite on a causal LM (a folder or hub id); `limit` rows per task (per subject for MMLU), None: all.

    `tasks` maps a name to its estimate and `shots`, `absent` to a reason; FileNotFoundError where every task is absent.
    """
    import lm_eval
    import torch

    configs, absent = task_configs(PROJECT / profile.data.root if profile.data.root else None)
    if not configs:
        raise FileNotFoundError(f"no files of {', '.join(SUITE)} in data.root; set DATA_ROOT to a folder that has them")
    seeds = dict.fromkeys(
        ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), profile.seed
    )
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(model), "dtype": profile.model.dtype, "trust_remote_code": False},
        tasks=configs, limit=limit, batch_size=8, device="cuda" if torch.cuda.is_available() else "cpu",
        bootstrap_iters=0, **seeds,
    )  # fmt: skip
    assert found is not None  # it is on the first process alone, and there is one
    # TruthfulQA's scores are shares between 0 and 1: there the interval is on the safe side.
    tasks = {name: {**asdict(accuracy(values, profile.evaluation.confidence, name)), "shots": SUITE[name]["shots"]}
             for name, values in scores_by_task(found["samples"]).items()}  # fmt: skip
    return {"tasks": tasks, "absent": absent, "limit": limit, "lm_eval": lm_eval.__version__}


def scores_by_task(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Score of every row under the suite's task names: MMLU's subjects are put together, so each row counts once."""
    values: dict[str, list[float]] = {}
    for task, rows in samples.items():
        name = "mmlu" if task.startswith("mmlu") else task
        wanted = [row for row in rows if name != "gsm8k" or row["filter"] == GSM8K_FILTER]
        values.setdefault(name, []).extend(float(row[SUITE[name]["metric"]]) for row in wanted)
    return values
