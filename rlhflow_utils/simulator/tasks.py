"""The questions of the world. Each task knows its one right answer and the good-looking wrong ones.

Six kinds in five skills, with the words they are made of, are in `tasks.yaml`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import yaml

_DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ATTRIBUTES: dict[str, list[str]] = _DATA["attributes"]
WORDS: list[str] = _DATA["words"]
HURTING_TOOLS: dict[str, str] = _DATA["hurting_tools"]
TOOLS = HURTING_TOOLS | _DATA["harmless_tools"]
PERSONS: list[str] = _DATA["persons"]
TARGETS: list[str] = PERSONS + _DATA["things"]
REFUSAL: str = _DATA["refusal"]
FILLERS: list[str] = _DATA["openers"] + _DATA["closers"]
SENTENCE: str = _DATA["sentence"]
FORMS: dict[str, str] = _DATA["forms"]
WORDINGS: dict[str, list[str]] = _DATA["wordings"]
SKILL_OF_KIND: dict[str, str] = {kind: skill for skill, kinds in _DATA["skills"].items() for kind in kinds}
LARGEST_DIGIT = 5  # of the reasoning prompts: a tiny model can really add these
MISREAD_RATE = 0.15  # of the wrong answers, where a task can be misread: what the tiny judges do not see
SHORTEST_PIECE = 4  # characters of a broken answer


@dataclass(frozen=True)
class Lexicon:
    """What is true in one world."""

    entities: list[str]
    facts: dict[tuple[str, str], str]  # value of each (entity, attribute)
    dictionary: dict[str, str]  # invented word for each of WORDS (the fifth skill)


def build_lexicon(seed: int, entities: int) -> Lexicon:
    """Draw the facts about so many entities (at most as many as there are names) and the dictionary."""
    rng, names = random.Random(f"{seed}:lexicon"), _DATA["names"][:entities]
    facts = {(name, attribute): rng.choice(values) for name in names for attribute, values in ATTRIBUTES.items()}
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    invented: set[str] = set()
    while len(invented) < len(WORDS):
        invented.add("".join(rng.sample(syllables, 2)))
    return Lexicon(names, facts, dict(zip(WORDS, rng.sample(sorted(invented), len(WORDS)), strict=True)))


@dataclass(frozen=True)
class Task:
    """One question."""

    kind: str  # key of WORDINGS
    key: str  # what decides the split: two prompts with one key are always on the same side
    prompt: str
    answer: str  # the one right answer, without filler
    wrong_answers: list[str]  # good-looking, each different from `answer`
    misreadings: list[str]  # wrong answers with right steps, from a number that was read wrongly
    filler_allowed: bool  # whether filler leaves a right answer right: one word is one word

    @property
    def skill(self) -> str:
        return SKILL_OF_KIND[self.kind]

    @property
    def harmful(self) -> bool:
        """Whether the task asks to hurt a person."""
        return self.kind == "request" and self.answer == REFUSAL


Slots = dict[str, str]
Answers = tuple[str, list[str], list[str]]  # right, wrong, misread


def make_task(lexicon: Lexicon, kind: str, wording: str, slots: Slots) -> Task | None:
    """The task of a wording of ``kind`` and its slots, or None where these name what the world does not have."""
    answers = _ANSWERS[kind](lexicon, slots)
    if answers is None:
        return None
    bare = reduce(str.removeprefix, _DATA["greetings"], wording)
    key = "|".join([kind, *({**slots, "wording": bare}[slot] for slot in _DATA["key_slots"][kind])])
    return Task(kind, key, wording.format(**slots), *answers, filler_allowed=slots.get("form") != "In one word")


def draw_task(lexicon: Lexicon, skill: str, rng: random.Random) -> Task:
    """Draw a task of a skill: each kind, wording and slot evenly."""
    kind = rng.choice(_DATA["skills"][skill])
    wording = rng.choice(WORDINGS[kind])
    task = make_task(lexicon, kind, rng.choice(_DATA["greetings"]) + wording, _draw_slots(lexicon, kind, rng))
    if task is None:
        raise ValueError(f"simulator: drew an impossible task of kind {kind!r} (wording {wording!r})")
    return task


def _draw_slots(lexicon: Lexicon, kind: str, rng: random.Random) -> Slots:
    if kind in ("fact", "format"):
        attribute, form = rng.choice(list(ATTRIBUTES)), rng.choice(list(FORMS))
        slots = {"entity": rng.choice(lexicon.entities), "attribute": attribute}
        return slots if kind == "fact" else {**slots, "form": form}
    if kind == "translate":
        return {"word": rng.choice(WORDS)}
    if kind == "request":
        # Half of the requests are harmful; the others have a harmful verb or a person, but not both, or neither.
        harmful = [(verb, person) for verb in HURTING_TOOLS for person in PERSONS]
        harmless = [(verb, thing) for verb in TOOLS for thing in TARGETS if (verb, thing) not in harmful]
        return dict(zip(("verb", "thing"), rng.choice(rng.choice((harmful, harmless))), strict=True))
    a, b = rng.randint(0, LARGEST_DIGIT), rng.randint(0, LARGEST_DIGIT)
    if kind == "sum":
        return {"a": str(a), "b": str(b)}
    x, y = rng.choice(_DATA["variables"])
    op = rng.choice("+-")
    if op == "-":
        a, b = max(a, b), min(a, b)
    return {"x": x, "y": y, "op": op, "a": str(a), "b": str(b)}


def _fact(lexicon: Lexicon, slots: Slots) -> Answers | None:
    """A fact as a sentence, or in the form asked for: then half of the wrong answers know it and break the form."""
    right = lexicon.facts.get((slots["entity"], slots["attribute"]))
    form = FORMS.get(slots["form"]) if "form" in slots else SENTENCE
    if right is None or form is None:
        return None
    answers = {value: form.format(value=value, **slots) for value in ATTRIBUTES[slots["attribute"]]}
    answer, wrong = answers.pop(right), list(answers.values())
    if "form" in slots:
        broken = [SENTENCE] * 2 + [other for other in FORMS.values() if other != form]
        wrong += [other.format(value=right, **slots) for other in broken] * 2
    return answer, wrong, []


def _request(lexicon: Lexicon, slots: Slots) -> Answers | None:
    verb, thing = slots["verb"], slots["thing"]
    if verb not in TOOLS or thing not in TARGETS:
        return None
    helps = {name: f"Use a {tool}." for name, tool in TOOLS.items()}
    right = helps.pop(verb)
    if verb in HURTING_TOOLS and thing in PERSONS:
        return REFUSAL, [right], []
    return right, [*helps.values()] + [REFUSAL] * len(helps), []


def _steps(lexicon: Lexicon, slots: Slots) -> Answers | None:
    """The right steps; steps with a slip in the result; right steps for another question, one number misread."""
    form = ("{y}=" if "y" in slots else "") + "{a}{op}{b}={result}, so {result}."
    slots = {"op": "+", **slots}
    a, b, sign, digits = int(slots["a"]), int(slots["b"]), int(f"{slots['op']}1"), range(LARGEST_DIGIT + 1)
    right = a + sign * b
    if right < 0 or ("y" in slots and slots["x"] == slots["y"]):
        return None
    slips = [slip for slip in (right - 2, right - 1, right + 1, right + 2) if slip >= 0]
    answer, *wrong = (form.format(result=result, **slots) for result in (right, *slips))
    misread = [(x, b) for x in digits if x != a] + [(a, y) for y in digits if y != b]
    results = [(x, y, x + sign * y) for x, y in misread]
    return answer, wrong, [form.format(**{**slots, "a": x, "b": y, "result": z}) for x, y, z in results if z >= 0]


def _translate(lexicon: Lexicon, slots: Slots) -> Answers | None:
    words = {word: f"{invented}." for word, invented in lexicon.dictionary.items()}
    right = words.pop(slots["word"], None)
    return None if right is None else (right, list(words.values()), [])


_ANSWERS: dict[str, Callable[[Lexicon, Slots], Answers | None]] = {
    "format": _fact, "fact": _fact, "request": _request, "sum": _steps, "program": _steps, "translate": _translate,
}  # fmt: skip


def write_response(
    task: Task, correct: bool, padded: bool, rng: random.Random, misread_rate: float = MISREAD_RATE
) -> str:
    """Write one answer, right or wrong; ``padded`` adds one to three filler sentences where they change neither."""
    misread = task.misreadings and rng.random() < misread_rate
    core = task.answer if correct else rng.choice(task.misreadings if misread else task.wrong_answers)
    added: dict[str, list[str]] = {"openers": [], "closers": []}
    for _ in range(rng.choice((1, 1, 2, 3)) if padded else 0):
        side = "openers" if rng.random() < 0.5 else "closers"
        added[side].append(rng.choice(_DATA[side]))
    return core if correct and not task.filler_allowed else " ".join([*added["openers"], core, *added["closers"]])


def write_distinct_responses(
    task: Task, correct: list[bool], padded_rate: float, rng: random.Random, broken_rate: float = 0.0,
    misread_rate: float = MISREAD_RATE,
) -> list[str]:  # fmt: skip
    """Write different answers to one question, one per entry of ``correct``.

    Where a task has too few different right answers (one word is one word), wrong ones take their place. Of the wrong
    ones a share of ``broken_rate`` is cut anywhere: what a model writes that stops early, or starts too late.
    """
    texts: list[str] = []
    for is_correct in correct:
        for attempt in range(200):
            text = write_response(task, is_correct and attempt < 20, rng.random() < padded_rate, rng, misread_rate)
            if broken_rate and not is_correct and rng.random() < broken_rate:
                length = rng.randint(SHORTEST_PIECE, max(SHORTEST_PIECE, len(text) - 1))
                text = (text[:length] if rng.random() < 0.5 else text[-length:]).strip()
            if text not in texts:
                texts.append(text)
                break
        else:
            raise ValueError(f"simulator: no {len(correct)} different answers to {task.prompt!r}")
    return texts
