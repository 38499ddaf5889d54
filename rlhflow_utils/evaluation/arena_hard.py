"""Arena-Hard: 500 hard prompts, every answer judged against a baseline's in both orders (Li et al. 2024; paper 4.1).

A verdict is one of five, from ``A>>B`` to ``B>>A``. As in the benchmark, a clear verdict counts as three battles, a
tie as half a battle won and half lost. The benchmark fits Bradley-Terry strengths to all battles; since each of them is
against the same baseline, the likelihood separates, and its maximum is each policy's weighted win rate: the score.

A judge that prefers the same *place* in both orders contradicts itself. Such pairs stay in (their two battles cancel
out, where both are clear or neither is) and are counted. Intervals come from a bootstrap over questions, a question's
two games kept together; the benchmark resamples single battles, which makes its intervals a little too narrow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhflow_utils.data.reading import read_rows
from rlhflow_utils.evaluation.judges import ChatEndpoint
from rlhflow_utils.evaluation.statistics import Estimate
from rlhflow_utils.models.chat import Message

Texts = Mapping[str, str]  # question id -> text
# Verdict -> (share of the battle won by A, weight).
VERDICTS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
PATTERN = re.compile(r"\[\[([AB<>=]+)\]\]")
MAX_TOKENS = 4096  # of a verdict with its explanation
# The benchmark's own wording is not among our files; this asks for the same verdicts in our words.
SYSTEM_PROMPT = (
    "You compare two assistants' answers to a user prompt. First answer the prompt yourself. Then compare both answers "
    "with yours: find mistakes, ask whether they help, keep to the point and say what is needed; do not let the order "
    "of the answers decide. End with one verdict in exactly one of these forms: [[A>>B]] (A is clearly better), "
    "[[A>B]] (A is slightly better), [[A=B]] (equal), [[B>A]] (B is slightly better), [[B>>A]] (B is clearly better)."
)


class Games(NamedTuple):
    """Verdicts on one question, or ``unparsable``, ``refused``, ``timed_out``; the baseline is A in the first game."""

    question_id: str
    first: str
    second: str

    @property
    def contradictory(self) -> bool:
        """Both verdicts prefer the answer in the same place."""
        preferred = [VERDICTS[verdict][0] for verdict in (self.first, self.second) if verdict in VERDICTS]
        return len(preferred) == 2 and preferred[0] == preferred[1] != 0.5


def read_questions(path: Path) -> dict[str, str]:
    """Question id -> prompt, from ``question.jsonl`` in its schema of 2024 or that of 2025; else a SourceError."""

    def question(row: dict[str, Any]) -> tuple[str, str]:
        if "uid" in row:
            return str(row["uid"]), str(row["prompt"])
        return str(row["question_id"]), str(row["turns"][0]["content"])

    return dict(read_rows(path, question))


def read_answers(path: Path) -> dict[str, str]:
    """Question id -> a model's answer, from a ``model_answer`` file."""
    return dict(read_rows(path, lambda row: (row["question_id"], row["choices"][0]["turns"][0]["content"])))


def comparison_prompt(prompt: str, answer_a: str, answer_b: str) -> list[Message]:
    """What the judge is asked, in the benchmark's layout."""
    content = (
        f"<|User Prompt|>\n{prompt}\n\n<|The Start of Assistant A's Answer|>\n{answer_a}\n<|The End of Assistant A's "
        f"Answer|>\n\n<|The Start of Assistant B's Answer|>\n{answer_b}\n<|The End of Assistant B's Answer|>"
    )
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": content}]


def parse_verdict(reply: str) -> str:
    """One of `VERDICTS`; ``unparsable`` where a reply has none, or several that differ."""
    found = set(PATTERN.findall(reply))
    return found.pop() if len(found) == 1 and found <= set(VERDICTS) else "unparsable"


def judge_answers(questions: Texts, answers: Texts, baseline: Texts, endpoint: ChatEndpoint) -> list[Games]:
    """Both games of every question that `answers` holds."""
    if unknown := [each for each in answers if each not in questions or each not in baseline]:
        raise ValueError(f"Arena-Hard: answer {unknown[0]!r} has no question or no baseline answer")
    rows = [(questions[identifier], baseline[identifier], answer) for identifier, answer in answers.items()]
    verdicts = endpoint.compare(rows, comparison_prompt, parse_verdict, MAX_TOKENS)
    return [Games(identifier, *pair) for identifier, pair in zip(answers, verdicts, strict=True)]


def battles(games: Games) -> list[tuple[float, int]]:
    """(share won by the policy, weight) of the games that have a verdict; none for the others."""
    first = [(1.0 - won, weight) for won, weight in [VERDICTS[games.first]]] if games.first in VERDICTS else []
    return first + ([VERDICTS[games.second]] if games.second in VERDICTS else [])


def score(games: Sequence[Games], samples: int, confidence: float, seed: int) -> dict[str, Any]:
    """A policy's weighted win rate against the baseline, with its bootstrap interval and what the judge did.

    `score` has values in [0, 1] and n, the questions with a verdict; `verdicts` counts every verdict and failure over
    both games, `contradictory` counts questions. Raises ValueError where no game has a verdict.
    """
    won = np.array([sum(share * weight for share, weight in battles(each)) for each in games])
    fought = np.array([sum(weight for _, weight in battles(each)) for each in games])
    if not fought.any():
        raise ValueError(f"Arena-Hard: none of the games of {len(games)} questions has a verdict")
    times = np.random.default_rng(seed).multinomial(len(games), np.full(len(games), 1 / len(games)), size=samples)
    with np.errstate(invalid="ignore"):  # a draw without any battle says nothing
        draws = (times @ won) / (times @ fought)
    low, high = np.nanpercentile(draws, [50 * (1 - confidence), 50 * (1 + confidence)])
    value = Estimate(float(won.sum() / fought.sum()), float(low), float(high), int((fought > 0).sum()))
    verdicts = Counter(verdict for each in games for verdict in (each.first, each.second))
    contradictory = sum(each.contradictory for each in games)
    return {"score": asdict(value), "verdicts": dict(verdicts), "contradictory": contradictory}
