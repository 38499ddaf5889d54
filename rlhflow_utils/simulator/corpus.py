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

from rlhflow_utils.guide.settings import Skill
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.native_rows import Row, draw_task_of_split, draw_training_task, is_harmful_request
from rlhflow_utils.simulator.tasks import ATTRIBUTES, LARGEST_DIGIT, Task, write_distinct_responses, write_response

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
