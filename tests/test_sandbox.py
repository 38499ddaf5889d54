"""The sandbox: real solutions pass, hostile programs fail and leave nothing behind."""

from __future__ import annotations

import gzip
import json
import socket
import tempfile
import time
from pathlib import Path

import pytest

from rlhflow_utils.evaluation.sandbox import run_program


def test_recorded_hostile_samples_pass_half(data_root: Path) -> None:
    """openai/human-eval's example samples: one deletes a folder, one sleeps, one waits for input; 3 of 6 are right."""
    folder = data_root / "humaneval"
    problem = json.loads((folder / "example_problem.jsonl").read_text().splitlines()[0])
    samples = [json.loads(line) for line in (folder / "example_samples.jsonl").read_text().splitlines()]
    tests = f"\n{problem['test']}\ncheck({problem['entry_point']})"
    outcomes = [run_program(problem["prompt"] + s["completion"] + tests, timeout=2.0) for s in samples]
    assert [outcome.passed for outcome in outcomes] == [False, False, False, True, True, True]
    assert [outcome.reason for outcome in outcomes[:3]] == ["PermissionError", "timed out", "EOFError"]


def test_reference_solutions_of_humaneval_pass(data_root: Path) -> None:
    lines = gzip.decompress((data_root / "humaneval/HumanEval.jsonl.gz").read_bytes()).decode().splitlines()
    for row in map(json.loads, lines[::12]):
        program = f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})"
        assert run_program(program, timeout=20).passed, row["task_id"]
        assert not run_program(
            f"{row['prompt']}    pass\n{row['test']}\ncheck({row['entry_point']})", timeout=20
        ).passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os; os.system('true')", "PermissionError"),
        ("x = 'a' * (3 << 30)", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import ctypes; ctypes.CDLL(None)", "PermissionError"),
        ("open('mine', 'w').write('x'); assert open('mine').read() == 'x'", "passed"),
        ("f = open('big', 'wb')\nwhile True: f.write(b'x' * 1000000)", "OSError"),
        ("import os; assert 'OPENAI_API_KEY' not in os.environ", "passed"),
        ("import collections, heapq, itertools, math, re; assert math.gcd(4, 6) == 2", "passed"),
    ],
)
def test_outcomes(program: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    outcome = run_program(program, timeout=3.0)
    assert outcome.reason == reason
    assert outcome.passed == (reason == "passed")


@pytest.mark.parametrize(
    "program",
    ["open({path!r}, 'w')", "import os; os.remove({path!r})", "import shutil; shutil.rmtree({folder!r})",
     "import os; os.rename({path!r}, 'here')", "import pathlib; pathlib.Path({path!r}).write_text('x')",
     "import os; os.truncate({path!r}, 0)", "import os; os.open({path!r}, os.O_RDWR)"],
)  # fmt: skip
def test_nothing_outside_the_scratch_folder_is_touched(program: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("precious")
    outcome = run_program(program.format(path=str(kept), folder=str(tmp_path)), timeout=3.0)
    assert outcome == (False, "PermissionError")
    assert kept.read_text() == "precious"


def test_no_network_not_even_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        outcome = run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}))", timeout=3.0)
        assert outcome == (False, "PermissionError")
        with pytest.raises(TimeoutError):
            server.accept()


def test_endless_output_does_not_pile_up() -> None:
    assert not run_program("while True: print('noise' * 1000)", timeout=1.0).passed


def test_a_program_that_hangs_is_gone_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = time.time()
    outcome = run_program("import os, time\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass", timeout=1.0)
    assert outcome == (False, "timed out")
    assert time.time() - started < 4
    assert list(tmp_path.iterdir()) == []
