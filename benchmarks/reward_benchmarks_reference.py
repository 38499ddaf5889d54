"""Records how the authors' own code scores RewardBench 2 and RM-Bench, as a fixture for the tests.

    git clone https://github.com/allenai/reward-bench; git clone https://github.com/THU-KEG/RM-Bench
    python benchmarks/reward_benchmarks_reference.py --reward-bench reward-bench --rm-bench RM-Bench

Their functions are read from the clones and run here on random scores, rounded so that ties occur. (The package
`rewardbench` 0.1.4 is older: it adds no 0.01 where all right answers of a question score the same.)
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import subprocess
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "reward_benchmarks.json"
DOMAINS = ("chat", "code", "math", "safety-refuse", "safety-response")


def their_functions(file: Path, *names: str) -> dict[str, Any]:
    """Functions of a file, without running the rest of it."""
    nodes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if getattr(node, "name", "") in names]
    known = {**vars(typing), "np": np, "pd": pd, "Dataset": Dataset, "defaultdict": defaultdict}
    exec(compile(ast.Module(nodes, []), str(file), "exec"), known)
    return known


def commit(folder: Path) -> str:
    """The commit of a clone."""
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward-bench", type=Path, required=True)
    parser.add_argument("--rm-bench", type=Path, required=True)
    options = parser.parse_args()
    draw = random.Random(0)

    def scores(right: int, wrong: int, edge: int) -> list[float]:
        """Right answers score higher by `edge` tenths on average."""
        return [draw.randint(low, low + 6) / 10 for low in [edge] * right + [0] * wrong]

    four = [scores(1, 3, 2) for _ in range(40)]
    sizes = {"ref": (1, 3, 5), "tied": (3, 4, 9)}
    ties = [
        {"id": f"{kind}:{question}", "num_correct": sizes[kind][0], "scores": scores(*sizes[kind])}
        for kind in sizes for question in range(30)
    ]  # fmt: skip
    ties[7]["scores"] = [0.5] * 4  # a gap of 0
    ties[31]["scores"] = [0.8] * 3 + [0.1] * 4  # a spread of 0
    styles = [{"domain": domain, "score_chosen": scores(3, 0, 2), "score_rejected": scores(0, 3, 0)}
              for domain in DOMAINS for _ in range(draw.randint(5, 15))]  # fmt: skip

    file = options.reward_bench / "rewardbench" / "utils.py"
    theirs = their_functions(file, "process_single_model", "_compute_prompt_stats", "reroll_and_score_dataset")
    rows = Dataset.from_list([{"text": "", "scores": score} for group in four for score in group])
    best = theirs["reroll_and_score_dataset"](rows, [4] * len(four))["results"]
    _, ties_score = theirs["process_single_model"](Dataset.from_list(ties))
    names = ("compute_accuracy", "split_dataset_by_domain")
    compute_accuracy = their_functions(options.rm_bench / "scripts" / "utils.py", *names)["compute_accuracy"]
    record = {
        "commits": {"allenai/reward-bench": commit(options.reward_bench), "THU-KEG/RM-Bench": commit(options.rm_bench)},
        "four": four, "best_of_four": list(best), "ties": ties, "ties_score": ties_score,
        "styles": [dict(row) for row in styles],
        "accuracies": {name: float(value) for name, value in compute_accuracy([dict(row) for row in styles]).items()},
    }  # fmt: skip
    FIXTURE.write_text(json.dumps(record, separators=(",", ":")).replace("},", "},\n") + "\n", encoding="utf-8")
    print(f"ties {ties_score:.4f}, best of four {np.mean(best):.4f}, RM-Bench {record['accuracies']}")


if __name__ == "__main__":
    main()
