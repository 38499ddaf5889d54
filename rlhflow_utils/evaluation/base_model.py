"""What a base model knows before any training (chapter 00), and `make base`, which builds the shipped one."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhflow_utils.guide.profile import Profile
from rlhflow_utils.guide.settings import GenerationSettings, ModelSettings, WorldSettings
from rlhflow_utils.guide.stage import Rows, Summary, file_digest, provenance, read_json, stage, write_json
from rlhflow_utils.guide.tables import markdown_table
from rlhflow_utils.models.chat import load_tokenizer
from rlhflow_utils.models.forward import Model, load_model, next_token_logits
from rlhflow_utils.online.engines import Request, transformers_responses
from rlhflow_utils.simulator.corpus import PREFERENCE_SKILLS, comparison_text
from rlhflow_utils.simulator.gold import World
from rlhflow_utils.simulator.tasks import write_distinct_responses

TASKS = 100  # of each skill and test
PADDED_RATE = 0.3  # of the answers that are marked and compared
MARK = re.compile(r"\n| Right| Wrong")  # ends an answer: on an exam sheet its mark follows
RECORD, WEIGHTS = "base.json", "model.safetensors"
CARD = Path(__file__).with_name("base_model_card.md")


def check_base_model(base: Path | str, world: WorldSettings) -> dict[str, Any]:
    """The record of a base model that `make base` wrote. ValueError: none, other weights, or made for another world."""
    folder = Path(base)
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"model.base {base} has no {RECORD}: the simulated world wants a base that has read it (make base)"
        )
    record: dict[str, Any] = read_json(folder / RECORD)
    if file_digest(folder / WEIGHTS) != record["sha256"]:
        raise ValueError(f"{folder.name}/{WEIGHTS} is not the file of {RECORD}: fetch it again, or `make base`")
    if record["world"] != _truth(world):
        raise ValueError(
            f"{folder.name} has read the world {record['world']}, the profile's is {_truth(world)}: build a base for "
            "it (make base, or SET=model.base=null)"
        )
    return record


def _truth(world: WorldSettings) -> dict[str, Any]:
    """What decides the facts of a world and which prompts it holds out."""
    return {name: getattr(world, name) for name in ("seed", "entities", "held_out_rate")}


@stage
def measure_base_model(
    base: Model, world: WorldSettings, generation: GenerationSettings, model: ModelSettings, seed: int, *, into: Path
) -> Summary:
    """Held-out questions of each skill to a model that is only prompted, with plain text.

    `answers`: its greedy answer is right. `marks`: "Right" is more likely after the right answer than after a wrong
    one. `comparisons`: "One" is more likely where the right answer comes first than where it comes second.
    """
    knows = knowledge(base, World(world), generation, model, seed)
    write_json(into / "results.json", knows)
    metrics = {f"{test}.{skill}": share for test, skills in knows.items() for skill, share in skills.items()}
    return Summary({"tasks": Rows(TASKS * len(metrics), TASKS * len(metrics))}, metrics)


def knowledge(
    base: Model, world: World, generation: GenerationSettings, model: ModelSettings, seed: int
) -> dict[str, dict[str, float]]:
    """Share of right decisions by test and skill; see `measure_base_model`."""
    network, tokenizer = load_model(base, "causal", model), load_tokenizer(base, model)

    def ids(text: str) -> list[int]:
        return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]

    def margins(texts: Sequence[str], word: str, other: str) -> list[float]:
        """How much more likely a word is than another after each text, in nats."""
        first, second = (tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in (word, other))
        with torch.inference_mode():
            logits = next_token_logits(network, [ids(text) for text in texts], int(tokenizer.pad_token_id))
        return list((logits[:, first] - logits[:, second]).tolist())

    def share(better: Sequence[float], worse: Sequence[float]) -> float:
        return sum(a > b for a, b in zip(better, worse, strict=True)) / TASKS

    knows: dict[str, dict[str, float]] = {"answers": {}, "marks": {}, "comparisons": {}}
    for skill in (*PREFERENCE_SKILLS, "translation"):
        rng = random.Random(f"{seed}:knowledge:{skill}")
        tasks = [world.draw_task(skill, "eval", rng) for _ in range(TASKS)]
        asked = Request([ids(f"{task.prompt}\n") for task in tasks], [0] * TASKS, [0.0])
        answers = transformers_responses(network, generation, [tokenizer.eos_token_id], asked)
        texts = [MARK.split(tokenizer.decode(answer, skip_special_tokens=True))[0] for [answer] in answers]
        right = [world.is_correct(task.prompt, text) for task, text in zip(tasks, texts, strict=True)]
        knows["answers"][skill] = sum(right) / TASKS
        if skill in PREFERENCE_SKILLS:
            prompts = [task.prompt for task in tasks]
            pairs = [write_distinct_responses(task, [True, False], PADDED_RATE, rng) for task in tasks]
            both = [list(zip(prompts, answers, strict=True)) for answers in zip(*pairs, strict=True)]
            knows["marks"][skill] = share(
                *(margins([f"{q}\n{a}" for q, a in side], " Right", " Wrong") for side in both)
            )
            orders = [
                [comparison_text(q, a, b) for q, (a, b) in zip(prompts, pairs, strict=True)],
                [comparison_text(q, b, a) for q, (a, b) in zip(prompts, pairs, strict=True)],
            ]
            knows["comparisons"][skill] = share(*(margins(order, " One", " Two") for order in orders))
    return knows


def make_base_model(profile: Profile, out: Path, minutes: float | None = None) -> None:
    """Pretrain a base model on the profile's world and write it with its card; goes on where it was stopped.

    `minutes` replaces the profile's number of tokens by what this machine reads in that time.
    """
    from rlhflow_utils.training.pretraining import documents_of, pretrain, tokens_in

    settings, world = profile.base_model, profile.world
    if settings is None or settings.corpus or world is None:
        raise ValueError(f"profile {profile.name}: `base` needs a world and a base_model section without a corpus")
    documents, partial = documents_of(None, world), out.with_name(f"{out.name}.partial")
    if minutes:
        settings = settings.model_copy(update={"tokens": tokens_in(minutes, documents, settings)})
    log = pretrain(documents, settings, profile.seed, partial)
    knows = knowledge(partial / "model", World(world), profile.generation, profile.model, profile.seed)
    record = {
        "sha256": file_digest(partial / "model" / WEIGHTS),
        "world": _truth(world),
        "settings": settings.model_dump(),
    }
    record |= {"corpus": world.corpus.model_dump(), "knows": knows, "made_by": provenance(), **log}
    write_json(partial / "model" / RECORD, record)
    (partial / "model" / "README.md").write_text(_card(record), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    (partial / "model").rename(out)
    shutil.rmtree(partial)


def _card(record: dict[str, Any]) -> str:
    """The model card: what it read, how its loss fell, and what it knows."""
    knows, history = record["knows"], record["history"]
    rows = [
        {"held-out questions": skill, **{test: of.get(skill) for test, of in knows.items()}}
        for skill in knows["answers"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record["made_by"]["versions"].items())
    return CARD.read_text(encoding="utf-8").format(
        **{name: record[name] for name in ("parameters", "tokens", "sha256", "world", "corpus", "settings")},
        minutes=record["seconds"] / 60, device=record["made_by"]["device"], python=record["made_by"]["python"],
        versions=versions, knows=markdown_table(rows),
        losses=markdown_table(history[:: max(1, len(history) // 10)] + history[-1:]), tasks=TASKS,
    )  # fmt: skip
