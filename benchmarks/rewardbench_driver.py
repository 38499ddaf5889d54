"""Runs inside the `rewardbench` package's own environment: scores ``rows.jsonl`` with ``model`` (current folder).

Started by `rewardbench_reference.py` and `rewardbench.py`. Writes ``reference.json``: scores, accuracies by subset,
section scores, and the CPU seconds spent in the package's scoring pipeline.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

# This folder holds a script named like the package.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import rewardbench.rewardbench as runner
import rewardbench.utils
import torch
import transformers
from datasets import Dataset
from rewardbench.constants import EXAMPLE_COUNTS, SUBSET_MAPPING
from rewardbench.models.pipeline import RewardBenchPipeline
from rewardbench.utils import calculate_scores_per_section

if not torch.cuda.is_available():
    # The pipeline sends its inputs to "cuda" whatever the machine has.
    to = transformers.BatchEncoding.to
    transformers.BatchEncoding.to = lambda self, device, **rest: to(self, "cpu", **rest)

# The rows at hand stand in for those of the hub, in the same columns.
rewardbench.utils.load_dataset = lambda *arguments, **keywords: Dataset.from_json("rows.jsonl")

seconds = 0.0
call = RewardBenchPipeline.__call__


def timed_call(self, *arguments, **keywords):
    """The pipeline's call, timed."""
    global seconds
    started = time.process_time()
    result = call(self, *arguments, **keywords)
    seconds += time.process_time() - started
    return result


RewardBenchPipeline.__call__ = timed_call


def main() -> None:
    """Run the package as its command line does, and collect what it wrote."""
    batch_size = int(sys.argv[1])
    runner.rewardbench(
        runner.Args(model="model", batch_size=batch_size, torch_dtype="float32", not_quantized=True, output_dir="./")
    )
    rows = [json.loads(line) for line in Path("model_outputs.jsonl").read_text(encoding="utf-8").split("\n") if line]
    accuracies = json.loads(Path("model.json").read_text(encoding="utf-8"))["extra_results"]
    found = {
        "chosen": [row["scores_chosen"] for row in rows],
        "rejected": [row["scores_rejected"] for row in rows],
        "row_ids": [row["row_id"] for row in rows],
        "accuracies": accuracies,
        "sections": calculate_scores_per_section(EXAMPLE_COUNTS, SUBSET_MAPPING, accuracies),
        "seconds": seconds,
        "versions": {
            name: version(name) for name in ("rewardbench", "transformers", "torch", "tokenizers", "datasets")
        },
    }
    Path("reference.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
