"""Ranked answers written in the native schema of each source (`native_rows.yaml`).

Every writer takes one ``RankedAnswers`` and returns its native rows: one row, or four for HelpSteer. Scores follow the
annotator's ranking without ties, so that a clean row gives every pair that its schema can give.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.guide.settings import AnnotatorSettings
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.tasks import REFUSAL, Task, write_distinct_responses

Row = dict[str, Any]
UsedPairs = set[tuple[str, frozenset[str]]]  # a prompt and two answers

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
MODELS = [f"model-{letter}" for letter in "abcdefgh"]
MAX_PAIRS_PER_PROMPT = 5  # SHP's filter keeps five pairs a prompt; natural rows stay below it in every source


def utility(annotator: AnnotatorSettings, world: World, prompt: str, response: str) -> float:
    """What a response is worth to an annotator, without noise."""
    skill, sharpness = world.skill_of(prompt), {str(skill): value for skill, value in annotator.sharpness.items()}
    if skill not in sharpness:
        raise ValueError(f"simulator: annotator has no sharpness for skill {skill!r} (prompt {prompt!r}); add it")
    return sharpness[skill] * world.reward(prompt, response) + annotator.length_bonus * len(response)


def rank_responses(
    annotator: AnnotatorSettings, world: World, prompt: str, responses: list[str], rng: random.Random
) -> list[str]:
    """Responses in the order in which an annotator ranks them, best first: Bradley-Terry as utility + Gumbel noise."""
    noisy = [
        (utility(annotator, world, prompt, response) - math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12))), response)
        for response in responses
    ]
    return [response for _, response in sorted(noisy, reverse=True)]


@dataclass(frozen=True)
class RankedAnswers:
    """Answers to one prompt as an annotator ranked them."""

    row_id: str  # stable in the source
    turns: list[dict[str, str]]  # the prompt, and mostly nothing before it
    answers: list[str]  # best first
    harmful: bool  # whether the prompt asks for harm (PKU-SafeRLHF's safety flags)

    @property
    def prompt(self) -> str:
        return self.turns[-1]["content"]

    def row(self, schema: str, **values: Any) -> Row:
        """A row of a schema of `native_rows.yaml` with these values, the prompt, and the best and second answer."""
        own = {"id": self.row_id, "prompt": self.prompt, "chosen": self.answers[0], "rejected": self.answers[1]}
        return dict(_fill(_DATA["rows"][schema], own | values))


def _fill(template: Any, values: Row) -> Any:
    if isinstance(template, dict):
        return {key: _fill(part, values) for key, part in template.items()}
    if isinstance(template, list):
        return [_fill(part, values) for part in template]
    return values[template[1:]] if isinstance(template, str) and template.startswith("$") else template


def _two_places(ranked: RankedAnswers, rng: random.Random) -> dict[str, Any]:
    """The two answers in random order, and the positions of the better and the worse one."""
    better = rng.randrange(2)
    return {"a": ranked.answers[better], "b": ranked.answers[1 - better], "better": better, "worse": 1 - better}


def hh_rlhf(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """Anthropic/hh-rlhf: two whole dialogues as strings."""
    tags = {"user": "Human", "assistant": "Assistant"}
    dialogue = "".join(f"\n\n{tags[turn['role']]}: {turn['content']}" for turn in ranked.turns) + "\n\nAssistant: "
    return [{"chosen": dialogue + ranked.answers[0], "rejected": dialogue + ranked.answers[1]}]


def shp(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """stanfordnlp/SHP: two comments with vote counts, the better one with more than twice the votes."""
    two, low = _two_places(ranked, rng), rng.randint(2, 40)
    high = rng.randint(2 * low + 1, 8 * low)
    votes = {"score_a": low, "score_b": high} if two["better"] else {"score_a": high, "score_b": low}
    upvotes, seconds = round(rng.uniform(0.7, 1.0), 2), float(rng.randint(60, 90_000))
    return [ranked.row("shp", **two, **votes, ratio=high / low, upvotes=upvotes, seconds=seconds)]


def helpsteer(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """nvidia/HelpSteer: one row per response, attributes 0 to 4; mean(helpfulness, correctness) follows the rank."""
    rows = [
        ranked.row(
            "helpsteer", answer=answer, helpfulness=4 - rank, correctness=max(4 - rank - rng.randrange(2), 0),
            coherence=rng.randint(3, 4), complexity=rng.randint(0, 2), verbosity=min(len(answer) // 25, 4),
        )
        for rank, answer in enumerate(ranked.answers)
    ]  # fmt: skip
    return rng.sample(rows, len(rows))


def pku_safe_rlhf(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """PKU-Alignment/PKU-SafeRLHF-30K: the better and the safer answer agree, as do the flags of clean rows."""
    two = _two_places(ranked, rng)
    safe = [not ranked.harmful or REFUSAL in answer for answer in (two["a"], two["b"])]
    if safe[two["worse"]] and not safe[two["better"]]:
        safe = [not flag for flag in safe]  # the annotator's slip, made in every field alike
    return [ranked.row("pku_safe_rlhf", **two, safe_a=safe[0], safe_b=safe[1])]


def ultrafeedback(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """openbmb/UltraFeedback: four completions; the fine-grained score is the mean of four ratings 1 to 5."""
    aspects, completions = _DATA["aspects"], []
    for rank, answer in enumerate(ranked.answers):
        ratings = [5 - rank] * 4
        for lowered in rng.sample(range(4), rng.randrange(3)):
            ratings[lowered] = max(ratings[lowered] - 1, 1)
        graded = zip(aspects, ratings, strict=True)
        completions.append(ranked.row(
            "ultrafeedback_completion", answer=answer, model=rng.choice(MODELS), principle=rng.choice(aspects[1:]),
            annotations={aspect: {"Rating": str(rating), "Rationale": ""} for aspect, rating in graded},
            score=sum(ratings) / 4, overall=float(10 - 2 * rank),
        ))  # fmt: skip
    completions = rng.sample(completions, len(completions))
    return [ranked.row("ultrafeedback", completions=completions, models=[each["model"] for each in completions])]


def ultrainteract(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """openbmb/UltraInteract_pair: a trajectory and two next actions."""
    parent = f"{ranked.row_id}-parent" if len(ranked.turns) > 1 else ranked.row_id
    task = "Math_CoT" if "+" in ranked.prompt or "Add" in ranked.prompt else "Coding"
    trajectory = [{"from": turn["role"], "value": turn["content"]} for turn in ranked.turns]
    return [ranked.row("ultrainteract", task=task, parent=parent, trajectory=trajectory)]


def code_ultrafeedback(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """coseal/CodeUltraFeedback: four responses and, aligned with them, four ratings as strings."""
    graded = rng.sample(list(enumerate(ranked.answers)), len(ranked.answers))
    models = rng.sample(MODELS, len(graded))
    responses = [{"model": model, "response": answer} for model, (_, answer) in zip(models, graded, strict=True)]
    ranks = zip(models, graded, strict=True)
    ratings = [{"model": model, "rating": str(5 - rank), "rationale": ""} for model, (rank, _) in ranks]
    return [ranked.row("code_ultrafeedback", responses=responses, annotations=ratings)]


def _two_ratings(rng: random.Random) -> dict[str, float]:
    high = rng.randint(6, 10)
    return {"high": float(high), "low": float(rng.randint(1, high - 2))}


def argilla_math(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """argilla/distilabel-math-preference-dpo: two answers, two ratings 1 to 10."""
    return [ranked.row("argilla_math", **_two_ratings(rng))]


def orca(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """argilla/distilabel-intel-orca-dpo-pairs: ratings in the order chosen, rejected; ``status`` never "tie"."""
    ratings, system = _two_ratings(rng), rng.choice(("", "You are a careful assistant."))
    return [ranked.row("orca", **ratings, system=system, status=rng.choice(("unchanged", "swapped")))]


def capybara(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """argilla/distilabel-capybara-dpo-7k-binarized: whole conversations, and the same as input/output pairs."""
    low, high = sorted(rng.sample((1, 2, 3, 4, 5), 2))
    chosen, rejected = ([*map(dict, ranked.turns), {"role": "assistant", "content": a}] for a in ranked.answers)
    exchanges = zip(chosen[::2], chosen[1::2], strict=True)
    pairs = [{"input": turn["content"], "output": reply["content"]} for turn, reply in exchanges]
    return [ranked.row("capybara", conversation=pairs, high=high, low=low, chosen=chosen, rejected=rejected)]


def summarize(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """openai/summarize_from_feedback (comparisons). The post is a question of the world, its summary an answer."""
    two = _two_places(ranked, rng)
    summaries = [{"text": two[side], "policy": f"sup{rng.randint(1, 4)}", "note": None} for side in "ab"]
    worker, confidence = f"worker-{rng.randint(1, 9)}", rng.randint(5, 9)
    return [ranked.row("summarize", **two, summaries=summaries, worker=worker, confidence=confidence)]


def nectar(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """berkeley-nest/Nectar: seven answers with ranks 1 (best) to 7."""
    numbered = enumerate(ranked.answers, start=1)
    answers = [{"answer": answer, "model": rng.choice(MODELS), "rank": float(rank)} for rank, answer in numbered]
    dialogue, answers = f"\n\nHuman: {ranked.prompt}\n\nAssistant: ", rng.sample(answers, len(answers))
    return [ranked.row("nectar", dialogue=dialogue, answers=answers, harmless=not ranked.harmful)]


WRITERS: dict[str, Callable[[RankedAnswers, random.Random], list[Row]]] = {
    writer.__name__: writer
    for writer in (
        hh_rlhf, shp, helpsteer, pku_safe_rlhf, ultrafeedback, ultrainteract,
        code_ultrafeedback, argilla_math, orca, capybara, summarize, nectar,
    )
}  # fmt: skip


def build_rows(world: World, seed: int, source: str, annotator: AnnotatorSettings, used: UsedPairs) -> list[Row]:
    """Clean native rows of one source: every pair differs, no ties, no duplicates; its pairs are added to ``used``."""
    rng = random.Random(f"{seed}:source:{source}")
    uses: Counter[str] = Counter()
    rows: list[Row] = []
    for number in range(annotator.rows):
        task, answers = _draw_answers(world, source, annotator, used, uses, rng)
        turns = [{"role": "user", "content": task.prompt}]
        if source in _DATA["multi_turn"] and rng.random() < world.settings.preferences.multi_turn_rate:
            past = _draw_task(world, annotator, rng)
            turns = [{"role": "user", "content": past.prompt}, {"role": "assistant", "content": past.answer}, *turns]
        answers = rank_responses(annotator, world, task.prompt, answers, rng)
        rows += WRITERS[source](RankedAnswers(f"{source}-{number}", turns, answers, task.harmful), rng)
    return rows


def _draw_answers(
    world: World, source: str, annotator: AnnotatorSettings, used: UsedPairs, uses: Counter[str], rng: random.Random
) -> tuple[Task, list[str]]:
    """Draw a task and answers that share no pair with an earlier row of any source."""
    limit = 1 if source in _DATA["answers"] else MAX_PAIRS_PER_PROMPT
    for _ in range(1000):
        task = _draw_task(world, annotator, rng)
        answers = _write_answers(world, source, task, rng)
        pairs = {(task.prompt, frozenset(pair)) for pair in combinations(answers, 2)}
        if uses[task.prompt] < limit and not pairs & used:
            uses[task.prompt] += 1
            used |= pairs
            return task, answers
    raise ValueError(f"simulator: {source} found no new pair in 1000 draws; lower its rows or add entities")


def _draw_task(world: World, annotator: AnnotatorSettings, rng: random.Random) -> Task:
    skills, weights = zip(*annotator.skill_weights.items(), strict=True)
    return world.draw_task(rng.choices(skills, weights=weights)[0], "train", rng)


def _write_answers(world: World, source: str, task: Task, rng: random.Random) -> list[str]:
    settings = world.settings.preferences
    if number := _DATA["answers"].get(source):
        right = rng.randint(1, number - 1)
        correct = [True] * right + [False] * (number - right)
    elif rng.random() < settings.contrast_rate:
        correct = [True, False]
    else:
        correct = [rng.random() < 0.5] * 2
    return write_distinct_responses(task, correct, settings.padded_rate, rng, settings.broken_rate)
