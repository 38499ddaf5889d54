"""Filter rules, in a fixed order; the first that fails names the reason, which becomes the pair's fate.

Two kinds of rule. `RULES` look at one pair alone. `Deduplicator` compares a pair with those kept before it, from the
same source: sources are filtered apart, so that what one mixture keeps does not depend on the sources of another.

Each rule says whether it is *sourced* (stated by the paper or the authors' dataset cards) or *reconstructed* (needed
to get there, but not stated). The paper's section 2.1 names what is removed: low-quality and meaningless samples,
empty rounds, labels contradicted by other fields, small score margins.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rlhflow_utils.data.reading import Candidate, Conversation
from rlhflow_utils.guide.settings import DecontaminationSettings, FilterSettings
from rlhflow_utils.models.chat import Message, prompt_key

DROPPED = "dropped: "  # how the fate of a dropped row begins
# U+200B..U+200D, U+2060 and U+FEFF take no space on the page and survive str.strip().
ZERO_WIDTH = re.compile("[\u200b-\u200d\u2060\ufeff]")
ROLE_TAG = re.compile(r"\b(?:Human|Assistant):|^[ \t]*User:", re.MULTILINE)
PLACEHOLDER = re.compile(r"<\s*no\s*(?:in|out)put\s*>", re.IGNORECASE)  # left by self-instruct; found by the audit
SHORT_WORDS = frozenset({"no", "ok", "hi"})
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold

# A rule: True where the pair must go. Arguments: the pair, the settings, the source's name.
Rule = Callable[[Candidate, FilterSettings, str], bool]


# --- rules on one pair --------------------------------------------------------------------------------------------


def is_text(content: Any) -> bool:
    """Whether a turn's content is a string that a file can hold."""
    return isinstance(content, str) and (content.isascii() or not SURROGATE.search(content))


def is_zero_width(text: str) -> bool:
    """Looks empty, but holds zero-width characters."""
    return not text.isascii() and not ZERO_WIDTH.sub("", text).strip()


def alternates(prompt: list[Message]) -> bool:
    """Whether roles run (system,) user, assistant, user, ..., user."""
    roles = [message["role"] for message in prompt]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    return len(roles) % 2 == 1 and roles == [("user", "assistant")[i % 2] for i in range(len(roles))]


def no_pair(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """The native row has fewer than two answers. Reconstructed."""
    return pair.evidence == "no_pair"


def non_string_content(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """A turn is not a string (PandaLM: the JSON value true), or not one that UTF-8 can hold. Reconstructed."""
    return not all(is_text(content) for content in pair.contents())


def empty_turn(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """A turn of either side is empty or white space. Sourced: "empty rounds", paper 2.1."""
    return not all(content.strip() for content in pair.contents())


def zero_width(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """A turn holds zero-width characters alone, so that it looks empty. Reconstructed (an empty round in disguise)."""
    return any(is_zero_width(content) for content in pair.contents())


def broken_alternation(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """Roles do not alternate user/assistant, or the prompt does not end with the user. Sourced: HH-RLHF card."""
    contexts = [pair.prompt] if pair.rejected_prompt is None else [pair.prompt, pair.rejected_prompt]
    return pair.evidence == "broken_alternation" or not all(map(alternates, contexts))


def unequal_context(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """The two sides differ before the last answer. Sourced: HH-RLHF card ("identical context")."""
    return pair.rejected_prompt is not None and pair.rejected_prompt != pair.prompt


def role_tag_in_turn(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """A role tag is typed inside an answer: a hallucinated next turn, or a dialogue cut at the wrong place.

    In dialogues cut out of one string every turn is searched, elsewhere the two answers only (a prompt may quote a
    dialogue). Reconstructed.
    """
    turns = pair.contents() if pair.transcript else [pair.chosen, pair.rejected]
    # The plain search first: it is many times faster, and almost all turns have no tag at all.
    return any(ROLE_TAG.search(turn) for turn in turns if "Human:" in turn or "Assistant:" in turn or "User:" in turn)


def identical_responses(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """Both answers are the same text, white space aside. Sourced: HH-RLHF card ("final answers differ")."""
    # Their first words differ almost always, and are fast to see.
    starts_alike = pair.chosen.split(None, 1)[:1] == pair.rejected.split(None, 1)[:1]
    return starts_alike and _normal(pair.chosen) == _normal(pair.rejected)


def no_label(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """The native label is null or cannot be read as a number. Reconstructed."""
    return pair.evidence == "no_label"


def contradicted_label(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """Another native field says the opposite of the label. Sourced: paper 2.1; the fields compared: reconstructed."""
    chosen, rejected = pair.chosen_score, pair.rejected_score
    return pair.evidence == "contradicted_label" or not (chosen is None or rejected is None or chosen >= rejected)


def tie(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """Both answers are equally good by the native label. Sourced: Orca, Capybara, CodeUltraFeedback cards."""
    return pair.evidence == "tie" or (pair.chosen_score is not None and pair.chosen_score == pair.rejected_score)


def small_margin(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """The score gap is below the source's `min_score_margin`, or SHP's ratio is not above `min_score_ratio`.

    Sourced: paper 2.1 ("small margins"); SHP's ratio, strictly above 2: its card. Other margins: reconstructed.
    """
    if pair.score_ratio is not None and pair.score_ratio <= settings.min_score_ratio:
        return True
    margin = settings.min_score_margin.get(source)
    if margin is None or pair.chosen_score is None or pair.rejected_score is None:
        return False
    return pair.chosen_score - pair.rejected_score < margin


def meaningless(pair: Candidate, settings: FilterSettings, source: str) -> bool:
    """An answer has no letter or digit, is a scrap of a word shorter than `min_response_characters`, or a placeholder.

    Sourced as an aim ("meaningless samples", paper 2.1); the test is reconstructed.
    """
    return any(_is_meaningless(text.strip(), settings.min_response_characters) for text in (pair.chosen, pair.rejected))


def _is_meaningless(text: str, shortest: int) -> bool:
    if not any(character.isalnum() for character in text) or PLACEHOLDER.fullmatch(text):
        return True
    # Length alone would also take whole answers: numbers, options ("C"), abbreviations, words of other scripts, "No".
    is_scrap = len(text) > 1 and text.isascii() and text.isalpha() and not text.isupper()
    return is_scrap and len(text) < shortest and text.lower() not in SHORT_WORDS


_RULES = (
    no_pair, non_string_content, empty_turn, zero_width, broken_alternation, unequal_context, role_tag_in_turn,
    identical_responses, no_label, contradicted_label, tie, small_margin, meaningless,
)  # fmt: skip
RULES: dict[str, Rule] = {rule.__name__: rule for rule in _RULES}


def first_failure(pair: Candidate, settings: FilterSettings, source: str) -> str | None:
    """Name of the first rule that the pair fails, or None."""
    return next((name for name, rule in RULES.items() if rule(pair, settings, source)), None)


def is_too_long(tokens: tuple[int, int, int], settings: FilterSettings) -> bool:
    """Reason ``too_long``: prompt and answer exceed `max_tokens` on one side. Reconstructed: the paper
    trains with `max_length` (2.2) and does not say what becomes of longer pairs. `tokens`: prompt, chosen, rejected.
    """
    prompt, chosen, rejected = tokens
    return prompt + max(chosen, rejected) > settings.max_tokens


# --- rules that remember ------------------------------------------------------------------------------------------


def pair_hashes(key: str, chosen: str, rejected: str) -> tuple[int, int]:
    """64-bit hashes of a pair as it stands and with its answers exchanged; white space in answers does not count."""
    texts = (_normal(chosen), _normal(rejected))
    return _hash(key, *texts), _hash(key, *texts[::-1])


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def _normal(text: str) -> str:
    return " ".join(text.split())


class Deduplicator:
    """The rules that need the pairs kept before; one object per source. It holds hashes, not texts."""

    def __init__(self, max_pairs_per_prompt: int | None) -> None:
        self._limit = max_pairs_per_prompt
        self._seen: set[int] = set()
        self._pairs_of_prompt: Counter[str] = Counter()

    def failure(self, key: str, hashes: tuple[int, int]) -> str | None:
        """Reason to drop a pair of this `prompt_key` and these `pair_hashes`, or None: then it is remembered as kept.

        ``duplicate_pair``: the same prompt and answers were kept before. ``swapped_duplicate``: with the opposite
        label; the first stays. ``too_many_pairs``: the prompt has its number of pairs (SHP: at most 5, its card).
        """
        for seen, reason in zip(hashes, ("duplicate_pair", "swapped_duplicate"), strict=True):
            if seen in self._seen:
                return reason
        if self._limit is not None and self._pairs_of_prompt[key] >= self._limit:
            return "too_many_pairs"
        self._seen.add(hashes[0])
        self._pairs_of_prompt[key] += 1
        return None


# --- prompts and conversations ------------------------------------------------------------------------------------


def conversation_failure(conversation: Conversation) -> str | None:
    """The structural rules on a conversation to imitate, which must end in an assistant turn."""
    messages = conversation.messages
    if conversation.evidence or not messages or messages[-1]["role"] != "assistant":
        return conversation.evidence or "broken_alternation"
    return prompt_failure(messages[:-1], [messages[-1]["content"]])


def prompt_failure(prompt: list[Message], answers: Sequence[Any] = ()) -> str | None:
    """The structural rules on a prompt: not a string, empty, zero-width, or roles that do not alternate."""
    contents: list[Any] = [*(message["content"] for message in prompt), *answers]
    if not all(is_text(content) for content in contents):
        return "non_string_content"
    if not all(content.strip() for content in contents):
        return "empty_turn"
    if any(is_zero_width(content) for content in contents):
        return "zero_width"
    return None if alternates(prompt) else "broken_alternation"


def first_turn_key(prompt: Sequence[Message]) -> str:
    """`prompt_key` of the first user turn: splits go by it, so that no two of them share the start of a dialogue."""
    return prompt_key([next(message for message in prompt if message["role"] == "user")])


# --- decontamination ----------------------------------------------------------------------------------------------

WORD = re.compile(r"\w+|[-+*/=<>%^]")  # operators are words: "a + 1" is not "a * 1"
EXCERPT = 200  # characters of the shared words that a match shows


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
    """Words of a text: runs of letters, digits and underscores, and single operators, case folded."""
    return WORD.findall(text.casefold())
