"""Running a stage's heavy part in a process of its own, with its output streamed into this one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_module(module: str, *arguments: str) -> None:
    """Run ``python -m module arguments`` and copy its output line by line.

    Raises:
        RuntimeError: it failed; the message holds the last line that names an error.
    """
    search = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    stream_command([sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": search})


def stream_command(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a command and copy its output line by line; raises RuntimeError where it fails."""
    tail: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            tail = [*tail[-50:], line.strip()]
    if child.returncode:
        errors = [line for line in tail if "Error" in line] or tail or ["no output"]
        raise RuntimeError(f"{' '.join(command[1:3])} ended with exit code {child.returncode}: {errors[-1]}")


def end_with_parent() -> None:
    """Called by a child: end when the parent is killed, so that no orphan writes into a resumed run (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
