"""One chat benchmark from a policy to its score: answers, verdicts, result file.

::

    python -m rlhflow_utils chat --benchmark mt_bench --profile gemma-2b --model runs/gemma-2b/iter3_dpo/model \\
        --questions path/to/benchmarks --out runs/gemma-2b/mt_bench

`--questions` is a folder with the benchmark's own files: ``mt-bench/`` (FastChat's), ``arena-hard/`` (its questions
and the baseline's answers), ``alpaca_eval/alpaca_eval_gpt4_baseline.json`` (the reference outputs; without the file
they are read from the hub). The judge is the profile's `evaluation.endpoint_url` and `judge_model`. Answers and
verdicts stay in `--out`: a second run makes nothing and asks nothing twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rlhflow_utils.data.reading import read_rows
from rlhflow_utils.evaluation import arena_hard, mt_bench
from rlhflow_utils.evaluation.judges import ChatEndpoint
from rlhflow_utils.evaluation.statistics import bootstrap_mean, length_controlled_win_rate
from rlhflow_utils.guide.profile import ConfigError, Profile
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.models.chat import Message

Outputs = Sequence[Mapping[str, str]]  # AlpacaEval's format: `instruction`, `output`, `generator`
JUDGE = "weighted_alpaca_eval_gpt4_turbo"  # AlpacaEval-2's; it answers with one token, m or M
BASELINE = "gpt-4-0314"  # of Arena-Hard


def run_benchmark(
    name: str, profile: Profile, model: str, questions: Path, out: Path, limit: int | None = None
) -> dict[str, Any]:
    """Answer, judge and score ``alpaca_eval``, ``mt_bench`` or ``arena_hard``; writes ``results.json`` into `out`.

    `questions` is the folder described above; `limit` takes the first so many questions.

    Raises:
        ConfigError: the profile names no judge behind an endpoint.
        FileNotFoundError: the benchmark's files are not there.
        SourceError: one of them is malformed.
    """
    settings = profile.evaluation
    if not settings.endpoint_url or not settings.judge_model:
        raise ConfigError(f"{name} needs a judge: set evaluation.endpoint_url and evaluation.judge_model")
    out.mkdir(parents=True, exist_ok=True)
    endpoint = ChatEndpoint(settings.endpoint_url, settings.judge_model, out / "judge_cache.jsonl")
    run = {"alpaca_eval": _alpaca_eval, "mt_bench": _mt_bench, "arena_hard": _arena_hard}[name]
    results = run(profile, model, questions, out, limit, endpoint)
    results |= {"benchmark": name, "model": model, "judge": settings.judge_model, "judge_counts": dict(endpoint.counts)}
    write_json(out / "results.json", results)
    return results


def _mt_bench(
    profile: Profile, model: str, root: Path, out: Path, limit: int | None, endpoint: ChatEndpoint
) -> dict[str, Any]:
    folder, settings = _folder(root, "mt-bench"), profile.evaluation
    questions = mt_bench.read_questions(folder)[:limit]
    prompts = mt_bench.read_judge_prompts(folder / "judge_prompts.jsonl")
    answers, dropped = mt_bench.answer_questions(
        model, questions, profile.generation, profile.model, out / "answers", profile.seed
    )
    answered = [question for question in questions if question.question_id in answers]
    grades = mt_bench.grade_answers(answered, answers, prompts, endpoint, settings.endpoint_prices)
    summary = mt_bench.summarise(grades, settings.bootstrap_samples, settings.confidence, profile.seed)
    return {**summary, "questions": len(questions), "dropped": dropped}


def _arena_hard(
    profile: Profile, model: str, root: Path, out: Path, limit: int | None, endpoint: ChatEndpoint
) -> dict[str, Any]:
    folder, settings = _folder(root, "arena-hard"), profile.evaluation
    questions = dict(list(arena_hard.read_questions(folder / "question.jsonl").items())[:limit])
    baseline = arena_hard.read_answers(folder / f"model_answer_{BASELINE}.jsonl")
    rows, dropped = _generate(profile, model, questions, out)
    answers = {row["prompt_id"]: row["responses"][0] for row in rows}
    games = arena_hard.judge_answers(questions, answers, baseline, endpoint, settings.endpoint_prices)
    found = arena_hard.score(games, settings.bootstrap_samples, settings.confidence, profile.seed)
    return {**found, "questions": len(questions), "dropped": dropped}


def _alpaca_eval(
    profile: Profile, model: str, root: Path, out: Path, limit: int | None, endpoint: ChatEndpoint
) -> dict[str, Any]:
    settings = profile.evaluation
    reference = _alpaca_reference(root)[:limit]
    rows, dropped = _generate(profile, model, {str(i): row["instruction"] for i, row in enumerate(reference)}, out)
    outputs = [
        {"instruction": row["prompt"][0]["content"], "output": row["responses"][0], "generator": "policy"}
        for row in rows
    ]
    write_json(out / "model_outputs.json", outputs)
    answered = {row["instruction"] for row in outputs}
    reference = [row for row in reference if row["instruction"] in answered]
    prompt = Path(_judge_config()["prompt_template"]).read_text(encoding="utf-8")
    pairs = zip(outputs, reference, strict=True)
    texts = [f"{prompt}{ours['instruction']}{ours['output']}{theirs['output']}" for ours, theirs in pairs]
    asked: list[list[Message]] = [[{"role": "user", "content": text}] for text in texts]
    # An upper limit: the package keeps its own cache, which is not subtracted.
    print(f"{endpoint}: {endpoint.cost(asked, 1, settings.endpoint_prices)}", flush=True)
    found = judge_outputs(outputs, reference, endpoint.url, endpoint.model, out)
    samples, confidence = settings.bootstrap_samples, settings.confidence
    summary = summarise(found, outputs, reference, samples, confidence, profile.seed)
    return {**summary, "questions": len(rows) + dropped["prompt_too_long"], "dropped": dropped}


def _generate(
    profile: Profile, model: str, questions: dict[str, str], out: Path
) -> tuple[Sequence[dict[str, Any]], dict[str, int]]:
    """One greedy answer to each question."""
    from rlhflow_utils.online.generation import generate

    rows = [{"prompt_id": key, "prompt": [{"role": "user", "content": text}]} for key, text in questions.items()]
    greedy = profile.generation.variant(1, [0.0])
    data, dropped = generate(model, rows, greedy, profile.model, out / "answers", profile.seed)
    return list(data), dropped


def _alpaca_reference(root: Path) -> list[dict[str, str]]:
    name = "alpaca_eval_gpt4_baseline.json"
    path = root / "alpaca_eval" / name
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download("tatsu-lab/alpaca_eval", name, repo_type="dataset"))
    return read_rows(path, lambda row: {key: row[key] for key in ("instruction", "output", "generator")})


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {name}/ in {root}: --questions wants the folder that holds the benchmark's own files "
            "(FastChat's mt-bench/, arena-hard/, alpaca_eval/)"
        )
    return folder


# --- AlpacaEval-2 ---------------------------------------------------------------------------------------------------


def judge_outputs(
    outputs: Outputs, reference: Outputs, url: str, model: str, cache: Path, workers: int = 5
) -> list[float | None]:
    """Probability that the judge prefers our output, per instruction, through the `alpaca_eval` package.

    AlpacaEval-2's judge answers with one token, and the log-probabilities of its two candidates are the verdict.

    `reference` holds the baseline's outputs (the benchmark's is GPT-4 Turbo of November 2023), in any order; `url` must
    give log-probabilities, its key is taken from OPENAI_API_KEY; pairs whose verdicts lie in the folder `cache` are not
    asked again.

    Returns:
        One entry per row of `outputs`; None where neither candidate was among the judge's five likeliest tokens.

    Raises:
        ValueError: the two do not answer the same instructions, or one twice.
    """
    theirs = {row["instruction"]: row for row in reference}
    if len(theirs) != len(reference) or [row["instruction"] not in theirs for row in outputs].count(True):
        raise ValueError("AlpacaEval: outputs and reference must answer the same instructions, each once")
    # Local servers want no key, but the package does; it reads its environment when imported.
    os.environ.setdefault("OPENAI_API_KEY", "none")
    from alpaca_eval.annotators import PairwiseAnnotator

    annotator = PairwiseAnnotator(annotators_config=str(_write_config(cache, url, model, workers)), seed=0)
    if annotator.df_annotations is not None:
        # Verdicts that are all whole numbers come back from the cache as int64, where the package cannot write a tie.
        annotator.df_annotations = annotator.df_annotations.astype({"preference": float})
    annotated = annotator.annotate_head2head(
        outputs_1=pd.DataFrame([dict(theirs[row["instruction"]]) for row in outputs]),
        outputs_2=pd.DataFrame([dict(row) for row in outputs]),
    )
    found = {row["instruction"]: row["preference"] for row in annotated}
    preferences = [found.get(row["instruction"]) for row in outputs]
    return [None if value is None or pd.isna(value) else float(value) - 1.0 for value in preferences]


def summarise(
    probabilities: Sequence[float | None], outputs: Outputs, reference: Outputs, samples: int, confidence: float,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Win rate and length-controlled win rate over the judged instructions; unjudged ones are counted, not guessed.

    `probabilities` are those of `judge_outputs` for `outputs`, in order; `samples` counts the bootstrap draws.
    """
    theirs = {row["instruction"]: row["output"] for row in reference}
    judged = [(p, row) for p, row in zip(probabilities, outputs, strict=True) if p is not None]
    if not judged:
        raise ValueError(f"AlpacaEval: the judge gave no verdict on any of {len(outputs)} instructions")
    wins = [p for p, _ in judged]
    ours, base = [len(row["output"]) for _, row in judged], [len(theirs[row["instruction"]]) for _, row in judged]
    controlled = length_controlled_win_rate(wins, ours, base, confidence)
    return {
        "n": len(judged),
        "unjudged": len(outputs) - len(judged),
        "win_rate": asdict(bootstrap_mean(wins, samples, confidence, seed)),
        "lc_win_rate": asdict(controlled.win_rate),
        "length_effect": controlled.length_effect,
        "mean_length": float(np.mean(ours)),
        "reference_mean_length": float(np.mean(base)),
    }


def _write_config(cache: Path, url: str, model: str, workers: int) -> Path:
    """AlpacaEval-2's judge with our endpoint, for the package. Its annotations are cached beside it."""
    config = _judge_config()
    config["completions_kwargs"] |= {
        "model_name": model, "requires_chatml": True, "num_procs": workers, "openai_api_base": url,
        "price_per_token": 0, "client_kwargs": {"max_retries": 5, "timeout": 60.0},
    }  # fmt: skip
    folder = cache.resolve() / "alpaca_eval_judge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configs.yaml").write_text(json.dumps({model: config}), encoding="utf-8")  # JSON is YAML
    return folder


def _judge_config() -> dict[str, Any]:
    import alpaca_eval

    folder = Path(str(alpaca_eval.__file__)).resolve().parent / "evaluators_configs"
    config: dict[str, Any] = yaml.safe_load((folder / JUDGE / "configs.yaml").read_text(encoding="utf-8"))[JUDGE]
    return {**config, "prompt_template": str(folder / config["prompt_template"])}
