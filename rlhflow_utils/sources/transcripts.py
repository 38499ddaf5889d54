"""Schemas in which a whole dialogue is one string with ``Human:`` and ``Assistant:`` tags."""

from __future__ import annotations

import re
from typing import Any

from rlhflow_utils.chat import Message
from rlhflow_utils.sources.records import Candidate, Row, Scored, from_dialogues, get, get_list, number

# Only a tag after a blank line opens a turn: "Human:" is also typed inside turns.
TURN = re.compile(r"(?:\A|\n)\n(Human|Assistant):[ \t]*")


def parse_transcript(text: str) -> list[Message] | None:
    """Turns of ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``, white space stripped; None where no turn opens the text."""
    opening, *parts = TURN.split("\n\n" + text.lstrip("\n"))
    if opening or not parts:
        return None
    roles = ["user" if tag == "Human" else "assistant" for tag in parts[0::2]]
    return [{"role": role, "content": content.strip()} for role, content in zip(roles, parts[1::2], strict=True)]


def hh_rlhf(row_id: str, row: Row) -> list[Candidate]:
    """Anthropic/hh-rlhf: two dialogues, each one string; they should differ in the last answer only."""
    sides = get(row, "chosen"), get(row, "rejected")
    if not all(isinstance(side, str) for side in sides):
        return [_unparsed(row_id, *sides)]
    shared = _shared_context(*sides)
    if shared is not None:
        return [Candidate(row_id, *shared, rejected_prompt=shared[0], transcript=True)]
    chosen, rejected = (parse_transcript(side) for side in sides)
    if chosen is None or rejected is None:
        return [_unparsed(row_id, *sides)]
    return [from_dialogues(row_id, chosen, rejected, transcript=True)]


def _shared_context(chosen: str, rejected: str) -> tuple[list[Message], str, str] | None:
    """Context and the two answers where all before the last answer is the same text; else None.

    Nine rows in ten are like that, and their context is then parsed once instead of twice.
    """
    (context, _, answer), (other, _, other_answer) = (side.rpartition("\n\nAssistant:") for side in (chosen, rejected))
    if context != other or "\n\nHuman:" in answer or "\n\nHuman:" in other_answer:
        return None
    turns = parse_transcript(context) if context else None
    return None if turns is None else (turns, answer.strip(), other_answer.strip())


def _unparsed(row_id: str, chosen: Any, rejected: Any) -> Candidate:
    return Candidate(row_id, [], chosen, rejected, evidence="broken_alternation", transcript=True)


def nectar(row_id: str, row: Row) -> list[Candidate | Scored]:
    """berkeley-nest/Nectar: seven answers ranked 1 (best) to 7, here in the order of their ranks.

    Scores are minus the ranks.
    """
    answers = get_list(row, "answers")
    scored = sorted(((_minus(number(get(a, "rank"))), get(a, "answer")) for a in answers), key=_worst_last)
    text = get(row, "prompt")
    prompt = parse_transcript(text) if isinstance(text, str) else None
    if prompt is None:
        return [_unparsed(row_id, text, text)]
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt.pop()  # the generation prompt at the end
    return [Scored(row_id, prompt, [answer for _, answer in scored], [score for score, _ in scored])]


def _minus(rank: float | None) -> float | None:
    return None if rank is None else -rank


def _worst_last(item: tuple[float | None, Any]) -> float:
    return float("inf") if item[0] is None else -item[0]
