"""Ranked answers written in the native schema of each source (field names of the hub's datasets).

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
from typing import Any

from rlhflow_utils.guide.settings import AnnotatorSettings
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.tasks import REFUSAL, Task, write_distinct_responses

Row = dict[str, Any]
UsedPairs = set[tuple[str, frozenset[str]]]  # a prompt and two answers

MULTI_TURN_SOURCES = ("hh_rlhf", "ultrainteract", "capybara")
ANSWERS_PER_PROMPT = {"helpsteer": 4, "ultrafeedback": 4, "code_ultrafeedback": 4, "nectar": 7}
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


def _shuffled_two(ranked: RankedAnswers, rng: random.Random) -> tuple[list[str], int]:
    """The two answers in random order, and the position of the better one."""
    better = rng.randrange(2)
    return (ranked.answers[::-1] if better else ranked.answers), better


def hh_rlhf(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """Anthropic/hh-rlhf: two whole dialogues as strings."""
    tags = {"user": "Human", "assistant": "Assistant"}
    dialogue = "".join(f"\n\n{tags[turn['role']]}: {turn['content']}" for turn in ranked.turns) + "\n\nAssistant: "
    return [{"chosen": dialogue + ranked.answers[0], "rejected": dialogue + ranked.answers[1]}]


def shp(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """stanfordnlp/SHP: two comments with vote counts, the better one with more than twice the votes."""
    answers, better = _shuffled_two(ranked, rng)
    low = rng.randint(2, 40)
    high = rng.randint(2 * low + 1, 8 * low)
    return [{
        "post_id": ranked.row_id, "domain": "askworld_test", "upvote_ratio": round(rng.uniform(0.7, 1.0), 2),
        "history": ranked.prompt, "human_ref_A": answers[0], "human_ref_B": answers[1], "labels": 1 - better,
        "score_A": low if better else high, "score_B": high if better else low, "score_ratio": high / low,
        "seconds_difference": float(rng.randint(60, 90_000)),
    }]  # fmt: skip


def helpsteer(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """nvidia/HelpSteer: one row per response, attributes 0 to 4; mean(helpfulness, correctness) follows the rank."""
    rows: list[Row] = []
    for rank, answer in enumerate(ranked.answers):
        helpfulness = 4 - rank
        rows.append({
            "prompt": ranked.prompt, "response": answer, "helpfulness": helpfulness,
            "correctness": max(helpfulness - rng.randrange(2), 0), "coherence": rng.randint(3, 4),
            "complexity": rng.randint(0, 2), "verbosity": min(len(answer) // 25, 4),
        })  # fmt: skip
    return rng.sample(rows, len(rows))


def pku_safe_rlhf(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """PKU-Alignment/PKU-SafeRLHF-30K: the better and the safer answer agree, as do the flags of clean rows."""
    answers, better = _shuffled_two(ranked, rng)
    safe = [not ranked.harmful or REFUSAL in answer for answer in answers]
    if safe[1 - better] and not safe[better]:
        safe = [not flag for flag in safe]  # the annotator's slip, made in every field alike
    return [{
        "prompt": ranked.prompt, "response_0": answers[0], "response_1": answers[1],
        "is_response_0_safe": safe[0], "is_response_1_safe": safe[1],
        "better_response_id": better, "safer_response_id": better,
    }]  # fmt: skip


def ultrafeedback(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """openbmb/UltraFeedback: four completions; the fine-grained score is the mean of four ratings 1 to 5."""
    completions = []
    for rank, answer in enumerate(ranked.answers):
        ratings = [5 - rank] * 4
        for lowered in rng.sample(range(4), rng.randrange(3)):
            ratings[lowered] = max(ratings[lowered] - 1, 1)
        aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
        completions.append({
            "model": f"model-{rng.choice('abcdefgh')}", "principle": rng.choice(aspects[1:]),
            "custom_system_prompt": "", "response": answer,
            "annotations": {aspect: {"Rating": str(rating), "Rationale": ""}
                            for aspect, rating in zip(aspects, ratings, strict=True)},
            "fine-grained_score": sum(ratings) / 4, "overall_score": float(10 - 2 * rank), "critique": "",
        })  # fmt: skip
    completions = rng.sample(completions, len(completions))
    return [{
        "source": "tiny_world", "instruction": ranked.prompt, "models": [c["model"] for c in completions],
        "correct_answers": ["None"], "incorrect_answers": ["None"], "completions": completions,
    }]  # fmt: skip


def ultrainteract(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """openbmb/UltraInteract_pair: a trajectory and two next actions."""
    parent = f"{ranked.row_id}-parent" if len(ranked.turns) > 1 else ranked.row_id
    return [{
        "task": "Math_CoT" if "+" in ranked.prompt or "Add" in ranked.prompt else "Coding", "dataset": "tiny_world",
        "id": ranked.row_id, "parent_id": parent,
        "trajectory": [{"from": turn["role"], "value": turn["content"]} for turn in ranked.turns],
        "chosen": ranked.answers[0], "rejected": ranked.answers[1],
    }]  # fmt: skip


def code_ultrafeedback(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """coseal/CodeUltraFeedback: four responses and, aligned with them, four ratings as strings."""
    graded = rng.sample(list(enumerate(ranked.answers)), len(ranked.answers))
    models = rng.sample([f"model-{letter}" for letter in "abcdefgh"], len(graded))
    return [{
        "instruction": ranked.prompt, "preference": "instruction-following",
        "responses": [{"model": model, "response": answer}
                      for model, (_, answer) in zip(models, graded, strict=True)],
        "annotations": [{"model": model, "rating": str(5 - rank), "rationale": ""}
                        for model, (rank, _) in zip(models, graded, strict=True)],
    }]  # fmt: skip


def _two_ratings(rng: random.Random) -> tuple[float, float]:
    high = rng.randint(6, 10)
    return float(high), float(rng.randint(1, high - 2))


def argilla_math(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """argilla/distilabel-math-preference-dpo: two answers, two ratings 1 to 10."""
    high, low = _two_ratings(rng)
    return [{
        "instruction": ranked.prompt, "chosen_response": ranked.answers[0], "rejected_response": ranked.answers[1],
        "chosen_rating": high, "rejected_rating": low,
    }]  # fmt: skip


def orca(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """argilla/distilabel-intel-orca-dpo-pairs: ratings in the order chosen, rejected; ``status`` never "tie"."""
    high, low = _two_ratings(rng)
    return [{
        "system": rng.choice(("", "You are a careful assistant.")), "input": ranked.prompt,
        "chosen": ranked.answers[0], "rejected": ranked.answers[1],
        "rating": [high, low], "status": rng.choice(("unchanged", "swapped")),
    }]  # fmt: skip


def capybara(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """argilla/distilabel-capybara-dpo-7k-binarized: whole conversations, and the same as input/output pairs."""
    high, low = rng.sample((1, 2, 3, 4, 5), 2)
    sides = [[*map(dict, ranked.turns), {"role": "assistant", "content": answer}] for answer in ranked.answers]
    chats = [turn["content"] for turn in sides[0]]
    return [{
        "conversation": [{"input": chats[i], "output": chats[i + 1]} for i in range(0, len(chats), 2)],
        "chosen": sides[0], "rejected": sides[1],
        "rating_chosen": max(high, low), "rating_rejected": min(high, low),
    }]  # fmt: skip


def summarize(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """openai/summarize_from_feedback (comparisons). The post is a question of the world, its summary an answer."""
    answers, better = _shuffled_two(ranked, rng)
    return [{
        "info": {"id": ranked.row_id, "post": ranked.prompt, "title": "", "subreddit": "askworld"},
        "summaries": [{"text": answer, "policy": f"sup{rng.randint(1, 4)}", "note": None} for answer in answers],
        "choice": better, "worker": f"worker-{rng.randint(1, 9)}", "batch": "batch1", "split": "train",
        "extra": {"confidence": rng.randint(5, 9)},
    }]  # fmt: skip


def nectar(ranked: RankedAnswers, rng: random.Random) -> list[Row]:
    """berkeley-nest/Nectar: seven answers with ranks 1 (best) to 7."""
    answers = [{"answer": answer, "model": f"model-{rng.choice('abcdefgh')}", "rank": float(rank)}
               for rank, answer in enumerate(ranked.answers, start=1)]  # fmt: skip
    return [{
        "prompt": f"\n\nHuman: {ranked.prompt}\n\nAssistant: ", "answers": rng.sample(answers, len(answers)),
        "turns": 1, "num_responses": len(answers), "source": ["tiny_world"], "good_natured": not ranked.harmful,
    }]  # fmt: skip


WRITERS: dict[str, Callable[[RankedAnswers, random.Random], list[Row]]] = {
    writer.__name__: writer
    for writer in (
        hh_rlhf, shp, helpsteer, pku_safe_rlhf, ultrafeedback, ultrainteract,
        code_ultrafeedback, argilla_math, orca, capybara, summarize, nectar,
    )
}  # fmt: skip


def build_rows(world: World, source: str, annotator: AnnotatorSettings, used: UsedPairs) -> list[Row]:
    """Clean native rows of one source: every pair differs, no ties, no duplicates; its pairs are added to ``used``."""
    rng = random.Random(f"{world.settings.seed}:source:{source}")
    uses: Counter[str] = Counter()
    rows: list[Row] = []
    for number in range(annotator.rows):
        task, answers = _draw_answers(world, source, annotator, used, uses, rng)
        turns = [*_earlier_turns(world, source, annotator, rng), {"role": "user", "content": task.prompt}]
        answers = rank_responses(annotator, world, task.prompt, answers, rng)
        rows += WRITERS[source](RankedAnswers(f"{source}-{number}", turns, answers, task.harmful), rng)
    return rows


def _draw_answers(
    world: World, source: str, annotator: AnnotatorSettings, used: UsedPairs, uses: Counter[str], rng: random.Random
) -> tuple[Task, list[str]]:
    """Draw a task and answers that share no pair with an earlier row of any source."""
    limit = 1 if source in ANSWERS_PER_PROMPT else MAX_PAIRS_PER_PROMPT
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
    if source in ANSWERS_PER_PROMPT:
        number = ANSWERS_PER_PROMPT[source]
        right = rng.randint(1, number - 1)
        correct = [True] * right + [False] * (number - right)
    elif rng.random() < settings.contrast_rate:
        correct = [True, False]
    else:
        correct = [rng.random() < 0.5] * 2
    return write_distinct_responses(task, correct, settings.padded_rate, rng, settings.broken_rate)


def _earlier_turns(world: World, source: str, annotator: AnnotatorSettings, rng: random.Random) -> list[dict[str, str]]:
    if source not in MULTI_TURN_SOURCES or rng.random() >= world.settings.preferences.multi_turn_rate:
        return []
    task = _draw_task(world, annotator, rng)
    return [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": task.answer}]
