"""MT-Bench: 80 questions of two turns, each answer graded from 1 to 10 by a judge (Zheng et al. 2023; paper 4.1).

Questions, reference answers and judge prompts are FastChat's files, read from a local folder. As there, questions of
the categories math, reasoning and coding are judged beside a reference answer, and each category is answered at its own
temperature. A reply without a grade between 1 and 10 is counted and left out of the mean, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rlhflow_utils.data.reading import read_rows
from rlhflow_utils.evaluation.judges import ChatEndpoint
from rlhflow_utils.evaluation.statistics import bootstrap_mean
from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings
from rlhflow_utils.models.chat import Message
from rlhflow_utils.online.generation import generate

REFERENCE_CATEGORIES = {"math", "reasoning", "coding"}
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1,
    "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0,
}  # fmt: skip
MAX_TOKENS = 2048  # of a grade with its explanation
NUMBER = r"(\d+(?:\.\d+)?)"
JudgePrompts = Mapping[str, tuple[str, str]]  # name -> system prompt, template with named places


class Question(NamedTuple):
    question_id: int
    category: str
    turns: list[str]  # two
    references: list[str] | None  # answers, in the categories that have them


class Grade(NamedTuple):
    question_id: int
    category: str
    turn: int  # 1 or 2
    grade: float | None  # None where the reply held none
    status: str  # the reply's, or `unparsable`


def read_questions(folder: Path) -> list[Question]:
    """Questions with references, from ``question.jsonl`` and ``reference_answer_gpt-4.jsonl``; else a SourceError.

    The `reference` fields inside ``question.jsonl`` are not used: they are hints for people, as in FastChat.
    """
    references_file = folder / "reference_answer_gpt-4.jsonl"
    answers = dict(read_rows(references_file, lambda row: (row["question_id"], row["choices"][0]["turns"])))

    def question(row: dict[str, Any]) -> Question:
        identifier, category = row["question_id"], row["category"]
        references = answers.get(identifier) if category in REFERENCE_CATEGORIES else None
        lacks = category in REFERENCE_CATEGORIES and (references is None or len(references) != 2)
        if len(row["turns"]) != 2 or category not in TEMPERATURES or lacks:
            raise ValueError(
                f"question {identifier}: needs two turns, one of the categories {sorted(TEMPERATURES)} and, "
                f"in {sorted(REFERENCE_CATEGORIES)}, two reference answers"
            )
        return Question(identifier, category, row["turns"], references)

    return read_rows(folder / "question.jsonl", question)


def read_judge_prompts(path: Path) -> JudgePrompts:
    return dict(read_rows(path, lambda row: (row["name"], (row["system_prompt"], row["prompt_template"]))))


def answer_questions(
    model: str | Path, questions: Sequence[Question], settings: GenerationSettings, model_settings: ModelSettings,
    out: Path, seed: int,
) -> tuple[dict[int, list[str]], dict[str, int]]:  # fmt: skip
    """Question id -> two answers, at the benchmark's temperatures; and the questions dropped, by reason."""
    answers: dict[int, list[str]] = {question.question_id: [] for question in questions}
    for turn, temperature in product((0, 1), sorted(set(TEMPERATURES.values()))):
        # A question whose first turn was too long has no answer and gets no second turn.
        rows = [{"prompt_id": f"{q.question_id}-{turn}", "prompt": conversation(q, answers[q.question_id])}
                for q in questions
                if TEMPERATURES[q.category] == temperature and len(answers[q.question_id]) == turn]  # fmt: skip
        if rows:
            folder = out / f"turn_{turn + 1}_temperature_{temperature}"
            data, _ = generate(model, rows, settings.variant(1, [temperature]), model_settings, folder, seed)
            for row in data:
                answers[int(row["prompt_id"].split("-")[0])].append(row["responses"][0])
    whole = {identifier: given for identifier, given in answers.items() if len(given) == 2}
    return whole, {"prompt_too_long": len(questions) - len(whole)}


def conversation(question: Question, answers: Sequence[str]) -> list[Message]:
    """The turns up to the first that has no answer yet."""
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def grading_prompt(question: Question, answers: Sequence[str], turn: int, prompts: JudgePrompts) -> list[Message]:
    """What the judge is asked about turn 1 or 2; for the second it sees the whole conversation."""
    name = ("single-math-v1" if question.references else "single-v1") + ("-multi-turn" if turn == 2 else "")
    lists = {"question": question.turns, "answer": answers, "ref_answer": question.references or []}
    places = {f"{place}_{i}": text for place, texts in lists.items() for i, text in enumerate(texts, start=1)}
    system, template = prompts[name]
    content = template.format(question=question.turns[0], answer=answers[0], **places)
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def parse_grade(reply: str) -> float | None:
    """The first ``[[grade]]`` of a reply, else ``[grade]``, as some judges write; None where not from 1 to 10."""
    found = re.search(rf"\[\[{NUMBER}\]\]", reply) or re.search(rf"\[{NUMBER}\]", reply)
    grade = float(found[1]) if found else None
    return grade if grade is not None and 1 <= grade <= 10 else None


def grade_answers(
    questions: Sequence[Question], answers: Mapping[int, Sequence[str]], prompts: JudgePrompts, endpoint: ChatEndpoint
) -> list[Grade]:
    """Two grades per question, in order; every question must be answered."""
    turns = [(question, turn) for question in questions for turn in (1, 2)]
    asked = [grading_prompt(question, answers[question.question_id], turn, prompts) for question, turn in turns]
    grades = []
    for (question, turn), reply in zip(turns, endpoint.ask(asked, MAX_TOKENS), strict=True):
        grade = parse_grade(reply.text) if reply.status == "answered" else None
        status = "unparsable" if reply.status == "answered" and grade is None else reply.status
        grades.append(Grade(question.question_id, question.category, turn, grade, status))
    return grades


def summarise(grades: Sequence[Grade], samples: int, confidence: float, seed: int) -> dict[str, Any]:
    """Mean grade over all turns, by turn and by category, with what could not be graded; ValueError if nothing was.

    Intervals are over questions, whose two turns are kept together; a question with one graded turn enters with it.
    """
    graded = [grade for grade in grades if grade.grade is not None]
    if not graded:
        raise ValueError(f"MT-Bench: none of {len(grades)} replies holds a grade from 1 to 10")

    def mean(part: Sequence[Grade]) -> dict[str, float]:
        means = pd.DataFrame(part).groupby("question_id", sort=False)["grade"].mean()
        return asdict(bootstrap_mean(means, samples, confidence, seed))

    turns, categories = Counter(one.turn for one in graded), sorted({one.category for one in graded})
    return {
        "score": mean(graded), "statuses": dict(Counter(grade.status for grade in grades)),
        "turns": {str(i): mean([one for one in graded if one.turn == i]) if turns[i] else None for i in (1, 2)},
        "categories": {name: mean([one for one in graded if one.category == name]) for name in categories},
    }  # fmt: skip
