"""The preference sources: draw prompts, write answers, let the source's annotator rank them, write native rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations

from . import native_rows
from .annotators import rank_responses
from .gold import World
from .native_rows import Message, RankedAnswers, Row
from .responses import write_distinct_responses
from .settings import AnnotatorSettings
from .tasks import Task, draw_task

MIX1_SOURCES = ("hh_rlhf", "shp", "ultrafeedback", "summarize")
MULTI_TURN_SOURCES = ("hh_rlhf", "ultrainteract", "capybara")
ANSWERS_PER_PROMPT = {"helpsteer": 4, "ultrafeedback": 4, "code_ultrafeedback": 4, "nectar": 7}
MAX_PAIRS_PER_PROMPT = 5  # SHP's filter keeps five pairs a prompt; natural rows stay below it in every source

WRITERS: dict[str, Callable[[RankedAnswers, random.Random], list[Row]]] = {
    "hh_rlhf": native_rows.hh_rlhf, "shp": native_rows.shp, "helpsteer": native_rows.helpsteer,
    "pku_safe_rlhf": native_rows.pku_safe_rlhf, "ultrafeedback": native_rows.ultrafeedback,
    "ultrainteract": native_rows.ultrainteract, "code_ultrafeedback": native_rows.code_ultrafeedback,
    "argilla_math": native_rows.argilla_math, "orca": native_rows.orca, "capybara": native_rows.capybara,
    "summarize": native_rows.summarize, "nectar": native_rows.nectar,
}  # fmt: skip


class SourceBuilder:
    """Builds clean native rows. One builder serves all sources, so that no pair of answers occurs twice anywhere."""

    def __init__(self, world: World) -> None:
        """Start with no pair used."""
        self.world = world
        self._used: set[tuple[str, frozenset[str]]] = set()

    def build(self, source: str) -> list[Row]:
        """Native rows of one source, clean: every pair differs, no ties, no duplicates."""
        annotator = next(a for name, a in self.world.settings.preferences.sources.items() if name == source)
        rng = random.Random(f"{self.world.settings.seed}:source:{source}")
        uses: Counter[str] = Counter()
        rows: list[Row] = []
        for number in range(annotator.rows):
            ranked = self._draw(source, annotator, f"{source}-{number}", uses, rng)
            rows.extend(WRITERS[source](ranked, rng))
        return rows

    def _draw(
        self, source: str, annotator: AnnotatorSettings, row_id: str, uses: Counter[str], rng: random.Random
    ) -> RankedAnswers:
        """Draw a prompt and answers that share no pair with an earlier row, ranked by the annotator."""
        limit = 1 if source in ANSWERS_PER_PROMPT else MAX_PAIRS_PER_PROMPT
        for _ in range(1000):
            task = draw_training_task(self.world, _draw_skill(annotator, rng), rng)
            answers = self._write_answers(source, task, rng)
            pairs = {(task.prompt, frozenset(pair)) for pair in combinations(answers, 2)}
            if uses[task.prompt] < limit and not pairs & self._used:
                break
        else:
            raise ValueError(f"simulator: {source} found no new pair in 1000 draws; lower its rows or add entities")
        uses[task.prompt] += 1
        self._used |= pairs
        return RankedAnswers(
            row_id=row_id,
            context=self._draw_context(source, annotator, rng),
            prompt=task.prompt,
            answers=rank_responses(annotator, self.world, task.prompt, answers, rng),
            harmful=native_rows.is_harmful_request(task.key),
        )

    def _write_answers(self, source: str, task: Task, rng: random.Random) -> list[str]:
        settings = self.world.settings.preferences
        if source in ANSWERS_PER_PROMPT:
            number = ANSWERS_PER_PROMPT[source]
            right = rng.randint(1, number - 1)
            correct = [True] * right + [False] * (number - right)
        elif rng.random() < settings.contrast_rate:
            correct = [True, False]
        else:
            correct = [rng.random() < 0.5] * 2
        return write_distinct_responses(task, correct, settings.padded_rate, rng, settings.broken_rate)

    def _draw_context(self, source: str, annotator: AnnotatorSettings, rng: random.Random) -> list[Message]:
        if source not in MULTI_TURN_SOURCES or rng.random() >= self.world.settings.preferences.multi_turn_rate:
            return []
        task = draw_training_task(self.world, _draw_skill(annotator, rng), rng)
        return [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": task.answer}]


def draw_training_task(world: World, skill: str, rng: random.Random) -> Task:
    """Draw a task whose key is on the training side."""
    return draw_task_of_split(world, skill, "train", rng)


def draw_task_of_split(world: World, skill: str, split: str, rng: random.Random) -> Task:
    """Draw a task of one side: train, eval or benchmark."""
    while True:
        task = draw_task(world.lexicon, skill, rng)
        if world.split_of(task.key) == split:
            return task


def _draw_skill(annotator: AnnotatorSettings, rng: random.Random) -> str:
    return rng.choices(list(annotator.skill_weights), weights=list(annotator.skill_weights.values()))[0]
