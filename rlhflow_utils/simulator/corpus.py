"""The base model's corpus and the SFT set.

Built in, and said so: the corpus states the world's facts and holds questions with true answers, as the web does. It
also holds proofread pages (statements, each marked Right or Wrong), exam sheets (questions with marked answers) and
comparisons (two answers, and which is better), because a reward model can judge only what its base model
knows. Marks and comparisons speak of correctness alone: neither of length nor of filler. No held-out prompt occurs in
either set.
"""

from __future__ import annotations

import random
from dataclasses import replace

from .gold import World
from .lexicon import ATTRIBUTES
from .native_rows import Row
from .responses import write_distinct_responses, write_response
from .settings import Skill
from .sources import draw_training_task
from .tasks import LARGEST_DIGIT, Task

PREFERENCE_SKILLS: tuple[Skill, ...] = ("chat", "chat_hard", "safety", "reasoning")
QUESTIONS_PER_SHEET = 3
STATEMENTS_PER_PAGE = 6
SELF_CONTAINED: tuple[Skill, ...] = ("chat", "reasoning", "reasoning")  # reasoning has two kinds of task
ALL_SKILLS = (*PREFERENCE_SKILLS, "translation")


def write_corpus(world: World) -> list[Row]:
    """Documents of the base corpus, ``{"text": ...}``, in random order."""
    rng = random.Random(f"{world.settings.seed}:corpus")
    sizes = world.settings.corpus
    texts = [_statement(world, rng) for _ in range(sizes.statements)]
    texts += [_question(world, rng) for _ in range(sizes.questions)]
    texts += [_proofread_page(world, rng) for _ in range(sizes.proofread)]
    texts += [_exam_sheet(world, rng) for _ in range(sizes.graded)]
    texts += [_comparison(world, rng) for _ in range(sizes.comparisons)]
    rng.shuffle(texts)
    return [{"text": text} for text in texts]


def write_sft(world: World) -> list[Row]:
    """Conversations of the SFT set, in random order: demonstrations of mixed quality, translations, judgements."""
    rng = random.Random(f"{world.settings.seed}:sft")
    sizes = world.settings.sft
    rows = [_demonstration(world, rng) for _ in range(sizes.demonstrations)]
    for _ in range(sizes.translations):
        task = draw_training_task(world, "translation", rng)
        rows.append(_conversation(task.prompt, task.answer, "translations"))
    for _ in range(sizes.judgements):
        task, answers, better = _two_answers(world, rng)
        rows.append(_conversation(judge_prompt(task.prompt, *answers), "AB"[better], "judgements"))
    rng.shuffle(rows)
    return rows


def judge_prompt(prompt: str, response_a: str, response_b: str) -> str:
    """The pairwise question in the format of the paper's preference model, answered by one letter."""
    return f"[CONTEXT] <turn> user\n {prompt} [RESPONSE A] {response_a} [RESPONSE B] {response_b}"


def _statement(world: World, rng: random.Random) -> str:
    form = rng.randrange(4)
    if form == 0:
        entity = rng.choice(world.lexicon.entities)
        return " ".join(f"The {a} of {entity} is {world.lexicon.facts[entity, a]}." for a in ATTRIBUTES)
    if form == 1:
        entity = rng.choice(world.lexicon.entities)
        chosen = rng.sample(list(ATTRIBUTES), 3)
        return f"About {entity}: " + ", ".join(f"{a} {world.lexicon.facts[entity, a]}" for a in chosen) + "."
    if form == 2:
        words = rng.sample(list(world.lexicon.dictionary), 4)
        return "Dictionary: " + ", ".join(f"{word} is {world.lexicon.dictionary[word]}" for word in words) + "."
    return " ".join(_table_line(rng) for _ in range(3))


def _table_line(rng: random.Random) -> str:
    a, b = rng.randint(0, LARGEST_DIGIT), rng.randint(0, LARGEST_DIGIT)
    return f"{a}+{b}={a + b}." if rng.random() < 0.7 or b > a else f"{a}-{b}={a - b}."


def _question(world: World, rng: random.Random) -> str:
    task = draw_training_task(world, rng.choice(ALL_SKILLS), rng)
    return f"{task.prompt}\n{write_response(task, True, rng.random() < 0.3, rng)}"


def _proofread_page(world: World, rng: random.Random) -> str:
    """Facts and sums, true and false, each with its mark. Such answers say what they are about: no question is needed,
    and none can be misread."""
    tasks = [draw_training_task(world, rng.choice(SELF_CONTAINED), rng) for _ in range(STATEMENTS_PER_PAGE)]
    tasks = [replace(task, misreadings=()) for task in tasks]
    return " ".join(_marked(world, task.prompt, write_response(task, rng.random() < 0.5, False, rng)) for task in tasks)


def _exam_sheet(world: World, rng: random.Random) -> str:
    """Questions with one answer each and its mark. One answer each: a second mark could be told from the first."""
    return "\n".join(_marked_answer(world, rng) for _ in range(QUESTIONS_PER_SHEET))


def _marked_answer(world: World, rng: random.Random) -> str:
    task = draw_training_task(world, rng.choice(PREFERENCE_SKILLS), rng)
    answer = write_response(task, rng.random() < 0.5, rng.random() < 0.15, rng)
    return f"{task.prompt}\n{_marked(world, task.prompt, answer)}"


def _comparison(world: World, rng: random.Random) -> str:
    """Two answers in the format of the preference model, and at the end the better one."""
    task, answers, better = _two_answers(world, rng)
    return f"{judge_prompt(task.prompt, *answers)}\n{'AB'[better]}"


def _marked(world: World, prompt: str, answer: str) -> str:
    return f"{answer} {'Right' if world.is_correct(prompt, answer) else 'Wrong'}"


def _two_answers(world: World, rng: random.Random) -> tuple[Task, list[str], int]:
    """A task, a right and a wrong answer in random order, and the position of the right one."""
    task = draw_training_task(world, rng.choice(PREFERENCE_SKILLS), rng)
    better = rng.randrange(2)
    right, wrong = write_distinct_responses(task, [True, False], 0.4, rng)
    return task, [wrong, right] if better else [right, wrong], better


def _demonstration(world: World, rng: random.Random) -> Row:
    sizes = world.settings.sft
    task = draw_training_task(world, rng.choice(PREFERENCE_SKILLS), rng)
    answer = write_response(task, rng.random() < sizes.correct_rate, rng.random() < sizes.padded_rate, rng)
    return _conversation(task.prompt, answer, "demonstrations")


def _conversation(prompt: str, answer: str, source: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "source": source}
