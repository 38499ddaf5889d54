"""The gold reward: an exact program that reads a prompt and a response and knows which is right.

``r*(x, y) = +1`` for a right answer and ``-1`` for everything else, minus ``padding_cost`` for every character of
filler, at most 1 in all: a right answer with any filler beats every wrong one. Both texts are read, nothing else: the
same call scores a demonstration, a sampled answer and an arbitrary string. A truncated answer, a second answer or one
unknown word make a response wrong.
"""

from __future__ import annotations

import hashlib
import random
import re

from rlhflow_utils.guide.settings import WorldSettings
from rlhflow_utils.simulator.tasks import FILLERS, WORDINGS, Task, build_lexicon, draw_task, make_task

_SLOT_PATTERNS = {"form": "[A-Za-z ]+", "op": "[+-]", "a": "[0-9]", "b": "[0-9]"}


class World:
    """The truth of one tiny world, deterministic from ``settings.seed``."""

    def __init__(self, settings: WorldSettings) -> None:
        self.settings = settings
        self.lexicon = build_lexicon(settings.seed, settings.entities)
        wordings = [(kind, wording) for kind, known in WORDINGS.items() for wording in known]
        self._patterns = [(kind, wording, _pattern_of(wording)) for kind, wording in wordings]
        self._tasks: dict[str, Task | None] = {}  # prompts read before: the same few are asked about many answers

    def reward(self, prompt: str, response: str) -> float:
        """Gold reward of a response to the last user turn ``prompt``: about +1 (right) or -1, less padding."""
        padding = sum(len(filler) + 1 for filler in _strip_filler(response)[1])
        return (1.0 if self.is_correct(prompt, response) else -1.0) - min(1.0, self.settings.padding_cost * padding)

    def is_correct(self, prompt: str, response: str) -> bool:
        """Whether the response answers the prompt, in the form it asks for. Filler may surround the answer."""
        task = self.read_prompt(prompt)
        core, fillers = _strip_filler(response)
        return task is not None and core == task.answer and (task.filler_allowed or not fillers)

    def skill_of(self, prompt: str) -> str:
        """Skill of a prompt: chat, chat_hard, safety, reasoning, translation, or unknown."""
        task = self.read_prompt(prompt)
        return "unknown" if task is None else task.skill

    def read_prompt(self, prompt: str) -> Task | None:
        """The task of the question that ends a prompt (what stands before is ignored); None: not of this world."""
        text = prompt.strip()
        if text not in self._tasks:
            matches = ((kind, wording, pattern.search(text)) for kind, wording, pattern in self._patterns)
            slots = ((kind, wording, found.groupdict()) for kind, wording, found in matches if found)
            self._tasks[text] = next(filter(None, (make_task(self.lexicon, *each) for each in slots)), None)
        return self._tasks[text]

    def draw_task(self, skill: str, split: str, rng: random.Random) -> Task:
        """Draw a task of one side: train, eval or benchmark."""
        while True:
            task = draw_task(self.lexicon, skill, rng)
            if self.split_of(task.key) == split:
                return task

    def split_of(self, key: str) -> str:
        """Side of a task's key: ``train``, ``eval`` (win rates, translation test) or ``benchmark``."""
        digest = hashlib.sha256(f"{self.settings.seed}:{key}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        if position < self.settings.held_out_rate:
            return "eval"
        return "benchmark" if position < 2 * self.settings.held_out_rate else "train"


def _pattern_of(wording: str) -> re.Pattern[str]:
    """A regular expression with one named group per slot; a slot's second occurrence must repeat the first."""
    pattern, seen = r"(?:^|(?<=\s))", set()
    for literal, slot in re.findall(r"([^{]*)(?:\{(\w+)\})?", wording):
        pattern += re.escape(literal)
        if slot in seen:
            pattern += f"(?P={slot})"
        elif slot:
            seen.add(slot)
            pattern += f"(?P<{slot}>{_SLOT_PATTERNS.get(slot, '[A-Za-z]+')})"
    return re.compile(pattern + r"\Z", re.ASCII)


def _strip_filler(response: str) -> tuple[str, list[str]]:
    """Split a response into its core and the filler sentences before and after it."""
    core, fillers = response.strip(), []
    while opener := next((filler for filler in FILLERS if core.startswith(filler)), None):
        core = core.removeprefix(opener).lstrip()
        fillers.append(opener)
    while closer := next((filler for filler in FILLERS if core.endswith(filler)), None):
        core = core.removesuffix(closer).rstrip()
        fillers.append(closer)
    return core, fillers
