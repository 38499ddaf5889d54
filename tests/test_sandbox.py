"""The sandbox: real solutions pass, hostile programs fail, reach nothing and leave nothing behind."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhflow_utils.evaluation import sandbox
from rlhflow_utils.evaluation.sandbox import run_program

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
WRONG = "def add(a, b): return None"

HOSTILE = {
    # Leaving before the tests, or while they run.
    "exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef add(a, b): os._exit(0)",
    "SystemExit in the call": "def add(a, b): raise SystemExit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\n" + WRONG,
    "abort": "import os\nos.abort()",
    "deep recursion in C": "x = []\nfor _ in range(10**6): x = [x]\ndef add(a, b): return x",
    # Looking for what decides the verdict.
    "frames": "import sys, os\nframe = sys._getframe()\nwhile frame:\n    for value in list(frame.f_locals.values()):\n"
    "        if isinstance(value, str): os.write(1, value.encode())\n    frame = frame.f_back\n" + WRONG,
    "frames of the caller": "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n    return frame.f_locals\n",
    "gc": "import gc\nfor each in gc.get_objects():\n    if type(each).__name__ == 'Channel':\n"
    "        for _ in range(9): each.send((False, {'add': 3}))\n" + WRONG,
    "the module's names": "import __main__\n__main__._run_tests = lambda *_: ''\n__main__.PASSED = 3\n" + WRONG,
    "passed on every descriptor": "import os\nfor fd in range(64):\n    try: os.write(fd, b'passed')\n"
    "    except OSError: pass\n" + WRONG,
    "close every descriptor": "import os\nos.closerange(0, 64)\n" + WRONG,
    "pickled code": "import gc, pickle\nclass X:\n    def __reduce__(self): return exec, ('import os; os._exit(0)',)\n"
    "data = pickle.dumps((False, X()))\nfor each in gc.get_objects():\n    if type(each).__name__ == 'Channel':\n"
    "        each.writing.write(len(data).to_bytes(8, 'big') + data)\n        each.writing.flush()\n" + WRONG,
    # Changing Python under the tests.
    "settrace": "import sys\ndef trace(*_):\n    sys.exit(0)\n    return trace\nsys.settrace(trace)\n"
    + WRONG,
    "setprofile": "import sys, os\ndef add(a, b):\n    sys.setprofile(lambda *_: os._exit(0))\n    return len('')",
    "builtins": "import builtins\nbuiltins.AssertionError = type('E', (), {})\nbuiltins.type = lambda *_: str\n"
    "builtins.getattr = lambda *_: lambda *_: 3\n" + WRONG,
    "builtins shadowed": "def abs(x): return 3\n" + WRONG,
    "operator": "import operator\noperator.__call__ = lambda *_: None\noperator.__eq__ = lambda *_: True\n" + WRONG,
    "pickle": "import pickle\npickle.Pickler.dump = lambda *_: None\nclass P:\n    pass\npickle.Pickler = P\n" + WRONG,
    "threads": "import threading, os, time\ndef leave():\n    time.sleep(0.1)\n    os._exit(0)\n"
    "threading.Thread(target=leave).start()\ndef add(a, b): time.sleep(60)",
    "a thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(999,)).start()\n" + WRONG,
    "excepthook": "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\nraise ValueError",
    # Reaching other processes.
    "fork": "import os\nif os.fork(): os._exit(0)\n" + WRONG,
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill all": "import os\nos.kill(-1, 9)",
    "kill the group": "import os\nos.killpg(0, 9)",
    "signal": "import signal\nsignal.raise_signal(signal.SIGKILL)",
    "signals ignored": "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "alarm": "import signal, os\nsignal.signal(14, lambda *_: os._exit(0))\nsignal.setitimer(0, .1)\nwhile True: pass",
    "subprocess": "import subprocess\nsubprocess.run(['rm', '-rf', FOLDER])\n" + WRONG,
    "ctypes": "import ctypes\nctypes.CDLL(None).unlink(KEPT.encode())\nctypes.CDLL(None)._exit(0)",
    "ctypes memory": "import ctypes\nctypes.string_at(0)",
    # Files outside.
    "sqlite writes": "import sqlite3\nsqlite3.connect(KEPT + '.db').execute('create table x (y)').connection.commit()\n"
    + WRONG,
    "sqlite attaches": "import sqlite3\nsqlite3.connect(':memory:').execute('attach ? as x', (KEPT + '.db',))\n"
    + WRONG,
    "sqlite vacuums": "import sqlite3\nsqlite3.connect(':memory:').execute('vacuum into ?', (KEPT + '.db',))\n" + WRONG,
    "symlink": "import os\nos.symlink(KEPT, 'link')\nopen('link', 'w').write('gone')\n" + WRONG,
    "link to the folder": "import os, shutil\nos.symlink(FOLDER, 'link')\nshutil.rmtree('link/')\n" + WRONG,
    "descriptor of a folder": "import os\nos.unlink('kept.txt', dir_fd=os.open(FOLDER, os.O_RDONLY))\n" + WRONG,
    "pathlib": "import pathlib\npathlib.Path(KEPT).unlink()\n" + WRONG,
    "proc": "open('/proc/self/mem', 'r+b').write(b'x')\n" + WRONG,
    # Too much of everything.
    "memory": "x = bytearray(3 << 30)",
    "memory in pieces": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "memory in the answer": "def add(a, b): return [bytes(1 << 20)] * 3 + [bytes(1 << 29)]",
    "output": "while True: print('noise' * 1000)",
    "endless answer": "def add(a, b):\n    while True: yield 1",
    "files": "n = 0\nwhile True:\n    open(str(n), 'wb').write(bytes(10**6))\n    n += n < 500",
    "a huge file": "f = open('big', 'wb')\nwhile True: f.write(b'x' * 1000000)",
    "unreadable folder": "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.chmod('a', 0)\n" + WRONG,
    "a number of many digits": "def add(a, b): return 10 ** (10 ** 9)",
}  # fmt: skip


@pytest.fixture(params=["bubblewrap", "weak guard"])
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The ways to run a program; temporary files go to a folder that is empty afterwards."""
    if request.param == "weak guard":
        monkeypatch.setattr(sandbox, "_container", lambda: ())
    elif not sandbox._container():
        pytest.skip("bubblewrap does not work here: apt-get install bubblewrap, and allow user namespaces")
    if request.param == "bubblewrap alone":  # the script without its audit hook
        script = tmp_path / "script" / "sandbox.py"
        script.parent.mkdir()
        script.write_text(Path(sandbox.__file__).read_text().replace("sys.addaudithook(hook)", "pass"))
        monkeypatch.setattr(sandbox, "SYSTEM", (*sandbox.SYSTEM[:-1], str(script)))
        command = sandbox._container.__wrapped__()
        monkeypatch.setattr(sandbox, "_container", lambda: command)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield request.param
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("guard", ["bubblewrap alone", "bubblewrap", "weak guard"], indirect=True)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained_and_does_not_pass(name: str, guard: str, tmp_path: Path) -> None:
    kept = tmp_path / "outside" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("precious")
    program = f"KEPT, FOLDER = {str(kept)!r}, {str(kept.parent)!r}\n{HOSTILE[name]}"
    assert not run_program(program, TESTS, timeout=1.5).passed
    assert {path.name: path.read_text() for path in kept.parent.iterdir()} == {"kept.txt": "precious"}


@pytest.mark.parametrize(
    "program",
    ["def add(a, b): return open({path!r}).read()", "import os\ndef add(a, b): return os.listdir({folder!r})",
     "import glob\ndef add(a, b): return glob.glob({folder!r} + '/*')",
     "import os\nos.symlink({path!r}, 'x')\ndef add(a, b): return open('x').read()",
     "import mmap, os\ndef add(a, b): return mmap.mmap(os.open({path!r}, os.O_RDONLY), 0)[:]"],
)  # fmt: skip
def test_nothing_outside_can_be_read(program: str, guard: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_secret")
    program = program.format(path=str(token), folder=str(tmp_path))
    tests = "try: found = add(1, 2)\nexcept OSError: found = ''\nassert 'hf_secret' in found or 'token' in str(found)"
    assert not run_program(program, tests).passed


@pytest.mark.parametrize(
    "program",
    ["open({path!r}, 'w')", "import os; os.remove({path!r})", "import shutil; shutil.rmtree({folder!r})",
     "import os; os.rename({path!r}, 'here')", "import pathlib; pathlib.Path({path!r}).write_text('x')",
     "import os; os.truncate({path!r}, 0)", "import os; os.open({path!r}, os.O_RDWR)"],
)  # fmt: skip
def test_nothing_outside_the_scratch_folder_is_touched(program: str, guard: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("precious")
    outcome = run_program(program.format(path=str(kept), folder=str(tmp_path)), "", timeout=3.0)
    # In a container the folder does not even exist.
    assert outcome in [(False, "PermissionError"), (False, "FileNotFoundError" if guard == "bubblewrap" else "")]
    assert kept.read_text() == "precious"


def test_bubblewrap_hides_the_machine(guard: str, tmp_path: Path) -> None:
    """What the audit hook cannot see: programs in C, other processes, other folders."""
    if guard != "bubblewrap":
        pytest.skip("the weak guard does not promise this")
    (tmp_path / "token").write_text("hf_secret")
    script = (
        f"cat {tmp_path}/token; echo x > {tmp_path}/new; rm -rf {tmp_path}; ls -A /proc /tmp; "
        "for f in /usr/x /x /dev/x /etc/x; do echo x > $f && echo wrote $f; done; kill -9 -1; echo end"
    )
    process = subprocess.run([*sandbox._container(), "sh", "-c", script], capture_output=True, text=True)
    shown = process.stdout.replace(f"{Path(sys.prefix).parts[2]}\n", "")  # where Python itself lies under /tmp
    assert shown in ("/tmp:\n", "/tmp:\nend\n", "", "end\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary", "token"]
    code = "import os, socket; print(os.getpid() < 10, os.environ.get('HOME'), socket.if_nameindex())"
    process = subprocess.run([*sandbox._container(), sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert process.stdout.startswith("True ")
    assert process.stdout.endswith("[(1, 'lo')]\n")


def test_recorded_hostile_samples_pass_half(data_root: Path) -> None:
    """openai/human-eval's example samples: one deletes a folder, one sleeps, one waits for input; 3 of 6 are right."""
    folder = data_root / "humaneval"
    problem = json.loads((folder / "example_problem.jsonl").read_text().splitlines()[0])
    samples = [json.loads(line) for line in (folder / "example_samples.jsonl").read_text().splitlines()]
    tests = f"{problem['test']}\ncheck({problem['entry_point']})"
    outcomes = [run_program(problem["prompt"] + s["completion"], tests, timeout=2.0) for s in samples]
    assert [outcome.passed for outcome in outcomes] == [False, False, False, True, True, True]
    assert [outcome.reason for outcome in outcomes[:3]] == ["PermissionError", "timed out", "EOFError"]


def test_reference_solutions_of_humaneval_pass(data_root: Path) -> None:
    lines = gzip.decompress((data_root / "humaneval/HumanEval.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in [*rows[::12], rows[32], rows[38], rows[50]]:  # these tests call helpers of the prompt
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        assert run_program(row["prompt"] + row["canonical_solution"], tests, timeout=20).passed, row["task_id"]
        assert not run_program(row["prompt"] + "    pass\n", tests, timeout=20).passed, row["task_id"]


@pytest.mark.parametrize(
    ("program", "tests", "reason"),
    [
        ("def f(): return 2", "assert f() == 2", "passed"),
        ("def f(): return 2", "assert f() == 3", "AssertionError"),
        ("def f(:", "", "SyntaxError"),
        ("def f(): return 2", "assert g() == 2", "NameError"),
        ("class Odd(Exception): pass\ndef f(): raise Odd", "f()", "Odd"),
        ("import sys; sys.exit(0)", "", "SystemExit"),
        ("import os; os._exit(0)", "", "ended early"),
        ("import os; os.kill(os.getppid(), 9)", "", "PermissionError"),
        ("x = 'a' * (3 << 30)", "", "MemoryError"),
        ("def f(): f()\nf()", "", "RecursionError"),
        ("def f():\n    open('mine', 'w').write('x')\n    return open('mine').read()", "assert f() == 'x'", "passed"),
        ("f = open('big', 'wb')\nwhile True: f.write(b'x' * 1000000)", "", "OSError"),
        ("import os\ndef f(): return list(os.environ)", "assert 'OPENAI_API_KEY' not in f()", "passed"),
        ("import os\ndef f(): return __name__", "assert f() == '__main__'", "passed"),
        # Results that are no plain values, and a function that is called like a builtin (MBPP 126).
        ("import collections\ndef f(x): return collections.Counter(x)", "assert f('aa') == {'a': 2}", "passed"),
        ("def f():\n    yield 1\n    yield 2", "assert list(f()) == [1, 2] and tuple(f()) == (1, 2)", "passed"),
        ("import numpy\ndef f(): return [numpy.float64(2)]", "assert abs(f()[0] - 2) < 1 == len({*f()})", "passed"),
        ("import fractions\ndef f(): return fractions.Fraction(1, 2)", "assert 1 - f() == .5 == abs(f())", "passed"),
        ("import os\ndef f():\n    os.makedirs('a/b')\n    return os.listdir('a')", "assert f() == ['b']", "passed"),
        ("class Pair:\n    def __init__(self, a): self.a = a\ndef f(x): return sum(p.a for p in x)",
         "assert f([Pair(1), Pair(3)]) == 4", "passed"),
        ("def sum(a, b): return a + b", "assert sum(10, 15) == 25", "passed"),
        ("def abs(x): return 0\ndef f(): return 3", "assert abs(f()) == 0", "AssertionError"),
    ],
)  # fmt: skip
def test_outcomes(program: str, tests: str, reason: str, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    assert run_program(program, tests, timeout=5.0) == (reason == "passed", reason)


def test_an_answer_cannot_bring_names_that_the_tests_did_not_ask_for(guard: str) -> None:
    program = """import gc
names = {"add": lambda a, b: -5, "abs": lambda x: 3}
for each in gc.get_objects():
    if type(each).__name__ == "Channel":
        each.send((False, names))
        real = type(each).send
        type(each).send = lambda self, message: setattr(type(self), "send", real)  # the true answer is lost
"""
    assert not run_program(program, "assert abs(add(1, 2)) == 3").passed


def test_a_call_cannot_end_a_loop_of_the_tests(guard: str) -> None:
    tests = "for found in map(add, [1], [2]): assert found == 3"
    assert run_program("def add(a, b): raise StopIteration", tests) == (False, "RuntimeError")
    assert run_program("def add(a, b): return 3", tests).passed


def test_objects_whose_equality_lies_are_a_known_limit() -> None:
    program = "class Liar:\n    def __eq__(self, other): return True\ndef add(a, b): return Liar()"
    assert run_program(program, TESTS).passed


def test_no_network_not_even_loopback(guard: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import _socket\n_socket.socket().connect(('127.0.0.1', {port}))"
        assert run_program(program, "", timeout=3.0) == (False, "PermissionError")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_program_that_hangs_is_gone_after_its_time(guard: str) -> None:
    started = time.time()
    assert run_program("while True: pass", "", timeout=1.0) == (False, "timed out")
    assert time.time() - started < 4


def test_no_process_stays(guard: str) -> None:
    seconds = f"61.{os.getpid()}"
    leave = guard == "bubblewrap"  # the weak guard kills a session, not what left it
    program = f"""import subprocess, sys
sys.audit = lambda *_: None
for _ in range(20): subprocess.Popen(["sleep", "{seconds}"], start_new_session={leave})
def add(a, b): return None"""
    assert run_program(program, TESTS) == (False, "AssertionError")
    deadline = time.time() + 5
    while (found := _running(seconds)) and time.time() < deadline:
        time.sleep(0.05)
    assert not found


def _running(argument: str) -> list[str]:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes())
    return [each.decode() for each in commands if argument.encode() in each.split(b"\0")]


def test_nothing_stays_when_the_run_itself_is_killed(guard: str, tmp_path: Path) -> None:
    marker = f"marker_{os.getpid()}_{time.time_ns()}"
    weak = "sandbox._container = lambda: ()" if guard == "weak guard" else ""
    code = f"from rlhflow_utils.evaluation import sandbox\n{weak}\nsandbox.run_program('while True: pass', '', 60)"
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    run = subprocess.Popen([sys.executable, "-c", code, marker], env=environment)
    try:
        before = _sandboxed(run.pid)
        deadline = time.time() + 20
        while len(before) < 2 and time.time() < deadline:
            time.sleep(0.1)
            before = _sandboxed(run.pid)
        assert len(before) >= 2
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    deadline = time.time() + 10
    while time.time() < deadline and (any((tmp_path / "temporary").iterdir()) or _alive(before)):
        time.sleep(0.1)
    assert not _alive(before)  # the fixture looks at the folder


def _sandboxed(pid: int) -> list[int]:
    """Processes below `pid` that run the sandbox's script."""
    below, found = [pid], []
    while below:
        each = below.pop()
        children = Path(f"/proc/{each}/task/{each}/children")
        below += [int(child) for child in children.read_text().split()] if children.exists() else []
        command = Path(f"/proc/{each}/cmdline")
        if each != pid and command.exists() and b"sandbox.py" in command.read_bytes():
            found.append(each)
    return found


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_the_weak_guard_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    sandbox._container.cache_clear()
    try:
        assert run_program("def add(a, b): return a + b", TESTS).passed
        assert run_program("def add(a, b): return a + b", TESTS).passed
    finally:
        sandbox._container.cache_clear()
    assert capsys.readouterr().err.count("\n") == 1
