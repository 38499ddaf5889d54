"""Records what the `rewardbench` package (0.1.4) says about a small reward model, as a fixture for the tests.

    python benchmarks/rewardbench_reference.py --data-root FOLDER [--env .rewardbench_env]

The package pins transformers 4.51, so it lives in an environment of its own, which this script builds. The model is
made here from a seed and committed (`tests/fixtures/rewardbench/model`); the rows come from local files and stay there:
the fixture holds scores, subsets and row ids, no texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

FIXTURE = PROJECT / "tests" / "fixtures" / "rewardbench"
DRIVER = Path(__file__).with_name("rewardbench_driver.py")
PINS = ["rewardbench==0.1.4", "torch==2.13.0", "trl==0.16.1", "numpy<2.3", "setuptools<80"]
# Text for the tokenizer's merges: everyday words and what code is made of.
CORPUS = (
    "the answer to your question is that you should not do this because it would be wrong and here is how it works "
    "for int in return if else while def import from list string vector const let function public static void "
    "self None true false new std size length value result index number numbers count max min sum range append push "
) * 4


def build_environment(folder: Path) -> Path:
    """A virtual environment with the package; returns its Python."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PINS], check=True)
        (folder / ".ready").touch()
    return python


def make_model(folder: Path, seed: int = 0) -> None:
    """A reward model of about 37 thousand parameters whose scores spread widely; the seed alone decides its weights."""
    import torch
    from transformers import LlamaForSequenceClassification

    from rlhflow_utils.training.pretraining import build_model, train_tokenizer

    tokenizer = train_tokenizer([CORPUS], vocab_size=512)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2}
    config = build_model(**sizes, max_position_embeddings=8192, tokenizer=tokenizer, seed=seed).config
    config.num_labels = 1
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config)
    # The package pads on the left, which shifts all positions and so the rounding of RoPE's float32 angles. Larger
    # weights than these amplify that to more than the 1e-4 to which the scores are compared.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.12)
        model.score.weight.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 4.51 does not know the names that version 5 writes.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    settings |= {"chat_template": tokenizer.chat_template}
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_rows(root: Path) -> list[Any]:
    """LLMBar's five subsets, HumanEvalPack's six and the XSTest pairs, through the project's converters."""
    from rlhflow_utils.evaluation.rewardbench import load_benchmark
    from rlhflow_utils.guide.profile import load_profile

    return load_benchmark(load_profile("slices").rewardbench, root)[0]


def run_package(python: Path, model: Path, rows: list[Any], batch_size: int = 8) -> dict[str, Any]:
    """Scores of the package on the rows, its section scores, and its CPU seconds in the model."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "model").symlink_to(model.resolve(), target_is_directory=True)
        with (work / "rows.jsonl").open("w", encoding="utf-8") as handle:
            for row in rows:
                assert len(row["prompt"]) == 1
                texts = {"prompt": row["prompt"][0]["content"], "chosen": row["chosen"], "rejected": row["rejected"]}
                handle.write(json.dumps({**texts, "subset": row["subset"], "row_id": str(row["row_id"])}) + "\n")
        subprocess.run([str(python), str(DRIVER.resolve()), str(batch_size)], cwd=work, check=True)
        return dict(json.loads((work / "reference.json").read_text(encoding="utf-8")))


def record(python: Path, root: Path) -> None:
    """Make the model, run the package, write the fixture."""
    make_model(FIXTURE / "model")
    rows = load_rows(root)
    found = run_package(python, FIXTURE / "model", rows)
    scores: dict[str, dict[str, list[float]]] = {}
    assert found["row_ids"] == [str(row["row_id"]) for row in rows]
    for row, chosen, rejected in zip(rows, found["chosen"], found["rejected"], strict=True):
        scores.setdefault(row["subset"], {})[str(row["row_id"])] = [round(chosen, 6), round(rejected, 6)]
    provenance = {
        "package": "rewardbench 0.1.4",
        "command": "rewardbench --model model --batch_size 8 --torch_dtype float32 --not_quantized",
        "versions": found["versions"],
        "notes": "the hub's rows were replaced by the local ones of the same subsets; the package sends its inputs to "
        "'cuda', without a GPU they were kept on the CPU",
        "recorded": time.strftime("%Y-%m-%d"),
        "rows": len(rows),
    }
    record = {"provenance": provenance, "accuracies": found["accuracies"], "sections": found["sections"]}
    text = json.dumps({**record, "scores": scores}, separators=(",", ":"))
    (FIXTURE / "reference.json").write_text(text.replace("},", "},\n") + "\n", encoding="utf-8")
    print(f"{len(rows)} pairs recorded; sections {found['sections']}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with llmbar/, humanevalpack/ and xstest/")
    parser.add_argument("--env", type=Path, default=PROJECT / ".rewardbench_env", help="where the package lives")
    options = parser.parse_args()
    record(build_environment(options.env), options.data_root.resolve())


if __name__ == "__main__":
    main()
