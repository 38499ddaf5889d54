"""Running code that a model wrote, without trusting it (HumanEval, MBPP).

Every program runs in a process of its own with limits on time, processor time, memory and file sizes, an empty
environment, a scratch folder that is removed afterwards, and no input; inside (`sandbox_child.py`) network, other
processes and changes outside the scratch folder are refused. That stops what models write by mistake or imitation;
it is no defence against an attacker who studies it: run untrusted models in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

CHILD = Path(__file__).with_name("sandbox_child.py")
FILE_BYTES = 10_000_000


class Outcome(NamedTuple):
    """Did the program run to its end, and if not, why: an exception's name, ``timed out``, or ``ended early``."""

    passed: bool
    reason: str


def run_program(program: str, timeout: float = 5.0, memory_mb: int = 1024) -> Outcome:
    """Run a Python program that asserts its own correctness.

    Args:
        program: source text.
        timeout: wall seconds; the program and all it started are killed then.
        memory_mb: limit of its address space.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox_") as name:
        scratch, secret = os.path.realpath(name), secrets.token_hex(16)
        process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=scratch,
            env={"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: _set_limits(timeout, memory_mb),
        )
        job = json.dumps({"program": program, "secret": secret, "scratch": scratch}) + "\n"
        try:
            answer, _ = process.communicate(job.encode(), timeout=timeout)
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
        finally:
            _kill(process)
    report = answer.decode(errors="replace")
    if report == secret:
        return Outcome(True, "passed")
    return Outcome(False, report if report.isidentifier() else "ended early")


def _set_limits(timeout: float, memory_mb: int) -> None:
    """Runs in the child before Python starts there."""
    seconds, size = int(timeout) + 1, memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        os.killpg(process.pid, signal.SIGKILL)  # its whole session
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
