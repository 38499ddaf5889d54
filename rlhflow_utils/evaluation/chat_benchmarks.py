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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rlhflow_utils.data.reading import read_rows, user_turn
from rlhflow_utils.evaluation import arena_hard, mt_bench
from rlhflow_utils.evaluation.judges import ChatEndpoint
from rlhflow_utils.evaluation.statistics import bootstrap_mean, length_controlled_win_rate
from rlhflow_utils.guide.profile import ConfigError, Profile
from rlhflow_utils.guide.stage import write_json
from rlhflow_utils.online.generation import generate

Outputs = Sequence[Mapping[str, str]]  # AlpacaEval's format: `instruction`, `output`, `generator`
JUDGE = "weighted_alpaca_eval_gpt4_turbo"  # AlpacaEval-2's; it answers with one token, m or M
ALPACA_REFERENCE = "alpaca_eval/alpaca_eval_gpt4_baseline.json"
BASELINE = "gpt-4-0314"  # of Arena-Hard


def run_benchmark(
    name: str, profile: Profile, model: str, questions: Path, out: Path, limit: int | None = None
) -> dict[str, Any]:
    """Answer, judge and score ``alpaca_eval``, ``mt_bench`` or ``arena_hard``; writes ``results.json`` into `out`.

    `questions` is the folder described above; `limit` takes the first so many questions. A profile without a judge is a
    ConfigError, a folder that is not there a FileNotFoundError, a malformed file a SourceError.
    """
    settings = profile.evaluation
    if not settings.endpoint_url or not settings.judge_model:
        raise ConfigError(f"{name} needs a judge: set evaluation.endpoint_url and evaluation.judge_model")
    cache = out / "judge_cache.jsonl"
    endpoint = ChatEndpoint(settings.endpoint_url, settings.judge_model, cache, settings.endpoint_prices)
    results: dict[str, Any] = getattr(_Benchmark(profile, model, questions, out, limit, endpoint), name)()
    results |= {"benchmark": name, "model": model, "judge": settings.judge_model, "judge_counts": dict(endpoint.counts)}
    write_json(out / "results.json", results)
    return results


@dataclass(frozen=True)
class _Benchmark:
    """A policy before a judge; one method per benchmark gives its summary, the `questions` and those `dropped`."""

    profile: Profile
    model: str
    root: Path  # the benchmarks' files
    out: Path
    limit: int | None
    endpoint: ChatEndpoint

    def mt_bench(self) -> dict[str, Any]:
        folder, profile = self.folder("mt-bench"), self.profile
        questions = mt_bench.read_questions(folder)[: self.limit]
        prompts = mt_bench.read_judge_prompts(folder / "judge_prompts.jsonl")
        options = (profile.generation, profile.model, self.out / "answers", profile.seed)
        answers, dropped = mt_bench.answer_questions(self.model, questions, *options)
        answered = [question for question in questions if question.question_id in answers]
        grades = mt_bench.grade_answers(answered, answers, prompts, self.endpoint)
        return {**mt_bench.summarise(grades, *self.draws()), "questions": len(questions), "dropped": dropped}

    def arena_hard(self) -> dict[str, Any]:
        folder = self.folder("arena-hard")
        questions = dict(list(arena_hard.read_questions(folder / "question.jsonl").items())[: self.limit])
        baseline = arena_hard.read_answers(folder / f"model_answer_{BASELINE}.jsonl")
        answers, dropped = self.answer(questions)
        games = arena_hard.judge_answers(questions, answers, baseline, self.endpoint)
        return {**arena_hard.score(games, *self.draws()), "questions": len(questions), "dropped": dropped}

    def alpaca_eval(self) -> dict[str, Any]:
        file, names, endpoint = self.root / ALPACA_REFERENCE, ("instruction", "output", "generator"), self.endpoint
        if not file.is_file():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download("tatsu-lab/alpaca_eval", file.name, repo_type="dataset"))
        everything = read_rows(file, lambda row: {name: row[name] for name in names})[: self.limit]
        answers, dropped = self.answer({str(i): row["instruction"] for i, row in enumerate(everything)})
        reference = [everything[int(i)] for i in answers]
        outputs = [{"instruction": row["instruction"], "output": answer, "generator": "policy"}
                   for row, answer in zip(reference, answers.values(), strict=True)]  # fmt: skip
        write_json(self.out / "model_outputs.json", outputs)
        prompt = Path(_judge_config()["prompt_template"]).read_text(encoding="utf-8")
        pairs = zip(outputs, reference, strict=True)
        texts = [f"{prompt}{ours['instruction']}{ours['output']}{theirs['output']}" for ours, theirs in pairs]
        # An upper limit: the package keeps its own cache, which is not subtracted.
        print(f"{endpoint}: {endpoint.cost([user_turn(text) for text in texts], 1)}", flush=True)
        found = judge_outputs(outputs, reference, endpoint.url, endpoint.model, self.out)
        return summarise(found, outputs, reference, *self.draws()) | {"questions": len(everything), "dropped": dropped}

    def draws(self) -> tuple[int, float, int]:
        """Bootstrap samples, confidence, seed."""
        return self.profile.evaluation.bootstrap_samples, self.profile.evaluation.confidence, self.profile.seed

    def answer(self, questions: dict[str, str]) -> tuple[dict[str, str], dict[str, int]]:
        """One greedy answer to each question that is not too long, by its key; and the questions dropped, by reason."""
        profile, greedy = self.profile, self.profile.generation.variant(1, [0.0])
        rows = [{"prompt_id": key, "prompt": user_turn(text)} for key, text in questions.items()]
        data, dropped = generate(self.model, rows, greedy, profile.model, self.out / "answers", profile.seed)
        return {row["prompt_id"]: row["responses"][0] for row in data}, dropped

    def folder(self, name: str) -> Path:
        if not (self.root / name).is_dir():
            raise FileNotFoundError(
                f"no {name}/ in {self.root}; --questions is the folder of mt-bench/ and arena-hard/"
            )
        return self.root / name


def judge_outputs(
    outputs: Outputs, reference: Outputs, url: str, model: str, cache: Path, workers: int = 5
) -> list[float | None]:
    """Probability that the judge prefers our output, per instruction, through the `alpaca_eval` package.

    The judge answers with one token, and the log-probabilities of its two candidates are the verdict; None where
    neither was among its five likeliest tokens. `reference` holds the baseline's outputs (the benchmark's is GPT-4
    Turbo of November 2023), in any order; other instructions than those of `outputs` are a ValueError. `url` must give
    log-probabilities, its key is OPENAI_API_KEY; pairs whose verdicts lie in the folder `cache` are not asked again.
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
        outputs_1=pd.DataFrame([theirs[row["instruction"]] for row in outputs]), outputs_2=pd.DataFrame(outputs)
    )
    found = {row["instruction"]: row["preference"] for row in annotated}
    preferences = [found.get(row["instruction"]) for row in outputs]
    return [None if pd.isna(value) else float(value) - 1.0 for value in preferences]


def summarise(
    probabilities: Sequence[float | None], outputs: Outputs, reference: Outputs, samples: int, confidence: float,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Win rate and length-controlled win rate over the judged instructions; unjudged ones are counted, not guessed."""
    theirs = {row["instruction"]: row["output"] for row in reference}
    judged = [(p, row) for p, row in zip(probabilities, outputs, strict=True) if p is not None]
    if not judged:
        raise ValueError(f"AlpacaEval: the judge gave no verdict on any of {len(outputs)} instructions")
    wins = [p for p, _ in judged]
    ours, base = [len(row["output"]) for _, row in judged], [len(theirs[row["instruction"]]) for _, row in judged]
    controlled = length_controlled_win_rate(wins, ours, base, confidence)
    return {
        "n": len(judged), "unjudged": len(outputs) - len(judged),
        "win_rate": asdict(bootstrap_mean(wins, samples, confidence, seed)),
        "lc_win_rate": asdict(controlled.win_rate), "length_effect": controlled.length_effect,
        "mean_length": float(np.mean(ours)), "reference_mean_length": float(np.mean(base)),
    }  # fmt: skip


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
