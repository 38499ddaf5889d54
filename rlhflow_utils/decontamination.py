"""Training prompts that repeat an evaluation prompt, wholly or in long passages.

Two tests. A prompt that *opens* like an evaluation prompt (same first user turn, blind to case and spacing) is dropped
as ``evaluation_overlap``. A prompt that shares word n-grams which cover enough of an evaluation prompt is dropped as
``ngram_overlap``: it catches the same question inside a longer text, in a later turn, or with other punctuation. Both
are ours: the paper does not say how its training prompts were kept apart from the benchmarks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlhflow_utils.chat import Message
from rlhflow_utils.filters import opening_key

if TYPE_CHECKING:
    from rlhflow_utils.settings import DecontaminationSettings

WORD = re.compile(r"\w+|[-+*/=<>%^]")  # operators are words: "a + 1" is not "a * 1"
EXCERPT = 200  # characters of the shared words that a match shows


@dataclass(frozen=True)
class Match:
    """A training row and the evaluation prompt it repeats.

    Attributes:
        flow, source, row_id: the training row, as in ``dropped.jsonl``.
        reason: ``evaluation_overlap`` or ``ngram_overlap``.
        evaluation_id: ``<source>:<position>`` of the evaluation prompt.
        overlap: share of the evaluation prompt's words that lie in shared n-grams.
        shared: the shared words, cut short.
    """

    flow: str
    source: str
    row_id: str
    reason: str
    evaluation_id: str
    overlap: float
    shared: str


class NgramIndex:
    """Word n-grams of the evaluation prompts.

    Words are runs of letters and digits, and operators, case folded, so that punctuation and layout do not count. An
    opening turn of fewer than `size` words is one n-gram of its own length, and only a turn that consists of these
    words alone has it: inside a longer turn a short question is chance. Short later turns ("thank you") do not count.
    """

    def __init__(self, size: int, min_overlap: float) -> None:
        self._size, self._min_overlap = size, min_overlap
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._short: dict[tuple[str, ...], int] = {}
        self._texts: list[tuple[str, list[str]]] = []

    def add(self, evaluation_id: str, prompt: Sequence[Message]) -> None:
        """Index every user turn of an evaluation prompt, each as a text of its own."""
        turns = [turn["content"] for turn in prompt if turn["role"] == "user"]
        for order, content in enumerate(turns):
            words, number = words_of(content), len(self._texts)
            self._texts.append((evaluation_id, words))
            if order == 0 and len(words) < self._size:
                self._short.setdefault(tuple(words), number)
            for position in range(len(words) - self._size + 1):
                self._places[tuple(words[position : position + self._size])].append((number, position))

    def find(self, prompt: Sequence[Message]) -> tuple[str, float, str] | None:
        """(evaluation id, overlap, shared words) of the evaluation text that a user turn repeats most, or None."""
        found = [self._find(words_of(turn["content"])) for turn in prompt if turn["role"] == "user"]
        return max((match for match in found if match), key=lambda match: match[1], default=None)

    def _find(self, words: list[str]) -> tuple[str, float, str] | None:
        short = self._short.get(tuple(words)) if 0 < len(words) < self._size else None
        if short is not None:
            return self._texts[short][0], 1.0, " ".join(words)[:EXCERPT]
        covered: dict[int, set[int]] = defaultdict(set)
        # Each n-gram once: a text that repeats one word thousands of times would take minutes.
        starts = range(len(words) - self._size + 1)
        for gram in dict.fromkeys(tuple(words[start : start + self._size]) for start in starts):
            for number, position in self._places.get(gram, ()):
                covered[number].update(range(position, position + self._size))
        if not covered:
            return None
        number = max(covered, key=lambda n: len(covered[n]) / len(self._texts[n][1]))
        evaluation_id, text = self._texts[number]
        overlap = len(covered[number]) / len(text)
        shared = " ".join(text[position] for position in sorted(covered[number]))
        return (evaluation_id, overlap, shared[:EXCERPT]) if overlap >= self._min_overlap else None


class HeldOut:
    """The evaluation prompts, what trains compared with them, and the matches found so far."""

    def __init__(self, settings: DecontaminationSettings) -> None:
        self.openings: dict[str, str] = {}
        self.matches: list[Match] = []
        self._index = NgramIndex(settings.ngram, settings.min_overlap)
        self._last: tuple[Sequence[Message] | None, tuple[str, float, str] | None] = (None, None)

    def add(self, prompts: Iterable[tuple[str, Sequence[Message]]]) -> None:
        """Hold these (evaluation id, prompt) out."""
        for evaluation_id, prompt in prompts:
            self.openings.setdefault(opening_key(list(prompt)), evaluation_id)
            self._index.add(evaluation_id, prompt)

    def reason(self, flow: str, source: str, row_id: str, prompt: Sequence[Message]) -> str | None:
        """Reason to drop a training row with this (well-formed) prompt, or None; a match is remembered."""
        evaluation_id = self.openings.get(opening_key(list(prompt)))
        if evaluation_id is not None:
            first = next(turn["content"] for turn in prompt if turn["role"] == "user")
            match = Match(flow, source, row_id, "evaluation_overlap", evaluation_id, 1.0, first[:EXCERPT])
        else:
            found = self._find(prompt)
            if found is None:
                return None
            match = Match(flow, source, row_id, "ngram_overlap", found[0], round(found[1], 3), found[2])
        self.matches.append(match)
        return match.reason

    def _find(self, prompt: Sequence[Message]) -> tuple[str, float, str] | None:
        # Pairs of one prompt follow each other (six from four scored answers): one search serves them all.
        if prompt != self._last[0]:
            self._last = (prompt, self._index.find(prompt))
        return self._last[1]

    def to_json(self) -> list[dict[str, Any]]:
        """Every match, in the order in which they were found."""
        return [asdict(match) for match in self.matches]


def words_of(text: str) -> list[str]:
    """Words of a text: runs of letters, digits and underscores, and single operators, case folded."""
    return WORD.findall(text.casefold())
