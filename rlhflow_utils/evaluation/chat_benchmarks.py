"""One chat benchmark from a policy to its score: answers, verdicts, result file.

::

    python -m rlhflow_utils chat --benchmark mt_bench --profile gemma-2b --model runs/gemma-2b/iter3_dpo/model \\
        --questions path/to/benchmarks --out runs/gemma-2b/mt_bench

`--questions` is a folder with the benchmark's own files: ``mt-bench/`` (FastChat's), ``arena-hard/`` (its questions
and the baseline's answers), ``alpaca_eval/alpaca_eval_gpt4_baseline.json`` (the reference outputs) and
``alpaca_eval/df_gamed.csv`` (what the length-controlled win rate needs); the last two are read from the hub where they
are not there. The judge is the profile's `evaluation.endpoint_url` and `judge_model`. Answers and
verdicts stay in `--out`: a second run makes nothing and asks nothing twice.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import yaml
from scipy import special, stats

from rlhflow_utils.data.reading import get, read_rows, user_turn
from rlhflow_utils.evaluation import arena_hard, mt_bench
from rlhflow_utils.evaluation.judges import ChatEndpoint, Failure
from rlhflow_utils.evaluation.statistics import Estimate, bootstrap_mean, length_adjusted_win_rate
from rlhflow_utils.guide.profile import ConfigError, Profile
from rlhflow_utils.guide.stage import hash_value, write_json
from rlhflow_utils.models.chat import Message
from rlhflow_utils.online.generation import generate

Outputs = Sequence[Mapping[str, str]]  # AlpacaEval's format: `instruction`, `output`, `generator`
JUDGE = "weighted_alpaca_eval_gpt4_turbo"  # AlpacaEval-2's; it answers with one token, m or M
HUB = "tatsu-lab/alpaca_eval"
# SHA-256 of AlpacaEval-2's 805 instructions in their order, with a zero byte between two.
ALPACA_INSTRUCTIONS = "bfe8c45991f635de0b1f94abeeb1335ef665d58eddd87ddf6fa71b7b0c2ce7a5"
NUMBERS = "alpaca-eval-numbers"  # folder of the package's published tables, in `--questions`
SOLVED_FROM = "gpt-3.5-turbo-0613"  # the model whose published values give the difficulties
BASELINE = "gpt-4-0314"  # of Arena-Hard


class LengthControl(NamedTuple):
    """Which of the package's models gives the length-controlled win rate."""

    model: str  # its name in the package
    file: Path  # difficulty of each instruction; `length_controlled_v1` also reads the gamed baselines' verdicts in it


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
    endpoint = ChatEndpoint(settings, out / "judge_cache.jsonl")
    summary, asked, answered = getattr(_Benchmark(profile, model, questions, out, limit, endpoint), name)()
    results: dict[str, Any] = {
        **summary, "questions": asked, "dropped": {"prompt_too_long": asked - answered}, "benchmark": name,
        "model": model, "judge": settings.judge_model, "judge_counts": dict(endpoint.counts),
    }  # fmt: skip
    write_json(out / "results.json", results)
    return results


@dataclass(frozen=True)
class _Benchmark:
    """A policy before a judge; one method per benchmark gives its summary, the questions asked and those answered."""

    profile: Profile
    model: str
    root: Path  # the benchmarks' files
    out: Path
    limit: int | None
    endpoint: ChatEndpoint

    def mt_bench(self) -> tuple[dict[str, Any], int, int]:
        folder = self.folder("mt-bench")
        questions = mt_bench.read_questions(folder)[: self.limit]
        prompts = mt_bench.read_judge_prompts(folder / "judge_prompts.jsonl")
        answers = mt_bench.answer_questions(questions, self.answer)
        write_json(self.out / "answers.json", answers)
        answered = [question for question in questions if question.question_id in answers]
        grades = mt_bench.grade_answers(answered, answers, prompts, self.endpoint)
        return mt_bench.summarise(grades, *self.draws()), len(questions), len(answers)

    def arena_hard(self) -> tuple[dict[str, Any], int, int]:
        folder = self.folder("arena-hard")
        questions = dict(list(arena_hard.read_questions(folder / "question.jsonl").items())[: self.limit])
        baseline = arena_hard.read_answers(folder / f"model_answer_{BASELINE}.jsonl")
        answers = self.answer({key: user_turn(text) for key, text in questions.items()})
        write_json(self.out / "answers.json", answers)
        games = arena_hard.judge_answers(questions, answers, baseline, self.endpoint)
        return arena_hard.score(games, *self.draws()), len(questions), len(answers)

    def alpaca_eval(self) -> tuple[dict[str, Any], int, int]:
        file = find_file("alpaca_eval_gpt4_baseline.json", self.root)
        names = ("instruction", "output", "generator")
        reference = read_rows(file, lambda row: {name: get(row, name, str) for name in names})[: self.limit]
        answers = self.answer({str(i): user_turn(row["instruction"]) for i, row in enumerate(reference)})
        theirs = [reference[int(key)] for key in answers]
        outputs = [{"instruction": row["instruction"], "output": answer, "generator": "policy"}
                   for row, answer in zip(theirs, answers.values(), strict=True)]  # fmt: skip
        write_json(self.out / "model_outputs.json", outputs)
        found = judge_outputs(outputs, theirs, self.endpoint, self.out)
        control = find_length_control(reference, self.root, self.out)
        return summarise(found, outputs, reference, *self.draws(), control), len(reference), len(outputs)

    def draws(self) -> tuple[int, float, int]:
        """Bootstrap samples, confidence, seed."""
        return self.profile.evaluation.bootstrap_samples, self.profile.evaluation.confidence, self.profile.seed

    def answer(self, conversations: Mapping[str, Sequence[Message]], temperature: float = 0.0) -> dict[str, str]:
        """One answer to each conversation that is not too long, by its key."""
        rows = [{"prompt_id": key, "prompt": messages} for key, messages in conversations.items()]
        settings, out = self.profile.generation.variant(1, [temperature]), self.out / "answers"
        profile = self.profile
        data, _ = generate(self.model, rows, settings, profile.model, out, profile.seed, profile.actors)
        return {row["prompt_id"]: row["responses"][0] for row in data}

    def folder(self, name: str) -> Path:
        if not (self.root / name).is_dir():
            raise FileNotFoundError(
                f"no {name}/ in {self.root}; --questions is the folder of mt-bench/ and arena-hard/"
            )
        return self.root / name


def find_file(name: str, root: Path) -> Path:
    """A file of AlpacaEval-2 in `root`, else from the hub."""
    from huggingface_hub import hf_hub_download

    file = root / "alpaca_eval" / name
    return file if file.is_file() else Path(hf_hub_download(HUB, name, repo_type="dataset"))


def judge_outputs(outputs: Outputs, reference: Outputs, endpoint: ChatEndpoint, cache: Path) -> list[float | None]:
    """Probability that the judge prefers our output, per instruction, through the `alpaca_eval` package.

    The judge answers with one token, and the log-probabilities of its two candidates are the verdict; None where
    neither was among its five likeliest tokens. `reference` holds the baseline's outputs (the benchmark's is GPT-4
    Turbo of November 2023), in any order; other instructions than those of `outputs` are a ValueError. The endpoint
    must give log-probabilities; pairs whose verdicts lie in the folder `cache` are not asked again.
    """
    theirs = {row["instruction"]: row for row in reference}
    if len(theirs) != len(reference) or any(row["instruction"] not in theirs for row in outputs):
        raise ValueError("AlpacaEval: outputs and reference must answer the same instructions, each once")
    # Local servers want no key, but the package does; it reads its environment when imported.
    os.environ.setdefault("OPENAI_API_KEY", "none")
    import alpaca_eval
    from alpaca_eval.annotators import PairwiseAnnotator

    folder = Path(str(alpaca_eval.__file__)).resolve().parent / "evaluators_configs"
    config: dict[str, Any] = yaml.safe_load((folder / JUDGE / "configs.yaml").read_text(encoding="utf-8"))[JUDGE]
    template = folder / config["prompt_template"]
    prompt = template.read_text(encoding="utf-8")
    texts = [f"{prompt}{row['instruction']}{row['output']}{theirs[row['instruction']]['output']}" for row in outputs]
    # An upper limit: the package keeps its own cache, which is not subtracted.
    print(f"{endpoint}: {endpoint.cost([user_turn(text) for text in texts], 1)}", flush=True)
    config["prompt_template"] = str(template)
    config["completions_kwargs"] |= {
        "model_name": endpoint.settings.judge_model, "openai_api_base": endpoint.settings.endpoint_url,
        "requires_chatml": True, "num_procs": 5, "price_per_token": 0,
        "client_kwargs": {"max_retries": 5, "timeout": 60.0},
    }  # fmt: skip
    file = cache.resolve() / f"alpaca_eval_judge-{hash_value(config)}" / "configs.yaml"  # verdicts are cached beside it
    write_json(file, {endpoint.settings.judge_model: config})  # JSON is YAML
    annotator = PairwiseAnnotator(annotators_config=str(file.parent), seed=0)
    if annotator.df_annotations is not None:
        # The package also keeps what failed, and whole numbers come back as int64, where it cannot write a tie.
        kept = annotator.df_annotations.query("preference >= 1").astype({"preference": float})
        annotator.df_annotations = None if kept.empty else kept
    annotated = annotator.annotate_head2head(
        outputs_1=pd.DataFrame([theirs[row["instruction"]] for row in outputs]), outputs_2=pd.DataFrame(outputs)
    )
    found = {row["instruction"]: row["preference"] for row in annotated}
    preferences = [found.get(row["instruction"]) for row in outputs]
    failure = Failure("unparsable", "neither candidate's token is among the five likeliest")
    endpoint.check_failures([failure for value in preferences if pd.isna(value)], len(outputs))
    return [None if pd.isna(value) else float(value) - 1.0 for value in preferences]


def find_length_control(reference: Outputs, root: Path, out: Path) -> LengthControl | None:
    """The model that the files at hand allow, which is printed; None where `reference` is not the whole benchmark.

    The official one, `length_controlled_v1`, needs ``df_gamed.csv``, from `root` or the hub. Without it, difficulties
    are solved from the published tables in `root` and written to `out`, for the variant that is not regularised towards
    the gamed baselines: on the public verdicts about the 49 models with all instructions it is 1.1 points off on
    average, 2.8 at most; answers made to game length are not seen through (`gpt4_gamed`: 25.9 instead of 12.2).
    """
    text = "\0".join(row["instruction"] for row in reference)
    if hashlib.sha256(text.encode()).hexdigest() != ALPACA_INSTRUCTIONS:
        print("not AlpacaEval-2's 805 instructions: length_adjusted_win_rate knows of length alone", flush=True)
        return None
    tables = root / NUMBERS
    try:
        control = LengthControl("length_controlled_v1", find_file("df_gamed.csv", root))
    except OSError:  # no network, or offline and not in the cache
        if not tables.is_dir():
            print(f"no lc_win_rate: put df_gamed.csv of the hub's {HUB} into {root / 'alpaca_eval'}", flush=True)
            return None
        control = LengthControl("length_controlled_noreg", out / "instruction_difficulty.csv")
        write_difficulties(tables, control.file)
    print(f"lc_win_rate: the package's {control.model} with {control.file}", flush=True)
    return control


def write_difficulties(tables: Path, file: Path) -> None:
    """Difficulty of each instruction, solved from one model's published win probabilities p at equal length.

    The package's model says ``logit(p) = quality + weight * difficulty``, and quality and weight are published too.
    """
    weights = pd.read_csv(tables / "length_controlled_v1_baseline_gpt4_1106_preview.csv", index_col=0).loc[SOLVED_FROM]
    names = ("model", "length_controlled_winrate")
    rows = read_rows(tables / "alpaca_2.0_lc_results.jsonl", lambda row: [get(row, name) for name in names])
    quality, weight = weights["not_gamed_baseline.astype(float)"], weights["instruction_difficulty"]
    difficulties = (special.logit(np.array(dict(rows)[SOLVED_FROM])) - quality) / weight
    table = pd.DataFrame({"model": SOLVED_FROM, "index": range(len(difficulties))})
    file.parent.mkdir(parents=True, exist_ok=True)
    table.assign(instruction_difficulty=difficulties).to_csv(file, index=False)


def length_controlled(
    probabilities: Sequence[float | None], outputs: Outputs, reference: Outputs, control: LengthControl,
    confidence: float,
) -> Estimate:  # fmt: skip
    """AlpacaEval-2's length-controlled win rate, by the package's own function.

    `reference` holds all instructions in the benchmark's order: a difficulty belongs to a place in it. The interval
    comes from the leaderboard's standard error, which knows the spread over instructions but not the error of the fit.
    """
    os.environ.setdefault("OPENAI_API_KEY", "none")  # as in `judge_outputs`
    from alpaca_eval.metrics import glm_winrate

    places = {row["instruction"]: place for place, row in enumerate(reference)}
    index = [places[row["instruction"]] for row in outputs]
    annotations = pd.DataFrame(
        {"preference": [np.nan if p is None else p + 1 for p in probabilities],
         "output_1": [reference[place]["output"] for place in index], "output_2": [row["output"] for row in outputs],
         "generator_1": "reference", "generator_2": "policy"}, index=index,
    )  # fmt: skip
    # The package's function knows the hub only.
    with patch.object(glm_winrate, "hf_hub_download", lambda **_: str(control.file)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about scikit-learn's next version
        found = glm_winrate.get_length_controlled_winrate(annotations, control.model, save_weights_dir=None)
    value, error = found["length_controlled_winrate"] / 100, found["lc_standard_error"] / 100
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return Estimate(float(value), float(value - half), float(value + half), annotations["preference"].count())


def summarise(
    probabilities: Sequence[float | None], outputs: Outputs, reference: Outputs, samples: int, confidence: float,
    seed: int, control: LengthControl | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Win rates over the judged instructions; unjudged ones are counted, not guessed.

    `lc_win_rate` is there where `find_length_control` found how it is computed. `length_adjusted_win_rate` is another
    estimate, for any prompts: it knows neither difficulties nor gamed baselines, only length.
    """
    theirs = {row["instruction"]: row["output"] for row in reference}
    judged = [(p, row) for p, row in zip(probabilities, outputs, strict=True) if p is not None]
    if not judged:
        raise ValueError(f"AlpacaEval: the judge gave no verdict on any of {len(outputs)} instructions")
    wins = [p for p, _ in judged]
    ours, base = [len(row["output"]) for _, row in judged], [len(theirs[row["instruction"]]) for _, row in judged]
    adjusted = length_adjusted_win_rate(wins, ours, base, confidence)
    summary = {
        "n": len(judged), "unjudged": len(outputs) - len(judged),
        "win_rate": asdict(bootstrap_mean(wins, samples, confidence, seed)),
        "length_adjusted_win_rate": asdict(adjusted.win_rate), "length_effect": adjusted.length_effect,
        "mean_length": float(np.mean(ours)), "reference_mean_length": float(np.mean(base)),
    }  # fmt: skip
    if control:
        official = length_controlled(probabilities, outputs, reference, control, confidence)
        summary |= {"lc_win_rate": asdict(official), "lc_model": control.model}
    return summary
