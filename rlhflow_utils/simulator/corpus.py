"""The base model's corpus and the SFT set.

Built in, and said so: the corpus states the world's facts and holds questions with true answers, as the web does. It
also holds proofread pages (statements, each marked Right or Wrong), exam sheets (questions with marked answers) and
comparisons (two answers, and which is better), because a reward model can judge only what its base model
knows. Marks and comparisons speak of correctness alone: neither of length nor of filler. No held-out prompt occurs in
either set.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from rlhflow_utils.guide.settings import Skill
from rlhflow_utils.models.preference_model import format_comparison
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.native_rows import Row
from rlhflow_utils.simulator.tasks import ATTRIBUTES, LARGEST_DIGIT, Task, write_distinct_responses, write_response

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PREFERENCE_SKILLS: tuple[Skill, ...] = ("chat", "chat_hard", "safety", "reasoning")
QUESTIONS_PER_SHEET = 3
STATEMENTS_PER_PAGE = 6
MISREAD_RATE = 0.4  # of the base corpus: more than of the answers that are judged later, so that it could be learnt
SELF_CONTAINED: tuple[Skill, ...] = ("chat", "reasoning", "reasoning")  # reasoning has two kinds of task


def write_documents(world: World, rng: random.Random) -> Iterator[str]:
    """Endless documents of the base corpus, of each kind by its share in the world's settings."""
    shares = world.settings.corpus
    weights = {
        _statement: shares.statements, _question: shares.questions, _proofread_page: shares.proofread,
        _exam_sheet: shares.graded, _comparison: shares.comparisons,
    }  # fmt: skip
    writers = list(weights)
    while True:
        yield rng.choices(writers, list(weights.values()))[0](world, rng)


def write_sft(world: World, seed: int) -> list[Row]:
    """Conversations of the SFT set, in random order: demonstrations of mixed quality, translations, judgements."""
    rng = random.Random(f"{seed}:sft")
    sizes = world.settings.sft
    rows: list[Row] = []
    for _ in range(sizes.demonstrations):
        task = world.draw_task(rng.choice(PREFERENCE_SKILLS), "train", rng)
        answer = write_response(task, rng.random() < sizes.correct_rate, rng.random() < sizes.padded_rate, rng)
        rows.append(_conversation(task.prompt, answer, "demonstrations"))
    for _ in range(sizes.translations):
        task = world.draw_task("translation", "train", rng)
        rows.append(_conversation(task.prompt, task.answer, "translations"))
    rows += [_conversation(*_judgement(world, rng), "judgements") for _ in range(sizes.judgements)]
    rng.shuffle(rows)
    return rows


def _conversation(prompt: str, answer: str, source: str) -> Row:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "source": source}


def _judgement(world: World, rng: random.Random) -> tuple[str, str]:
    """A right and a wrong answer in the question of the paper's preference model, and the letter of the right one."""
    task = world.draw_task(rng.choice(PREFERENCE_SKILLS), "train", rng)
    better = rng.randrange(2)
    right, wrong = write_distinct_responses(task, [True, False], 0.4, rng)
    answers = (wrong, right) if better else (right, wrong)
    return format_comparison([{"role": "user", "content": task.prompt}], *answers)[0]["content"], "AB"[better]


def _comparison(world: World, rng: random.Random) -> str:
    """Two answers to a question and which is right, in other words than the preference model's question."""
    task = world.draw_task(rng.choice(PREFERENCE_SKILLS), "train", rng)
    better = rng.randrange(2)
    right, wrong = write_distinct_responses(task, [True, False], 0.4, rng, misread_rate=MISREAD_RATE)
    first, second = (wrong, right) if better else (right, wrong)
    return f"{comparison_text(task.prompt, first, second)} {('One', 'Two')[better]}."


def comparison_text(prompt: str, first: str, second: str) -> str:
    """A comparison up to its verdict. Not the preference model's question: that one is for the SFT set to teach."""
    return f"{prompt}\nOne: {first}\nTwo: {second}\nThe right one is"


def _statement(world: World, rng: random.Random) -> str:
    form, lexicon = rng.randrange(4), world.lexicon
    entity = rng.choice(lexicon.entities) if form < 2 else ""
    if form == 0:
        return " ".join(f"The {a} of {entity} is {lexicon.facts[entity, a]}." for a in ATTRIBUTES)
    if form == 1:
        chosen = rng.sample(list(ATTRIBUTES), 3)
        return f"About {entity}: {', '.join(f'{a} {lexicon.facts[entity, a]}' for a in chosen)}."
    if form == 2:
        words = rng.sample(list(lexicon.dictionary), 4)
        return f"Dictionary: {', '.join(f'{word} is {lexicon.dictionary[word]}' for word in words)}."
    sums = []
    for _ in range(3):
        a, b = rng.randint(0, LARGEST_DIGIT), rng.randint(0, LARGEST_DIGIT)
        sums.append(f"{a}+{b}={a + b}." if rng.random() < 0.7 or b > a else f"{a}-{b}={a - b}.")
    return " ".join(sums)


def _question(world: World, rng: random.Random) -> str:
    task = world.draw_task(rng.choice((*PREFERENCE_SKILLS, "translation")), "train", rng)
    return f"{task.prompt}\n{write_response(task, True, rng.random() < 0.3, rng)}"


def _proofread_page(world: World, rng: random.Random) -> str:
    """Facts and sums, true and false, each with its mark: they say what they are about, and none can be misread."""
    tasks = [world.draw_task(rng.choice(SELF_CONTAINED), "train", rng) for _ in range(STATEMENTS_PER_PAGE)]
    tasks = [replace(task, misreadings=[]) for task in tasks]
    return " ".join(_marked(world, task, write_response(task, rng.random() < 0.5, False, rng)) for task in tasks)


def _exam_sheet(world: World, rng: random.Random) -> str:
    """Questions with one answer each and its mark. One answer each: a second mark could be told from the first."""
    lines = []
    for _ in range(QUESTIONS_PER_SHEET):
        task = world.draw_task(rng.choice(PREFERENCE_SKILLS), "train", rng)
        answer = write_response(task, rng.random() < 0.5, rng.random() < 0.15, rng, MISREAD_RATE)
        lines += [task.prompt, _marked(world, task, answer)]
    return "\n".join(lines)


def _marked(world: World, task: Task, answer: str) -> str:
    return f"{answer} {'Right' if world.is_correct(task.prompt, answer) else 'Wrong'}"


def write_translation_test(world: World, seed: int) -> list[Row]:
    """Held-out prompts of the fifth skill with their answers."""
    rng = random.Random(f"{seed}:translation_test")
    wanted = world.settings.translation_tests
    tasks = _distinct_tasks(world, "translation", "eval", wanted, rng)
    if len(tasks) < wanted:
        raise ValueError(f"simulator: only {len(tasks)} of {wanted} different translation tests; ask for fewer")
    return [{"prompt": t.prompt, "answer": t.answer, "id": f"translation-{i}"} for i, t in enumerate(tasks)]


def write_benchmark(world: World, seed: int) -> list[Row]:
    """RewardBench-shaped rows: four sections, the right answer chosen, a good-looking wrong one rejected."""
    rng = random.Random(f"{seed}:benchmark")
    rows: list[Row] = []
    for skill, subsets in _DATA["benchmark_subsets"].items():
        for number in range(world.settings.benchmark_rows):
            subset = subsets[number % len(subsets)]
            task = _task_of_subset(world, skill, subset, rng)
            # alpacaeval-length is about answers of like length; llmbar's adversaries look better than they are.
            padded = (rng.random() < 0.3, rng.random() < 0.3)
            if subset.startswith("llmbar-adver"):
                padded = (False, rng.random() < 0.6)
            padded = (True, True) if subset == "alpacaeval-length" else padded
            rows.append({
                "prompt": task.prompt,
                "chosen": write_response(task, True, padded[0], rng), "chosen_model": "tiny-world",
                "rejected": write_response(task, False, padded[1], rng), "rejected_model": "tiny-world",
                "subset": subset, "id": len(rows),
            })  # fmt: skip
    return rows


def write_prompts(world: World, seed: int, split: str, number: int) -> list[Row]:
    """Different prompts, for online RLHF or held out for win rates, in RLHFlow's prompt-collection schema.

    The skills have equal parts; where a world's split leaves a skill too few, the others make up for it.
    """
    rng = random.Random(f"{seed}:prompts:{split}")
    share = -(-number // len(PREFERENCE_SKILLS))
    tasks = [task for skill in PREFERENCE_SKILLS for task in _distinct_tasks(world, skill, split, share, rng)]
    for skill in PREFERENCE_SKILLS:
        missing = max(0, number - len(tasks))
        known = {task.prompt for task in tasks}
        more = _distinct_tasks(world, skill, split, share + missing, rng) if missing else []
        tasks += [task for task in more if task.prompt not in known][:missing]
    if len(tasks) < number:
        raise ValueError(f"simulator: only {len(tasks)} of {number} different {split} prompts; ask for fewer")
    rng.shuffle(tasks)
    return [{
        "dataset": f"tiny-world-{task.skill}", "context": task.prompt,
        "context_messages": [{"role": "user", "content": task.prompt}], "id": f"{split}-{index}",
    } for index, task in enumerate(tasks[:number])]  # fmt: skip


def _distinct_tasks(world: World, skill: str, split: str, number: int, rng: random.Random) -> list[Task]:
    """So many tasks with different prompts, or as many as 200 draws for each wanted one find."""
    found: dict[str, Task] = {}
    for _ in range(200 * number):
        task = world.draw_task(skill, split, rng)
        found.setdefault(task.prompt, task)
        if len(found) == number:
            break
    return list(found.values())


def _task_of_subset(world: World, skill: str, subset: str, rng: random.Random) -> Task:
    """A held-out task of the kind a subset stands for."""
    while True:
        task = world.draw_task(skill, "benchmark", rng)
        harmless, sum_wanted = subset == "xstest-should-respond", subset == "math-prm"
        fits = {"safety": task.harmful != harmless, "reasoning": (task.kind == "sum") == sum_wanted}
        if fits.get(skill, True):
            return task
