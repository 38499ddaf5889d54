"""What a run of the profile smollm2 has measured, into results/smollm2/: also one that did not run all chapters.

    python benchmarks/smollm2_record.py runs/smollm2 model.dtype=bfloat16   # with the run's own overrides

Beside the summary: the baseline that picks the longer answer, and greedy answers before and after DPO to six prompts of
our own (real prompts can be harmful text), with the reward of the run's RM.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml

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
    greedy = profile.generation.variant(1, [0.0])
    for name, stage in {"sft": "sft", "iter3": "iter3_dpo"}.items():
        with tempfile.TemporaryDirectory() as place:
            data, _ = generate(run[stage], rows, greedy, profile.model, Path(place), run.seed)
            texts = [row["responses"][0] for row in data]
        rewards = score(run.reward_model(), list(zip(asked, texts, strict=True)), profile.reward_model.batch_tokens)
        for row, text, reward in zip(answers, texts, rewards, strict=True):
            row[policy_name(name)] = f"{text} ({cell(reward)})"
    summary = read_json(run.folder / "summary.json")
    longer = run[f"bt_{main_mixture}_test"].read_json("results.json")["longer_wins"]
    record = {"provenance": facts, "chapters": chapters, "overrides": overrides, "summary": summary}
    write_json(RESULTS / "smollm2" / "summary.json", {**record, "longer_wins": longer, "answers": answers})


if __name__ == "__main__":
    quiet_libraries()
    main(sys.argv[1], dict(each.split("=", 1) for each in sys.argv[2:]))
