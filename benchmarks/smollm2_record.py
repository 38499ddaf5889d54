"""What a run of the profile smollm2 has measured, into results/smollm2/: also one that did not run all chapters.

    python benchmarks/smollm2_record.py runs/smollm2 model.dtype=bfloat16   # with the run's own overrides

Beside the summary: the baseline that picks the longer answer, how the policies do against the model as it came (the
summary compares them with SFT), and greedy answers before and after DPO to six prompts of our own (real prompts can be
harmful text), with the reward of the run's RM.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rlhflow_utils.evaluation.policies import judge_answers
from rlhflow_utils.evaluation.statistics import bootstrap_mean, length_adjusted_win_rate
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run, quiet_libraries
from rlhflow_utils.guide.stage import PROJECT, read_json, write_json
from rlhflow_utils.guide.tables import RESULTS, cell, policy_name
from rlhflow_utils.models.reward_model import score
from rlhflow_utils.online.generation import generate

PROMPTS = (
    "What is the capital of France?", "Write one sentence about the sea.", "What is 7 times 8?",
    "How do I keep basil alive in a pot?", "Give me three ideas for a rainy Sunday.", "What does a reward model do?",
)  # fmt: skip


def main(folder: str, overrides: dict[str, str]) -> None:
    """Write the record of the run in a folder."""
    chapters = [file.stem for file in sorted((PROJECT / folder / "chapters").glob("*.json"))]
    profile = load_profile("smollm2", {key: yaml.safe_load(value) for key, value in overrides.items()})
    run, main_mixture = Run(chapters[-1], profile, PROJECT / folder), profile.data.main_mixture
    facts = {key: run["sft"].manifest[key] for key in ("python", "versions", "commit", "dirty", "device")}
    facts |= {"profile": profile.name, "judge": profile.evaluation.judge, "mixture": main_mixture}
    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    rows = [{"prompt_id": str(place), "prompt": prompt} for place, prompt in enumerate(asked)]
    answers = [{"prompt": text} for text in PROMPTS]
    for name, stage in {"start": None, "sft": "sft", "iter3": "iter3_dpo"}.items():
        texts = _answers(run, stage, rows, 0.0)
        rewards = score(run.reward_model(), list(zip(asked, texts, strict=True)), profile.reward_model.batch_tokens)
        for row, text, reward in zip(answers, texts, rewards, strict=True):
            row[policy_name(name) if stage else "as it came"] = f"{text} ({cell(reward)})"
    summary = read_json(run.folder / "summary.json")
    longer = run[f"bt_{main_mixture}_test"].read_json("results.json")["longer_wins"]
    record = {"provenance": facts, "chapters": chapters, "overrides": overrides, "summary": summary}
    record |= {"longer_wins": longer, "against_start": against_start(run), "answers": answers}
    write_json(RESULTS / "smollm2" / "summary.json", record)


def against_start(run: Run) -> dict[str, dict[str, Any]]:
    """Estimates of each policy's win rate against the model as it came, on the held-out prompts, by the run's judge."""
    evaluation, found = run.profile.evaluation, {}
    rows = [{key: row[key] for key in ("prompt_id", "prompt")} for row in run["sft_answers"].dataset()]
    theirs = _answers(run, None, rows, evaluation.temperature)
    options = (evaluation, run.profile.world, run.judge_model(), run.profile.reward_model.batch_tokens, None)
    for name in ("sft", "offline_dpo", *(f"iter{k}" for k in range(1, run.profile.iterative.iterations + 1))):
        given = {row["prompt_id"]: row["responses"][0] for row in run[f"{name}_answers"].dataset()}
        ours = [given[row["prompt_id"]] for row in rows]
        verdicts, _ = judge_answers([row["prompt"] for row in rows], ours, theirs, *options)
        judged = [place for place, outcome in enumerate(verdicts["outcome"]) if outcome is not None]
        outcomes = [verdicts["outcome"][place] for place in judged]
        lengths = [len(ours[place]) for place in judged], [len(theirs[place]) for place in judged]
        plain = bootstrap_mean(outcomes, evaluation.bootstrap_samples, evaluation.confidence, run.seed)
        adjusted = length_adjusted_win_rate(outcomes, *lengths, evaluation.confidence).win_rate
        found[name] = {"win_rate": asdict(plain), "length_adjusted_win_rate": asdict(adjusted)}
    return found


def _answers(run: Run, stage: str | None, rows: list[dict[str, Any]], temperature: float) -> list[str]:
    """One answer to each prompt, of a stage's policy or (None) of the model as it came."""
    model = run[stage] if stage else run.base_model()
    settings = run.profile.generation.variant(1, [temperature])
    with tempfile.TemporaryDirectory() as place:
        data, _ = generate(model, rows, settings, run.profile.model, Path(place), run.seed)
        return [row["responses"][0] for row in data]


if __name__ == "__main__":
    quiet_libraries()
    main(sys.argv[1], dict(each.split("=", 1) for each in sys.argv[2:]))
