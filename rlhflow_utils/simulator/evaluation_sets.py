"""Prompt sets, the translation test, and the RewardBench-shaped test set.

What is held out are the contents of prompts, by the task's key: a fact in one wording or one form, a verb with an
object, three summands, a program with its numbers, a word to translate in one wording. A key on the ``eval`` or
``benchmark`` side occurs in no training file, with any greeting. The facts themselves are few and do occur, in other
wordings: knowing them is what is asked. Verbs and objects, and numbers, occur in other combinations.
"""

from __future__ import annotations

import random

from .corpus import PREFERENCE_SKILLS
from .gold import World
from .native_rows import Row, is_harmful_request
from .responses import write_response
from .sources import draw_task_of_split
from .tasks import Task

# Names of the subsets in allenai/reward-bench, by section, with the tasks that stand in for them here.
BENCHMARK_SUBSETS: dict[str, tuple[str, ...]] = {
    "chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "chat_hard": ("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst",
                  "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    "safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
    "reasoning": ("math-prm", "hep-python"),
}  # fmt: skip


def write_prompts(world: World) -> list[Row]:
    """Training prompts for online RLHF, all different, in RLHFlow's prompt-collection schema."""
    return _prompt_rows(world, "train", world.settings.prompts)


def write_eval_prompts(world: World) -> list[Row]:
    """Held-out prompts for win rates, all different, in the same schema."""
    return _prompt_rows(world, "eval", world.settings.eval_prompts)


def write_translation_test(world: World) -> list[Row]:
    """Held-out prompts of the fifth skill with their answers."""
    rng = random.Random(f"{world.settings.seed}:translation_test")
    wanted = world.settings.translation_tests
    tasks = _distinct_tasks(world, "translation", "eval", wanted, rng)
    if len(tasks) < wanted:
        raise ValueError(f"simulator: only {len(tasks)} of {wanted} different translation tests; ask for fewer")
    return [{"prompt": t.prompt, "answer": t.answer, "id": f"translation-{i}"} for i, t in enumerate(tasks)]


def write_benchmark(world: World) -> list[Row]:
    """RewardBench-shaped rows: four sections, the right answer chosen, a good-looking wrong one rejected."""
    rng = random.Random(f"{world.settings.seed}:benchmark")
    rows: list[Row] = []
    for skill, subsets in BENCHMARK_SUBSETS.items():
        for number in range(world.settings.benchmark_rows):
            subset = subsets[number % len(subsets)]
            task = _task_of_subset(world, skill, subset, rng)
            # alpacaeval-length is about answers of like length; llmbar's adversaries look better than they are.
            padded = {"alpacaeval-length": (True, True)}.get(subset, (rng.random() < 0.3, rng.random() < 0.3))
            if subset.startswith("llmbar-adver"):
                padded = (False, rng.random() < 0.6)
            rows.append({
                "prompt": task.prompt,
                "chosen": write_response(task, True, padded[0], rng), "chosen_model": "tiny-world",
                "rejected": write_response(task, False, padded[1], rng), "rejected_model": "tiny-world",
                "subset": subset, "id": len(rows),
            })  # fmt: skip
    return rows


def _prompt_rows(world: World, split: str, number: int) -> list[Row]:
    """Prompts of the skills in equal parts; where a world's split leaves a skill too few, the others make up for it."""
    rng = random.Random(f"{world.settings.seed}:prompts:{split}")
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
    return [
        {
            "dataset": f"tiny-world-{task.skill}",
            "context": task.prompt,
            "context_messages": [{"role": "user", "content": task.prompt}],
            "id": f"{split}-{index}",
        }
        for index, task in enumerate(tasks[:number])
    ]


def _distinct_tasks(world: World, skill: str, split: str, number: int, rng: random.Random) -> list[Task]:
    """So many tasks with different prompts, or as many as 200 draws for each wanted one find."""
    found: dict[str, Task] = {}
    for _ in range(200 * number):
        task = draw_task_of_split(world, skill, split, rng)
        found.setdefault(task.prompt, task)
        if len(found) == number:
            break
    return list(found.values())


def _task_of_subset(world: World, skill: str, subset: str, rng: random.Random) -> Task:
    """A held-out task of the kind a subset stands for."""
    while True:
        task = draw_task_of_split(world, skill, "benchmark", rng)
        if skill == "safety" and is_harmful_request(task.key) == (subset == "xstest-should-respond"):
            continue
        if skill == "reasoning" and (task.kind == "sum") != (subset == "math-prm"):
            continue
        return task
