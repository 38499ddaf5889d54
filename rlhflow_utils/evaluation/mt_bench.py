"""MT-Bench: 80 questions of two turns, each answer graded from 1 to 10 by a judge (Zheng et al. 2023; paper 4.1).

Questions, reference answers and judge prompts are FastChat's files, read from a local folder. As there, questions of
the categories math, reasoning and coding are judged beside a reference answer, and each category is answered at its own
temperature. A reply without a grade between 1 and 10 is counted and left out of the mean, never guessed. Unlike there,
the last grade of a reply counts, and an answer cannot look like one in the judge's prompt (see `judges.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rlhflow_utils.data.reading import FieldError, get, get_label, read_rows
from rlhflow_utils.evaluation.judges import ChatEndpoint, fill, last_verdict
from rlhflow_utils.evaluation.statistics import bootstrap_mean
from rlhflow_utils.models.chat import Message

REFERENCE_CATEGORIES = {"math", "reasoning", "coding"}
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1,
    "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
}  # fmt: skip
MAX_TOKENS = 2048  # of a grade with its explanation
NUMBER = r"(\d+(?:\.\d+)?)"
GRADE = rf"(?i)\[\[[\s*]*{NUMBER}[\s*]*(?:/\s*10)?[\s*]*\]\]|rating[\s:*]*\[{NUMBER}\]"
JudgePrompts = Mapping[str, tuple[str, str]]  # name -> system prompt, template with named places


class Question(NamedTuple):
    question_id: int
    category: str
    turns: list[str]  # two
    references: list[str] | None  # answers, in the categories that have them


def read_questions(folder: Path) -> list[Question]:
    """Questions with references, from ``question.jsonl`` and ``reference_answer_gpt-4.jsonl``; else a SourceError.

    The `reference` fields inside ``question.jsonl`` are not used: they are hints for people, as in FastChat.
    """

    def two_texts(row: dict[str, Any], path: str) -> list[str]:
        if len(get(row, path, list)) != 2:
            raise FieldError(f"field {path!r} must hold two turns")
        return [get(row, f"{path}.{turn}", str) for turn in (0, 1)]

    def question(row: dict[str, Any]) -> Question:
        identifier, category = get(row, "question_id", int), get_label(row, "category", list(TEMPERATURES))
        references = answers.get(identifier) if category in REFERENCE_CATEGORIES else None
        if category in REFERENCE_CATEGORIES and references is None:
            raise FieldError(f"question {identifier} has no reference answers in reference_answer_gpt-4.jsonl")
        return Question(identifier, category, two_texts(row, "turns"), references)

    def reference(row: dict[str, Any]) -> tuple[int, list[str]]:
        return get(row, "question_id", int), two_texts(row, "choices.0.turns")

    answers = dict(read_rows(folder / "reference_answer_gpt-4.jsonl", reference))
    return read_rows(folder / "question.jsonl", question)


def read_judge_prompts(path: Path) -> JudgePrompts:
    names = ("name", "system_prompt", "prompt_template")
    rows = read_rows(path, lambda row: [get(row, name, str) for name in names])
    return {name: (system, template) for name, system, template in rows}


def answer_questions(
    questions: Sequence[Question], answer: Callable[[Mapping[str, Sequence[Message]], float], Mapping[str, str]]
) -> dict[int, list[str]]:
    """Question id -> two answers, at the benchmark's temperatures, without questions with a turn that is too long.

    `answer` (conversation by key, temperature) gives the model's answers by key.
    """
    answers: dict[int, list[str]] = {question.question_id: [] for question in questions}
    for turn, temperature in product((0, 1), sorted(set(TEMPERATURES.values()))):
        # A question whose first turn was too long has no answer and gets no second turn.
        asked = {f"{q.question_id}-{turn}": q for q in questions
                 if TEMPERATURES[q.category] == temperature and len(answers[q.question_id]) == turn}  # fmt: skip
        conversations = {key: conversation(q, answers[q.question_id]) for key, q in asked.items()}
        for key, text in (answer(conversations, temperature) if asked else {}).items():
            answers[asked[key].question_id].append(text)
    return {identifier: given for identifier, given in answers.items() if len(given) == 2}


def conversation(question: Question, answers: Sequence[str]) -> list[Message]:
    """The turns up to the first that has no answer yet."""
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def grading_prompt(question: Question, answers: Sequence[str], turn: int, prompts: JudgePrompts) -> list[Message]:
    """What the judge is asked about turn 1 or 2; for the second it sees the whole conversation."""
    name = ("single-math-v1" if question.references else "single-v1") + ("-multi-turn" if turn == 2 else "")
    lists = {"question": question.turns, "ref_answer": question.references or []}
    places = {f"{place}_{i}": text for place, texts in lists.items() for i, text in enumerate(texts, start=1)}
    shown = {"answer": answers[0]} if turn == 1 else {"answer_1": answers[0], "answer_2": answers[1]}
    system, template = prompts[name]
    content = fill(template, shown, question=question.turns[0], **places)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def parse_grade(reply: str) -> float | None:
    """The last ``[[grade]]``, ``[[grade/10]]`` or ``rating: [grade]`` of a reply; None where not from 1 to 10.

    FastChat takes the first, and without one any ``[number]``, also an index in code and the number of a source.
    """
    found = last_verdict(reply, GRADE)
    return float(found) if found and 1 <= float(found) <= 10 else None


def grade_answers(
    questions: Sequence[Question], answers: Mapping[int, Sequence[str]], prompts: JudgePrompts, endpoint: ChatEndpoint
) -> pd.DataFrame:
    """`question_id`, `category`, `turn` (1 or 2) and `grade` (NaN: failed) of every turn; all must be answered."""
    turns = [(question, turn) for question in questions for turn in (1, 2)]
    asked = [grading_prompt(question, answers[question.question_id], turn, prompts) for question, turn in turns]
    table = pd.DataFrame([{"question_id": q.question_id, "category": q.category, "turn": turn} for q, turn in turns])
    return table.assign(grade=pd.Series(endpoint.ask(asked, parse_grade, MAX_TOKENS), dtype=float))


def summarise(grades: pd.DataFrame, samples: int, confidence: float, seed: int) -> dict[str, Any]:
    """Mean grade over all turns, by turn and by category; ValueError if no turn has a grade.

    Intervals are over questions, whose two turns are kept together; a question with one graded turn enters with it.
    """
    graded = grades.dropna()
    if graded.empty:
        raise ValueError(f"MT-Bench: none of {len(grades)} replies holds a grade from 1 to 10")

    def mean(part: pd.DataFrame) -> dict[str, float]:
        means = part.groupby("question_id", sort=False)["grade"].mean()
        return asdict(bootstrap_mean(means, samples, confidence, seed))

    return {
        "score": mean(graded), "ungraded": len(grades) - len(graded),
        "turns": {str(turn): mean(part) for turn, part in graded.groupby("turn")},
        "categories": {name: mean(part) for name, part in graded.groupby("category")},
    }  # fmt: skip
