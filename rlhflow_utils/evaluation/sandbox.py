"""Running code that a model wrote, without trusting it (HumanEval, MBPP).

Two processes run per program. The judged one holds what the model wrote; the other one holds the tests and sends it
the calls to make. Plain values come back by value, anything else as a `Remote`. A verdict is the exit status of the
process with the tests, in which nothing of the model runs: there is nothing to reach, to patch or to find out.

With bubblewrap (`bwrap`) each has a read-only system, a temporary folder as its only home, no network, and process
numbers of its own. Without, there is only the weak guard: limits, an empty environment, a scratch folder that is
removed afterwards, and an audit hook. It stops mistakes and imitation, not an attacker who studies it.

Not found out: objects whose `==` (or another operator) lies, and helpers of the program that the tests themselves call
(HumanEval 32, 38 and 50).

The processes are this file run as a script, so it imports the standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import functools
import io
import json
import operator
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

FILE_BYTES, FOLDER_BYTES, PROCESSES = 10_000_000, 100_000_000, 64
CLONE_NEWUSER, CLONE_NEWNET, PR_SET_PDEATHSIG = 0x10000000, 0x40000000, 1
PASSED, NOT_STARTED, FAILED = 0, 1, 3  # exit statuses; bubblewrap and Python give 1 where they do not start
# What a program may read beside its own folder.
SYSTEM = (
    "/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", sys.base_prefix, os.path.realpath(sys.base_prefix),
    sys.prefix, os.path.realpath(__file__),
)  # fmt: skip
FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "pty.",
    "ctypes.", "signal.pthread_kill", "os.setxattr", "webbrowser.", "sqlite3.", "resource.",
)  # fmt: skip
# Events whose arguments are paths that the program would change.
CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
    "os.utime", "os.chdir", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.chown", "tempfile.mkstemp",
    "tempfile.mkdtemp",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PLAIN = {type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset}  # subclasses are not
ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
OPERATORS = (
    *ARITHMETIC, "eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "round", "bool", "int", "float", "index",
    "str", "repr", "hash", "len", "iter", "next", "reversed", "contains", "getitem", "setitem", "delitem", "call",
)  # fmt: skip


class Outcome(NamedTuple):
    """Did the tests pass, and if not, why: an exception's name, ``timed out``, or ``ended early``."""

    passed: bool
    reason: str


def run_program(program: str, tests: str, timeout: float = 5.0, memory_mb: int = 1024) -> Outcome:
    """Run `tests`, which assert something of the names that `program` defines.

    All is killed after `timeout` wall seconds; `memory_mb` limits each process's address space. RuntimeError where
    the processes do not start.
    """
    with _scratch_folder() as scratch, contextlib.ExitStack() as stack:
        ends = socket.socketpair()

        def start(role: str, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [*_container(), sys.executable, "-I", SYSTEM[-1], role, scratch, str(ends[1].fileno())],
                stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True,
                pass_fds=[ends[1].fileno()] if role == "tests" else [], cwd="/" if _container() else scratch,
                env={"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: _set_limits(timeout, memory_mb),
            )  # fmt: skip
            stack.enter_context(process)  # closes its pipes and waits
            stack.callback(_kill, process)
            return process

        with ends[0], ends[1]:
            start("judged", ends[0].fileno(), subprocess.DEVNULL)
            judge = start("tests", subprocess.PIPE, subprocess.PIPE)
        job = json.dumps({"program": program, "tests": tests})
        try:
            reason = judge.communicate(job.encode(), timeout=timeout)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            return Outcome(False, "timed out")
    if judge.returncode == NOT_STARTED:
        raise RuntimeError("the sandbox's processes did not start; are memory, processes or temporary space used up?")
    return Outcome(judge.returncode == PASSED, reason or "ended early")


@functools.cache
def _container() -> tuple[str, ...]:
    """The command that contains another; empty, and said so once, where bubblewrap does not work."""
    binds = [argument for path in SYSTEM for argument in ("--ro-bind-try", path, path)]
    command = (
        "bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL",
        "--die-with-parent", "--dev", "/dev", "--size", str(FOLDER_BYTES), "--tmpfs", "/tmp", *binds,
        "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp",
    )  # fmt: skip
    try:
        subprocess.run([*command, sys.executable, "-I", "-c", ""], check=True, capture_output=True, timeout=60)
        return command
    except FileNotFoundError:
        why = "bubblewrap is not installed"
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").strip()[:200]
    print(f"sandbox: only the weak guard (mistakes, not intent): {why}; apt install bubblewrap", file=sys.stderr)
    return ()


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    """A folder that a process of its own removes, also where this one is killed; in a container its own /tmp."""
    if _container():
        yield "/tmp"
        return
    folder = os.path.realpath(tempfile.mkdtemp(prefix="sandbox_"))
    script = 'read -r _; chmod -R u+rwX "$0"; rm -rf "$0"'
    remover = subprocess.Popen(
        ["/bin/sh", "-c", script, folder], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    try:
        yield folder
    finally:
        remover.communicate()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        os.killpg(process.pid, signal.SIGKILL)  # its whole session


def _set_limits(timeout: float, memory_mb: int) -> None:
    """Runs in the child before anything else starts there; it dies with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    limits = {
        resource.RLIMIT_CPU: int(timeout) + 1, resource.RLIMIT_AS: memory_mb * 2**20, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: FILE_BYTES, resource.RLIMIT_NOFILE: 64,
    }  # fmt: skip
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _guard(scratch: str) -> None:
    """Inside: refuse network, other processes, and files outside `scratch`; no audit hook can be taken off."""
    # Held here: a program can reach this module and change its names.
    forbidden, changes, writing, inside = FORBIDDEN, frozenset(CHANGES), WRITING, os.path.commonpath
    real, text = os.path.realpath, os.fsdecode
    readable = [scratch, *map(os.path.realpath, SYSTEM)]

    def outside(path: Any, folders: list[str]) -> bool:
        if isinstance(path, int):
            return path > 2
        resolved = real(text(path))
        return all(inside([folder, resolved]) != folder for folder in folders)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(forbidden):
            raise PermissionError(f"the sandbox forbids {event}")
        paths = [path for path in arguments[:2] if isinstance(path, (str, bytes, os.PathLike))]
        if isinstance(arguments[0] if arguments else None, int):
            paths = [arguments[0]]
        if event in changes and any(outside(path, [scratch]) for path in paths):
            raise PermissionError(f"the sandbox forbids {event} outside its folder")
        if event == "open":
            changing = isinstance(arguments[2], int) and arguments[2] & writing
            if outside(arguments[0], [scratch] if changing else readable):
                raise PermissionError("the sandbox forbids opening files outside its folder")
        if event in ("os.listdir", "os.scandir") and outside(arguments[0] or ".", readable):
            raise PermissionError("the sandbox forbids listing folders outside its own")

    sys.addaudithook(hook)


class Remote:
    """Something of the judged process that is no plain value; what is done to it is done there."""

    def __init__(self, channel: Channel, number: int) -> None:
        self._channel, self._number = channel, number

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("getattr", self, name)


def _forward(name: str, swapped: bool = False) -> Any:
    def method(self: Remote, *arguments: Any, **named: Any) -> Any:
        return self._channel.ask(name, *((*arguments, self) if swapped else (self, *arguments)), **named)

    return method


for _name in OPERATORS:
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in ARITHMETIC:
    setattr(Remote, f"__r{_name}__", _forward(_name, swapped=True))


class Channel:
    """Pickled messages between the two processes, each after its length; objects pass as numbers of `kept` ones.

    The judged process keeps what is no plain value. The other one makes plain values and Remotes of what comes, and
    nothing else: unpickling cannot run anything there.
    """

    def __init__(self, descriptor: int, judged: bool) -> None:
        self.reading, self.writing = os.fdopen(descriptor, "rb"), os.fdopen(os.dup(descriptor), "wb")
        self.judged = judged
        self.kept: list[Any] = []

    def send(self, message: Any) -> None:
        data, channel = io.BytesIO(), self

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: Any) -> int | None:
                if not channel.judged:
                    return value._number if type(value) is Remote else None
                if type(value) in PLAIN:
                    return None
                channel.kept.append(value)
                return len(channel.kept) - 1

        Pickler(data, protocol=4).dump(message)
        self.writing.write(len(data.getvalue()).to_bytes(8, "big") + data.getvalue())
        self.writing.flush()

    def receive(self) -> Any:
        data, channel = self.reading.read(int.from_bytes(self.reading.read(8), "big")), self
        if not data:
            raise ConnectionError("the other process is gone")

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: Any) -> Any:
                return channel.kept[number] if channel.judged else Remote(channel, number)

            def find_class(self, module: str, name: str) -> Any:
                if channel.judged:
                    return super().find_class(module, name)
                raise pickle.UnpicklingError("plain values only")

        return Unpickler(io.BytesIO(data)).load()

    def ask(self, function: str, *arguments: Any, **named: Any) -> Any:
        """What the judged process's function returns; what it raises is raised here, by name."""
        self.send((function, arguments, named))
        raised, answer = self.receive()
        if raised is False:
            return answer
        known = getattr(builtins, str(answer), None)
        if not (isinstance(known, type) and issubclass(known, BaseException)):
            known = type(str(answer), (Exception,), {})
        if known is StopIteration and function != "next":  # it would end a loop of the tests in silence
            known = RuntimeError
        raise known("in the program")


def _serve(channel: Channel) -> None:
    """The judged process: define what the program defines, then do what is asked, until it is killed."""

    def define(program: str, names: list[str]) -> dict[str, Any]:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(program, "program", "exec"), space)
        return {name: space[name] for name in names if name in space}

    while True:
        function, arguments, named = channel.receive()
        try:
            known = define if function == "define" else getattr(builtins, function, None)
            channel.send((False, (known or getattr(operator, f"__{function}__"))(*arguments, **named)))
        except BaseException as error:
            channel.send((True, type(error).__name__))


def _run_tests(channel: Channel, program: str, tests: str) -> str:
    """Why the tests fail; nothing where they pass."""
    try:
        names = _free_names(tests)
        found = channel.ask("define", program, names)  # what else the answer has is left
        space = {name: found[name] for name in names if name in found}
        exec(compile(tests, "tests", "exec"), space | {"__name__": "tests"})
    except ConnectionError:
        return "ended early"
    except BaseException as error:
        return type(error).__name__
    return ""


def _free_names(tests: str) -> list[str]:
    """Names that the tests need from the program; a builtin only where they need no other (MBPP 126 tests `sum`)."""
    nodes = list(ast.walk(ast.parse(tests)))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    own = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    own |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    return sorted(read - own - set(dir(builtins)) or read - own)


def _run_inside(role: str, scratch: str, descriptor: str) -> None:
    """One of the two processes; the one with the tests reports by its exit status, and says why on its output."""
    os.chdir(scratch)
    judged = role == "judged"
    job = {} if judged else json.loads(sys.stdin.read())
    report = os.dup(1)
    channel = Channel(os.dup(0) if judged else int(descriptor), judged)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    # No network even for what bypasses Python, where the kernel allows it.
    ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    _guard(scratch)
    if judged:
        channel.send("started")
        _serve(channel)
    if channel.receive() != "started":
        sys.exit(NOT_STARTED)
    reason = _run_tests(channel, **job)
    os.write(report, (reason or "passed").encode())
    os._exit(FAILED if reason else PASSED)


if __name__ == "__main__":
    _run_inside(*sys.argv[1:])
