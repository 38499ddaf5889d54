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

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from rlhflow_utils.data.reading import read_rows
from rlhflow_utils.evaluation import arena_hard, mt_bench
from rlhflow_utils.evaluation.judges import CHARACTERS_PER_TOKEN, ChatEndpoint, Cost
from rlhflow_utils.evaluation.statistics import bootstrap_mean, length_controlled_win_rate
from rlhflow_utils.guide.profile import ConfigError, Profile
from rlhflow_utils.guide.stage import write_json

Floats = NDArray[np.float64]
PROMPT = "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"  # in the package; the judge answers with one token, m or M
PROMPT_TOKENS = 320  # of that text without instruction and answers


# --- the published length-controlled win rates --------------------------------------------------------------------


def read_weights(path: Path) -> pd.DataFrame:
    """The leaderboard's fitted weights: index model, columns `length`, `difficulty` and `model`.

    Raises:
        ValueError: the file is not the package's ``length_controlled_v1`` table.
    """
    columns = {
        "np.tanh(std_delta_len)": "length",
        "instruction_difficulty": "difficulty",
        "not_gamed_baseline.astype(float)": "model",
    }
    table = pd.read_csv(path, index_col=0)
    if not set(columns) <= set(table.columns):
        raise ValueError(f"{path.name}: columns {list(table.columns)}; expected {list(columns)}")
    return table.rename(columns=columns)[list(columns.values())]


def instruction_difficulties(win_probabilities: ArrayLike, weights: Mapping[str, float]) -> Floats:
    """Difficulty of each instruction, solved from one model's length-controlled win probabilities.

    Args:
        win_probabilities: shape (instructions,), in (0, 1), at equal length.
        weights: the same model's `difficulty` and `model`.

    Raises:
        ValueError: a probability of 0 or 1, or a model whose outcomes do not depend on difficulty.
    """
    p = np.asarray(win_probabilities, dtype=float)
    if not ((p > 0) & (p < 1)).all() or weights["difficulty"] == 0:
        raise ValueError("instruction difficulties need probabilities strictly between 0 and 1 and a weight not 0")
    return np.asarray((special.logit(p) - weights["model"]) / weights["difficulty"])


def published_win_rates(weights: pd.DataFrame, difficulties: ArrayLike) -> pd.Series:
    """Length-controlled win rate of every model of `read_weights`, in per cent as on the leaderboard."""
    logits = weights[["model"]].to_numpy() + weights[["difficulty"]].to_numpy() * np.asarray(difficulties)[None, :]
    return pd.Series(100 * special.expit(logits).mean(axis=1), index=weights.index)


# --- judging our own policies -------------------------------------------------------------------------------------


def model_outputs(rows: Sequence[Mapping[str, Any]], generator: str) -> list[dict[str, str]]:
    """Responses in AlpacaEval's format: `instruction`, `output`, `generator`.

    Args:
        rows: as `generation.generate_responses` writes them: `prompt` (one user turn) and one response.
        generator: name of the policy.

    Raises:
        ValueError: a prompt of several turns, or not exactly one response.
    """
    for row in rows:
        if len(row["prompt"]) != 1 or len(row["responses"]) != 1:
            raise ValueError(f"prompt {row['prompt_id']}: AlpacaEval wants one user turn and one response")
    return [
        {"instruction": row["prompt"][0]["content"], "output": row["responses"][0], "generator": generator}
        for row in rows
    ]


def judging_cost(
    outputs: Sequence[Mapping[str, str]], reference: Sequence[Mapping[str, str]], prices: Sequence[float] | None
) -> Cost:
    """What `judge_outputs` sends at most (cached pairs are not subtracted): one short verdict per instruction.

    Args:
        outputs: our policy's.
        reference: the baseline's.
        prices: dollars per million prompt and completion tokens.
    """
    texts = [row["instruction"] + row["output"] for row in outputs] + [row["output"] for row in reference]
    prompt = PROMPT_TOKENS * len(outputs) + -(-sum(map(len, texts)) // CHARACTERS_PER_TOKEN)
    dollars = (prompt * prices[0] + len(outputs) * prices[1]) / 1e6 if prices else None
    return Cost(len(outputs), 0, prompt, len(outputs), dollars)


def judge_outputs(
    outputs: Sequence[Mapping[str, str]],
    reference: Sequence[Mapping[str, str]],
    url: str,
    model: str,
    cache: Path,
    workers: int = 5,
) -> list[float | None]:
    """Probability that the judge prefers our output, per instruction, through the `alpaca_eval` package.

    AlpacaEval-2's judge answers with one token, and the log-probabilities of its two candidates are the verdict.

    Args:
        outputs: our policy's, see `model_outputs`.
        reference: the baseline's (the benchmark's is GPT-4 Turbo of November 2023), the same instructions.
        url: OpenAI-compatible base URL; it must give log-probabilities. The key is taken from OPENAI_API_KEY.
        model: the judge's name there.
        cache: folder for the package's annotations; pairs found there are not asked again.
        workers: requests at a time.

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
    probabilities: Sequence[float | None],
    outputs: Sequence[Mapping[str, str]],
    reference: Sequence[Mapping[str, str]],
    samples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Win rate and length-controlled win rate over the judged instructions; unjudged ones are counted, not guessed.

    Args:
        probabilities: of `judge_outputs`.
        outputs: our policy's, in the same order.
        reference: the baseline's, any order.
        samples: bootstrap draws.
        confidence: coverage aimed at.
        seed: of the draws.
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
    """A judge for the package: its prompt and verdict form, our endpoint. Its annotations are cached beside it."""
    import alpaca_eval

    prompt = Path(str(alpaca_eval.__file__)).parent / "evaluators_configs" / PROMPT
    config = {
        "prompt_template": str(prompt.resolve()),
        "fn_completions": "openai_completions",
        "completions_kwargs": {
            "model_name": model,
            "max_tokens": 1,
            "temperature": 1,  # verdicts are read from the log-probabilities, so sampling has no effect
            "logprobs": True,
            "top_logprobs": 5,
            "requires_chatml": True,
            "num_procs": workers,
            "openai_api_base": url,
            "price_per_token": 0,
            "client_kwargs": {"max_retries": 5, "timeout": 60.0},
        },
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
        "completion_key": "completions_all",
        "batch_size": 1,
    }
    folder = cache.resolve() / "alpaca_eval_judge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configs.yaml").write_text(json.dumps({model: config}), encoding="utf-8")  # JSON is YAML
    return folder


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
    outputs = model_outputs(rows, "policy")
    write_json(out / "model_outputs.json", outputs)
    answered = {row["instruction"] for row in outputs}
    reference = [row for row in reference if row["instruction"] in answered]
    print(f"{endpoint}: {judging_cost(outputs, reference, settings.endpoint_prices)}", flush=True)
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
