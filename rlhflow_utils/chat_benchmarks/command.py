"""One chat benchmark from a policy to its score: answers, verdicts, result file.

::

    python -m rlhflow_utils chat --benchmark mt_bench --profile gemma-2b --model runs/gemma-2b/09_iter3_dpo/model \\
        --questions path/to/benchmarks --out runs/gemma-2b/mt_bench

`--questions` is a folder with the benchmark's own files: ``mt-bench/`` (FastChat's), ``arena-hard/`` (its questions
and the baseline's answers), ``alpaca_eval/alpaca_eval_gpt4_baseline.json`` (the reference outputs; without the file
they are read from the hub). The judge is the profile's `evaluation.endpoint_url` and `judge_model`. Answers and
verdicts stay in `--out`: a second run makes nothing and asks nothing twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhflow_utils.chat_benchmarks import alpaca_eval_2, arena_hard, mt_bench
from rlhflow_utils.chat_benchmarks.files import read_rows
from rlhflow_utils.config import ConfigError, Profile
from rlhflow_utils.endpoint import ChatEndpoint
from rlhflow_utils.manifest import write_json

NAMES = ("alpaca_eval", "mt_bench", "arena_hard")
BASELINE = "gpt-4-0314"  # of Arena-Hard


def run_benchmark(
    name: str, profile: Profile, model: str, questions: Path, out: Path, limit: int | None = None
) -> dict[str, Any]:
    """Answer, judge and score; writes ``results.json`` into `out`.

    Args:
        name: one of `NAMES`.
        profile: its sections `generation`, `model` and `evaluation` are read.
        model: folder or hub id of the policy.
        questions: see above.
        out: folder for answers, verdicts and the result.
        limit: the first so many questions; None: all.

    Raises:
        ConfigError: the profile names no judge behind an endpoint.
        FileNotFoundError: the benchmark's files are not there.
        SourceError: one of them is malformed.
    """
    settings = profile.evaluation
    if not settings.endpoint_url or not settings.judge_model:
        raise ConfigError(f"{name} needs a judge: set evaluation.endpoint_url and evaluation.judge_model")
    out.mkdir(parents=True, exist_ok=True)
    endpoint = ChatEndpoint(settings.endpoint_url, settings.judge_model, out / "judge_cache.jsonl", max_retries=5)
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
    print(f"{endpoint}: {mt_bench.grading_cost(answered, answers, prompts, endpoint, settings.endpoint_prices)}")
    grades = mt_bench.grade_answers(answered, answers, prompts, endpoint)
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
    scores = arena_hard.scores({"policy": games}, settings.bootstrap_samples, settings.confidence, profile.seed)
    return {**scores["policy"], "questions": len(questions), "dropped": dropped}


def _alpaca_eval(
    profile: Profile, model: str, root: Path, out: Path, limit: int | None, endpoint: ChatEndpoint
) -> dict[str, Any]:
    settings = profile.evaluation
    reference = _alpaca_reference(root)[:limit]
    rows, dropped = _generate(profile, model, {str(i): row["instruction"] for i, row in enumerate(reference)}, out)
    outputs = alpaca_eval_2.model_outputs(rows, "policy")
    write_json(out / "model_outputs.json", outputs)
    answered = {row["instruction"] for row in outputs}
    reference = [row for row in reference if row["instruction"] in answered]
    print(f"{endpoint}: {alpaca_eval_2.judging_cost(outputs, reference, settings.endpoint_prices)}", flush=True)
    found = alpaca_eval_2.judge_outputs(outputs, reference, endpoint.url, endpoint.model, out)
    samples, confidence = settings.bootstrap_samples, settings.confidence
    summary = alpaca_eval_2.summarise(found, outputs, reference, samples, confidence, profile.seed)
    return {**summary, "questions": len(rows) + dropped["prompt_too_long"], "dropped": dropped}


def _generate(
    profile: Profile, model: str, questions: dict[str, str], out: Path
) -> tuple[Sequence[dict[str, Any]], dict[str, int]]:
    """One greedy answer to each question."""
    from rlhflow_utils.generation import generate

    rows = [{"prompt_id": key, "prompt": [{"role": "user", "content": text}]} for key, text in questions.items()]
    data, dropped = generate(
        model, rows, profile.generation, profile.model, out / "answers", profile.seed, responses=1, temperatures=[0.0]
    )
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
