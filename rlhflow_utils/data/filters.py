"""Why a row is dropped: rules in a fixed order; the first that fails names the reason, which becomes the row's fate.

Three kinds of rule. `RULES` look at one pair alone. `Deduplicator` compares a pair with those kept before it, from the
same source: sources are filtered apart, so that what one mixture keeps does not depend on the sources of another.
`HeldOut` compares what trains with the evaluation prompts. The paper's section 2.1 names what is removed: low-quality
and meaningless samples, empty rounds, labels contradicted by other fields, small score margins.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.data.reading import KNOWN_ROLES, Candidate, Conversation
from rlhflow_utils.guide.settings import DecontaminationSettings, FilterSettings
from rlhflow_utils.models.chat import INVISIBLE, Message, normal_text, prompt_key

DROPPED = "dropped: "  # how the fate of a dropped row begins
# What each rule on one pair drops, and its basis, in the order of `first_failure`.
RULES: dict[str, str] = yaml.safe_load((Path(__file__).parent / "rules.yaml").read_text(encoding="utf-8"))
ROLE_TAG = re.compile(r"\b(?:Human|Assistant):|^[ \t]*User:", re.MULTILINE)
PLACEHOLDER = re.compile(r"<\s*no\s*(?:in|out)put\s*>", re.IGNORECASE)  # left by self-instruct; found by the audit
SHORT_WORDS = frozenset({"no", "ok", "hi"})
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold


# --- one row alone ------------------------------------------------------------------------------------------------


def first_failure(pair: Candidate, settings: FilterSettings, source: str) -> str | None:
    """Name of the first of the `RULES` that the pair fails, or None; `source` is the name of the pair's source."""
    if pair.evidence in ("no_pair", "unknown_role"):
        return pair.evidence
    other, answers = pair.rejected_prompt, [pair.chosen, pair.rejected]
    contexts = [pair.prompt] if other is None or other == pair.prompt else [pair.prompt, other]
    if reason := structural_failure(contexts, answers):
        return reason
    if pair.evidence == "broken_alternation":
        return "broken_alternation"
    if len(contexts) > 1:
        return "unequal_context"
    if any(map(has_role_tag, [*(turn["content"] for turn in pair.prompt if pair.transcript), *answers])):
        return "role_tag_in_turn"
    if look_alike(pair.chosen, pair.rejected):
        return "identical_responses"
    if pair.evidence == "no_label":
        return "no_label"
    gap = None
    if pair.chosen_score is not None and pair.rejected_score is not None:
        gap = pair.chosen_score - pair.rejected_score
    if pair.evidence == "contradicted_label" or (gap is not None and gap < 0):
        return "contradicted_label"
    if pair.evidence == "tie" or gap == 0:
        return "tie"
    if pair.score_ratio is not None and pair.score_ratio <= settings.min_score_ratio:
        return "small_margin"
    if gap is not None and gap < settings.min_score_margin.get(source, 0.0):
        return "small_margin"
    shortest = settings.min_response_characters
    return "meaningless" if is_meaningless(pair.chosen, shortest) or is_meaningless(pair.rejected, shortest) else None


def structural_failure(prompts: Sequence[list[Message]], answers: Sequence[Any] = ()) -> str | None:
    """The rules that rows of every kind must pass, on their prompts (of a pair perhaps two) and their answers."""
    turns = [turn for prompt in prompts for turn in prompt]
    if any(turn["role"] not in KNOWN_ROLES for turn in turns):
        return "unknown_role"
    contents: list[Any] = [*(turn["content"] for turn in turns), *answers]
    if not all(isinstance(text, str) and (text.isascii() or not SURROGATE.search(text)) for text in contents):
        return "non_string_content"
    if not all(text.strip() for text in contents):
        return "empty_turn"
    if not all(text.isascii() or INVISIBLE.sub("", text).strip() for text in contents):
        return "zero_width"
    return None if all(map(alternates, prompts)) else "broken_alternation"


def conversation_failure(conversation: Conversation) -> str | None:
    """The structural rules on a conversation to imitate, which must end in an assistant turn."""
    messages = conversation.messages
    if conversation.evidence or not messages:
        return conversation.evidence or "broken_alternation"
    last = messages[-1]
    if last["role"] != "assistant":
        return "broken_alternation" if last["role"] in KNOWN_ROLES else "unknown_role"
    return structural_failure([messages[:-1]], [last["content"]])


def alternates(prompt: list[Message]) -> bool:
    """Whether roles run (system,) user, assistant, user, ..., user."""
    roles = [message["role"] for message in prompt]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return len(roles) % 2 == 1 and roles == [("user", "assistant")[i % 2] for i in range(len(roles))]


def has_role_tag(turn: str) -> bool:
    """Whether a role tag is typed inside a turn."""
    # The plain search first: it is many times faster, and almost all turns have no tag at all.
    return any(tag in turn for tag in ("Human:", "Assistant:", "User:")) and ROLE_TAG.search(turn) is not None


def look_alike(one: str, other: str) -> bool:
    """Whether two answers are the same on the page, but for white space."""
    if not (one.isascii() and other.isascii()):
        one, other = (INVISIBLE.sub("", unicodedata.normalize("NFC", text)) for text in (one, other))
    # The first words differ almost always, and are fast to see.
    return one.split(None, 1)[:1] == other.split(None, 1)[:1] and one.split() == other.split()


def is_meaningless(answer: str, shortest: int) -> bool:
    """Whether an answer says nothing: see the rule `meaningless`."""
    text = answer.strip()
    if not any(character.isalnum() for character in text) or PLACEHOLDER.fullmatch(text):
        return True
    # Length alone would also take whole answers: numbers, options ("C"), abbreviations, words of other scripts, "No".
    is_scrap = len(text) > 1 and text.isascii() and text.isalpha() and not text.isupper()
    return is_scrap and len(text) < shortest and text.lower() not in SHORT_WORDS


# --- rules that remember ------------------------------------------------------------------------------------------


def pair_hashes(key: str, chosen: str, rejected: str) -> tuple[bytes, bytes]:
    """64-bit hashes of a pair as it stands and with its answers exchanged; of answers, the `normal_text` counts."""
    one, other = normal_text(chosen), normal_text(rejected)
    straight, swapped = "\0".join((key, one, other)), "\0".join((key, other, one))
    return (hashlib.blake2b(straight.encode(), digest_size=8).digest(),
            hashlib.blake2b(swapped.encode(), digest_size=8).digest())  # fmt: skip


class Deduplicator:
    """The rules that need the pairs kept before; one object per source. It holds hashes, not texts."""

    def __init__(self, max_pairs_per_prompt: int | None) -> None:
        self._limit = max_pairs_per_prompt
        self._seen: set[bytes] = set()
        self._pairs_of_prompt: Counter[str] = Counter()

    def failure(self, key: str, hashes: tuple[bytes, bytes]) -> str | None:
        """Reason to drop a pair of this `prompt_key` and these `pair_hashes`, or None: then it is remembered as kept.

        `swapped_duplicate`: the pair was kept with the opposite label; the first stays.
        """
        for seen, reason in zip(hashes, ("duplicate_pair", "swapped_duplicate"), strict=True):
            if seen in self._seen:
                return reason
        if self._limit is not None and self._pairs_of_prompt[key] >= self._limit:
            return "too_many_pairs"
        self._seen.add(hashes[0])
        self._pairs_of_prompt[key] += 1
        return None


# --- decontamination ----------------------------------------------------------------------------------------------

WORD = re.compile(r"\w+|[-+*/=<>%^]")  # operators are words: "a + 1" is not "a * 1"
EXCERPT = 200  # characters of the shared words that a match shows


def first_turn_key(prompt: Sequence[Message]) -> str:
    """`prompt_key` of the first user turn: splits go by it, so that no two of them share the start of a dialogue."""
    return prompt_key([next(message for message in prompt if message["role"] == "user")])


class NgramIndex:
    """Word n-grams of the evaluation prompts; case, punctuation and layout do not count.

    An opening turn of fewer than `size` words is one n-gram of its own length, and only a turn that consists of these
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
    """The evaluation prompts, what trains compared with them, and the matches found so far.

    A match is a training row (`flow`, `source`, `row_id`) and the evaluation prompt it repeats. Its reason is
    `evaluation_overlap` (they open alike) or `ngram_overlap` (they share long runs of words); `overlap` is the share of
    the evaluation prompt's words that lie in shared n-grams, `shared` those words, cut short.
    """

    def __init__(self, settings: DecontaminationSettings) -> None:
        self.matches: list[dict[str, Any]] = []
        self._first_turns: dict[str, str] = {}
        self._index = NgramIndex(settings.ngram, settings.min_overlap)
        self._last: tuple[Any, tuple[str, float, str] | None] = (None, None)

    def add(self, prompts: Iterable[tuple[str, Sequence[Message]]]) -> None:
        """Hold these (evaluation id, prompt) out."""
        for evaluation_id, prompt in prompts:
            self._first_turns.setdefault(first_turn_key(prompt), evaluation_id)
            self._index.add(evaluation_id, prompt)

    def contamination(self, flow: str, source: str, row_id: str, prompt: Sequence[Message]) -> str | None:
        """Reason to drop a training row with this (well-formed) prompt, or None; a match is remembered."""
        reason = "evaluation_overlap"
        found: tuple[str, float, str] | None
        if evaluation_id := self._first_turns.get(first_turn_key(prompt)):
            first = next(turn["content"] for turn in prompt if turn["role"] == "user")
            found = evaluation_id, 1.0, first[:EXCERPT]
        else:
            if prompt != self._last[0]:  # pairs of one prompt follow each other: one search serves them all
                self._last = (prompt, self._index.find(prompt))
            reason, found = "ngram_overlap", self._last[1]
        if found is None:
            return None
        self.matches.append({
            "flow": flow, "source": source, "row_id": row_id, "reason": reason, "evaluation_id": found[0],
            "overlap": round(found[1], 3), "shared": found[2],
        })  # fmt: skip
        return reason


def words_of(text: str) -> list[str]:
    """Words of a text's `normal_text`: runs of letters, digits and underscores, and single operators."""
    return WORD.findall(normal_text(text))
