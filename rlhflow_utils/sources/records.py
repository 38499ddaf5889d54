"""What converters give back, and the helpers they read native rows with.

A converter turns one native row into records. It decides nothing: whatever the filters need to judge a pair (its
scores, a tie, a contradiction between two native fields) travels with it as evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhflow_utils.chat import Message

Row = dict[str, Any]
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class FieldError(ValueError):
    """A native row lacks a field or holds one that cannot be read; `read_records` adds source and row."""


@dataclass(slots=True)
class Candidate:
    """A preference pair before filtering.

    Attributes:
        row_id: native row id, with ``#...`` naming the pair where one native row gives several.
        prompt: context of the chosen answer.
        chosen, rejected: the answers; anything but a string is left as it is, for the filters to count.
        chosen_score, rejected_score: the native scores, where the schema has them.
        rejected_prompt: context of the rejected answer where the native row states one of its own.
        evidence: reason the native labels give against the pair: ``tie``, ``contradicted_label``, ``no_label``,
            ``no_pair``, ``broken_alternation``.
        score_ratio: higher score over lower (SHP).
        transcript: the turns were cut out of one string, so that a role tag inside a turn is a suspect cut.
        extra: native fields that a reader of this schema wants (a benchmark's subset).
    """

    row_id: str
    prompt: list[Message]
    chosen: Any
    rejected: Any
    chosen_score: float | None = None
    rejected_score: float | None = None
    rejected_prompt: list[Message] | None = None
    evidence: str | None = None
    score_ratio: float | None = None
    transcript: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def contents(self) -> list[Any]:
        """Every turn's content; a second context that equals the first is not repeated."""
        turns = self.prompt
        if self.rejected_prompt is not None and self.rejected_prompt != self.prompt:
            turns = turns + self.rejected_prompt
        return [*[message["content"] for message in turns], self.chosen, self.rejected]


@dataclass(slots=True)
class Scored:
    """Several scored answers to one prompt, before pairs are made of them.

    Attributes:
        row_id: native row id.
        prompt: the context of all answers.
        answers: the answers; anything but a string is left as it is.
        scores: higher is better; None where the native score cannot be read.
    """

    row_id: str
    prompt: list[Message]
    answers: list[Any]
    scores: list[float | None]


@dataclass(slots=True)
class Conversation:
    """A dialogue to imitate, ending in an assistant turn; `evidence` is a native reason against it."""

    row_id: str
    messages: list[Message]
    evidence: str | None = None


@dataclass(slots=True)
class Prompt:
    """A prompt without an answer, or with the one right answer of an exact-match task."""

    row_id: str
    prompt: list[Message]
    answer: str | None = None


@dataclass(slots=True)
class Text:
    """A document for a base model."""

    row_id: str
    text: str


Record = Candidate | Scored | Conversation | Prompt | Text


def get(row: Row, path: str) -> Any:
    """The value at a dotted path such as ``info.post``.

    Raises:
        FieldError: no such field; the message lists the fields there are.
    """
    node: Any = row
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            there = sorted(node) if isinstance(node, dict) else type(node).__name__
            raise FieldError(
                f"field {path!r} is missing (found: {there}); the file is not in this schema, or it was renamed"
            )
        node = node[part]
    return node


def get_list(row: Row, path: str) -> list[Any]:
    """The list at a path; null counts as an empty one."""
    value = get(row, path)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise FieldError(f"field {path!r} must be a list, found {type(value).__name__}")
    return list(value)


def get_one_of(row: Row, path: str, allowed: Sequence[Any]) -> Any:
    """A label that must be one of a few values (``True`` is not 1 here)."""
    value = get(row, path)
    for item in allowed:
        if type(item) is type(value) and item == value:
            return value
    raise FieldError(f"field {path!r} must be one of {list(allowed)}, found {value!r}")


def get_text(row: Row, path: str) -> str:
    """A string that names something (an id, a task); answers go through `get` and the filters instead."""
    value = get(row, path)
    if not isinstance(value, str):
        raise FieldError(f"field {path!r} must be a string, found {type(value).__name__}")
    return value


def number(value: Any) -> float | None:
    """A score as float; numbers written as text are cast, anything else is None (no label)."""
    if isinstance(value, bool):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: an integer of hundreds of digits
        return None
    return result if abs(result) < float("inf") else None  # also refuses NaN


def joined(separator: str, parts: Sequence[Any]) -> Any:
    """The parts as one string; where one of them is no string, that part instead, for the filters to count."""
    odd = [part for part in parts if not isinstance(part, str)]
    return odd[0] if odd else separator.join(parts)


def user_turn(content: Any) -> list[Message]:
    """A single-turn prompt."""
    return [{"role": "user", "content": content}]


def get_messages(row: Row, path: str, role_key: str = "role", content_key: str = "content") -> list[Message]:
    """A list of turns with the roles ``system``, ``user`` and ``assistant`` (sharegpt's names are translated)."""
    return [_message(turn, path, role_key, content_key) for turn in get_list(row, path)]


def _message(turn: Any, path: str, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        raise FieldError(
            f"field {path!r} must hold turns with {role_key!r} and {content_key!r}, found {str(turn)[:80]!r}"
        )
    role = ROLES.get(str(turn[role_key]))
    if role is None:
        raise FieldError(f"field {path!r} has the unknown role {turn[role_key]!r}; known: {sorted(ROLES)}")
    return {"role": role, "content": turn[content_key]}


def from_dialogues(row_id: str, chosen: list[Message], rejected: list[Message], **evidence: Any) -> Candidate:
    """A pair given as two whole dialogues: the last turns are the answers, what precedes them the contexts."""
    if not chosen or not rejected:
        return Candidate(row_id, chosen[:-1], "", "", **{**evidence, "evidence": "no_pair"})
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        evidence["evidence"] = "broken_alternation"
    return Candidate(
        row_id, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], rejected_prompt=rejected[:-1], **evidence
    )
