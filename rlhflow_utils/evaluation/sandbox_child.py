"""Runs one untrusted program; started by `sandbox.run_program` in a process of its own, never imported.

Standard input brings one JSON line: the program, a secret and the scratch folder. Only a program that runs to its end
gets the secret written to standard output: leaving early, with whatever exit status, is not passing.
"""

import ctypes
import json
import os
import sys

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


def guard(scratch: str) -> None:
    """Refuse network, other processes, and changes outside the scratch folder; an audit hook cannot be taken off."""

    def outside(path: object) -> bool:
        if isinstance(path, int):
            return path > 2
        return os.path.commonpath([scratch, os.path.realpath(os.fsdecode(path))]) != scratch  # type: ignore[arg-type]

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"the sandbox forbids {event}")
        if event in CHANGES and any(outside(path) for path in arguments if isinstance(path, (str, bytes, int))):
            raise PermissionError(f"the sandbox forbids {event} outside its folder")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING and outside(arguments[0]):
            raise PermissionError("the sandbox forbids writing outside its folder")

    sys.addaudithook(hook)


def main() -> None:
    """Read the job, run it, and report."""
    job = json.loads(sys.stdin.readline())
    # No network even for what bypasses Python; where the kernel does not allow it, the hook alone stands.
    ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    program, secret = job["program"], job["secret"]
    guard(job["scratch"])
    del job
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        status = secret
    except BaseException as error:
        status = type(error).__name__
    os.write(report, status.encode())
    os._exit(0)


main()
