"""The academic suite (paper Tables 3 and 5): what alignment costs in knowledge, reasoning and code.

lm-eval runs it; one command per profile::

    python -m rlhflow_utils academic --profile gemma-2b --model runs/gemma-2b/09_iter3_dpo/model --out academic.json

A profile with `data.root` reads the sets from there, any other from the hub. A set that is not there is named in the
results as absent; nothing is put in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhflow_utils.academic_tasks import SHOTS, task_configs
from rlhflow_utils.statistics import Estimate, accuracy, wilson_interval

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
