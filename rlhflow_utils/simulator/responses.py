"""Answers of mixed quality: right or wrong, short or padded, independently of each other; a few broken off."""

from __future__ import annotations

import random

from .lexicon import CLOSERS, OPENERS
from .tasks import Task

MISREAD_RATE = 0.4  # of the wrong answers, where a task can be misread
SHORTEST_PIECE = 4  # characters of a broken answer


def write_response(task: Task, correct: bool, padded: bool, rng: random.Random) -> str:
    """Write one answer.

    Args:
        task: The question.
        correct: Whether the answer is right.
        padded: Whether to add one to three filler sentences. A right answer gets filler only where the task
            allows it; a wrong answer gets it anywhere.
        rng: Source of randomness.
    """
    misread = task.misreadings and rng.random() < MISREAD_RATE
    core = task.answer if correct else rng.choice(task.misreadings if misread else task.wrong_answers)
    openers: list[str] = []
    closers: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 3)) if padded else 0):
        if rng.random() < 0.5:
            openers.append(rng.choice(OPENERS))
        else:
            closers.append(rng.choice(CLOSERS))
    if correct and not task.opener_allowed:
        openers = []
    if correct and not task.closer_allowed:
        closers = []
    return " ".join([*openers, core, *closers])


def write_distinct_responses(
    task: Task, correct: list[bool], padded_rate: float, rng: random.Random, broken_rate: float = 0.0
) -> list[str]:
    """Write different answers to one question, one per entry of ``correct``.

    Where a task has too few different right answers (one word is one word), wrong ones take their place. Of the wrong
    ones a share of ``broken_rate`` is broken off.
    """
    texts: list[str] = []
    for is_correct in correct:
        for attempt in range(200):
            text = write_response(task, is_correct and attempt < 20, rng.random() < padded_rate, rng)
            if broken_rate and not is_correct and rng.random() < broken_rate:
                text = break_off(text, rng)
            if text not in texts:
                texts.append(text)
                break
        else:
            raise ValueError(f"simulator: no {len(correct)} different answers to {task.prompt!r}")
    return texts


def break_off(text: str, rng: random.Random) -> str:
    """The beginning or the end of a text, cut anywhere: what a model writes that stops early, or starts too late."""
    length = rng.randint(SHORTEST_PIECE, max(SHORTEST_PIECE, len(text) - 1))
    return (text[:length] if rng.random() < 0.5 else text[-length:]).strip()
