"""The stages that only the claims have: best of a sample, an exact checker, and KL from π₀."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from tiny_models import MODEL, artifact, save_policy

from rlhflow_utils.claims.steps import pick_answers, verify
from rlhflow_utils.evaluation.policies import measure_kl
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import Artifact
from rlhflow_utils.models.chat import encode_prompt, load_tokenizer
from rlhflow_utils.models.forward import load_model
from rlhflow_utils.simulator.gold import World


def _responses(folder: Path, answered: dict[str, list[str]], rewards: list[float]) -> Artifact:
    """Scored responses: prompt -> responses, with the same rewards for each prompt."""
    rows = [
        {"prompt_id": str(place), "prompt": [{"role": "user", "content": prompt}], "responses": texts,
         "response_ids": [[10 * place + 5 + each, 7] for each in range(len(texts))], "rewards": rewards,
         "finish_reasons": ["stop"] * len(texts), "temperatures": [1.0] * len(texts),
         "lengths": [len(text) for text in texts]}
        for place, (prompt, texts) in enumerate(answered.items())
    ]  # fmt: skip
    return artifact(folder, rows=rows)


def test_a_sample_is_the_best_of_its_own_answers(tmp_path: Path) -> None:
    """λ = 0.1: "long answer" (11 characters) at 1.5 is worth 0.4, and "ok" at 0.9 is worth 0.7."""
    texts = ["ok", "long answer", "no", "yes"]
    scored = _responses(tmp_path / "scored", {"?": texts}, [0.9, 1.5, -1.0, 0.1])

    def picked(sample: int, best_of: int, penalty: float) -> str:
        into = tmp_path / f"picked-{sample}-{best_of}-{penalty}"
        [row] = pick_answers(scored, sample, best_of, penalty, into=into).dataset()
        [text] = row["responses"]
        assert (row["lengths"], row["response_ids"]) == ([len(text)], [[5 + texts.index(text), 7]])
        return str(text)

    assert [picked(sample, 1, 0.1) for sample in range(4)] == texts
    assert (picked(0, 4, 0.0), picked(0, 4, 0.1), picked(1, 2, 0.0)) == ("long answer", "ok", "yes")


def test_the_checker_ranks_reasoning_answers_only(tmp_path: Path) -> None:
    profile = load_profile("tiny")
    assert profile.world is not None
    world, rng = World(profile.world), random.Random(0)
    tasks = [world.draw_task(skill, "train", rng) for skill in ("reasoning", "chat")]
    answered = {task.prompt: [task.answer, "wrong"] for task in tasks}
    scores = _responses(tmp_path / "scores", answered, [-3.0, 2.0])
    both = verify(scores, profile.world, False, into=tmp_path / "both")
    assert both.dataset()["rewards"][:] == [[1.0, 0.0], [-3.0, 2.0]]
    alone = verify(scores, profile.world, True, into=tmp_path / "alone")
    assert alone.dataset()["rewards"][:] == [[1.0, 0.0]]
    assert alone.rows["prompts"] == {"rows_in": 2, "rows_out": 1, "dropped": {"other_skill": 1}}


def test_kl_is_the_mean_difference_of_log_probabilities(tmp_path: Path) -> None:
    """Batches of unequal length, against transformers' own loss of one response at a time."""
    policy, reference = (save_policy(tmp_path / f"policy{seed}", seed) for seed in (0, 1))
    answers = _responses(tmp_path / "answers", {"red": ["a", "b"], "tell me about the sky please": ["c", "d"]}, [0, 0])
    measured = measure_kl(policy, reference, answers, 64, MODEL, into=tmp_path / "kl")
    tokenizer, expected = load_tokenizer(policy), []
    for row in answers.dataset():
        prompt = encode_prompt(row["prompt"], tokenizer)
        for ids in row["response_ids"]:
            expected.append(_log_probability(policy, prompt, ids) - _log_probability(reference, prompt, ids))
    by_prompt = [(expected[0] + expected[1]) / 2, (expected[2] + expected[3]) / 2]
    assert measured.read_json("results.json")["prompts"] == pytest.approx(by_prompt, abs=1e-4)
    assert measured.metrics["kl"] == pytest.approx(sum(expected) / 4, abs=1e-4)
    assert not math.isclose(by_prompt[0], by_prompt[1], abs_tol=0.01)


def _log_probability(model: Path, prompt: list[int], response: list[int]) -> float:
    import torch

    labels = torch.tensor([[-100] * len(prompt) + response])
    loss = load_model(model, "causal", MODEL)(input_ids=torch.tensor([prompt + response]), labels=labels).loss
    return -float(loss.item()) * len(response)
