"""How good is a policy? Its answers to held-out prompts against the SFT model's, prompt by prompt.

Both policies answered the same prompts, so every comparison is paired: the bootstrap draws prompts, with both answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from rlhflow_utils.data.reading import Prompt, Root
from rlhflow_utils.data.sources import read
from rlhflow_utils.evaluation.judges import ChatEndpoint, compare_rewards, outcomes
from rlhflow_utils.evaluation.statistics import Estimate, accuracy, bootstrap_mean, length_adjusted_win_rate
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.settings import EvaluationSettings, ModelSettings, WorldSettings
from rlhflow_utils.guide.stage import Artifact, Rows, Summary, stage, write_json
from rlhflow_utils.models.chat import Message, encode_prompt, load_tokenizer, prompt_key
from rlhflow_utils.models.forward import Model, TokenIds, in_shards, length_batches, load_model, pad
from rlhflow_utils.models.reward_model import score, score_responses
from rlhflow_utils.online.generation import Prompts, generate_responses
from rlhflow_utils.simulator.gold import World

Row = Mapping[str, Any]


def answer_held_out(
    run: Run, name: str, policy: Model, data: Artifact, reward_model: Model, count: int = 1, draws: int | None = None
) -> Artifact:
    """A policy's answers to each held-out prompt, and the rewards of the RM that trains (null: too long for it).

    `draws` seeds the random numbers; by default all policies meet those of the run's seed.
    """
    profile, draws = run.profile, run.seed if draws is None else draws
    many = profile.generation.variant(count, [profile.evaluation.temperature])
    prompts, into, scored = Prompts(data, "evaluation_prompts"), run / f"{name}_answers", run / f"{name}_answers_scored"
    answers = generate_responses(policy, prompts, many, profile.model, draws, profile.actors, into=into)
    options = (profile.reward_model, profile.model, profile.actors)
    return score_responses(reward_model, answers, *options, keep=True, into=scored)


@stage
def evaluate_policy(
    answers: Artifact, reference: Artifact, evaluation: EvaluationSettings, world: WorldSettings | None,
    judge_model: Model | None, batch_tokens: int, seed: int, output: int | str | None = None,
    actors: int | None = None, *, cache_file: Path, into: Path,
) -> Summary:  # fmt: skip
    """Win rate of a policy against SFT on the same prompts, and everything behind it in `results.json`.

    `answers` and `reference` come from `answer_held_out`; both may be the SFT model's, then every prompt is a tie.
    `estimates` has each metric with its interval (lengths are in characters), `skills` the
    same for each skill (gold judge only), `prompts` the columns behind it all, one entry per prompt. A prompt whose
    verdict failed, or is too long for a judge RM, has the outcome null and is counted as `no_verdict`, in no win rate.
    """
    judge, rows = evaluation.judge, _pair_up(list(answers.dataset()), list(reference.dataset()))
    prompts = [row["prompt"] for row, _ in rows]
    ours, theirs = ([pair[side]["responses"][0] for pair in rows] for side in (0, 1))
    verdicts, judge_counts = judge_answers(
        prompts, ours, theirs, evaluation, world, judge_model, batch_tokens, cache_file, output, actors
    )
    proxy_rewards = [[pair[side]["rewards"][0] for pair in rows] for side in (0, 1)]
    columns = {
        "prompt_id": [row["prompt_id"] for row, _ in rows], **verdicts,
        "length": [len(text) for text in ours], "reference_length": [len(text) for text in theirs],
        "truncated": [float(row["finish_reasons"][0] == "length") for row, _ in rows],
        "proxy_reward": proxy_rewards[0], "proxy_outcome": _compare(proxy_rewards, ours, theirs),
    }  # fmt: skip
    table, judged = pd.DataFrame(columns), [each for each in columns["outcome"] if each is not None]
    if not judged:
        raise ValueError(f"the {judge} judge gave no verdict on any of {len(rows)} prompts")
    skills: Any = table.groupby("skill") if "skill" in table else []
    results: dict[str, Any] = {
        "judge": judge, "n": len(judged), "judge_counts": judge_counts, "prompts": columns,
        "estimates": _estimates(table, evaluation, seed),
        "counts": {"wins": judged.count(1.0), "ties": judged.count(0.5), "losses": judged.count(0.0)},
        "skills": {skill: _estimates(part, evaluation, seed) for skill, part in skills},
    }  # fmt: skip
    write_json(into / "results.json", results)
    metrics: dict[str, Any] = {f"{judge}_{name}": count for name, count in judge_counts.items()}
    for name, estimate in results["estimates"].items():
        prefix = f"{judge}_" if name in ("win_rate", "length_adjusted_win_rate", "reward") else ""
        suffix = "_vs_sft" if name.endswith("win_rate") else ""
        metrics |= Estimate(**estimate).metrics(f"{prefix}{name}{suffix}")
    failed = len(rows) - len(judged)
    return Summary({"prompts": Rows(len(rows), len(judged), {"no_verdict": failed} if failed else {})}, metrics)


def judge_answers(
    prompts: Sequence[Sequence[Message]], ours: Sequence[str], theirs: Sequence[str], evaluation: EvaluationSettings,
    world: WorldSettings | None, judge_model: Model | None, batch_tokens: int, cache_file: Path | None,
    output: int | str | None = None, actors: int | None = None,
) -> tuple[dict[str, list[Any]], dict[str, int]]:  # fmt: skip
    """`outcome` of each prompt from the judge that the profile asks for, and what else it knows; and its counts.

    The simulated world's gold program (the truth) and a reward model (to be fair, one that trained no policy) give
    `reward` and `reference_reward`, the gold program also `skill` and `right`. An endpoint counts what it was asked;
    its replies are kept in `cache_file` (None: in memory only). `judge_model` is the RM (`run.judge_model()`).
    The profile's own check says what a judge lacks.
    """
    if evaluation.judge == "endpoint":
        endpoint = ChatEndpoint(evaluation, cache_file)
        return {"outcome": outcomes(endpoint, prompts, ours, theirs)}, dict(endpoint.counts)
    columns: dict[str, list[Any]] = {}
    if evaluation.judge == "gold":
        assert world is not None
        gold, questions = World(world), [prompt[-1]["content"] for prompt in prompts]
        rewards: list[list[float | None]] = [
            [float(gold.reward(*pair)) for pair in zip(questions, texts, strict=True)] for texts in (ours, theirs)
        ]
        columns["skill"] = [gold.skill_of(question) for question in questions]
        columns["right"] = [float(gold.is_correct(*pair)) for pair in zip(questions, ours, strict=True)]
    else:
        model = judge_model or evaluation.judge_model
        assert model is not None
        conversations = [pair for texts in (ours, theirs) for pair in zip(prompts, texts, strict=True)]
        both = score(model, conversations, batch_tokens, output=output, actors=actors)
        rewards = [both[: len(ours)], both[len(ours) :]]
    return {
        "reward": rewards[0],
        "reference_reward": rewards[1],
        "outcome": _compare(rewards, ours, theirs),
        **columns,
    }, {}


def _compare(
    rewards: Sequence[Sequence[float | None]], ours: Sequence[str], theirs: Sequence[str]
) -> list[float | None]:
    """Outcomes by reward. Equal answers tie: in bfloat16 an RM's reward of a text depends on the batch it was in."""
    outcomes = compare_rewards(*rewards)
    same = [one == other for one, other in zip(ours, theirs, strict=True)]
    return [0.5 if tie and each is not None else each for tie, each in zip(same, outcomes, strict=True)]


def _estimates(table: pd.DataFrame, evaluation: EvaluationSettings, seed: int) -> dict[str, dict[str, Any]]:
    """Every metric over some of the prompts."""
    means = {"win_rate": "outcome", "mean_length": "length", "reward": "reward", "proxy_reward": "proxy_reward",
             "proxy_win_rate": "proxy_outcome"}  # fmt: skip
    shares = {"accuracy": "right", "truncation_rate": "truncated"}
    samples, confidence = evaluation.bootstrap_samples, evaluation.confidence
    judged = table.dropna(subset="outcome")
    found = {name: bootstrap_mean(table[column].dropna(), samples, confidence, seed)
             for name, column in means.items() if column in table and table[column].notna().any()}  # fmt: skip
    found |= {name: accuracy(table[column], confidence) for name, column in shares.items() if column in table}
    lengths = judged["length"], judged["reference_length"]
    found["length_adjusted_win_rate"] = length_adjusted_win_rate(judged["outcome"], *lengths, confidence).win_rate
    return {name: asdict(estimate) for name, estimate in found.items()}


def _pair_up(policy: Sequence[Row], reference: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of the two policies that answer the same prompt, in the policy's order."""
    others = {row["prompt_id"]: row for row in reference}
    mine = {row["prompt_id"] for row in policy}
    if not policy or mine != set(others) or len(mine) != len(policy):
        raise ValueError(
            f"the policy answers {len(policy)} prompts and the reference {len(reference)}, and they are not the same "
            f"(for example {sorted(mine ^ set(others))[:3]}): generate both from the same evaluation prompts"
        )
    for row in [*policy, *reference]:
        if len(row["responses"]) != 1:
            raise ValueError(f"prompt {row['prompt_id']}: {len(row['responses'])} responses; evaluation wants one")
    return [(row, others[row["prompt_id"]]) for row in policy]


def ranking_reward(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over prompts of what ranks the training pairs, r − λ|a| (eq. 8), from an evaluation's `results.json`."""
    prompts, evaluation = results["prompts"], run.profile.evaluation
    rewards, lengths = (pd.Series(prompts[name], dtype=float) for name in ("proxy_reward", "length"))
    penalised = rewards - run.profile.pair_building.length_penalty * lengths
    return asdict(bootstrap_mean(penalised.dropna(), evaluation.bootstrap_samples, evaluation.confidence, run.seed))


@stage
def measure_kl(
    policy: Model, reference: Model, answers: Artifact, batch_tokens: int, model: ModelSettings,
    actors: int | None = None, *, into: Path,
) -> Summary:  # fmt: skip
    """KL(policy || reference) of a whole answer, in nats: log π(y|x) − log π_ref(y|x), averaged over own answers.

    `answers` are the policy's own, sampled at temperature 1. `results.json`: the mean of each prompt.
    """
    rows, tokenizer = answers.dataset(), load_tokenizer(reference, model)
    prompts = [encode_prompt(prompt, tokenizer) for prompt in rows["prompt"]]
    pairs = [(prompts[i], ids) for i, responses in enumerate(rows["response_ids"]) for ids in responses]
    ours, theirs = (response_log_probs(each, pairs, batch_tokens, model, actors) for each in (policy, reference))
    by_prompt = np.subtract(ours, theirs).reshape(len(rows), -1).mean(axis=1).tolist()
    write_json(into / "results.json", {"prompts": by_prompt})
    return Summary({"prompts": Rows(len(rows), len(rows))}, {"kl": fmean(by_prompt)})


def response_log_probs(
    model: Model, pairs: Sequence[tuple[TokenIds, TokenIds]], batch_tokens: int, settings: ModelSettings,
    actors: int | None,
) -> list[float]:  # fmt: skip
    """Log-probability of each response after its prompt, in nats: the sum over its tokens."""

    def load() -> Callable[[Sequence[tuple[TokenIds, TokenIds]]], list[float]]:
        import torch

        network = load_model(model, "causal", settings)

        def compute(shard: Sequence[tuple[TokenIds, TokenIds]]) -> list[float]:
            sequences, found = [[*prompt, *response] for prompt, response in shard], [0.0] * len(shard)
            for batch in length_batches([len(ids) for ids in sequences], batch_tokens):
                # Causal: padding on the right is never seen.
                ids, _ = pad([sequences[index] for index in batch], 0, "right", network.device)
                with torch.inference_mode():
                    logits = network(input_ids=ids, use_cache=False).logits
                for row, index in enumerate(batch):
                    start, end = len(shard[index][0]), len(sequences[index])
                    own = logits[row, start - 1 : end - 1].float().log_softmax(-1)  # one answer at a time: memory
                    found[index] = float(own.gather(-1, ids[row, start:end, None]).sum())
            return found

        return compute

    return in_shards(pairs, load, actors)


@stage
def write_exact_match_prompts(evaluation: EvaluationSettings, root: Root, *, into: Path) -> Summary:
    """The distinct prompts of the exact-match task: split `exact_match`, for `Prompts`."""
    from datasets import Dataset

    tests = [test for source in evaluation.exact_match_sources for test in read(source, root, Prompt)]
    distinct = {prompt_key(test.prompt): test.prompt for test in tests}
    rows = [{"prompt_id": key, "prompt": prompt, "source": "exact_match"} for key, prompt in distinct.items()]
    Dataset.from_list(rows).save_to_disk(str(into / "exact_match"))
    return Summary({"prompts": Rows(len(tests), len(distinct), {"repeated_prompt": len(tests) - len(distinct)})})


@stage
def evaluate_exact_match(answers: Artifact, evaluation: EvaluationSettings, root: Root, *, into: Path) -> Summary:
    """Share of exactly right answers (but for outer space) on the skill that no preference and no RL prompt touches.

    `answers` has one response per prompt; tests without one are dropped and counted.
    """
    tests = [test for source in evaluation.exact_match_sources for test in read(source, root, Prompt)]
    responses = {prompt_key(row["prompt"]): row["responses"][0] for row in answers.dataset()}
    answered = [(test, responses[key]) for test in tests if (key := prompt_key(test.prompt)) in responses]
    correct = [float(text.strip() == str(test.answer).strip()) for test, text in answered]
    estimate = accuracy(correct, evaluation.confidence)
    columns = {"row_id": [test.row_id for test, _ in answered], "response": [text for _, text in answered]}
    write_json(into / "results.json", {"exact_match": asdict(estimate), "prompts": {**columns, "correct": correct}})
    counts = Rows(len(tests), len(answered), {"no_response": len(tests) - len(answered)})
    return Summary({"prompts": counts}, estimate.metrics("exact_match"))
