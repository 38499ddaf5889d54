"""Arena-Hard: 500 hard prompts, every answer judged against a baseline's in both orders (Li et al. 2024; paper 4.1).

A verdict is one of five, from ``A>>B`` to ``B>>A``. As in the benchmark, a clear verdict counts as three battles, a
tie as half a battle won and half lost. The benchmark fits Bradley-Terry strengths to all battles; since each of them is
against the same baseline, the likelihood separates, and its maximum is each policy's weighted win rate: the score.

A judge that prefers the same *place* in both orders contradicts itself. Such pairs stay in (their two battles cancel
out, where both are clear or neither is) and are counted. Intervals come from a bootstrap over questions, a question's
two games kept together; the benchmark resamples single battles, which makes its intervals a little too narrow.

The last verdict of a reply counts (the benchmark takes none where several differ), and an answer cannot look like one
in the judge's prompt (see `judges.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rlhflow_utils.data.reading import get, read_rows
from rlhflow_utils.evaluation.judges import ChatEndpoint, fill, last_verdict
from rlhflow_utils.evaluation.statistics import bootstrap_mean
from rlhflow_utils.models.chat import Message

Texts = Mapping[str, str]  # question id -> text
PROMPTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
# Verdict -> (share of the battle won by A, weight).
VERDICTS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
MAX_TOKENS = 4096  # of a verdict with its explanation


class Games(NamedTuple):
    """Verdicts on one question (None: failed); the baseline is A in the first game."""

    first: str | None
    second: str | None

    @property
    def contradictory(self) -> bool:
        """Both verdicts prefer the answer in the same place."""
        preferred = [VERDICTS[verdict][0] for verdict in self if verdict]
        return len(preferred) == 2 and preferred[0] == preferred[1] != 0.5

    @property
    def battles(self) -> list[tuple[float, int]]:
        """(share won by the policy, weight) of the games that have a verdict."""
        battles = []
        if self.first:
            share, weight = VERDICTS[self.first]
            battles.append((1 - share, weight))
        if self.second:
            battles.append(VERDICTS[self.second])
        return battles


def read_questions(path: Path) -> dict[str, str]:
    """Question id -> prompt, from ``question.jsonl`` in its schema of 2024 or that of 2025; else a SourceError."""

    def question(row: dict[str, Any]) -> tuple[str, str]:
        if "uid" in row:
            return get(row, "uid", str), get(row, "prompt", str)
        return get(row, "question_id", str), get(row, "turns.0.content", str)

    return dict(read_rows(path, question))


def read_answers(path: Path) -> dict[str, str]:
    """Question id -> a model's answer, from a ``model_answer`` file."""
    return dict(read_rows(path, lambda row: (get(row, "question_id", str), get(row, "choices.0.turns.0.content", str))))


def comparison_prompt(prompt: str, answer_a: str, answer_b: str) -> list[Message]:
    """What the judge is asked, in the benchmark's layout."""
    content = fill(PROMPTS["question"], {"answer_a": answer_a, "answer_b": answer_b}, prompt=prompt)
    return [{"role": "system", "content": PROMPTS["system"]}, {"role": "user", "content": content}]


def parse_verdict(reply: str) -> str | None:
    """The last verdict of a reply; None where it has none, or the last is not one of `VERDICTS`."""
    verdict = re.sub(r"[\s*]", "", last_verdict(reply, r"\[\[([AB<>=\s*]+)\]\]") or "")
    return verdict if verdict in VERDICTS else None


def judge_answers(questions: Texts, answers: Texts, baseline: Texts, endpoint: ChatEndpoint) -> list[Games]:
    """Both games of every question that `answers` holds."""
    if unknown := [each for each in answers if each not in questions or each not in baseline]:
        raise ValueError(f"Arena-Hard: answer {unknown[0]!r} has no question or no baseline answer")
    rows = [(questions[identifier], baseline[identifier], answer) for identifier, answer in answers.items()]
    return [Games(*pair) for pair in endpoint.compare(rows, comparison_prompt, parse_verdict, MAX_TOKENS)]


def score(games: Sequence[Games], samples: int, confidence: float, seed: int) -> dict[str, Any]:
    """A policy's weighted win rate against the baseline, with its bootstrap interval and what the judge did.

    `score` has values in [0, 1] and n, the questions with a verdict; `verdicts` counts every verdict over both games,
    `contradictory` counts questions. Raises ValueError where no game has a verdict.
    """
    fought = [battles for each in games if (battles := each.battles)]
    if not fought:
        raise ValueError(f"Arena-Hard: none of the games of {len(games)} questions has a verdict")
    weights = [sum(weight for _, weight in battles) for battles in fought]
    won = [sum(share * weight for share, weight in battles) for battles in fought]
    return {
        "score": asdict(bootstrap_mean(np.divide(won, weights), samples, confidence, seed, weights)),
        "verdicts": dict(Counter(verdict for each in games for verdict in each if verdict)),
        "contradictory": sum(each.contradictory for each in games),
    }
