"""The scripts in `benchmarks/`, as modules: their functions are tested."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from rlhflow_utils.guide.stage import PROJECT


def benchmark_script(name: str) -> ModuleType:
    """The module `benchmarks/<name>.py`; its neighbours can be imported by it."""
    folder = str(PROJECT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)
