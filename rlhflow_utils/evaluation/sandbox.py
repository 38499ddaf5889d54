"""Running code that a model wrote, without trusting it (HumanEval, MBPP).

Every program runs in a process of its own with limits on time, processor time, memory and file sizes, an empty
environment, a scratch folder that is removed afterwards, and no input; inside, network, other processes and changes
outside the scratch folder are refused. That stops what models write by mistake or imitation; it is no defence against
an attacker who studies it: run untrusted models in a container.

The child process is this file run as a script, so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

FILE_BYTES = 10_000_000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "pty.",
    "ctypes.", "signal.pthread_kill", "os.setxattr", "webbrowser.",
)  # fmt: skip
# Events whose arguments are paths that the program would change.
CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
    "os.utime", "os.chdir", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.chown", "tempfile.mkstemp",
    "tempfile.mkdtemp",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Outcome(NamedTuple):
    """Did the program run to its end, and if not, why: an exception's name, ``timed out``, or ``ended early``."""

    passed: bool
    reason: str


def run_program(program: str, timeout: float = 5.0, memory_mb: int = 1024) -> Outcome:
    """Run a Python program that asserts its own correctness.

    It is killed, with all it started, after `timeout` wall seconds; `memory_mb` limits its address space.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox_") as name:
        scratch, secret = os.path.realpath(name), secrets.token_hex(16)
        process = subprocess.Popen(
            [sys.executable, "-I", __file__], cwd=scratch, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: _set_limits(timeout, memory_mb),
        )  # fmt: skip
        job = json.dumps({"program": program, "secret": secret, "scratch": scratch}) + "\n"
        with process:  # closes the pipes and waits
            try:
                answer, _ = process.communicate(job.encode(), timeout=timeout)
            except subprocess.TimeoutExpired:
                return Outcome(False, "timed out")
            finally:
                with contextlib.suppress(ProcessLookupError):  # it may have ended already
                    os.killpg(process.pid, signal.SIGKILL)  # its whole session
    report = answer.decode(errors="replace")
    if report == secret:
        return Outcome(True, "passed")
    return Outcome(False, report if report.isidentifier() else "ended early")


def _set_limits(timeout: float, memory_mb: int) -> None:
    """Runs in the child before Python starts there."""
    limits = {
        resource.RLIMIT_CPU: int(timeout) + 1, resource.RLIMIT_AS: memory_mb * 2**20, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: FILE_BYTES, resource.RLIMIT_NOFILE: 64,
    }  # fmt: skip
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _guard(scratch: str) -> None:
    """In the child: refuse network, other processes, and changes outside `scratch`; no audit hook can be taken off."""
    # Held here: a program can reach this module and change its names.
    forbidden, changes, writing, inside = FORBIDDEN, frozenset(CHANGES), WRITING, os.path.commonpath
    real, text = os.path.realpath, os.fsdecode

    def outside(path: Any) -> bool:
        return path > 2 if isinstance(path, int) else inside([scratch, real(text(path))]) != scratch

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(forbidden):
            raise PermissionError(f"the sandbox forbids {event}")
        if event in changes and any(outside(path) for path in arguments if isinstance(path, (str, bytes, int))):
            raise PermissionError(f"the sandbox forbids {event} outside its folder")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & writing and outside(arguments[0]):
            raise PermissionError("the sandbox forbids writing outside its folder")

    sys.addaudithook(hook)


def _run_child() -> None:
    """Read a job (program, secret, scratch folder) from standard input, run it, and report.

    Only a program that runs to its end gets the secret written: leaving early, with whatever exit status, is no pass.
    """
    job = json.loads(sys.stdin.readline())
    # No network even for what bypasses Python; where the kernel does not allow it, the hook alone stands.
    ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    program, secret = job["program"], job["secret"]
    _guard(job["scratch"])
    del job
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        status = secret
    except BaseException as error:
        status = type(error).__name__
    os.write(report, status.encode())
    os._exit(0)


if __name__ == "__main__":
    _run_child()
